"""What the caller hears of a process, and who may start one."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import struct

import pytest

from lazystore.errors import WorkerError
from lazystore.parallel.workers.launch import Child, refuse_where_processes_are_forbidden


def test_pid_and_exit_code_come_one_after_the_other() -> None:
    reading, writing = os.pipe()
    child = Child(reading)
    assert child.look() is None
    assert child.pid == 0
    os.write(writing, struct.pack("=q", 1234567890))
    assert child.look() is None
    assert child.pid == 1234567890
    os.write(writing, struct.pack("=q", -11))
    os.close(writing)
    assert child.look() == -11
    assert child.look() == -11
    child.signal(signal.SIGKILL)  # it is gone: nothing happens
    child.close()
    child.close()


def test_both_may_come_at_once() -> None:
    reading, writing = os.pipe()
    os.write(writing, struct.pack("=2q", 1234567890, 3))
    os.close(writing)
    child = Child(reading)
    assert child.look() == 3
    assert child.pid == 1234567890
    child.close()


def test_a_fork_that_failed_is_told_with_its_reason() -> None:
    reading, writing = os.pipe()
    os.write(writing, struct.pack("=q", -errno.EAGAIN))
    os.close(writing)
    child = Child(reading)
    assert child.look() == 1
    assert os.strerror(errno.EAGAIN) in child.trouble
    child.close()


def test_where_the_fork_server_is_killed_its_workers_are() -> None:
    reading, writing = os.pipe()
    os.close(writing)
    child = Child(reading)
    assert child.look() == -signal.SIGKILL
    child.close()


def test_programs_without_an_interpreter_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.frozen", True, raising=False)
    with pytest.raises(WorkerError, match=r"frozen.*backend='thread'"):
        refuse_where_processes_are_forbidden()


def test_a_process_that_imports_its_callers_program_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(WorkerError, match=r"if __name__ == '__main__'"):
        refuse_where_processes_are_forbidden()
