"""The wrapper's surface: arguments, numbers, epochs, states, parts of ranks and workers, counters, life."""

from __future__ import annotations

import itertools
import json
import pickle
import random
import time
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.hub_feeds import PlannedFeed, hundred, ids, numbers

from lazystore.errors import ClosedError, ConfigError, FormatError, ItemIndexError, UnsupportedError
from lazystore.hub import StreamingDatasetWrapper
from lazystore.hub.feed import Mark, Reading


@pytest.mark.parametrize("cache_size", [0, -1, True, 1.5, "10", None])
def test_a_cache_size_that_is_no_number_of_samples_is_refused_with_what_to_give(cache_size: Any) -> None:
    with pytest.raises(ConfigError, match=r"cache_size=.*at least 1: .*1 keeps next to nothing"):
        StreamingDatasetWrapper(hundred, cache_size=cache_size)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"memory": 0}, "memory"),
        ({"memory": "much"}, "memory"),
        ({"prefetch": "fast"}, "prefetch='fast'"),
        ({"prefetch": -1}, "prefetch=-1"),
        ({"prefetch": 1.5}, r"prefetch=1\.5"),
        ({"on_error": "ignore"}, "on_error='ignore'"),
        ({"transform": 3}, "transform=3"),
        ({"timeout": 0}, "timeout=0"),
        ({"retries": -1}, "retries=-1"),
        ({"columns": ["id"]}, "columns: for hub names only"),
        ({"split": "test"}, "split: for hub names only"),
    ],
)
def test_arguments_that_cannot_work_are_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StreamingDatasetWrapper(hundred, **arguments)


@pytest.mark.parametrize("cache_size", [1, 2, 7, 100, 5000])
@pytest.mark.parametrize("prefetch", ["auto", True, False, None, 0, 5])
def test_every_pass_has_every_sample_in_order(cache_size: int, prefetch: Any) -> None:
    with StreamingDatasetWrapper(lambda: numbers(1000), cache_size=cache_size, prefetch=prefetch) as wrapper:
        for _ in range(2):
            assert ids(wrapper) == list(range(1000))
        assert len(wrapper) == wrapper.length == 1000


@pytest.mark.parametrize(
    "source",
    [
        [{"id": at} for at in range(30)],
        tuple({"id": at} for at in range(30)),
        partial(numbers, 30),
        lambda: [{"id": at} for at in range(30)],
    ],
    ids=["list", "tuple", "generator function", "function that makes a list"],
)
def test_plain_python_of_any_kind(source: Any) -> None:
    with StreamingDatasetWrapper(source) as wrapper:
        assert ids(wrapper) == ids(wrapper) == list(range(30))
        assert wrapper[29] == {"id": 29}
        assert wrapper[-1] == {"id": 29}
        assert ids(wrapper[5:20:3]) == list(range(30))[5:20:3]


def test_numbers_of_a_stream_come_from_the_cache_ahead_and_behind() -> None:
    with StreamingDatasetWrapper(lambda: numbers(500), cache_size=40) as wrapper:
        assert wrapper.length is None
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert wrapper[3] == {"id": 3}
            assert wrapper[0] == {"id": 0}
            assert wrapper[300] == {"id": 300}
        with pytest.warns(RuntimeWarning, match="sample 50 was read before.*cache_size"):
            assert wrapper[50] == {"id": 50}
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # once is enough
            assert wrapper[120] == {"id": 120}
            assert wrapper[10] == {"id": 10}
        assert wrapper.stats()["reread_samples"] > 0
        with pytest.raises(IndexError, match="500 is beyond the end"):
            wrapper[500]


def test_behind_is_random_access_where_the_source_has_it() -> None:
    feed = PlannedFeed(500, random=True)
    with StreamingDatasetWrapper(feed, cache_size=16) as wrapper:
        list(wrapper)
        read = len(feed.read)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert wrapper[7] == {"id": 7}
        assert len(feed.read) == read
        assert wrapper.stats()["reread_samples"] == 0


