"""A run that ends early is continued by the same call: nothing is lost that was done, and every item is there once."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import jobs
from support.scripts import PATHS

from lazystore import StreamingDataset
from lazystore.errors import ConfigError, FormatError, LazyStoreError, WorkerError
from lazystore.formats.chunk_files import LocalFolder
from lazystore.parallel.writing.checkpoint import RUN_NAME
from lazystore.parallel.writing.write import write_dataset


def read(folder: Path) -> list[Any]:
    with StreamingDataset(folder) as dataset:
        return list(dataset)


def layout(folder: Path) -> list[int]:
    return [chunk["chunk_size"] for chunk in json.loads((folder / "index.json").read_text())["chunks"]]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def rows(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [jobs.row(number) for number in range(first, count)]


def assert_tidy(folder: Path) -> None:
    listed = [chunk["filename"] for chunk in json.loads((folder / "index.json").read_text())["chunks"]]
    assert names(folder) == sorted(["index.json", *listed])


def stopped(folder: Path, **options: Any) -> dict[str, Any]:
    """A run of 200 inputs that fails at input 130, and the arguments of the call."""
    arguments = {"num_workers": 0, "inputs_per_task": 20, "use_checkpoint": True, **options}
    with pytest.raises(LookupError):
        write_dataset(jobs.failing, range(200), folder, **arguments)
    assert not (folder / "index.json").exists() or options.get("mode")
    return arguments


@pytest.fixture
def mended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mistake in ``jobs.failing`` is mended."""

    def failing(number: int) -> dict[str, Any]:
        return jobs.row(number)

    failing.__module__, failing.__qualname__ = jobs.failing.__module__, jobs.failing.__qualname__
    monkeypatch.setattr(jobs, "failing", failing)


def test_what_was_done_is_kept_and_not_done_again(tmp_path: Path) -> None:
    out, calls = tmp_path / "out", tmp_path / "calls"
    calls.mkdir()
    arguments: dict[str, Any] = {"num_workers": 0, "inputs_per_task": 20, "use_checkpoint": True}

    def inputs(end: int) -> Any:
        yield from range(end)
        if end < 100:
            raise OSError("the listing broke off")

    with pytest.raises(OSError, match="broke off"):
        write_dataset(jobs.counting(calls), inputs(70), out, **arguments)
    assert not (out / "index.json").exists()
    assert write_dataset(jobs.counting(calls), inputs(100), out, **arguments) == 100
    assert read(out) == rows(100)
    assert_tidy(out)
    called = {int(path.name): len(path.read_text()) for path in calls.iterdir()}
    assert called == dict.fromkeys(range(100), 1)


