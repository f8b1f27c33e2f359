"""Where a dataset stands: its order, its epoch, and how far the present pass is.

A pass is one iteration over the route of this process' reader. What a state holds and how the rest of
an epoch is shared out is ``resume``'s; running a route is ``prefetch``'s.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from copy import copy
from typing import TYPE_CHECKING, Any

from lazystore._core.walk import Progress
from lazystore.errors import ConfigError
from lazystore.streaming.order import KINDS, OrderSpec, Shape, Topology, first_epoch, shard_length
from lazystore.streaming.prefetch import window_bytes
from lazystore.streaming.resume import Position, Remainder, check, parse, remaining_route
from lazystore.streaming.topology import detect, nodes, worker

if TYPE_CHECKING:
    from lazystore.formats.format import Opened
    from lazystore.streaming.subset import Selection

__all__ = ["Session", "fingerprint", "order_kind"]

#: What ``shuffle=`` means; ``order=`` names a kind of order itself.
SHUFFLES: dict[object, str] = {False: "sequential", True: "window", "chunk": "litdata", "global": "global"}
#: Orders of ours; the others are other libraries', and go by chunks as those have them.
OWN_KINDS = ("sequential", "window", "global")
_SETTINGS = ("_kind", "_seed", "_drop_last", "_batch_size", "_rank", "_world", "_mosaic", "_epoch", "_loaded")


def order_kind(shuffle: object, order: str | None) -> str:
    """The kind of order that the arguments ask for.

    Raises:
        ConfigError: there is no such order.
    """
    if order is not None:
        if order not in KINDS:
            raise ConfigError(f"order={order!r} is not one of {', '.join(KINDS)}")
        return order
    if not isinstance(shuffle, (bool, str)) or shuffle not in SHUFFLES:
        raise ConfigError(f"shuffle={shuffle!r} is not one of True, False, 'chunk' (LitData's own order) and 'global'")
    return SHUFFLES[shuffle]


def fingerprint(opened: Opened, selection: Selection | None) -> str:
    """16 hex digits that tell this version of a dataset, or this selection of it, from others; not where it lies."""
    counts = opened.counts if opened.files is None else opened.files.counts
    digest = hashlib.blake2b(digest_size=8)
    digest.update(repr((opened.version, opened.stride, len(counts))).encode())
    digest.update(memoryview(counts))
    if selection is not None:
        digest.update(selection.digest())
    return digest.hexdigest()


class Session:
    """Order, epoch and position of one dataset.

    Parameters:
        shape: of what is iterated.
        mark: the dataset's fingerprint.
        kind, seed, drop_last: of the order; ``drop_last=None``: only with several ranks, as in LitData.
        budget: bytes the dataset may use; the shuffle's window comes out of it.
        rank, world_size: None finds them (:func:`lazystore.streaming.topology.detect`).
        batch_size: items a batch, where the order or the sharing depends on it.
        opaque: chunks are inflated from their start, or made: shuffles work on whole ones.
        files: the shape of the dataset's own chunks, where those of ``shape`` are parts of them: what foreign orders
            go by.
        num_nodes, num_canonical_nodes, shuffle_block_size: of MosaicML's orders; None: found, and its defaults.

    Threads: one pass at a time counts as the present one. Fork, spawn: a copy goes its own way.
    """

    def __init__(
        self,
        shape: Shape,
        mark: str,
        *,
        kind: str,
        seed: int,
        drop_last: bool | None,
        budget: int,
        rank: int | None,
        world_size: int | None,
        batch_size: int,
        opaque: bool = False,
        files: Shape | None = None,
        num_nodes: int | None = None,
        num_canonical_nodes: int | None = None,
        shuffle_block_size: int | None = None,
    ) -> None:
        self._shape = shape
        self._files = files
        self.budget = budget
        self._mark = mark
        self._rank, self._world = detect(rank, world_size)
        self._opaque = opaque
        self._kind = kind
        self._seed = seed
        self._drop_last = self._world > 1 if drop_last is None else bool(drop_last)
        self._batch_size = batch_size
        if num_nodes is None:
            num_nodes = nodes(self._world) if kind.startswith("mosaic") else 1
        self._mosaic = (num_nodes, num_canonical_nodes or 0, shuffle_block_size or 0)
        self._epoch = first_epoch(kind)
        self._loaded: Position | None = None
        self._progress = Progress()
        self._pass: tuple[Position, Topology, int] | None = None

    @property
    def by_file(self) -> bool:
        """The order goes by the dataset's own chunks, not by the blocks they are read in."""
        return self._files is not None and self._kind not in OWN_KINDS

    @property
    def shape(self) -> Shape:
        """Of what the order is drawn over."""
        return self._files if self.by_file and self._files is not None else self._shape

    def settings(self) -> dict[str, Any]:
        """What tells a session from one made of the same arguments: for pickles and selections."""
        return {name: getattr(self, name) for name in _SETTINGS}

    def restore(self, settings: Mapping[str, Any]) -> Session:
        """Take over the settings of another session."""
        for name in _SETTINGS:
            setattr(self, name, settings[name])
        return self

    def apart(self, *, whole: bool) -> Session:
        """A copy that goes its own way; ``whole``: it reads everything, whatever rank or worker this is."""
        found = copy(self)
        if whole:
            found.__class__ = _Whole
            found._rank, found._world, found._drop_last = 0, 1, False
        return found

    @property
    def resumed(self) -> bool:
        """Whether the epoch began in the middle, by a state."""
        return self._loaded is not None

    # -- what is to be read -------------------------------------------------------------

    def topology(self) -> Topology:
        """This process' reader: its rank, and its DataLoader worker if it is one."""
        number, workers = worker()
        return Topology(self._rank, self._world, number, workers, self._batch_size)

    def spec(self, workers: int) -> OrderSpec:
        """The order, for readers that share the budget with ``workers - 1`` others."""
        window, block = window_bytes(self.budget // workers, opaque=self._opaque)
        return OrderSpec(self._kind, self._seed, window, block, self._drop_last, *self._mosaic)

    def length(self) -> int:
        """Items that this rank's whole epoch has, over all of its workers. Cost: O(1) but for LitData's orders."""
        reader = Topology(self._rank, self._world, 0, 1, self._batch_size)
        return shard_length(self.spec(1), self.shape, reader, self.epoch)

    def begin(self, start: int = 0, reader: int | None = None) -> tuple[Remainder, Progress]:
        """Start a pass: its route, and what counts its items.

        Parameters:
            start: items of the route that are left out.
            reader: the worker whose part it is; None: this process' own.
        """
        topology = self.topology()
        if reader is not None:
            topology = dataclasses.replace(topology, worker=reader)
        position = self._base(topology.workers)
        route = remaining_route(position, self.shape, topology)
        self._progress = Progress(start)
        self._pass = (position, topology, route.taken)
        return route, self._progress

    def reader_length(self, reader: int, workers: int) -> int:
        """Items left of the epoch for one worker of so many on this rank."""
        topology = Topology(self._rank, self._world, reader, max(1, workers), self._batch_size)
        return remaining_route(self._base(topology.workers), self.shape, topology).length

    def _base(self, workers: int) -> Position:
        """Where the present epoch was entered."""
        self._finish_epoch()
        if self._loaded is not None:
            return self._loaded
        return Position(self._mark, self.spec(workers), self._epoch)

    def _finish_epoch(self) -> None:
        """A pass that came to its end ends the epoch."""
        if self._progress.finished:
            self._progress = Progress()
            self._pass = None
            self._loaded = None
            self._epoch += 1

    @property
    def kind(self) -> str:
        return self._kind

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def world_size(self) -> int:
        return self._world

    # -- epochs -------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """The epoch that the next pass reads; the present one until its pass has ended."""
        self._finish_epoch()
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch; to the present one: nothing changes, a loaded position included.

        Raises:
            ConfigError: not an epoch.
        """
        if isinstance(epoch, bool) or not hasattr(epoch, "__index__") or int(epoch) < 0:
            raise ConfigError(f"epoch={epoch!r} is not a number of an epoch (0, 1, 2, ...)")
        if int(epoch) != self.epoch:
            self._epoch = int(epoch)
            self._loaded = None
            self._progress = Progress()
            self._pass = None

    def change(self, *, batch_size: int | None = None, drop_last: bool | None = None, kind: str | None = None) -> None:
        """Other settings, from the next pass on; what differs from a loaded state begins the epoch anew."""
        if batch_size is not None:
            self._batch_size = batch_size
        if drop_last is not None and drop_last != self._drop_last:
            self._drop_last, self._loaded = drop_last, None
        if kind is not None and kind != self._kind:
            self._kind, self._loaded = kind, None

    # -- state --------------------------------------------------------------------------

    def state_dict(self, yielded: int | None, workers: int | None) -> dict[str, Any]:
        """See :meth:`StreamingDataset.state_dict`."""
        if yielded is not None:
            count = max(1, workers or 0)
            reader = Topology(self._rank, self._world, 0, count, self._batch_size)
            return self._base(count).advanced(reader, yielded).to_json_dict()
        self._finish_epoch()
        if self._pass is None:
            return self._base(self.topology().workers).to_json_dict()
        position, topology, taken = self._pass
        if topology.workers > 1 or position.worker is not None:
            return position.in_worker(topology, taken + self._progress.position).to_json_dict()
        return position.advanced(topology, self._progress.position).to_json_dict()

    def load_state_dict(self, state: Mapping[str, Any], force: bool) -> None:
        """See :meth:`StreamingDataset.load_state_dict`."""
        mine = Position(self._mark, self.spec(self.topology().workers), 1)
        position = check(parse(state), mine, force)
        self._epoch = position.epoch
        self._loaded = position
        self._progress = Progress()
        self._pass = None

    def __repr__(self) -> str:
        return f"<Session of epoch {self.epoch}, {self._kind}, rank {self._rank} of {self._world}>"


class _Whole(Session):
    """A session that is not shared with ranks and workers."""

    def topology(self) -> Topology:
        return Topology(0, 1, 0, 1, 1)
