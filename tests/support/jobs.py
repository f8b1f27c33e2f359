"""Functions that workers run in the tests of ``parallel``: worker processes import them from here."""

from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def row(number: int) -> dict[str, Any]:
    return {"number": number, "text": f"row {number}"}


def slow_row(number: int) -> dict[str, Any]:
    """Later inputs are often ready first."""
    time.sleep(0.001 * (number * 7 % 5))
    return row(number)


def several(number: int) -> Iterator[tuple[int, int]]:
    """None, one or two samples."""
    for k in range(number % 3):
        yield number, k


def odd_only(number: int) -> dict[str, Any] | None:
    return row(number) if number % 2 else None


def nothing(number: int) -> None:
    return None


def failing(number: int) -> dict[str, Any]:
    if number == 130:
        raise LookupError(f"no row {number}")
    return row(number)


class AwkwardError(Exception):
    """Cannot be made from its args, so it does not survive pickling."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


def awkward(number: int) -> dict[str, Any]:
    raise AwkwardError("this", "that")


def leaves(number: int) -> dict[str, Any]:
    raise SystemExit(3)


def mixed_order(number: int) -> dict[str, Any]:
    """From input 70 on, the keys come the other way round."""
    return row(number) if number < 70 else {"text": f"row {number}", "number": number}


def drifting(number: int) -> dict[str, Any]:
    """From input 150 on, a leaf has another type."""
    return {"number": number if number < 150 else str(number)}


def deaths(marker: Path) -> int:
    return len(list(marker.iterdir()))


def _kill_at(marker: Path, victims: dict[int, int], number: int) -> dict[str, Any]:
    times = sum(path.name.startswith(f"{number}-") for path in marker.iterdir())
    if times < victims.get(number, 0):
        (marker / f"{number}-{times}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return row(number)


def kill_at(marker: Path, victims: dict[int, int]) -> functools.partial[dict[str, Any]]:
    """A function that kills its process at these inputs, so many times each."""
    return functools.partial(_kill_at, marker, victims)


def _counting(folder: Path, number: int) -> dict[str, Any]:
    with open(folder / str(number), "a") as file:
        file.write("x")
    return slow_row(number)


def counting(folder: Path) -> functools.partial[dict[str, Any]]:
    """A function that leaves a mark for each call."""
    return functools.partial(_counting, folder)


def _milestones(folder: Path, step: int, number: int) -> int:
    if number % step == 0:
        (folder / str(number)).touch()
    return number


def milestones(folder: Path, step: int) -> functools.partial[int]:
    """A function that leaves a mark for each ``step`` inputs."""
    return functools.partial(_milestones, folder, step)


def key_of(sample: dict[str, Any]) -> str:
    return f"key {sample['number']}"


def same_key(sample: dict[str, Any]) -> str:
    return "the same"


def process_of(number: int) -> dict[str, int]:
    time.sleep(0.002)
    return {"process": os.getpid()}
