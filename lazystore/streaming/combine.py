"""Several datasets as one: mixed by weight, side by side, or one after the other.

What the three have in common, their position and state above all, is in ``mixture``. No I/O.
"""

from __future__ import annotations

import inspect
import itertools
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lazystore._core.permute import derive_key
from lazystore.errors import ConfigError, ItemIndexError
from lazystore.streaming.mixture import Mixture, Part
from lazystore.streaming.order import Topology, share
from lazystore.streaming.resume import MAX_ITEMS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["CombinedStreamingDataset", "ConcatStreamingDataset", "ParallelStreamingDataset"]

#: Draws made at once: while iterating, and while catching up to a position.
BLOCK, CATCH_UP = 1024, 1 << 16
# What a key is for (order.py has 1, 2, 3 for its own).
MIX, TRANSFORM = 11, 12
GOLDEN, MIX_A, MIX_B = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_END: Any = object()


# -- by weight ------------------------------------------------------------------------------


class _Choices:
    """Which part each draw takes among those that go on: a pure function of the draw's number."""

    def __init__(self, weights: Sequence[float], key: int) -> None:
        self._weights, self._key = weights, key
        self.parts = [part for part, weight in enumerate(weights) if weight > 0]
        self._bounds = self._edges()

    def _edges(self) -> list[float]:
        weights = [self._weights[part] for part in self.parts]
        total = math.fsum(weights)
        return [edge / total for edge in itertools.accumulate(weights)][:-1]

    def draws(self, first: int, count: int) -> NDArray[np.float64]:
        """Numbers ``first``.. of the sequence, uniform in [0, 1): SplitMix64 of their number."""
        import numpy as np

        z = np.arange(first + 1, first + count + 1, dtype=np.uint64) * np.uint64(GOLDEN) + np.uint64(self._key)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(MIX_A)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(MIX_B)
        return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def taken_by(self, draws: NDArray[np.float64]) -> NDArray[np.intp]:
        """The part that each draw takes."""
        import numpy as np

        return np.array(self.parts, np.intp)[np.searchsorted(self._bounds, draws, side="right")]

    def again(self, part: int, draw: float) -> tuple[int, float]:
        """``part`` has ended: the part that its draw takes now, -1 if none is left, and what is left of the draw."""
        at = self.parts.index(part)
        low, high = [0.0, *self._bounds][at], [*self._bounds, 1.0][at]
        del self.parts[at]
        self._bounds = self._edges() if self.parts else []
        draw = min((draw - low) / (high - low), 1 - 2.0**-53)  # uniform again
        return self.parts[bisect_right(self._bounds, draw)] if self.parts else -1, draw


class CombinedStreamingDataset(Mixture):
    """Items of several datasets mixed at random, each item from one of them.

    Parameters:
        datasets: ``StreamingDataset`` objects or mixtures, each with its own order.
        weights: how often each is drawn, relative to the others, for ``iterate_over_all=False``. Default: in
            proportion to the datasets' items.
        seed: of the draws; each epoch, rank and worker draws differently.
        iterate_over_all: go on until every dataset has ended, so that every item comes once; False: stop when the
            first one ends.

    Resume is exact on as many ranks and workers; draws are a function of their number. Cost: some 0.7 us an item; to
    catch up with a position some 20 ms a million items, no reading.

    Threads: one iteration at a time. Fork, pickling: as the datasets; the position goes along.

    Raises:
        ConfigError: weights that cannot work, or with ``iterate_over_all``.
    """

    def __init__(
        self,
        datasets: Iterable[Part],
        *,
        weights: Sequence[float] | None = None,
        seed: int = 42,
        iterate_over_all: bool = True,
    ) -> None:
        super().__init__(datasets, seed)
        if weights is not None:
            if iterate_over_all:
                raise ConfigError("weights have no meaning when all is iterated; pass iterate_over_all=False with them")
            weights = [float(weight) for weight in weights]
            if len(weights) != len(self._parts):
                raise ConfigError(f"{len(weights)} weights are given for {len(self._parts)} datasets")
            if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not sum(weights) > 0:
                raise ConfigError(f"weights={weights} must be finite, not negative, and not all zero")
        self._weights = weights
        self._all = bool(iterate_over_all)

    def _settings(self) -> dict[str, Any]:
        return {"seed": self._seed, "weights": self._weights, "iterate_over_all": self._all}

    def __len__(self) -> int:
        """Items that this rank's iteration yields.

        Raises:
            TypeError: with ``iterate_over_all=False`` chance decides when the first dataset ends.
        """
        if not self._all:
            raise TypeError("a CombinedStreamingDataset with iterate_over_all=False ends by chance: it has no length")
        return sum(map(len, self._parts))

    def _choices(self, worker: int) -> _Choices:
        weights = self._weights or [float(part.total) for part in self._parts]
        return _Choices(weights, derive_key(self._seed, self._epoch, MIX, self.rank, worker))

    def _pass_length(self, worker: int, workers: int) -> int:
        lengths = [part.reader_length(worker, workers) for part in self._parts]
        if self._all:
            return sum(lengths)
        return sum(_caught_up(self._choices(worker), lengths, sum(lengths) + 1, stop_first=True))

    def _items(self, worker: int, workers: int, start: int) -> Iterator[Any]:
        choices = self._choices(worker)
        counts = [0] * len(self._parts)
        if start:
            lengths = [part.reader_length(worker, workers) for part in self._parts]
            counts = _caught_up(choices, lengths, start, stop_first=not self._all)
        iterators = [part.iter_from(count, worker) for part, count in zip(self._parts, counts, strict=True)]
        at = sum(counts)
        while choices.parts:
            draws = choices.draws(at, BLOCK)
            begun = at
            for part in choices.taken_by(draws).tolist():
                item = next(iterators[part], _END)
                if item is _END:
                    break
                at += 1
                yield item
            else:
                continue
            if not self._all:
                return
            draw = float(draws[at - begun])
            while item is _END and choices.parts:
                part, draw = choices.again(part, draw)
                item = next(iterators[part], _END) if part >= 0 else _END
            if item is not _END:
                at += 1
                yield item


