"""What a dataset's memory holds and what it cost, as plain dicts. Reading counters, no policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lazystore.cache.slabs import PACKED

if TYPE_CHECKING:
    from lazystore.cache.memory import ChunkMemory

__all__ = ["memory_stats"]


def memory_stats(memory: ChunkMemory, *, budget: int, monitor: bool) -> dict[str, Any]:
    """Statistics of one dataset's memory.

    Parameters:
        budget: bytes the dataset may use in all.
        monitor: also describe each resident chunk. Cost then: O(resident frames).

    Returns:
        ``total_memory_usage`` (bytes of frames in use, tables, requests in flight), ``max_memory_size``,
        ``memory_utilization`` (0..1), ``num_chunks_cached``, ``chunks`` (by chunk number), and counters since
        the dataset was opened: hits, misses, evictions by cause, bytes fetched,
        inflated or decrypted, fetched again and wasted, requests, retries,
        request waves, fallbacks, bytes in flight now and at most, and the high-water mark of the budget.
    """
    store, fetched = memory.store, memory.source.counters
    counters = store.counters()
    usage = counters["used_bytes"] + fetched.in_flight_bytes
    chunks = _chunks(memory) if not store.is_closed else {}
    return {
        "total_memory_usage": usage,
        "max_memory_size": budget,
        "memory_utilization": usage / budget,
        "num_chunks_cached": len(chunks),
        "chunks": chunks if monitor else {},
        "hits": memory.reader.hits,
        "misses": memory.reader.misses,
        "evictions": {cause: counters[f"evictions_{cause}"] for cause in ("capacity", "scan", "pieces")},
        "bytes_fetched": fetched.bytes_fetched,
        "bytes_decompressed": memory.opener.opened_bytes,
        "bytes_refetched": memory.refetched.nbytes,
        "bytes_wasted": counters["bytes_wasted"],
        "requests": fetched.requests,
        "request_waves": fetched.waves,
        "retries": fetched.retries,
        "fallbacks": memory.fallbacks,
        "in_flight_bytes": fetched.in_flight_bytes,
        "in_flight_peak": fetched.in_flight_peak,
        "high_water_mark": counters["peak_bytes"] + fetched.in_flight_peak,
        "pieces_cached": counters["pieces"],
        "pins": counters["pins"],
    }


def _chunks(memory: ChunkMemory) -> dict[int, dict[str, Any]]:
    """One entry a chunk with resident frames; what shuffles pack for themselves is no chunk's."""
    found: dict[int, dict[str, Any]] = {}
    for chunk, _, arrived, hits, idle_ms, pins, _ in memory.store.contents():
        if chunk == PACKED:
            continue
        entry = found.setdefault(
            chunk,
            {
                "size": 0,
                "bytes_total": memory.reader.chunk_length(chunk),
                "hits": 0,
                "idle_seconds": idle_ms / 1e3,
                "pins": 0,
            },
        )
        entry["size"] += arrived
        entry["hits"] += hits
        entry["idle_seconds"] = min(entry["idle_seconds"], idle_ms / 1e3)
        entry["pins"] += pins
    for chunk, entry in found.items():
        entry["complete"] = entry["size"] == entry["bytes_total"]
        entry["items_available"] = memory.reader.items_resident(chunk)
    return found
