"""`imap(f, dataset)` is `map(f, dataset)`: same items, same order, same epochs; workers read what they are told to."""

from __future__ import annotations

import asyncio
import itertools
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import datasets, golden
from support.elsewhere import number

from lazystore import (
    CombinedStreamingDataset,
    InMemoryItemLoader,
    StreamingConfig,
    StreamingDataset,
    TokensLoader,
)
from lazystore.parallel.async_mapper import aimap
from lazystore.parallel.dataset_items import DatasetItems, items_of
from lazystore.parallel.mapper import imap, imap_unordered
from lazystore.testing import ObjectStore

COUNT = 700


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return datasets.write(tmp_path_factory.mktemp("mapping") / "data", COUNT)


def begun(dataset: StreamingDataset) -> DatasetItems:
    found = items_of(dataset)
    assert found is not None
    return found


def elsewhere(items: DatasetItems, start: int = 0) -> list[Any]:
    """What workers would read, from a position on, by a copy of the reader as they get it."""
    reader = pickle.loads(pickle.dumps(items.reader))
    assert reader is not None
    keys = items.keys(start)
    return [item for some in iter(lambda: list(itertools.islice(keys, 37)), []) for item in reader(some)]


ORDERS: list[dict[str, Any]] = [
    {}, {"shuffle": True}, {"shuffle": "chunk"}, {"shuffle": "global"}, {"order": "litdata-0.2.70"},
    {"order": "mosaic-py1s"}, {"order": "mosaic-py1e", "rank": 0, "world_size": 2},
    {"shuffle": True, "rank": 1, "world_size": 3}, {"shuffle": "chunk", "rank": 1, "world_size": 2},
    {"rank": 2, "world_size": 3, "drop_last": False}, {"subsample": 0.3, "shuffle": True}, {"subsample": 2.5},
]  # fmt: skip


@pytest.mark.parametrize("selected", ["all", "subset", "scattered"])
@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_keys_name_the_items_of_the_pass_in_its_order(folder: Path, order: dict[str, Any], selected: str) -> None:
    def opened() -> StreamingDataset:
        dataset = StreamingDataset(folder, memory="1MB", **order)
        if selected == "all":
            return dataset
        return dataset.subset(slice(10, 150) if selected == "subset" else [3, 150, 7, 7, -1, 20, *range(100, 130)])

    plain, mapped = opened(), opened()
    for _ in range(2):
        wanted = [number(item) for item in plain]
        items = begun(mapped)
        assert items.length == len(wanted)
        start = len(wanted) // 3
        walk = items.items()
        first = [number(next(walk)) for _ in range(start)]
        rest = elsewhere(items, start)
        assert first + [number(item) for item in rest] == wanted
        datasets.check(rest, wanted[start:])
        items.finish()
        assert mapped.epoch == plain.epoch


def test_a_loaded_position_is_where_workers_begin(folder: Path) -> None:
    dataset = StreamingDataset(folder, memory="1MB", shuffle=True)
    wanted = [number(item) for item in dataset]
    dataset.set_epoch(1)
    dataset.load_state_dict(dataset.state_dict(yielded=333))
    items = begun(dataset)
    assert items.length == COUNT - 333
    assert [number(item) for item in elsewhere(items)] == wanted[333:]


@pytest.mark.parametrize("name", golden.READABLE)
def test_golden_datasets_read_elsewhere_are_as_their_writers_meant_them(name: str) -> None:
    golden.require(name)
    with StreamingDataset(golden.place(name), memory="8MB", **golden.options(name)) as dataset:
        if not dataset.indexed:
            list(dataset)
        items = begun(dataset)
        assert (items.reader is None) == dataset.opened.opaque  # compressed, or made from columns
        if items.reader is not None:
            golden.assert_same(elsewhere(items), golden.expected(name))


def test_blocks_of_tokens_are_read_elsewhere() -> None:
    name = "litdata-classic-tokens-numpy"
    options = {"item_loader": TokensLoader(25, StreamingConfig(max_memory_size="4MB"))}
    wanted = [item.tolist() for item in StreamingDataset(golden.place(name), **options)]
    items = begun(StreamingDataset(golden.place(name), **options))
    assert [item.tolist() for item in elsewhere(items)] == wanted


