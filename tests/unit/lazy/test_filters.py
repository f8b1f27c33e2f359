"""Filters in keys and cursors: equal ones alike in whatever order, different ones never."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazystore.errors import UnhashableKeyError
from lazystore.lazy.filters import bound, frozen

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=4), plain, max_size=4), st.randoms())
def test_the_order_in_which_filters_are_given_does_not_matter(filters: dict[str, Any], chance: Any) -> None:
    items = list(filters.items())
    chance.shuffle(items)
    assert frozen(dict(items)) == frozen(filters)
    assert bound(frozen(dict(items))) == bound(frozen(filters))
    hash(frozen(filters))


@given(plain, plain)
def test_filters_are_alike_only_if_they_are_equal(one: Any, other: Any) -> None:
    assert (frozen({"x": one}) == frozen({"x": other})) == (one == other)


def test_a_list_that_looks_like_a_frozen_dict_is_none() -> None:
    assert frozen({"x": ["dict", frozenset([("a", 1)])]}) != frozen({"x": {"a": 1}})
    assert frozen({"x": [("a", 1)]}) != frozen({"x": {"a": 1}})
    assert frozen({"x": {1, 2}}) == frozen({"x": frozenset([2, 1])})
    assert frozen({"x": (1, 2)}) == frozen({"x": [1, 2]})


def test_no_filters_are_nothing() -> None:
    assert frozen({}) == ()


def test_what_cannot_be_hashed_is_named_by_its_type() -> None:
    with pytest.raises(UnhashableKeyError, match="bytearray"):
        frozen({"x": [bytearray()]})


def test_what_has_no_form_in_other_processes_is_bound_in_this_one() -> None:
    marker, other = object(), object()
    assert bound((marker,)) == bound((marker,)) != bound((other,))
    assert bound(("a", 1)) == bound(("a", 1)) != bound(("a", 2))
