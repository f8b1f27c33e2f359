"""How `imap` goes through a dataset: where it can, workers are sent numbers of items and read those themselves.

Here is what such a dataset offers, and the reader that travels to workers. What is read, and in which order, is the
dataset's business (``streaming.mapping``); this package knows nothing of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

__all__ = ["DatasetItems", "DatasetReader", "items_of"]


class DatasetItems(Protocol):
    """One pass over a dataset: as items, and from any position on as keys that :attr:`reader` turns into items.

    Attributes:
        length: items of the pass.
        reader: for ``Job.reader``; set its ``workers`` before it is pickled. None: workers are to be sent the items.
    """

    length: int
    reader: DatasetReader | None

    def items(self) -> Iterator[Any]:
        """The pass itself, as iterating the dataset would give it. Once."""
        ...

    def keys(self, start: int) -> Iterator[int]:
        """Keys for :attr:`reader` of the pass' items from the ``start``-th on; ends :meth:`items`. No I/O."""
        ...

    def handed_out(self, count: int) -> None:
        """So many more items are done with: their results are being given to the consumer, or were left out.

        Those of the calls before have been given by now. Tells the dataset where it stands, for its ``state_dict()``;
        called after items or keys were pulled.
        """
        ...

    def finish(self) -> None:
        """The consumer had everything: the dataset's epoch ends."""
        ...


class DatasetReader:
    """Turns keys into items: by the caller's own dataset where it was made, by another one where it was unpickled.

    Parameters:
        reopen: called as ``reopen(*arguments, workers)`` in a worker process, once, when it reads its first items;
            returns what reads there. A function of a module, with picklable arguments.
        arguments: what it takes to open the dataset elsewhere.
        workers: how many share the dataset's memory budget.
        read: what reads here.

    Threads: any number may call it. Pickling: without what is open; the copy opens its own when it is first called.
    """

    def __init__(
        self,
        reopen: Callable[..., Callable[[Sequence[Any]], Sequence[Any]]],
        arguments: tuple[Any, ...],
        workers: int = 1,
        read: Callable[[Sequence[Any]], Sequence[Any]] | None = None,
    ) -> None:
        self.workers = workers
        self._reopen = reopen
        self._arguments = arguments
        self._read = read
        self._opening = threading.Lock()

    def __call__(self, keys: Sequence[Any]) -> Sequence[Any]:
        """The items of these keys, in their order."""
        if self._read is None:
            with self._opening:
                if self._read is None:
                    self._read = self._reopen(*self._arguments, self.workers)
        return self._read(keys)

    def __reduce__(self) -> tuple[Any, ...]:
        return DatasetReader, (self._reopen, self._arguments, self.workers)

    def __repr__(self) -> str:
        return f"<DatasetReader for {self.workers} workers{'' if self._read is None else ', open'}>"


def items_of(data: object, *, ordered: bool = True) -> DatasetItems | None:
    """One pass over ``data``, if it is a stored dataset; None: iterate it.

    Begins the dataset's pass, as ``iter(data)`` would.

    Parameters:
        ordered: results are handed out in the order of the items.
    """
    begin: Callable[[Any, bool], DatasetItems | None] | None = getattr(type(data), "_lazystore_items_", None)
    return None if begin is None else begin(data, ordered)
