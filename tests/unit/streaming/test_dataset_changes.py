"""Files that change under the reader: an error or the old items, never wrong data."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support import datasets

from lazystore import DatasetNotFoundError, SourceChangedError, StreamingDataset


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """One chunk of ~3 MB, so that some of it is always unread."""
    return datasets.write(tmp_path / "big", 2000, size=1000, chunk_bytes="64MB")


def rewrite(path: Path, data: bytes) -> None:
    before = path.stat().st_mtime_ns
    path.write_bytes(data)
    os.utime(path, ns=(before + 10**9, before + 10**9))  # however coarse the clock


def replace(path: Path, data: bytes) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(data)
    os.replace(other, path)


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "same length": lambda data: data[:4] + bytes(len(data) - 4),
    "longer": lambda data: data + b"more",
    "shorter": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_chunk_rewritten_while_it_is_read_is_an_error_never_wrong_data(big: Path, change: str) -> None:
    path = big / "chunk-0-0.bin"
    with StreamingDataset(big, memory=200_000) as dataset:
        items = iter(dataset)
        datasets.check([next(items) for _ in range(300)], range(300), 1000)
        resident = [i for i in range(2000) if dataset.is_item_available(i)]
        rewrite(path, CHANGES[change](path.read_bytes()))
        datasets.check((dataset[i] for i in resident), resident, 1000)
        for way, read in datasets.reads(dataset, 1999).items():
            with pytest.raises(SourceChangedError, match=r"chunk-0-0\.bin.*changed.*open the dataset anew"):
                read()
            assert dataset.stats()["fallbacks"] == 0, way
        with pytest.raises(SourceChangedError):
            for k, item in enumerate(items):
                datasets.check([item], [300 + k], 1000)


def test_a_chunk_replaced_while_it_is_read_gives_the_old_items_or_an_error(big: Path) -> None:
    path = big / "chunk-0-0.bin"
    with StreamingDataset(big, memory=200_000) as dataset:
        datasets.check([dataset[0]], [0], 1000)
        replace(path, bytes(path.stat().st_size))
        for i in range(0, 2000, 13):
            try:
                datasets.check([dataset[i]], [i], 1000)
            except SourceChangedError:
                break


def test_a_chunk_deleted_while_it_is_read_gives_its_items_or_an_error(big: Path) -> None:
    with StreamingDataset(big, memory=200_000) as dataset:
        datasets.check([dataset[0]], [0], 1000)
        (big / "chunk-0-0.bin").unlink()
        for i in range(0, 2000, 13):
            try:
                datasets.check([dataset[i]], [i], 1000)
            except (DatasetNotFoundError, SourceChangedError):
                break


def test_a_new_dataset_object_reads_the_new_files(big: Path) -> None:
    path = big / "chunk-0-0.bin"
    data = path.read_bytes()
    with StreamingDataset(big, memory=200_000) as dataset:
        dataset[0]
        rewrite(path, b"")
        with pytest.raises(SourceChangedError):
            dataset[1999]
        rewrite(path, data)
    with StreamingDataset(big, memory=200_000) as dataset:
        datasets.check(dataset, range(2000), 1000)


def test_an_index_is_read_once(big: Path) -> None:
    with StreamingDataset(big) as dataset:
        (big / "index.json").write_text(json.dumps({"chunks": [], "config": None}))
        datasets.check(dataset, range(2000), 1000)
