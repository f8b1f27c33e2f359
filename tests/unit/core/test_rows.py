"""Columns become rows exactly, wherever they lie in their buffers; buffers that lie are refused."""

from __future__ import annotations

import contextlib
import math
import pickle
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models.rows import row, value
from support.images import items_of

from lazystore._core.row_image import row_image
from lazystore._core.row_shape import RowShape
from lazystore._core.rows import RowBatch
from lazystore.errors import BudgetTooSmallError, ConfigError, FormatError

INT_FORMS = {1: "b", 2: "h", 4: "i", 8: "q"}
FLOAT_FORMS = {2: "e", 4: "f", 8: "d"}
FORMS = {"int": "int", "uint": "int", "float": "float", "bool": "bool", "str": "str", "bytes": "bytes", "raw": "bytes"}

Type = tuple[str, int, tuple, tuple]


# -- columns laid out in plain Python --------------------------------------------------------


def lay(values: list[Any], type_: Type, pad: int) -> list[tuple]:
    """Buffers of an array in Arrow's layout that begins with ``pad`` elements of something else."""
    kind, width, children, keys = type_
    if kind == "null":
        return [(0, len(values), None, None, None)]
    padded = [None] * pad + values
    valid = None
    if None in values:
        valid = bits([one is not None for one in padded])
    data: bytes | None = None
    text: bytes | None = None
    below: list[tuple] = []
    if kind == "bool":
        data = bits([bool(one) for one in padded])
    elif kind in ("int", "uint"):
        form = INT_FORMS[width] if kind == "int" else INT_FORMS[width].upper()
        data = struct.pack(f"<{len(padded)}{form}", *(one or 0 for one in padded))
    elif kind == "float":
        data = struct.pack(f"<{len(padded)}{FLOAT_FORMS[width]}", *(0.0 if one is None else one for one in padded))
    elif kind == "raw":
        data = b"".join(one or bytes(width) for one in padded)
    elif kind in ("str", "bytes"):
        cells = [one.encode() if isinstance(one, str) else one or b"" for one in padded]
        data, text = ends(cells, width), b"".join(cells)
    elif kind == "list":
        data = ends([one or [] for one in padded], width)
        below = lay([inner for one in padded for inner in one or []], children[0], pad)
    elif kind == "array":
        below = lay([inner for one in padded for inner in one or [None] * width], children[0], 0)
    elif kind == "struct":
        for key, child in zip(keys, children, strict=True):
            below += lay([None if one is None else one[key] for one in values], child, pad)
    elif kind == "dict":
        distinct: list[Any] = [None]
        indices = []
        for one in padded:
            same = [k for k, other in enumerate(distinct) if repr(other) == repr(one)]
            indices.append(same[0] if same else len(distinct))
            distinct += [] if same else [one]
        form = INT_FORMS[abs(width)] if width < 0 else INT_FORMS[width].upper()
        data = struct.pack(f"<{len(indices)}{form}", *indices)
        below = lay(distinct, children[0], pad)
    return [(pad, len(values), valid, data, text), *below]


