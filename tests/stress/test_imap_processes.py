"""``imap``'s workers die, are left behind, forked and interrupted: nothing is lost or doubled, nobody stays behind."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support import map_funcs as funcs
from support.process_tree import Family

from lazystore import imap
from lazystore.errors import WorkerDiedError

pytestmark = [
    pytest.mark.stress,
    pytest.mark.skipif(sys.platform != "linux", reason="needs /proc"),
]

PROCESSES: dict[str, Any] = {"backend": "process", "n_jobs": 2}

# Workers that die


@pytest.mark.parametrize("chunksize", [None, 1, 6])
def test_each_of_many_killed_workers_costs_no_result(chunksize: int | None, tmp_path: Path) -> None:
    """Every seventh item kills the worker that runs it the first time."""
    func = funcs.kill_at(tmp_path, dict.fromkeys(range(3, 60, 7), 1))
    assert list(imap(func, range(60), chunksize=chunksize, **PROCESSES)) == list(range(60))


def test_unordered_killed_workers_cost_and_double_no_result(tmp_path: Path) -> None:
    func = funcs.kill_at(tmp_path, dict.fromkeys(range(0, 60, 9), 1))
    assert Counter(imap(func, range(60), ordered=False, **PROCESSES)) == Counter(range(60))


def test_poison_is_isolated_wherever_it_lies(tmp_path: Path) -> None:
    """Items that kill whoever runs them, the first, the last and two neighbours among them."""
    poison = (0, 20, 21, 39)
    func = funcs.kill_at(tmp_path, dict.fromkeys(poison, 1000))
    found = list(imap(func, range(40), chunksize=8, on_error="yield", **PROCESSES))
    assert [value for value in found if isinstance(value, int)] == [k for k in range(40) if k not in poison]
    for k in poison:
        error = found[k].error
        assert isinstance(error, WorkerDiedError) and (error.index, error.exit_code) == (k, -signal.SIGKILL)


RANDOM_KILLS = """
import os, random, signal, sys, threading, time
from collections import Counter
from support import map_funcs as funcs
from lazystore import imap

ordered, seed = sys.argv[1] == "True", int(sys.argv[2])

def workers():
    "Children of a child of this process: the fork server's."
    parents = {}
    for task in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{task}/stat") as file:
                parents[int(task)] = int(file.read().rpartition(")")[2].split()[1])
        except OSError:
            continue
    return [pid for pid, parent in parents.items() if parents.get(parent) == os.getpid()]

def kill():
    chance = random.Random(seed)
    while not over.wait(chance.expovariate(1 / 0.1)):
        victims = workers()
        if victims:
            try:
                os.kill(chance.choice(victims), signal.SIGKILL)
                kills[0] += 1
            except ProcessLookupError:
                pass

if __name__ == "__main__":
    over, kills = threading.Event(), [0]
    killer = threading.Thread(target=kill)
    killer.start()
    found = list(imap(funcs.late_first, range(1500), backend="process", n_jobs=2, ordered=ordered, on_error="yield"))
    over.set()
    killer.join()
    died = [value for value in found if not isinstance(value, int)]
    assert Counter(found) == Counter(range(1500)), (died, len(found))
    assert not ordered or found == list(range(1500))
    print(kills[0])
"""


@pytest.mark.parametrize("ordered", [True, False])
def test_workers_killed_at_random_moments_lose_and_double_nothing(ordered: bool) -> None:
    with Family(RANDOM_KILLS, ordered, 1) as family:
        code, out, err = family.wait()
        assert (code, err) == (0, "")
        assert int(out) >= 5
        assert family.gone() == []


# Callers that end

LEAVES = """
import gc, itertools, os, signal, sys, time
from support import map_funcs as funcs
from lazystore import imap

