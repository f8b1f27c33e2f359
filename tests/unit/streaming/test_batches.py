"""Batches: how many there are, what is in them, and what errors leave behind."""

from __future__ import annotations

import pickle
import struct
from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import datasets

from lazystore import StreamingDataset
from lazystore._core.collate import ColumnSink, ObjectSink, Sink
from lazystore._core.decode import DecodePlan
from lazystore.errors import ConfigError, FormatError
from lazystore.formats.leaves import leaf_operation
from lazystore.formats.pytree import compile_tree
from lazystore.streaming.batches import Batches, collate_items, make_sink

LEAF = ("leaf",)
Point = namedtuple("Point", "x y")


def i64(value: int) -> bytes:
    return struct.pack("<q", value)


NUMBERS = DecodePlan([("int", None)], [LEAF], names=["n"], headless=True)


class Pourer:
    """A walk over items kept in a list: hands out at most ``most`` at a time."""

    def __init__(self, items: Iterator[bytes] | list[bytes], most: int = 1000) -> None:
        self.items = iter(items)
        self.most = most

    def pour(self, sink: Sink, n: int, /) -> int:
        for done in range(min(n, self.most)):
            item = next(self.items, None)
            if item is None:
                return done
            sink.add_bytes(item)
        return min(n, self.most)


def batches(
    count: int, batch_size: int, collate: Any = "list", *, drop_last: bool = False, transform: Any = None, most: int = 9
) -> Batches:
    sink, finish = make_sink(NUMBERS, batch_size, collate, transform)
    walk = Pourer([i64(k) for k in range(count)], most)
    return Batches(walk, sink, batch_size, drop_last, finish, items=count)


# -- the iterator ---------------------------------------------------------------------------


@given(st.integers(0, 40), st.integers(1, 50), st.booleans(), st.integers(1, 9))
def test_batches_are_the_items_cut_into_pieces(count: int, batch_size: int, drop_last: bool, most: int) -> None:
    found = batches(count, batch_size, drop_last=drop_last, most=most)
    length = len(found)
    pieces = [list(range(count))[at : at + batch_size] for at in range(0, count, batch_size)]
    if drop_last:
        pieces = [piece for piece in pieces if len(piece) == batch_size]
    assert list(found) == pieces
    assert len(found) == length == len(pieces)
    assert next(found, "over") == "over"


def test_nothing_is_read_ahead_of_a_batch() -> None:
    given_out: list[int] = []

    def items() -> Iterator[bytes]:
        for k in range(10):
            given_out.append(k)
            yield i64(k)

    sink, finish = make_sink(NUMBERS, 3, "numpy")
    found = Batches(Pourer(items()), sink, 3, False, finish, items=10)
    assert given_out == []
    for done in (3, 6, 9, 10):
        assert next(found)[-1] == done - 1
        assert given_out == list(range(done))


@pytest.mark.parametrize("collate", ["list", "numpy"])
def test_an_item_that_fails_is_missing_from_its_batch_and_no_other(collate: str) -> None:
    sink, finish = make_sink(NUMBERS, 4, collate)
    items = [i64(k) for k in range(10)]
    items[1:1] = items[9:9] = [b"broken"]
    found = Batches(Pourer(items), sink, 4, False, finish, items=10)
    taken, errors = [], 0
    while True:
        try:
            taken.append([int(number) for number in next(found)])
        except FormatError:
            errors += 1
        except StopIteration:
            break
    assert taken == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert errors == 2


def test_an_error_in_the_users_function_loses_its_batch_only() -> None:
    def fail_on_two(items: list[int]) -> int:
        return 6 // (items[0] - 2)

    found = batches(6, 2, fail_on_two)
    assert next(found) == -3
    with pytest.raises(ZeroDivisionError):
        next(found)
    assert next(found) == 3
    assert list(found) == []


def test_it_is_its_own_iterator_says_where_it_is_and_is_not_pickled() -> None:
    found = batches(5, 2)
    assert iter(found) is found
    assert repr(found) == "<Batches of 2 items, 0 of 3 taken>"
    next(found)
    assert repr(found) == "<Batches of 2 items, 1 of 3 taken>"
    with pytest.raises(TypeError, match="state_dict"):
        pickle.dumps(found)


# -- the choice of collate ------------------------------------------------------------------


def test_numpy_makes_columns_lists_make_items_and_functions_get_lists() -> None:
    assert [type(batch) for batch in batches(3, 2, "numpy")] == [np.ndarray] * 2
    assert [batch.tolist() for batch in batches(3, 2, "numpy")] == [[0, 1], [2]]
    assert list(batches(3, 2, "list")) == [[0, 1], [2]]
    assert list(batches(3, 2, sum)) == [1, 2]


def test_the_transform_comes_before_the_collating() -> None:
    def double(number: int) -> dict[str, int]:
        return {"double": 2 * number}

    assert list(batches(3, 2, "list", transform=double)) == [[{"double": 0}, {"double": 2}], [{"double": 4}]]
    assert list(batches(3, 2, len, transform=double)) == [2, 1]
    found = list(batches(3, 2, "numpy", transform=double))
    assert [batch["double"].tolist() for batch in found] == [[0, 2], [4]]
    assert found[0]["double"].dtype == np.int64


@pytest.mark.parametrize("collate", ["torch", "", None, 3, ["numpy"]])
def test_other_ways_to_collate_are_refused(collate: Any) -> None:
    with pytest.raises(ConfigError, match='is not "numpy", "list" or a function'):
        make_sink(NUMBERS, 2, collate)


