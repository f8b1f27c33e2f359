"""Reading ahead of a scan: the parts it will want next are on their way before it asks.

Which parts those are is plain (a scan goes forward); how many, the arena decides. What was fetched
ahead is not pinned: an iterator that nobody goes on with holds nothing.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from lazystore.cache.wave import Part, Wave

if TYPE_CHECKING:
    from lazystore.cache.memory import ChunkMemory

__all__ = ["ReadAhead"]

MIB = 1 << 20
#: Bytes of one request: long enough to carry, short enough that many are under way.
GROUP_BYTES = MIB
#: Share of the arena that may be fetched, or held, ahead of the scan.
AHEAD_SHARE = 4
FIRST_GROUPS = 2


class ReadAhead:
    """Keeps the parts after a scan's position under way.

    Parameters:
        memory: whose frames they go to.
        end: the last part the scan will want.

    Memory: at most a quarter of the arena's frames, and those only while bytes are under way to them.
    Threads: used by the scan's thread. Fork: the waves are dead in the child, and it starts anew. Pickling: none.
    """

    def __init__(self, memory: ChunkMemory, end: Part) -> None:
        self._memory = memory
        self._end = end
        self._group = max(1, GROUP_BYTES // memory.store.frame_bytes)
        self._most = max(1, memory.store.n_frames // AHEAD_SHARE)
        self._depth = min(self._most, FIRST_GROUPS * self._group)
        self._next: Part = (-1, -1)
        self._stopped: Part = (-1, -1)  # where to go on once the scan has a farther end
        self._sent: deque[tuple[list[Part], Wave | None]] = deque()

    def begin(self, parts: list[Part]) -> None:
        """Start with these parts (the first ones a scan needs), then go on after the last of them."""
        for part in parts[:-1]:
            self._send([part])
        self._next = parts[-1]
        self._send([self._take()])
        self._top_up()

    def at(self, chunk: int, part: int) -> None:
        """The scan has entered a part: let go of those before it, and send for more."""
        here = (chunk, part)
        self._memory.settle()
        while self._sent and self._sent[0][0][-1] < here:
            self._forget(self._sent.popleft()[1])
        if self._next[0] >= 0 and self._next < here:
            self._next = here
        self._depth = min(self._most, 2 * self._depth)
        self._top_up()

    def _ahead(self) -> int:
        return sum(len(parts) for parts, _ in self._sent)

    def _top_up(self) -> None:
        ahead = self._ahead()
        # Not for a part or two that came free: the groups would be cut into ever smaller requests.
        least = max(1, min(self._group, self._depth // 2))
        while self._depth - ahead >= least and self._next[0] >= 0:
            room = min(self._group, self._depth - ahead)
            group = [self._take()]
            while len(group) < room and self._next[0] == group[0][0]:
                group.append(self._take())
            if not self._send(group):
                return
            ahead += len(group)

    def _take(self) -> Part:
        part = self._next
        following = self._memory.next_part(part)
        self._next = following if following <= self._end else (-1, -1)
        self._stopped = following
        return part

    def extend(self, end: Part) -> None:
        """The scan will go on to this part."""
        self._end = max(end, self._end)
        if self._next[0] < 0 <= self._stopped[0] and self._stopped <= self._end:
            self._next = self._stopped
            self._top_up()

    def _send(self, parts: list[Part]) -> bool:
        """Send for parts; False when no frame is to be had for all of them now: the rest is next then."""
        wave, sent = self._memory.send(parts)
        if sent:
            self._sent.append((parts[:sent], wave))
        if sent < len(parts):
            self._next = parts[sent]
        return sent == len(parts)

    def close(self) -> None:
        """Cancel what is under way and let the frames go."""
        self._next = (-1, -1)
        while self._sent:
            self._forget(self._sent.popleft()[1])

    def _forget(self, wave: Wave | None) -> None:
        if wave is not None:
            wave.drop()

    def __repr__(self) -> str:
        return f"<ReadAhead, {self._ahead()} parts ahead, {self._depth} wanted>"
