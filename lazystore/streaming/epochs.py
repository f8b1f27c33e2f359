"""Epochs, ranks and states of a dataset: the part of its surface that is its session's business."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from lazystore.streaming.opening import check_arguments
from lazystore.streaming.session import order_kind

if TYPE_CHECKING:
    from lazystore.streaming.session import Session

__all__ = ["Epochs"]


class Epochs:
    """What every iterable dataset offers to loaders; see :class:`~lazystore.StreamingDataset`.

    Threads: one pass at a time counts as the present one. Fork, pickling: as the dataset.
    """

    _session: Session

    @property
    def rank(self) -> int:
        """Number of this process among ``world_size`` that share an epoch."""
        return self._session.rank

    @property
    def world_size(self) -> int:
        """Processes that share an epoch."""
        return self._session.world_size

    @property
    def epoch(self) -> int:
        """Number of the epoch that an iteration reads, from 1 on; one more once an iteration has ended."""
        return self._session.epoch

    @property
    def shuffled(self) -> bool:
        """Whether an epoch's order is another one than the stored order."""
        return self._session.kind != "sequential"

    @property
    def as_stored(self) -> bool:
        """Whether an iteration over everything has the stored order, from the first item on."""
        return not self.shuffled and not self._session.resumed

    def apart(self, *, whole: bool = False) -> Self:
        """The same items over the same memory with an epoch and position of its own. Cost: microseconds.

        Parameters:
            whole: an iteration reads everything, not the part of this rank and worker.
        """
        session = self._session.apart(whole=whole)  # before the rest is copied: it may make the index
        found = object.__new__(type(self))
        found.__dict__.update(self.__dict__)
        found._session = session
        return found

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch, whose order the next iteration has; to the present one changes nothing."""
        self._session.set_epoch(epoch)

    def set_batch_size(self, batch_size: int) -> None:
        """Items a batch: workers share an epoch in whole batches of this size."""
        check_arguments(0, batch_size, None, "raise")
        self._session.change(batch_size=batch_size)

    def set_drop_last(self, drop_last: bool) -> None:
        """Whether ranks are cut to equal lengths."""
        self._session.change(drop_last=bool(drop_last))

    def set_shuffle(self, shuffle: bool | str) -> None:
        """Another order, from the next iteration on; see the class."""
        self._session.change(kind=order_kind(shuffle, None))

    def state_dict(self, yielded: int | None = None, workers: int | None = None) -> dict[str, Any]:
        """Where the epoch stands: plain JSON of at most 1 KB, whatever the dataset's size. Cost: none.

        Parameters:
            yielded: items this rank's loader has yielded of the present pass, for loaders that count themselves;
                None: what this process' latest iteration has handed out.
            workers: with ``yielded``: the loader's worker processes, 0 for none.
        """
        return self._session.state_dict(yielded, workers)

    def load_state_dict(self, state: Mapping[str, Any], force: bool = False) -> None:
        """Go on where a state was taken: exactly, and on another number of ranks or workers with every item left
        coming once. Holds until the epoch ends or another is set.

        Parameters:
            force: accept the state of another dataset, seed or order, and take only its epoch and position.

        Raises:
            ConfigError: the state is of another dataset version, seed or order; says what differs.
            FormatError: it is no state.
        """
        self._session.load_state_dict(state, force)
