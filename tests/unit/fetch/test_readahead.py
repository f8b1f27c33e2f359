"""Flights of local files: at once where no disk is needed, else by one thread that ends with the source."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lazystore.errors import ClosedError, DatasetNotFoundError, FetchError, SourceChangedError
from lazystore.fetch import local, readahead
from lazystore.fetch.local import LocalSource
from lazystore.fetch.source import Read

BIG = 3 << 20
DATA = random.Random(3).randbytes(BIG)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "big").write_bytes(DATA)
    (tmp_path / "small").write_bytes(DATA[:1000])
    return tmp_path


@pytest.fixture
def source(folder: Path) -> Iterator[LocalSource]:
    opened = LocalSource(str(folder))
    yield opened
    opened.close()


@pytest.fixture
def cold(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nothing were in the page cache."""
    monkeypatch.setattr(local, "NOWAIT", 0)


class Disk:
    """``os.preadv`` that waits for a test while ``free`` is not set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free = threading.Event()
        self.begun = threading.Semaphore(0)
        self.threads: list[str] = []
        self._preadv = os.preadv
        monkeypatch.setattr(os, "preadv", self)

    def __call__(self, fd: int, views: list[memoryview], position: int, *flags: int) -> int:
        self.threads.append(threading.current_thread().name)
        self.begun.release()
        assert self.free.wait(20)
        return self._preadv(fd, views, position, *flags)


def read(name: str, begin: int, end: int) -> Read:
    return Read(name, begin, memoryview(bytearray(end - begin)))


def right(reads: list[Read]) -> bool:
    return all(bytes(one.view) == DATA[one.begin : one.end] and one.got == len(one.view) for one in reads)


def reading_threads() -> int:
    return sum(thread.name == "lazystore-readahead" for thread in threading.enumerate())


def test_small_reads_are_done_at_once_and_without_a_thread(source: LocalSource, cold: None) -> None:
    ends: list[str] = []
    reads = [read("big", 10, 5000), read("small", 0, 1000), read("big", 2 << 20, (2 << 20) + 7)]
    flight = source.start(
        reads, stat=["small"], timeout=5, on_done=lambda: ends.append(threading.current_thread().name)
    )
    assert flight.done()
    assert flight.result() == {"small": 1000}
    assert right(reads)
    assert ends == [threading.current_thread().name]
    assert reading_threads() == 0


@pytest.mark.skipif(not local.NOWAIT, reason="the system cannot tell what is in its page cache")
def test_what_is_in_the_page_cache_is_done_at_once_where_the_filesystem_tells(
    source: LocalSource, folder: Path
) -> None:
    with (folder / "big").open("rb") as file:
        try:
            told = os.preadv(file.fileno(), [bytearray(BIG)], 0, local.NOWAIT) == BIG
        except OSError:
            told = False
    reads = [read("big", 0, 1 << 20), read("big", 1 << 20, BIG)]
    flight = source.start(reads, timeout=5)
    assert flight.done() is told or flight.wait(20)
    flight.result()
    assert right(reads)
    assert reading_threads() == (0 if told else 1)


def test_the_rest_is_read_by_one_thread_that_close_joins(source: LocalSource, cold: None) -> None:
    reads = [[read("big", i * 1000, i * 1000 + (1 << 20)), read("small", 0, 10)] for i in range(30)]
    flights = [source.start(some, stat=["big"], timeout=20) for some in reads]
    assert reading_threads() == 1
    assert all(flight.result() == {"big": BIG} for flight in flights)
    assert all(right(some) for some in reads)
    assert source.counters.bytes_fetched == sum(one.got for some in reads for one in some)
    source.close()
    assert reading_threads() == 0


def test_the_caller_goes_on_while_the_disk_is_busy(
    source: LocalSource, cold: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    reads = [read("big", 0, BIG)]
    flight = source.start(reads, timeout=20)
    assert disk.begun.acquire(timeout=20)
    assert not flight.done()
    assert not flight.wait(0.01)
    disk.free.set()
    flight.result()
    assert right(reads)
    assert set(disk.threads) == {"lazystore-readahead"}


def test_urgent_flights_are_read_before_those_that_wait(
    source: LocalSource, cold: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    order: list[str] = []
    flights = [source.start([read("big", 0, BIG)], timeout=20, on_done=lambda: order.append("first"))]
    assert disk.begun.acquire(timeout=20)
    flights.append(source.start([read("big", 0, BIG)], timeout=20, on_done=lambda: order.append("later")))
    flights.append(source.start([read("big", 0, BIG)], timeout=20, urgent=True, on_done=lambda: order.append("now")))
    disk.free.set()
    for flight in flights:
        assert flight.wait(20)
    assert order == ["first", "now", "later"]


def test_a_cancelled_flight_lands_nothing_more(
    source: LocalSource, cold: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    busy = source.start([read("big", 0, BIG)], timeout=20)
    assert disk.begun.acquire(timeout=20)
    waiting = [read("big", 0, BIG)]
    flight = source.start(waiting, timeout=20)
    flight.cancel()
    assert flight.done()
    disk.free.set()
    assert busy.wait(20)
    with pytest.raises(FetchError, match="cancelled"):
        flight.result()
    source.close()
    assert not any(waiting[0].view)


def test_cancelling_in_the_midst_of_a_read_stops_after_the_piece(
    source: LocalSource, cold: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readahead, "PIECE", 1 << 20)
    disk = Disk(monkeypatch)
    one = read("big", 0, BIG)
    flight = source.start([one], timeout=20)
    assert disk.begun.acquire(timeout=20)
    canceller = threading.Thread(target=flight.cancel)
    canceller.start()
    canceller.join(0.05)
    disk.free.set()
    canceller.join(20)
    before = bytes(one.view)
    source.close()
    assert bytes(one.view) == before
    assert before[2 << 20 :] == bytes(1 << 20)


def test_a_forgotten_flight_is_not_read(source: LocalSource, cold: None, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    busy = source.start([read("big", 0, BIG)], timeout=20)
    assert disk.begun.acquire(timeout=20)
    one, ended = read("big", 0, BIG), threading.Event()
    flight = source.start([one], timeout=20, on_done=ended.set)
    del flight
    gc.collect()
    disk.free.set()
    assert busy.wait(20)
    assert ended.wait(20)
    assert not any(one.view)


def test_errors_are_those_of_run(source: LocalSource, folder: Path, cold: None) -> None:
    ends: list[int] = []

    def begin(*reads: Read, **options: Any) -> Any:
        return source.start(reads, timeout=20, on_done=lambda: ends.append(1), **options)

    with pytest.raises(DatasetNotFoundError, match="nothing does not exist"):
        begin(read("nothing", 0, 10)).result()
    with pytest.raises(FetchError, match=f"big ends at byte {BIG}"):
        begin(read("big", 5, BIG + 5)).result()
    early = read("big", 5, BIG + 5)
    assert begin(early, stat=["big"]).result() == {"big": BIG}
    assert early.got == BIG - 5
    later = (folder / "big").stat().st_mtime_ns + 10**9
    os.utime(folder / "big", ns=(later, later))
    with pytest.raises(SourceChangedError):
        begin(read("big", 0, BIG)).result()
    assert len(ends) == 4


def test_closing_ends_what_waits_and_refuses_what_comes(
    source: LocalSource, cold: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    flights = [source.start([read("big", 0, BIG)], timeout=20) for _ in range(5)]
    assert disk.begun.acquire(timeout=20)
    closer = threading.Thread(target=source.close)
    closer.start()
    while not source._closed:
        pass
    disk.free.set()
    closer.join(20)
    assert all(flight.wait(20) for flight in flights)
    flights[0].result()  # its bytes were on their way
    for flight in flights[1:]:
        with pytest.raises(ClosedError):
            flight.result()
    with pytest.raises(ClosedError):
        source.start([read("small", 0, 10)], timeout=5)


def test_a_forgotten_source_ends_its_thread(folder: Path, cold: None) -> None:
    source = LocalSource(str(folder))
    source.start([read("big", 0, BIG)], timeout=20).result()
    threads = [thread for thread in threading.enumerate() if thread.name == "lazystore-readahead"]
    assert len(threads) == 1
    del source
    gc.collect()
    threads[0].join(20)
    assert not threads[0].is_alive()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_reads_ahead_with_a_thread_of_its_own(source: LocalSource, cold: None) -> None:
    reads = [read("big", 0, BIG)]
    source.start(reads, timeout=20).result()
    pid = os.fork()
    if not pid:
        code = 1
        with contextlib.suppress(BaseException):
            again = [read("big", 7, BIG)]
            source.start(again, timeout=20).result()
            code = 0 if right(again) else 2
            source.close()
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    again = [read("big", 7, BIG)]
    source.start(again, timeout=20).result()
    assert right(again)