def _caught_up(choices: _Choices, lengths: Sequence[int], stop: int, *, stop_first: bool) -> list[int]:
    """Items taken of each part by the first ``stop`` draws; leaves ``choices`` as those draws do."""
    import numpy as np

    counts = [0] * len(lengths)
    at = 0
    while at < stop and choices.parts:
        draws = choices.draws(at, min(CATCH_UP, stop - at))
        taken = choices.taken_by(draws)
        room = [lengths[part] - counts[part] for part in choices.parts]
        ends = [np.flatnonzero(taken == part)[left:] for part, left in zip(choices.parts, room, strict=True)]
        good = int(min((end[0] for end in ends if end.size), default=len(draws)))
        for part, more in enumerate(np.bincount(taken[:good], minlength=len(lengths)).tolist()):
            counts[part] += more
        at += good
        if good == len(draws):
            continue
        if stop_first:
            break
        part, draw = int(taken[good]), float(draws[good])
        while part >= 0 and counts[part] >= lengths[part]:
            part, draw = choices.again(part, draw)
        if part >= 0:
            counts[part] += 1
            at += 1
    return counts


# -- side by side ---------------------------------------------------------------------------


class _Generators(dict[str, Any]):
    """``rngs["random" | "numpy" | "torch"]``: generators of one sample, made when asked for."""

    def __init__(self, key: int) -> None:
        super().__init__()
        self._key = key

    def __missing__(self, name: str) -> Any:
        generator: Any
        if name == "random":
            import random

            generator = random.Random(self._key)
        elif name == "numpy":
            import numpy as np

            generator = np.random.default_rng(self._key)
        elif name == "torch":
            import torch

            generator = torch.Generator().manual_seed(self._key)
        else:
            raise ConfigError(f"rngs[{name!r}]: there are 'random', 'numpy' and 'torch'")
        self[name] = generator
        return generator


class ParallelStreamingDataset(Mixture):
    """One item of every dataset at a time, as a tuple.

    Parameters:
        datasets: ``StreamingDataset`` objects or mixtures.
        length: tuples that this rank yields: None: as many as the shortest dataset has; an int or ``float("inf")``:
            so many, datasets that end begin again in their next epoch's order.
        transform: makes of the tuple what is yielded: ``transform(samples)``, or ``transform(samples, rngs)`` with
            ``rngs["random"]``, ``rngs["numpy"]`` and ``rngs["torch"]``: generators seeded for this very sample, so
            that resume repeats them.
        seed: of those generators.

    Resume is exact on as many ranks and workers. Threads: one iteration at a time. Fork, pickling: as the datasets
    and the transform; the position goes along.

    Raises:
        ConfigError: arguments that cannot work; while iterating: a dataset to be repeated has no items here.
    """

    def __init__(
        self,
        datasets: Iterable[Part],
        *,
        length: float | None = None,
        transform: Callable[..., Any] | None = None,
        seed: int = 42,
    ) -> None:
        super().__init__(datasets, seed)
        counted = isinstance(length, int) and not isinstance(length, bool) and 0 <= length < MAX_ITEMS
        if not counted and length not in (None, math.inf):
            raise ConfigError(f"length={length!r} is neither None, a number of items nor float('inf')")
        if transform is not None and not callable(transform):
            raise ConfigError(f"transform={transform!r} is not callable")
        self._length = length
        self._transform = transform
        self._takes_generators = transform is not None and _positional(transform) > 1

    def _settings(self) -> dict[str, Any]:
        return {"seed": self._seed, "length": "inf" if self._length == math.inf else self._length}

    def __len__(self) -> int:
        """Tuples that this rank's iteration yields.

        Raises:
            TypeError: it never ends.
        """
        if self._length == math.inf:
            raise TypeError("a ParallelStreamingDataset with length=inf never ends: it has no length")
        return min(map(len, self._parts)) if self._length is None else int(self._length)

    @property
    def total(self) -> int:
        """Items of the smallest dataset, on all ranks."""
        return min(part.total for part in self._parts)

    def _pass_length(self, worker: int, workers: int) -> int:
        if self._length is None:
            return min(part.reader_length(worker, workers) for part in self._parts)
        if self._length == math.inf:
            return MAX_ITEMS
        first, last = share(int(self._length), Topology(0, 1, worker, workers, self._batch_size), False)
        return last - first

    def _items(self, worker: int, workers: int, start: int) -> Iterator[Any]:
        rank, epoch = self.rank, self._epoch
        for at, samples in enumerate(self._tuples(worker, workers, start), start):
            if self._transform is None:
                yield samples
            elif self._takes_generators:
                key = derive_key(self._seed, epoch, TRANSFORM, rank, worker, at)
                yield self._transform(samples, _Generators(key))
            else:
                yield self._transform(samples)

    def _tuples(self, worker: int, workers: int, start: int) -> Iterator[tuple[Any, ...]]:
        if self._length is None:
            yield from zip(*(part.iter_from(start, worker) for part in self._parts), strict=False)
            return
        rounds = [_Rounds(part, number, self._epoch, worker, workers) for number, part in enumerate(self._parts)]
        left = self._pass_length(worker, workers) - start
        if left > 0:
            yield from itertools.islice(zip(*(each.items(start) for each in rounds), strict=True), left)


