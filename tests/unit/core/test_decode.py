"""The decode plan: what a schema may be, and how calls into Python behave."""

from __future__ import annotations

import copy
import gc
import pickle
import struct
import subprocess
import sys
import weakref
from typing import Any

import pytest

from lazystore._core.decode import DecodePlan
from lazystore.errors import ConfigError, FormatError

LEAF = ("leaf",)


def pack(*leaves: bytes) -> bytes:
    return struct.pack(f"<{len(leaves)}I", *map(len, leaves)) + b"".join(leaves)


def flat(*ops: Any) -> DecodePlan:
    """A plan for ``{"0": ..., "1": ...}``."""
    leaves = [op if isinstance(op, tuple) else (op, None) for op in ops]
    names = [str(k) for k in range(len(ops))]
    return DecodePlan(leaves, [*[LEAF] * len(ops), ("dict", names)], names=names)


# -- schemas --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tree",
    [
        [],
        [LEAF, LEAF],
        [("list", 0)],
        [LEAF, ("list", 2)],
        [LEAF, ("list", -1)],
        [LEAF, ("dict", ["a", "b"])],
        [LEAF, ("set", 1)],
        [LEAF, ("call", 1)],
        [LEAF, ("call", 1, "no function")],
        [LEAF, ("list", 1, 2)],
        [LEAF, ("list",)],
        [("list", 0), LEAF],
        [LEAF, LEAF, ("tuple", 1), ("list", 1)],
    ],
)
def test_programs_that_do_not_leave_one_value_of_all_leaves_are_refused(tree: list[Any]) -> None:
    with pytest.raises(ConfigError):
        DecodePlan([("str", None)], tree, names=["a"])


@pytest.mark.parametrize(
    "leaf",
    [
        ("float32", None),
        ("array", 14),
        ("array", -1),
        ("call", None),
        ("call", "f"),
        ("packed_array", ("bool", None)),
        ("packed_array", ("float32", (-1,))),
        ("packed_array", ("float32", (1,) * 33)),
        ("packed_array", ("float32", (2**32, 2**32))),
        ("packed_array", ("float32", (0, 2**49))),
        ("int", None, {"fixed": -1}),
        ("int", None, {"fixed": 8, "nullable": True}),
        ("int", None, {"nulable": True}),
    ],
)
def test_leaves_nobody_can_decode_are_refused(leaf: tuple[Any, ...]) -> None:
    with pytest.raises(ConfigError):
        DecodePlan([leaf], [LEAF], names=["a"])


@pytest.mark.parametrize("flags", [{"fixed": 8}, {"nullable": True}])
def test_a_headless_leaf_has_no_flags(flags: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="flags"):
        DecodePlan([("int", None, flags)], [LEAF], names=["a"], headless=True)


def test_an_opener_is_a_function() -> None:
    with pytest.raises(ConfigError, match="opener"):
        DecodePlan([("int", None)], [LEAF], names=["a"], opener=b"key")  # type: ignore[arg-type]


def test_every_leaf_needs_a_name() -> None:
    with pytest.raises(ConfigError, match="1 leaves have 2 names"):
        DecodePlan([("str", None)], [LEAF], names=["a", "b"])


def test_only_one_leaf_can_be_headless() -> None:
    with pytest.raises(ConfigError, match="one leaf, not 2"):
        DecodePlan([("str", None)] * 2, [LEAF, LEAF, ("list", 2)], names=["a", "b"], headless=True)


def test_schemas_of_no_leaves_decode_the_empty_item_only() -> None:
    for tree, expected in (([("dict", [])], {}), ([("list", 0)], []), ([("tuple", 0)], ())):
        plan = DecodePlan([], tree, names=[])
        assert plan(b"") == expected
        with pytest.raises(FormatError):
            plan(b"x")


def test_keys_are_shared_between_items_and_keep_their_order() -> None:
    plan = flat("int", "bytes")
    first, second = plan(pack(bytes(8), b"")), plan(pack(bytes(8), b"x"))
    assert list(first) == ["0", "1"]
    assert all(a is b for a, b in zip(first, second, strict=True))


def test_a_repeated_key_keeps_the_last_value() -> None:
    plan = DecodePlan([("str", None)] * 2, [LEAF, LEAF, ("dict", ["a", "a"])], names=["a", "a"])
    assert plan(pack(b"1", b"2")) == {"a": "2"}


def test_containers_are_new_for_every_item() -> None:
    plan = DecodePlan([("str", None)], [LEAF, ("list", 1), ("list", 0), ("tuple", 2)], names=["a"])
    first, second = plan(pack(b"x")), plan(pack(b"x"))
    assert first == second == (["x"], [])
    assert first[0] is not second[0]
    assert first[1] is not second[1]


# -- leaves ---------------------------------------------------------------------------------


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
    ],
)
def test_leaves_of_the_wrong_length_are_refused(op: Any, data: bytes, says: str) -> None:
    with pytest.raises(FormatError, match=says):
        flat(op)(pack(data))


