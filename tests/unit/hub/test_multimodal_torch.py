"""`MultimodalDataset` in torch's DataLoader: as a stream that workers share, and by number with a sampler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from lazystore.hub import registry
from lazystore.hub.collating import MultimodalCollator
from lazystore.hub.multimodal import MultimodalDataset
from lazystore.hub.registry import register_dataset

data = pytest.importorskip("torch.utils.data")


@pytest.fixture
def dataset() -> Iterator[MultimodalDataset]:
    known = dict(registry._known)
    register_dataset("a", [{"body": f"a{number}"} for number in range(60)], columns={"text": "body"})
    register_dataset("c", lambda: iter([{"body": f"c{number}"} for number in range(45)]), columns={"text": "body"})
    with MultimodalDataset(None, lambda text: [len(text)], dataset_name=["a", "c"]) as found:
        yield found
    registry._known.clear()
    registry._known.update(known)


def texts(samples: Any) -> list[str]:
    return [sample["text"] for sample in samples]


def test_it_is_an_iterable_dataset(dataset: MultimodalDataset) -> None:
    assert isinstance(dataset, data.IterableDataset)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_share_the_samples(dataset: MultimodalDataset, workers: int) -> None:
    loader = data.DataLoader(dataset, batch_size=None, num_workers=workers)
    for _ in range(2):
        assert Counter(texts(loader)) == Counter(texts(dataset))


def test_a_sampler_takes_samples_by_number(dataset: MultimodalDataset) -> None:
    whole = texts(dataset)
    order = [7, 100, 3, 3, 50, 104]
    loader = data.DataLoader(dataset, batch_size=4, sampler=order, collate_fn=list)
    assert [text for batch in loader for text in texts(batch)] == [whole[number] for number in order]


def test_batches_are_collated(dataset: MultimodalDataset) -> None:
    batch = next(iter(data.DataLoader(dataset, batch_size=8, collate_fn=MultimodalCollator())))
    assert len(batch["text"]) == 8
    assert tuple(batch["input_ids"].shape) == (8, 1)
