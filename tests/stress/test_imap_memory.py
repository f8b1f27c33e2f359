"""Peak memory of ``imap`` with an endless source and a consumer that is slower: what it was given, and 32 MiB."""

from __future__ import annotations

import os
import sys

import pytest
from support import scripts
from support.process_tree import Family

pytestmark = [
    pytest.mark.stress,
    pytest.mark.skipif(sys.platform != "linux", reason="needs /proc"),
    pytest.mark.skipif("LAZYSTORE_SANITIZED" in os.environ, reason="sanitizers need memory of their own"),
]

MIB = 1 << 20
SLACK = 32 * MIB
BUDGET = 16 * MIB

HEAD = (
    scripts.MEASURE
    + """
import itertools, sys, time
from support import map_funcs as funcs
from lazystore import imap

def family():
    "This process and all that came of it."
    mine, parents = [os.getpid()], {}
    for task in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{task}/stat") as file:
                parents[int(task)] = int(file.read().rpartition(")")[2].split()[1])
        except OSError:
            continue
    for pid in mine:
        mine += [child for child, parent in parents.items() if parent == pid]
    return mine

def held():
    "Memory of all of them, shared pages counted once; files without a name that live in memory included."
    total = 0
    for pid in family():
        try:
            with open(f"/proc/{pid}/smaps_rollup") as file:
                total += next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))
        except OSError:
            continue
    seen = set()
    for pid in family():
        try:
            for entry in os.scandir(f"/proc/{pid}/fd"):
                if "memfd:" in os.readlink(entry.path):
                    found = os.stat(entry.path)
                    if (found.st_dev, found.st_ino) not in seen:
                        seen.add((found.st_dev, found.st_ino))
                        total += found.st_blocks * 512
        except OSError:
            continue
    return total
"""
)

SLOW_CONSUMER = (
    HEAD
    + """
if __name__ == "__main__":
    backend, ordered, budget = sys.argv[1], sys.argv[2] == "True", int(sys.argv[3])
    list(imap(funcs.square, range(40), backend=backend, n_jobs=2))  # workers are up, all is imported
    before = held()
    results = imap(funcs.block, itertools.repeat(1_000_000), backend=backend, n_jobs=2, ordered=ordered,
                   max_buffer_bytes=budget)
    peak, until = 0, time.monotonic() + 2.0
    for k, result in enumerate(results):
        assert len(result) == 1_000_000
        time.sleep(0.02)
        if k % 8 == 0:
            peak = max(peak, held())
        if time.monotonic() > until:
            break
    results.close()
    print(peak - before)
"""
)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("backend", ["process", "thread"])
def test_a_slow_consumer_of_an_endless_stream_holds_what_it_was_given(backend: str, ordered: bool) -> None:
    with Family(SLOW_CONSUMER, backend, ordered, BUDGET) as family:
        code, out, err = family.wait()
        assert (code, err) == (0, "")
        assert int(out) <= BUDGET + SLACK, f"{int(out) / MIB:.1f} MiB"


STRAGGLER = (
    HEAD
    + """
import functools, threading
from pathlib import Path

def job(gate, number):
    if number == 50:
        funcs.wait_for(gate)
    return funcs.block(1_000_000)

if __name__ == "__main__":
    backend, budget, gate = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    list(imap(funcs.square, range(40), backend=backend, n_jobs=2))
    before = held()
    peak, over = [0], threading.Event()

    def watch():
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            peak[0] = max(peak[0], held())
            time.sleep(0.05)
        gate.touch()
        while not over.wait(0.05):
            peak[0] = max(peak[0], held())

    watcher = threading.Thread(target=watch)
    with imap(functools.partial(job, gate), itertools.count(), backend=backend, n_jobs=2, chunksize=1,
              max_buffer_bytes=budget) as results:
        for _ in range(50):
            next(results)
        watcher.start()
        for _ in range(150):
            assert len(next(results)) == 1_000_000
        over.set()
        watcher.join()
    print(peak[0] - before)
"""
)


@pytest.mark.parametrize("backend", ["process", "thread"])
def test_what_waits_behind_a_straggler_stays_within_the_same_bound(backend: str, tmp_path: object) -> None:
    with Family(STRAGGLER, backend, BUDGET, f"{tmp_path}/gate") as family:
        code, out, err = family.wait()
        assert (code, err) == (0, "")
        assert int(out) <= BUDGET + SLACK, f"{int(out) / MIB:.1f} MiB"


LONG_STREAM = (
    HEAD
    + """
if __name__ == "__main__":
    backend = sys.argv[1]
    options = {} if backend == "auto" else {"backend": backend, "n_jobs": 2}
    def run(count):
        found = 0
        for result in imap(funcs.same, range(count), **options):
            found += result
        assert found == count * (count - 1) // 2
    run(20_000)
    before = restart_peak()
    run(400_000)
    print(memory("VmHWM") - before)
"""
)


@pytest.mark.parametrize("backend", ["auto", "process", "thread"])
def test_a_long_stream_of_small_items_keeps_nothing(backend: str) -> None:
    with Family(LONG_STREAM, backend) as family:
        code, out, err = family.wait()
        assert (code, err) == (0, "")
        assert int(out) <= SLACK, f"{int(out) / MIB:.1f} MiB"


BIG_ITEMS = (
    HEAD
    + """
if __name__ == "__main__":
    backend, budget = sys.argv[1], int(sys.argv[2])
    list(imap(funcs.square, range(40), backend=backend, n_jobs=2))
    before = held()
    source = (funcs.block(2_000_000) for _ in itertools.count())
    peak, until = 0, time.monotonic() + 1.5
    for k, result in enumerate(imap(len, source, backend=backend, n_jobs=2, max_buffer_bytes=budget)):
        assert result == 2_000_000
        time.sleep(0.02)
        peak = max(peak, held())
        if time.monotonic() > until:
            break
    print(peak - before)
"""
)


@pytest.mark.parametrize("backend", ["process", "thread"])
def test_items_that_wait_for_a_worker_are_counted_as_well(backend: str) -> None:
    with Family(BIG_ITEMS, backend, BUDGET) as family:
        code, out, err = family.wait()
        assert (code, err) == (0, "")
        assert int(out) <= BUDGET + SLACK, f"{int(out) / MIB:.1f} MiB"
