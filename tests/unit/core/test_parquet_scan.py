"""Parquet's metadata is read as it was written, in Thrift's compact protocol, and refused where it cannot be true."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazystore._core.parquet_scan import longest_word, scan_footer, scan_page
from lazystore.errors import FormatError

END = 1 << 40
I32, I64, BINARY, LIST, STRUCT, TRUE, DOUBLE = 5, 6, 8, 9, 12, 1, 7


def varint(number: int) -> bytes:
    made = bytearray()
    while number > 127:
        made.append(number & 127 | 128)
        number >>= 7
    return bytes([*made, number])


def value(kind: int, content: Any) -> bytes:
    if kind in (I32, I64):
        return varint(content << 1 if content >= 0 else (-content << 1) - 1)
    if kind == BINARY:
        return varint(len(content)) + content
    if kind == STRUCT:
        return struct_of(content)
    if kind == LIST:
        of, items = content
        head = bytes([len(items) << 4 | of]) if len(items) < 15 else bytes([0xF0 | of]) + varint(len(items))
        return head + b"".join(value(of, one) for one in items)
    return content if kind == DOUBLE else b""


def struct_of(fields: list[tuple[int, int, Any]]) -> bytes:
    made, last = b"", 0
    for key, kind, content in fields:
        if 0 < key - last < 16:
            made += bytes([(key - last) << 4 | kind])
        else:
            made += bytes([kind]) + value(I32, key)
        made += value(kind, content)
        last = key
    return made + b"\0"


#: Fields that a reader of places passes over.
NOISE = [(90, BINARY, b"noise"), (91, LIST, (I64, [1, 2])), (92, TRUE, None), (93, DOUBLE, bytes(8)),
         (94, STRUCT, [(1, LIST, (BINARY, [b"a"] * 20))]), (95, LIST, (TRUE, []))]  # fmt: skip


def chunk(begin: int, stored: int, inflated: int, dictionary: int | None) -> list[tuple[int, int, Any]]:
    meta = [(1, I32, 6), (2, LIST, (I32, [0, 3])), (3, LIST, (BINARY, [b"a"])), (6, I64, inflated), (7, I64, stored),
            (9, I64, begin)]  # fmt: skip
    meta += [] if dictionary is None else [(11, I64, dictionary)]
    return [(2, I64, begin), (3, STRUCT, [*meta, *NOISE])]


def footer(schema: list[tuple[str, int, int]], groups: list[tuple[int, list[Any]]]) -> bytes:
    elements = [[(3, I32, r), (4, BINARY, n.encode()), *([(5, I32, c)] if c else []), *NOISE] for n, r, c in schema]
    rows = [
        [(1, LIST, (STRUCT, [chunk(*c) for c in chunks])), (2, I64, 5), (3, I64, n), *NOISE] for n, chunks in groups
    ]
    return struct_of([(1, I32, 2), (2, LIST, (STRUCT, elements)), (3, I64, 9), (4, LIST, (STRUCT, rows)), *NOISE])


PLACES = st.integers(4, 1 << 30)
CHUNKS = st.tuples(PLACES, st.integers(0, 1 << 30), st.integers(0, 1 << 30), st.none() | PLACES)


@given(
    st.lists(st.tuples(st.text(), st.integers(0, 2), st.integers(0, 5)), max_size=20),
    st.lists(st.tuples(st.integers(1, 1 << 40), st.lists(CHUNKS, max_size=18)), max_size=20),
)
def test_footers_say_where_column_chunks_are(schema: list[Any], groups: list[Any]) -> None:
    found_schema, rows, chunks, _ = scan_footer(footer(schema, groups), end=END)
    assert [element[:3] for element in found_schema] == schema
    assert list(rows) == [n for n, _ in groups]
    flat = [c for _, some in groups for c in some]
    assert list(chunks) == [x for b, s, i, d in flat for x in (b if d is None else min(b, d), s, i)]


@pytest.mark.parametrize(
    "place", [(3, 5, 5, None), (-1, 5, 5, None), (4, -1, 5, None), (END - 4, 5, 5, None), (END + 9, 0, 5, None),
              ((1 << 62) - 1, (1 << 62) - 1, 5, None)]
)  # fmt: skip
def test_column_chunks_outside_the_file_are_refused(place: tuple[int, int, int, int | None]) -> None:
    with pytest.raises(FormatError, match="does not lie"):
        scan_footer(footer([], [(1, [place])]), end=END)
    scan_footer(footer([], [(0, [place])]), end=END)  # of no rows it does not matter
    with pytest.raises(FormatError, match="rows"):
        scan_footer(footer([], [(-1, [])]), end=END)


def hinted(*fields: tuple[int, int, Any]) -> bytes:
    meta = [*fields[:1], (4, I32, 6), (5, I64, 70), (6, I64, 9), (7, I64, 9), (9, I64, 4), *fields[1:]]
    element = [(1, I32, 7), (2, I32, 12), (3, I32, 0), (4, BINARY, b"a")]
    text = [(1, I32, 6), (3, I32, 0), (4, BINARY, b"b")]
    group = [(1, LIST, (STRUCT, [[(3, STRUCT, meta)]])), (3, I64, 5)]
    return struct_of([(2, LIST, (STRUCT, [element, text])), (4, LIST, (STRUCT, [group]))])


@pytest.mark.parametrize(
    ("encodings", "pages", "words"),
    [
        ([2, 3], None, True), ([2, 3, 4], None, True), ([0, 2, 3], None, False), ([0, 3, 8], None, False),
        ([3], None, False), ([0, 3, 8], [(2, 0), (0, 8)], True), ([0, 3, 8], [(2, 0), (0, 8), (3, 8)], True),
        ([0, 3, 8], [(2, 0), (0, 8), (0, 0)], False), ([2, 3], [(0, 0), (0, 2)], False), ([2], [(2, 0)], False),
    ],
)  # fmt: skip
def test_footers_hint_at_what_columns_decode_to(encodings: Any, pages: Any, words: bool) -> None:
    stats = [] if pages is None else [(13, LIST, (STRUCT, [[(1, I32, p), (2, I32, e), (3, I32, 1)] for p, e in pages]))]
    data = hinted((2, LIST, (I32, encodings)), *stats, (16, STRUCT, [(1, I64, 1 << 40), (2, LIST, (I64, [1]))]))
    schema, _, _, hints = scan_footer(data, end=END)
    assert [element[3] for element in schema] == [12, -1]
    assert list(hints) == [70, 1 << 40, 6, words]
    assert list(scan_footer(hinted((2, LIST, (I32, encodings)), *stats), end=END)[3]) == [70, -1, 6, words]


@given(st.lists(st.binary(max_size=300)), st.integers(1, 1 << 31))
def test_the_longest_word_of_a_dictionary_is_found(words: list[bytes], beyond: int) -> None:
    data = b"".join(len(word).to_bytes(4, "little") + word for word in words)
    assert longest_word(data) == max(map(len, words), default=0)
    with pytest.raises(FormatError, match="past its end"):
        longest_word(data + beyond.to_bytes(4, "little"))


def test_column_chunks_in_other_files_are_refused() -> None:
    other = struct_of([(4, LIST, (STRUCT, [[(1, LIST, (STRUCT, [[(1, BINARY, b"../x")]]))]]))])
    with pytest.raises(FormatError, match="another file"):
        scan_footer(other, end=END)


GOOD = footer([("root", 0, 1), ("a", 2, 0)], [(5, [(4, 100, 200, None)]), (6, [(104, 100, 200, 110)])])


def test_every_truncation_of_a_footer_is_refused() -> None:
    for end in range(len(GOOD)):
        with pytest.raises(FormatError):
            scan_footer(GOOD[:end], end=END)


@settings(max_examples=300)
@given(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=12))
def test_damaged_footers_raise_or_give_places_in_the_file(at: int, new: bytes) -> None:
    try:
        _, rows, chunks, _ = scan_footer(GOOD[:at] + new + GOOD[at + len(new) :], end=1000)
    except FormatError:
        return
    assert all(n >= 0 for n in rows)
    for begin, stored in zip(chunks[::3], chunks[1::3], strict=True):
        assert 0 <= begin <= begin + stored <= 1000


@given(st.binary())
def test_any_bytes_raise_or_give_a_page(data: bytes) -> None:
    try:
        page = scan_page(data)
    except FormatError:
        return
    assert page is None or (page[0] <= len(data) and page[1] >= 0 and page[2] >= 0)


def test_lists_and_structs_nested_without_end_are_refused() -> None:
    for data in (b"\x9c" + b"\x1c" * 100_000, b"\x99" + b"\x19" * 100_000):
        with pytest.raises(FormatError, match="deeply"):
            scan_page(data)


COUNT = st.integers(0, (1 << 31) - 1)


@given(COUNT, COUNT, COUNT, COUNT, st.integers(0, 3), st.sampled_from([0, 2, 7, 8]))
def test_page_headers_say_how_long_pages_are(
    stored: int, inflated: int, values: int, rows: int, kind: int, encoding: int
) -> None:
    inner = {
        0: (5, STRUCT, [(1, I32, values), (2, I32, encoding), (5, STRUCT, NOISE)]),
        1: (6, STRUCT, []),
        2: (7, STRUCT, [(1, I32, values), (2, I32, 0), (3, TRUE, None)]),
        3: (8, STRUCT, [(1, I32, values), (2, I32, 1), (3, I32, rows), (4, I32, encoding), (7, TRUE, None)]),
    }[kind]
    header = struct_of([(1, I32, kind), (2, I32, inflated), (3, I32, stored), inner, *NOISE])
    said = {0: (values, -1), 3: (values, rows)}.get(kind, (0, 0))
    assert scan_page(header + b"body") == (
        len(header),
        stored,
        inflated,
        kind == 2,
        *said,
        kind in (0, 3) and encoding in (2, 8),
    )
    for end in range(len(header)):
        assert scan_page(header[:end]) is None


@pytest.mark.parametrize(
    "fields",
    [
        [(1, I32, 0), (2, I32, 5), (3, I32, -1), (5, STRUCT, [(1, I32, 1)])],
        [(1, I32, 0), (2, I32, -5), (3, I32, 1), (5, STRUCT, [(1, I32, 1)])],
        [(1, I32, 0), (2, I32, 5), (3, I32, 5)],
        [(1, I32, 0), (2, I32, 5), (3, I32, 5), (5, STRUCT, [(1, I32, -1)])],
        [(1, I32, 3), (2, I32, 5), (3, I32, 5), (8, STRUCT, [(1, I32, 1)])],
        [(2, I32, 5), (3, I32, 5)],
        [(1, BINARY, b"0")],
    ],
)
def test_pages_that_cannot_be_are_refused(fields: list[tuple[int, int, Any]]) -> None:
    with pytest.raises(FormatError):
        scan_page(struct_of(fields))
