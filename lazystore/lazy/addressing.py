"""How pages lie in a source: by offset, behind the source's own cursors, or behind rows of a total order.

Each way reads the rows of one position and tells the positions beside them. Reading is a generator that yields what
the source gave, so that one piece of code serves sync and async sources (:func:`run`). Caching, cursors' text and
page objects are above (``pages``).
"""

from __future__ import annotations

from collections.abc import Coroutine, Generator, Iterable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

from lazystore.cache.bridge import is_awaitable
from lazystore.errors import ConfigError, LoadError
from lazystore.lazy.cursor import Position, encode_values
from lazystore.lazy.keysets import Keyset
from lazystore.lazy.source import Source

__all__ = ["Addressing", "Around", "ByKeyset", "ByOffset", "BySourceCursor", "Rows", "addressing_of", "run"]

#: Predecessors that a cursor over a source's own cursors carries, for going back.
CHAIN = 8


class Rows(NamedTuple):
    """What one position holds, as it is cached.

    Attributes:
        items: the rows in forward order, without the probe.
        probe: what was read beyond them to know whether there is more: one row, or none.
        more: whether there is more in the direction of reading.
        next: the source's cursor of what follows, where it gives one.
    """

    items: tuple[Any, ...]
    probe: tuple[Any, ...] = ()
    more: bool = False
    next: Any = None


class Around(NamedTuple):
    """The neighbours of a page; None: there is none, or it cannot be had."""

    number: int | None
    has_previous: bool | None
    has_next: bool
    previous: Position | None
    next: Position | None


Steps: TypeAlias = Generator[Any, Any, Rows]


def run(steps: Steps) -> Rows | Coroutine[Any, Any, Rows]:
    """The rows, or an awaitable of them as soon as the source gives one."""
    given: Any = None
    while True:
        try:
            given = steps.send(given)
        except StopIteration as end:
            found: Rows = end.value
            return found
        if is_awaitable(given):
            return _run_on(steps, given)


async def _run_on(steps: Steps, given: Any) -> Rows:
    while True:
        try:
            given = steps.send(await given if is_awaitable(given) else given)
        except StopIteration as end:
            found: Rows = end.value
            return found


def _checked(given: Any, limit: int | None, source: Source) -> tuple[Any, ...]:
    """The rows that a source gave, as a tuple.

    Raises:
        LoadError: no rows, or more than were asked for.
    """
    if type(given) is not list and (
        isinstance(given, (str, bytes, Mapping)) or not (isinstance(given, Iterable) or hasattr(given, "__getitem__"))
    ):
        raise LoadError(f"{source!r} gave a {type(given).__name__}, not a list of items")
    items = tuple(given)
    if limit is not None and len(items) > limit:
        raise LoadError(f"{source!r} gave {len(items)} items where {limit} were asked for: it must keep to its limit")
    return items


def _named(values: tuple[Any, ...]) -> Any:
    """Values in a cache key: as bytes, which also what cannot be hashed has."""
    try:
        return encode_values(values)
    except ConfigError:
        return values  # no cursor can be made of them; walking by pages() needs none


