"""Which chunks will be wanted next, for those that must be sent for early: told by a shuffle, guessed for a scan."""

from __future__ import annotations

from collections.abc import Sequence

from lazystore._core.frames import FrameStore
from lazystore._core.reader import Reader

__all__ = ["Foresight"]

#: Chunks after the present one that may be begun: small ones would need more than their bytes tell.
FOLLOWING = 32


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

    def following(self, chunk: int) -> list[int]:
        """The chunks that will be wanted after this one and are not here, as far as anybody knows."""
        reader = self._reader
        chunks: Sequence[int]
        if self._expected is not None:
            after = self._expected.index(chunk) + 1 if chunk in self._expected else 0
            chunks = self._expected[after : after + FOLLOWING]
        elif chunk in (0, self._last + 1):
            chunks = range(chunk + 1, min(chunk + 1 + FOLLOWING, reader.n_chunks))
        else:
            return []
        return [c for c in chunks if reader.chunk_items(c) and c != chunk and not self._is_here(c)]

    def _is_here(self, chunk: int) -> bool:
        """Whether a chunk's ends are resident, and so probably what is between them."""
        last = max(0, self._reader.chunk_length(chunk) - 1) >> self._store.shift
        return self._store.state(chunk, 0) == "ready" == self._store.state(chunk, last)
