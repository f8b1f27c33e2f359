"""`StreamingDataLoader`: torch's DataLoader that knows what our datasets can do: epochs, and resuming through workers.

Imported on first use of the name only, and with torch only. Collating and the way from worker to trainer are in
``torch_batches``; how a plain DataLoader takes our datasets is in ``streaming.torch_kind``.
"""

from __future__ import annotations

import copy
import itertools
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lazystore.errors import ConfigError, MissingExtraError, UnsupportedError

try:
    import torch
    from torch.utils.data import DataLoader, IterableDataset, get_worker_info
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise MissingExtraError("StreamingDataLoader needs PyTorch: pip install lazystore[torch]") from None

from lazystore.adapters.torch_batches import collate, collate_and_ship

__all__ = ["StreamingDataLoader"]


class StreamingDataLoader(DataLoader):  # type: ignore[misc]
    """A ``torch.utils.data.DataLoader`` over one of lazystore's datasets, in the dataset's own order, resumable.

    Parameters:
        dataset: a StreamingDataset or a combination of such; it shards itself over ranks and workers.
        batch_size: items a batch; None: single items, not batched. The dataset is told, as its sharding needs it.
        num_workers: worker processes; they share the dataset's memory budget. 0: this process reads.
        collate_fn: makes a batch of a list of items. Default: what torch's ``default_collate`` returns, but faster,
            and with small tensors sent from workers without a shared memory file each.
        drop_last: True: equal numbers of items on all ranks and no short batch; False: every item once. None: the
            dataset's own setting, short batch included.
        shuffle: the dataset's ``shuffle``, here for convenience; None: as the dataset has it.
        options: all else that DataLoader takes (pin_memory, prefetch_factor, persistent_workers, timeout, ...).

    Each pass is one epoch: the first is the dataset's present one, each further pass the next, persistent workers
    included; :meth:`set_epoch` chooses another. ``len()`` is the number of batches of this rank.

    Raises:
        ConfigError: given a sampler (use torch's DataLoader for that), or a dataset without an order of its own.

    Workers leave Ctrl-C to the parent, which ends them at once; everything else about processes is torch's.
    Threads: one at a time may iterate or ask for the state. Fork, spawn: workers get a copy of the dataset. Pickle:
    as a DataLoader, without running workers.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None = 1,
        *,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        drop_last: bool | None = None,
        shuffle: Any = None,
        **options: Any,
    ) -> None:
        for name in ("sampler", "batch_sampler"):
            if options.get(name) is not None:
                raise ConfigError(
                    f"StreamingDataLoader reads in the dataset's own order and takes no {name}; "
                    f"use torch.utils.data.DataLoader(dataset, {name}=...), which fetches the items that it names"
                )
        if not callable(getattr(dataset, "set_epoch", None)):
            raise ConfigError(
                f"StreamingDataLoader reads lazystore's datasets, not {type(dataset).__name__}; "
                "use torch.utils.data.DataLoader"
            )
        dataset.set_batch_size(batch_size or 1)
        if shuffle is not None:
            dataset.set_shuffle(shuffle)
        if drop_last is not None:
            dataset.set_drop_last(drop_last)
        if collate_fn is None and batch_size is not None:
            collate_fn = collate
        options["drop_last"] = bool(drop_last) and batch_size is not None
        super().__init__(dataset, batch_size, num_workers=num_workers, collate_fn=collate_fn, **options)
        # The dataset stands where the pass under way began, or where the next one begins if there is none.
        self._pass: _Count | None = None
        self._seen: int = dataset.epoch
        self._shared_epoch: torch.Tensor | None = None

    # -- passes -------------------------------------------------------------------------

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass. The epoch of a just loaded state keeps its position.

        From here on a state says that the next pass begins: call it between passes, not during one.
        """
        if self._pass is not None or epoch != self.dataset.epoch:
            self._place(epoch)

    def _place(self, epoch: int) -> None:
        self._pass = None
        self.dataset.set_epoch(epoch)
        self._seen = self.dataset.epoch

    def __iter__(self) -> Iterator[Any]:
        if self._pass is not None and self.dataset.epoch == self._seen:  # begun and left; nobody chose another epoch
            self._place(self._seen + 1)
        self._seen = self.dataset.epoch
        if self._shared_epoch is not None:
            self._shared_epoch.fill_(self._seen)
        batches = super().__iter__()
        self._pass = _Count()
        return _Pass(self, self._pass, batches)

    def _ended(self, count: _Count) -> None:
        if self._pass is count:
            self._place(self._seen + 1)

    def _get_iterator(self) -> Any:
        # What torch's iterator gets in place of the loader's own dataset and functions; nobody else sees it.
        fed = copy.copy(self)
        own: dict[str, Any] = {"collate_fn": _Counting(self.collate_fn, single=self.batch_size is None)}
        if self.num_workers > 0:
            if self.persistent_workers:
                self._shared_epoch = torch.tensor(self._seen).share_memory_()
            own["dataset"] = _Feed(self.dataset, self._shared_epoch)
            own["worker_init_fn"] = _Begin(self.worker_init_fn)
            if self.collate_fn is collate:
                own["collate_fn"] = _Counting(collate_and_ship, single=False)
        fed.__dict__.update(own)
        return DataLoader._get_iterator(fed)

    @property
    def _index_sampler(self) -> Any:
        """What tells a worker how many items to take; torch's own would send it a list of as many Nones."""
        if self.batch_size is None:
            return super()._index_sampler
        return itertools.repeat(range(self.batch_size))

    # -- state --------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Where this rank is: JSON of at most 1 KB, exact after every batch that came out of this loader.

        It is the dataset's own state, so that the dataset takes it too. Once a pass has ended (its iterator was
        asked for one more) it is the beginning of the next epoch.

        Raises:
            UnsupportedError: ``in_order=False``: nobody knows which batches are still to come.
        """
        taken = self._pass.items if self._pass is not None and self.dataset.epoch == self._seen else 0
        if taken and not getattr(self, "in_order", True):
            raise UnsupportedError("a loader with in_order=False has no exact state; leave in_order at True to resume")
        state: dict[str, Any] = self.dataset.state_dict(yielded=taken, workers=self.num_workers)
        return state

    def load_state_dict(self, state: Mapping[str, Any], force: bool = False) -> None:
        """Make the next pass go on where the state was taken, on this number of workers and ranks.

        Parameters:
            state: of this loader, of one on other numbers of workers or ranks, or of the dataset.
            force: accept the state of another dataset version, seed or order.

        Raises:
            ConfigError, FormatError: what differs, or is wrong, in the state.
        """
        self.dataset.load_state_dict(state, force=force)
        self._pass = None
        self._seen = self.dataset.epoch
        self._iterator = None  # persistent workers stand elsewhere; the next pass starts new ones


class _Count:
    """Items that came out of one pass."""

    __slots__ = ("items",)

    def __init__(self) -> None:
        self.items = 0


class _Pass:
    """The batches of one pass, counted as they leave."""

    def __init__(self, loader: StreamingDataLoader, count: _Count, batches: Iterator[Any]) -> None:
        self._loader = loader
        self._count = count
        self._batches = batches

    def __iter__(self) -> _Pass:
        return self

    def __len__(self) -> int:
        return len(self._loader)

    def __next__(self) -> Any:
        try:
            items, batch = next(self._batches)
        except StopIteration:
            self._loader._ended(self._count)
            raise
        self._count.items += items
        return batch


class _Counting:
    """A collate function whose batches come with their numbers of items, which only it can know for any batch."""

    def __init__(self, make: Callable[[Any], Any], *, single: bool) -> None:
        self._make = make
        self._single = single

    def __call__(self, items: Any) -> tuple[int, Any]:
        return 1 if self._single else len(items), self._make(items)


class _Feed(IterableDataset):  # type: ignore[misc]
    """The dataset as workers get it: each new pass of a worker begins at the epoch that the loader wrote down."""

    def __init__(self, dataset: Any, epoch: torch.Tensor | None) -> None:
        self.dataset = dataset
        self._epoch = epoch
        self._begun = False

    def __iter__(self) -> Iterator[Any]:
        if self._begun and self._epoch is not None:
            self.dataset.set_epoch(int(self._epoch))
        self._begun = True  # the first pass begins where the dataset stood when it was handed over
        return iter(self.dataset)


class _Begin:
    """First act of a worker: it shows the dataset itself where torch would show the feed, and leaves Ctrl-C to others.

    Ctrl-C reaches all processes of a terminal. A worker that it ends waits for somebody to take its last batches from
    the pipe, while the trainer waits 5 s for each worker; ended by the trainer, workers drop what they have.
    """

    def __init__(self, then: Callable[[int], None] | None) -> None:
        self._then = then

    def __call__(self, worker: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        info = get_worker_info()
        object.__setattr__(info, "dataset", info.dataset.dataset)  # it refuses plain assignment
        if self._then is not None:
            self._then(worker)
