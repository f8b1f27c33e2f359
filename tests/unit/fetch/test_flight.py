"""Flights of remote sources: begun in one breath, ended by whoever comes first, and safe to forget."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lazystore.errors import ClosedError, ConfigError, FetchError, FetchTimeoutError, SourceChangedError
from lazystore.fetch import flight as flights
from lazystore.fetch.flight import Outcome, Wave
from lazystore.fetch.retry import Verdict, WireError
from lazystore.fetch.source import Read
from lazystore.fetch.wire import Identity, Landing

DATA = bytes(range(256)) * 40
Scripted = Callable[..., Any]


def read_of(name: str, begin: int, length: int) -> Read:
    return Read(name, begin, memoryview(bytearray(length)))


class Storage:
    """A good storage whose answers wait while ``gate`` is closed."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.begun = threading.Semaphore(0)
        self.cancelled = threading.Semaphore(0)
        self.order: list[int] = []

    async def get(self, name: str, begin: int, end: int, pinned: Identity | None, landing: Landing) -> None:
        self.order.append(begin)
        self.begun.release()
        try:
            while not self.gate.is_set():
                await asyncio.sleep(0.001)
        except asyncio.CancelledError:
            self.cancelled.release()
            raise
        landing.answered(begin, end, Identity(len(DATA), "tag"))
        landing.write(DATA[begin:end])


@pytest.fixture
def storage() -> Storage:
    return Storage()


def settled_down(source: Any) -> None:
    """Wait until nothing is under way any more."""
    deadline = time.monotonic() + 20
    while source.counters.in_flight_bytes and time.monotonic() < deadline:
        time.sleep(0.001)
    assert source.counters.in_flight_bytes == 0


def test_the_caller_goes_on_while_bytes_travel(scripted: Scripted, storage: Storage) -> None:
    source = scripted(storage.get)
    reads = [read_of("a", 0, 10), read_of("a", 100, 50)]
    ends: list[str] = []
    flight = source.start(reads, stat=["a"], timeout=30, on_done=lambda: ends.append(threading.current_thread().name))
    assert not flight.done()
    assert not flight.wait(0.01)
    assert ends == []
    storage.gate.set()
    assert flight.wait(20)
    assert flight.done()
    for _ in range(2):
        assert flight.result() == {"a": len(DATA)}
    assert [read.got for read in reads] == [10, 50]
    assert all(bytes(read.view) == DATA[read.begin : read.end] for read in reads)
    assert ends == ["scripted"]
    flight.cancel()
    assert flight.result() == {"a": len(DATA)}


def test_what_is_known_already_sends_nothing_and_is_done_at_once(scripted: Scripted, storage: Storage) -> None:
    storage.gate.set()
    source = scripted(storage.get)
    source.run([read_of("a", 0, 10)], timeout=10)
    ends: list[int] = []
    flight = source.start([read_of("a", 5, 0)], stat=["a"], timeout=10, on_done=lambda: ends.append(1))
    assert flight.done()
    assert flight.result() == {"a": len(DATA)}
    assert ends == [1]
    beyond = source.start([read_of("a", len(DATA), 5)], timeout=10, on_done=lambda: ends.append(2))
    assert beyond.wait(0)
    with pytest.raises(FetchError, match="ends at byte"):
        beyond.result()
    assert ends == [1, 2]


def test_a_flights_error_is_raised_by_its_result_only_and_every_time(scripted: Scripted) -> None:
    async def refuses(name: str, begin: int, end: int, pinned: Identity | None, landing: Landing) -> None:
        raise WireError(Verdict.CHANGED, "HTTP 412")

    source = scripted(refuses)
    ends: list[int] = []
    flight = source.start([read_of("a", 0, 10)], timeout=10, on_done=lambda: ends.append(1))
    assert flight.wait(20)
    for _ in range(2):
        with pytest.raises(SourceChangedError, match="412"):
            flight.result()
    assert ends == [1]


def test_arguments_that_cannot_work_are_refused_at_once(scripted: Scripted, storage: Storage) -> None:
    source = scripted(storage.get)
    with pytest.raises(ConfigError, match="writable"):
        source.start([Read("a", 0, memoryview(b"constant"))], timeout=10)
    source.close()
    with pytest.raises(ClosedError):
        source.start([read_of("a", 0, 10)], timeout=10)


