"""The child side: what is measured. Every function takes a worker.Run and leaves its figures in run.result.

All works count the items of each pass; ``check`` alone looks into them.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import remote

from compare.checksum import checksum
from compare.libraries import OPENERS, Connect, is_remote

if TYPE_CHECKING:
    from readers import Opened
    from worker import Run

__all__ = ["check", "cold", "epoch", "loader", "opening", "passes", "warm"]

ORDER_SEED = 7
#: Lookups before the clock starts: opens files and builds what a library builds lazily.
WARM_UP = 300
#: Lookups between two looks at the clock.
STEP = 100
#: Seconds of passes after which no other one is begun.
ENOUGH_S = 15.0
perf_counter = time.perf_counter


def drain(items: Iterable[Any], started: Callable[[], None] | None = None) -> int:
    """Take and drop all items; how many there were. Costs about as much as ``for item in items: pass``.

    ``started`` is called once the first item is there. (Not by a ``next()`` beforehand: the iterator of some
    datasets is the dataset, and starts again with the loop.)
    """

    def first() -> Iterator[int]:
        if started is not None:
            started()
        yield 0

    numbers = itertools.chain(first(), itertools.count(1))
    deque(zip(items, numbers, strict=False), maxlen=0)
    return next(numbers)


@contextlib.contextmanager
def _opener(run: Run) -> Iterator[Connect]:
    """The library, imported, with an empty folder for whatever it writes; notes what it left there."""
    scratch = tempfile.mkdtemp(dir=run.spec["scratch"])
    run.spec["scratch"] = scratch
    for variable in ("TMPDIR", "HF_HOME", "XDG_CACHE_HOME", "HOME"):
        os.environ[variable] = scratch
    tempfile.tempdir = None
    try:
        yield OPENERS[run.spec["library"]](run)
        run.result["disk"] = sum(f.stat().st_size for f in Path(scratch).rglob("*") if f.is_file())
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _ready(run: Run) -> None:
    """Memory counts from here; the object store forgets, and behaves as this run wants it."""
    run.ready()
    if is_remote(run.spec):
        remote.control(run.spec, "configure", {"faults": run.spec.get("faults")})
        remote.control(run.spec, "reset")


def _complete(run: Run, count: int) -> None:
    if count != run.spec["count"]:
        raise RuntimeError(f"{count} items in a pass over {run.spec['count']}")


def check(run: Run) -> None:
    """One pass, untimed: how many samples, and their checksum."""
    with _opener(run) as connect:
        _ready(run)
        begin = perf_counter()
        run.result["items"], run.result["checksum"] = checksum(connect().iterate())
        run.result["seconds"] = [perf_counter() - begin]


def passes(run: Run) -> None:
    """spec["passes"] whole passes over a local dataset that is open already; one, if that takes long."""
    with _opener(run) as connect:
        _ready(run)
        opened = connect()
        seconds, cpu = [], []
        for _ in range(run.spec["passes"]):
            busy, begin = time.process_time(), perf_counter()
            count = drain(opened.iterate())
            seconds.append(perf_counter() - begin)
            cpu.append(time.process_time() - busy)
            _complete(run, count)
            if sum(seconds) > ENOUGH_S:
                break
        run.result.update(seconds=seconds, cpu_seconds=cpu, items=run.spec["count"])
        run.peak()


def epoch(run: Run) -> None:
    """One epoch from the object store, from nothing: opening, the first item, the last."""
    with _opener(run) as connect:
        _ready(run)
        busy, begin = time.process_time(), perf_counter()
        opened = connect()
        opening = perf_counter() - begin
        first: list[float] = []
        count = drain(opened.iterate(), lambda: first.append(perf_counter() - begin))
        run.result.update(
            seconds=[perf_counter() - begin],
            cpu_seconds=[time.process_time() - busy],
            first_seconds=first[0],
            open_seconds=opening,
            items=count,
        )
        run.peak()
        remote.served(run)
        _note_counters(run, opened)
        _complete(run, count)


def opening(run: Run) -> None:
    """Opening and the first item of an iteration, nothing more; memory after opening."""
    with _opener(run) as connect:
        _ready(run)
        begin = perf_counter()
        opened = connect()
        run.result["open_seconds"] = perf_counter() - begin
        run.peak()
        run.result["rss_open"] = run.result["rss_peak"]
        begin = perf_counter()
        items = iter(opened.iterate())
        next(items)
        run.result["first_seconds"] = perf_counter() - begin
        run.peak()
        if is_remote(run.spec):
            remote.served(run)


def _order(spec: dict[str, Any]) -> list[int]:
    order = list(range(1, spec["count"]))
    random.Random(ORDER_SEED).shuffle(order)
    return order


def warm(run: Run) -> None:
    """``rows[i]`` in random order for spec["seconds"], after one pass and some lookups that are not timed."""
    order = _order(run.spec)
    with _opener(run) as connect:
        _ready(run)
        opened = connect()
        rows = opened.rows
        if run.spec["library"] == "lazystore":
            drain(opened.iterate())

        def call(indices: list[int]) -> None:
            for index in indices:
                rows[index]

        call(order[:WARM_UP])
        run.calls(call, order, step=STEP)
        _note_counters(run, opened)


def cold(run: Run) -> None:
    """spec["lookups"] random ``rows[i]`` from the object store, none asked for before; item 0 opens the dataset."""
    order = _order(run.spec)
    with _opener(run) as connect:
        _ready(run)
        begin = perf_counter()
        opened = connect()
        opened.rows[0]
        run.result["open_seconds"] = perf_counter() - begin
        remote.served(run)
        run.result["open_bytes"] = run.result["bytes_fetched"]
        remote.control(run.spec, "reset")
        seconds: list[float] = []
        limit = perf_counter() + run.spec["seconds"]
        for index in order[: run.spec["lookups"]]:
            begin = perf_counter()
            opened.rows[index]
            seconds.append(perf_counter() - begin)
            if perf_counter() > limit:
                break
        run.result["seconds"] = seconds
        run.peak()
        remote.served(run)


def loader(run: Run) -> None:
    """Epochs of a torch DataLoader, as bench_dataloader.py measures them; spec["loader"] is the reader's name there."""
    import loaders

    with _opener(run) as connect:

        def plain(run: Run) -> Iterable[Any]:
            """torch's own loader over what the library opens, for libraries that the bench does not know."""
            from torch.utils.data import DataLoader

            loaders.ready(run)
            options = {"multiprocessing_context": run.spec["start"]} if run.spec["start"] else {}
            dataset = connect().loadable
            return DataLoader(dataset, run.spec["batch"], num_workers=run.spec["workers"], **options)

        run.spec["library"] = run.spec["loader"]
        loaders.LOADERS.setdefault(run.spec["loader"], plain)
        loaders.passes(run)


def _note_counters(run: Run, opened: Opened) -> None:
    """lazystore's own counters, without the long table of chunks."""
    if opened.counters is not None:
        stats = opened.counters()
        run.result["counters"] = {name: value for name, value in stats.items() if name != "chunks"}
