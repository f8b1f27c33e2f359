"""What the mixin answers to whom, with a stand-in for `torch.utils.data` (the real one: tests/unit/adapters)."""

from __future__ import annotations

import copy
import pickle
import sys
import types
import weakref
from collections import abc
from collections.abc import Iterator
from typing import Any

import pytest

from lazystore.streaming.torch_kind import TorchKind


class Iterable(abc.Iterable[Any]):
    """Stands for torch's IterableDataset, which is an ABC in this way too."""


class Pipe(Iterable):
    """A class below it, which our datasets are not."""


class Kind:
    Map, Iterable = 0, 1


class DataLoader:
    def __init__(self, dataset: object, batch_size: int = 1, sampler: Any = None, batch_sampler: Any = None) -> None:
        self.dataset = dataset
        self._dataset_kind = Kind.Iterable if isinstance(dataset, Iterable) else Kind.Map


class Sequence(TorchKind):
    def __init__(self) -> None:
        self.items = list(range(5))

    def __iter__(self) -> Iterator[int]:
        return iter(self.items)

    def __getitem__(self, index: int) -> int:
        return self.items[index]


class Stream(TorchKind):
    def __iter__(self) -> Iterator[int]:
        return iter(range(5))


class Users(Sequence):
    def __init__(self, extra: int) -> None:
        super().__init__()
        self.extra = extra

    def who(self) -> str:
        return f"{self.__class__.__name__} {__class__.__name__}"  # type: ignore[name-defined]


@pytest.fixture
def torch_data(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("torch.utils.data")
    module.__dict__.update(IterableDataset=Iterable, DataLoader=DataLoader, _DatasetKind=Kind)
    monkeypatch.setitem(sys.modules, "torch.utils.data", module)
    return module


@pytest.fixture(params=[Sequence, lambda: Users(3)], ids=["ours", "a user's subclass"])
def dataset(request: pytest.FixtureRequest) -> Sequence:
    return request.param()  # type: ignore[no-any-return]


def has_iterable_dataset(loader: DataLoader) -> bool:
    """How trainers ask."""
    return isinstance(loader.dataset, Iterable)


@pytest.mark.usefixtures("torch_data")
class TestWithTorchLoaded:
    def test_a_loader_without_a_sampler_iterates(self, dataset: Sequence) -> None:
        assert isinstance(dataset, Iterable)
        assert DataLoader(dataset)._dataset_kind == Kind.Iterable
        assert DataLoader(dataset, 32)._dataset_kind == Kind.Iterable

    @pytest.mark.parametrize("chooser", ["sampler", "batch_sampler"])
    def test_a_loader_with_a_sampler_takes_items_by_index(self, dataset: Sequence, chooser: str) -> None:
        assert DataLoader(dataset, **{chooser: []})._dataset_kind == Kind.Map
        assert DataLoader(dataset)._dataset_kind == Kind.Iterable  # the answer is not remembered

    def test_what_has_no_items_by_index_always_iterates(self) -> None:
        assert DataLoader(Stream(), sampler=[])._dataset_kind == Kind.Iterable

    def test_who_holds_a_loader_hears_what_that_loader_did(self, dataset: Sequence) -> None:
        assert has_iterable_dataset(DataLoader(dataset))
        assert not has_iterable_dataset(DataLoader(dataset, sampler=[1]))
        assert has_iterable_dataset(DataLoader(Stream(), sampler=[1]))

    def test_a_loader_of_another_dataset_changes_nothing(self, dataset: Sequence) -> None:
        other = DataLoader(Sequence(), sampler=[1])
        assert isinstance(dataset, Iterable)
        assert not isinstance(other.dataset, Iterable)

    def test_a_loader_in_mid_construction_changes_nothing(self, dataset: Sequence) -> None:
        empty = DataLoader.__new__(DataLoader)
        assert isinstance(dataset, Iterable), empty

    def test_every_other_question_gets_the_true_answer(self, dataset: Sequence) -> None:
        assert not isinstance(dataset, Pipe)
        assert not isinstance(dataset, DataLoader)
        assert isinstance(dataset, Sequence)
        assert isinstance(dataset, TorchKind)
        assert not isinstance(Sequence(), Users)
        assert dataset.__class__ is type(dataset)
        assert not issubclass(type(dataset), Iterable)

    def test_repeated_questions_do_not_confuse_the_cache_of_abcs(self, dataset: Sequence) -> None:
        for _ in range(3):
            assert isinstance(dataset, Iterable)
            assert DataLoader(dataset, sampler=[])._dataset_kind == Kind.Map

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_it_pickles_as_what_it_is(self, dataset: Sequence, protocol: int) -> None:
        again = pickle.loads(pickle.dumps(dataset, protocol))
        assert type(again) is type(dataset)
        assert again.__dict__ == dataset.__dict__

    def test_it_copies_as_what_it_is(self, dataset: Sequence) -> None:
        for again in (copy.copy(dataset), copy.deepcopy(dataset)):
            assert type(again) is type(dataset)
            assert list(again) == list(dataset)

    def test_weak_references_proxies_and_super_work(self) -> None:
        users = Users(7)
        assert (users.items, users.extra, users.who()) == ([0, 1, 2, 3, 4], 7, "Users Users")
        assert weakref.ref(users)() is users
        assert isinstance(weakref.proxy(users), Users)

    def test_its_class_can_still_be_changed(self) -> None:
        changed = Sequence()
        changed.__class__ = Users
        assert type(changed) is Users
        assert isinstance(changed, Iterable)

    def test_other_abstract_classes_may_be_its_bases(self) -> None:
        class Abstract(abc.Container[int]):
            def __contains__(self, item: object) -> bool:
                return item in range(5)

        class Mixed(Sequence, Abstract):
            pass

        assert isinstance(Mixed(), Abstract)
        assert isinstance(Mixed(), Iterable)
        assert not isinstance(Sequence(), Abstract)


def test_without_torch_it_is_nothing_special(monkeypatch: pytest.MonkeyPatch, dataset: Sequence) -> None:
    monkeypatch.delitem(sys.modules, "torch.utils.data", raising=False)
    assert not isinstance(dataset, Iterable)
    assert dataset.__class__ is type(dataset)


def test_while_torch_is_being_imported_it_is_nothing_special(
    monkeypatch: pytest.MonkeyPatch, dataset: Sequence
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.data", types.ModuleType("torch.utils.data"))
    assert not isinstance(dataset, Iterable)
