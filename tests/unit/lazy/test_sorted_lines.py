"""Sorted files: the rows behind a position are found by bisecting bytes, whatever lines look like."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazystore.errors import ConfigError, FormatError
from lazystore.lazy import sorted_lines
from lazystore.lazy.keysets import keyset
from lazystore.lazy.sorted_lines import SortedLines
from lazystore.lazy.source import Source

ORDER = keyset(["-score", "id"], unique="id")


def in_order(scores: list[Any], long: Callable[[int], int]) -> list[dict[str, Any]]:
    rows = [{"score": score, "id": number, "text": "ä" * long(number)} for number, score in enumerate(scores)]
    return sorted(rows, key=lambda row: (row["score"] is None, -(row["score"] or 0), row["id"]))


def written(rows: list[dict[str, Any]], blank: int, newline: bool) -> bytes:
    lines = []
    for number, row in enumerate(rows):
        lines.append(json.dumps(row, ensure_ascii=False).encode())
        if blank and number % blank == 0:
            lines.append(b"  ")
    return b"\n".join(lines) + (b"\n" if newline and lines else b"")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.none() | st.integers(-3, 3), max_size=40), st.integers(0, 3), st.booleans(),
    st.sampled_from([0, 3, 700]), st.integers(16, 90), st.integers(1, 7),
)  # fmt: skip
def test_a_walk_either_way_meets_every_line_once(
    scores: list[Any], blank: int, newline: bool, long: int, block: int, size: int
) -> None:
    rows = in_order(scores, lambda number: long if number % 5 == 2 else number % 7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorted_lines, "BLOCK", block)
        lines = SortedLines(Source.from_bytes(written(rows, blank, newline)))
        for backward in (False, True):
            met: list[Any] = []
            position = None
            while found := lines.rows(ORDER.seek(position, backward=backward), size):
                met += found
                position = ORDER.position(found[-1])
            assert met == (rows[::-1] if backward else rows)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.none() | st.integers(-3, 3), max_size=20), st.none() | st.integers(-4, 4), st.integers(-1, 21))
def test_a_position_need_not_be_a_line_of_the_file(scores: list[Any], score: Any, number: int) -> None:
    rows = in_order(scores, lambda number: number)
    lines = SortedLines(Source.from_bytes(written(rows, 0, True)))
    behind = [row for row in rows if ORDER.compare(ORDER.position(row), (score, number)) > 0]
    before = [row for row in rows if ORDER.compare(ORDER.position(row), (score, number)) < 0]
    assert lines.rows(ORDER.seek((score, number)), 99) == behind
    assert lines.rows(ORDER.seek((score, number), backward=True), 99) == before[::-1]


def test_a_large_file_is_not_read_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"".join(b'{"id": %d, "text": "%s"}\n' % (number, b"x" * 200) for number in range(20_000)))
    taken: list[int] = []
    pread = os.pread

    def counted(file: int, length: int, offset: int) -> bytes:
        found = pread(file, length, offset)
        taken.append(len(found))
        return found

    monkeypatch.setattr(os, "pread", counted)
    order = keyset(["id"], unique="id")
    found = SortedLines(path).rows(order.seek((15_000,)), 3)
    assert [row["id"] for row in found] == [15_001, 15_002, 15_003]
    assert sum(taken) < 100_000 < path.stat().st_size
    assert [row["id"] for row in SortedLines(path).rows(order.seek((15_000,), backward=True), 2)] == [14_999, 14_998]
    assert [row["id"] for row in SortedLines(path).rows(order.seek(backward=True), 2)] == [19_999, 19_998]


def test_rows_are_made_by_what_parses_them() -> None:
    order = keyset(["word"], unique="word", get=lambda row, name: row)
    lines = SortedLines(Source.from_bytes(b"ant\nbee\ncat\n"), parse=lambda line: line.strip().decode())
    assert lines.rows(order.seek(("ape",)), 5) == ["bee", "cat"]


def test_a_line_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sorted_lines, "MAX_LINE", 10_000)
    endless = SortedLines(Source.from_bytes(b'{"id": 1}\n' + b"x" * 50_000))
    with pytest.raises(FormatError, match="no end of a line"):
        endless.rows(keyset(["id"], unique="id").seek((0,)), 5)


def test_what_is_no_source_of_bytes_is_refused() -> None:
    with pytest.raises(ConfigError, match="no source of bytes"):
        SortedLines(Source.from_range(lambda offset, limit: []))
