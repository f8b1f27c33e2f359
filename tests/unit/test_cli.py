"""The ``lazystore`` command: exit codes, one-line errors, and every option reaches its place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lazystore
from lazystore import cli, demo
from lazystore.errors import FetchError


class Ran:
    """Stands for a finished demo."""

    def __init__(self, ok: bool) -> None:
        self.ok = ok


def test_demo_options_reach_the_demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[demo.DemoOptions] = []
    monkeypatch.setattr(demo, "run", lambda options: seen.append(options) or Ran(True))
    line = [
        "--dir",
        str(tmp_path),
        "--memory",
        "16MB",
        "--latency-ms",
        "5",
        "--bandwidth",
        "1GB",
        "--limit",
        "9",
    ]
    assert cli.main(["demo", *line]) == 0
    assert seen == [demo.DemoOptions(memory=16_000_000, latency_ms=5.0, bandwidth=10**9, folder=tmp_path, limit=9)]
    assert cli.main(["demo"]) == 0
    assert seen[1] == demo.DemoOptions()


def test_demo_that_did_not_verify_exits_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "run", lambda options: Ran(False))
    assert cli.main(["demo"]) == 1


def test_error_is_one_line_on_stderr(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(options: demo.DemoOptions) -> Any:
        raise FetchError("the store went away")

    monkeypatch.setattr(demo, "run", fail)
    assert cli.main(["demo"]) == 1
    assert capsys.readouterr() == ("", "lazystore: the store went away\n")


@pytest.mark.parametrize("line", [["--memory", "lots"], ["--latency-ms", "-5"], ["--bandwidth", "0"], ["--limit", "0"]])
def test_value_that_cannot_work_is_refused_before_anything_starts(
    line: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "run", lambda options: pytest.fail("started"))
    assert cli.main(["demo", *line]) == 1
    assert capsys.readouterr().err.startswith("lazystore: ")


def test_interrupt_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(options: demo.DemoOptions) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run", interrupt)
    assert cli.main(["demo"]) == 130


@pytest.mark.parametrize("line", [[], ["no-such-command"], ["info"], ["info", "x", "--storage-options", "[1]"]])
def test_wrong_usage_exits_with_2(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        cli.main(line)
    assert exit_info.value.code == 2
    assert "usage: lazystore" in capsys.readouterr().err


def test_version_is_printed_by_the_module_too() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lazystore", "--version"],
        cwd=Path(cli.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"lazystore {lazystore.__version__}\n"


def test_info_describes_a_dataset(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with lazystore.DatasetWriter(tmp_path / "d", chunk_size=2) as writer:
        for number in range(5):
            writer.write({"n": number, "v": [np.zeros((2, 3), "f4"), ("x", None)]})
    assert cli.main(["info", str(tmp_path / "d"), "--memory", "4MB"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "StreamingDataset" in lines[0]
    assert lines[1:] == [
        "items   5",
        "chunks  3",
        "item 0  {'n': int, 'v': [ndarray(float32, (2, 3)), (str, NoneType)]}, 69 bytes stored",
    ]


def test_info_about_nothing_is_a_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", str(tmp_path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err
