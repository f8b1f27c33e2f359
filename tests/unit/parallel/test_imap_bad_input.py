"""What cannot work is refused at once, and what goes wrong in a function has one clear outcome."""

from __future__ import annotations

import asyncio
import functools
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import elsewhere, imap_ways, scripts
from support import map_funcs as funcs

from lazystore import imap, imap_unordered
from lazystore.errors import ConfigError, LazyStoreError, TransportError, WorkerDiedError

PROCESSES: dict[str, Any] = {"backend": "process", "n_jobs": 2}
THREADS: dict[str, Any] = {"backend": "thread", "n_jobs": 2}
SERIAL: dict[str, Any] = {"backend": "serial"}
SQUARES = [k * k for k in range(40)]


# Arguments: refused by the call itself, not by the first result


@pytest.mark.parametrize("func", [None, 3, "square", [funcs.square]])
@pytest.mark.parametrize("mapper", [imap, imap_unordered])
def test_what_cannot_be_called_is_refused(mapper: Callable[..., Any], func: Any) -> None:
    with pytest.raises(ConfigError, match="func"):
        mapper(func, range(3))


@pytest.mark.parametrize("data", [None, 3, 2.5, object(), funcs.square])
@pytest.mark.parametrize("mapper", [imap, imap_unordered])
def test_what_cannot_be_iterated_is_refused(mapper: Callable[..., Any], data: Any) -> None:
    with pytest.raises(ConfigError, match="data"):
        mapper(funcs.square, data)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_jobs", 0),
        ("n_jobs", -1),
        ("n_jobs", 1.5),
        ("n_jobs", "2"),
        ("n_jobs", True),
        ("chunksize", 0),
        ("chunksize", -3),
        ("chunksize", 2.5),
        ("chunksize", "auto"),
        ("backend", "bogus"),
        ("backend", ""),
        ("backend", None),
        ("backend", 3),
        ("on_error", "bogus"),
        ("on_error", None),
        ("on_error", 3),
        ("retries", -1),
        ("retries", 1.5),
        ("timeout", 0),
        ("timeout", -1),
        ("timeout", float("nan")),
        ("timeout", "soon"),
        ("max_buffer_bytes", 0),
        ("max_buffer_bytes", -1),
        ("max_buffer_bytes", "lots"),
        ("initializer", 3),
        ("total", -1),
    ],
)
def test_an_option_that_cannot_work_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        imap(funcs.square, range(3), **{name: value})


def test_numpy_numbers_are_numbers() -> None:
    np = pytest.importorskip("numpy")
    numbers = {"n_jobs": np.int64(2), "chunksize": np.int32(3), "retries": np.uint8(1), "total": np.int64(40)}
    assert list(imap(funcs.square, range(40), backend="thread", timeout=np.float64(9), **numbers)) == SQUARES


def test_memory_may_be_written_in_words() -> None:
    assert list(imap(funcs.square, range(40), max_buffer_bytes="64MB")) == SQUARES


# Functions, items and results that do not travel


def test_a_lambda_for_processes_runs_or_is_refused_with_the_remedy() -> None:
    try:
        found = list(imap(lambda k: k * k, range(40), **PROCESSES))
    except TransportError as error:
        assert "backend" in str(error) or "cloudpickle" in str(error)
    else:
        assert found == SQUARES


def test_a_lambda_just_works_by_default() -> None:
    assert list(imap(lambda k: k * k, range(40))) == SQUARES


def test_a_closure_over_something_that_never_pickles_is_refused_with_its_name() -> None:
    lock = threading.Lock()

    def locked(number: int) -> int:
        with lock:
            return number

    with pytest.raises(TransportError, match="locked"):
        list(imap(locked, range(40), **PROCESSES))


def test_items_that_do_not_travel_fail_alone_or_are_refused_with_their_index() -> None:
    items = [threading.Lock() if k == 7 else k for k in range(20)]
    found, errors = imap_ways.drained(imap(funcs.same, items, **PROCESSES))
    assert found == [k for k in range(20) if k != 7]
    assert len(errors) == 1 and isinstance(errors[0], TransportError)
    assert "7" in str(errors[0]) + imap_ways.notes(errors[0])


@pytest.mark.parametrize("func", [funcs.sometimes_a_lock, funcs.sometimes_explosive, funcs.gives_generator, funcs.deep])
@pytest.mark.parametrize("chunksize", [None, 1, 5])
def test_a_result_that_does_not_travel_hurts_itself_only(func: Callable[[int], Any], chunksize: int | None) -> None:
    found, errors = imap_ways.drained(imap(func, range(20), chunksize=chunksize, **PROCESSES))
    assert found == [func(k) for k in range(20) if k != 7]
    assert len(errors) == 1 and isinstance(errors[0], TransportError)
    assert "7" in str(errors[0]) + imap_ways.notes(errors[0])


