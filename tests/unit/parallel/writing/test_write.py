"""``write_dataset``: every item once, in input order, whoever works; and nothing visible when it fails."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import re
import sys
import threading
import time
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support import jobs
from support.datasets import same
from support.scripts import MEASURE, run

from lazystore import StreamingDataset
from lazystore.errors import ConfigError, FormatError, WorkerError
from lazystore.parallel.writing.write import write_dataset

SPAWN = multiprocessing.get_context("spawn")


def read(folder: Path, **options: Any) -> list[Any]:
    with StreamingDataset(folder, **options) as dataset:
        return list(dataset)


def index(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "index.json").read_text()))


def layout(folder: Path) -> list[int]:
    return [chunk["chunk_size"] for chunk in index(folder)["chunks"]]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def rows(count: int) -> list[dict[str, Any]]:
    return [jobs.row(number) for number in range(count)]


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_items_come_out_in_input_order(workers: int, tmp_path: Path) -> None:
    assert write_dataset(jobs.slow_row, range(300), tmp_path / "out", num_workers=workers, chunk_bytes=3000) == 300
    assert read(tmp_path / "out") == rows(300)
    assert set(names(tmp_path / "out")) == {"index.json", *(c["filename"] for c in index(tmp_path / "out")["chunks"])}


def test_a_function_that_cannot_travel_leaves_no_run_to_continue(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fn or an option cannot be sent"):
        write_dataset(lambda number: jobs.row(number), range(5), tmp_path / "out", num_workers=1, use_checkpoint=True)
    assert names(tmp_path / "out") == []
    assert write_dataset(jobs.row, range(5), tmp_path / "out", num_workers=1, use_checkpoint=True) == 5
    assert read(tmp_path / "out") == rows(5)


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_any_executor_will_do(kind: str, tmp_path: Path) -> None:
    executor: Executor
    with ThreadPoolExecutor(3) if kind == "threads" else ProcessPoolExecutor(2, mp_context=SPAWN) as executor:
        written = write_dataset(jobs.slow_row, range(300), tmp_path / "out", executor=executor, chunk_bytes=3000)
        assert written == 300
        assert executor.submit(abs, -1).result() == 1  # it is still open
    assert read(tmp_path / "out") == rows(300)


def test_threads_take_what_cannot_be_pickled(tmp_path: Path) -> None:
    locks = [threading.Lock() for _ in range(100)]
    with ThreadPoolExecutor(2) as executor:
        write_dataset(lambda lock: locks.index(lock), locks, tmp_path / "out", executor=executor)
    assert read(tmp_path / "out") == list(range(100))


def test_generators_give_any_number_of_items(tmp_path: Path) -> None:
    written = write_dataset(jobs.several, range(200), tmp_path / "out", num_workers=2, chunk_size=40)
    wanted = [(number, k) for number in range(200) for k in range(number % 3)]
    assert written == len(wanted)
    assert read(tmp_path / "out") == wanted


def test_none_is_no_item(tmp_path: Path) -> None:
    assert write_dataset(jobs.odd_only, range(100), tmp_path / "out", num_workers=0) == 50
    assert read(tmp_path / "out") == [jobs.row(number) for number in range(1, 100, 2)]


@pytest.mark.parametrize(
    "inputs", [list(range(500)), tuple(range(500)), range(500), iter(range(500)), dict.fromkeys(range(500))]
)
def test_inputs_are_any_iterable(inputs: Any, tmp_path: Path) -> None:
    write_dataset(jobs.row, inputs, tmp_path / "out", num_workers=0, chunk_bytes=9000)
    assert read(tmp_path / "out") == rows(500)


def test_inputs_are_read_only_a_little_ahead(tmp_path: Path) -> None:
    read_so_far = 0
    ahead = []

    def inputs() -> Any:
        nonlocal read_so_far
        for read_so_far in range(1, 4001):
            yield read_so_far - 1

    def fn(number: int) -> dict[str, Any]:
        ahead.append(read_so_far - number)
        return jobs.row(number)

    with ThreadPoolExecutor(2) as executor:
        write_dataset(fn, inputs(), tmp_path / "out", executor=executor, inputs_per_task=100)
    assert read(tmp_path / "out") == rows(4000)
    assert max(ahead) <= 100 * 3 * 2


def test_the_layout_depends_on_the_inputs_only(tmp_path: Path) -> None:
    """Not on which worker was faster, nor on who they are."""
    for name, fn, options in [
        ("a", jobs.row, {"num_workers": 2}),
        ("b", jobs.slow_row, {"num_workers": 2}),
        ("c", jobs.row, {"executor": ThreadPoolExecutor(2)}),
    ]:
        write_dataset(fn, range(700), tmp_path / name, chunk_bytes=6000, **options)
    assert layout(tmp_path / "a") == layout(tmp_path / "b") == layout(tmp_path / "c")


def test_many_small_inputs_fill_chunks(tmp_path: Path) -> None:
    write_dataset(jobs.row, range(60_000), tmp_path / "out", num_workers=0, chunk_size=3000)
    sizes = layout(tmp_path / "out")
    assert sum(sizes) == 60_000
    assert sum(size == 3000 for size in sizes) > 0.7 * len(sizes)


def test_inputs_per_task_is_what_was_said(tmp_path: Path) -> None:
    write_dataset(jobs.row, range(100), tmp_path / "out", num_workers=0, inputs_per_task=30)
    assert layout(tmp_path / "out") == [30, 30, 30, 10]


def test_workers_get_their_next_task_while_inputs_come_slowly(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()

    def inputs() -> Any:
        yield from range(3000)
        # Task 3 is being cut. Task 2 must begin once task 1 is done, not when this is over.
        for number in range(3000, 4000):
            if not (marks / "2000").exists():
                time.sleep(0.01)
            yield number
        assert (marks / "2000").exists()

    write_dataset(jobs.milestones(marks, 1000), inputs(), tmp_path / "out", num_workers=1, inputs_per_task=1000)
    assert read(tmp_path / "out") == list(range(4000))


def test_all_workers_take_part(tmp_path: Path) -> None:
    write_dataset(jobs.process_of, range(400), tmp_path / "out", num_workers=2, inputs_per_task=25)
    processes = {item["process"] for item in read(tmp_path / "out")}
    assert len(processes) == 2
    assert os.getpid() not in processes


# -- failures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_an_exception_keeps_its_type_and_names_its_input(workers: int, tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="no row 130") as caught:
        write_dataset(jobs.failing, range(300), tmp_path / "out", num_workers=workers, chunk_bytes=3000)
    assert caught.value.__notes__ == ["write_dataset: input 130 (130)"]
    assert names(tmp_path / "out") == []
    assert not multiprocessing.active_children()


def test_an_exception_that_cannot_travel_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="input 0: AwkwardError: this and that"):
        write_dataset(jobs.awkward, range(3), tmp_path / "out", num_workers=1)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_exit_in_fn_is_a_failure(workers: int, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        write_dataset(jobs.leaves, range(3), tmp_path / "out", num_workers=workers)
    assert caught.value.__notes__ == ["write_dataset: input 0 (0)"]


def test_an_exception_of_the_inputs_ends_the_run(tmp_path: Path) -> None:
    def inputs() -> Any:
        yield from range(100)
        raise OSError("the listing broke off")

    with pytest.raises(OSError, match="the listing broke off"):
        write_dataset(jobs.row, inputs(), tmp_path / "out", num_workers=1)
    assert names(tmp_path / "out") == []


def test_a_function_that_cannot_be_sent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"fn or an option cannot be sent .*ThreadPoolExecutor"):
        write_dataset(lambda number: number, range(3), tmp_path / "out", num_workers=1)
    assert names(tmp_path / "out") == []


def test_a_function_an_executor_cannot_send_is_refused(tmp_path: Path) -> None:
    with ProcessPoolExecutor(1, mp_context=SPAWN) as executor, pytest.raises(ConfigError, match="could not be sent"):
        write_dataset(lambda number: number, range(3), tmp_path / "out", executor=executor)
    assert names(tmp_path / "out") == []


def test_an_input_that_cannot_be_sent_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="input 2, a "):
        write_dataset(jobs.row, [0, 1, threading.Lock()], tmp_path / "out", num_workers=1)


def test_a_function_workers_cannot_import_is_refused(tmp_path: Path) -> None:
    script = """