def bits(flags: list[bool]) -> bytes:
    made = bytearray((len(flags) + 7) // 8)
    for i, flag in enumerate(flags):
        made[i >> 3] |= flag << (i & 7)
    return bytes(made)


def ends(cells: list[Any], width: int) -> bytes:
    offsets = [0]
    for one in cells:
        offsets.append(offsets[-1] + len(one))
    return struct.pack(f"<{len(offsets)}{INT_FORMS[width]}", *offsets)


def single(number: float, form: str) -> float:
    return float(struct.unpack(form, struct.pack(form, number))[0])


def strategy(type_: Type) -> st.SearchStrategy:
    kind, width, children, keys = type_
    if kind == "null":
        return st.none()
    inner: st.SearchStrategy
    if kind == "dict":
        return strategy(children[0])
    if kind == "bool":
        inner = st.booleans()
    elif kind == "int":
        inner = st.integers(-(1 << 8 * width - 1), (1 << 8 * width - 1) - 1)
    elif kind == "uint":
        inner = st.integers(0, (1 << 8 * width) - 1)
    elif kind == "float":
        inner = st.floats(width=8 * width, allow_nan=False)
    elif kind == "str":
        inner = st.text(max_size=12)
    elif kind == "bytes":
        inner = st.binary(max_size=12)
    elif kind == "raw":
        inner = st.binary(min_size=width, max_size=width)
    elif kind == "struct":
        inner = st.tuples(*map(strategy, children)).map(lambda found: dict(zip(keys, found, strict=True)))
    else:
        least, most = (width, width) if kind == "array" else (0, 4)
        inner = st.lists(strategy(children[0]), min_size=least, max_size=most)
    return st.none() | inner


PLAIN: list[Type] = [
    *[("int", n, (), ()) for n in (1, 2, 4, 8)],
    *[("uint", n, (), ()) for n in (1, 2, 4)],
    *[("float", n, (), ()) for n in (2, 4, 8)],
    *[(kind, n, (), ()) for kind in ("str", "bytes") for n in (4, 8)],
    ("bool", 0, (), ()), ("raw", 3, (), ()), ("raw", 0, (), ()),
]  # fmt: skip


def nested(inner: st.SearchStrategy[Type]) -> st.SearchStrategy[Type]:
    return st.one_of(
        st.tuples(st.just("list"), st.sampled_from([4, 8]), st.tuples(inner), st.just(())),
        st.tuples(st.just("array"), st.integers(0, 3), st.tuples(inner), st.just(())),
        st.tuples(st.just("dict"), st.sampled_from([1, 2, 4, 8, -1, -2, -4, -8]), st.tuples(inner), st.just(())),
        st.lists(inner, max_size=3).map(lambda c: ("struct", 0, tuple(c), tuple("abç"[: len(c)]))),
    )


ANY = st.recursive(st.sampled_from([*PLAIN, ("null", 0, (), ()), ("uint", 8, (), ())]), nested, max_leaves=5)


def form_of(type_: Type) -> str:
    if type_[0] == "dict":
        return form_of(type_[2][0])
    if type_[0] == "uint" and type_[1] == 8:
        return "value"
    return FORMS.get(type_[0], "value")


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[Type], list[dict[str, Any]]]:
    types = draw(st.lists(ANY, max_size=4))
    n = draw(st.integers(0, 20))
    columns = [draw(st.lists(strategy(type_), min_size=n, max_size=n)) for type_ in types]
    return types, [{f"c{k}": column[i] for k, column in enumerate(columns)} for i in range(n)]


def batch_of(shape: RowShape, types: list[Type], rows: list[dict[str, Any]], pad: int) -> RowBatch:
    views = [view for k, type_ in enumerate(types) for view in lay([one[f"c{k}"] for one in rows], type_, pad)]
    return RowBatch(shape, views, len(rows))


def decoded(shape: RowShape, forms: list[str], image: bytearray) -> list[dict[str, Any]]:
    leaves = [(form, None, {"nullable": True}) for form in forms]
    return [row(item, shape.names, leaves) for item in items_of(image)]


# -- promises -------------------------------------------------------------------------------


@settings(deadline=None)
@given(tables(), st.integers(0, 11), st.booleans(), st.data())
def test_rows_are_the_columns_values_wherever_they_lie(
    table: tuple[list[Type], list[dict[str, Any]]], pad: int, loose: bool, data: st.DataObject
) -> None:
    types, rows = table
    forms = [form_of(type_) for type_ in types]
    shape = RowShape([(f"c{k}", f, t) for k, (f, t) in enumerate(zip(forms, types, strict=True))], loose=loose)
    batch = batch_of(shape, types, rows, pad)
    first = data.draw(st.integers(0, len(rows)))
    n = data.draw(st.integers(0, len(rows) - first))
    image = row_image(shape, [(batch, first, n), (batch, 0, len(rows))])
    assert repr(decoded(shape, forms, image)) == repr(rows[first : first + n] + rows)


@given(st.integers(0, (1 << 16) - 1))
def test_half_floats_are_exact(bits_: int) -> None:
    shape = RowShape([("c0", "float", ("float", 2, (), ()))])
    stored = bits_.to_bytes(2, "little")
    batch = RowBatch(shape, [(0, 1, None, stored, None)], 1)
    (found,) = decoded(shape, ["float"], row_image(shape, [(batch, 0, 1)]))
    (wanted,) = struct.unpack("<e", stored)
    assert found["c0"] == wanted or (math.isnan(wanted) and math.isnan(found["c0"]))