def test_a_cancelled_flight_ends_at_once_and_lands_nothing(scripted: Scripted, storage: Storage) -> None:
    source = scripted(storage.get)
    read = read_of("a", 0, 10)
    ends: list[str] = []
    flight = source.start([read], timeout=30, on_done=lambda: ends.append(threading.current_thread().name))
    assert storage.begun.acquire(timeout=20)
    flight.cancel()
    flight.cancel()
    assert flight.done()
    assert ends == [threading.current_thread().name]
    storage.gate.set()
    with pytest.raises(FetchError, match="cancelled"):
        flight.result()
    assert storage.cancelled.acquire(timeout=20)
    settled_down(source)
    assert bytes(read.view) == bytes(10)
    assert ends == [threading.current_thread().name]
    read = read_of("a", 0, 10)
    source.run([read], timeout=20)
    assert bytes(read.view) == DATA[:10]


def test_cancelling_does_not_wait_for_a_client_that_cannot_be_cancelled(scripted: Scripted) -> None:
    begun, late = threading.Event(), threading.Event()
    outcome: list[BaseException] = []

    async def stubborn(name: str, begin: int, end: int, pinned: Identity | None, landing: Landing) -> None:
        begun.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.get_running_loop().run_in_executor(None, late.wait, 20)
        try:
            landing.write(DATA[begin:end])
        except WireError as error:
            outcome.append(error)
        finally:
            done.set()

    done = threading.Event()
    source = scripted(stubborn)
    read = read_of("a", 0, 10)
    flight = source.start([read], timeout=60)
    assert begun.wait(20)
    flight.cancel()
    assert flight.done()
    late.set()
    assert done.wait(20)
    assert len(outcome) == 1
    assert bytes(read.view) == bytes(10)


def test_a_forgotten_flight_is_cancelled(scripted: Scripted, storage: Storage) -> None:
    source = scripted(storage.get)
    read = read_of("a", 0, 10)
    ended = threading.Event()
    flight = source.start([read], timeout=30, on_done=ended.set)
    assert storage.begun.acquire(timeout=20)
    del flight
    gc.collect()
    assert ended.wait(20)
    storage.gate.set()
    settled_down(source)
    assert bytes(read.view) == bytes(10)


def test_a_flight_that_failed_is_no_part_of_a_cycle(scripted: Scripted) -> None:
    import weakref

    async def refuses(name: str, begin: int, end: int, pinned: Identity | None, landing: Landing) -> None:
        raise WireError(Verdict.DENIED, "HTTP 403")

    source = scripted(refuses)
    gc.collect()
    gc.disable()
    try:
        flight = source.start([read_of("a", 0, 10)], timeout=10)
        gone = weakref.ref(flight)
        with contextlib.suppress(FetchError):
            flight.result()
        del flight
        assert gone() is None
    finally:
        gc.enable()


def test_closing_ends_flights_with_a_closed_error(scripted: Scripted, storage: Storage) -> None:
    source = scripted(storage.get)
    ends: list[int] = []
    under_way = [source.start([read_of("a", i, 1)], timeout=60, on_done=lambda: ends.append(1)) for i in range(20)]
    assert storage.begun.acquire(timeout=20)
    source.close()
    for flight in under_way:
        assert flight.done()
        with pytest.raises(ClosedError):
            flight.result()
    assert len(ends) == 20


def test_flights_begun_while_the_source_is_closed_all_end(scripted: Scripted, storage: Storage) -> None:
    storage.gate.set()
    for _ in range(10):
        source = scripted(storage.get)
        source.run([read_of("a", 0, 1)], timeout=20)
        begun: list[Any] = []

        def keep_starting(source: Any = source, begun: list[Any] = begun) -> None:
            with contextlib.suppress(ClosedError):
                while True:
                    begun.append(source.start([read_of("a", 0, 1)], timeout=60))

        thread = threading.Thread(target=keep_starting)
        thread.start()
        source.close()
        thread.join(20)
        assert not thread.is_alive()
        assert all(flight.wait(2) for flight in begun)


def test_the_deadline_ends_a_flight_that_nobody_waits_for(scripted: Scripted, storage: Storage) -> None:
    source = scripted(storage.get)
    flight = source.start([read_of("a", 0, 10)], timeout=0.1)
    assert flight.wait(20)
    with pytest.raises(FetchTimeoutError, match=r"did not come within 0\.1 s"):
        flight.result()


def test_a_loop_that_does_not_react_is_named(
    scripted: Scripted, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flights, "STUCK_S", 0.1)
    storage.gate.set()
    source = scripted(storage.get)
    source.run([read_of("a", 0, 1)], timeout=10)
    free = threading.Event()
    source.wire.loop.call_soon_threadsafe(free.wait, 20)
    read = read_of("a", 0, 10)
    with pytest.raises(FetchTimeoutError, match="does not react"):
        source.run([read], timeout=0.1)
    free.set()
    settled_down(source)
    assert bytes(read.view) == bytes(10)


