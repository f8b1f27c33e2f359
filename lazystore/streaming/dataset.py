"""`StreamingDataset`: a stored dataset, whatever its format, as items, inside one memory budget.

Here: arguments, opening, and the public surface. Where items lie is the reader's business
(``_core.reader``), where bytes come from the memory's (``cache.memory``).
"""

from __future__ import annotations

import operator
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from lazystore._core.walk import Walk
from lazystore.cache.stats import memory_stats
from lazystore.config import EvictionPolicy
from lazystore.errors import ConfigError, UnsupportedError
from lazystore.fetch import open_source
from lazystore.formats.format import Format, Opened, Unindexed
from lazystore.streaming.division import in_flight_bytes, smallest_budget
from lazystore.streaming.epochs import Epochs
from lazystore.streaming.first_pass import FirstPass
from lazystore.streaming.item_loader import BaseItemLoader
from lazystore.streaming.locating import root_of
from lazystore.streaming.mapping import ReadByWorkers
from lazystore.streaming.opening import check_arguments, config_of, make_memory, open_dataset, with_disk
from lazystore.streaming.order import Shape
from lazystore.streaming.prefetch import RouteFeed
from lazystore.streaming.session import Session, fingerprint, order_kind
from lazystore.streaming.subset import Selection, split, subsample, subset
from lazystore.streaming.topology import detect, worker
from lazystore.streaming.torch_kind import TorchKind

if TYPE_CHECKING:
    from lazystore._core.frames import Lease
    from lazystore._core.walk import Progress
    from lazystore.cache.disk import DiskTier
    from lazystore.cache.memory import ChunkMemory
    from lazystore.fetch.source import Source
    from lazystore.streaming.batches import Batches
    from lazystore.streaming.combine import ConcatStreamingDataset
    from lazystore.streaming.mixture import Part
    from lazystore.streaming.resume import Remainder

__all__ = ["StreamingDataset", "train_test_split"]

#: A dataset whose bytes are this share of the arena stays resident as a whole.
FITS_SHARE = 0.85
_SESSION_ARGUMENTS = (
    "seed", "drop_last", "rank", "batch_size", "num_nodes", "num_canonical_nodes", "shuffle_block_size",
)  # fmt: skip
#: What there is only once it is known where items lie.
_LATE = frozenset({"_opened", "_memory", "_reader", "_total", "_get", "_selection", "_session"})


