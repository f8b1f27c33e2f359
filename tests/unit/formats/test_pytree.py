"""``data_spec`` to a decode program: containers of every kind, and specs that are none."""

from __future__ import annotations

import collections
import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.datasets import LEAF, item_bytes

from lazystore._core.decode import DecodePlan
from lazystore.errors import FormatError, LazyStoreError, UnsafeDataError
from lazystore.formats.pytree import compile_tree, leaf_names


def node(kind: str | None, context: Any, *children: Any) -> dict[str, Any]:
    return {"type": kind, "context": context, "children_spec": list(children)}


def spec(root: Any) -> str:
    return json.dumps([1, root])


def build(root: Any, *leaves: str) -> Any:
    """What an item of str leaves becomes."""
    program = compile_tree(spec(root), len(leaves))
    plan = DecodePlan([("str", None)] * len(leaves), program, names=list(map(str, range(len(leaves)))))
    return plan(item_bytes([leaf.encode() for leaf in leaves]))


def dict_node(*keys: Any) -> dict[str, Any]:
    return node("builtins.dict", json.dumps(keys), *[LEAF] * len(keys))


def test_no_spec_is_one_bare_leaf() -> None:
    assert compile_tree(None, 1) == [("leaf",)]


def test_a_leaf_is_itself() -> None:
    assert build(LEAF, "a") == "a"


@pytest.mark.parametrize(
    "root, leaves, value",
    [
        (dict_node("x", "y"), "ab", {"x": "a", "y": "b"}),
        (dict_node("y", "x"), "ab", {"y": "a", "x": "b"}),
        (dict_node(), "", {}),
        (dict_node(7, -1, None, True, 2.5), "abcde", {7: "a", -1: "b", None: "c", True: "d", 2.5: "e"}),
        (node("builtins.list", "null", LEAF, LEAF), "ab", ["a", "b"]),
        (node("builtins.list", "null"), "", []),
        (node("builtins.tuple", "null", LEAF), "a", ("a",)),
        (node("builtins.tuple", None, LEAF), "a", ("a",)),
        (node("collections.namedtuple", '"Point"', LEAF, LEAF), "ab", ("a", "b")),
        (
            node("builtins.tuple", "null", LEAF, node("builtins.list", "null", dict_node("k"), LEAF), dict_node()),
            "abc",
            ("a", [{"k": "b"}, "c"], {}),
        ),
    ],
)
def test_containers_come_back_as_they_were(root: Any, leaves: str, value: Any) -> None:
    found = build(root, *leaves)
    assert found == value
    assert type(found) is type(value)
    if isinstance(value, dict):
        assert list(found) == list(value)


def test_ordered_dict_keeps_its_type_and_order() -> None:
    found = build(node("collections.OrderedDict", '["z", "a"]', LEAF, LEAF), "1", "2")
    assert type(found) is collections.OrderedDict
    assert list(found.items()) == [("z", "1"), ("a", "2")]


@pytest.mark.parametrize("maxlen", [None, 2, 5, 0])
def test_deque_keeps_its_bound(maxlen: int | None) -> None:
    found = build(node("collections.deque", json.dumps(maxlen), LEAF, LEAF), "a", "b")
    assert (type(found), found.maxlen) == (collections.deque, maxlen)
    assert list(found) == ["a", "b"][: 2 if maxlen is None else maxlen]


@pytest.mark.parametrize("name", ["int", "list", "dict", "str"])
def test_defaultdict_keeps_a_builtin_factory(name: str) -> None:
    context = {"default_factory_module": "builtins", "default_factory_name": name, "dict_context": ["k"]}
    found = build(node("collections.defaultdict", context, LEAF), "a")
    assert (type(found), dict(found)) == (collections.defaultdict, {"k": "a"})
    assert found.default_factory.__name__ == name


@pytest.mark.parametrize(
    "module, name", [("os", "system"), ("builtins", "eval"), ("builtins", "exec"), ("builtins", "open"), ("", "int")]
)
def test_defaultdict_imports_no_other_factory(module: str, name: str) -> None:
    context = {"default_factory_module": module, "default_factory_name": name, "dict_context": ["k"]}
    with pytest.raises(UnsafeDataError, match=f"{module}.{name}"):
        compile_tree(spec(node("collections.defaultdict", context, LEAF)), 1)


