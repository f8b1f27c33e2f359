"""Items as text: every form in JSON, and the short form's cuts."""

from __future__ import annotations

import base64
import datetime
import decimal
import json
import math
from collections import OrderedDict, deque
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazystore.commands.values import json_line, kind_of, short, size_text
from lazystore.errors import UnsupportedError

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(PLAIN, st.booleans())
def test_what_json_can_say_comes_back_equal_and_on_one_line(value: Any, ascii_only: bool) -> None:
    line = json_line(value, ascii_only=ascii_only)
    assert "\n" not in line
    assert json.loads(line) == value


@pytest.mark.parametrize(
    ("value", "form"),
    [
        ((1, [2]), [1, [2]]),
        (deque([1, 2]), [1, 2]),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (float("nan"), "NaN"),
        ([math.inf, -math.inf], ["Infinity", "-Infinity"]),
        (np.array([[1, 2], [3, 4]], "u1"), [[1, 2], [3, 4]]),
        (np.array([1.5, np.nan, -np.inf], "f4"), [1.5, "NaN", "-Infinity"]),
        (np.zeros((2, 0)), [[], []]),
        (np.array(True), True),
        (np.float16(0.5), 0.5),
        (np.array(["2020-01-02"], "M8[D]"), ["2020-01-02"]),
        (np.array(["a", "bc"]), ["a", "bc"]),
        (datetime.date(2020, 1, 2), "2020-01-02"),
        (datetime.datetime(2020, 1, 2, 3, 4, 5), "2020-01-02T03:04:05"),
        (decimal.Decimal("1.10"), "1.10"),
    ],
)
def test_what_it_cannot_say_has_its_documented_form(value: Any, form: Any) -> None:
    assert json.loads(json_line({"x": value})) == {"x": form}


@pytest.mark.parametrize("value", [b"\x00\xff", bytearray(b"\x00\xff"), memoryview(b"\x00\xff")])
def test_bytes_are_base64_or_refused_with_their_place_and_the_remedy(value: Any) -> None:
    form = json.loads(json_line({"x": [value]}))["x"][0]
    assert base64.b64decode(form["base64"]) == b"\x00\xff" and list(form) == ["base64"]
    with pytest.raises(UnsupportedError, match=r"\['x'\]\[0\].*--json-bytes base64"):
        json_line({"x": [value]}, binary=False)


def test_images_keep_mode_size_and_pixels() -> None:
    image = pytest.importorskip("PIL.Image").new("RGB", (3, 2), (1, 2, 3))
    form = json.loads(json_line(image))
    assert (form["mode"], form["size"]) == ("RGB", [3, 2])
    assert base64.b64decode(form["base64"]) == bytes([1, 2, 3] * 6)


def test_tensors_are_lists() -> None:
    torch = pytest.importorskip("torch")
    value = [torch.arange(3), torch.ones(2, dtype=torch.bfloat16), torch.tensor(True)]
    assert json.loads(json_line(value)) == [[0, 1, 2], [1.0, 1.0], True]


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"a": {1: 2}}, r"\['a'\].*key 1"),
        ({"a": [0, 1j]}, r"\['a'\]\[1\].*complex"),
        (np.zeros(2, "c8"), "the item.*complex64"),
        (np.array([object()]), "array of object"),
        ({1, 2}, "the item.*set"),
    ],
)
def test_what_has_no_form_is_refused_with_its_place(value: Any, place: str) -> None:
    with pytest.raises(UnsupportedError, match=place):
        json_line(value)


def test_nesting_without_end_is_an_error_of_ours() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(UnsupportedError, match="nested too deeply"):
        json_line(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": 1, "b": [None, ("x",)]}, "{'a': 1, 'b': [None, ('x',)]}"),
        ("x" * 201, repr("x" * 200) + "... 201 characters"),
        (b"\x00" * 1000, repr(b"\x00" * 48) + "... 1,000 bytes"),
        (
            np.arange(100, dtype="u1").reshape(10, 10),
            "ndarray(uint8, (10, 10))[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, ...]",
        ),
        (np.zeros((0, 3), "f4"), "ndarray(float32, (0, 3))[]"),
        (list(range(14)), "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, ... 14 in all]"),
    ],
)
def test_short_form_cuts_and_says_how_long_it_is(value: Any, text: str) -> None:
    assert short(value) == text


def test_kinds_are_told_without_contents() -> None:
    value = {"n": 1, "v": [np.zeros((2, 3), "f4"), ("x", None)], "long": list(range(20))}
    assert kind_of(value) == (
        "{'n': int, 'v': [ndarray(float32, (2, 3)), (str, NoneType)], "
        "'long': [int, int, int, int, int, int, int, int, int, int, int, int, ...]}"
    )


def test_sizes_have_decimal_units() -> None:
    assert [size_text(n) for n in (0, 999, 1000, 1234567, 5_000_000_000)] == [
        *("0 bytes", "999 bytes", "1 kB", "1.235 MB", "5 GB")
    ]
