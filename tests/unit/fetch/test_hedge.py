"""A request slower than most gets a rival: one of them lands its bytes, and few are doubled."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from lazystore.errors import FetchError, SourceChangedError
from lazystore.fetch.retry import HEDGE_MIN_SAMPLES, RetryPolicy, Verdict, WireError
from lazystore.fetch.source import Read
from lazystore.fetch.throttle import HEDGE_FREE
from lazystore.fetch.wire import Identity, Landing
from lazystore.testing import Faults, ObjectStore

DATA = bytes((3 * i + i // 256) % 256 for i in range(20_000))
SILENT = "silent"

Scripted = Callable[..., Any]


def read_of(name: str, begin: int, length: int) -> Read:
    return Read(name, begin, memoryview(bytearray(length)))


class Storage:
    """Answers at once, but to the first request for ``silent`` as ``first`` says, to the second as ``second``."""

    def __init__(self, first: Any, second: Any = None) -> None:
        self.asked = 0
        self.first = first
        self.second = second or good
        self.ends: list[str] = []

    async def get(self, name: str, begin: int, end: int, pinned: Identity | None, landing: Landing) -> None:
        if name != SILENT:
            return await good(begin, end, landing)
        self.asked += 1
        which = {1: "first", 2: "second"}.get(self.asked, "third")
        try:
            await {"first": self.first, "second": self.second, "third": good}[which](begin, end, landing)
        except asyncio.CancelledError:
            self.ends.append(f"{which} cancelled")
            raise
        except WireError as error:
            self.ends.append(f"{which} {error.verdict.value}")
            raise
        self.ends.append(f"{which} done")


async def good(begin: int, end: int, landing: Landing) -> None:
    landing.answered(begin, end, Identity(len(DATA), '"v1"'))
    middle = (begin + end) // 2
    landing.write(DATA[begin:middle])
    await asyncio.sleep(0.01)
    landing.write(DATA[middle:end])


async def never(begin: int, end: int, landing: Landing) -> None:
    await asyncio.Event().wait()


def after(seconds: float, then: Any = good) -> Any:
    async def answer(begin: int, end: int, landing: Landing) -> None:
        await asyncio.sleep(seconds)
        await then(begin, end, landing)

    return answer


def failing(verdict: Verdict) -> Any:
    async def answer(begin: int, end: int, landing: Landing) -> None:
        raise WireError(verdict, "no")

    return answer


def acquainted(source: Any) -> Any:
    """The same source, once it knows how fast its storage usually is."""
    source.run([read_of("a", i * 20, 10) for i in range(4 * HEDGE_MIN_SAMPLES)], timeout=60)
    return source


@pytest.fixture(autouse=True)
def patient(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is given up as stalled, so that it is the rival who helps."""
    if "real" in request.node.name:
        return
    monkeypatch.setattr("lazystore.fetch.retry.PATIENCE_MIN_S", 60.0)
    monkeypatch.setattr("lazystore.fetch.retry.PATIENCE_MAX_S", 60.0)


def right(read: Read) -> bool:
    return bytes(read.view) == DATA[read.begin : read.end] and read.got == len(read.view)


def test_the_rival_of_a_silent_request_lands_the_bytes(scripted: Scripted) -> None:
    storage = Storage(never)
    source = acquainted(scripted(storage.get))
    sent = source.counters.requests
    reads = [read_of(SILENT, 5, 1000), read_of(SILENT, 1005, 500)]
    source.run(reads, timeout=60)
    assert all(right(read) for read in reads)
    assert sorted(storage.ends) == ["first cancelled", "second done"]
    extra = source.counters.extra
    assert (extra["hedges"], extra["hedge_wins"], extra["stalls"]) == (1, 1, 0)
    assert (source.counters.requests - sent, source.counters.retries) == (2, 0)
    assert source.counters.in_flight_bytes == 0


def test_a_first_request_that_answers_after_all_goes_on_alone(scripted: Scripted) -> None:
    storage = Storage(after(0.5), never)
    source = acquainted(scripted(storage.get))
    read = read_of(SILENT, 5, 1000)
    source.run([read], timeout=60)
    assert right(read)
    deadline = time.monotonic() + 20
    while len(storage.ends) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert sorted(storage.ends) == ["first done", "second cancelled"]
    assert (source.counters.extra["hedges"], source.counters.extra["hedge_wins"]) == (1, 0)
    assert source.counters.in_flight_bytes == 0


def test_when_the_first_fails_its_rival_is_waited_for(scripted: Scripted) -> None:
    storage = Storage(after(0.5, failing(Verdict.RETRY)), after(1.0))
    source = acquainted(scripted(storage.get))
    read = read_of(SILENT, 5, 1000)
    source.run([read], timeout=60)
    assert right(read)
    assert sorted(storage.ends) == ["first retry", "second done"]
    assert source.counters.retries == 0


@pytest.mark.parametrize("verdict", [Verdict.RETRY, Verdict.MISSING])
def test_a_rival_that_fails_leaves_the_first_alone(scripted: Scripted, verdict: Verdict) -> None:
    storage = Storage(after(0.5), failing(verdict))
    source = acquainted(scripted(storage.get))
    read = read_of(SILENT, 5, 1000)
    source.run([read], timeout=60)
    assert right(read)
    assert storage.ends == [f"second {verdict.value}", "first done"]


def test_when_both_fail_the_request_is_repeated(scripted: Scripted) -> None:
    storage = Storage(after(0.5, failing(Verdict.RETRY)), after(0.6, failing(Verdict.RETRY)))
    source = acquainted(scripted(storage.get))
    read = read_of(SILENT, 5, 1000)
    source.run([read], timeout=60)
    assert right(read)
    assert storage.ends == ["first retry", "second retry", "third done"]
    assert source.counters.retries == 1


