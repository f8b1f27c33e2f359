"""Functions that tests have run in other processes: they must be importable there, which test modules are not."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import pytest
from support import map_funcs as funcs

from lazystore import imap
from lazystore.errors import WorkerError


def square(x: int) -> int:
    return x * x


def square_but_odd(x: int) -> int:
    if x % 3 == 1:
        raise ValueError(f"odd {x}")
    return x * x


def nap(x: int) -> int:
    time.sleep(0.01)
    return x


def long_nap(x: int) -> int:
    time.sleep(0.05)
    return x


def number(item: dict[str, Any]) -> int:
    return int(item["id"])


def waits_for_others(folder: Path, number: int) -> int:
    (folder / str(number)).touch()
    until = time.monotonic() + funcs.PATIENCE
    while number == 0 and sum(1 for _ in folder.iterdir()) < 4:
        assert time.monotonic() < until, "nobody else works"
        time.sleep(0.002)
    return number


def map_in_child(place: Path, daemon: bool) -> None:
    if daemon:
        with pytest.raises(WorkerError, match=r"daemon.*backend='thread'"):
            list(imap(funcs.square, range(40), backend="process", n_jobs=2))
    found = list(imap(funcs.square, range(40), backend="auto" if daemon else "process", n_jobs=2))
    place.write_text(repr(found))


def spin_in_child(place: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        place.write_text(repr(list(imap(funcs.spin, [50_000] * 80))))
