"""Worker processes started without waiting for them: by a fork server of our own on Linux, elsewhere as interpreters.

The fork server is a fresh interpreter with the worker's modules loaded; it forks a worker in milliseconds, and has no
thread, lock or open file of the caller's. multiprocessing's is not used: its socket has a name in a temporary
directory, which a caller that is killed leaves behind, it starts a second process (the resource tracker), and its
protocol changes with Python's version. Workers here are no children of the caller and in no list of
multiprocessing's, so nothing joins them at exit. Which workers there are is the business of ``worker_pool``, what they
do that of ``worker_main``.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import os
import pickle
import select
import signal
import socket
import struct
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import process
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from lazystore.errors import WorkerError
from lazystore.parallel.workers.surroundings import Surroundings

if TYPE_CHECKING:
    import subprocess  # workers do without

__all__ = [
    "Child",
    "ForkServer",
    "has_fork_server",
    "leave_all",
    "refuse_where_processes_are_forbidden",
    "start_interpreter",
]

#: seconds the fork server gives workers to end by themselves once the caller is gone; then the kernel kills them
GRACE_S = 0.5

#: seconds to hand a request to the fork server, which reads none while it starts
PATIENCE_S = 30.0

_WORD = struct.Struct("=q")
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Birth:
    """What a worker process is told when it starts.

    Attributes:
        number: the worker's.
        parent: process id of the caller.
        parent_name: multiprocessing's name for the caller.
        authkey: with it managers know their clients.
        fds: how many file descriptors of the channel come with it; one more is the resource tracker's.
    """

    number: int
    parent: int
    parent_name: str
    authkey: bytes
    fds: int


class Child:
    """A process that was started, seen from the caller.

    Attributes:
        sentinel: file descriptor that becomes readable when there is something for :meth:`look`.
        pid: 0 until it is known.
        exit_code: None while it runs; negative: the signal that ended it.
        trouble: why it could not be started; "" where it was.
    """

    def __init__(self, sentinel: int, popen: subprocess.Popen[bytes] | None = None) -> None:
        os.set_blocking(sentinel, False)
        self.sentinel = sentinel
        self.pid = popen.pid if popen is not None else 0
        self.exit_code: int | None = None
        self.trouble = ""
        self._popen = popen

    def look(self) -> int | None:
        """The exit code, if there is one by now."""
        if self.exit_code is None:
            if self._popen is not None:
                self.exit_code = self._popen.poll()
            elif self.sentinel >= 0:
                self._hear()
        return self.exit_code

    def _hear(self) -> None:
        try:
            data = os.read(self.sentinel, 2 * _WORD.size)
        except BlockingIOError:
            return
        if not data:
            self.exit_code = -signal.SIGKILL  # the fork server was killed, and its workers with it
        for (word,) in _WORD.iter_unpack(data):
            if self.pid:
                self.exit_code = word
            elif word < 0:
                self.exit_code, self.trouble = 1, f"fork: {os.strerror(-word)}"
            else:
                self.pid = word

    def signal(self, number: int) -> None:
        """Send it a signal if it runs. One that is not yet up ends by itself when its channel is closed."""
        if self.look() is None and self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def close(self) -> None:
        """Forget it; it may go on. May be called again."""
        if self._popen is not None:
            _leave(self._popen)
            self._popen = None
        self.pid = 0
        sentinel, self.sentinel = self.sentinel, -1
        if sentinel >= 0:
            os.close(sentinel)


def has_fork_server() -> bool:
    """Whether workers come from a fork server: Linux. On macOS, system libraries do not survive a fork."""
    return sys.platform == "linux"


def refuse_where_processes_are_forbidden() -> None:
    """
    Raises:
        WorkerError: this process may not start others.
    """
    if getattr(sys, "frozen", False):
        raise WorkerError("worker processes need a Python interpreter, this is a frozen program; use backend='thread'")
    if not _executable():
        raise WorkerError("worker processes need sys.executable, which is empty here; use backend='thread'")
    here = process.current_process()
    if here.daemon:
        raise WorkerError(
            f"{here.name} is a daemonic process (of a multiprocessing.Pool or a DataLoader, for instance), and those "
            "may not start processes; use backend='thread' there"
        )
    if getattr(here, "_inheriting", False):
        raise WorkerError(
            "this process is still importing the caller's __main__; put the call under `if __name__ == '__main__':`"
        )


class ForkServer:
    """The fork server, seen from the caller. It ends on :meth:`close`, and when the caller ends, however that happens.

    Parameters:
        preload: modules it loads before it forks; those that cannot be loaded are left out.
        variables: its environment.

    Raises:
        WorkerError: the interpreter cannot be started.
    """

    def __init__(self, preload: Sequence[str], variables: Mapping[str, str]) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(PATIENCE_S)
        with theirs:
            fd = _beyond_standard(theirs.detach())
        try:
            self._popen = _interpreter("serve_forks", (fd, list(preload)), [fd], variables)
        except BaseException:
            self._socket.close()
            raise
        finally:
            os.close(fd)

    def alive(self) -> bool:
        return self._popen.poll() is None

    def start(self, number: int, fds: Sequence[int]) -> Child:
        """Have a worker forked; returns at once, also while the server itself is starting.

        Parameters:
            number: the worker's.
            fds: file descriptors of its channel; they stay open here.

        Raises:
            WorkerError: the server is gone, or takes no requests.
        """
        tracker = _tracker_fds()
        birth = pickle.dumps(_birth(number, len(fds)))
        sentinel, told = os.pipe()
        try:
            socket.send_fds(self._socket, [_WORD.pack(len(birth)) + birth], [told, *fds, *tracker])
        except OSError as error:
            os.close(sentinel)
            raise WorkerError(f"the process that forks workers takes no requests: {error}") from error
        finally:
            os.close(told)
        return Child(sentinel)

    def close(self) -> None:
        """Let it go: idle workers end, and half a second later all of them. Does not wait. May be called again."""
        self._socket.close()
        _leave(self._popen)


def start_interpreter(number: int, fds: Sequence[int], variables: Mapping[str, str]) -> Child:
    """Start a worker as a new interpreter.

    Raises:
        WorkerError: it cannot be started.
    """
    tracker = _tracker_fds()
    sentinel, held = os.pipe()  # the worker holds the other end as long as it lives
    passed = [_beyond_standard(os.dup(fd)) for fd in (*fds, *tracker, held)]
    os.close(held)
    try:
        birth = pickle.dumps(_birth(number, len(fds)))
        return Child(sentinel, _interpreter("serve_alone", (birth, passed), passed, variables))
    except BaseException:
        os.close(sentinel)
        raise
    finally:
        for fd in passed:
            os.close(fd)


_left: list[subprocess.Popen[bytes]] = []


def _leave(popen: subprocess.Popen[bytes]) -> None:
    """A child that ends by itself: the next time this is called is soon enough to take note of that."""
    _left.append(popen)
    _left[:] = [each for each in _left if each.poll() is None]


def leave_all() -> None:
    """This process ends, or is a fork of the one that had these children: init or that one takes note of their end."""
    for popen in _left:
        popen.returncode = 0  # else it complains that nobody waited
    _left.clear()


def _birth(number: int, fds: int) -> Birth:
    here = process.current_process()
    return Birth(number, os.getpid(), here.name, bytes(here.authkey), fds)


def _interpreter(
    function: str, arguments: tuple[object, ...], fds: Sequence[int], variables: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """A new interpreter that sees the modules of this one and calls a function of this module."""
    import subprocess

    code = (
        f"import sys; sys.path[:] = {Surroundings.capture().path!a}; "
        f"from lazystore.parallel.workers import launch; launch.{function}(*{arguments!a})"
    )
    executable = _executable()
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # as multiprocessing does
    # Ctrl-C at a terminal reaches the new process as well. It is blocked until the process can ignore it.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return subprocess.Popen(
            [executable, *flags, "-c", code], stdin=subprocess.DEVNULL, pass_fds=fds, env=dict(variables)
        )
    except OSError as error:
        raise WorkerError(f"a worker process cannot be started: {executable}: {error}") from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _executable() -> str:
    """The interpreter, or what a program that embeds one told multiprocessing instead."""
    spawn = sys.modules.get("multiprocessing.spawn")
    return sys.executable if spawn is None else os.fsdecode(spawn.get_executable() or "")


def _beyond_standard(fd: int) -> int:
    """The file under a number that is not taken for standard input, output or error; they may be closed here."""
    if fd > 2:
        return fd
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(fd)
    return moved


def _tracker_fds() -> list[int]:
    """The pipe to multiprocessing's resource tracker, if this process has one.

    A worker without it would start its own, which unlinks shared memory of the caller's when the worker ends.
    """
    tracker = sys.modules.get("multiprocessing.resource_tracker")
    fd = getattr(getattr(tracker, "_resource_tracker", None), "_fd", None)
    return [fd] if isinstance(fd, int) else []


# What follows runs in the new processes.


def serve_forks(control: int, preload: Sequence[str]) -> None:
    """The fork server's life, and the lives of the workers it forks."""
    _come_up()
    for name in ("ctypes", *preload):
        # whatever a module raises while it loads, a worker that needs it will say so
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what workers share with this process stays shared
    server = os.getpid()
    birth, fds = _Forker(socket.socket(fileno=control)).serve()
    _die_with(server)
    _live(birth, fds)


