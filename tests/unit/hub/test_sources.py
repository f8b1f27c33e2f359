"""`feed_of`: any source as a feed, told by what it is; and the feeds of plain Python."""

from __future__ import annotations

import functools
import itertools
import json
import pickle
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazystore import LazyStore, StreamingDataset
from lazystore.errors import ConfigError, ItemIndexError, UnsupportedError
from lazystore.hub.feed import Feed
from lazystore.hub.own_sources import DatasetFeed, StoreFeed
from lazystore.hub.sources import IterableFeed, OneShotFeed, SequenceFeed, fallback_of, feed_of


def counting() -> Iterator[int]:
    yield from range(10)


class Again:
    def __iter__(self) -> Iterator[int]:
        return iter(range(10))


class Items:
    """As torch's map-style datasets: no ``__iter__``, and ``[i]`` that knows no end."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> int:
        return index


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "lines.jsonl"
    path.write_text("".join(json.dumps({"a": i}) + "\n" for i in range(50)))
    return path


@pytest.mark.parametrize(
    "source", [list(range(10)), tuple(range(10)), range(10), np.arange(10), Items(), Again(), counting,
               functools.partial(itertools.islice, range(99), 10), lambda: list(range(10)), lambda: Again(),
               dict.fromkeys(range(10)).keys(), lambda: (i for i in range(10))],
)  # fmt: skip
@given(position=st.integers(0, 12), mid=st.integers(0, 12))
def test_a_reading_begins_at_any_sample_whatever_the_source(source: Any, position: int, mid: int) -> None:
    feed = feed_of(source)
    reading = feed.open(position)
    want = list(range(10))[position:]
    assert reading.position == position
    assert reading.take(mid) == want[:mid]
    assert reading.position == position + len(want[:mid])
    assert list(reading) == want[mid:]
    reading.close()
    reading.close()
    assert list(reading) == []
    feed.close()


@pytest.mark.parametrize(
    ("source", "kind", "length"),
    [([1, 2], SequenceFeed, 2), (range(3), SequenceFeed, 3), (np.arange(4), SequenceFeed, 4),
     (Items(), SequenceFeed, 10), (Again(), IterableFeed, None), ({1, 2}, IterableFeed, 2),
     (counting, IterableFeed, None), (iter([1]), OneShotFeed, None), ((i for i in "ab"), OneShotFeed, None),
     (lambda: [1, 2, 3], SequenceFeed, 3)],
)  # fmt: skip
def test_what_a_source_can_is_known(source: Any, kind: type[Feed], length: int | None) -> None:
    feed = feed_of(source)
    assert type(feed) is kind
    assert feed.length == length
    assert feed.random is feed.keeps is (kind is SequenceFeed)
    assert feed.again is (kind is not OneShotFeed)
    assert feed.epoch == 0 and not feed.set_epoch(3)
    assert fallback_of(feed) is None


def test_torch_streams_are_read_in_their_own_order_though_they_know_their_length() -> None:
    torch_data = pytest.importorskip("torch.utils.data")

    class Stream(torch_data.IterableDataset):  # type: ignore[misc, name-defined]
        def __len__(self) -> int:
            return 3

        def __iter__(self) -> Iterator[str]:
            return iter("abc")

    feed = feed_of(Stream())
    assert type(feed) is IterableFeed
    assert feed.length == 3
    assert list(feed.open(1)) == ["b", "c"]


def test_sequences_are_read_by_number() -> None:
    feed = feed_of(["a", "b", "c"])
    assert feed.get(2) == "c"
    assert feed.get_many([2, 0]) == ["c", "a"]
    for index in (3, -1):
        with pytest.raises(ItemIndexError, match=r"0\.\.2"):
            feed.get(index)
    with pytest.raises(UnsupportedError):
        feed_of(counting).get(0)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_parts_of_a_sequence_have_every_sample_once(count: int) -> None:
    parts = [feed_of(list(range(5))).share(index, count) for index in range(count)]
    assert all(part is not None for part in parts)
    got = [list(part.open()) for part in parts if part is not None]
    assert sorted(itertools.chain(*got)) == list(range(5))
    assert [part.length for part in parts if part is not None] == list(map(len, got))


def test_an_iterator_goes_on_where_it_stands_and_not_behind_that() -> None:
    feed = feed_of(iter(range(10)))
    first = feed.open()
    assert first.take(3) == [0, 1, 2]
    first.close()
    assert feed.open(3).take(2) == [3, 4]
    assert feed.open(7).take(2) == [7, 8]
    with pytest.raises(UnsupportedError, match="give a function that makes the iterator"):
        feed.open(0)


def test_a_function_is_called_once_a_pass_and_what_it_made_first_is_used() -> None:
    calls: list[int] = []

    def make() -> Iterator[int]:
        calls.append(1)
        return iter([1, 2])

    feed = feed_of(make)
    assert list(feed.open()) == [1, 2]
    assert len(calls) == 1
    assert list(feed.open(1)) == [2]
    assert len(calls) == 2
    feed.open()
    assert len(calls) == 2  # nothing is opened before the first sample


def test_an_error_comes_after_the_samples_before_it() -> None:
    def make() -> Iterator[int]:
        yield 1
        yield 2
        raise KeyError("broken")

    reading = feed_of(make).open()
    assert reading.take(9) == [1, 2]
    with pytest.raises(KeyError, match="broken"):
        next(reading)
    assert list(reading) == []
    with pytest.raises(KeyError, match="broken"):
        list(feed_of(make).open(1))


def test_closing_a_reading_closes_the_generator() -> None:
    closed: list[int] = []

    def make() -> Iterator[int]:
        try:
            yield from range(5)
        finally:
            closed.append(1)

    reading = feed_of(make).open()
    next(reading)
    reading.close()
    assert closed == [1]


async def asynchronous() -> AsyncIterator[int]:
    yield 1


async def coroutine() -> list[int]:
    return [1]


@pytest.mark.parametrize(
    ("source", "remedy"),
    [({"a": 1}, "values"), (b"abc", "list"), (Path("x.jsonl"), "StreamingDataset"), (3, "no source of samples"),
     (None, "no source of samples"), (asynchronous, "from_stream"), (asynchronous(), "from_stream"),
     (coroutine, "from_stream"), (lambda: coroutine(), "asynchronous"), (lambda a: [a], "partial"),
     (lambda: 3, "no source of samples"), (lambda: lambda: [1], "no source of samples"), (object, "no source")],
)  # fmt: skip
def test_what_is_no_source_is_refused_with_a_remedy(source: Any, remedy: str) -> None:
    with pytest.raises(ConfigError, match=remedy):
        feed_of(source)


@pytest.mark.parametrize("option", [
    {"config": "x"}, {"split": "test"}, {"columns": ["a"]}, {"revision": "main"}, {"token": "t"}, {"via": "datasets"},
    {"streaming": False},
])  # fmt: skip
def test_options_of_hub_names_are_refused_for_anything_else(option: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"{next(iter(option))}.*hub names only"):
        feed_of([1, 2], **option)


def test_identities_are_the_same_in_every_process_and_differ_with_the_source() -> None:
    script = (
        "from lazystore.hub.sources import feed_of\n"
        "print(feed_of([1, 2]).identity, feed_of(range(2)).identity, feed_of(sorted.__class__.mro).identity)\n"
        "import sys\n"
        "heavy = {'datasets', 'huggingface_hub', 'torch', 'pyarrow', 'numpy', 'asyncio'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    ).replace(", feed_of(sorted.__class__.mro).identity", "")
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.split() == [feed_of([1, 2]).identity, feed_of(range(2)).identity]
    assert len({feed_of(source).identity for source in ([1], [1, 2], (1, 2), range(2), counting, Again())}) == 6


# -- our own kinds ------------------------------------------------------------------------


def test_a_streaming_dataset_is_read_through_from_any_sample(text: Path) -> None:
    with StreamingDataset(str(text), memory="8MiB") as dataset:
        feed = feed_of(dataset)
        assert type(feed) is DatasetFeed and feed.keeps and feed.random
        assert feed.length is None  # what would tell is reading all of it
        assert [sample["a"] for sample in feed.open().take(3)] == [0, 1, 2]
        assert [sample["a"] for sample in feed.open(47)] == [47, 48, 49]
        assert feed.length == 50
        assert feed.get(49) == {"a": 49}
        assert feed.get_many([3, 1]) == [{"a": 3}, {"a": 1}]
        feed.close()
        assert dataset[0] == {"a": 0}  # it was given: still open


def test_passes_of_a_streaming_dataset_neither_end_its_epoch_nor_each_other(text: Path) -> None:
    with StreamingDataset(str(text), memory="8MiB", shuffle=True, seed=3) as dataset:
        want = [sample["a"] for sample in dataset]
        dataset.set_epoch(1)
        feed = feed_of(dataset)
        assert feed.epoch == 1
        one, two = feed.open(), feed.open(10)
        got = [sample["a"] for sample in one.take(20)]
        assert [sample["a"] for sample in two] == want[10:]
        assert got + [sample["a"] for sample in one] == want
        assert [sample["a"] for sample in feed.open()] == want
        assert [sample["a"] for sample in feed.get_many([0, 49, 7])] == [want[0], want[49], want[7]]
        with pytest.raises(ItemIndexError):
            feed.get(50)
        assert dataset.epoch == 1
        assert feed.set_epoch(2)
        assert [sample["a"] for sample in feed.open()] != want
        assert dataset.epoch == 1


def test_identities_of_streaming_datasets_tell_orders_apart_but_not_epochs(text: Path) -> None:
    found = []
    for options in ({}, {"shuffle": True}, {"shuffle": True, "seed": 7}):
        with StreamingDataset(str(text), memory="8MiB", **options) as dataset:
            before = feed_of(dataset).identity
            dataset.set_epoch(4)
            assert feed_of(pickle.loads(pickle.dumps(dataset))).identity == before
            found.append(before)
    assert len(set(found)) == 3


@pytest.mark.parametrize("position", [0, 1, 999, 1000, 1001, 2499, 2500, 2600])
def test_stores_are_read_by_position_where_they_can(position: int) -> None:
    asked: list[int] = []

    def load(offset: int, limit: int) -> list[int]:
        asked.append(offset)
        return list(range(2500))[offset : offset + limit]

    for size in (2500, None):
        with LazyStore.from_range(load, size=size, prefetch=0) as store:
            feed = feed_of(store)
            assert type(feed) is StoreFeed and feed.keeps and feed.random
            assert feed.length == size
            asked.clear()
            assert list(feed.open(position)) == list(range(2500))[position:]
            assert min(asked, default=0) == position // 1000 * 1000 or position >= 2500
            assert feed.get(7) == 7


def test_stores_of_streams_sequences_and_bytes_give_their_items() -> None:
    with LazyStore.from_stream(counting) as store:
        feed = feed_of(store)
        assert not feed.random and not feed.keeps and feed.length is None
        assert list(feed.open(4)) == [4, 5, 6, 7, 8, 9]
        reading = feed.open()
        next(reading)
        reading.close()
        with pytest.raises(UnsupportedError, match="no samples by number"):
            feed.get(0)
    with LazyStore(list(range(10))) as store:
        feed = feed_of(store)
        assert feed.length == 10
        assert list(feed.open(8)) == [8, 9]
    with LazyStore(b"abcdef", chunk=4) as store:
        feed = feed_of(store)
        assert [bytes(part) for part in feed.open()] == [b"abcd", b"ef"]
        assert bytes(feed.get(1)) == b"ef"
        assert feed.length == 2


def test_a_store_by_key_has_no_order() -> None:
    with LazyStore.from_keys(str) as store, pytest.raises(UnsupportedError):
        feed_of(store)
