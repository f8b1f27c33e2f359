"""Functions for workers: they have a module of their own so that any process can import them."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any


def square(x: int) -> int:
    return x * x


def compute(x: int) -> int:
    """A few milliseconds of work that holds the interpreter's lock."""
    total = 0
    for i in range(60_000):
        total += i ^ x
    return total


def digest(x: int) -> str:
    """Some tens of microseconds."""
    value = str(x).encode()
    for _ in range(50):
        value = hashlib.sha256(value).digest()
    return value.hex()


def unlike(x: int) -> int:
    """Every third item takes many times as long as the others."""
    total = 0
    for i in range(60_000 if x % 3 == 0 else 2_000):
        total += i ^ x
    return total


def wait(x: int) -> int:
    time.sleep(0.01)  # long beside what waking up costs on a busy machine
    return x


def odd_fails(x: int) -> int:
    if x % 2:
        raise ValueError(f"odd: {x}")
    return x


def always_fails(x: int) -> int:
    raise LookupError(f"no {x}")


def append(items: list[int]) -> list[int]:
    """Changes what it is given."""
    items.append(len(items))
    return items


def numpy_heavy_function(size: int) -> float:
    import numpy

    values = numpy.ones((size, size))
    return float((values @ values).sum())


def plan_here(x: int) -> tuple[str, int]:
    """Plans inside a worker."""
    from lazystore import optimize_streaming

    found = optimize_streaming(compute, range(5000), sample_size=2)
    return found.backend, found.n_jobs


class Logged:
    """Writes down each call, in whichever process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, item: int) -> int:
        with open(self.path, "a") as file:
            file.write(f"{item} {os.getpid()}\n")
        return item


def text_of(sample: dict[str, Any]) -> str:
    return "|".join(f"{name}={value!r}" for name, value in sorted(sample.items()))


def heavy_result(x: int) -> bytes:
    return bytes(2_000_000 + x)


def lock_result(x: int) -> Any:
    """A result that does not pickle."""
    import threading

    return threading.Lock()
