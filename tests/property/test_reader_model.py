"""``Reader`` and ``ItemIterator`` against the items themselves, in an arena much smaller than the data.

Whatever was evicted, half landed, kept as a piece or pinned by views: every item comes out as it was
written, what is said to be resident is read without the loader, and the rest asks it once.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from models.chunked import ITEM_PIECE, TABLE_PIECE, ChunkedItems, Loader
from models.decode_plan import DecodePlanModel

from lazystore._core.decode import DecodePlan
from lazystore._core.frames import Fill, FrameStore, Lease
from lazystore._core.reader import TABLE_BLOCK, Reader
from lazystore._core.scan import ItemIterator
from lazystore.errors import ClosedError, FormatError, ItemIndexError

FRAME = 4096
BUDGET = 64 * 1024
SIZES = [0, 0, 1, 7, 40, 100, 250, 1000, 3000, 4096, 5000, 9000]
COUNTS = [23, 0, 1, 40, 0, 17]
TOTAL = sum(COUNTS)

LEAVES: list[tuple[str, Any]] = [("int", None), ("bytes", None), ("call", bytes.hex)]
TREE: list[tuple[Any, ...]] = [("leaf",), ("leaf",), ("leaf",), ("dict", ["number", "data", "hex"])]

indices = st.integers(0, TOTAL - 1)
picks = st.integers(0, 1 << 16)


def stored_items(*, headless: bool) -> list[list[bytes]]:
    """The same items on every run: sizes from nothing to several frames."""
    rng = random.Random(7)
    chunks, number = [], 0
    for count in COUNTS:
        chunk = []
        for _ in range(count):
            data = rng.randbytes(rng.choice(SIZES))
            leaves = [number.to_bytes(8, "little"), data, data[:3]]
            chunk.append(data if headless else struct.pack("<3I", *map(len, leaves)) + b"".join(leaves))
            number += 1
        chunks.append(chunk)
    return chunks


@dataclass
class Held:
    lease: Lease
    view: memoryview
    expected: bytes


class ReaderMachine(RuleBasedStateMachine):
    headless: ClassVar[bool] = False
    width: ClassVar[int] = 4
    policy: ClassVar[str] = "lru"

    @initialize(mode=st.sampled_from(["frames", "pieces", "nothing"]))
    def open(self, mode: str) -> None:
        self.data = ChunkedItems(stored_items(headless=self.headless), width=self.width)
        leaves, tree = ([("bytes", None)], [("leaf",)]) if self.headless else (LEAVES, TREE)
        plan = DecodePlan(leaves, tree, names=range(len(leaves)), headless=self.headless)
        model = DecodePlanModel(leaves, tree, headless=self.headless)
        self.expected = [model(item) for item in self.data.flat]
        self.store = FrameStore(BUDGET, frame_bytes=FRAME, policy=self.policy)
        self.loader = Loader(self.store, self.data, mode)
        self.reader = Reader(self.store, plan, self.loader, self.data.counts, width=self.width)
        self.loader.reader = self.reader
        self.held: list[Held] = []
        self.fills: list[tuple[Fill, bytes]] = []
        self.iterators: list[list[Any]] = []
        self.closed = False

    # -- what the promises are about ----------------------------------------------------

    def is_here(self, index: int) -> bool:
        """Offsets and bytes are resident, in frames or as pieces; asked of the store in other words."""
        chunk, i = self.reader.where(index)
        if not self.reader.chunk_length(chunk):
            return False
        offsets, item = self.data.entries(i), self.data.span(chunk, i)
        if not (self.store.available(chunk, *offsets) or self.has_piece(TABLE_PIECE, chunk, i // TABLE_BLOCK)):
            return False
        return self.store.available(chunk, *item) or self.has_piece(ITEM_PIECE, chunk, i)

    def has_piece(self, kind: int, chunk: int, number: int) -> bool:
        try:
            self.store.piece(kind, chunk, number)
        except KeyError:
            return False
        return True

    # -- reading ------------------------------------------------------------------------

    @precondition(lambda self: not self.closed)
    @rule(index=indices, kind=st.sampled_from([int, np.int64, np.uint8, "negative"]))
    def get(self, index: int, kind: Any) -> None:
        here, before = self.is_here(index), (self.reader.hits, self.reader.misses, len(self.loader.asked))
        assert self.reader.is_resident(index) == here
        key = index - TOTAL if kind == "negative" else kind(index)
        assert self.reader.get(key) == self.expected[index]
        asked = 0 if here else 1
        assert (self.reader.hits, self.reader.misses) == (before[0] + 1 - asked, before[1] + asked)
        assert len(self.loader.asked) == before[2] + asked

    @precondition(lambda self: not self.closed)
    @rule(wanted=st.lists(indices, max_size=80))
    def get_many(self, wanted: list[int]) -> None:
        missing = [index for index in wanted if not self.is_here(index)]
        asked = len(self.loader.asked)
        assert self.reader.get_many(wanted) == [self.expected[index] for index in wanted]
        assert len(self.loader.asked) == asked + len(missing)

    @precondition(lambda self: not self.closed)
    @rule(index=indices)
    def get_bytes(self, index: int) -> None:
        assert self.reader.get_bytes(index) == self.data.flat[index]

    @precondition(lambda self: not self.closed and len(self.held) < 8)
    @rule(index=indices)
    def view(self, index: int) -> None:
        lease = self.reader.view(index)
        self.held.append(Held(lease, memoryview(lease), self.data.flat[index]))

    @precondition(lambda self: self.held)
    @rule(pick=picks, release=st.booleans())
    def let_go(self, pick: int, release: bool) -> None:
        held = self.held.pop(pick % len(self.held))
        if release:
            held.lease.release()

    @precondition(lambda self: not self.closed)
    @rule(ends=st.tuples(st.integers(0, TOTAL), st.integers(0, TOTAL)))
    def iterate(self, ends: tuple[int, int]) -> None:
        start, stop = sorted(ends)
        self.iterators.append([ItemIterator(self.reader, start, stop), start, stop])

    @precondition(lambda self: self.iterators)
    @rule(pick=picks, steps=st.integers(1, 40))
    def step(self, pick: int, steps: int) -> None:
        state = self.iterators[pick % len(self.iterators)]
        iterator, at, stop = state
        for _ in range(steps):
            assert iterator.position == at
            assert iterator.__length_hint__() == stop - at
            if at == stop:
                with pytest.raises(StopIteration):
                    next(iterator)
                return
            if self.closed:
                with pytest.raises(ClosedError):
                    next(iterator)
                return
            assert next(iterator) == self.expected[at]
            at += 1
            state[1] = at

    @precondition(lambda self: self.iterators)
    @rule(pick=picks)
    def drop_iterator(self, pick: int) -> None:
        self.iterators.pop(pick % len(self.iterators))

    # -- what happens to the memory meanwhile -------------------------------------------

    @rule(mode=st.sampled_from(["frames", "pieces", "nothing"]))
    def change_mode(self, mode: str) -> None:
        self.loader.mode = mode

    @precondition(lambda self: not self.closed)
    @rule(chunk=st.integers(0, len(COUNTS) - 1), part=st.integers(0, 15))
    def drop_part(self, chunk: int, part: int) -> None:
        self.store.drop(chunk, part)

    @precondition(lambda self: not self.closed and len(self.fills) < 3)
    @rule(index=indices, blocks=st.lists(st.integers(0, 63), max_size=40), scan=st.booleans())
    def fill_partly(self, index: int, blocks: list[int], scan: bool) -> None:
        """Blocks of the part an item begins in arrive; more may follow, or never."""
        chunk, i = self.reader.where(index)
        self.loader.open(chunk)
        part = self.data.span(chunk, i)[0] // FRAME
        content = self.data.chunks[chunk][part * FRAME : (part + 1) * FRAME]
        if not content or self.store.counters()["pins"] > 10:
            return
        fill = self.store.begin(chunk, part, len(content), scan)
        if fill is None:
            return
        for block in blocks:
            begin = min(block * FRAME // 64, len(content))
            end = min(begin + FRAME // 64, len(content))
            memoryview(fill)[begin:end] = content[begin:end]
            fill.landed(begin, end)
        self.fills.append((fill, content))

    @precondition(lambda self: self.fills)
    @rule(pick=picks, how=st.sampled_from(["commit", "abort", "drop", "release"]))
    def end_fill(self, pick: int, how: str) -> None:
        fill, content = self.fills.pop(pick % len(self.fills))
        if how == "commit" and not self.closed:
            memoryview(fill)[:] = content
            fill.commit()
        elif how == "abort":
            fill.abort()
        elif how == "release":
            fill.release()

    @precondition(lambda self: len(self.loader.asked) > 20 and not self.closed)
    @rule()
    def close(self) -> None:
        self.store.close()
        self.closed = True
        for refused in (self.reader.get, self.reader.get_bytes, self.reader.view, self.reader.is_resident):
            with pytest.raises(ClosedError):
                refused(0)
        with pytest.raises(ClosedError):
            self.reader.get_many([0, 1])

    # -- what always holds --------------------------------------------------------------

    @invariant()
    def views_stay_true_and_nothing_else_is_pinned(self) -> None:
        for held in self.held:
            assert held.view == held.expected
        if self.closed:
            return
        self.store.check()
        pins = sum(not held.lease.copied for held in self.held) + len(self.fills)
        assert self.store.counters()["pins"] == pins

    @precondition(lambda self: not self.closed)
    @rule(chunk=st.integers(0, len(COUNTS) - 1))
    def look_at_a_chunk(self, chunk: int) -> None:
        first = self.reader.first_item(chunk)
        here = [self.is_here(first + i) for i in range(COUNTS[chunk])]
        order = self.store.eviction_order()
        assert self.reader.items_resident(chunk) == sum(here)
        assert [self.reader.is_resident(first + i) for i in range(COUNTS[chunk])] == here
        for i in range(COUNTS[chunk]):
            try:
                assert self.reader.resident_span(chunk, i) == self.data.span(chunk, i)
            except KeyError:
                assert not here[i]
        assert self.store.eviction_order() == order

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.held.clear()
            self.fills.clear()
            self.store.close()


class HeadlessMachine(ReaderMachine):
    """Bare leaves, some of them empty, and wide offsets."""

    headless = True
    width = 8
    policy = "s3fifo"


TestReader = ReaderMachine.TestCase
TestHeadless = HeadlessMachine.TestCase
TestReader.settings = TestHeadless.settings = settings(stateful_step_count=40)


# -- hostile chunks ---------------------------------------------------------------------------

ITEMS = 12


def hostile_reader(chunk: bytes, length: int, base: int, width: int) -> Reader:
    store = FrameStore(BUDGET, frame_bytes=FRAME)
    data = ChunkedItems([[b""] * ITEMS], width=width)
    data.chunks[0] = chunk
    loader = Loader(store, data)
    plan = DecodePlan([("bytes", None)], [("leaf",)], names=["x"], headless=True)
    reader = loader.reader = Reader(store, plan, loader, [ITEMS], width=width)
    reader.open_chunk(0, length, base)
    for part in range(-(-len(chunk) // FRAME)):
        loader.fill(0, part)
    return reader


offset = st.one_of(
    st.integers(0, 9000),
    st.sampled_from([2**32 - 1, 2**31, 2**31 - 1, 4095, 4096, 4097, 8192]),
    st.integers(0, 2**64 - 1),
)


@given(
    st.sampled_from([4, 8]),
    st.lists(offset, min_size=ITEMS + 1, max_size=ITEMS + 1),
    st.integers(0, 3 * FRAME),
    st.integers(0, 3 * FRAME),
    st.booleans(),
)
def test_whatever_lies_in_a_table_no_byte_outside_the_chunk_is_read(
    width: int, offsets: list[int], resident: int, length: int, ordered: bool
) -> None:
    """Tables are believed only where they point into the chunk; what is not resident is asked for."""
    offsets = [entry % 2 ** (8 * width) for entry in (sorted(offsets) if ordered else offsets)]
    table = struct.pack(f"<I{ITEMS + 1}{'I' if width == 4 else 'Q'}", ITEMS, *offsets)
    base = len(table)
    chunk = table + random.Random(3).randbytes(resident)
    reader = hostile_reader(chunk, max(length, base), base, width)
    for i in range(ITEMS):
        begin, end = offsets[i : i + 2]
        if not base <= begin <= end <= max(length, base):
            for call in (reader.get, reader.view, lambda index: reader.get_many([index])):
                with pytest.raises(FormatError, match=r"chunk 0\), item"):
                    call(i)
            with pytest.raises(FormatError):
                reader.resident_span(0, i)
            with pytest.raises(FormatError):
                next(ItemIterator(reader, i, ITEMS))
        elif begin == end or end <= len(chunk):
            assert reader.get(i) == chunk[begin:end]
            assert next(ItemIterator(reader, i, ITEMS)) == chunk[begin:end]
        else:
            assert not reader.is_resident(i)
            assert reader.get(i) == b""  # the loader's own idea of the item
    with pytest.raises(ItemIndexError):
        reader.get(ITEMS)
    found: list[bytes] = []
    try:
        found.extend(ItemIterator(reader, 0, ITEMS))
    except FormatError:
        assert len(found) < ITEMS
    else:
        assert len(found) == ITEMS
