"""``convert``: what is written equals what was read, in order, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support import datasets

import lazystore
from lazystore import cli


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return datasets.write(tmp_path / "d", 130)


@pytest.mark.parametrize("line", [["--chunk-size", "17"], ["--chunk-bytes", "9kB", "--compression", "zstd:2"], []])
def test_dataset_comes_out_equal_in_other_chunks(line: list[str], folder: Path, tmp_path: Path) -> None:
    if "zstd:2" in line:
        pytest.importorskip("zstandard")
    assert cli.main(["convert", str(folder), str(tmp_path / "out"), *line]) == 0
    with lazystore.StreamingDataset(tmp_path / "out") as dataset:
        datasets.check(dataset, range(130))
        assert dataset.stats()["n_chunks"] == {0: 1, 2: 8}.get(len(line), dataset.stats()["n_chunks"])


def test_json_lines_hold_every_item_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"n": i, "t": "täxt\n" * (i % 3), "v": np.arange(i % 4, dtype="f4")} for i in range(100)]
    with lazystore.DatasetWriter(tmp_path / "d", chunk_size=9) as writer:
        for row in rows:
            writer.write(row)
    assert cli.main(["convert", str(tmp_path / "d"), str(tmp_path / "rows.jsonl")]) == 0
    assert capsys.readouterr().out == f"100 items written to {tmp_path / 'rows.jsonl'}\n"
    lines = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{**row, "v": row["v"].tolist()} for row in rows]


def test_bytes_are_refused_by_name_unless_base64_is_asked_for(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "rows.jsonl"
    assert cli.main(["convert", str(folder), str(target)]) == 1
    assert "item 0: the leaf ['blob'] holds bytes" in capsys.readouterr().err
    assert list(tmp_path.glob("rows*")) == []
    assert cli.main(["convert", str(folder), str(target), "--json-bytes", "base64"]) == 0
    assert set(json.loads(target.read_text(encoding="utf-8").splitlines()[0])["blob"]) == {"base64"}


def test_existing_file_stays_unless_told_otherwise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with lazystore.DatasetWriter(tmp_path / "d") as writer:
        writer.write({"n": 1})
    target = tmp_path / "rows"
    target.write_text("mine")
    line = ["convert", str(tmp_path / "d"), str(target), "--to", "jsonl"]
    assert cli.main(line) == 1
    assert "--overwrite" in capsys.readouterr().err and target.read_text() == "mine"
    assert cli.main([*line, "--overwrite"]) == 0
    assert target.read_text() == '{"n":1}\n'


def test_existing_dataset_stays(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    datasets.write(tmp_path / "other", 3)
    assert cli.main(["convert", str(tmp_path / "other"), str(folder)]) == 1
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("line", "name"),
    [(["x.jsonl", "--chunk-size", "5"], "--chunk-size"), (["x", "--json-bytes", "base64"], "--json-bytes")],
)
def test_option_of_the_other_format_is_refused(
    line: list[str], name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["convert", str(folder), *line]) == 1
    assert f"{name} means nothing" in capsys.readouterr().err


def test_damage_leaves_nothing_behind(folder: Path, tmp_path: Path) -> None:
    sorted(folder.glob("*.bin"))[1].unlink()
    for target in ("out", "out.jsonl"):
        assert cli.main(["convert", str(folder), str(tmp_path / target)]) == 1
        assert not (tmp_path / target / "index.json").exists()
        assert list(tmp_path.glob("out.jsonl*")) == []


def test_overwrite_takes_the_place_of_the_old_dataset(folder: Path, tmp_path: Path) -> None:
    datasets.write(tmp_path / "other", 7)
    assert cli.main(["convert", str(tmp_path / "other"), str(folder), "--overwrite"]) == 0
    with lazystore.StreamingDataset(folder) as dataset:
        datasets.check(dataset, range(7))


def test_values_of_many_shapes_are_kept_as_json_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"n": i, "tags": ["x"] * (i % 3), "more": None if i % 2 else {"a": i}} for i in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = ["convert", str(tmp_path / "rows.jsonl"), str(tmp_path / "out"), "--format-option", "index=beside"]
    assert cli.main(line) == 1
    err = capsys.readouterr().err
    assert "tags" in err and "--json-column NAME" in err and err.count("\n") == 1
    assert cli.main([*line, "--json-column", "tags", "--json-column", "more"]) == 0
    with lazystore.StreamingDataset(tmp_path / "out") as dataset:
        found = [{"n": row["n"], "tags": json.loads(row["tags"]), "more": json.loads(row["more"])} for row in dataset]
    assert found == rows


def test_lines_cannot_be_written_to_urls(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["convert", str(folder), "memory://x/rows.jsonl", "--json-bytes", "base64"]) == 1
    assert "local files only" in capsys.readouterr().err


def test_datasets_are_written_to_urls(folder: Path) -> None:
    assert cli.main(["convert", str(folder), "memory://cli-convert/out"]) == 0
    with lazystore.StreamingDataset("memory://cli-convert/out") as dataset:
        datasets.check(dataset, range(130))
