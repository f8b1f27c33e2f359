"""``SegmentedSource``: objects put together from parts of others read as if they were stored."""

from __future__ import annotations

import gc
import os
import random
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazystore.errors import ClosedError, DatasetNotFoundError, FetchError, FormatError, SourceChangedError
from lazystore.fetch.flight import Outcome, Wave
from lazystore.fetch.local import LocalSource
from lazystore.fetch.segments import Segment, SegmentedSource, Span
from lazystore.fetch.source import FetchCounters, Read

DATA = random.Random(0).randbytes(5000)
TABLE = struct.pack("<50I", *range(0, 5000, 100))


class Gated:
    """A remote source whose flights end when they are told to."""

    local = False
    memory = 0

    def __init__(self, data: bytes) -> None:
        self.url = "gated://place"
        self.counters = FetchCounters()
        self.data = data
        self.flights: list[tuple[GatedFlight, Sequence[Read], dict[str, int]]] = []
        self.ended = 0
        self.closed = False

    def start(
        self,
        reads: Sequence[Read],
        *,
        stat: Any = (),
        timeout: float,
        urgent: bool = False,
        on_done: Callable[[], None] | None = None,
    ) -> GatedFlight:
        if self.closed:
            raise ClosedError("closed")
        flight = GatedFlight(Outcome(on_done), self.url, timeout, self)
        # only what a real engine keeps: not the flight
        self.flights.append((flight.outcome, list(reads), dict.fromkeys(stat, len(self.data))))  # type: ignore[arg-type]
        return flight

    def run(self, reads: Sequence[Read], *, stat: Any = (), timeout: float) -> dict[str, int]:
        flight = self.start(reads, stat=stat, timeout=timeout)
        self.land()
        return flight.result()

    def land(self, error: BaseException | None = None) -> None:
        """End all flights under way."""
        flights, self.flights = self.flights, []
        for outcome, reads, sizes in flights:
            if outcome.settled:
                continue
            for read in reads:
                data = self.data[read.begin : read.end]
                read.view[: len(data)] = data
                read.got = len(data)
            outcome.settle(sizes, error)

    def close(self) -> None:
        self.closed = True


class GatedFlight(Wave):
    __slots__ = ("_owner",)

    def __init__(self, outcome: Outcome, url: str, timeout: float, owner: Gated) -> None:
        super().__init__(outcome, url, timeout)
        self._owner = owner

    def _halt(self) -> None:
        self._owner.ended += 1

    def __del__(self) -> None:
        if not self.done():
            self._owner.ended += 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").write_bytes(DATA)
    (tmp_path / "table").write_bytes(TABLE)
    return tmp_path


@pytest.fixture
def local(folder: Path) -> Iterator[LocalSource]:
    source = LocalSource(str(folder))
    yield source
    source.close()


def read(name: str, begin: int, end: int) -> Read:
    return Read(name, begin, memoryview(bytearray(end - begin)))


def chunk(table: Any = None, shift: int = 204) -> list[Segment]:
    return [struct.pack("<I", 49), Span("table", 0, 200, table, shift), Span("data", 0, 4900)]


WHOLE = struct.pack("<51I", 49, *(204 + i for i in range(0, 5000, 100))) + DATA[:4900]


# -- what is read ---------------------------------------------------------------------------


def test_an_object_reads_as_its_parts_joined(local: LocalSource) -> None:
    source = SegmentedSource(local, {"v": chunk()})
    one = read("v", 0, len(WHOLE))
    assert source.run([one], stat=["v"], timeout=5) == {"v": len(WHOLE)}
    assert bytes(one.view) == WHOLE and one.got == len(WHOLE)
    assert source.read_all("v", limit=len(WHOLE), timeout=5) == WHOLE


