"""`StreamingDataLoader`, and a plain DataLoader over our datasets: order, epochs, sharding, resuming, workers."""

from __future__ import annotations

import importlib
import itertools
import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import datasets

torch = pytest.importorskip("torch")

from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, default_collate  # noqa: E402

import lazystore  # noqa: E402
from lazystore import ConfigError, MissingExtraError, StreamingDataset, UnsupportedError  # noqa: E402
from lazystore.adapters.torch import StreamingDataLoader  # noqa: E402
from lazystore.streaming import combine  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]
COUNT = 230


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """230 items in 5 chunks."""
    return datasets.write(tmp_path_factory.mktemp("loader") / "dataset", COUNT, size=30)


@pytest.fixture
def opened(folder: Path) -> Iterator[Any]:
    """Opens the dataset with some arguments, as often as wanted."""
    made = []

    def open_one(**arguments: Any) -> StreamingDataset:
        made.append(StreamingDataset(folder, memory=arguments.pop("memory", "2MB"), **arguments))
        return made[-1]

    yield open_one
    for dataset in made:
        dataset.close()


def ids(batches: Any) -> list[int]:
    """The item numbers in some batches, in order."""
    return [int(i) for batch in batches for i in batch["id"]]


def take(loader: Any, count: int) -> list[int]:
    return ids(itertools.islice(iter(loader), count))


def own_order(dataset: Any, epoch: int = 1) -> list[int]:
    dataset.set_epoch(epoch)
    return [item["id"] for item in dataset]


# -- a plain DataLoader ---------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("shuffle", [False, True, "global", "chunk"])
def test_a_plain_loader_iterates_in_the_datasets_order(opened: Any, shuffle: Any, workers: int) -> None:
    loader = DataLoader(opened(shuffle=shuffle, batch_size=8), 8, num_workers=workers)
    got = ids(loader)
    assert sorted(got) == list(range(COUNT))
    assert (got == list(range(COUNT))) == (shuffle is False and workers < 2)
    if workers < 2:
        assert got == own_order(opened(shuffle=shuffle, batch_size=8))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_plain_loader_with_a_sampler_fetches_what_it_names(opened: Any, workers: int) -> None:
    dataset = opened(shuffle=True)
    order = [229, 3, 3, 100, 50, 7, 0]
    batches = list(DataLoader(dataset, 4, sampler=order, num_workers=workers))
    assert ids(batches) == order
    for item, i in zip(batches[0]["text"], order, strict=False):
        assert item == datasets.sample(i, 30)["text"]
    assert ids(DataLoader(dataset, batch_sampler=[[5, 6], [7]], num_workers=workers)) == [5, 6, 7]
    random = BatchSampler(RandomSampler(range(COUNT)), 32, drop_last=False)
    assert sorted(ids(DataLoader(dataset, batch_sampler=random, num_workers=workers))) == list(range(COUNT))


