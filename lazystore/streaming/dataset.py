"""`StreamingDataset`: a stored dataset as items, inside one memory budget.

Here: arguments, opening, and the public surface. Where items lie is the reader's business
(``_core.reader``), where bytes come from the memory's (``cache.memory``).
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from lazystore._core.arena import MIN_BYTES
from lazystore._core.decode import DecodePlan
from lazystore._core.frames import FrameStore
from lazystore._core.scan import ItemIterator
from lazystore.cache.inflate import WINDOW_SHARE
from lazystore.cache.memory import ChunkMemory
from lazystore.cache.stats import memory_stats
from lazystore.config import EvictionPolicy, StreamingConfig, default_memory, parse_bytes
from lazystore.errors import (
    BudgetTooSmallError,
    ConfigError,
    DatasetNotFoundError,
    FormatError,
    MissingExtraError,
    UnsupportedError,
)
from lazystore.fetch import open_source
from lazystore.formats.leaves import leaf_operation
from lazystore.formats.litdata import INDEX_NAME, LitDataIndex, parse_index
from lazystore.formats.pytree import compile_tree, leaf_names
from lazystore.streaming.item_loader import BaseItemLoader
from lazystore.streaming.numbering import number_items

if TYPE_CHECKING:
    from lazystore._core.frames import Lease
    from lazystore.fetch.source import Source

__all__ = ["StreamingDataset"]

MIB = 1 << 20
DEFAULT_TIMEOUT = 30.0
#: An index of a million chunks has some 100 MB; what is longer is no index.
MAX_INDEX_BYTES = 1 << 30
#: Share of the budget for payload in flight on remote storage, and its bounds.
IN_FLIGHT_SHARE, MAX_IN_FLIGHT, MIN_IN_FLIGHT = 8, 16 * MIB, 128 * 1024
#: A storage client holds a body in pieces and then joined: for a moment twice.
BODY_COPIES = 2
#: The history window of a compressed stream: a share of the budget, and what zstd's ordinary levels need
#: if that is less than half of it.
MIN_WINDOW, MAX_WINDOW = 2 * MIB + 64 * 1024, 128 * MIB


class StreamingDataset:
    """A dataset written by LitData (classic chunks), local or remote, as a sequence of items.

    Parameters:
        input_dir: directory or URL that holds index.json: a path, ``s3://``, ``gs://``, ``az://``, ``http(s)://``,
            ``memory://`` or whatever fsspec knows.
        item_loader: :class:`InMemoryItemLoader` (budget, policy, timeout) or :class:`TokensLoader` (blocks).
        memory: hard budget in bytes (``"64MB"``, ``"256MiB"``, or an int) for resident bytes, tables, requests in
            flight and decompression. Default: 256 MiB, or a quarter of the memory limit if that is less.
        storage_options: credentials and client settings, as LitData or as fsspec writes them.
        transform: applied to every item, on every path.
        subsample, shuffle, seed, drop_last: as in LitData; this version reads whole datasets in order.
        serializers: decoders of your own leaf tags: objects with ``deserialize(bytes)``, or functions.
        allow_pickle: let pickle leaves be unpickled, which runs code from the dataset.
        eviction_policy: which frames leave first outside scans: S3FIFO (default: fewest misses on every trace of
            ``benchmarks/bench_policies.py``), LRU or FIFO.
        timeout: seconds a read may take, waiting and retries included (default 30).
        fallback: ``"direct"``: an item that memory cannot hold, or whose frames fail to stream, is read directly
            (logged once, counted); ``"raise"``: that is an error.
        backend: ``"auto"``, ``"fsspec"`` or ``"obstore"``: what talks to remote storage.

    Items are bytes-for-bytes what was written: Python ints and floats, ``str``, ``bytes``, writable numpy
    arrays and torch tensors, PIL images (bytes without pillow).

    Raises:
        DatasetNotFoundError, FormatError, UnsupportedError, BudgetTooSmallError, ConfigError, FetchError.

    Memory: at most ``memory`` bytes, plus the items handed out. Threads: any number may read; the first that
    misses fetches, the others wait for that fetch. No thread is started for local data; remote storage uses its
    client's own loop thread from the first read on. Fork: a child keeps what is resident as its own copy and
    opens its own connections. Spawn, pickling: by arguments; the copy starts cold. Interpreter exit: nothing
    to wait for.
    """

    def __init__(
        self,
        input_dir: str | os.PathLike[str],
        *,
        item_loader: BaseItemLoader | None = None,
        memory: int | str | None = None,
        storage_options: Mapping[str, Any] | None = None,
        transform: Callable[[Any], Any] | None = None,
        subsample: float = 1.0,
        shuffle: bool = False,
        seed: int = 42,
        drop_last: bool | None = None,
        serializers: Mapping[str, Any] | None = None,
        allow_pickle: bool = False,
        eviction_policy: EvictionPolicy | None = None,
        timeout: float | None = None,
        fallback: str = "direct",
        backend: Literal["auto", "fsspec", "obstore"] = "auto",
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "input_dir")}
        self._recipe = (os.fspath(input_dir), arguments)
        _check_arguments(subsample, shuffle, drop_last, transform, fallback)
        config = _config(item_loader, memory, eviction_policy, timeout)
        self._budget, self._monitor = config.max_memory_size, config.enable_memory_monitoring
        in_flight = min(max(self._budget // IN_FLIGHT_SHARE, MIN_IN_FLIGHT), MAX_IN_FLIGHT)
        source = open_source(
            self._recipe[0], dict(storage_options or {}), max_in_flight_bytes=in_flight, backend=backend
        )
        try:
            index = _read_index(source, config.chunk_timeout)
            self._memory = _memory(source, index, config, in_flight, fallback == "direct")
            with _placed(f"{source.url}/{INDEX_NAME}"):
                plan = _plan(index, allow_pickle, serializers, block=bool(item_loader and item_loader.block_size))
                counts, stride = number_items(index, item_loader, source, config.chunk_timeout)
            self._reader = self._memory.attach(plan, counts, stride, transform)
        except BaseException:
            source.close()
            raise
        self._index = index
        self._plan = plan
        self._total = sum(counts)
        self._get = self._reader.get
        if item_loader is not None:
            item_loader.attach(self)
        _live.add(self)

    # -- items --------------------------------------------------------------------------

    def __len__(self) -> int:
        return self._total

    def __getitem__(self, index: Any) -> Any:
        """One item by int (negative from the end, numpy ints too), or a list of items by slice."""
        if type(index) is slice:
            return self._reader.get_many(range(*index.indices(self._total)))
        return self._get(index)

    def get_many(self, indices: Iterable[int]) -> list[Any]:
        """Items in the order asked; remote ones in at most three dependent waves of requests.

        Cost: what is resident is decoded in place; the rest is fetched together, 16 MiB at a time.
        """
        return self._reader.get_many(indices)

    __getitems__ = get_many

    def __iter__(self) -> Iterator[Any]:
        """All items in order; an iterator in C that holds nothing between items."""
        return ItemIterator(self._reader, 0, self._total)

    def get_bytes(self, index: int) -> bytes:
        """The stored bytes of an item (leaf sizes and leaves), as a copy."""
        return self._reader.get_bytes(index)

    def view(self, index: int) -> Lease:
        """The stored bytes of an item without copying: a read-only lease that pins them.

        Use as ``with ds.view(i) as lease: memoryview(lease)``. An item that straddles frames, or that memory
        cannot hold, comes as a private copy (``lease.copied``).
        """
        return self._reader.view(index)

    # -- memory -------------------------------------------------------------------------

    def is_item_available(self, index: int) -> bool:
        """Whether the item can be had without I/O."""
        return self._reader.is_resident(index)

    def get_chunk_progress(self, chunk: int) -> float:
        """Share of a chunk's bytes that is resident, 0 to 1; 0 for a chunk never touched."""
        length = self._reader.chunk_length(chunk)
        resident = sum(row[2] for row in self._memory.store.contents() if row[0] == chunk)
        return resident / length if length else 0.0

    def prefetch_items(self, indices: Iterable[int]) -> int:
        """Make items resident together and return how many were not; waits for their bytes.

        The budget still holds: prefetching more than it holds evicts the first again.
        """
        return self._memory.prefetch([self._reader.where(index) for index in indices])

    def get_memory_stats(self) -> dict[str, Any]:
        """Use of the budget and what it took; see :func:`lazystore.cache.stats.memory_stats` for the keys."""
        return memory_stats(self._memory, budget=self._budget, monitor=self._monitor)

    def stats(self) -> dict[str, Any]:
        """The counters of :meth:`get_memory_stats` without the chunks, and what the dataset is."""
        counters = self.get_memory_stats()
        del counters["chunks"]
        return {"url": self._memory.source.url, "items": self._total, "n_chunks": len(self._index.names), **counters}

    # -- life ---------------------------------------------------------------------------

    def close(self) -> None:
        """Give the memory and connections back; reads raise ClosedError. Leases stay valid until dropped."""
        self._memory.close()

    def __enter__(self) -> StreamingDataset:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), *self._recipe)

    def __repr__(self) -> str:
        closed = ", closed" if self._memory.store.is_closed else ""
        return (
            f"<{type(self).__name__} {self._memory.source.url}: {self._total} items in {len(self._index.names)} chunks "
            f"of ({', '.join(map(str, self._plan.names))}), {self._budget / 1e6:.0f} MB budget{closed}>"
        )


