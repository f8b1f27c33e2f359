"""Walks over a memory much smaller than the data, beside each other and under trouble, against their routes.

Whatever is read meanwhile, held, given up, or fails for a while: a walk gives its route's items in order, none lost,
none twice; and with the last walk and lease gone nothing is pinned.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from models.walk import route_items
from support import datasets
from support.benches import Bench
from support.sources import DiarySource

from lazystore._core.collate import ObjectSink
from lazystore._core.walk import Walk
from lazystore.errors import ArenaFullError, FetchError
from lazystore.streaming.prefetch import window_bytes

KINDS = ["sequential", "window", "global", "litdata"]
SIZES = [[0, 3, 9], [50, 200], [1000, 4096], [3000, 20_000], [10, 10, 10, 40_000]]


@dataclass
class Run:
    """A walk, what it has given, and what it must give."""

    walk: Walk
    wanted: list[int]
    start: int
    found: int = 0
    feed: Any = field(default=None, repr=False)


class Walks(RuleBasedStateMachine):
    @initialize(
        seed=st.integers(0, 1 << 16),
        counts=st.lists(st.integers(0, 90), min_size=1, max_size=6).filter(any),
        sizes=st.sampled_from(SIZES),
        budget=st.sampled_from([1 << 16, 1 << 17, 1 << 19, 1 << 22]),
        hint=st.sampled_from([1.0, 1.0, 1.0, 0.0, 0.4, 4.0]),
        local=st.booleans(),
        tables=st.booleans(),
    )
    def begin(
        self, seed: int, counts: list[int], sizes: list[int], budget: int, hint: float, local: bool, tables: bool
    ) -> None:
        self.chance = random.Random(seed)
        numbers = iter(range(sum(counts)))
        chunks = [
            [b"%d|" % next(numbers) + self.chance.randbytes(self.chance.choice(sizes)) for _ in range(count)]
            for count in counts
        ]
        self.items = [item for chunk in chunks for item in chunk]
        with TemporaryDirectory() as place:
            folder = datasets.craft(
                Path(place) / "set", [[datasets.item_bytes([item]) for item in chunk] for chunk in chunks], ["bytes"]
            )

            def change(index: dict[str, Any]) -> None:
                for entry in index["chunks"]:
                    entry["chunk_bytes"] = int(entry["chunk_bytes"] * hint)

            source = DiarySource.of(datasets.edit_index(folder, change), local=local)
        self.budget = budget
        self.bench = Bench(source, budget, timeout=2.0, tables_room=budget // 32 if tables else 0)
        source.before = self.before
        self.rate = 0.0
        self.runs: list[Run] = []
        self.held: list[tuple[int, Any]] = []

    def before(self, reads: Any) -> None:
        if self.chance.random() < self.rate:
            raise FetchError("far away")

    # -- walks ------------------------------------------------------------------------------

    @precondition(lambda self: len(self.runs) < 3)
    @rule(kind=st.sampled_from(KINDS), epoch=st.integers(1, 9), part=st.floats(0, 1), shared=st.booleans())
    def enter(self, kind: str, epoch: int, part: float, shared: bool) -> None:
        if kind == "global" and not self.bench.source.local:
            kind = "window"  # lists from afar are fetched by a thread: nothing that could be replayed
        window, block = window_bytes(self.budget, opaque=False)
        route = self.bench.route(kind, window=window, block=block, epoch=epoch)
        start = int(part * route.length) if part > 0.5 else 0
        walk = self.bench.walk(route, start, shared=shared and sum(self.bench.index.hints) < self.budget * 0.85)
        wanted = route_items(route.legs(start), self.bench.index.counts)
        self.runs.append(Run(walk, wanted, start, feed=self.bench.feed))

    @precondition(lambda self: self.runs)
    @rule(which=st.integers(0, 9), count=st.integers(1, 120))
    def go_on(self, which: int, count: int) -> None:
        run = self.runs[which % len(self.runs)]
        for _ in range(count):
            try:
                item = next(run.walk)
            except StopIteration:
                assert run.found == len(run.wanted)
                assert run.walk.progress.finished
                self.runs.remove(run)
                return
            except FetchError:
                assert self.rate
                return
            assert item == self.items[run.wanted[run.found]]
            run.found += 1

    @precondition(lambda self: self.runs)
    @rule(which=st.integers(0, 9), count=st.integers(1, 60))
    def pour(self, which: int, count: int) -> None:
        run = self.runs[which % len(self.runs)]
        sink = ObjectSink(self.bench.plan)
        ended = False
        try:
            ended = run.walk.pour(sink, count) == 0
        except FetchError:
            assert self.rate
        if sink.count:
            for item in sink.take_batch():
                assert item == self.items[run.wanted[run.found]]
                run.found += 1
        if ended:
            assert run.found == len(run.wanted)
            self.runs.remove(run)

    @precondition(lambda self: self.runs)
    @rule(which=st.integers(0, 9), drop=st.booleans())
    def leave(self, which: int, drop: bool) -> None:
        run = self.runs.pop(which % len(self.runs))
        (run.feed if drop else run.walk).close()

    # -- the others -------------------------------------------------------------------------

    @rule(rate=st.sampled_from([0.0, 0.0, 0.1, 0.5, 1.0]))
    def weather(self, rate: float) -> None:
        self.rate = rate

    @rule(which=st.integers(0, 1 << 16))
    def read(self, which: int) -> None:
        which %= len(self.items)
        try:
            assert self.bench.reader.get(which) == self.items[which]
        except FetchError:
            assert self.rate

    @rule(which=st.lists(st.integers(0, 1 << 16), max_size=20))
    def read_many(self, which: list[int]) -> None:
        which = [i % len(self.items) for i in which]
        try:
            assert self.bench.reader.get_many(which) == [self.items[i] for i in which]
        except FetchError:
            assert self.rate

    @rule(which=st.integers(0, 1 << 16))
    def hold(self, which: int) -> None:
        which %= len(self.items)
        try:
            self.held.append((which, self.bench.reader.view(which)))
        except FetchError:
            assert self.rate
        except ArenaFullError:
            assert self.held

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 99))
    def let_go(self, which: int) -> None:
        number, lease = self.held.pop(which % len(self.held))
        assert bytes(lease)[4:] == self.items[number]
        lease.release()

    # -- always -----------------------------------------------------------------------------

    @invariant()
    def store_is_sound(self) -> None:
        if hasattr(self, "bench"):
            self.bench.store.check()

    @invariant()
    def progress_is_what_was_handed_out(self) -> None:
        for run in getattr(self, "runs", []):
            progress = run.walk.progress
            assert progress.position == run.start + run.found
            assert not progress.finished or run.found == len(run.wanted)

    def teardown(self) -> None:
        if not hasattr(self, "bench"):
            return
        self.rate = 0.0
        for number, lease in self.held:
            assert bytes(lease)[4:] == self.items[number]
            lease.release()
        self.held.clear()
        for run in self.runs:
            for item in run.walk:
                assert item == self.items[run.wanted[run.found]]
                run.found += 1
            assert run.found == len(run.wanted)
        self.runs.clear()
        self.bench.memory.settle()
        self.bench.check()


Walks.TestCase.settings = settings(
    max_examples=max(1, settings().max_examples // 3), stateful_step_count=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    deadline=None,
)  # fmt: skip
TestWalks = Walks.TestCase
