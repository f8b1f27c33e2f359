"""The order of an epoch: which items one reader visits, as a pure function of a seed and a few numbers.

A :class:`Route` is what one reader (rank, worker) visits in one epoch; it is asked for legs, which say what
must be resident and what comes next. Here are these terms, the sharing of items among readers, and the routes
that need no window; the window is in ``windows``, others' orders in ``litdata_order`` and ``mosaic_order``. No I/O.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from lazystore._core.permute import Permutation, derive_key
from lazystore.errors import ConfigError, ItemIndexError

__all__ = [
    "KINDS",
    "MAX_LEG",
    "MOSAIC_SETTINGS",
    "WHOLE_CHUNKS",
    "GlobalRoute",
    "Group",
    "Leg",
    "ListLeg",
    "OrderSpec",
    "RangeLeg",
    "Route",
    "SequentialRoute",
    "Shape",
    "Span",
    "Topology",
    "WindowLeg",
    "check_bounds",
    "clip",
    "first_epoch",
    "make_route",
    "shard_length",
    "share",
]

#: Most items of a leg.
MAX_LEG = 32768
#: The orders there are. What one means for a seed never changes; a change would get a new name.
KINDS = (
    "sequential", "window", "global", "litdata", "litdata-0.2.70",
    "mosaic-py1e", "mosaic-py1s", "mosaic-py1br", "mosaic-py2s", "mosaic-naive",
)  # fmt: skip
#: What only MosaicML's orders go by, and the least and most of it.
MOSAIC_SETTINGS = (("num_nodes", 1, 1 << 20), ("num_canonical_nodes", 0, 1 << 20), ("shuffle_block_size", 0, 1 << 40))
#: ``block_bytes`` from here on: blocks are whole chunks, for bytes that come only from a chunk's start on (compressed).
WHOLE_CHUNKS = 1 << 47
#: Stored bytes of an item where nobody knows.
UNKNOWN_ITEM_BYTES = 4096
# What a key is for; each draws numbers of its own from the same seed.
CHUNK_ORDER, GLOBAL_ORDER, PART = 1, 2, 3


class Span(NamedTuple):
    """Items ``first .. last - 1`` of a chunk, counted in the chunk."""

    chunk: int
    first: int
    last: int


class Group(NamedTuple):
    """Items of a leg that lie in one span, as numbers in the chunk (``array('I')``)."""

    span: Span
    numbers: array[int]


@dataclass(frozen=True, slots=True)
class RangeLeg:
    """Global numbers ``first .. last - 1``, in order."""

    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first


@dataclass(frozen=True, slots=True)
class WindowLeg:
    """Items drawn from the spans that are resident.

    Attributes:
        enter: spans whose bytes must be resident from this leg on, first needed first.
        leave: spans that are not needed after this leg.
        groups: the items, by span; only spans that have one here.
        places: lay the groups end to end: the k-th item comes at position ``places[k]`` of the leg.
        skip: so many of the first positions are left out.
    """

    enter: tuple[Span, ...]
    leave: tuple[Span, ...]
    groups: tuple[Group, ...]
    places: array[int]
    skip: int = 0

    def __len__(self) -> int:
        return len(self.places) - self.skip


@dataclass(frozen=True, slots=True)
class ListLeg:
    """Global numbers (``array('q')``) in order, each fetched on its own."""

    items: array[int]

    def __len__(self) -> int:
        return len(self.items)


Leg = RangeLeg | WindowLeg | ListLeg


class Route(Protocol):
    """The items one reader visits in one epoch: a value; picklable, and as small as the chunks are few."""

    @property
    def length(self) -> int:
        """Items of the whole route."""

    def legs(self, start: int = 0, stop: int | None = None) -> Iterator[Leg]:
        """Legs that emit exactly the positions ``start .. stop - 1`` (to the end without ``stop``).

        Every leg emits 1 .. 32768 items; every span that these legs enter, they leave. Legs cut elsewhere
        emit the same items at the same positions.

        Raises:
            ItemIndexError: positions that the route does not have.
        """


@dataclass(frozen=True, slots=True)
class Shape:
    """Items of each chunk and its stored bytes (0: unknown), as many of one as of the other."""

    counts: Sequence[int]
    nbytes: Sequence[int]
    #: Items of the dataset; readers of many other readers' lengths ask often.
    total: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.counts) != len(self.nbytes):
            raise ConfigError(f"{len(self.counts)} chunks have item counts, {len(self.nbytes)} have sizes")
        object.__setattr__(self, "total", sum(self.counts))

    @property
    def item_bytes(self) -> int:
        """Mean stored bytes of an item, at least 1."""
        known = sum(count for count, size in zip(self.counts, self.nbytes, strict=True) if size)
        stored = sum(self.nbytes) + (self.total - known) * UNKNOWN_ITEM_BYTES
        return max(1, stored // max(1, self.total))


@dataclass(frozen=True, slots=True)
class OrderSpec:
    """What an order is drawn from.

    Attributes:
        kind: one of :data:`KINDS`.
        seed: 0 .. 2**64 - 1.
        window_bytes: stored bytes that may wait in the shuffling window.
        block_bytes: stored bytes of a block, the unit in which the window moves.
        drop_last: every rank gets as many items; what is left over is dropped. MosaicML's orders repeat some instead.
        num_nodes: machines that the ranks are spread over evenly; for MosaicML's orders, as what follows.
        num_canonical_nodes, shuffle_block_size: as MosaicML calls them; 0: its defaults (``mosaic_order``).

    Raises:
        ConfigError: a value that cannot work.
    """

    kind: str
    seed: int
    window_bytes: int
    block_bytes: int
    drop_last: bool
    num_nodes: int = 1
    num_canonical_nodes: int = 0
    shuffle_block_size: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"there is no order {self.kind!r}; known are {', '.join(map(repr, KINDS))}")
        if not 0 <= self.seed < 2**64:
            raise ConfigError(f"seed={self.seed} is not in 0 .. 2**64 - 1")
        if self.window_bytes < 1 or self.block_bytes < 1:
            raise ConfigError(
                f"window_bytes={self.window_bytes} and block_bytes={self.block_bytes} must be at least 1 byte"
            )
        for name, low, high in MOSAIC_SETTINGS:
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name}={getattr(self, name)} is not in {low} .. {high}")


@dataclass(frozen=True, slots=True)
class Topology:
    """One reader among all: worker ``worker`` of ``workers`` in rank ``rank`` of ``world``; items a batch.

    Raises:
        ConfigError: there is no such reader.
    """

    rank: int = 0
    world: int = 1
    worker: int = 0
    workers: int = 1
    batch_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise ConfigError(f"rank={self.rank} is not in 0 .. world - 1 (world={self.world})")
        if not 0 <= self.worker < self.workers:
            raise ConfigError(f"worker={self.worker} is not in 0 .. workers - 1 (workers={self.workers})")
        if self.batch_size < 1:
            raise ConfigError(f"batch_size={self.batch_size} must be at least 1")


def share(total: int, topology: Topology, drop_last: bool) -> tuple[int, int]:
    """The part ``first .. last - 1`` of the epoch's sequence of ``total`` items that one reader gets.

    A rank's part is contiguous; inside it whole batches go to the workers, contiguous again, so that taking
    a batch of each worker in turn gives all batches of the rank, only the last one short. Arithmetic.
    """
    each, over = divmod(total, topology.world)
    if drop_last:
        over = 0
    first = topology.rank * each + min(topology.rank, over)
    items = each + (topology.rank < over)
    size, worker = topology.batch_size, topology.worker
    batches = -(-items // size)
    missing = batches * size - items  # of the last batch, which the worker before the next turn has
    rounds, extra = divmod(batches, topology.workers)
    short = (batches - 1) % topology.workers
    begin = first + (worker * rounds + min(worker, extra)) * size - (missing if worker > short else 0)
    mine = (rounds + (worker < extra)) * size - (missing if worker == short else 0)
    return begin, begin + mine


def check_bounds(start: int, stop: int | None, length: int) -> int:
    """``stop``, or ``length`` for None.

    Raises:
        ItemIndexError: ``start .. stop - 1`` are not positions of a route of ``length`` items.
    """
    end = length if stop is None else stop
    if not 0 <= start <= end <= length:
        raise ItemIndexError(f"positions {start} .. {end - 1} are not in 0 .. {length - 1}, the items of this route")
    return end


def clip(groups: Sequence[Group], places: array[int], first: int, last: int) -> tuple[list[Group], array[int]]:
    """The groups and places of a leg cut down to its positions ``first .. last - 1``, now counted from 0."""
    kept, kept_places, at = [], array("I"), 0
    for span, numbers in groups:
        chosen = array("I")
        for number, place in zip(numbers, places[at : at + len(numbers)], strict=True):
            if first <= place < last:
                chosen.append(number)
                kept_places.append(place - first)
        at += len(numbers)
        if chosen:
            kept.append(Group(span, chosen))
    return kept, kept_places


@dataclass(frozen=True, slots=True)
class SequentialRoute:
    """Global numbers ``first .. last - 1`` as they are stored."""

    first: int
    last: int

    @property
    def length(self) -> int:
        """Items of the route."""
        return self.last - self.first

    def legs(self, start: int = 0, stop: int | None = None) -> Iterator[RangeLeg]:
        """See :meth:`Route.legs`."""
        end = check_bounds(start, stop, self.length)
        return (RangeLeg(self.first + at, self.first + min(at + MAX_LEG, end)) for at in range(start, end, MAX_LEG))


@dataclass(frozen=True, slots=True)
class GlobalRoute:
    """Positions ``first .. last - 1`` of a uniform permutation of all ``total`` items.

    Attributes:
        key: draws the permutation; the same for all readers of an epoch.
        leg_items: items of a leg.
    """

    total: int
    key: int
    first: int
    last: int
    leg_items: int

    @property
    def length(self) -> int:
        """Items of the route."""
        return self.last - self.first

    def legs(self, start: int = 0, stop: int | None = None) -> Iterator[ListLeg]:
        """See :meth:`Route.legs`."""
        end = check_bounds(start, stop, self.length)
        permutation = Permutation(self.total, self.key)
        return (
            ListLeg(permutation.fill(self.first + at, min(self.leg_items, end - at)))
            for at in range(start, end, self.leg_items)
        )


def make_route(spec: OrderSpec, shape: Shape, topology: Topology, epoch: int) -> Route:
    """The route of one reader in one epoch (counted from 1; in MosaicML's orders from 0, as it counts).

    Which reader gets which item depends on kind, seed, epoch, counts and topology alone, never on window_bytes
    and block_bytes.

    Raises:
        ConfigError: counts that no chunk can have, or an epoch that is not in 0 .. 2**64 - 1.

    Cost: some 50 ns a chunk; a route keeps at most 20 bytes a chunk of its part.
    """
    if not 0 <= epoch < 2**64:
        raise ConfigError(f"epoch={epoch} is not in 0 .. 2**64 - 1; epochs count from 1")
    if spec.kind.startswith("litdata"):
        from lazystore.streaming.litdata_order import litdata_route

        return litdata_route(spec, shape, topology, epoch)
    if spec.kind.startswith("mosaic"):
        from lazystore.streaming.mosaic_order import mosaic_route

        return mosaic_route(spec, shape, topology, epoch)
    total = shape.total
    first, last = share(total, topology, spec.drop_last)
    if spec.kind == "sequential" or first == last:
        return SequentialRoute(first, last)
    if spec.kind == "global":
        leg_items = min(max(spec.window_bytes // 8 // shape.item_bytes, 16), 8192)
        return GlobalRoute(total, derive_key(spec.seed, epoch, GLOBAL_ORDER), first, last, leg_items)
    from lazystore.streaming.windows import window_route

    chunks = Permutation(len(shape.counts), derive_key(spec.seed, epoch, CHUNK_ORDER))
    return window_route(spec, shape, chunks, first, last, derive_key(spec.seed, epoch, PART, first))


def first_epoch(kind: str) -> int:
    """Number of an order's first epoch: 1, but for MosaicML's, which counts from 0."""
    return 0 if kind.startswith("mosaic") else 1


def shard_length(spec: OrderSpec, shape: Shape, topology: Topology, epoch: int) -> int:
    """Items of the route that :func:`make_route` makes, without making it."""
    if spec.kind.startswith("litdata"):
        from lazystore.streaming.litdata_order import litdata_length

        return litdata_length(spec, shape, topology, epoch)
    if spec.kind.startswith("mosaic"):
        from lazystore.streaming.mosaic_order import mosaic_length

        return mosaic_length(spec, shape, topology)
    first, last = share(shape.total, topology, spec.drop_last)
    return last - first
