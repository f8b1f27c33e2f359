"""The front door: what every method and argument of ``StreamingDataset`` promises on good data."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import datasets

import lazystore
from lazystore import (
    ClosedError,
    ConfigError,
    DatasetNotFoundError,
    DatasetWriter,
    EvictionPolicy,
    InMemoryItemLoader,
    ItemIndexError,
    StreamingConfig,
    StreamingDataset,
    TokensLoader,
)

COUNT = 400
#: smaller than the dataset of ~140 kB, and the smallest that works
TINY = 65536


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return datasets.write(tmp_path_factory.mktemp("front") / "dataset", COUNT)


@pytest.fixture
def dataset(folder: Path) -> Iterator[StreamingDataset]:
    with StreamingDataset(folder, memory="1MB") as opened:
        yield opened


def shout(item: dict[str, Any]) -> str:
    return f"{item['id']}!"


# -- items ----------------------------------------------------------------------------------


def test_length_and_items(dataset: StreamingDataset) -> None:
    assert len(dataset) == COUNT
    datasets.check((dataset[i] for i in range(COUNT)), range(COUNT))


def test_iterators_are_independent_and_repeatable(dataset: StreamingDataset) -> None:
    first, second = iter(dataset), iter(dataset)
    assert [next(first)["id"] for _ in range(120)] == list(range(120))
    datasets.check(second, range(COUNT))
    datasets.check(first, range(120, COUNT))
    assert list(first) == []
    assert iter(first) is first


@pytest.mark.parametrize("index", [-1, -COUNT, 0, COUNT - 1, True, np.int64(17), np.uint8(200), np.int32(-3)])
def test_index_may_be_anything_that_is_an_integer(dataset: StreamingDataset, index: Any) -> None:
    datasets.check([dataset[index], *dataset.get_many([index])], [range(COUNT)[int(index)]] * 2)
    assert dataset.get_bytes(index) == dataset.get_bytes(int(index) % COUNT)
    assert dataset.is_item_available(index)


@pytest.mark.parametrize("index", [COUNT, -COUNT - 1, 2**31, 2**63 - 1, -(2**63), 10**30, -(10**30), np.int64(COUNT)])
@pytest.mark.parametrize(
    "read", ["__getitem__", "get_bytes", "view", "is_item_available", "get_many", "prefetch_items"]
)
def test_index_out_of_range_is_an_index_error_that_names_the_bounds(
    dataset: StreamingDataset, read: str, index: int
) -> None:
    method = getattr(dataset, read)
    with pytest.raises(ItemIndexError, match=rf"{index}.*{COUNT}") as raised:
        method([0, index] if read in ("get_many", "prefetch_items") else index)
    assert isinstance(raised.value, IndexError)


@pytest.mark.parametrize("index", ["0", 1.0, None, (1, 2), b"0"])
def test_index_that_is_no_integer_is_a_type_error(dataset: StreamingDataset, index: Any) -> None:
    with pytest.raises(TypeError):
        dataset[index]
    with pytest.raises(TypeError):
        dataset.get_many([index])


@pytest.mark.parametrize(
    "cut",
    [
        slice(None), slice(10, 20), slice(-10, None), slice(None, None, -1), slice(380, 1000, 7), slice(5, 5),
        slice(50, 10), slice(np.int64(3), np.int64(9)), slice(399, None, -133),
    ],
)  # fmt: skip
def test_slice_is_a_list_as_python_cuts_lists(dataset: StreamingDataset, cut: slice) -> None:
    found = dataset[cut]
    assert isinstance(found, list)
    datasets.check(found, list(range(COUNT))[cut])


@pytest.mark.parametrize("memory", [TINY, "1MB"])
def test_batch_keeps_the_order_asked_and_repeats(folder: Path, memory: int | str) -> None:
    asked = [7, 399, 7, 0, -1, 123, 124, 125, 7, *range(390, 300, -3)]
    wanted = [range(COUNT)[i] for i in asked]
    with StreamingDataset(folder, memory=memory) as dataset:
        datasets.check(dataset.get_many(asked), wanted)
        datasets.check(dataset.get_many(asked), wanted)
        datasets.check(dataset.__getitems__(asked), wanted)
        datasets.check(dataset.get_many(iter(asked)), wanted)
        datasets.check(dataset.get_many(np.array(asked)), wanted)
        assert dataset.get_many([]) == []


def test_stored_bytes_decode_to_the_item(dataset: StreamingDataset) -> None:
    data = dataset.get_bytes(5)
    item = datasets.sample(5)
    leaves = [
        (5).to_bytes(8, "little"), item["text"].encode(), item["blob"], item["vector"].tobytes(),
    ]  # fmt: skip
    assert type(data) is bytes
    assert data == datasets.item_bytes(leaves)


def test_arrays_are_writable_and_belong_to_the_caller(dataset: StreamingDataset) -> None:
    first = dataset[3]
    first["vector"][:] = 99
    datasets.check([dataset[3]], [3])
    assert first["vector"].flags.owndata


@pytest.mark.parametrize("kind", [str, Path, "file", "relative", "home"])
def test_a_local_dataset_opens_by_any_spelling_of_its_place(
    folder: Path, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HOME", str(folder.parent))
    places: dict[Any, Any] = {
        str: str(folder), Path: folder, "file": f"file://{folder}", "relative": folder.name, "home": f"~/{folder.name}",
    }  # fmt: skip
    with StreamingDataset(places[kind]) as dataset:
        datasets.check(dataset, range(COUNT))


def test_an_open_dataset_does_not_depend_on_the_working_directory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    with StreamingDataset(folder.name) as dataset:
        monkeypatch.chdir(tmp_path)
        datasets.check(dataset, range(COUNT))


def test_a_dataset_without_items_is_empty(tmp_path: Path) -> None:
    empty = datasets.craft(tmp_path / "none", [], ["int"])
    hollow = datasets.craft(tmp_path / "hollow", [[], []], ["int"])
    for folder in (empty, hollow):
        with StreamingDataset(folder) as dataset:
            assert len(dataset) == 0
            assert list(dataset) == dataset[:] == dataset.get_many([]) == []
            with pytest.raises(ItemIndexError):
                dataset[0]


def test_empty_chunks_between_others_hold_no_items(tmp_path: Path) -> None:
    value = [datasets.item_bytes([str(i).encode()]) for i in range(4)]
    folder = datasets.craft(tmp_path / "d", [[], value[:2], [], [], value[2:], []], ["str"])
    with StreamingDataset(folder) as dataset:
        assert list(dataset) == dataset[:] == [dataset[i] for i in range(4)] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("memory", [TINY, "1MB"])
def test_items_of_no_bytes_are_items(tmp_path: Path, memory: int | str) -> None:
    nothing = datasets.tree_spec("builtins.dict", "[]")
    folder = datasets.craft(tmp_path / "d", [[b""] * 5000, [b""] * 3], [], data_spec=nothing)
    with StreamingDataset(folder, memory=memory) as dataset:
        assert list(dataset) == [{}] * 5003
        assert dataset[5001] == {}
        assert dataset.get_many([0, 4999, 5002]) == [{}] * 3
        assert dataset.get_bytes(4) == b""
        with dataset.view(7) as lease:
            assert bytes(lease) == b""


# -- looking at memory ----------------------------------------------------------------------


def test_availability_means_that_no_file_is_read(folder: Path, tmp_path: Path) -> None:
    moved = datasets.copy(folder, tmp_path / "moved")
    with StreamingDataset(moved, memory="1MB") as dataset:
        assert not any(dataset.is_item_available(i) for i in range(COUNT))
        assert dataset.prefetch_items([3, 60, -1, 60]) > 0
        available = [i for i in range(COUNT) if dataset.is_item_available(i)]
        assert {3, 60, COUNT - 1} <= set(available)
        requests = dataset.stats()["requests"]
        for path in moved.glob("*.bin"):
            path.unlink()
        datasets.check((dataset[i] for i in available), available)
        assert dataset.stats()["requests"] == requests


def test_prefetching_tells_how_many_items_were_not_there(dataset: StreamingDataset) -> None:
    assert dataset.prefetch_items([]) == 0
    assert dataset.prefetch_items([10, 200]) == 2
    assert dataset.prefetch_items([10, 200]) == 0
    assert dataset.prefetch_items(range(COUNT)) <= COUNT - 2
    assert dataset.prefetch_items(range(COUNT)) == 0
    misses = dataset.stats()["misses"]
    datasets.check(dataset.get_many(range(COUNT)), range(COUNT))
    assert dataset.stats()["misses"] == misses


def test_progress_of_a_chunk_goes_from_nothing_to_all(dataset: StreamingDataset) -> None:
    assert dataset.get_chunk_progress(0) == 0.0
    for _ in dataset:
        pass
    assert [dataset.get_chunk_progress(chunk) for chunk in range(8)] == [1.0] * 8
    for chunk in (8, -1, 10**6):
        with pytest.raises(ItemIndexError, match=f"chunk {chunk}"):
            dataset.get_chunk_progress(chunk)


# -- transform ------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [TINY, "1MB"])
def test_transform_runs_once_on_every_path(folder: Path, memory: int | str) -> None:
    seen: list[int] = []

    def count(item: dict[str, Any]) -> tuple[str, int]:
        seen.append(item["id"])
        return "t", item["id"]

    numbers = list(range(COUNT))
    paths: list[Callable[[StreamingDataset], list[Any]]] = [
        list,
        lambda dataset: [dataset[i] for i in numbers],
        lambda dataset: dataset[:],
        lambda dataset: dataset.get_many(numbers),
        lambda dataset: dataset.__getitems__(numbers),
        list,
    ]
    with StreamingDataset(folder, memory=memory, transform=count) as dataset:
        for path in paths:
            seen.clear()
            assert path(dataset) == [("t", i) for i in numbers]
            assert sorted(seen) == numbers
        assert dataset.get_bytes(0)[:4] == b"\x08\0\0\0"  # stored bytes are what was stored


def test_an_error_of_the_transform_comes_through_as_it_is(folder: Path) -> None:
    def refuse(item: dict[str, Any]) -> None:
        raise LookupError(item["id"])

    with StreamingDataset(folder, transform=refuse) as dataset:
        for read in (lambda: dataset[4], lambda: dataset.get_many([4]), lambda: next(iter(dataset))):
            with pytest.raises(LookupError):
                read()


def test_transform_may_read_the_dataset_itself(folder: Path) -> None:
    def pair(item: dict[str, Any]) -> tuple[int, int]:
        return item["id"], len(dataset.get_bytes((item["id"] + 200) % COUNT))

    with StreamingDataset(folder, memory=TINY, transform=pair) as dataset:
        assert [i for i, _ in dataset] == list(range(COUNT))
        assert dataset[-1][0] == COUNT - 1


# -- serializers ----------------------------------------------------------------------------


class Reverse:
    def deserialize(self, data: bytes) -> bytes:
        return data[::-1]


@pytest.mark.parametrize("serializer", [Reverse(), lambda data: data[::-1]], ids=["object", "function"])
def test_own_leaf_tags_are_decoded_by_the_callers_serializer(tmp_path: Path, serializer: Any) -> None:
    folder = datasets.one_leaf(tmp_path / "d", "backwards", [b"abc", b""])
    with StreamingDataset(folder, serializers={"backwards": serializer}) as dataset:
        assert list(dataset) == dataset[:] == [dataset[0], dataset[1]] == [b"cba", b""]


def test_own_serializers_come_before_the_known_ones(tmp_path: Path) -> None:
    folder = datasets.one_leaf(tmp_path / "d", "str", [b"abc"])
    with StreamingDataset(folder, serializers={"str": bytes.upper}) as dataset:
        assert dataset[0] == b"ABC"


# -- life -----------------------------------------------------------------------------------


def test_a_closed_dataset_refuses_every_read(folder: Path) -> None:
    dataset = StreamingDataset(folder)
    running = iter(dataset)
    next(running)
    dataset.close()
    dataset.close()
    reads: list[Callable[[], Any]] = [
        lambda: dataset[0], lambda: dataset[0:2], lambda: dataset.get_many([1]), lambda: dataset.__getitems__([1]),
        lambda: dataset.get_bytes(0), lambda: dataset.view(0), lambda: next(iter(dataset)), lambda: next(running),
        lambda: dataset.is_item_available(0), lambda: dataset.prefetch_items([0]),
        lambda: dataset.get_chunk_progress(0),
    ]  # fmt: skip
    for read in reads:
        with pytest.raises(ClosedError, match="closed"):
            read()
    assert len(dataset) == COUNT
    assert "closed" in repr(dataset)


def test_closing_gives_descriptors_back(folder: Path) -> None:
    before = set(os.listdir("/dev/fd"))
    dataset = StreamingDataset(folder)
    list(dataset)
    assert set(os.listdir("/dev/fd")) > before
    dataset.close()
    assert set(os.listdir("/dev/fd")) == before


def test_a_dataset_that_is_dropped_gives_memory_and_descriptors_back(folder: Path) -> None:
    gc.collect()  # what other tests left
    before = set(os.listdir("/dev/fd"))
    dataset: StreamingDataset | None = StreamingDataset(folder)
    assert dataset is not None
    list(dataset)
    next(iter(dataset))
    dataset = None
    gc.collect()
    assert set(os.listdir("/dev/fd")) <= before


def test_repr_says_what_it_is(dataset: StreamingDataset, folder: Path) -> None:
    text = repr(dataset)
    for part in ("StreamingDataset", str(folder), str(COUNT), "8 chunks", "blob: bytes", "1 MB"):
        assert part in text


@pytest.mark.parametrize("again", [lambda d: pickle.loads(pickle.dumps(d)), copy.copy, copy.deepcopy])
def test_a_copy_is_the_same_recipe_with_memory_of_its_own(folder: Path, again: Callable[[Any], Any]) -> None:
    loader = InMemoryItemLoader(StreamingConfig(max_memory_size=300_000, chunk_timeout=3.0))
    with StreamingDataset(folder, item_loader=loader, transform=shout) as dataset:
        list(dataset)
        with again(dataset) as twin:
            assert twin.stats()["hits"] == 0
            assert twin.stats()["max_memory_size"] == 300_000
            dataset.close()
            assert list(twin) == [f"{i}!" for i in range(COUNT)]


def test_pickled_bytes_hold_the_recipe_and_no_data(folder: Path) -> None:
    with StreamingDataset(folder, memory="1MB", storage_options={"anon": True}) as dataset:
        list(dataset)
        assert len(pickle.dumps(dataset)) < 2000


def test_iterators_and_parts_of_a_dataset_refuse_to_be_pickled(dataset: StreamingDataset) -> None:
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(iter(dataset))


# -- arguments ------------------------------------------------------------------------------


def test_arguments_that_change_nothing_are_taken(folder: Path) -> None:
    with StreamingDataset(
        folder, subsample=1.0, shuffle=False, seed=7, drop_last=False, serializers={}, storage_options={},
        allow_pickle=True, timeout=5, backend="fsspec",
    ) as dataset:  # fmt: skip
        datasets.check(dataset, range(COUNT))


@pytest.mark.parametrize(
    "arguments, named",
    [
        ({"memory": "many"}, "memory"),
        ({"memory": 0}, "memory"),
        ({"memory": -5}, "memory"),
        ({"memory": True}, "memory"),
        ({"memory": 1.5}, "memory"),
        ({"memory": 10**20}, "memory"),
        ({"memory": "9" * 400}, "memory"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": -1.0}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"timeout": "soon"}, "timeout"),
        ({"transform": 5}, "transform"),
        ({"fallback": "maybe"}, "fallback"),
        ({"eviction_policy": "newest"}, "eviction_policy"),
        ({"item_loader": object()}, "item_loader"),
        ({"item_loader": InMemoryItemLoader}, "item_loader"),
        ({"item_loader": InMemoryItemLoader(), "memory": "1MB"}, "memory"),
        ({"item_loader": InMemoryItemLoader(), "timeout": 1.0}, "timeout"),
        ({"item_loader": InMemoryItemLoader(), "eviction_policy": EvictionPolicy.LRU}, "eviction_policy"),
    ],
)
def test_arguments_that_cannot_work_are_refused_by_name(folder: Path, arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named) as raised:
        StreamingDataset(folder, **arguments)
    assert isinstance(raised.value, ValueError)


def test_arguments_after_the_directory_go_by_name(folder: Path) -> None:
    with pytest.raises(TypeError):
        StreamingDataset(folder, None)  # type: ignore[misc]
    with pytest.raises(TypeError, match="memroy"):
        StreamingDataset(folder, memroy="1MB")  # type: ignore[call-arg]


@pytest.mark.parametrize("policy", list(EvictionPolicy))
def test_every_policy_reads_the_same_items(folder: Path, policy: EvictionPolicy) -> None:
    with StreamingDataset(folder, memory=TINY, eviction_policy=policy) as dataset:
        for _ in range(2):
            datasets.check(dataset, range(COUNT))
            datasets.check((dataset[i * 7 % COUNT] for i in range(COUNT)), (i * 7 % COUNT for i in range(COUNT)))


def test_the_default_budget_is_bounded_by_the_machine(folder: Path) -> None:
    with StreamingDataset(folder) as dataset:
        assert 0 < dataset.stats()["max_memory_size"] <= 256 << 20


def test_a_failed_opening_leaves_no_descriptor_behind(folder: Path, tmp_path: Path) -> None:
    broken = datasets.copy(folder, tmp_path / "broken")
    (broken / "index.json").write_text("{")
    before = set(os.listdir("/dev/fd"))
    for place, error in ((broken, lazystore.FormatError), (tmp_path / "nowhere", DatasetNotFoundError)):
        with pytest.raises(error):
            StreamingDataset(place)
    with pytest.raises(ConfigError):
        StreamingDataset(folder, item_loader=TokensLoader(3))
    assert set(os.listdir("/dev/fd")) == before


# -- names ----------------------------------------------------------------------------------


def test_every_spelling_of_the_import_gives_the_same_object() -> None:
    import lazystore.streaming as streaming
    from lazystore.streaming import streaming_buffer

    for name in ("StreamingDataset", "InMemoryItemLoader", "TokensLoader", "StreamingConfig", "EvictionPolicy"):
        assert getattr(streaming, name) is getattr(lazystore, name)
    assert streaming_buffer.StreamingConfig is lazystore.StreamingConfig
    assert streaming_buffer.EvictionPolicy is lazystore.EvictionPolicy


def test_keys_are_looked_up_in_a_child_forked_in_the_middle_of_a_lookup(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    with DatasetWriter(tmp_path, key_fn=lambda sample: sample["id"]) as writer:
        for number in range(50):
            writer.write({"id": 100 + number})
    with StreamingDataset(tmp_path, memory="4MB") as dataset:
        assert dataset.get_by_key(107) == {"id": 107}
        keys: Any = dataset.opened.key_index
        with keys._lock:
            pid = os.fork()
            if not pid:
                signal.alarm(20)  # a child that waits for a lock of its parent's would never end
                code = 1
                try:
                    code = 0 if dataset.get_by_key(149) == {"id": 149} else 2
                finally:
                    os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_copy_set_apart_has_an_epoch_of_its_own_and_may_read_the_parts_of_all_ranks(folder: Path) -> None:
    with StreamingDataset(folder, rank=1, world_size=2, shuffle=True, seed=3) as dataset:
        assert dataset.shuffled and not dataset.as_stored
        alike, whole = dataset.apart(), dataset.apart(whole=True)
        whole.set_epoch(5)
        assert (dataset.epoch, alike.epoch, whole.epoch) == (1, 1, 5)
        part, everything = [item["id"] for item in alike], list(whole)
        assert dataset.epoch == 1 and len(everything) == dataset.total > len(part)
        assert [item["id"] for item in dataset] == part
    with StreamingDataset(folder) as dataset:
        assert dataset.as_stored
        next(iter(dataset))
        dataset.load_state_dict(dataset.state_dict())
        assert not dataset.as_stored