@dataclass(frozen=True, slots=True)
class _Rounds:
    """A dataset over and over, each round in its next epoch's order."""

    part: Part
    number: int
    epoch: int
    worker: int
    workers: int

    def items(self, start: int) -> Iterator[Any]:
        for epoch in itertools.count(self.epoch):
            self.part.set_epoch(epoch)
            length = self.part.reader_length(self.worker, self.workers)
            if length == 0:
                raise ConfigError(
                    f"dataset {self.number} has no items for worker {self.worker} of {self.workers}, so it cannot be "
                    "repeated; use fewer workers or ranks, or length=None"
                )
            if start < length:
                yield from self.part.iter_from(start, self.worker)
            start = max(0, start - length)


def _positional(function: Callable[..., Any]) -> int:
    """Arguments that a function must be given by position; 1 where it does not say."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # some builtins
        return 1
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(each.kind in kinds and each.default is each.empty for each in parameters)


# -- one after the other --------------------------------------------------------------------


class ConcatStreamingDataset(Mixture):
    """Datasets one after the other: ``first + second`` makes one, by index and when iterated.

    Parameters:
        datasets: ``StreamingDataset`` objects or mixtures; for items by index those that have them. Concatenations
            among them are flattened.

    ``ds[i]`` counts through the datasets' items in their own numbering, whatever their order; iteration yields this
    rank's items of the first dataset in its order, then those of the second. Resume is exact on as many ranks and
    workers. Threads: any number may read by index; one iteration at a time. Fork, pickling: as the datasets.
    """

    def __init__(self, datasets: Iterable[Part]) -> None:
        flat: list[Part] = []
        for part in datasets:
            flat += part._parts if isinstance(part, ConcatStreamingDataset) else [part]
        super().__init__(flat, seed=0)

    def __add__(self, other: Part) -> ConcatStreamingDataset:
        return ConcatStreamingDataset([self, other])

    def __radd__(self, other: Part) -> ConcatStreamingDataset:
        return ConcatStreamingDataset([other, self])

    def _settings(self) -> dict[str, Any]:
        return {}

    def __len__(self) -> int:
        """Items that this rank's iteration yields; ``total`` is what there is by index."""
        return sum(map(len, self._parts))

    def __getitem__(self, index: Any) -> Any:
        """One item by int (negative from the end, numpy ints too), or a list of items by slice."""
        if type(index) is slice:
            return self.get_many(range(*index.indices(self.total)))
        part, number = self._find(index, self._ends())
        return self._parts[part][number]

    def get_many(self, indices: Iterable[int]) -> list[Any]:
        """Items in the order asked; those of each dataset are read together."""
        ends = self._ends()
        places = [self._find(index, ends) for index in indices]
        wanted: dict[int, list[int]] = {}
        for part, number in places:
            wanted.setdefault(part, []).append(number)
        found = {part: iter(self._parts[part].get_many(numbers)) for part, numbers in wanted.items()}
        return [next(found[part]) for part, _ in places]

    __getitems__ = get_many

    def _ends(self) -> list[int]:
        return list(itertools.accumulate(part.total for part in self._parts))

    def _find(self, index: int, ends: Sequence[int]) -> tuple[int, int]:
        try:
            number = index.__index__()
        except AttributeError:
            raise TypeError(f"items have integer numbers or slices, not {type(index).__name__}") from None
        if number < 0:
            number += ends[-1]
        if not 0 <= number < ends[-1]:
            raise ItemIndexError(f"item {index} is not among the {ends[-1]} items of this concatenation")
        part = bisect_right(ends, number)
        return part, number - (ends[part - 1] if part else 0)

    def _pass_length(self, worker: int, workers: int) -> int:
        return sum(part.reader_length(worker, workers) for part in self._parts)

    def _items(self, worker: int, workers: int, start: int) -> Iterator[Any]:
        for part in self._parts:
            gone = min(start, part.reader_length(worker, workers)) if start else 0
            start -= gone
            yield from part.iter_from(gone, worker)
