"""Streams in whole processes: memory, threads, forks, signals and exits in the middle of an iteration."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support import datasets, scripts

from lazystore.testing import ObjectStore

pytestmark = [pytest.mark.stress, pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and fork")]

MIB = 1 << 20
SLACK = 32 * MIB
COUNT = 3000
ORDERS = ["sequential", "window", "global", "litdata"]


# -- memory ---------------------------------------------------------------------------------


def crafted(folder: Path, chunks: int, per_chunk: int, size: int) -> None:
    """Items of one length whose first eight bytes are their number."""
    folder.mkdir(parents=True)
    entries = []
    for chunk in range(chunks):
        items = np.zeros((per_chunk, size + 4), np.uint8)
        items[:, :4] = np.frombuffer(np.uint32(size).tobytes(), np.uint8)
        numbers = np.arange(chunk * per_chunk, (chunk + 1) * per_chunk, dtype="<u8")
        items[:, 4:12] = numbers.view(np.uint8).reshape(per_chunk, 8)
        begin = 4 + 4 * (per_chunk + 1)
        offsets = begin + np.arange(per_chunk + 1, dtype="<u4") * (size + 4)
        data = np.uint32(per_chunk).tobytes() + offsets.astype("<u4").tobytes() + items.tobytes()
        (folder / f"chunk-0-{chunk}.bin").write_bytes(data)
        entries.append((f"chunk-0-{chunk}.bin", len(data), per_chunk))
    datasets.craft(folder / "spare", [[b""]], ["bytes"])

    def fill(index: dict) -> None:  # type: ignore[type-arg]
        index["chunks"] = [
            {"chunk_bytes": nbytes, "chunk_size": count, "dim": None, "filename": name}
            for name, nbytes, count in entries
        ]

    datasets.edit_index(folder / "spare", fill)
    (folder / "spare" / "index.json").rename(folder / "index.json")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two datasets of ~100 MB: items of 40 kB, and items of 24 bytes."""
    place = tmp_path_factory.mktemp("streams")
    crafted(place / "long", 20, 128, 40_000)
    crafted(place / "short", 24, 150_000, 20)
    return place


@pytest.fixture(scope="module")
def store(large: Path, folder: Path) -> Iterator[ObjectStore]:
    pytest.importorskip("aiohttp")
    with ObjectStore({"large": large, "small": folder.parent}) as store:
        yield store


MEASURED = (
    scripts.MEASURE
    + """
import sys
import numpy as np
from lazystore import StreamingDataset

url, order, budget = sys.argv[1:]
if url.startswith("http"):
    import aiohttp, fsspec.implementations.http  # what the client itself takes is not the dataset's
before = restart_peak()
dataset = StreamingDataset(url, order=order, memory=budget)
total, seen = dataset.total, 0
there = np.zeros(total, np.uint8)
for item in dataset:
    there[int.from_bytes(item[:8], "little")] += 1
    seen += 1
assert seen == len(dataset), (seen, len(dataset))
assert order == "litdata" or bool((there == 1).all())
found = dataset.stats()
assert found["high_water_mark"] <= found["max_memory_size"], found
assert found["pins"] == 0
print(memory("VmHWM") - before - there.nbytes, found["max_memory_size"], found["bytes_fetched"])
"""
)

MEASURES = [
    *[("long", order, "8MB", "near") for order in ORDERS],
    *[("long", order, "64MB", "far") for order in ORDERS],
    ("long", "window", "64MB", "near"),
    ("long", "window", "8MB", "far"),
    ("short", "window", "8MB", "near"),
    ("short", "window", "64MB", "near"),
]


@pytest.mark.skipif("LAZYSTORE_SANITIZED" in os.environ, reason="sanitizers need memory of their own")
@pytest.mark.parametrize(("name", "order", "budget", "where"), MEASURES, ids=["-".join(row) for row in MEASURES])
def test_an_epoch_stays_within_its_budget(
    large: Path, store: ObjectStore, name: str, order: str, budget: str, where: str
) -> None:
    url = str(large / name) if where == "near" else store.http_url("large", name)
    grown, bound, fetched = map(int, scripts.run(MEASURED, url, order, budget, timeout=120).split())
    assert grown <= bound + SLACK, f"{grown / MIB:.1f} MiB for a budget of {budget}"
    stored = sum(path.stat().st_size for path in (large / name).glob("chunk-*"))
    if order in ("sequential", "window") or (order == "litdata" and budget == "64MB"):
        assert fetched <= 1.1 * stored, f"{fetched / stored:.2f} of what is stored was fetched"


