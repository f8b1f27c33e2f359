"""Datasets far away: the same items by every client, few requests, every fault survived, everything given back."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import datasets, golden, scripts

from lazystore import (
    ClosedError,
    DatasetNotFoundError,
    FetchError,
    FormatError,
    ItemIndexError,
    SourceChangedError,
    StreamingDataset,
    TokensLoader,
)
from lazystore.testing import Faults, ObjectStore, dependent_waves

COUNT, PER_CHUNK, SIZE = 3000, 1000, 200
LATENCY_MS = 5.0
#: a latency that tells waves of requests apart, however busy the machine is
WAVE_MS = 100.0


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bucket with the dataset (three chunks of ~280 kB) and some golden ones."""
    root = tmp_path_factory.mktemp("remote")
    datasets.write(root / "bucket" / "data", COUNT, size=SIZE, chunk_size=PER_CHUNK)
    for name in ("litdata-classic-text", "litdata-classic-tokens-numpy", "litdata-classic-zstd"):
        datasets.copy(golden.GOLDEN / name / "data", root / "bucket" / name)
    return root


@pytest.fixture(scope="module")
def running(root: Path) -> Iterator[ObjectStore]:
    with ObjectStore(root, latency_ms=LATENCY_MS) as store:
        yield store


@pytest.fixture
def store(running: ObjectStore) -> Iterator[ObjectStore]:
    running.reset()
    yield running
    running.configure(faults=None, latency_ms=LATENCY_MS)


KINDS = ["http", "http obstore", pytest.param("s3", marks=pytest.mark.s3), "s3 obstore"]


def opened(store: ObjectStore, kind: str, name: str = "data", **options: Any) -> StreamingDataset:
    """The dataset by one client."""
    protocol, _, backend = kind.partition(" ")
    pytest.importorskip({"http": "aiohttp", "s3": "s3fs"}[protocol] if not backend else "obstore")
    options.setdefault("memory", "4MB")
    if protocol == "http":
        place, storage = store.http_url("bucket", name), {}
    else:
        place, storage = store.s3_url("bucket", name), store.s3_options()
    return StreamingDataset(place, storage_options=storage, backend=backend or "fsspec", **options)


# -- the same items -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_path_gives_the_same_items_as_from_a_disk(store: ObjectStore, kind: str) -> None:
    order = random.Random(1).sample(range(COUNT), 40)
    with opened(store, kind) as dataset:
        assert len(dataset) == COUNT
        datasets.check((dataset[i] for i in order), order, SIZE)
        datasets.check(dataset.get_many(order), order, SIZE)
        datasets.check(dataset, range(COUNT), SIZE)
        datasets.check(dataset[5:-1:601], range(COUNT)[5:-1:601], SIZE)
        with dataset.view(7) as lease:
            assert bytes(lease) == dataset.get_bytes(7)
        assert dataset.prefetch_items([3, -3]) == 0
        assert dataset.stats()["retries"] == dataset.stats()["fallbacks"] == 0
        assert dataset.stats()["high_water_mark"] <= 4_000_000


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["litdata-classic-text", "litdata-classic-zstd"])
def test_golden_datasets_in_a_small_budget(store: ObjectStore, kind: str, name: str) -> None:
    golden.require(name)
    wanted = golden.expected(name)
    with opened(store, kind, name, memory="900kB") as dataset:
        golden.assert_same(dataset, wanted)
        golden.assert_same((dataset[-i] for i in range(1, 20)), [wanted[-i] for i in range(1, 20)])
        golden.assert_same(dataset.get_many(range(0, len(wanted), 3)), wanted[::3])


def test_tokens_in_blocks(store: ObjectStore) -> None:
    wanted = golden.expected("litdata-classic-tokens-numpy", "expected_blocks_25.jsonl")
    with opened(store, "http", "litdata-classic-tokens-numpy", item_loader=TokensLoader(25)) as dataset:
        golden.assert_same([dataset[i] for i in range(len(wanted))], wanted)
        golden.assert_same(dataset, wanted)