import sys
from lazystore.errors import ConfigError
from lazystore.parallel.writing.write import write_dataset

def fn(number):
    return number

if __name__ == "__main__":
    fn.__module__ = "nowhere"
    sys.modules["nowhere"] = sys.modules["__main__"]
    try:
        write_dataset(fn, range(3), sys.argv[1], num_workers=1)
    except ConfigError as error:
        print(error)
"""
    (tmp_path / "script.py").write_text(script)
    assert "No module named 'nowhere'; define it in a module" in run(tmp_path / "script.py", tmp_path / "out")


def test_a_script_without_a_guard_is_told_so(tmp_path: Path) -> None:
    script = """
import sys, os
from lazystore.errors import WorkerError
from lazystore.parallel.writing.write import write_dataset

def fn(number):
    return number

if "child" not in os.environ:
    os.environ["child"] = "1"
    try:
        write_dataset(fn, range(3), sys.argv[1], num_workers=1)
    except WorkerError as error:
        print(error)
else:
    sys.exit(1)
"""
    (tmp_path / "script.py").write_text(script)
    assert "belongs under `if __name__ == '__main__':`" in run(tmp_path / "script.py", tmp_path / "out")


# -- workers that die --------------------------------------------------------------------------


def test_a_killed_worker_is_replaced_and_nothing_is_doubled(tmp_path: Path) -> None:
    (tmp_path / "deaths").mkdir()
    fn = jobs.kill_at(tmp_path / "deaths", {5: 1, 77: 2, 240: 1})
    assert write_dataset(fn, range(300), tmp_path / "out", num_workers=2, chunk_bytes=2500) == 300
    assert jobs.deaths(tmp_path / "deaths") == 4
    assert read(tmp_path / "out") == rows(300)
    assert set(names(tmp_path / "out")) == {"index.json", *(c["filename"] for c in index(tmp_path / "out")["chunks"])}


def test_a_task_that_kills_three_workers_is_named(tmp_path: Path) -> None:
    (tmp_path / "deaths").mkdir()
    fn = jobs.kill_at(tmp_path / "deaths", {17: 99})
    with pytest.raises(WorkerError, match=r"inputs 10 to 19 killed 3 worker processes, .* at input 17 \(SIGKILL"):
        write_dataset(fn, range(100), tmp_path / "out", num_workers=2, inputs_per_task=10)
    assert names(tmp_path / "out") == []
    assert not multiprocessing.active_children()


def test_a_worker_that_is_stopped_while_it_writes_leaves_nothing(tmp_path: Path) -> None:
    def stopped(number: int) -> dict[str, Any]:
        if number == 5:
            (tmp_path / "out" / ".chunk-9-0.bin.12345.tmp").write_bytes(b"half")
            raise LookupError("no row 5")
        return jobs.row(number)

    with pytest.raises(LookupError):
        write_dataset(stopped, range(10), tmp_path / "out", num_workers=0)
    assert names(tmp_path / "out") == []


def test_an_executor_that_breaks_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "deaths").mkdir()
    fn = jobs.kill_at(tmp_path / "deaths", {17: 99})
    with ProcessPoolExecutor(2, mp_context=SPAWN) as executor:
        with pytest.raises(WorkerError, match=r"the executor gave up .* use_checkpoint=True"):
            write_dataset(fn, range(100), tmp_path / "out", executor=executor, inputs_per_task=10)
    assert names(tmp_path / "out") == []


# -- the schema ----------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_the_first_sample_of_all_decides_the_order_of_keys(workers: int, tmp_path: Path) -> None:
    write_dataset(jobs.mixed_order, range(150), tmp_path / "out", num_workers=workers, inputs_per_task=20)
    found = read(tmp_path / "out")
    assert found == rows(150)
    assert {tuple(item) for item in found} == {("number", "text")}


@pytest.mark.parametrize("workers", [0, 2])
def test_another_type_is_refused_wherever_the_task_begins(workers: int, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"\['number'\]") as caught:
        write_dataset(jobs.drifting, range(300), tmp_path / "out", num_workers=workers, inputs_per_task=25)
    found = re.search(r"input (\d+) ", caught.value.__notes__[0])
    assert found is not None and int(found[1]) >= 150  # whichever worker was first
    assert names(tmp_path / "out") == []


def test_no_item_at_all_is_an_error(tmp_path: Path) -> None:
    for inputs, fn in [(range(0), jobs.row), (range(200), jobs.nothing)]:
        with pytest.raises(ConfigError, match="no sample was written"):
            write_dataset(fn, inputs, tmp_path / "out", num_workers=0)
    assert names(tmp_path / "out") == []


# -- options of the writer ------------------------------------------------------------------------


def test_appending_adds_and_touches_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    write_dataset(jobs.row, range(100), folder, num_workers=0, chunk_size=30)
    before = {name: (folder / name).read_bytes() for name in names(folder) if name != "index.json"}
    assert write_dataset(jobs.mixed_order, range(100, 150), folder, num_workers=2, chunk_size=30, mode="append") == 50
    assert read(folder) == rows(150)
    assert all((folder / name).read_bytes() == data for name, data in before.items())


def test_a_failed_append_leaves_the_dataset(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    write_dataset(jobs.row, range(100), folder, num_workers=0, chunk_size=30)
    before = {name: (folder / name).read_bytes() for name in names(folder)}
    for mode in ("append", "overwrite"):
        with pytest.raises(LookupError):
            write_dataset(jobs.failing, range(100, 200), folder, num_workers=0, chunk_size=7, mode=mode)
        assert {name: (folder / name).read_bytes() for name in names(folder)} == before


def test_overwriting_replaces(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    write_dataset(jobs.several, range(100), folder, num_workers=0, chunk_size=30)
    write_dataset(jobs.row, range(50), folder, num_workers=0, chunk_size=30, mode="overwrite")
    assert read(folder) == rows(50)
    assert set(names(folder)) == {"index.json", *(c["filename"] for c in index(folder)["chunks"])}


def test_a_dataset_in_the_way_is_refused(tmp_path: Path) -> None:
    write_dataset(jobs.row, range(50), tmp_path / "out", num_workers=0)
    with pytest.raises(ConfigError, match="holds a dataset already"):
        write_dataset(jobs.row, range(50), tmp_path / "out", num_workers=0)
    assert read(tmp_path / "out") == rows(50)


def test_compression_and_checksums(tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    write_dataset(jobs.row, range(300), tmp_path / "out", num_workers=2, chunk_size=50, compression="zstd")
    assert read(tmp_path / "out") == rows(300)
    found = index(tmp_path / "out")
    assert sorted(found["checksums"]["files"]) == sorted(chunk["filename"] for chunk in found["chunks"])


def test_tokens(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    documents = [numpy.arange(n % 9, dtype="<i4") for n in range(1, 200)]
    write_dataset(numpy.array, documents, tmp_path / "out", num_workers=2, chunk_size=64, tokens=True)
    found = index(tmp_path / "out")
    assert found["config"]["item_loader"] == "TokensLoader"
    assert sum(chunk["dim"] for chunk in found["chunks"]) == sum(map(len, documents))


def test_keys_are_those_of_all_items(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    write_dataset(jobs.row, range(300), tmp_path / "out", num_workers=2, chunk_size=50, key_fn=jobs.key_of)
    table = parquet.read_table(tmp_path / "out/keys/shard-00000.parquet").to_pylist()
    assert {line["key"]: line["index"] for line in table} == {f"key {n}": n for n in range(300)}


def test_one_key_for_two_items_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(FormatError, match="the same"):
        write_dataset(jobs.row, range(60), tmp_path / "out", num_workers=2, inputs_per_task=10, key_fn=jobs.same_key)
    assert [name for name in names(tmp_path / "out") if name != "keys"] == []


def test_urls_are_written_to(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    with ThreadPoolExecutor(2) as executor:
        write_dataset(jobs.row, range(300), f"memory://{tmp_path}", executor=executor, chunk_size=50)
    fs = fsspec.filesystem("memory")
    found = json.loads(fs.cat_file(f"{tmp_path}/index.json"))
    assert sorted(fs.ls(str(tmp_path), detail=False)) == sorted(
        f"{tmp_path}/{name}" for name in ["index.json", *(chunk["filename"] for chunk in found["chunks"])]
    )
    fs.get(str(tmp_path), str(tmp_path / "copy"), recursive=True)
    assert read(next((tmp_path / "copy").rglob("index.json")).parent) == rows(300)


def test_arrays_come_through(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    arrays = [numpy.arange(n, dtype="<f4").reshape(1, n) for n in range(60)]
    write_dataset(numpy.copy, arrays, tmp_path / "out", num_workers=2)
    assert all(same(one, other) for one, other in zip(read(tmp_path / "out"), arrays, strict=True))


@pytest.mark.parametrize(
    "options",
    [
        {"num_workers": -1},
        {"num_workers": True},
        {"inputs_per_task": 0},
        {"chunk_size": 0},
        {"mode": "extend"},
        {"storage_options": {"anon": True}},
        {"compression": "lz4"},
    ],
)
def test_arguments_that_cannot_work_are_refused(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        write_dataset(jobs.row, range(3), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


# -- progress and memory ----------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_shown_on_a_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    write_dataset(jobs.slow_row, range(300), tmp_path / "a", num_workers=2)
    assert "write_dataset" in terminal.getvalue()
    assert "300" in terminal.getvalue()
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    write_dataset(jobs.row, range(300), tmp_path / "b", num_workers=2, progress=False)
    assert terminal.getvalue() == ""


def test_nothing_is_said_elsewhere(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_dataset(jobs.row, range(300), tmp_path / "a", num_workers=2)
    assert capfd.readouterr() == ("", "")


def test_memory_does_not_grow_with_the_number_of_inputs(tmp_path: Path) -> None:
    script = (
        MEASURE
        + """
import sys
from support import jobs
from lazystore.parallel.writing.write import write_dataset

def inputs(count):
    for number in range(count):
        yield number, bytes(1000)

def fn(value):
    return value[0]

if __name__ == "__main__":
    write_dataset(fn, inputs(2000), sys.argv[1] + "/warm", num_workers=1, chunk_size=4000)
    begin = restart_peak()
    write_dataset(fn, inputs(200_000), sys.argv[1] + "/out", num_workers=1, chunk_size=4000)
    print(memory("VmHWM") - begin)
"""
    )
    (tmp_path / "script.py").write_text(script)
    # 200 MB of inputs pass through; three tasks of at most 16 MiB are under way
    assert int(run(tmp_path / "script.py", tmp_path)) < 80 << 20