@given(st.data())
def test_any_ranges_of_any_parts_at_once_are_those_of_the_joined_bytes(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("s")
    (folder / "data").write_bytes(DATA)
    (folder / "table").write_bytes(TABLE)
    local = LocalSource(str(folder))
    side = LocalSource(str(folder))
    segments: list[Segment] = []
    whole = b""
    for _ in range(data.draw(st.integers(0, 6))):
        kind = data.draw(st.sampled_from(["bytes", "span", "shifted"]))
        source = data.draw(st.sampled_from([None, side]))
        if kind == "bytes":
            segments.append(data.draw(st.binary(max_size=20)))
            whole += segments[-1]
        elif kind == "span":
            begin = data.draw(st.integers(0, 4990))
            nbytes = data.draw(st.integers(0, min(60, 5000 - begin)))
            segments.append(Span("data", begin, nbytes, source))
            whole += DATA[begin : begin + nbytes]
        else:
            first, n = data.draw(st.integers(0, 40)), data.draw(st.integers(0, 9))
            by = data.draw(st.integers(0, 1 << 31))
            segments.append(Span("table", 4 * first, 4 * n, source, by))
            whole += struct.pack(f"<{n}I", *(100 * i + by for i in range(first, first + n)))
    source = SegmentedSource(local, lambda name: segments if name == "v" else None, [side])
    ranges = data.draw(
        st.lists(st.tuples(st.integers(0, len(whole)), st.integers(0, len(whole))).map(sorted), max_size=5)
    )
    reads = [read("v", begin, end) for begin, end in ranges] + [read("data", 7, 19)]
    if data.draw(st.booleans()):
        source.run(reads, timeout=5)
    else:
        source.start(reads, timeout=5).result()
    assert [bytes(r.view) for r in reads] == [whole[begin:end] for begin, end in ranges] + [DATA[7:19]]
    assert all(r.got == len(r.view) for r in reads)
    past = read("v", max(0, len(whole) - 3), len(whole) + 4)
    assert source.run([past], stat=["v", "data"], timeout=5) == {"v": len(whole), "data": 5000}
    assert bytes(past.view[: past.got]) == whole[past.begin :]
    source.close()


def test_bytes_go_straight_into_the_readers_buffer(local: LocalSource, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Read] = []
    run = local.run
    monkeypatch.setattr(local, "run", lambda reads, **more: (seen.extend(reads), run(reads, **more))[1])
    buffer = bytearray(len(WHOLE))
    SegmentedSource(local, {"v": chunk()}).run([Read("v", 0, memoryview(buffer))], timeout=5)
    assert bytes(buffer) == WHOLE
    assert len(seen) == 2 and all(one.view.obj is buffer for one in seen)


def test_plain_names_pass_through_untouched(local: LocalSource) -> None:
    source = SegmentedSource(local, {"v": chunk()})
    one = read("data", 10, 20)
    assert source.run([one], stat=["data"], timeout=5) == {"data": 5000}
    assert bytes(one.view) == DATA[10:20]
    assert source.read_all("table", limit=1000, timeout=5) == TABLE
    with pytest.raises(DatasetNotFoundError):
        source.run([read("nothing", 0, 1)], timeout=5)


# -- ends and errors ------------------------------------------------------------------------


def test_reading_past_the_end_needs_the_size_to_be_asked_for(local: LocalSource) -> None:
    source = SegmentedSource(local, {"v": chunk()})
    with pytest.raises(FetchError, match="ends at byte 5104"):
        source.run([read("v", 5000, 5105)], timeout=5)
    with pytest.raises(FetchError, match="ends at byte 5104"):
        source.start([read("v", 5000, 5105)], timeout=5).result()


def test_an_object_ends_where_a_stored_one_is_too_short_for_it(local: LocalSource) -> None:
    source = SegmentedSource(local, {"v": [b"head", Span("data", 4990, 100), b"tail"]})
    one = read("v", 0, 108)
    assert source.run([one], stat=["v"], timeout=5) == {"v": 14}
    assert one.got == 14 and bytes(one.view[:14]) == b"head" + DATA[4990:]
    with pytest.raises(FetchError, match="truncated"):
        source.run([read("v", 0, 108)], timeout=5)


@pytest.mark.parametrize("shift", [-1, (1 << 32) - 4900])
def test_entries_that_leave_32_bits_are_damage(local: LocalSource, shift: int) -> None:
    source = SegmentedSource(local, {"v": chunk(shift=shift)})
    with pytest.raises(FormatError, match="leave 32 bits"):
        source.run([read("v", 0, 204)], timeout=5)
    with pytest.raises(FormatError, match="leave 32 bits"):
        source.start([read("v", 0, 204)], timeout=5).result()


def test_entries_may_be_shifted_down(local: LocalSource) -> None:
    source = SegmentedSource(local, {"v": [Span("table", 40, 40, None, -1000)]})
    assert source.read_all("v", limit=40, timeout=5) == struct.pack("<10I", *range(0, 1000, 100))


def test_a_changed_file_is_noticed_through_the_joint(local: LocalSource, folder: Path) -> None:
    source = SegmentedSource(local, {"v": chunk()})
    source.run([], stat=["v"], timeout=5)
    (folder / "data").write_bytes(DATA[::-1] + b"more")
    os.utime(folder / "data", ns=(1, 1))
    with pytest.raises(SourceChangedError):
        source.run([read("v", 300, 400)], timeout=5)


def test_more_than_the_limit_is_not_read(local: LocalSource) -> None:
    with pytest.raises(FetchError, match="has 5104 bytes"):
        SegmentedSource(local, {"v": chunk()}).read_all("v", limit=5103, timeout=5)


# -- flights --------------------------------------------------------------------------------


@pytest.fixture
def far() -> Gated:
    return Gated(DATA)


def test_a_flight_ends_when_the_slowest_source_has_answered(far: Gated, local: LocalSource) -> None:
    source = SegmentedSource(far, {"v": chunk(local)}, [local])
    one, done = read("v", 0, len(WHOLE)), threading.Event()
    flight = source.start([one], stat=["v"], timeout=5, on_done=done.set)
    assert not flight.done() and not done.is_set()
    far.land()
    assert flight.done() and done.is_set()
    assert flight.result() == {"v": len(WHOLE)}
    assert bytes(one.view) == WHOLE and one.got == len(WHOLE)


def test_a_run_over_two_sources_reads_both(far: Gated, local: LocalSource) -> None:
    source = SegmentedSource(far, {"v": chunk(local)}, [local])
    one = read("v", 0, len(WHOLE))
    landing = threading.Timer(0.05, far.land)
    landing.start()
    assert source.run([one], stat=["v"], timeout=5) == {"v": len(WHOLE)}
    assert bytes(one.view) == WHOLE
    landing.join()


def test_the_error_of_one_source_is_the_flights(far: Gated, local: LocalSource) -> None:
    source = SegmentedSource(far, {"v": chunk(local)}, [local])
    calls: list[int] = []
    flight = source.start([read("v", 0, 300)], timeout=5, on_done=lambda: calls.append(1))
    far.land(FetchError("broken"))
    with pytest.raises(FetchError, match="broken"):
        flight.result()
    assert calls == [1]


def test_nothing_is_written_after_a_flight_was_cancelled(far: Gated) -> None:
    source = SegmentedSource(far, {"v": [Span("t", 1, 40, None, 5)]})
    one, calls = read("v", 1, 30), []
    flight = source.start([one], timeout=5, on_done=lambda: calls.append(1))
    flight.cancel()
    flight.cancel()
    far.land()
    assert bytes(one.view) == bytes(29) and one.got == 0
    assert flight.done() and calls == [1] and far.ended == 1
    with pytest.raises(FetchError, match="cancelled"):
        flight.result()


def test_a_forgotten_flight_is_cancelled(far: Gated) -> None:
    source = SegmentedSource(far, {"v": [Span("t", 0, 40, None, 5)]})
    flight = source.start([read("v", 0, 40)], timeout=5)
    del flight
    gc.collect()
    assert far.ended == 1
    far.land()  # must not fail in the thread of the source


def test_a_source_that_cannot_begin_takes_back_what_the_other_began(far: Gated, local: LocalSource) -> None:
    source = SegmentedSource(far, {"v": [Span("data", 0, 10), Span("table", 0, 8, local)]}, [local])
    local.close()
    with pytest.raises(ClosedError):
        source.start([read("v", 0, 18)], timeout=5)
    assert far.ended == 1
    with pytest.raises(ClosedError):
        source.run([read("v", 0, 18)], timeout=5)
    assert far.ended == 2


def test_the_flight_of_another_process_is_dead(far: Gated) -> None:
    source = SegmentedSource(far, {"v": [Span("t", 0, 40)]})
    flight = source.start([read("v", 0, 40)], timeout=5)
    pid = os.fork()
    if not pid:
        code = 1
        try:
            flight.result()
        except FetchError:
            code = 0 if flight.done() else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_closing_closes_all_and_resetting_reaches_all(local: LocalSource, folder: Path) -> None:
    side = LocalSource(str(folder))
    source = SegmentedSource(local, {"v": chunk(side)}, [side])
    source.reset_after_fork()
    assert source.read_all("v", limit=9999, timeout=5) == WHOLE
    assert source.local and source.url == local.url and source.counters is local.counters
    source.close()
    for one in (local, side):
        with pytest.raises(ClosedError):
            one.run([read("data", 0, 1)], timeout=5)
