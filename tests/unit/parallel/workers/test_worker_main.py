"""A worker runs what it is given and outlives what functions do; a bad item, result or function hurts only itself."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
from support.imap_funcs import await_file
from support.scripts import PATHS

from lazystore.errors import TransportError
from lazystore.parallel.chunk import Chunk, Job, Report
from lazystore.parallel.failures import Failed
from lazystore.parallel.workers import worker_main
from lazystore.parallel.workers.packing import Packed, joined, pack
from lazystore.parallel.workers.surroundings import Surroundings
from lazystore.parallel.workers.transport import Channel, Kind, Message, open_channel
from lazystore.parallel.workers.worker_main import IDLE_EXIT, UNGUARDED_EXIT, unpack_report

DEADLINE = 30.0


class Worker:
    """A worker as its caller sees it."""

    def __init__(self, channel: Channel, pid: int) -> None:
        self.channel = channel
        self.pid = pid
        self._jobs = 0

    def hear(self) -> Message:
        message = self.channel.receive(DEADLINE)
        assert message is not None, "the worker says nothing"
        return message

    def take(
        self, job: Job, work: bytes | None = None, by_value: bool = False, main: tuple[str, str] = ("", "")
    ) -> None:
        self._jobs += 1
        told = {
            "job": self._jobs,
            "surroundings": Surroundings(os.getcwd(), sys.path, sys.argv, dict(os.environ), main),
            "work": work or pickle.dumps(job),
            "by_value": by_value,
        }
        self.channel.send(Kind.JOB, self._jobs, pack(told))

    def give(self, chunk: Chunk) -> None:
        self.channel.send(Kind.CHUNK, chunk.number, packed_chunk(chunk))

    def report(self, chunk: Chunk) -> Report:
        """Of a chunk; what must be sent again is."""
        while True:
            message = self.hear()
            assert message.number == chunk.number
            if message.kind == Kind.AGAIN:
                self.channel.send(Kind.CHUNK, chunk.number, packed_apart(chunk))
                continue
            assert message.kind == Kind.REPORT
            report = unpack_report(message, chunk, 5)
            if report is not None:
                return report
            self.channel.send(Kind.AGAIN, chunk.number)

    def run(self, items: Sequence[Any], first: int = 0) -> Report:
        chunk = Chunk(7, first, items)
        self.give(chunk)
        return self.report(chunk)

    def ended(self) -> int:
        """Its exit code, once it ended."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def packed_chunk(chunk: Chunk) -> Packed:
    return pack((chunk.first, chunk.items, chunk.limit_s, chunk.limit_bytes))


def packed_apart(chunk: Chunk) -> Packed:
    head = pack((chunk.first, None, chunk.limit_s, chunk.limit_bytes))
    return joined([head, *[pack(item) for item in chunk.items]])


@contextlib.contextmanager
def worker(job: Job | None = None, idle_s: float = DEADLINE) -> Iterator[Worker]:
    """A forked one, with a job."""
    channel, fds = open_channel()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            channel.close()
            signal.alarm(int(DEADLINE))
            worker_main.main(Channel.in_worker(fds), 5, idle_s)
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        finally:
            os._exit(code)
    with attended(channel, fds, pid) as here:
        if job is not None:
            here.take(job)
        yield here


