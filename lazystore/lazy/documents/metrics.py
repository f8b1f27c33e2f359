"""The documents' metric keys, computed from what a store counted. Views: nothing is counted here."""

from __future__ import annotations

from typing import Any

from lazystore.lazy.store import LazyStore, default_store

__all__ = ["get_metrics", "get_stats", "metrics_of", "stats_of"]

MIB = 1 << 20


def metrics_of(store: LazyStore) -> dict[str, Any]:
    """The metrics of :class:`AdvancedLazyLoader`.

    ``total_operations`` and one count a strategy, ``cache_hits`` (memory and disk, stale ones and joined loads
    included), ``cache_misses`` (requests that had to be loaded), ``cache_hit_rate`` (0..1), ``total_load_time`` and
    ``average_load_time`` (seconds in loaders), ``memory_usage`` (MiB), ``cache_sizes`` (entries), ``errors``.
    """
    stats = store.stats()
    operations, kinds = stats["operations"], stats["entries_by_kind"]
    requests, loads = stats["requests"], stats["loads"]
    hits = stats["hits"] + stats["joins"] + min(stats["disk_hits"], stats["misses"])  # loads ahead hit the disk too
    return {
        "total_operations": sum(operations.values()),
        **{f"{kind}_operations": operations[kind] for kind in ("streaming", "chunked", "paginated", "background")},
        "cache_hits": hits,
        "cache_misses": requests - hits,
        "cache_hit_rate": hits / requests if requests else 0.0,
        "total_load_time": stats["load_seconds"],
        "average_load_time": stats["load_seconds"] / loads if loads else 0.0,
        "memory_usage": stats["memory_used"] / MIB,
        "cache_sizes": {
            "data": stats["entries"] - kinds.get("page", 0),
            "stream": stats["active_streams"],
            "page": kinds.get("page", 0),
        },
        "errors": stats["load_errors"],
    }


def stats_of(store: LazyStore) -> dict[str, Any]:
    """The statistics of :class:`LargeDataLoader`: loads by kind, hits by tier, sizes in MiB, times in seconds.

    ``total_chunks_loaded`` and ``total_pages_loaded`` count what came from the source; ``compression_savings`` is in
    bytes; ``active_*`` is what is held now.
    """
    stats = store.stats()
    loads, seconds, kinds = stats["loads_by_kind"], stats["load_seconds_by_kind"], stats["entries_by_kind"]
    chunks, pages = loads.get("chunk", 0), loads.get("page", 0)
    return {
        "total_chunks_loaded": chunks,
        "total_pages_loaded": pages,
        "total_streams": stats["operations"]["streaming"],
        "cache_hits": stats["requests"] - stats["misses"],
        "disk_cache_hits": stats["disk_hits"],
        "hit_ratio": stats["hit_ratio"],
        "compression_savings": stats["compression_savings"],
        "memory_usage_mb": stats["memory_used"] / MIB,
        "avg_chunk_load_time": seconds.get("chunk", 0.0) / chunks if chunks else 0.0,
        "avg_page_load_time": seconds.get("page", 0.0) / pages if pages else 0.0,
        "active_chunks": kinds.get("chunk", 0),
        "active_pages": kinds.get("page", 0),
        "active_streams": stats["active_streams"],
        "background_tasks": stats["background_tasks"],
        "disk_cache_size_mb": stats["disk_bytes"] / MIB,
    }


def get_metrics(store: LazyStore | None = None) -> dict[str, Any]:
    """:func:`metrics_of` a store; of the one that decorators share, if none is given."""
    return metrics_of(default_store() if store is None else store)


def get_stats(store: LazyStore | None = None) -> dict[str, Any]:
    """:func:`stats_of` a store; of the one that decorators share, if none is given."""
    return stats_of(default_store() if store is None else store)
