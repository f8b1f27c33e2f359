"""Weighing objects: what the model does not know, and how near it comes to the allocator's truth."""

from __future__ import annotations

import array
import gc
import json
import math
import tracemalloc
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from lazystore._core.weigh import weigh
from lazystore.errors import ConfigError


@dataclass
class Point:
    x: float
    y: float
    name: str
    tags: list[str]


@dataclass(slots=True)
class SlottedPoint:
    x: float
    y: float
    name: str
    tags: list[str]


class Node:
    def __init__(self, n: int) -> None:
        self.number = n * 1.5
        self.text = f"node {n}"
        self.inner = [n + 1000]


def rows(count: int) -> list[dict[str, Any]]:
    return [
        {"id": i + 1000, "name": f"name {i}", "score": i * 0.5, "tags": [f"t{i % 7}", "u" * (i % 40)]}
        for i in range(count)
    ]


MAKERS: dict[str, Callable[[], Any]] = {
    "bytes": lambda: bytes(100_000),
    "bytearray": lambda: bytearray(100_000),
    "narrow text": lambda: "é" * 10_000 + str(5),
    "wide text": lambda: "\U0001f600" * 10_000 + str(5),
    "array": lambda: array.array("d", range(10_000)),
    "numpy": lambda: np.zeros(10_000),
    "list of arrays": lambda: [np.zeros(100 + i % 5) for i in range(500)],
    "array of objects": lambda: np.array([f"s{i}" for i in range(3000)], dtype=object),
    "rows": lambda: rows(500),
    "many rows": lambda: rows(30_000),
    "JSON": lambda: json.loads(json.dumps(rows(500))),
    "floats": lambda: [i * 0.5 for i in range(100_000)],
    "large ints": lambda: [3**i for i in range(100, 500)],
    "set": lambda: {str(i) for i in range(5000)},
    "tuples": lambda: [(i * 0.5, str(i)) for i in range(3000)],
    "large dict": lambda: {i * 7: f"v{i}" for i in range(30_000)},
    "ordered dict": lambda: OrderedDict((f"key {i}", i * 0.5) for i in range(2000)),
    "deque": lambda: deque(f"item {i}" for i in range(2000)),
    "dataclasses": lambda: [Point(i * 0.5, i * 0.25, f"n{i}", [f"a{i}"]) for i in range(2000)],
    "slots": lambda: [SlottedPoint(i * 0.5, i * 0.25, f"n{i}", [f"a{i}"]) for i in range(2000)],
    "instances": lambda: [Node(i) for i in range(2000)],
    "nested": lambda: {"x": [{"y": [[f"{j} z" for j in range(i % 9)] for i in range(50)]} for _ in range(40)]},
}


@pytest.mark.parametrize("name", MAKERS)
def test_the_weight_is_what_the_allocator_gave(name: str) -> None:
    make = MAKERS[name]
    make()  # what is made once and stays: caches, shared keys of instances
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        made = make()
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert weigh(made) == pytest.approx(taken, rel=0.1)


def test_what_all_share_weighs_nothing() -> None:
    for shared in (None, True, ..., 5, -5, 256, int, json, len, rows, "interned"):
        assert weigh(shared) == 0
    assert weigh([None, 1, int, json, rows]) == weigh([None] * 5)


def test_an_object_counts_once_and_cycles_end() -> None:
    heavy = bytes(10_000)
    assert weigh([heavy, heavy, {"again": heavy}]) < 11_000
    cycle: list[Any] = [heavy]
    cycle.append(cycle)
    assert weigh(cycle) < 11_000


def test_a_view_weighs_what_it_shows() -> None:
    base = np.zeros(100_000)
    assert weigh(base[:10]) < 500
    assert weigh(memoryview(bytes(100_000))[:10]) < 500


def test_tables_and_frames_weigh_their_columns() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": range(1000), "b": [f"x{i}" for i in range(1000)]})
    deep = int(frame.memory_usage(deep=True).sum())
    assert weigh(frame) == pytest.approx(deep, rel=0.02)
    assert weigh({"frame": frame}) == pytest.approx(deep, rel=0.05)


@pytest.mark.parametrize(
    ("mode", "each"), [("RGB", 4), ("RGBA", 4), ("L", 1), ("P", 1), ("I;16", 2), ("F", 4), ("1", 1)]
)
def test_an_image_weighs_its_pixels(mode: str, each: int) -> None:
    image = pytest.importorskip("PIL.Image").new(mode, (300, 200))
    assert 300 * 200 * each <= weigh(image) <= 300 * 200 * each + 4000
    assert weigh({"image": image}) >= 300 * 200 * each


def test_arrow_tables_weigh_their_buffers() -> None:
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({"a": list(range(10_000)), "b": [f"x{i}" for i in range(10_000)]})
    assert weigh(table) == pytest.approx(table.nbytes, rel=0.01)


def test_what_lies_beyond_the_limit_is_extrapolated() -> None:
    uneven = [[bytes(100 + 900 * (i % 2))] for i in range(20_000)]
    exact = weigh(uneven, limit_objects=10**9)
    assert exact == pytest.approx(20_000 * (550 + 33 + 64 + 8), rel=0.02)
    for limit in (200, 2000, 10_000):
        assert weigh(uneven, limit_objects=limit) == pytest.approx(exact, rel=0.1)


def test_a_chain_deeper_than_the_limit_ends_there() -> None:
    chain: list[Any] = []
    for i in range(200_000):
        chain = [chain, i * 0.5]
    assert math.isclose(weigh(chain, limit_objects=5000), 5000 * (72 + 24), rel_tol=0.2)


def test_an_error_of_sizeof_comes_through() -> None:
    class Broken:
        def __sizeof__(self) -> int:
            raise RuntimeError("no size")

    with pytest.raises(RuntimeError, match="no size"):
        weigh([[Broken()], rows(3)])


def test_a_size_that_changes_what_is_weighed_harms_nothing() -> None:
    class Meddling:
        def __sizeof__(self) -> int:
            victim.clear()
            return 100

    victim: list[Any] = [[Meddling(), str(i) * 10, [i * 0.5]] for i in range(100)]
    assert weigh(victim) > 0
    assert victim == []


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="limit_objects=0"):
        weigh([], limit_objects=0)
