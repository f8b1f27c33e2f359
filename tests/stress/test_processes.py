"""Forked, spawned and ending processes: everybody reads on, nobody hangs, nobody complains."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support import datasets, scripts

pytestmark = pytest.mark.stress

COUNT = 3000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """~900 kB in 10 chunks."""
    return datasets.write(tmp_path_factory.mktemp("processes") / "dataset", COUNT, chunk_size=300)


HEAD = """
import logging, os, random, sys, threading, warnings
warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
logging.getLogger("lazystore").setLevel(logging.ERROR)  # falling back is fine where many share 14 frames
from support import datasets
from lazystore import ClosedError, StreamingDataset

COUNT = 3000
folder = sys.argv[1]

def in_child(work):
    "Run work in a forked child; its exit code is 0 when it returned."
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        import traceback
        traceback.print_exc()
    finally:
        os._exit(code)

def joined(*pids):
    for pid in pids:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

def read_all(dataset):
    datasets.check(dataset, range(COUNT))
    order = random.Random(1).sample(range(COUNT), 300)
    datasets.check((dataset[i] for i in order), order)
    datasets.check(dataset.get_many(order), order)
    for i in order[:20]:
        with dataset.view(i) as lease:
            assert bytes(lease) == dataset.get_bytes(i)
"""


@pytest.mark.parametrize("memory", [65536, "8MB"])
def test_after_a_fork_in_the_middle_both_read_on(folder: Path, memory: int | str) -> None:
    assert (
        scripts.run(
            HEAD
            + f"""
dataset = StreamingDataset(folder, memory={memory!r})
items = iter(dataset)
datasets.check([next(items) for _ in range(1234)], range(1234))
lease = dataset.view(17)
bytes_before = bytes(lease)

def child():
    datasets.check(items, range(1234, COUNT))
    assert bytes(lease) == bytes_before
    lease.release()
    read_all(dataset)
    dataset.close()

pids = [in_child(child) for _ in range(3)]
datasets.check(items, range(1234, COUNT))
read_all(dataset)
joined(*pids)
read_all(dataset)
assert bytes(lease) == bytes_before
""",
            folder,
        )
        == ""
    )


@pytest.mark.parametrize("memory", [65536, 300_000])
def test_a_fork_while_threads_read_leaves_the_child_free(folder: Path, memory: int) -> None:
    """Whatever the threads held at that moment, locks and half-filled frames, must not block the child."""
    assert (
        scripts.run(
            HEAD
            + f"""
dataset = StreamingDataset(folder, memory={memory})
stop = threading.Event()
wrong = []

def work(seed):
    chance = random.Random(seed)
    try:
        while not stop.is_set():
            i = chance.randrange(COUNT - 20)
            if seed % 2:
                datasets.check([dataset[i]], [i])
            else:
                datasets.check(dataset.get_many(range(i, i + 20)), range(i, i + 20))
    except BaseException as error:
        wrong.append(error)

threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
for thread in threads:
    thread.start()

def child():
    import signal
    signal.alarm(40)
    for _ in range(2):
        read_all(dataset)

for _ in range(5):
    joined(in_child(child))
stop.set()
for thread in threads:
    thread.join()
assert not wrong, wrong
read_all(dataset)
""",
            folder,
            timeout=120,
        )
        == ""
    )


def test_a_child_may_close_its_copy_and_fork_again(folder: Path) -> None:
    assert (
        scripts.run(
            HEAD
            + """
dataset = StreamingDataset(folder, memory=200_000)
dataset[5]

def grandchild():
    read_all(dataset)

def child():
    joined(in_child(grandchild))
    dataset.close()
    try:
        dataset[0]
    except ClosedError:
        pass
    else:
        raise AssertionError("closed, yet it reads")

joined(in_child(child))
read_all(dataset)
""",
            folder,
        )
        == ""
    )


def test_a_dataset_closed_before_the_fork_stays_closed(folder: Path) -> None:
    assert (
        scripts.run(
            HEAD
            + """
