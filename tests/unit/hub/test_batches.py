"""Batches of a stream: read once for all, kept within bounds, by few lines."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.hub_feeds import PlannedFeed, ids

from lazystore._core.weigh import weigh
from lazystore.cache.retries import Retries
from lazystore.errors import ClosedError, ItemIndexError, LoadTimeoutError, UnsupportedError
from lazystore.hub.batches import SPARE, Batches
from lazystore.hub.recovery import Recovery, transient


def make(feed: PlannedFeed, *, cache_size: int = 80, memory: int = 1 << 20, timeout: float = 30.0) -> Batches:
    retries = Retries(3, base_s=0.0, retryable=transient)
    recovery = Recovery(feed, retries=retries, timeout=timeout, on_error="raise", pause=lambda delay: None)
    return Batches(recovery, cache_size=cache_size, memory=memory, timeout=timeout)


def walk(batches: Batches, start: int = 0, owner: object = None) -> list[Any]:
    samples: list[Any] = []
    while (part := batches.part(start + len(samples), owner)) is not None:
        assert part.first == start + len(samples)
        samples += part.samples
    return samples


@given(
    count=st.integers(0, 300),
    cache_size=st.sampled_from([1, 7, 16, 100, 1000]),
    memory=st.sampled_from([500, 5_000, 1 << 20]),
    starts=st.lists(st.integers(0, 300), max_size=4),
)
def test_every_walk_has_every_sample_in_order_and_what_is_kept_stays_within_both_bounds(
    count: int, cache_size: int, memory: int, starts: list[int]
) -> None:
    batches = make(PlannedFeed(count, marks=16), cache_size=cache_size, memory=memory)
    for start in [0, *starts]:
        assert ids(walk(batches, start)) == list(range(start, count))
        assert batches.samples_held <= cache_size
        assert batches.nbytes <= batches.peak <= memory
    assert batches.length == count


@pytest.mark.parametrize("cache_size", [500, 600])
def test_a_second_walk_over_what_fits_reads_nothing(cache_size: int) -> None:
    feed = PlannedFeed(500)
    batches = make(feed, cache_size=cache_size)
    walk(batches)
    walk(batches)
    assert len(feed.read) == 500
    assert (batches.hits, batches.misses, batches.reread) == (500, 500, 0)


@pytest.mark.parametrize("share", [1.1, 1.5, 2.0, 5.0, 20.0])
def test_a_second_walk_over_more_than_fits_still_finds_most_of_what_is_kept(share: float) -> None:
    batches = make(PlannedFeed(int(800 * share), marks=1), cache_size=800)
    walk(batches)
    for _ in range(3):
        before = batches.hits
        walk(batches)
        assert batches.hits - before >= 800 * 0.7


def test_numbers_asked_for_again_and_again_take_the_place_of_what_was_only_passed() -> None:
    batches = make(PlannedFeed(10_000, marks=1), cache_size=800)
    walk(batches)
    for _ in range(4):
        for number in range(5000, 5100):
            batches.get(number)
    before = batches.misses
    for number in range(5000, 5100):
        assert batches.get(number) == {"id": number}
    assert batches.misses == before


def test_samples_that_weigh_much_come_in_smaller_batches_and_are_kept_within_the_bytes() -> None:
    feed = PlannedFeed(200, make=lambda at: {"id": at, "data": bytes(10_000)})
    batches = make(feed, cache_size=1000, memory=200_000)
    assert ids(walk(batches)) == list(range(200))
    assert batches.peak <= 200_000
    assert batches.samples_held >= 10
    assert batches._size <= 2


def test_samples_that_become_heavy_later_are_met_too() -> None:
    feed = PlannedFeed(400, make=lambda at: {"id": at, "data": bytes(50_000 if 200 <= at < 300 else 10)})
    batches = make(feed, cache_size=1000, memory=1_000_000)
    for _ in range(2):
        assert ids(walk(batches)) == list(range(400))
        assert batches.peak <= 1_000_000


def test_a_sample_larger_than_the_memory_is_handed_on_and_not_kept() -> None:
    feed = PlannedFeed(3, make=lambda at: {"id": at, "data": bytes(10_000)})
    batches = make(feed, memory=5_000)
    assert ids(walk(batches)) == [0, 1, 2]
    assert batches.samples_held == 0


def test_many_threads_that_walk_at_once_read_each_sample_once() -> None:
    feed = PlannedFeed(3000)
    batches = make(feed, cache_size=4000)
    found: dict[int, list[int]] = {}
    threads = [
        threading.Thread(target=lambda n=number: found.__setitem__(n, ids(walk(batches, 0, n)))) for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [found[number] for number in range(8)] == [list(range(3000))] * 8
    assert sorted(feed.read) == list(range(3000))


def test_who_comes_while_a_batch_is_weighed_goes_on_by_the_line_that_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    feed = PlannedFeed(40)
    batches = make(feed, cache_size=80)  # batches of 10
    weighing, asked = threading.Event(), threading.Event()

    def slowly(value: Any) -> int:
        if isinstance(value, list) and not weighing.is_set() and len(feed.read) == 10:
            weighing.set()
            assert asked.wait(30)
            time.sleep(0.05)  # so that the other one is at the next batch
        return weigh(value)

    monkeypatch.setattr("lazystore.hub.batches.weigh", slowly)
    found: dict[str, list[int]] = {}
    first = threading.Thread(target=lambda: found.__setitem__("first", ids(walk(batches, 0, "first"))))
    first.start()
    assert weighing.wait(30)
    asked.set()
    found["second"] = ids(walk(batches, 0, "second"))
    first.join(30)
    assert found == {"first": list(range(40)), "second": list(range(40))}
    assert sorted(feed.read) == list(range(40))


def test_many_threads_that_ask_for_numbers_get_them_and_few_lines_are_open() -> None:
    feed = PlannedFeed(600, marks=8)
    batches = make(feed, cache_size=160)
    wrong: list[tuple[int, Any]] = []

    def ask(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(150):
            number = rng.randrange(600)
            sample = batches.get(number)
            if sample != {"id": number}:
                wrong.append((number, sample))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert len(feed.opened_now) <= SPARE + 1
    batches.close("done")
    assert not feed.opened_now


def test_the_line_a_pass_follows_is_left_to_it() -> None:
    feed = PlannedFeed(2000)
    batches = make(feed, cache_size=64)
    mine = object()
    at = 0
    for _ in range(10):
        part = batches.part(at, mine)
        assert part is not None
        at = part.stop
    batches.get(1500)
    opened = len(feed.openings)
    while at < 1000:
        part = batches.part(at, mine)
        assert part is not None
        at = part.stop
    assert len(feed.openings) == opened


def test_lines_that_nobody_follows_any_more_are_few() -> None:
    feed = PlannedFeed(5000, marks=1)
    batches = make(feed, cache_size=8)
    for number in range(20):
        owner = object()
        batches.part(200 * number, owner)
        batches.release(owner)
    batches.get(4999)
    assert len(feed.opened_now) <= SPARE + 1


def test_going_ahead_keeps_what_is_read_on_the_way() -> None:
    feed = PlannedFeed(300)
    batches = make(feed, cache_size=400)
    assert batches.get(250) == {"id": 250}
    batches.get(1)
    read = len(feed.read)
    batches.get(40)
    batches.get(299)
    assert batches.get(100) == {"id": 100}
    assert len(feed.read) - read <= 350


def test_reading_again_is_counted_by_what_is_read() -> None:
    batches = make(PlannedFeed(400, marks=10), cache_size=10)
    walk(batches)
    assert batches.reread == 0
    batches.get(305)
    assert 0 <= batches.reread <= 10
    unmarked = make(PlannedFeed(400), cache_size=10)
    walk(unmarked)
    unmarked.get(305)
    assert unmarked.reread == 305


def test_beyond_the_end_is_an_index_error_and_the_length_is_known_only_when_it_was_seen() -> None:
    batches = make(PlannedFeed(100))
    with pytest.raises(ItemIndexError, match="5000 is beyond the end"):
        batches.get(5000)
    assert batches.length is None
    with pytest.raises(ItemIndexError):
        batches.get(100)
    assert ids(walk(batches)) == list(range(100))
    assert batches.length == 100


def test_an_error_comes_after_the_samples_before_it_to_all_who_wait_and_is_not_kept() -> None:
    feed = PlannedFeed(100, failures={33: [ValueError("bad")]})
    batches = make(feed, cache_size=800)
    samples: list[Any] = []
    with pytest.raises(ValueError, match="bad"):
        while True:
            part = batches.part(len(samples), None)
            assert part is not None
            samples += part.samples
    assert ids(samples) == list(range(33))
    assert ids(walk(batches)) == list(range(100))


def test_who_waits_for_anothers_reading_is_told_when_nothing_comes() -> None:
    gate = threading.Event()
    batches = make(PlannedFeed(10, gate=gate), timeout=0.1)
    reader = threading.Thread(target=walk, args=(batches,))
    reader.start()
    while not batches._open:
        pass
    try:
        with pytest.raises(LoadTimeoutError, match=r"sample 0 has not come for 0.1 s"):
            batches.part(0, None)
        with pytest.raises(LoadTimeoutError):
            batches.get(0)
    finally:
        gate.set()
        reader.join(30)
    assert ids(walk(batches)) == list(range(10))


def test_one_who_is_interrupted_leaves_the_reading_to_others() -> None:
    feed = PlannedFeed(50)
    batches = make(feed)
    batches.part(0, None)
    made = feed.make

    def interrupted(at: int) -> Any:
        feed.make = made
        raise KeyboardInterrupt

    feed.make = interrupted
    with pytest.raises(KeyboardInterrupt):
        walk(batches)
    assert ids(walk(batches)) == list(range(50))


def test_a_source_that_can_be_read_once_gives_what_is_kept_and_tells_what_is_gone() -> None:
    batches = make(PlannedFeed(1000, again=False), cache_size=80)
    assert ids(walk(batches)) == list(range(1000))
    assert batches.get(995) == {"id": 995}
    with pytest.raises(UnsupportedError, match="read once only"):
        walk(batches)
    whole = make(PlannedFeed(70, again=False), cache_size=80)
    assert ids(walk(whole)) == ids(walk(whole)) == list(range(70))


def test_closing_ends_those_who_wait_and_closes_the_lines() -> None:
    gate = threading.Event()
    feed = PlannedFeed(10, gate=gate)
    batches = make(feed)
    caught: list[BaseException] = []

    def ask() -> None:
        try:
            walk(batches)
        except ClosedError as error:
            caught.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    while not batches._open:
        pass
    batches.close("closed by the test")
    gate.set()
    for thread in threads:
        thread.join(30)
    assert [str(error) for error in caught] == ["closed by the test"] * 3
    assert not feed.opened_now
    with pytest.raises(ClosedError, match="closed by the test"):
        batches.get(0)


def test_bytes_are_those_of_the_samples() -> None:
    batches = make(PlannedFeed(64, make=lambda at: {"id": at, "text": f"a text that is number {at}"}), cache_size=800)
    samples = walk(batches)
    assert abs(batches.nbytes - weigh(samples)) <= 0.2 * weigh(samples)


class _Watched(PlannedFeed):
    """Notes how many threads are inside a reading at once; from sample 1 on they stay until told to go on."""

    def __init__(self, count: int) -> None:
        super().__init__(count, make=self._make)
        self.go_on = threading.Event()
        self.inside = self.most = 0

    def _make(self, at: int) -> dict[str, int]:
        self.inside += 1
        self.most = max(self.most, self.inside)
        assert not at or self.go_on.wait(60)
        self.inside -= 1
        return {"id": at}


def test_a_line_that_is_sent_on_takes_its_unfinished_batch_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    feed = _Watched(300)
    batches = make(feed, cache_size=800)
    assert batches.part(0, None) is not None  # of an unknown weight only one is read: the batch is unfinished
    move, sent, may_move = Batches._move, threading.Event(), threading.Event()

    def slow(self: Batches, *arguments: Any) -> bool:
        sent.set()
        assert may_move.wait(60)
        return move(self, *arguments)

    monkeypatch.setattr(Batches, "_move", slow)
    found: dict[str, Any] = {}
    far = threading.Thread(target=lambda: found.update(far=batches.get(200)))
    far.start()
    assert sent.wait(60)
    near = threading.Thread(target=lambda: found.update(near=batches.part(1, None, 1)))
    near.start()
    near.join(0.1)
    may_move.set()
    far.join(0.1)
    feed.go_on.set()
    for thread in (far, near):
        thread.join(60)
        assert not thread.is_alive()
    assert feed.most == 1
    assert found["far"] == {"id": 200} and found["near"].samples == [{"id": 1}]
    assert feed.read == list(range(len(feed.read)))