@contextlib.contextmanager
def attended(channel: Channel, fds: Sequence[int], pid: int) -> Iterator[Worker]:
    for fd in fds:
        os.close(fd)
    here = Worker(channel, pid)
    try:
        assert here.hear().kind == Kind.HELLO
        yield here
    finally:
        channel.close()
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@contextlib.contextmanager
def fresh_worker(stdout: int | None = None, **variables: str) -> Iterator[Worker]:
    """One in an interpreter of its own, which knows nothing of this one's modules."""
    channel, fds = open_channel()
    code = f"""
from lazystore.parallel.workers.transport import Channel
from lazystore.parallel.workers.worker_main import main
main(Channel.in_worker({fds}), 5)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(PATHS), **variables}
    process = subprocess.Popen([sys.executable, "-c", code], pass_fds=fds, env=environment, stdout=stdout)
    process.returncode = 0  # it is waited for by number
    with attended(channel, fds, process.pid) as here:
        yield here


def double(value: int) -> int:
    return 2 * value


def test_chunks_are_run_and_counted() -> None:
    with worker(Job(double)) as here:
        report = here.run(range(100), 40)
        assert report.results == [2 * value for value in range(100)]
        assert (report.failures, report.retried, report.worker) == (0, 0, 5)
        assert 40 <= report.longest_at < 140
        assert 0 < report.longest_s <= report.run_s
        assert report.transport_s > 0
        assert min(report.in_bytes, report.out_bytes) > 0


def test_two_chunks_may_wait_at_once() -> None:
    with worker(Job(double)) as here:
        chunks = [Chunk(number, 0, [number]) for number in range(1, 7)]
        here.give(chunks[0])
        for before, after in zip(chunks, [*chunks[1:], None], strict=True):
            if after is not None:
                here.give(after)
            assert here.report(before).results == [2 * before.number]


def test_limits_travel() -> None:
    with worker(Job(time.sleep)) as here:
        chunk = Chunk(1, 0, [0.01] * 1000, limit_s=0.03)
        here.give(chunk)
        assert 1 <= len(here.report(chunk).results) < 1000


_tries: list[int] = []


def fragile(value: int) -> int:
    _tries.append(value)
    if value == 1 and _tries.count(1) < 3:
        raise LookupError("not yet")
    if value == 2:
        raise LookupError("never")
    return value


def test_failures_and_tries_travel() -> None:
    with worker(Job(fragile, retries=2)) as here:
        report = here.run([0, 1, 2, 3], 10)
        assert [report.results[place] for place in (0, 1, 3)] == [0, 1, 3]
        failed = report.results[2]
        assert isinstance(failed, Failed)
        assert type(failed.error) is LookupError
        assert failed.error.__notes__ == ["imap: item 12 (2)"]
        assert "in fragile" in str(failed.error.__cause__)
        assert (report.failures, report.retried) == (1, 4)


def leaves(value: int) -> int:
    if value == 1:
        sys.exit(3)
    return value


def test_a_function_that_exits_ends_its_chunk_and_not_the_worker() -> None:
    with worker(Job(leaves)) as here:
        report = here.run([0, 1, 2])
        assert report.results[0] == 0
        assert isinstance(report.results[1].error, SystemExit)
        assert report.results[1].fatal
        assert len(report.results) == 2
        assert here.run([5]).results == [5]


def test_a_function_that_really_exits_is_an_end() -> None:
    with worker(Job(os._exit)) as here:
        here.give(Chunk(1, 0, [9]))
        with pytest.raises(EOFError):
            here.hear()
        assert here.ended() == 9


def unpicklable(value: int) -> Any:
    return (lambda: value) if value == 2 else value


@pytest.mark.parametrize("items", [[0, 1, 2, 3], [2]])
def test_a_result_that_does_not_pickle_hurts_only_itself(items: list[int]) -> None:
    with worker(Job(unpicklable)) as here:
        report = here.run(items, 10)
        bad = report.results.pop(items.index(2))
        assert report.results == [item for item in items if item != 2]
        assert type(bad.error) is TransportError
        assert "cannot be pickled" in str(bad.error)
        assert bad.error.__notes__ == [f"imap: item {10 + items.index(2)} (2)"]
        assert report.failures == 1
        assert here.run([5]).results == [5]


class Shy:
    """Cannot be unpickled in the process that is named."""

    def __init__(self, pid: int, size: int = 0) -> None:
        self.pid = pid
        self.data = b"x" * size

    def __reduce__(self) -> tuple[object, ...]:
        return _shy, (self.pid, len(self.data), self.data)


def _shy(pid: int, size: int, _: bytes) -> Shy:
    if os.getpid() == pid:
        raise LookupError("not here")
    return Shy(pid, size)


class ShyResult:
    def __init__(self, size: int) -> None:
        self.pid = os.getpid()
        self.size = size

    def __call__(self, value: int) -> Any:
        return Shy(self.pid, self.size) if value == 2 else value


def test_a_result_that_cannot_be_unpickled_here_hurts_only_itself() -> None:
    with worker(Job(ShyResult(0))) as here:
        # the next chunk was sent before this one's report could be looked at
        chunks = [Chunk(number, 10 * number, [0, 1, 2, 3]) for number in (1, 2)]
        for chunk in chunks:
            here.give(chunk)
        for message, chunk in zip([here.hear(), here.hear()], chunks, strict=True):
            assert unpack_report(message, chunk) is None
            here.channel.send(Kind.AGAIN, chunk.number)
        for chunk in chunks:
            report = here.report(chunk)
            assert [report.results[place] for place in (0, 1, 3)] == [0, 1, 3]
            bad = report.results[2]
            assert type(bad.error) is TransportError
            assert "cannot be unpickled" in str(bad.error)
            assert "LookupError: not here" in str(bad.error)
            assert bad.error.__notes__ == [f"imap: item {chunk.first + 2} (2)"]
            assert report.failures == 1


def test_large_results_need_not_be_sent_again() -> None:
    with worker(Job(ShyResult(1 << 20))) as here:
        chunk = Chunk(1, 0, [0, 2, 3])
        here.give(chunk)
        report = unpack_report(here.hear(), chunk)
        assert report is not None
        assert (report.results[0], report.results[2]) == (0, 3)
        assert type(report.results[1].error) is TransportError


def what(item: Any) -> str:
    return type(item).__name__


def test_an_item_that_cannot_be_unpickled_there_hurts_only_itself() -> None:
    with worker(Job(what)) as here:
        report = here.run([1, Shy(here.pid), "three"], 10)
        assert report.results[::2] == ["int", "str"]
        bad = report.results[1]
        assert type(bad.error) is TransportError
        assert "the item cannot be unpickled in a worker process: LookupError: not here" in str(bad.error)
        assert bad.number == 11
        assert here.run([Shy(here.pid)]).failures == 1
        assert here.run([2]).results == ["int"]


def image(value: int) -> numpy.ndarray[Any, Any]:
    return numpy.full((300, 1000), value, "u1")


def test_large_results_come_back_writable() -> None:
    with worker(Job(image)) as here:
        for _ in range(3):
            results = here.run([1, 2, 3]).results
            results[0] += 1
            assert [result.sum() for result in results] == [600_000, 600_000, 900_000]


# -- jobs ------------------------------------------------------------------------------------------------------------


class Unloadable:
    def __reduce__(self) -> tuple[object, ...]:
        return _refuse, ()

    def __call__(self, item: Any) -> Any:
        return item


def _refuse() -> Any:
    raise LookupError("no such function")


def test_a_job_that_does_not_load_is_refused_and_the_next_one_is_done() -> None:
    with worker(Job(Unloadable())) as here:
        here.give(Chunk(1, 0, [1]))
        message = here.hear()
        assert (message.kind, message.number) == (Kind.REFUSED, 1)
        assert message.unpack() == ("load", "LookupError: no such function")
        here.take(Job(double))
        assert here.run([4]).results == [8]


_state: list[str] = []


def prepare() -> None:
    _state.append("ready")


def state(value: int) -> list[str]:
    return list(_state)


def fail_to_prepare() -> None:
    raise OSError("no licence")


def test_an_initializer_runs_once_a_job() -> None:
    with worker(Job(state, initializer=prepare)) as here:
        assert here.run([1, 2]).results == [["ready"]] * 2
        assert here.run([1]).results == [["ready"]]
        here.take(Job(state, initializer=prepare))
        assert here.run([1]).results == [["ready", "ready"]]


@pytest.mark.parametrize(
    ("initializer", "text"), [(fail_to_prepare, "OSError: no licence"), (sys.exit, "SystemExit: ")]
)
def test_an_initializer_that_fails_refuses_the_job(initializer: Callable[[], object], text: str) -> None:
    with worker(Job(state, initializer=initializer)) as here:
        assert here.hear().unpack() == ("initializer", text)
        here.take(Job(double))
        assert here.run([4]).results == [8]


def test_what_pickle_refuses_goes_by_value_where_that_was_said() -> None:
    pytest.importorskip("cloudpickle")
    with worker() as here:
        here.take(Job(unpicklable), by_value=True)
        results = here.run([1, 2]).results
        assert results[0] == 1
        assert results[1]() == 2


# -- the caller's main module ------------------------------------------------------------------------------------------


SCRIPT = """
import os
print("imported", flush=True)

