"""LitData's own order, bit for bit: what its full shuffle gives a reader, at 0.2.76 and up to 0.2.70.

A route is the parts of chunks that one reader visits, a few numbers each; the order inside a part is drawn when
the walk comes to it. Not here: our own orders, and LitData's state and resume.

LitData draws everything from NumPy's legacy generator seeded by a list of numbers. That generator is frozen by
NumPy, so the same numbers give the same order on every platform and with every NumPy.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from lazystore.errors import ConfigError
from lazystore.streaming.order import MAX_LEG, UNKNOWN_ITEM_BYTES, Group, ListLeg, Span, WindowLeg, check_bounds

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lazystore.streaming.order import Leg, OrderSpec, Shape, Topology

    Numbers = NDArray[np.int64]

__all__ = ["LITDATA_KINDS", "litdata_length", "litdata_route"]

#: Items of a leg that are fetched one by one.
LIST_ITEMS = 4096
#: A leg made of many small blocks: each is a range to fetch.
LEG_BLOCKS = 64

#: The generator takes numbers of 32 bits.
MAX_SEED = 2**32 - 1


@dataclass(frozen=True, slots=True)
class _Rules:
    """What changed between LitData's versions."""

    block: int  # items shuffled among themselves inside a chunk; 0: all of them
    by_chunk: bool  # a chunk's inner order is seeded by its number in the dataset, else by its place in the walk
    nodes_apart: bool  # later epochs are dealt out inside each node, else over all nodes' chunks laid together


class _Parts(NamedTuple):
    """Items firsts[i]..lasts[i]-1 of chunks[i], none empty, in the order they are visited."""

    chunks: Numbers
    firsts: Numbers
    lasts: Numbers


_RULES = {
    "litdata": _Rules(block=256, by_chunk=True, nodes_apart=True),
    "litdata-0.2.70": _Rules(block=0, by_chunk=False, nodes_apart=False),
}
LITDATA_KINDS = tuple(_RULES)


def litdata_route(
    spec: OrderSpec, shape: Shape, topology: Topology, epoch: int, *, nodes: int = 1, node_cache: int = 0
) -> LitDataRoute:
    """The items that LitData gives one reader in one epoch, in its order.

    Parameters:
        spec: kind "litdata" (LitData 0.2.76 with its default item_shuffle_window) or "litdata-0.2.70" (that
            version and older ones). `window_bytes` and `block_bytes` say how the items come, never in which order.
        shape: items and stored bytes of each chunk.
        topology: LitData's world, rank, workers and batch size; it deals out whole batches.
        epoch: counts from 1.
        nodes: machines that the ranks are spread over evenly (world // ranks of one machine). With several,
            LitData keeps each machine to the chunks it had in epoch 1, and epochs differ in length.
        node_cache: bytes of LitData's cache on each machine. From epoch 2 on, 0.2.76 shares out all chunks anew if
            the chunks of some machine do not fit in it; 0: they fit.

    Raises:
        ConfigError: the seed is outside 0..2**32-1, or the nodes do not divide the world.

    Cost: O(chunks) in NumPy once, 100 000 chunks take some milliseconds; 48 bytes for each part visited.
    """
    rules = _rules(spec, topology, nodes)
    parts = _parts(rules, spec, shape, topology, epoch, nodes, node_cache)
    return _route(spec, shape, epoch, parts)


def litdata_length(
    spec: OrderSpec, shape: Shape, topology: Topology, epoch: int, *, nodes: int = 1, node_cache: int = 0
) -> int:
    """Items that :func:`litdata_route` gives this reader; arithmetic alone unless several nodes are past epoch 1."""
    rules = _rules(spec, topology, nodes)
    if nodes == 1 or epoch == 1:
        begin, end = _range(sum(shape.counts), spec.drop_last, topology)
        return end - begin
    parts = _parts(rules, spec, shape, topology, epoch, nodes, node_cache)
    return int((parts.lasts - parts.firsts).sum())


def _rules(spec: OrderSpec, topology: Topology, nodes: int) -> _Rules:
    if spec.kind not in _RULES:
        raise ConfigError(f"order {spec.kind!r} is not one of LitData's: {', '.join(_RULES)}")
    if not 0 <= spec.seed <= MAX_SEED:
        raise ConfigError(f"seed={spec.seed} cannot seed LitData's order; give one of 0..{MAX_SEED}")
    if nodes < 1 or topology.world % nodes:
        raise ConfigError(f"{nodes} nodes cannot hold {topology.world} ranks evenly")
    return _RULES[spec.kind]


# -- who gets what --------------------------------------------------------------------------
#
# LitData walks the chunks in the epoch's order and fills reader after reader, a chunk at a border going to both. So
# a reader's share is a range of the items as they lie in that order.