def test_an_unsigned_integer_beyond_64_signed_bits_is_not_written_as_another_one() -> None:
    type_ = ("uint", 8, (), ())
    stored = struct.pack("<2Q", 5, 1 << 63)
    as_int = RowShape([("c0", "int", type_)])
    with pytest.raises(FormatError, match="'c0', row 1"):
        row_image(as_int, [(RowBatch(as_int, [(0, 2, None, stored, None)], 2), 0, 2)])
    as_value = RowShape([("c0", "value", type_)])
    image = row_image(as_value, [(RowBatch(as_value, [(0, 2, None, stored, None)], 2), 0, 2)])
    assert decoded(as_value, ["value"], image) == [{"c0": 5}, {"c0": 1 << 63}]


# -- what is refused ------------------------------------------------------------------------

TEXT = ("str", 4, (), ())
LISTS = ("list", 4, (TEXT,), ())
WORDS = ("dict", -1, (TEXT,), ())


def one_column(type_: Type, form: str, views: list[tuple], rows: int, **options: Any) -> bytearray:
    shape = RowShape([("c0", form, type_)])
    return row_image(shape, [(RowBatch(shape, views, rows), 0, rows)], **options)


@pytest.mark.parametrize("offsets", [(0, 5), (3, 2), (-1, 2), (0, -1), (1 << 30, 1 << 30), (-(1 << 31), (1 << 31) - 1)])
def test_offsets_that_lead_astray_are_refused(offsets: tuple[int, int]) -> None:
    stored = struct.pack("<2i", *offsets)
    with pytest.raises(FormatError, match="column 'c0', row 0"):
        one_column(TEXT, "str", [(0, 1, None, stored, b"abcd")], 1)
    inner = (0, 4, None, struct.pack("<5i", 0, 1, 2, 3, 4), b"abcd")
    with pytest.raises(FormatError, match="column 'c0', row 0"):
        one_column(LISTS, "value", [(0, 1, None, stored, None), inner], 1)


@pytest.mark.parametrize("index", [2, 127, -1, -128])
def test_indices_past_the_dictionary_are_refused(index: int) -> None:
    words = (0, 2, None, struct.pack("<3i", 0, 1, 2), b"ab")
    with pytest.raises(FormatError, match="dictionary"):
        one_column(WORDS, "str", [(0, 1, None, struct.pack("<b", index), None), words], 1)


@pytest.mark.parametrize(
    "views",
    [
        [(0, 3, None, b"\0" * 15, b"")],  # one offset too few
        [(0, 3, b"", b"\0" * 16, b"")],  # a bitmap of nothing
        [(9, 0, None, None, None)],  # shorter than the batch
        [(-1, 3, None, b"\0" * 16, b"")],
        [(0, 1 << 60, None, b"\0" * 16, b"")],
        [(1 << 60, 3, None, b"\0" * 16, b"")],
    ],
)
def test_buffers_shorter_than_their_elements_are_refused(views: list[tuple]) -> None:
    with pytest.raises(FormatError, match="c0"):
        one_column(TEXT, "str", views, 3)


def test_members_and_lists_shorter_than_what_holds_them_are_refused() -> None:
    pair = ("struct", 0, (("int", 1, (), ()),), ("a",))
    with pytest.raises(FormatError, match="its struct"):
        one_column(pair, "value", [(0, 3, None, None, None), (0, 2, None, b"ab", None)], 3)
    fixed = ("array", 2, (("int", 1, (), ()),), ())
    with pytest.raises(FormatError, match="lists of 2"):
        one_column(fixed, "value", [(0, 3, None, None, None), (0, 5, None, b"abcde", None)], 3)


def test_a_small_dictionary_of_long_texts_cannot_make_an_image_beyond_the_limit() -> None:
    words = (0, 1, None, struct.pack("<2i", 0, 5000), b"x" * 5000)
    views = [(0, 1000, None, bytes(1000), None), words]
    assert len(one_column(WORDS, "str", views, 1000)) > 5_000_000
    for type_, form in ((WORDS, "str"), (("list", 4, (WORDS,), ()), "value")):
        below = views if form == "str" else [(0, 1, None, struct.pack("<2i", 0, 1000), None), *views]
        with pytest.raises(BudgetTooSmallError, match="bytes"):
            one_column(type_, form, below, 1000 if form == "str" else 1, limit=1 << 20)


