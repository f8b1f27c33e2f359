"""Where cuts are: rules that are fed blocks or objects as they come and give pieces as they are complete.

No input, no output, no threads: the same rules serve sync and async sources (``chunker`` drives them).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from lazystore._core.gear import GearCutter
from lazystore.errors import ConfigError, FormatError
from lazystore.lazy.rope import Rope, find, rfind

__all__ = ["BytesCutter", "ContentRule", "Cutter", "ObjectsCutter", "Pace", "RecordRule", "Rule", "SizeRule"]

#: What the latest rate counts for in the average.
ALPHA = 0.3
#: Characters of text that are encoded at once.
TEXT_BLOCK = 1 << 16
#: Bytes behind a cut that are looked through at first for the end of a record.
FIRST_LOOK = 1 << 16


class Pace:
    """How large chunks are to be: one size, or one steered to the time that a chunk takes.

    Parameters:
        size: to begin with; low, high: what it stays within; all in the same unit.
        seconds: how long a chunk is to take, or None: the size stays as it is.
    """

    __slots__ = ("_high", "_low", "_rate", "seconds", "size")

    def __init__(self, size: int, low: int, high: int, seconds: float | None = None) -> None:
        self.size = size
        self.seconds = seconds
        self._low, self._high = low, high
        self._rate = 0.0

    def took(self, amount: int, seconds: float) -> None:
        """A chunk of this size took so long. Too slow: smaller at once; fast: larger, at most twice as large."""
        if self.seconds is None or not amount:
            return
        rate = amount / max(seconds, 1e-9)
        self._rate = self._rate + ALPHA * (rate - self._rate) if self._rate else rate
        if rate * self.seconds < self.size:
            wanted = int(rate * self.seconds)
        else:
            wanted = max(self.size, int(min(2 * self.size, rate * self.seconds, self._rate * self.seconds)))
        self.size = min(max(wanted, self._low), self._high)


class Rule(Protocol):
    """Says how many bytes of the rope's front are the next piece."""

    def next(self, rope: Rope, final: bool) -> int:
        """Bytes of the next piece; 0: more must come to tell. ``final``: no more will come, so some of it is."""

    def now(self, rope: Rope) -> int:
        """Bytes that may go at once although they fill no chunk; 0: none."""


class SizeRule:
    """Pieces of the pace's size, the last shorter; of UTF-8 text no code point is cut."""

    def __init__(self, pace: Pace, text: bool) -> None:
        self._pace = pace
        self._text = text

    def next(self, rope: Rope, final: bool) -> int:
        size = self._pace.size
        if rope.size <= size:
            return rope.size if final or rope.size == size else 0  # blocks of text end with a code point
        return _whole(rope, size) if self._text else size

    def now(self, rope: Rope) -> int:
        return rope.size


def _whole(rope: Rope, size: int) -> int:
    """The largest number of bytes up to ``size`` that are whole code points; those of one if there is none."""
    cut = size
    while cut and rope.byte(cut) & 0xC0 == 0x80:
        cut -= 1
    if not cut:
        cut = size + 1
        while cut < rope.size and rope.byte(cut) & 0xC0 == 0x80:
            cut += 1
    return cut


