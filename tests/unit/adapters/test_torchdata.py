"""torchdata's StatefulDataLoader: it asks the datasets in its workers for their states, and gives them back."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from support import datasets

pytest.importorskip("torch")
stateful = pytest.importorskip("torchdata.stateful_dataloader")

from lazystore import StreamingDataset  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),  # torchdata calls it
]
COUNT = 230


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return datasets.write(tmp_path_factory.mktemp("torchdata") / "dataset", COUNT, size=30)


def make(folder: Path, workers: int, **options: Any) -> Any:
    dataset = StreamingDataset(folder, memory="2MB", shuffle=True, batch_size=16)
    return stateful.StatefulDataLoader(dataset, 16, num_workers=workers, **options)


def numbers(batches: Any) -> list[list[int]]:
    return [batch["id"].tolist() for batch in batches]


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("count", [0, 1, 5, 14])
def test_it_resumes_exactly(folder: Path, workers: int, count: int) -> None:
    whole = numbers(make(folder, workers))
    assert sorted(itertools.chain(*whole)) == list(range(COUNT))
    loader = make(folder, workers)
    batches = iter(loader)
    head = numbers(itertools.islice(batches, count))
    assert head == whole[:count]
    state = loader.state_dict()
    assert numbers(batches) == whole[count:]
    resumed = make(folder, workers)
    resumed.load_state_dict(state)
    assert numbers(resumed) == whole[count:]


@pytest.mark.parametrize("workers", [0, 2])
def test_with_a_sampler_it_takes_items_by_index(folder: Path, workers: int) -> None:
    assert numbers(make(folder, workers, sampler=[7, 5, 200])) == [[7, 5, 200]]


def test_a_pass_after_the_resumed_one_is_whole(folder: Path) -> None:
    loader = make(folder, 2)
    next(iter(loader))
    resumed = make(folder, 2)
    resumed.load_state_dict(loader.state_dict())
    assert sum(map(len, numbers(resumed))) == COUNT - 16
    assert sorted(itertools.chain(*numbers(resumed))) == list(range(COUNT))
