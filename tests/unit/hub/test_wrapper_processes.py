"""The wrapper across processes: forks, spawned workers, exits in the middle, memory as the system counts it."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import hub_feeds
from support.hub_feeds import PlannedFeed, hundred, ids

import lazystore
from lazystore.hub import StreamingDatasetWrapper

PATIENCE = 60.0
#: Where the package is that these tests import, and what they share.
PATHS = (Path(lazystore.__file__).parents[1], Path(hub_feeds.__file__).parents[1])


def in_fork(work: Callable[[], Any]) -> Any:
    """What a forked child's function returns."""
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        try:
            text = json.dumps(work())
        except BaseException:  # noqa: BLE001 - told to the parent
            text = json.dumps(traceback.format_exc())
        os.write(theirs, text.encode())
        os._exit(0)
    os.close(theirs)
    with open(ours, "rb") as file:
        found = json.loads(file.read())
    os.waitpid(child, 0)
    return found


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([*map(str, PATHS), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", "-W", "error", "-c", script, *arguments],
        capture_output=True, text=True, timeout=PATIENCE, env={**os.environ, "PYTHONPATH": path}, check=False,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("prefetch", ["auto", 0])
def test_a_forked_child_begins_with_nothing_open_and_the_parent_goes_on(prefetch: Any) -> None:
    feed = PlannedFeed(3000)
    with StreamingDatasetWrapper(feed, cache_size=100, prefetch=prefetch) as wrapper:
        found = iter(wrapper)
        next(found)

        def child() -> Any:
            feed.lock = threading.Lock()
            opened = len(feed.openings)
            everything = ids(wrapper)
            return everything == list(range(3000)), len(feed.openings) > opened, wrapper[2999]["id"]

        assert in_fork(child) == [True, True, 2999]
        assert ids(found) == list(range(1, 3000))


@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("prefetch", ["auto", 0])
@pytest.mark.parametrize("keeps", [False, True])
def test_a_pass_in_a_forked_child_goes_on_where_it_was(prefetch: Any, keeps: bool) -> None:
    feed = PlannedFeed(1000, keeps=keeps)
    with StreamingDatasetWrapper(feed, cache_size=100, prefetch=prefetch) as wrapper:
        found = iter(wrapper)
        for taken in (1, 99, 300):
            list(itertools.islice(found, taken))
            position = found.position

            def child() -> Any:
                feed.lock = threading.Lock()
                got = ids(itertools.islice(found, 400))
                state = wrapper.state_dict()["position"]
                return got, state, found.position

            assert in_fork(child) == [list(range(position, position + 400)), position + 400, position + 400]
            assert found.position == position
        assert ids(found) == list(range(400, 1000))


@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
def test_closing_in_a_forked_child_leaves_what_the_parent_has_open() -> None:
    feed = PlannedFeed(1000)
    with StreamingDatasetWrapper(feed, cache_size=10) as wrapper:
        found = iter(wrapper)
        next(found)

        def child() -> Any:
            feed.lock = threading.Lock()
            opened = len(feed.opened_now)
            wrapper.close()
            return opened, len(feed.opened_now)

        opened, left = in_fork(child)
        assert left == opened
        assert ids(found) == list(range(1, 1000))


def test_a_spawned_process_gets_the_same_samples_from_a_pickle() -> None:
    wrapper = StreamingDatasetWrapper(hundred, cache_size=20)
    wrapper.load_state_dict({**wrapper.state_dict(), "position": 40})
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(ids, (wrapper,)) == list(range(40, 100))
    wrapper.close()


@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
def test_workers_of_a_torch_loader_share_the_samples() -> None:
    data = pytest.importorskip("torch.utils.data")
    with StreamingDatasetWrapper(hundred, cache_size=20) as wrapper:
        next(iter(wrapper))
        loader = data.DataLoader(wrapper, batch_size=4, num_workers=2, multiprocessing_context="fork")
        seen = [value for batch in loader for value in batch["id"].tolist()]
        assert sorted(seen) == list(range(100))


LEAVING = """
import sys, threading
from lazystore.hub import StreamingDatasetWrapper
from support.hub_feeds import PlannedFeed

def generate():
    at = 0
    try:
        while True:
            yield {"id": at}
            at += 1
    finally:
        print("the generator ended")

def make():
    if sys.argv[1] == "generator":
        return StreamingDatasetWrapper(generate)
    return StreamingDatasetWrapper(PlannedFeed(10**9, delay=0.0001), cache_size=100_000)

wrappers = [make() for _ in range(3)]
passes = [iter(wrapper) for wrapper in wrappers for _ in range(2)]
for found in passes:
    for _ in range(30):
        next(found)
if sys.argv[1] == "another thread reads":
    threading.Thread(target=lambda: [next(passes[0]) for _ in range(1000)], daemon=True).start()
if sys.argv[1] == "error":
    raise SystemExit(3)
print("end of the script")
"""


@pytest.mark.parametrize("how", ["plain", "another thread reads", "generator", "error"])
def test_an_interpreter_exits_in_the_middle_of_passes(how: str) -> None:
    done = run(LEAVING, how)
    assert (done.returncode, done.stderr) == (3 if how == "error" else 0, "")
    assert ("end of the script" in done.stdout) is (how != "error")
    assert ("the generator ended" in done.stdout) is (how == "generator")


HEAVY = """
import resource, sys
from lazystore.hub import StreamingDatasetWrapper

def samples():
    for at in range(8000):
        yield {"id": at, "data": bytes(at.to_bytes(4, "big")) * 10_000}

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

with StreamingDatasetWrapper(samples, cache_size=100_000, memory=16 << 20) as wrapper:
    next(iter(wrapper))
    before = peak()
    for _ in range(2):
        passes = [iter(wrapper) for _ in range(2)]
        for one, other in zip(*passes, strict=True):
            assert one["id"] == other["id"]
    stats = wrapper.stats()
    print(peak() - before, stats["peak_bytes"], stats["hits"])
"""


def test_memory_stays_within_the_budget_as_the_system_counts_it() -> None:
    done = run(HEAVY)
    assert done.returncode == 0, done.stderr
    grown, kept, hits = map(int, done.stdout.split())
    assert kept <= 8 << 20
    assert grown <= (16 + 32) << 20
    assert hits > 0


LIGHT = """
import sys
import lazystore.hub.wrapper
heavy = {"numpy", "asyncio", "pyarrow", "datasets", "torch", "PIL", "soundfile", "fsspec", "huggingface_hub"}
print(sorted(heavy & set(sys.modules)))
from lazystore.hub import StreamingDatasetWrapper
wrapper = StreamingDatasetWrapper(lambda: ({"id": at} for at in range(100)))
assert sum(1 for _ in wrapper) == 100
print(sorted(heavy & set(sys.modules)))
"""


def test_nothing_heavy_is_imported_for_plain_samples() -> None:
    done = run(LIGHT)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["[]", "[]"]
