"""Blocks that are made: right from any start, in any order, within the reservation; trouble is told when it is met."""

from __future__ import annotations

import random
import threading
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from support import riddles
from support.riddles import Riddles
from support.sources import DiarySource, Postman

from lazystore._core.frames import FrameStore
from lazystore._core.scan import ItemIterator
from lazystore.cache.flight import Deadline
from lazystore.cache.memory import ChunkMemory
from lazystore.errors import BudgetTooSmallError, FetchError, FormatError
from lazystore.formats.format import Image


class Made:
    """A memory over riddles."""

    def __init__(
        self,
        blocks: Sequence[int] = (5, 1, 7),
        *,
        run: int = 1,
        wait: bool = False,
        local: bool = False,
        budget: int = 1 << 20,
        room: int = 1 << 18,
        timeout: float = 20.0,
    ) -> None:
        objects, counts = riddles.files(blocks)
        self.source = DiarySource(objects, local=local)
        self.images = Riddles(list(objects), counts, run=run, wait=wait)
        self.total = sum(map(sum, counts))
        self.layout = riddles.opened(self.source, counts, self.images)
        self.store = FrameStore(budget, frame_bytes=4096)
        self.memory = ChunkMemory(
            self.source, self.layout, self.store,
            timeout=timeout, fallback=True, images=self.images, scratch_room=room,
        )  # fmt: skip
        self.reader = self.memory.attach(riddles.PLAN, self.layout.counts, 0, None)

    def scan(self, start: int = 0, stop: int | None = None) -> ItemIterator:
        return ItemIterator(self.reader, start, self.total if stop is None else stop)

    def opens(self) -> list[tuple[Any, ...]]:
        return [entry for entry in self.images.log if entry[0] == "open"]

    def check(self) -> None:
        assert self.store.filling == 0 and self.store.counters()["pins"] == 0
        self.store.check()


@pytest.mark.parametrize("local", [True, False], ids=["local", "remote"])
@pytest.mark.parametrize("run", [1, 3, 100])
@pytest.mark.parametrize("wait", [False, True], ids=["", "waiting"])
@pytest.mark.parametrize("budget", [1 << 17, 1 << 20])
def test_every_item_comes_as_it_was_in_order_and_at_random(run: int, wait: bool, local: bool, budget: int) -> None:
    made = Made(run=run, wait=wait, local=local, budget=budget)
    assert list(made.scan()) == [riddles.item(i) for i in range(made.total)]
    order = random.Random(3).sample(range(made.total), 200)
    assert [made.reader.get(i) for i in order] == [riddles.item(i) for i in order]
    assert made.reader.get_many(order) == [riddles.item(i) for i in order]
    made.check()


@pytest.mark.parametrize("run", [1, 3, 100])
def test_a_scan_opens_each_run_once_and_fetches_each_body_once(run: int) -> None:
    made = Made(run=run)
    for _ in made.scan():
        pass
    opens = made.opens()
    assert len(opens) == len({entry[1] for entry in opens}) == len(made.images.runs) - 1
    bodies = [(name, begin) for wave in made.source.waves for name, begin, _ in wave if begin]
    assert len(bodies) == len(set(bodies)) == len(made.layout.counts)


def test_what_was_opened_is_counted() -> None:
    made = Made((3,))
    list(made.scan())
    assert made.memory.opener.opened_bytes == len(made.source.objects["r0.bin"]) - 16


def test_a_scan_far_away_sends_for_what_comes_next_before_it_is_asked_for() -> None:
    made = Made((12,), room=1 << 20)
    with Postman(made.source):
        scan = made.scan()
        got = [next(scan) for _ in range(200)]
        assert max(block for _, _, block in made.opens()) > 5
    assert got == [riddles.item(i) for i in range(200)]


def test_the_next_runs_are_sent_for_however_many_blocks_the_present_one_has() -> None:
    made = Made((50, 50, 50), run=50, budget=1 << 18, room=1 << 20)
    scan = made.scan()
    got = [next(scan) for _ in range(40 * 4)]
    assert [entry[1:] for entry in made.opens()] == [(0, 0), (1, 50), (2, 100)]
    assert got == [riddles.item(i) for i in range(40 * 4)]


def test_of_an_order_that_was_told_the_next_runs_are_sent_for_too() -> None:
    made = Made((60,), run=4, room=1 << 18)
    order = random.Random(2).sample(range(60), 60)
    made.memory.expect(order)
    opener: Any = made.memory.opener
    most = 0
    for block in order[:20]:
        for fill in opener.fill(block, 0, True, Deadline(20.0)):
            fill.release()
        most = max(most, len(opener._open))
    assert most >= 4
    assert sum(making.scratch for making in opener._open.values()) <= 1 << 18


