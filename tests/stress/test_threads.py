"""Many threads over one dataset in the smallest budget: every item right, nobody stuck, nothing left pinned."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import datasets, scripts

pytestmark = pytest.mark.stress

COUNT = 3000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """~900 kB in 10 chunks."""
    return datasets.write(tmp_path_factory.mktemp("threads") / "dataset", COUNT, chunk_size=300)


HEAD = """
import faulthandler, gc, logging, random, sys, threading, time
faulthandler.dump_traceback_later(100, exit=True)
logging.getLogger("lazystore").setLevel(logging.ERROR)  # falling back is fine where many share 14 frames
sys.setswitchinterval(1e-5)
from support import datasets
from lazystore import ArenaFullError, ClosedError, EvictionPolicy, StreamingDataset

COUNT = 3000
folder = sys.argv[1]
wrong = []

def together(count, work):
    def guarded(seed):
        try:
            work(seed, random.Random(seed))
        except BaseException as error:
            import traceback
            wrong.append((seed, error, traceback.format_exc()))
    threads = [threading.Thread(target=guarded, args=(seed,)) for seed in range(count)]
    for thread in threads:
        thread.start()
    return threads

def finish(threads):
    for thread in threads:
        thread.join()
    for seed, error, text in wrong:
        print(seed, text)
    assert not wrong

def idle(dataset):
    gc.collect()
    store = dataset._memory.store
    store.check()
    assert store.filling == 0
    assert dataset.stats()["pins"] == 0, dataset.stats()
    assert dataset.stats()["high_water_mark"] <= dataset.stats()["max_memory_size"]
"""

MIXED = """
def mixed(seed, chance):
    for _ in range(ROUNDS):
        match chance.randrange(7):
            case 0 | 1:
                i = chance.randrange(COUNT)
                datasets.check([dataset[i]], [i])
            case 2:
                wanted = chance.choices(range(COUNT), k=40)
                datasets.check(dataset.get_many(wanted), wanted)
            case 3:
                begin = chance.randrange(COUNT - 60)
                datasets.check(dataset[begin : begin + 60], range(begin, begin + 60))
            case 4:
                i = chance.randrange(COUNT)
                with dataset.view(i) as lease:
                    window = memoryview(lease)
                    before = bytes(window)
                    j = chance.randrange(COUNT)
                    datasets.check([dataset[j]], [j])
                    assert bytes(window) == before == dataset.get_bytes(i)
                    window.release()
            case 5:
                items = iter(dataset)
                stop = chance.randrange(400)
                datasets.check([next(items) for _ in range(stop)], range(stop))
            case 6:
                dataset.prefetch_items(chance.choices(range(COUNT), k=20))
                dataset.get_memory_stats()
"""


@pytest.mark.parametrize("memory", [65536, 200_000])
@pytest.mark.parametrize("policy", ["LRU", "FIFO", "S3FIFO"])
def test_eight_threads_do_everything_at_once(folder: Path, memory: int, policy: str) -> None:
    assert (
        scripts.run(
            HEAD
            + f"""
ROUNDS = 60
dataset = StreamingDataset(folder, memory={memory}, eviction_policy=EvictionPolicy.{policy})
{MIXED}
finish(together(8, mixed))
idle(dataset)
datasets.check(dataset, range(COUNT))
""",
            folder,
            timeout=110,
        )
        == ""
    )


def test_threads_share_a_compressed_dataset(tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    compressed = datasets.write(tmp_path / "zstd", COUNT, chunk_size=300, compression="zstd")
    assert (
        scripts.run(
            HEAD
            + f"""
ROUNDS = 12
dataset = StreamingDataset(folder, memory=700_000)
{MIXED}
finish(together(6, mixed))
idle(dataset)
""",
            compressed,
            timeout=110,
        )
        == ""
    )


def test_iterators_abandoned_half_way_hold_nothing(folder: Path) -> None:
    assert (
        scripts.run(
            HEAD
            + """
dataset = StreamingDataset(folder, memory=65536)

def abandon(seed, chance):
    kept = []
    for _ in range(60):
        items = iter(dataset)
        stop = chance.randrange(100)
        datasets.check([next(items) for _ in range(stop)], range(stop))
        kept.append(items)
        if chance.random() < 0.5:
            kept.clear()

finish(together(8, abandon))
idle(dataset)
running = [iter(dataset) for _ in range(50)]
for items in running:
    next(items)
assert dataset.stats()["pins"] == 0
""",
            folder,
            timeout=110,
        )
        == ""
    )


def test_closing_while_others_read_gives_right_items_or_a_closed_error(folder: Path) -> None:
    assert (
        scripts.run(
            HEAD
            + f"""
