"""`Part` and `Batch`: samples in a row, as they are handed out, and as they are read and kept.

Who reads and keeps them is ``batches``' business, who gets them ``passes``'.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from lazystore.hub.feed import Mark
from lazystore.hub.fresh import SHARED, depth_of
from lazystore.hub.recovery import Line

__all__ = ["END", "Batch", "Part"]


class Part(NamedTuple):
    """Some samples in a row, to be handed out.

    ``depth`` is how deep they have to be copied for that (``fresh``), ``mark`` of the nearest entry before them.
    """

    first: int
    samples: list[Any]
    depth: int
    nbytes: int
    mark: Mark | None

    @property
    def stop(self) -> int:
        return self.first + len(self.samples)

    def after(self, position: int) -> Part:
        """Without the samples before a position."""
        gone = position - self.first
        return self._replace(first=position, samples=self.samples[gone:]) if gone > 0 else self


#: What there is at the end.
END = Part(0, [], SHARED, 0, None)


class Batch:
    """Samples ``first .. limit - 1``, as far as they are read; ``done`` when no more are to come.

    Who reads them adds each at once; ``settled`` are those whose weight and depth are known.
    """

    __slots__ = ("busy", "depth", "done", "error", "first", "limit", "line", "mark", "nbytes", "samples", "settled")

    def __init__(self, first: int, limit: int) -> None:
        self.first, self.limit = first, limit
        self.samples: list[Any] = []
        self.settled = self.nbytes = 0
        self.depth = SHARED
        self.mark: Mark | None = None
        self.line: Line | None = None
        self.busy = self.done = False
        self.error: Exception | None = None

    def covers(self, position: int) -> bool:
        """Whether a position is to be had here: read already, being read, or known not to come."""
        return position < self.limit and (
            self.busy or self.done or self.error is not None or len(self.samples) > position - self.first
        )

    def part(self, position: int, most: int) -> Part:
        at = position - self.first
        whole = not at and self.done and len(self.samples) <= most  # then the list grows no more
        samples = self.samples if whole else self.samples[at : at + most]
        depth = self.depth if self.settled >= at + len(samples) else max(self.depth, depth_of(samples))
        return Part(position, samples, depth, self.nbytes * len(samples) // max(1, self.settled), self.mark)
