"""``index``: counts the lines of text files, says where the sidecar lies, and later readers find it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from support import datasets

import lazystore
from lazystore import cli


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"n": i, "t": "x" * (i % 40)}) + "\n" for i in range(1000)))
    return path


def sidecars(folder: Path) -> list[Path]:
    return [Path(root, name) for root, _, names in os.walk(folder) for name in names if name.endswith(".lzidx")]


def test_items_bytes_and_sidecar_are_told(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "table.csv"
    table.write_text('a,b\n1,"two\nlines"\n3,4\n')
    assert cli.main(["index", str(rows), str(table)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{rows}: 1,000 items, {rows.stat().st_size / 1e3:.4g} kB; index: ")
    assert second.startswith(f"{table}: 2 items, {table.stat().st_size} bytes; index: ")
    found = {line.rpartition("index: ")[2] for line in (first, second)}
    assert found == set(map(str, sidecars(tmp_path / "cache")))


def test_sidecar_is_used_by_later_readers(rows: Path, tmp_path: Path) -> None:
    assert cli.main(["index", str(rows)]) == 0
    (sidecar,) = sidecars(tmp_path)
    before = sidecar.stat().st_mtime_ns
    with lazystore.StreamingDataset(rows) as dataset:
        assert dataset[999] == {"n": 999, "t": "x" * 39}
    assert cli.main(["index", str(rows)]) == 0
    assert sidecar.stat().st_mtime_ns == before


def test_sidecar_lies_beside_the_file_when_asked(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["index", str(rows), "--format-option", "index=beside"]) == 0
    assert capsys.readouterr().out.rstrip().endswith(f"index: {rows}.lzidx")
    assert sidecars(tmp_path) == [Path(f"{rows}.lzidx")]


def test_dataset_with_an_index_of_its_own_needs_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = datasets.write(tmp_path / "d", 70)
    assert cli.main(["index", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "70 items" in out and out.endswith("index: its own\n")
    assert sidecars(tmp_path) == []


def test_head_does_not_wait_for_an_index(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows.write_text(rows.read_text() * 200)
    assert cli.main(["head", str(rows), "-n", "2", "--json"]) == 0
    assert capsys.readouterr().out == '{"n":0,"t":""}\n{"n":1,"t":"x"}\n'
    assert sidecars(tmp_path) == []


def test_raw_lines_have_their_ends(rows: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert cli.main(["cat", str(rows), "3..6", "--raw"]) == 0
    assert capfdbinary.readouterr().out == b"".join(rows.read_bytes().splitlines(keepends=True)[3:6])


def test_missing_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["index", str(tmp_path / "nowhere.jsonl")]) == 1
    err = capsys.readouterr().err
    assert err.startswith("lazystore: ") and "nowhere.jsonl" in err and err.count("\n") == 1
