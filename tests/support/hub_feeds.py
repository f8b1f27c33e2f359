"""Feeds whose every opening, failure and delay a test decides on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from lazystore.errors import ItemIndexError
from lazystore.hub.feed import Feed, Mark, Reading


class PlannedReading(Reading):
    """Reads what its feed has, and counts it there."""

    def __init__(self, feed: PlannedFeed, position: int, start: int) -> None:
        self._feed = feed
        self.position = start
        self.make: Callable[[int], Any] | None = None
        self._held: BaseException | None = None
        for _ in range(start, position):
            next(self, None)
        self.position = position

    def __next__(self) -> Any:
        feed, at = self._feed, self.position
        if self._held is not None:
            held, self._held = self._held, None
            raise held
        if feed.delay:
            time.sleep(feed.delay)
        if feed.gate is not None:
            feed.gate.wait()
        with feed.lock:
            failures = feed.failures.get(at)
            if failures:
                raise failures.pop(0)
            if at >= feed.count:
                raise StopIteration
            feed.read.append(at)
        self.position += 1
        return (self.make or feed.make)(at)

    def take(self, count: int) -> list[Any]:
        samples: list[Any] = []
        try:
            for sample in self:
                samples.append(sample)
                if len(samples) == count:
                    break
        except Exception as error:
            if not samples:
                raise
            self._held = error
        return samples

    def mark(self) -> Mark | None:
        every = self._feed.marks
        return Mark(self.position, {"at": self.position}) if every and self.position % every == 0 else None

    def close(self) -> None:
        with self._feed.lock:
            self._feed.opened_now.discard(self)


class PlannedFeed(Feed):
    """``count`` samples made by ``make``; errors in ``failures[position]`` come once each, in turn."""

    name = "planned"

    def __init__(
        self,
        count: int,
        *,
        make: Callable[[int], Any] = lambda at: {"id": at},
        marks: int = 0,
        delay: float = 0.0,
        gate: threading.Event | None = None,
        failures: dict[int, list[Exception]] | None = None,
        length: int | None = None,
        random: bool = False,
        keeps: bool = False,
        again: bool = True,
        identity: str = "planned",
    ) -> None:
        self.count, self.make, self.marks, self.delay, self.gate = count, make, marks, delay, gate
        self.failures = failures or {}
        self.length, self.random, self.keeps, self.again = length, random, keeps, again
        self._identity = identity
        self.lock = threading.Lock()
        self.read: list[int] = []
        self.openings: list[tuple[int, int]] = []
        self.opened_now: set[PlannedReading] = set()
        self.closed = 0
        self._epoch = 0

    @property
    def identity(self) -> str:
        return self._identity

    def open(self, position: int = 0, mark: Mark | None = None) -> Reading:
        start = mark.position if mark is not None else 0
        assert start <= position
        assert mark is None or mark.state == {"at": start}
        self.openings.append((position, start))
        reading = PlannedReading(self, position, position if self.keeps else start)
        with self.lock:
            self.opened_now.add(reading)
        return reading

    def get(self, index: int) -> Any:
        failures = self.failures.get(index)
        if failures:
            raise failures.pop(0)
        if not 0 <= index < self.count:
            raise ItemIndexError(f"{index} is beyond the end")
        return self.make(index)

    @property
    def epoch(self) -> int:
        return self._epoch

    def set_epoch(self, epoch: int) -> bool:
        self._epoch = epoch
        return False

    def close(self) -> None:
        self.closed += 1


def numbers(count: int) -> Iterator[dict[str, int]]:
    for at in range(count):
        yield {"id": at}


def hundred() -> Iterator[dict[str, int]]:
    return numbers(100)


def ids(samples: Any) -> list[int]:
    return [sample["id"] for sample in samples]