def _range(total: int, drop_last: bool, topology: Topology) -> tuple[int, int]:
    """The reader's range of the epoch's items: whole batches, what is left over to a worker of the last rank."""
    rank, worker, batch = topology.rank, topology.worker, topology.batch_size
    rank_batches = total // batch // topology.world
    base, more = divmod(rank_batches, topology.workers)
    begin = rank * rank_batches + worker * base + min(worker, more)
    begin, end = begin * batch, (begin + base + (worker < more)) * batch
    if not drop_last and rank == topology.world - 1:
        left = total - topology.world * rank_batches * batch
        begin += left * (worker > more)
        end += left * (worker >= more)
    return begin, end


def _cut(order: Numbers, sizes: Numbers, begin: int, end: int) -> _Parts:
    """Items begin..end-1 of the chunks laid end to end in this order."""
    import numpy as np

    ends = np.cumsum(sizes)
    first, last = np.searchsorted(ends, [begin, end - 1], side="right") if begin < end else (0, -1)
    own = slice(int(first), int(last) + 1)
    starts = ends[own] - sizes[own]
    firsts = np.maximum(begin - starts, 0)
    lasts = np.minimum(end - starts, sizes[own])
    held = lasts > firsts  # an empty chunk is nobody's
    return _Parts(order[own][held], firsts[held], lasts[held])


def _permuted(seed: int, epoch: int, chunks: Numbers, *more: int) -> Numbers:
    import numpy as np

    order: Numbers = np.random.RandomState([seed, epoch, *more]).permutation(chunks)
    return order


def _parts(
    rules: _Rules, spec: OrderSpec, shape: Shape, topology: Topology, epoch: int, nodes: int, node_cache: int
) -> _Parts:
    """What the reader visits: its range of the chunks in the epoch's order."""
    import numpy as np

    counts = np.asarray(shape.counts, dtype=np.int64)
    chunks = np.arange(len(counts), dtype=np.int64)
    among = topology
    order = _permuted(spec.seed, epoch if nodes == 1 else 1, chunks)
    if nodes > 1 and epoch > 1:
        homes = _homes(order, counts[order], spec.drop_last, topology, nodes, once=rules.nodes_apart)
        if not rules.nodes_apart:
            order = np.concatenate([_permuted(spec.seed, epoch, own) for own in homes])
        elif node_cache and max(int(np.asarray(shape.nbytes)[own].sum()) for own in homes) > node_cache:
            order = _permuted(spec.seed, epoch, chunks)
        else:
            ranks = topology.world // nodes
            node, rank = divmod(topology.rank, ranks)
            among = replace(topology, rank=rank, world=ranks)
            order = _permuted(spec.seed, epoch, homes[node], node)
    sizes = counts[order]
    return _cut(order, sizes, *_range(int(sizes.sum()), spec.drop_last, among))


def _homes(
    order: Numbers, sizes: Numbers, drop_last: bool, topology: Topology, nodes: int, *, once: bool
) -> list[Numbers]:
    """For each node the chunks that its readers had in epoch 1, in that order.

    A chunk that readers of a node share is there `once`, or as often as there are readers of it.
    """
    import numpy as np

    total = int(sizes.sum())
    readers = [
        _cut(order, sizes, *_range(total, drop_last, replace(topology, rank=rank, worker=worker))).chunks
        for rank in range(topology.world)
        for worker in range(topology.workers)
    ]
    each = len(readers) // nodes
    homes = [np.concatenate(readers[at : at + each]) for at in range(0, len(readers), each)]
    # a reader's chunks follow the order, so those that readers share stand side by side
    return [own[np.diff(own, prepend=-1) != 0] if once else own for own in homes]


