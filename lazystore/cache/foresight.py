"""Which chunks will be wanted next, for those that must be sent for early: told by a shuffle, guessed for a scan."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

from lazystore._core.frames import FrameStore
from lazystore._core.reader import Reader

__all__ = ["Foresight"]

#: Chunks after the present one that may be begun: small ones would need more than their bytes tell.
FOLLOWING = 32
#: Chunks that are looked at for the first of the next runs.
LOOKED_AT = 512


class Foresight:
    """Tells what follows a chunk.

    Threads: one at a time. Fork: copied. Pickling: none.
    """

    def __init__(self, store: FrameStore, reader: Reader) -> None:
        self._store = store
        self._reader = reader
        self._expected: Sequence[int] | None = None
        self._last = -1

    def expect(self, chunks: Sequence[int] | None) -> None:
        """Say which chunks will be read from now on, the present one included or not; None: nobody knows.

        Without it, a scan that came from one chunk to the next is expected to go on like that.
        """
        self._expected = chunks

    def passed(self, chunk: int) -> None:
        """A reader was at this chunk and went elsewhere."""
        self._last = chunk

    def expects(self, chunk: int) -> bool:
        """Whether it was said that this chunk will be read."""
        return self._expected is not None and chunk in self._expected

    def following(self, chunk: int) -> list[int]:
        """The chunks that will be wanted after this one and are not here, as far as anybody knows."""
        return [c for c in self._after(chunk)[:FOLLOWING] if self._is_missing(c) and c != chunk]

    def runs(self, chunk: int, runs: Sequence[int]) -> Iterator[tuple[int, int]]:
        """The runs that will be wanted after the one this chunk is in, and of each the first chunk that is not here.

        Parameters:
            runs: first chunk of each run, and the number of chunks.

        Cost: about a microsecond a run, and a chunk that is here or was expected.
        """
        chunks = self._after(chunk)
        begun = {bisect_right(runs, chunk) - 1}
        at = 0
        for _ in range(LOOKED_AT):
            if at >= len(chunks):
                return
            following = chunks[at]
            run = bisect_right(runs, following) - 1
            if run in begun:
                at += runs[run + 1] - following if self._expected is None else 1
            elif self._is_missing(following):
                begun.add(run)
                yield run, following
            else:
                at += 1

    def _after(self, chunk: int) -> Sequence[int]:
        """All chunks that come after this one, as far as anybody knows."""
        if self._expected is not None:
            return self._expected[self._expected.index(chunk) + 1 if chunk in self._expected else 0 :]
        if chunk in (0, self._last + 1):
            return range(chunk + 1, self._reader.n_chunks)
        return ()

    def _is_missing(self, chunk: int) -> bool:
        return bool(self._reader.chunk_items(chunk)) and not self._is_here(chunk)

    def _is_here(self, chunk: int) -> bool:
        """Whether a chunk's ends are resident, and so probably what is between them."""
        last = max(0, self._reader.chunk_length(chunk) - 1) >> self._store.shift
        return self._store.state(chunk, 0) == "ready" == self._store.state(chunk, last)
