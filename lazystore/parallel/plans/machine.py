"""What the machine has for this process: memory that is free right now, and how many physical cores there are.

Only reading; what is done about it is decided by those who ask. Processors that may be used: ``cpus``.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import os
import sys

from lazystore.config import cgroup_folders

__all__ = ["available_memory", "physical_cores"]

#: names of a limit, of what is used, and of the pages of files in use that would be dropped: cgroup v2, v1
_NAMES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def available_memory() -> int | None:
    """Bytes that can be had before the kernel kills or swaps; None where the system does not say.

    The least of the host's available memory and, for every cgroup above this process, its limit less what is in
    use; pages of files that the kernel would drop count as free. Costs some ten file reads, ~0.2 ms.
    """
    groups = [_left_in_cgroup(folder, *names) for folder in cgroup_folders("memory") for names in _NAMES]
    found = [_host_available(), *groups]
    known = [left for left in found if left is not None]
    return max(0, min(known)) if known else None


@functools.cache
def physical_cores() -> int | None:
    """Cores of the machine, hyper-threads counted once, whoever may use them; None where the system does not say."""
    cores = set()
    for topology in glob.glob("/sys/devices/system/cpu/cpu[0-9]*/topology"):
        with contextlib.suppress(OSError):  # of a processor that is switched off
            cores.add((_read(topology, "physical_package_id"), _read(topology, "core_id")))
    return len(cores) or None


def _host_available() -> int | None:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux: asked below
    if sys.platform == "darwin":
        # Neither sysconf nor sysctl tells what could be freed; half of all is a guess that errs to the small side.
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return None


def _left_in_cgroup(folder: str, limit_file: str, usage_file: str, droppable: str) -> int | None:
    try:
        limit = _read(folder, limit_file)
        if not limit.isdigit():
            return None  # "max"
        used = int(_read(folder, usage_file))
        for line in _read(folder, "memory.stat").splitlines():
            name, _, value = line.partition(" ")
            if name == droppable:
                used -= int(value)
    except OSError:
        return None  # a controller that is not there limits nothing
    return int(limit) - max(used, 0)


def _read(folder: str, name: str) -> str:
    with open(os.path.join(folder, name), encoding="ascii") as file:
        return file.read().strip()
