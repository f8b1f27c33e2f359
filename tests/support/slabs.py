"""Chunks that lie whole in the frames of a store, slabs of them, and a feed of legs made by hand."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any

from models.chunked import TABLE_AT, ChunkedItems, Loader

from lazystore._core.decode import DecodePlan
from lazystore._core.frames import FrameStore
from lazystore._core.reader import Reader
from lazystore._core.slab import Slab
from lazystore._core.walk import Progress, Walk

FRAME = 4096
BYTES = DecodePlan([("bytes", None)], [("leaf",)], names=["x"], headless=True)


class Resident:
    """The items of some chunks, all parts resident, and a reader over them."""

    def __init__(
        self,
        items: Sequence[Sequence[bytes]],
        *,
        budget: int = 1 << 20,
        plan: DecodePlan = BYTES,
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        self.items = [list(chunk) for chunk in items]
        self.data = ChunkedItems(self.items)
        self.store = FrameStore(budget, frame_bytes=FRAME)
        self.loader = Loader(self.store, self.data)
        self.reader = self.loader.reader = Reader(self.store, plan, self.loader, self.data.counts, transform=transform)
        self.loader.fill_all()

    def parts(self, chunk: int) -> int:
        return -(-len(self.data.chunks[chunk]) // FRAME)

    def arguments(self, chunk: int, first: int = 0, last: int | None = None) -> dict[str, Any]:
        """What a slab of a run of items is made of."""
        items, content = self.items[chunk], self.data.chunks[chunk]
        last = len(items) if last is None else last
        entry = TABLE_AT + 4 * first
        begin = self.data.span(chunk, first)[0] if first < len(items) else len(content)
        end = self.data.span(chunk, last - 1)[1] if last > first else begin
        table, body = entry // FRAME, begin // FRAME
        return {
            "table": (chunk, table, (entry + 4 * (last - first + 1) - 1) // FRAME - table + 1),
            "table_at": entry - table * FRAME,
            "body": (chunk, body, (end - 1) // FRAME - body + 1 if end > begin else 0),
            "body_at": begin - body * FRAME,
            "begin": begin,
            "end": end,
        }

    def slab(self, chunk: int, first: int = 0, last: int | None = None, **changes: Any) -> Slab:
        last = len(self.items[chunk]) if last is None else last
        return Slab(self.store, chunk, first, last, **{**self.arguments(chunk, first, last), **changes})

    def walk(self, *legs: Any) -> Walk:
        return Walk(self.reader, Legs(legs), Progress())

    def pins(self) -> int:
        return int(self.store.counters()["pins"])


class Legs:
    """A feed of finished legs; exceptions among them are raised in their turn, functions are called."""

    def __init__(self, legs: Sequence[Any]) -> None:
        self.legs = list(legs)
        self.closed = 0

    def turn(self) -> tuple[Any, ...]:
        if not self.legs:
            raise StopIteration
        leg = self.legs.pop(0)
        if callable(leg):
            leg = leg()
        if isinstance(leg, BaseException):
            raise leg
        return leg  # type: ignore[no-any-return]

    def close(self) -> None:
        self.closed += 1


def places(*positions: int) -> array[int]:
    return array("I", positions)


def slabs_leg(groups: Sequence[tuple[int, Any, Sequence[int]]], order: Sequence[int], skip: int = 0) -> tuple[Any, ...]:
    """Groups (chunk, where, numbers) and the place of each item."""
    laid = [(chunk, where, array("I", numbers)) for chunk, where, numbers in groups]
    return ("slabs", laid, array("I", order), skip, len(order))
