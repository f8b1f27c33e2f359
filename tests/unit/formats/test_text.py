"""Text formats: what an item is worth, streamed and indexed, plain and compressed, one file and many."""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.golden import GOLDEN, assert_same, expected
from support.texts import indexed, place_of, stored, unindexed, values, write

from lazystore.errors import BudgetTooSmallError, ConfigError, FormatError, UnsupportedError
from lazystore.formats.registry import find_format
from lazystore.formats.text import CsvFormat, JsonlFormat, LinesFormat, TextFormat, TsvFormat, json_reader

ENDS = ["", ".gz", ".zst"]
FORMATS: dict[str, TextFormat] = {"jsonl": JsonlFormat(), "csv": CsvFormat(), "tsv": TsvFormat(), "txt": LinesFormat()}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("LAZYSTORE_CACHE_DIR", str(folder))
    return folder


def both_ways(folder: Path, files: dict[str, bytes], format: TextFormat, **options: Any) -> list[Any]:
    """What the files hold, as a stream, by the index the stream made, and by one made on purpose."""
    write(folder, files)
    first = unindexed(format, place_of(folder, list(files)), **options)
    items = list(first.stream())
    streamed = [first.plan(item) for item in items]
    by_stream = indexed(format, place_of(folder, list(files)), **options)
    assert stored(by_stream) == items
    assert values(by_stream) == streamed
    if not options.get("extra"):
        built = unindexed(format, place_of(folder, list(files)), extra={"index": str(folder)}, **options).build()
        assert stored(built) == items
        assert (built.version, built.counts) == (by_stream.version, by_stream.counts)
    return streamed


# -- golden ---------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(("kind", "file"), [("jsonl", "lines.jsonl"), ("csv", "table.csv"), ("tsv", "table.tsv")])
def test_golden_texts_are_what_was_written(kind: str, file: str, end: str, tmp_path: Path) -> None:
    data = (GOLDEN / "plain-text" / kind / "data" / file).read_bytes()
    found = both_ways(tmp_path, {file + end: data}, FORMATS[kind])
    assert_same(found, expected(f"plain-text/{kind}"))


@pytest.mark.parametrize("end", ENDS)
def test_raw_golden_lines_are_the_recorded_spans(end: str, tmp_path: Path) -> None:
    data = (GOLDEN / "plain-text/jsonl/data/lines.jsonl").read_bytes()
    found = both_ways(tmp_path, {"lines.jsonl" + end: data}, FORMATS["jsonl"], raw=True)
    spans = expected("plain-text/jsonl", "expected_spans.jsonl")
    assert found == [data[span["start"] : span["end"]] for span in spans]


# -- rows -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "rows"),
    [
        ("a.txt", b"", []),
        ("a.txt", b"a\r\n\nlast", ["a", "", "last"]),
        ("a.txt", b"\xef\xbb\xbfmark\n", ["mark"]),
        ("a.jsonl", b"", []),
        ("a.jsonl", b"\n \t\n", []),
        ("a.jsonl", b'\xef\xbb\xbf\n{"a":1}\r\n\n[2]', [{"a": 1}, [2]]),
        ("a.csv", b"", []),
        ("a.csv", b"a,b", []),
        ("a.csv", b"\xef\xbb\xbf\na,b\r\n\r\n1,2\r\n\n3,4", [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]),
        ("a.csv", b'"a\nb",c\n"x\n""y""","z"\n', [{"a\nb": 'x\n"y"', "c": "z"}]),
        ("a.csv", b'w\n5" pipe\n', [{"w": '5" pipe'}]),
        ("a.tsv", b'a\tb\n"1\t2"\t,\n', [{"a": "1\t2", "b": ","}]),
    ],
)
@pytest.mark.parametrize("end", ENDS)
def test_rows(name: str, data: bytes, rows: list[Any], end: str, tmp_path: Path) -> None:
    assert both_ways(tmp_path, {name + end: data}, FORMATS[name.rpartition(".")[2]]) == rows


def test_raw_rows_are_bytes_without_terminators(tmp_path: Path) -> None:
    found = both_ways(tmp_path, {"a.csv": b'a,b\n1,"x\r\n"\r\n\r\n3,4\n'}, FORMATS["csv"], raw=True)
    assert found == [b'1,"x\r\n"', b"3,4"]
    assert both_ways(tmp_path, {"b.txt": b"x \r\n\ny"}, FORMATS["txt"], raw=True) == [b"x ", b"", b"y"]