def test_elements_without_bytes_cannot_make_work_beyond_the_limit() -> None:
    nothing = ("list", 8, (("null", 0, (), ()),), ())
    views = [(0, 1, None, struct.pack("<2q", 0, 1 << 45), None), (0, 1 << 45, None, None, None)]
    with pytest.raises(BudgetTooSmallError, match="more than"):
        one_column(nothing, "value", views, 1, limit=1 << 20)
    with pytest.raises(FormatError, match="do not fit"):
        one_column(("null", 0, (), ()), "none", [(0, 1 << 40, None, None, None)], 1 << 40)


@settings(deadline=None, max_examples=200)
@given(tables(), st.booleans(), st.data())
def test_damaged_buffers_raise_or_give_rows_but_never_more_than_allowed(
    table: tuple[list[Type], list[dict[str, Any]]], loose: bool, data: st.DataObject
) -> None:
    types, rows = table
    forms = [form_of(type_) for type_ in types]
    shape = RowShape([(f"c{k}", f, t) for k, (f, t) in enumerate(zip(forms, types, strict=True))], loose=loose)
    views = [view for k, type_ in enumerate(types) for view in lay([one[f"c{k}"] for one in rows], type_, 2)]
    for k, view in enumerate(views):
        if data.draw(st.booleans()):
            damaged = list(view)
            spot = data.draw(st.integers(0, 4))
            if spot < 2:
                damaged[spot] = data.draw(st.integers(-2, 40) | st.integers())
            elif damaged[spot] is not None:
                kept = damaged[spot][: data.draw(st.integers(0, len(damaged[spot])))]
                damaged[spot] = kept + data.draw(st.binary(max_size=8))
            views[k] = tuple(damaged)
    try:
        image = row_image(shape, [(RowBatch(shape, views, len(rows)), 0, len(rows))], limit=1 << 16)
    except (FormatError, OverflowError):
        return
    assert len(image) <= 1 << 16
    for item in items_of(image):
        if loose:
            with contextlib.suppress(UnicodeDecodeError):  # text is not looked at before it is decoded
                value(item, 4)
        else:
            sizes = struct.unpack_from(f"<{len(types)}I", item)
            assert 4 * len(types) + sum(n for n in sizes if n != 0xFFFFFFFF) == len(item)


@pytest.mark.parametrize(
    "column",
    [
        ("c0", "str", ("int", 8, (), ())),
        ("c0", "int", ("str", 4, (), ())),
        ("c0", "what", ("str", 4, (), ())),
        ("c0", "value", ("what", 4, (), ())),
        ("c0", "int", ("int", 3, (), ())),
        ("c0", "int", ("int", -4, (), ())),
        ("c0", "bytes", ("raw", -1, (), ())),
        ("c0", "value", ("list", 4, (), ())),
        ("c0", "value", ("struct", 0, (("int", 8, (), ()),), ())),
        ("c0", "value", ("array", 1 << 31, (("int", 8, (), ()),), ())),
    ],
)
def test_types_that_cannot_be_are_refused(column: tuple[str, str, Type]) -> None:
    with pytest.raises(ConfigError, match="c0"):
        RowShape([column])


def test_types_nested_too_deeply_are_refused() -> None:
    type_: Type = ("int", 8, (), ())
    for _ in range(64):
        type_ = ("list", 4, (type_,), ())
    with pytest.raises(ConfigError, match="deeper"):
        RowShape([("c0", "value", type_)])


def test_batches_belong_to_their_shape_and_rows_to_their_batch() -> None:
    shape, other = (RowShape([("c0", "int", ("int", 1, (), ()))]) for _ in range(2))
    batch = RowBatch(shape, [(0, 2, None, b"ab", None)], 2)
    with pytest.raises(ConfigError, match="another shape"):
        row_image(other, [(batch, 0, 1)])
    for first, n in ((0, 3), (2, 1), (-1, 1), (1, -1)):
        with pytest.raises(FormatError, match="not in a batch"):
            row_image(shape, [(batch, first, n)])
    for thing in (shape, batch):
        with pytest.raises(TypeError):
            pickle.dumps(thing)