class _Delimiter:
    """Ends of records, in a rope that begins with a record.

    Looking for a far one joins the rope to twice the length each time: bytes are copied about once.
    """

    def __init__(self, delimiter: bytes, longest: int | None) -> None:
        self._bytes = delimiter
        self._longest = longest
        self._looked = 0  # no delimiter begins before this
        self._need = 0  # bytes to wait for until looking again is worth it

    def last_within(self, rope: Rope, size: int) -> int:
        """The end of the last record that ends in the first ``size`` bytes; 0: none does."""
        size = min(size, rope.size)
        at = rfind(rope.front(size), self._bytes, 0, size)
        return at + len(self._bytes) if at >= 0 else 0

    def first_from(self, rope: Rope, end: int, final: bool) -> int:
        """The end of the first record that ends at ``end`` or behind it; 0: more bytes must come to tell.

        Raises:
            FormatError: it ends later than the longest record may.
        """
        if rope.size < self._need and not final:
            return 0
        start = max(self._looked, end - len(self._bytes), 0)
        while True:
            reach = min(rope.size, 2 * start + FIRST_LOOK)
            at = find(rope.front(reach), self._bytes, start, reach)
            if at >= 0:
                return self._found(at + len(self._bytes))
            start = max(start, reach - len(self._bytes) + 1)
            if reach == rope.size:
                break
        if final or (self._longest is not None and rope.size > self._longest):
            return self._found(rope.size)
        self._looked, self._need = start, 2 * rope.size
        return 0

    def _found(self, end: int) -> int:
        self._looked = self._need = 0
        if self._longest is not None and end > self._longest:
            raise FormatError(
                f"a record has more than max={self._longest} bytes before its delimiter {self._bytes!r};"
                " give a larger max, or the delimiter that the records have"
            )
        return end


class RecordRule:
    """Pieces of whole records, as many as fit the pace's size; a longer record is a piece of its own."""

    def __init__(self, pace: Pace, delimiter: bytes, longest: int | None) -> None:
        self._pace = pace
        self._delimiter = _Delimiter(delimiter, longest)
        self._is_long = False

    def next(self, rope: Rope, final: bool) -> int:
        size = self._pace.size
        if rope.size < size:
            return rope.size if final else 0
        if not self._is_long:
            cut = self._delimiter.last_within(rope, size)
            if cut:
                return cut
        cut = self._delimiter.first_from(rope, size, final)
        self._is_long = not cut
        return cut

    def now(self, rope: Rope) -> int:
        return self._delimiter.last_within(rope, rope.size)


class ContentRule:
    """Pieces cut by FastCDC; with a delimiter behind the record that the cut falls into."""

    def __init__(self, gear: GearCutter, delimiter: bytes | None) -> None:
        self._gear = gear
        self._delimiter = _Delimiter(delimiter, None) if delimiter is not None else None
        self._end = 0  # where the gear has cut, while the end of the record is looked for

    def next(self, rope: Rope, final: bool) -> int:
        if not self._end:
            self._end = self._scan(rope)
        if not self._end:
            if final:
                self._gear.reset()
            return rope.size if final else 0
        end = self._end if self._delimiter is None else self._delimiter.first_from(rope, self._end, final)
        if end:
            self._end = 0
        return end

    def _scan(self, rope: Rope) -> int:
        for view in rope.last(rope.size - self._gear.pending):
            before = self._gear.pending
            end = self._gear.cut(view)
            if end >= 0:
                return before + end
        return 0

    def now(self, rope: Rope) -> int:
        return 0  # a cut that time decides is none that the content decides


class Cutter(Protocol):
    """Takes in what comes and gives the pieces that are complete."""

    pace: Pace

    def feed(self, item: Any) -> Iterator[Any]:
        """Take in a block or an object."""

    def finish(self) -> Iterator[Any]:
        """Nothing more will come: the rest."""

    def flush(self) -> Iterator[Any]:
        """Give what there is, if it has waited long enough."""

    def left(self) -> float | None:
        """Seconds until what there is has waited long enough; None: there is nothing, or it may wait."""