@pytest.mark.parametrize("chunksize", [None, 1, 5])
def test_an_item_that_cannot_be_taken_apart_hurts_itself_only(chunksize: int | None) -> None:
    items = [funcs.Explosive() if k == 7 else k for k in range(20)]
    found, errors = imap_ways.drained(imap(funcs.same, items, chunksize=chunksize, **PROCESSES))
    assert found == [k for k in range(20) if k != 7]
    assert len(errors) == 1 and "cannot be unpickled" in str(errors[0]) + str(errors[0].__cause__)


@pytest.mark.parametrize(("func", "name"), [(funcs.awkward, "AwkwardError"), (funcs.holds_lock, "HoldsLockError")])
@pytest.mark.parametrize("chunksize", [None, 1, 5])
def test_an_error_that_does_not_travel_is_told_in_words(
    func: Callable[[int], Any], name: str, chunksize: int | None
) -> None:
    found, errors = imap_ways.drained(imap(func, range(20), chunksize=chunksize, **PROCESSES))
    assert found == [k for k in range(20) if k != 7]
    assert len(errors) == 1 and isinstance(errors[0], LazyStoreError)
    assert name in str(errors[0])


@pytest.mark.parametrize("func", [funcs.recurses, funcs.hungry])
@pytest.mark.parametrize("options", [PROCESSES, THREADS, SERIAL], ids=["process", "thread", "serial"])
def test_running_out_of_stack_or_memory_fails_one_item(func: Callable[[int], int], options: dict[str, Any]) -> None:
    found, errors = imap_ways.drained(imap(func, range(20), **options))
    assert found == [k for k in range(20) if k != 7]
    assert [type(error) for error in errors] in ([RecursionError], [MemoryError], [OverflowError])


# Functions that end, or try to


@pytest.mark.parametrize("how", ["os._exit", "abort", "kill"])
@pytest.mark.parametrize("chunksize", [None, 1, 5])
def test_an_item_that_ends_its_process_is_named_and_costs_no_neighbour(how: str, chunksize: int | None) -> None:
    func = functools.partial(funcs.exits, how, 7)
    found, errors = imap_ways.drained(imap(func, range(20), chunksize=chunksize, **PROCESSES))
    assert found == [k for k in range(20) if k != 7]
    assert len(errors) == 1
    error = errors[0]
    assert isinstance(error, WorkerDiedError) and error.index == 7
    assert error.exit_code == {"os._exit": 7, "abort": -6, "kill": -9}[how]
    assert "7" in str(error)


def test_a_killed_worker_hints_at_memory() -> None:
    with pytest.raises(WorkerDiedError, match=r"(?i)memory|OOM"):
        list(imap(functools.partial(funcs.exits, "kill", 0), range(1), **PROCESSES))


@pytest.mark.parametrize("options", [PROCESSES, THREADS, SERIAL], ids=["process", "thread", "serial"])
@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError])
def test_an_exception_that_wants_out_reaches_the_caller(options: dict[str, Any], kind: type[BaseException]) -> None:
    """``sys.exit`` in a function is no reason to lose it, nor to end a worker silently; nothing hangs."""
    results = imap(functools.partial(funcs.raises, kind, 7), range(20), chunksize=2, **options)
    found = []
    with pytest.raises(BaseException) as caught:
        for result in results:
            found.append(result)
    assert found == list(range(7))
    assert kind.__name__ in f"{type(caught.value).__name__} {caught.value!r} {caught.value.__cause__!r}"
    results.close()


@pytest.mark.parametrize("options", [PROCESSES, THREADS, SERIAL], ids=["process", "thread", "serial"])
def test_a_generator_that_raises_in_the_middle_loses_nothing_before_it(options: dict[str, Any]) -> None:
    def source() -> Iterator[int]:
        yield from range(15)
        raise RuntimeError("no more tape")

    found, errors = imap_ways.drained(imap(funcs.square, source(), **options))
    assert found == SQUARES[:15]
    assert [str(error) for error in errors] == ["no more tape"]


def test_a_generator_that_is_already_running_says_so() -> None:
    def source() -> Iterator[int]:
        yield 1
        yield from imap(funcs.square, running)

    running = source()
    with pytest.raises(ValueError, match="already executing"):
        list(running)


# Functions with bad manners


@pytest.mark.parametrize(
    "func",
    [
        funcs.handles_signals,
        funcs.forks,
        funcs.changes_directory,
        functools.partial(funcs.starts_thread),
        funcs.closes_stdout,
    ],
    ids=["signals", "forks", "chdir", "threads", "closes stdout"],
)
def test_bad_manners_in_a_worker_cost_nothing(func: Callable[[int], int]) -> None:
    here = os.getcwd()
    assert list(imap(func, range(12), chunksize=2, **PROCESSES)) == list(range(12))
    assert os.getcwd() == here
    assert list(imap(funcs.square, range(40), **PROCESSES)) == SQUARES  # the next run, on what is left of them


