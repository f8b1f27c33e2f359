"""MosaicML Streaming's own orders, bit for bit as its version 0.13 has them: shuffle, partition, repeated samples.

A route is a few numbers; the permutation of the epoch is drawn when its legs are asked for. Not here: MosaicML's
mixing of streams (proportions, stratified batches) and its state.

MosaicML draws from NumPy's Generator. NumPy keeps its bit streams and promises less for what is drawn from them, but
shuffles and uniform numbers have not changed since 1.18; the golden orders of the tests would show it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import TYPE_CHECKING, Any

from lazystore.errors import ConfigError
from lazystore.streaming.order import UNKNOWN_ITEM_BYTES, Group, ListLeg, Span, WindowLeg, check_bounds

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lazystore.streaming.order import Leg, OrderSpec, Shape, Topology

    Numbers = NDArray[np.integer[Any]]

__all__ = ["MosaicRoute", "canonical_nodes", "mosaic_length", "mosaic_route", "shuffle_block"]

#: Items of a leg.
LEG_ITEMS = 8192
#: What MosaicML makes of arguments that were not given.
NODES_PER_NODE = {"mosaic-py1s": 64, "mosaic-py2s": 64}
BLOCK_ITEMS, LEAST_BLOCK = 4_000_000, 1 << 18


def canonical_nodes(spec: OrderSpec) -> int:
    """``num_canonical_nodes``, or MosaicML's default: the number of nodes, 64 times that for py1s and py2s."""
    return spec.num_canonical_nodes or spec.num_nodes * NODES_PER_NODE.get(spec.kind, 1)


