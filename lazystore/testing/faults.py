"""Which requests go wrong, and how: seeded decisions, no I/O, no clock.

A decision depends on the seed, on what is asked, and on how often the same thing
was asked before. It does not depend on the order in which concurrent requests
arrive, so a run with many connections meets the same faults every time.
Carrying a fault out is the business of the object store and of the filesystem.
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

from lazystore.errors import ConfigError

__all__ = ["Decision", "FaultPlan", "Faults", "FileFaults"]

#: Distinct requests whose repetitions are counted before the counts start afresh: bounds the memory
#: of a long-lived plan to a few MB.
MAX_COUNTED = 65_536

_TWO_64 = float(1 << 64)


class Decision(NamedTuple):
    """What becomes of one request.

    Attributes:
        kind: name of the fault, or "" when nothing goes wrong.
        fraction: a second random number in [0, 1), for *where* it goes wrong.
    """

    kind: str
    fraction: float


class FaultPlan:
    """Draws a fault, or none, for each request.

    Args:
        rates: probability (0..1) by kind of fault; together at most 1.
        seed: another seed is another run of luck.
        first: kinds that befall the first, second, ... asking of *every* matching request before
            chance takes over; "" lets one pass.
        only: shell pattern; requests whose first key part does not match never go wrong.

    Raises:
        ConfigError: a rate outside 0..1, rates above 1 together, or an unknown kind in ``first``.

    Not thread-safe: belongs to one event loop. Pickles with its counts.
    """

    def __init__(
        self,
        rates: Mapping[str, float],
        *,
        seed: int = 0,
        first: tuple[str, ...] = (),
        only: str = "*",
    ) -> None:
        check_rates(rates)
        unknown = [kind for kind in first if kind and kind not in rates]
        if unknown:
            raise ConfigError(f"first={first!r} names {unknown[0]!r}; known faults: {', '.join(rates)}")
        self._rates = [(kind, rate) for kind, rate in rates.items() if rate > 0]
        self._first = tuple(first)
        self._only = only
        self._seed = str(seed).encode()
        self._asked: dict[bytes, int] = {}

    def draw(self, *key: object) -> Decision:
        """Decide about the request that ``key`` describes; the first part is what ``only`` matches."""
        if not self._rates and not self._first:
            return Decision("", 0.0)
        if self._only != "*" and not fnmatch.fnmatchcase(str(key[0]), self._only):
            return Decision("", 0.0)
        name = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
        attempt = self._count(name)
        mixed = hashlib.blake2b(b"%s/%d" % (self._seed, attempt), key=name, digest_size=16).digest()
        chance = int.from_bytes(mixed[:8], "little") / _TWO_64
        fraction = int.from_bytes(mixed[8:], "little") / _TWO_64
        if attempt < len(self._first):
            return Decision(self._first[attempt], fraction)
        for kind, rate in self._rates:
            if chance < rate:
                return Decision(kind, fraction)
            chance -= rate
        return Decision("", fraction)

    def _count(self, name: bytes) -> int:
        if len(self._asked) >= MAX_COUNTED:
            self._asked.clear()
        attempt = self._asked.get(name, 0)
        self._asked[name] = attempt + 1
        return attempt


def check_rates(rates: Mapping[str, float]) -> None:
    """Raise ConfigError unless every rate is a probability and they add up to at most 1."""
    for kind, rate in rates.items():
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0.0 <= rate <= 1.0:
            raise ConfigError(f"{kind}={rate!r} must be a probability between 0 and 1")
    total = sum(rates.values())
    if total > 1.0 + 1e-9:
        raise ConfigError(f"the fault rates {dict(rates)} add up to {total:g}; keep them within 1")


@dataclass(frozen=True, slots=True)
class Faults:
    """What a local object store does wrong, as probabilities per request.

    Attributes:
        error_503: answers "503 Slow Down" with S3's XML error.
        cut: closes the connection in mid-body (an answer without a body: before any byte of it).
        stall: accepts the request and then sends nothing, or stops after half of the body; the
            connection stays open until the client gives up.
        ignore_range: answers a ranged GET with 200 and the whole object.
        seed: chooses which requests are hit.
        first: faults that befall the first, second, ... asking of every matching request, e.g.
            ``("error_503",)``: each request fails once and succeeds when repeated.
        only: shell pattern over "bucket/key"; other requests are left alone.

    Raises:
        ConfigError: a rate outside 0..1, rates above 1 together, or an unknown name in ``first``.
    """

    error_503: float = 0.0
    cut: float = 0.0
    stall: float = 0.0
    ignore_range: float = 0.0
    seed: int = 0
    first: tuple[str, ...] = ()
    only: str = "*"

    def __post_init__(self) -> None:
        object.__setattr__(self, "first", tuple(self.first))
        self.plan()

    def rates(self) -> dict[str, float]:
        """Probability by kind."""
        return {
            "error_503": self.error_503,
            "cut": self.cut,
            "stall": self.stall,
            "ignore_range": self.ignore_range,
        }

    def plan(self) -> FaultPlan:
        """A fresh plan with these rates."""
        return FaultPlan(self.rates(), seed=self.seed, first=self.first, only=self.only)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON; :meth:`from_dict` is the way back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Faults:
        """Rebuild from :meth:`to_dict`'s values.

        Raises:
            ConfigError: an unknown name or a value that cannot work.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ConfigError(f"faults have no {unknown[0]!r}; known: {', '.join(sorted(known))}")
        return cls(**values)


@dataclass(frozen=True, slots=True)
class FileFaults:
    """What one operation of a faulty filesystem does wrong, as probabilities per call.

    Attributes:
        error: raises one of ``errors``.
        short: returns fewer bytes than asked.
        extra: returns more bytes than asked: the whole file, as when a server ignores Range.
        changed: the file gets a new etag and mtime before the call is answered.
        stall: waits until cancelled.
        cancelled: the coroutine ends as cancelled, which fsspec's blocking calls turn into None.
        errors: exception types (called with one message) that ``error`` picks from.
        seed: chooses which calls are hit.
        first: kinds that befall the first, second, ... asking of every matching call.
        only: shell pattern over the path; other files are left alone.

    Raises:
        ConfigError: a rate outside 0..1, rates above 1 together, no ``errors``, an unknown name in ``first``.
    """

    error: float = 0.0
    short: float = 0.0
    extra: float = 0.0
    changed: float = 0.0
    stall: float = 0.0
    cancelled: float = 0.0
    errors: tuple[type[Exception], ...] = (ConnectionResetError, TimeoutError, OSError)
    seed: int = 0
    first: tuple[str, ...] = ()
    only: str = "*"

    def __post_init__(self) -> None:
        object.__setattr__(self, "first", tuple(self.first))
        object.__setattr__(self, "errors", tuple(self.errors))
        if not self.errors:
            raise ConfigError("errors=() leaves the error fault nothing to raise; give exception types")
        self.plan()

    def rates(self) -> dict[str, float]:
        """Probability by kind."""
        return {
            "error": self.error,
            "short": self.short,
            "extra": self.extra,
            "changed": self.changed,
            "stall": self.stall,
            "cancelled": self.cancelled,
        }

    def plan(self) -> FaultPlan:
        """A fresh plan with these rates."""
        return FaultPlan(self.rates(), seed=self.seed, first=self.first, only=self.only)
