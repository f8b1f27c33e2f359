"""The grid: which functions over which data for which consumer. No measurement here.

Every cell is some tenths of a second to two seconds of work for a plain loop. Shapes and seeds are fixed, so that all
contenders of all rounds have the same items.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from imap.work import Item, Work, made, packed, spin, tiny

__all__ = ["CELLS", "QUICK", "Cell"]

kB = 1_000
MB = 1_000_000
#: What a quick run keeps of the items.
QUICK_SHARE = 0.25


@dataclass(frozen=True)
class Cell:
    """One line of the table.

    Parameters:
        name: how it is called.
        item_us: mean time of an item, us.
        count: items.
        shape: how the times of the items vary: "constant", "exponential", "bimodal" (95 % 1x, 5 % 50x),
            "drift" (the second half takes 100 times as long as the first), "sorted" (slow ones first).
        kind: see ``work.KINDS``.
        payload, payload_size: what an item carries: "number", "bytes", "array", "objects"; bytes.
        result, result_size: likewise.
        source: "list", "generator", "sleeping" or "busy" (a generator that takes ``source_us`` an item).
        source_us: see there.
        consumer: "instant", "sleeping" or "busy" for ``consumer_us`` after each result.
        consumer_us: see there.
    """

    name: str
    item_us: float
    count: int
    shape: str = "constant"
    kind: str = "python"
    payload: str = "number"
    payload_size: int = 8
    result: str = "number"
    result_size: int = 8
    source: str = "list"
    source_us: float = 0.0
    consumer: str = "instant"
    consumer_us: float = 0.0

    @property
    def serial_s(self) -> float:
        """Seconds a plain loop takes, about."""
        return self.count * (self.item_us + self.source_us + self.consumer_us) / 1e6

    def to_json(self) -> dict[str, Any]:
        """What :class:`Cell` is made of."""
        return asdict(self)

    def times_us(self) -> list[float]:
        """Time of each item; their mean is exactly ``item_us``."""
        dice = random.Random(self.name)
        n = self.count
        if self.shape == "constant":
            times = [1.0] * n
        elif self.shape == "bimodal":
            times = [1.0] * n
            for index in dice.sample(range(n), max(1, n // 20)):
                times[index] = 50.0
        elif self.shape == "drift":
            times = [1.0] * (n // 2) + [100.0] * (n - n // 2)
        else:
            times = [dice.expovariate(1.0) for _ in range(n)]
            if self.shape == "sorted":
                times.sort(reverse=True)
        scale = self.item_us * n / sum(times)
        return [value * scale for value in times]

    def work(self, calibration: dict[str, float]) -> Callable[[Any], Any]:
        """The function to map."""
        if self.kind == "python" and self.payload == self.result == "number":
            return tiny
        rest_us = 1.0 / calibration["mixed"] if self.kind == "mixed" else 0.0
        return Work(self.kind, self.result, self.result_size, rest_us)

    def items(self, calibration: dict[str, float]) -> Callable[[], Iterator[Any]]:
        """A maker of the items, anew each time it is called; each with a payload object of its own."""
        rate = calibration[self.kind] / (2 if self.kind == "mixed" else 1)
        units = [max(1, round(value * rate)) for value in self.times_us()]
        if self.payload == "number":
            return lambda: (packed(seed, count) for seed, count in enumerate(units))
        kind, size = self.payload, self.payload_size
        return lambda: (Item(seed, count, made(kind, size, seed)) for seed, count in enumerate(units))

    def data(self, calibration: dict[str, float]) -> Callable[[], Iterable[Any]]:
        """A maker of the data as the contender gets it; a list is made once, here."""
        items = self.items(calibration)
        if self.source == "list":
            whole = list(items())
            return lambda: whole
        if self.source == "generator":
            return items
        wait = waiting(self.source, self.source_us, calibration)

        def slowly() -> Iterator[Any]:
            for item in items():
                wait()
                yield item

        return slowly

    def expected(self, calibration: dict[str, float]) -> list[Any]:
        """The signs of the right results, in order; no work is done for them."""
        from imap.work import sign

        first = sign(made(self.result, self.result_size, 0))
        if isinstance(first, int):
            # the tiny function gives the whole item back, the others the seed
            if self.work(calibration) is tiny:
                return [item ^ 0x5555 for item in self.items(calibration)()]
            return [seed ^ 0x5555 for seed in range(self.count)]
        if self.result == "bytes":
            return [(first[0], seed & 255, seed & 255) for seed in range(self.count)]
        if self.result == "array":
            return [(first[0], seed, seed) for seed in range(self.count)]
        return [(first[0], seed, seed + first[2]) for seed in range(self.count)]

    def quick(self) -> Cell:
        """The same with fewer items."""
        return replace(self, count=max(8, round(self.count * QUICK_SHARE)))


def waiting(how: str, span_us: float, calibration: dict[str, float]) -> Callable[[], object]:
    """A call that takes ``span_us``: "sleeping" or "busy"."""
    if how == "sleeping":
        return lambda: time.sleep(span_us * 1e-6)
    units = round(span_us * calibration["python"])
    return lambda: spin(units, 1)


def _array(size: int) -> dict[str, Any]:
    return {"result": "array", "result_size": size}


CELLS: tuple[Cell, ...] = (
    # item time, small numbers in and out
    Cell("2 us, list", 2, 60_000),
    Cell("2 us, generator", 2, 200_000, source="generator"),
    Cell("20 us, list", 20, 20_000),
    Cell("20 us exponential, generator", 20, 25_000, "exponential", source="generator"),
    Cell("200 us, list", 200, 3_000),
    Cell("200 us exponential, generator", 200, 4_000, "exponential", source="generator"),
    Cell("2 ms, list", 2_000, 400),
    Cell("2 ms exponential, generator", 2_000, 400, "exponential", source="generator"),
    Cell("20 ms, list", 20_000, 40),
    Cell("20 ms exponential, list", 20_000, 50, "exponential"),
    Cell("200 ms, list", 200_000, 6),
    Cell("200 ms exponential, generator", 200_000, 8, "exponential", source="generator"),
    # shapes
    Cell("20 us bimodal, generator", 20, 30_000, "bimodal", source="generator"),
    Cell("200 us bimodal, list", 200, 4_000, "bimodal"),
    Cell("2 ms bimodal, generator", 2_000, 400, "bimodal", source="generator"),
    Cell("20 ms bimodal, list", 20_000, 60, "bimodal"),
    Cell("2 to 200 us, generator", 101, 8_000, "drift", source="generator"),
    Cell("20 us to 2 ms, list", 1_010, 800, "drift"),
    Cell("200 us to 20 ms, list", 10_100, 80, "drift"),
    Cell("200 us sorted, generator", 200, 4_000, "sorted", source="generator"),
    Cell("2 ms sorted, list", 2_000, 400, "sorted"),
    Cell("20 ms sorted, list", 20_000, 50, "sorted"),
    # few items, or little in all
    Cell("10 of 200 us", 200, 10),
    Cell("40 of 20 us", 20, 40),
    Cell("1,000 of 20 us", 20, 1_000),
    Cell("10 of 2 ms", 2_000, 10),
    Cell("40 of 5 ms", 5_000, 40),
    Cell("10 of 20 ms", 20_000, 10),
    # results
    Cell("1 ms, 10 kB results", 1_000, 600, result="bytes", result_size=10 * kB),
    Cell("200 us, 100 kB results", 200, 3_000, **_array(100 * kB)),
    Cell("2 ms, 100 kB results, generator", 2_000, 300, source="generator", **_array(100 * kB)),
    Cell("2 ms, objects of 100 kB", 2_000, 250, result="objects", result_size=100 * kB),
    Cell("5 ms, 1 MB results", 5_000, 120, **_array(MB)),
    Cell("2 ms, 5 MB results", 2_000, 120, **_array(5 * MB)),
    Cell("20 ms, 5 MB results, generator", 20_000, 40, source="generator", result="bytes", result_size=5 * MB),
    Cell("20 ms, 20 MB results", 20_000, 30, **_array(20 * MB)),
    # payloads
    Cell("200 us, 10 kB payloads", 200, 3_000, payload="bytes", payload_size=10 * kB),
    Cell("2 ms, 100 kB payloads", 2_000, 300, payload="bytes", payload_size=100 * kB),
    Cell("2 ms, 1 MB payloads, generator", 2_000, 250, payload="array", payload_size=MB, source="generator"),
    Cell("20 ms, 20 MB payloads", 20_000, 20, payload="array", payload_size=20 * MB),
    Cell("5 ms, 1 MB both ways", 5_000, 100, payload="array", payload_size=MB, **_array(MB)),
    # sources and consumers that take their time
    Cell("200 us, source of 1 kHz", 200, 500, source="sleeping", source_us=1_000),
    Cell("2 ms, source of 1 kHz", 2_000, 300, source="sleeping", source_us=1_000),
    Cell("20 ms, source of 50 Hz", 20_000, 25, source="sleeping", source_us=20_000),
    Cell("200 us, source busy 100 us", 200, 3_000, source="busy", source_us=100),
    Cell("2 ms, consumer asleep 3 ms", 2_000, 200, consumer="sleeping", consumer_us=3_000),
    Cell("200 us, consumer busy 200 us", 200, 2_500, consumer="busy", consumer_us=200),
    Cell("20 ms bimodal, consumer asleep 15 ms", 20_000, 40, "bimodal", consumer="sleeping", consumer_us=15_000),
    Cell("5 ms, 5 MB results, consumer busy 10 ms", 5_000, 60, consumer="busy", consumer_us=10_000, **_array(5 * MB)),
    # other kinds of work
    Cell("numpy 200 us, list", 200, 3_000, kind="numpy"),
    Cell("numpy 2 ms, generator", 2_000, 300, kind="numpy", source="generator"),
    Cell("numpy 20 ms, 5 MB results", 20_000, 40, kind="numpy", **_array(5 * MB)),
    Cell("numpy 5 ms, 5 MB payloads", 5_000, 80, kind="numpy", payload="array", payload_size=5 * MB),
    Cell("sleep 2 ms, generator", 2_000, 400, kind="sleep", source="generator"),
    Cell("sleep 20 ms, list", 20_000, 100, kind="sleep"),
    Cell("sleep 20 ms exponential, 100 kB results", 20_000, 60, "exponential", "sleep", **_array(100 * kB)),
    Cell("sleep 200 ms, list", 200_000, 8, kind="sleep"),
    Cell("half asleep 4 ms, list", 4_000, 250, kind="mixed"),
)
#: One each of the sorts above, for a smoke test.
QUICK = tuple(
    cell.quick()
    for cell in CELLS
    if cell.name
    in {
        "20 us, list",
        "2 ms bimodal, generator",
        "2 ms, 5 MB results",
        "2 ms, source of 1 kHz",
        "sleep 20 ms, list",
        "numpy 2 ms, generator",
    }
)
