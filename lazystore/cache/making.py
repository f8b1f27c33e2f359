"""One run of blocks being made: its steps, the bytes it asked for, and the image that is ready.

What a run does is the format's (:class:`lazystore.formats.format.Images`); when it may go on is decided by
whoever pumps it. Nothing here waits.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from lazystore.errors import BudgetTooSmallError, FormatError
from lazystore.fetch.source import Read
from lazystore.formats.format import Ahead, Arrival, Image, Images, Pause, Size, Step, Wait, Want

if TYPE_CHECKING:
    from lazystore.fetch.source import Flight, Source

__all__ = ["Making"]

#: What a run asked for, and the read that it comes by; sizes have none.
_Awaited: TypeAlias = tuple[Want | Size, Read | None]


class Making:
    """A run under way.

    Parameters:
        images, run, first: what is made, from which block on.
        source: where the bytes are.
        timeout: seconds a wave of requests may take.
        room: bytes it may hold at most.
        on_arrival: called from any thread when bytes have come.

    Attributes:
        next: the block that comes next.
        over: it has come to its end.
        waiting: it can only go on when another run has.
        used: somebody has waited for one of its blocks; a note of its owner.
        growth: bytes it will hold besides when it goes on from its pause.
        allowed: bytes it may hold so that others need not give way; its owner keeps it up to date.

    Threads: one at a time. Fork: dead in the child. Pickling: none.
    """

    def __init__(
        self,
        images: Images,
        run: int,
        first: int,
        *,
        source: Source,
        timeout: float,
        room: int,
        on_arrival: Callable[[], None],
    ) -> None:
        self.run = run
        self._images = images
        self.next = first
        self.over = self.waiting = self.used = self._paused = False
        self.growth = 0
        self._end = images.runs[run + 1]
        self._source = source
        self._timeout = timeout
        self._room = self.allowed = room
        self._on_arrival = on_arrival
        self._steps: Generator[Step, Any, None] = images.open(run, first)
        self._answer: Any = None
        self._flight: Flight | None = None
        self._wants: list[_Awaited] = []
        self._ahead: tuple[Flight, list[_Awaited]] | None = None
        self._image: Image | None = None

    @property
    def ready(self) -> bool:
        """An image waits to be taken."""
        return self._image is not None

    @property
    def scratch(self) -> int:
        """Bytes it may hold; more as it learns what its blocks are."""
        return self._images.scratch(self.run)

    @property
    def held(self) -> int:
        """Bytes it holds, or may come to hold."""
        return self.scratch + (len(self._image.data) if self._image is not None else 0)

    def take(self) -> Image:
        """The image that is ready; the run may go on to the next."""
        assert self._image is not None
        image, self._image = self._image, None
        return image

    @property
    def jumps(self) -> bool:
        """It has made an image, and goes on with any block of the run."""
        return isinstance(self._answer, int)

    def go_to(self, block: int) -> None:
        """Make this block next; of a run that jumps, and whose image was taken."""
        assert self.jumps and not self.ready
        self.next = self._answer = block

    def pump(self, *, urgent: bool = False) -> bool:
        """Go on as far as possible without waiting; True when an image is ready or the run is over.

        Parameters:
            urgent: somebody waits for the next image; else it stays where it pauses.

        Raises:
            FormatError, FetchError ...: the next block cannot be made; the run is over.
        """
        try:
            while self._image is None and not self.over:
                if self._paused and not urgent:
                    return False
                self._paused, self.growth = False, 0
                if self._flight is not None and not self._collect():
                    return False
                self._check_room()
                answer, self._answer = self._answer, None
                try:
                    step = self._steps.send(answer)
                except StopIteration:
                    self.over = True
                    if self.next < self._end:
                        raise FormatError(f"its format ended before block {self.next}") from None
                    break
                self.waiting = isinstance(step, Wait)
                if isinstance(step, Wait):
                    return False
                if isinstance(step, Pause):
                    self._paused, self.growth = True, step.growth
                    return False
                if isinstance(step, Image):
                    self._accept(step)
                    self._answer = self.next if step.jumps else None
                elif isinstance(step, Ahead):
                    self._answer = self._send_ahead(step)
                elif isinstance(step, Arrival):
                    self._turn_to_ahead()
                else:
                    self._send(step, urgent)
        except BaseException:
            self.close()
            raise
        return True

    def close(self) -> None:
        """Cancel what is on its way and let everything go. Twice is fine."""
        self.over = True
        for flight in (self._flight, self._ahead[0] if self._ahead is not None else None):
            if flight is not None:
                flight.cancel()
        self._flight = self._ahead = None
        self._wants.clear()
        self._steps.close()

    def hurry(self, seconds: float) -> None:
        """Wait for bytes that are on their way, at most so long."""
        if self._flight is not None:
            self._flight.wait(seconds)

    @property
    def on_its_way(self) -> bool:
        """Bytes it asked for have not come yet."""
        return self._flight is not None

    def _accept(self, image: Image) -> None:
        if image.block != self.next:
            raise FormatError(f"its format made block {image.block} where block {self.next} comes next")
        self._image = image
        self.next += 1

    def _check_room(self) -> None:
        """What it needs may have grown with what it has learned."""
        needed = self.scratch
        if needed > self._room:
            raise BudgetTooSmallError(
                f"making it takes {needed} bytes besides the result, {self._room} are reserved; "
                f"give at least {4 * needed} bytes more memory",
                needed=needed,
            )

    def _send(self, step: list[Want | Size], urgent: bool) -> None:
        total = sum(want.nbytes for want in step if isinstance(want, Want))
        if total > self.scratch:
            raise FormatError(f"making block {self.next} asks for {total} bytes, its run was to hold {self.scratch}")
        if step:
            self._flight, self._wants = self._start(step, urgent)
        else:
            self._answer = []

    def _send_ahead(self, step: Ahead) -> bool:
        """Send for what the run will need, where that does not take the room of others; whether it was sent."""
        if self._ahead is not None:
            raise FormatError(f"making block {self.next} sends ahead twice")
        if self.scratch > self.allowed:
            return False
        self._ahead = self._start(step.wants, False)
        return True

    def _turn_to_ahead(self) -> None:
        """Wait for what was sent for ahead as for any other bytes."""
        if self._ahead is None:
            raise FormatError(f"making block {self.next} waits for what it never sent for")
        (self._flight, self._wants), self._ahead = self._ahead, None

    def _start(self, wants: Sequence[Want | Size], urgent: bool) -> tuple[Flight, list[_Awaited]]:
        awaited: list[_Awaited] = [
            (want, Read(want.name, want.begin, memoryview(bytearray(want.nbytes))) if isinstance(want, Want) else None)
            for want in wants
        ]
        flight = self._source.start(
            [read for _, read in awaited if read is not None],
            stat=[want.name for want in wants if isinstance(want, Size)],
            timeout=self._timeout, urgent=urgent, on_done=self._on_arrival,
        )  # fmt: skip
        return flight, awaited

    def _collect(self) -> bool:
        assert self._flight is not None
        if not self._flight.done():
            return False
        flight, self._flight = self._flight, None
        sizes = flight.result()
        self._answer = [sizes[want.name] if read is None else read.view[: read.got] for want, read in self._wants]
        self._wants = []
        return True

    def __repr__(self) -> str:
        return f"<Making of run {self.run}, block {self.next} next>"
