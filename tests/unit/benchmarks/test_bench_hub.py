"""The hub bench counts what is lost, repeated, doubled and left behind, and its repositories are what they say."""

from __future__ import annotations

import importlib
import io
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks read /proc")
FOLDER = Path(__file__).parents[3] / "benchmarks"
COUNT = 40


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    """Modules of the benchmarks folder, whose names stay out of the other tests' way."""
    before = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    yield {name: importlib.import_module(name) for name in ("hub_data", "hub_readers")}
    sys.path.remove(str(FOLDER))
    for name in set(sys.modules) - before:
        if str(FOLDER) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


class Samples:
    """Numbered samples that can be taken up again; ``skip`` of them are lost then, or repeated where it is negative."""

    def __init__(self, count: int = COUNT, skip: int = 0) -> None:
        self.count, self.skip = count, skip
        self.begin = self.position = 0

    def __iter__(self) -> Iterator[dict[str, int]]:
        for number in range(self.begin, self.count):
            self.position = number + 1
            yield {"id": number}

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.begin = min(self.count - 1, max(0, state["position"] + self.skip))


Measured = Callable[..., dict[str, Any]]


@pytest.fixture
def measured(modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> Measured:
    """Runs a function of the bench over what ``make`` returns; its result."""
    readers = modules["hub_readers"]
    monkeypatch.setattr(readers, "served", lambda run: None)
    monkeypatch.setattr(readers, "control", lambda spec, verb: None)
    monkeypatch.setenv("HF_HOME", "unused")  # the bench sets another

    def call(function: str, make: Callable[[], Any], **spec: Any) -> dict[str, Any]:
        monkeypatch.setitem(readers.READERS, "name", lambda spec, repo: make() if repo == "samples" else [])
        result: dict[str, Any] = {}
        told = {"reader": "name", "repo": "samples", "warm": "", "count": COUNT, **spec}
        run = SimpleNamespace(spec=told, result=result, ready=lambda: None, peak=lambda: None)
        getattr(readers, function)(run)
        return result

    return call


def test_a_pass_that_is_short_is_a_failure(measured: Measured) -> None:
    assert len(measured("passes", Samples, passes=2)["seconds"]) == 2
    with pytest.raises(RuntimeError, match="39 samples, not 40"):
        measured("passes", lambda: Samples(COUNT - 1))


@pytest.mark.parametrize(("skip", "lost", "doubled"), [(0, 0, 0), (1, 5, 0), (-1, 0, 5)])
def test_samples_lost_and_repeated_by_a_resume_are_counted(
    measured: Measured, skip: int, lost: int, doubled: int
) -> None:
    found = measured("resume", lambda: Samples(skip=skip), positions=5)
    assert found["items"] == 5
    assert (found["lost"], found["doubled"]) == (lost, doubled)
    assert found["wrong"] == (5 if skip else 0)


@pytest.mark.parametrize("shared", [True, False])
def test_samples_that_threads_lose_or_get_twice_are_counted(measured: Measured, shared: bool) -> None:
    class Own(Samples):
        def __iter__(self) -> Iterator[dict[str, int]]:
            return iter([{"id": number} for number in [0, 0, *range(2, COUNT)]])

    passes = 1 if shared else 8
    found = measured("threads", Own, shared=shared, locked=shared)
    assert (found["lost"], found["doubled"], found["failed"]) == (passes, passes, 0)
    assert found["items"] == passes * COUNT


def test_threads_and_descriptors_left_behind_are_counted(
    measured: Measured, modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modules["hub_readers"], "PATIENCE_S", 0.1)
    stop = threading.Event()
    opened: list[int] = []
    threads: list[threading.Thread] = []

    class Leaking(Samples):
        def close(self) -> None:
            opened.append(os.open(os.devnull, os.O_RDONLY))
            threads.append(threading.Thread(target=stop.wait))
            threads[-1].start()

    try:
        found = measured("leaks", Leaking, times=3, close=True)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        for descriptor in opened:
            os.close(descriptor)
    assert (found["threads"], found["descriptors"]) == (3, 3)
    assert measured("leaks", Samples, times=3, close=True)["threads"] == 0


def test_a_repository_is_the_same_each_time_and_numbered_through(
    modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("numpy")
    pytest.importorskip("pyarrow")
    data = modules["hub_data"]
    monkeypatch.setattr(data, "SOURCE_BYTES", 1 << 16)
    first, again, second = data._rows(0, 20), data._rows(0, 20), data._rows(20, 20)
    assert first.equals(again)
    assert first["id"].to_pylist() + second["id"].to_pylist() == list(range(40))
    assert set(data.FEW_COLUMNS) < set(first.column_names)
    assert first["body"] != second["body"]


def test_pictures_are_pngs_of_their_pixels(modules: dict[str, ModuleType]) -> None:
    numpy = pytest.importorskip("numpy")
    image = pytest.importorskip("PIL.Image")
    pixels = numpy.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=numpy.uint8)
    with image.open(io.BytesIO(modules["hub_data"]._png(pixels))) as picture:
        assert numpy.array_equal(numpy.asarray(picture), pixels)
