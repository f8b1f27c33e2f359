"""Errors are judged by what they mean; waits are jittered, bounded and injected."""

from __future__ import annotations

import errno
import math
from typing import Any

import pytest

from lazystore.errors import ConfigError, FetchError
from lazystore.fetch.retry import (
    HEDGE_MIN_SAMPLES,
    PATIENCE_MAX_S,
    PATIENCE_MIN_S,
    PATIENCE_UNKNOWN_S,
    RETRY_AFTER_MAX_S,
    SLOWEST_RATE,
    Deadline,
    Pace,
    RetryPolicy,
    Verdict,
    WireError,
    classify,
    verdict_of_status,
)


def carrying(name: str, base: type[Exception] = Exception, **attributes: Any) -> Exception:
    """An exception as a storage client would define it: known by its class name and attributes."""
    error = type(name, (base,), {})("words")
    for key, value in attributes.items():
        setattr(error, key, value)
    return error


def caused(outer: Exception, inner: BaseException) -> Exception:
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (400, Verdict.FATAL),
        (401, Verdict.DENIED),
        (403, Verdict.DENIED),
        (404, Verdict.MISSING),
        (408, Verdict.RETRY),
        (410, Verdict.MISSING),
        (412, Verdict.CHANGED),
        (416, Verdict.BEYOND),
        (429, Verdict.RETRY),
        (500, Verdict.RETRY),
        (501, Verdict.FATAL),
        (503, Verdict.RETRY),
        (599, Verdict.RETRY),
        (304, Verdict.FATAL),
    ],
)
def test_status_decides(status: int, verdict: Verdict) -> None:
    assert verdict_of_status(status) is verdict
    assert classify(carrying("ClientResponseError", status=status)) is verdict
    assert classify(carrying("HttpResponseError", status_code=status)) is verdict
    assert classify(carrying("HttpError", code=status)) is verdict
    response = {"ResponseMetadata": {"HTTPStatusCode": status}}
    assert classify(caused(OSError(errno.EINVAL, "x"), carrying("ClientError", response=response))) is verdict


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (TimeoutError(), Verdict.RETRY),
        (ConnectionResetError(), Verdict.RETRY),
        (EOFError(), Verdict.RETRY),
        (OSError(errno.EBUSY, "slow down"), Verdict.RETRY),
        (OSError(errno.ECONNRESET, "reset"), Verdict.RETRY),
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), Verdict.BRIEF),
        (OSError(errno.EHOSTUNREACH, "no route"), Verdict.BRIEF),
        (carrying("ClientConnectorError", OSError), Verdict.BRIEF),
        (carrying("ClientPayloadError"), Verdict.RETRY),
        (carrying("ResponseStreamingError"), Verdict.RETRY),
        (carrying("IncompleteRead"), Verdict.RETRY),
        (carrying("ClientConnectorCertificateError", OSError), Verdict.FATAL),
        (carrying("NoCredentialsError"), Verdict.DENIED),
        (FileNotFoundError("x"), Verdict.MISSING),
        (NotADirectoryError("x"), Verdict.MISSING),
        (PermissionError("x"), Verdict.DENIED),
        (ValueError("x"), Verdict.FATAL),
        (OSError("without errno"), Verdict.FATAL),
        (FetchError("ours"), Verdict.FATAL),
        (WireError(Verdict.STALL, "silent"), Verdict.STALL),
    ],
)
def test_type_decides_where_there_is_no_status(error: Exception, verdict: Verdict) -> None:
    assert classify(error) is verdict


def test_a_cut_body_is_not_mistaken_for_the_parsers_status() -> None:
    assert classify(caused(carrying("ClientPayloadError"), carrying("ContentLengthError", code=400))) is Verdict.RETRY


def test_an_error_code_that_means_later_wins_over_its_status() -> None:
    response = {"ResponseMetadata": {"HTTPStatusCode": 400}, "Error": {"Code": "RequestTimeout"}}
    assert classify(carrying("ClientError", response=response)) is Verdict.RETRY


def test_exceptions_of_the_real_clients_are_recognised() -> None:
    aiohttp = pytest.importorskip("aiohttp")
    fsspec_exceptions = pytest.importorskip("fsspec.exceptions")
    assert classify(aiohttp.ClientPayloadError("cut")) is Verdict.RETRY
    assert classify(aiohttp.ServerDisconnectedError()) is Verdict.RETRY
    assert classify(fsspec_exceptions.FSTimeoutError()) is Verdict.RETRY


