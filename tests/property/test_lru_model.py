"""``RecencyLists`` against its model."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from models.recency_lists import RecencyListsModel

from lazystore._core.lru import RecencyLists

ENTRIES, QUEUES = 6, 3
entries = st.integers(0, ENTRIES - 1)
queues = st.integers(0, QUEUES - 1)
weights = st.integers(0, 2**32 - 1)


class RecencyListsMachine(RuleBasedStateMachine):
    @initialize()
    def make(self) -> None:
        self.lists = RecencyLists(ENTRIES, QUEUES)
        self.model = RecencyListsModel(ENTRIES, QUEUES)

    @rule(entry=entries, queue=queues, weight=weights, front=st.booleans())
    def push(self, entry: int, queue: int, weight: int, front: bool) -> None:
        if front:
            self.lists.push_front(entry, queue, weight)
            self.model.push_front(entry, queue, weight)
        else:
            self.lists.push_back(entry, queue, weight)
            self.model.push_back(entry, queue, weight)

    @rule(entry=entries)
    def touch(self, entry: int) -> None:
        self.lists.touch(entry)
        self.model.touch(entry)

    @rule(entry=entries)
    def remove(self, entry: int) -> None:
        self.lists.remove(entry)
        self.model.remove(entry)

    @rule(queue=queues, pinned=st.lists(st.integers(0, 2), min_size=ENTRIES, max_size=ENTRIES + 2).map(bytes))
    def candidate(self, queue: int, pinned: bytes) -> None:
        assert self.lists.candidate(queue, pinned) == self.model.candidate(queue, pinned)

    @invariant()
    def agrees(self) -> None:
        for queue in range(QUEUES):
            assert self.lists.order(queue) == self.model.order(queue)
            assert self.lists.count(queue) == self.model.count(queue)
            assert self.lists.weight(queue) == self.model.weight(queue)
        for entry in range(ENTRIES):
            assert self.lists.queue_of(entry) == self.model.queue_of(entry)


TestRecencyLists = RecencyListsMachine.TestCase
TestRecencyLists.settings = settings(stateful_step_count=30)