def test_a_final_failure_does_not_wait_for_the_rival(scripted: Scripted) -> None:
    storage = Storage(after(0.5, failing(Verdict.DENIED)), never)
    source = acquainted(scripted(storage.get))
    with pytest.raises(FetchError, match="credentials"):
        source.run([read_of(SILENT, 5, 1000)], timeout=60)
    assert storage.asked == 2
    deadline = time.monotonic() + 20
    while source.counters.in_flight_bytes and time.monotonic() < deadline:
        time.sleep(0.001)
    assert source.counters.in_flight_bytes == 0


def test_the_rivals_object_must_be_the_same(scripted: Scripted) -> None:
    async def other(begin: int, end: int, landing: Landing) -> None:
        landing.answered(begin, end, Identity(len(DATA), '"v2"'))
        landing.write(bytes(end - begin))

    storage = Storage(after(0.5), other)
    source = acquainted(scripted(storage.get))
    source.run([read_of("a", 0, 1)], stat=["a"], timeout=60)
    source._pins.pin(SILENT, Identity(len(DATA), '"v1"'))
    read = read_of(SILENT, 5, 1000)
    source.run([read], timeout=60)
    assert right(read)
    assert storage.ends == ["second changed", "first done"]
    storage.asked, storage.first, storage.second = 0, other, never
    with pytest.raises(SourceChangedError):
        source.run([read_of(SILENT, 5, 1000)], timeout=60)


def test_nothing_of_the_loser_lands(scripted: Scripted) -> None:
    late = threading.Event()
    outcome: list[BaseException] = []

    async def stubborn(begin: int, end: int, landing: Landing) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        for attempt in (
            lambda: landing.answered(begin, end, Identity(len(DATA), '"v1"')),
            lambda: landing.write(bytes(end - begin)),
        ):
            try:
                attempt()
            except WireError as error:
                outcome.append(error)
        late.set()
        raise WireError(Verdict.RETRY, "cancelled in its own way")

    storage = Storage(stubborn)
    source = acquainted(scripted(storage.get))
    read = read_of(SILENT, 5, 1000)
    source.run([read], timeout=60)
    assert late.wait(20)
    assert len(outcome) == 2
    assert right(read)
    assert source.counters.retries == 0


def test_a_winner_that_is_cut_is_continued(scripted: Scripted) -> None:
    async def cut(begin: int, end: int, landing: Landing) -> None:
        landing.answered(begin, end, Identity(len(DATA), '"v1"'))
        landing.write(DATA[begin : begin + 300])
        raise ConnectionResetError("cut")

    storage = Storage(never, cut)
    source = acquainted(scripted(storage.get))
    read = read_of(SILENT, 5, 1000)
    source.run([read], timeout=60)
    assert right(read)
    assert [(begin, end) for name, begin, end, _ in source.wire.gets if name == SILENT] == [
        *((5, 1005), (5, 1005), (305, 1005)),
    ]


def test_a_cancelled_flight_takes_its_rival_along(scripted: Scripted) -> None:
    storage = Storage(never, never)
    source = acquainted(scripted(storage.get))
    flight = source.start([read_of(SILENT, 5, 1000)], timeout=60)
    deadline = time.monotonic() + 20
    while storage.asked < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    flight.cancel()
    while len(storage.ends) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert sorted(storage.ends) == ["first cancelled", "second cancelled"]
    assert source.counters.in_flight_bytes == 0


@pytest.mark.parametrize("why", ["few samples", "silent transport", "no room", "bodies that pause"])
def test_when_there_is_no_rival(scripted: Scripted, why: str) -> None:
    async def pauses(begin: int, end: int, landing: Landing) -> None:
        landing.answered(begin, end, Identity(len(DATA), '"v1"'))
        await asyncio.sleep(0.5)
        landing.write(DATA[begin:end])

    storage = Storage(pauses if why == "bodies that pause" else after(0.5))
    source = scripted(
        storage.get, streams=why != "silent transport", max_in_flight_bytes=1500 if why == "no room" else 1 << 20
    )
    if why != "few samples":
        acquainted(source)
    read = read_of(SILENT, 5, 1000)
    source.run([read], timeout=60)
    assert right(read)
    assert source.counters.extra["hedges"] == 0
    assert storage.asked == 1


def test_when_all_are_slow_few_are_doubled(scripted: Scripted) -> None:
    slow = [0.0]

    async def get(name: str, begin: int, end: int, pinned: Identity | None, landing: Landing) -> None:
        await asyncio.sleep(slow[0])
        await good(begin, end, landing)

    source = acquainted(scripted(get, concurrency=64))
    slow[0] = 0.3
    reads = [read_of("a", i * 20, 10) for i in range(100)]
    source.run(reads, timeout=60)
    assert all(right(read) for read in reads)
    assert source.counters.extra["hedges"] <= HEDGE_FREE + 0.02 * source.counters.requests


@pytest.mark.parametrize("kind", ["http", "s3", "obstore-http"])
def test_rivals_over_real_connections(
    kind: str, open_kind: Callable[..., Any], objects: dict[str, bytes], faultless: ObjectStore
) -> None:
    source = open_kind(kind, policy=RetryPolicy())
    source.run([read_of("chunk.bin", i * 300, 100) for i in range(60)], timeout=60)
    faultless.configure(faults=Faults(first=("stall",), only="*big.bin"))
    read = read_of("big.bin", 10_000, 3000)
    source.run([read], timeout=60)
    assert bytes(read.view) == objects["big.bin"][10_000:13_000]
    assert source.counters.extra["hedge_wins"] + source.counters.extra["stalls"] >= 1
