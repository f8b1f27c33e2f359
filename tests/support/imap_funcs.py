"""Functions that workers of `imap` run in tests: worker processes import them from here."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any


def double(number: int) -> int:
    return 2 * number


def slow_double(number: int) -> int:
    time.sleep(0.002)
    return 2 * number


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def pid(item: object) -> int:
    return os.getpid()


def leave(item: int) -> int:
    """Item 7 ends the process without a word, at once."""
    if item == 7:
        os._exit(3)
    return item


def leave_once(item: tuple[Path, int]) -> int:
    """Item 7 ends the process the first time."""
    mark, number = item
    if number == 7 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def stubborn(item: Path) -> None:
    """Takes no notice of SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    item.touch()
    time.sleep(30)


def forks_and_dies(item: Path) -> None:
    """Leaves a process behind that keeps the worker's pipes open, and is killed."""
    child = os.fork()
    if not child:
        time.sleep(30)
        os._exit(0)
    item.write_text(str(child))
    os.kill(os.getpid(), signal.SIGKILL)


def draw(item: object) -> tuple[int, float, float]:
    """The process, and what its generators give first."""
    import numpy

    time.sleep(0.005)
    return os.getpid(), random.random(), float(numpy.random.random())


def surroundings(item: object) -> tuple[str, str | None, bool]:
    return os.getcwd(), os.environ.get("LAZYSTORE_TEST"), "/lazystore/test" in sys.path


def kinship(item: object) -> tuple[Any, ...]:
    """What multiprocessing tells a function of the process it runs in."""
    import multiprocessing

    parent = multiprocessing.parent_process()
    here = multiprocessing.current_process()
    return parent is not None and parent.pid, parent is not None and parent.is_alive(), here.name, here.daemon


def starts_processes(number: int) -> int:
    """The same number, by way of a process of its own."""
    import multiprocessing

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return int(pool.apply(double, (number,))) // 2


_remembered: list[object] = []


class Remember:
    """An initializer that counts how often it ran in its process."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self) -> None:
        if self.name == "fail":
            raise LookupError("no memory for that")
        _remembered.append(self.name)


def remembered(item: object) -> tuple[int, list[object]]:
    return os.getpid(), list(_remembered)


def await_file(path: Path) -> Path:
    """The same path, once there is something."""
    for _ in range(30_000):
        if path.exists():
            return path
        time.sleep(0.001)
    raise TimeoutError(path)


def rest() -> None:
    time.sleep(30)


def leave_early() -> None:
    os._exit(3)


def mark(item: tuple[Path, int]) -> int:
    """Raises if it is called with this item once more."""
    folder, number = item
    (folder / str(number)).touch(exist_ok=False)
    return number
