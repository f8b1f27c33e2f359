"""What all processes of a session hold together, over time: their memory, and files in memory that none has mapped."""

from __future__ import annotations

import contextlib
import os
import threading
import time

__all__ = ["Footprint", "children_of", "session_pids", "shared_files", "total_bytes"]


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on; the name before them may contain anything."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()


def session_pids(session: int) -> list[int]:
    """Processes of a session that still run; those that have ended and wait to be noticed are left out."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                state, _parent, _group, its_session, *_ = _stat(int(name))
                if int(its_session) == session and state not in "ZX":
                    found.append(int(name))
    return found


def children_of(pid: int, among: list[int]) -> list[int]:
    """Those whose parent is ``pid``."""
    found = []
    for each in among:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if int(_stat(each)[1]) == pid:
                found.append(each)
    return found


def shared_files(pids: list[int]) -> int:
    """Bytes of the files in memory that these processes have open (``memfd_create``, /dev/shm), each once."""
    seen: dict[tuple[int, int], int] = {}
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                path = f"/proc/{pid}/fd/{name}"
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    if os.readlink(path).startswith(("/memfd:", "/dev/shm/")):
                        status = os.stat(path)
                        seen[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(seen.values())


def _pss(pid: int) -> int:
    """Proportional set size, bytes; 0 for a process that has just ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{pid}/smaps_rollup") as file:
        for line in file:
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def total_bytes() -> int:
    """Of all processes of this session."""
    pids = session_pids(os.getsid(0))
    return sum(map(_pss, pids)) + shared_files(pids)


class Footprint:
    """Looks every ``period_s`` from a thread, until :meth:`stop`.

    Parameters:
        most: when this many bytes are passed ``full`` is set.
        period_s: seconds between looks.
    """

    def __init__(self, most: int, period_s: float = 0.1) -> None:
        self.base = total_bytes()
        self.samples: list[tuple[float, int]] = []
        self.full = threading.Event()
        self._most = most
        self._period_s = period_s
        self._began = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(self._period_s):
            total = total_bytes()
            self.samples.append((time.monotonic() - self._began, total))
            if total > self._most:
                self.full.set()

    def stop(self) -> None:
        """End the looking, with a last look."""
        self._over.set()
        self._thread.join()
        self.samples.append((time.monotonic() - self._began, total_bytes()))
