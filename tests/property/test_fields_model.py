"""What items of a text hold, against Python's ``csv`` module and plain string methods."""

from __future__ import annotations

import csv
import re
import struct

from hypothesis import given
from hypothesis import strategies as st

from lazystore._core.fields import RecordReader, has_long_number, line_bytes, line_text, record_bytes
from lazystore._core.lines import LineScanner

# Carriage returns: only those before a line feed, the others are data here and line ends for ``csv``.
texts = st.lists(
    st.sampled_from(["\n", "\n", "\r\n", ",", ",", '"', '"', '""', "a", " ", "é", "\u2028", "\x00"[:0]]), max_size=30
)


def items(text: bytes, kind: str, **options: bytes) -> list[bytes]:
    scanner = LineScanner(kind, target=1 << 30, limit=1 << 20, **options)
    scanner.scan(text)
    scanner.finish()
    if not scanner.ready:
        return []
    table, begin, _, n = scanner.take()
    offsets = struct.unpack_from(f"<{n + 1}I", table, 4)
    base = begin - len(table)
    return [text[base + offsets[i] : base + offsets[i + 1]] for i in range(n)]


@given(texts.map("".join))
def test_records_are_what_the_csv_module_reads(text: str) -> None:
    lines = re.split("(?<=\n)", text)
    wanted = [row for row in csv.reader(lines) if row]
    if text.count('"') and _ends_quoted(text):
        return
    reader = RecordReader(())
    assert [reader.fields(item) for item in items(text.encode(), "fields")] == wanted


@given(texts.map("".join))
def test_without_quoting_fields_are_split_at_delimiters(text: str) -> None:
    found = [RecordReader((), quote=b"").fields(item) for item in items(text.encode(), "fields", quote=b"")]
    assert found == [row for row in csv.reader(re.split("(?<=\n)", text), quoting=csv.QUOTE_NONE) if row]


@given(st.lists(st.lists(st.text(st.sampled_from('ab",\r\n é\0')), min_size=2, max_size=4), max_size=6))
def test_what_is_quoted_throughout_comes_back(rows: list[list[str]]) -> None:
    text = "".join(",".join('"' + field.replace('"', '""') + '"' for field in row) + "\r\n" for row in rows)
    assert [RecordReader(()).fields(item) for item in items(text.encode(), "fields")] == rows


@given(st.lists(st.sampled_from(["a", "\r", "\n", "\r\n", " ", "é"]), max_size=20).map("".join))
def test_lines_lose_their_terminator_and_nothing_else(text: str) -> None:
    wanted = [line[:-1].removesuffix("\r") if line.endswith("\n") else line for line in re.split("(?<=\n)", text)]
    wanted = wanted[:-1] if text.endswith("\n") or not text else wanted
    found = items(text.encode(), "lines")
    assert [line_text(item) for item in found] == wanted
    assert [line_bytes(item) for item in found] == [line.encode() for line in wanted]


@given(
    st.lists(st.sampled_from([b"a,b", b'"x\n"', b'"\r\n\n"', b"\r"]), min_size=1, max_size=3).map(b"".join),
    st.sampled_from([b"", b"\n", b"\r\n"]),
    st.integers(0, 3),
)
def test_raw_records_lose_their_terminator_and_empty_lines(record: bytes, terminator: bytes, blanks: int) -> None:
    item = record + terminator + (terminator * blanks)
    if terminator == b"\n" and record.endswith(b"\r"):
        record = record[:-1]
    assert record_bytes(item) == record


@given(
    st.lists(st.one_of(st.sampled_from([b"a", b".", b"-"]), st.integers(0, 30).map(lambda n: b"7" * n))).map(b"".join)
)
def test_long_numbers_are_found_wherever_they_stand(data: bytes) -> None:
    assert has_long_number(data) == (re.search(rb"\d{19}", data) is not None)


def _ends_quoted(text: str) -> bool:
    scanner = LineScanner("fields", target=1 << 30, limit=1 << 20)
    scanner.scan(text.encode())
    try:
        scanner.finish()
    except ValueError:
        return True
    return False
