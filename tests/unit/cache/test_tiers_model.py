"""The cache against a plain model, with time by hand: every answer and every counter, after any sequence of calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from lazystore.cache.flight import Deadline
from lazystore.cache.retries import Retries
from lazystore.cache.tiers import Tiers
from lazystore.testing import FakeClock

KEYS = st.sampled_from(["ab", 1])
SECONDS = st.sampled_from([0, 5, 20])
COUNTED = (
    "requests", "hits", "misses", "joins", "loads", "load_errors", "negative_hits", "stale_served", "stale_on_error",
    "refreshes", "prefetch_issued", "prefetch_used", "prefetch_late", "prefetch_wasted", "prefetch_errors",
    "evicted_replaced", "evicted_invalidated", "evicted_cleared", "evictions", "uncacheable", "too_large",
)  # fmt: skip


@dataclass
class Entry:
    value: int
    fresh: float
    keep: float
    unused: bool = False


class Down(Exception):
    pass


class CacheMachine(RuleBasedStateMachine):
    @initialize(ttl=st.sampled_from([10, None]), negative=SECONDS, revalidate=SECONDS, error=SECONDS)
    def begin(self, ttl: float | None, negative: float, revalidate: float, error: float) -> None:
        self.ttl, self.negative, self.revalidate, self.error = ttl, negative, revalidate, error
        self.clock = FakeClock()
        self.tiers = Tiers(
            memory=1 << 20, ttl=ttl, negative_ttl=negative, stale_while_revalidate=revalidate, stale_if_error=error,
            clock=self.clock, rng=lambda: 0.5, retries=Retries(attempts=1), concurrency=1,
        )  # fmt: skip
        self.made = 0
        self.entries: dict[Any, Entry] = {}
        self.errors: dict[Any, float] = {}
        self.rests: dict[Any, float] = {}
        self.counts = dict.fromkeys(COUNTED, 0)

    def teardown(self) -> None:
        if hasattr(self, "tiers"):
            self.tiers.close()

    # -- the model ------------------------------------------------------------------------

    def count(self, *names: str) -> None:
        for name in names:
            self.counts[name] += 1

    @property
    def now(self) -> float:
        return self.clock.monotonic()

    def find(self, key: Any) -> Entry | None:
        """The entry of a key; a dead one goes, and is wasted if nobody asked for it."""
        entry = self.entries.get(key)
        if entry is not None and self.now >= entry.keep:
            self.leave(key)
            return None
        return entry

    def leave(self, key: Any, cause: str = "") -> None:
        entry = self.entries.pop(key, None)
        if entry is not None:
            if entry.unused:
                self.count("prefetch_wasted")
            if cause and (entry.unused or self.now < entry.keep):
                self.count(cause)

    def land(self, key: Any, value: int, unused: bool = False) -> None:
        self.errors.pop(key, None)
        if self.find(key) is not None:
            self.leave(key, "evicted_replaced")
        fresh = self.now + self.ttl if self.ttl else float("inf")
        self.entries[key] = Entry(value, fresh, fresh + max(self.revalidate, self.error), unused)

    def load(self, works: bool) -> Any:
        """A loader for the cache, and what it will give."""
        self.made += 1
        value = self.made

        def loader() -> int:
            if not works:
                raise Down(str(value))
            return value

        return loader

    def stands_in(self, key: Any) -> bool:
        entry = self.find(key)
        return entry is not None and bool(self.error) and self.now < entry.fresh + self.error

    # -- calls ------------------------------------------------------------------------------

    @rule(key=KEYS, works=st.booleans())
    def get(self, key: Any, works: bool) -> None:
        loader = self.load(works)
        expected = self.expect(key, works, self.made)
        try:
            found: Any = self.tiers.get(key, loader)
        except Down:
            found = Down
        assert found == expected
        for flight in self.tiers.loads.flights.under_way():
            flight.wait_end(Deadline(30))

    def expect(self, key: Any, works: bool, value: int) -> Any:
        self.count("requests")
        entry = self.find(key)
        if self.errors.get(key, 0) > self.now:
            self.count("hits", "negative_hits")
            return Down
        if entry is not None and self.now < entry.fresh + self.revalidate:
            if entry.unused:
                entry.unused = False
                self.count("prefetch_used")
            self.count("hits")
            if self.now >= entry.fresh:
                self.count("stale_served")
                self.refresh(key, works, value)
            return entry.value
        self.count("misses", "loads")
        if works:
            self.land(key, value)
            return value
        self.count("load_errors")
        if self.stands_in(key):
            self.count("stale_on_error")
            return self.entries[key].value
        if entry is None and self.negative:
            self.errors[key] = self.now + self.negative
        return Down

    def refresh(self, key: Any, works: bool, value: int) -> None:
        if self.rests.get(key, 0) > self.now:
            return
        self.count("refreshes", "loads")
        if works:
            self.land(key, value)
        else:
            self.count("load_errors")
            self.rests[key] = self.now + max(self.negative, 1)

    @rule(key=KEYS, works=st.booleans())
    def start(self, key: Any, works: bool) -> None:
        loader = self.load(works)
        entry = self.find(key)
        try:
            found: Any = self.tiers.start(key, loader).wait(Deadline(30))
        except Down:
            found = Down
        if entry is not None and self.now < entry.fresh:
            assert found == entry.value
            return
        self.count("prefetch_issued", "loads")
        if works:
            assert found == self.made
            self.land(key, self.made, unused=True)
            return
        self.count("load_errors", "prefetch_errors")
        if self.stands_in(key):
            assert entry is not None
            assert found == entry.value
            return
        assert found is Down
        if entry is None and self.negative and self.errors.get(key, 0) <= self.now:
            self.errors[key] = self.now + self.negative

    @rule(key=KEYS)
    def put(self, key: Any) -> None:
        self.made += 1
        self.leave(key, "evicted_replaced")
        self.land(key, self.made)
        self.tiers.put(key, self.made)

    @rule(key=KEYS)
    def invalidate(self, key: Any) -> None:
        before = self.counts["evicted_invalidated"]
        self.errors.pop(key, None)
        self.leave(key, "evicted_invalidated")
        assert self.tiers.invalidate(key) == (self.counts["evicted_invalidated"] > before)

    @rule(key=KEYS)
    def look(self, key: Any) -> None:
        entry = self.find(key)
        fresh = entry is not None and self.now < entry.fresh
        assert self.tiers.holds(key) == fresh
        assert self.tiers.peek(key, "none") == (entry.value if entry is not None and fresh else "none")

    @rule(prefix=st.sampled_from([None, "a", "b"]))
    def clear(self, prefix: str | None) -> None:
        gone = [k for k in {*self.entries, *self.errors} if prefix is None or (k != 1 and str(k).startswith(prefix))]
        for key in gone:
            self.tiers.peek(key)  # dead ones go by being met
            self.find(key)
            self.errors.pop(key, None)
        before = self.counts["evicted_cleared"]
        for key in gone:
            self.leave(key, "evicted_cleared")
        assert self.tiers.clear(prefix=prefix) == self.counts["evicted_cleared"] - before

    @rule(seconds=st.sampled_from([0.5, 4, 10, 15]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def counters_are_the_models(self) -> None:
        if hasattr(self, "tiers"):
            told = self.tiers.counters()
            assert {name: told[name] for name in COUNTED} == self.counts
            assert told["hits"] + told["misses"] + told["joins"] == told["requests"]

    @invariant()
    def the_ledger_is_the_sum_of_the_entries(self) -> None:
        if hasattr(self, "tiers"):
            entries = [self.tiers.memory.map.entry(key) for key in self.tiers.memory.map.keys()]  # noqa: SIM118
            assert self.tiers.ledger.used == sum(entry[1] for entry in entries if entry)


TestCache = CacheMachine.TestCase
TestCache.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
