"""Sinks: what becomes an array, whose it is, and what errors and user code leave behind."""

from __future__ import annotations

import copy
import gc
import pickle
import struct
import subprocess
import sys
import weakref
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

from lazystore._core.collate import ColumnSink, ObjectSink, Sink
from lazystore._core.decode import DecodePlan
from lazystore.errors import ConfigError, FormatError

LEAF = ("leaf",)
FLOAT32 = ("array", 9)


def pack(*leaves: bytes) -> bytes:
    return struct.pack(f"<{len(leaves)}I", *map(len, leaves)) + b"".join(leaves)


def flat(*ops: Any) -> DecodePlan:
    """A plan for ``{"0": ..., "1": ...}``."""
    leaves = [op if isinstance(op, tuple) else (op, None) for op in ops]
    names = [str(k) for k in range(len(ops))]
    return DecodePlan(leaves, [*[LEAF] * len(ops), ("dict", names)], names=names)


def bare(op: Any) -> DecodePlan:
    return DecodePlan([op if isinstance(op, tuple) else (op, None)], [LEAF], names=["x"], headless=True)


def i64(value: int) -> bytes:
    return struct.pack("<q", value)


def f32(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


def cube(*dims: int, index: int = 9, fill: float = 0) -> bytes:
    return struct.pack(f"<{2 + len(dims)}I", index, len(dims), *dims) + f32(*[fill] * int(np.prod(dims, dtype=int)))


def batch_of(plan: DecodePlan, *items: bytes, capacity: int = 8) -> Any:
    sink = ColumnSink(plan, capacity)
    for item in items:
        sink.add_bytes(item)
    return sink.take_batch()


# -- columns --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "leaves", "expected"),
    [
        ("int", [i64(-1), i64(2**63 - 1)], np.array([-1, 2**63 - 1], "<i8")),
        ("float", [struct.pack("<d", 0.5), struct.pack("<d", -2.0)], np.array([0.5, -2.0], "<f8")),
        ("bool", [b"\0", b"\2"], np.array([False, True])),
        (FLOAT32, [f32(1, 2), f32(3, 4)], np.array([[1, 2], [3, 4]], "<f4")),
        ("ndarray", [cube(1, 2, fill=3), cube(1, 2, fill=4)], np.array([[[3, 3]], [[4, 4]]], "<f4")),
        ("ndarray", [cube(fill=3), cube(fill=4)], np.array([3, 4], "<f4")),
    ],
)
def test_numbers_and_arrays_of_one_shape_become_one_array(op: Any, leaves: list[bytes], expected: Any) -> None:
    for found in (batch_of(flat(op), *map(pack, leaves))["0"], batch_of(bare(op), *leaves)):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
        assert found.flags.carray
        assert found.flags.owndata


@pytest.mark.parametrize("index", range(14))
def test_every_dtype_of_the_format_is_stacked(index: int) -> None:
    dtype = ["i1", "<i2", "<i4", "<i8", "u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8", "<c8", "<c16", "?"][index]
    rows = np.arange(12).astype(dtype).reshape(3, 4)
    found = batch_of(bare(("array", index)), *(row.tobytes() for row in rows))
    assert found.dtype == rows.dtype
    np.testing.assert_array_equal(found, rows)


@pytest.mark.parametrize(
    ("op", "leaves", "shapes"),
    [
        (FLOAT32, [f32(1), f32(1), f32(1, 2), f32(1)], [(1,), (1,), (2,), (1,)]),
        (FLOAT32, [b"", b""], [(0,), (0,)]),
        (FLOAT32, [f32(1), b""], [(1,), (0,)]),
        ("ndarray", [cube(2, 2), cube(4), cube(2, 2)], [(2, 2), (4,), (2, 2)]),
        ("ndarray", [cube(), cube(1)], [(), (1,)]),
        ("ndarray", [cube(1, index=9), cube(1, index=6)], [(1,), (1,)]),
        ("ndarray", [cube(0, 4), cube(0, 4)], [(0, 4), (0, 4)]),
        ("ndarray", [cube(*[1] * 32), cube(*[1] * 32)], [(1,) * 32, (1,) * 32]),
    ],
)
def test_arrays_of_several_shapes_become_a_list_of_arrays_that_own_their_memory(
    op: Any, leaves: list[bytes], shapes: list[tuple[int, ...]]
) -> None:
    found = batch_of(bare(op), *leaves)
    assert type(found) is list
    assert [array.shape for array in found] == shapes
    for array, leaf in zip(found, leaves, strict=True):
        expected = bare(op)(leaf)
        assert type(array) is np.ndarray
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)
        assert array.flags.owndata
        assert array.flags.writeable


