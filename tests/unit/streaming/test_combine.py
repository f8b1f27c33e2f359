"""Mixtures of datasets: what they yield, and that a state anywhere in a pass brings back exactly the rest.

The parts are stand-ins that iterate real routes over numbers: no bytes, but ranks, workers and orders as in earnest.
"""

from __future__ import annotations

import itertools
import json
import pickle
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.datasets import check as check_items
from support.datasets import write

from lazystore import StreamingDataset
from lazystore.errors import ClosedError, ConfigError, FormatError, ItemIndexError, UnsupportedError
from lazystore.streaming import combine, mixture, session
from lazystore.streaming.combine import CombinedStreamingDataset, ConcatStreamingDataset, ParallelStreamingDataset
from lazystore.streaming.order import OrderSpec, RangeLeg, Shape, Topology
from lazystore.streaming.resume import Position, check, parse, remaining_route

HERE = (0, 1)  # this process' worker, and how many there are


@pytest.fixture(autouse=True)
def _workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixture, "this_worker", lambda: HERE)


class Numbers:
    """A dataset of (name, number) in stored order; each epoch begins ``epoch`` items further on, to tell them apart."""

    def __init__(self, name: str, total: int, rank: int = 0, world: int = 1, seed: int = 1) -> None:
        self.name, self.total, self.rank, self.world_size = name, total, rank, world
        self._batch_size, self._epoch, self._closed = 1, 1, False
        self._spec = OrderSpec("sequential", seed, 10**6, 1, False)
        self._loaded: Position | None = None
        self.read = 0

    def _base(self) -> Position:
        return self._loaded or Position(f"{self.total:016x}", self._spec, self._epoch)

    def _route(self, worker: int, workers: int) -> Any:
        shape = Shape([self.total], [self.total])
        topology = Topology(self.rank, self.world_size, worker, workers, self._batch_size)
        return remaining_route(self._base(), shape, topology)

    def __len__(self) -> int:
        share, over = divmod(self.total, self.world_size)
        return share + (self.rank < over)

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < self.total:
            raise ItemIndexError(f"item {index}")
        return self.name, index

    def get_many(self, indices: Iterable[int]) -> list[Any]:
        return [self[index] for index in indices]

    @property
    def epoch(self) -> int:
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        if epoch != self._epoch:
            self._epoch, self._loaded = epoch, None

    def set_batch_size(self, batch_size: int) -> None:
        self._batch_size = batch_size

    def reader_length(self, worker: int, workers: int) -> int:
        return self._route(worker, workers).length

    def iter_from(self, start: int = 0, worker: int | None = None) -> Iterator[Any]:
        route, epoch = self._route(HERE[0] if worker is None else worker, HERE[1]), self._epoch
        for leg in route.legs(start):
            assert isinstance(leg, RangeLeg)
            for number in range(leg.first, leg.last):
                if self._closed:
                    raise ClosedError("closed")
                self.read += 1
                yield self.name, (number + epoch) % self.total
        self.set_epoch(epoch + 1)

    __iter__ = iter_from

    def state_dict(self, yielded: int | None = None, workers: int | None = None) -> dict[str, Any]:
        assert yielded == 0
        return self._base().to_json_dict()

    def load_state_dict(self, state: Mapping[str, Any], force: bool = False) -> None:
        self._loaded = check(parse(state), Position(f"{self.total:016x}", self._spec, 1), force)
        self._epoch = self._loaded.epoch

    def close(self) -> None:
        self._closed = True

    def __repr__(self) -> str:
        return self.name


def parts(*totals: int, rank: int = 0, world: int = 1) -> list[Any]:
    return [Numbers(name, total, rank, world) for name, total in zip("abcdef", totals, strict=False)]


