"""Parts of chunks on their way into frames, without anybody waiting.

A wave is one call of the source that runs while its maker goes on. What arrives is checked and made
readable by whoever looks next (:meth:`Wave.land`), never by the thread that fetched it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from lazystore.errors import LazyStoreError, without_trace
from lazystore.fetch.source import Read

if TYPE_CHECKING:
    from lazystore._core.frames import Fill
    from lazystore._core.reader import Reader
    from lazystore.fetch.source import Flight, Source

__all__ = ["Part", "Wave"]

Part = tuple[int, int]


class Wave:
    """Fills of some parts, and the flight that brings their bytes.

    Parameters:
        source: asked for the bytes.
        fills: the frames, by part.
        reads: one a part, into its fill.
        stat: objects whose size is wanted too.
        timeout: seconds, retries included.
        urgent: somebody waits for it already.
        hold: keep the frames pinned until :meth:`drop`, not just until they have landed.
        on_done: called from any thread when the flight has ended; must be quick.

    Attributes:
        error: why parts were given up, once landed.

    Threads: landed and dropped by any thread. Fork: dead in the child. Pickling: none.
    """

    __slots__ = ("_flight", "_hold", "_lock", "_over", "_reads", "error", "fills")

    def __init__(
        self,
        source: Source,
        fills: Mapping[Part, Fill],
        reads: Mapping[Part, Read],
        *,
        stat: Sequence[str],
        timeout: float,
        urgent: bool,
        hold: bool,
        on_done: Callable[[Wave], None],
    ) -> None:
        self.fills = dict(fills)
        self._reads = dict(reads)
        self._over = False
        self._hold = hold
        self._lock = threading.RLock()  # a finalizer may drop it in the very thread that lands it
        self.error: LazyStoreError | None = None
        self._flight: Flight | None = None

        def done() -> None:
            if self._flight is not None:  # else it ended before start() returned: noticed below
                on_done(self)

        self._flight = flight = source.start(
            list(self._reads.values()), stat=stat, timeout=timeout, urgent=urgent, on_done=done
        )
        if flight.done():
            on_done(self)

    def is_early(self, reader: Reader) -> bool:
        """Whether a part's chunk cannot be checked yet: its head is on its way in another wave."""
        return not self._over and any(
            not reader.chunk_length(chunk) and (chunk, 0) not in self.fills for chunk, _ in self.fills
        )

    def land(self, land: Callable[[Part, Fill, Read, dict[str, int]], None]) -> None:
        """Make what arrived readable; parts that failed are given up, for whoever wants them to fetch anew."""
        with self._lock:
            if self._over or self._flight is None:
                return
            self._over = True
            try:
                sizes = self._flight.result()
                for part, fill in self.fills.items():
                    land(part, fill, self._reads[part], sizes)
            except LazyStoreError as error:
                # Nothing is lost: whoever asks for the part meets the error, with its place, or cures it.
                self.error = without_trace(error)
            finally:
                self._close()
                if not self._hold:
                    self._release()

    def drop(self) -> None:
        """Give up what has not landed, and let every frame go."""
        with self._lock:
            if not self._over:
                self._over = True
                if self._flight is not None:
                    self._flight.cancel()
                self._close()
            self._release()

    def _release(self) -> None:
        for fill in self.fills.values():
            fill.release()
        self.fills = {}

    def _close(self) -> None:
        for part, fill in self.fills.items():
            self._reads[part].view.release()
            fill.abort()  # nothing after commit
        self._reads.clear()

    def __repr__(self) -> str:
        return f"<Wave of {len(self.fills)} parts{', over' if self._over else ''}>"
