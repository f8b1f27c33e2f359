"""Loaders in processes of their own: they end, however they end, and the workers keep to the one budget."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import datasets, scripts

from lazystore.testing import ObjectStore

pytest.importorskip("torch")

pytestmark = pytest.mark.stress

COUNT = 6000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """~18 MB in 20 chunks."""
    return datasets.write(tmp_path_factory.mktemp("workers") / "data", COUNT, size=2000, chunk_size=300)


@pytest.fixture(params=["local", "http"])
def place(request: pytest.FixtureRequest, folder: Path) -> Iterator[str]:
    """Path or URL of the dataset."""
    if request.param == "local":
        yield str(folder)
        return
    pytest.importorskip("aiohttp")
    with ObjectStore(folder.parent, latency_ms=5) as store:
        yield store.http_url("data")


HEAD = """
import itertools, os, signal, sys, time, warnings
warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
import torch
from torch.utils.data import DataLoader, get_worker_info
from lazystore import StreamingDataset
from lazystore.adapters.torch import StreamingDataLoader

COUNT = 6000
place = sys.argv[1]

def ids(batches):
    return [int(i) for batch in batches for i in batch["id"]]
"""


@pytest.mark.parametrize(
    ("loader", "kept"),
    [
        ("DataLoader(dataset, 16, num_workers=2)", "batches"),
        ("StreamingDataLoader(dataset, 16, num_workers=2)", "None"),
        ("StreamingDataLoader(dataset, 16, num_workers=2, persistent_workers=True)", "batches"),
    ],
    ids=["plain", "dropped", "persistent"],
)
def test_the_interpreter_ends_in_the_middle_of_a_pass(place: str, loader: str, kept: str) -> None:
    script = f"""
dataset = StreamingDataset(place, memory="8MB", shuffle=True)
loader = {loader}
batches = iter(loader)
for _ in range(5):
    next(batches)
batches = {kept}
"""
    assert scripts.run(HEAD + script, place) == ""


def test_workers_forked_after_the_parent_has_read(place: str) -> None:
    script = """
dataset = StreamingDataset(place, memory="8MB", shuffle=True)
half = iter(dataset)
head = [next(half)["id"] for _ in range(1000)]
dataset.get_many([5, 5000])
assert sorted(ids(DataLoader(dataset, 64, num_workers=2))) == list(range(COUNT))
assert sorted(ids(DataLoader(dataset, 64, num_workers=2, sampler=range(0, COUNT, 7)))) == list(range(0, COUNT, 7))
assert sorted(head + [item["id"] for item in half]) == list(range(COUNT))
assert sorted(ids(StreamingDataLoader(dataset, 64, num_workers=2))) == list(range(COUNT))
"""
    assert scripts.run(HEAD + script, place, timeout=100) == ""


MAIN = """
if __name__ == "__main__":
    method = sys.argv[2]
    dataset = StreamingDataset(place, memory="8MB", shuffle=True)
    dataset[17]
    loader = StreamingDataLoader(dataset, 64, num_workers=2, multiprocessing_context=method, persistent_workers=True)
    first, second = ids(loader), ids(loader)
    assert first != second
    assert sorted(first) == sorted(second) == list(range(COUNT))
    plain = DataLoader(dataset, batch_size=64, num_workers=1, multiprocessing_context=method, sampler=[3, 2, 1])
    assert ids(plain) == [3, 2, 1]
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_script_that_does_not_fork(folder: Path, tmp_path: Path, method: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(HEAD + MAIN)
    assert scripts.run(script, folder, method, timeout=120) == ""


def test_a_killed_worker_is_torchs_error_not_a_hang(place: str) -> None:
    script = """
dataset = StreamingDataset(place, memory="8MB")
batches = iter(StreamingDataLoader(dataset, 16, num_workers=2))
next(batches)
os.kill(batches._batches._workers[1].pid, signal.SIGKILL)
try:
    for _ in batches:
        time.sleep(0.01)
except RuntimeError as error:
    assert "killed by signal" in str(error) or "exited unexpectedly" in str(error), error
else:
    raise AssertionError("nobody noticed")
del batches
assert sorted(ids(StreamingDataLoader(dataset, 64, num_workers=2))) == list(range(COUNT))
"""
    assert scripts.run(HEAD + script, place) == ""


@pytest.mark.parametrize("persistent", [False, True])
def test_ctrl_c_ends_everything(place: str, persistent: bool) -> None:
    script = f"""
loader = StreamingDataLoader(StreamingDataset(place, memory="8MB"), 16, num_workers=2, persistent_workers={persistent})
for number, batch in enumerate(itertools.chain.from_iterable(itertools.repeat(loader))):
    if number == 3:
        print("running", flush=True)
    time.sleep(0.001)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", HEAD + script, place],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(scripts.PATHS)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=30)  # the pipes are everybody's: it returns when all have ended
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode in (-signal.SIGINT, 130, 1), err
    assert "KeyboardInterrupt" in err


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_workers_share_one_budget_and_drop_what_the_parent_had(folder: Path) -> None:
    """Two workers and their parent, all having read: the parent's budget and the workers' together, and some change."""
    script = """
class Nothing(torch.utils.data.IterableDataset):
    def __iter__(self):
        for i in range(COUNT // 2):
            yield {"id": i}

import gc

def pss(loader):
    # Else it is luck whether a worker's full collection comes now, and copies every page of torch's objects.
    gc.collect()
    gc.freeze()
    batches = iter(loader)
    for _ in range(COUNT // 64 - 4):
        next(batches)
    total = 0
    for pid in [os.getpid()] + [worker.pid for worker in batches._workers]:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            total += next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))
    return total

budget = 24_000_000
bare = pss(DataLoader(Nothing(), 64, num_workers=2))
dataset = StreamingDataset(place, memory=budget, batch_size=64)
for _ in dataset:
    pass
with_data = pss(DataLoader(dataset, 64, num_workers=2))
print(with_data - bare)
"""
    beyond = int(scripts.run(HEAD + script, folder))
    # the parent's arena, the workers' two halves, and buffers; a copied arena in each worker would be 72 MB
    assert 10e6 < beyond < 2 * 24e6 + 4e6, beyond
