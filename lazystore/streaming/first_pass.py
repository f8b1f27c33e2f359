"""The first pass over text that has no index: from the beginning, at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lazystore.errors import FormatError

if TYPE_CHECKING:
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

    def __iter__(self) -> FirstPass:
        return self

    def __next__(self) -> Any:
        try:
            data = next(self._stream)
        except StopIteration:
            self.finished = True
            raise
        try:
            item = self._decode(data)
        except (FormatError, UnicodeDecodeError) as error:
            raise FormatError(f"{self._url}, item {self.position}: {error}") from error
        self.position += 1
        return item if self._transform is None else self._transform(item)

    def hand_over(self, session: Session) -> None:
        """Tell how far the pass came."""
        if self.finished:
            session.set_epoch(session.epoch + 1)
        elif self.position:
            session.load_state_dict(session.state_dict(self.position, 0), force=False)

    def close(self) -> None:
        """End the pass; what it read ahead is dropped."""
        self._stream.close()

    def __repr__(self) -> str:
        return f"<FirstPass at item {self.position}{', finished' if self.finished else ''}>"