def test_broken_utf8_is_a_unicode_error() -> None:
    with pytest.raises(UnicodeDecodeError):
        flat("str")(pack(b"\xff"))


@pytest.mark.parametrize("item", [b"", b"\1\0\0", pack(b"a")[:-1], pack(b"a") + b"x", b"\xff\xff\xff\xff" + b"a"])
def test_sizes_that_do_not_add_up_are_refused(item: bytes) -> None:
    trees: list[list[tuple[Any, ...]]] = [[LEAF], [LEAF, ("dict", ["a"])], [LEAF, ("list", 1)]]
    for tree in trees:
        with pytest.raises(FormatError, match=r"add up|empty"):
            DecodePlan([("bytes", None)], tree, names=["a"])(item)


def test_a_headless_leaf_is_all_of_the_item() -> None:
    plan = DecodePlan([("bytes", None)], [LEAF], names=["a"], headless=True)
    assert plan.headless
    assert plan(b"") == b""
    assert plan(b"\1\0\0\0a") == b"\1\0\0\0a"


def test_none_is_decoded_without_unpickling() -> None:
    def refuse(data: bytes) -> Any:
        raise AssertionError(data)

    plan = flat(("none_or_call", refuse))
    assert plan(pack(b"\x80\x04N.")) == {"0": None}
    for data in (b"\x80\x04N", b"\x80\x04N..", b"\x80\x05N."):
        with pytest.raises(AssertionError):
            plan(pack(data))