def test_a_column_is_one_array_again_in_the_batch_after_a_ragged_one() -> None:
    sink = ColumnSink(bare(FLOAT32), 4)
    for leaves, kind in (([f32(1), f32(1, 2)], list), ([f32(1, 2), f32(3, 4)], np.ndarray), ([f32(1)], np.ndarray)):
        for leaf in leaves:
            sink.add_bytes(leaf)
        assert type(sink.take_batch()) is kind


def test_everything_else_becomes_a_list_of_what_the_plan_decodes() -> None:
    plan = flat("str", "bytes", ("call", len), ("none_or_call", bytes.decode))
    found = batch_of(plan, pack(b"a", b"\xff", b"abc", b"\x80\x04N."), pack("ä".encode(), b"", b"", b"x"))
    assert found == {"0": ["a", "ä"], "1": [b"\xff", b""], "2": [3, 0], "3": [None, "x"]}


def test_objects_stay_a_list_even_if_they_could_be_stacked() -> None:
    found = batch_of(bare(("call", lambda data: np.frombuffer(data, "u1"))), b"ab", b"cd")
    assert [array.tobytes() for array in found] == [b"ab", b"cd"]
    assert type(found) is list


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ([LEAF, LEAF, ("dict", ["a", "b"])], {"a": [1, 2], "b": ["x", "y"]}),
        ([LEAF, LEAF, ("tuple", 2)], ([1, 2], ["x", "y"])),
        ([LEAF, ("list", 1), LEAF, ("dict", ["a", "b"])], {"a": [[1, 2]], "b": ["x", "y"]}),
        ([LEAF, LEAF, ("list", 2), ("list", 0), ("tuple", 2)], ([[1, 2], ["x", "y"]], [])),
        ([LEAF, LEAF, ("call", 2, lambda v: OrderedDict(b=v[1], a=v[0]))], OrderedDict(b=["x", "y"], a=[1, 2])),
    ],
)
def test_a_batch_has_the_tree_of_an_item(tree: list[Any], expected: Any) -> None:
    plan = DecodePlan([("call", lambda data: data[0]), ("str", None)], tree, names=["a", "b"])
    found = batch_of(plan, pack(b"\1", b"x"), pack(b"\2", b"y"))
    assert found == expected
    assert type(found) is type(expected)


def test_items_of_no_leaves_are_counted() -> None:
    sink = ColumnSink(DecodePlan([], [("dict", [])], names=[]), 2)
    sink.add_bytes(b"")
    with pytest.raises(FormatError):
        sink.add_bytes(b"x")
    assert sink.count == 1
    assert sink.take_batch() == {}


# -- None -----------------------------------------------------------------------------------


def nullable(op: Any) -> DecodePlan:
    leaf = op if isinstance(op, tuple) else (op, None)
    return DecodePlan([(*leaf, {"nullable": True}), ("int", None)], [LEAF, LEAF, ("list", 2)], names=["x", "n"])


def null_item() -> bytes:
    return struct.pack("<2I", 2**32 - 1, 8) + i64(0)


NUMBERS: list[tuple[Any, list[bytes]]] = [
    ("int", [i64(1), i64(2)]),
    ("float", [struct.pack("<d", 0.5), struct.pack("<d", -2.0)]),
    ("bool", [b"\0", b"\2"]),
    (FLOAT32, [f32(1, 2), f32(3, 4)]),
    (("packed_array", ("float32", (2, 1))), [f32(1, 2), f32(3, 4)]),
    (("packed_array", ("float32", ())), [f32(1), f32(3)]),
]


@pytest.mark.parametrize(("op", "leaves"), NUMBERS)
def test_a_nullable_column_is_an_array_where_nothing_is_none_and_a_list_else(op: Any, leaves: list[bytes]) -> None:
    plan = nullable(op)
    good = [pack(leaf, i64(0)) for leaf in leaves]
    values = [plan(item)[0] for item in good]
    sink = ColumnSink(plan, 9)
    for nulls in ([], [0], [1], [2], [0, 1, 2, 3, 4], []):
        items = [*good, *good]
        expected: list[Any] = [*values, *values]
        for at in nulls:
            items.insert(at, null_item())
            expected.insert(at, None)
        for item in items:
            sink.add_bytes(item)
        found = sink.take_batch()[0]
        if not nulls:
            assert type(found) is np.ndarray
            np.testing.assert_array_equal(found, np.stack(expected))
            continue
        assert type(found) is list
        for value, like in zip(found, expected, strict=True):
            assert type(value) is type(like)
            np.testing.assert_array_equal(value, like)


