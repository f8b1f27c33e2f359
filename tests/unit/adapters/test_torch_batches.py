"""Batches: equal to torch's own collate, in type too, in this process and after the way through a pipe."""

from __future__ import annotations

import collections
import io
import itertools
import warnings
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from torch.utils.data import default_collate  # noqa: E402

from lazystore.adapters.torch_batches import IN_MESSAGE_BYTES, Parcel, collate, collate_and_ship  # noqa: E402

Point = collections.namedtuple("Point", "x y")


def same(one: Any, other: Any) -> bool:
    """Equal in value and type all the way down; NaN equals NaN."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return bool(
            one.dtype == other.dtype
            and one.shape == other.shape
            and one.stride() == other.stride()
            and one.reshape(-1).view(torch.uint8).equal(other.reshape(-1).view(torch.uint8))
        )
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def outcome(function: Any, items: Any) -> Any:
    """What it returns, or the type of what it raises."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of read-only arrays
            return function(items)
    except Exception as error:  # noqa: BLE001 - the kind is what is compared
        return type(error)


def through_a_pipe(value: Any) -> Any:
    return ForkingPickler.loads(bytes(ForkingPickler.dumps(value)))


DTYPES = [
    "?",
    "i1",
    "u1",
    "i2",
    "u2",
    "i4",
    "u4",
    "i8",
    "u8",
    "f2",
    "f4",
    "f8",
    "c8",
    "c16",
    ">i4",
    "S3",
    "U3",
    "O",
    "M8[s]",
]
ARRAYS = [np.arange(12).reshape(3, 4).astype("i8").astype(dtype) for dtype in DTYPES]
ODD_ARRAYS = [
    np.array(7),
    np.zeros((0, 3), "f4"),
    np.arange(10)[::2],
    np.arange(12).reshape(3, 4).T,
    np.frombuffer(b"12345678", "u1"),
    np.ma.masked_array([1, 2], [True, False]),
    np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
]
TENSORS = [
    torch.arange(6).to(dtype) for dtype in (torch.bool, torch.uint8, torch.int16, torch.bfloat16, torch.complex64)
]
ODD_TENSORS = [
    torch.tensor(3.5),
    torch.zeros(0, 2),
    torch.arange(6.0).reshape(2, 3).T,
    torch.ones(2).to_sparse(),
    torch.ones(2, requires_grad=True),
    torch.nn.Parameter(torch.ones(2)),
    torch.tensor([1 + 2j]).conj(),
]


@pytest.mark.parametrize(
    "value", ARRAYS + ODD_ARRAYS + TENSORS + ODD_TENSORS, ids=lambda v: f"{type(v).__name__} {v.dtype}"
)
@pytest.mark.parametrize(
    "wrap", [lambda v: v, lambda v: {"x": v, "y": 1}, lambda v: (v, "a")], ids=["bare", "dict", "tuple"]
)
def test_arrays_and_tensors_of_any_kind(value: Any, wrap: Any) -> None:
    items = [wrap(value), wrap(value), wrap(value)]
    assert same(outcome(collate, items), outcome(default_collate, items))