def test_none_is_no_item() -> None:
    with pytest.raises(TypeError):
        flat("str")(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        flat("str")("text")  # type: ignore[arg-type]


# -- fixed, nullable, opened ----------------------------------------------------------------


def trees(n: int) -> list[list[tuple[Any, ...]]]:
    names = [str(k) for k in range(n)]
    return [[*[LEAF] * n, ("dict", names)], [*[LEAF] * n, ("call", n, lambda v: dict(zip(names, v, strict=True)))]]


FIXED_INT = ("int", None, {"fixed": 8})
NULL = b"\xff\xff\xff\xff"


@pytest.mark.parametrize("tree", trees(3))
def test_fixed_leaves_have_no_size(tree: Any) -> None:
    plan = DecodePlan([FIXED_INT, ("str", None), ("bytes", None, {"fixed": 2})], tree, names="abc")
    assert plan.head == 4
    assert plan(b"\1\0\0\0" + bytes([7]).ljust(8, b"\0") + b"xyz") == {"0": 7, "1": "x", "2": b"yz"}
    for item in (b"", b"\1\0\0\0", b"\1\0\0\0" + bytes(10), b"\1\0\0\0" + bytes(12), NULL + bytes(11)):
        with pytest.raises(FormatError, match=r"add up|empty"):
            plan(item)


@pytest.mark.parametrize("tree", trees(1))
def test_items_of_fixed_leaves_have_no_sizes_at_all(tree: Any) -> None:
    plan = DecodePlan([FIXED_INT], tree, names="a")
    assert plan.head == 0
    assert plan(bytes([7]).ljust(8, b"\0")) == {"0": 7}
    assert DecodePlan([("bytes", None, {"fixed": 0})], tree, names="a")(b"") == {"0": b""}
    for item in (b"", bytes(7), bytes(9)):
        with pytest.raises(FormatError, match=r"add up|empty"):
            plan(item)


def test_a_fixed_length_must_be_the_numbers() -> None:
    with pytest.raises(FormatError, match="7 bytes instead of 8"):
        DecodePlan([("int", None, {"fixed": 7})], [LEAF], names="a")(bytes(7))


@pytest.mark.parametrize("tree", trees(2))
@pytest.mark.parametrize("op", ["str", "int", ("call", lambda data: 1 / 0), ("packed_array", ("", None)), "value"])
def test_nullable_leaves_are_none_where_their_size_says_so(tree: Any, op: Any) -> None:
    leaf = op if isinstance(op, tuple) else (op, None)
    plan = DecodePlan([(*leaf, {"nullable": True}), ("bytes", None)], tree, names="ab")
    assert plan(NULL + b"\1\0\0\0x") == {"0": None, "1": b"x"}
    for item in (NULL, NULL + b"\1\0\0\0", NULL + b"\1\0\0\0xy", NULL + NULL + b"x"):
        with pytest.raises(FormatError, match="add up"):
            plan(item)


@pytest.mark.parametrize("tree", trees(1))
def test_the_size_of_none_is_a_lie_where_nothing_can_be_none(tree: Any) -> None:
    for flags in ({}, {"nullable": False}):
        with pytest.raises(FormatError, match="add up"):
            DecodePlan([("str", None, flags)], tree, names="a")(NULL)


@pytest.mark.parametrize("plan", [*trees(1), "headless"])
def test_stored_bytes_are_opened_first(plan: Any) -> None:
    seen: list[bytes] = []

    def opener(stored: bytes) -> bytes:
        seen.append(stored)
        return stored[1:]

    headless = plan == "headless"
    tree = [LEAF, ("dict", ["0"])] if headless else plan
    decode = DecodePlan([("str", None)], tree, names="a", headless=headless, opener=opener)
    item = b"!" + (b"x" if headless else pack(b"x"))
    assert decode(memoryview(bytearray(item))) == {"0": "x"}
    assert seen == [item]
    assert type(seen[0]) is bytes


def test_errors_of_openers_go_through_and_what_they_give_is_checked() -> None:
    tree = [LEAF, ("dict", ["0"])]
    with pytest.raises(ZeroDivisionError):
        DecodePlan([("str", None)], tree, names="a", opener=lambda stored: 1 / 0)(b"x")  # type: ignore[arg-type, return-value]
    for wrong in (None, bytearray(pack(b"x")), "text"):
        with pytest.raises(TypeError, match="must return bytes"):
            DecodePlan([("str", None)], tree, names="a", opener=lambda stored, wrong=wrong: wrong)(b"x")
    with pytest.raises(FormatError, match="add up"):
        DecodePlan([("str", None)], tree, names="a", opener=lambda stored: pack(b"x") + b"y")(b"x")


# -- calls ----------------------------------------------------------------------------------


def test_functions_get_their_leafs_bytes_in_stored_order() -> None:
    seen: list[bytes] = []
    plan = flat(*[("call", seen.append)] * 3)
    assert plan(pack(b"one", b"", b"three")) == {"0": None, "1": None, "2": None}
    assert seen == [b"one", b"", b"three"]
    assert all(type(data) is bytes for data in seen)


def test_errors_of_functions_go_through_and_leave_the_plan_usable() -> None:
    def fail(data: bytes) -> Any:
        raise ZeroDivisionError(data)

    plan = flat("str", ("call", fail), "str")
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            plan(pack(b"a", b"b", b"c"))


def test_a_function_may_use_the_plan_it_is_called_from() -> None:
    plan: DecodePlan

    def nested(data: bytes) -> Any:
        return plan(data[1:]) if data else None

    plan = flat(("call", nested))
    inner = pack(b"")
    for _ in range(20):
        inner = pack(b"." + inner)
    value = plan(inner)
    for _ in range(20):
        value = value["0"]
    assert value == {"0": None}


def test_a_plan_keeps_its_functions_and_is_collected_with_them() -> None:
    class Function:
        def __call__(self, data: bytes) -> int:
            return len(data)

    function: Any = Function()
    function.plan = flat(("call", function))
    plan, watch = function.plan, weakref.ref(function)
    del function
    gc.collect()
    assert plan(pack(b"four")) == {"0": 4}
    del plan
    gc.collect()
    assert watch() is None


def test_items_that_fail_half_way_leak_no_leaves() -> None:
    class Value:
        pass

    alive: weakref.WeakSet[Value] = weakref.WeakSet()

    def make(data: bytes) -> Value:
        value = Value()
        alive.add(value)
        return value

    for tree in ([LEAF, LEAF, ("dict", ["a", "b"])], [LEAF, LEAF, ("list", 2)]):
        plan = DecodePlan([("call", make), ("int", None)], tree, names=["a", "b"])
        for _ in range(10):
            with pytest.raises(FormatError):
                plan(pack(b"", b"123"))
    gc.collect()
    assert len(alive) == 0


# -- numpy ----------------------------------------------------------------------------------

NO_NUMPY = """
import sys
from lazystore._core.decode import DecodePlan
plan = DecodePlan([("str", None), ("int", None)], [("leaf",), ("leaf",), ("list", 2)], names=["a", "b"])
assert plan(bytes([1, 0, 0, 0, 8, 0, 0, 0]) + b"a" + bytes(8)) == ["a", 0]
assert "numpy" not in sys.modules
plan = DecodePlan([("array", 0)], [("leaf",)], names=["a"])
assert "numpy" in sys.modules
"""


def test_numpy_is_imported_only_for_array_leaves() -> None:
    done = subprocess.run([sys.executable, "-c", NO_NUMPY], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# -- odds and ends --------------------------------------------------------------------------


def test_pickling_and_copying_are_refused() -> None:
    plan = flat("str")
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(plan)
    with pytest.raises(TypeError):
        copy.copy(plan)


def test_repr_says_what_it_is() -> None:
    plan = DecodePlan([("str", None), ("int", None)], [LEAF, LEAF, ("list", 2)], names=["text: str", "label: int"])
    assert repr(plan) == "<DecodePlan 2 leaves: text: str, label: int>"
    assert (plan.n_leaves, plan.names, plan.headless) == (2, ("text: str", "label: int"), False)


def test_size_error_is_made_for_the_caller_to_raise() -> None:
    assert isinstance(flat("str").size_error(7), FormatError)
    assert "empty" in str(flat("str").size_error(0))
    assert "7 bytes" in str(flat("str").size_error(7))
