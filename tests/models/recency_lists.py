"""Queues over small ints as plain lists: the oracle of ``RecencyLists``."""

from __future__ import annotations


class RecencyListsModel:
    """Each queue is a list, most recent entry first; an entry is in at most one of them."""

    def __init__(self, n_entries: int, n_queues: int) -> None:
        self.n_entries = n_entries
        self.queues: list[list[int]] = [[] for _ in range(n_queues)]
        self.weights: dict[int, int] = {}

    def push_front(self, entry: int, queue: int, weight: int) -> None:
        self.remove(entry)
        self.queues[queue].insert(0, entry)
        self.weights[entry] = weight

    def push_back(self, entry: int, queue: int, weight: int) -> None:
        self.remove(entry)
        self.queues[queue].append(entry)
        self.weights[entry] = weight

    def touch(self, entry: int) -> None:
        queue = self.queue_of(entry)
        if queue >= 0:
            self.queues[queue].remove(entry)
            self.queues[queue].insert(0, entry)

    def remove(self, entry: int) -> None:
        queue = self.queue_of(entry)
        if queue >= 0:
            self.queues[queue].remove(entry)

    def queue_of(self, entry: int) -> int:
        return next((q for q, members in enumerate(self.queues) if entry in members), -1)

    def candidate(self, queue: int, pinned: bytes) -> int:
        """The oldest entry that is not pinned."""
        return next((entry for entry in reversed(self.queues[queue]) if not pinned[entry]), -1)

    def order(self, queue: int) -> list[int]:
        return list(self.queues[queue])

    def count(self, queue: int) -> int:
        return len(self.queues[queue])

    def weight(self, queue: int) -> int:
        return sum(self.weights[entry] for entry in self.queues[queue])
