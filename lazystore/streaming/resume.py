"""Resume: the state of an epoch as a small value, and what is left to read as a route.

Pure functions of that value: nothing here reads data, counts samples or knows torch. A state says how many
items each rank has had under each number of ranks and workers of this epoch; since orders are formulas, that is
all it takes. Which items a reader visits in a fresh epoch is ``order``'s business.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from lazystore.config import MAX_BYTES
from lazystore.errors import ConfigError, FormatError, UnsupportedError
from lazystore.streaming.mosaic_order import canonical_nodes, shuffle_block
from lazystore.streaming.order import (
    MOSAIC_SETTINGS,
    Leg,
    OrderSpec,
    Route,
    Shape,
    Topology,
    make_route,
    shard_length,
    share,
)

__all__ = [
    "MAX_RUNS",
    "MakeRoute",
    "Piece",
    "Position",
    "Remainder",
    "Run",
    "ShardLength",
    "WorkerMark",
    "check",
    "consumed",
    "next_worker",
    "parse",
    "remaining_route",
]

VERSION = 1
#: Changes of the number of ranks, workers or the batch size one epoch can take; it bounds the state's size.
MAX_RUNS = 16
#: Above these a state would outgrow its kilobyte, and something is wrong anyway.
MAX_WORLD, MAX_WORKERS, MAX_BATCH, MAX_ITEMS, MAX_EPOCH = 10**6, 10**4, 10**9, 10**15, 10**9
_FINGERPRINT = re.compile(r"[0-9a-f]{16}")


class MakeRoute(Protocol):
    """What :func:`lazystore.streaming.order.make_route` looks like."""

    def __call__(self, spec: OrderSpec, shape: Shape, topology: Topology, epoch: int, /) -> Route: ...


class ShardLength(Protocol):
    """What :func:`lazystore.streaming.order.shard_length` looks like."""

    def __call__(self, spec: OrderSpec, shape: Shape, topology: Topology, epoch: int, /) -> int: ...


class Run(NamedTuple):
    """A stretch of the epoch under one topology: ``yielded`` items on every rank (ranks are in step)."""

    world: int
    workers: int
    batch_size: int
    yielded: int

    def matches(self, topology: Topology) -> bool:
        """Whether ``topology`` is of a reader of this run."""
        return self[:3] == (topology.world, topology.workers, topology.batch_size)

    def goes_on(self, topology: Topology) -> bool:
        """Whether a reader of ``topology`` takes up this run where it stopped.

        Workers can only at the end of a batch: a loader's next batch of a worker is a whole one. Inside a batch what
        is left is cut anew, as for another topology.
        """
        return self.matches(topology) and (self.workers == 1 or self.yielded % self.batch_size == 0)


class WorkerMark(NamedTuple):
    """How far one DataLoader worker is: ``position`` items into its part under the last run's topology."""

    worker: int
    workers: int
    position: int


