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


@pytest.mark.parametrize("leaf", [("float32", None), ("array", 14), ("array", -1), ("call", None), ("call", "f")])
def test_leaves_nobody_can_decode_are_refused(leaf: tuple[str, Any]) -> None:
    with pytest.raises(ConfigError):
        DecodePlan([leaf], [LEAF], names=["a"])


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
