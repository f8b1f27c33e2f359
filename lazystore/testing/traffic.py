"""What passes through the object store: the bandwidth limit, the counters, the request log.

Plain values and arithmetic; the clock is handed in. Also reads such a log:
:func:`dependent_waves`.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["Pacer", "Record", "Traffic", "dependent_waves"]

#: Unused bandwidth that may be caught up, in seconds: covers the millisecond grain of event loop timers.
BURST_S = 0.004


class Pacer:
    """A token bucket shared by all connections: says how long a piece must wait.

    Reservations are granted in the order they are asked for, so pieces of parallel bodies take turns.

    Args:
        rate: bytes per second; None: no limit.
    """

    __slots__ = ("_free_at", "rate")

    def __init__(self, rate: int | None) -> None:
        self.rate = rate
        self._free_at = 0.0

    def reserve(self, size: int, now: float) -> float:
        """Seconds until ``size`` bytes may go out; they count as sent."""
        if self.rate is None:
            return 0.0
        start = max(self._free_at, now - BURST_S)
        self._free_at = start + size / self.rate
        return max(0.0, start - now)


class Record:
    """One request, from its arrival to its last byte."""

    __slots__ = ("begin", "end", "fault", "finished", "method", "path", "received", "sent", "status")

    def __init__(self, method: str, path: str, received: float) -> None:
        self.method = method
        self.path = path
        self.received = received
        self.finished: float | None = None
        self.begin: int | None = None
        self.end: int | None = None
        self.status = 0
        self.fault = ""
        self.sent = 0


class Traffic:
    """Counters of one server and its latest requests.

    Args:
        log: how many requests are remembered; older ones are forgotten and counted.
        now: the clock's reading, seconds.
    """

    def __init__(self, *, log: int, now: float) -> None:
        self._log: deque[Record] = deque(maxlen=log)
        self.in_flight = 0
        self.reset(now)

    def reset(self, now: float) -> None:
        """Start counting anew; requests under way stay in ``in_flight`` and leave no other trace."""
        self._epoch = now
        self._total = 0
        self._log.clear()
        self._methods: Counter[str] = Counter()
        self._statuses: Counter[int] = Counter()
        self._faults: Counter[str] = Counter()
        self.bytes_sent = 0
        self.connections = 0
        self.peak_concurrent = self.in_flight

    def begin(self, method: str, path: str, now: float) -> Record:
        """A request arrived."""
        record = Record(method, path, now)
        self._total += 1
        self._methods[method] += 1
        self._log.append(record)
        self.in_flight += 1
        self.peak_concurrent = max(self.peak_concurrent, self.in_flight)
        return record

    def fault(self, record: Record, kind: str) -> None:
        """A fault was injected into this request."""
        record.fault = kind
        self._faults[kind] += 1

    def status(self, record: Record, status: int) -> None:
        """The answer's status is settled."""
        record.status = status
        self._statuses[status] += 1

    def sent(self, record: Record, size: int) -> None:
        """Body bytes were handed to the operating system or to the connection's buffer."""
        record.sent += size
        self.bytes_sent += size

    def finish(self, record: Record, now: float) -> None:
        """The answer is complete, or the connection is gone."""
        if record.finished is None:
            record.finished = now
            self.in_flight -= 1

    def snapshot(self) -> dict[str, Any]:
        """Everything as plain values, fit for JSON."""
        return {
            "requests": dict(self._methods),
            "gets": self._methods["GET"],
            "statuses": {str(status): count for status, count in self._statuses.items()},
            "bytes_sent": self.bytes_sent,
            "faults": dict(self._faults),
            "in_flight": self.in_flight,
            "peak_concurrent": self.peak_concurrent,
            "connections": self.connections,
            "log": [self._entry(record) for record in self._log],
            "log_dropped": self._total - len(self._log),
        }

    def _entry(self, record: Record) -> dict[str, Any]:
        finished = record.finished
        return {
            "method": record.method,
            "path": record.path,
            "begin": record.begin,
            "end": record.end,
            "status": record.status,
            "fault": record.fault,
            "sent": record.sent,
            "received": round(record.received - self._epoch, 6),
            "finished": None if finished is None else round(finished - self._epoch, 6),
        }


def dependent_waves(log: Sequence[Mapping[str, Any]]) -> int:
    """The longest chain of requests in which each arrived after the one before was answered.

    So many round trips a caller waited for at least, if nothing but the answers held requests back.
    Requests of one wave count as one only while the latency is longer than the client needs to send
    them all: give the store a latency of 100 ms or more where waves are to be counted. Requests still
    under way count as the last of their chain.
    """
    waves = 0
    answered = float("-inf")
    # Interval scheduling: always going on with the request that is answered first gives the longest chain.
    for entry in sorted(log, key=_finish):
        if entry["received"] >= answered:
            waves += 1
            answered = _finish(entry)
    return waves


def _finish(entry: Mapping[str, Any]) -> float:
    finished = entry["finished"]
    return float("inf") if finished is None else float(finished)
