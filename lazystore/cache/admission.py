"""Alone or with its whole frame? And how far ahead? Two small rules, without I/O.

:class:`RentOrBuy` is the ski-rental rule: fetching an item alone is rent, fetching its
frame is buying; buy once the rent paid for a frame reaches its price. Never more than twice
the best possible cost (Karlin et al., "Competitive randomized algorithms", 1990, section 2).
:class:`Streams` spots readers that go forward and doubles their window as they go on.
"""

from __future__ import annotations

from collections import OrderedDict

__all__ = ["RentOrBuy", "Streams"]

Part = tuple[int, int]

MAX_TRACKED = 4096  # frames or streams remembered; ~100 bytes each


class RentOrBuy:
    """Decides when sparse reads of a frame have cost as much as the frame.

    Parameters:
        frame_bytes: price of a frame, without the request.
        request_bytes: price of one request in bytes: latency times bandwidth, or what a system call
            costs in copied bytes.
    """

    def __init__(self, frame_bytes: int, request_bytes: int) -> None:
        self._price = frame_bytes + request_bytes
        self._request = request_bytes
        self._paid: OrderedDict[Part, int] = OrderedDict()

    def rent(self, part: Part, nbytes: int) -> None:
        """One more sparse read of ``nbytes`` in this frame."""
        self._paid[part] = self._paid.get(part, 0) + self._request + nbytes
        self._paid.move_to_end(part)
        if len(self._paid) > MAX_TRACKED:
            self._paid.popitem(last=False)

    def should_buy(self, part: Part) -> bool:
        """The rent paid has reached the price."""
        return self._paid.get(part, 0) >= self._price

    def bought(self, part: Part) -> None:
        """Start over: once evicted, the frame has to earn its price again."""
        self._paid.pop(part, None)


class Streams:
    """Windows of forward readers, by the part each will want next.

    Parameters:
        max_parts: largest window, in frames.
    """

    def __init__(self, max_parts: int) -> None:
        self._max = max(1, max_parts)
        self._expected: OrderedDict[Part, int] = OrderedDict()

    def window(self, part: Part) -> int:
        """Frames to fetch from ``part`` on: twice the last window if a stream was expected here, else one."""
        return min(self._max, 2 * self._expected.pop(part, 0) or 1)

    def follows(self, part: Part) -> bool:
        """A stream is expected to go on here."""
        return part in self._expected

    def expect(self, part: Part, window: int) -> None:
        """The stream that just fetched ``window`` frames will want ``part`` next."""
        self._expected[part] = window
        self._expected.move_to_end(part)
        if len(self._expected) > MAX_TRACKED // 16:
            self._expected.popitem(last=False)