def main(how, busy):
    func = funcs.endless_nap if busy == "asleep" else funcs.slow
    results = imap(func, itertools.count(), backend="process", n_jobs=2)
    if busy == "asleep":
        func = funcs.slow
        ahead = imap(func, itertools.count(), backend="process", n_jobs=2)
        for _ in range(10):
            next(ahead)
        import threading
        threading.Thread(target=lambda: [None for _ in results], daemon=True).start()
        time.sleep(0.3)
    else:
        for _ in range(10):
            next(results)
    print("running", flush=True)
    if how in ("SIGINT", "SIGTERM", "SIGKILL", "SIGHUP"):
        if busy == "asleep":
            time.sleep(60)
        for _ in results:
            pass
    elif how == "break":
        for result in results:
            break
    elif how == "exception":
        for result in results:
            raise KeyError("mine")
    elif how == "del":
        del results
        gc.collect()
    elif how == "close":
        results.close()
    elif how == "sys.exit":
        sys.exit(0)
    elif how == "os._exit":
        os._exit(0)
    elif how == "cycle":
        loop = [results]
        loop.append(loop)

if __name__ == "__main__":
    main(*sys.argv[1:])
"""


@pytest.mark.parametrize("how", ["return", "break", "exception", "del", "close", "sys.exit", "os._exit", "cycle"])
def test_whoever_leaves_in_the_middle_leaves_nobody_behind(how: str) -> None:
    with Family(LEAVES, how, "busy") as family:
        assert family.line() == "running"
        code, _, err = family.wait()
        assert (code, "KeyError" in err) == ((1, True) if how == "exception" else (0, False)), err
        assert how == "exception" or err == ""
        assert family.gone() == []


@pytest.mark.parametrize("busy", ["busy", "asleep"])
@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"])
def test_a_signal_to_the_caller_ends_the_workers_too(how: str, busy: str) -> None:
    with Family(LEAVES, how, busy) as family:
        assert family.line() == "running"
        assert family.shared_files() == []
        family.process.send_signal(getattr(signal, how))
        code, _, err = family.wait()
        assert code == (-signal.SIGINT if how == "SIGINT" else -getattr(signal, how))
        assert how == "SIGINT" or err == ""
        assert family.gone() == []


def test_ctrl_c_at_the_terminal_reaches_all_and_only_the_caller_complains() -> None:
    """The whole process group gets SIGINT, as from a keyboard."""
    with Family(LEAVES, "SIGINT", "busy") as family:
        assert family.line() == "running"
        os.killpg(family.process.pid, signal.SIGINT)
        code, _, err = family.wait()
        assert code == -signal.SIGINT
        assert err.count("Traceback") == 1 and err.rstrip().endswith("KeyboardInterrupt")
        assert family.gone() == []


CTRL_C = """
import itertools, sys
from support import map_funcs as funcs
from lazystore import imap

if __name__ == "__main__":
    results = None
    for turn in itertools.count():
        try:
            print("turn", flush=True)
            results = imap(funcs.late_first, itertools.count(), backend="process", n_jobs=2)
            for k, result in enumerate(results):
                assert result == k
        except KeyboardInterrupt:
            if turn % 2 and results is not None:
                results.close()
            results = None
            assert list(imap(funcs.square, range(30), backend="process", n_jobs=2)) == [k * k for k in range(30)]
"""


def test_after_ctrl_c_the_next_run_works() -> None:
    """At moments of all kinds, also while workers start or end."""
    chance = random.Random(1)
    with Family(CTRL_C) as family:
        for _ in range(25):
            assert family.line() == "turn", family.wait()
            time.sleep(chance.choice([0.0, 0.002, 0.02, 0.1]))
            family.process.send_signal(signal.SIGINT)
        assert family.line() == "turn", family.wait()
        family.process.send_signal(signal.SIGKILL)
        assert family.wait()[0] == -signal.SIGKILL
        assert family.gone() == []


INTERRUPTED_GOES_ON = """
from support import map_funcs as funcs
from lazystore import ClosedError, imap

