"""Threads that libraries use inside a function: how many they may, and whether a function has any.

When every CPU has a worker, a BLAS or OpenMP library that starts a thread a CPU in each of them makes all of them
slower. So workers limit those libraries; the number of workers is not cut for them. Nothing here changes the caller's
process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lazystore.parallel.scheduling.evidence import CallTimes  # workers do without

__all__ = ["has_inner_threads", "limit_inner_threads", "native_threads", "thread_environment"]

_OPENMP = "OMP_NUM_THREADS"
_BLAS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_NUMBA = "NUMBA_NUM_THREADS"
VARIABLES = (_OPENMP, *_BLAS, _NUMBA, "NUMEXPR_NUM_THREADS")
# Names the variables that lazystore set, not the user: a warm worker may change those for its next job.
OURS = "LAZYSTORE_SET_VARIABLES"


def thread_environment(n: int, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Environment variables that limit libraries to ``n`` threads in a process that is started with them.

    Variables that the user's environment sets are left out: they win. Empty for ``n`` = 0 (as the libraries like).

    Parameters:
        n: threads; 0 for no limit.
        environment: the user's.
    """
    if n < 1:
        return {}
    ours = [name for name in VARIABLES if name not in environment or name in _ours(environment)]
    return {name: str(n) for name in ours} | {OURS: ",".join(ours)}


def _ours(environment: Mapping[str, str]) -> list[str]:
    return environment.get(OURS, "").split(",")


class _Limits:
    """What this process's libraries are limited to.

    Attributes:
        state: number of threads and of modules when limits were last set: libraries come with modules.
        pools: threadpoolctl's limiter, which knows what was there before.
        torch_threads: torch's own number before it was limited; 0 when it is not.
    """

    def __init__(self) -> None:
        self.state = (0, 0)
        self.pools: Any = None
        self.torch_threads = 0


_limits = _Limits()


def limit_inner_threads(n: int) -> None:
    """Let libraries use ``n`` threads in this worker process from now on; 0: as many as they like.

    Meant to be called before each job, once its function is loaded. Libraries loaded later go by environment
    variables, which are set as well; those loaded are told through threadpoolctl where that is installed, and torch by
    itself. What the user's environment sets (``OMP_NUM_THREADS`` and so on) stays as it is. numba takes its variable
    once, when it is imported; later jobs of the same worker cannot change it.

    Cost: below a microsecond when neither ``n`` nor the modules loaded changed; otherwise a few milliseconds.
    Not for the caller's own process: the limits hold for all of its threads.
    """
    state = (n, len(sys.modules))
    if state == _limits.state or (n == 0 and _limits.state[0] == 0 and OURS not in os.environ):
        return
    _set_environment(n)
    _limit_loaded(n)
    _limit_torch(n)
    _limits.state = (n, len(sys.modules))  # threadpoolctl is a module too


def _set_environment(n: int) -> None:
    new = thread_environment(n)
    keep = {_NUMBA} if "numba" in sys.modules else set()  # numba raises when it finds another value than at its start
    for name in {*_ours(os.environ), OURS} - {*new, "", *keep}:
        os.environ.pop(name, None)
    os.environ.update({name: value for name, value in new.items() if name not in keep})


def _limit_loaded(n: int) -> None:
    if _limits.pools is not None:
        _limits.pools.restore_original_limits()
        _limits.pools = None
    limits = {}
    if _free(_OPENMP):
        limits["openmp"] = n
        if all(_free(name) for name in _BLAS):
            limits["blas"] = n
    if n < 1 or not limits or not _pools_loaded():
        return
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return  # optional: the environment has to do
    _limits.pools = threadpool_limits(limits)


def _free(name: str) -> bool:
    """Whether the user left the variable to us."""
    return name not in os.environ or name in _ours(os.environ)


def _pools_loaded() -> bool:
    """Whether a module is loaded that may have brought a BLAS or OpenMP library; looking for those takes a while."""
    return any(
        name in sys.modules for name in ("numpy", "scipy", "torch", "sklearn", "cv2", "faiss", "xgboost", "lightgbm")
    )


def _limit_torch(n: int) -> None:
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "set_num_threads") or not (_free(_OPENMP) and _free("MKL_NUM_THREADS")):
        return
    if n > 0:
        _limits.torch_threads = _limits.torch_threads or torch.get_num_threads()
        torch.set_num_threads(n)
    elif _limits.torch_threads:
        torch.set_num_threads(_limits.torch_threads)
        _limits.torch_threads = 0


def native_threads() -> int:
    """Threads of this process, those of native libraries included where the system tells (Linux); 10 us."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        import threading

        return threading.active_count()


ALONE = 0.3  # other threads' CPU time over the caller's own: beyond this the function has threads that work for it
STARTED = 0.1  # the same, when threads appeared while it ran
ENOUGH_S = 0.005  # below this, clocks and the start of other threads blur the picture


def has_inner_threads(calls: CallTimes, *, started: int = 0) -> bool:
    """Whether a function computes in threads of its own, judged by what its calls used.

    Evidence is the CPU time that other threads of the process spent during the calls, against that of the calling
    thread: it holds on a machine that is busy with other things, where CPU time over elapsed time does not. Libraries
    that are only loaded, and threads that are only there (idle pools, a monitor that sleeps), do not count. Other busy
    threads of the program do: they cannot be told from the function's own.

    Parameters:
        calls: times of calls of the function, a few milliseconds in all at least; of less nothing is said (False).
        started: threads that the process has more than before the calls (:func:`native_threads`).
    """
    if calls.process_s < ENOUGH_S:
        return False
    share = STARTED if started > 0 else ALONE
    return calls.others_s > share * max(calls.thread_s, 0.1 * calls.wall_s)
