"""A wrapper against a plain list: passes, numbers, states and what is open, in any order."""

from __future__ import annotations

import json
import warnings
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.hub_feeds import PlannedFeed

from lazystore.errors import ItemIndexError
from lazystore.hub import StreamingDatasetWrapper
from lazystore.hub.passes import Pass


class WrapperMachine(RuleBasedStateMachine):
    """Samples handed out are changed at once, so that any that is shared would be seen."""

    def __init__(self) -> None:
        super().__init__()
        self.passes: list[tuple[Pass, int]] = []
        self.states: list[tuple[str, int]] = []
        self.latest = 0
        self.entry = 0

    @initialize(
        count=st.integers(0, 150),
        cache_size=st.sampled_from([1, 5, 8, 16, 40, 100, 600]),
        marks=st.sampled_from([0, 1, 7, 16]),
        prefetch=st.sampled_from(["auto", 0, 1, 20]),
        memory=st.sampled_from(["3kB", "20kB", "100kB", "1MB"]),
        known=st.booleans(),
        keeps=st.booleans(),
    )
    def open(
        self, count: int, cache_size: int, marks: int, prefetch: Any, memory: str, known: bool, keeps: bool
    ) -> None:
        self.count = count
        self.keeps = keeps and known

        def make() -> StreamingDatasetWrapper:
            feed = PlannedFeed(
                count,
                make=lambda at: {"id": at, "list": [at], "data": bytes(at % 7 * 100)},
                marks=marks,
                length=count if known else None,
                keeps=keeps and known,
                random=keeps and known,
            )
            self.feeds = [*getattr(self, "feeds", []), feed]
            return StreamingDatasetWrapper(feed, cache_size=cache_size, prefetch=prefetch, memory=memory)

        self.make = make
        self.wrapper = make()

    def _taken(self, sample: Any, number: int) -> None:
        assert sample == {"id": number, "list": [number], "data": bytes(number % 7 * 100)}
        sample["list"].append("changed")
        sample["id"] = "changed"

    @rule()
    def begin_a_pass(self) -> None:
        if len(self.passes) < 4:
            if self.latest == -1:
                self.entry = 0
            self.passes.append((iter(self.wrapper), self.entry))
            self.latest = len(self.passes) - 1

    @precondition(lambda self: self.passes)
    @rule(data=st.data(), steps=st.integers(1, 60))
    def read_on(self, data: st.DataObject, steps: int) -> None:
        which = data.draw(st.integers(0, len(self.passes) - 1))
        found, position = self.passes[which]
        for _ in range(steps):
            if position >= self.count:
                with pytest.raises(StopIteration):
                    next(found)
                if which == self.latest:
                    self.latest = -1
                break
            self._taken(next(found), position)
            position += 1
        self.passes[which] = (found, position)

    @precondition(lambda self: self.passes)
    @rule(data=st.data())
    def drop_a_pass(self, data: st.DataObject) -> None:
        which = data.draw(st.integers(0, len(self.passes) - 1))
        found, position = self.passes.pop(which)
        if data.draw(st.booleans()):
            found.close()
            assert found.position == position
        del found
        if which == self.latest:
            self.latest, self.dropped = -2, position
        elif self.latest > which:
            self.latest -= 1

    @rule(data=st.data())
    def one_by_number(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, self.count + 10))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            if number >= self.count:
                with pytest.raises(ItemIndexError):
                    self.wrapper[number]
            else:
                self._taken(self.wrapper[number], number)

    @precondition(lambda self: self.count)
    @rule(data=st.data())
    def several_by_number(self, data: st.DataObject) -> None:
        wanted = data.draw(st.lists(st.integers(0, self.count - 1), max_size=6))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            for sample, number in zip(self.wrapper.get_many(wanted), wanted, strict=True):
                self._taken(sample, number)

    def _position(self) -> int:
        if self.latest == -1:
            return 0
        if self.latest == -2:
            return self.dropped
        return self.passes[self.latest][1] if self.passes and self.latest >= 0 and self.begun else self.entry

    @property
    def begun(self) -> bool:
        return bool(self.passes)

    @rule()
    def take_a_state(self) -> None:
        if not self.passes:
            return
        state = self.wrapper.state_dict()
        assert state["position"] == self._position()
        self.states.append((json.dumps(state), state["position"]))

    @precondition(lambda self: self.states)
    @rule(data=st.data(), elsewhere=st.booleans())
    def load_a_state(self, data: st.DataObject, elsewhere: bool) -> None:
        text, position = data.draw(st.sampled_from(self.states))
        if elsewhere:
            self.wrapper.close()
            self.passes.clear()
            self.wrapper = self.make()
        self.wrapper.load_state_dict(json.loads(text))
        self.entry, self.latest, self.dropped = position, -2, position

    @invariant()
    def what_is_kept_is_within_the_bounds(self) -> None:
        if hasattr(self, "wrapper"):
            stats = self.wrapper.stats()
            assert stats["cached_samples"] <= self.wrapper._cache_size
            assert stats["cached_bytes"] <= self.wrapper._memory // 2
            assert stats["retries"] == 0

    def teardown(self) -> None:
        if hasattr(self, "wrapper"):
            self.wrapper.close()
            self.passes.clear()
            for feed in self.feeds:
                assert not feed.opened_now


TestWrapperMachine = WrapperMachine.TestCase
TestWrapperMachine.settings = settings(max_examples=60, stateful_step_count=25)