@pytest.mark.parametrize("batch_size", [0, -1, True, 2.0, "2", None])
def test_batch_sizes_that_are_no_number_of_items_are_refused(batch_size: Any) -> None:
    with pytest.raises(ConfigError, match="batch_size"):
        make_sink(NUMBERS, batch_size, "list")


def test_sinks_fit_their_collate() -> None:
    assert isinstance(make_sink(NUMBERS, 2, "numpy")[0], ColumnSink)
    assert isinstance(make_sink(NUMBERS, 2, "numpy", str)[0], ObjectSink)
    assert isinstance(make_sink(NUMBERS, 2, "list")[0], ObjectSink)


# -- over a dataset's own bytes -------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return datasets.write(tmp_path_factory.mktemp("batches") / "dataset", 60)


@pytest.mark.parametrize("transform", [None, dict])
def test_columns_of_a_dataset_are_its_items(folder: Path, transform: Any) -> None:
    tree = compile_tree(datasets.dict_spec("id", "text", "blob", "vector"), len(datasets.TAGS))
    leaves = [leaf_operation(tag, allow_pickle=False) for tag in datasets.TAGS]
    plan = DecodePlan(leaves, tree, names=datasets.TAGS)
    with StreamingDataset(folder) as dataset:
        sink, finish = make_sink(plan, 25, "numpy", transform)
        items = [dataset.get_bytes(i) for i in range(60)]
        found = list(Batches(Pourer(items), sink, 25, False, finish, items=60))
    assert [len(batch["id"]) for batch in found] == [25, 25, 10]
    back = [
        {"id": int(n), "text": text, "blob": blob, "vector": vector}
        for batch in found
        for n, text, blob, vector in zip(batch["id"], batch["text"], batch["blob"], batch["vector"], strict=True)
    ]
    datasets.check(back, range(60))
    assert {batch["vector"].shape[1:] for batch in found} == {(3,)}
    assert {batch["vector"].dtype.str for batch in found} == {"<f4"}


# -- items to columns -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([1, -2], np.array([1, -2], "<i8")),
        ([2**63 - 1, -(2**63)], np.array([2**63 - 1, -(2**63)], "<i8")),
        ([0.5, 2.0], np.array([0.5, 2.0])),
        ([True, False], np.array([True, False])),
        ([np.ones(2, "i2"), np.zeros(2, "i2")], np.array([[1, 1], [0, 0]], "i2")),
        ([np.float32(1), np.float32(2)], np.array([1, 2], "f4")),
        ([np.array(1), np.array(2)], np.array([1, 2])),
        ([np.ones(2, "M8[s]")], np.ones((1, 2), "M8[s]")),
    ],
)
def test_numbers_and_equal_arrays_are_stacked(items: list[Any], expected: Any) -> None:
    found = collate_items(items)
    assert type(found) is np.ndarray
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    assert found.flags.carray
    assert not any(np.shares_memory(found, item) for item in items if isinstance(item, np.ndarray))


@pytest.mark.parametrize(
    "items",
    [
        ["a", "b"],
        [b"a"],
        [None, None],
        [1, None],
        [1, 2.0],
        [1, True],
        [2**63, 1],
        [-(2**63) - 1],
        [np.ones(2), np.ones(3)],
        [np.ones(2, "f4"), np.ones(2, "f8")],
        [np.ones(2), 1.0],
        [np.zeros(0), np.zeros(0)],
        [np.ones((1,) * 32)] * 2,
        [np.array(["a"]), np.array(["b"])],
        [np.array([None])] * 2,
        [np.str_("a")],
        [object()] * 2,
        [{1}, {2}],
    ],
)
def test_everything_else_stays_a_list_of_the_same_objects(items: list[Any]) -> None:
    found = collate_items(items)
    assert type(found) is list
    assert len(found) == len(items)
    assert all(one is other for one, other in zip(found, items, strict=True))


def test_containers_keep_their_kind_order_and_depth() -> None:
    def item(n: int) -> Any:
        return {"b": (n, [f"{n}", Point(n, 0.5)]), "a": OrderedDict(z=n, y=b"")}

    found = collate_items([item(1), item(2)])
    assert list(found) == ["b", "a"]
    assert type(found["b"]) is tuple
    assert found["b"][0].tolist() == [1, 2]
    assert found["b"][1][0] == ["1", "2"]
    assert type(found["b"][1][1]) is Point
    assert found["b"][1][1].y.tolist() == [0.5, 0.5]
    assert type(found["a"]) is OrderedDict
    assert list(found["a"]) == ["z", "y"]


def test_items_are_not_changed() -> None:
    items = [defaultdict(int, a=1), defaultdict(int, a=2)]
    found = collate_items(items)
    assert type(found) is defaultdict
    assert found["a"].tolist() == [1, 2]
    assert [dict(item) for item in items] == [{"a": 1}, {"a": 2}]
    assert collate_items([{}, {}]) == {}
    assert collate_items([(), ()]) == ()


def test_dicts_may_have_their_keys_in_another_order() -> None:
    found = collate_items([{"a": 1, "b": 2}, {"b": 4, "a": 3}])
    assert {key: column.tolist() for key, column in found.items()} == {"a": [1, 3], "b": [2, 4]}


@pytest.mark.parametrize(
    ("items", "says"),
    [
        ([{"a": 1}, {"a": 1, "b": 2}], "different keys"),
        ([{"a": 1}, {"b": 2}], "different keys"),
        ([[1], [1, 2]], "lists of different lengths"),
        ([(1, 2), (1,)], "tuples of different lengths"),
        ([{"x": [1]}, {"x": None}], "NoneType and list"),
        ([(1,), [1]], "list and tuple"),
    ],
)
def test_containers_that_differ_are_refused_and_the_remedy_named(items: list[Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        collate_items(items)
    assert "collate=" in str(caught.value)
