"""Subsets, splits and `+` of a real dataset: one memory, the right items, their own states."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

import lazystore
from lazystore import ConfigError, StreamingDataset, train_test_split
from lazystore.formats.writer import DatasetWriter

COUNT = 600


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("selections") / "dataset"
    with DatasetWriter(path, chunk_bytes=4000) as writer:
        for i in range(COUNT):
            writer.write({"id": i, "text": f"text {i} " * (i % 7)})
    return path


@pytest.fixture
def dataset(folder: Path) -> Iterator[StreamingDataset]:
    with StreamingDataset(folder, memory="1MB", shuffle=True) as opened:
        yield opened


def ids(items: object) -> list[int]:
    return [item["id"] for item in items]  # type: ignore[attr-defined]


def test_a_subset_has_its_items_in_its_order_by_index_and_all_of_them_by_iteration(dataset: StreamingDataset) -> None:
    chosen = [5, 599, 5, 0, 301, 302, 303, -1]
    part = dataset.subset(chosen)
    wanted = [index % COUNT for index in chosen]
    assert ids(part[:]) == wanted
    assert [part[k]["id"] for k in range(-len(chosen), 0)] == wanted
    assert len(part) == part.total == len(chosen)
    assert sorted(ids(part)) == sorted(wanted)


def test_a_selection_reads_through_its_datasets_memory(dataset: StreamingDataset) -> None:
    list(dataset)
    fetched = dataset.stats()["bytes_fetched"]
    part = dataset.subset(slice(10, 500, 7))
    assert ids(part[:]) == list(range(10, 500, 7))
    assert part.stats()["bytes_fetched"] == fetched
    dataset.close()
    with pytest.raises(lazystore.ClosedError):
        part[0]


def test_splits_are_disjoint_and_cover_and_stay_the_same(dataset: StreamingDataset) -> None:
    train, test = train_test_split(dataset, [0.8, 0.2], seed=3)
    assert (len(train), len(test)) == (480, 120)
    assert sorted(ids(train) + ids(test)) == list(range(COUNT))
    again, _ = train_test_split(dataset, [0.8, 0.2], seed=3)
    assert ids(again[:]) == ids(train[:])
    assert ids((train + test)[:]) == ids(train[:]) + ids(test[:])


def test_the_state_of_a_part_is_not_that_of_the_whole(dataset: StreamingDataset) -> None:
    part = dataset.subset(range(0, COUNT, 2))
    walk = iter(part)
    seen = ids(next(walk) for _ in range(100))
    state = part.state_dict()
    with pytest.raises(ConfigError, match="dataset version"):
        dataset.load_state_dict(state)
    twin = pickle.loads(pickle.dumps(part))
    twin.load_state_dict(state)
    assert sorted(seen + ids(twin)) == list(range(0, COUNT, 2))
    twin.close()


def test_subsample_takes_a_share_or_repeats(folder: Path) -> None:
    with StreamingDataset(folder, subsample=0.25) as quarter:
        assert ids(quarter) == list(range(COUNT // 4))
    with StreamingDataset(folder, subsample=2.0, shuffle=True) as twice:
        assert sorted(ids(twice)) == sorted([*range(COUNT), *range(COUNT)])
