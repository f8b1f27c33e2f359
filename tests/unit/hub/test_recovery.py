"""Reading through failures: what is tried again, from where, for how long, and who goes on."""

from __future__ import annotations

import errno
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.hub_feeds import PlannedFeed, ids

from lazystore.cache.retries import Retries
from lazystore.errors import ClosedError, FetchError, FetchTimeoutError, FormatError, UnsupportedError
from lazystore.hub.feed import Feed, Mark
from lazystore.hub.recovery import MARKS, Line, Marks, OnError, Recovery, transient


def make_recovery(
    feed: Feed,
    *,
    on_error: OnError = "raise",
    attempts: int = 4,
    timeout: float = 60.0,
    pause: Any = lambda delay: None,
) -> Recovery:
    retries = Retries(attempts, base_s=0.001, retryable=transient)
    return Recovery(feed, retries=retries, timeout=timeout, on_error=on_error, pause=pause)


def rest(line: Line, most: int = 16) -> list[Any]:
    samples = []
    while got := line.take(most, 1 << 20):
        samples += got
    return samples


@given(
    failing=st.dictionaries(st.integers(0, 60), st.integers(1, 3), max_size=6),
    marks=st.sampled_from([0, 1, 5]),
    start=st.integers(0, 60),
)
def test_a_line_gives_every_sample_once_whatever_passes(failing: dict[int, int], marks: int, start: int) -> None:
    failures: dict[int, list[Exception]] = {at: [ConnectionError("cut")] * count for at, count in failing.items()}
    feed = PlannedFeed(60, marks=marks, failures=failures)
    recovery = make_recovery(feed, attempts=sum(failing.values()) + 1)
    line = Line(recovery, start)
    assert ids(rest(line)) == list(range(start, 60))
    assert line.position == 60
    assert recovery.retried == sum(failing.values()) - sum(map(len, failures.values()))
    line.close()
    assert not feed.opened_now


def test_after_a_failure_the_feed_is_opened_at_the_next_sample_by_the_nearest_mark() -> None:
    feed = PlannedFeed(40, marks=10, failures={25: [TimeoutError()]})
    line = Line(make_recovery(feed), 0)
    got: list[Any] = []
    while len(got) < 40:
        got += line.take(5, 1 << 20)
        line.mark()
    assert ids(got) == list(range(40))
    position, mark = feed.openings[-1]
    assert (len(feed.openings), position) == (2, 25)
    assert mark in (10, 20)


def test_the_mark_taken_last_is_used_though_many_are_remembered() -> None:
    feed = PlannedFeed(3000, marks=1, failures={2500: [TimeoutError()]})
    line = Line(make_recovery(feed), 0)
    for _ in range(3000):
        line.mark()
        line.take(1, 1 << 20)
    assert feed.openings == [(0, 0), (2500, 2500)]


def test_what_does_not_pass_comes_at_its_place_as_it_is_and_at_once() -> None:
    problem = ValueError("bad sample")
    feed = PlannedFeed(20, failures={7: [problem]})
    recovery = make_recovery(feed)
    line = Line(recovery, 0)
    got = []
    with pytest.raises(ValueError, match="bad sample") as caught:
        while True:
            got += line.take(16, 1 << 20)
    assert caught.value is problem
    assert ids(got) == list(range(7))
    assert recovery.retried == 0
    assert line.position == 7


def test_when_the_tries_are_used_up_the_error_tells_the_source_the_sample_and_what_to_do() -> None:
    feed = PlannedFeed(20, failures={3: [ConnectionResetError("gone")] * 9})
    line = Line(make_recovery(feed, attempts=3), 3)
    with pytest.raises(
        FetchError, match=r"planned: sample 3 .* 3 attempts .*ConnectionResetError: gone.*retries="
    ) as found:
        line.take(1, 1 << 20)
    assert not isinstance(found.value, FetchTimeoutError)
    assert isinstance(found.value.__cause__, ConnectionResetError)
    assert found.value.attempts == 3
    assert len(feed.failures[3]) == 6


def test_when_the_time_is_used_up_it_is_a_timeout() -> None:
    feed = PlannedFeed(20, failures={0: [ConnectionResetError("gone")] * 10_000})
    line = Line(make_recovery(feed, attempts=10_000, timeout=0.05, pause=time.sleep), 0)
    with pytest.raises(FetchTimeoutError, match="sample 0 could not be read"):
        line.take(1, 1 << 20)


def test_progress_gives_the_tries_anew() -> None:
    feed = PlannedFeed(10, failures={at: [ConnectionError()] * 2 for at in range(10)})
    recovery = make_recovery(feed, attempts=3)
    assert ids(rest(Line(recovery, 0))) == list(range(10))
    assert recovery.retried == 20


