"""How hard the machine, or the container, is short of memory, and how much of its budget a store should use then.

Read from control groups (version 2, else 1) and from pressure stall information, at most once a second and only
while the store is used: there is no thread. It lowers a target, never raises it above the budget, and never looks
at this process's resident set: freed memory stays in arenas, so that evicting by it empties caches for nothing.

Sources: the kernel's admin-guide/cgroup-v2 and accounting/psi.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable

from lazystore.cache.clock import Clock
from lazystore.config import parse_cgroups
from lazystore.errors import ConfigError

__all__ = ["Pressure"]

#: Percent of the last ten seconds in which some task waited for memory, and the share of the budget used then.
MILD, MILD_SHARE = 10.0, 0.75
SEVERE, SEVERE_SHARE = 25.0, 0.5
#: Share of the budget won back a second once the pressure is over.
RECOVERY = 0.05
#: Seconds between looks.
INTERVAL = 1.0


class Pressure:
    """Looks at the memory of the machine and of the control groups this process is in.

    Parameters:
        threshold: share of a group's limit whose use counts as mild pressure; half of what is missing to all counts
            as severe.
        clock: says when a look is due.
        root: where ``/proc`` and ``/sys`` are found.

    Files that are not there limit nothing. Cost: a comparison; once a second, some 100 us of reading files.
    Threads: any; one at a time looks. Fork: the child looks for itself. Pickle: as its arguments.

    Raises:
        ConfigError: ``threshold`` is not in (0, 1].
    """

    def __init__(self, *, threshold: float = 0.9, clock: Clock | None = None, root: str = "/") -> None:
        if not 0 < threshold <= 1:
            raise ConfigError(f"threshold={threshold!r} must be above 0 and at most 1")
        self.threshold = threshold
        self.root = root
        self.share = 1.0
        self.severe = False
        self.reason = ""
        self.looks = 0
        self._clock = clock or Clock()
        self._looked = self._clock.monotonic() - INTERVAL
        self._kills: int | None = None
        self._folders: list[str] | None = None
        self._lock = threading.Lock()

    def due(self) -> bool:
        """Whether :meth:`look` would read anything."""
        return self._clock.monotonic() - self._looked >= INTERVAL

    def look(self) -> float:
        """The share of the budget to use, by the files as they are now; not more than one look a second is taken."""
        if not self.due() or not self._lock.acquire(blocking=False):
            return self.share
        try:
            now = self._clock.monotonic()
            passed, self._looked = now - self._looked, now
            self.looks += 1
            stalls, use, kills = self._stalls(), self._use(), self._new_kills()
            severe_use = (1.0 + self.threshold) / 2
            self.reason = self._told(stalls, use, kills)
            self.severe = stalls > SEVERE or use > severe_use or kills > 0
            if self.severe:
                self.share = min(self.share, SEVERE_SHARE)
            elif stalls > MILD or use > self.threshold:
                self.share = min(self.share, MILD_SHARE)
            else:
                self.share = min(1.0, self.share + RECOVERY * passed)
        finally:
            self._lock.release()
        return self.share

    def _told(self, stalls: float, use: float, kills: int) -> str:
        told = []
        if stalls > MILD:
            told.append(f"tasks waited for memory {stalls:g} % of the last ten seconds")
        if use > self.threshold:
            told.append(f"{use:.0%} of the memory of the control group is in use")
        if kills:
            told.append(f"the control group ran out of memory {kills} times since the last look")
        return "; ".join(told)

    # -- files --------------------------------------------------------------------------

    def _groups(self) -> list[str]:
        """Folders of the control groups above this process, the root's first; looked for once."""
        if self._folders is None:
            found = parse_cgroups(self._text("/proc/self/cgroup"), "memory")
            self._folders = [folder for folder in found if os.path.isdir(self._at(folder))]
        return self._folders

    def _stalls(self) -> float:
        """``some avg10`` of the innermost group that tells it, else of the machine; in percent."""
        for folder in reversed(self._groups()):
            text = self._text(f"{folder}/memory.pressure")
            if text:
                return _avg10(text)
        return _avg10(self._text("/proc/pressure/memory"))

    def _use(self) -> float:
        """Use of the tightest limit above this process, caches of files that can be dropped at once not counted."""
        return max((self._use_of(folder) for folder in self._groups()), default=0.0)

    def _use_of(self, folder: str) -> float:
        limits = [_number(self._text(f"{folder}/{name}")) for name in ("memory.max", "memory.high", _V1_LIMIT)]
        limit = min((found for found in limits if found), default=0)
        if not limit:
            return 0.0
        current = _number(self._text(f"{folder}/memory.current")) or _number(self._text(f"{folder}/{_V1_USAGE}"))
        stat = _fields(self._text(f"{folder}/memory.stat"))
        droppable = stat.get("total_inactive_file", stat.get("inactive_file", 0))
        return max(0, current - droppable) / limit

    def _new_kills(self) -> int:
        """How often the groups ran out of memory since the last look. That ``memory.high`` was passed says nothing:
        reading files does it, and dropping their pages ends it."""
        kills = 0
        for folder in self._groups():
            events = _fields(self._text(f"{folder}/memory.events"))
            kills += events.get("oom", 0) + events.get("oom_kill", 0)
        before, self._kills = self._kills, kills
        return max(0, kills - before) if before is not None else 0

    def _at(self, path: str) -> str:
        return os.path.join(self.root, path.lstrip("/"))

    def _text(self, path: str) -> str:
        try:
            with open(self._at(path), encoding="ascii", errors="replace") as file:
                return file.read(1 << 16)
        except OSError:
            return ""  # a controller that is not there limits nothing

    def reset_after_fork(self) -> None:
        """In a forked child: forget a thread of the parent that was looking, and its groups."""
        self._lock = threading.Lock()
        self._folders = None

    def __reduce__(self) -> tuple[object, ...]:
        return _made, (self.threshold, self._clock, self.root)

    def __repr__(self) -> str:
        return f"<Pressure {self.reason or 'none'}: {self.share:.0%} of the budget>"


_V1_LIMIT, _V1_USAGE = "memory.limit_in_bytes", "memory.usage_in_bytes"


def _made(threshold: float, clock: Clock, root: str) -> Pressure:
    return Pressure(threshold=threshold, clock=clock, root=root)


def _number(text: str) -> int:
    """A file's number; 0 for ``max``, for none, and for version 1's way to say that there is no limit."""
    text = text.strip()
    found = int(text) if text.isdigit() else 0
    return found if found < 1 << 60 else 0


def _fields(text: str) -> dict[str, int]:
    pairs: Iterable[list[str]] = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _avg10(text: str) -> float:
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["some"]:
            for word in words[1:]:
                name, _, value = word.partition("=")
                if name == "avg10":
                    try:
                        return float(value)
                    except ValueError:
                        return 0.0
    return 0.0