# -- text -----------------------------------------------------------------------------------


def test_text_is_read_here_until_it_has_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAZYSTORE_CACHE_DIR", str(tmp_path / "cache"))
    rows = [{"id": i} for i in range(300)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with StreamingDataset(tmp_path / "rows.jsonl", memory="4MB") as dataset:
        assert items_of(dataset) is None
        results = dataset.map(number)
        assert list(results) == list(range(300))
        assert results.stats.items_from == "caller"
        assert elsewhere(begun(dataset)) == rows


# -- the budget -----------------------------------------------------------------------------


def budget_elsewhere(dataset: StreamingDataset, workers: int) -> int:
    items = begun(dataset)
    assert items.reader is not None
    items.reader.workers = workers
    reader = pickle.loads(pickle.dumps(items.reader))
    assert [number(item) for item in reader([5, 3])] == [5, 3]
    there: StreamingDataset = reader._read.__self__
    return int(there.get_memory_stats()["max_memory_size"])


def test_workers_share_the_memory_budget(folder: Path) -> None:
    assert budget_elsewhere(StreamingDataset(folder, memory="8MB"), 4) == 2_000_000
    loader = InMemoryItemLoader(StreamingConfig(max_memory_size="6MB"))
    dataset = StreamingDataset(folder, item_loader=loader)
    assert budget_elsewhere(dataset, 3) == 2_000_000
    assert loader.get_memory_stats()["max_memory_size"] == 6_000_000  # the caller's own is as it was


def test_a_share_that_is_too_small_is_the_least_that_works(folder: Path) -> None:
    assert 0 < budget_elsewhere(StreamingDataset(folder, memory="1MB"), 1000) < 1_000_000


# -- with imap ------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["auto", "serial", "thread", "process"])
def test_map_is_map(folder: Path, backend: str) -> None:
    plain, mapped = (StreamingDataset(folder, memory="2MB", shuffle=True) for _ in range(2))
    for epoch in (1, 2):
        assert mapped.epoch == epoch
        results = mapped.map(number, backend=backend, n_jobs=2)
        assert list(results) == [number(item) for item in plain]
        if backend in ("thread", "process"):
            assert results.stats.items_from == "workers"
    assert mapped.epoch == 3


def test_indices_travel_to_workers_and_bytes_do_not(folder: Path) -> None:
    with StreamingDataset(folder, memory="2MB") as dataset:
        read_there = dataset.map(number, backend="process", n_jobs=2, chunksize=20)
        assert list(read_there) == list(range(COUNT))
        assert 0 < read_there.stats.in_bytes < 20 * COUNT
        sent = imap(number, iter(dataset), backend="process", n_jobs=2, chunksize=20)
        assert list(sent) == list(range(COUNT))
        assert sent.stats.in_bytes > 200 * COUNT


def test_a_loop_maps_a_dataset_too(folder: Path) -> None:
    async def run() -> list[int]:
        with StreamingDataset(folder, memory="2MB", shuffle=True) as dataset:
            results = aimap(number, dataset, backend="thread", n_jobs=2)
            found = [result async for result in results]
            assert results.stats.items_from == "workers" and dataset.epoch == 2
            return found

    wanted = [number(item) for item in StreamingDataset(folder, memory="2MB", shuffle=True)]
    assert asyncio.run(run()) == wanted


def test_unordered_results_are_those_of_one_pass(folder: Path) -> None:
    with StreamingDataset(folder, memory="2MB", shuffle=True) as dataset:
        found = list(imap_unordered(number, dataset, backend="thread", n_jobs=3))
        assert sorted(found) == list(range(COUNT)) and dataset.epoch == 2


@pytest.mark.parametrize("backend", ["serial", "thread"])
@pytest.mark.parametrize("taken", [0, 1, 10, 333, COUNT - 1, COUNT])
def test_a_pass_left_in_the_middle_is_resumed_without_missing_an_item(folder: Path, backend: str, taken: int) -> None:
    def opened() -> StreamingDataset:
        return StreamingDataset(folder, memory="2MB", shuffle=True)

    wanted = [number(item) for item in opened()]
    dataset = opened()
    with dataset.map(number, backend=backend, n_jobs=2, chunksize=8) as results:
        assert list(itertools.islice(results, taken)) == wanted[:taken]
        state, exact = dataset.state_dict(), dataset.state_dict(yielded=taken)
    for after in (state, exact):
        json.dumps(after)
    fresh = opened()
    fresh.load_state_dict(exact)
    assert [number(item) for item in fresh] == wanted[taken:]
    fresh = opened()
    fresh.load_state_dict(state)
    rest = [number(item) for item in fresh]
    assert wanted[COUNT - len(rest) :] == rest and COUNT - len(rest) <= taken
    if backend == "thread":
        assert taken - (COUNT - len(rest)) <= 8
    # begun anew, the pass starts where the epoch was entered
    assert dataset.epoch == 1 and [number(item) for item in dataset] == wanted


def test_unordered_a_pass_left_in_the_middle_begins_again(folder: Path) -> None:
    dataset = StreamingDataset(folder, memory="2MB", shuffle=True)
    with dataset.map(number, ordered=False, backend="thread", n_jobs=2, chunksize=8) as results:
        for _ in range(100):
            next(results)
        state = dataset.state_dict()
    fresh = StreamingDataset(folder, memory="2MB", shuffle=True)
    fresh.load_state_dict(state)
    assert len(list(fresh)) == COUNT


def test_a_damaged_item_fails_alone_where_workers_read(folder: Path, tmp_path: Path) -> None:
    hurt = datasets.one_leaf(tmp_path / "hurt", "str", [b"fine", b"\xff\xff", b"good", b"well"])
    with StreamingDataset(hurt, memory="1MB") as dataset:
        results = dataset.map(str.upper, backend="thread", n_jobs=2, chunksize=4, on_error="skip")
        assert list(results) == ["FINE", "GOOD", "WELL"]
        assert results.stats.failed == 1


# -- what is read here ----------------------------------------------------------------------


def test_mixtures_are_read_here(folder: Path) -> None:
    mixture = CombinedStreamingDataset([StreamingDataset(folder, memory="1MB", shuffle=s) for s in (True, False)])
    results = mixture.map(number, backend="thread", n_jobs=2)
    assert sorted(results) == sorted([*range(COUNT)] * 2)
    assert results.stats.items_from == "caller" and mixture.epoch == 2


class Reversed(StreamingDataset):
    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(self.total - 1, -1, -1))