@pytest.mark.parametrize(("op", "leaves"), NUMBERS)
@pytest.mark.parametrize("before", [0, 1])
def test_a_none_of_an_item_that_fails_leaves_an_array(op: Any, leaves: list[bytes], before: int) -> None:
    sink = ColumnSink(nullable(op), 4)
    good = [pack(leaf, i64(0)) for leaf in leaves]
    for item in good[:before]:
        sink.add_bytes(item)
    with pytest.raises(FormatError):
        sink.add_bytes(struct.pack("<2I", 2**32 - 1, 7) + bytes(7))
    for item in good[before:]:
        sink.add_bytes(item)
    found = sink.take_batch()
    assert type(found[0]) is np.ndarray
    assert len(found[0]) == len(found[1]) == 2


def test_a_column_of_objects_has_its_nones() -> None:
    assert batch_of(nullable("str"), pack(b"a", i64(0)), null_item())[0] == ["a", None]


def test_leaves_of_values_and_arrays_with_other_headers_are_lists() -> None:
    assert batch_of(bare("value"), b"\2", b"\0") == [True, None]
    packed = bare(("packed_array", ("", None)))
    same_shape, other = b"\x22\x04\1" + f32(1), b"\x22\x08\1\1" + f32(2)
    assert batch_of(packed, same_shape, same_shape).tolist() == [[1], [1]]
    assert [array.shape for array in batch_of(packed, same_shape, other)] == [(1,), (1, 1)]
    # Another header can be the same shape, in wider numbers.
    assert [array.shape for array in batch_of(packed, same_shape, b"\x22\x05\1\0" + f32(2))] == [(1,), (1,)]


def test_items_are_opened_before_they_are_poured() -> None:
    def opener(stored: bytes) -> bytes:
        if stored == b"bad":
            raise FormatError("not opened")
        return stored[::-1]

    plan = DecodePlan([("int", None)], [LEAF], names=["n"], opener=opener)
    for make in (ObjectSink, lambda plan: ColumnSink(plan, 2)):
        sink = make(plan)
        sink.add_bytes(pack(i64(1))[::-1])
        with pytest.raises(FormatError, match="not opened"):
            sink.add_bytes(b"bad")
        sink.add_bytes(pack(i64(2))[::-1])
        assert list(sink.take_batch()) == [1, 2]


# -- batches --------------------------------------------------------------------------------


def test_batches_have_one_row_an_item_and_are_new_each_time() -> None:
    sink = ColumnSink(flat("int", FLOAT32), 4)
    taken = []
    for size in (4, 1, 3):
        for k in range(size):
            sink.add_bytes(pack(i64(k), f32(k, k)))
            assert sink.count == k + 1
        taken.append(sink.take_batch())
        assert sink.count == 0
    for batch, size in zip(taken, (4, 1, 3), strict=True):
        assert batch["0"].tolist() == list(range(size))
        assert batch["1"].shape == (size, 2)
        assert batch["1"].nbytes == 8 * size
        batch["0"][:] = batch["1"][:] = -1
    assert len({array.ctypes.data for batch in taken for array in batch.values()}) == 6


def test_a_full_batch_takes_no_more() -> None:
    sink = ColumnSink(flat("int"), 2)
    sink.add_bytes(pack(i64(1)))
    sink.add_bytes(pack(i64(2)))
    with pytest.raises(ConfigError, match="2 items already"):
        sink.add_bytes(pack(i64(3)))
    assert sink.take_batch()["0"].tolist() == [1, 2]


@pytest.mark.parametrize("make", [ObjectSink, lambda plan: ColumnSink(plan, 2)])
def test_there_is_no_batch_of_nothing(make: Any) -> None:
    sink = make(flat("int"))
    with pytest.raises(ConfigError, match="no items"):
        sink.take_batch()
    sink.add_bytes(pack(i64(1)))
    assert len(sink.take_batch()) == 1
    with pytest.raises(ConfigError, match="no items"):
        sink.take_batch()


@pytest.mark.parametrize("capacity", [0, -1])
def test_a_batch_holds_at_least_one_item(capacity: int) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        ColumnSink(flat("int"), capacity)


def test_a_batch_larger_than_memory_costs_what_its_items_cost() -> None:
    sink = ColumnSink(flat("int", FLOAT32), 1 << 60)
    for k in range(3):
        sink.add_bytes(pack(i64(k), f32(k, k)))
    found = sink.take_batch()
    assert found["0"].tolist() == [0, 1, 2]
    assert found["1"].tolist() == [[0, 0], [1, 1], [2, 2]]