class StreamingDataset(TorchKind, Epochs, ReadByWorkers):
    """A stored dataset, local or remote, as a sequence of items.

    Parameters:
        input_dir: what to read: a directory with an index.json (LitData, MosaicML), a directory of files, files by a
            pattern (``.../part-*.parquet``), or one file (JSONL, CSV, TSV, lines, Parquet, Arrow). A path, ``s3://``,
            ``gs://``, ``az://``, ``http(s)://``, ``memory://`` or whatever fsspec knows.
        item_loader: :class:`InMemoryItemLoader` (budget, policy, timeout) or :class:`TokensLoader` (blocks).
        memory: hard budget in bytes (``"64MB"``, ``"256MiB"``, or an int) for resident bytes, tables, requests in
            flight and decompression. Default: 256 MiB, or a quarter of the memory limit if that is less.
        storage_options: credentials and client settings, as LitData or as fsspec writes them.
        transform: applied to every item, on every path.
        subsample: share of the items that is used, above 0; 2.0 reads everything twice. As in LitData.
        shuffle: ``True``: chunks in random order, items drawn from a window of as many blocks as half the budget
            holds (uniformly, if that is all of them); ``"chunk"``: LitData 0.2.76's own order; ``"global"``: a uniform
            permutation, paid in random reads; ``False``: in stored order.
        order: an order by its name instead: sequential, window, global, litdata, litdata-0.2.70, mosaic-py1e,
            mosaic-py1s, mosaic-py1br, mosaic-py2s, mosaic-naive (MosaicML's count their epochs from 0, and even out
            ranks by repeating samples).
        seed: of every shuffle; the same seed and epoch give the same order for ever.
        drop_last: ranks get equal numbers of items, and what does not divide is left out; False: every item once.
            None: True with several ranks, as in LitData.
        rank, world_size: this process among those that share an epoch; None: torch.distributed if it is initialised,
            else what launchers set (RANK and WORLD_SIZE, Slurm, MPI).
        batch_size: items a batch, where the sharing among a loader's workers depends on it.
        serializers: decoders of your own leaf tags: objects with ``deserialize(bytes)``, or functions.
        allow_pickle: let pickle leaves be unpickled, which runs code from the dataset.
        eviction_policy: which frames leave first outside scans: S3FIFO (default: fewest misses on every trace of
            ``benchmarks/bench_policies.py``), LRU or FIFO.
        timeout: seconds a read may take, waiting and retries included (default 30).
        fallback: ``"direct"``: an item that memory cannot hold, or whose frames fail to stream, is read directly
            (logged once, counted); ``"raise"``: that is an error.
        backend: ``"auto"``, ``"fsspec"`` or ``"obstore"``: what talks to remote storage.
        format: the format's name, if neither the index nor the file names tell it: litdata, mds, jsonl, csv, tsv,
            lines, parquet, arrow, or one that another package adds; or such a :class:`Format` itself.
        columns: of Parquet and Arrow files: only these columns are read.
        raw: of text: items are the bytes of their lines.
        encryption: of LitData datasets: :class:`FernetEncryption`, :class:`RSAEncryption`, or an object with their
            ``algorithm``, ``level`` and ``decrypt``.
        verify: compare what is read with the checksums that the dataset has: each chunk is read once as a whole before
            its first item. A mismatch is fetched once more, then it is an error.
        validate_hash: the same with this hash of the index (MosaicML's name of the argument).
        format_options: what is particular to a format; see its class in :mod:`lazystore.formats`.
        num_nodes, num_canonical_nodes, shuffle_block_size: of MosaicML's orders, whose ``shuffle_seed`` is ``seed``
            here; None: machines as launchers say, and MosaicML's defaults.
        disk: where bytes of a remote dataset stay once fetched, so that later epochs and runs do not fetch them again:
            a :class:`DiskTier`, or the folder of one with its defaults (1 GB).

    Items are bytes-for-bytes what was written: Python ints and floats, ``str``, ``bytes``, writable numpy
    arrays and torch tensors, PIL images (bytes without pillow).

    Raises:
        DatasetNotFoundError, FormatError, UnsupportedError, BudgetTooSmallError, ConfigError, FetchError.

    Memory: at most ``memory`` bytes, plus the items handed out. Threads: any number may read; the first that
    misses fetches, the others wait for that fetch. Remote storage uses its client's own loop thread from the first
    read on; local files that are not in the page cache are read ahead by one worker thread. Fork: a child keeps what
    is resident as its own copy and opens its own connections; a DataLoader's workers share the budget, each begins
    with an empty part of it. Spawn, pickling: by arguments, epoch and loaded state; the copy starts cold.
    Interpreter exit: nothing to wait for.
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
        shuffle: bool | str = False,
        order: str | None = None,
        seed: int = 42,
        drop_last: bool | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        batch_size: int = 1,
        serializers: Mapping[str, Any] | None = None,
        allow_pickle: bool = False,
        eviction_policy: EvictionPolicy | None = None,
        timeout: float | None = None,
        fallback: str = "direct",
        backend: Literal["auto", "fsspec", "obstore"] = "auto",
        format: str | Format | None = None,
        columns: Sequence[str] | None = None,
        raw: bool = False,
        encryption: Any = None,
        verify: bool = False,
        validate_hash: str | None = None,
        format_options: Mapping[str, Any] | None = None,
        num_nodes: int | None = None,
        num_canonical_nodes: int | None = None,
        shuffle_block_size: int | None = None,
        disk: DiskTier | str | os.PathLike[str] | None = None,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "input_dir")}
        self._recipe: tuple[str, dict[str, Any]] = (os.fspath(input_dir), arguments)
        check_arguments(seed, batch_size, transform, fallback)
        order_kind(shuffle, order)
        self._config = config_of(item_loader, memory, eviction_policy, timeout)
        self._budget = self._config.max_memory_size
        self._root = root_of(os.fspath(input_dir), format)
        self._block_size = item_loader.block_size if item_loader is not None else 0
        found = self._open(self._budget)
        self._shared = (os.getpid(), 1)
        self._family: dict[tuple[int, int], ChunkMemory] = {}  # whose memory this is, shared with selections
        if item_loader is not None:
            item_loader.attach(self)
        self._indexing = threading.RLock()
        if isinstance(found, Unindexed):
            self._unindexed: Unindexed | None = found
            self._first_pass: FirstPass | None = None
        else:
            self._begin(found)
        _live.add(self)

    def _begin(self, opened: Opened) -> None:
        """Everything that needs to know where items lie."""
        try:
            self._attach(opened, self._budget)
        except BaseException:
            opened.source.close()
            raise
        self._unindexed = self._first_pass = None
        self._selection: Selection | None = None
        self._select(self._subsampled(self._recipe[1]["subsample"]))

    def __getattr__(self, name: str) -> Any:
        # Text without an index: what needs to know where items lie comes into being when it is first asked for, once.
        if name in _LATE and "_indexing" in self.__dict__:
            with self._indexing:
                if name not in self.__dict__ and self._unindexed is not None:
                    self._make_index()
            if name in self.__dict__:
                return self.__dict__[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _make_index(self) -> None:
        """Read the text once to learn where its items lie, unless a pass has done so meanwhile."""
        unindexed, first = self._unindexed, self._first_pass
        assert unindexed is not None
        self._begin(unindexed.build())
        if first is not None:
            first.hand_over(self._session)

    def _connect(self, budget: int) -> Source:
        arguments = self._recipe[1]
        source = open_source(
            self._root.url, dict(arguments["storage_options"] or {}),
            max_in_flight_bytes=in_flight_bytes(budget), backend=arguments["backend"],
        )  # fmt: skip
        return with_disk(source, arguments["disk"], budget)

    def _open(self, budget: int) -> Opened | Unindexed:
        input_dir, arguments = self._recipe
        self._source = source = self._connect(budget)
        try:
            return open_dataset(
                self._root, source,
                url=input_dir, arguments=arguments, block_size=self._block_size, timeout=self._config.chunk_timeout,
                budget=budget,
            )  # fmt: skip
        except BaseException:
            source.close()
            raise

    def _attach(self, opened: Opened, budget: int) -> None:
        """Divide a budget and read through it from now on."""
        arguments = self._recipe[1]
        memory = make_memory(opened, self._config, budget, arguments["fallback"] == "direct")
        self._opened, self._memory = opened, memory
        transform = opened.transform_before(arguments["transform"])
        self._reader = memory.attach(opened.plan, opened.counts, opened.stride, transform)
        self._total = self._reader.n_items
        self._get = self._reader.get

    def _select(self, selection: Selection | None) -> None:
        """Iterate and index this selection from now on; None: everything."""
        opened, arguments = self._opened, self._recipe[1]
        whole = Shape(opened.counts, opened.hints)
        files = None if opened.files is None else Shape(opened.files.counts, opened.files.hints)
        self._selection = selection
        self._session = Session(
            whole if selection is None else selection.shape(whole),
            fingerprint(opened, selection),
            files=files if selection is None else None,
            kind=order_kind(arguments["shuffle"], arguments["order"]),
            budget=self._budget,
            opaque=opened.opaque,
            world_size=arguments["world_size"],
            **{name: arguments[name] for name in _SESSION_ARGUMENTS},
        )

    def _share_budget(self) -> None:
        """Inside a DataLoader's worker: the workers share the budget, each takes its part.

        A forked worker lets go of what its parent had resident: a copy of that would cost memory for as long as it
        lives, and is not what this worker will read.
        """
        here = (os.getpid(), worker()[1])
        if here == self._shared or here[1] == self._shared[1]:
            return
        self._shared = here
        if here not in self._family:  # a selection, or whom it was taken from, may have been first
            old = self._memory
            budget = max(self._budget // here[1], smallest_budget(self._opened))
            self._attach(self._opened_again(budget), budget)
            self._family.clear()
            self._family[here] = self._memory
            old.close()
        self._memory = self._family[here]
        self._reader = self._memory.reader
        self._get = self._reader.get

    def _opened_again(self, budget: int) -> Opened:
        """The same dataset for another budget; read anew only where the budget or the source went into it."""
        opened = self._opened
        if opened.opaque or opened.source is not self._source:
            again = self._open(budget)
            return again if isinstance(again, Opened) else again.build()
        return replace(opened, source=self._connect(budget))

    # -- items --------------------------------------------------------------------------

    def __len__(self) -> int:
        """Items of one epoch on this rank, over all of its workers: what an iteration gives. See :attr:`total`."""
        return self._session.length()

    @property
    def indexed(self) -> bool:
        """Whether it is known where items lie: False for text without an index, until something needs one."""
        return self._unindexed is None

    @property
    def opened(self) -> Opened:
        """What the dataset's format found: names, counts, sizes and schema of its chunks, and ``about``."""
        opened: Opened = self._opened
        return opened

    @property
    def total(self) -> int:
        """Items of the dataset, or of the selection this is: ``ds[0] .. ds[total - 1]``."""
        return self._total if self._selection is None else len(self._selection)

    def __getitem__(self, index: Any) -> Any:
        """One item by int (negative from the end, numpy ints too), or a list of items by slice: in stored order."""
        if type(index) is slice:
            return self.get_many(range(*index.indices(self.total)))
        return self._get(self._number(index))

    def _number(self, index: Any) -> Any:
        """The stored number of an item of the selection."""
        if self._selection is None:
            return index
        chunk, number = self._selection.locate(operator.index(index))
        return self._reader.first_item(chunk) + number

    def get_many(self, indices: Iterable[int]) -> list[Any]:
        """Items in the order asked; remote ones in at most three dependent waves of requests.

        Cost: what is resident is decoded in place; the rest is fetched together, 16 MiB at a time.
        """
        return self._reader.get_many(indices if self._selection is None else map(self._number, indices))

    def _stored(self, numbers: Iterable[int]) -> list[Any]:
        """:meth:`get_many` by stored numbers, whatever is selected."""
        return self._reader.get_many(numbers)

    def get_by_key(self, key: Any) -> Any:
        """The item with this key, of a dataset that was written with keys.

        Raises:
            ConfigError: the dataset has no keys, or this is a selection of one.
            KeyError: none of its items has this one.
        """
        if self._opened.key_index is None:
            raise ConfigError(f"{self._memory.source.url} has no keys; write it with key_fn=")
        if self._selection is not None:
            raise ConfigError("a selection has no keys of its own; ask the dataset it was taken from")
        number = self._opened.key_index(key, self._memory.source, self._config.chunk_timeout)
        return self._reader.get(number)

    def __getitems__(self, indices: Iterable[int]) -> list[Any]:
        """:meth:`get_many`, as torch's loaders ask for it."""
        self._share_budget()
        return self.get_many(indices)

    def __iter__(self) -> Iterator[Any]:
        """The items of this reader's part of the epoch, in the dataset's order; an iterator in C.

        Text that has no index yet is read from its beginning at once, where the order is the stored one; the first
        whole pass makes the index.

        The reader is this rank, and this worker inside a torch DataLoader. An iteration that comes to its end
        ends the epoch; one that is begun again before starts where the epoch was entered. An iterator that is
        dropped, or closed with its ``close()``, cancels what it had under way.
        """
        if self._unindexed is not None and self._streams_at_once():
            self._first_pass = FirstPass(self._unindexed, self._recipe[0], self._recipe[1]["transform"])
            return self._first_pass
        return self._walk()[0]

    def _streams_at_once(self) -> bool:
        """Whether a pass is simply everything from the beginning."""
        arguments = self._recipe[1]
        plain = order_kind(arguments["shuffle"], arguments["order"]) == "sequential" and arguments["subsample"] == 1.0
        alone = detect(arguments["rank"], arguments["world_size"])[1] == 1 and worker()[1] <= 1
        fresh = self._first_pass is None or not self._first_pass.finished
        return plain and alone and fresh

    def iter_from(self, start: int, worker: int | None = None) -> Iterator[Any]:
        """Like ``iter(ds)`` without its first ``start`` items, which are not read. Cost: that of resuming.

        Parameters:
            worker: whose part of the epoch it is, among this loader's workers; None: this process' own.
        """
        if start < 0:
            raise ConfigError(f"start={start} is not a number of items")
        return self._walk(start, worker)[0]

    def reader_length(self, worker: int, workers: int) -> int:
        """Items that one worker of ``workers`` (0, 1: none) of this rank yields from the present position on."""
        return self._session.reader_length(worker, workers)

    @property
    def _n_chunks(self) -> int:
        """Chunks of the dataset as its writer made them."""
        opened = self._opened
        return len(opened.names if opened.files is None else opened.files.names)

    @cached_property
    def _stored_bytes(self) -> int:
        """Bytes of all chunks, as the index has them: a sum over a million chunks is not for every pass."""
        return sum(self._opened.hints)

    def _walk(self, start: int = 0, reader: int | None = None) -> tuple[Walk, int]:
        self._share_budget()
        route, progress = self._session.begin(start, reader)
        return self._walk_along(route, progress, start), max(0, route.length - start)

    def _walk_along(self, route: Remainder, progress: Progress, start: int = 0) -> Walk:
        memory = self._memory
        arena = memory.store.n_frames * memory.store.frame_bytes
        fits = self._stored_bytes <= arena * FITS_SHARE
        kind = self._session.kind
        if self._opened.opaque and not fits and kind.startswith(("global", "mosaic")):
            raise UnsupportedError(
                f"a global shuffle (order {kind!r}) of compressed chunks that memory does not hold would inflate a "
                "chunk for every item; use shuffle=True, or give more memory"
            )
        shape = Shape(self._opened.counts, self._opened.hints)
        feed = RouteFeed(memory, self._legs(route, start), shape, shared=fits)
        walk = Walk(self._reader, feed, progress)
        # Not at exit: there is nothing to give back then, and another thread may be in the middle of it.
        weakref.finalize(walk, feed.close).atexit = False
        return walk

    def batches(
        self, batch_size: int, collate: str | Callable[[list[Any]], Any] = "numpy", *, drop_last: bool = False
    ) -> Batches:
        """The epoch in batches, without torch: one process, columns filled straight from memory.

        Parameters:
            batch_size: items a batch.
            collate: ``"numpy"`` (the item's containers with an array, or a list, in place of each leaf), ``"list"``
                (lists of items), or a function of such a list.
            drop_last: leave out the last batch if it is short.
        """
        from lazystore.streaming.batches import Batches, make_sink

        sink, finish = make_sink(
            self._opened.plan, batch_size, collate, self._opened.transform_before(self._recipe[1]["transform"])
        )
        walk, items = self._walk()
        return Batches(walk, sink, batch_size, drop_last, finish, items=items)

    # -- selections ---------------------------------------------------------------------

    def subset(self, indices: Iterable[int] | slice) -> StreamingDataset:
        """These items, in this order, as a dataset that shares this one's memory and lives as long as it.

        Parameters:
            indices: a slice, or ints (negative ones from the end); they may repeat.
        """
        chosen: Any = indices if isinstance(indices, slice) or hasattr(indices, "__array__") else list(indices)
        return self._selected(subset(self._everything(), chosen))

    def _everything(self) -> Selection:
        return Selection.whole(self._opened.counts) if self._selection is None else self._selection

    def _subsampled(self, fraction: float) -> Selection | None:
        if fraction == 1.0:
            return None
        arguments = self._recipe[1]
        shuffled = order_kind(arguments["shuffle"], arguments["order"]) != "sequential"
        return subsample(self._everything(), fraction, shuffle=shuffled, seed=arguments["seed"])

    def _selected(self, selection: Selection) -> StreamingDataset:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        settings = self._session.settings()
        other._select(selection)
        other._session.restore({**settings, "_epoch": 1, "_loaded": None})
        _live.add(other)
        return other

    def __add__(self, other: Part) -> ConcatStreamingDataset:
        """One dataset after the other."""
        from lazystore.streaming.combine import ConcatStreamingDataset

        return ConcatStreamingDataset([self, other])

    # -- bytes --------------------------------------------------------------------------

    def get_bytes(self, index: int) -> bytes:
        """The stored bytes of an item (leaf sizes and leaves), as a copy."""
        return self._reader.get_bytes(self._number(index))

    def view(self, index: int) -> Lease:
        """The stored bytes of an item without copying: a read-only lease that pins them.

        Use as ``with ds.view(i) as lease: memoryview(lease)``. An item that straddles frames, or that memory
        cannot hold, comes as a private copy (``lease.copied``).
        """
        return self._reader.view(self._number(index))

    # -- memory -------------------------------------------------------------------------

    def is_item_available(self, index: int) -> bool:
        """Whether the item can be had without I/O."""
        return self._reader.is_resident(self._number(index))

    def get_chunk_progress(self, chunk: int) -> float:
        """Share of a chunk's bytes that is resident, 0 to 1; 0 for a chunk never touched."""
        length = self._reader.chunk_length(chunk)
        resident = sum(row[2] for row in self._memory.store.contents() if row[0] == chunk)
        return resident / length if length else 0.0

    def prefetch_items(self, indices: Iterable[int]) -> int:
        """Make items resident together and return how many were not; waits for their bytes.

        The budget still holds: prefetching more than it holds evicts the first again.
        """
        return self._memory.prefetch([self._reader.where(self._number(index)) for index in indices])

    def get_memory_stats(self) -> dict[str, Any]:
        """Use of the budget and what it took; see :func:`lazystore.cache.stats.memory_stats` for the keys."""
        self._memory.settle()
        return memory_stats(self._memory, budget=self._budget, monitor=self._config.enable_memory_monitoring)

    def stats(self) -> dict[str, Any]:
        """The counters of :meth:`get_memory_stats` without the chunks, and what the dataset is."""
        counters = self.get_memory_stats()
        del counters["chunks"]
        return {"url": self._memory.source.url, "items": self.total, "n_chunks": self._n_chunks, **counters}

    # -- life ---------------------------------------------------------------------------

    def close(self) -> None:
        """Give the memory and connections back; reads raise ClosedError. Leases stay valid until dropped."""
        if self._unindexed is not None:
            self._unindexed.close()
            return
        self._memory.close()

    def __enter__(self) -> StreamingDataset:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), *self._recipe, self._selection, self._session.settings())

    def __repr__(self) -> str:
        if self._unindexed is not None:
            return f"<{type(self).__name__} {self._recipe[0]}: not indexed yet, {self._budget / 1e6:.0f} MB budget>"
        closed = ", closed" if self._memory.store.is_closed else ""
        return (
            f"<{type(self).__name__} {self._memory.source.url}: {self.total} items in {self._n_chunks} chunks "
            f"of ({', '.join(map(str, self._opened.plan.names))}), {self._budget / 1e6:.0f} MB budget{closed}>"
        )