@pytest.mark.parametrize(
    "items",
    [
        [1, 2, 3],
        [1, True, 2],
        [True, False],
        [True, 3],
        [1, 2.5],
        [2.5, 1],
        [1, 2**63],
        [2**63, 1],
        [1.0, float("nan"), float("-inf")],
        [1.0, 10**400],
        [1, "a"],
        [1.0, "a"],
        ["a", 1],
        [b"a", b"b"],
        [np.float64(1.5), np.float64(2.5)],
        [np.int32(1), np.int32(2)],
        [1, np.int64(2)],
        [1.5, np.float32(2)],
        [1, torch.tensor(2)],
        [1.5, torch.tensor(2)],
        [None, None],
        [np.zeros(2), np.zeros(3)],
        [np.zeros(2, "f4"), np.zeros(2, "f8")],
        [np.zeros(2), [0.0, 0.0]],
        [np.zeros(2), torch.zeros(2)],
        [torch.zeros(2), np.zeros(2)],
        [torch.zeros(2), torch.zeros(3)],
        [torch.zeros(2), torch.zeros(2, dtype=torch.float64)],
        [torch.zeros(2), torch.zeros(2, requires_grad=True)],
        [{"a": 1, "b": "x"}, {"b": "y", "a": 2}],
        [{"a": 1}, {"a": 2, "b": 3}],
        [{"a": 1, "b": 3}, {"a": 2}],
        [{}, {}],
        [{"a": {"b": [1, (2.0, "x")]}}, {"a": {"b": [3, (4.0, "y")]}}],
        [collections.OrderedDict(a=1), collections.OrderedDict(a=2)],
        [Point(1, 2.0), Point(3, 4.0)],
        [(1, "a"), (2, "b")],
        [[1, "a"], [2, "b"]],
        [(1, 2), (1,)],
        [[1, 2], (3, 4)],
        [(1, 2), [3, 4]],
        [(), ()],
        [[], []],
        [(1,), 5],
        [{1, 2}, {3}],
        [bytearray(b"ab"), bytearray(b"cd")],
        [range(3), range(3)],
        [],
    ],
    ids=repr,
)  # fmt: skip
def test_every_mixture_comes_out_as_from_torch(items: list[Any]) -> None:
    expected = outcome(default_collate, items)
    assert same(outcome(collate, items), expected)
    if not isinstance(expected, type) and not getattr(expected, "requires_grad", False):
        assert same(through_a_pipe(collate_and_ship(items)), expected)


LEAVES = [
    st.integers(-(2**70), 2**70),
    st.integers(-5, 5),
    st.floats(allow_nan=False),
    st.booleans(),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.just(np.arange(3.0)),
    st.just(torch.arange(4)),
]


@st.composite
def batches(draw: st.DrawFn) -> list[Any]:
    def shape(depth: int) -> Any:
        choice = draw(st.integers(0, 4 if depth else 1))
        if choice <= 1:
            return draw(st.sampled_from(LEAVES))
        parts = [shape(depth - 1) for _ in range(draw(st.integers(0, 3)))]
        if choice == 2:
            return st.fixed_dictionaries({f"k{i}": part for i, part in enumerate(parts)})
        return st.tuples(*parts) if choice == 3 else st.tuples(*parts).map(list)

    return draw(st.lists(shape(2), min_size=1, max_size=4))


@given(batches())
def test_nested_items_come_out_as_from_torch(items: list[Any]) -> None:
    expected = outcome(default_collate, items)
    got = outcome(collate, items)
    assert same(got, expected)
    if not isinstance(expected, type):
        assert same(through_a_pipe(Parcel(got)), expected)


@pytest.mark.parametrize("value", TENSORS + ODD_TENSORS[:3], ids=lambda v: f"{v.dtype} {tuple(v.shape)}")
def test_small_tensors_arrive_equal_writable_and_in_the_message(value: Any) -> None:
    arrived = through_a_pipe(Parcel({"x": value}))["x"]
    assert same(arrived, value.contiguous())
    assert not arrived.is_shared()
    arrived.zero_()


def test_large_tensors_arrive_by_shared_memory() -> None:
    large = torch.arange(IN_MESSAGE_BYTES // 8 + 1)
    arrived = through_a_pipe(Parcel([large, large[:5]]))
    assert same(arrived, [large, large[:5]])
    assert [tensor.is_shared() for tensor in arrived] == [True, False]


def test_a_message_is_small() -> None:
    file = io.BytesIO()
    ForkingPickler(file).dump(collate_and_ship([{"id": i, "text": "x"} for i in range(256)]))
    assert len(file.getvalue()) < 256 * 8 + 256 * 16


def test_items_are_left_as_they_were() -> None:
    items = [{"x": np.arange(3.0), "n": [i, i]} for i in range(4)]
    before = [{"x": item["x"].copy(), "n": list(item["n"])} for item in items]
    made = collate(items)
    made["x"] += 1
    made["n"][0] += 1
    assert all((a["x"] == b["x"]).all() and a["n"] == b["n"] for a, b in zip(items, before, strict=True))
    assert len(list(itertools.chain(items))) == 4
