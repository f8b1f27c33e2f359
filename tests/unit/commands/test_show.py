"""``head`` and ``cat``: which items, in which form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import datasets

import lazystore
from lazystore import cli
from lazystore.commands.cat import wanted
from lazystore.testing import ObjectStore

COUNT = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(datasets.write(tmp_path_factory.mktemp("show") / "d", COUNT))


def ids(text: str) -> list[int]:
    return [json.loads(line)["id"] for line in text.splitlines()]


@pytest.mark.parametrize(("line", "count"), [([], 5), (["-n", "2"], 2), (["-n", "1000"], COUNT)])
def test_head_shows_the_first_items(
    line: list[str], count: int, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["head", folder, "--json", *line]) == 0
    assert ids(capsys.readouterr().out) == list(range(count))
    assert cli.main(["head", folder, *line]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [text.partition(":")[0] for text in lines] == [str(i) for i in range(count)]
    assert "'id': 0" in lines[0]


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        (["7"], [7]),
        (["-1"], [COUNT - 1]),
        (["48..52"], [48, 49, 50, 51]),
        (["-3.."], [COUNT - 3, COUNT - 2, COUNT - 1]),
        (["-3..-1"], [COUNT - 3, COUNT - 2]),
        (["..2"], [0, 1]),
        (["5..5"], []),
        (["118..500"], [118, 119]),
        (["9", "-2..", "3"], [9, COUNT - 2, COUNT - 1, 3]),
        ([".."], list(range(COUNT))),
    ],
)
def test_cat_shows_the_items_asked_for(
    words: list[str], numbers: list[int], folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["cat", folder, "--json", *words]) == 0
    assert ids(capsys.readouterr().out) == numbers


@given(st.integers(-9, 9) | st.none(), st.integers(-9, 9) | st.none(), st.integers(0, 6))
def test_ranges_mean_what_python_slices_mean(first: int | None, last: int | None, total: int) -> None:
    text = f"{'' if first is None else first}..{'' if last is None else last}"
    assert list(wanted(text, total)) == list(range(total))[first:last]


@pytest.mark.parametrize("word", [str(COUNT), str(-COUNT - 1)])
def test_number_that_is_not_there_is_an_error(word: str, folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cat", folder, word]) == 1
    assert capsys.readouterr() == ("", f"lazystore: there is no item {word}: the dataset has {COUNT}\n")


def test_raw_gives_the_stored_bytes(folder: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    with lazystore.StreamingDataset(folder) as dataset:
        stored = [dataset.get_bytes(i) for i in range(COUNT)]
    assert cli.main(["cat", folder, "--raw", "60..63"]) == 0
    assert capfdbinary.readouterr().out == b"".join(stored[60:63])
    assert cli.main(["head", folder, "--raw"]) == 0
    assert capfdbinary.readouterr().out == b"".join(stored[:5])


def test_launchers_variables_do_not_hide_items(
    folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["head", folder, "--json", "-n", "1"]) == 0
    assert ids(capsys.readouterr().out) == [0]


def test_pickles_need_permission(capsys: pytest.CaptureFixture[str]) -> None:
    golden = Path(__file__).parents[2] / "golden" / "litdata-classic-pickle" / "data"
    assert cli.main(["head", str(golden), "-n", "1"]) == 1
    refused = capsys.readouterr()
    assert refused.out == "" and refused.err.count("\n") == 1 and "allow_pickle" in refused.err
    assert cli.main(["head", str(golden), "-n", "1", "--allow-pickle"]) == 0
    assert capsys.readouterr().out.startswith("0: ")


@pytest.mark.s3
def test_options_reach_the_storage(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("s3fs")
    with ObjectStore({"b": Path(folder).parent}) as store:
        options = store.s3_options()
        line = ["head", store.s3_url("b", "d"), "--json", "-n", "1", "--storage-option", "anon=true"]
        line += ["--storage-option", f"endpoint_url={options['endpoint_url']}"]
        line += ["--storage-options", json.dumps({"client_kwargs": options["client_kwargs"]})]
        assert cli.main(line) == 0
    assert ids(capsys.readouterr().out) == [0]