if __name__ == "__main__":
    found, interrupted = [], 0
    results = imap(funcs.late_first, range(1500), backend="process", n_jobs=2)
    print("running", flush=True)
    while True:
        try:
            while True:
                found.append(next(results))
        except KeyboardInterrupt:
            interrupted += 1
        except (StopIteration, ClosedError):
            break
    assert len(found) == len(set(found)) and found == sorted(found), found
    print(len(found), interrupted)
"""


def test_an_interrupted_run_ends_or_goes_on_but_gives_nothing_twice_or_out_of_order() -> None:
    with Family(INTERRUPTED_GOES_ON) as family:
        assert family.line() == "running"
        time.sleep(0.3)
        family.process.send_signal(signal.SIGINT)
        code, _, err = family.wait()
        assert (code, err) == (0, "")
        assert family.gone() == []


# Forks, exits, pools

FORK = """
import os, signal, sys, warnings
warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
from support import map_funcs as funcs
from lazystore import imap

def in_child(work):
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 1
    signal.alarm(30)
    try:
        work()
        code = 0
    except BaseException:
        import traceback
        traceback.print_exc()
    finally:
        os._exit(code)

def fresh():
    assert list(imap(funcs.square, range(40), backend=sys.argv[1], n_jobs=2)) == [k * k for k in range(40)]

def inherited():
    "The parent's run is not the child's: a clear end, not a hang, and not the parent's results."
    try:
        got = next(results)
    except (StopIteration, ValueError, RuntimeError):
        return
    raise AssertionError(f"got {got}")

def dropped():
    global results
    del results

if __name__ == "__main__":
    results = imap(funcs.slow, range(60), backend=sys.argv[1], n_jobs=2)
    found = [next(results) for _ in range(10)]
    assert in_child(fresh) == 0
    assert in_child(inherited) == 0
    assert in_child(dropped) == 0
    if os.fork() == 0:
        sys.exit(0)  # atexit of the child must not end the parent's workers
    os.wait()
    found += results
    assert found == list(range(60)), found
    fresh()
    print("done")
"""


@pytest.mark.parametrize("backend", ["process", "thread"])
def test_a_fork_in_the_middle_leaves_the_parent_alone_and_the_child_free(backend: str) -> None:
    with Family(FORK, backend) as family:
        code, out, err = family.wait()
        assert (code, out, err) == (0, "done\n", "")
        assert family.gone() == []


AT_EXIT = """
import atexit, itertools, sys, threading
from support import map_funcs as funcs
from lazystore import imap

def late():
    assert list(imap(funcs.square, range(40), backend=sys.argv[2], n_jobs=2)) == [k * k for k in range(40)]
    print("late", flush=True)

if __name__ == "__main__":
    how = sys.argv[1]
    results = imap(funcs.slow, itertools.count(), backend=sys.argv[2], n_jobs=2)
    for _ in range(5):
        next(results)
    if how == "kept by a module":
        import json
        json.kept = results
        del results
    elif how == "in a daemon thread":
        threading.Thread(target=lambda: [None for _ in results], daemon=True).start()
    elif how == "in a thread that ends later":
        threading.Thread(target=lambda: [next(results) for _ in range(20)]).start()
    elif how == "used by atexit":
        atexit.register(late)
"""


@pytest.mark.parametrize("backend", ["process", "thread"])
@pytest.mark.parametrize("how", ["kept by a module", "in a daemon thread", "in a thread that ends later"])
def test_the_interpreter_ends_in_the_middle_of_a_run(how: str, backend: str) -> None:
    with Family(AT_EXIT, how, backend) as family:
        assert family.wait() == (0, "", "")
        assert family.gone() == []


@pytest.mark.parametrize("backend", ["process"])
def test_a_run_inside_an_exit_function_works_or_is_refused(backend: str) -> None:
    with Family(AT_EXIT, "used by atexit", backend) as family:
        code, out, err = family.wait()
        assert code == 0
        assert (out, err) == ("late\n", "") or "Error" in err
        assert family.gone() == []


WARM = """
import os, sys, time
from support import map_funcs as funcs
from lazystore import imap