def test_a_mistake_can_be_mended_between_two_runs(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    arguments = stopped(tmp_path / "out")
    request.getfixturevalue("mended")
    assert write_dataset(jobs.failing, range(200), tmp_path / "out", **arguments) == 200
    assert read(tmp_path / "out") == rows(200)
    assert_tidy(tmp_path / "out")


def test_a_continued_run_gives_the_layout_of_one_that_was_not(tmp_path: Path) -> None:
    (tmp_path / "deaths").mkdir()
    fn = jobs.kill_at(tmp_path / "deaths", {170: 3})
    arguments: dict[str, Any] = {"num_workers": 2, "chunk_size": 13, "use_checkpoint": True}
    with pytest.raises(WorkerError):
        write_dataset(fn, range(300), tmp_path / "out", **arguments)
    assert any(name.startswith(".job-") for name in names(tmp_path / "out"))
    write_dataset(fn, range(300), tmp_path / "out", **arguments)
    write_dataset(jobs.row, range(300), tmp_path / "straight", num_workers=2, chunk_size=13)
    assert read(tmp_path / "out") == rows(300)
    assert layout(tmp_path / "out") == layout(tmp_path / "straight")


def test_other_workers_may_continue(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    arguments = stopped(tmp_path / "out")
    request.getfixturevalue("mended")
    with ThreadPoolExecutor(2) as executor:
        write_dataset(jobs.failing, iter(range(200)), tmp_path / "other", executor=executor, use_checkpoint=True)
        write_dataset(
            jobs.failing, range(200), tmp_path / "out", **{**arguments, "num_workers": None, "executor": executor}
        )
    assert read(tmp_path / "out") == read(tmp_path / "other") == rows(200)


def test_what_a_kill_left_half_written_goes(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    arguments = stopped(tmp_path / "out")
    for name in ("..job-000000000040.json.123.tmp", "..job.json.123.tmp", ".chunk-3-0.bin.123.tmp", "chunk-77-0.bin"):
        (tmp_path / "out" / name).write_bytes(b"half")
    request.getfixturevalue("mended")
    write_dataset(jobs.failing, range(200), tmp_path / "out", **arguments)
    assert_tidy(tmp_path / "out")


def test_keys_are_kept(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    arguments = stopped(tmp_path / "out", key_fn=jobs.key_of)
    request.getfixturevalue("mended")
    write_dataset(jobs.failing, range(200), tmp_path / "out", **arguments)
    table = parquet.read_table(tmp_path / "out/keys/shard-00000.parquet").to_pylist()
    assert {line["key"]: line["index"] for line in table} == {f"key {n}": n for n in range(200)}


def test_an_unfinished_run_is_no_dataset(tmp_path: Path) -> None:
    arguments = stopped(tmp_path / "out")
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "out")
    with pytest.raises(ConfigError, match=r"use_checkpoint=True continues it, mode='overwrite' begins again"):
        write_dataset(jobs.row, range(200), tmp_path / "out", **{**arguments, "use_checkpoint": False})
    write_dataset(jobs.row, range(50), tmp_path / "out", num_workers=0, mode="overwrite")
    assert read(tmp_path / "out") == rows(50)
    assert_tidy(tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"fn": jobs.row}, "fn"),
        ({"inputs": range(201)}, "number of inputs"),
        ({"chunk_size": 7}, "chunk_"),
        ({"checksums": False}, "checksums"),
        ({"mode": "append"}, "mode"),
    ],
)
def test_another_call_does_not_continue(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    call = {"fn": jobs.failing, "inputs": range(200), **stopped(tmp_path / "out"), **change}
    before = names(tmp_path / "out")
    with pytest.raises(ConfigError, match=f"unfinished run with another {named}"):
        write_dataset(output_dir=tmp_path / "out", **call)
    assert names(tmp_path / "out") == before


def test_other_inputs_do_not_continue(tmp_path: Path) -> None:
    arguments = stopped(tmp_path / "out")
    changed = [*range(25), -1, *range(26, 200)]
    with pytest.raises(ConfigError, match="inputs 20 to 39 are others than those of the run to continue"):
        write_dataset(jobs.failing, changed, tmp_path / "out", **arguments)


def test_chunks_that_were_taken_away_are_written_again(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    arguments = stopped(tmp_path / "out")
    request.getfixturevalue("mended")
    (tmp_path / "out" / "chunk-1-0.bin").unlink()
    write_dataset(jobs.failing, range(200), tmp_path / "out", **arguments)
    assert read(tmp_path / "out") == rows(200)
    assert_tidy(tmp_path / "out")


@pytest.mark.parametrize("name", [RUN_NAME, ".job-000000000020.json"])
@pytest.mark.parametrize("damage", [b"", b"[]", b"{}", b'{"version": 1', b"\xff"])
def test_damaged_records_are_refused(name: str, damage: bytes, tmp_path: Path) -> None:
    arguments = stopped(tmp_path / "out")
    (tmp_path / "out" / name).write_bytes(damage)
    with pytest.raises(FormatError, match=r"\.job.*(remove|begin again)"):
        write_dataset(jobs.failing, range(200), tmp_path / "out", **arguments)


@given(data=st.data())
def test_records_that_were_tampered_with_never_crash(data: st.DataObject, stopped_run: Path) -> None:
    folder = Path(tempfile.mkdtemp(dir=stopped_run.parent)) / "out"
    shutil.copytree(stopped_run, folder)
    path = folder / data.draw(st.sampled_from([RUN_NAME, ".job-000000000020.json"]))
    value = json.loads(path.read_text())
    where = data.draw(st.sampled_from(sorted(value)))
    value[where] = data.draw(st.none() | st.integers(-5, 10**20) | st.text(max_size=3) | st.just([]) | st.just({}))
    path.write_text(json.dumps(value))
    try:
        write_dataset(jobs.failing, range(200), folder, num_workers=0, inputs_per_task=20, use_checkpoint=True)
    except (LazyStoreError, LookupError):
        assert not (folder / "index.json").exists()
    shutil.rmtree(folder.parent)


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopped") / "out"
    stopped(folder)
    return folder


@pytest.mark.parametrize("mode", ["append", "overwrite"])
def test_a_dataset_that_is_changed_stays_until_the_end(
    mode: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    out = tmp_path / "out"
    write_dataset(jobs.row, range(30), out, num_workers=0, chunk_size=8)
    arguments = stopped(out, mode=mode, chunk_size=8)
    assert read(out) == rows(30)
    request.getfixturevalue("mended")
    assert write_dataset(jobs.failing, range(200), out, **arguments) == 200
    assert read(out) == (rows(30) if mode == "append" else []) + rows(200)
    assert_tidy(out)


@pytest.mark.parametrize("mode", [None, "append", "overwrite"])
def test_a_run_that_died_after_publishing_is_over(
    mode: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was not cleared away yet."""
    out = tmp_path / "out"
    if mode is not None:
        write_dataset(jobs.row, range(30), out, num_workers=0, chunk_size=8)
    arguments: dict[str, Any] = {"num_workers": 0, "inputs_per_task": 20, "use_checkpoint": True, "mode": mode}

    def broken(self: LocalFolder, name: str) -> None:
        raise OSError(5, "the disk is gone", name)

    with monkeypatch.context() as patch:
        patch.setattr(LocalFolder, "delete", broken)
        with pytest.raises(OSError, match="the disk is gone"):
            write_dataset(jobs.row, range(100), out, **arguments)
    wanted = (rows(30) if mode == "append" else []) + rows(100)
    assert read(out) == wanted
    assert write_dataset(jobs.row, range(100), out, **arguments) == 100
    assert read(out) == wanted
    assert_tidy(out)


class Killed(BaseException):
    """What no handler catches."""


def dying(patch: pytest.MonkeyPatch, steps: int) -> None:
    """After so many writes and deletions of files nothing changes in the folder any more, as in a killed process."""
    left = steps

    def counted(real: Any) -> Any:
        def step(self: LocalFolder, *arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return real(self, *arguments, **options)

        return step

    for name in ("write", "delete"):
        patch.setattr(LocalFolder, name, counted(getattr(LocalFolder, name)))


@pytest.mark.parametrize("use_checkpoint", [True, False])
@pytest.mark.parametrize("mode", [None, "append", "overwrite"])
def test_whichever_file_was_the_last_there_is_the_old_dataset_or_the_new_one(
    mode: str | None, use_checkpoint: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalFolder, "settle", lambda self, names: list(names))  # a kill is no power cut
    old = [jobs.row(number) for number in range(9)]
    new = (old if mode == "append" else []) + rows(60)
    call: dict[str, Any] = {"num_workers": 0, "inputs_per_task": 25, "chunk_size": 10, "mode": mode}
    states = set()
    for steps in range(1000):
        out = tmp_path / str(steps)
        if mode is not None:
            write_dataset(jobs.row, range(9), out, num_workers=0, chunk_size=4)
        with monkeypatch.context() as patch:
            dying(patch, steps)
            try:
                write_dataset(jobs.row, range(60), out, use_checkpoint=use_checkpoint, **call)
                break
            except Killed:
                pass
        found = read(out) if (out / "index.json").exists() else None
        states.add("old" if found == (None if mode is None else old) else "new" if found == new else "torn")
        if use_checkpoint:
            assert write_dataset(jobs.row, range(60), out, use_checkpoint=True, **call) == 60
            assert read(out) == new
            assert_tidy(out)
    assert states <= {"old", "new"}
    assert "old" in states
    assert read(out) == new


# -- kill -9 ---------------------------------------------------------------------------------

SCRIPT = """
import sys
from pathlib import Path
from support import jobs
from lazystore.parallel.writing.write import write_dataset

if __name__ == "__main__":
    out, calls = map(Path, sys.argv[1:3])
    write_dataset(
        jobs.counting(calls), range(600), out, num_workers=2, inputs_per_task=15, chunk_size=6,
        mode=sys.argv[3] or None, use_checkpoint=True,
    )
"""


def killed_runs(tmp_path: Path, mode: str, *, seed: int) -> int:
    """Runs of SCRIPT, each killed somewhere on its way until one ends before that; how many were killed."""
    calls, chance = tmp_path / "calls", random.Random(seed)
    calls.mkdir()
    (tmp_path / "script.py").write_text(SCRIPT)
    for killed in range(50):
        end = len(list(calls.iterdir())) + chance.randrange(20, 200)
        process = subprocess.Popen(
            [sys.executable, tmp_path / "script.py", tmp_path / "out", calls, mode],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(PATHS)},
        )
        while process.poll() is None and len(list(calls.iterdir())) < end:
            time.sleep(0.002)
        if process.poll() is not None:
            assert process.returncode == 0
            return killed
        time.sleep(chance.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        new = (rows(20) if mode == "append" else []) + rows(600)
        if (tmp_path / "out" / "index.json").exists():
            found = read(tmp_path / "out")
            assert found in (rows(20), new)
            if found == new and RUN_NAME not in names(tmp_path / "out"):
                return killed  # too late, it was through
    raise AssertionError("never came to an end")


@pytest.mark.parametrize("mode", ["", "append", "overwrite"])
def test_killed_runs_go_on_to_the_dataset_one_run_gives(mode: str, tmp_path: Path) -> None:
    if mode:
        write_dataset(jobs.row, range(20), tmp_path / "out", num_workers=0)
    assert killed_runs(tmp_path, mode, seed=5) > 0
    assert read(tmp_path / "out") == (rows(20) if mode == "append" else []) + rows(600)
    time.sleep(0.1)  # workers of killed runs end by themselves
    assert_tidy(tmp_path / "out")
    called = [len(path.read_text()) for path in (tmp_path / "calls").iterdir()]
    assert len(called) == 600
    assert sum(called) < 600 * 2
