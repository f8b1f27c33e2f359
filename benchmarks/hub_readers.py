"""The child side of the hub bench: who reads a repository and how, and what is timed.

spec: ``reader`` says who reads (one of READERS), ``repo`` what, ``count`` how many samples it has; ``endpoint`` is
where the hub counts. Before the clock starts each reader reads another, small repository to its end: what a library
imports or connects only when it is used is not its samples' cost.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
import os
import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from remote import control, served

if TYPE_CHECKING:
    from worker import Run

__all__ = ["READERS", "cached", "first", "leaks", "passes", "resume", "threads"]

SEED = 20261122
#: Samples of a pass that are kept and compared afterwards.
KEPT = 70
SHUFFLE_BUFFER = 500
THREADS = 8
LOADER_BATCH = 64
#: Seconds that threads which were told to end may still take.
PATIENCE_S = 5.0

perf_counter = time.perf_counter

# -- who reads ------------------------------------------------------------------------------


def _dataset(spec: dict[str, Any], repo: str) -> Any:
    """``load_dataset`` as it is written down in its own documentation."""
    from datasets import load_dataset

    told = {"columns": list(spec["columns"])} if spec.get("columns") and spec.get("by") == "argument" else {}
    dataset: Any = load_dataset(repo, split="train", streaming=True, **told)
    if spec.get("columns") and not told:
        dataset = dataset.select_columns(list(spec["columns"]))
    if spec.get("shuffle"):
        dataset = dataset.shuffle(seed=SEED, buffer_size=SHUFFLE_BUFFER)
    return dataset


def _loader(spec: dict[str, Any], repo: str) -> Any:
    """The same in torch's DataLoader; its samples, batch by batch."""
    from torch.utils.data import DataLoader

    loader: Any = DataLoader(
        _dataset(spec, repo), batch_size=LOADER_BATCH, num_workers=spec["workers"], collate_fn=_as_it_is
    )
    return _Chained(loader)


def _as_it_is(samples: list[Any]) -> list[Any]:
    return samples