def test_indices_from_the_end_need_a_length_and_slices_do_without() -> None:
    with StreamingDatasetWrapper(lambda: numbers(100)) as wrapper:
        with pytest.raises(ConfigError, match="-1 counts from the end"):
            wrapper[-1]
        with pytest.raises(ConfigError, match="counts from the end"):
            wrapper[-5:]
        with pytest.raises(TypeError, match="nobody knows"):
            len(wrapper)
        assert bool(wrapper)
        assert ids(wrapper[95:200]) == [95, 96, 97, 98, 99]
        assert ids(wrapper[90::4]) == [90, 94, 98]
        list(wrapper)
        assert len(wrapper) == 100
        assert wrapper[-1] == {"id": 99}
        assert ids(wrapper[-3:]) == [97, 98, 99]
        with pytest.raises(ItemIndexError):
            wrapper[-101]
        with pytest.raises(ItemIndexError, match="it has 100"):
            wrapper[100]
        with pytest.raises(TypeError):
            wrapper["x"]


@given(st.lists(st.integers(0, 199), max_size=30), st.sampled_from([1, 16, 100, 400]))
def test_many_numbers_come_in_the_order_asked_each_a_copy_of_its_own(wanted: list[int], cache_size: int) -> None:
    with warnings.catch_warnings(), StreamingDatasetWrapper(lambda: numbers(200), cache_size=cache_size) as wrapper:
        warnings.simplefilter("ignore", RuntimeWarning)
        found = wrapper.__getitems__(wanted)
        assert ids(found) == wanted
        assert len({id(sample) for sample in found}) == len(wanted)


def test_transforms_apply_to_numbers_slices_and_many() -> None:
    with StreamingDatasetWrapper(hundred, transform=lambda sample: -sample["id"]) as wrapper:
        assert wrapper[5] == -5
        assert wrapper[2:4] == wrapper.get_many([2, 3]) == [-2, -3]


def test_reading_continues_after_what_passes_and_tells_it() -> None:
    feed = PlannedFeed(200, marks=10, failures={50: [ConnectionError("cut")], 120: [TimeoutError()] * 2})
    with StreamingDatasetWrapper(feed) as wrapper:
        assert ids(wrapper) == list(range(200))
        assert wrapper.stats()["retries"] == 3


@pytest.mark.parametrize("keeps", [False, True])
def test_a_function_takes_over_until_another_epoch_is_set(keeps: bool) -> None:
    feed = PlannedFeed(100, keeps=keeps, random=keeps, length=100 if keeps else None, failures={30: [ValueError("x")]})
    asked: list[int] = []

    def instead(error: BaseException, position: int) -> Iterator[dict[str, int]]:
        asked.append(position)
        return ({"id": -at} for at in range(position, 40))

    with StreamingDatasetWrapper(feed, on_error=instead) as wrapper:
        expected = [*range(30), *(-at for at in range(30, 40))]
        assert ids(wrapper) == expected
        assert ids(wrapper) == expected
        (row,) = wrapper.stats()["fallbacks"]
        assert row["position"] == 30
        assert "ValueError: x" in row["cause"]
        wrapper.set_epoch(1)
        assert ids(wrapper) == list(range(100))
        assert len(wrapper.stats()["fallbacks"]) == 1
        assert wrapper.stats()["samples"] == 180
        assert asked[0] == 30


def test_a_hub_name_goes_on_another_way_from_the_same_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = [PlannedFeed(100, identity="same")]
    monkeypatch.setattr("lazystore.hub.recovery.fallback_of", lambda feed: ways.pop() if ways else None)
    direct = PlannedFeed(100, keeps=True, random=True, length=100, failures={42: [FormatError("broken")] * 2})
    with StreamingDatasetWrapper(direct, on_error="fallback") as wrapper:
        found = iter(wrapper)
        assert ids(found) == list(range(100))
        assert wrapper.stats()["fallbacks"][0]["cause"] == "FormatError: broken"
        assert ids(wrapper) == list(range(100))
        assert wrapper[42] == {"id": 42}
        assert wrapper.state_dict()["mark"] is None


# -- states ---------------------------------------------------------------------------------