def test_arrays_grow_with_their_batch() -> None:
    row = 25 << 20
    sink = ColumnSink(bare(("array", 4)), 4)
    for k in range(3):
        sink.add_bytes(bytes([k + 1]) * row)
    found = sink.take_batch()
    assert found.shape == (3, row)
    assert [array[0] for array in found] == [array[-1] for array in found] == [1, 2, 3]
    assert found.flags.owndata


def test_lists_of_items_are_what_the_plan_decodes() -> None:
    sink = ObjectSink(flat("int", "str"))
    for k in range(3):
        sink.add_bytes(pack(i64(k), b"x" * k))
    assert sink.count == 3
    assert sink.take_batch() == [{"0": 0, "1": ""}, {"0": 1, "1": "x"}, {"0": 2, "1": "xx"}]
    assert sink.count == 0


# -- hostile bytes, and errors half-way -----------------------------------------------------


@pytest.mark.parametrize(
    ("op", "data", "says"),
    [
        ("int", b"1234567", "7 bytes instead of 8"),
        ("int", b"", "0 bytes instead of 8"),
        ("float", b"123456789", "9 bytes instead of 8"),
        ("bool", b"", "0 bytes instead of 1"),
        ("bool", b"12", "2 bytes instead of 1"),
        (("array", 3), b"123", "whole number of 8-byte"),
        ("ndarray", b"1234", "no header"),
        ("ndarray", cube(2)[:-1], "too short for its dimensions"),
        ("ndarray", cube(2) + b"x", "size of its dimensions"),
        ("ndarray", struct.pack("<3I", 9, 1, 2**32 - 1), "too short"),
    ],
)
@pytest.mark.parametrize("before", [0, 2])
def test_leaves_of_the_wrong_length_are_refused_as_in_decoding(op: Any, data: bytes, says: str, before: int) -> None:
    good = {"int": i64(1), "float": i64(0), "bool": b"\1", ("array", 3): i64(1), "ndarray": cube(1)}[op]
    sink = ColumnSink(flat(op), 4)
    for _ in range(before):
        sink.add_bytes(pack(good))
    with pytest.raises(FormatError, match=says):
        sink.add_bytes(pack(data))
    sink.add_bytes(pack(good))
    assert sink.take_batch()["0"].shape[0] == before + 1


@pytest.mark.parametrize("item", [b"", b"\1\0\0", pack(b"a")[:-1], pack(b"a") + b"x", b"\xff\xff\xff\xff" + b"a"])
@pytest.mark.parametrize("op", ["bytes", ("array", 4)])
def test_sizes_that_do_not_add_up_are_refused(item: bytes, op: Any) -> None:
    sink = ColumnSink(flat(op), 4)
    for _ in range(2):
        with pytest.raises(FormatError, match=r"add up|empty"):
            sink.add_bytes(item)
        assert sink.count == 0
        sink.add_bytes(pack(b"a"))
        sink.take_batch()


@pytest.mark.parametrize("size", [3, 6, 2**31, 2**32 - 1])
def test_no_leaf_sees_bytes_after_its_item(size: int) -> None:
    seen: list[bytes] = []
    sink = ColumnSink(flat(("call", seen.append)), 2)
    with pytest.raises(FormatError, match="add up"):
        sink.add_bytes(memoryview(struct.pack("<I", size) + b"abcdefgh")[:6])
    assert seen == []


def test_an_item_that_fails_leaves_every_column_as_it_was() -> None:
    sink = ColumnSink(flat("bytes", FLOAT32, "ndarray", "int", "str"), 8)
    bad = [
        pack(b"bad", f32(9, 9), cube(1), i64(9), b"\xff"),
        pack(b"bad", f32(9), cube(2, 2), i64(9), b"\xff"),
        pack(b"bad", b"", cube(0), i64(9), b"\xff"),
        pack(b"bad", f32(9, 9), cube(1), b"123", b"x"),
        pack(b"bad", f32(9, 9), cube(1), i64(9), b"x") + b"rest",
    ]
    for k in range(3):
        for item in bad:
            with pytest.raises((FormatError, UnicodeDecodeError)):
                sink.add_bytes(item)
        sink.add_bytes(pack(b"good", f32(k, k), cube(1, fill=k), i64(k), b"ok"))
    found = sink.take_batch()
    assert found["0"] == [b"good"] * 3
    assert found["1"].tolist() == [[0, 0], [1, 1], [2, 2]]
    assert found["2"].tolist() == [[0], [1], [2]]
    assert found["3"].tolist() == [0, 1, 2]
    assert found["4"] == ["ok"] * 3