def test_s3fs_translations_keep_their_meaning() -> None:
    botocore = pytest.importorskip("botocore.exceptions")
    translate = pytest.importorskip("s3fs.errors").translate_boto_error
    for code, status, verdict in [
        ("SlowDown", 503, Verdict.RETRY),
        ("InternalError", 500, Verdict.RETRY),
        ("AccessDenied", 403, Verdict.DENIED),
        ("NoSuchKey", 404, Verdict.MISSING),
        ("PreconditionFailed", 412, Verdict.CHANGED),
        ("InvalidRange", 416, Verdict.BEYOND),
    ]:
        response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
        assert classify(translate(botocore.ClientError(response, "GetObject"))) is verdict, code


def test_waits_grow_with_the_attempts_up_to_the_cap() -> None:
    policy = RetryPolicy(base_s=0.1, cap_s=1.0, rng=lambda: 1.0)
    assert [policy.delay(n, remaining=99) for n in range(1, 7)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert policy.delay(10_000, remaining=99) == 1.0


def test_jitter_is_full() -> None:
    policy = RetryPolicy(base_s=0.1, rng=lambda: 0.0)
    assert policy.delay(5, remaining=99) == 0.0
    assert RetryPolicy(base_s=0.1, rng=lambda: 0.25).delay(1, remaining=99) == pytest.approx(0.025)


def test_a_wait_leaves_time_for_another_attempt() -> None:
    assert RetryPolicy(base_s=1.0, rng=lambda: 0.5).delay(5, remaining=0.4) == pytest.approx(0.2)


def test_retry_after_is_heard_up_to_a_limit() -> None:
    policy = RetryPolicy(rng=lambda: 0.0)
    assert policy.delay(1, remaining=99, retry_after=2.0) == 2.0
    assert policy.delay(1, remaining=99, retry_after=3600.0) == RETRY_AFTER_MAX_S


def test_deadline_counts_by_the_injected_clock() -> None:
    now = [100.0]
    deadline = Deadline(5.0, lambda: now[0])
    now[0] = 103.0
    assert deadline.elapsed() == 3.0
    assert deadline.remaining() == 2.0
    now[0] = 200.0
    assert deadline.remaining() == 0.0


@pytest.mark.parametrize("timeout", [0, -1.0, math.nan])
def test_a_deadline_needs_time(timeout: float) -> None:
    with pytest.raises(ConfigError, match="timeout"):
        Deadline(timeout)


def test_patience_is_generous_until_latencies_are_known() -> None:
    assert Pace().patience(1) == PATIENCE_UNKNOWN_S


def test_patience_follows_the_latencies_within_bounds() -> None:
    quick, usual, slow = Pace(), Pace(), Pace()
    for _ in range(100):
        quick.add(0.001)
        usual.add(0.2)
        slow.add(60.0)
    assert quick.patience(1) == PATIENCE_MIN_S
    assert usual.patience(1) == pytest.approx(1.6)
    assert slow.patience(1) == PATIENCE_MAX_S


def test_patience_grows_with_every_attempt() -> None:
    pace = Pace()
    assert [pace.patience(n) / PATIENCE_UNKNOWN_S for n in (1, 2, 3, 4)] == [1, 1.5, 2.25, 3.375]


def test_answers_without_progress_are_granted_their_transfer() -> None:
    assert Pace().patience(1, 4 * SLOWEST_RATE) == PATIENCE_UNKNOWN_S + 4


def test_pace_remembers_only_the_recent() -> None:
    pace = Pace()
    assert math.isnan(pace.p95())
    for _ in range(100):
        pace.add(5.0)
    for _ in range(100):
        pace.add(0.1)
    assert pace.p95() == 0.1


def test_pauses_in_the_midst_of_answers_have_a_patience_of_their_own() -> None:
    pace = Pace()
    for _ in range(100):
        pace.add(0.001, 0.5)
    assert pace.patience(1) == PATIENCE_MIN_S
    assert pace.lull(1) == pytest.approx(4.0)
    assert pace.lull(2) == pytest.approx(6.0)
    assert Pace().lull(1) == PATIENCE_UNKNOWN_S


def test_a_request_without_a_body_is_soon_sent_again() -> None:
    pace = Pace()
    assert pace.brief(1) == PATIENCE_UNKNOWN_S
    for _ in range(100):
        pace.add(0.05)
    assert pace.brief(1) == pytest.approx(0.3)
    assert pace.brief(2) == pytest.approx(0.45)
    assert pace.brief(100) == pace.patience(100) or pace.brief(100) < pace.patience(100)


def test_overdue_is_who_is_slower_than_most_while_others_are_answered() -> None:
    pace = Pace()
    for _ in range(HEDGE_MIN_SAMPLES - 1):
        pace.add(0.1)
    assert not pace.overdue(0.0, 1e9)
    pace.add(0.1)
    assert not pace.overdue(0.0, 0.3)
    assert pace.overdue(0.0, 0.4)
    pace.answered(1.0)  # one that was sent later
    assert pace.overdue(0.0, 0.2)
    assert not pace.overdue(0.0, 0.19)
    assert not pace.overdue(1.0, 0.3)
