"""How many bytes were fetched more than once: a bit for every part of the dataset that has been resident."""

from __future__ import annotations

__all__ = ["Refetched"]

#: Parts that are told apart (1 MiB of bits). In a larger dataset several share a bit, and the count is too high.
MAX_BITS = 1 << 23


class Refetched:
    """Counts bytes of parts that were fetched before.

    Parameters:
        n_chunks: chunks of the dataset.
        longest: bytes of the longest chunk, as far as the index tells.
        frame_bytes: bytes a part.

    Memory: a bit a part, 1 MiB at most, from the first fetch on. Threads: under the GIL a lost update may hide a part.
    """

    def __init__(self, n_chunks: int, longest: int, frame_bytes: int) -> None:
        self.nbytes = 0
        self._frame = frame_bytes
        self._per_chunk = longest // frame_bytes + 1
        self._size = min(MAX_BITS, max(1, n_chunks * self._per_chunk))
        self._bits = bytearray()

    def note(self, chunk: int, begin: int, end: int) -> None:
        """Bytes ``begin .. end - 1`` of a chunk have arrived; parts that are in there as a whole count.

        The last part of a chunk is whole when ``end`` is the chunk's: callers round it up.
        """
        if not self._bits:
            self._bits = bytearray(self._size // 8 + 1)
        first, last = -(-begin // self._frame), end // self._frame
        for part in range(first, last):
            bit = (chunk * self._per_chunk + part) % self._size
            mask = 1 << (bit & 7)
            if self._bits[bit >> 3] & mask:
                self.nbytes += self._frame
            else:
                self._bits[bit >> 3] |= mask

    def __repr__(self) -> str:
        return f"<Refetched {self.nbytes} bytes>"