def test_a_dataset_with_an_iteration_of_its_own_is_read_here(folder: Path) -> None:
    with Reversed(folder, memory="2MB") as dataset:
        assert list(dataset.map(number, backend="thread", n_jobs=2)) == list(range(COUNT - 1, -1, -1))


class Named(StreamingDataset):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder, memory="2MB", transform=number)


def test_a_subclass_with_arguments_of_its_own_is_read_by_workers_too(folder: Path) -> None:
    assert elsewhere(begun(Named(folder))) == list(range(COUNT))


def test_compressed_data_are_read_here_and_resumed_without_missing_an_item(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    packed = datasets.write(tmp_path / "packed", COUNT, compression="zstd")
    dataset = StreamingDataset(packed, memory="8MB")
    with dataset.map(number, backend="thread", n_jobs=2, chunksize=8) as results:
        assert list(itertools.islice(results, 100)) == list(range(100))
        assert results.stats.items_from == "caller"
        state, exact = dataset.state_dict(), dataset.state_dict(yielded=100)
    for after, first in ((state, range(92, 101)), (exact, [100])):
        fresh = StreamingDataset(packed, memory="8MB")
        fresh.load_state_dict(after)
        assert number(next(iter(fresh))) in first


@pytest.mark.parametrize("shuffle", [False, True])
def test_remote_data_are_read_here(folder: Path, shuffle: bool) -> None:
    pytest.importorskip("aiohttp")
    with ObjectStore(folder.parent.parent) as store:
        with StreamingDataset(
            store.http_url(folder.parent.name, folder.name), memory="4MB", shuffle=shuffle
        ) as dataset:
            results = dataset.map(number, backend="thread", n_jobs=2)
            assert sorted(results) == list(range(COUNT))
            assert results.stats.items_from == "caller" and dataset.epoch == 2
