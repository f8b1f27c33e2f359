"""How many CPUs this process may keep busy: affinity, the quotas of its control groups, the user's own cap.

Counting only; what is done with the number is decided where workers are started.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Mapping

from lazystore.config import cgroup_folders

__all__ = ["MAX_CPUS_VARIABLE", "usable_cpus"]

MAX_CPUS_VARIABLE = "LAZYSTORE_MAX_CPUS"
KEPT_S = 1.0  # quotas of a container may be changed while it runs; reading them takes some 0.1 ms

_kept: tuple[float, int] = (-math.inf, 0)


def usable_cpus() -> int:
    """CPUs that this process may keep busy at the same time, at least 1.

    The least of: CPUs it may be scheduled on (affinity; ``PYTHON_CPU_COUNT`` where Python knows it), the CPU quota of
    its control group and of each group above (``cpu.max``; with cgroup v1 ``cpu.cfs_quota_us``), rounded up, and the
    environment variable ``LAZYSTORE_MAX_CPUS``.

    Cost: files are read at most once a second, 0.1 ms; otherwise below a microsecond. May be called from any thread.
    """
    global _kept
    now = time.monotonic()
    until, count = _kept
    if now >= until:
        count = _counted()
        _kept = (now + KEPT_S, count)
    return count


def _counted() -> int:
    return max(1, math.ceil(min(_scheduled(), _quota(), user_cap(os.environ))))


def _scheduled() -> int:
    """CPUs the kernel may run this process on."""
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        return os.process_cpu_count() or 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def user_cap(environment: Mapping[str, str]) -> float:
    """What ``LAZYSTORE_MAX_CPUS`` allows; infinite where it is not set, or is not a number above zero (this warns)."""
    text = environment.get(MAX_CPUS_VARIABLE, "").strip()
    if not text:
        return math.inf
    if text.isdecimal() and int(text):
        return int(text)
    warnings.warn(f"{MAX_CPUS_VARIABLE}={text!r} is not a number of CPUs, such as 4; it is ignored", stacklevel=4)
    return math.inf


def _quota() -> float:
    """The tightest CPU quota of the control groups this process is in, in CPUs."""
    least = math.inf
    for folder in cgroup_folders("cpu"):
        least = min(
            least,
            quota_v2(_text(f"{folder}/cpu.max")),
            quota_v1(_text(f"{folder}/cpu.cfs_quota_us"), _text(f"{folder}/cpu.cfs_period_us")),
        )
    return least


def _text(path: str) -> str:
    """What is in a file of the kernel's; nothing where there is no such file: it limits nothing."""
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def quota_v2(cpu_max: str) -> float:
    """CPUs from the text of ``cpu.max``: ``"max 100000"`` or ``"150000 100000"``; infinite where it limits nothing."""
    quota, _, period = cpu_max.strip().partition(" ")
    return _ratio(quota, period or "100000")


def quota_v1(quota_us: str, period_us: str) -> float:
    """CPUs from ``cpu.cfs_quota_us`` and ``cpu.cfs_period_us``; a quota of -1 limits nothing."""
    return _ratio(quota_us.strip(), period_us.strip())


def _ratio(quota: str, period: str) -> float:
    if quota.isdecimal() and period.isdecimal() and int(quota) and int(period):
        return int(quota) / int(period)
    return math.inf