@pytest.mark.parametrize("marks", [0, 1, 16, 23])
@pytest.mark.parametrize("keeps", [False, True])
def test_a_state_at_any_position_goes_on_exactly_there_in_another_wrapper(marks: int, keeps: bool) -> None:
    rng = random.Random(5)
    for position in [0, 1, 299, 300, *rng.sample(range(300), 20)]:
        with StreamingDatasetWrapper(PlannedFeed(300, marks=marks, keeps=keeps), cache_size=100) as wrapper:
            list(itertools.islice(wrapper, position))
            state = json.loads(json.dumps(wrapper.state_dict()))
        assert state["position"] == position
        feed = PlannedFeed(300, marks=marks, keeps=keeps)
        with StreamingDatasetWrapper(feed, cache_size=rng.choice([1, 30, 100, 2000])) as other:
            other.load_state_dict(state)
            assert other.state_dict() == state
            assert ids(other) == list(range(position, 300))
            assert ids(other) == list(range(300))
        if marks == 1 and not keeps and position:
            assert feed.read[0] >= position - 64  # what was before is not read again


def test_a_state_of_a_pass_that_came_to_its_end_is_the_beginning_of_the_next() -> None:
    with StreamingDatasetWrapper(hundred) as wrapper:
        begun = wrapper.state_dict()
        list(wrapper)
        assert wrapper.state_dict() == begun
        assert begun == {"version": 1, "identity": begun["identity"], "epoch": 0, "position": 0, "mark": None}


def test_a_loaded_position_holds_until_a_pass_ends_or_another_epoch_is_set() -> None:
    with StreamingDatasetWrapper(hundred) as wrapper:
        wrapper.load_state_dict({**wrapper.state_dict(), "position": 60, "epoch": 3})
        assert wrapper.epoch == 3
        assert next(iter(wrapper)) == {"id": 60}
        wrapper.set_epoch(3)
        assert next(iter(wrapper)) == {"id": 60}
        assert wrapper.state_dict()["position"] == 61
        assert ids(wrapper) == list(range(60, 100))
        assert ids(wrapper) == list(range(100))
        wrapper.load_state_dict({**wrapper.state_dict(), "position": 60})
        wrapper.set_epoch(4)
        assert ids(wrapper) == list(range(100))


def test_the_state_is_that_of_the_latest_pass_also_when_that_was_dropped() -> None:
    with StreamingDatasetWrapper(hundred) as wrapper:
        first = iter(wrapper)
        next(first)
        for sample in wrapper:
            if sample["id"] == 41:
                break
        assert wrapper.state_dict()["position"] == 42
        next(first)
        assert wrapper.state_dict()["position"] == 42


def test_a_state_of_another_source_is_refused_unless_forced() -> None:
    with StreamingDatasetWrapper(PlannedFeed(100, identity="one", marks=1)) as wrapper:
        list(itertools.islice(wrapper, 50))
        state = wrapper.state_dict()
    with StreamingDatasetWrapper(PlannedFeed(100, identity="two")) as other:
        with pytest.raises(ConfigError, match=r"identity 'one' there, 'two' here.*force=True"):
            other.load_state_dict(state)
        assert ids(other) == list(range(100))
        other.load_state_dict(state, force=True)
        assert ids(other) == list(range(50, 100))


@pytest.mark.parametrize(
    "change",
    [
        {"version": "1"}, {"identity": None}, {"position": -1}, {"position": True}, {"epoch": 1.0}, {"mark": 3},
        {"mark": {"position": 99, "state": 1}}, {"mark": {"position": 1}}, {"part": [1, 1]}, {"part": "x"},
    ],
)  # fmt: skip
def test_what_is_no_state_is_refused(change: dict[str, Any]) -> None:
    with StreamingDatasetWrapper(hundred) as wrapper:
        state = {**wrapper.state_dict(), "position": 5}
        with pytest.raises(FormatError, match="state"):
            wrapper.load_state_dict({**state, **change})
        with pytest.raises(FormatError, match="a state is a dict"):
            wrapper.load_state_dict([state])  # type: ignore[arg-type]
        with pytest.raises(UnsupportedError, match="reads version 1"):
            wrapper.load_state_dict({**state, "version": 2})
        assert ids(wrapper) == list(range(100))


class Shuffled(PlannedFeed):
    """Another order in each epoch."""

    def set_epoch(self, epoch: int) -> bool:
        changed, self._epoch = epoch != self._epoch, epoch
        return changed

    def open(self, position: int = 0, mark: Mark | None = None) -> Reading:
        epoch = self._epoch
        reading = super().open(position, mark)
        reading.make = lambda at: {"id": (at + 10 * epoch) % self.count}  # type: ignore[attr-defined]
        return reading