def test_how_many_runs_are_begun_ahead_is_bounded_however_long_a_scan_is() -> None:
    made = Made((200,), budget=1 << 18, room=1 << 26)
    opener: Any = made.memory.opener
    assert sum(1 for _ in made.scan()) == made.total
    assert opener._depth <= 64


def test_runs_that_are_open_never_exceed_the_reservation() -> None:
    made = Made((40,), room=3 << 15)
    most = 0
    opener: Any = made.memory.opener
    for k, _ in enumerate(made.scan()):
        if k % 40 == 0:
            most = max(most, opener._held())
    assert 0 < most <= 3 << 15


def test_going_back_within_a_run_starts_it_again() -> None:
    made = Made((6,), run=6, budget=1 << 17)
    assert made.reader.get(5 * 40) == riddles.item(200)
    assert made.reader.get(0) == riddles.item(0)
    assert made.reader.get(239) == riddles.item(239)
    assert next(entry[2] for entry in made.opens()) == 5


def test_a_run_that_needs_more_than_is_reserved_is_refused_with_what_it_needs() -> None:
    made = Made((2,), room=1 << 14)
    with pytest.raises(BudgetTooSmallError, match=r"r0\.bin.*32768 bytes"):
        made.reader.get(0)
    made.check()


def test_a_damaged_block_is_named_and_the_others_are_read() -> None:
    made = Made((4, 4))
    data = bytearray(made.source.objects["r0.bin"])
    data[4 * 5 : 4 * 5 + 4] = b"\xff\xff\xff\x7f"  # the first size in the first body
    made.source.objects["r0.bin"] = bytes(data)
    for _ in range(2):
        with pytest.raises(FormatError, match=r"r0\.bin \(chunk 0\).*add up"):
            made.reader.get(3)
    assert made.reader.get(40) == riddles.item(40)
    assert [made.reader.get(i) for i in range(40, made.total)] == [riddles.item(i) for i in range(40, made.total)]
    made.check()


@pytest.mark.parametrize("cut", [4, -4])
def test_a_block_that_is_made_again_is_checked_again(cut: int) -> None:
    made = Made((6,), budget=1 << 16)
    assert made.reader.get(0) == riddles.item(0)
    for i in range(40, made.total):
        assert made.reader.get(i) == riddles.item(i)  # which evicts the first block
    make = made.images.open

    def other(run: int, first: int) -> Generator[Any, Any, None]:
        steps = make(run, first)
        answer = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration:
                return
            if isinstance(step, Image):
                # another length, or an offset beyond the end
                data = bytes(step.data[:-4]) if cut < 0 else bytes(step.data[:8]) + b"\xff" * 4 + bytes(step.data[12:])
                step = replace(step, data=data)
            answer = yield step

    made.images.open = other  # type: ignore[method-assign]
    for _ in range(2):
        with pytest.raises(FormatError, match=r"r0\.bin \(chunk 0\)"):
            made.reader.get(1)
    made.images.open = make  # type: ignore[method-assign]
    assert made.reader.get(1) == riddles.item(1)
    made.check()


@pytest.mark.parametrize("ahead", [1, 3])
def test_trouble_with_what_was_sent_for_ahead_is_met_where_it_lies_and_cured_if_it_has_passed(ahead: int) -> None:
    made = Made((8,))
    seen: list[int] = []

    def before(reads: Sequence[Any]) -> None:
        if len(seen) < 3 and any(read.begin > 12_000 * ahead for read in reads):
            seen.append(1)
            raise FetchError("the storage is down")

    made.source.before = before
    got: list[bytes] = []
    scan = made.scan()
    while len(got) < made.total:
        try:
            got.append(next(scan))
        except FetchError:
            continue
    assert got == [riddles.item(i) for i in range(made.total)] and seen
    made.check()


def test_many_threads_read_and_nothing_is_lost() -> None:
    made = Made((10, 10), run=5, budget=1 << 17)
    wrong: list[object] = []

    def read(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(150):
            i = draw.randrange(made.total)
            if made.reader.get(i) != riddles.item(i):
                wrong.append(i)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    made.check()


def test_closing_drops_what_is_open() -> None:
    made = Made((9,), run=9)
    scan = made.scan()
    next(scan)
    made.memory.close()
    assert ("drop", 0) in made.images.log


def test_a_forked_child_forgets_what_its_parent_had_open() -> None:
    made = Made((9,), run=9)
    next(made.scan())
    made.memory.reset_after_fork()
    assert [made.reader.get(i) for i in range(0, 360, 7)] == [riddles.item(i) for i in range(0, 360, 7)]
