"""``info``: what a dataset holds and how it is stored, for people and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lazystore
from lazystore import cli


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with lazystore.DatasetWriter(tmp_path / "d", chunk_size=2) as writer:
        for number in range(5):
            writer.write({"n": number, "v": [np.zeros((2, 3), "f4"), ("x" * 100 * number, b"")]})
    return tmp_path / "d"


def told(folder: Path, capsys: pytest.CaptureFixture[str], *line: str) -> dict[str, Any]:
    assert cli.main(["info", str(folder), "--json", *line]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_json_says_what_there_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(folder, capsys, "--memory", "4MB")
    with lazystore.StreamingDataset(folder) as dataset:
        sizes = [len(dataset.get_bytes(i)) for i in range(5)]
    stored = sum(path.stat().st_size for path in folder.glob("*.bin"))
    assert (found["format"], found["items"], found["chunks"]) == ("litdata", 5, 3)
    assert (found["stored_bytes"], found["chunk_bytes"]) == (stored, stored // 3)
    assert (found["mean_item"], found["largest_item"]) == (sum(sizes) // 5, max(sizes))
    assert found["first_item"] == "{'n': int, 'v': [ndarray(float32, (2, 3)), (str, bytes)]}"
    assert [name.partition(":")[0] for name in found["schema"]] == ["n", "v.0", "v.1.0", "v.1.1"]
    assert found["compression"] is None and found["encryption"] is None


def test_memory_is_what_opening_with_that_budget_makes_of_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(folder, capsys, "--memory", "4MB")["memory"]
    with lazystore.StreamingDataset(folder, memory="4MB") as dataset:
        store = dataset._memory.store
        assert (found["budget"], found["arena"]) == (4_000_000, store.max_bytes)


def test_text_form_has_a_line_for_each(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = set(told(folder, capsys))
    assert cli.main(["info", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(names)
    assert {line[:18].strip().replace(" ", "_") for line in lines} == names
    assert any(line.split() == ["items", "5"] for line in lines)
    assert any(line.split() == ["compression", "none"] for line in lines)


def test_dataset_that_cannot_be_decoded_here_is_described_nevertheless(capsys: pytest.CaptureFixture[str]) -> None:
    golden = Path(__file__).parents[2] / "golden" / "litdata-classic-pickle" / "data"
    found = told(golden, capsys)
    assert found["items"] > 0 and "allow_pickle" in found["first_item"]


def test_compressed_chunks_have_no_sizes_that_nobody_knows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("zstandard")
    with lazystore.DatasetWriter(tmp_path / "z", chunk_size=2, compression="zstd") as writer:
        for number in range(5):
            writer.write(number)
    found = told(tmp_path / "z", capsys)
    assert found["compression"] == "zstd" and found["largest_item"] is None and found["mean_item"] is None
    assert found["memory"]["scratch"] > 0


def test_info_about_nothing_is_a_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", str(tmp_path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err


def test_a_compression_that_the_format_does_not_tell_is_not_called_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"a": list(range(1000))}), tmp_path / "x.parquet", compression="zstd")
    assert told(tmp_path / "x.parquet", capsys)["compression"] == "unknown"