@pytest.mark.parametrize("end", ENDS)
def test_several_files_are_one_dataset_in_their_order(end: str, tmp_path: Path) -> None:
    files = {f"{name}.csv{end}": data for name, data in (("b", b"x\n1\n2\n"), ("a", b"x\n"), ("c", b"x\r\n3"))}
    assert both_ways(tmp_path, files, FORMATS["csv"]) == [{"x": "1"}, {"x": "2"}, {"x": "3"}]


@pytest.mark.parametrize("end", ENDS)
def test_long_texts_have_chunks_that_end_on_items(end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lazystore.formats import text_pass

    monkeypatch.setattr(text_pass, "CHUNK_BYTES", 300_000)
    rows = [{"id": i, "text": "word " * (i % 50)} for i in range(20_000)]
    data = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    name = "rows.jsonl" + end
    assert both_ways(tmp_path, {name: data}, FORMATS["jsonl"]) == rows
    opened = indexed(FORMATS["jsonl"], place_of(tmp_path, [name]))
    assert len(opened.counts) > 5 and sum(opened.counts) == 20_000
    assert len(set(opened.names)) == (1 if end else len(opened.counts))
    if not end:
        firsts = [sum(opened.counts[:k]) for k in range(len(opened.counts) + 1)]
        assert opened.names[1] == opened.names[1:2][0] == f"{name}[{firsts[1]}:{firsts[2]}]"
        assert list(opened.names)[-1] == f"{name}[{firsts[-2]}:20000]" and opened.exact
    else:
        assert opened.files is not None and list(opened.files.counts) == [20_000]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(
    rows=st.lists(st.lists(st.text(st.sampled_from('ab",\n é'), max_size=5), min_size=2, max_size=2), max_size=12),
    crlf=st.booleans(),
    end=st.sampled_from(ENDS),
)
def test_what_the_csv_module_wrote_comes_back(rows: list[list[str]], crlf: bool, end: str, tmp_path: Path) -> None:
    import io
    import shutil

    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="\r\n" if crlf else "\n").writerows([["k", "v"], *rows])
    folder = tmp_path / "texts"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    write(folder, {"a.csv" + end: out.getvalue().encode()})
    first = unindexed(FORMATS["csv"], place_of(folder, ["a.csv" + end]), extra={"index": "beside"})
    wanted = [dict(zip(("k", "v"), row, strict=True)) for row in rows]
    assert [first.plan(item) for item in first.stream()] == wanted
    assert values(indexed(FORMATS["csv"], place_of(folder, ["a.csv" + end]), extra={"index": "beside"})) == wanted


# -- JSON -----------------------------------------------------------------------------------

ODD = [
    b"NaN", b"[-Infinity, Infinity]", b'"\\ud83d"', b"18446744073709551616", b"-9223372036854775809", b"1e400",
    b"[1, 123456789012345678901234567890]", b"0.1234567890123456789012345", b'{"a": 1, "a": 2}', b"-0", b"-0.0",
    b'"\xe2\x80\xa8"', b" 1 ", b"9223372036854775808",
]  # fmt: skip


@pytest.mark.parametrize("text", ODD)
def test_values_do_not_depend_on_whether_orjson_is_there(text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("orjson")
    fast = json_reader()(text)
    monkeypatch.setitem(sys.modules, "orjson", None)
    slow = json_reader()(text)
    assert repr(fast) == repr(slow) == repr(json.loads(text))


@pytest.mark.parametrize(
    "text", [b"", b"{", b"{'a': 1}", b"\xff", b'"\xed\xa0\x80"', b"1 2", b"[" * 200_000, b"9" * 5000]
)
@pytest.mark.parametrize("fast", [True, False])
def test_what_is_no_json_is_a_format_error(text: bytes, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fast:
        monkeypatch.setitem(sys.modules, "orjson", None)
    with pytest.raises(FormatError, match="the line is not"):
        json_reader()(text)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda v: st.lists(v) | st.dictionaries(st.text(), v),
    )
)
def test_any_value_comes_back(value: Any) -> None:
    text = json.dumps(value).encode()
    found = json_reader()(text)
    assert repr(found) == repr(json.loads(text))
    assert not isinstance(value, float) or found == value or math.isnan(value)


# -- options and errors ---------------------------------------------------------------------


def test_a_header_may_be_given_instead(tmp_path: Path) -> None:
    found = both_ways(
        tmp_path,
        {"a.csv": b"1;'x;y'\n2;''\n"},
        CsvFormat(),
        extra={"header": ["n", "t"], "delimiter": ";", "quotechar": "'"},
    )
    assert found == [{"n": "1", "t": "x;y"}, {"n": "2", "t": ""}]
    found = both_ways(tmp_path, {"b.tsv": b'a\tb\n"1\t2"\n'}, TsvFormat(), extra={"quotechar": ""})
    assert found == [{"a": '"1', "b": '2"'}]


