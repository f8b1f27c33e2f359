"""Running a route: which bytes are fetched when, so that every leg finds its items in memory.

The order is known, so the future is: legs are looked at some way ahead, the spans they will enter are
loaded in the order of need as far as the arena goes, and let go when their last leg is done. Nothing runs by itself:
all of it happens when the next leg is asked for, and the storage client works in between.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from lazystore._core.frames import Lease
from lazystore._core.scan import ItemIterator
from lazystore.cache.flight import Deadline
from lazystore.errors import ArenaFullError, BudgetTooSmallError, FetchTimeoutError, LazyStoreError, without_trace
from lazystore.streaming.order import WHOLE_CHUNKS, ListLeg, RangeLeg, Span, WindowLeg

if TYPE_CHECKING:
    from lazystore.cache.memory import ChunkMemory
    from lazystore.cache.slabs import SlabLoad
    from lazystore.streaming.order import Leg, Shape

__all__ = ["WINDOW_SHARE", "RouteFeed", "window_bytes"]

#: The window of a shuffle takes this share of the budget; the rest is for what is fetched ahead of it.
WINDOW_SHARE = 2
#: The same for opaque chunks: their streams need a share too, and the chunk that is inflated next is a whole one.
OPAQUE_SHARE = 4
#: Blocks in a window: more mix better, fewer make longer requests. At least so many, and more of this many bytes each,
#: but not more than so many.
WINDOW_BLOCKS, BLOCK_BYTES, MAX_BLOCKS = 32, 1 << 20, 256
#: A block is a little shorter than its share, so that its offsets and a part-filled last frame fit too.
BLOCK_FILL = 0.9
MIN_BLOCK = 16 * 1024
#: Frames no load may take: for the reads of others and what does not go as planned.
SPARE_FRAMES = 4
#: Bytes fetched beside the first leg's, and for how many seconds no more than those: more would share the link
#: with the item that is waited for.
FIRST_BYTES, HEAD_START = 2 << 20, 0.012
#: Legs looked at ahead, however little their spans take.
MAX_LEGS = 256
#: Loads beyond those that have frames, so that their offsets are known when frames come free.
TABLES_AHEAD = 8


def window_bytes(budget: int, *, opaque: bool) -> tuple[int, int]:
    """(bytes of the window, bytes of a block) of a shuffle inside ``budget`` bytes; whole chunks if opaque."""
    if opaque:
        return budget // OPAQUE_SHARE, WHOLE_CHUNKS
    window = budget // WINDOW_SHARE
    share = max(min(window // WINDOW_BLOCKS, BLOCK_BYTES), window // MAX_BLOCKS)
    return window, max(MIN_BLOCK, int(share * BLOCK_FILL))


class RouteFeed:
    """Brings the legs of a route to a :class:`~lazystore._core.walk.Walk`.

    Parameters:
        memory: the dataset's.
        legs: of the route, from where it is entered.
        shape: bytes of the chunks, for planning.
        shared: everything the route visits fits the arena: keep it in the chunks' own parts, for other passes.

    Memory: the arena's frames; offsets and positions of some legs ahead (8 bytes an item of theirs).
    Threads: used by the walk's thread; list legs are fetched ahead by one worker thread, started with the first of them
    and joined by :meth:`close`. Fork: the child's loads start anew. Pickling: none.
    """

    def __init__(self, memory: ChunkMemory, legs: Iterator[Leg], shape: Shape, *, shared: bool) -> None:
        self._memory = memory
        self._legs = legs
        self._shape = shape
        self._shared = shared
        self._limit = max(1, memory.store.n_frames - SPARE_FRAMES)
        self._room = min(self._limit, FIRST_BYTES // memory.store.frame_bytes)  # until the first leg is there
        self._ahead: deque[Leg] = deque()
        self._coming: dict[Span, SlabLoad] = {}  # in the order of need
        self._ready: dict[Span, SlabLoad] = {}
        self._held = 0  # frames of those that are ready
        self._loose: set[Span] = set()
        self._present: Leg | None = None
        self._scan: ItemIterator | None = None
        self._worker: ThreadPoolExecutor | None = None
        self._lists: dict[int, Future[list[Any]]] = {}
        self._pid = os.getpid()
        self._ended = False

    # -- what the walk asks -------------------------------------------------------------

    def turn(self) -> tuple[Any, ...]:
        """The next leg, its items in memory; see :mod:`lazystore._core.walk`.

        Raises:
            StopIteration: the route has ended.
            FetchError, FormatError ...: the leg's items cannot be had; asked again, it is tried again.
        """
        self._leave()
        self._look_ahead()
        if not self._ahead:
            raise StopIteration
        leg = self._ahead[0]
        if isinstance(leg, RangeLeg):
            ready = self._range(leg)
        elif isinstance(leg, ListLeg):
            ready = ("list", self._list(leg))
        else:
            ready = self._window(leg)
        if not isinstance(leg, RangeLeg):
            self._end_scan()
        self._room = self._limit
        self._present = self._ahead.popleft()
        return ready

    def close(self) -> None:
        """Cancel what is under way, let every frame go, join the worker thread. Twice is fine."""
        self._ended = True
        self._ahead.clear()
        self._lists.clear()
        for load in (*self._coming.values(), *self._ready.values()):
            load.close()
        self._coming.clear()
        self._ready.clear()
        self._end_scan()
        if self._worker is not None and self._pid == os.getpid():
            self._worker.shutdown(wait=True, cancel_futures=True)
            self._worker = None

    # -- looking ahead ------------------------------------------------------------------

    def _leave(self) -> None:
        """Let go of what the leg just walked was the last to need."""
        if isinstance(self._present, WindowLeg):
            for span in self._present.leave:
                self._loose.discard(span)
                if span in self._ready:
                    load = self._ready.pop(span)
                    self._held -= load.frames
                    load.close()
                elif span in self._coming:
                    self._coming.pop(span).close()
        self._present = None

    def _look_ahead(self) -> None:
        """Take legs from the route until their spans would fill the arena, and begin to load those spans."""
        while not self._ended and self._wants_more():
            leg = next(self._legs, None)
            if leg is None:
                self._ended = True
                return
            self._ahead.append(leg)
            if isinstance(leg, WindowLeg):
                for span in leg.enter:
                    if span not in self._ready and span not in self._coming:
                        self._coming[span] = self._load(span)

    def _wants_more(self) -> bool:
        if not self._ahead:
            return True
        if not isinstance(self._ahead[-1], WindowLeg):
            return len(self._ahead) < 2
        frames, waiting = self._held, 0
        for load in self._coming.values():
            frames += load.frames
            waiting += not load.granted
        return len(self._ahead) < MAX_LEGS and (frames < self._limit or waiting < TABLES_AHEAD)

    def _load(self, span: Span) -> SlabLoad:
        nbytes = self._shape.nbytes[span.chunk] * (span.last - span.first) // max(1, self._shape.counts[span.chunk])
        return self._memory.slabs.load(span.chunk, span.first, span.last, nbytes, shared=self._shared)

    # -- window legs --------------------------------------------------------------------

    def _window(self, leg: WindowLeg) -> tuple[Any, ...]:
        ready, loose = self._ready, self._loose
        needed = [span for span, _ in leg.groups if span not in ready and span not in loose]
        self._await(dict.fromkeys(needed), {span for span, _ in leg.groups})
        groups: list[tuple[int, Any, Any]] = []
        for span, numbers in leg.groups:
            where = self._alone(span.chunk, numbers) if span in loose else ready[span].slab
            groups.append((span.chunk, where, numbers))
        return ("slabs", groups, leg.places, leg.skip, len(leg.places))

    def _await(self, needed: dict[Span, None], present: set[Span]) -> None:
        """Return when the spans are in memory; everything else ahead goes on meanwhile.

        Parameters:
            needed: the spans to wait for.
            present: all spans of the leg, which must not be given up to make room for them.
        """
        memory = self._memory
        deadline = Deadline(memory.timeout)
        for span in needed:
            if span not in self._coming:
                self._coming[span] = self._load(span)  # it was given up to make room, or failed before
            self._coming[span].wanted = self._coming[span].granted = True
        full = False
        if memory.opaque:
            memory.expect([span.chunk for span in self._coming])
        while True:
            seen = memory.arrivals.count
            memory.settle()
            missing = [span for span in needed if span in self._coming and not self._pump(span)]
            stuck = any(self._coming[span].stuck for span in missing)
            full = full or stuck
            self._pump_ahead(0 if full else self._room)  # nobody else takes the frames that are wanting here
            if not missing:
                return
            if self._room < self._limit and self._may_widen(missing):
                self._room = self._limit
                continue
            if stuck and not deadline.passed():
                self._make_room(missing, present)
                continue
            if deadline.passed():
                raise FetchTimeoutError(
                    f"{memory.place(missing[0].chunk, missing[0].first)} was not resident after "
                    f"{deadline.timeout:g} s; the storage is too slow, or others keep every frame busy",
                    url=memory.source.url, elapsed=deadline.timeout,
                )  # fmt: skip
            memory.arrivals.wait(deadline if self._room == self._limit else Deadline(HEAD_START), seen)

    def _may_widen(self, missing: Sequence[Span]) -> bool:
        """Whether the first leg's bytes are well on their way, so that those of others may follow."""
        sent = [self._coming[span].sent_at for span in missing]
        return all(sent) and time.monotonic() - max(sent) > HEAD_START

    def _pump(self, span: Span) -> bool:
        """Go on with a span that is needed now; one failed attempt made ahead of time is not its last."""
        load = self._coming[span]
        while True:
            try:
                if load.error is None:
                    return self._advance(span, load)
            except LazyStoreError:
                if load.retried:
                    del self._coming[span]
                    load.close()
                    raise
            load.close()
            self._coming[span] = load = self._load(span)
            load.retried = load.wanted = load.granted = True

    def _advance(self, span: Span, load: SlabLoad) -> bool:
        if not load.pump():
            return False
        del self._coming[span]
        self._ready[span] = load
        self._held += load.frames
        return True

    def _pump_ahead(self, room: int) -> None:
        """Go on with what is not needed yet, in the order of need, as far as ``room`` frames go."""
        used = self._held
        for span, load in list(self._coming.items()):
            used += load.frames
            if load.wanted or load.error is not None:
                continue
            load.granted = load.granted or used <= room
            try:
                self._advance(span, load)
            except LazyStoreError as error:
                load.error = without_trace(error)  # met, or cured, when the span is needed

    def _make_room(self, missing: Sequence[Span], present: set[Span]) -> None:
        """Give up what this leg does not need, the latest first; when there is none, read a span's items one by one."""
        for span in (*reversed(self._coming), *reversed(self._ready)):
            load = self._coming.get(span) or self._ready[span]
            if load.granted and span not in present:
                load.close()
                if self._ready.pop(span, None) is not None:
                    self._held -= load.frames
                self._coming[span] = self._load(span)
                return
        span = next(span for span in missing if self._coming[span].stuck)
        place = self._memory.place(span.chunk, span.first)
        error = ArenaFullError(f"{place} and the rest of its block: {self._memory.store.full_message()}")
        if self._memory.opaque:
            nbytes, held = self._shape.nbytes[span.chunk], self._limit * self._memory.store.frame_bytes
            raise BudgetTooSmallError(
                f"{place}: a shuffle needs its chunk inflated as a whole, some {nbytes} bytes, and the memory holds "
                f"{held}; give memory={OPAQUE_SHARE * nbytes} bytes or more, or read in order"
            )
        if not self._memory.fallback:
            raise error
        self._coming.pop(span).close()
        self._memory.count_fallback(span.chunk, error)
        self._loose.add(span)

    def _alone(self, chunk: int, numbers: Sequence[int]) -> list[Any]:
        """Items of a span that found no room, fetched alone."""
        buffers: list[Any] = [b""] * len(numbers)
        for k, buffer in self._memory.buffers([(chunk, number) for number in numbers]):
            buffers[k] = _own(buffer)
        return buffers

    # -- lists and ranges ---------------------------------------------------------------

    def _list(self, leg: ListLeg) -> list[tuple[int, int, Any]]:
        """The leg's items as buffers; those of the next list leg are sent for meanwhile."""
        if self._pid != os.getpid():  # a forked child has its parent's futures, and nobody to fulfil them
            self._pid, self._worker = os.getpid(), None
            self._lists.clear()
        found = self._lists.pop(id(leg), None)
        items = found.result() if found is not None else self._fetch_list(leg)
        if not self._memory.source.local:
            for following in list(self._ahead)[1:2]:
                if isinstance(following, ListLeg) and id(following) not in self._lists:
                    if self._worker is None:
                        self._worker = ThreadPoolExecutor(1, thread_name_prefix="lazystore-lists")
                    self._lists[id(following)] = self._worker.submit(self._fetch_list, following)
        return items

    def _fetch_list(self, leg: ListLeg) -> list[tuple[int, int, Any]]:
        reader = self._memory.reader
        places = [reader.where(item) for item in leg.items]
        items: list[tuple[int, int, Any]] = [(chunk, number, b"") for chunk, number in places]
        for k, buffer in self._memory.buffers(places):
            items[k] = (*places[k], _own(buffer))
        return items

    def _range(self, leg: RangeLeg) -> tuple[Any, ...]:
        """A scan; legs that follow on from each other are one, and so is what is read ahead of them."""
        following = self._ahead[1] if len(self._ahead) > 1 else None
        last = following.last if isinstance(following, RangeLeg) and following.first == leg.last else leg.last
        if self._scan is not None and self._scan.position == leg.first:
            if self._scan.ahead is not None:
                self._scan.ahead.extend(self._memory.last_part(last - 1))
            self._scan.extend(leg.last)
        else:
            self._end_scan()
            ahead = self._memory.read_ahead(leg.first, last)
            self._scan = ItemIterator(self._memory.reader, leg.first, leg.last, ahead)
        return ("range", self._scan)

    def _end_scan(self) -> None:
        if self._scan is not None and self._scan.ahead is not None:
            self._scan.ahead.close()
        self._scan = None

    def __repr__(self) -> str:
        return f"<RouteFeed, {len(self._ahead)} legs and {len(self._coming)} spans ahead>"


def _own(buffer: Any) -> Any:
    """A copy of what is leased: a leg's leases together could hold every frame."""
    return bytes(buffer) if isinstance(buffer, Lease) else buffer