# -- the walk -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LitDataRoute:
    """One reader's parts of chunks in order, and how items are drawn inside each. Immutable, picklable, any thread."""

    kind: str
    seed: int
    epoch: int
    dataset_chunks: int
    fits: int  # bytes of a span that may be resident at once
    block_bytes: int
    chunks: array[int]
    firsts: array[int]  # numbers in the chunk: the part is firsts[i]..lasts[i]-1
    lasts: array[int]
    bases: array[int]  # global number of the chunk's item 0
    nbytes: array[int]  # of the part
    ends: array[int]  # position in the route where the part ends

    @property
    def length(self) -> int:
        """Items of the route."""
        return self.ends[-1] if self.ends else 0

    def legs(self, start: int = 0, stop: int | None = None) -> Iterator[Leg]:
        """See :meth:`Route.legs`; holds the numbers of one chunk part at a time (12 bytes an item)."""
        end = check_bounds(start, stop, self.length)
        return self._legs(start, end)

    def _legs(self, start: int, stop: int) -> Iterator[Leg]:
        part = bisect_right(self.ends, start)
        while start < stop:
            origin = self.ends[part - 1] if part else 0
            end = min(stop, self.ends[part])
            yield from self._part_legs(part, start - origin, end - origin)
            start, part = end, part + 1

    def _part_legs(self, part: int, start: int, stop: int) -> Iterator[Leg]:
        """Positions start..stop-1 of one part: resident as a whole, else by blocks, else one by one."""
        span = Span(self.chunks[part], self.firsts[part], self.lasts[part])
        rules, nbytes, count = _RULES[self.kind], self.nbytes[part], span.last - span.first
        block = rules.block or count
        numbers, blocks = self._drawn(part, span, block)
        if nbytes <= self.fits:
            return _whole_legs(span, numbers, start, stop)
        block_bytes = -(-nbytes * min(block, count) // count)
        if block_bytes <= self.fits:
            together = min(max(1, min(self.block_bytes, self.fits) // block_bytes), LEG_BLOCKS)
            return _block_legs(span, numbers, blocks, block, together, start, stop)
        return _list_legs(self.bases[part], numbers, start, stop)

    def _drawn(self, part: int, span: Span, block: int) -> tuple[NDArray[np.uint32], Numbers]:
        """The part's in-chunk numbers in the order drawn, and the order of its blocks."""
        import numpy as np

        if _RULES[self.kind].by_chunk:
            about = [self.seed, self.dataset_chunks, self.epoch, span.chunk]
        else:
            about = [self.seed, len(self.chunks), self.epoch, part]
        draw = np.random.RandomState(about)
        numbers = np.arange(span.first, span.last, dtype=np.uint32)
        blocks = np.arange(-(-len(numbers) // block), dtype=np.int64)
        for at in range(0, len(numbers), block):
            draw.shuffle(numbers[at : at + block])
        if len(blocks) > 1:
            draw.shuffle(blocks)
            numbers = np.concatenate([numbers[at * block : (at + 1) * block] for at in blocks.tolist()])
        return numbers, blocks


def _route(spec: OrderSpec, shape: Shape, epoch: int, parts: _Parts) -> LitDataRoute:
    import numpy as np

    counts = np.asarray(shape.counts, dtype=np.int64)
    lengths = parts.lasts - parts.firsts
    held = counts[parts.chunks]
    stored = np.asarray(shape.nbytes, dtype=np.int64)[parts.chunks]
    stored = np.where(stored > 0, stored, held * UNKNOWN_ITEM_BYTES)
    bases = np.cumsum(counts)[parts.chunks] - held
    return LitDataRoute(
        kind=spec.kind,
        seed=spec.seed,
        epoch=epoch,
        dataset_chunks=len(counts),
        fits=spec.window_bytes // 2,
        block_bytes=spec.block_bytes,
        chunks=_packed("q", parts.chunks),
        firsts=_packed("q", parts.firsts),
        lasts=_packed("q", parts.lasts),
        bases=_packed("q", bases),
        nbytes=_packed("q", np.ceil(stored * (lengths / held)).astype(np.int64)),
        ends=_packed("q", np.cumsum(lengths)),
    )


def _whole_legs(span: Span, numbers: NDArray[np.uint32], start: int, stop: int) -> Iterator[Leg]:
    """One span under all legs: entered by the first, left after the last."""
    for at in range(start, stop, MAX_LEG):
        end = min(at + MAX_LEG, stop)
        yield WindowLeg(
            enter=(span,) if at == start else (),
            leave=(span,) if end == stop else (),
            groups=(Group(span, _packed("I", numbers[at:end])),),
            places=_as_they_stand(end - at),
            skip=0,
        )


def _block_legs(
    span: Span, numbers: NDArray[np.uint32], blocks: Numbers, block: int, together: int, start: int, stop: int
) -> Iterator[Leg]:
    """A part larger than the window whose blocks are not: each is a span of its own, some `together` in a leg."""
    import numpy as np

    firsts = span.first + blocks * block
    lasts = np.minimum(firsts + block, span.last)
    ends = np.cumsum(lasts - firsts)
    here = int(np.searchsorted(ends, start, side="right"))
    spans = [Span(span.chunk, *pair) for pair in zip(firsts.tolist(), lasts.tolist(), strict=True)]
    at = start
    while at < stop:
        groups = []
        begin = at
        for own, end in zip(spans[here : here + together], ends[here : here + together].tolist(), strict=True):
            end = min(end, stop)
            groups.append(Group(own, _packed("I", numbers[at:end])))
            at, here = end, here + 1
            if at == stop:
                break
        held = tuple(group.span for group in groups)
        yield WindowLeg(held, held, tuple(groups), places=_as_they_stand(at - begin), skip=0)


def _list_legs(base: int, numbers: NDArray[np.uint32], start: int, stop: int) -> Iterator[Leg]:
    """Nothing of the part can stay resident: its items are fetched one by one."""
    for at in range(start, stop, LIST_ITEMS):
        yield ListLeg(_packed("q", numbers[at : min(at + LIST_ITEMS, stop)].astype("int64") + base))


def _as_they_stand(count: int) -> array[int]:
    import numpy as np

    return _packed("I", np.arange(count, dtype=np.uint32))


def _packed(code: str, values: NDArray[np.integer]) -> array[int]:
    packed = array(code)
    packed.frombytes(values.tobytes())
    return packed