def batches(dataset: Any, workers: int, batch_size: int) -> list[list[Any]]:
    """What a loader over copies of the dataset yields: a batch from each worker in turn."""
    left = []
    for worker in range(workers):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(globals(), "HERE", (worker, workers))
            left.append(list(pickle.loads(pickle.dumps(dataset))))
    out = []
    while any(left):
        for items in left:
            if items:
                out.append(items[:batch_size])
                del items[:batch_size]
    return out


def loaded(dataset: Any, workers: int, batch_size: int = 1) -> list[Any]:
    return list(itertools.chain.from_iterable(batches(dataset, workers, batch_size)))


MIXTURES: dict[str, Any] = {
    "combined": lambda: CombinedStreamingDataset(parts(17, 0, 5, 9)),
    "weighted": lambda: CombinedStreamingDataset(parts(40, 30, 9), weights=[2, 1, 0], iterate_over_all=False),
    "parallel": lambda: ParallelStreamingDataset(parts(17, 21)),
    "cycled": lambda: ParallelStreamingDataset(parts(7, 21, 10), length=45, transform=_tagged),
    "concat": lambda: ConcatStreamingDataset(parts(11, 0, 8)),
    "nested": lambda: CombinedStreamingDataset(
        [ConcatStreamingDataset(parts(5, 6)), ParallelStreamingDataset(parts(9, 12)), *parts(13)], seed=3
    ),
}


def _tagged(samples: tuple[Any, ...], rngs: Mapping[str, Any]) -> Any:
    return samples, rngs["random"].random(), int(rngs["numpy"].integers(10**9))