def test_the_next_flight_may_begin_where_the_last_one_ends(scripted: Scripted, storage: Storage) -> None:
    storage.gate.set()
    source = scripted(storage.get)
    begun: list[Any] = []
    reads = [read_of("a", i * 10, 10) for i in range(20)]
    left = iter(reads)
    finished = threading.Event()

    def go_on() -> None:  # may be called before start() returns
        if (read := next(left, None)) is not None:
            begun.append(source.start([read], timeout=20, on_done=go_on))
        else:
            finished.set()

    go_on()
    assert finished.wait(20)
    assert b"".join(bytes(read.view) for read in reads) == DATA[:200]


def test_waiting_inside_the_loop_is_refused_not_deadlocked(scripted: Scripted, storage: Storage) -> None:
    source = scripted(storage.get)
    caught: list[BaseException] = []
    waiting = source.start([read_of("a", 0, 10)], timeout=20)
    assert storage.begun.acquire(timeout=20)

    def wait() -> None:
        try:
            waiting.result()
        except ConfigError as error:
            caught.append(error)
        storage.gate.set()

    source.wire.loop.call_soon_threadsafe(wait)
    assert waiting.wait(20)
    assert len(caught) == 1


def test_what_on_done_raises_is_reported_and_harms_nobody(
    scripted: Scripted, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[object] = []
    monkeypatch.setattr("sys.excepthook", lambda kind, error, trace: reported.append(kind))
    storage.gate.set()
    source = scripted(storage.get)
    flight = source.start([read_of("a", 0, 10)], timeout=20, on_done=lambda: 1 // 0)
    assert flight.result() == {}
    deadline = time.monotonic() + 20
    while not reported and time.monotonic() < deadline:
        time.sleep(0.001)
    assert reported == [ZeroDivisionError]
    source.run([read_of("a", 0, 10)], timeout=20)


def test_urgent_requests_pass_those_that_wait(scripted: Scripted, storage: Storage) -> None:
    source = scripted(storage.get, concurrency=1)
    flights = [source.start([read_of("a", 0, 10)], timeout=30)]
    assert storage.begun.acquire(timeout=20)
    flights += [source.start([read_of("a", i, 10)], timeout=30) for i in (100, 200)]
    flights += [source.start([read_of("a", i, 10)], timeout=30, urgent=True) for i in (300, 400)]
    storage.gate.set()
    for flight in flights:
        flight.result()
    assert storage.order == [0, 300, 400, 100, 200]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_flight_is_dead_in_a_forked_child(scripted: Scripted, storage: Storage) -> None:
    source = scripted(storage.get)
    read = read_of("a", 0, 10)
    ends: list[int] = []
    flight = source.start([read], timeout=60, on_done=lambda: ends.append(1))
    assert storage.begun.acquire(timeout=20)
    pid = os.fork()
    if not pid:
        code = 1
        try:
            ok = flight.done() and flight.wait(0)
            flight.cancel()
            try:
                flight.result()
            except FetchError as error:
                ok = ok and "forked" in str(error)
            else:
                ok = False
            del flight
            gc.collect()
            code = 0 if ok and not ends else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    storage.gate.set()
    assert flight.result() == {}
    assert bytes(read.view) == DATA[:10]


def test_an_outcome_is_told_once() -> None:
    ends: list[int] = []
    outcome = Outcome(lambda: ends.append(1))
    wave = Wave(outcome, "somewhere", 1.0)
    first = [outcome.settle({"a": 1}), outcome.settle(error=FetchError("late"))]
    assert first == [True, False]
    assert wave.result() == {"a": 1}
    assert ends == [1]


@pytest.mark.parametrize("kind", ["http", "s3", "obstore-http", "memory", "faulty"])
def test_many_flights_over_real_connections(
    kind: str, open_kind: Callable[..., Any], objects: dict[str, bytes], served: Path
) -> None:
    source = open_kind(kind, max_in_flight_bytes=1 << 20)
    reads = [read_of("big.bin", i * 70_000, 70_000) for i in range(60)]
    under_way = [source.start(reads[i : i + 3], timeout=60) for i in range(0, 60, 3)]
    for i, flight in enumerate(under_way):
        if i % 4 == 3:
            flight.cancel()
            copies = [bytes(read.view) for read in reads[3 * i : 3 * i + 3]]
            under_way[i] = copies
    for flight in under_way:
        if not isinstance(flight, list):
            flight.result()
    for i in range(20):
        for k, read in enumerate(reads[3 * i : 3 * i + 3]):
            expected = under_way[i][k] if i % 4 == 3 else objects["big.bin"][read.begin : read.end]
            assert bytes(read.view) == expected
    settled_down(source)
    assert source.counters.in_flight_peak <= 1 << 20
