"""`Mix`: several datasets as one: raw samples in their interleaved order, by number, and the position of it all.

Which dataset is next is ``interleave``'s, reading and reading ahead are the wrappers'. What is made of the samples is
``multimodal``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self

from lazystore.cache.locks import forkable_rlock
from lazystore.config import whole
from lazystore.errors import ConfigError, FormatError, ItemIndexError, LoadTimeoutError
from lazystore.hub.interleave import Interleave, Walk, shares
from lazystore.hub.member import Member, open_members

__all__ = ["Drawn", "Mix", "MixedPass"]

VERSION = 1
_END: Any = object()


class Drawn(NamedTuple):
    """A raw sample: of which dataset, its number there (in this reader's part of it), and itself."""

    part: int
    number: int
    row: Any


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where passes begin.

    Attributes:
        counts: samples of each dataset that are gone.
        ended: datasets that have no more.
        epochs: of the datasets.
        states: of the datasets, as they were loaded; None for one that begins at its beginning.
    """

    counts: tuple[int, ...]
    ended: frozenset[int]
    epochs: tuple[int, ...]
    states: tuple[Mapping[str, Any] | None, ...]


class Mix:
    """Raw samples of several datasets in one order.

    Parameters:
        members: the datasets.
        weights: how often each comes; None: in proportion to the lengths where all are known, else equally often.
        seed, stop: see :class:`Interleave`.
        identity: digest of what decides on the samples and their order, but for the datasets' own.

    Threads: any. Fork: the members see to it. Pickling: members, shares and where passes begin.
    """

    def __init__(
        self, members: Sequence[Member], weights: Sequence[float] | None, seed: int, stop: str, identity: str
    ) -> None:
        self.members = tuple(members)
        self._shares = None if weights is None else shares(weights)
        self._seed, self._stop, self._identity = seed, stop, identity
        self._lock = forkable_rlock()
        self._epoch = max(member.wrapper.epoch for member in members)
        self._entry: _Entry | None = None
        self._latest: MixedPass | None = None
        self._reached = [0] * len(self.members)  # samples that a dataset of unknown length is known to have

    # -- by number ----------------------------------------------------------------------

    def order(self, lengths: Sequence[int | None] | None = None) -> Interleave:
        """The order of a pass over datasets of these lengths; by default as long as they are known to be by now."""
        known = [member.length for member in self.members]
        with self._lock:
            if self._shares is None:
                numbers = [length for length in known if length is not None]
                even = len(numbers) < len(known)
                self._shares = shares([1] * len(known) if even else [max(1, length) for length in numbers])
            return Interleave(self._shares, self._seed, self._stop, known if lengths is None else lengths)

    @property
    def rank_length(self) -> int | None:
        """Samples of a pass on this rank; None: a dataset's length is not known."""
        return self.order([member.rank_length for member in self.members]).length

    def get_many(self, indices: Iterable[int]) -> list[Drawn]:
        """Samples by number, in the order asked; what is of one dataset is asked of it together.

        Raises:
            ItemIndexError: beyond the end, or from the end where the length is not known.
        """
        asked = list(indices)
        order = self.order()
        while True:
            try:
                return self._drawn(order, asked)
            except ItemIndexError:
                # A dataset has ended before the place where one of these was looked for: now its length is known.
                known, order = order.lengths, self.order()
                if order.lengths == known:
                    raise

    def _drawn(self, order: Interleave, asked: Sequence[int]) -> list[Drawn]:
        wanted: list[list[tuple[int, int]]] = [[] for _ in self.members]  # number there, place in the answer
        passed = [0] * len(self.members)
        for at, index in enumerate(asked):
            walk = _place(order, index)
            assert walk.part is not None
            wanted[walk.part].append((walk.counts[walk.part], at))
            passed = list(map(max, passed, walk.counts))
        self._reach(order, passed)
        found: dict[int, Drawn] = {}
        for part, places in enumerate(wanted):
            if places:
                rows = self.members[part].get_many([number for number, _ in places])
                for (number, at), row in zip(places, rows, strict=True):
                    found[at] = Drawn(part, number, row)
        return [found[at] for at in range(len(asked))]

    def _reach(self, order: Interleave, counts: Sequence[int]) -> None:
        """Make sure that datasets of unknown length have these many samples: with fewer the order is another one.

        Raises:
            ItemIndexError: one has fewer.
        """
        for part, count in enumerate(counts):
            if order.lengths[part] is None and count > self._reached[part]:
                self.members[part].get_many([count - 1])
                self._reached[part] = count

    # -- passes -------------------------------------------------------------------------

    def begin(self, finish: Callable[[Drawn], Sequence[Any]]) -> MixedPass:
        """A pass from where this epoch begins; ``finish`` makes of each raw sample those to hand out: one, or none."""
        with self._lock:
            entry = self._entry = self._entry or self._fresh()
            self._enter(entry)
            passes: list[Any] = [None] * len(self.members)
            try:
                for number, member in enumerate(self.members):
                    if number not in entry.ended:
                        passes[number] = iter(member.wrapper)  # they all read ahead from here on
                # Without lengths: workers and ranks have a part of each dataset, and find out when it ends.
                order = self.order([None] * len(self.members))
            except BaseException:
                _close(passes)
                raise
            walk = Walk(order, entry.counts, entry.ended)
            self._latest = MixedPass(self.members, walk, passes, finish, self._complete)
            return self._latest

    def _fresh(self) -> _Entry:
        count = len(self.members)
        epochs = tuple(member.wrapper.epoch for member in self.members)
        return _Entry((0,) * count, frozenset(), epochs, (None,) * count)

    def _enter(self, entry: _Entry) -> None:
        """Bring back what has gone on by itself: a dataset that came to its end begins anew, or its next epoch."""
        for number, member in enumerate(self.members):
            state, epoch = entry.states[number], entry.epochs[number]
            if state is not None:
                now = member.wrapper.state_dict()
                if now["epoch"] != epoch or (entry.counts[number] and not now["position"]):
                    member.load(state)
            elif member.wrapper.epoch != epoch:
                member.wrapper.set_epoch(epoch)

    def _complete(self, run: MixedPass) -> None:
        """A pass came to its end: the next one begins at the beginning."""
        with self._lock:
            if run is not self._latest:
                return
            self._entry = self._latest = None
            for number, member in enumerate(self.members):
                if number not in run.walk.gone:  # with stop="first": it would go on where it is
                    member.rewind()

    # -- position -----------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """The one that was set."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Passes from now on are of this epoch, from its beginning; the one it is in already keeps its position."""
        with self._lock:
            if epoch != self._epoch:
                for member in self.members:
                    member.retry()
                    member.wrapper.set_epoch(epoch)
                self._epoch, self._entry, self._latest = epoch, None, None

    def state_dict(self) -> dict[str, Any]:
        """Where the latest pass stands: plain JSON."""
        while True:
            latest = self._latest
            with latest.turn if latest is not None else nullcontext(), self._lock:
                if latest is self._latest:
                    return self._state(latest)

    def _state(self, latest: MixedPass | None) -> dict[str, Any]:
        entry = self._entry or self._fresh()
        counts: Sequence[int] = entry.counts if latest is None else latest.walk.counts
        ended: Collection[int] = entry.ended if latest is None else latest.walk.gone
        datasets = []
        for number, member in enumerate(self.members):
            state: dict[str, Any] = {"name": member.name, "epoch": entry.epochs[number], "count": counts[number]}
            datasets.append(state | ({"ended": True} if number in ended else member.state()))
        return {
            "version": VERSION,
            "identity": self._identity,
            "epoch": self._epoch,
            "shares": None if self._shares is None else list(self._shares),
            "datasets": datasets,
        }

    def load_state_dict(self, state: Mapping[str, Any], force: bool = False) -> None:
        """Begin passes where ``state`` stopped.

        Raises:
            FormatError: not a state of a MultimodalDataset.
            ConfigError: of other datasets, another split, seed or ``stop``; ``force`` accepts all but the first.
        """
        datasets = _parsed(state)
        names = [member.name for member in self.members]
        theirs = [dataset["name"] for dataset in datasets]
        if theirs != names:
            raise ConfigError(f"this state is of the datasets {', '.join(theirs)}; here are {', '.join(names)}")
        if state["identity"] != self._identity and not force:
            raise ConfigError(
                "this state was made with another split, seed, stop= or weights=; make the dataset as it was, or pass"
                " force=True to take the positions as they are"
            )
        with self._lock:
            for member, dataset in zip(self.members, datasets, strict=True):
                member.retry(dataset.get("made_up_from"))
                if dataset.get("ended"):
                    member.wrapper.set_epoch(dataset["epoch"])
                else:
                    member.load(dataset, force)
            self._epoch = state["epoch"]
            self._shares = None if state["shares"] is None else tuple(state["shares"])
            self._entry = _Entry(
                tuple(dataset["count"] for dataset in datasets),
                frozenset(number for number, dataset in enumerate(datasets) if dataset.get("ended")),
                tuple(dataset["epoch"] for dataset in datasets),
                tuple(None if dataset.get("ended") else dataset for dataset in datasets),
            )
            self._latest = None

    # -- life ---------------------------------------------------------------------------

    def close(self) -> None:
        """Close every dataset."""
        for member in self.members:
            member.close()

    def __getstate__(self) -> dict[str, Any]:
        recipes = [member.recipe for member in self.members]
        entry = self._entry or self._fresh()
        return {**self.__dict__, "_lock": None, "_latest": None, "_entry": entry, "members": recipes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        members, entry = tuple(open_members(state["members"])), state["_entry"]
        self.__dict__.update(state, _lock=forkable_rlock(), members=members)
        for member, loaded, epoch in zip(members, entry.states, entry.epochs, strict=True):
            if loaded is not None:
                member.load(loaded)
            else:
                member.wrapper.set_epoch(epoch)


class MixedPass:
    """An iterator over the samples of one pass; close it, or let go of it.

    Any number of threads may take samples: each one goes to exactly one of them. What a source raises comes where its
    sample would have been, and ends the pass; what ``finish`` raises does not. Fork: the child begins passes of its
    own.
    """

    def __init__(
        self,
        members: Sequence[Member],
        walk: Walk,
        passes: list[Any],
        finish: Callable[[Drawn], Sequence[Any]],
        on_end: Callable[[MixedPass], None],
    ) -> None:
        self.walk = walk
        self.turn = forkable_rlock()
        self._members, self._passes = members, passes
        self._finish, self._on_end = finish, on_end
        self._over = False

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        while True:
            with self.turn:
                drawn = self._draw()
            for sample in self._finish(drawn):
                return sample

    def _draw(self) -> Drawn:
        walk = self.walk
        while not self._over and walk.part is not None:
            part = walk.part
            try:
                row = next(self._passes[part], _END)
            except LoadTimeoutError as error:  # it may still come, but somebody may go on in its place
                self._passes[part] = self._members[part].go_on(error, walk.counts[part])
                continue
            except Exception:
                self._over = True  # the dataset's pass is; after an interruption (Ctrl-C) it goes on
                raise
            if row is not _END:
                return Drawn(part, walk.take(), row)
            if not self._over:  # else it was closed while this waited
                walk.ended()
        if not self._over:
            self._over = True
            _close(self._passes)  # with stop="first" there are some that have not ended
            self._on_end(self)
        raise StopIteration

    def close(self) -> None:
        """Stop reading; again is nothing. A thread that waits for a sample finds the pass at its end."""
        self._over = True
        _close(self._passes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _close(passes: Iterable[Any]) -> None:
    for one in passes:
        if one is not None:
            one.close()


def _place(order: Interleave, index: int) -> Walk:
    """The order from sample ``index`` of a pass on."""
    length = order.length
    if length is not None and not -length <= index < length:
        raise ItemIndexError(f"sample {index} of {length} samples in all")
    if index < 0:
        if length is None:
            raise ItemIndexError(f"sample {index} from the end: how many samples there are is not known")
        index += length
    walk = order.walk(index)
    if walk.part is None:
        raise ItemIndexError(f"sample {index}: a pass ends after {walk.position}")
    return walk


def _parsed(state: Any) -> list[dict[str, Any]]:
    """The datasets' states out of what ``state_dict`` made, wherever it has been since."""
    try:
        version, datasets = state["version"], [dict(dataset) for dataset in state["datasets"]]
        if version != VERSION:
            raise FormatError(f"state['version'] is {version!r}, this lazystore reads {VERSION}")
        whole("state['epoch']", state["epoch"], least=0)
        for dataset in datasets:
            whole("count", dataset["count"], least=0)
            whole("epoch", dataset["epoch"], least=0)
            if not isinstance(dataset["name"], str) or not (dataset.get("ended") or dataset["state"]):
                raise FormatError("state['datasets'] has an entry without its name or its dataset's state")
        if state["shares"] is not None:
            for share in state["shares"]:
                whole("share", share)
            if len(state["shares"]) != len(datasets):
                raise FormatError("state['shares'] and state['datasets'] are not of one length")
        str(state["identity"])
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"this is not the state of a MultimodalDataset: {type(error).__name__}: {error}") from error
    return datasets