class Thing:
    def __init__(self, value):
        self.value = value

def twice(thing):
    return 2 * thing.value
"""


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], tuple[str, str]]:
    def write(text: str) -> tuple[str, str]:
        path = tmp_path / "script.py"
        path.write_text(text)
        return "path", str(path)

    return write


class ByName:
    """Pickles as a name of ``__main__``, with arguments to call it."""

    def __init__(self, name: str, *arguments: object) -> None:
        self.name = name
        self.arguments = arguments

    def pickled(self) -> bytes:
        name = f"c__main__\n{self.name}\n".encode()
        if not self.arguments:
            return name
        return name + b"(" + b"".join(f"I{argument}\n".encode() for argument in self.arguments) + b"tR"


def job_of(function: ByName) -> bytes:
    """A pickled ``Job`` of a function of ``__main__``."""
    return b"clazystore.parallel.chunk\nJob\n(" + function.pickled() + b"tR."


def test_the_callers_main_module_is_imported_when_a_function_is_there(
    script: Callable[[str], tuple[str, str]], capfd: pytest.CaptureFixture[str]
) -> None:
    with fresh_worker(PYTHONWARNINGS="error") as here:
        here.take(Job(abs), main=script(SCRIPT))
        assert here.run([-1]).results == [1]
        assert capfd.readouterr().out == ""  # not before it is needed
        here.take(Job(abs), work=job_of(ByName("twice")), main=script(SCRIPT))
        head = pickle.dumps((0, None, 1e9, 1 << 40))
        thing = ByName("Thing", 21).pickled() + b"."
        here.channel.send(Kind.CHUNK, 7, Packed([head, thing], [len(head), 0, len(thing), 0], len(head) + len(thing)))
        assert here.report(Chunk(7, 0, [None])).results == [42]
        assert capfd.readouterr() == ("imported\n", "")


def test_it_is_imported_for_an_item_as_well(script: Callable[[str], tuple[str, str]]) -> None:
    with fresh_worker() as here:
        here.take(Job(repr), main=script(SCRIPT))
        assert here.run([1]).results == ["1"]
        items = b"(I0\n(l" + ByName("Thing", 21).pickled() + b"aF1.0\nI99\nt."
        here.channel.send(Kind.CHUNK, 7, Packed([items], [len(items), 0], len(items)))
        (result,) = here.report(Chunk(7, 0, [None])).results
        assert result.startswith("<__mp_main__.Thing object")


def test_a_main_module_without_the_name_refuses_the_job(script: Callable[[str], tuple[str, str]]) -> None:
    with fresh_worker() as here:
        for main in (("", ""), script(SCRIPT)):
            here.take(Job(abs), work=job_of(ByName("thrice")), main=main)
            during, text = here.hear().unpack()
            assert during == "load"
            assert "AttributeError" in text
            assert "thrice" in text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("raise LookupError('broken script')", "LookupError: broken script"),
        ("import sys; sys.exit('not today')", "SystemExit: not today"),
    ],
)
def test_a_main_module_that_does_not_import_refuses_the_job(
    text: str, told: str, script: Callable[[str], tuple[str, str]]
) -> None:
    with fresh_worker() as here:
        here.take(Job(abs), work=job_of(ByName("twice")), main=script(text))
        assert here.hear().unpack() == ("load", told)


def test_a_main_module_that_maps_when_it_is_imported_can_tell(script: Callable[[str], tuple[str, str]]) -> None:
    text = """
