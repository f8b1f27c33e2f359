"""Shuffling with a window: blocks in random order, items drawn from as many blocks as the budget holds.

The items of a block are dealt into as many groups as the window has steps; each round adds one step of blocks
and emits, well mixed, the next group of every block in the window. So fetching is even, the first item needs
one block, and a block is needed for one window's length. A part that fits the window is permuted uniformly.
Readers' parts and the legs themselves are defined in ``order``.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lazystore._core.blocks import Blocks, cut_blocks
from lazystore._core.permute import Permutation, derive_key, shuffled
from lazystore.streaming.order import Group, OrderSpec, Shape, Span, WindowLeg, check_bounds, clip

__all__ = ["UniformRoute", "WindowRoute", "window_route"]

#: Most items of a block, or of the blocks of one step together unless that is one block.
BLOCK_ITEMS = 16384
#: Most steps of a window. With MAX_STEPS * blocks of a step <= 16384, a round emits 32768 items at most.
MAX_STEPS = 1024
#: Most items of a leg of a uniform permutation; the first legs are shorter, so that the first item comes soon.
UNIFORM_LEG = 8192
# What a key is for; each draws numbers of its own from the route's key.
BLOCK_ORDER, BLOCK_ITEM_ORDER, BLOCK_TURN, PLACES, ITEM_ORDER = 1, 2, 3, 4, 5


def window_route(
    spec: OrderSpec, shape: Shape, chunks: Permutation, first: int, last: int, key: int
) -> WindowRoute | UniformRoute:
    """The route over items ``first .. last - 1`` (at least one) of the chunks laid end to end in their order."""
    blocks = cut_blocks(
        shape.counts,
        shape.nbytes,
        chunks,
        first,
        last,
        block_bytes=spec.block_bytes,
        block_items=BLOCK_ITEMS,
    )
    if blocks.nbytes <= spec.window_bytes:
        return UniformRoute(blocks, key)
    window = min(max(1, spec.window_bytes // spec.block_bytes), MAX_STEPS)
    # Small chunks make small blocks: several enter together, else a window of them would not use the budget.
    mean = max(1, blocks.nbytes // len(blocks))
    together = min(spec.block_bytes // mean, BLOCK_ITEMS // blocks.largest, BLOCK_ITEMS // window)
    return WindowRoute(blocks, key, window, max(1, together))


@dataclass(frozen=True, slots=True)
class UniformRoute:
    """A uniform permutation of a part that may be resident as a whole."""

    blocks: Blocks
    key: int

    @property
    def length(self) -> int:
        """Items of the route."""
        return self.blocks.items

    def legs(self, start: int = 0, stop: int | None = None) -> Iterator[WindowLeg]:
        """See :meth:`Route.legs`; a leg costs some 50 ns an item."""
        return self._legs(start, check_bounds(start, stop, self.length))

    def _legs(self, position: int, stop: int) -> Iterator[WindowLeg]:
        order = Permutation(self.length, derive_key(self.key, ITEM_ORDER))
        spans: dict[int, Span] = {}
        size = 1
        while position < stop:
            size = min(size, stop - position)
            dealt, places = self.blocks.deal(order, position, size)
            enter = {block: Span(*self.blocks.span(block)) for block, _ in dealt if block not in spans}
            spans |= enter
            groups = tuple(Group(spans[block], numbers) for block, numbers in dealt)
            position += size
            leave = tuple(spans.values()) if position == stop else ()
            yield WindowLeg(tuple(enter.values()), leave, groups, places)
            size = min(2 * size, UNIFORM_LEG)


# Groups to emit in one round; each with whether it is the last of its block.
_Round = list[tuple[Group, bool]]


@dataclass(frozen=True, slots=True)
class WindowRoute:
    """A window that slides over the blocks of a part in random order.

    Attributes:
        window: rounds that a block stays for.
        together: blocks that enter in a round.
    """

    blocks: Blocks
    key: int
    window: int
    together: int

    @property
    def length(self) -> int:
        """Items of the route."""
        return self.blocks.items

    def legs(self, start: int = 0, stop: int | None = None) -> Iterator[WindowLeg]:
        """See :meth:`Route.legs`.

        The first leg after a resume costs some 50 ns a block before it, and a window of legs. While it runs, an
        iterator keeps four bytes for each item in the window.
        """
        return self._legs(start, check_bounds(start, stop, self.length))

    def _legs(self, start: int, stop: int) -> Iterator[WindowLeg]:
        if start == stop:
            return
        order = Permutation(len(self.blocks), derive_key(self.key, BLOCK_ORDER))
        number, position = self._warm_up(order, start)
        coming: deque[_Round] = deque([] for _ in range(2 * self.window))
        resident: dict[Span, None] = {}
        while position < stop:
            self._enter(order, number, coming)
            due = coming.popleft()
            coming.append([])
            size = sum(len(group.numbers) for group, _ in due)
            if size and position + size > start:
                cut = max(start - position, 0), min(stop - position, size)
                yield self._leg(number, due, size, cut, resident, position + size >= stop)
            position += size
            number += 1

    def _warm_up(self, order: Permutation, start: int) -> tuple[int, int]:
        """The round to begin with, and the position before it, so that all groups of ``start``'s round are there.

        No round before that in which the item would come if blocks were emitted whole can have it, and all
        blocks that had their last group before that round are counted whole. Rounds between the two are
        incomplete, and end before ``start``.
        """
        block, before = self.blocks.find(order, start)
        earliest = block // self.together
        number = max(0, earliest - self.window + 1)
        return number, before - self.blocks.count(order, number * self.together, block)

    def _enter(self, order: Permutation, number: int, coming: Sequence[_Round]) -> None:
        """Deal the blocks that enter in this round."""
        first = min(number * self.together, len(order))
        steps = -(-len(order) // self.together)
        for block in order.fill(first, min(self.together, len(order) - first)):
            span = Span(*self.blocks.span(block))
            items = span.last - span.first
            numbers = shuffled(span.first, items, derive_key(self.key, BLOCK_ITEM_ORDER, block))
            parts = self._parts(items, derive_key(self.key, BLOCK_TURN, block), steps - number)
            for after, low, high in parts:
                coming[after].append((Group(span, numbers[low:high]), after == parts[-1][0]))

    def _parts(self, items: int, draw: int, steps: int) -> list[tuple[int, int, int]]:
        """How a block is dealt: (rounds after its first, first item, last item), only groups that have items.

        Groups differ by one item at most; the draw turns them, so that each is equally likely to have the more.
        With fewer than a window of steps to come, this one included, the groups that are due after the last step
        are spread over all rounds that follow it: else the last blocks would be emitted nearly unmixed.
        """
        window = self.window
        if items < window:  # one item a group, as far apart as can be
            parts = sorted(((((k + 1) * window - 1) // items - draw) % window, k, k + 1) for k in range(items))
        else:
            ends = [items * k // window for k in range(window + 1)]
            turned = [(after + draw) % window for after in range(window)]
            parts = [(after, ends[k], ends[k + 1]) for after, k in enumerate(turned)]
        kept = [part for part in parts if part[0] < steps]
        late = parts[len(kept) :]
        spread = [
            (steps + (k * (window - 1) // len(late) + draw) % (window - 1), low, high)
            for k, (_, low, high) in enumerate(late)
        ]
        return kept + sorted(spread)

    def _leg(
        self, number: int, due: _Round, size: int, cut: tuple[int, int], resident: dict[Span, None], is_last: bool
    ) -> WindowLeg:
        groups = tuple(group for group, _ in due)
        places = shuffled(0, size, derive_key(self.key, PLACES, number))
        if cut != (0, size):
            groups, places = clip(groups, places, *cut)
        enter = _first_needed_first(groups, places, resident)
        resident.update(dict.fromkeys(enter))
        if is_last:
            return WindowLeg(enter, tuple(resident), groups, places)
        leave = tuple(group.span for group, is_done in due if is_done and group.span in resident)
        for span in leave:
            del resident[span]
        return WindowLeg(enter, leave, groups, places)


def _first_needed_first(groups: Sequence[Group], places: array[int], resident: dict[Span, None]) -> tuple[Span, ...]:
    """The spans of groups that are not resident, sorted by the first place at which one of their items comes."""
    needs, at = [], 0
    for span, numbers in groups:
        if span not in resident:
            needs.append((min(places[at : at + len(numbers)]), span))
        at += len(numbers)
    return tuple(span for _, span in sorted(needs))
