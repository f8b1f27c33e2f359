"""What `imap` does with an item that failed: raise, yield a `Failure`, leave it out, or ask the caller's function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal

from lazystore.errors import ConfigError
from lazystore.parallel.failures import Failed, Failure

__all__ = ["OnError", "Policy"]

OnError = Literal["raise", "yield", "skip"] | Callable[[Failure], Any]

_NAMES: Final = ("raise", "yield", "skip")


class Policy:
    """``on_error`` of `imap`.

    Parameters:
        on_error: "raise", "yield", "skip", or a function of a :class:`Failure` whose result stands for the item's.

    Raises:
        ConfigError: it is something else.
    """

    def __init__(self, on_error: OnError) -> None:
        if not callable(on_error) and on_error not in _NAMES:
            raise ConfigError(f'on_error={on_error!r}: give "raise", "yield", "skip" or a function of a Failure')
        self._on_error = on_error
        #: whether applying it may raise or run code of the caller's, so that what came before is delivered first
        self.may_raise = on_error == "raise" or callable(on_error)
        self.skipped = 0

    def apply(self, failed: Failed, item: Any) -> tuple[Any, ...]:
        """What stands for the item: one value, or nothing.

        Raises:
            BaseException: the item's own error, under "raise"; always where it is not an ``Exception``.
        """
        if self._on_error == "raise" or failed.fatal:
            raise failed.error
        if self._on_error == "skip":
            self.skipped += 1
            return ()
        failure = Failure(failed.number, item, failed.error)
        return (self._on_error(failure),) if callable(self._on_error) else (failure,)

    def __repr__(self) -> str:
        return f"Policy({self._on_error!r})"