def serve_alone(birth: bytes, fds: Sequence[int]) -> None:
    """The life of a worker that is an interpreter of its own."""
    _come_up()
    _live(pickle.loads(birth), list(fds[:-1]))


class _Forker:
    """Takes requests, forks, and tells the caller what becomes of each worker."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._tell: dict[int, int] = {}  # process id: where its exit code is told
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(self._wake, False)

    def serve(self) -> tuple[Birth, list[int]]:
        """Returns in the workers only."""
        signal.signal(signal.SIGCHLD, _heed)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self._woken, select.POLLIN)
        poll.register(self._control, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self._woken:
                    os.read(self._woken, 4096)
                    self._reap()
                    continue
                request = self._request()
                if request is None:
                    self._end()
                birth, fds = request
                if self._fork(fds[0]):
                    return birth, fds[1:]
                for each in fds[1:]:
                    os.close(each)

    def _request(self) -> tuple[Birth, list[int]] | None:
        """A request; None when the caller is gone."""
        with contextlib.suppress(ConnectionError):
            head, fds, _, _ = socket.recv_fds(self._control, _WORD.size, 16)
            if head:
                body = self._control.recv(_WORD.unpack(head)[0], socket.MSG_WAITALL)
                return pickle.loads(body), fds
        return None

    def _fork(self, told: int) -> bool:
        """Whether this is the new process."""
        try:
            with warnings.catch_warnings():
                # numpy's BLAS may have threads; it knows about forks
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
        except OSError as error:
            self._say(told, -(error.errno or 1))
            os.close(told)
            return False
        if pid:
            self._tell[pid] = told
            self._say(told, pid)
            return False
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._control.close()
        for fd in (self._woken, self._wake, told, *self._tell.values()):
            os.close(fd)
        return True

    def _reap(self) -> None:
        # ChildProcessError: no children
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                told = self._tell.pop(pid, -1)
                if told >= 0:
                    self._say(told, os.waitstatus_to_exitcode(status))
                    os.close(told)

    def _say(self, fd: int, word: int) -> None:
        # BrokenPipeError: the caller does not listen any more
        with contextlib.suppress(BrokenPipeError):
            os.write(fd, _WORD.pack(word))

    def _end(self) -> NoReturn:
        """Workers see that the caller is gone and end by themselves; those at work are killed with this process."""
        deadline = time.monotonic() + GRACE_S
        while self._tell and time.monotonic() < deadline:
            time.sleep(0.005)
            self._reap()
        os._exit(0)


def _heed(number: int, frame: FrameType | None) -> None:
    """A signal handler that does nothing: the signal shows at the wake-up pipe."""


def _come_up() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGCHLD})
    # Where the caller's output is closed, a file of ours must not get its number.
    while (fd := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(fd, True)
    os.close(fd)


def _live(birth: Birth, fds: list[int]) -> None:
    """Be a worker: one that multiprocessing, and the random generators, take for a process of its own."""
    here = process.current_process()
    here.name = f"lazystore-worker-{birth.number}"
    here.authkey = birth.authkey
    # private, but the only way: functions ask parent_process() to know whether they are in a worker
    parent = process._ParentProcess(birth.parent_name, birth.parent, _end_of(birth.parent, fds[0]))  # type: ignore[attr-defined]
    process._parent_process = parent  # type: ignore[attr-defined]
    if len(fds) > birth.fds:
        from multiprocessing import resource_tracker

        resource_tracker._resource_tracker._fd = fds[birth.fds]  # type: ignore[attr-defined]
    random = sys.modules.get("numpy.random")
    if random is not None:
        random.seed()  # or every worker draws the same numbers from the generator it shares with the fork server
    from lazystore.parallel.workers import transport, worker_main

    worker_main.main(transport.Channel.in_worker(fds[: birth.fds]), birth.number)


def _end_of(pid: int, otherwise: int) -> int:
    """A file that becomes readable when the process ends."""
    if hasattr(os, "pidfd_open"):
        # OSError: an old kernel, or a sandbox that does not allow it
        with contextlib.suppress(OSError):
            return os.pidfd_open(pid)
    return otherwise


def _die_with(server: int) -> None:
    """Have the kernel kill this process when the fork server ends."""
    try:
        import ctypes
    except ImportError:
        return  # it ends when its channel does, once it is through with its chunk
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != server:
        os._exit(0)
