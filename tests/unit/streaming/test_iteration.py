"""Iterating a dataset: every order, epoch, state and end of it, over data of every make, near and far."""

from __future__ import annotations

import contextlib
import itertools
import json
import pickle
import random
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models.walk import route_items
from support import datasets, golden

from lazystore import (
    ClosedError,
    ConfigError,
    DatasetNotFoundError,
    FetchError,
    FormatError,
    SourceChangedError,
    StreamingDataset,
    TokensLoader,
    train_test_split,
)
from lazystore.testing import Faults, ObjectStore

ORDERS = ["sequential", "window", "global", "litdata", "litdata-0.2.70"]
COUNT, PER_CHUNK = 900, 130


def blob(i: int, size: int) -> bytes:
    return b"%d|" % i + bytes([i % 251]) * size


def crafted(folder: Path, counts: list[int], sizes: list[int]) -> Path:
    numbers = iter(range(sum(counts)))
    chance = random.Random(str(folder.name))
    chunks = [[datasets.item_bytes([blob(next(numbers), chance.choice(sizes))]) for _ in range(n)] for n in counts]
    return datasets.craft(folder, chunks, ["bytes"])


#: name: (items of each chunk, lengths)
MAKES: dict[str, tuple[list[int], list[int]]] = {
    "tiny items": ([3000, 1, 4000, 2500], [0, 3, 9]),
    "longer than a frame": ([6, 9, 2, 7], [5000, 30_000]),
    "longer than the arena": ([2, 3], [150_000, 10]),
    "one chunk": ([700], [40, 90]),
    "chunks of one": ([1] * 90, [50, 2000]),
    "mixed": ([40, 0, 200, 3, 90], [0, 10, 500, 4096, 9000]),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("iteration")
    for name, (counts, sizes) in MAKES.items():
        crafted(place / name, counts, sizes)
    datasets.write(place / "samples", COUNT, chunk_size=PER_CHUNK)
    # Leafless items have no bytes at all.
    datasets.craft(place / "no bytes", [[b""] * 30] * 3, [], data_spec=datasets.tree_spec("builtins.dict", "[]"))
    (place / "far").mkdir()
    datasets.write(place / "far" / "data", COUNT, chunk_size=PER_CHUNK)
    return place


def opened(folder: Path | str, **options: Any) -> StreamingDataset:
    options.setdefault("memory", "1MB")
    options.setdefault("timeout", 20)
    return StreamingDataset(folder, **options)


def numbers(dataset: StreamingDataset) -> list[int]:
    """The items that the next pass must give, worked out from its route."""
    route, _ = dataset._session.begin()
    dataset._session.begin()
    return route_items(route.legs(), dataset._session.shape.counts)


def idle(dataset: StreamingDataset) -> None:
    """Nothing pinned, nothing under way; what was called off may take a moment to be noticed by its connection."""
    deadline = time.monotonic() + 5
    while dataset.stats()["in_flight_bytes"] and time.monotonic() < deadline:
        time.sleep(0.01)
    counters = dataset.stats()
    assert (counters["pins"], counters["in_flight_bytes"], dataset._memory.store.filling) == (0, 0, 0)
    dataset._memory.store.check()


def ids(items: list[Any]) -> list[int]:
    return [item["id"] for item in items]


# -- items ----------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [1 << 16, "1MB", "64MB"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("make", MAKES)
def test_two_epochs_give_the_routes_items_in_its_order(place: Path, make: str, order: str, memory: Any) -> None:
    with opened(place / make, order=order, memory=memory) as dataset:
        for epoch in (1, 2):
            assert dataset.epoch == epoch
            route = numbers(dataset)
            found = list(dataset)
            assert len(found) == len(dataset) == len(route)
            assert found == dataset.get_many(route)
            assert [int(item.partition(b"|")[0]) for item in found] == route
            if order in ("window", "global", "sequential"):
                assert sorted(route) == list(range(dataset.total))
            idle(dataset)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", golden.READABLE)
def test_golden_datasets_come_in_every_order(name: str, order: str) -> None:
    golden.require(name)
    tokens = name in golden.LITDATA and "tokens" in golden.config(name)["item_loader"].lower()
    loader = {"item_loader": TokensLoader(block_size=7)} if tokens else {}
    with opened(golden.place(name), order=order, memory="64MB", **golden.options(name), **loader) as dataset:
        route = numbers(dataset)
        if tokens:
            expected = [dataset[i] for i in route]
            assert [item.tolist() for item in dataset] == [item.tolist() for item in expected]
        else:
            expected = golden.expected(name)
            golden.assert_same(dataset, [expected[i] for i in route])
        assert sorted(route) == list(range(dataset.total)) or order.startswith("litdata")
        idle(dataset)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("block", [1, 5, 64])
def test_token_blocks_come_in_every_order(order: str, block: int) -> None:
    folder = golden.GOLDEN / "litdata-classic-tokens-numpy" / "data"
    for memory in (1 << 16, "4MB"):
        with opened(folder, order=order, memory=memory, item_loader=TokensLoader(block_size=block)) as dataset:
            route = numbers(dataset)
            for item, want in zip(dataset, dataset.get_many(route), strict=True):
                assert datasets.same(item, want) and len(item) == block
            idle(dataset)


@pytest.mark.parametrize("order", ORDERS)
def test_items_without_bytes_are_items(place: Path, order: str) -> None:
    with opened(place / "no bytes", order=order) as dataset:
        assert list(dataset) == [{}] * 90


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("hint", [0, 0.3, 3, 50], ids=str)
@pytest.mark.parametrize("make", ["mixed", "longer than a frame", "one chunk"])
def test_sizes_that_the_index_has_wrong_change_no_item(
    place: Path, tmp_path: Path, make: str, hint: float, order: str
) -> None:
    def change(index: dict[str, Any]) -> None:
        for entry in index["chunks"]:
            entry["chunk_bytes"] = int(entry["chunk_bytes"] * hint)

    folder = datasets.edit_index(datasets.copy(place / make, tmp_path / "set"), change)
    for memory in (1 << 16, 1 << 18, "8MB"):
        with opened(folder, order=order, memory=memory) as dataset:
            assert list(dataset) == dataset.get_many(numbers_of_epoch(dataset, 1))
            idle(dataset)


def numbers_of_epoch(dataset: StreamingDataset, epoch: int) -> list[int]:
    dataset.set_epoch(epoch)
    return numbers(dataset)


@pytest.mark.parametrize("order", ["sequential", "window", "litdata"])
def test_compressed_chunks_come_in_order_and_shuffled(tmp_path: Path, order: str) -> None:
    pytest.importorskip("zstandard")
    folder = datasets.write(tmp_path / "zstd", 600, chunk_size=100, compression="zstd")
    for memory in ("1MB", "16MB"):
        with opened(folder, order=order, memory=memory) as dataset:
            for _ in range(2):
                route = numbers(dataset)
                datasets.check(dataset, route)
                idle(dataset)


# -- epochs and states ----------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
def test_a_state_from_anywhere_goes_on_in_a_fresh_dataset(place: Path, order: str) -> None:
    with opened(place / "samples", order=order, seed=5) as whole:
        first, second = list(whole), list(whole)
    chance = random.Random(order)
    total = len(first)
    for position in [0, 1, total - 1, total, *chance.sample(range(total), 6)]:
        with opened(place / "samples", order=order, seed=5, memory=chance.choice([1 << 16, "1MB", "16MB"])) as dataset:
            iterator = iter(dataset)
            part = [next(iterator) for _ in range(position)]
            state = dataset.state_dict()
            assert len(json.dumps(state)) <= 1024
        with opened(place / "samples", order=order, seed=5, memory=dataset._budget) as fresh:
            fresh.load_state_dict(json.loads(json.dumps(state)))
            rest = list(fresh)
            assert fresh.epoch == 2
            if dataset._budget == 10**6:  # the window's size is the budget's
                assert ids(part + rest) == ids(first)
                assert ids(list(fresh)) == ids(second)
            else:
                assert sorted(ids(part + rest)) == sorted(ids(first))
            idle(fresh)


def test_a_pickled_dataset_goes_on_where_it_was_set(place: Path) -> None:
    with opened(place / "samples", shuffle=True) as dataset:
        iterator = iter(dataset)
        for _ in range(100):
            next(iterator)
        dataset.load_state_dict(dataset.state_dict())
        with pickle.loads(pickle.dumps(dataset)) as other:
            assert ids(list(other)) == ids(list(dataset))


def test_epochs_differ_and_repeat_by_number(place: Path) -> None:
    with opened(place / "samples", shuffle=True) as dataset, opened(place / "samples", shuffle=True) as other:
        passes = [ids(list(dataset)) for _ in range(3)]
        assert len(set(map(tuple, passes))) == 3
        other.set_epoch(2)
        assert ids(list(other)) == passes[1]
        assert other.epoch == 3
        other.set_shuffle(False)
        assert ids(list(other)) == list(range(COUNT))


@pytest.mark.parametrize("order", ORDERS)
def test_ranks_give_every_item_once(place: Path, order: str) -> None:
    found = []
    for rank in range(3):
        with opened(place / "samples", order=order, rank=rank, world_size=3, drop_last=False) as dataset:
            part = ids(list(dataset))
            assert len(part) == len(dataset)
            found += part
    if order.startswith("litdata"):
        assert set(found) <= set(range(COUNT))
    else:
        assert sorted(found) == list(range(COUNT))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("start", [0, 1, 131, 500, COUNT, COUNT + 5])
def test_iteration_from_the_middle_leaves_out_what_was_before(place: Path, order: str, start: int) -> None:
    with opened(place / "samples", order=order) as dataset:
        route = numbers(dataset)
        assert ids(list(dataset.iter_from(start))) == route[start:]
        assert dataset.epoch == 2
        with pytest.raises(ConfigError):
            dataset.iter_from(-1)


# -- parts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
def test_subsets_give_their_items_only(place: Path, order: str) -> None:
    chosen = [5, 6, 7, 200, 201, 640, 641, 642, 899, 0]
    with opened(place / "samples", order=order) as dataset:
        for indices in (slice(100, 400, 3), chosen, range(50)):
            part = dataset.subset(indices)
            wanted = list(range(COUNT))[indices] if isinstance(indices, slice) else list(indices)
            assert [part[k]["id"] for k in range(len(wanted))] == wanted
            found = ids(list(part))
            assert len(found) == len(part)
            if order == "sequential":
                assert found == wanted
            elif not order.startswith("litdata"):
                assert sorted(found) == sorted(wanted)
            assert part.epoch == 2
        assert dataset.epoch == 1
        idle(dataset)


def test_an_empty_subset_is_an_epoch_of_nothing(place: Path) -> None:
    with opened(place / "samples", shuffle=True) as dataset:
        part = dataset.subset([])
        assert (list(part), len(part), part.epoch) == ([], 0, 2)


@pytest.mark.parametrize("order", ["sequential", "window", "global"])
def test_splits_share_the_items(place: Path, order: str) -> None:
    with opened(place / "samples", order=order) as dataset:
        parts = train_test_split(dataset, [0.5, 0.3, 0.2])
        found = [ids(list(part)) for part in parts]
        assert sorted(itertools.chain.from_iterable(found)) == list(range(COUNT))
        interleaved: list[int] = []
        for together in zip(*parts, strict=False):
            interleaved += ids(list(together))
        assert len(set(interleaved)) == len(interleaved)
        del together
        idle(dataset)


@pytest.mark.parametrize("order", ORDERS)
def test_a_subsample_is_iterated_as_a_whole(place: Path, order: str) -> None:
    with opened(place / "samples", order=order, subsample=0.25) as dataset:
        assert dataset.total == len(dataset) == COUNT // 4
        found = ids(list(dataset))
        assert len(set(found)) == len(found) == COUNT // 4 or order.startswith("litdata")
        assert set(found) <= {dataset[k]["id"] for k in range(dataset.total)}


# -- batches --------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", [1, 7, 64, COUNT, COUNT + 1])
def test_batches_are_the_items_in_the_same_order(place: Path, order: str, size: int) -> None:
    with opened(place / "samples", order=order) as dataset:
        route = numbers(dataset)
        for drop_last in (False, True):
            dataset.set_epoch(1)
            batches = dataset.batches(size, "list", drop_last=drop_last)
            found = list(batches)
            whole = len(route) // size * size if drop_last else len(route)
            assert len(batches) == len(found)
            assert [len(batch) for batch in found[:-1]] == [size] * (len(found) - 1)
            datasets.check([item for batch in found for item in batch], route[:whole])
        dataset.set_epoch(1)
        columns = [batch["id"] for batch in dataset.batches(size)]
        assert np.concatenate(columns).tolist() == route
        assert dataset.epoch == 2
        idle(dataset)


def test_a_state_between_batches_goes_on(place: Path) -> None:
    with opened(place / "samples", shuffle=True) as dataset, opened(place / "samples", shuffle=True) as fresh:
        route = numbers(dataset)
        batches = dataset.batches(16, "list")
        found = [item for _ in range(9) for item in next(batches)]
        fresh.load_state_dict(dataset.state_dict())
        found += [item for batch in fresh.batches(16, "list") for item in batch]
        datasets.check(found, route)


# -- ends -----------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [0, 1, 131, 500])
@pytest.mark.parametrize("order", ORDERS)
def test_an_iterator_that_is_dropped_leaves_nothing(place: Path, order: str, stop: int) -> None:
    threads = threading.active_count()
    with opened(place / "samples", order=order) as dataset:
        for how in ("dropped", "closed", "raised", "ended"):
            iterator: Any = iter(dataset)
            gone = weakref.ref(iterator)
            with contextlib.suppress(KeyError):
                for k, _ in enumerate(iterator):
                    if how != "ended" and k == stop:
                        if how == "raised":
                            raise KeyError
                        break
            if how == "closed":
                iterator.close()
                assert list(iterator) == []
            del iterator
            assert gone() is None
            idle(dataset)
            datasets.check([dataset[3]], [3])
    assert threading.active_count() <= threads


@pytest.mark.parametrize("order", ORDERS)
def test_a_dataset_closed_in_the_middle_ends_in_an_error(place: Path, order: str) -> None:
    dataset = opened(place / "samples", order=order)
    iterator = iter(dataset)
    next(iterator)
    dataset.close()
    for _ in range(2):
        with pytest.raises(ClosedError):
            list(iterator)
    assert dataset.epoch == 1
    with pytest.raises(ClosedError):
        list(iter(dataset))
    del iterator
    assert dataset._memory.store.counters()["pins"] == 0


@pytest.mark.parametrize("order", ORDERS)
def test_an_error_in_a_transform_costs_its_item_only(place: Path, order: str) -> None:
    def transform(item: dict[str, Any]) -> int:
        if item["id"] % 100 == 7:
            raise LookupError(str(item["id"]))
        return int(item["id"])

    with opened(place / "samples", order=order, transform=transform) as dataset:
        route = numbers(dataset)
        iterator = iter(dataset)
        found: list[int] = []
        while True:
            try:
                found.append(next(iterator))
            except StopIteration:
                break
            except LookupError as error:
                found.append(-int(str(error)))
        assert [abs(i) for i in found] == route
        assert sum(i < 0 for i in found) == sum(i % 100 == 7 for i in route)
        idle(dataset)


def test_iterators_of_one_dataset_do_not_disturb_each_other(place: Path) -> None:
    with opened(place / "samples", shuffle=True, memory=1 << 17) as dataset:
        route = numbers(dataset)
        iterators = [iter(dataset) for _ in range(3)]
        found: list[list[Any]] = [[], [], []]
        chance = random.Random(1)
        while any(len(items) < COUNT for items in found):
            k = chance.randrange(3)
            for _ in range(min(chance.randrange(80), COUNT - len(found[k]))):
                found[k].append(next(iterators[k]))
                if chance.random() < 0.05:
                    i = chance.randrange(COUNT)
                    assert dataset[i]["id"] == i
        for items in found:
            datasets.check(items, route)
        del iterators
        idle(dataset)


def test_views_that_hold_every_frame_cost_no_item(place: Path) -> None:
    with opened(place / "samples", shuffle=True, memory=1 << 16) as dataset:
        route = numbers(dataset)
        held, found = [], []
        for k, item in enumerate(dataset):
            found.append(item)
            if k < 200:
                held.append(dataset.view(k * 4))
        datasets.check(found, route)
        for k, lease in enumerate(held):
            assert dataset._opened.plan(memoryview(lease))["id"] == k * 4
            lease.release()
        del held, lease
        idle(dataset)


# -- damage ---------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("damage", ["backwards", "truncated", "missing", "other count"])
def test_damage_is_met_at_its_items_and_named(place: Path, tmp_path: Path, order: str, damage: str) -> None:
    folder = datasets.copy(place / "samples", tmp_path / "set")
    path = sorted(folder.glob("chunk-*"))[3]
    content = path.read_bytes()
    if damage == "backwards":
        datasets.edit_bytes(path, 4 + 4 * 60, b"\1\0\0\0")
    elif damage == "truncated":
        path.write_bytes(content[:300])
    elif damage == "missing":
        path.unlink()
    else:
        datasets.edit_bytes(path, 0, b"\7")
    with opened(folder, order=order, memory=1 << 17) as dataset:
        route = numbers(dataset)
        iterator = iter(dataset)
        found: list[Any] = []
        for _ in range(2):
            with pytest.raises((FormatError, DatasetNotFoundError), match=path.name):
                for item in iterator:
                    found.append(item)
        datasets.check(found, route[: len(found)])
        assert len(found) <= next(k for k, i in enumerate(route) if i // PER_CHUNK == 3) + 61
        assert dataset.epoch == 1
        del iterator
        idle(dataset)
        # Another dataset, and this one's other items, are none the worse.
        assert dataset[0]["id"] == 0


# -- far away -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running(place: Path) -> Iterator[ObjectStore]:
    pytest.importorskip("aiohttp")
    with ObjectStore({"bucket": place / "far"}) as store:
        yield store


@pytest.fixture
def store(running: ObjectStore) -> Iterator[ObjectStore]:
    running.reset()
    yield running
    running.configure(faults=None, latency_ms=0)


@pytest.mark.parametrize("memory", ["512KiB", "16MB"])
@pytest.mark.parametrize("order", ORDERS)
def test_far_items_come_in_the_same_order_and_nothing_stays_under_way(
    place: Path, store: ObjectStore, order: str, memory: str
) -> None:
    with opened(place / "samples", order=order, memory=memory) as near:
        wanted = ids(list(near)), ids(list(near))
    with opened(store.http_url("bucket", "data"), order=order, memory=memory) as dataset:
        for want in wanted:
            found = list(dataset)
            datasets.check(found, want)
        idle(dataset)
        iterator = iter(dataset)
        for _ in range(70):
            next(iterator)
        del iterator
        idle(dataset)


@pytest.mark.parametrize("order", ORDERS)
def test_far_storage_with_faults_costs_no_item(store: ObjectStore, order: str) -> None:
    store.configure(faults=Faults(error_503=0.1, cut=0.1, ignore_range=0.02, seed=3))
    with opened(store.http_url("bucket", "data"), order=order, memory="1MB") as dataset:
        route = numbers(dataset)
        datasets.check(dataset, route)
        assert dataset.stats()["retries"] > 0
        idle(dataset)


@pytest.mark.parametrize("order", ORDERS)
def test_storage_that_is_gone_for_a_while_costs_no_item(store: ObjectStore, order: str) -> None:
    with opened(store.http_url("bucket", "data"), order=order, memory="512KiB", timeout=0.5) as dataset:
        route = numbers(dataset)
        iterator = iter(dataset)
        found = [next(iterator) for _ in range(20)]
        store.configure(faults=Faults(error_503=1.0))
        with pytest.raises(FetchError):
            for item in iterator:
                found.append(item)
        state = dataset.state_dict()
        store.configure(faults=None)
        found += iterator
        datasets.check(found, route)
        assert dataset.epoch == 2
        dataset.load_state_dict(state)
        datasets.check(dataset, route[sum(run[3] for run in state["history"]) :])
        idle(dataset)


@pytest.mark.parametrize("order", ["sequential", "window", "litdata"])
def test_storage_that_changes_meanwhile_is_noticed(place: Path, tmp_path: Path, order: str) -> None:
    pytest.importorskip("aiohttp")
    folder = datasets.write(tmp_path / "bucket" / "data", 3000, chunk_size=500, size=400)
    with ObjectStore(tmp_path / "bucket") as store:
        with opened(store.http_url("data"), order=order, memory="512KiB") as dataset:
            iterator = iter(dataset)
            route = numbers_after(dataset)
            found = [next(iterator) for _ in range(300)]
            datasets.check(found, route[:300], 400)
            for path in folder.glob("chunk-*"):
                path.write_bytes(path.read_bytes()[:-1] + b"!!")
            with pytest.raises(SourceChangedError):
                for item in iterator:
                    found.append(item)
            datasets.check(found, route[: len(found)], 400)
            del iterator
            idle(dataset)


def numbers_after(dataset: StreamingDataset) -> list[int]:
    """The present pass' items, without beginning another."""
    position, topology, _ = dataset._session._pass or (None, None, 0)
    assert position is not None and topology is not None
    from lazystore.streaming.resume import remaining_route

    return route_items(
        remaining_route(position, dataset._session.shape, topology).legs(), dataset._session.shape.counts
    )