@pytest.mark.parametrize(
    "root",
    [
        None, 5, "leaf", [], {}, {"type": None}, {"type": None, "context": None},
        {"type": 5, "context": None, "children_spec": []}, {"type": [], "context": None, "children_spec": []},
        {"type": None, "context": None, "children_spec": {}}, node(None, None, LEAF),
        node("builtins.dict", "[]", LEAF), node("builtins.dict", '["a", "b"]', LEAF),
        node("builtins.dict", "null", LEAF), node("builtins.dict", "{", LEAF), node("builtins.dict", 5, LEAF),
        node("builtins.dict", '[["a"]]', LEAF),
        node("builtins.dict", '[{"a": 1}]', LEAF), node("builtins.dict", "[" * 100_000, LEAF),
        node("collections.OrderedDict", '["a", "b"]', LEAF), node("collections.deque", '"x"', LEAF),
        node("collections.deque", "-1", LEAF), node("collections.deque", "1.5", LEAF),
        node("collections.deque", str(10**30), LEAF),
        node("collections.defaultdict", None, LEAF), node("collections.defaultdict", {}, LEAF),
        node("collections.defaultdict", "[]", LEAF),
        node("collections.defaultdict", {"default_factory_module": "builtins", "default_factory_name": [],
                                         "dict_context": ["k"]}, LEAF),
        node("builtins.set", "null", LEAF), node("posix.system", "null", LEAF), node("", "null", LEAF),
    ],
)  # fmt: skip
def test_nodes_that_make_no_sense_are_refused(root: Any) -> None:
    with pytest.raises(FormatError):
        compile_tree(spec(root), 1)


@pytest.mark.parametrize("text", ["", "{", "5", "null", "[1]", "[1, 2, 3]", '"ab"', '{"1": 2, "3": 4}', "[" * 10**5])
def test_text_that_is_no_spec_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match="data_spec"):
        compile_tree(text, 1)


def test_another_protocol_is_refused_by_number() -> None:
    with pytest.raises(FormatError, match="protocol 2"):
        compile_tree(json.dumps([2, LEAF]), 1)


@pytest.mark.parametrize("stored", [0, 1, 3])
def test_another_number_of_leaves_is_refused(stored: int) -> None:
    with pytest.raises(FormatError, match=f"2 leaves, data_format has {stored}"):
        compile_tree(spec(dict_node("a", "b")), stored)


def test_depth_and_size_are_bounded() -> None:
    deep: Any = LEAF
    for _ in range(60):
        deep = node("builtins.list", "null", deep)
    assert build(deep, "a")
    for _ in range(10):
        deep = node("builtins.list", "null", deep)
    with pytest.raises(FormatError, match="deeper"):
        compile_tree(spec(deep), 1)
    wide = node("builtins.list", "null", *[LEAF] * 100_002)
    with pytest.raises(FormatError, match="larger"):
        compile_tree(spec(wide), 100_002)


def test_the_recursion_limit_of_the_caller_is_not_needed() -> None:
    deep = "[" * (sys.getrecursionlimit() * 50)
    with pytest.raises(FormatError):
        compile_tree(deep, 1)


def test_leaves_are_named_by_their_path_and_tag() -> None:
    root = node("builtins.dict", '["a", "b"]', LEAF, node("builtins.list", "null", LEAF, dict_node("k")))
    assert leaf_names(spec(root), ["int", "str", "bool"]) == ["a: int", "b.0: str", "b.1.k: bool"]
    assert leaf_names(None, ["str"]) == ["0: str"]


# -- any tree that Python can make ----------------------------------------------------------

keys = st.text(max_size=5) | st.integers(-9, 9)
values = st.recursive(
    st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
        | st.dictionaries(keys, inner, max_size=4).map(collections.OrderedDict)
        | st.lists(inner, max_size=4).map(lambda found: collections.deque(found, 9))
    ),
    max_leaves=12,
)


def flatten(value: Any, leaves: list[str]) -> dict[str, Any]:
    """The spec of a value, its leaves appended."""
    if isinstance(value, str):
        leaves.append(value)
        return LEAF
    if isinstance(value, dict):
        kind = "collections.OrderedDict" if isinstance(value, collections.OrderedDict) else "builtins.dict"
        children = [flatten(child, leaves) for child in value.values()]
        return node(kind, json.dumps(list(value)), *children)
    children = [flatten(child, leaves) for child in value]
    if isinstance(value, collections.deque):
        return node("collections.deque", json.dumps(value.maxlen), *children)
    return node(f"builtins.{type(value).__name__}", "null", *children)


@given(values)
def test_any_tree_is_rebuilt_from_its_spec(value: Any) -> None:
    leaves: list[str] = []
    root = flatten(value, leaves)
    found = build(root, *leaves)
    assert found == value
    assert repr(found) == repr(value)


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(
        ["builtins.dict", "builtins.list", "collections.deque", "collections.defaultdict", "[]", '["a"]']
    ),
    lambda inner: st.lists(inner, max_size=3) | st.fixed_dictionaries(
        {"type": inner, "context": inner, "children_spec": st.lists(inner, max_size=3)}
    ) | st.dictionaries(st.sampled_from(["default_factory_module", "default_factory_name", "dict_context"]), inner),
    max_leaves=10,
)  # fmt: skip


@given(junk, st.integers(0, 4))
def test_nothing_but_our_errors_comes_out_of_junk(root: Any, leaves: int) -> None:
    try:
        program = compile_tree(spec(root), leaves)
    except LazyStoreError:
        return
    assert sum(step[0] == "leaf" for step in program) == leaves
    build(root, *["x"] * leaves)