# -- threads --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """~900 kB in 10 chunks."""
    return datasets.write(tmp_path_factory.mktemp("streams") / "dataset", COUNT, chunk_size=300)


HEAD = """
import faulthandler, gc, logging, os, random, sys, threading, time, warnings
faulthandler.dump_traceback_later(50, exit=True)
warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
logging.getLogger("lazystore").setLevel(logging.ERROR)  # falling back is fine where many share few frames
from models.walk import route_items
from support import datasets
from lazystore import ClosedError, StreamingDataset

COUNT = 3000
url, order, budget = sys.argv[1:4]

def opened(**options):
    return StreamingDataset(url, order=order, memory=int(budget), **options)

def numbers(dataset):
    route, _ = dataset._session.begin()
    return route_items(route.legs(), dataset._session.shape.counts)

def idle(dataset):
    deadline = time.monotonic() + 5
    while dataset.stats()["in_flight_bytes"] and time.monotonic() < deadline:
        time.sleep(0.01)
    gc.collect()
    found = dataset.stats()
    assert (found["pins"], found["in_flight_bytes"], dataset._memory.store.filling) == (0, 0, 0), found
    dataset._memory.store.check()

def together(works):
    wrong = []
    def guarded(work):
        try:
            work()
        except BaseException:
            import traceback
            wrong.append(traceback.format_exc())
    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, "\\n".join(wrong)
"""


@pytest.fixture(params=["near", "far"])
def url(request: pytest.FixtureRequest, folder: Path) -> str:
    if request.param == "near":
        return str(folder)
    store: ObjectStore = request.getfixturevalue("store")
    return store.http_url("small", "dataset")


@pytest.mark.parametrize("order", ORDERS)
def test_iterators_in_threads_and_readers_by_number_all_get_their_items(url: str, order: str) -> None:
    scripts.run(
        HEAD
        + """
sys.setswitchinterval(1e-5)
dataset = opened()
route = numbers(dataset)

def iterate():
    datasets.check(dataset, route)

def some(seed):
    chance = random.Random(seed)
    for _ in range(4):
        iterator = iter(dataset)
        count = chance.randrange(600)
        datasets.check([next(iterator) for _ in range(count)], route[:count])
        if chance.random() < 0.5:
            iterator.close()

def by_number():
    chance = random.Random(3)
    for _ in range(200):
        i = chance.randrange(COUNT)
        datasets.check([dataset[i]], [i])

iterators = [iter(dataset) for _ in range(4)]  # the latest pass is not ended: that would begin the next epoch
def given(iterator):
    datasets.check(iterator, route)

together([lambda k=k: given(iterators[k]) for k in range(3)] + [lambda: some(1), by_number])
del iterators
idle(dataset)
""",
        url, order, 300_000 if url.startswith("/") else 600_000,
    )  # fmt: skip


@pytest.mark.parametrize("order", ORDERS)
def test_a_dataset_closed_by_another_thread_ends_every_iterator(url: str, order: str) -> None:
    scripts.run(
        HEAD
        + """
for delay in (0.0, 0.01, 0.05):
    dataset = opened()
    ends = []
    def iterate():
        found = 0
        try:
            for item in dataset:
                found += 1
            while True:
                next(iter(dataset))
        except ClosedError:
            ends.append(found)
    def close():
        time.sleep(delay)
        dataset.close()
    together([iterate, iterate, close])
    assert len(ends) == 2
    del dataset
""",
        url, order, 600_000,
    )  # fmt: skip


def test_no_thread_stays_behind_an_iteration(url: str) -> None:
    for order in ORDERS:
        scripts.run(
            HEAD
            + """
dataset = opened()
datasets.check([dataset[5]], [5])
iterator = iter(dataset)
for _ in range(50):
    next(iterator)
del iterator
gc.collect()
one_pass = threading.active_count()
for _ in range(5):
    iterator = iter(dataset)
    for _ in range(200):
        next(iterator)
    iterator.close()
assert threading.active_count() <= one_pass, threading.enumerate()
assert not any("lists" in thread.name for thread in threading.enumerate()), threading.enumerate()
idle(dataset)
""",
            url, order, 600_000,
        )  # fmt: skip