if __name__ == "__main__":
    seen = set()
    for _ in range(30):
        seen |= set(imap(funcs.pid, range(8), backend="process", n_jobs=2, chunksize=1))
    one, other = (imap(funcs.pid, range(40), backend="process", n_jobs=2, chunksize=1) for _ in range(2))
    pairs = list(zip(one, other))
    assert not {a for a, _ in pairs} & {b for _, b in pairs}, "two runs at once share a worker"
    print(len(seen))
"""


def test_warm_workers_serve_run_after_run_but_only_one_at_a_time() -> None:
    with Family(WARM) as family:
        code, out, err = family.wait()
        assert (code, err) == (0, "")
        assert int(out) <= 3
        assert family.gone() == []


LEAKS = """
import os, sys, threading
from support import map_funcs as funcs
from lazystore import imap

if __name__ == "__main__":
    def once():
        results = imap(funcs.block, [300_000] * 12, backend=sys.argv[1], n_jobs=2, chunksize=1)
        for _ in range(5):
            next(results)
        results.close()
        assert len(list(imap(funcs.picky, range(40), backend=sys.argv[1], n_jobs=2, on_error="skip"))) == 36

    for _ in range(3):
        once()
    files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(25):
        once()
    assert len(os.listdir("/proc/self/fd")) <= files + 2, (files, os.listdir("/proc/self/fd"))
    assert threading.active_count() <= threads + 2
    print("done")
"""


@pytest.mark.parametrize("backend", ["process", "thread"])
def test_runs_that_come_and_go_leave_no_file_thread_or_process(backend: str) -> None:
    with Family(LEAKS, backend) as family:
        code, out, err = family.wait()
        assert (code, out, err) == (0, "done\n", "")
        assert family.gone() == []


ENDS_STUBBORN = """
import itertools, os, sys, time
from pathlib import Path
from support import map_funcs as funcs
from lazystore import imap
import functools

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    results = imap(funcs.ignores_everything, range(10), backend="process", n_jobs=2, timeout=0.5, on_error="yield")
    assert type(next(results).error).__name__ == "ItemTimeoutError"
    results.close()
    results = imap(funcs.starts_thread, range(10), backend="process", n_jobs=2)
    assert list(results) == list(range(10))
    print("done", flush=True)
"""


def test_workers_that_ignore_signals_or_keep_threads_end_all_the_same(tmp_path: Path) -> None:
    with Family(ENDS_STUBBORN, tmp_path) as family:
        code, out, err = family.wait()
        assert (code, out, err) == (0, "done\n", "")
        assert family.gone() == []


FULL = """
import sys
from support import map_funcs as funcs
from lazystore import imap

if __name__ == "__main__":
    import resource
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]),) * 2)
    try:
        found = list(imap(funcs.square, range(40), backend="process", n_jobs=4))
    except Exception as error:
        print("refused:", type(error).__name__, error)
    else:
        print(found == [k * k for k in range(40)])
"""


@pytest.mark.parametrize("files", [8, 12, 16, 20, 26])
def test_too_few_file_descriptors_are_reported_or_done_without(files: int) -> None:
    with Family(FULL, files) as family:
        code, out, err = family.wait()
        assert code == 0, err
        assert out == "True\n" or out.startswith("refused:"), out
        assert family.gone() == []


CLOSED_STDIO = """
import os, sys
from support import map_funcs as funcs
from lazystore import imap

if __name__ == "__main__":
    place = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
    os.set_inheritable(place, True)
    for fd in (0, 1, 2):
        os.close(fd)
    found = list(imap(funcs.block, [10, 300_000] * 10, backend="process", n_jobs=2))
    os.write(place, b"%d" % sum(map(len, found)))
"""


def test_a_caller_without_standard_streams(tmp_path: Path) -> None:
    """As a service has it; files that are opened later get the numbers 0, 1 and 2."""
    with Family(CLOSED_STDIO, tmp_path / "out") as family:
        family.wait()
        assert (tmp_path / "out").read_text() == str(10 * 300_010)
        assert family.gone() == []
