"""`Rope`: blocks of bytes in a row, as they came, taken from the front; and searching in what cannot be searched.

Nothing is copied but what lies across blocks, once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

__all__ = ["Rope", "find", "rfind"]

#: Bytes copied at first to look for something in a view; doubled while it is not there.
LOOK = 4096


class Rope:
    """Blocks of bytes in a row.

    Attributes:
        size: bytes in all.

    One thread at a time. Cost of every method: O(bytes across blocks that it joins), else O(1).
    """

    __slots__ = ("_parts", "size")

    def __init__(self) -> None:
        self._parts: deque[memoryview] = deque()
        self.size = 0

    def append(self, block: memoryview) -> None:
        """Add a block at the end."""
        if len(block):
            self._parts.append(block)
            self.size += len(block)

    def front(self, n: int) -> memoryview:
        """The first ``n`` bytes or more, in one view; they stay."""
        if not self._parts:
            return memoryview(b"")
        if len(self._parts[0]) < n:
            joined, length = [], 0
            while length < n and self._parts:
                joined.append(self._parts.popleft())
                length += len(joined[-1])
            over = length - n
            if over > 0:  # of a large block only what is asked for is copied
                self._parts.appendleft(joined[-1][len(joined[-1]) - over :])
                joined[-1] = joined[-1][: len(joined[-1]) - over]
            self._parts.appendleft(memoryview(b"".join(joined)))
        return self._parts[0]

    def take(self, n: int) -> memoryview:
        """The first ``n`` bytes, which leave; read-only."""
        front = self.front(n)
        if len(front) == n:
            self._parts.popleft()
        else:
            self._parts[0] = front[n:]
        self.size -= n
        return front[:n].toreadonly()

    def last(self, n: int) -> Iterator[memoryview]:
        """The last ``n`` bytes, in order."""
        found: list[memoryview] = []
        for part in reversed(self._parts):
            if n <= 0:
                break
            found.append(part[max(0, len(part) - n) :])
            n -= len(part)
        return reversed(found)

    def own_last(self) -> None:
        """Copy what is left of the last block: whoever made it may fill it anew."""
        self._parts.append(memoryview(bytes(self._parts.pop())))

    def byte(self, n: int) -> int:
        """The byte at position ``n``."""
        for part in self._parts:
            if n < len(part):
                return part[n]
            n -= len(part)
        raise IndexError("no such byte in the rope")


def find(view: memoryview, needle: bytes, start: int, stop: int) -> int:
    """Where ``needle`` first is in ``view[start:stop]``, as a position in ``view``; -1: nowhere."""
    step = LOOK
    while stop - start >= len(needle):
        end = min(stop, start + max(step, len(needle)))
        found = bytes(view[start:end]).find(needle)
        if found >= 0:
            return start + found
        if end == stop:
            return -1
        start = end - len(needle) + 1
        step = min(2 * step, 1 << 20)
    return -1


def rfind(view: memoryview, needle: bytes, start: int, stop: int) -> int:
    """Where ``needle`` last is in ``view[start:stop]``, as a position in ``view``; -1: nowhere."""
    step = LOOK
    while stop - start >= len(needle):
        begin = max(start, stop - max(step, len(needle)))
        found = bytes(view[begin:stop]).rfind(needle)
        if found >= 0:
            return begin + found
        if begin == start:
            return -1
        stop = begin + len(needle) - 1
        step = min(2 * step, 1 << 20)
    return -1
