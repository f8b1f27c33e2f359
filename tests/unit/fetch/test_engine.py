"""What the engine promises whatever the storage: checked bytes, bounded flight, one deadline, typed errors."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import pickle
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from lazystore.errors import (
    ClosedError,
    ConfigError,
    DatasetNotFoundError,
    FetchError,
    FetchTimeoutError,
    SourceChangedError,
)
from lazystore.fetch import engine
from lazystore.fetch.plan import PART_BYTES
from lazystore.fetch.retry import RetryPolicy, Verdict, WireError
from lazystore.fetch.source import Read
from lazystore.fetch.wire import UNKNOWN, Identity, Landing

DATA = bytes(range(256)) * 40
TAG = '"v1"'

Scripted = Callable[..., Any]


def read_of(name: str, begin: int, length: int) -> Read:
    return Read(name, begin, memoryview(bytearray(length)))


async def answer(
    name: str, begin: int, end: int, pinned: Identity | None, landing: Landing, *, data: bytes = DATA, tag: str = TAG
) -> None:
    """What a good storage says: identity first, then the bytes in two pieces."""
    if end < 0:
        end = len(data)
    elif begin >= len(data):
        raise WireError(Verdict.BEYOND, "HTTP 416")
    end = min(end, len(data))
    landing.answered(begin, end, Identity(len(data), tag))
    middle = (begin + end) // 2
    landing.write(data[begin:middle])
    await asyncio.sleep(0)
    landing.write(data[middle:end])


async def blunt(name: str, begin: int, end: int, pinned: Identity | None, landing: Landing) -> None:
    """A storage that gives bytes and tells nothing."""
    landing.write(DATA[begin:end])


async def size_of_data(name: str) -> Identity:
    return Identity(len(DATA), TAG)


def test_bytes_land_in_the_callers_buffers(scripted: Scripted) -> None:
    source = scripted(answer)
    reads = [read_of("a", 0, 10), read_of("b", 100, 1000), read_of("a", 10_000, 240)]
    assert source.run(reads, timeout=10) == {}
    for read in reads:
        assert read.got == len(read.view)
        assert bytes(read.view) == DATA[read.begin : read.end]
    assert source.counters.requests == 3
    assert source.counters.bytes_fetched == 1250
    assert source.counters.waves == 1


def test_sizes_are_told_by_the_reads_of_the_same_wave(scripted: Scripted) -> None:
    source = scripted(answer, size_of_data)
    assert source.run([read_of("a", 0, 10)], stat=["a", "b"], timeout=10) == {"a": len(DATA), "b": len(DATA)}
    assert source.wire.heads == ["b"]
    assert source.run([], stat=["a", "b"], timeout=10) == {"a": len(DATA), "b": len(DATA)}
    assert source.wire.heads == ["b"]
    assert source.counters.waves == 1


def test_a_read_may_end_early_when_its_size_is_asked_for(scripted: Scripted) -> None:
    source = scripted(answer, size_of_data)
    inside, across, beyond = read_of("a", 0, 10), read_of("a", len(DATA) - 5, 50), read_of("a", len(DATA) + 5, 50)
    source.run([inside, across, beyond], stat=["a"], timeout=10)
    assert (inside.got, across.got, beyond.got) == (10, 5, 0)
    assert bytes(across.view[:5]) == DATA[-5:]


def test_an_unknown_object_entirely_beyond_its_end(scripted: Scripted) -> None:
    source = scripted(answer, size_of_data)
    read = read_of("a", len(DATA), 5)
    assert source.run([read], stat=["a"], timeout=10) == {"a": len(DATA)}
    assert read.got == 0


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("begin", [len(DATA) - 5, len(DATA) + 5])
def test_a_read_beyond_the_end_is_an_error_otherwise(scripted: Scripted, known: bool, begin: int) -> None:
    source = scripted(answer, size_of_data)
    if known:
        source.run([], stat=["a"], timeout=10)
    with pytest.raises(FetchError, match=f"ends at byte {len(DATA)}") as caught:
        source.run([read_of("a", begin, 50)], timeout=10)
    assert (caught.value.begin, caught.value.end) == (begin, begin + 50)
    assert caught.value.url == "scripted://a"


def test_blunt_answers_are_measured_against_the_size(scripted: Scripted) -> None:
    source = scripted(blunt, size_of_data, tells=False, streams=False)
    across = read_of("a", len(DATA) - 5, 50)
    assert source.run([across], stat=["a"], timeout=10) == {"a": len(DATA)}
    assert across.got == 5
    fresh = scripted(blunt, size_of_data, tells=False, streams=False)
    with pytest.raises(FetchError, match=f"ends at byte {len(DATA)}"):
        fresh.run([read_of("a", len(DATA) - 5, 50)], timeout=10)


@pytest.mark.parametrize("begin", [0, 50])
def test_a_blunt_storage_that_ignores_the_range_is_found_out(scripted: Scripted, begin: int) -> None:
    async def whole(name: str, begin: int, end: int, pinned: Identity | None, landing: Landing) -> None:
        landing.write(DATA[:100])

    async def size(name: str) -> Identity:
        return Identity(100)

    source = scripted(whole, size, tells=False)
    with pytest.raises(FetchError, match="ignores Range"):
        source.run([read_of("a", begin, 60)], timeout=10)
    with pytest.raises(FetchError, match="ignores Range"):
        source.run([read_of("a", 30, 200)], stat=["a"], timeout=10)  # the whole object would fit


def test_long_reads_travel_in_parallel_parts(scripted: Scripted) -> None:
    data = os.urandom(3 * PART_BYTES + 17)

    async def big(name: str, begin: int, end: int, pinned: Identity | None, landing: Landing) -> None:
        await answer(name, begin, end, pinned, landing, data=data)

    source = scripted(big)
    read = read_of("a", 0, len(data))
    source.run([read], timeout=30)
    assert bytes(read.view) == data
    assert len(source.wire.gets) == 4
    assert max(end - begin for _, begin, end, _ in source.wire.gets) <= PART_BYTES


def test_bytes_in_flight_stay_within_the_bound(scripted: Scripted) -> None:
    under_way = [0, 0]

    async def slow(name: str, begin: int, end: int, pinned: Identity | None, landing: Landing) -> None:
        under_way[0] += end - begin
        under_way[1] = max(under_way)
        await asyncio.sleep(0.002)
        under_way[0] -= end - begin
        await answer(name, begin, end, pinned, landing)

    source = scripted(slow, max_in_flight_bytes=1000)
    reads = [read_of("a", 0, 5000), *(read_of("a", i, 300) for i in range(20))]
    source.run(reads, timeout=30)
    assert all(bytes(read.view) == DATA[read.begin : read.end] for read in reads)
    assert 600 <= under_way[1] <= 1000
    assert source.counters.in_flight_peak == under_way[1]
    assert source.counters.in_flight_bytes == 0


@pytest.mark.parametrize("bounds", [{"concurrency": 5}, {"concurrency": 50, "connections": 5}])
def test_requests_at_once_stay_within_the_bound_across_threads(scripted: Scripted, bounds: dict[str, int]) -> None:
    under_way = [0, 0]

    async def slow(name: str, begin: int, end: int, pinned: Identity | None, landing: Landing) -> None:
        under_way[0] += 1
        under_way[1] = max(under_way)
        await asyncio.sleep(0.002)
        under_way[0] -= 1
        await answer(name, begin, end, pinned, landing)

    source = scripted(slow, **bounds)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            reads = [read_of("a", i, 10) for i in range(20)]
            source.run(reads, timeout=30)
            assert all(bytes(read.view) == DATA[read.begin : read.end] for read in reads)
        except BaseException as error:  # noqa: BLE001 - reported by the main thread
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert under_way[1] == 5


def failing_first(failures: list[Exception]) -> Any:
    """A good storage whose first answers are these failures."""
    left = list(failures)

    async def get(name: str, begin: int, end: int, pinned: Identity | None, landing: Landing) -> None:
        if left:
            raise left.pop(0)
        await answer(name, begin, end, pinned, landing)

    return get


def test_what_may_pass_is_retried(scripted: Scripted) -> None:
    source = scripted(failing_first([WireError(Verdict.RETRY, "503"), ConnectionResetError(), TimeoutError()]))
    read = read_of("a", 5, 10)
    source.run([read], timeout=30)
    assert bytes(read.view) == DATA[5:15]
    assert (source.counters.requests, source.counters.retries) == (4, 3)


@pytest.mark.parametrize(
    ("failure", "kind", "words"),
    [
        (WireError(Verdict.MISSING, "HTTP 404"), DatasetNotFoundError, "check the URL"),
        (FileNotFoundError("gone"), DatasetNotFoundError, "gone"),
        (PermissionError("no"), FetchError, "storage_options"),
        (WireError(Verdict.CHANGED, "HTTP 412"), SourceChangedError, "open it again"),
        (ValueError("strange"), FetchError, "ValueError: strange"),
    ],
)
def test_what_cannot_pass_is_raised_at_once(
    scripted: Scripted, failure: Exception, kind: type[Exception], words: str
) -> None:
    source = scripted(failing_first([failure]))
    with pytest.raises(kind, match=words) as caught:
        source.run([read_of("a", 5, 10)], timeout=30)
    assert "scripted://a bytes 5-15" in str(caught.value)
    assert source.counters.requests == 1
    if isinstance(caught.value, FetchError):
        assert (caught.value.url, caught.value.begin, caught.value.end) == ("scripted://a", 5, 15)
        assert caught.value.attempts == 1


def test_where_nobody_listens_a_few_attempts_are_enough(scripted: Scripted) -> None:
    source = scripted(failing_first([ConnectionRefusedError(111, "refused")] * 50))
    with pytest.raises(FetchError, match="check the host") as caught:
        source.run([read_of("a", 0, 10)], timeout=30)
    assert caught.value.attempts == RetryPolicy().brief_attempts
    assert not isinstance(caught.value, FetchTimeoutError)


def test_the_deadline_ends_the_attempts_and_says_why(scripted: Scripted) -> None:
    async def never(name: str, begin: int, end: int, pinned: Identity | None, landing: Landing) -> None:
        raise WireError(Verdict.RETRY, "HTTP 503 Slow Down")

    source = scripted(never, policy=RetryPolicy(base_s=0.01))
    with pytest.raises(FetchTimeoutError, match="HTTP 503 Slow Down") as caught:
        source.run([read_of("a", 5, 10)], timeout=0.3)
    error = caught.value
    assert error.attempts >= 2
    assert error.attempts == source.counters.requests
    assert (error.url, error.begin, error.end) == ("scripted://a", 5, 15)
    assert 0 < error.elapsed < 10


def test_a_silent_request_is_cancelled_at_the_deadline(scripted: Scripted) -> None:
    cancelled = threading.Event()

    async def silent(name: str, begin: int, end: int, pinned: Identity | None, landing: Landing) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    source = scripted(silent)
    with pytest.raises(FetchTimeoutError, match="none was answered"):
        source.run([read_of("a", 0, 10)], timeout=0.1)
    assert cancelled.wait(10)
    assert source.counters.in_flight_bytes == 0


def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lazystore.fetch.retry.PATIENCE_UNKNOWN_S", 0.05)


def test_a_stalled_request_is_abandoned_and_sent_again(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch)
    calls = [0]

    async def stalls_once(name: str, begin: int, end: int, pinned: Identity | None, landing: Landing) -> None:
        calls[0] += 1
        if calls[0] == 1:
            landing.answered(begin, end, Identity(len(DATA), TAG))
            landing.write(DATA[begin : begin + 3])
            await asyncio.Event().wait()
        await answer(name, begin, end, pinned, landing)

    source = scripted(stalls_once)
    read = read_of("a", 5, 10)
    source.run([read], timeout=30)
    assert bytes(read.view) == DATA[5:15]
    assert source.counters.extra["stalls"] == 1
    # The identity is sure, so the second request asks for the rest only.
    assert [(begin, end) for _, begin, end, _ in source.wire.gets] == [(5, 15), (8, 15)]


def test_slow_but_steady_answers_are_not_abandoned(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lazystore.fetch.retry.PATIENCE_UNKNOWN_S", 0.5)

    async def steady(name: str, begin: int, end: int, pinned: Identity | None, landing: Landing) -> None:
        landing.answered(begin, end, Identity(len(DATA), TAG))
        for at in range(begin, end):
            await asyncio.sleep(0.05)
            landing.write(DATA[at : at + 1])

    source = scripted(steady)
    read = read_of("a", 0, 25)  # 1.25 s in all, more than twice the patience
    source.run([read], timeout=60)
    assert bytes(read.view) == DATA[:25]
    assert source.counters.requests == 1


def test_half_an_answer_without_identity_is_not_continued(scripted: Scripted) -> None:
    calls = [0]

    async def cut_once(name: str, begin: int, end: int, pinned: Identity | None, landing: Landing) -> None:
        calls[0] += 1
        landing.answered(begin, end, Identity(UNKNOWN))
        landing.write(DATA[begin : end - 4] if calls[0] == 1 else DATA[begin:end])
        if calls[0] == 1:
            raise ConnectionResetError("cut")

    source = scripted(cut_once, size_of_data)
    read = read_of("a", 5, 10)
    source.run([read], timeout=30)
    assert bytes(read.view) == DATA[5:15]
    assert [(begin, end) for _, begin, end, _ in source.wire.gets] == [(5, 15), (5, 15)]


def test_a_short_answer_is_repeated_not_passed_on(scripted: Scripted) -> None:
    calls = [0]

    async def short_once(name: str, begin: int, end: int, pinned: Identity | None, landing: Landing) -> None:
        calls[0] += 1
        landing.write(DATA[begin : end - 3] if calls[0] == 1 else DATA[begin:end])

    source = scripted(short_once, size_of_data, tells=False, streams=False)
    read = read_of("a", 5, 10)
    source.run([read], timeout=30)
    assert bytes(read.view) == DATA[5:15]
    assert source.counters.retries == 1


def test_a_client_that_cancels_by_itself_does_not_pass_for_success(scripted: Scripted) -> None:
    calls = [0]

    async def cancels_once(name: str, begin: int, end: int, pinned: Identity | None, landing: Landing) -> None:
        calls[0] += 1
        if calls[0] == 1:
            raise asyncio.CancelledError("inside the client")
        await answer(name, begin, end, pinned, landing)

    source = scripted(cancels_once)
    read = read_of("a", 5, 10)
    source.run([read], timeout=30)
    assert bytes(read.view) == DATA[5:15]
    assert source.counters.retries == 1


@pytest.mark.parametrize(("first", "last"), [(6, 15), (5, 16)])
def test_an_answer_for_another_range_is_refused(scripted: Scripted, first: int, last: int) -> None:
    async def elsewhere(name: str, begin: int, end: int, pinned: Identity | None, landing: Landing) -> None:
        landing.answered(first, last, Identity(len(DATA), TAG))

    source = scripted(elsewhere)
    with pytest.raises(FetchError, match=r"answers from 6|ignores Range"):
        source.run([read_of("a", 5, 10)], timeout=30)


def test_a_changed_object_is_noticed_by_its_tag(scripted: Scripted) -> None:
    tag = [TAG]

    async def get(name: str, begin: int, end: int, pinned: Identity | None, landing: Landing) -> None:
        await answer(name, begin, end, pinned, landing, tag=tag[0])

    source = scripted(get)
    source.run([read_of("a", 0, 10)], timeout=10)
    assert source.wire.gets[-1][3] is None
    source.run([read_of("a", 0, 10)], timeout=10)
    assert source.wire.gets[-1][3] == Identity(len(DATA), TAG)
    tag[0] = '"v2"'
    with pytest.raises(SourceChangedError, match=r'"v1".*"v2"'):
        source.run([read_of("a", 0, 10)], timeout=10)
    source.run([read_of("b", 0, 10)], timeout=10)


def test_where_answers_tell_nothing_identity_is_compared_now_and_then(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "RECHECK_EVERY", 4)
    seen = [Identity(len(DATA), '"v1"')]

    async def head(name: str) -> Identity:
        return seen[0]

    source = scripted(blunt, head, tells=False, streams=False)
    source.run([read_of("a", 0, 10)], stat=["a"], timeout=10)
    seen[0] = Identity(len(DATA), '"v2"')
    with pytest.raises(SourceChangedError):
        for _ in range(4):
            source.run([read_of("a", 0, 10)], timeout=10)


def test_one_final_failure_cancels_the_rest(scripted: Scripted) -> None:
    cancelled: list[str] = []

    async def mixed(name: str, begin: int, end: int, pinned: Identity | None, landing: Landing) -> None:
        if name == "bad":
            await asyncio.sleep(0.01)
            raise WireError(Verdict.DENIED, "HTTP 403")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(name)
            raise

    source = scripted(mixed)
    with pytest.raises(FetchError, match="403"):
        source.run([read_of("slow", 0, 10), read_of("bad", 0, 10), read_of("slow", 5, 10)], timeout=60)
    assert cancelled == ["slow", "slow"]
    assert source.counters.in_flight_bytes == 0


def test_failures_at_the_same_moment_are_not_reported_by_asyncio(
    scripted: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    together = asyncio.Event()
    waiting = 0

    async def refuse(name: str, begin: int, end: int, pinned: Identity | None, landing: Landing) -> None:
        nonlocal waiting
        waiting += 1
        if waiting == 4:
            together.set()
        await together.wait()
        raise WireError(Verdict.DENIED, "HTTP 403")

    source = scripted(refuse)
    with pytest.raises(FetchError):
        source.run([read_of(f"object {number}", 0, 100) for number in range(4)], timeout=60)
    source.close()
    gc.collect()
    assert not [record for record in caplog.records if record.name == "asyncio"]


def test_nothing_is_written_after_the_error(scripted: Scripted) -> None:
    late = threading.Event()
    outcome: list[BaseException] = []

    async def stubborn(name: str, begin: int, end: int, pinned: Identity | None, landing: Landing) -> None:
        if name == "bad":
            raise WireError(Verdict.DENIED, "HTTP 403")
        with contextlib.suppress(asyncio.CancelledError):  # a client that does not let itself be cancelled
            await asyncio.Event().wait()
        await asyncio.get_running_loop().run_in_executor(None, late.wait, 10)
        try:
            landing.write(b"late")
        except WireError as error:
            outcome.append(error)
        finally:
            done.set()

    done = threading.Event()
    source = scripted(stubborn)
    read = read_of("slow", 0, 4)
    with pytest.raises(FetchError, match="403"):
        source.run([read, read_of("bad", 0, 4)], timeout=60)
    late.set()
    assert done.wait(10)
    assert bytes(read.view) == bytes(4)
    assert len(outcome) == 1


def test_read_all_gives_the_whole_object(scripted: Scripted) -> None:
    source = scripted(answer)
    assert source.read_all("a", limit=len(DATA), timeout=10) == DATA
    assert source.counters.in_flight_peak == len(DATA)
    assert source.counters.in_flight_bytes == 0


def test_read_all_refuses_what_is_longer_than_the_limit(scripted: Scripted) -> None:
    source = scripted(answer)
    with pytest.raises(FetchError, match=f"longer than {len(DATA) - 1} bytes"):
        source.read_all("a", limit=len(DATA) - 1, timeout=10)
    assert source.counters.in_flight_bytes == 0


def test_read_all_starts_over_after_a_cut(scripted: Scripted) -> None:
    calls = [0]

    async def cut_once(name: str, begin: int, end: int, pinned: Identity | None, landing: Landing) -> None:
        calls[0] += 1
        landing.answered(0, len(DATA), Identity(len(DATA), TAG))
        landing.write(DATA[:100])
        if calls[0] > 1:
            landing.write(DATA[100:])

    source = scripted(cut_once)
    assert source.read_all("a", limit=1 << 20, timeout=30) == DATA
    assert calls == [2]


def test_a_buffer_that_cannot_be_written_is_refused(scripted: Scripted) -> None:
    source = scripted(answer)
    with pytest.raises(ConfigError, match="writable"):
        source.run([Read("a", 0, memoryview(b"constant"))], timeout=10)
    with pytest.raises(ConfigError, match="contiguous"):
        source.run([Read("a", 0, memoryview(bytearray(10))[::2])], timeout=10)
    with pytest.raises(ConfigError, match="below zero"):
        source.run([read_of("a", -1, 10)], timeout=10)


def test_other_item_formats_are_filled_as_bytes(scripted: Scripted) -> None:
    source = scripted(answer)
    words = memoryview(bytearray(16)).cast("I")
    read = Read("a", 0, words)
    source.run([read], timeout=10)
    assert words.tobytes() == DATA[:16]
    assert read.got == 16


def test_empty_calls_and_empty_reads_send_nothing(scripted: Scripted) -> None:
    source = scripted(answer)
    assert source._link is None
    assert source.run([], timeout=10) == {}
    assert source.run([read_of("a", 3, 0)], timeout=10) == {}
    assert source.counters.waves == 0
    assert source.wire.gets == []
    assert source._link is None


def test_closed_sources_refuse_to_read(scripted: Scripted) -> None:
    source = scripted(answer)
    source.run([read_of("a", 0, 1)], timeout=10)
    source.close()
    source.close()
    assert source.wire.closed
    with pytest.raises(ClosedError):
        source.run([read_of("a", 0, 1)], timeout=10)
    with pytest.raises(ClosedError):
        source.read_all("a", limit=5, timeout=10)


def test_closing_frees_whoever_is_waiting(scripted: Scripted) -> None:
    begun = threading.Event()

    async def silent(name: str, begin: int, end: int, pinned: Identity | None, landing: Landing) -> None:
        begun.set()
        await asyncio.Event().wait()

    source = scripted(silent)
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            source.run([read_of("a", 0, 1)], timeout=60)
        except BaseException as error:  # noqa: BLE001 - looked at below
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    assert begun.wait(10)
    source.close()
    thread.join(30)
    assert [type(error) for error in caught] == [ClosedError]


def test_reading_from_inside_the_loop_is_refused_not_deadlocked(scripted: Scripted) -> None:
    outcome: list[BaseException] = []

    async def nested(name: str, begin: int, end: int, pinned: Identity | None, landing: Landing) -> None:
        try:
            source.run([read_of("b", 0, 1)], timeout=10)
        except ConfigError as error:
            outcome.append(error)
        await answer(name, begin, end, pinned, landing)

    source = scripted(nested)
    source.run([read_of("a", 0, 1)], timeout=30)
    assert len(outcome) == 1


def test_no_thread_before_the_first_read_and_none_after_close() -> None:
    from lazystore.fetch.remote import RemoteSource

    before = set(threading.enumerate())
    source = RemoteSource("memory://nowhere")
    assert set(threading.enumerate()) == before
    with pytest.raises(DatasetNotFoundError):
        source.run([read_of("a", 0, 1)], timeout=10)
    assert len(set(threading.enumerate()) - before) >= 2
    source.close()
    assert {t for t in threading.enumerate() if t.name.startswith("lazystore")} <= before


def test_a_forgotten_source_ends_its_threads() -> None:
    from lazystore.fetch.remote import RemoteSource

    source = RemoteSource("memory://nowhere")
    with pytest.raises(DatasetNotFoundError):
        source.run([read_of("a", 0, 1)], timeout=10)
    link = source._link
    assert link is not None
    threads = [t for t in threading.enumerate() if t.name.startswith("lazystore-fetch")]
    gone = weakref.ref(source)
    del source, link
    for _ in range(200):  # the loop's thread may be about to leave the last callback
        gc.collect()
        if gone() is None:
            break
        time.sleep(0.01)
    assert gone() is None
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)


def test_pickling_carries_the_recipe_only() -> None:
    from lazystore.fetch.remote import RemoteSource

    source = RemoteSource("memory://place", concurrency=3, max_in_flight_bytes=12345)
    copy = pickle.loads(pickle.dumps(source))
    assert copy.url == source.url
    assert copy._recipe() == source._recipe()
    assert copy._link is None


@pytest.mark.parametrize("options", [{"concurrency": 0}, {"max_in_flight_bytes": 0}])
def test_bounds_below_one_are_refused(options: dict[str, int]) -> None:
    from lazystore.fetch.remote import RemoteSource

    with pytest.raises(ConfigError):
        RemoteSource("memory://place", **options)  # type: ignore[arg-type]


def test_timeouts_must_be_above_zero(scripted: Scripted) -> None:
    with pytest.raises(ConfigError, match="timeout"):
        scripted(answer).run([], timeout=0)
