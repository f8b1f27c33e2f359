"""Shuffling with a window: blocks in random order, items drawn from as many blocks as the budget holds.

A block's items are dealt over as many rounds as the window has; in each round one more block enters (or several
small ones), and a part of every block in the window is emitted, well mixed. So fetching is even, the first item
needs one block, and a block is needed for one window's length. A part that fits the window is permuted uniformly.
Readers' parts and the legs themselves are defined in ``order``, blocks and dealing in ``_core``.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lazystore._core.blocks import Blocks, cut_blocks
from lazystore._core.hands import Hand, deal
from lazystore._core.permute import Permutation, derive_key, shuffled
from lazystore.streaming.order import WHOLE_CHUNKS, Group, OrderSpec, Shape, Span, WindowLeg, check_bounds, clip

__all__ = ["UniformRoute", "WindowRoute", "window_route"]

#: Most items of a block, or of the blocks of one step together unless that is one block.
BLOCK_ITEMS = 16384
#: Items that a chunk can have at most: its offsets alone would pass 4 GiB.
MAX_CHUNK_ITEMS = 1 << 30
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
    whole = spec.block_bytes >= WHOLE_CHUNKS
    blocks = cut_blocks(
        shape.counts,
        shape.nbytes,
        chunks,
        first,
        last,
        block_bytes=spec.block_bytes,
        block_items=MAX_CHUNK_ITEMS if whole else BLOCK_ITEMS,
    )
    if blocks.nbytes <= spec.window_bytes:
        return UniformRoute(blocks, key)
    mean = max(1, blocks.nbytes // len(blocks))
    window = min(max(1, spec.window_bytes // (mean if whole else spec.block_bytes)), MAX_STEPS)
    if whole:
        return WindowRoute(blocks, key, window, 1)
    # Small chunks make small blocks: several enter together, else a window of them would not use the budget.
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
        steps = -(-len(order) // self.together)
        number, position = self._warm_up(order, start)
        hands: list[Hand] = []
        resident: dict[Span, None] = {}
        while position < stop:
            hands += self._enter(order, number)
            groups, finished = deal(hands, number, self.window, steps, Group)
            size = sum(len(group.numbers) for group in groups)
            if size and position + size > start:
                cut = max(start - position, 0), min(stop - position, size)
                groups, places = self._mixed(groups, number, size, cut)
                enter = _first_needed_first(groups, places, resident)
                resident.update(dict.fromkeys(enter))
                is_last = position + size >= stop
                leave = tuple(resident) if is_last else tuple(span for span in finished if span in resident)
                for span in leave:
                    del resident[span]
                yield WindowLeg(enter, leave, tuple(groups), places)
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

    def _enter(self, order: Permutation, number: int) -> Iterator[Hand]:
        """The blocks that enter in this round."""
        first = min(number * self.together, len(order))
        for block in order.fill(first, min(self.together, len(order) - first)):
            item_order, turn = derive_key(self.key, BLOCK_ITEM_ORDER, block), derive_key(self.key, BLOCK_TURN, block)
            yield Hand(Span(*self.blocks.span(block)), item_order, turn, number)

    def _mixed(
        self, groups: list[Group], number: int, size: int, cut: tuple[int, int]
    ) -> tuple[list[Group], array[int]]:
        """The groups of a round and their places, cut to what is asked for."""
        places = shuffled(0, size, derive_key(self.key, PLACES, number))
        return (groups, places) if cut == (0, size) else clip(groups, places, *cut)


def _first_needed_first(groups: Sequence[Group], places: array[int], resident: dict[Span, None]) -> tuple[Span, ...]:
    """The spans of groups that are not resident, sorted by the first place at which one of their items comes."""
    needs, at = [], 0
    for span, numbers in groups:
        if span not in resident:
            needs.append((min(places[at : at + len(numbers)]), span))
        at += len(numbers)
    return tuple(span for _, span in sorted(needs))