# -- processes ------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
def test_after_a_fork_in_the_middle_both_read_on(url: str, order: str) -> None:
    out = scripts.run(
        HEAD
        + """
for stop in (1, 1333):
    dataset = opened(timeout=20)
    route = numbers(dataset)
    iterator = iter(dataset)
    found = [next(iterator) for _ in range(stop)]
    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                datasets.check(found + list(iterator), route)
                datasets.check(dataset.iter_from(0), numbers(dataset))
                del iterator
                idle(dataset)
                code = 0
            except BaseException:
                import traceback
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    datasets.check(found + list(iterator), route)
    for child in children:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    del iterator
    idle(dataset)
print("fine")
""",
        url, order, 600_000,
    )  # fmt: skip
    assert out == "fine\n"


@pytest.mark.parametrize("order", ORDERS)
def test_a_child_that_drops_its_iterator_or_ends_disturbs_nobody(url: str, order: str) -> None:
    scripts.run(
        HEAD
        + """
dataset = opened(timeout=20)
route = numbers(dataset)
iterator = iter(dataset)
found = [next(iterator) for _ in range(400)]
faulthandler.cancel_dump_traceback_later()  # its thread is missing in a child, which would wait for it at exit
for way in ("drop", "close", "exit"):
    child = os.fork()
    if child == 0:
        if way == "drop":
            del iterator
        elif way == "close":
            iterator.close()
            dataset.close()
        sys.exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    found += [next(iterator) for _ in range(400)]
found += iterator
datasets.check(found, route)
""",
        url, order, 600_000,
    )  # fmt: skip


@pytest.mark.parametrize("how", ["return", "sys.exit(0)", "kept by a module", "in a thread"])
def test_an_interpreter_ends_with_half_read_iterators(url: str, how: str) -> None:
    for order in ("window", "global"):
        began = time.monotonic()
        scripts.run(
            HEAD
            + """
how = sys.argv[4]
dataset = opened()
batches = opened().batches(16, "list")
next(batches)
iterator = iter(dataset)
for _ in range(700):
    next(iterator)
if how == "sys.exit(0)":
    sys.exit(0)
if how == "kept by a module":
    import json
    json.kept = (iterator, dataset)
    del iterator, dataset
if how == "in a thread":
    # A daemon thread may be in the middle of anything; it must not keep the process.
    def forever():
        try:
            while True:
                for _ in opened():
                    pass
        except BaseException:
            pass
    threading.Thread(target=forever, daemon=True).start()
    time.sleep(0.05)
""",
            url, order, 600_000, how,
        )  # fmt: skip
        assert time.monotonic() - began < 25, "the exit waited for something"


INTERRUPTED = (
    HEAD
    + """
caught = sys.argv[4] == "caught"
dataset = opened(timeout=20)
route = numbers(dataset)
found = []
times = 4
iterator = iter(dataset)
print("ready", flush=True)
while len(found) < COUNT:
    try:
        for item in iterator:
            found.append(item)
            if times:
                time.sleep(0.001)
        break
    except KeyboardInterrupt:
        if not caught:
            raise
        times -= 1
        print("again", len(found), flush=True)
datasets.check(found, route)
del iterator
idle(dataset)
print("fine", flush=True)
"""
)


def interrupted(url: str, order: str, kind: str, signals: int) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a process that gets Ctrl-C some times while it reads."""
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, url, order, "600000", kind],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(scripts.PATHS)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for _ in range(signals):
            time.sleep(0.1)
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, out, err


@pytest.mark.parametrize("order", ORDERS)
def test_a_reader_that_catches_ctrl_c_reads_on(url: str, order: str) -> None:
    code, out, err = interrupted(url, order, "caught", 4)
    assert (code, err) == (0, ""), err
    assert out.endswith("fine\n")
    assert out.count("again") >= 1


@pytest.mark.parametrize("order", ORDERS)
def test_ctrl_c_ends_a_process_with_nothing_but_its_traceback(url: str, order: str) -> None:
    code, _, err = interrupted(url, order, "not caught", 1)
    assert code in (-signal.SIGINT, 130), err
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert err.count("Traceback") == 1, err
    for complaint in ("Exception ignored", "never awaited", "was destroyed", "Unclosed", "leaked"):
        assert complaint not in err
