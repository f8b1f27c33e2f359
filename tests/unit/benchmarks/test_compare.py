"""The comparison strikes a contender that yields other samples, and its clocks cover whole passes."""

from __future__ import annotations

import argparse
import importlib
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lazystore.formats.writer import DatasetWriter
from lazystore.testing import ObjectStore

FOLDER = Path(__file__).parents[3] / "benchmarks"
COUNT = 300


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    """Modules of the benchmarks folder, whose names stay out of the other tests' way."""
    before = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    names = ("samples", "harness", "data", "compare.checksum", "compare.contenders", "compare.works", "bench_epoch")
    yield {name.rpartition(".")[2]: importlib.import_module(name) for name in names}
    sys.path.remove(str(FOLDER))
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(FOLDER) in str(sys.modules[name].__file__):
            del sys.modules[name]


@pytest.fixture
def samples(modules: dict[str, ModuleType]) -> list[dict[str, Any]]:
    return list(modules["samples"].samples("text", COUNT))


def write(folder: Path, items: list[dict[str, Any]]) -> str:
    with DatasetWriter(folder, chunk_bytes=20_000) as writer:
        for item in items:
            writer.write(item)
    return str(folder)


def test_checksum_does_not_depend_on_the_order(modules: dict[str, ModuleType], samples: list[dict[str, Any]]) -> None:
    checksum = modules["checksum"].checksum
    shuffled = random.Random(1).sample(samples, COUNT)
    assert shuffled != samples
    assert checksum(shuffled) == checksum(samples)


def test_checksum_sees_a_lost_a_doubled_and_a_changed_sample(
    modules: dict[str, ModuleType], samples: list[dict[str, Any]]
) -> None:
    checksum = modules["checksum"].checksum
    lost, doubled = samples[:-1], [*samples[:-1], samples[0]]
    changed = [*samples[:-1], {**samples[-1], "text": samples[-1]["text"] + "."}]
    swapped = [{**samples[0], "id": 1}, {**samples[1], "id": 0}, *samples[2:]]
    results = [checksum(items) for items in (samples, lost, doubled, changed, swapped)]
    assert [count for count, _ in results] == [COUNT, COUNT - 1, COUNT, COUNT, COUNT]
    assert len({total for _, total in results}) == len(results)


def test_checksum_compares_values_not_types(modules: dict[str, ModuleType]) -> None:
    import numpy as np

    checksum = modules["checksum"].checksum
    plain = [{"x": [1.5, 2.0], "y": 3, "z": b"ab"}]
    arrays = [{"x": np.array([1.5, 2.0], np.float32), "y": np.int64(3), "z": memoryview(b"ab")}]
    assert checksum(plain) == checksum(arrays)


def test_drain_counts_the_items_of_a_dataset_that_is_its_own_iterator(modules: dict[str, ModuleType]) -> None:
    class Restarting:
        def __iter__(self) -> Restarting:
            self.left = 5
            return self

        def __next__(self) -> int:
            if not self.left:
                raise StopIteration
            self.left -= 1
            return self.left

    started: list[int] = []
    dataset = Restarting()
    assert modules["works"].drain(dataset, lambda: started.append(dataset.left)) == 5
    assert started == [4]  # told after the first item, once
    assert modules["works"].drain([]) == 0


def test_best_bare_run_is_chosen_round_by_round(modules: dict[str, ModuleType]) -> None:
    harness, bench = modules["harness"], modules["bench_epoch"]
    rows = []
    for seconds in ([1.0, 4.0], [2.0, 3.0]):
        rows.append(harness.Row(harness.Contender("", "", {}), [{"seconds": [value]} for value in seconds]))
    assert [run["seconds"] for run in bench._best(*rows).runs] == [[1.0], [3.0]]


@pytest.fixture
def field(modules: dict[str, ModuleType], tmp_path: Path) -> Any:
    data = modules["data"].Data(tmp_path / "data", "quick")
    data.root.mkdir(parents=True)
    options = argparse.Namespace(limit=60.0, peers=False, only=None, memory=4_000_000, rounds=1, quick=True)
    (tmp_path / "scratch").mkdir()
    return modules["contenders"].Field(data, options, str(tmp_path / "scratch"), None)


def contender(modules: dict[str, ModuleType], field: Any, call: str, **spec: Any) -> Any:
    common = {"library": "lazystore", "kind": "text", "count": COUNT, "memory": 4_000_000, "shuffle": False}
    return modules["harness"].Contender("lazystore", call, {**common, "scratch": field.scratch, "files": [], **spec})


def test_a_reader_of_other_samples_is_struck_with_the_reason(
    modules: dict[str, ModuleType], field: Any, samples: list[dict[str, Any]], tmp_path: Path
) -> None:
    reasons = []
    for name, items in (
        ("right", samples),
        ("lost", samples[1:]),
        ("changed", [{**samples[0], "text": "x"}, *samples[1:]]),
    ):
        child = contender(modules, field, "", path=write(tmp_path / name, items))
        field.verdicts.clear()
        reasons.append(field.struck([child]).get("lazystore"))
    assert reasons == [None, "yields 299 of 300 samples", "yields other samples than were written"]


def test_an_epoch_and_its_bare_transfer_fetch_the_same_bytes(
    modules: dict[str, ModuleType], field: Any, samples: list[dict[str, Any]], tmp_path: Path
) -> None:
    pytest.importorskip("aiohttp")
    folder = Path(write(tmp_path / "bucket" / "text", samples))
    files = modules["bench_epoch"]._files(folder)
    total = sum(size for _, size in files)
    harness = modules["harness"]
    with ObjectStore({"bench": folder.parent}) as store:
        place = {"endpoint": store.url, "bucket": "bench", "prefix": "text", "via": "http"}
        epoch = harness.run_child(contender(modules, field, "compare.works:epoch", **place))
        bare_spec = {**place, "files": files, "range": 4096, "parallel": 4, "before": ["index.json"]}
        bare = harness.run_child(contender(modules, field, "remote:bare_epoch", **bare_spec))
    assert epoch["items"] == COUNT
    assert 0 < epoch["first_seconds"] <= epoch["seconds"][0]
    assert epoch["disk"] == 0
    assert bare["bytes_fetched"] == total
    assert epoch["bytes_fetched"] >= total - 4096  # gaps between items may be left out
    assert epoch["bytes_fetched"] <= 1.01 * total


def test_a_contender_beyond_its_time_limit_is_reported_with_it(
    modules: dict[str, ModuleType], field: Any, samples: list[dict[str, Any]], tmp_path: Path
) -> None:
    child = contender(modules, field, "", path=write(tmp_path / "data set", samples))
    late = modules["harness"].Contender(child.name, child.call, child.spec, limit_s=0.01)
    (reason,) = field.struck([late]).values()
    assert reason == "in the check: no result within 0.01 s"
