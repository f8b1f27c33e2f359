"""The child process of the grid: runs some contenders on one cell, one after the other, and says what each took.

    python -m imap.host SPEC_JSON

A line of JSON per event goes to the descriptor that the spec names. Every result of every timed run is looked at: its
sign is kept inside the clock, the same way for all, and compared when the clock has stopped.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from imap.cells import Cell, waiting
from imap.contenders import MAKERS, MODULES, WARMERS, Contender
from imap.work import made, packed, sign, tiny

__all__ = ["Ended", "consume", "main"]

perf_counter = time.perf_counter


class Ended(Exception):
    """A run ended with other results than the plain loop's."""


def consume(
    results: Iterable[Any], pause: Callable[[], object] | None, numbers: bool
) -> tuple[list[Any], float, float]:
    """Take all results: their signs, and when the first and the last were there."""
    signs: list[Any] = []
    add = signs.append
    first = 0.0
    for result in results:
        add(result if numbers else sign(result))
        if not first:
            first = perf_counter()
        if pause is not None:
            pause()
    # the loop's variable would keep a big result while the next contender runs
    result = None
    return signs, first, perf_counter()


def light_items(cell: Cell) -> Callable[[int], list[Any]]:
    """A maker of items that are no work and carry nothing, for warming up."""
    return lambda count: [packed(seed, 1) for seed in range(count)]


def run(contender: Contender, cell: Cell, calibration: dict[str, float], made_data: Any, right: list[Any]) -> Any:
    """One timed run.

    Raises:
        Ended: the results are not those of the plain loop.
    """
    func = cell.work(calibration)
    for name in MODULES.get(contender.maker, ()):
        module, _, attribute = name.partition(":")
        getattr(importlib.import_module(module), attribute or "__name__")
    if contender.warm:
        WARMERS[contender.maker](light_items(cell), func, contender.options)
    pause = None if cell.consumer == "instant" else waiting(cell.consumer, cell.consumer_us, calibration)
    numbers = func is tiny or cell.result == "number"
    data = made_data()
    gc.collect()
    busy, own = _busy_s(), time.process_time()
    begin = perf_counter()
    with MAKERS[contender.maker](func, data, cell, **contender.options) as results:
        signs, first, last = consume(results, pause, numbers)
    closed = perf_counter()
    if not contender.ordered:
        signs.sort()
        right = sorted(right)
    if signs != right:
        wrong = next(
            (i for i, (a, b) in enumerate(zip(signs, right, strict=False)) if a != b), min(len(signs), len(right))
        )
        raise Ended(f"{len(signs)} of {len(right)} results; the first wrong one is number {wrong}")
    said = {
        "seconds": last - begin,
        "first_s": first - begin,
        "closed_s": closed - begin,
        "own_cpu_s": time.process_time() - own,
        "busy_s": _busy_s() - busy,
    }
    stats = getattr(results, "stats", None)
    return said if stats is None else said | chosen(stats)


def chosen(stats: Any) -> dict[str, Any]:
    """What lazystore made of the cell."""
    sizes = sorted(size for _, size, _ in stats.chunk_sizes)
    size = sizes[len(sizes) // 2] if sizes else 0
    return {
        "chose": f"{stats.backend} {stats.workers} x {size}" if size else stats.backend,
        "in_caller": stats.in_caller,
        "decisions": [text for _, text in stats.decisions],
        "peak_bytes": stats.peak_bytes,
    }


def _busy_s() -> float:
    """CPU seconds the whole machine has worked."""
    with open("/proc/stat") as file:
        user, nice, system, _idle, _wait, irq, soft, *_ = map(int, file.readline().split()[1:])
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Run what the spec asks for; a contender that fails does not keep the next from its turn."""
    spec = json.loads(sys.argv[1])
    cell = Cell(**spec["cell"])
    calibration = spec["calibration"]
    with os.fdopen(spec["report"], "w", buffering=1) as report:
        os.set_inheritable(report.fileno(), False)
        importlib.import_module("numpy")
        data = cell.data(calibration)
        right = cell.expected(calibration)
        made(cell.result, cell.result_size, 0)
        for entry in spec["contenders"]:
            contender = Contender(**entry)
            said: dict[str, Any] = {"contender": contender.name}
            report.write(json.dumps({**said, "begin": True}) + "\n")
            try:
                said |= run(contender, cell, calibration, data, right)
            except ModuleNotFoundError as error:
                said["problem"] = f"not installed: {error.name}"
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the contender's result
                said["problem"] = f"{type(error).__name__}: {error}"[:300]
            report.write(json.dumps(said) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
