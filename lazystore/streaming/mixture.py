"""`Mixture`: what datasets made of datasets share: parts, epoch, position, state, life.

A mixture iterates its parts inside one reader; the parts see to ranks, workers and bytes themselves. What it takes
from which part is a pure function of how many items the reader has had, so that is all its state says. The mixtures
there are live in ``combine``; no I/O.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

from lazystore.errors import ConfigError, FormatError, UnsupportedError
from lazystore.streaming.mapping import Mappable
from lazystore.streaming.order import Topology
from lazystore.streaming.resume import MAX_ITEMS, Run, WorkerMark, consumed, next_worker
from lazystore.streaming.topology import worker as this_worker
from lazystore.streaming.torch_kind import TorchKind

__all__ = ["Mixture", "Part"]

VERSION = 1


class Part(Protocol):
    """What a mixture asks of its datasets; a ``StreamingDataset`` has it, and so has a mixture."""

    @property
    def epoch(self) -> int: ...
    @property
    def total(self) -> int: ...
    @property
    def rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: Any, /) -> Any: ...
    def get_many(self, indices: Iterable[int], /) -> list[Any]: ...
    def set_epoch(self, epoch: int, /) -> None: ...
    def set_batch_size(self, batch_size: int, /) -> None: ...
    def reader_length(self, worker: int, workers: int, /) -> int: ...
    def iter_from(self, start: int, worker: int | None = None, /) -> Iterator[Any]: ...
    def state_dict(self, yielded: int | None = None, workers: int | None = None, /) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any], force: bool = False) -> None: ...
    def close(self) -> None: ...


@dataclass(slots=True)
class _Pass:
    """A pass under way in this process: items given, those before ``begun`` by earlier processes."""

    begun: int
    yielded: int = 0


class Mixture(TorchKind, Mappable):
    """What all mixtures share: parts, epoch, position, life. Subclasses say what comes next."""

    def __init__(self, datasets: Iterable[Part], seed: int) -> None:
        self._parts: list[Part] = list(datasets)
        if not self._parts:
            raise ConfigError(f"{type(self).__name__} needs at least one dataset")
        for number, part in enumerate(self._parts):
            missing = [name for name in ("iter_from", "reader_length", "load_state_dict") if not hasattr(part, name)]
            if missing:
                raise ConfigError(
                    f"dataset {number} is a {type(part).__name__} without {missing[0]}(); give StreamingDatasets or "
                    "mixtures of them"
                )
        if len({id(part) for part in self._parts}) < len(self._parts):
            raise ConfigError("the same dataset is given twice; open it a second time, so that each has its position")
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64:
            raise ConfigError(f"seed={seed!r} is not in 0 .. 2**64 - 1")
        self._seed = seed
        self._epoch = 1
        self._batch_size = 1
        self._run: Run | None = None
        self._mark: WorkerMark | None = None
        self._states: tuple[int, list[dict[str, Any]]] | None = None  # of the parts when the pass began
        self._pass: _Pass | None = None

    # -- what subclasses say ------------------------------------------------------------

    @abstractmethod
    def _settings(self) -> dict[str, Any]:
        """The arguments that decide on the order, as plain JSON."""

    @abstractmethod
    def _pass_length(self, worker: int, workers: int) -> int:
        """Items a reader yields in a whole pass."""

    @abstractmethod
    def _items(self, worker: int, workers: int, start: int) -> Iterator[Any]:
        """A reader's items from position ``start`` of its pass on."""

    # -- iteration ----------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        return self.iter_from(0)

    def iter_from(self, start: int, worker: int | None = None) -> Iterator[Any]:
        """Like ``iter()``, but the first ``start`` items are left out unread; ``worker`` plays that worker's part."""
        self._align()
        here, workers = this_worker()
        role, taken = self._place(here if worker is None else worker, workers, turning=worker is None)
        self._states = workers, self._part_states(workers)
        self._pass = _Pass(taken + start)
        return self._counted(self._pass, self._items(role, workers, taken + start))

    def _counted(self, run: _Pass, items: Iterator[Any]) -> Iterator[Any]:
        for item in items:
            run.yielded += 1
            yield item
        if self._pass is run:  # a complete pass; the next one has another order
            self._begin(self._epoch + 1)

    def reader_length(self, worker: int, workers: int) -> int:
        """Items that one worker of this rank yields from the present position on."""
        self._align()
        role, taken = self._place(worker, workers, turning=True)
        return max(0, self._pass_length(role, workers) - taken)

    def _align(self) -> None:
        """Bring back parts that went on to another epoch: to where they began this pass, if that is known."""
        for number, part in enumerate(self._parts):
            if part.epoch != self._epoch:
                part.set_epoch(self._epoch)
                if self._states is not None:
                    part.load_state_dict(self._states[1][number], force=True)

    def _place(self, worker: int, workers: int, *, turning: bool) -> tuple[int, int]:
        """(whose part this worker has, items of it that are gone); see ``resume.remaining_route``."""
        run, mark = self._run, self._mark
        if run is None:
            return worker, 0
        if mark is not None and mark[:2] != (worker, workers):
            raise self._elsewhere(run, f"worker {mark.worker} of {mark.workers}")
        self._check_same(run, worker, workers)
        lengths = [self._pass_length(each, workers) for each in range(workers)]
        given = consumed(run.yielded, lengths, run.batch_size)
        halves = [gone for gone, length in zip(given, lengths, strict=True) if gone < length and gone % run.batch_size]
        if workers > 1 and mark is None and halves:
            raise self._elsewhere(run, f"{workers} workers, inside a batch")
        turn = next_worker(given, lengths, run.batch_size) if turning and run.yielded else 0
        role = (worker + turn) % workers
        return role, given[role] if mark is None else min(mark.position, lengths[role])

    def _check_same(self, run: Run, worker: int, workers: int) -> None:
        if not run.matches(Topology(self.rank, self.world_size, worker, workers, self._batch_size)):
            raise self._elsewhere(run, f"{run.workers} workers")

    def _elsewhere(self, run: Run, where: str) -> ConfigError:
        return ConfigError(
            f"this {type(self).__name__} stopped on {run.world} ranks, {where}, batch size {run.batch_size} after "
            f"{run.yielded} items; mixtures resume on the same, with workers at the end of a batch. Resume so, "
            "or call set_epoch() for another pass"
        )

    @property
    def rank(self) -> int:
        """This process's rank, on which the parts agree."""
        return self._agreed("rank")

    @property
    def world_size(self) -> int:
        """The number of ranks, on which the parts agree."""
        return self._agreed("world_size")

    def _agreed(self, name: str) -> int:
        values = {int(getattr(part, name)) for part in self._parts}
        if len(values) > 1:
            raise ConfigError(f"the datasets have different values of {name}: {sorted(values)}; give all the same")
        return values.pop()

    @property
    def total(self) -> int:
        """Items of all datasets together, on all ranks."""
        return sum(part.total for part in self._parts)

    # -- position -----------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """The pass that is under way or comes next; counted from 1, one more after each complete pass."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Make ``epoch`` the next pass, from its beginning; the epoch it is in already keeps its position."""
        if epoch != self._epoch:
            self._begin(epoch)

    def _begin(self, epoch: int) -> None:
        self._epoch = epoch
        self._run = self._mark = self._states = self._pass = None

    def set_batch_size(self, batch_size: int) -> None:
        """Items a batch of the loader; workers share items in batches."""
        self._batch_size = batch_size
        self._states = None
        for part in self._parts:
            part.set_batch_size(batch_size)

    def set_drop_last(self, drop_last: bool) -> None:
        """Hand the argument to every dataset."""
        self._states = None
        for part in self._parts:
            part.set_drop_last(drop_last)  # type: ignore[attr-defined]

    def set_shuffle(self, shuffle: Any) -> None:
        """Hand the argument to every dataset."""
        self._states = None
        for part in self._parts:
            part.set_shuffle(shuffle)  # type: ignore[attr-defined]

    def state_dict(self, yielded: int | None = None, workers: int | None = None) -> dict[str, Any]:
        """Where the pass stands: plain JSON, some 200 bytes a dataset.

        Parameters:
            yielded: items that a loader has yielded on this rank since the pass began or was resumed; without it,
                what this process has iterated itself (inside a DataLoader worker: that worker's own state).
            workers: the loader's worker processes; 0: none.
        """
        run, mark = self._run, self._mark
        if yielded is not None:
            count = max(1, workers or 0)
            if run is None:
                run = Run(self.world_size, count, self._batch_size, 0)
            self._check_same(run, 0, count)
            run = run._replace(yielded=run.yielded + yielded)
        elif self._pass is not None:
            at = self._pass.begun + self._pass.yielded
            here, count = this_worker()
            if count == 1:
                run, mark = Run(self.world_size, 1, self._batch_size, at), None
            else:
                run, mark = run or Run(self.world_size, count, self._batch_size, 0), WorkerMark(here, count, at)
        return {
            "version": VERSION,
            "mixture": type(self).__name__,
            "settings": self._settings(),
            "epoch": self._epoch,
            "run": None if run is None else list(run),
            "worker": None if mark is None else list(mark),
            "parts": self._part_states(1 if run is None else run.workers),
        }

    def _part_states(self, workers: int) -> list[dict[str, Any]]:
        """The parts' positions at the beginning of the pass: their orders may depend on the number of workers."""
        if self._states is not None and self._states[0] == workers:
            return self._states[1]
        self._align()
        return [part.state_dict(0, workers) for part in self._parts]

    def load_state_dict(self, state: Mapping[str, Any], force: bool = False) -> None:
        """Begin the next iteration where ``state`` stopped, on as many ranks and workers as it was.

        Parameters:
            state: from :meth:`state_dict`.
            force: accept another seed, weights or datasets: then only epoch and position are taken.

        Raises:
            FormatError: not a state of a mixture; names the key.
            ConfigError: of another mixture or other datasets; names what differs.
        """
        epoch, run, mark = _parse(state)
        states = state["parts"]
        if len(states) != len(self._parts):
            raise ConfigError(f"this state is of {len(states)} datasets, here are {len(self._parts)}")
        theirs = {"mixture": state["mixture"], **state["settings"]}
        mine = {"mixture": type(self).__name__, **self._settings()}
        different = [name for name in mine if theirs.get(name) != mine[name]]
        if different and not force:
            raise ConfigError(
                "this state was made elsewhere: "
                + "; ".join(
                    f"{name} is {theirs.get(name)!r} in the state and {mine[name]!r} here" for name in different
                )
                + ". Make the mixture as it was, or pass force=True to take only the epoch and the position"
            )
        for part, inner in zip(self._parts, states, strict=True):
            part.load_state_dict(inner, force=force)
        self._begin(epoch)
        if run is not None and (run.yielded or mark is not None):  # else the pass has yet to begin, here or anywhere
            self._run, self._mark = run, mark
        self._states = (1 if run is None else run.workers), list(states)

    # -- life ---------------------------------------------------------------------------

    def close(self) -> None:
        """Close every dataset."""
        for part in self._parts:
            part.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pass": None}

    def __repr__(self) -> str:
        settings = "".join(f", {name}={value}" for name, value in self._settings().items())
        return f"{type(self).__name__}([{', '.join(map(repr, self._parts))}]{settings})"