@dataclass(frozen=True, slots=True)
class Position:
    """Where an epoch stands: a value; threads, fork and pickle are no concern of it.

    Attributes:
        fingerprint: 16 hex digits that name the dataset's version, whatever its URL.
        spec: the order of this epoch.
        epoch: counted from 1 (trainers that count from 0 may).
        history: what was yielded, a run for each topology since the epoch began; empty at its beginning.
        worker: only in the state of one DataLoader worker, which counts its own items: its mark. The last run of
            ``history`` then names the topology that it counts under.

    Raises:
        ConfigError: a value out of its range; more than ``MAX_RUNS`` topologies in one epoch.
    """

    fingerprint: str
    spec: OrderSpec
    epoch: int
    history: tuple[Run, ...] = ()
    worker: WorkerMark | None = None

    def __post_init__(self) -> None:
        if _FINGERPRINT.fullmatch(self.fingerprint) is None:
            raise ConfigError(f"fingerprint={self.fingerprint[:40]!r} is not 16 hex digits")
        _within("order.window_bytes", self.spec.window_bytes, 1, MAX_BYTES)
        _within("order.block_bytes", self.spec.block_bytes, 1, MAX_BYTES)
        _within("epoch", self.epoch, 0, MAX_EPOCH - 1)
        if len(self.history) > MAX_RUNS:
            raise ConfigError(
                f"history: {len(self.history)} changes of ranks, workers or batch size in one epoch, at most "
                f"{MAX_RUNS} fit a state; keep to the last setting until the epoch ends, or begin the next: set_epoch()"
            )
        for number, run in enumerate(self.history):
            for name, value, low, high in zip(
                Run._fields, run, (1, 1, 1, 0), (MAX_WORLD, MAX_WORKERS, MAX_BATCH, MAX_ITEMS), strict=True
            ):
                _within(f"history[{number}].{name}", value, low, high - 1)
        if self.worker is not None:
            if not self.history or self.history[-1].workers != self.worker.workers:
                raise ConfigError("worker: the last entry of history has another number of workers")
            _within("worker.worker", self.worker.worker, 0, self.worker.workers - 1)
            _within("worker.position", self.worker.position, 0, MAX_ITEMS - 1)

    def advanced(self, topology: Topology, items: int) -> Position:
        """The position after each rank yielded ``items`` more under ``topology``."""
        if self.worker is not None:
            raise ConfigError(f"{_of_worker(self.worker)}; it cannot stand for a whole rank")
        if items == 0:
            return self
        history = _under(self.history, topology)
        last = history[-1]
        return dataclasses.replace(self, history=(*history[:-1], last._replace(yielded=last.yielded + items)))

    def in_worker(self, topology: Topology, position: int) -> Position:
        """The state of the worker ``topology``, ``position`` items into its part (``Remainder.taken`` included)."""
        mark = WorkerMark(topology.worker, topology.workers, position)
        return dataclasses.replace(self, history=_under(self.history, topology), worker=mark)

    def to_json_dict(self) -> dict[str, Any]:
        """Plain JSON of at most 1 KB, whatever the dataset and the run; :func:`parse` reads it."""
        state: dict[str, Any] = {
            "version": VERSION,
            "fingerprint": self.fingerprint,
            "order": {name: getattr(self.spec, name) for name in _ORDER_KEYS},
            "epoch": self.epoch,
            "history": [list(run) for run in self.history],
        }
        if self.spec.kind.startswith("mosaic"):
            state["order"][_MOSAIC] = [getattr(self.spec, name) for name, _, _ in MOSAIC_SETTINGS]
        if self.worker is not None:
            state["worker"] = list(self.worker)
        return state


def _within(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name}={value} is outside {low}..{high}")


def _of_worker(mark: WorkerMark) -> str:
    return f"this state is that of DataLoader worker {mark.worker} of {mark.workers}"


def _under(history: tuple[Run, ...], topology: Topology) -> tuple[Run, ...]:
    """The history with a last run of this topology."""
    if history and history[-1].goes_on(topology):
        return history
    return (*history, Run(topology.world, topology.workers, topology.batch_size, 0))


# -- reading a state ------------------------------------------------------------------------

_ORDER_KEYS: dict[str, type] = {"kind": str, "seed": int, "window_bytes": int, "block_bytes": int, "drop_last": bool}
#: What MosaicML's orders have besides, a list in the state.
_MOSAIC = "mosaic"


