"""Functions that tests give to executors whose workers import them."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

_begun = threading.local()


def square(x: int) -> int:
    return x * x


def lock_at_three(x: int) -> Any:
    """A result that does not pickle, for 3."""
    return threading.Lock() if x == 3 else x


class OneWay:
    """Pickles, but does not come back."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _refuse, ()


def _refuse() -> None:
    raise RuntimeError("not here")


def one_way_at_three(x: int) -> Any:
    return OneWay() if x == 3 else x


def fail_at_three(x: int) -> int:
    if x == 3:
        raise ValueError("three")
    return x


def die(x: int) -> int:
    os._exit(13)


def count_begin() -> None:
    _begun.count = getattr(_begun, "count", 0) + 1


def begun(x: int) -> tuple[tuple[int, int], int]:
    """Which worker this is, and how often the initializer ran in it."""
    return (os.getpid(), threading.get_ident()), getattr(_begun, "count", 0)


def refuse_begin() -> None:
    raise OSError("no licence")


def sleep_at_three(x: int) -> int:
    if x == 3:
        time.sleep(2.0)
    return x
