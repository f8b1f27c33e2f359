"""When to try again: what an error means, how long to wait, when to give up on a silent request.

Everything here is a value or a pure function; clock, chance and sleep are handed in. Storage
clients raise their own exceptions, which are recognised by status code, errno and class name, so
that none of those packages has to be imported here.
"""

from __future__ import annotations

import enum
import errno
import math
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

from lazystore.errors import ConfigError, LazyStoreError

__all__ = ["Deadline", "Pace", "RetryPolicy", "Verdict", "WireError", "classify", "verdict_of_status"]

#: Seconds of silence a request is granted while no latencies are known: connecting, TLS and a cold
#: server fit into it.
PATIENCE_UNKNOWN_S = 2.0
#: Bounds in seconds once latencies are known, and the multiple of their 95th percentile in between.
PATIENCE_MIN_S = 0.25
PATIENCE_MAX_S = 8.0
PATIENCE_FACTOR = 8.0
#: What every further attempt is granted more: storage that is slow rather than stuck is waited for in the end.
PATIENCE_GROWTH = 1.5
#: Latencies needed before they are believed, and how many are remembered.
PACE_MIN_SAMPLES = 8
PACE_SAMPLES = 64
#: Latencies needed before a request that is slower than most of them gets a rival, and the multiple of their
#: median, and the seconds, below which it does not.
HEDGE_MIN_SAMPLES = 16
HEDGE_FLOOR = 2.0
HEDGE_MIN_S = 0.05
#: How many times as long a request without a body is waited for before it is simply sent again, at least.
BRIEF_FACTOR = 3.0
BRIEF_MIN_S = 0.1
#: Bytes per second that an answer which shows no progress must at least make.
SLOWEST_RATE = 1 << 20
#: A server's Retry-After counts up to this many seconds.
RETRY_AFTER_MAX_S = 5.0


class Verdict(enum.Enum):
    """What an error means for the request that met it."""

    RETRY = "retry"  #: may pass by itself: overload, a cut body, a reset connection
    STALL = "stall"  #: the request fell silent and was abandoned; a fresh one may fare better
    BRIEF = "brief"  #: nobody listens there: worth a few attempts, not the whole deadline
    MISSING = "missing"  #: there is no such object
    DENIED = "denied"  #: not with these credentials
    CHANGED = "changed"  #: the object is not the one that was pinned
    BEYOND = "beyond"  #: the range begins after the object's end
    FATAL = "fatal"  #: repeating cannot help


