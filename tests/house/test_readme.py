"""The README keeps its word: its Python blocks run, its commands exist.

Each ``python`` block runs as a script of its own, in a folder where ``data/`` is a dataset of 2,000
``{"id": int, "text": str}``; URLs of cloud stores in it are replaced by that folder, and the Hugging
Face hub is a local one. A block that cannot run anywhere is preceded by ``<!-- not run: the reason -->``.
"""

from __future__ import annotations

import configparser
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import hub_samples

import lazystore
from lazystore import cli
from lazystore.formats.writer import DatasetWriter
from lazystore.testing import LocalHub

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
BLOCK = re.compile(r"(<!-- not run: [^\n]+-->\n+)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CLOUD_URL = re.compile(r"(?:s3|gs|az|azure|abfs|https?)://[\w./@-]+")


def blocks(language: str) -> list[str]:
    if not README.exists():
        return []  # test_there_are_examples_to_run says so
    text = README.read_text(encoding="utf-8")
    return [body for skip, kind, body in BLOCK.findall(text) if kind == language and not skip]


def commands() -> list[str]:
    lines = [line for kind in ("bash", "sh", "console") for body in blocks(kind) for line in body.splitlines()]
    lines = [line.removeprefix("$ ").split(" #")[0].strip() for line in lines]
    return [part.strip() for line in lines if line and line[0] != "#" for part in line.split("&&")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    with DatasetWriter(folder / "data", chunk_bytes="64kB") as writer:
        for number in range(2000):
            writer.write({"id": number, "text": f"text {number} " * 10})
    return folder


@pytest.fixture(scope="module")
def at_the_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    rows = [{"instruction": f"say {number}", "input": "", "output": f"it is {number}"} for number in range(1200)]
    with LocalHub() as hub:
        hub.add(
            "garage-bAInd/Open-Platypus", {"data/train-00000-of-00001.parquet": hub_samples.parquet(rows, group=500)}
        )
        yield hub.environment(tmp_path_factory.mktemp("hf"))


def test_there_are_examples_to_run() -> None:
    assert blocks("python")
    assert len(commands()) >= 4


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_block_runs(number: int, folder: Path, at_the_hub: dict[str, str]) -> None:
    code = CLOUD_URL.sub("data", blocks("python")[number])
    script = folder / f"block_{number}.py"  # a file, as a user has it: worker processes import it
    script.write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=folder,
        env={**os.environ, **at_the_hub, "PYTHONPATH": str(Path(lazystore.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{code}\n{done.stderr}"


def is_ours(words: list[str]) -> bool:
    return words[0] == "lazystore" or words[:3] == ["python", "-m", "lazystore"]


def test_our_own_commands_work_one_after_the_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LAZYSTORE_CACHE_DIR", str(folder / "cache"))
    ours = [words for command in commands() if is_ours(words := shlex.split(command))]
    assert len(ours) >= 4
    for words in ours:
        assert cli.main(words[1:] if words[0] == "lazystore" else words[3:]) == 0, words


@pytest.mark.parametrize("command", [command for command in commands() if not is_ours(shlex.split(command))])
def test_command_exists(command: str) -> None:
    words = shlex.split(command)
    if words[:3] == ["python", "-m", "pip"]:
        assert words[3] == "install"
        for package in (word for word in words[4:] if not word.startswith("-")):
            check_requirement(package)
    elif words[:4] == ["python", "-m", "tox", "run"]:
        assert words[4] == "-e"
        check_tox_environments(words[5])
    elif words[0] == "pip":
        assert words[1] == "install"
        for package in words[2:]:
            check_requirement(package)
    else:
        assert words[0] in {"git", "cd", "pytest"}, f"{command!r} is not a command this test knows"


def check_requirement(package: str) -> None:
    name, _, extras = package.rstrip("]").partition("[")
    assert name in {"tox", "lazystore", "."}
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(filter(None, extras.split(","))) <= set(known)


def check_tox_environments(names: str) -> None:
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "tox.ini")
    known = {section.removeprefix("testenv:") for section in config.sections()} | {"py"}
    assert set(names.split(",")) <= known
