"""What the workers run: calibrated units of work on an item, and a result of a given kind and size. No clock in here.

A unit is a count of loop turns, never a span of time: a function that spins until the clock says so would take no
longer on a core it has to share, and every contender would look as if it had two cores to itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["KINDS", "Item", "Work", "calibrate", "made", "packed", "sign", "spin", "tiny", "units_of"]

#: Pure Python; numpy, which lets the GIL go; sleeping; half of the time asleep and half in Python.
KINDS = ("python", "numpy", "sleep", "mixed")
#: Doubles in the array of a numpy unit: about 20 us at a time without the GIL.
ARRAY = 16_384
_SHIFT = 32
_MASK = (1 << _SHIFT) - 1
_scratch = threading.local()


@dataclass(slots=True)
class Item:
    """An item with bytes to carry. Not a tuple: mpire would spread one over the function's arguments."""

    seed: int
    units: int
    payload: Any


def packed(seed: int, units: int) -> int:
    """An item without payload: two numbers in one of eight bytes."""
    return seed << _SHIFT | units


def units_of(item: Any) -> int:
    """How much work an item is."""
    return item & _MASK if type(item) is int else item.units


def seed_of(item: Any) -> int:
    """What tells an item from the others."""
    return item >> _SHIFT if type(item) is int else item.seed


def spin(units: int, value: int) -> int:
    """So many turns of pure Python, about 40 ns each."""
    for _ in range(units):
        value = (value * 1103515245 + 12345) & 0xFFFFFFFF
    return value


def tiny(item: int) -> int:
    """The cheapest function of the grid: a number in, a number out."""
    spin(item & 0xFFFFFFFF, item)
    return item ^ 0x5555


def _roots(units: int) -> None:
    """So many square roots over an array of the calling thread's own."""
    import numpy as np

    arrays = getattr(_scratch, "arrays", None)
    if arrays is None:
        arrays = _scratch.arrays = (np.arange(ARRAY, dtype=np.float64), np.empty(ARRAY))
    for _ in range(units):
        np.sqrt(arrays[0], out=arrays[1])


@dataclass(frozen=True)
class Work:
    """The function of every other cell.

    Parameters:
        kind: one of :data:`KINDS`. A unit of sleep is a microsecond; ``mixed`` spins its units and sleeps ``rest_us``.
        result: "number", "bytes", "array" or "objects".
        size: bytes of the result, about.
        rest_us: microseconds asleep for each unit of mixed work.
    """

    kind: str
    result: str = "number"
    size: int = 8
    rest_us: float = 0.0

    def __call__(self, item: Any) -> Any:
        """Do the item's units, look at both ends of its payload, and make the result."""
        units = units_of(item)
        if self.kind == "numpy":
            _roots(units)
        elif self.kind == "sleep":
            time.sleep(units * 1e-6)
        else:
            spin(units, 1)
            if self.rest_us:
                time.sleep(units * self.rest_us * 1e-6)
        if type(item) is not int and item.payload[0] != item.payload[-1]:
            raise ValueError(f"payload of item {item.seed} was damaged")
        return made(self.result, self.size, seed_of(item))


def made(result: str, size: int, seed: int) -> Any:
    """A new object of that kind and size, whose content tells the seed."""
    if result == "number":
        return seed ^ 0x5555
    if result == "bytes":
        return bytes((seed & 255,)) * size
    if result == "array":
        import numpy as np

        return np.full(size // 8, seed, dtype=np.float64)
    return [{"id": seed + i, "name": f"entry {i}", "score": i * 0.5} for i in range(size // 40)]


def sign(value: Any) -> Any:
    """What is kept of a result: enough to see that it is the right one, whole."""
    if isinstance(value, int):
        return value
    if isinstance(value, bytes):
        return len(value), value[0], value[-1]
    if isinstance(value, list):
        return len(value), value[0]["id"], value[-1]["id"]
    return value.nbytes, int(value[0]), int(value[-1])


def calibrate() -> dict[str, float]:
    """Units per microsecond of each kind on this machine, from the quickest of some runs."""

    def rate(call: Callable[[int], object], units: int) -> float:
        spans = []
        for _ in range(15):
            begin = time.perf_counter()
            call(units)
            spans.append(time.perf_counter() - begin)
        return units / min(spans) / 1e6

    python = rate(lambda units: spin(units, 1), 20_000)
    return {"python": python, "numpy": rate(_roots, 100), "sleep": 1.0, "mixed": python}