class ByOffset:
    """Items with numbers: a page is a slice."""

    numbered = True
    #: The identity of the order, in keys and cursors.
    order: tuple[str, ...] = ()
    mode = "offset"

    def __init__(self, source: Source) -> None:
        self._source = source
        self.is_async = source.is_async("range")

    def first(self) -> Position:
        return Position("offset", (0,))

    def at(self, number: int, size: int) -> Position:
        """The position of a page by its number."""
        return Position("offset", ((number - 1) * size,))

    def key(self, position: Position) -> Any:
        """What tells positions apart in cache keys."""
        return (position.values[0], position.backward)

    def read(self, position: Position, size: int, filters: dict[str, Any], carried: tuple[Any, ...]) -> Steps:
        """The rows; one more than asked tells whether more follow, unless the source knows how many it has.

        ``carried``: rows already at hand from here on (the probe of the page before): not read again.
        """
        source = self._source
        offset, limit = self._span(position, size)
        total = None if filters else source.size
        if total is None and not position.backward:
            missing = limit + 1 - len(carried)
            given = yield source.fetch_range(offset + len(carried), missing, **filters)
            found = carried + _checked(given, missing, source)
            return Rows(found[:limit], found[limit:], len(found) > limit)
        if total is not None:
            limit = max(0, min(limit, total - offset))
        given = (yield source.fetch_range(offset, limit, **filters)) if limit else ()
        found = _checked(given, limit, source)
        return Rows(found, (), position.backward if total is None else 0 < len(found) < total - offset)

    @staticmethod
    def _span(position: Position, size: int) -> tuple[int, int]:
        offset: int = position.values[0]
        if not position.backward:
            return offset, size
        return max(0, offset - size), min(offset, size)

    def around(self, position: Position, rows: Rows, size: int, filters: dict[str, Any]) -> Around:
        """The neighbours of the page at ``position``."""
        offset, _ = self._span(position, size)
        begin = offset if rows.items else min(offset, self._source.size or offset)  # far behind the end: back to it
        return Around(
            -(-offset // size) + 1, offset > 0, rows.more,
            Position("offset", (begin,), True) if offset > 0 else None,
            Position("offset", (offset + len(rows.items),)) if rows.more else None,
        )  # fmt: skip


class BySourceCursor:
    """A source that gives cursors of its own: pages are walked forward, and back as far as is remembered.

    A position is the source's cursor and those of at most eight pages before it.
    """

    numbered = False
    order: tuple[str, ...] = ()
    mode = "source"

    def __init__(self, source: Source) -> None:
        self._source = source
        self.is_async = source.is_async("cursor")

    def first(self) -> Position:
        return Position("source", (None, []), number=1)

    def key(self, position: Position) -> Any:
        return _named(position.values[:1])

    def read(self, position: Position, size: int, filters: dict[str, Any], carried: tuple[Any, ...]) -> Steps:
        """The rows behind the cursor; the source alone says where the end is, never a short page (AIP-158)."""
        source, cursor = self._source, position.values[0]
        given = yield source.fetch_after(cursor, size, **filters)
        if not isinstance(given, (tuple, list)) or len(given) != 2:
            raise LoadError(f"{source!r} gave a {type(given).__name__}, not (items, next_cursor)")
        items, following = given
        if following is not None and following == cursor:
            raise LoadError(f"{source!r} gave the cursor it was asked with, {cursor!r:.80}: it would never end")
        return Rows(_checked(items, None, source), more=following is not None, next=following)

    def around(self, position: Position, rows: Rows, size: int, filters: dict[str, Any]) -> Around:
        cursor, chain = position.values
        number = position.number
        following = None
        if rows.more:
            following = Position(
                "source", (rows.next, [*chain[1 - CHAIN :], cursor]), number=number + 1 if number else 0
            )
        # without a number the cursor has no predecessors, and comes from elsewhere
        previous = Position("source", (chain[-1], chain[:-1]), number=max(0, number - 1)) if chain else None
        has_previous = False if number == 1 else True if chain else None
        return Around(number or None, has_previous, rows.more, previous, following)


class ByKeyset:
    """Rows in a total order: a page is what comes behind (or in front of) a row.

    Over items with numbers the row's place is found by bisecting; else the source's ``fetch_after`` is asked with a
    :class:`~lazystore.lazy.keysets.Seek` and gives rows.
    """

    numbered = False
    mode = "keyset"

    def __init__(self, source: Source, keyset: Keyset) -> None:
        self._source = source
        self._keyset = keyset
        self._bisects = "range" in source.can
        self.order = keyset.identity
        self.is_async = source.is_async("range" if self._bisects else "cursor")
        if self._bisects and not source.is_sized:
            raise ConfigError(f"{source!r} does not know its size, so that rows cannot be bisected: give size=")

    def first(self) -> Position:
        return Position("keyset", (), number=1)

    def key(self, position: Position) -> Any:
        return (_named(position.values), position.backward)

    def read(self, position: Position, size: int, filters: dict[str, Any], carried: tuple[Any, ...]) -> Steps:
        """The rows beside the position, and one more."""
        source, backward = self._source, position.backward
        seek = self._keyset.seek(position.values or None, backward=backward)
        if self._bisects:
            found = yield from self._bisected(position, size)
        else:
            given = yield source.fetch_after(seek, size + 1, **filters)
            found = _checked(given, size + 1, source)
            found = found[::-1] if backward else found
        more = len(found) > size
        if backward:
            return Rows(found[1:], found[:1], True) if more else Rows(found)
        return Rows(found[:size], found[size:], more)

    def _bisected(self, position: Position, size: int) -> Generator[Any, Any, tuple[Any, ...]]:
        source, keyset = self._source, self._keyset
        steps = keyset.seek(position.values or None, backward=position.backward).bisect(source.size or 0)
        row: Any = None
        while True:
            try:
                index = steps.send(row)
            except StopIteration as end:
                left: range = end.value
                break
            (row,) = _checked((yield source.fetch_range(index, 1)), 1, source) or (None,)
            if row is None:
                raise LoadError(f"{source!r} became shorter while it was bisected: no item {index}")
        wanted = left[-size - 1 :] if position.backward else left[: size + 1]
        if not wanted:
            return ()
        found = _checked((yield source.fetch_range(wanted.start, len(wanted))), len(wanted), source)
        self._check_sorted(found, wanted.start)
        return found

    def _check_sorted(self, rows: tuple[Any, ...], begin: int) -> None:
        """Bisecting what is not sorted would lose rows in silence."""
        positions = [self._keyset.position(row) for row in rows]
        for number, (one, other) in enumerate(pairwise(positions), begin):
            if self._keyset.compare(one, other) >= 0:
                raise LoadError(
                    f"items {number} and {number + 1} of {self._source!r} are not in the order "
                    f"{', '.join(self.order)}: {one!r:.100}, {other!r:.100}"
                )

    def around(self, position: Position, rows: Rows, size: int, filters: dict[str, Any]) -> Around:
        """The neighbours; a row that a cursor was made of counts as one, also if it has been deleted since."""
        number, backward = position.number, position.backward
        if backward:
            has_previous, has_next = rows.more, bool(position.values)
            number = number if rows.more else 1
        else:
            has_previous, has_next = bool(position.values), rows.more
        following = previous = None
        if has_next:
            behind = self._keyset.position(rows.items[-1]) if rows.items else ()
            following = Position("keyset", behind, False, number + 1 if number and behind else number)
        if has_previous:
            before = self._keyset.position(rows.items[0]) if rows.items else ()
            previous = Position("keyset", before, True, max(0, number - 1))
        return Around(number or None, has_previous, has_next, previous, following)


Addressing: TypeAlias = ByOffset | BySourceCursor | ByKeyset


def addressing_of(source: Source, keyset: Keyset | None) -> Addressing:
    """The way pages lie in a source.

    Raises:
        UnsupportedError: it can neither be read by position nor from a cursor.
        ConfigError: it counts bytes (their parts are chunks), or cannot be paged in that order.
    """
    source.require("range", "cursor")
    if "bytes" in source.can:
        raise ConfigError(f"{source!r} counts bytes: pages are of items; read it in chunks")
    if keyset is not None:
        return ByKeyset(source, keyset)
    return ByOffset(source) if "range" in source.can else BySourceCursor(source)
