"""The in-memory item loader as its usage document shows it: each of its code blocks has a test here that
makes the same calls, with the same names and arguments, on data made on the spot.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import datasets

from lazystore import EvictionPolicy, InMemoryItemLoader, MissingExtraError, StreamingConfig, StreamingDataset
from lazystore.fetch import open_source
from lazystore.fetch.options import fsspec_options
from lazystore.testing import ObjectStore

MIB = 1024 * 1024
COUNT, SIZE = 1200, 3000
KEYS = {"total_memory_usage", "max_memory_size", "num_chunks_cached", "memory_utilization", "chunks"}


@pytest.fixture(scope="module")
def optimized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """~3.5 MB in 12 chunks."""
    place = tmp_path_factory.mktemp("bucket") / "public-dataset" / "optimized-data"
    return datasets.write(place, COUNT, size=SIZE, chunk_size=100)


@pytest.fixture(scope="module")
def store(optimized: Path) -> Iterator[ObjectStore]:
    with ObjectStore(optimized.parents[1]) as running:
        yield running


# -- installation ---------------------------------------------------------------------------


def test_installation_every_name_is_where_the_document_imports_it_from() -> None:
    from lazystore import InMemoryItemLoader as Loader
    from lazystore import StreamingConfig as Config
    from lazystore import StreamingDataset as Dataset
    from lazystore.streaming.streaming_buffer import EvictionPolicy as Policy
    from lazystore.streaming.streaming_buffer import StreamingConfig as SameConfig

    assert (Loader, Config, Dataset, Policy) == (InMemoryItemLoader, StreamingConfig, StreamingDataset, EvictionPolicy)
    assert SameConfig is Config


# -- basic usage ----------------------------------------------------------------------------


def test_example_1_a_local_dataset_in_memory(optimized: Path) -> None:
    streaming_config = StreamingConfig(
        max_memory_size=100 * 1024 * 1024,
        eviction_policy=EvictionPolicy.LRU,
        chunk_timeout=30.0,
        enable_memory_monitoring=True,
    )
    loader = InMemoryItemLoader(streaming_config=streaming_config)
    dataset = StreamingDataset(input_dir=str(optimized), item_loader=loader)

    for i in range(10):
        sample = dataset[i]
        assert f"Sample {i}: {type(sample)}" == f"Sample {i}: <class 'dict'>"
        datasets.check([sample], [i], SIZE)

    stats = loader.get_memory_stats()
    assert f"Memory usage: {stats['memory_utilization']:.1%}".endswith("%")
    assert 0 < stats["memory_utilization"] < 1
    assert stats["num_chunks_cached"] >= 1
    dataset.close()


@pytest.mark.s3
def test_example_2_a_public_bucket_without_signatures(store: ObjectStore) -> None:
    pytest.importorskip("s3fs")
    botocore = pytest.importorskip("botocore")
    from botocore.config import Config

    storage_options = {"config": Config(signature_version=botocore.UNSIGNED), "endpoint_url": store.url}
    streaming_config = StreamingConfig(
        max_memory_size=500 * 1024 * 1024,
        eviction_policy=EvictionPolicy.LRU,
        chunk_timeout=60.0,
        enable_memory_monitoring=True,
    )
    loader = InMemoryItemLoader(streaming_config=streaming_config)
    dataset = StreamingDataset(
        input_dir="s3://public-dataset/optimized-data", item_loader=loader, storage_options=storage_options
    )

    fetched = []
    for _ in range(3):
        for i in range(min(100, len(dataset))):
            datasets.check([dataset[i]], [i], SIZE)
        stats = loader.get_memory_stats()
        assert f"{stats['memory_utilization']:.1%} ({stats['num_chunks_cached']} chunks cached)"
        fetched.append(stats["bytes_fetched"])
    assert fetched[0] == fetched[1] == fetched[2], "later epochs come from memory"
    assert stats["max_memory_size"] == 500 * MIB
    assert stats["retries"] == stats["fallbacks"] == 0
    dataset.close()


def test_example_3_a_budget_smaller_than_the_dataset(optimized: Path) -> None:
    # The document's 50 MB are more than this dataset has: here the budget is smaller than the data as well.
    for budget in (50 * 1024 * 1024, 1024 * 1024):
        streaming_config = StreamingConfig(
            max_memory_size=budget,
            eviction_policy=EvictionPolicy.LRU,
            chunk_timeout=30.0,
            enable_memory_monitoring=True,
        )
        loader = InMemoryItemLoader(streaming_config=streaming_config)
        dataset = StreamingDataset(input_dir=optimized, item_loader=loader)
        seen = []
        for i in range(1000):
            datasets.check([dataset[i]], [i], SIZE)
            if i % 100 == 0:
                stats = loader.get_memory_stats()
                seen.append(f"Processed {i} samples, memory usage: {stats['memory_utilization']:.1%}")
                assert stats["total_memory_usage"] <= stats["high_water_mark"] <= budget
        assert len(seen) == 10
        dataset.close()
    assert sum(stats["evictions"].values()) > 0


# -- API reference --------------------------------------------------------------------------


def test_reference_the_loader_takes_one_optional_argument_and_has_the_documented_statistics(optimized: Path) -> None:
    from lazystore import BaseItemLoader

    assert issubclass(InMemoryItemLoader, BaseItemLoader)
    (parameter,) = inspect.signature(InMemoryItemLoader).parameters.values()
    assert (parameter.name, parameter.default) == ("streaming_config", None)

    loader = InMemoryItemLoader()
    with StreamingDataset(optimized, item_loader=loader) as dataset:
        dataset[0]
        stats = loader.get_memory_stats()
    assert stats.keys() >= KEYS
    assert 0 < stats["total_memory_usage"] <= stats["max_memory_size"] == 100 * MIB
    assert 0.0 <= stats["memory_utilization"] <= 1.0
    assert isinstance(stats["chunks"], dict)


def test_reference_the_config_is_a_dataclass_with_the_documented_fields() -> None:
    assert dataclasses.is_dataclass(StreamingConfig)
    found = {field.name: field.default for field in dataclasses.fields(StreamingConfig)}
    assert found == {
        "max_memory_size": 100 * 1024 * 1024,
        "eviction_policy": EvictionPolicy.LRU,
        "chunk_timeout": 30.0,
        "enable_memory_monitoring": True,
    }


def test_troubleshooting_both_imports_work() -> None:
    from lazystore.streaming import InMemoryItemLoader as Other

    assert Other is InMemoryItemLoader


def test_troubleshooting_a_fallback_is_logged_with_the_documented_words(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = datasets.one_leaf(tmp_path / "d", "bytes", [bytes(300_000)])
    loader = InMemoryItemLoader(StreamingConfig(max_memory_size=100_000))
    with StreamingDataset(folder, item_loader=loader) as dataset:
        assert list(dataset) == [bytes(300_000)]
        assert loader.get_memory_stats()["fallbacks"] == 1
    assert "Streaming failed" in caplog.text


# -- cloud providers ------------------------------------------------------------------------


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


CLOUDS: list[Any] = [
    pytest.param(
        "gs://my-bucket/optimized-dataset", {"token": "/path/to/service-account.json"}, "gcsfs", "gcs", id="gcs"
    ),
    pytest.param(
        "azure://mycontainer/optimized-dataset",
        {"account_name": "mystorageaccount", "account_key": "myaccountkey"},
        "adlfs",
        "azure",
        id="azure",
    ),
]


@pytest.mark.parametrize("input_dir, storage_options, package, extra", CLOUDS)
def test_cloud_options_reach_the_filesystem_under_its_own_names(
    input_dir: str, storage_options: dict[str, str], package: str, extra: str
) -> None:
    protocol = input_dir.partition(":")[0]
    assert fsspec_options(protocol, storage_options) == storage_options
    source = open_source(input_dir, storage_options, backend="fsspec")  # connects at the first read only
    assert (source.url, source.local) == (input_dir, False)
    source.close()


@pytest.mark.parametrize("input_dir, storage_options, package, extra", CLOUDS)
def test_cloud_filesystems_take_the_documented_options(
    input_dir: str, storage_options: dict[str, str], package: str, extra: str
) -> None:
    pytest.importorskip(package)
    import fsspec

    filesystem = fsspec.get_filesystem_class(input_dir.partition(":")[0].replace("azure", "az"))
    assert storage_options.keys() <= inspect.signature(filesystem.__init__).parameters.keys()


@pytest.mark.parametrize("input_dir, storage_options, package, extra", CLOUDS)
def test_cloud_datasets_without_their_package_name_the_extra(
    input_dir: str, storage_options: dict[str, str], package: str, extra: str
) -> None:
    if installed(package):
        pytest.skip(f"{package} is installed")
    streaming_config = StreamingConfig(max_memory_size=200 * 1024 * 1024)
    loader = InMemoryItemLoader(streaming_config=streaming_config)
    with pytest.raises(MissingExtraError, match=rf"pip install lazystore\[{extra}\]"):
        StreamingDataset(input_dir=input_dir, item_loader=loader, storage_options=storage_options, backend="fsspec")


# -- benchmarking ---------------------------------------------------------------------------


def benchmark_loader(dataset: StreamingDataset, num_samples: int = 100, num_epochs: int = 3) -> list[float]:
    """Seconds of a cold pass and of the warm ones; what they are is not judged here."""
    times = []
    for _ in range(1 + num_epochs):
        start_time = time.time()
        for i in range(num_samples):
            _ = dataset[i]
        times.append(time.time() - start_time)
    return times


def test_benchmark_later_passes_come_from_memory(optimized: Path) -> None:
    streaming_config = StreamingConfig(max_memory_size=200 * 1024 * 1024)
    loader = InMemoryItemLoader(streaming_config=streaming_config)
    dataset = StreamingDataset(str(optimized), item_loader=loader)

    cold = benchmark_loader(dataset, num_epochs=0)
    misses, requests = loader.get_memory_stats()["misses"], loader.get_memory_stats()["requests"]
    warm = benchmark_loader(dataset)
    assert len(cold) == 1 and len(warm) == 4
    assert misses > 0
    assert (loader.get_memory_stats()["misses"], loader.get_memory_stats()["requests"]) == (misses, requests)
    assert loader.get_memory_stats()["hits"] >= 400
    dataset.close()