def test_a_sampler_goes_through_getitems(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []
    real = StreamingDataset.__getitems__

    def noting(self: StreamingDataset, indices: list[int]) -> list[Any]:
        asked.append(list(indices))
        return real(self, indices)

    monkeypatch.setattr(StreamingDataset, "__getitems__", noting)
    list(DataLoader(opened(), batch_sampler=[[5, 6], [7]]))
    assert asked == [[5, 6], [7]]


def test_asking_torch_to_shuffle_is_refused_not_ignored(opened: Any) -> None:
    with pytest.raises(ValueError, match="shuffle"):
        DataLoader(opened(), 4, shuffle=True)


def test_it_is_an_iterable_dataset_to_torch_and_itself_to_everybody_else(opened: Any) -> None:
    dataset = opened()
    assert isinstance(dataset, IterableDataset)
    assert isinstance(dataset, StreamingDataset)
    assert type(dataset) is dataset.__class__ is StreamingDataset
    assert type(pickle.loads(pickle.dumps(dataset))) is StreamingDataset
    assert not issubclass(StreamingDataset, IterableDataset)
    loader = DataLoader(dataset, sampler=[1])

    def trainer(dataloader: Any) -> bool:
        return isinstance(dataloader.dataset, IterableDataset)

    assert not trainer(loader)
    assert trainer(DataLoader(dataset))


def test_a_plain_loaders_length_counts_batches(opened: Any) -> None:
    assert len(DataLoader(opened(), 32)) == 8
    assert len(DataLoader(opened(), 32, drop_last=True)) == 7
    assert len(DataLoader(opened(rank=0, world_size=2, drop_last=False), 32)) == 4


# -- StreamingDataLoader: order, sharding ---------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("batch_size", [7, 32, 500])
def test_only_the_last_batch_is_short(opened: Any, workers: int, batch_size: int) -> None:
    loader = StreamingDataLoader(opened(), batch_size, num_workers=workers)
    sizes = [len(batch["id"]) for batch in loader]
    assert sizes == [batch_size] * (COUNT // batch_size) + [COUNT % batch_size]
    assert len(loader) == len(sizes)


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_share_the_epoch(opened: Any, workers: int) -> None:
    loaders = [
        StreamingDataLoader(opened(rank=rank, world_size=3), 8, num_workers=workers, shuffle=True, drop_last=False)
        for rank in range(3)
    ]
    parts = [ids(loader) for loader in loaders]
    assert sorted(itertools.chain(*parts)) == list(range(COUNT))
    assert [len(loader) for loader in loaders] == [10, 10, 10]
    equal = [
        StreamingDataLoader(opened(rank=rank, world_size=3), 8, num_workers=workers, shuffle=True, drop_last=True)
        for rank in range(3)
    ]
    for loader in equal:
        sizes = [len(batch["id"]) for batch in loader]
        assert sizes == [8] * 9
        assert len(loader) == 9


def test_shuffle_and_batch_size_reach_the_dataset(opened: Any) -> None:
    loader = StreamingDataLoader(opened(), 8, num_workers=2, shuffle=True)
    got = ids(loader)
    assert sorted(got) == list(range(COUNT))
    assert got != list(range(COUNT))
    assert got == ids(StreamingDataLoader(opened(shuffle=True, batch_size=8), 8, num_workers=2))


@pytest.mark.parametrize("workers", [0, 2])
def test_batch_size_none_gives_single_items(opened: Any, workers: int) -> None:
    loader = StreamingDataLoader(opened(), None, num_workers=workers)
    items = list(loader)
    assert sorted(int(item["id"]) for item in items) == list(range(COUNT))
    assert isinstance(items[0]["vector"], torch.Tensor)
    assert len(loader) == COUNT


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_default_collate(opened: Any, workers: int) -> None:
    dataset = opened()
    for batch in StreamingDataLoader(dataset, 16, num_workers=workers):
        expected = default_collate([datasets.sample(int(i), 30) for i in batch["id"]])
        assert list(batch) == list(expected)
        assert (batch["text"], batch["blob"]) == (expected["text"], expected["blob"])
        assert batch["id"].equal(expected["id"])
        assert batch["vector"].equal(expected["vector"])
        assert batch["vector"].dtype == expected["vector"].dtype


def first_id(items: list[Any]) -> int:
    return int(items[0]["id"])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_custom_collate_gets_lists_of_items(opened: Any, workers: int) -> None:
    assert list(StreamingDataLoader(opened(), 50, num_workers=workers, collate_fn=first_id)) == (
        [0, 50, 100, 150, 200] if workers == 0 else [0, 130, 50, 180, 100]
    )


# -- epochs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}], ids=str)
class TestEpochs:
    def expected(self, opened: Any, epoch: int, options: dict[str, Any]) -> list[int]:
        dataset = opened(shuffle=True)
        dataset.set_epoch(epoch)
        return ids(StreamingDataLoader(dataset, 8, num_workers=options.get("num_workers", 0)))

    def test_each_pass_is_the_next_epoch(self, opened: Any, options: dict[str, Any]) -> None:
        loader = StreamingDataLoader(opened(shuffle=True), 8, **options)
        passes = [ids(loader) for _ in range(3)]
        assert passes == [self.expected(opened, epoch, options) for epoch in (1, 2, 3)]
        assert len({tuple(order) for order in passes}) == 3

    def test_an_epoch_can_be_chosen_and_repeated(self, opened: Any, options: dict[str, Any]) -> None:
        loader = StreamingDataLoader(opened(shuffle=True), 8, **options)
        passes = []
        for epoch in (5, 0, 5, 5):
            loader.set_epoch(epoch)
            passes.append(ids(loader))
        fifth, zeroth = self.expected(opened, 5, options), self.expected(opened, 0, options)
        assert passes == [fifth, zeroth, fifth, fifth]
        assert ids(loader) == self.expected(opened, 6, options)

    def test_a_pass_left_early_is_followed_by_the_next_epoch(self, opened: Any, options: dict[str, Any]) -> None:
        loader = StreamingDataLoader(opened(shuffle=True), 8, **options)
        first = take(loader, 3)
        assert first == self.expected(opened, 1, options)[: len(first)]
        assert ids(loader) == self.expected(opened, 2, options)

    def test_an_epoch_set_on_the_dataset_counts(self, opened: Any, options: dict[str, Any]) -> None:
        dataset = opened(shuffle=True)
        loader = StreamingDataLoader(dataset, 8, **options)
        take(loader, 2)
        dataset.set_epoch(9)
        assert ids(loader) == self.expected(opened, 9, options)
        assert ids(loader) == self.expected(opened, 10, options)


# -- state ----------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("shuffle", [False, True, "global"])
def test_at_every_batch_a_loader_resumes_exactly(opened: Any, shuffle: Any, workers: int) -> None:
    def make() -> StreamingDataLoader:
        return StreamingDataLoader(opened(shuffle=shuffle), 32, num_workers=workers)

    loader = make()
    loader.set_epoch(3)
    whole: list[list[int]] = []
    states = [loader.state_dict()]
    for batch in loader:
        whole.append(batch["id"].tolist())
        states.append(loader.state_dict())
    for count, state in enumerate(states):
        assert len(json.dumps(state)) <= 1024
        resumed = make()
        resumed.load_state_dict(json.loads(json.dumps(state)))
        rest = [batch["id"].tolist() for batch in resumed]
        # after the very last batch the epoch may count as over: then the next one comes whole
        assert rest == whole[count:] or (count == len(whole) and len(rest) == len(whole))
        assert sorted(ids(resumed)) == list(range(COUNT))


@pytest.mark.parametrize("options", [{}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}], ids=str)
def test_one_loader_goes_back_and_forth(opened: Any, options: dict[str, Any]) -> None:
    loader = StreamingDataLoader(opened(shuffle=True), 16, **options)
    passing = iter(loader)
    head = ids(itertools.islice(passing, 4))
    state = loader.state_dict()
    tail = ids(passing)
    second = ids(loader)
    loader.load_state_dict(state)
    assert loader.state_dict() == state
    assert ids(loader) == tail
    assert ids(loader) == second
    assert sorted(head + tail) == list(range(COUNT))


@pytest.mark.parametrize("options", [{}, {"num_workers": 2}], ids=str)
def test_trainers_that_set_the_epoch_after_loading_keep_the_position(opened: Any, options: dict[str, Any]) -> None:
    loader = StreamingDataLoader(opened(shuffle=True), 16, **options)
    loader.set_epoch(4)
    head = take(loader, 5)
    resumed = StreamingDataLoader(opened(shuffle=True), 16, **options)
    resumed.load_state_dict(loader.state_dict())
    resumed.set_epoch(4)
    assert sorted(head + ids(resumed)) == list(range(COUNT))


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (2, 3), (3, 1)])
def test_on_other_numbers_of_workers_every_item_left_comes_once(opened: Any, before: int, after: int) -> None:
    loader = StreamingDataLoader(opened(shuffle=True), 8, num_workers=before)
    head = take(loader, 11)
    resumed = StreamingDataLoader(opened(shuffle=True), 8, num_workers=after)
    resumed.load_state_dict(loader.state_dict())
    middle = take(resumed, 5)
    again = StreamingDataLoader(opened(shuffle=True), 10, num_workers=before)
    again.load_state_dict(resumed.state_dict())
    assert sorted(head + middle + ids(again)) == list(range(COUNT))