def parse(state: object) -> Position:
    """A position out of what :meth:`Position.to_json_dict` made, wherever it has been since.

    Raises:
        FormatError: not such a state; names the key.
        UnsupportedError: a state of a later version.
    """
    if not isinstance(state, Mapping):
        raise FormatError(f"a state is a dict, not {type(state).__name__}")
    version = _typed(state, "version", int, "")
    if version != VERSION:
        raise UnsupportedError(f"state['version'] is {version}; this lazystore reads version {VERSION}")
    order = _typed(state, "order", Mapping, "")
    values = {name: _typed(order, name, kind, "['order']") for name, kind in _ORDER_KEYS.items()}
    if values["kind"].startswith("mosaic"):
        row = _integers(_typed(order, _MOSAIC, (list, tuple), "['order']"), 3, f"state['order']['{_MOSAIC}']")
        values.update(zip([name for name, _, _ in MOSAIC_SETTINGS], row, strict=True))
    history = _typed(state, "history", (list, tuple), "")
    if len(history) > MAX_RUNS:
        raise FormatError(f"state['history'] has {len(history)} entries; at most {MAX_RUNS}")
    runs = tuple(Run(*_integers(row, 4, f"state['history'][{i}]")) for i, row in enumerate(history))
    mark = WorkerMark(*_integers(state["worker"], 3, "state['worker']")) if "worker" in state else None
    fingerprint, epoch = _typed(state, "fingerprint", str, ""), _typed(state, "epoch", int, "")
    try:
        spec = OrderSpec(**values)
    except ConfigError as error:
        raise FormatError(f"state['order']: {error}") from None
    try:
        return Position(fingerprint, spec, epoch, runs, mark)
    except ConfigError as error:
        raise FormatError(f"state: {error}") from None


def _typed(mapping: Mapping[Any, Any], key: str, kind: type | tuple[type, ...], place: str) -> Any:
    if key not in mapping:
        raise FormatError(f"state{place}[{key!r}] is missing: this is not a lazystore state")
    value = mapping[key]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise FormatError(f"state{place}[{key!r}] cannot be of type {type(value).__name__}")
    return value


def _integers(row: object, count: int, place: str) -> Sequence[int]:
    if isinstance(row, (list, tuple)) and len(row) == count and all(type(value) is int for value in row):
        return row
    raise FormatError(f"{place} is not a list of {count} integers")


def check(state: Position, mine: Position, force: bool = False) -> Position:
    """The position to resume at, if ``state`` belongs to this dataset, seed and order.

    The state's window and block sizes hold for the rest of its epoch: they come from the budget of that day, and a
    machine with less or more memory must still see the same order. So do the nodes that MosaicML's orders go by, and
    what was left to their defaults here. Everything else has to be equal; with ``force`` a
    state that differs lends its epoch and position only, and the order is that of the present arguments.

    Parameters:
        state: as parsed.
        mine: a position made of the present arguments; its epoch and history do not matter.
        force: accept a state that differs.

    Raises:
        ConfigError: names everything that differs, with both values.
    """
    pairs = [
        ("dataset version", state.fingerprint, mine.fingerprint),
        ("order", state.spec.kind, mine.spec.kind),
        ("seed", state.spec.seed, mine.spec.seed),
        ("drop_last", state.spec.drop_last, mine.spec.drop_last),
    ]
    if state.spec.kind.startswith("mosaic"):
        own = (("num_canonical_nodes", canonical_nodes), ("shuffle_block_size", shuffle_block))
        pairs += [(name, value(state.spec), value(mine.spec)) for name, value in own if getattr(mine.spec, name)]
    different = [
        f"{name} is {theirs!r} in the state and {ours!r} here" for name, theirs, ours in pairs if theirs != ours
    ]
    if not different:
        return state if state.history else _on_nodes(state, mine.spec.num_nodes)
    if not force:
        raise ConfigError(
            f"this state was made elsewhere: {'; '.join(different)}. Open the dataset as it was, or pass force=True to "
            "take only the epoch and the position from the state: then items may repeat or be missed in this epoch"
        )
    return dataclasses.replace(state, fingerprint=mine.fingerprint, spec=mine.spec)