dataset = StreamingDataset(folder)
dataset[0]
dataset.close()

def child():
    try:
        dataset[0]
    except ClosedError:
        return
    raise AssertionError("closed, yet it reads")

joined(in_child(child))
""",
            folder,
        )
        == ""
    )


SPAWN = """
import multiprocessing, sys
from support import datasets
from lazystore import InMemoryItemLoader, StreamingConfig, StreamingDataset

def transform(item):
    return item["id"] * 2

def work(dataset, begin, results):
    results.put([dataset[i] for i in range(begin, begin + 50)])

if __name__ == "__main__":
    method, folder = sys.argv[1:]
    context = multiprocessing.get_context(method)
    loader = InMemoryItemLoader(StreamingConfig(max_memory_size=300_000))
    dataset = StreamingDataset(folder, item_loader=loader, transform=transform)
    assert list(dataset)[:3] == [0, 2, 4]
    results = context.SimpleQueue()
    workers = [context.Process(target=work, args=(dataset, k * 100, results)) for k in range(2)]
    for worker in workers:
        worker.start()
    found = sorted(results.get() for _ in workers)
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0, worker.exitcode
    assert found == [[2 * i for i in range(k * 100, k * 100 + 50)] for k in range(2)]
    assert len(list(dataset)) == len(dataset)
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_other_processes_get_the_recipe(folder: Path, tmp_path: Path, method: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(SPAWN)
    # A spawned child imports the main module again, so it has to be a file.
    assert scripts.run(script, method, folder, timeout=90) == ""


# -- the end of the interpreter -------------------------------------------------------------

ENDINGS = {
    "everything alive": "",
    "closed first": "dataset.close()",
    "in a cycle": "dataset.me = [dataset, lease, items, view]; del dataset, lease, items, view",
    "threads still reading": """
for seed in range(3):
    threading.Thread(target=lambda: [dataset[i % 100] for i in range(10**7)], daemon=True).start()
""",
    "threads still scanning": """
def forever():
    while True:
        for item in dataset:
            pass
for seed in range(3):
    threading.Thread(target=forever, daemon=True).start()
""",
    "reading at exit": """
import atexit
atexit.register(lambda: datasets.check(dataset, range(COUNT)))
""",
    "reading in a finalizer": """
class Late:
    def __init__(self, dataset): self.dataset = dataset
    def __del__(self):
        try:
            self.dataset[0]
        except Exception:
            pass
late = Late(dataset)
late.me = late
""",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_interpreter_ends_without_a_word(folder: Path, ending: str) -> None:
    assert (
        scripts.run(
            HEAD
            + """
import numpy
dataset = StreamingDataset(folder, memory=400_000)
list(dataset)
items = iter(dataset)
next(items)
lease = dataset.view(1500)
view = numpy.frombuffer(lease, "u1")
"""
            + ENDINGS[ending],
            folder,
            timeout=60,
        )
        == ""
    )


def test_a_keyboard_interrupt_while_iterating_leaves_the_dataset_whole(folder: Path) -> None:
    assert (
        scripts.run(
            HEAD
            + """
import signal

dataset = StreamingDataset(folder, memory=100_000)
interrupted = 0
signal.signal(signal.SIGALRM, signal.default_int_handler)
for _ in range(30):
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.003)
        while True:
            for item in dataset:
                pass
    except KeyboardInterrupt:
        interrupted += 1
assert interrupted == 30
assert dataset.stats()["pins"] == 0
read_all(dataset)
""",
            folder,
        )
        == ""
    )


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_no_thread_is_started_for_local_data(folder: Path) -> None:
    assert (
        scripts.run(
            HEAD
            + """
datasets.sample(1)  # numpy may start threads of its own
before = os.listdir("/proc/self/task")
dataset = StreamingDataset(folder, memory=400_000)
read_all(dataset)
dataset.prefetch_items(range(100))
assert os.listdir("/proc/self/task") == before
""",
            folder,
        )
        == ""
    )
