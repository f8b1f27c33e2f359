"""Copies of samples: equal, of the same kinds, and nobody else's."""

from __future__ import annotations

import datetime
import enum
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazystore.hub.fresh import DEEP, FLAT, SHARED, copied, depth_of, fresh


class Colour(enum.Enum):
    RED = 1


ATOMS = [1, 2.5, "x", b"y", None, True, 1j, Colour.RED, np.float32(2), datetime.date(2020, 1, 1), Path("a"), int]


@pytest.mark.parametrize(
    ("samples", "depth"),
    [
        ([1, "a", None], SHARED),
        ([(1, "a"), (2, "b")], SHARED),
        ([(1, [2])], DEEP),
        ([{"a": 1}, {"b": "x"}], FLAT),
        ([{}], FLAT),
        ([{"a": atom} for atom in ATOMS], FLAT),
        ([{"a": 1}, {"a": [1]}], DEEP),
        ([{"a": np.zeros(2)}], DEEP),
        ([[1, 2]], DEEP),
        ([{"a": 1}, (1,)], DEEP),
        ([np.zeros(3)], DEEP),
        ([bytearray(b"x")], DEEP),
        ([{"a": np.zeros(1, [("x", "i4")])[0]}], DEEP),
    ],
)
def test_only_what_can_be_changed_is_copied_and_as_deep_as_needed(samples: list[Any], depth: int) -> None:
    assert depth_of(samples) == depth


def test_an_ordered_subclass_of_dict_is_not_taken_for_a_flat_dict() -> None:
    class Row(dict[str, int]):
        pass

    row = Row(a=1)
    row.note = ["kept"]  # type: ignore[attr-defined]
    assert depth_of([row]) == DEEP
    found = fresh(row)
    assert type(found) is Row
    assert found == row
    assert found is not row
    assert found.note == ["kept"]
    assert found.note is not row.note  # type: ignore[attr-defined]


VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=3) | st.binary(max_size=3) | st.booleans(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=2), inner, max_size=3)
        | st.tuples(inner, inner)
        | st.sets(st.integers(), max_size=2)
    ),
    max_leaves=12,
)


def _containers(value: Any) -> set[int]:
    found = set()
    if isinstance(value, (list, dict, set)):
        found.add(id(value))
    if isinstance(value, (list, tuple)):
        for each in value:
            found |= _containers(each)
    if isinstance(value, dict):
        for each in value.values():
            found |= _containers(each)
    return found


@given(VALUES)
def test_a_copy_is_equal_of_the_same_types_and_shares_no_container(value: Any) -> None:
    found = fresh(value)
    assert found == value
    assert repr(found) == repr(value)
    assert not _containers(found) & _containers(value)


@given(st.lists(VALUES, min_size=1, max_size=5))
def test_copies_by_the_depth_that_was_found_share_no_container(samples: list[Any]) -> None:
    found = list(copied(iter(samples), depth_of(samples)))
    assert found == samples
    for mine, theirs in zip(found, samples, strict=True):
        assert not _containers(mine) & _containers(theirs)


def test_arrays_tensors_and_images_are_copied() -> None:
    torch = pytest.importorskip("torch")
    image_module = pytest.importorskip("PIL.Image")
    image = image_module.new("RGB", (2, 2))
    image.format = "PNG"
    objects = np.array([[1], None], dtype=object)
    sample = {"array": np.arange(6).reshape(2, 3).T, "tensor": torch.ones(2), "image": image, "objects": objects}
    found = fresh(sample)
    assert found["array"].strides == sample["array"].strides
    assert found["image"].format == "PNG"
    found["array"][0, 0] = 9
    found["tensor"][0] = 9
    found["image"].putpixel((0, 0), (9, 9, 9))
    found["objects"][0].append(2)
    assert sample["array"][0, 0] == 0
    assert sample["tensor"][0] == 1
    assert image.getpixel((0, 0)) == (0, 0, 0)
    assert objects[0] == [1]


def test_an_object_that_cannot_be_copied_is_handed_on_itself() -> None:
    lock = threading.Lock()
    found = fresh({"lock": lock, "list": [1]})
    assert found["lock"] is lock


def test_an_object_of_a_users_class_is_copied() -> None:
    class Point:
        def __init__(self) -> None:
            self.at = [1, 2]

    point = Point()
    found = fresh([point])[0]
    found.at.append(3)
    assert point.at == [1, 2]
