"""`Reader`: what a wrapper has open for one part of its samples, in one process and one epoch.

Which part, and when another epoch begins, is ``wrapper``'s business.
"""

from __future__ import annotations

from lazystore.hub.batches import Batches
from lazystore.hub.feed import Feed, Mark
from lazystore.hub.passes import Direct, Supply
from lazystore.hub.recovery import Recovery

__all__ = ["Reader"]


class Reader:
    """A feed behind its recovery, and the batches of it where it does not keep its samples itself.

    Parameters:
        recovery: of the feed.
        whole: all samples are read, whatever part of them a pass hands out.
        cache_size: samples; memory: bytes that are kept at most.
        timeout: seconds that somebody waits for what another one reads.

    Threads: any. Fork: make a new one.
    """

    def __init__(self, recovery: Recovery, *, whole: bool, cache_size: int, memory: int, timeout: float) -> None:
        self.recovery = recovery
        self.whole = whole
        self._limits = (cache_size, memory, timeout)
        self.batches: Batches | None = None
        self.direct_samples = 0

    @property
    def feed(self) -> Feed:
        """That is read at present."""
        return self.recovery.feed

    def stream(self) -> Batches:
        """The batches; the wrapper's lock is held."""
        if self.batches is None:
            cache_size, memory, timeout = self._limits
            self.batches = Batches(self.recovery, cache_size=cache_size, memory=memory, timeout=timeout)
        return self.batches

    def supply(self, position: int) -> Supply:
        """Of a new pass from ``position`` on."""
        return Direct(self, position) if self.feed.keeps else self.stream()

    def enter_at(self, mark: Mark) -> None:
        """A pass will begin near this mark of an equal feed."""
        if self.feed is self.recovery.first:
            self.recovery.marks.add(mark)
            if not self.feed.keeps:
                self.stream().align(mark.position)

    def retire(self) -> None:
        """The feed's order has changed: passes go on by what they have open; nothing is kept."""
        self.recovery.stale = True
        if self.batches is not None:
            self.batches.retire()

    def counters(self) -> dict[str, int]:
        """What was done, to be summed over readers."""
        batches, direct = self.batches, self.direct_samples
        hits, misses, reread = (batches.hits, batches.misses, batches.reread) if batches is not None else (0, 0, 0)
        return {
            "samples": hits + misses + direct,
            "hits": hits,
            "misses": misses,
            "reread_samples": reread,
            "retries": self.recovery.retried,
        }

    def close(self, why: str) -> None:
        if self.batches is not None:
            self.batches.close(why)
        self.recovery.close()