# -- resume ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize(("workers", "batch_size"), [(1, 1), (2, 1), (2, 3), (3, 2)])
def test_a_loader_stopped_after_any_batch_goes_on_exactly(name: str, workers: int, batch_size: int) -> None:
    dataset = MIXTURES[name]()
    dataset.set_batch_size(batch_size)
    dataset.set_epoch(2)
    whole = batches(dataset, workers, batch_size)
    ends = [0, *itertools.accumulate(map(len, whole))]
    for stop, end in enumerate(ends):
        first = json.loads(json.dumps(dataset.state_dict(ends[stop // 2], workers)))
        again = MIXTURES[name]()
        again.set_batch_size(batch_size)
        again.load_state_dict(first)
        assert again.epoch == 2
        assert batches(again, workers, batch_size) == whole[stop // 2 :]
        second = json.loads(json.dumps(again.state_dict(end - ends[stop // 2], workers)))
        again = MIXTURES[name]()
        again.set_batch_size(batch_size)
        again.load_state_dict(second)
        again.set_epoch(2)  # as trainers do after loading
        assert batches(again, workers, batch_size) == whole[stop:]


def test_inside_a_batch_of_workers_there_is_no_going_on() -> None:
    dataset = MIXTURES["combined"]()
    dataset.set_batch_size(3)
    dataset.load_state_dict(dataset.state_dict(7, 2))
    with pytest.raises(ConfigError, match="2 workers, inside a batch, batch size 3 after 7 items"):
        loaded(dataset, 2, 3)


@pytest.mark.parametrize("name", MIXTURES)
def test_an_iteration_stopped_anywhere_goes_on_exactly(name: str) -> None:
    whole = list(MIXTURES[name]())
    for stop in range(len(whole) + 1):
        dataset = MIXTURES[name]()
        taken = list(itertools.islice(dataset, stop))
        state = dataset.state_dict()
        again = MIXTURES[name]()
        again.load_state_dict(state)
        half = (len(whole) - stop) // 2
        taken += itertools.islice(again, half)
        last = MIXTURES[name]()
        last.load_state_dict(again.state_dict())
        assert taken + list(last) == whole
        assert last.epoch == 2


@pytest.mark.parametrize("name", MIXTURES)
def test_a_worker_resumes_its_own_state(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "HERE", (1, 2))
    whole = list(MIXTURES[name]())
    for stop in range(1, len(whole)):
        dataset = MIXTURES[name]()
        for steps in (stop // 2, stop - stop // 2):  # saved and loaded twice
            assert len(list(itertools.islice(dataset, steps))) == steps
            state = json.loads(json.dumps(dataset.state_dict()))
            dataset = MIXTURES[name]()
            dataset.load_state_dict(state)
        assert list(dataset) == whole[stop:]
    dataset.load_state_dict(state)
    monkeypatch.setitem(globals(), "HERE", (0, 2))
    with pytest.raises(ConfigError, match=r"worker 1 of 2, batch size 1"):
        next(iter(dataset))


@pytest.mark.parametrize("name", MIXTURES)
def test_catching_up_reads_nothing(name: str) -> None:
    dataset = MIXTURES[name]()
    length = len(list(dataset))
    again = MIXTURES[name]()
    again.load_state_dict(MIXTURES[name]().state_dict(length - 1, 0))
    assert len(list(again)) == 1

    def read(dataset: Any) -> int:
        return dataset.read if isinstance(dataset, Numbers) else sum(map(read, dataset._parts))

    assert read(again) <= 5


def test_a_state_of_four_datasets_fits_a_kilobyte() -> None:
    dataset = CombinedStreamingDataset(parts(10**12, 10**12, 10**12, 10**12), weights=[0.1] * 4, iterate_over_all=False)
    dataset.set_epoch(10**6)
    assert len(json.dumps(dataset.state_dict(10**12, 64))) <= 1024


def test_a_pass_begins_anew_when_it_was_left() -> None:
    for name in MIXTURES:
        dataset = MIXTURES[name]()
        whole = list(MIXTURES[name]())
        for stop in (3, len(whole) - 1):
            assert list(itertools.islice(dataset, stop)) == whole[:stop]
        assert list(dataset) == whole


def test_other_workers_are_refused_by_number() -> None:
    state = MIXTURES["combined"]().state_dict(6, 2)
    dataset = MIXTURES["combined"]()
    dataset.load_state_dict(state)
    for workers in (1, 3):
        with pytest.raises(ConfigError, match="stopped on 1 ranks, 2 workers, batch size 1 after 6 items"):
            loaded(dataset, workers)
    dataset.set_epoch(2)
    assert len(loaded(dataset, 3)) == 31


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda: CombinedStreamingDataset(parts(5, 5), seed=7), r"seed is 42 in the state and 7 here"),
        (
            lambda: CombinedStreamingDataset(parts(5, 5), weights=[1, 3], iterate_over_all=False),
            r"weights is None in the state and \[1.0, 3.0\] here; iterate_over_all is True in the state and False here",
        ),
        (lambda: ParallelStreamingDataset(parts(5, 5)), "mixture is 'CombinedStreamingDataset' in the state and 'Par"),
        (lambda: CombinedStreamingDataset(parts(5, 6)), "dataset version"),
    ],
)
def test_a_state_of_another_mixture_is_refused_unless_forced(other: Any, said: str) -> None:
    dataset = CombinedStreamingDataset(parts(5, 5))
    dataset.set_epoch(3)
    state = dataset.state_dict(4, 0)
    mine = other()
    with pytest.raises(ConfigError, match=said):
        mine.load_state_dict(state)
    mine.load_state_dict(state, force=True)
    assert mine.epoch == 3
    assert len(list(mine)) <= 11 - 4


def test_a_state_of_more_datasets_is_refused_even_by_force() -> None:
    state = CombinedStreamingDataset(parts(5, 5)).state_dict()
    with pytest.raises(ConfigError, match="of 2 datasets, here are 3"):
        CombinedStreamingDataset(parts(5, 5, 5)).load_state_dict(state, force=True)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("version", "1", "cannot be of type str"),
        ("epoch", True, "cannot be of type bool"),
        ("epoch", -1, r"state\['epoch'\] is -1"),
        ("settings", [], "cannot be of type list"),
        ("parts", {}, "cannot be of type dict"),
        ("parts", [1, 2], "a state is a dict, not int"),
        ("run", [1, 1, 1], "not a list of 4 numbers"),
        ("run", [1, 0, 1, 3], "at least 1"),
        ("run", [1, 1, 1, 10**30], "not a list of 4 numbers"),
        ("worker", [0, 1, 3], r"does not go with state\['run'\]"),
    ],
)
def test_a_damaged_state_is_refused_by_key(key: str, value: Any, said: str) -> None:
    dataset = CombinedStreamingDataset(parts(5, 5))
    state = {**dataset.state_dict(), key: value}
    with pytest.raises(FormatError, match=said):
        dataset.load_state_dict(state)
    del state[key]
    if key not in ("run", "worker"):
        with pytest.raises(FormatError, match=rf"state\['{key}'\] is missing"):
            dataset.load_state_dict(state)


def test_a_later_version_is_not_guessed_at() -> None:
    dataset = CombinedStreamingDataset(parts(5))
    with pytest.raises(UnsupportedError, match="is 2"):
        dataset.load_state_dict({**dataset.state_dict(), "version": 2})


# -- by weight ------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("world", [1, 3])
def test_every_item_of_every_dataset_comes_once(world: int, workers: int) -> None:
    seen = []
    for rank in range(world):
        dataset = CombinedStreamingDataset(parts(30, 0, 1, 7, rank=rank, world=world))
        mine = loaded(dataset, workers)
        assert len(mine) == len(dataset)
        seen += mine
    assert Counter(seen) == Counter((name, i) for name, n in zip("abcd", (30, 0, 1, 7), strict=True) for i in range(n))


def test_items_of_a_dataset_keep_its_order() -> None:
    mixed = list(CombinedStreamingDataset(parts(30, 20)))
    for part in parts(30, 20):
        assert [item for item in mixed if item[0] == part.name] == list(part)
    assert len({name for name, _ in mixed[:10]}) == 2


def test_weights_are_how_often_each_is_drawn() -> None:
    dataset = CombinedStreamingDataset(parts(10**6, 10**6, 10**6), weights=[6, 3, 0], iterate_over_all=False)
    drawn = Counter(name for name, _ in itertools.islice(dataset, 9000))
    assert drawn.keys() == {"a", "b"}
    assert abs(drawn["a"] - 6000) < 250  # five standard deviations


def test_by_default_datasets_are_drawn_in_proportion_to_their_items() -> None:
    dataset = CombinedStreamingDataset(parts(90_000, 30_000), iterate_over_all=False)
    drawn = Counter(name for name, _ in itertools.islice(dataset, 8000))
    assert abs(drawn["a"] - 6000) < 200


def test_it_ends_with_the_first_dataset_that_ends() -> None:
    mixed = list(CombinedStreamingDataset(parts(50, 500), weights=[1, 1], iterate_over_all=False))
    drawn = Counter(name for name, _ in mixed)
    assert drawn["a"] == 50
    assert 10 < drawn["b"] < 150


def test_when_one_has_ended_the_others_keep_their_proportions() -> None:
    dataset = CombinedStreamingDataset(parts(1000, 30_000, 60_000, 9))
    tail = Counter(name for name, _ in list(dataset)[30_000:60_000])
    assert abs(tail["c"] / tail["b"] - 2) < 0.1


def test_draws_are_the_same_for_ever() -> None:
    dataset = CombinedStreamingDataset(parts(100, 100, 100))
    assert "".join(name for name, _ in itertools.islice(dataset, 40)) == "ababbbbaabcacaabbccbbbbbacacabbaabbbccbc"


def test_draws_differ_between_epochs_seeds_ranks_and_workers() -> None:
    def drawn(seed: int = 42, epoch: int = 1, rank: int = 0, worker: int = 0) -> str:
        dataset = CombinedStreamingDataset(parts(900, 900), seed=seed)
        dataset.set_epoch(epoch)
        dataset._parts = parts(900, 900, rank=rank, world=2)
        choices = dataset._choices(worker)
        return "".join(map(str, choices.taken_by(choices.draws(0, 60))))

    assert len({drawn(), drawn(seed=1), drawn(epoch=2), drawn(rank=1), drawn(worker=1)}) == 5
    assert drawn() == drawn()


@given(st.lists(st.integers(0, 30), min_size=1, max_size=5), st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_catching_up_counts_what_was_drawn(totals: list[int], data: st.DataObject) -> None:
    everything = data.draw(st.booleans())
    weights = None
    if not everything:
        weights = data.draw(st.lists(st.floats(0, 10), min_size=len(totals), max_size=len(totals)))
        if not sum(weights) > 0:
            weights = None
    dataset = CombinedStreamingDataset(parts(*totals), weights=weights, iterate_over_all=everything)
    names = [name for name, _ in dataset]
    dataset.set_epoch(1)
    assert dataset.reader_length(0, 1) == len(names)
    stop = data.draw(st.integers(0, len(names)))
    counts = combine._caught_up(dataset._choices(0), totals, stop, stop_first=not everything)
    drawn = Counter(names[:stop])
    assert counts == [drawn[name] for name, _ in zip("abcdef", totals, strict=False)]


@pytest.mark.parametrize("totals", [(0,), (0, 0, 0)])
def test_nothing_but_empty_datasets_is_an_empty_pass(totals: tuple[int, ...]) -> None:
    for everything in (True, False):
        assert list(CombinedStreamingDataset(parts(*totals), iterate_over_all=everything)) == []
    assert list(CombinedStreamingDataset(parts(*totals), weights=[1] * len(totals), iterate_over_all=False)) == []
    assert list(ParallelStreamingDataset(parts(*totals))) == []
    assert list(ConcatStreamingDataset(parts(*totals))) == []


def test_the_length_is_a_ranks_or_none() -> None:
    assert len(CombinedStreamingDataset(parts(7, 4, rank=1, world=2))) == 3 + 2
    with pytest.raises(TypeError, match="ends by chance"):
        len(CombinedStreamingDataset(parts(7, 4), iterate_over_all=False))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"weights": [1, 2]}, "pass iterate_over_all=False"),
        ({"weights": [1], "iterate_over_all": False}, "1 weights are given for 2 datasets"),
        ({"weights": [1, -1], "iterate_over_all": False}, "not negative"),
        ({"weights": [0, 0], "iterate_over_all": False}, "not all zero"),
        ({"weights": [1, float("nan")], "iterate_over_all": False}, "finite"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": True}, "seed=True"),
    ],
)
def test_arguments_that_cannot_work(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        CombinedStreamingDataset(parts(3, 4), **arguments)


def test_parts_must_be_datasets_each_once() -> None:
    one = parts(3)[0]
    with pytest.raises(ConfigError, match="at least one dataset"):
        CombinedStreamingDataset([])
    with pytest.raises(ConfigError, match="given twice"):
        CombinedStreamingDataset([one, one])
    with pytest.raises(ConfigError, match=r"dataset 1 is a list without iter_from\(\)"):
        CombinedStreamingDataset([one, [1, 2]])  # type: ignore[list-item]


def test_parts_of_different_ranks_are_refused() -> None:
    mixed = [*parts(3, rank=0, world=2), *parts(4, rank=1, world=2)]
    with pytest.raises(ConfigError, match=r"different values of rank: \[0, 1\]"):
        next(iter(CombinedStreamingDataset(mixed)))


# -- side by side ---------------------------------------------------------------------------


def test_tuples_of_one_item_each_until_the_shortest_ends() -> None:
    first, second = parts(3, 5)
    dataset = ParallelStreamingDataset([first, second])
    assert len(dataset) == dataset.total == 3
    assert list(dataset) == list(zip(parts(3)[0], parts(3, 5)[1], strict=False))


def test_datasets_begin_again_in_their_next_epoch() -> None:
    dataset = ParallelStreamingDataset(parts(3, 5), length=8)
    assert len(dataset) == 8
    assert [number for (_, number), _ in dataset] == [1, 2, 0, 2, 0, 1, 0, 1]
    assert dataset.epoch == 2
    assert [number for (_, number), _ in dataset] == [2, 0, 1, 0, 1, 2, 1, 2]


def test_it_goes_on_for_ever_when_asked_to() -> None:
    dataset = ParallelStreamingDataset(parts(3, 5), length=float("inf"))
    assert len(list(itertools.islice(dataset, 1000))) == 1000
    with pytest.raises(TypeError, match="never ends"):
        len(dataset)
    again = ParallelStreamingDataset(parts(3, 5), length=float("inf"))
    again.load_state_dict(dataset.state_dict())
    assert list(itertools.islice(again, 10)) == list(
        itertools.islice(ParallelStreamingDataset(parts(3, 5), length=float("inf")), 1000, 1010)
    )


@pytest.mark.parametrize("length", [10, float("inf")])
def test_what_is_empty_cannot_be_repeated(length: float) -> None:
    with pytest.raises(ConfigError, match="dataset 1 has no items for worker 0 of 1"):
        list(ParallelStreamingDataset(parts(3, 0), length=length))


def test_a_length_of_nothing_asks_nothing() -> None:
    assert list(ParallelStreamingDataset(parts(3, 0), length=0)) == []


def test_workers_share_the_length() -> None:
    dataset = ParallelStreamingDataset(parts(30, 50), length=45)
    dataset.set_batch_size(4)
    assert len(loaded(dataset, 3, 4)) == 45


def test_a_transform_makes_what_is_yielded() -> None:
    dataset = ParallelStreamingDataset(parts(3, 5), transform=lambda samples: samples[0][1] * 10 + samples[1][1])
    assert list(dataset) == [11, 22, 3]


def test_a_transform_of_two_gets_generators_of_the_sample() -> None:
    def run(seed: int = 42) -> list[Any]:
        return list(ParallelStreamingDataset(parts(30, 50), transform=_tagged, seed=seed))

    assert run() == run() != run(1)
    assert len({value for _, value, _ in run()}) == 30
    with pytest.raises(ConfigError, match=r"rngs\['jax'\]"):
        list(ParallelStreamingDataset(parts(3), transform=lambda samples, rngs: rngs["jax"]))


def test_a_transform_with_a_default_is_one_of_one() -> None:
    assert list(ParallelStreamingDataset(parts(2), transform=lambda samples, more=5: more)) == [5, 5]
    assert list(ParallelStreamingDataset(parts(2), transform=list)) == [[("a", 1)], [("a", 0)]]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"length": -1}, "length=-1"),
        ({"length": 2.5}, "length=2.5"),
        ({"length": True}, "length=True"),
        ({"length": float("nan")}, "length=nan"),
        ({"transform": 3}, "transform=3 is not callable"),
    ],
)
def test_parallel_arguments_that_cannot_work(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ParallelStreamingDataset(parts(3, 4), **arguments)


# -- one after the other --------------------------------------------------------------------


def test_items_are_counted_through() -> None:
    dataset = ConcatStreamingDataset(parts(3, 0, 2))
    everything = [("a", 0), ("a", 1), ("a", 2), ("c", 0), ("c", 1)]
    assert [dataset[i] for i in range(5)] == everything
    assert [dataset[i] for i in range(-5, 0)] == everything
    assert dataset[1:4] == everything[1:4]
    assert dataset[::-2] == everything[::-2]
    assert dataset.total == len(dataset) == 5
    for index in (5, -6):
        with pytest.raises(ItemIndexError, match=f"item {index} is not among the 5"):
            dataset[index]
    with pytest.raises(TypeError, match="not str"):
        dataset["a"]


def test_many_items_come_in_the_order_asked() -> None:
    dataset = ConcatStreamingDataset(parts(30, 20, 10))
    wanted = random.Random(1).choices(range(60), k=100)
    assert dataset.get_many(wanted) == dataset.__getitems__(wanted) == [dataset[i] for i in wanted]


def test_iteration_is_one_after_the_other() -> None:
    assert list(ConcatStreamingDataset(parts(3, 0, 2))) == [*parts(3)[0], *parts(3, 0, 2)[2]]


def test_sums_are_flattened() -> None:
    a, b, c, d = parts(1, 2, 3, 4)
    dataset = (ConcatStreamingDataset([a]) + b) + ConcatStreamingDataset([c, d])
    assert dataset._parts == [a, b, c, d]
    assert (a + ConcatStreamingDataset([b]))._parts == [a, b]


# -- life -----------------------------------------------------------------------------------


def test_closing_closes_every_dataset() -> None:
    with CombinedStreamingDataset([ConcatStreamingDataset(parts(3)), *parts(4, 5)[1:]]) as dataset:
        next(iter(dataset))
    with pytest.raises(ClosedError):
        next(iter(dataset))


def test_settings_reach_every_dataset() -> None:
    dataset = CombinedStreamingDataset([ConcatStreamingDataset(parts(3)), *parts(4, 5)[1:]])
    dataset.set_batch_size(7)
    assert [part._batch_size for part in dataset._parts] == [7, 7]
    dataset.set_epoch(5)
    assert dataset.epoch == 5
    next(iter(dataset))
    assert [part.epoch for part in dataset._parts] == [5, 5]


def test_the_name_says_what_is_in_it() -> None:
    assert repr(CombinedStreamingDataset(parts(1, 2))) == (
        "CombinedStreamingDataset([a, b], seed=42, weights=None, iterate_over_all=True)"
    )


def test_a_copy_keeps_the_position() -> None:
    dataset = MIXTURES["combined"]()
    whole = list(MIXTURES["combined"]())
    dataset.load_state_dict(MIXTURES["combined"]().state_dict(7, 0))
    assert list(pickle.loads(pickle.dumps(dataset))) == whole[7:]


# -- with stored datasets -------------------------------------------------------------------

STORED: dict[str, Any] = {
    "combined": CombinedStreamingDataset,
    "weighted": lambda stored: CombinedStreamingDataset(stored, weights=[1, 3], iterate_over_all=False),
    "parallel": lambda stored: ParallelStreamingDataset(stored, length=150),
    "sum": lambda stored: stored[0] + stored[1],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("stored")
    return [write(root / name, count, size=20) for name, count in (("a", 130), ("b", 60))]


def ids(batch: list[Any]) -> list[Any]:
    return [tuple(part["id"] for part in item) if isinstance(item, tuple) else item["id"] for item in batch]


@pytest.mark.parametrize("name", STORED)
@pytest.mark.parametrize(("workers", "batch_size"), [(1, 1), (2, 4)])
def test_shuffled_stored_datasets_go_on_exactly(
    name: str, workers: int, batch_size: int, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "worker", lambda: HERE)

    def opened() -> Any:
        dataset = STORED[name]([StreamingDataset(folder, memory="4MB", shuffle=True) for folder in folders])
        dataset.set_batch_size(batch_size)
        return dataset

    with opened() as dataset:
        whole = [ids(batch) for batch in batches(dataset, workers, batch_size)]
        ends = [0, *itertools.accumulate(map(len, whole))]
        for stop in (1, len(whole) // 2, len(whole)):
            state = json.loads(json.dumps(dataset.state_dict(ends[stop], workers)))
            with opened() as again:
                again.load_state_dict(state)
                assert [ids(batch) for batch in batches(again, workers, batch_size)] == whole[stop:]


def test_stored_datasets_add_up(folders: list[Path]) -> None:
    with StreamingDataset(folders[0], memory="4MB") + StreamingDataset(folders[1], memory="4MB") as both:
        check_items(both, [*range(130), *range(60)], 20)
        check_items(both[128:132], [128, 129, 0, 1], 20)
        assert both[-1]["id"] == 59
