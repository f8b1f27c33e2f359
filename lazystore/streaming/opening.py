"""Opening a dataset: arguments checked, the index read, the budget divided, the schema compiled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lazystore._core.arena import MIN_BYTES
from lazystore._core.decode import DecodePlan
from lazystore._core.frames import FrameStore
from lazystore.cache.inflate import WINDOW_SHARE
from lazystore.cache.memory import ChunkMemory
from lazystore.config import EvictionPolicy, StreamingConfig, default_memory, parse_bytes
from lazystore.errors import (
    BudgetTooSmallError,
    ConfigError,
    DatasetNotFoundError,
    FormatError,
    MissingExtraError,
    UnsupportedError,
)
from lazystore.formats.leaves import leaf_operation
from lazystore.formats.litdata import INDEX_NAME, LitDataIndex, parse_index
from lazystore.formats.pytree import compile_tree, leaf_names
from lazystore.streaming.item_loader import BaseItemLoader

if TYPE_CHECKING:
    from lazystore.fetch.source import Source

__all__ = ["compile_plan", "config_of", "in_flight_bytes", "make_memory", "placed", "read_index", "smallest_budget"]

MIB = 1 << 20
DEFAULT_TIMEOUT = 30.0
#: An index of a million chunks has some 100 MB; what is longer is no index.
MAX_INDEX_BYTES = 1 << 30
#: Share of the budget for payload in flight on remote storage, and its bounds.
IN_FLIGHT_SHARE, MAX_IN_FLIGHT, MIN_IN_FLIGHT = 8, 16 * MIB, 128 * 1024
#: A storage client holds a body in pieces and then joined: for a moment twice.
BODY_COPIES = 2
#: Share of the budget for offset tables that shuffles keep beside the frames.
TABLES_SHARE = 32
#: The history window of a compressed stream: a share of the budget, and what zstd's ordinary levels need
#: if that is less than half of it.
MIN_WINDOW, MAX_WINDOW = 2 * MIB + 64 * 1024, 128 * MIB


def in_flight_bytes(budget: int) -> int:
    """Payload bytes that may be under way at once inside a budget."""
    return min(max(budget // IN_FLIGHT_SHARE, MIN_IN_FLIGHT), MAX_IN_FLIGHT)


def smallest_budget(*, local: bool, compressed: bool) -> int:
    """The least budget a dataset can be opened with."""
    return (MIN_BYTES + (0 if local else BODY_COPIES * MIN_IN_FLIGHT)) * (2 if compressed else 1)


def config_of(
    loader: BaseItemLoader | None, memory: int | str | None, policy: EvictionPolicy | None, timeout: float | None
) -> StreamingConfig:
    """One configuration out of the loader's and the arguments; saying a thing twice is an error."""
    if loader is not None and not isinstance(loader, BaseItemLoader):
        raise ConfigError(f"item_loader={loader!r} is not one of lazystore's item loaders")
    given = loader.streaming_config if loader is not None else None
    if given is None:
        return StreamingConfig(
            max_memory_size=default_memory() if memory is None else parse_bytes(memory),
            eviction_policy=policy or EvictionPolicy.S3FIFO,
            chunk_timeout=DEFAULT_TIMEOUT if timeout is None else timeout,
        )
    for name, value in (("memory", memory), ("eviction_policy", policy), ("timeout", timeout)):
        if value is not None:
            raise ConfigError(f"{name} is given both as an argument and in the loader's streaming_config; give it once")
    return given


def read_index(source: Source, timeout: float) -> LitDataIndex:
    place = f"{source.url}/{INDEX_NAME}"
    try:
        data = source.read_all(INDEX_NAME, limit=MAX_INDEX_BYTES, timeout=timeout)
        with placed(place):
            return parse_index(data, place=place)
    except DatasetNotFoundError:
        raise DatasetNotFoundError(
            f"{place} does not exist: the path is wrong, or the dataset was not finished "
            "(LitData writes the index last; files like 0.index.json mean an interrupted run)"
        ) from None


@contextmanager
def placed(place: str) -> Iterator[None]:
    """Put the dataset in front of errors that do not name it."""
    try:
        yield
    except (FormatError, UnsupportedError, MissingExtraError) as error:
        if place.rpartition("/")[0] in str(error):
            raise
        raise type(error)(f"{place}: {error}") from error


def make_memory(
    source: Source, index: LitDataIndex, config: StreamingConfig, budget: int, fallback: bool
) -> ChunkMemory:
    """The arena gets what is left of the budget after requests in flight and inflation."""
    compressed = bool(index.compression)
    window = min(max(budget // WINDOW_SHARE, min(MIN_WINDOW, budget // 2)), MAX_WINDOW) if compressed else 0
    tables = budget // TABLES_SHARE if budget >= MIB else 0
    if compressed and not source.local:  # besides the history, compressed bytes wait their turn
        spare = budget - window - tables - BODY_COPIES * in_flight_bytes(budget) - MIN_BYTES
        window += max(0, min(in_flight_bytes(budget), spare // 4))
    reserved = window + tables + (0 if source.local else BODY_COPIES * in_flight_bytes(budget))
    smallest = smallest_budget(local=source.local, compressed=compressed)
    if budget < smallest or budget - reserved < MIN_BYTES:
        raise BudgetTooSmallError(
            f"a memory budget of {budget} bytes is too small for {source.url}: give at least {smallest} bytes "
            f"({window} are for decompression, {reserved - window} for requests in flight and offset tables)"
        )
    store = FrameStore(budget - reserved, policy=config.eviction_policy.value)
    return ChunkMemory(
        source, index, store,
        timeout=config.chunk_timeout, fallback=fallback, compressed=compressed, max_window=window,
        tables_room=tables,
    )  # fmt: skip


def compile_plan(
    index: LitDataIndex, allow_pickle: bool, serializers: Mapping[str, Any] | None, *, block: bool
) -> DecodePlan:
    leaves = [leaf_operation(tag, allow_pickle=allow_pickle, serializers=serializers) for tag in index.tags]
    if index.tokens:
        return DecodePlan(leaves, [("leaf",)], names=index.tags, headless=True)
    if block:
        raise ConfigError("TokensLoader reads datasets written with TokensLoader; this one stores whole items")
    tree = compile_tree(index.data_spec, len(index.tags))
    return DecodePlan(leaves, tree, names=leaf_names(index.data_spec, index.tags))