@pytest.mark.parametrize(
    ("format", "options"),
    [
        (JsonlFormat(), {"extra": {"header": True}}),
        (JsonlFormat(), {"extra": {"index": 1}}),
        (JsonlFormat(), {"extra": {"index": ""}}),
        (JsonlFormat(), {"columns": ["a"]}),
        (JsonlFormat(), {"encryption": object()}),
        (CsvFormat(), {"extra": {"header": False}}),
        (CsvFormat(), {"extra": {"header": "abc"}}),
        (CsvFormat(), {"extra": {"header": []}}),
        (CsvFormat(), {"extra": {"header": ["a", "a"]}}),
        (CsvFormat(), {"extra": {"delimiter": "::"}}),
        (CsvFormat(), {"extra": {"delimiter": "\n"}}),
        (CsvFormat(), {"extra": {"delimiter": '"'}}),
        (CsvFormat(), {"extra": {"quotechar": "é"}}),
        (CsvFormat(), {"extra": {"quotechar": None}}),
        (JsonlFormat(), {"verify": True}),
        (JsonlFormat(), {"validate_hash": "sha1"}),
        (JsonlFormat(), {"serializers": {"str": str}}),
        (JsonlFormat(), {"block_size": 4}),
    ],
)
def test_options_that_cannot_work_are_refused(format: TextFormat, options: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path, {"a.csv": b"a\n1\n"})
    with pytest.raises(ConfigError):
        unindexed(format, place_of(tmp_path, ["a.csv"]), **options)


@pytest.mark.parametrize(
    ("name", "data", "error", "message"),
    [
        ("a.csv", b"a,a\n1,2\n", FormatError, "a.csv: the header has the name 'a' more than once"),
        ("a.csv", b"a\rb\rc\r", FormatError, "carriage returns"),
        ("a.csv", b"\xff,b\n1,2\n", FormatError, "a.csv: the header is not UTF-8"),
        (
            "a.csv",
            b'a\n"1\n2\n',
            FormatError,
            "a.csv: the record that begins at byte 2 has a quote that is never closed",
        ),
        ("a.csv", b"h" * (3 << 20) + b"\n1\n", FormatError, "1048576 bytes"),
        ("a.txt", "a\nb\n".encode("utf-16"), FormatError, "a.txt: the text is UTF-16"),
        ("a.txt.gz", b"no gzip", FormatError, "a.txt.gz: the gzip stream cannot be inflated"),
        ("a.txt.zst", b"no zstd", FormatError, "a.txt.zst: it is not a zstd stream"),
    ],
)
def test_texts_that_are_none_are_refused_by_name(
    name: str, data: bytes, error: type[Exception], message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(data)
    format = FORMATS[name.split(".")[1]]
    for step in (lambda u: list(map(u.plan, u.stream())), lambda u: u.build()):
        with pytest.raises(error, match=message):
            step(unindexed(format, place_of(tmp_path, [name])))


def test_a_header_that_differs_between_files_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"a.csv": b"x,y\n1,2\n", "b.csv": b"y,x\n1,2\n"})
    with pytest.raises(FormatError, match=r"b.csv: its header is another than that of a.csv: \('y', 'x'\)"):
        unindexed(FORMATS["csv"], place_of(tmp_path, ["a.csv", "b.csv"])).build()
    with pytest.raises(FormatError, match=r"b.csv: its header"):
        list(unindexed(FORMATS["csv"], place_of(tmp_path, ["a.csv", "b.csv"]), extra={"index": "beside"}).stream())


def test_plain_and_compressed_files_side_by_side_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": b"x", "b.txt.gz": b"y"})
    with pytest.raises(UnsupportedError, match="side by side"):
        unindexed(FORMATS["txt"], place_of(tmp_path, ["a.txt", "b.txt.gz"]))


@pytest.mark.parametrize("end", ENDS)
def test_an_item_larger_than_the_memory_is_refused_while_streaming(end: str, tmp_path: Path) -> None:
    write(tmp_path, {"a.txt" + end: b"short\n" + b"x" * (20 << 20)})
    place = place_of(tmp_path, ["a.txt" + end], budget=16 << 20)
    with pytest.raises(BudgetTooSmallError, match=r"a.txt.*: the item after byte .* give a larger memory="):
        list(unindexed(FORMATS["txt"], place).stream())


def test_the_registry_knows_these_formats_and_their_file_names() -> None:
    from lazystore.formats.registry import suffixes_of

    for name in ("jsonl", "csv", "tsv", "lines"):
        format = find_format(name)
        assert format.name == name and set(format.suffixes) == set(suffixes_of(name))