def test_whoever_waits_for_the_next_try_can_be_told_to_stop() -> None:
    def pause(delay: float) -> None:
        raise ClosedError("closed while it was read")

    line = Line(make_recovery(PlannedFeed(5, failures={0: [ConnectionError()]}), pause=pause), 0)
    with pytest.raises(ClosedError):
        line.take(1, 1 << 20)


def test_a_source_that_can_be_read_once_is_not_opened_again() -> None:
    feed = PlannedFeed(9, again=False, failures={4: [ConnectionError("cut")]})
    line = Line(make_recovery(feed), 0)
    got = []
    with pytest.raises(ConnectionError, match="cut"):
        while True:
            got += line.take(4, 1 << 20)
    assert ids(got) == [0, 1, 2, 3]
    with pytest.raises(UnsupportedError, match=r"read once only.*larger cache_size"):
        line.take(1, 1 << 20)
    assert len(feed.openings) == 1


def test_a_function_goes_on_where_reading_failed_and_again_for_later_passes() -> None:
    asked: list[tuple[str, int]] = []

    def instead(error: BaseException, position: int) -> Iterable[dict[str, int]]:
        asked.append((type(error).__name__, position))
        return ({"id": at} for at in range(position, 12))

    feed = PlannedFeed(20, failures={5: [ValueError("bad")]})
    recovery = make_recovery(feed, on_error=instead)
    assert ids(rest(Line(recovery, 0))) == list(range(12))
    assert asked == [("ValueError", 5)]
    assert [row["position"] for row in recovery.fallbacks] == [5]
    assert "bad" in recovery.fallbacks[0]["cause"]
    for start in (0, 3, 5, 9, 12):
        assert ids(rest(Line(recovery, start))) == list(range(start, 12))
    assert set(asked) == {("ValueError", 5)}


def test_what_the_function_raises_is_raised() -> None:
    def instead(error: BaseException, position: int) -> Iterable[Any]:
        raise FormatError(f"given up at {position}") from error

    recovery = make_recovery(PlannedFeed(20, failures={5: [ValueError("bad")]}), on_error=instead)
    with pytest.raises(FormatError, match="given up at 5"):
        rest(Line(recovery, 0))
    assert recovery.fallbacks == []


def test_a_function_whose_samples_fail_at_once_is_not_asked_for_ever() -> None:
    def instead(error: BaseException, position: int) -> Iterable[Any]:
        def failing() -> Iterable[Any]:
            raise KeyError("mine")
            yield

        return failing()

    recovery = make_recovery(PlannedFeed(20, failures={5: [ValueError("bad")]}), on_error=instead)
    with pytest.raises(KeyError, match="mine"):
        rest(Line(recovery, 0))


def test_a_hub_names_next_way_goes_on_at_the_same_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = [PlannedFeed(30, failures={20: [FormatError("worse")]}), PlannedFeed(30)]
    monkeypatch.setattr("lazystore.hub.recovery.fallback_of", lambda feed: ways.pop(0) if ways else None)
    first = PlannedFeed(30, marks=1, failures={10: [FormatError("broken")]})
    recovery = make_recovery(first, on_error="fallback")
    line = Line(recovery, 0)
    got: list[Any] = []
    while more := line.take(7, 1 << 20):
        got += more
        line.mark()
    assert ids(got) == list(range(30))
    assert [row["position"] for row in recovery.fallbacks] == [10, 20]
    followers = [row["to"] for row in recovery.fallbacks]
    assert followers == ["planned", "planned"]
    assert recovery.feed.openings == [(20, 0)]  # the first feed's marks mean nothing here
    recovery.close()
    assert first.closed == 0
    assert recovery.feed.closed == 1


def test_who_takes_over_has_tries_of_its_own_and_no_marks_of_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    second = PlannedFeed(30, failures={10: [ConnectionError("cut")] * 3})
    monkeypatch.setattr("lazystore.hub.recovery.fallback_of", lambda feed: second)
    first = PlannedFeed(30, marks=1, failures={10: [ConnectionError("cut")] * 9})
    line = Line(make_recovery(first, on_error="fallback"), 0)
    got: list[Any] = []
    while more := line.take(1, 1 << 20):
        got += more
        if line.position < 10:
            line.mark()
    assert ids(got) == list(range(30))
    assert second.openings == [(10, 0)] * 4


def test_without_another_way_the_error_is_raised() -> None:
    recovery = make_recovery(PlannedFeed(30, failures={10: [FormatError("broken")]}), on_error="fallback")
    with pytest.raises(FormatError, match="broken"):
        rest(Line(recovery, 0))


class _Response:
    def __init__(self, status: int) -> None:
        self.status_code = status


