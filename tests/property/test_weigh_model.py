"""``weigh`` against its model."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from models.weigh import weigh_model

from lazystore._core.weigh import weigh

# Not empty, not short, not small: those may be shared by all of the interpreter.
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(min_value=10_000),
    st.integers(max_value=-10_000),
    st.floats(),
    st.text(min_size=1).map("text: {}".format),
    st.binary(min_size=2),
    st.binary(min_size=2).map(bytearray),
)
hashable = st.one_of(st.integers(10_000, 10_100), st.text(min_size=1, max_size=5).map("key: {}".format))


def more(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.lists(values),
        st.lists(values, min_size=1).map(tuple),
        values.map(lambda value: [value, [value, (value, value)]]),
        st.dictionaries(hashable, values),
        st.sets(hashable),
        st.frozensets(hashable, min_size=1),
    )


@given(st.recursive(leaves, more, max_leaves=40))
def test_builtin_containers_weigh_what_getsizeof_says_of_each_object(value: Any) -> None:
    assert weigh(value) == weigh_model(value)


@settings(max_examples=30)
@given(leaves, st.integers(2, 2000))
def test_many_alike_are_extrapolated(leaf: Any, count: int) -> None:
    many = [[i * 0.5, [leaf, i + 1000]] for i in range(count)]
    exact = weigh_model(many)
    assert abs(weigh(many, limit_objects=200) - exact) <= 0.05 * exact + 100 * weigh_model(leaf)