def _on_nodes(state: Position, nodes: int) -> Position:
    """An epoch that was not begun, on other nodes; what MosaicML's orders made of the nodes stays as it was."""
    if not state.spec.kind.startswith("mosaic"):
        return state
    spec = dataclasses.replace(
        state.spec,
        num_nodes=nodes,
        num_canonical_nodes=canonical_nodes(state.spec),
        shuffle_block_size=shuffle_block(state.spec),
    )
    return dataclasses.replace(state, spec=spec)


# -- what is left ---------------------------------------------------------------------------


class Piece(NamedTuple):
    """Positions ``first``..``last - 1`` of the route of one reader of the epoch's first topology."""

    reader: Topology
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Remainder:
    """The route of one reader over what is left: pieces of older routes, end to end.

    Routes are built when their piece is reached. Picklable if ``build`` is; holds no state of an iteration.

    Attributes:
        taken: items of this reader's part that were gone before this route begins.
    """

    build: MakeRoute
    spec: OrderSpec
    shape: Shape
    epoch: int
    pieces: tuple[Piece, ...]
    taken: int

    @property
    def length(self) -> int:
        return sum(piece.last - piece.first for piece in self.pieces)

    def legs(self, start: int = 0, stop: int | None = None) -> Iterator[Leg]:
        """Legs over positions ``start``..``stop - 1``; what a piece enters it leaves at its end."""
        left = self.length if stop is None else stop
        skip = start
        for reader, first, last in self.pieces:
            size = last - first
            if skip < min(size, left):
                route = self.build(self.spec, self.shape, reader, self.epoch)
                yield from route.legs(first + skip, first + min(size, left))
            skip, left = max(0, skip - size), left - size


def remaining_route(
    position: Position,
    shape: Shape,
    topology: Topology,
    build: MakeRoute = make_route,
    length_of: ShardLength = shard_length,
) -> Remainder:
    """The route of the reader ``topology`` over what is left of the epoch.

    Under the topology of the last run: the uninterrupted order, less what this reader has yielded. Workers swap parts
    in a circle, so that a loader, which takes its first batch from worker 0, goes on where the last one stopped.
    Under another topology: what the old readers have left, laid end to end by rank and worker, and that cut anew into
    contiguous parts (``order.share``), so that every item left comes exactly once; with ``drop_last`` the ranks' parts
    are equal and the few items beyond are dropped.

    Parameters:
        build, length_of: ``order``'s functions, or those of whoever wraps them (module-level ones, to be picklable).

    Raises:
        ConfigError: a worker's state elsewhere than in that worker; more topologies than a state can hold.

    Cost: O(readers of all runs), no matter how many items; routes are built while iterating.
    """
    mark = position.worker
    if mark is not None and (
        mark[:2] != (topology.worker, topology.workers) or not position.history[-1].goes_on(topology)
    ):
        raise ConfigError(
            f"{_of_worker(mark)} (world {position.history[-1].world}, batch size {position.history[-1].batch_size}); "
            "load it there, or use the state of the whole loader to resume on another number of ranks or workers"
        )
    under = dataclasses.replace(position, history=_under(position.history, topology))  # refuses one topology too many
    *earlier, run = under.history
    left = _Left(position, earlier, shape, length_of) if earlier else None
    parts = [
        left.part(reader) if left else (0, length_of(position.spec, shape, reader, position.epoch))
        for reader in _readers(run, [topology.rank])
    ]
    lengths = [last - first for first, last in parts]
    given = consumed(run.yielded, lengths, run.batch_size)
    # Loaders take turns from worker 0 on: whoever's turn it was has to be that one now.
    turn = next_worker(given, lengths, run.batch_size) if run.yielded else 0
    role = (topology.worker + turn) % topology.workers
    first, last = parts[role]
    taken = given[role] if mark is None else min(mark.position, lengths[role])
    pieces = (
        left.pieces(first + taken, last) if left else (Piece(dataclasses.replace(topology, worker=role), taken, last),)
    )
    return Remainder(build, position.spec, shape, position.epoch, pieces, taken)