from lazystore.parallel.workers import worker_main
if worker_main.importing_main():
    worker_main.leave_unguarded()
"""
    with fresh_worker() as here:
        here.take(Job(abs), work=job_of(ByName("twice")), main=script(text))
        with pytest.raises(EOFError):
            here.hear()
        assert here.ended() == UNGUARDED_EXIT
    assert not worker_main.importing_main()


# -- the process -------------------------------------------------------------------------------------------------------


def test_it_ends_when_told_and_when_the_caller_is_gone() -> None:
    with worker(Job(double)) as here:
        here.channel.send(Kind.END)
        assert here.ended() == 0
    with worker(Job(double)) as here:
        here.channel.close()
        assert here.ended() == 0
    with worker(Job(image)) as here:
        here.give(Chunk(1, 0, [1]))
        here.channel.close()
        assert here.ended() == 0


def test_it_ends_when_it_has_nothing_to_do() -> None:
    with worker(Job(double), idle_s=0.05) as here:
        assert here.ended() == IDLE_EXIT


def test_work_puts_the_end_off() -> None:
    with worker(Job(time.sleep), idle_s=0.3) as here:
        for _ in range(4):
            assert here.run([0.1]).results == [None]
        assert here.run([0.5]).results == [None]
        assert here.ended() == IDLE_EXIT


def test_it_ends_when_its_caller_is_killed() -> None:
    reading, writing = os.pipe()
    caller = os.fork()
    if not caller:
        with worker(Job(double)) as here:
            here.run([1])
            os.write(writing, b"%d" % here.pid)
            time.sleep(DEADLINE)
        os._exit(0)
    os.close(writing)
    pid = int(os.read(reading, 20))
    os.kill(caller, signal.SIGKILL)
    os.waitpid(caller, 0)
    assert os.read(reading, 1) == b"", "the worker has the pipe's other end as well, until it ends"
    os.close(reading)
    assert pid > 0


def test_ctrl_c_does_not_hurt_it() -> None:
    with worker(Job(nap)) as here:
        here.give(Chunk(1, 0, [0.3]))
        time.sleep(0.1)
        os.kill(here.pid, signal.SIGINT)
        assert here.report(Chunk(1, 0, [0.3])).results == [0.3]
        os.kill(here.pid, signal.SIGINT)
        assert here.run([0.0]).results == [0.0]


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def spoil_signals(value: int) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    return value


def test_signal_handlers_that_a_function_sets_do_not_stay() -> None:
    with worker(Job(spoil_signals)) as here:
        here.run([1])
        here.take(Job(fork_and_come_back))
        assert here.run([1]).results == [1]
        here.take(Job(nap))
        assert here.run([0.0]).results == [0.0]
        os.kill(here.pid, signal.SIGINT)
        assert here.run([0.0]).results == [0.0]
        os.kill(here.pid, signal.SIGTERM)
        assert here.ended() == -signal.SIGTERM


def spoil_more(value: int) -> int:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    return value


def watch_for_usr2() -> None:
    signal.signal(signal.SIGUSR2, spoil_heard)


def spoil_heard(number: int, frame: object) -> None:
    pass


def signals(_: int) -> list[object]:
    time.sleep(0.5)
    handlers = [signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)]
    return [*handlers, sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ()))]


def test_no_signal_of_one_job_troubles_the_next_but_an_initializer_s_handlers_stay() -> None:
    with worker(Job(spoil_more, initializer=watch_for_usr2)) as here:
        here.run([1])
        here.take(Job(signals))
        assert here.run([1]).results == [[signal.SIG_DFL, spoil_heard, []]]


def test_a_chunk_that_was_withdrawn_is_skipped(tmp_path: Path) -> None:
    with worker(Job(await_file)) as here:
        go = tmp_path / "go"
        chunks = [Chunk(number, number, [go]) for number in range(1, 5)]
        for chunk in chunks:
            here.give(chunk)
        while here.channel.begun() < 1:
            time.sleep(0.001)
        assert not here.channel.withdraw(1)
        assert here.channel.withdraw(3)
        go.touch()
        assert here.report(chunks[0]).results == [go]
        assert here.report(chunks[1]).results == [go]
        skipped = here.hear()
        assert (skipped.kind, skipped.number, skipped.nbytes) == (Kind.SKIPPED, 3, 0)
        assert here.report(chunks[3]).results == [go]
        assert here.channel.begun() == 4


class Lazy:
    """Its unpickling takes its time, and nothing of the processor's."""

    def __reduce__(self) -> tuple[object, ...]:
        return time.sleep, (0.4,)