class BytesCutter:
    """Cuts bytes, or text by its UTF-8.

    Parameters:
        rule: where.
        pace: told how long the consumer takes over each piece.
        text: blocks are str, and so are pieces.
        max_wait: seconds after which bytes go that fill no piece, or None.
        clock: seconds, monotonic.
    """

    def __init__(
        self, rule: Rule, pace: Pace, *, text: bool, max_wait: float | None, clock: Callable[[], float]
    ) -> None:
        self.pace = pace
        self._rule = rule
        self._text = text
        self._max_wait = max_wait
        self._clock = clock
        self._rope = Rope()
        self._since = 0.0

    def feed(self, item: Any) -> Iterator[Any]:
        for view in self._views(item):
            now = self._clock()
            if not self._rope.size:
                self._since = now
            self._rope.append(view)
            for piece in self._complete(final=False):
                self._since = now
                yield piece
        yield from self.flush()
        if not self._text and self._rope.size and not view.readonly:
            self._rope.own_last()  # the source may fill its buffer anew

    def _views(self, item: Any) -> Iterator[memoryview]:
        if isinstance(item, str) is not self._text:
            kind = "text" if self._text else "bytes"
            raise ConfigError(f"a {type(item).__name__} came among blocks of {kind}; all must be of one kind")
        if self._text:
            for at in range(0, len(item), TEXT_BLOCK):
                yield memoryview(item[at : at + TEXT_BLOCK].encode("utf-8", "surrogatepass"))
        else:
            view = memoryview(item)
            yield view.cast("B") if view.nbytes else memoryview(b"")

    def _complete(self, final: bool) -> Iterator[Any]:
        while self._rope.size:
            size = self._rule.next(self._rope, final)
            if not size:
                return
            yield from self._give(size)

    def _give(self, size: int) -> Iterator[Any]:
        view = self._rope.take(size)
        piece = str(view, "utf-8", "surrogatepass") if self._text else view
        began = self._clock()
        yield piece
        self.pace.took(size, self._clock() - began)

    def finish(self) -> Iterator[Any]:
        return self._complete(final=True)

    def flush(self) -> Iterator[Any]:
        left = self.left()
        if left is None or left > 0:
            return
        size = self._rule.now(self._rope)
        if size:
            yield from self._give(size)
        self._since = self._clock()

    def left(self) -> float | None:
        if self._max_wait is None or not self._rope.size:
            return None
        return max(0.0, self._since + self._max_wait - self._clock())


class ObjectsCutter:
    """Gathers objects in lists.

    Parameters:
        pace: how much a list may weigh.
        weigh: of one object; None: each weighs 1.
        boundary: ``boundary(previous, item)``: whether a list ends between them, once it weighs ``least``; or None.
        max_wait, clock: as of :class:`BytesCutter`.
    """

    def __init__(
        self,
        pace: Pace,
        *,
        weigh: Callable[[Any], int] | None,
        boundary: Callable[[Any, Any], Any] | None,
        least: int,
        max_wait: float | None,
        clock: Callable[[], float],
    ) -> None:
        self.pace = pace
        self._weigh = weigh
        self._boundary = boundary
        self._least = least
        self._max_wait = max_wait
        self._clock = clock
        self._items: list[Any] = []
        self._weight = 0
        self._since = 0.0

    def feed(self, item: Any) -> Iterator[Any]:
        weight = 1 if self._weigh is None else self._weight_of(item)
        if self._items and (self._weight + weight > self.pace.size or self._ends_before(item)):
            yield from self._give()
        if not self._items and self._max_wait is not None:
            self._since = self._clock()
        self._items.append(item)
        self._weight += weight
        if self._weight >= self.pace.size:
            yield from self._give()
        elif self._max_wait is not None:
            yield from self.flush()

    def _ends_before(self, item: Any) -> bool:
        if self._boundary is None or self._weight < self._least:
            return False
        return bool(self._boundary(self._items[-1], item))

    def _weight_of(self, item: Any) -> int:
        weight = self._weigh(item) if self._weigh is not None else 1
        if isinstance(weight, bool) or not hasattr(weight, "__index__") or weight < 0:
            raise ConfigError(f"weigh() gave {weight!r} for a {type(item).__name__}; it gives whole numbers from 0 on")
        return int(weight)

    def _give(self) -> Iterator[Any]:
        items, self._items = self._items, []
        weight, self._weight = self._weight, 0
        began = self._clock()
        yield items
        self.pace.took(weight, self._clock() - began)

    def finish(self) -> Iterator[Any]:
        if self._items:
            yield from self._give()

    def flush(self) -> Iterator[Any]:
        left = self.left()
        if left is not None and left <= 0:
            yield from self._give()

    def left(self) -> float | None:
        if self._max_wait is None or not self._items:
            return None
        return max(0.0, self._since + self._max_wait - self._clock())