def shuffle_block(spec: OrderSpec) -> int:
    """``shuffle_block_size`` in samples, or MosaicML's default: 4,000,000 over the canonical nodes, at least 2**18."""
    return spec.shuffle_block_size or max(BLOCK_ITEMS // canonical_nodes(spec), LEAST_BLOCK)


def mosaic_route(spec: OrderSpec, shape: Shape, topology: Topology, epoch: int) -> MosaicRoute:
    """The samples that MosaicML gives one reader in one epoch, in its order.

    Parameters:
        spec: kind "mosaic-py1e", "-py1s", "-py1br", "-py2s" or "-naive"; ``seed`` is its ``shuffle_seed``. The bytes
            of the window say how samples come, never in which order. ``drop_last`` means nothing here: ranks have
            equally many samples because MosaicML repeats some. A worker's places without a sample (-1) are left out.
        shape: samples and stored bytes of each shard.
        topology: MosaicML's ranks, DataLoader workers and batch size; ``spec.num_nodes`` machines hold the ranks.
        epoch: as MosaicML counts, from 0.

    Raises:
        ConfigError: nodes that do not divide the ranks; canonical nodes that neither divide the nodes nor are a
            multiple of them; too few samples for so many nodes. MosaicML refuses the same.

    Cost: the number of shards. See :meth:`MosaicRoute.legs` for what walking it costs.
    """
    deal = _deal(spec, shape, topology)
    if spec.kind == "mosaic-py1br" and shuffle_block(spec) < 2:
        raise ConfigError("shuffle_block_size=1 is too small for py1br; give 2 or more")
    if spec.kind == "mosaic-py1e" and 0 < shape.total < deal.canonical:
        raise ConfigError(
            f"num_canonical_nodes={deal.canonical} is more than the dataset's {shape.total} samples: "
            "py1e has nothing to shuffle on some of them"
        )
    return MosaicRoute(spec, shape, deal, epoch)


def mosaic_length(spec: OrderSpec, shape: Shape, topology: Topology) -> int:
    """Items that :func:`mosaic_route` gives this reader; arithmetic."""
    return _deal(spec, shape, topology).length


# -- who gets what --------------------------------------------------------------------------
#
# MosaicML writes the numbers 0..total-1 in rows, one a canonical node, pads the rows to one length by repeating
# numbers, and reads the table by columns. That sequence is dealt to nodes, ranks and, in batches, workers: first one
# each, then the next. So each of a reader's places is arithmetic, and no table is needed.


@dataclass(frozen=True, slots=True)
class _Deal:
    """The table and one reader's part of it."""

    total: int
    canonical: int  # rows
    nodes: int
    ranks: int  # of a node
    node: int
    rank: int  # in its node
    workers: int
    worker: int
    batch: int

    @property
    def row(self) -> int:
        """Samples of a canonical node, the shorter ones rounded up."""
        return -(-self.total // self.canonical)

    @property
    def ratio(self) -> int:
        """Nodes that share a canonical one, 0 if none does."""
        return self.nodes // self.canonical if self.canonical < self.nodes else 0

    @property
    def padding(self) -> int:
        """Columns that are copied so that a row can be shared evenly."""
        return -self.row % self.ratio if self.ratio else 0

    @property
    def node_samples(self) -> int:
        return self.canonical * (self.row + self.padding) // self.nodes

    @property
    def length(self) -> int:
        """Samples of the reader: every ``workers``-th batch of its rank, of which the last may be short."""
        samples = -(-self.node_samples // self.ranks)
        batches = -(-samples // self.batch)
        mine = len(range(self.worker, batches, self.workers))
        last = batches > 0 and (batches - 1) % self.workers == self.worker
        return mine * self.batch - (batches * self.batch - samples if last else 0)

    def numbers(self, start: int, stop: int) -> Numbers:
        """The table's numbers at the reader's places ``start .. stop - 1``."""
        import numpy as np

        at = np.arange(start, stop, dtype=np.int64)
        sample = (self.worker + at // self.batch * self.workers) * self.batch + at % self.batch
        place = self._repeated(sample * self.ranks + self.rank)
        column, row = np.divmod(place * self.nodes + self.node, self.canonical)
        return self._table(row, column)

    def _repeated(self, place: Numbers) -> Numbers:
        """Places of the node; those beyond its samples, which fill up the last round of its ranks, are earlier ones."""
        import numpy as np

        count = self.node_samples
        missing = -count % self.ranks
        if self.ranks + missing - 1 <= count:
            again = place - self.ranks - missing + 1
        else:
            again = place % count
        return np.where(place < count, place, again)

    def _table(self, row: Numbers, column: Numbers) -> Numbers:
        import numpy as np

        if self._tiled:
            return (row * (self.row + self.padding) + column) % self.total
        if self.padding:
            first = max(self._copied_from, 0)
            width = self.row - self.ratio + 1 - first
            column = np.where(column < self.row, column, first + (column - self.row) % width)
        begin = row * self.total // self.canonical
        short = (row + 1) * self.total // self.canonical - begin < self.row
        found: Numbers = begin + column - (short & (column == self.row - 1))
        return found

    @property
    def _tiled(self) -> bool:
        """There are so few samples that the table is filled with all of them again and again."""
        return self.total < self.canonical + (self.canonical < self.nodes)

    @property
    def _copied_from(self) -> int:
        """First of the columns that are copied; they end ``ratio - 1`` before the padding."""
        return self.row - self.padding - self.ratio + 1

    def check(self) -> None:
        if not self.padding or self._tiled:
            return
        # What NumPy makes of a slice that begins before the first column: nothing, but for one column, copied often.
        there = self.row - self.ratio + 1 - max(self._copied_from, 0)
        if there != self.padding and there != 1:
            raise ConfigError(
                f"{self.total} samples are too few for {self.nodes} nodes and {self.canonical} canonical ones in "
                "MosaicML's order; give num_canonical_nodes as large as num_nodes"
            )


def _deal(spec: OrderSpec, shape: Shape, topology: Topology) -> _Deal:
    nodes, canonical = spec.num_nodes, canonical_nodes(spec)
    if topology.world % nodes:
        raise ConfigError(f"num_nodes={nodes} cannot hold {topology.world} ranks evenly")
    if canonical % nodes and nodes % canonical:
        raise ConfigError(
            f"num_canonical_nodes={canonical} neither divides the {nodes} nodes nor is it a multiple of them"
        )
    ranks = topology.world // nodes
    node, rank = divmod(topology.rank, ranks)
    deal = _Deal(
        total=shape.total, canonical=canonical, nodes=nodes, ranks=ranks, node=node, rank=rank,
        workers=topology.workers, worker=topology.worker, batch=topology.batch_size,
    )  # fmt: skip
    deal.check()
    return deal


# -- the shuffle ----------------------------------------------------------------------------


def _permutation(spec: OrderSpec, shape: Shape, epoch: int) -> Numbers:
    """The epoch's permutation: which sample stands for which number of the table."""
    import numpy as np

    run, draw = np.random.default_rng(spec.seed), np.random.default_rng(spec.seed + epoch)
    total, canonical = shape.total, canonical_nodes(spec)
    if spec.kind == "mosaic-naive":
        return draw.permutation(total).astype(_width(total))
    ends = list(accumulate(shape.counts))
    spans = [(end - count, end) for count, end in zip(shape.counts, ends, strict=True) if count]
    run.shuffle(spans)
    ids = _laid(spans, total)
    if spec.kind == "mosaic-py2s":
        ends = list(accumulate(end - begin for begin, end in spans))
        spans = list(pairwise([0, *ends]))  # in ids from here on
        _shuffle_each(run, ids, spans)
    nodes = _divided(spans, [total * (node + 1) // canonical for node in range(canonical)])
    if spec.kind == "mosaic-py2s":
        return _py2s(draw, ids, nodes)
    for own in nodes:
        draw.shuffle(own)
    del ids
    ids = _laid(chain.from_iterable(nodes), total)
    sizes = [[end - begin for begin, end in own] for own in nodes]
    parts = np.split(ids, list(accumulate(map(sum, sizes)))[:-1])  # views
    block = shuffle_block(spec)
    staggers = draw.integers(0, int(0.75 * block), canonical).tolist() if spec.kind == "mosaic-py1br" else ()
    for node, (part, own_sizes) in enumerate(zip(parts, sizes, strict=True)):
        if spec.kind == "mosaic-py1br":
            _py1br(draw, part, staggers[node], block)
            continue
        _shuffle_each(draw, part, pairwise(accumulate(own_sizes, initial=0)))
        if spec.kind == "mosaic-py1e":
            _py1e(draw, part, own_sizes, block)
    return ids


def _width(total: int) -> str:
    """As few bytes a sample as it takes."""
    return "uint32" if total < 1 << 32 else "int64"


def _laid(spans: Iterable[tuple[int, int]], total: int) -> Numbers:
    """The samples of the spans, end to end."""
    import numpy as np

    ids = np.empty(total, _width(total))
    at = 0
    for begin, end in spans:
        ids[at : at + end - begin] = np.arange(begin, end)
        at += end - begin
    return ids


def _divided(spans: list[tuple[int, int]], ends: list[int]) -> list[list[tuple[int, int]]]:
    """The spans laid end to end and cut where canonical nodes end: the parts of each."""
    nodes: list[list[tuple[int, int]]] = [[] for _ in ends]
    at = node = 0
    for begin, end in spans:
        while begin < end:
            while at == ends[node]:
                node += 1
            cut = min(end, begin + ends[node] - at)
            nodes[node].append((begin, cut))
            at += cut - begin
            begin = cut
    return nodes


def _shuffle_each(draw: np.random.Generator, ids: Numbers, spans: Iterable[tuple[int, int]]) -> None:
    for begin, end in spans:
        draw.shuffle(ids[begin:end])


def _py1e(draw: np.random.Generator, ids: Numbers, sizes: list[int], block: int) -> None:
    """Each sample moves by a random stretch, as far as a block of random size round its shard goes."""
    import numpy as np

    positions = np.arange(len(ids), dtype=np.float64)
    at = 0
    for size in sizes:
        around = max((int(draw.integers(int(0.75 * block), int(1.25 * block))) - size) / 2, 0)
        positions[at : at + size] += draw.uniform(max(-around, -at), min(around, len(ids) - at - size), size)
        at += size
    ids[:] = ids[np.argsort(positions)]


def _py1br(draw: np.random.Generator, ids: Numbers, stagger: int, block: int) -> None:
    """Blocks of random size are shuffled; the first begins before the node does, and is clipped."""
    blocks = []
    at = 0
    while at < len(ids):
        size = int(draw.integers(int(0.75 * block), int(1.25 * block)))
        begin, end = max(at - stagger, 0), min(at + size - stagger, len(ids))
        blocks.append((begin, end))
        at += end - begin
    _shuffle_each(draw, ids, blocks)


def _py2s(draw: np.random.Generator, ids: Numbers, nodes: list[list[tuple[int, int]]]) -> Numbers:
    import numpy as np

    parts = []
    for own in nodes:
        draw.shuffle(own)
        _shuffle_each(draw, ids, own)
        parts += [ids[begin:end] for begin, end in own]
    return np.concatenate(parts)


# -- the walk -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MosaicRoute:
    """One reader's samples in one epoch. Immutable, picklable, any thread."""

    spec: OrderSpec
    shape: Shape
    deal: _Deal
    epoch: int

    @property
    def length(self) -> int:
        """Items of the route."""
        return self.deal.length

    def legs(self, start: int = 0, stop: int | None = None) -> Iterator[Leg]:
        """See :meth:`Route.legs`. Shards stay resident while the reader needs them if they all fit the window; if
        they do not, samples are fetched one by one.

        Memory, beside the dataset's budget: up to 24 bytes for each sample of the dataset while the epoch is drawn
        (MosaicML holds as much), then 8 for each of this reader's. Time: some 150 ns a sample of the dataset.
        """
        end = check_bounds(start, stop, self.length)
        return self._legs(start, end)

    def _legs(self, start: int, stop: int) -> Iterator[Leg]:
        if start == stop:
            return
        own = self._own(start, stop)
        stays = _Stays.of(own, self.shape)
        if stays.most_bytes() > self.spec.window_bytes:
            del stays
            for at in range(0, len(own), LEG_ITEMS):
                yield ListLeg(_packed("q", own[at : at + LEG_ITEMS].astype("int64")))
            return
        for at in range(0, len(own), LEG_ITEMS):
            yield stays.leg(at, own[at : at + LEG_ITEMS])

    def _own(self, start: int, stop: int) -> Numbers:
        """The samples at the reader's places ``start .. stop - 1``."""
        import numpy as np

        permutation = _permutation(self.spec, self.shape, self.epoch)
        own = np.empty(stop - start, permutation.dtype)
        for at in range(start, stop, 1 << 18):
            end = min(at + (1 << 18), stop)
            own[at - start : end - start] = permutation[self.deal.numbers(at, end)]
        return own


@dataclass(frozen=True, slots=True)
class _Stays:
    """When each shard is needed, and which stretch of it, by a walk over samples."""

    shards: Numbers  # of each sample
    bases: Numbers  # of each shard: the number of its first sample
    firsts: Numbers  # position where it is first needed, -1: never
    lasts: Numbers
    spans: dict[int, Span]
    nbytes: dict[int, int]

    @classmethod
    def of(cls, own: Numbers, shape: Shape) -> _Stays:
        import numpy as np

        counts = np.asarray(shape.counts, dtype=np.int64)
        ends = np.cumsum(counts)
        bases = ends - counts
        shards = np.empty(len(own), np.int32)
        firsts, lasts = np.full(len(counts), -1), np.full(len(counts), -1)
        low, high = ends.copy(), bases.copy()
        for at in range(0, len(own), LEG_ITEMS):
            some = own[at : at + LEG_ITEMS]
            here = np.searchsorted(ends, some, side="right")
            shards[at : at + LEG_ITEMS] = here
            order = np.argsort(here, kind="stable")
            found, begins = np.unique(here[order], return_index=True)
            starts = at + order[begins]
            firsts[found] = np.where(firsts[found] < 0, starts, firsts[found])
            lasts[found] = at + order[np.append(begins[1:], len(order)) - 1]
            low[found] = np.minimum(low[found], np.minimum.reduceat(some[order], begins))
            high[found] = np.maximum(high[found], np.maximum.reduceat(some[order], begins))
        spans, nbytes = {}, {}
        for shard in np.flatnonzero(firsts >= 0).tolist():
            span = Span(shard, int(low[shard] - bases[shard]), int(high[shard] - bases[shard]) + 1)
            stored = shape.nbytes[shard] or shape.counts[shard] * UNKNOWN_ITEM_BYTES
            spans[shard] = span
            nbytes[shard] = -(-stored * (span.last - span.first) // shape.counts[shard])
        return cls(shards, bases, firsts, lasts, spans, nbytes)

    def most_bytes(self) -> int:
        """The most stored bytes that are needed at one time."""
        import numpy as np

        legs = -(-len(self.shards) // LEG_ITEMS)
        change = np.zeros(legs + 1, np.int64)
        for shard, nbytes in self.nbytes.items():
            change[self.firsts[shard] // LEG_ITEMS] += nbytes
            change[self.lasts[shard] // LEG_ITEMS + 1] -= nbytes
        return int(np.cumsum(change).max())

    def leg(self, at: int, own: Numbers) -> WindowLeg:
        """The leg of the samples from position ``at`` on."""
        import numpy as np

        shards, end = self.shards[at : at + len(own)], at + len(own)
        order = np.argsort(shards, kind="stable")
        found, begins = np.unique(shards[order], return_index=True)
        groups = [
            Group(self.spans[shard], _packed("I", (some - self.bases[shard]).astype("uint32")))
            for shard, some in zip(found.tolist(), np.split(own[order].astype("int64"), begins[1:]), strict=True)
        ]
        entering = found[self.firsts[found] >= at]
        entering = entering[np.argsort(self.firsts[entering])]
        leaving = found[self.lasts[found] < end]
        return WindowLeg(
            enter=tuple(self.spans[shard] for shard in entering.tolist()),
            leave=tuple(self.spans[shard] for shard in leaving.tolist()),
            groups=tuple(groups),
            places=_packed("I", order.astype("uint32")),
        )


def _packed(code: str, values: Numbers) -> array[int]:
    packed = array(code)
    packed.frombytes(values.tobytes())
    return packed