class WireError(Exception):
    """An answer that a storage client could not turn into bytes; never leaves this package.

    Attributes:
        verdict: what it means.
        retry_after: seconds the server asks to wait, 0.0 when it does not.
    """

    def __init__(self, verdict: Verdict, message: str, *, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.verdict = verdict
        self.retry_after = retry_after


_VERDICT_OF_STATUS = {
    401: Verdict.DENIED,
    403: Verdict.DENIED,
    404: Verdict.MISSING,
    407: Verdict.DENIED,
    408: Verdict.RETRY,
    410: Verdict.MISSING,
    412: Verdict.CHANGED,
    416: Verdict.BEYOND,
    425: Verdict.RETRY,
    429: Verdict.RETRY,
    501: Verdict.FATAL,
    505: Verdict.FATAL,
}

#: Error codes of object stores that mean "later", whatever the status they come with.
RETRYABLE_CODES = frozenset(
    {
        "BandwidthLimitExceeded",
        "IncompleteBody",
        "InternalError",
        "OperationTimedOut",
        "RequestLimitExceeded",
        "RequestTimeout",
        "ServerBusy",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
    }
)

#: Exception classes of aiohttp, botocore, urllib3, google-auth and azure-core, by name.
_RETRYABLE_NAMES = frozenset(
    {
        "ClientConnectionError",
        "ClientPayloadError",
        "ConnectTimeoutError",
        "ConnectionClosedError",
        "HTTPClientError",
        "HttpProcessingError",
        "IncompleteRead",
        "IncompleteReadError",
        "ProtocolError",
        "ReadTimeoutError",
        "ResponseParserError",
        "ResponseStreamingError",
        "ServerDisconnectedError",
        "ServiceRequestError",
        "ServiceResponseError",
        "TransportError",
    }
)
_BRIEF_NAMES = frozenset(
    {
        "ClientConnectorError",
        "ClientProxyConnectionError",
        "EndpointConnectionError",
        "ProxyConnectionError",
        "SSLError",
        "gaierror",
    }
)
_FATAL_NAMES = frozenset(
    {"ClientConnectorCertificateError", "InvalidURL", "NonHttpUrlClientError", "SSLCertVerificationError"}
)
_DENIED_NAMES = frozenset(
    {
        "ClientAuthenticationError",
        "CredentialRetrievalError",
        "DefaultCredentialsError",
        "NoCredentialsError",
        "PartialCredentialsError",
        "ProfileNotFound",
        "RefreshError",
    }
)

_RETRYABLE_ERRNOS = frozenset(
    {errno.EAGAIN, errno.EBUSY, errno.ECONNABORTED, errno.ECONNRESET, errno.EINTR, errno.EPIPE, errno.ETIMEDOUT}
    | ({errno.EREMOTEIO} if hasattr(errno, "EREMOTEIO") else set())
)
_BRIEF_ERRNOS = frozenset(
    {errno.ECONNREFUSED, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EIO, errno.ENETDOWN, errno.ENETUNREACH}
)


def verdict_of_status(status: int) -> Verdict:
    """What an HTTP status means; 2xx and 3xx that arrive here were not expected."""
    known = _VERDICT_OF_STATUS.get(status)
    if known is not None:
        return known
    return Verdict.RETRY if 500 <= status < 600 else Verdict.FATAL


def _status(error: BaseException) -> int | None:
    """The HTTP status an exception of any storage client carries, or None.

    aiohttp has it in ``status``, azure in ``status_code``, gcsfs in ``code``, botocore in ``response``.
    """
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        metadata = response.get("ResponseMetadata")
        status = metadata.get("HTTPStatusCode") if isinstance(metadata, dict) else None
        return status if isinstance(status, int) else None
    for name in ("status", "status_code", "code"):
        status = getattr(error, name, None)
        if isinstance(status, int) and not isinstance(status, bool) and 100 <= status < 600:
            return status
    return None


def classify(error: BaseException) -> Verdict:
    """What to do about an error: ours and builtins by type, those of storage clients by what they carry."""
    if isinstance(error, WireError):
        return error.verdict
    if isinstance(error, LazyStoreError):
        return Verdict.FATAL
    # The outermost exception that says anything decides: what it was raised from is often about
    # something smaller (aiohttp's cut body is caused by a "400" of its parser).
    for link in _chain(error):
        if _code_of(link) in RETRYABLE_CODES:
            return Verdict.RETRY
        status = _status(link)
        verdict = _verdict_of_type(link) if status is None else verdict_of_status(status)
        if verdict is not None:
            return verdict
    return Verdict.FATAL


def _chain(error: BaseException, depth: int = 4) -> Iterator[BaseException]:
    """The exception and those it was explicitly raised from."""
    link: BaseException | None = error
    while link is not None and depth:
        yield link
        link = link.__cause__
        depth -= 1


def _code_of(error: BaseException) -> str:
    response = getattr(error, "response", None)
    detail = response.get("Error") if isinstance(response, dict) else None
    code = detail.get("Code") if isinstance(detail, dict) else getattr(error, "error_code", None)
    return code if isinstance(code, str) else ""


def _verdict_of_type(error: BaseException) -> Verdict | None:
    names = {cls.__name__ for cls in type(error).__mro__}
    if names & _FATAL_NAMES:
        return Verdict.FATAL
    if names & _DENIED_NAMES:
        return Verdict.DENIED
    if isinstance(error, FileNotFoundError):
        return Verdict.MISSING
    if isinstance(error, (NotADirectoryError, IsADirectoryError)):
        return Verdict.MISSING
    if isinstance(error, PermissionError):
        return Verdict.DENIED
    if isinstance(error, OSError) and error.errno in _BRIEF_ERRNOS:
        return Verdict.BRIEF
    if names & _BRIEF_NAMES:
        return Verdict.BRIEF
    if isinstance(error, (TimeoutError, ConnectionError, EOFError)) or names & _RETRYABLE_NAMES:
        return Verdict.RETRY
    if isinstance(error, OSError) and error.errno in _RETRYABLE_ERRNOS:
        return Verdict.RETRY
    return None


async def _sleep(seconds: float) -> None:
    import asyncio

    await asyncio.sleep(seconds)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long to wait between attempts, and by whose clock.

    Attributes:
        base_s: seconds; attempt n waits a random time below ``base_s * 2**(n-1)`` ("full jitter").
        cap_s: the longest such bound in seconds.
        brief_attempts: attempts where nobody listens.
        clock: monotonic seconds.
        rng: uniform in [0, 1). The default draws from the operating system, so forked processes do
            not retry in step.
        sleep: awaited between attempts.
    """

    base_s: float = 0.02
    cap_s: float = 5.0
    brief_attempts: int = 4
    clock: Callable[[], float] = time.monotonic
    rng: Callable[[], float] = field(default_factory=lambda: random.SystemRandom().random)
    sleep: Callable[[float], Awaitable[None]] = _sleep

    def delay(self, attempt: int, *, remaining: float, retry_after: float = 0.0) -> float:
        """Seconds to wait after failed attempt number ``attempt`` (1, 2, ...).

        A random time below the bound or below what ``remaining`` seconds are left, whichever is less.
        A server's ``retry_after`` is a lower bound, up to RETRY_AFTER_MAX_S, even beyond ``remaining``.
        """
        bound = min(self.cap_s, self.base_s * 2.0 ** min(attempt - 1, 32), remaining)
        return max(self.rng() * bound, min(retry_after, RETRY_AFTER_MAX_S))


class Deadline:
    """One span of time that everything done for a call shares.

    Args:
        timeout: seconds from now.
        clock: monotonic seconds.

    Raises:
        ConfigError: ``timeout`` is not above zero.
    """

    __slots__ = ("_clock", "started", "timeout")

    def __init__(self, timeout: float, clock: Callable[[], float] = time.monotonic) -> None:
        if not timeout > 0:
            raise ConfigError(f"timeout={timeout!r} must be above zero seconds")
        self.timeout = timeout
        self._clock = clock
        self.started = clock()

    def elapsed(self) -> float:
        """Seconds since it began."""
        return self._clock() - self.started

    def remaining(self) -> float:
        """Seconds left, never below zero."""
        return max(0.0, self.timeout - self.elapsed())


class Pace:
    """How fast a storage answers, and from that how long silence is worth bearing.

    Bounded memory (twice PACE_SAMPLES floats); not thread-safe: belongs to one event loop.
    """

    __slots__ = ("_firsts", "_lulls", "_newest")

    def __init__(self) -> None:
        self._firsts = _Recent()
        self._lulls = _Recent()
        self._newest = -math.inf

    def answered(self, started: float) -> None:
        """A request sent at ``started`` (any clock's seconds) shows signs of life."""
        self._newest = max(self._newest, started)

    def add(self, first: float, lull: float = 0.0) -> None:
        """Record how long an answer took to begin, and its longest pause after that."""
        self._firsts.add(first)
        if lull > 0:
            self._lulls.add(lull)

    def p95(self) -> float:
        """95th percentile in seconds of the recent answers; NaN when there are none."""
        return self._firsts.quantile(0.95)

    def patience(self, attempt: int, silent_bytes: int = 0) -> float:
        """Seconds of silence granted to attempt number ``attempt`` (1, 2, ...); half as much again with each.

        ``silent_bytes``: bytes that may travel without any sign of progress; they are granted
        SLOWEST_RATE. So a storage that is slow rather than stuck is waited for in the end.
        """
        return (_patience(self._firsts) + silent_bytes / SLOWEST_RATE) * _growth(attempt)

    def lull(self, attempt: int) -> float:
        """The same for the silence in the midst of an answer."""
        return _patience(self._lulls) * _growth(attempt)

    def brief(self, attempt: int) -> float:
        """The same for a request that costs next to nothing and may well be sent twice."""
        if len(self._firsts) < HEDGE_MIN_SAMPLES:
            return self.patience(attempt)
        return min(self.patience(attempt), max(BRIEF_MIN_S, BRIEF_FACTOR * self._usual()) * _growth(attempt))

    def overdue(self, started: float, waited: float) -> bool:
        """Whether a silent request, sent at ``started``, is slower than most while others fare better.

        Either one that was sent later is answered already, or it has waited twice as long as would do then:
        when all are late at once, the link, the server or this process is slow, and more requests do not help.
        """
        if len(self._firsts) < HEDGE_MIN_SAMPLES:
            return False
        usual = self._usual()
        return waited >= (usual if started < self._newest else 2.0 * usual)

    def _usual(self) -> float:
        """Seconds after which most requests have shown a sign of life."""
        return max(self.p95(), HEDGE_FLOOR * self._firsts.quantile(0.5), HEDGE_MIN_S)


class _Recent:
    """The latest PACE_SAMPLES durations and their quantiles."""

    __slots__ = ("_next", "_ordered", "_samples")

    def __init__(self) -> None:
        self._samples: list[float] = []
        self._next = 0
        self._ordered: list[float] | None = None

    def __len__(self) -> int:
        return len(self._samples)

    def add(self, seconds: float) -> None:
        if len(self._samples) < PACE_SAMPLES:
            self._samples.append(seconds)
        else:
            self._samples[self._next] = seconds
            self._next = (self._next + 1) % PACE_SAMPLES
        self._ordered = None

    def quantile(self, share: float) -> float:
        if self._ordered is None:
            self._ordered = sorted(self._samples)
        ordered = self._ordered
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else math.nan


def _patience(recent: _Recent) -> float:
    if len(recent) < PACE_MIN_SAMPLES:
        return PATIENCE_UNKNOWN_S
    return min(PATIENCE_MAX_S, max(PATIENCE_MIN_S, PATIENCE_FACTOR * recent.quantile(0.95)))


def _growth(attempt: int) -> float:
    return PATIENCE_GROWTH ** min(attempt - 1, 32)