def _parse(state: Mapping[str, Any]) -> tuple[int, Run | None, WorkerMark | None]:
    """Epoch, run and mark out of what ``state_dict`` made, wherever it has been since."""
    if not isinstance(state, Mapping):
        raise FormatError(f"a state is a dict, not {type(state).__name__}")
    for key, kind in (
        ("version", int),
        ("mixture", str),
        ("settings", Mapping),
        ("epoch", int),
        ("parts", (list, tuple)),
    ):
        if key not in state:
            raise FormatError(f"state[{key!r}] is missing: this is not the state of a mixture")
        if not isinstance(state[key], kind) or isinstance(state[key], bool):
            raise FormatError(f"state[{key!r}] cannot be of type {type(state[key]).__name__}")
    if state["epoch"] < 0:
        raise FormatError(f"state['epoch'] is {state['epoch']}")
    if state["version"] != VERSION:
        raise UnsupportedError(f"state['version'] is {state['version']}; this lazystore reads version {VERSION}")
    run, mark = _numbers(state, "run", 4), _numbers(state, "worker", 3)
    if run is not None and min(run[:3]) < 1:
        raise FormatError(f"state['run'] is {list(run)}: ranks, workers and batch size are at least 1")
    if mark is not None and (run is None or mark[1] != run[1] or mark[0] >= mark[1]):
        raise FormatError(f"state['worker'] is {list(mark)}, which does not go with state['run']")
    return state["epoch"], None if run is None else Run(*run), None if mark is None else WorkerMark(*mark)


def _numbers(state: Mapping[str, Any], key: str, count: int) -> tuple[int, ...] | None:
    row = state.get(key)
    if row is None:
        return None
    good = isinstance(row, (list, tuple)) and len(row) == count
    if good and all(type(value) is int and 0 <= value < MAX_ITEMS for value in row):
        return tuple(row)
    raise FormatError(f"state[{key!r}] is not a list of {count} numbers")