def test_an_fsspec_filesystem_without_a_network(root: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in (root / "bucket" / "data").iterdir():
        memory.pipe(f"/far/data/{path.name}", path.read_bytes())
    try:
        with StreamingDataset("memory://far/data", memory="2MB") as dataset:
            datasets.check(dataset, range(COUNT), SIZE)
            datasets.check(dataset.get_many([2999, 0]), [2999, 0], SIZE)
    finally:
        memory.rm("/far", recursive=True)


# -- how much is asked for ------------------------------------------------------------------


def data_requests(store: ObjectStore) -> list[dict[str, Any]]:
    return [entry for entry in store.stats()["log"] if entry["path"].endswith(".bin")]


@pytest.mark.parametrize("kind", KINDS)
def test_a_cold_item_takes_at_most_two_round_trips_and_not_its_chunk(store: ObjectStore, kind: str) -> None:
    with opened(store, kind) as dataset:
        store.configure(latency_ms=WAVE_MS)
        waves = []
        for i in (2500, 700, 1500):
            store.reset()
            datasets.check([dataset[i]], [i], SIZE)
            waves.append(dependent_waves(data_requests(store)))
            assert sum(entry["sent"] for entry in data_requests(store)) < 40_000
        assert max(waves) <= 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_cold_batch_takes_at_most_three_waves(store: ObjectStore, kind: str) -> None:
    wanted = random.Random(2).sample(range(COUNT), 256)
    with opened(store, kind, memory="64MB") as dataset:
        store.configure(latency_ms=WAVE_MS)
        store.reset()
        datasets.check(dataset.get_many(wanted), wanted, SIZE)
        assert dependent_waves(data_requests(store)) <= 3


def test_what_is_resident_is_asked_for_no_more(store: ObjectStore) -> None:
    with opened(store, "http") as dataset:
        list(dataset)
        store.reset()
        datasets.check(dataset, range(COUNT), SIZE)
        datasets.check(dataset.get_many(range(0, COUNT, 5)), range(0, COUNT, 5), SIZE)
        assert store.stats()["gets"] == 0
        assert all(map(dataset.is_item_available, range(COUNT)))


# -- what is not there ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_dataset_is_named_by_its_url(store: ObjectStore, kind: str) -> None:
    with pytest.raises(DatasetNotFoundError, match=r"bucket/nowhere/index\.json.*path is wrong"):
        opened(store, kind, "nowhere")


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_chunk_is_named_and_the_others_are_read(
    store: ObjectStore, kind: str, root: Path, tmp_path: Path
) -> None:
    chunk = root / "bucket" / "data" / "chunk-0-1.bin"
    chunk.rename(tmp_path / "away")
    try:
        with opened(store, kind) as dataset:
            for read in (lambda: dataset[1500], lambda: dataset.get_many([5, 1500]), lambda: dataset.view(1001)):
                with pytest.raises(DatasetNotFoundError, match=r"bucket/data/chunk-0-1\.bin"):
                    read()
            items = iter(dataset)
            datasets.check([next(items) for _ in range(PER_CHUNK)], range(PER_CHUNK), SIZE)
            with pytest.raises(DatasetNotFoundError, match=r"chunk-0-1\.bin"):
                next(items)
            datasets.check(dataset.get_many(range(2000, 2100)), range(2000, 2100), SIZE)
    finally:
        (tmp_path / "away").rename(chunk)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", ["empty", "cut", "count"])
def test_a_damaged_chunk_is_named_and_the_others_are_read(
    store: ObjectStore, kind: str, damage: str, root: Path
) -> None:
    chunk = root / "bucket" / "data" / "chunk-0-1.bin"
    data = chunk.read_bytes()
    chunk.write_bytes({"empty": b"", "cut": data[:20_000], "count": b"\7" + data[1:]}[damage])
    try:
        with opened(store, kind) as dataset:
            for read in (
                lambda: dataset[1999],
                lambda: dataset.get_many([5, 1999]),
                lambda: next(iter(dataset.view(1999))),
            ):
                with pytest.raises(FormatError, match=r"bucket/data/chunk-0-1\.bin \(chunk 1\)"):
                    read()
            datasets.check(dataset.get_many([5, 2500]), [5, 2500], SIZE)
            with pytest.raises(FormatError, match=r"chunk-0-1\.bin"):
                list(dataset)
    finally:
        chunk.write_bytes(data)


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_rewritten_while_it_is_read_is_an_error_never_wrong_data(
    store: ObjectStore, kind: str, root: Path
) -> None:
    chunk = root / "bucket" / "data" / "chunk-0-2.bin"
    data, before = chunk.read_bytes(), chunk.stat()
    try:
        with opened(store, kind) as dataset:
            datasets.check([dataset[2001]], [2001], SIZE)
            chunk.write_bytes(data[:5000] + bytes(len(data) - 5000))
            os.utime(chunk, ns=(before.st_mtime_ns + 10**9,) * 2)
            with pytest.raises(SourceChangedError, match=r"chunk-0-2\.bin"):
                dataset[2999]
            with pytest.raises(SourceChangedError, match=r"chunk-0-2\.bin"):
                list(dataset)
            datasets.check([dataset[2001], dataset[5]], [2001, 5], SIZE)
            assert dataset.stats()["fallbacks"] == 0
    finally:
        chunk.write_bytes(data)


# -- faults ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_item_arrives_once_and_right_through_faults(store: ObjectStore, kind: str) -> None:
    with opened(store, kind, timeout=60) as dataset:
        dataset.get_many([0, 1100, 2200])  # latencies are known from here on
        store.configure(faults=Faults(error_503=0.1, cut=0.1, stall=0.1, seed=11))
        wanted = random.Random(3).sample(range(COUNT), 120)
        datasets.check(dataset.get_many(wanted), wanted, SIZE)
        datasets.check((dataset[i] for i in wanted[:25]), wanted[:25], SIZE)
        datasets.check(dataset, range(COUNT), SIZE)
        assert dataset.stats()["retries"] > 0
        assert sum(store.stats()["faults"].values()) > 0
        assert dataset.stats()["in_flight_bytes"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_when_nothing_helps_the_error_says_what_was_tried(store: ObjectStore, kind: str) -> None:
    with opened(store, kind, timeout=4.0 if kind == "s3" else 1.5) as dataset:  # opening is given no longer than that
        store.configure(faults=Faults(error_503=1.0, only="*chunk-0-1*"))
        with pytest.raises(FetchError, match=r"chunk-0-1\.bin") as raised:
            dataset[1500]
        assert raised.value.attempts > 1
        assert raised.value.elapsed > 0
        assert "chunk-0-1.bin" in raised.value.url
        datasets.check([dataset[5], dataset[2500]], [5, 2500], SIZE)
        store.configure(faults=None)
        datasets.check([dataset[1500]], [1500], SIZE)


# -- life -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_closing_refuses_reads_and_twice_is_fine(store: ObjectStore, kind: str) -> None:
    dataset = opened(store, kind)
    datasets.check([dataset[1]], [1], SIZE)
    dataset.close()
    dataset.close()
    for read in (lambda: dataset[1], lambda: dataset.get_many([2]), lambda: next(iter(dataset))):
        with pytest.raises(ClosedError):
            read()
    with pytest.raises(ItemIndexError):
        dataset[COUNT]


def test_a_pickled_dataset_connects_by_itself(store: ObjectStore) -> None:
    with opened(store, "http", memory="2MB") as dataset:
        dataset[0]
        with pickle.loads(pickle.dumps(dataset)) as twin:
            datasets.check([twin[2999]], [2999], SIZE)


SCRIPT = """
import faulthandler, os, random, sys, threading, warnings
faulthandler.dump_traceback_later(50, exit=True)
warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
from support import datasets
from lazystore import StreamingDataset

url, backend = sys.argv[1:]
dataset = StreamingDataset(url, memory="3MB", backend=backend)
datasets.check(dataset[0:30], range(30))
"""

FORK = """
items = iter(dataset)
datasets.check([next(items) for _ in range(700)], range(700))
children = []
for seed in range(2):
    pid = os.fork()
    if not pid:
        code = 1
        try:
            datasets.check(items, range(700, 3000))
            wanted = random.Random(seed).sample(range(3000), 60)
            datasets.check(dataset.get_many(wanted), wanted)
            datasets.check([dataset[7], dataset[2990]], [7, 2990])
            dataset.close()
            code = 0
        finally:
            if code:
                faulthandler.dump_traceback()
            os._exit(code)
    children.append(pid)
datasets.check(items, range(700, 3000))
for pid in children:
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
datasets.check(dataset.get_many([2999, 5]), [2999, 5])
"""

THREADS = """
wrong = []
def work(seed):
    chance = random.Random(seed)
    try:
        for _ in range(12):
            i = chance.randrange(3000)
            datasets.check([dataset[i]], [i])
            wanted = chance.choices(range(3000), k=25)
            datasets.check(dataset.get_many(wanted), wanted)
        datasets.check(dataset[1000:1500], range(1000, 1500))
    except BaseException as error:
        wrong.append(repr(error))
threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not wrong, wrong
"""


@pytest.mark.parametrize("backend", ["fsspec", "obstore"])
@pytest.mark.parametrize(
    "body", ["", "lease = dataset.view(5); items = iter(dataset); next(items)", FORK, THREADS],
    ids=["exit while alive", "exit with a view", "fork", "threads"],
)  # fmt: skip
def test_processes_and_threads(store: ObjectStore, backend: str, body: str) -> None:
    pytest.importorskip("aiohttp")  # obstore gives way to fsspec in a forked child
    if backend == "obstore":
        pytest.importorskip("obstore")
    assert scripts.run(SCRIPT + body, store.http_url("bucket", "data"), backend) == ""
