"""The first pass over texts without an index: items at once, and where they lie for the next time."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import struct
import weakref
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from lazystore._core.decode import DecodePlan
from lazystore.errors import BudgetTooSmallError, ClosedError, ConfigError, FormatError, UnsupportedError, with_place
from lazystore.formats.format import Opened, Place, Unindexed
from lazystore.formats.text_index import IndexWriter, TextIndex, load_index
from lazystore.formats.text_scan import BLOCK_BYTES, BLOCK_ITEMS, MAX_HEAD, Cutter, TextReader, TextRules, header_names
from lazystore.progress import Progress

__all__ = ["Text", "TextPass"]

log = logging.getLogger("lazystore")

#: A plain text has chunks of about so many bytes, and at most so many items.
CHUNK_BYTES, CHUNK_ITEMS = 16 << 20, 1 << 18
#: Bytes a pass may hold at least, whatever the budget.
MIN_ROOM = 2 << 20


#: Whose sources a forked child must look after.
_live: weakref.WeakSet[TextPass] = weakref.WeakSet()


@dataclass(frozen=True, slots=True)
class Text:
    """One file: its name, what its items are, which object it is, and where its sidecar belongs."""

    name: str
    rules: TextRules
    identity: str
    path: Path


#: What makes a plan of the bytes before the first item: the plan, and the fields' names.
Planner: TypeAlias = Callable[[bytes], tuple[DecodePlan, tuple[str, ...]]]
Opener: TypeAlias = Callable[[Place, list[Text], list[TextIndex], DecodePlan, tuple[str, ...]], Opened]


class TextPass(Unindexed):
    """Texts that are one dataset, before all of them have an index.

    Parameters:
        place, texts: what there is.
        planner, opener: the format's part: a decode plan from a header, and an opened dataset from indexes.

    Memory: the budget at most. Threads: one. Fork: a child may go on reading what its parent had begun, and makes no
    index of it then; its own passes make theirs. Pickling: none.
    """

    def __init__(self, place: Place, texts: list[Text], planner: Planner, opener: Opener) -> None:
        self._place = place
        self._texts = texts
        self._planner = planner
        self._opener = opener
        self._room = max(place.budget, MIN_ROOM)
        self._planned: DecodePlan | None = None
        self._going: set[_Indexing] = set()
        self._closed = False
        _live.add(self)

    @property
    def plan(self) -> DecodePlan:  # type: ignore[override]
        """How items become objects; reads the header when it is first asked for, if there is one."""
        if self._planned is None:
            head = self._first_head() if self._texts[0].rules.header else b""
            with named(self._texts[0].name):
                self._planned = self._planner(head)[0]
        return self._planned

    def build(self) -> Opened:
        """Index what has no index yet, and open; see :class:`~lazystore.formats.format.Unindexed`.

        Raises:
            ConfigError: the index cannot be written.
        """
        found = [load_index(text.path, text.identity, text.rules.signature) for text in self._texts]
        missing = sum(
            int(text.identity.partition("-")[0]) for text, index in zip(self._texts, found, strict=True) if not index
        )
        with Progress(missing, f"indexing {self._place.url}", unit="bytes") as progress:
            indexes = [index or self._index(text, progress) for text, index in zip(self._texts, found, strict=True)]
        return self.open(indexes)

    def open(self, indexes: list[TextIndex]) -> Opened:
        """The dataset, once every text has its index."""
        with named(self._texts[0].name):
            plan, names = self._planner(indexes[0].head)
        for text, index in zip(self._texts, indexes, strict=True):
            with named(text.name):
                self._same_header(text, index.head, indexes[0].head)
        return self._opener(self._place, self._texts, indexes, plan, names)

    def stream(self) -> Generator[bytes, None, None]:
        """The items' stored bytes; see :class:`~lazystore.formats.format.Unindexed`.

        An index that cannot be written is logged, and not made.
        """
        first: bytes | None = None
        for text in self._texts:
            cutter = Cutter(text.rules, self._room // 4)
            indexing = self._begin(text)
            try:
                with named(text.name):
                    reader = self._reader(text)
                    for piece in reader.pieces():
                        indexing = self._go_on(indexing, _Indexing.feed, piece)
                        for table, _, data in cutter.feed(piece):
                            yield from _items(table, data)
                    for table, _, data in cutter.finish():
                        yield from _items(table, data)
                    first = cutter.head or b"" if first is None else first
                    self._same_header(text, cutter.head or b"", first)
                    indexing = self._go_on(indexing, _Indexing.finish, reader)
            finally:
                self._give_up(indexing)

    def close(self) -> None:
        """Close the source, and give up the indexes in the making: streams raise ClosedError from now on."""
        self._closed = True
        for indexing in list(self._going):
            self._give_up(indexing)
        self._place.source.close()

    def reset_after_fork(self) -> None:
        """For the child of a fork: what the source needs."""
        reset = getattr(self._place.source, "reset_after_fork", None)
        if reset is not None:
            reset()

    def _reader(self, text: Text) -> TextReader:
        return TextReader(self._place.source, text.name, text.rules, timeout=self._place.timeout, room=self._room // 2)

    def _index(self, text: Text, progress: Progress) -> TextIndex:
        indexing, before = _Indexing(text), progress.done
        try:
            with named(text.name):
                reader = self._reader(text)
                for piece in reader.pieces():
                    indexing.feed(piece)
                    progress.update(before + reader.stored - progress.done)
                return indexing.finish(reader)
        finally:
            indexing.close()

    def _begin(self, text: Text) -> _Indexing | None:
        """What makes the index in passing; None where there is one, or none can be."""
        if load_index(text.path, text.identity, text.rules.signature) is not None:
            return None
        try:
            indexing = _Indexing(text)
        except ConfigError as error:
            log.warning("%s", error)
            return None
        self._going.add(indexing)
        return indexing

    def _go_on(
        self, indexing: _Indexing | None, step: Callable[[_Indexing, Any], Any], argument: Any
    ) -> _Indexing | None:
        """Take a step, or give the index up where its sidecar cannot be written any more, or is the parent's."""
        if self._closed:
            raise ClosedError(f"{self._place.url} is closed")
        if indexing is None or not indexing.mine:
            self._give_up(indexing)
            return None
        try:
            step(indexing, argument)
        except BudgetTooSmallError:
            raise
        except ConfigError as error:
            log.warning("%s", error)
            self._give_up(indexing)
            return None
        return indexing

    def _give_up(self, indexing: _Indexing | None) -> None:
        """End what makes an index, unless it came to its end."""
        if indexing is not None:
            self._going.discard(indexing)
            indexing.close()

    def _first_head(self) -> bytes:
        """The bytes before the first item."""
        text = self._texts[0]
        cutter = Cutter(text.rules, self._room // 4)
        pieces = self._reader(text).pieces()
        with named(text.name), contextlib.closing(pieces):
            for piece in pieces:
                for _ in cutter.feed(piece):
                    break
                if cutter.head is not None:
                    return cutter.head
            for _ in cutter.finish():
                pass
        return cutter.head or b""

    def _same_header(self, text: Text, head: bytes, first: bytes) -> None:
        if text.rules.header and head != first and header_names(head, text.rules) != header_names(first, text.rules):
            raise FormatError(
                f"its header is another than that of {self._texts[0].name}: "
                f"{header_names(head, text.rules)} instead of {header_names(first, text.rules)}"
            )


class _Indexing:
    """The index of one text in the making."""

    def __init__(self, text: Text) -> None:
        plain = not text.rules.codec
        self._scanner = text.rules.scanner(*(CHUNK_BYTES, CHUNK_ITEMS) if plain else (BLOCK_BYTES, BLOCK_ITEMS))
        self._plain = plain
        self._head: bytearray | None = bytearray() if text.rules.header else None
        self._writer = IndexWriter(text.path, text.identity, text.rules.signature)

    def feed(self, piece: bytes | memoryview) -> None:
        """The next bytes of the text."""
        if self._head is not None:
            self._head += piece
        view = memoryview(piece)
        while len(view):
            view = view[self._scanner.scan(view) :]
            if self._scanner.ready:
                self._writer.add(*self._scanner.take(), keep_table=self._plain)
        if self._head is not None:
            self._see_head(self._head)

    def finish(self, reader: TextReader) -> TextIndex:
        """The text ends here."""
        self._scanner.finish()
        if self._head is not None:
            self._see_head(self._head)
        if self._scanner.ready:
            self._writer.add(*self._scanner.take(), keep_table=self._plain)
        index = self._writer.index
        index.stored, index.memory = reader.stored, reader.memory
        self._writer.finish()
        return index

    @property
    def mine(self) -> bool:
        return self._writer.mine

    def close(self) -> None:
        self._writer.close()

    def _see_head(self, head: bytearray) -> None:
        if self._scanner.lead >= 0:
            self._writer.index.head = bytes(head[: self._scanner.lead])
            self._head = None
        elif len(head) > MAX_HEAD:
            raise FormatError(f"there is no record in the first {MAX_HEAD} bytes after the header")


@contextlib.contextmanager
def named(name: str) -> Iterator[None]:
    """Put the file's name in front of errors about its contents."""
    try:
        yield
    except (FormatError, UnsupportedError, BudgetTooSmallError) as error:
        raise with_place(error, name) from error


def _items(table: bytes, data: bytes) -> Generator[bytes, None, None]:
    """The items of a block."""
    head = len(table)
    offsets = struct.unpack_from(f"<{head // 4 - 1}I", table, 4)
    for begin, end in itertools.pairwise(offsets):
        yield data[begin - head : end - head]


def _after_fork_in_child() -> None:
    for texts in list(_live):
        texts.reset_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