class _Chained:
    def __init__(self, batches: Iterable[list[Any]]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        return itertools.chain.from_iterable(self._batches)


def _arguments(spec: dict[str, Any]) -> dict[str, Any]:
    return {name: spec[name] for name in ("memory", "cache_size", "prefetch") if name in spec}


def _by_name(spec: dict[str, Any], repo: str) -> Any:
    from lazystore.hub import StreamingDatasetWrapper

    return StreamingDatasetWrapper(
        repo, columns=spec.get("columns"), via=spec.get("via", "lazystore"), **_arguments(spec)
    )


def _around(spec: dict[str, Any], repo: str) -> Any:
    from lazystore.hub import StreamingDatasetWrapper

    return StreamingDatasetWrapper(_dataset(spec, repo), **_arguments(spec))


#: The hub name read by ourselves; a datasets.IterableDataset in the wrapper; that by itself; that in a DataLoader.
READERS: dict[str, Callable[[dict[str, Any], str], Any]] = {
    "name": _by_name,
    "wrapped": _around,
    "datasets": _dataset,
    "loader": _loader,
}


def _prepared(run: Run) -> Callable[[], Any]:
    """What opens the run's repository; imports and connections are there, memory counts from here on."""
    os.environ["HF_HOME"] = os.path.abspath("hf-home")  # in the run's own folder: nothing is known of any repository
    spec = run.spec
    reader = READERS[spec["reader"]]
    if spec["reader"] != "name" or spec.get("via") == "datasets":
        import datasets

        datasets.disable_progress_bars()
        # Seconds that a pass over a shuffled dataset sleeps when it ends, whoever reads it.
        datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0
    for _ in reader(spec, spec["warm"]):
        pass
    gc.collect()
    run.ready()
    return lambda: reader(spec, spec["repo"])


def _close(opened: Any) -> None:
    if hasattr(opened, "close"):
        opened.close()


def _forget(run: Run) -> None:
    control(run.spec, "reset")


# -- what is timed --------------------------------------------------------------------------


def first(run: Run) -> None:
    """From the call on to the first sample; then what was asked of the hub until then."""
    opening = _prepared(run)
    _forget(run)
    begin = perf_counter()
    opened = opening()
    made = perf_counter()
    samples = iter(opened)
    taken = [next(samples)]
    run.result["seconds"] = [perf_counter() - begin]
    run.result["opening"] = made - begin
    served(run)
    taken += itertools.islice(samples, KEPT - 1)
    run.result.update(items=1, digest=_digest(taken))
    del samples
    _close(opened)


def passes(run: Run) -> None:
    """Whole passes over what was opened before; every one from the hub."""
    opening = _prepared(run)
    opened = opening()
    seconds, busy = [], []
    step = max(1, run.spec["count"] // KEPT)
    for turn in range(run.spec.get("passes", 1)):
        kept = []
        number = -1
        _forget(run)
        cpu = _busy()
        begin = perf_counter()
        for number, sample in enumerate(opened):
            if not number % step:
                kept.append(sample)
        seconds.append(perf_counter() - begin)
        busy.append(_busy() - cpu)
        if not turn:
            served(run)
        _must(run, number + 1)
    run.peak()
    run.result.update(seconds=seconds, cpu_seconds=busy, items=run.spec["count"])
    if run.spec["reader"] != "loader":  # whose workers' samples come in another order
        run.result["digest"] = _digest(kept)
    _close(opened)


def cached(run: Run) -> None:
    """The first pass, and those after it."""
    opened = _prepared(run)()
    seconds = []
    for _ in range(run.spec["passes"]):
        number = -1
        _forget(run)
        begin = perf_counter()
        for number, sample in enumerate(opened):  # noqa: B007
            pass
        seconds.append(perf_counter() - begin)
        _must(run, number + 1)
    served(run)  # of the last pass
    run.peak()
    step = max(1, run.spec["count"] // KEPT)
    kept = list(itertools.islice(opened, 0, None, step))
    run.result.update(seconds=seconds, items=run.spec["count"], digest=_digest(kept))
    _close(opened)


def threads(run: Run) -> None:
    """Eight threads on one pass, or each on its own; which samples each of them got."""
    opened = _prepared(run)()
    shared = run.spec["shared"]
    common = iter(opened) if shared else None
    if common is not None and run.spec["locked"]:
        common = _Locked(common)
    got: list[list[int]] = [[] for _ in range(THREADS)]
    failures: list[str] = []
    start = threading.Barrier(THREADS + 1)

    def read(into: list[int]) -> None:
        start.wait()
        try:
            for sample in opened if common is None else common:
                into.append(sample["id"])
        except Exception as error:  # noqa: BLE001 - counted, and said
            failures.append(repr(error))

    readers = [threading.Thread(target=read, args=(each,)) for each in got]
    for thread in readers:
        thread.start()
    _forget(run)
    start.wait()
    begin = perf_counter()
    for thread in readers:
        thread.join()
    elapsed = perf_counter() - begin
    served(run)
    run.peak()
    lost, doubled = _compared([list(itertools.chain.from_iterable(got))] if shared else got, run.spec["count"])
    run.result.update(
        seconds=[elapsed], items=sum(map(len, got)), lost=lost, doubled=doubled, failed=len(failures), said=failures[:1]
    )
    _close(opened)


class _Locked:
    """What a program makes of an iterator that threads may not share."""

    def __init__(self, samples: Iterator[Any]) -> None:
        self._samples = samples
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        with self._lock:
            return next(self._samples)


def resume(run: Run) -> None:
    """States taken at random positions of a pass, each loaded into what was opened anew; the rest is compared."""
    opening = _prepared(run)
    count = run.spec["count"]
    wanted = set(random.Random(SEED).sample(range(1, count), min(run.spec["positions"], count - 1)))
    opened = opening()
    order: list[int] = []
    states: list[tuple[int, str]] = []
    for sample in opened:
        order.append(sample["id"])
        if len(order) in wanted:
            states.append((len(order), json.dumps(opened.state_dict())))
    _close(opened)
    _must(run, len(order))
    random.Random(SEED).shuffle(states)
    times = []
    wrong = lost = doubled = 0
    for position, state in states:
        begin = perf_counter()
        again = opening()
        again.load_state_dict(json.loads(state))
        rest = iter(again)
        got = [sample["id"] for sample in itertools.islice(rest, 1)]
        times.append(perf_counter() - begin)
        got += [sample["id"] for sample in rest]
        _close(again)
        wrong += got != order[position:]
        missing, twice = Counter(order[position:]), Counter(got)
        lost += sum((missing - twice).values())
        doubled += sum((twice - missing).values())
    run.result.update(
        seconds=[statistics.median(times)], slowest=max(times), items=len(states), wrong=wrong, lost=lost,
        doubled=doubled, state=max(len(state) for _, state in states),
    )  # fmt: skip


def leaks(run: Run) -> None:
    """Open, take some samples, let go, again and again: what of it stays."""
    opening = _prepared(run)
    chance = random.Random(SEED)

    def once() -> None:
        opened = opening()
        for _ in itertools.islice(opened, chance.randrange(1, 2 * LOADER_BATCH)):
            pass
        if run.spec["close"]:
            _close(opened)

    for _ in range(1 + run.spec["times"] // 20):  # until what is kept for good is there
        once()
    gc.collect()
    before = threading.active_count(), _descriptors(), _resident()
    begin = perf_counter()
    for _ in range(run.spec["times"]):
        once()
    elapsed = perf_counter() - begin
    gc.collect()
    until = time.monotonic() + PATIENCE_S
    while threading.active_count() > before[0] and time.monotonic() < until:
        time.sleep(0.02)
    after = threading.active_count(), _descriptors(), _resident()
    names = ("threads", "descriptors", "bytes")
    run.result.update(
        {"seconds": [elapsed], "items": run.spec["times"]},
        **{name: there - was for name, there, was in zip(names, after, before, strict=True)},
    )


# -- checks ---------------------------------------------------------------------------------


def _must(run: Run, count: int) -> None:
    if count != run.spec["count"]:
        raise RuntimeError(f"a pass has {count} samples, not {run.spec['count']}")


def _compared(groups: list[list[int]], count: int) -> tuple[int, int]:
    """Samples that are missing and that are there too often; each group is to have all of them once."""
    lost = doubled = 0
    for group in groups:
        found = Counter(group)
        lost += count - len(found)
        doubled += len(group) - len(found)
    return lost, doubled


def _digest(samples: list[dict[str, Any]]) -> str:
    """What samples hold, whoever made them; pictures by their pixels."""
    digest = hashlib.blake2b(digest_size=16)
    for sample in samples:
        for name in sorted(sample):
            value = sample[name]
            plain = value.tobytes() if hasattr(value, "tobytes") else repr(value).encode()
            digest.update(b"%s=%s;" % (name.encode(), plain))
    return digest.hexdigest()


def _busy() -> float:
    """CPU seconds of this process and of those children that have ended: a DataLoader's workers."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