def test_a_worker_whose_function_closes_its_pipes_is_replaced_or_reported() -> None:
    found, errors = imap_ways.drained(imap(funcs.closes_files, range(4), chunksize=1, **PROCESSES))
    assert len(found) + len(errors) == 4
    assert all(isinstance(error, LazyStoreError) for error in errors)
    assert list(imap(funcs.square, range(40), **PROCESSES)) == SQUARES


def test_a_child_that_comes_back_into_the_worker_harms_nobody() -> None:
    found, errors = imap_ways.drained(imap(funcs.forks_and_returns, range(20), chunksize=1, **PROCESSES))
    assert (found, errors) == (list(range(20)), [])
    assert list(imap(funcs.square, range(40), **PROCESSES)) == SQUARES


def test_what_a_function_prints_comes_out_once() -> None:
    out = scripts.run(
        """
from support import imap_ways, scripts
from support import map_funcs as funcs
from lazystore import imap
if __name__ == "__main__":
    assert list(imap(funcs.prints, range(30), backend="process", n_jobs=2)) == list(range(30))
    assert list(imap(funcs.prints, range(30, 40), backend="thread", n_jobs=2)) == list(range(30, 40))
"""
    )
    assert sorted(out.split("\n")[:-1], key=lambda line: int(line.split()[1])) == [f"line {k}" for k in range(40)]


# Places to call it from


@pytest.mark.parametrize("backend", ["auto", "process", "thread"])
def test_it_works_in_a_thread(backend: str) -> None:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.extend(imap(funcs.square, range(40), backend=backend)))
    thread.start()
    thread.join(60)
    assert found == SQUARES


@pytest.mark.parametrize("backend", ["auto", "process", "thread"])
def test_a_run_may_be_begun_in_one_thread_and_ended_in_another(backend: str) -> None:
    results = imap(funcs.square, range(40), backend=backend)
    found = [next(results) for _ in range(10)]
    thread = threading.Thread(target=lambda: found.extend(results))
    thread.start()
    thread.join(60)
    assert found == SQUARES


@pytest.mark.parametrize("backend", ["auto", "process", "thread"])
def test_it_works_in_an_event_loop(backend: str) -> None:
    async def main() -> list[int]:
        return list(imap(funcs.square, range(40), backend=backend))

    assert asyncio.run(main()) == SQUARES


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
@pytest.mark.parametrize("daemon", [False, True])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_it_works_in_a_child_of_multiprocessing(method: str, daemon: bool, tmp_path: Path) -> None:
    """Daemons may not start processes: there is a reason and a remedy where they are asked for, else threads."""
    context: Any = multiprocessing.get_context(method)
    child = context.Process(target=elsewhere.map_in_child, args=(tmp_path / "found", daemon), daemon=daemon)
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert (tmp_path / "found").read_text() == repr(SQUARES)


@pytest.mark.filterwarnings("ignore:.*daemon.*:RuntimeWarning")
def test_long_work_in_a_daemon_goes_to_threads(tmp_path: Path) -> None:
    context: Any = multiprocessing.get_context("spawn")
    child = context.Process(target=elsewhere.spin_in_child, args=(tmp_path / "found",), daemon=True)
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert (tmp_path / "found").read_text() == repr([funcs.spin(50_000)] * 80)


@pytest.mark.parametrize("guard", [True, False])
@pytest.mark.parametrize("where", ["main", "module"])
def test_a_script_without_a_guard_works_or_says_what_to_do(guard: bool, where: str, tmp_path: Path) -> None:
    """A function of the script itself needs the script in the workers: there the guard is needed."""
    script = tmp_path / "job.py"
    call = f"list(imap({'own' if where == 'main' else 'funcs.square'}, range(40), backend='process', n_jobs=2))"
    body = f"""
try:
    found = {call}
except TransportError as error:
    print("refused:", error)
else:
    print(found == [k * k for k in range(40)])
"""
    if guard:
        body = 'if __name__ == "__main__":' + body.replace("\n", "\n    ") + "\n"
    script.write_text(
        f"""
from support import imap_ways, scripts
from support import map_funcs as funcs
from lazystore import imap
from lazystore.errors import TransportError

def own(number):
    return number * number

{body}
"""
    )
    out = scripts.run(script)
    if guard or where == "module":
        assert out == "True\n"
    else:
        assert out.startswith("refused:") and "__name__" in out


@pytest.mark.parametrize("how", ["stdin", "-c"])
def test_functions_of_a_main_that_is_no_file_run_or_are_refused_with_the_remedy(how: str) -> None:
    code = """
from lazystore import imap
from lazystore.errors import TransportError
def own(number):
    return number * number
if __name__ == "__main__":
    assert list(imap(own, range(40))) == [k * k for k in range(40)]
    try:
        print(list(imap(own, range(40), backend="process", n_jobs=2)) == [k * k for k in range(40)])
    except TransportError as error:
        print("refused:", error)
"""
    command = [sys.executable, "-"] if how == "stdin" else [sys.executable, "-c", code]
    done = subprocess.run(
        command,
        input=code if how == "stdin" else "",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(scripts.PATHS)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "True\n" or done.stdout.startswith("refused:")
