"""The first pass over text that has no index: from the beginning, at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lazystore.errors import FormatError

if TYPE_CHECKING:
    from lazystore._core.walk import Progress
    from lazystore.formats.format import Unindexed
    from lazystore.streaming.session import Session

__all__ = ["FirstPass"]


class FirstPass:
    """An iterator over items whose number nobody knows yet.

    Parameters:
        unindexed: the text.
        url: what it is called in messages.
        transform: applied to every item, or None.

    Attributes:
        position: items handed out.
        finished: the text came to its end, and its index was made.

    Memory: what the text's stream holds. Threads: one. Fork, pickling: none; the dataset's are as ever.
    """

    def __init__(self, unindexed: Unindexed, url: str, transform: Callable[[Any], Any] | None) -> None:
        self._decode = unindexed.plan
        self._stream = unindexed.stream()
        self._url = url
        self._transform = transform
        self.position = 0
        self.finished = False
        self._progress: Progress | None = None

    def __iter__(self) -> FirstPass:
        return self

    def __next__(self) -> Any:
        try:
            data = next(self._stream)
        except StopIteration:
            self.finished = True
            self._report()
            raise
        try:
            item = self._decode(data)
        except (FormatError, UnicodeDecodeError) as error:
            raise FormatError(f"{self._url}, item {self.position}: {error}") from error
        self.position += 1
        if self._progress is not None:
            self._report()
        return item if self._transform is None else self._transform(item)

    def hand_over(self, session: Session) -> None:
        """The text was indexed meanwhile: count as the session's present pass from now on."""
        _, self._progress = session.begin()
        self._report()

    def _report(self) -> None:
        if self._progress is not None:
            self._progress.position, self._progress.finished = self.position, self.finished

    def close(self) -> None:
        """End the pass; what it read ahead is dropped."""
        self._stream.close()

    def __repr__(self) -> str:
        return f"<FirstPass at item {self.position}{', finished' if self.finished else ''}>"
