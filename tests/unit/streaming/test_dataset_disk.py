"""A remote dataset with a disk tier: later epochs, and later runs, fetch nothing that was fetched before."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from lazystore import StreamingDataset
from lazystore.cache.disk import DiskTier
from lazystore.errors import ConfigError
from lazystore.testing import ObjectStore

pytest.importorskip("aiohttp")

ITEMS = 30_000


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    root = tmp_path_factory.mktemp("served")
    (root / "data").mkdir()
    with (root / "data" / "x.jsonl").open("w") as file:
        file.writelines(json.dumps({"n": number, "t": "x" * 100}) + "\n" for number in range(ITEMS))
    with ObjectStore(root) as running:
        yield running


@pytest.fixture(autouse=True)
def _indexes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAZYSTORE_CACHE_DIR", str(tmp_path / "indexes"))


@pytest.mark.parametrize("shuffle", [False, True])
def test_epochs_of_a_dataset_larger_than_memory_fetch_it_once(
    store: ObjectStore, tmp_path: Path, shuffle: bool
) -> None:
    disk = DiskTier(tmp_path / "tier", max_bytes="32MB", codec="none")
    dataset = StreamingDataset(store.http_url("data", "x.jsonl"), memory="2MB", disk=disk, shuffle=shuffle)
    assert sum(item["n"] for item in dataset) == sum(range(ITEMS))
    first = [item["n"] for item in dataset]
    store.reset()
    again = [item["n"] for item in dataset]
    assert sorted(first) == sorted(again) == list(range(ITEMS))
    assert (again == first) is not shuffle
    assert store.stats()["bytes_sent"] <= 200_000 if shuffle else store.stats()["gets"] == 0
    store.reset()
    with pickle.loads(pickle.dumps(dataset)) as copy:  # as another process would have it
        assert sorted(item["n"] for item in copy) == list(range(ITEMS))
    assert store.stats()["bytes_sent"] <= 200_000
    assert disk.nbytes <= 32_000_000
    dataset.close()
    disk.close()


def test_a_folder_will_do(store: ObjectStore, tmp_path: Path) -> None:
    with StreamingDataset(store.http_url("data", "x.jsonl"), memory="4MB", disk=tmp_path / "tier") as dataset:
        assert dataset[5]["n"] == 5
    assert list((tmp_path / "tier").iterdir())


@pytest.mark.parametrize("disk", [5, {"path": "x"}, True])
def test_what_is_no_disk_tier_is_refused(store: ObjectStore, disk: object) -> None:
    with pytest.raises(ConfigError, match="neither a DiskTier"):
        StreamingDataset(store.http_url("data", "x.jsonl"), disk=disk)  # type: ignore[arg-type]


def test_a_local_dataset_needs_none(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"n": 1}\n')
    with pytest.raises(ConfigError, match="leave disk out"):
        StreamingDataset(tmp_path / "x.jsonl", disk=tmp_path / "tier")