def test_an_epoch_of_another_order_is_read_anew_and_one_of_the_same_order_is_not() -> None:
    with StreamingDatasetWrapper(Shuffled(60)) as wrapper:
        assert ids(wrapper)[:3] == [0, 1, 2]
        assert wrapper[0] == {"id": 0}
        wrapper.set_epoch(2)
        assert wrapper.epoch == 2
        assert ids(wrapper)[:3] == [20, 21, 22]
        assert wrapper[0] == {"id": 20}
        state = {**wrapper.state_dict(), "position": 5}
    with StreamingDatasetWrapper(Shuffled(60)) as other:
        other.load_state_dict(state)
        assert ids(other)[:2] == [25, 26]
    same = PlannedFeed(60)
    with StreamingDatasetWrapper(same) as wrapper:
        list(wrapper)
        wrapper.set_epoch(5)
        list(wrapper)
        assert len(same.read) == 60
        for epoch in (-1, True, 1.5, "2"):
            with pytest.raises(ConfigError, match="epoch="):
                wrapper.set_epoch(epoch)  # type: ignore[arg-type]


def test_a_pass_of_an_earlier_epoch_goes_on_by_what_it_has_open_and_is_not_given_the_new_order() -> None:
    with StreamingDatasetWrapper(Shuffled(6000), cache_size=64, prefetch=0) as wrapper:
        found = iter(wrapper)
        next(found)
        wrapper.set_epoch(1)
        new = iter(wrapper)
        next(new)
        assert ids(itertools.islice(found, 20)) == list(range(1, 21))


# -- ranks, workers, torch ------------------------------------------------------------------


@pytest.mark.parametrize("world", [2, 3, 7])
def test_ranks_share_the_samples_of_a_stream(world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(world))
    parts = []
    for rank in range(world):
        monkeypatch.setenv("RANK", str(rank))
        with StreamingDatasetWrapper(PlannedFeed(100, length=100)) as wrapper:
            parts.append(ids(wrapper))
            assert parts[-1] == list(range(rank, 100, world))
            assert len(wrapper) == len(parts[-1])
            assert wrapper[0] == {"id": 0}
    assert sorted(itertools.chain(*parts)) == list(range(100))


def test_a_rank_goes_on_exactly_where_it_was_and_another_one_refuses_its_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "1")
    for taken in range(34):
        with StreamingDatasetWrapper(hundred) as wrapper:
            found = iter(wrapper)
            got = ids(itertools.islice(found, taken))
            state = wrapper.state_dict()
        with StreamingDatasetWrapper(hundred) as other:
            other.load_state_dict(state)
            assert [*got, *ids(other)] == list(range(1, 100, 3))
    monkeypatch.setenv("RANK", "2")
    with StreamingDatasetWrapper(hundred) as other:
        other.load_state_dict(state)
        with pytest.raises(ConfigError, match="reader 1 of 3, and this is reader 2 of 3"):
            iter(other)


def test_torch_takes_it_for_an_iterable_dataset_and_by_index_with_a_sampler() -> None:
    data = pytest.importorskip("torch.utils.data")
    with StreamingDatasetWrapper(PlannedFeed(50, length=50)) as wrapper:
        assert isinstance(wrapper, data.IterableDataset)
        loader = data.DataLoader(wrapper, batch_size=8)
        assert [value for batch in loader for value in batch["id"].tolist()] == list(range(50))
        assert len(loader) == 7
        backwards = data.DataLoader(wrapper, batch_size=8, sampler=range(49, -1, -1))
        assert [value for batch in backwards for value in batch["id"].tolist()] == list(range(49, -1, -1))


# -- pickling, counters, life ---------------------------------------------------------------


def test_a_pickled_wrapper_is_the_same_source_arguments_epoch_and_loaded_state() -> None:
    wrapper = StreamingDatasetWrapper(hundred, cache_size=17, retries=1)
    list(itertools.islice(wrapper, 30))
    wrapper.load_state_dict(wrapper.state_dict())
    wrapper.close()
    with pickle.loads(pickle.dumps(wrapper)) as other:
        assert ids(other) == list(range(30, 100))
        assert ids(other) == list(range(100))
        assert other._cache_size == 17
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(iter(other))