def test_items_that_fail_half_way_leak_no_leaves() -> None:
    class Value:
        pass

    alive: weakref.WeakSet[Value] = weakref.WeakSet()

    def make(data: bytes) -> Value:
        value = Value()
        alive.add(value)
        return value

    sink = ColumnSink(flat(("call", make), "int"), 4)
    for _ in range(10):
        with pytest.raises(FormatError):
            sink.add_bytes(pack(b"", b"123"))
    gc.collect()
    assert len(alive) == 0
    sink.add_bytes(pack(b"", i64(0)))
    del sink
    gc.collect()
    assert len(alive) == 0


def test_a_tree_that_cannot_be_built_loses_its_batch_only() -> None:
    def fail(children: list[Any]) -> Any:
        raise ZeroDivisionError

    sink = ColumnSink(DecodePlan([("int", None)], [LEAF, ("call", 1, fail)], names=["a"]), 2)
    for _ in range(2):
        sink.add_bytes(pack(i64(1)))
        with pytest.raises(ZeroDivisionError):
            sink.take_batch()
        assert sink.count == 0


@pytest.mark.parametrize("kind", [ObjectSink, lambda plan: ColumnSink(plan, 4)])
@pytest.mark.parametrize("inside", ["add_bytes", "take_batch"])
def test_a_leaf_cannot_use_the_sink_it_is_decoded_for(kind: Any, inside: str) -> None:
    sink: Any = None

    def meddle(data: bytes) -> str:
        if data == b"meddle":
            getattr(sink, inside)(*([pack(i64(0), b"")] if inside == "add_bytes" else []))
        return "fine"

    sink = kind(flat("int", ("call", meddle)))
    sink.add_bytes(pack(i64(1), b""))
    with pytest.raises(ConfigError, match="one thread"):
        sink.add_bytes(pack(i64(2), b"meddle"))
    sink.add_bytes(pack(i64(3), b""))
    assert sink.count == 2
    assert len(sink.take_batch()) == 2


def test_bytes_are_read_at_any_address() -> None:
    item = pack(i64(7), f32(1, 2), cube(3, fill=5))
    plan = flat("int", FLOAT32, "ndarray")
    for shift in range(9):
        found = batch_of(plan, *[memoryview(bytearray(shift) + item)[shift:]] * 3)  # type: ignore[list-item]
        assert found["0"].tolist() == [7] * 3
        assert found["1"].tolist() == [[1, 2]] * 3
        assert found["2"].tolist() == [[5] * 3] * 3


# -- odds and ends --------------------------------------------------------------------------

NO_NUMPY = """
import sys
from lazystore._core.collate import ColumnSink, ObjectSink
from lazystore._core.decode import DecodePlan
item = bytes([1, 0, 0, 0]) + b"a"
for make in (ObjectSink, lambda plan: ColumnSink(plan, 4)):
    sink = make(DecodePlan([("str", None)], [("leaf",), ("dict", ["a"])], names=["a"]))
    sink.add_bytes(item)
    print(sink.take_batch())
ObjectSink(DecodePlan([("int", None)], [("leaf",)], names=["a"]))
assert "numpy" not in sys.modules
ColumnSink(DecodePlan([("int", None)], [("leaf",)], names=["a"]), 1)
assert "numpy" in sys.modules
"""


def test_numpy_is_imported_only_for_arrays() -> None:
    done = subprocess.run([sys.executable, "-c", NO_NUMPY], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split("\n")[:2] == ["[{'a': 'a'}]", "{'a': ['a']}"]


def test_the_base_takes_nothing() -> None:
    with pytest.raises(NotImplementedError, match="Sink takes no items"):
        Sink().add_bytes(b"x")
    with pytest.raises(NotImplementedError, match="Sink makes no batches"):
        Sink().take_batch()


@pytest.mark.parametrize("sink", [ObjectSink(flat("int")), ColumnSink(flat("int"), 2)])
def test_pickling_and_copying_are_refused_and_repr_counts(sink: Sink) -> None:
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(sink)
    with pytest.raises(TypeError):
        copy.copy(sink)
    assert repr(sink) == f"<{type(sink).__name__} of 0 items>"
    sink.add_bytes(pack(i64(1)))
    assert repr(sink) == f"<{type(sink).__name__} of 1 items>"
    assert len(sink.take_batch()) == 1


@pytest.mark.parametrize("make", [lambda: ObjectSink(None), lambda: ColumnSink(None, 1), lambda: ColumnSink("plan", 1)])
def test_sinks_need_a_plan(make: Any) -> None:
    with pytest.raises(TypeError):
        make()
