"""A backend driven by hand: what `imap`'s engine does with it, without tuning."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from lazystore.parallel.chunk import Backend, Chunk, Lost, Report

#: seconds without any news that count as a hang
HANG_S = 30.0


def drive(
    backend: Backend,
    items: Sequence[Any],
    *,
    workers: int = 2,
    size: int = 1,
    depth: int = 2,
    lost: list[Lost] | None = None,
    news: Callable[[int], object] | None = None,
) -> list[Any]:
    """The results of all items, in order; chunks that are lost run again.

    Parameters:
        size: items in a chunk.
        depth: chunks a worker has at most.
        lost: gets what was lost; without it nothing may be.
        news: called with the number of chunks that came back, after each round.
    """
    backend.start(workers)
    todo = deque(Chunk(at // size, at, items[at : at + size]) for at in range(0, len(items), size))
    results: list[list[Any] | None] = [None] * len(todo)
    missing = len(todo)
    while missing:
        for _ in range(min(backend.room(depth), len(todo))):
            backend.submit(todo.popleft())
        for event in await_news(backend):
            if isinstance(event, Report):
                assert results[event.chunk.number] is None, f"chunk {event.chunk.number} came back twice"
                assert len(event.results) == len(event.chunk.items)
                results[event.chunk.number] = event.results
                missing -= 1
            else:
                assert lost is not None, f"lost: {event}"
                lost.append(event)
                todo.appendleft(event.chunk)
        if news is not None:
            news(len(results) - missing)
    return [result for chunk in results if chunk is not None for result in chunk]


def await_news(backend: Backend) -> list[Report | Lost]:
    deadline = time.monotonic() + HANG_S
    while not (events := backend.wait(1.0)):
        assert time.monotonic() < deadline, "nothing came back"
    return events


def await_ready(backend: Backend, workers: int) -> None:
    deadline = time.monotonic() + HANG_S
    while backend.ready() < workers:
        assert time.monotonic() < deadline, "workers do not come up"
        backend.wait(0.01)


def chunks(count: int, size: int = 1) -> list[Chunk]:
    """Neighbouring chunks of the numbers from 0 on."""
    return [Chunk(n, n * size, list(range(n * size, (n + 1) * size))) for n in range(count)]


def all_ended(backend: Backend, todo: Sequence[Chunk], depth: int = 2) -> list[Report | Lost]:
    """All that ended, with the backend kept full."""
    left, ended = deque(todo), list[Report | Lost]()
    while len(ended) < len(todo):
        while left and backend.room(depth) > 0:
            backend.submit(left.popleft())
        events = backend.wait(60)
        assert events, "nothing ended for a minute"
        ended += events
    return ended
