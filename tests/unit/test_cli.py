"""The ``lazystore`` command: exit codes, one-line errors, and every option reaches its place."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lazystore
from lazystore import cli, demo
from lazystore.commands import COMMANDS
from lazystore.errors import FetchError

HOME = Path(cli.__file__).parents[1]


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


@pytest.mark.parametrize("text", ["the store went away", "the store\nwent   away\n"])
def test_error_is_one_line_on_stderr(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(options: demo.DemoOptions) -> Any:
        raise FetchError(text)

    monkeypatch.setattr(demo, "run", fail)
    assert cli.main(["demo"]) == 1
    assert capsys.readouterr() == ("", "lazystore: the store went away\n")
    with pytest.raises(FetchError):
        cli.main(["demo", "--debug"])


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


@pytest.mark.parametrize(
    "line",
    [
        *([], ["no-such-command"], ["info"]),
        *(["info", "x", "--storage-options", "[1]"], ["info", "x", "--storage-options", "{"]),
        *(["info", "x", "--storage-option", "anon"], ["info", "x", "--format-option", "=1"]),
        *(["cat", "x"], ["cat", "x", "1..2..3"], ["cat", "x", "five"], ["cat", "x", "--raw", "--json"]),
        *(["head", "x", "-n", "0"], ["plan", "x", "--workers", "none"], ["plan", "x", "--shuffle", "well"]),
        *(["convert", "x"], ["convert", "x", "y", "--to", "csv"], ["index"]),
    ],
)
def test_wrong_usage_exits_with_2(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        cli.main(line)
    assert exit_info.value.code == 2
    assert "usage: lazystore" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_examples_that_parse(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        cli.main([name, "--help"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    assert "--debug" in text
    examples = [line.strip() for line in text.partition("examples:\n")[2].splitlines() if line.strip()]
    assert examples
    for example in examples:
        words = example.split(" >")[0].split()
        assert words[:2] == ["lazystore", name]
        assert cli.grammar(words[1:]).command == name


def test_version_is_printed_by_the_module_too() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lazystore", "--version"], cwd=HOME, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"lazystore {lazystore.__version__}\n"


def test_stdout_that_is_closed_early_ends_the_command_quietly(tmp_path: Path) -> None:
    with lazystore.DatasetWriter(tmp_path / "d") as writer:
        for number in range(50_000):
            writer.write({"n": number})
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "lazystore", "cat", str(tmp_path / "d"), "..", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(HOME)},
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    with process.stdout, process.stderr:
        assert process.stdout.readline() == b'{"n":0}\n'
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0


def test_parsing_loads_no_storage_client_and_no_numpy() -> None:
    code = (
        "import sys; from lazystore import cli; cli.parser(); "
        "print([m for m in ('numpy', 'fsspec', 'asyncio', 'torch') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(HOME)},
    )  # fmt: skip
    assert done.stdout == "[]\n"