def train_test_split(
    dataset: StreamingDataset, splits: Sequence[float], seed: int = 42, shuffle: bool = True
) -> list[StreamingDataset]:
    """Disjoint parts of a dataset, which share its memory and live as long as it.

    Parameters:
        splits: shares in 0..1 that sum to at most 1; each part is within one item of exact.
        seed, shuffle: permute the chunks first, so that a part is not just the beginning.

    Raises:
        ConfigError: shares that are no such numbers.
    """
    parts = split(dataset._everything(), splits, seed=seed, shuffle=shuffle)
    return [dataset._selected(part) for part in parts]


def _rebuild(
    cls: type[StreamingDataset],
    input_dir: str,
    arguments: dict[str, Any],
    selection: Selection | None,
    settings: dict[str, Any],
) -> StreamingDataset:
    dataset = cls(input_dir, **arguments)
    if selection is not None:
        dataset._select(selection)
    dataset._session.restore(settings)
    return dataset


# -- fork -----------------------------------------------------------------------------------

_live: weakref.WeakSet[StreamingDataset] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for dataset in list(_live):
        dataset._indexing = threading.RLock()  # whoever held it has stayed with the parent
        if dataset._unindexed is None:
            dataset._memory.reset_after_fork()
            reset = getattr(dataset._opened.key_index, "reset_after_fork", None)
            if reset is not None:
                reset()


os.register_at_fork(after_in_child=_after_fork_in_child)
