"""Results that came and wait for the consumer: in the order of the data, or in the order they came."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Arrivals", "Part"]


@dataclass(slots=True)
class Part:
    """Results of neighbouring items.

    Parameters:
        first: number of the first one.
        results: one an item; ``Failed`` where it failed.
        items: the items they belong to, or their keys.
        failures: how many are ``Failed``.
        item_bytes: what one result weighs, about.
        at: how many were handed out.
    """

    first: int
    results: list[Any]
    items: Sequence[Any]
    failures: int = 0
    item_bytes: float = 0.0
    at: int = 0


class Arrivals:
    """Parts that wait; knows how many items and bytes that are.

    Parameters:
        ordered: hand parts out in the order of the data; else as they came.
        first: number of the item that is due first.
    """

    def __init__(self, *, ordered: bool, first: int = 0) -> None:
        self._ordered = ordered
        self._parts: dict[int, Part] = {}
        self._queue: deque[Part] = deque()
        #: number of the item due next, when ordered
        self.due = first
        self.items = 0
        self.bytes = 0.0

    def put(self, part: Part) -> None:
        """A part that came."""
        if self._ordered:
            self._parts[part.first] = part
        else:
            self._queue.append(part)
        self.items += len(part.results)
        self.bytes += len(part.results) * part.item_bytes

    def passed(self, count: int) -> None:
        """So many items in their turn were delivered without coming here."""
        self.due += count

    @property
    def ready(self) -> bool:
        """Whether the consumer can have something."""
        return self.due in self._parts if self._ordered else bool(self._queue)

    def is_due(self, first: int) -> bool:
        """Whether everything that waits, waits for this item."""
        return self._ordered and first == self.due

    def peek(self) -> Part:
        """The part whose turn it is; only when :attr:`ready`."""
        return self._parts[self.due] if self._ordered else self._queue[0]

    def used(self, count: int) -> None:
        """``count`` more results of :meth:`peek`'s part are the consumer's."""
        part = self.peek()
        part.at += count
        self.items -= count
        self.bytes -= count * part.item_bytes
        if part.at < len(part.results):
            return
        if self._ordered:
            del self._parts[self.due]
            self.due += len(part.results)
        else:
            self._queue.popleft()
