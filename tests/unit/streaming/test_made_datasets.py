"""Datasets whose blocks are made: every order, resuming, selections and batches are what they are for stored chunks."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path

import pytest
from models.walk import route_items
from support import riddles

from lazystore import StreamingDataset, UnsupportedError, register_format
from lazystore.formats import registry

FILES = (6, 1, 9, 4)


@pytest.fixture(params=[1, 4], ids=["each block", "runs"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(registry, "_registered", {})
    register_format(riddles.RiddleFormat())
    riddles.write(tmp_path / "riddles", FILES, run=request.param)
    return tmp_path / "riddles"


TOTAL = 40 * sum(FILES)
ITEMS = [riddles.item(i) for i in range(TOTAL)]


@pytest.mark.parametrize("memory", [400_000, "8MB"])
@pytest.mark.parametrize("order", ["sequential", "window", "litdata", "litdata-0.2.70"])
def test_an_epoch_has_every_item_once_in_its_order(folder: Path, order: str, memory: int | str) -> None:
    with StreamingDataset(folder, order=order, memory=memory) as dataset:
        first, second = list(dataset), list(dataset)
        assert sorted(first) == sorted(second) == sorted(ITEMS)
        assert (first == ITEMS) == (order == "sequential")
        assert (first == second) == (order == "sequential")
        assert dataset._memory.store.counters()["pins"] == 0


def test_orders_of_others_go_by_the_datasets_own_files(folder: Path) -> None:
    with StreamingDataset(folder, order="litdata", memory="8MB") as dataset:
        assert len(dataset._session.shape.counts) == len(FILES)
        assert dataset.stats()["n_chunks"] == len(FILES)
        route, _ = dataset._session.begin()
        wanted = route_items(route.legs(), dataset._session.shape.counts)
        assert list(dataset) == [ITEMS[i] for i in wanted]


def test_random_access_batches_and_slices(folder: Path) -> None:
    order = random.Random(5).choices(range(-TOTAL, TOTAL), k=300)
    for memory in (400_000, "8MB"):
        with StreamingDataset(folder, memory=memory) as dataset:
            assert [dataset[i] for i in order[:60]] == [ITEMS[i] for i in order[:60]]
            assert dataset.get_many(order) == [ITEMS[i] for i in order]
            assert dataset[3:700:41] == ITEMS[3:700:41]
            assert [bytes(memoryview(dataset.view(i))) for i in (0, 5, 799)] == [ITEMS[i] for i in (0, 5, 799)]
            assert [item for batch in dataset.batches(64, "list") for item in batch] == ITEMS


@pytest.mark.parametrize("order", ["sequential", "window", "litdata"])
def test_resuming_goes_on_exactly_where_it_stopped_also_elsewhere(folder: Path, order: str) -> None:
    with StreamingDataset(folder, order=order, memory="8MB") as dataset:
        whole = list(dataset)
        for stop in (1, 39, 40, 400, TOTAL - 1):
            dataset.set_epoch(1)
            items = iter(dataset)
            assert [next(items) for _ in range(stop)] == whole[:stop]
            state = json.loads(json.dumps(dataset.state_dict()))
            with StreamingDataset(folder, order=order, memory="8MB") as other:
                other.load_state_dict(state)
                assert list(other) == whole[stop:]
            dataset.set_epoch(9)


def test_ranks_share_an_epoch_and_selections_read_theirs(folder: Path) -> None:
    seen = []
    for rank in range(3):
        with StreamingDataset(folder, shuffle=True, rank=rank, world_size=3, drop_last=False, memory="8MB") as dataset:
            seen += list(dataset)
    assert sorted(seen) == sorted(ITEMS)
    with StreamingDataset(folder, memory="8MB") as dataset:
        part = dataset.subset(range(100, 300, 3))
        assert list(part) == ITEMS[100:300:3] and part[5] == ITEMS[115]


def test_a_copy_reads_the_same(folder: Path) -> None:
    with StreamingDataset(folder, memory="8MB") as dataset, pickle.loads(pickle.dumps(dataset)) as copy:
        assert list(copy) == ITEMS


def test_a_uniform_shuffle_of_what_memory_does_not_hold_is_refused(folder: Path) -> None:
    with StreamingDataset(folder, shuffle="global", memory=200_000) as dataset:
        with pytest.raises(UnsupportedError, match="global shuffle"):
            list(dataset)
    with StreamingDataset(folder, shuffle="global", memory="8MB") as dataset:
        assert sorted(dataset) == sorted(ITEMS)
