"""Threads inside functions: limits reach the libraries of a worker; threads that work are told from idle ones."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lazystore.parallel.scheduling.evidence import CallTimes
from lazystore.parallel.workers.inner_threads import has_inner_threads, thread_environment

NAMES = {
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
}


def without_marks(variables):
    return {name: value for name, value in variables.items() if not name.startswith("LAZYSTORE_")}


def test_the_environment_of_a_worker_limits_every_library():
    assert without_marks(thread_environment(2, {})) == dict.fromkeys(NAMES, "2")


def test_what_the_user_set_is_left_alone():
    limits = thread_environment(1, {"OMP_NUM_THREADS": "8", "HOME": "/x"})
    assert set(without_marks(limits)) == NAMES - {"OMP_NUM_THREADS"}


def test_no_limit_sets_nothing():
    assert thread_environment(0, {}) == {}


def test_what_lazystore_set_itself_is_not_taken_for_the_users():
    environment = {"MKL_NUM_THREADS": "5"}
    environment |= thread_environment(1, environment)
    again = thread_environment(4, environment)
    assert without_marks(again) == dict.fromkeys(NAMES - {"MKL_NUM_THREADS"}, "4")


def in_a_process(code, **variables):
    """What a script prints, in an interpreter whose environment limits nothing but by ``variables``."""
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment | variables, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


LIMITED = """
import os
from lazystore.parallel.workers.inner_threads import limit_inner_threads
limit_inner_threads(0)
print(os.environ.get("NUMEXPR_NUM_THREADS"))
limit_inner_threads(3)
print(os.environ["NUMEXPR_NUM_THREADS"], os.environ["OMP_NUM_THREADS"])
limit_inner_threads(1)
print(os.environ["NUMEXPR_NUM_THREADS"], os.environ["OMP_NUM_THREADS"])
limit_inner_threads(0)
print(os.environ.get("NUMEXPR_NUM_THREADS"), os.environ["OMP_NUM_THREADS"])
"""


def test_limits_follow_the_jobs_of_a_worker_and_never_the_users_own_value():
    assert in_a_process(LIMITED, OMP_NUM_THREADS="7") == ["None", "3", "7", "1", "7", "None", "7"]


STARTED = """
import os
from lazystore.parallel.workers.inner_threads import limit_inner_threads, thread_environment
os.environ.update(thread_environment(1))
limit_inner_threads(0)
print("OMP_NUM_THREADS" in os.environ, "NUMEXPR_NUM_THREADS" in os.environ)
"""


def test_a_job_without_limit_undoes_those_a_worker_was_started_with():
    assert in_a_process(STARTED) == ["False", "False"]
    assert in_a_process(STARTED, OMP_NUM_THREADS="2") == ["True", "False"]


BLAS = """
import threadpoolctl, numpy
from lazystore.parallel.workers.inner_threads import limit_inner_threads
def blas():
    pools = threadpoolctl.threadpool_info()
    return max([pool["num_threads"] for pool in pools if pool["user_api"] == "blas"], default=0)
most = blas()
limit_inner_threads(1)
low = blas()
limit_inner_threads(0)
print(most, low, blas())
"""


def test_a_blas_that_is_loaded_is_told_and_gets_its_threads_back():
    pytest.importorskip("threadpoolctl")
    most, low, after = map(int, in_a_process(BLAS))
    if most < 2:
        pytest.skip("numpy's BLAS has one thread here anyway")
    assert (low, after) == (1, most)
    assert in_a_process(BLAS, OPENBLAS_NUM_THREADS="2")[1] == "2"  # the user's


LATER = """
import sys
from lazystore.parallel.workers.inner_threads import limit_inner_threads
limit_inner_threads(1)
import numpy, threadpoolctl
print(max([pool["num_threads"] for pool in threadpoolctl.threadpool_info()], default=1))
"""


def test_a_library_that_is_loaded_later_goes_by_the_environment():
    pytest.importorskip("threadpoolctl")
    assert in_a_process(LATER) == ["1"]


WITHOUT = """
import sys
sys.modules["threadpoolctl"] = None
import numpy, os
from lazystore.parallel.workers.inner_threads import limit_inner_threads
limit_inner_threads(1)
print(os.environ["OPENBLAS_NUM_THREADS"], float(numpy.eye(3).sum()))
"""


def test_threadpoolctl_may_be_missing():
    assert in_a_process(WITHOUT) == ["1", "3.0"]


TORCH = """
import sys, types
torch = types.ModuleType("torch")
torch.threads = 6
torch.get_num_threads = lambda: torch.threads
torch.set_num_threads = lambda n: setattr(torch, "threads", n)
sys.modules["torch"] = torch
sys.modules["threadpoolctl"] = None
from lazystore.parallel.workers.inner_threads import limit_inner_threads
limit_inner_threads(2); print(torch.threads)
limit_inner_threads(1); print(torch.threads)
limit_inner_threads(0); print(torch.threads)
"""


def test_torch_is_told_and_gets_its_threads_back():
    assert in_a_process(TORCH) == ["2", "1", "6"]


def test_threads_that_work_for_a_function_are_seen_on_an_idle_and_on_a_busy_machine():
    assert has_inner_threads(CallTimes(5, wall_s=0.1, thread_s=0.09, process_s=0.18))
    assert has_inner_threads(CallTimes(5, wall_s=0.1, thread_s=0.05, process_s=0.1))  # two threads on one CPU
    assert has_inner_threads(CallTimes(5, wall_s=0.1, thread_s=0.001, process_s=0.1))  # it only waits for them


def test_a_function_that_computes_by_itself_or_waits_has_none():
    assert not has_inner_threads(CallTimes(5, wall_s=0.1, thread_s=0.1, process_s=0.11))
    assert not has_inner_threads(CallTimes(5, wall_s=1.0, thread_s=0.001, process_s=0.006))
    assert not has_inner_threads(CallTimes())


def test_threads_that_are_only_there_do_not_count():
    assert not has_inner_threads(CallTimes(5, wall_s=0.1, thread_s=0.1, process_s=0.101), started=8)
    assert has_inner_threads(CallTimes(5, wall_s=0.1, thread_s=0.1, process_s=0.115), started=8)


COUNT = """
import threading
from lazystore.parallel.workers.inner_threads import native_threads
before = native_threads()
end = threading.Event()
threads = [threading.Thread(target=end.wait) for _ in range(3)]
for thread in threads:
    thread.start()
print(native_threads() - before)
end.set()
"""


def test_threads_are_counted():
    assert in_a_process(COUNT) == ["3"]