def _client_error(module: str, names: tuple[str, ...], base: type[Exception] = Exception, status: int = 0) -> Exception:
    kind: Any = base
    for name in names:
        kind = type(name, (kind,), {"__module__": module})
    error: Exception = kind("it said")
    if status:
        error.response = _Response(status)  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (ConnectionError("Server Disconnected"), True),
        (TimeoutError(), True),
        (OSError(errno.ECONNRESET, "reset"), True),
        (_client_error("requests.exceptions", ("RequestException", "ConnectionError"), OSError), True),
        (_client_error("requests.exceptions", ("RequestException", "ChunkedEncodingError"), OSError), True),
        (_client_error("httpx", ("TransportError", "TimeoutException", "ReadTimeout")), True),
        (_client_error("httpx", ("TransportError", "NetworkError", "ReadError")), True),
        (_client_error("huggingface_hub.errors", ("HTTPError", "HfHubHTTPError"), OSError, status=503), True),
        (_client_error("huggingface_hub.errors", ("HTTPError", "HfHubHTTPError"), OSError, status=429), True),
        (_client_error("huggingface_hub.errors", ("HTTPError", "HfHubHTTPError"), OSError, status=404), False),
        (_client_error("huggingface_hub.errors", ("HTTPError", "GatedRepoError"), OSError, status=403), False),
        (_client_error("huggingface_hub.errors", ("OfflineModeIsEnabled",), ConnectionError), False),
        (_client_error("mine", ("ConnectionError",)), False),
        (FetchError("again"), True),
        (FormatError("never"), False),
        (ValueError("mine"), False),
        (FileNotFoundError("gone"), False),
        (PermissionError("no"), False),
    ],
    ids=lambda value: (
        f"{type(value).__module__}.{type(value).__name__}" if isinstance(value, Exception) else str(value)
    ),
)
def test_which_errors_pass_by_themselves(error: Exception, passes: bool) -> None:
    assert transient(error) is passes


def test_what_an_error_was_raised_from_counts_too() -> None:
    try:
        try:
            raise _client_error("httpx", ("TransportError", "NetworkError", "ReadError"))
        except Exception as inner:
            raise RuntimeError("while reading") from inner
    except RuntimeError as error:
        assert transient(error)


@given(st.lists(st.integers(0, 5000), max_size=900), st.integers(0, 5000))
def test_marks_are_bounded_and_the_nearest_one_before_is_found(positions: list[int], wanted: int) -> None:
    marks = Marks()
    for position in positions:
        marks.add(Mark(position))
    found = marks.nearest(wanted)
    before = [position for position in positions if position <= wanted]
    if len(set(positions)) <= MARKS:
        assert (found is None) == (not before)
        assert found is None or found.position == max(before)
    elif found is not None:
        assert found.position in before
    assert len(marks._marks) <= MARKS
    assert [mark.position for mark in marks._marks] == sorted({mark.position for mark in marks._marks})


def test_marks_of_a_long_stream_stay_spread_over_all_of_it() -> None:
    marks = Marks()
    for position in range(0, 100_000, 10):
        marks.add(Mark(position))
    gaps = [wanted - marks.nearest(wanted).position for wanted in range(0, 100_000, 50)]  # type: ignore[union-attr]
    assert max(gaps) <= 100_000 / MARKS * 4


def test_signatures_of_addresses_are_in_no_message() -> None:
    error = ConnectionError("503 for url: https://cdn.test/a?Signature=secret")
    with pytest.raises(FetchError, match=r"cdn\.test/a") as caught:
        rest(Line(make_recovery(PlannedFeed(9, failures={4: [error] * 9})), 0))
    assert "secret" not in str(caught.value)
    failing = PlannedFeed(9, failures={4: [error] * 9})
    recovery = make_recovery(failing, on_error=lambda error, position: [])
    rest(Line(recovery, 0))
    assert "cdn.test/a" in recovery.fallbacks[0]["cause"] and "secret" not in recovery.fallbacks[0]["cause"]


def test_marks_may_be_looked_up_while_they_are_added_and_forgotten() -> None:
    marks, failed, over = Marks(), [], threading.Event()

    def look() -> None:
        try:
            while not over.is_set():
                found = marks.nearest(5000)
                assert found is None or found.position <= 5000
        except (AssertionError, IndexError) as error:
            failed.append(error)

    threads = [threading.Thread(target=look) for _ in range(2)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for _ in range(30):
            for position in range(0, 9000, 20):
                marks.add(Mark(position))
            marks.clear()
    finally:
        over.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    assert not failed


def test_a_try_that_would_not_end_before_the_deadline_is_not_begun() -> None:
    tries = 0

    class Silent(PlannedFeed):
        def open(self, position: int = 0, mark: Mark | None = None) -> Any:
            nonlocal tries
            tries += 1
            time.sleep(0.2)
            raise TimeoutError("silent")

    with pytest.raises(FetchTimeoutError, match="1 attempts"):
        Line(make_recovery(Silent(5), timeout=0.3), 0).take(1, 1 << 20)
    assert tries == 1
