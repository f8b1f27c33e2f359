"""``parse_index`` against ``json.loads``: any document gives the same chunks, or the same error."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from models import litdata_index

from lazystore.errors import LazyStoreError
from lazystore.formats.litdata import parse_index

PLACE = "s3://b/index.json"
CONFIG: dict[str, Any] = {"data_format": ["int", "str"], "data_spec": "[1, null]", "item_loader": "PyTreeLoader"}


def outcome(parse: Any, data: bytes) -> tuple[Any, ...]:
    try:
        index = parse(data, place=PLACE)
    except LazyStoreError as error:
        return type(error), str(error)
    return (
        list(index.names), list(index.counts), list(index.hints), list(index.dims), index.tags, index.data_spec,
        index.updated_at,
    )  # fmt: skip


def agree(data: bytes) -> None:
    assert outcome(parse_index, data) == outcome(litdata_index.parse, data)


# -- JSON text, written in every way there is -----------------------------------------------

spaces = st.sampled_from(["", "", "", " ", "\n", "\t\r\n  "])
quoted = st.sampled_from(
    ['"a"', '"chunk-0-1.bin"', '"."', '".."', '"..."', '""', '"a/b"', '"a\\\\b"', '"a\\/b"', '"\\u0061"', '"ü"',
     '"\\"]"', '"\\ud800"', '"\x7f"', '"a\\u0000"', '"}],{["', '"' + "x" * 300 + '"', '"memory://a"', '"null"']
)  # fmt: skip
numbers = st.sampled_from(
    ["0", "1", "50", "-0", "-1", "1.0", "0.5", "-0.0", "1e3", "1E+2", "1e-9", "1e999", str(2**30), str(2**30 + 1),
     str(2**32), str(2**32 + 1), str(2**62 - 1), str(2**62), str(2**64), str(10**18 - 1), str(10**18), "9" * 400]
)  # fmt: skip
words = st.sampled_from(["null", "true", "false", "NaN", "-Infinity"])
broken = st.sampled_from(
    ["01", "-", "1.", ".5", "1e", "+1", "nul", "Null", '"', '"a', '"\t"', "'a'", "", "{", "[", "{]", "[}", "1 2", "--1",
     '"a""b"', "\x00", "\\", "{,}", "[1,]", '"\\x"', "1" * 5000, "\x7f", "\v1"]
)  # fmt: skip
plain_values = quoted | numbers | words
nested = st.recursive(
    plain_values,
    lambda inner: st.builds(lambda items: "[" + ",".join(items) + "]", st.lists(inner, max_size=3))
    | st.builds(
        lambda keys, items: "{" + ",".join(map(":".join, zip(keys, items, strict=False))) + "}",
        st.lists(quoted, min_size=3, max_size=3), st.lists(inner, max_size=3),
    ),
    max_leaves=6,
)  # fmt: skip
values = st.one_of(plain_values, plain_values, nested)
keys = st.sampled_from(
    ['"filename"', '"chunk_size"', '"chunk_bytes"', '"dim"', '"sum"', '"file\\u006eame"', '"chunk_siz"', '"ünï"', '""']
)
top_keys = st.sampled_from(
    ['"chunks"', '"config"', '"updated_at"', '"shards"', '"keys"', '"c\\u0068unks"', '"chunk"', '"chunkss"']
)


@st.composite
def objects(draw: st.DrawFn, members: Iterable[tuple[str, str]]) -> str:
    """An object of these members, with space wherever it may be."""
    text = ",".join(f"{draw(spaces)}{key}{draw(spaces)}:{draw(spaces)}{value}{draw(spaces)}" for key, value in members)
    return "{" + (text or draw(spaces)) + "}"


@st.composite
def entries(draw: st.DrawFn) -> str:
    """A good entry, now and then with members added, replaced or repeated; or any value."""
    kind = draw(st.integers(0, 9))
    if kind == 9:
        return draw(values)
    members = [
        ('"chunk_bytes"', str(draw(st.integers(0, 10**9)))), ('"chunk_size"', str(draw(st.integers(0, 99)))),
        ('"dim"', "null"), ('"filename"', f'"chunk-0-{draw(st.integers(0, 9))}.bin"'),
    ]  # fmt: skip
    if kind > 4:
        members += draw(st.lists(st.tuples(keys, values), max_size=3))
        members = draw(st.permutations(members))
    if kind == 8:
        members = members[1:]
    return draw(objects(members))


@st.composite
def documents(draw: st.DrawFn) -> str:
    chunks = (
        "[" + ",".join(draw(spaces) + entry + draw(spaces) for entry in draw(st.lists(entries(), max_size=5))) + "]"
    )
    members = [('"chunks"', chunks), ('"config"', json.dumps(CONFIG)), ('"updated_at"', '"1.5"')]
    if draw(st.integers(0, 3)) == 3:
        members += draw(st.lists(st.tuples(top_keys, values), max_size=2))
        members = draw(st.permutations(members))
    return draw(spaces) + draw(objects(members)) + draw(spaces)


@given(documents())
def test_any_index_reads_as_json_says(text: str) -> None:
    agree(text.encode())


@given(documents(), st.lists(st.tuples(st.floats(0, 1), broken | values | spaces | keys), min_size=1, max_size=2))
def test_anything_put_anywhere_reads_as_json_says(text: str, changes: list[tuple[float, str]]) -> None:
    for where, what in changes:
        at = int(where * len(text))
        text = text[:at] + what + text[at:]
    agree(text.encode())


@given(documents(), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 3), st.binary(max_size=3)), max_size=3))
@example('{"chunks": [], "config": {"data_format": []}}', [(0.0, 0, b"\xef\xbb\xbf")])
def test_any_bytes_read_as_json_says(text: str, changes: list[tuple[float, int, bytes]]) -> None:
    data = text.encode()
    for where, gone, what in changes:
        at = int(where * len(data))
        data = data[:at] + what + data[at + gone :]
    agree(data)


@given(documents(), st.floats(0, 1))
def test_an_index_that_was_cut_reads_as_json_says(text: str, where: float) -> None:
    agree(text.encode()[: int(where * len(text))])


@given(documents(), st.sampled_from(["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig", "utf-32-be"]))
def test_other_encodings_read_as_json_says(text: str, encoding: str) -> None:
    agree(text.encode(encoding))


ENTRY = '{"chunk_bytes": 53, "chunk_size": 2, "dim": null, "filename": "a.bin"}'
REST = ', "config": {"data_format": ["int"]}}'


@pytest.mark.parametrize(
    "data",
    [
        '{"chunks": [' + ENTRY + "]" + REST,
        '{"chunks": [' + ENTRY + ",]" + REST,
        '{"chunks": [,' + ENTRY + "]" + REST,
        '{"chunks": [' + ENTRY + " " + ENTRY + "]" + REST,
        '{"chunks": [' + ENTRY + "}" + REST,
        '{"chunks": [' + ENTRY + "]]" + REST,
        '{"chunks": [' + ENTRY + "]" + REST + "x",
        '{"chunks": [' + ENTRY + "]" + REST[:-1],
        '{"chunks": [' + ENTRY + ', 5, {"filename": 7}], "config": null}',
        '{"chunks": [5], "chunks": [' + ENTRY + "]" + REST,
        '{"chunks": [' + ENTRY + '], "c\\u0068unks": []' + REST,
        '{"a": {"chunks": [7]}, "chunks": [' + ENTRY + "]" + REST,
        '{"a": "\\"}], {\\\\", "chunks": [' + ENTRY + "]" + REST,
        '{"chunks": ["a\x00", "\x00"]' + REST,
        '{"chunks": ["\x00a\x00"\x00]' + REST,
        '{"chunks": [{"filename": "' + "\ud800" + '.bin", "chunk_size": 1}]' + REST,
        '{"chunks": [' + "[" * 100_000 + "]" + REST,
        '{"chunks": [[' + "]," * 50_000 + "1]" + REST,
    ],
)
def test_lists_with_a_twist(data: str) -> None:
    agree(data.encode("utf-8", "surrogatepass"))
