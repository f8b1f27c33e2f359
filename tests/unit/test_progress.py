"""``Progress``: a bar on a terminal, plain lines there without tqdm, silence anywhere else."""

from __future__ import annotations

import io
import sys

import pytest

from lazystore.progress import LINE_INTERVAL_S, Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def without_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)


def test_nothing_is_written_where_nobody_watches() -> None:
    file = io.StringIO()
    with Progress(10, "reading", file=file) as progress:
        progress.update(10)
    assert file.getvalue() == ""
    assert progress.done == 10


def test_missing_stderr_is_nobody_watching(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)  # pythonw and some daemons
    with Progress(10, "reading") as progress:
        progress.update(3)
    assert progress.done == 3


@pytest.mark.usefixtures("without_tqdm")
def test_plain_lines_come_at_intervals_and_at_the_end() -> None:
    file, clock = Terminal(), Clock()
    with Progress(2000, "reading", unit="files", file=file, clock=clock) as progress:
        progress.update(500)
        assert file.getvalue() == ""
        clock.now += LINE_INTERVAL_S
        progress.update(500)
        progress.update(500)
    assert file.getvalue().splitlines() == [
        "reading: 1,000 of 2,000 files (50%)",
        "reading: 1,500 of 2,000 files (75%)",
    ]
    progress.close()
    progress.update()
    assert file.getvalue().count("\n") == 2


@pytest.mark.usefixtures("without_tqdm")
@pytest.mark.parametrize("total", [None, 0])
def test_task_of_unknown_or_no_length_counts_only(total: int | None) -> None:
    file = Terminal()
    with Progress(total, "reading", file=file) as progress:
        progress.update(7)
    assert file.getvalue() == "reading: 7 items\n"


def test_terminal_with_tqdm_gets_its_bar() -> None:
    pytest.importorskip("tqdm")
    file = Terminal()
    with Progress(4, "reading", unit="files", file=file) as progress:
        progress.update(3)
        progress.update()
    assert "reading: 100%" in file.getvalue()
    assert "4.00/4.00" in file.getvalue()


def test_bar_ends_when_the_task_fails() -> None:
    pytest.importorskip("tqdm")
    file = Terminal()
    with pytest.raises(RuntimeError), Progress(4, "reading", file=file) as progress:
        progress.update(1)
        raise RuntimeError
    assert file.getvalue().endswith("\n")
