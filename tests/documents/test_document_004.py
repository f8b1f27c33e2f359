"""The calls of the document on streamed hub datasets, block by block, with what each must give.

``config`` and ``tokenizer`` are the reader's own project's; here are two that do.
"""

from __future__ import annotations

import logging
import threading
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from support import hub_samples

from lazystore.errors import SyntheticDataWarning
from lazystore.hub import MultimodalDataset, StreamingDatasetWrapper
from lazystore.testing import LocalHub

PLATYPUS, HUMANEVAL = 60, 12


@dataclass
class SalesAConfig:
    max_length: int = 32
    vocab_size: int = 1000


class SalesATokenizer:
    """Words as numbers; ``encode`` is all that is asked of a tokenizer."""

    def encode(self, text: str) -> list[int]:
        return [len(word) for word in text.split()]


config, tokenizer = SalesAConfig(), SalesATokenizer()


@pytest.fixture(autouse=True)
def streamed(hub: LocalHub) -> LocalHub:
    """The document's datasets, few samples each, as the hub has them."""
    hub.add("garage-bAInd/Open-Platypus", {"data/train-00000-of-00001.parquet": hub_samples.parquet([
        {"input": "", "output": f"answer {k}", "instruction": f"question {k}", "data_source": "made"}
        for k in range(PLATYPUS)
    ])})  # fmt: skip
    hub.add("code-rag-bench/humaneval", {"data/train-00000-of-00001.parquet": hub_samples.parquet([
        {"task_id": f"t/{k}", "prompt": f"def f{k}():", "canonical_solution": f" return {k}", "entry_point": f"f{k}"}
        for k in range(HUMANEVAL)
    ])})  # fmt: skip
    return hub


def listed(dataset: MultimodalDataset) -> list[dict[str, Any]]:
    with dataset, warnings.catch_warnings():
        warnings.simplefilter("error", SyntheticDataWarning)  # all of these are there
        return list(dataset)


def test_basic_usage() -> None:
    dataset = MultimodalDataset(
        config=config,
        tokenizer=tokenizer,
        split="train",
        dataset_name="open_platypus",
        use_streaming=True,
        cache_size=1000,
    )
    assert len(dataset) == PLATYPUS
    assert "question 7" in dataset[7]["text"] and "answer 7" in dataset[7]["text"]
    found = listed(dataset)
    assert not dataset.is_synthetic
    assert [sample["dataset"] for sample in found] == ["open_platypus"] * PLATYPUS
    assert all(f"question {k}" in sample["text"] for k, sample in enumerate(found))
    assert all(isinstance(sample["input_ids"], np.ndarray) and len(sample["input_ids"]) <= 32 for sample in found)


def test_all_datasets_of_a_task(hub: LocalHub) -> None:
    hub.add("xlangai/DS-1000", {"test.jsonl": hub_samples.jsonl([
        {"prompt": f"p{k}", "reference_code": f"c{k}", "metadata": {"problem_id": k}} for k in range(5)
    ])})  # fmt: skip
    found = listed(
        MultimodalDataset(
            config=config, tokenizer=tokenizer, split="train", dataset_name="all", task_type="code",
            use_streaming=True, cache_size=2000,
        )
    )  # fmt: skip
    names = [sample["dataset"] for sample in found]
    assert {sample["task"] for sample in found} == {"code"}
    assert (names.count("humaneval"), names.count("ds1000")) == (HUMANEVAL, 5)


def test_a_list_of_datasets_is_interleaved_the_same_way_each_time() -> None:
    def names() -> list[str]:
        return [sample["dataset"] for sample in listed(MultimodalDataset(
            config=config, tokenizer=tokenizer, split="train",
            dataset_name=["humaneval", "open_platypus"], use_streaming=True,
        ))]  # fmt: skip

    found = names()
    assert (found.count("humaneval"), found.count("open_platypus")) == (HUMANEVAL, PLATYPUS)
    assert found == names() and found != sorted(found)


@pytest.mark.parametrize("cache_size", [100, 5000])
def test_cache_sizes_for_little_and_much_memory(cache_size: int) -> None:
    found = listed(MultimodalDataset(config=config, tokenizer=tokenizer, cache_size=cache_size, use_streaming=True))
    assert [sample["dataset"] for sample in found] == ["open_platypus"] * PLATYPUS  # auto, and text without a task


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("code", "humaneval"), ("vision", "beans"), ("audio", "luma"), ("text", "open_platypus"),
        ("financial", "financial_phrasebank"),
    ],
)  # fmt: skip
def test_a_task_chooses_its_dataset(task: str, name: str) -> None:
    with MultimodalDataset(config, tokenizer, task_type=task) as dataset:
        assert [spec.name for spec in dataset.datasets] == [name]


def test_the_old_way_without_use_streaming_streams_as_well() -> None:
    old = MultimodalDataset(config=config, tokenizer=tokenizer, split="train", dataset_name="open_platypus")
    new = MultimodalDataset(
        config=config, tokenizer=tokenizer, split="train", dataset_name="open_platypus", use_streaming=True
    )
    assert [sample["text"] for sample in listed(old)] == [sample["text"] for sample in listed(new)]


def test_non_streaming_mode_gives_the_same_samples() -> None:
    streamed = listed(MultimodalDataset(config, tokenizer, dataset_name="humaneval"))
    whole = listed(MultimodalDataset(config, tokenizer, dataset_name="humaneval", use_streaming=False))
    assert [sample["text"] for sample in streamed] == [sample["text"] for sample in whole]


def test_synthetic_samples_take_over_when_the_hub_is_away(hub: LocalHub, impatient: None) -> None:
    hub.set(down=True)
    with MultimodalDataset(config, tokenizer, dataset_name="open_platypus", synthetic_size=5, retries=0) as dataset:
        with pytest.warns(SyntheticDataWarning):
            found = list(dataset)
        assert dataset.is_synthetic and len(found) == 5
        assert all(sample["synthetic"] is True and sample["dataset"] == "open_platypus" for sample in found)
        assert "input_ids" in found[0]


def test_the_deprecated_methods_warn_and_give_what_they_gave(caplog: pytest.LogCaptureFixture) -> None:
    dataset = MultimodalDataset(config, tokenizer)
    with caplog.at_level(logging.WARNING):
        for method, value in (("_load_data", []), ("_ensure_local_dataset", None), ("_load_single_dataset", [])):
            with pytest.warns(DeprecationWarning, match=method):
                assert getattr(dataset, method)() == value
    assert len(caplog.records) == 3


def test_debug_logging_tells_what_is_read(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="lazystore"):
        listed(MultimodalDataset(config, tokenizer, dataset_name="open_platypus"))
    assert any("Open-Platypus" in record.getMessage() for record in caplog.records)


def test_the_wrapper_caches_in_many_threads_and_leaves_none_behind() -> None:
    before = set(threading.enumerate())
    with StreamingDatasetWrapper("garage-bAInd/Open-Platypus", via="datasets", cache_size=1000) as wrapper:
        samples, found = iter(wrapper), []

        def take() -> None:
            found.extend(sample["instruction"] for sample in samples)

        threads = [threading.Thread(target=take) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(found) == sorted(f"question {k}" for k in range(PLATYPUS))
        assert [sample["instruction"] for sample in wrapper] == [f"question {k}" for k in range(PLATYPUS)]
        assert wrapper.stats()["hits"] >= PLATYPUS
    assert not [thread for thread in set(threading.enumerate()) - before if "lazystore-hub" in thread.name]
