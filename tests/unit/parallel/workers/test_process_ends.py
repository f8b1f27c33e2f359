"""Programs that use worker processes: however such a program is started and ends, no process stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.scripts import PATHS

MARK = "LAZYSTORE_TEST_MARK"
#: generous: what is meant is two seconds on a machine that is not busy
SOON_S = 10.0

HEAD = """
import os, sys, time, threading
from lazystore.errors import TransportError, WorkerError
from lazystore.parallel.chunk import Chunk, Job, Lost, Report
from lazystore.parallel.workers.process_backend import ProcessBackend

def run(func, items, workers=2):
    from support.driving import drive
    backend = ProcessBackend(Job(func))
    try:
        return drive(backend, items, workers=workers, lost=[])
    finally:
        backend.close()
"""

BUSY = (
    HEAD
    + """
if __name__ == "__main__":
    from support.driving import await_ready
    from support.imap_funcs import nap
    backend = ProcessBackend(Job(nap))
    backend.start(3)
    await_ready(backend, 3)
    backend.submit(Chunk(0, 0, [100.0]))
    backend.submit(Chunk(1, 1, [100.0]))
    print("busy", flush=True)
    {then}
"""
)


class Program:
    """A program and all processes it started, directly or not."""

    def __init__(self, arguments: list[str], **options: object) -> None:
        self.mark = uuid.uuid4().hex
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(PATHS), MARK: self.mark}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
        self.process = subprocess.Popen(
            [sys.executable, *arguments], env=environment, text=True, start_new_session=True, **{**pipes, **options}
        )  # type: ignore[call-overload]

    def processes(self) -> list[int]:
        """Those that run now."""
        mark = f"{MARK}={self.mark}".encode()
        found = []
        for path in Path("/proc").iterdir():
            if path.name.isdigit():
                try:
                    if mark in (path / "environ").read_bytes():
                        found.append(int(path.name))
                except OSError:
                    continue  # it ended, or is somebody else's
        return found

    def await_line(self, line: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == line, self.process.communicate()[1]

    def end(self, timeout: float = 60.0, stdin: str | None = None) -> tuple[int, str, str]:
        """Its exit code and what it said, once no process of it has its output open."""
        out, err = self.process.communicate(stdin, timeout=timeout)
        return self.process.returncode, out, err

    def assert_gone(self) -> None:
        deadline = time.monotonic() + SOON_S
        while left := self.processes():
            assert time.monotonic() < deadline, f"still there: {left}"
            time.sleep(0.02)


@pytest.fixture
def programs() -> Iterator[list[Program]]:
    started: list[Program] = []
    yield started
    for program in started:
        for pid in program.processes():
            os.kill(pid, signal.SIGKILL)
        program.process.communicate()


def script(tmp_path: Path, text: str) -> str:
    path = tmp_path / "program.py"
    path.write_text(text)
    return str(path)


def test_ctrl_c_leaves_no_process(tmp_path: Path, programs: list[Program]) -> None:
    program = Program([script(tmp_path, BUSY.format(then="backend.wait(None)"))])
    programs.append(program)
    program.await_line("busy")
    assert len(program.processes()) >= 5
    os.killpg(program.process.pid, signal.SIGINT)
    code, _, err = program.end()
    assert code == -signal.SIGINT
    assert err.count("Traceback") == 1  # workers say nothing
    program.assert_gone()


def test_a_caller_that_is_killed_takes_its_workers_along(tmp_path: Path, programs: list[Program]) -> None:
    program = Program([script(tmp_path, BUSY.format(then="backend.wait(None)"))])
    programs.append(program)
    program.await_line("busy")
    program.process.kill()
    program.assert_gone()
    assert program.end()[2] == ""


def test_a_program_may_end_while_workers_are_at_work(tmp_path: Path, programs: list[Program]) -> None:
    program = Program(["-X", "dev", script(tmp_path, BUSY.format(then="began = time.monotonic()"))])
    programs.append(program)
    program.await_line("busy")
    assert program.end(timeout=SOON_S) == (0, "", "")
    program.assert_gone()


def test_a_script_s_own_functions_run_in_workers(tmp_path: Path, programs: list[Program]) -> None:
    text = HEAD + (
        "class Number:\n"
        "    def __init__(self, n):\n"
        "        self.n = n\n"
        "def square(item):\n"
        "    return Number(item.n ** 2)\n"
        "if __name__ == '__main__':\n"
        "    print([each.n for each in run(square, [Number(n) for n in range(5)])])\n"
    )
    program = Program([script(tmp_path, text)])
    programs.append(program)
    assert program.end() == (0, "[0, 1, 4, 9, 16]\n", "")
    program.assert_gone()


def test_an_unguarded_script_ends_with_a_remedy(tmp_path: Path, programs: list[Program]) -> None:
    text = HEAD + (
        "from lazystore.parallel.workers import worker_main\n"
        "def square(n):\n"
        "    return n ** 2\n"
        "if worker_main.importing_main():\n"
        "    worker_main.leave_unguarded()\n"
        "print(run(square, range(5)))\n"
    )
    program = Program([script(tmp_path, text)])
    programs.append(program)
    code, out, err = program.end()
    assert (code, out) == (1, "")
    assert "if __name__ == '__main__':" in err.splitlines()[-1]
    assert err.count("Traceback") == 1
    program.assert_gone()


SESSION = HEAD + (
    "class Number:\n"
    "    def __init__(self, n):\n"
    "        self.n = n\n"
    "def square(item):\n"
    "    return Number(item.n ** 2)\n"
    "try:\n"
    "    print([each.n for each in run(square, [Number(n) for n in range(5)])])\n"
    "except TransportError as error:\n"
    "    print(error)\n"
)


@pytest.mark.parametrize("how", ["-c", "-"])
def test_a_session_s_functions_go_by_value(programs: list[Program], how: str) -> None:
    pytest.importorskip("cloudpickle")
    program = Program(["-c", SESSION]) if how == "-c" else Program(["-"], stdin=subprocess.PIPE)
    programs.append(program)
    assert program.end(stdin=SESSION if how == "-" else None) == (0, "[0, 1, 4, 9, 16]\n", "")
    program.assert_gone()


def test_without_cloudpickle_a_session_is_told_what_to_do(programs: list[Program]) -> None:
    program = Program(["-c", "import sys\nsys.modules['cloudpickle'] = None\n" + SESSION])
    programs.append(program)
    code, out, err = program.end()
    assert (code, err) == (0, "")
    assert "func (square)" in out and "pip install cloudpickle" in out and "backend='thread'" in out


FORK = (
    HEAD
    + """