def test_of_transport_only_the_processor_s_time_counts() -> None:
    with worker(Job(what)) as here:
        report = here.run([Lazy(), b"x" * 1_000_000])
        assert report.results == ["NoneType", "bytes"]
        assert 0 < report.transport_s < 0.3


def ctrl_c_of_a_program(_: int) -> int:
    return subprocess.run(["sh", "-c", "kill -INT $$; sleep 1; exit 5"], check=False).returncode


def test_programs_that_functions_start_can_be_interrupted() -> None:
    with worker(Job(ctrl_c_of_a_program)) as here:
        assert here.run([1]).results == [-signal.SIGINT]


def test_what_functions_print_shows_at_once() -> None:
    reading, writing = os.pipe()
    with fresh_worker(stdout=writing) as here:
        os.close(writing)
        here.take(Job(print))
        here.run(["hello"])
        assert os.read(reading, 100) == b"hello\n"
    os.close(reading)


def close_output(value: int) -> int:
    sys.stdout = None
    sys.stderr.close()
    return value


def test_a_function_may_close_its_output() -> None:
    with worker(Job(close_output)) as here:
        assert here.run([1]).results == [1]
        assert here.run([2]).results == [2]


def fork_and_come_back(value: int) -> int:
    if value == 1:
        child = os.fork()
        if child:
            os.waitpid(child, 0)
    return value


