"""`Feed` and `Reading`: what the wrapper asks of a source, whatever it is.

A feed is a numbered sequence of samples that can be read from a position on; some also by number. No threads, no
cache, no retries here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from lazystore.errors import UnsupportedError
from lazystore.streaming.topology import detect

if TYPE_CHECKING:
    from lazystore.hub.hub_name import Origin

__all__ = ["Feed", "Mark", "Reading"]


@dataclass(frozen=True, slots=True)
class Mark:
    """Where a reading was: the next sample's number, and what its feed needs to go on there. Plain JSON inside."""

    position: int
    state: Any = None


class Reading(ABC):
    """One forward pass over a feed, by one thread at a time; close it."""

    #: Number of the next sample.
    position: int
    #: Samples before the first one that have been read over so far: it grows as long as the way there is made.
    passed: int = 0

    def __iter__(self) -> Iterator[Any]:
        return self

    @abstractmethod
    def __next__(self) -> Any:
        """The next sample. What the source raises comes as it is; the reading is then over."""

    def take(self, count: int) -> list[Any]:
        """The next samples, fewer than ``count`` only at the end.

        A reading that can fail half-way overrides this: samples before an error are to come first, here they are lost.
        """
        samples: list[Any] = []
        for sample in self:
            samples.append(sample)
            if len(samples) == count:
                break
        return samples

    def mark(self) -> Mark | None:
        """Where it is now, if the feed can go on from here without reading what was before; cheap (< 50 us)."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Let go of files and connections; again is nothing."""


class Feed(ABC):
    """A source of samples, numbered from 0 in the order of a pass.

    Attributes:
        name: in messages, and of threads.
        length: samples of a pass; None: not known.
        random: :meth:`get` costs about one read, not one of all samples before.
        keeps: keeps by itself what was read, inside its own budget: not to be cached once more.
        again: can be opened more than once.
        divided: is one rank's part already: only the workers of this rank divide it further.
        origin: the hub name it reads, and by which way; None: no hub name.
        part: which samples in a row of that it has; None: all.
    """

    name: str = ""
    length: int | None = None
    random: bool = False
    keeps: bool = False
    again: bool = True
    divided: bool = False
    origin: Origin | None = None
    part: range | None = None

    @property
    @abstractmethod
    def identity(self) -> str:
        """Short digest of what decides on the samples and their order: a state of another one is refused."""

    @abstractmethod
    def open(self, position: int = 0, mark: Mark | None = None) -> Reading:
        """A reading that begins with sample ``position``; independent of others.

        Parameters:
            mark: of an earlier reading of an equal feed, at most at ``position``.
        """

    def get(self, index: int) -> Any:
        """One sample, where ``random``."""
        raise UnsupportedError(f"{self.name}: samples cannot be read by number")

    def get_many(self, indices: Sequence[int]) -> list[Any]:
        """Several, in the order asked, where ``random``."""
        return [self.get(index) for index in indices]

    @property
    def epoch(self) -> int:
        """Of the order of the samples."""
        return 0

    def set_epoch(self, epoch: int) -> bool:
        """Passes opened from now on have this epoch's order; whether that is another one than before."""
        return False

    def share(self, index: int, count: int) -> Self | None:
        """The part for one of ``count`` readers, so that all together have every sample once, each its own bytes.

        None: cannot be divided so that each part is worth it: take every ``count``-th sample of the whole instead.
        """
        return None

    def counters(self) -> dict[str, Any]:
        """What the source itself counts, for ``stats()``."""
        return {} if self.origin is None else self.origin.counters()

    def ranks(self) -> tuple[int, int]:
        """The number of the rank that reads this feed, and how many ranks divide it."""
        return (0, 1) if self.divided else detect()

    @abstractmethod
    def close(self) -> None:
        """Let go of everything this feed opened itself; a source that was given is not closed."""
