"""Item loaders are settings with LitData's names: what they accept, say, and show."""

from __future__ import annotations

import gc
import pickle
from pathlib import Path
from typing import Any

import pytest
from support import datasets, golden

from lazystore import (
    BaseItemLoader,
    ConfigError,
    EvictionPolicy,
    FormatError,
    InMemoryItemLoader,
    StreamingConfig,
    StreamingDataset,
    TokensLoader,
)

TOKENS = golden.GOLDEN / "litdata-classic-tokens-numpy" / "data"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return datasets.write(tmp_path_factory.mktemp("loader") / "dataset", 120)


def test_in_memory_loader_sets_budget_policy_and_timeout(folder: Path) -> None:
    config = StreamingConfig(max_memory_size=500_000, eviction_policy=EvictionPolicy.FIFO, chunk_timeout=7.0)
    loader = InMemoryItemLoader(streaming_config=config)
    assert loader.streaming_config is config
    with StreamingDataset(folder, item_loader=loader) as dataset:
        datasets.check(dataset, range(120))
        assert loader.get_memory_stats()["max_memory_size"] == 500_000
        assert loader.get_memory_stats().keys() == dataset.get_memory_stats().keys()


def test_in_memory_loader_without_a_config_has_the_documented_default(folder: Path) -> None:
    loader = InMemoryItemLoader()
    assert loader.streaming_config == StreamingConfig()
    with StreamingDataset(folder, item_loader=loader):
        assert loader.get_memory_stats()["max_memory_size"] == 100 * 1024 * 1024


def test_loader_without_a_dataset_has_no_statistics(folder: Path) -> None:
    loader = InMemoryItemLoader()
    with pytest.raises(ConfigError, match="item_loader=loader"):
        loader.get_memory_stats()
    dataset = StreamingDataset(folder, item_loader=loader)
    assert loader.get_memory_stats()["num_chunks_cached"] == 0
    dataset.close()
    del dataset
    gc.collect()
    with pytest.raises(ConfigError, match="no"):
        loader.get_memory_stats()


def test_loader_does_not_keep_its_dataset_alive(folder: Path) -> None:
    import weakref

    loader = InMemoryItemLoader()
    dataset = StreamingDataset(folder, item_loader=loader)
    alive = weakref.ref(dataset)
    del dataset
    gc.collect()
    assert alive() is None


def test_loader_pickles_as_its_settings(folder: Path) -> None:
    config = StreamingConfig(max_memory_size=500_000)
    with StreamingDataset(folder, item_loader=(loader := TokensOrMemory(config))):
        twin = pickle.loads(pickle.dumps(loader))
        assert twin.streaming_config == config
        with pytest.raises(ConfigError):
            twin.get_memory_stats()


class TokensOrMemory(InMemoryItemLoader):
    """A user's own subclass works wherever its base does."""


@pytest.mark.parametrize("config", [{}, 5, "100MB", StreamingConfig])
def test_loader_takes_a_streaming_config_and_nothing_else(config: Any) -> None:
    for kind in (InMemoryItemLoader, BaseItemLoader):
        with pytest.raises(ConfigError, match="streaming_config"):
            kind(config)


@pytest.mark.parametrize("block", [0, -1, True, 1.0, "8", None])
def test_block_size_is_a_number_of_tokens(block: Any) -> None:
    with pytest.raises(ConfigError, match="block_size"):
        TokensLoader(block)


@pytest.mark.parametrize("block", [10**6, 2**40, 2**62])
def test_blocks_longer_than_any_chunk_leave_nothing_or_are_refused(block: int) -> None:
    try:
        dataset = StreamingDataset(TOKENS, item_loader=TokensLoader(block))
    except ConfigError as error:
        assert "block" in str(error)
        return
    with dataset:
        assert list(dataset) == []


def test_tokens_loader_takes_its_budget_from_either_side_but_not_both() -> None:
    config = StreamingConfig(max_memory_size=300_000)
    with StreamingDataset(TOKENS, item_loader=TokensLoader(25, config)) as dataset:
        assert dataset.stats()["max_memory_size"] == 300_000
    with StreamingDataset(TOKENS, item_loader=TokensLoader(25), memory=400_000) as dataset:
        assert dataset.stats()["max_memory_size"] == 400_000
    with pytest.raises(ConfigError, match="memory"):
        StreamingDataset(TOKENS, item_loader=TokensLoader(25, config), memory=400_000)


def test_blocks_of_a_dataset_that_is_not_tokens_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="TokensLoader"):
        StreamingDataset(folder, item_loader=TokensLoader(25))


def test_a_block_is_the_written_tokens_in_order_and_a_chunks_rest_is_left_out() -> None:
    import numpy as np

    with StreamingDataset(TOKENS) as documents, StreamingDataset(TOKENS, item_loader=TokensLoader(7)) as blocks:
        at, wanted = 0, []
        for count in documents._opened.counts:
            joined = np.concatenate(documents[at : at + count])
            at += count
            wanted += [joined[k : k + 7].tolist() for k in range(0, len(joined) - 6, 7)]
        assert [block.tolist() for block in blocks] == wanted
        assert len(blocks) == len(wanted)


def test_a_token_count_the_chunk_does_not_have_is_an_error_not_foreign_bytes(tmp_path: Path) -> None:
    folder = datasets.copy(TOKENS, tmp_path / "tokens")
    datasets.edit_index(folder, lambda index: index["chunks"][0].update(dim=100_000))
    with StreamingDataset(folder, item_loader=TokensLoader(25)) as dataset:
        chunk = (folder / "chunk-0-0.bin").stat().st_size
        inside = chunk // 50 - 10
        assert len(dataset[inside]) == 25
        with pytest.raises(FormatError, match=r"chunk-0-0\.bin"):
            dataset[3999]
        with pytest.raises(FormatError, match=r"chunk-0-0\.bin"):
            dataset.get_many([3999])
        assert len(dataset[-1]) == 25


@pytest.mark.parametrize("dim", [2**33, 2**62 - 1])
def test_an_impossible_token_count_is_refused(tmp_path: Path, dim: int) -> None:
    folder = datasets.copy(TOKENS, tmp_path / "tokens")
    datasets.edit_index(folder, lambda index: [chunk.update(dim=dim) for chunk in index["chunks"]])
    with pytest.raises(FormatError, match=r'index\.json.*"dim"'):
        StreamingDataset(folder, item_loader=TokensLoader(1))


def test_loaders_say_what_they_are() -> None:
    assert "block_size=25" in repr(TokensLoader(25))
    assert "max_memory_size" in repr(InMemoryItemLoader())