def test_a_process_that_a_function_forks_says_nothing() -> None:
    with worker(Job(fork_and_come_back)) as here:
        assert here.run([0, 1, 2]).results == [0, 1, 2]
        assert here.run([0, 1, 2]).results == [0, 1, 2]
        assert here.channel.receive(0.1) is None


def fork_and_leave(_: int) -> int:
    child = os.fork()
    if not child:
        time.sleep(DEADLINE)
        os._exit(0)
    return child


def test_a_process_that_a_function_leaves_behind_does_not_hide_the_workers_end() -> None:
    with worker(Job(fork_and_leave)) as here:
        (child,) = here.run([1]).results
        try:
            os.kill(here.pid, signal.SIGKILL)
            with pytest.raises(EOFError):
                here.hear()
        finally:
            os.kill(child, signal.SIGKILL)


def start_thread(_: int) -> None:
    threading.Thread(target=time.sleep, args=(DEADLINE,)).start()


def test_a_thread_that_a_function_leaves_behind_does_not_keep_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_main, "LEAVE_S", 0.1)
    channel, fds = open_channel()
    pid = os.fork()
    if not pid:
        channel.close()
        worker_main.main(Channel.in_worker(fds), 5)
        threading._shutdown()  # type: ignore[attr-defined]  # as an interpreter does in the end
        os._exit(1)
    with attended(channel, fds, pid) as here:
        here.take(Job(start_thread))
        here.run([1])
        begin = time.monotonic()
        channel.close()
        assert here.ended() == 0
        assert time.monotonic() - begin < DEADLINE / 2


def test_it_says_which_item_it_is_at_when_items_have_a_timeout() -> None:
    with worker(Job(nap, timeout=5)) as here:
        chunk = Chunk(1, 40, [0.0, 0.5])
        begin = time.monotonic()
        here.give(chunk)
        while here.channel.progress()[0] != 41:
            assert time.monotonic() - begin < DEADLINE
            time.sleep(0.01)
        assert begin <= here.channel.progress()[1] <= time.monotonic()
        here.report(chunk)
        assert here.channel.progress()[0] == -1


def test_its_modules_load_little() -> None:
    code = """
import sys
import lazystore.parallel.workers.worker_main
heavy = {"numpy", "asyncio", "multiprocessing", "concurrent.futures", "fsspec", "ctypes", "socket", "random"}
heavy &= {*sys.modules}
assert not heavy, heavy
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(PATHS)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=DEADLINE)