ROUNDS = 10**6
{MIXED}

def until_closed(seed, chance):
    try:
        mixed(seed, chance)
    except ClosedError:
        return

for turn in range(40):
    dataset = StreamingDataset(folder, memory=[65536, 300_000][turn % 2])
    threads = together(6, until_closed)
    time.sleep(0.002 * (turn % 12))
    dataset.close()
    finish(threads)
    try:
        dataset[0]
    except ClosedError:
        continue
    raise AssertionError("closed, yet it reads")
""",
            folder,
            timeout=110,
        )
        == ""
    )


def test_closing_while_others_decode_in_python(folder: Path) -> None:
    """Serializers and transforms run Python code in the middle of a read: there the dataset may go away."""
    assert (
        scripts.run(
            HEAD
            + """
def slow(data):
    time.sleep(0)
    return bytes(data)

def until_closed(seed, chance):
    try:
        while True:
            for item in dataset:
                assert item["blob"] == datasets.sample(item["id"])["blob"]
            dataset.get_many(chance.choices(range(COUNT), k=50))
    except ClosedError:
        return

for turn in range(25):
    dataset = StreamingDataset(
        folder, memory=[65536, 300_000][turn % 2], serializers={"bytes": slow},
        transform=lambda item: time.sleep(0) or item,
    )
    threads = together(5, until_closed)
    time.sleep(0.003 * (turn % 8))
    dataset.close()
    finish(threads)
""",
            folder,
            timeout=110,
        )
        == ""
    )


def test_an_index_object_may_close_the_dataset(folder: Path) -> None:
    assert (
        scripts.run(
            HEAD
            + """
class Index:
    def __index__(self):
        dataset.close()
        return 3

for warm in (False, True):
    for read in ("__getitem__", "view", "get_bytes", "is_item_available"):
        dataset = StreamingDataset(folder, memory="8MB")
        if warm:
            list(dataset)
        try:
            getattr(dataset, read)(Index())
        except ClosedError:
            continue
        raise AssertionError(read)
    for wanted in ([Index(), 2], [2, Index()], [2] * 100 + [Index()] + [5] * 100):
        for read in ("get_many", "prefetch_items"):
            dataset = StreamingDataset(folder, memory="8MB")
            if warm:
                list(dataset)
            try:
                getattr(dataset, read)(wanted)
            except ClosedError:
                continue
            raise AssertionError((read, wanted))
""",
            folder,
        )
        == ""
    )


def test_a_serializer_may_use_and_close_the_dataset_it_serves(folder: Path) -> None:
    assert (
        scripts.run(
            HEAD
            + """
deep = 0

def nested(data):
    global deep
    deep += 1
    if deep < 3:
        dataset.get_many(random.Random(deep).choices(range(COUNT), k=20))
        dataset[deep * 100]
        next(iter(dataset))
    deep -= 1
    return data

dataset = StreamingDataset(folder, memory=65536, serializers={"bytes": nested})
datasets.check(dataset[0:40], range(40))
datasets.check((item for item, _ in zip(dataset, range(40))), range(40))
idle(dataset)

def closing(data):
    dataset.close()
    return data

for read in (
    lambda: dataset[5], lambda: dataset.get_many(range(100)), lambda: list(dataset),
    lambda: dataset.get_many([5] * 3 + list(range(2900, 3000))),
):
    for warm in (False, True):
        dataset = StreamingDataset(folder, memory=300_000)
        if warm:
            list(dataset)
        dataset = StreamingDataset(folder, memory=300_000, serializers={"bytes": closing})
        try:
            read()
        except ClosedError:
            pass
""",
            folder,
            timeout=110,
        )
        == ""
    )


def test_views_come_and_go_in_all_threads(folder: Path) -> None:
    assert (
        scripts.run(
            HEAD
            + """
import numpy

dataset = StreamingDataset(folder, memory=65536, timeout=20)
pool = []
lock = threading.Lock()

def juggle(seed, chance):
    for _ in range(150):
        i = chance.randrange(COUNT)
        lease = dataset.view(i)
        array = numpy.frombuffer(lease, "u1")
        with lock:
            pool.append((i, lease, array))
            if len(pool) > 12:
                i, lease, array = pool.pop(chance.randrange(len(pool)))
            else:
                continue
        assert array.tobytes() == bytes(lease) == dataset.get_bytes(i)
        if chance.random() < 0.5:
            lease.release()
        del lease, array

finish(together(8, juggle))
for i, lease, array in pool:
    assert array.tobytes() == dataset.get_bytes(i)
del i, lease, array
pool.clear()
idle(dataset)
""",
            folder,
            timeout=110,
        )
        == ""
    )
