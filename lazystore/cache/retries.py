"""When a load that failed is tried again, and how long is waited before. Who loads, and what, is not here."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from lazystore.errors import ConfigError, FetchError, LazyStoreError, SourceChangedError
from lazystore.fetch.retry import Verdict, classify

__all__ = ["Retries", "may_pass"]


def may_pass(error: BaseException) -> bool:
    """Whether an error may pass by itself: timeouts, connections, overload; also as storage clients tell them."""
    if isinstance(error, LazyStoreError):
        return isinstance(error, FetchError) and not isinstance(error, SourceChangedError)
    return classify(error) in (Verdict.RETRY, Verdict.STALL, Verdict.BRIEF)


@dataclass(frozen=True, slots=True)
class Retries:
    """How often and how fast a load is tried.

    Attributes:
        attempts: in all, the first included; 1 for no second try.
        base_s: seconds; before attempt n + 1 a random time below ``base_s * 2**(n-1)`` is waited ("full jitter",
            M. Brooker, Exponential Backoff And Jitter).
        cap_s: the longest such bound in seconds.
        retryable: says of an exception whether another attempt may fare better.
        rng: uniform in [0, 1); by default the operating system's, so that forked processes do not try in step.

    Raises:
        ConfigError: no attempt at all, or a time below zero.
    """

    attempts: int = 3
    base_s: float = 0.05
    cap_s: float = 2.0
    retryable: Callable[[BaseException], bool] = may_pass
    rng: Callable[[], float] = field(default_factory=lambda: random.SystemRandom().random)

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ConfigError(f"attempts={self.attempts} must be at least 1: the first attempt counts")
        if self.base_s < 0 or self.cap_s < 0:
            raise ConfigError(f"base_s={self.base_s}, cap_s={self.cap_s}: seconds must not be negative")

    def delay(self, attempt: int, error: BaseException, left: float | None) -> float | None:
        """Seconds to wait after failed attempt number ``attempt`` (1, 2, ...); None when that was the last one.

        Parameters:
            left: seconds until the deadline, None if there is none; a wait that would not end before it is not begun.
        """
        if attempt >= self.attempts or not self.retryable(error):
            return None
        wait = self.rng() * min(self.cap_s, self.base_s * 2.0 ** min(attempt - 1, 32))
        return wait if left is None or wait < left else None
