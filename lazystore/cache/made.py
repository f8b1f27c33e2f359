"""Frames of blocks that are made rather than read: inflated, decrypted, turned from columns into rows.

Blocks are small and made whole. Those that will be wanted next are begun early, as far as the reservation goes, so
that their stored bytes are on the way meanwhile. How a block is made is its format's business.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence

from lazystore._core.frames import Fill, FrameStore
from lazystore._core.reader import Reader
from lazystore.cache.door import HEAD_BYTES, Door
from lazystore.cache.flight import Arrivals, Deadline
from lazystore.cache.foresight import Foresight
from lazystore.cache.making import Making
from lazystore.errors import ArenaFullError, FetchTimeoutError, FormatError, LazyStoreError
from lazystore.fetch.source import Source
from lazystore.formats.format import Image, Images

__all__ = ["MadeChunks"]

#: Seconds between looks at a run that waits for another one.
LOOK_AGAIN = 0.005
#: Runs that are open when a scan begins, twice as many with every block it asks for, and at most.
FIRST_AHEAD, MOST_AHEAD = 2, 64
#: Share of the reservation that runs begun ahead may take: images turn out longer than their hints.
AHEAD_SHARE = 0.75
NO_PART = -1


class MadeChunks:
    """Fills frames of blocks.

    Parameters:
        images: makes them.
        room: bytes reserved from the budget by the caller: for runs that are open and images that wait.
        timeout: seconds a wave of requests may take.

    Memory: ``room``. Threads: one makes at a time, the others wait; none is started here.
    Fork: :meth:`reset`. Pickling: none.
    """

    def __init__(
        self,
        store: FrameStore,
        reader: Reader,
        door: Door,
        source: Source,
        arrivals: Arrivals,
        images: Images,
        *,
        room: int,
        timeout: float,
    ) -> None:
        self._store = store
        self._reader = reader
        self._door = door
        self._source = source
        self._arrivals = arrivals
        self._images = images
        self._room = room
        self._timeout = timeout
        self._foresight = Foresight(store, reader)
        self._lock = threading.Lock()
        self._open: OrderedDict[int, Making] = OrderedDict()  # by run, the one used last at the end
        self._made: OrderedDict[int, Image] = OrderedDict()  # taken out of their runs, not yet in frames
        self._depth = FIRST_AHEAD
        self._last = -1
        #: Bytes that were inflated or decrypted.
        self.opened_bytes = 0

    def expect(self, chunks: Sequence[int] | None) -> None:
        """Say which blocks will be read from now on; see :class:`Foresight`."""
        with self._lock:
            self._foresight.expect(chunks)

    def close(self) -> None:
        """Cancel what is on its way. After the source was closed, so that nobody holds the lock for long."""
        with self._lock:
            self._drop()

    def reset(self) -> None:
        """In a forked child: the parent's threads, and what they held, do not exist."""
        self._lock = threading.Lock()
        self._open.clear()
        self._made.clear()

    def admit(self, chunk: int, deadline: Deadline) -> None:
        """Learn the length of a block's image."""
        with self._lock:
            if not self._reader.chunk_length(chunk):
                self._image(chunk, deadline)

    def fill(self, chunk: int, last: int, scan: bool, deadline: Deadline) -> list[Fill]:
        """Make a block and bring it into the arena, part ``last`` in any case; returns the fills, which pin frames.

        Raises:
            FormatError: the block is damaged.
            BudgetTooSmallError: making it takes more than is reserved.
            ArenaFullError: no frame can be had.
        """
        with self._lock:
            if self._store.state(chunk, last) == "ready":
                return []
            image = self._image(chunk, deadline)
            fills = self._keep(chunk, image, last, scan)
            if scan:
                self._look_ahead(chunk)
            return fills

    # -- images -------------------------------------------------------------------------

    def _image(self, block: int, deadline: Deadline) -> Image:
        image = self._made.get(block)
        if image is None:
            try:
                image = self._make(block, deadline)
            except LazyStoreError as error:
                raise self._door.placed(block, error) from None
            self.opened_bytes += image.opened
            self._check(block, image)
            self._set_aside(block, image)
        return image

    def _check(self, block: int, image: Image) -> None:
        """Let an image in, whether it is the first one of its block or was made again.

        Raises:
            FormatError: it is damaged, or another than before.
        """
        data, length = memoryview(image.data), self._reader.chunk_length(block)
        if not length:
            self._door.admit(block, len(data), bytes(data[:HEAD_BYTES]))
        elif len(data) != length:
            raise FormatError(
                f"{self._door.chunk_place(block)} has {len(data)} bytes, it had {length} when it was made before: what "
                "it is made from has changed"
            )
        self._door.check_table(block, data, 0)

    def _make(self, block: int, deadline: Deadline) -> Image:
        run = bisect_right(self._images.runs, block) - 1
        making = self._open.get(run)
        if making is None or making.over or (making.next - making.ready > block and not making.jumps):
            if making is not None:
                self._close(run)
            making = self._begin(run, block)
        self._open.move_to_end(run)
        making.used = True
        self._make_room()
        if making.jumps and not making.ready:
            making.go_to(block)
        while True:
            if not self._advance(making, deadline):
                continue
            image = making.take()
            if image.block != block:
                # On the way to the one that is wanted: kept if a frame can be had.
                self._pass(image)
                if making.jumps:
                    making.go_to(block)
                continue
            if making.next == self._images.runs[run + 1]:
                self._close(run)
            return image

    def _advance(self, making: Making, deadline: Deadline) -> bool:
        """Go on with a run somebody waits for; True when its next image is ready."""
        if making.growth:
            self._make_room()
        making.allowed = self._room - self._held() + making.held
        try:
            if making.pump(urgent=True):
                return True
        except BaseException:
            self._close(making.run)
            raise
        if deadline.passed():
            self._close(making.run)
            raise FetchTimeoutError(
                f"block {making.next} was not there after {deadline.timeout:g} s; the storage is too slow",
                url=self._source.url, elapsed=deadline.timeout,
            )  # fmt: skip
        if making.waiting:
            self._pump_others(making)
            if not making.on_its_way:
                self._arrivals.wait(Deadline(min(LOOK_AGAIN, deadline.left())))
        else:
            making.hurry(deadline.left())
        return False

    def _begin(self, run: int, block: int) -> Making:
        self._open[run] = making = Making(
            self._images, run, block,
            source=self._source, timeout=self._timeout, room=self._room, on_arrival=self._arrivals.announce,
        )  # fmt: skip
        return making

    def _make_room(self) -> None:
        """Close runs until the one used last fits the reservation with the others: those not used for long, then those
        wanted last."""
        while len(self._open) > 1:
            *others, present = self._open.values()
            if self._held() + present.growth <= self._room:
                break
            used = (making for making in others if making.used)
            self._close(next(used, others[-1]).run)

    def _held(self) -> int:
        waiting = sum(len(image.data) for image in self._made.values())
        return waiting + sum(making.held for making in self._open.values())

    def _close(self, run: int) -> None:
        making = self._open.pop(run, None)
        if making is not None:
            making.close()

    def _drop(self) -> None:
        for making in self._open.values():
            making.close()
        self._open.clear()
        self._made.clear()

    # -- frames -------------------------------------------------------------------------

    def _set_aside(self, block: int, image: Image) -> None:
        """Keep the image until its frames have it: the newest one only."""
        self._made.clear()
        self._made[block] = image

    def _keep(self, block: int, image: Image, last: int, scan: bool) -> list[Fill]:
        """Copy an image into frames: all of it, if that leaves half of the arena to others; else only part ``last``."""
        frame = self._store.frame_bytes
        data = memoryview(image.data)
        n_parts = -(-len(data) // frame)
        whole = n_parts <= max(1, self._store.n_frames // 2)
        fills: list[Fill] = []
        try:
            for part in range(n_parts) if whole else range(last, last + 1) if last != NO_PART else ():
                fill = self._fill(block, part, data[part * frame : (part + 1) * frame], scan, part == last)
                if fill is not None:
                    fills.append(fill)
        except BaseException:
            for fill in fills:
                fill.release()
            raise
        finally:
            self._arrivals.announce()
        if whole and len(fills) == n_parts:
            self._made.pop(block, None)
        return fills

    def _fill(self, block: int, part: int, data: memoryview, scan: bool, wanted: bool) -> Fill | None:
        """One part in a frame; None if it is there already, or if it is not wanted now and finds no frame."""
        try:
            fill = self._store.begin(block, part, len(data), scan)
        except ArenaFullError:
            if wanted:
                raise
            return None
        if fill is None:
            return None
        try:
            with memoryview(fill) as view:
                view[:] = data
            fill.commit()
        except BaseException:
            fill.release()
            raise
        return fill

    def _pass(self, image: Image) -> None:
        """Keep a block that was made on the way to another one, as far as frames are to be had."""
        self.opened_bytes += image.opened
        try:
            self._check(image.block, image)
        except FormatError:
            return  # raised again when somebody wants it
        for fill in self._keep(image.block, image, NO_PART, True):
            fill.release()

    # -- ahead --------------------------------------------------------------------------

    def _look_ahead(self, block: int) -> None:
        """Begin the runs that come next: ever more the longer one reads on."""
        if self._last != block:
            self._foresight.passed(self._last)
            follows = block == self._last + 1 or self._foresight.expects(block)
            self._last = block
            self._depth = min(2 * self._depth, MOST_AHEAD) if follows else FIRST_AHEAD
        if self._source.local:
            return  # the page cache is as near as a buffer of ours would be
        held = self._held()
        for run, following in self._foresight.runs(block, self._images.runs):
            if run in self._open:
                continue
            held += self._images.scratch(run) + 2 * self._door.layout.hints[following]
            if len(self._open) >= self._depth or held > self._room * AHEAD_SHARE:
                break
            try:
                self._begin(run, following)
            except LazyStoreError:
                break  # met when it is wanted
        self._pump_others(None)

    def _pump_others(self, but: Making | None) -> None:
        spare = self._room - self._held()
        for run, making in list(self._open.items()):
            if making is but or making.ready:
                continue
            held = making.held
            making.allowed = spare + held
            try:
                making.pump()
            except LazyStoreError:
                self._close(run)  # met when it is wanted: it is begun again then
            else:
                spare += held - making.held

    def __repr__(self) -> str:
        return f"<MadeChunks, {len(self._open)} runs open, {self._held()} of {self._room} bytes>"