@pytest.mark.parametrize("workers", [0, 2])
def test_on_other_numbers_of_ranks_every_item_left_comes_once(opened: Any, workers: int) -> None:
    loaders = [
        StreamingDataLoader(opened(shuffle=True, rank=rank, world_size=3, drop_last=False), 8, num_workers=workers)
        for rank in range(3)
    ]
    seen = [i for loader in loaders for i in take(loader, 4)]
    states = [loader.state_dict() for loader in loaders]
    assert states[0] == states[1] == states[2]
    for rank in range(2):
        resumed = StreamingDataLoader(
            opened(shuffle=True, rank=rank, world_size=2, drop_last=False), 8, num_workers=workers
        )
        resumed.load_state_dict(states[rank])
        seen += ids(resumed)
    assert sorted(seen) == list(range(COUNT))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["CombinedStreamingDataset", "ConcatStreamingDataset"])
def test_mixtures_resume_exactly_too(opened: Any, kind: str, workers: int) -> None:
    def make() -> StreamingDataLoader:
        parts = [opened(shuffle=True), opened(shuffle=True, seed=7)]
        return StreamingDataLoader(getattr(combine, kind)(parts), 16, num_workers=workers)

    loader = make()
    whole, states = [], []
    for batch in loader:
        whole.append(batch["id"].tolist())
        states.append(loader.state_dict())
    assert sorted(itertools.chain(*whole)) == sorted([*range(COUNT)] * 2)
    for count in (1, 2, len(whole) // 2, len(whole) - 2, len(whole) - 1):
        resumed = make()
        resumed.load_state_dict(json.loads(json.dumps(states[count - 1])))
        assert [batch["id"].tolist() for batch in resumed] == whole[count:]


def test_the_state_is_the_datasets_own(opened: Any) -> None:
    loader = StreamingDataLoader(opened(shuffle=True), 8, num_workers=2)
    head = take(loader, 6)
    alone = opened(shuffle=True)
    alone.load_state_dict(loader.state_dict())
    assert sorted(head + [item["id"] for item in alone]) == list(range(COUNT))


def test_the_state_of_another_order_is_refused_unless_forced(opened: Any) -> None:
    loader = StreamingDataLoader(opened(shuffle=True, seed=1), 8)
    take(loader, 3)
    other = StreamingDataLoader(opened(shuffle=True, seed=2), 8)
    with pytest.raises(ConfigError, match="seed"):
        other.load_state_dict(loader.state_dict())
    other.load_state_dict(loader.state_dict(), force=True)
    assert len(ids(other)) == COUNT - 24


def test_without_an_order_of_batches_there_is_no_state(opened: Any) -> None:
    loader = StreamingDataLoader(opened(), 8, num_workers=2, in_order=False)
    loader.state_dict()
    assert len(take(loader, 3)) == 24
    with pytest.raises(UnsupportedError, match="in_order"):
        loader.state_dict()


# -- workers --------------------------------------------------------------------------------


def note_dataset(worker: int) -> None:
    info = torch.utils.data.get_worker_info()
    assert type(info.dataset) is StreamingDataset
    assert info.id == worker


@pytest.mark.parametrize("context", ["fork", "forkserver", "spawn"])
def test_every_way_to_start_workers(opened: Any, context: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", ":".join(filter(None, sys.path)))
    dataset = opened(shuffle=True)
    dataset.set_epoch(2)
    loader = StreamingDataLoader(
        dataset,
        16,
        num_workers=2,
        multiprocessing_context=context,
        worker_init_fn=note_dataset,
        persistent_workers=True,
    )
    expected = StreamingDataLoader(opened(shuffle=True), 16, num_workers=2)
    expected.set_epoch(2)
    head = take(loader, 3)
    assert head == take(expected, 3)
    state = loader.state_dict()
    assert ids(loader) == ids(expected)  # epoch 3
    loader.load_state_dict(state)
    assert sorted(head + ids(loader)) == list(range(COUNT))


def broken(items: list[Any]) -> Any:
    raise ValueError("no batch of this")


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_come_out_as_they_are(opened: Any, workers: int) -> None:
    batches: Any = iter(StreamingDataLoader(opened(), 8, num_workers=workers, collate_fn=broken))
    with pytest.raises(ValueError, match="no batch of this"):
        next(batches)
    if workers:
        # the error's traceback keeps torch's iterator in a cycle, and collected there it waits 5 s for each worker
        batches._batches._shutdown_workers()


def test_options_pass_through(opened: Any) -> None:
    generator = torch.Generator()
    loader = StreamingDataLoader(
        opened(), 8, num_workers=2, prefetch_factor=3, timeout=20, generator=generator, worker_init_fn=note_dataset
    )  # fmt: skip
    assert (loader.prefetch_factor, loader.timeout, loader.generator) == (3, 20, generator)
    assert len(ids(loader)) == COUNT


@pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")
def test_pin_memory_is_allowed_where_there_is_nothing_to_pin_for(opened: Any) -> None:
    assert len(ids(StreamingDataLoader(opened(), 8, num_workers=2, pin_memory=True))) == COUNT


def test_a_loader_pickles_once_it_has_run(opened: Any) -> None:
    loader = StreamingDataLoader(opened(shuffle=True), 8, num_workers=2)
    head = take(loader, 3)
    again = pickle.loads(pickle.dumps(loader))
    assert again.state_dict() == loader.state_dict()
    again.load_state_dict(loader.state_dict())
    assert sorted(head + ids(again)) == list(range(COUNT))


# -- what it refuses ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sampler", "batch_sampler"])
def test_samplers_are_for_torchs_own_loader(opened: Any, name: str) -> None:
    with pytest.raises(ConfigError, match=f"torch.utils.data.DataLoader\\(dataset, {name}=...\\)"):
        StreamingDataLoader(opened(), **{name: [[1]]})
    StreamingDataLoader(opened(), **{name: None})


def test_other_datasets_are_for_torchs_own_loader() -> None:
    with pytest.raises(ConfigError, match="list"):
        StreamingDataLoader([1, 2, 3])


def test_it_is_in_the_package() -> None:
    assert lazystore.StreamingDataLoader is StreamingDataLoader


def test_without_torch_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "lazystore.adapters.torch")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"pip install lazystore\[torch\]"):
        importlib.import_module("lazystore.adapters.torch")
