"""`StreamingDataset`: a stored dataset as items, inside one memory budget.

Here: arguments, opening, and the public surface. Where items lie is the reader's business
(``_core.reader``), where bytes come from the memory's (``cache.memory``).
"""

from __future__ import annotations

import os
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from lazystore._core.decode import DecodePlan
from lazystore._core.frames import FrameStore
from lazystore.cache.memory import ChunkMemory
from lazystore.config import EvictionPolicy, StreamingConfig, default_memory, parse_bytes
from lazystore.errors import ConfigError, DatasetNotFoundError, FormatError, UnsupportedError
from lazystore.fetch import open_source
from lazystore.formats.leaves import leaf_operation
from lazystore.formats.litdata import INDEX_NAME, OFFSET_WIDTH, OFFSETS_AT, LitDataIndex, parse_index
from lazystore.formats.pytree import compile_tree, leaf_names
from lazystore.stats import memory_stats
from lazystore.streaming.item_loader import BaseItemLoader

if TYPE_CHECKING:
    from lazystore._core.frames import Lease
    from lazystore.fetch.source import Read, Source

__all__ = ["StreamingDataset"]

MIB = 1 << 20
DEFAULT_TIMEOUT = 30.0
#: An index of a million chunks has some 100 MB; what is longer is no index.
MAX_INDEX_BYTES = 1 << 30
#: Share of the budget for requests in flight on remote storage, and its bounds.
IN_FLIGHT_SHARE, MAX_IN_FLIGHT, MIN_IN_FLIGHT = 8, 16 * MIB, 256 * 1024
#: Share of the budget for the history window of a compressed stream.
WINDOW_SHARE = 4
MAX_WINDOW = 128 * MIB


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
        eviction_policy: which frames leave first outside scans: LRU (default), FIFO or S3FIFO.
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
    client's own loop thread from the first read on. Fork: a child keeps what is resident as its own copy and opens its own
    connections. Spawn, pickling: by arguments; the copy starts cold. Interpreter exit: nothing to wait for.
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
        backend: str = "auto",
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
            plan = _plan(index, allow_pickle, serializers, block=bool(item_loader and item_loader.block_size))
            counts, stride = _numbering(index, item_loader, source, config.chunk_timeout)
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
        return self._reader.iterate(0, self._total)

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
        """Use of the budget and what it took; see :func:`lazystore.stats.memory_stats` for the keys."""
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
            eviction_policy=policy or EvictionPolicy.LRU,
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
    except DatasetNotFoundError:
        raise DatasetNotFoundError(
            f"{place} does not exist: the path is wrong, or the dataset was not finished "
            "(LitData writes the index last; files like 0.index.json mean an interrupted run)"
        ) from None
    return parse_index(data, place=place)


def _memory(
    source: Source, index: LitDataIndex, config: StreamingConfig, in_flight: int, fallback: bool
) -> ChunkMemory:
    """The arena gets what is left of the budget after requests in flight and inflation."""
    compressed = bool(index.compression)
    window = min(config.max_memory_size // WINDOW_SHARE, MAX_WINDOW) if compressed else 0
    reserved = window + (0 if source.local else in_flight)
    store = FrameStore(config.max_memory_size - reserved, policy=config.eviction_policy.value)
    return ChunkMemory(
        source, index, store,
        timeout=config.chunk_timeout, fallback=fallback, compressed=compressed, max_window=window,
    )  # fmt: skip


def _plan(
    index: LitDataIndex, allow_pickle: bool, serializers: Mapping[str, Any] | None, *, block: bool
) -> DecodePlan:
    leaves = [leaf_operation(tag, allow_pickle=allow_pickle, serializers=serializers) for tag in index.tags]
    if index.tokens:
        return DecodePlan(leaves, [("leaf",)], names=index.tags, headless=True)
    if block:
        raise ConfigError("TokensLoader reads datasets written with TokensLoader; this one stores whole items")
    tree = compile_tree(index.data_spec, len(index.tags))
    return DecodePlan(leaves, tree, names=leaf_names(index.data_spec, index.tags))


def _numbering(
    index: LitDataIndex, loader: BaseItemLoader | None, source: Source, timeout: float
) -> tuple[Sequence[int], int]:
    """Items of each chunk and the stride: what was written, or blocks of tokens."""
    block = loader.block_size if loader is not None else 0
    if not block:
        return index.counts, 0
    itemsize = _token_bytes(index.tags[0])
    dims = array("q", index.dims)
    unknown = [chunk for chunk, dim in enumerate(dims) if dim < 0 and index.counts[chunk]]
    for chunk, tokens in zip(unknown, _count_tokens(index, unknown, itemsize, source, timeout), strict=True):
        dims[chunk] = tokens
    return array("Q", [max(dim, 0) // block for dim in dims]), block * itemsize


def _token_bytes(tag: str) -> int:
    """Bytes a token from the array's dtype."""
    import numpy

    from lazystore.formats.leaves import TORCH_DTYPES

    name, _, detail = tag.partition(":")
    if name == "no_header_numpy" and detail.isdigit() and int(detail) < 14:
        return (1, 2, 4, 8, 1, 2, 4, 8, 2, 4, 8, 8, 16, 1)[int(detail)]
    if name == "no_header_tensor" and detail.isdigit() and int(detail) < len(TORCH_DTYPES):
        dtype = TORCH_DTYPES[int(detail)]
        return 2 if dtype == "bfloat16" else numpy.dtype(dtype).itemsize
    raise FormatError(f"tokens of encoding {tag!r} have no known size")


def _count_tokens(
    index: LitDataIndex, chunks: list[int], itemsize: int, source: Source, timeout: float
) -> list[int]:
    """Tokens of chunks whose index entry has no dim: from their first and last offsets, in one wave."""
    from lazystore.fetch.source import Read

    firsts: list[Read] = []
    lasts: list[Read] = []
    for chunk in chunks:
        last = OFFSETS_AT + OFFSET_WIDTH * index.counts[chunk]
        firsts.append(Read(index.names[chunk], OFFSETS_AT, memoryview(bytearray(OFFSET_WIDTH))))
        lasts.append(Read(index.names[chunk], last, memoryview(bytearray(OFFSET_WIDTH))))
    if index.compression and chunks:
        raise UnsupportedError("a compressed token dataset whose index has no dim cannot be read in blocks")
    if chunks:
        source.run(firsts + lasts, timeout=timeout)
    tokens = []
    for first, last_read in zip(firsts, lasts, strict=True):
        begin, end = (int.from_bytes(read.view, "little") for read in (first, last_read))
        tokens.append(max(0, end - begin) // itemsize)
    return tokens


# -- fork -----------------------------------------------------------------------------------

_live: weakref.WeakSet[StreamingDataset] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for dataset in list(_live):
        dataset._memory.reset_after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
