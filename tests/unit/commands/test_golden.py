"""The commands over datasets of the real writers: each is described, shown, verified and converted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lazystore
from lazystore import cli
from lazystore.commands.options import dataset_arguments
from lazystore.commands.values import json_line
from lazystore.testing.format_exam import same_value

GOLDEN = Path(__file__).parents[2] / "golden"
FOLDERS = {path.parent.name: path for path in GOLDEN.glob("*/data")}
FILES = {f"plain-text-{path.parents[1].name}": path for path in GOLDEN.glob("plain-text/*/data/*")}
DATASETS = dict(sorted({**FOLDERS, **FILES}.items()))
#: What a dataset needs besides lazystore.
PACKAGES = {
    "zstd": "zstandard",
    "rows": "pyarrow",
    "fernet": "cryptography",
    "images": "PIL",
    "snappy": "cramjam",
    "mds-br": "brotli",
}
#: Columns whose values have no one structure, or no form in LitData's: they are converted to JSON text.
JSON_COLUMNS = {
    "litdata-nested-rows": ["conv", "meta", "tags"],
    "litdata-optional-rows": ["maybe_s", "maybe_i", "maybe_f"],
    "plain-text-jsonl": ["n"],
}
#: What cannot be converted, and why.
REFUSED = {
    "litdata-classic-pickle": "complex cannot be written",
    "litdata-json-leaf": "the format keeps one length",
    "mds-leaves": "cannot be written",
}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(params=list(DATASETS))
def dataset(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """A dataset's URL and the options that open it."""
    name: str = request.param
    for mark, package in PACKAGES.items():
        if mark in name:
            pytest.importorskip(package)
    path = DATASETS[name]
    options = [str(path), "--allow-pickle"]
    index = path / "index.json"
    if index.exists() and "tensor" in index.read_text():
        pytest.importorskip("torch")
    key = path.parent / "key"
    if key.exists():
        monkeypatch.setenv("GOLDEN_PASSWORD", (key / "password.txt").read_text())
        options += ["--encryption-key", str(key / "key.json"), "--password-env", "GOLDEN_PASSWORD"]
    yield name, options


def expected(name: str) -> int:
    """Items of a dataset."""
    path = DATASETS[name].parent if DATASETS[name].is_dir() else DATASETS[name].parents[1]
    return len((path / "expected.jsonl").read_text(encoding="utf-8").splitlines())


def test_verify_finds_nothing_wrong(dataset: tuple[str, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    name, options = dataset
    assert cli.main(["verify", *options]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"ok: {expected(name):,} items in ")
    assert ("checksums compared" in out) == (name == "mds-hashes")


def test_info_counts_and_names(dataset: tuple[str, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    name, options = dataset
    assert cli.main(["info", "--json", *options]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["items"] == expected(name) and found["chunks"] >= 1 and found["schema"]
    kind = name.partition("-")[0]
    assert found["format"] == {"litdata": "litdata", "mds": "mds", "mosaic": "mds"}.get(kind, name.rpartition("-")[2])
    assert bool(found["encryption"]) == ("fernet" in name)
    assert not found["first_item"].startswith("cannot be read")
    assert cli.main(["info", *options]) == 0
    assert capsys.readouterr().out.count("\n") == len(found)


def test_head_shows_the_items(dataset: tuple[str, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    name, options = dataset
    assert cli.main(["head", "-n", "3", *options]) == 0
    assert capsys.readouterr().out.count("\n") == min(3, expected(name))


def test_plan_foresees_an_epoch(dataset: tuple[str, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    name, options = dataset
    options = [option for option in options if option != "--allow-pickle"]
    assert cli.main(["plan", "--json", "--shuffle", "--memory", "64MB", *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["items"] == expected(name)
    assert (found["requests"] is None) == (found["bytes"] is None)
    assert 0 < found["shuffle_distance"] < 3


def test_convert_keeps_every_item(
    dataset: tuple[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, options = dataset
    columns = JSON_COLUMNS.get(name, [])
    line = ["convert", *options, str(tmp_path / "out"), *(word for c in columns for word in ("--json-column", c))]
    if name in REFUSED:
        assert cli.main(line) == 1
        err = capsys.readouterr().err
        assert REFUSED[name] in err and err.count("\n") == 1
        assert not (tmp_path / "out" / "index.json").exists()
        return
    assert cli.main(line) == 0
    assert capsys.readouterr().out == f"{expected(name):,} items written to {tmp_path / 'out'}\n"
    arguments = dataset_arguments(cli.grammar(["head", *options]))
    with (
        lazystore.StreamingDataset(options[0], **arguments) as before,
        lazystore.StreamingDataset(tmp_path / "out") as after,
    ):
        assert len(after) == expected(name)
        for one, other in zip(before, after, strict=True):
            for column in columns:
                one[column] = json_line(one[column])
            assert same_value(one, other)