class _Left:
    """What some runs have left: ascending disjoint cuts of the first run's routes laid end to end."""

    def __init__(self, position: Position, runs: Sequence[Run], shape: Shape, length_of: ShardLength) -> None:
        spec = position.spec
        self._drop_last = spec.drop_last
        self._readers = list(_readers(runs[0], range(runs[0].world)))
        lengths = [length_of(spec, shape, reader, position.epoch) for reader in self._readers]
        self._starts = list(itertools.accumulate(lengths, initial=0))
        self._lay([(0, self._starts[-1])])
        self._take(runs[0], list(itertools.pairwise(self._starts)))
        for run in runs[1:]:
            self._take(run, [self.part(reader) for reader in _readers(run, range(run.world))])

    def _lay(self, cuts: Iterable[tuple[int, int]]) -> None:
        self._cuts = [cut for cut in cuts if cut[0] < cut[1]]
        self._sums = list(itertools.accumulate((b - a for a, b in self._cuts), initial=0))

    def _take(self, run: Run, parts: list[tuple[int, int]]) -> None:
        """Cut off what each reader of a run has yielded of its part."""
        kept = []
        for at in range(0, len(parts), run.workers):
            rank = parts[at : at + run.workers]
            gone = consumed(run.yielded, [last - first for first, last in rank], run.batch_size)
            kept += [(first + taken, last) for (first, last), taken in zip(rank, gone, strict=True)]
        self._lay([cut for first, last in kept for cut in self._slice(first, last)])

    def part(self, reader: Topology) -> tuple[int, int]:
        """The reader's part, as positions in what is left."""
        return share(self._sums[-1], reader, self._drop_last)

    def _slice(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Positions of what is left, as cuts of the first routes."""
        at = bisect.bisect_right(self._sums, first) - 1
        while first < last:
            begin = self._cuts[at][0] + first - self._sums[at]
            end = min(self._cuts[at][1], begin + last - first)
            yield begin, end
            first += end - begin
            at += 1

    def pieces(self, first: int, last: int) -> tuple[Piece, ...]:
        """Positions of what is left, as pieces of the first routes."""
        found = []
        for begin, end in self._slice(first, last):
            at = bisect.bisect_right(self._starts, begin) - 1
            while begin < end:
                stop = min(end, self._starts[at + 1])
                if begin < stop:
                    found.append(Piece(self._readers[at], begin - self._starts[at], stop - self._starts[at]))
                begin = stop
                at += 1
        return tuple(found)


def _readers(run: Run, ranks: Iterable[int]) -> Iterator[Topology]:
    for rank, worker in itertools.product(ranks, range(run.workers)):
        yield Topology(rank, run.world, worker, run.workers, run.batch_size)


def consumed(yielded: int, lengths: Sequence[int], batch_size: int) -> list[int]:
    """Items each worker of a rank has given when the rank has yielded ``yielded``.

    The rank takes one batch from each worker in turn and passes over workers that have no more, as torch does.

    Parameters:
        yielded: items, not batches; a batch may be half consumed. What is beyond the workers' items is ignored.
        lengths: items each worker has in all.

    Cost: O(workers), times the logarithm of the batches.
    """

    def after(rounds: int) -> int:
        return sum(min(length, rounds * batch_size) for length in lengths)

    most = -(-max(lengths) // batch_size)
    rounds = bisect.bisect_right(range(most + 1), yielded, key=after) - 1
    left = yielded - after(rounds)
    given = []
    for length in lengths:
        whole = min(length, rounds * batch_size)
        batch = min(batch_size, length - whole, left)
        given.append(whole + batch)
        left -= batch
    return given


def next_worker(given: Sequence[int], lengths: Sequence[int], batch_size: int) -> int:
    """Whose turn it is after each worker has given so many of its items; 0 when all is given."""
    turns = [(gone >= length, gone // batch_size) for gone, length in zip(given, lengths, strict=True)]
    return turns.index(min(turns))