if __name__ == "__main__":
    from support.imap_funcs import pid, double
    backend = ProcessBackend(Job(pid))
    from support.driving import drive
    workers = set(drive(backend, range(30)))
    backend.submit(Chunk(0, 0, [1]))
    child = os.fork()
    if child == 0:
        try:
            backend.wait(0)
        except WorkerError as error:
            assert "forked" in str(error)
        backend.close()
        mine = set(run(pid, range(30)))
        assert mine.isdisjoint(workers), "workers of the parent"
        sys.exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    (report,) = backend.wait(None)
    assert report.results[0] in workers
    assert set(drive(backend, range(30))) <= workers
    backend.close()
    print("done")
"""
)


def test_a_forked_child_has_workers_of_its_own(tmp_path: Path, programs: list[Program]) -> None:
    program = Program([script(tmp_path, FORK)])
    programs.append(program)
    assert program.end() == (0, "done\n", "")
    program.assert_gone()


NESTED = (
    HEAD
    + """
def in_pool(n):
    try:
        return run(abs, [-n])
    except WorkerError as error:
        return str(error)

if __name__ == "__main__":
    import multiprocessing
    results = []
    thread = threading.Thread(target=lambda: results.extend(run(abs, [-1, -2])))
    thread.start()
    thread.join()
    assert results == [1, 2]
    # the thread that started the workers has ended; they have not
    time.sleep(0.1)
    assert run(abs, [-3]) == [3]
    with multiprocessing.get_context("fork").Pool(1) as pool:
        print(pool.map(in_pool, [1])[0])
"""
)


def test_threads_may_start_workers_and_daemonic_processes_may_not(tmp_path: Path, programs: list[Program]) -> None:
    program = Program([script(tmp_path, NESTED)])
    programs.append(program)
    code, out, err = program.end()
    assert (code, err) == (0, "")
    assert "daemonic" in out and "backend='thread'" in out
    program.assert_gone()


def test_standard_streams_may_be_closed(tmp_path: Path, programs: list[Program]) -> None:
    text = HEAD + (
        "def speak(n):\n"
        "    print('heard by nobody')\n"
        "    return n\n"
        "if __name__ == '__main__':\n"
        "    assert run(speak, range(40)) == list(range(40))\n"
        "    open(sys.argv[1], 'w').write('done')\n"
    )
    path = script(tmp_path, text)
    shell = f'"{sys.executable}" "{path}" "{tmp_path / "out"}" <&- >&- 2>&-'
    program = Program(["-c", f"import os; os.execv('/bin/sh', ['sh', '-c', {shell!r}])"])
    programs.append(program)
    program.end()
    assert (tmp_path / "out").read_text() == "done"
    program.assert_gone()