def test_counters_tell_what_was_handed_on_and_where_it_came_from() -> None:
    with StreamingDatasetWrapper(lambda: numbers(300), cache_size=1000, memory="10MB") as wrapper:
        list(wrapper)
        list(wrapper)
        wrapper[3]
        stats = wrapper.stats()
        assert (stats["samples"], stats["hits"], stats["misses"]) == (601, 301, 300)
        assert stats["cached_samples"] == 300
        assert 0 < stats["cached_bytes"] == stats["peak_bytes"] < 10_000_000
        assert (stats["retries"], stats["fallbacks"], stats["reread_samples"]) == (0, [], 0)
        assert json.dumps(stats)
    with StreamingDatasetWrapper([{"id": 1}] * 20) as wrapper:
        list(wrapper)
        wrapper[3]
        stats = wrapper.stats()
        assert stats["samples"] == 21
        assert stats["cached_samples"] == 0


def test_it_says_what_it_is() -> None:
    wrapper = StreamingDatasetWrapper(hundred, memory="64MB")
    assert repr(wrapper) == "<StreamingDatasetWrapper hundred: a stream, 64 MB>"
    list(wrapper)
    assert "100 samples" in repr(wrapper)
    found = iter(wrapper)
    next(found)
    assert repr(found) == "<Pass over hundred at sample 1>"
    wrapper.close()
    assert repr(wrapper).endswith(", closed>")
    for use in (lambda: wrapper[0], lambda: iter(wrapper), lambda: wrapper.get_many([1])):
        with pytest.raises(ClosedError, match="hundred: this wrapper is closed"):
            use()


def test_what_it_opened_is_closed_with_it() -> None:
    feed = PlannedFeed(1000)
    wrapper = StreamingDatasetWrapper(feed)
    next(iter(wrapper))
    wrapper[500]
    with wrapper:
        pass
    assert feed.closed == 1
    assert not feed.opened_now


def test_readings_of_an_earlier_epoch_are_closed_with_its_last_pass() -> None:
    class Shuffled(PlannedFeed):
        def set_epoch(self, epoch: int) -> bool:
            super().set_epoch(epoch)
            return True

    feed = Shuffled(1000)
    with StreamingDatasetWrapper(feed, cache_size=50, prefetch=0) as wrapper:
        passes = [iter(wrapper) for _ in range(3)]
        for number, found in enumerate(passes):
            for _ in range(100 * number + 1):
                next(found)
        passes.pop().close()
        assert feed.opened_now
        wrapper.set_epoch(1)
        for found in passes:
            found.close()
        assert not feed.opened_now


def test_closing_does_not_wait_for_the_next_try_of_a_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lazystore.hub.wrapper.RETRY_S", 3600.0)
    monkeypatch.setattr("lazystore.hub.wrapper.RETRY_CAP_S", 3600.0)
    monkeypatch.setattr("lazystore.hub.passes.FAREWELL_S", 60.0)
    feed = PlannedFeed(100, failures={20: [ConnectionError("down")] * 9})
    wrapper = StreamingDatasetWrapper(feed, timeout=100_000, prefetch=50)
    found = iter(wrapper)
    assert ids(itertools.islice(found, 20)) == list(range(20))
    while not wrapper.stats()["retries"]:
        time.sleep(0.002)
    began = time.monotonic()
    wrapper.close()
    assert time.monotonic() - began < 30
    with pytest.raises(ClosedError, match="its wrapper is closed"):
        next(found)


@pytest.mark.parametrize("cache_size", [1000, 8])  # read again as part of a batch, and only passed over
def test_reading_over_what_was_had_already_may_take_longer_than_the_timeout(cache_size: int) -> None:
    def slow() -> Iterator[dict[str, int]]:
        for number in range(24):
            time.sleep(0.05)
            yield {"id": number}

    with StreamingDatasetWrapper(slow, cache_size=cache_size, timeout=0.4) as wrapper:
        state = {**wrapper.state_dict(), "position": 20}
        wrapper.load_state_dict(state)
        assert [sample["id"] for sample in wrapper] == [20, 21, 22, 23]
