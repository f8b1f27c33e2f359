"""Sizes, limits and configuration values: frozen, validated where they are made."""

from __future__ import annotations

import enum
import operator
import os
import re
from dataclasses import dataclass
from typing import Any

from lazystore.errors import ConfigError

__all__ = [
    "EvictionPolicy",
    "StreamingConfig",
    "cgroup_folders",
    "default_memory",
    "memory_limit",
    "parse_bytes",
    "seconds",
    "whole",
]

MIB = 1 << 20
MAX_BYTES = 1 << 48  # more than any address space holds
DEFAULT_MEMORY_CAP = 256 * MIB

# Decimal and binary suffixes as in IEC 80000-13; a bare letter is binary, as ulimit and docker have it.
_UNITS = {
    "": 1,
    "b": 1,
    **{f"{p}b": 1000 ** (i + 1) for i, p in enumerate("kmgt")},
    **{f"{p}ib": 1024 ** (i + 1) for i, p in enumerate("kmgt")},
    **{p: 1024 ** (i + 1) for i, p in enumerate("kmgt")},
}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")


class EvictionPolicy(enum.Enum):
    """Which resident bytes leave first when the budget is full."""

    LRU = "lru"
    FIFO = "fifo"
    S3FIFO = "s3fifo"


def parse_bytes(size: int | str, *, name: str = "memory") -> int:
    """Bytes from ``256 * 1024``, ``"64MB"`` (decimal), ``"64MiB"`` or ``"64M"`` (binary).

    Raises:
        ConfigError: not a size, or not above zero.
    """
    if not isinstance(size, (bool, str)) and hasattr(size, "__index__"):
        size = operator.index(size)  # numpy's integers are sizes too
    if isinstance(size, bool) or not isinstance(size, (int, str)):
        raise ConfigError(f"{name}={size!r} is not a size; give bytes as an int, or a string such as '64MB'")
    if isinstance(size, str):
        match = _SIZE.fullmatch(size)
        unit = match.group(2).lower() if match else ""
        if match is None or unit not in _UNITS:
            raise ConfigError(f"{name}={size!r} is not a size; write it as '64MB', '64MiB' or '1.5GB'")
        number = float(match.group(1)) * _UNITS[unit]
        size = int(number) if number < MAX_BYTES else MAX_BYTES
    if not 0 < size < MAX_BYTES:
        raise ConfigError(f"{name} must be above zero and below {MAX_BYTES} bytes")
    return size


def whole(name: str, value: Any, *, least: int = 1, hint: str = "") -> int:
    """A whole number (numpy's are, a bool is none) that is at least ``least``; ``hint`` ends the message.

    Raises:
        ConfigError: it is not; the message names it.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < least:
        raise ConfigError(f"{name}={value!r} must be a whole number, at least {least}{hint and f': {hint}'}")
    return operator.index(value)


def seconds(name: str, value: Any, *, above_zero: bool = True, hint: str = "") -> float:
    """A time in seconds: above zero, or (not ``above_zero``) zero too; never NaN. ``hint`` ends the message.

    Raises:
        ConfigError: it is not; the message names it.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not (value > 0 if above_zero else value >= 0):
        bound = "above zero" if above_zero else "zero or more"
        raise ConfigError(f"{name}={value!r} must be {bound}, in seconds{hint and f', {hint}'}")
    found: float = value
    return found


def memory_limit() -> int:
    """The tightest of host memory and the cgroup limits above this process, in bytes."""
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _cgroup_limit_files():
        try:
            with open(path) as file:
                text = file.read().strip()
        except OSError:
            continue  # a controller that is not there limits nothing
        if text.isdigit():
            limit = min(limit, int(text))
    return limit


def _cgroup_limit_files() -> list[str]:
    names = ("memory.max", "memory.limit_in_bytes")  # of version 2, of version 1
    return [f"{folder}/{name}" for folder in cgroup_folders("memory") for name in names]


def cgroup_folders(controller: str) -> list[str]:
    """Folders that may hold limits of this process: of each control group it is in and of each above, the root first.

    Parameters:
        controller: whose hierarchy is looked at where control groups have version 1: ``"memory"``, ``"cpu"``.
    """
    try:
        with open("/proc/self/cgroup") as file:
            return parse_cgroups(file.read(), controller)
    except OSError:
        return parse_cgroups("", controller)


def parse_cgroups(groups: str, controller: str) -> list[str]:
    """The same from the text of a process's ``/proc/self/cgroup``; a container sees its own group as the root."""
    v2, v1 = "/sys/fs/cgroup", f"/sys/fs/cgroup/{controller}"
    folders = [v2, v1]
    for line in groups.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        root = v2 if number == "0" and not controllers else v1 if controller in controllers.split(",") else ""
        parts = [part for part in group.split("/") if part and part != ".."]
        folders += ["/".join([root, *parts[:count]]) for count in range(1, len(parts) + 1) if root]
    return folders


def default_memory() -> int:
    """The budget when none is given: 256 MiB, or a quarter of the memory limit if that is less."""
    return min(DEFAULT_MEMORY_CAP, memory_limit() // 4)


@dataclass(frozen=True, slots=True)
class StreamingConfig:
    """Settings of an in-memory item loader.

    Attributes:
        max_memory_size: the hard byte budget: resident bytes, tables and requests in flight.
        eviction_policy: which frames leave first.
        chunk_timeout: seconds a read may wait for bytes or for a free frame, retries included.
        enable_memory_monitoring: keep per-chunk hit counts and access times for ``get_memory_stats()``.

    Raises:
        ConfigError: a value is out of its range.
    """

    max_memory_size: int = 100 * 1024 * 1024
    eviction_policy: EvictionPolicy = EvictionPolicy.LRU
    chunk_timeout: float = 30.0
    enable_memory_monitoring: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_memory_size", parse_bytes(self.max_memory_size, name="max_memory_size"))
        if not isinstance(self.eviction_policy, EvictionPolicy):
            try:
                object.__setattr__(self, "eviction_policy", EvictionPolicy(self.eviction_policy))
            except ValueError:
                known = ", ".join(p.name for p in EvictionPolicy)
                raise ConfigError(
                    f"eviction_policy={self.eviction_policy!r} is not one of EvictionPolicy's {known}"
                ) from None
        if not isinstance(self.chunk_timeout, (int, float)) or not self.chunk_timeout > 0:
            raise ConfigError(f"chunk_timeout={self.chunk_timeout!r} must be above zero seconds")