def _rebuild(cls: type[StreamingDataset], input_dir: str, arguments: dict[str, Any]) -> StreamingDataset:
    return cls(input_dir, **arguments)


# -- opening --------------------------------------------------------------------------------


def _check_arguments(subsample: float, shuffle: bool, drop_last: bool | None, transform: Any, fallback: str) -> None:
    if shuffle:
        raise UnsupportedError("shuffle=True is not in this version; read by index in your own order with get_many()")
    if subsample != 1.0:
        raise UnsupportedError("subsample other than 1.0 is not in this version; read a range of indices instead")
    if drop_last:
        raise UnsupportedError("drop_last=True is not in this version: it has no ranks or batches to drop from")
    if transform is not None and not callable(transform):
        raise ConfigError(f"transform={transform!r} is not callable")
    if fallback not in ("direct", "raise"):
        raise ConfigError(f"fallback={fallback!r} is neither 'direct' nor 'raise'")


def _config(
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


def _read_index(source: Source, timeout: float) -> LitDataIndex:
    place = f"{source.url}/{INDEX_NAME}"
    try:
        data = source.read_all(INDEX_NAME, limit=MAX_INDEX_BYTES, timeout=timeout)
        with _placed(place):
            return parse_index(data, place=place)
    except DatasetNotFoundError:
        raise DatasetNotFoundError(
            f"{place} does not exist: the path is wrong, or the dataset was not finished "
            "(LitData writes the index last; files like 0.index.json mean an interrupted run)"
        ) from None


@contextmanager
def _placed(place: str) -> Iterator[None]:
    """Put the dataset in front of errors that do not name it."""
    try:
        yield
    except (FormatError, UnsupportedError, MissingExtraError) as error:
        if place.rpartition("/")[0] in str(error):
            raise
        raise type(error)(f"{place}: {error}") from error


def _memory(
    source: Source, index: LitDataIndex, config: StreamingConfig, in_flight: int, fallback: bool
) -> ChunkMemory:
    """The arena gets what is left of the budget after requests in flight and inflation."""
    compressed = bool(index.compression)
    budget = config.max_memory_size
    window = min(max(budget // WINDOW_SHARE, min(MIN_WINDOW, budget // 2)), MAX_WINDOW) if compressed else 0
    reserved = window + (0 if source.local else BODY_COPIES * in_flight)
    smallest = (MIN_BYTES + (0 if source.local else BODY_COPIES * MIN_IN_FLIGHT)) * (2 if compressed else 1)
    if budget < smallest or budget - reserved < MIN_BYTES:
        raise BudgetTooSmallError(
            f"a memory budget of {budget} bytes is too small for {source.url}: give at least {smallest} bytes "
            f"({window} are for decompression, {reserved - window} for requests in flight)"
        )
    store = FrameStore(budget - reserved, policy=config.eviction_policy.value)
    return ChunkMemory(
        source, index, store,
        timeout=config.chunk_timeout, fallback=fallback, compressed=compressed, max_window=window,
    )  # fmt: skip


def _plan(index: LitDataIndex, allow_pickle: bool, serializers: Mapping[str, Any] | None, *, block: bool) -> DecodePlan:
    leaves = [leaf_operation(tag, allow_pickle=allow_pickle, serializers=serializers) for tag in index.tags]
    if index.tokens:
        return DecodePlan(leaves, [("leaf",)], names=index.tags, headless=True)
    if block:
        raise ConfigError("TokensLoader reads datasets written with TokensLoader; this one stores whole items")
    tree = compile_tree(index.data_spec, len(index.tags))
    return DecodePlan(leaves, tree, names=leaf_names(index.data_spec, index.tags))


# -- fork -----------------------------------------------------------------------------------

_live: weakref.WeakSet[StreamingDataset] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for dataset in list(_live):
        dataset._memory.reset_after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
