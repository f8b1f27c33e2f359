"""``Delivery`` as a generator would write it, but for the times it takes: the oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class DeliveryModel:
    """What comes next is in ``queue``: (function or None, value, index, whether its call is timed)."""

    def __init__(self, more: Callable[[Any], bool], caught: Callable[[Exception, int, Any], tuple[Any, ...]]) -> None:
        self._more = more
        self._caught = caught
        self._queue: list[tuple[Any, int, bool]] = []
        self._func: Callable[[Any], Any] | None = None
        self.timed = 0

    def deliver(self, results: list[Any]) -> None:
        self._queue = [(result, -1, False) for result in results]
        self._func = None

    def serve(self, func: Callable[[Any], Any], items: list[Any], first: int, every: int, cpu: bool) -> None:
        self._queue = [(item, first + k, k % max(1, every) == 0) for k, item in enumerate(items)]
        self._func = func
        self.timed = 0

    def __next__(self) -> Any:
        while True:
            if not self._queue:
                if not self._more(self):
                    raise StopIteration
                continue
            value, index, timed = self._queue.pop(0)
            if self._func is None:
                return value
            self.timed += timed
            try:
                return self._func(value)
            except Exception as error:  # noqa: BLE001 (as Delivery does)
                instead = self._caught(error, index, value)
            if instead:
                return instead[0]

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def take(self) -> list[Any]:
        return self._emptied() if self._func is None else []

    def untouched(self) -> list[Any]:
        return [] if self._func is None else self._emptied()

    def _emptied(self) -> list[Any]:
        values = [value for value, _, _ in self._queue]
        self._queue = []
        return values
