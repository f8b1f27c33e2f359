"""Views: windows on stored bytes that pin them, and what happens when they hold everything."""

from __future__ import annotations

import gc
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support import datasets

from lazystore import ArenaFullError, ClosedError, Lease, StreamingDataset

COUNT = 400
#: smaller than the dataset of ~140 kB, and the smallest that works
TINY = 65536


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return datasets.write(tmp_path_factory.mktemp("views") / "dataset", COUNT)


@pytest.fixture
def dataset(folder: Path) -> Iterator[StreamingDataset]:
    with StreamingDataset(folder, memory="1MB") as opened:
        yield opened


# -- views ----------------------------------------------------------------------------------


def test_view_is_a_read_only_window_that_ends_with_its_block(dataset: StreamingDataset) -> None:
    list(dataset)
    with dataset.view(8) as lease:
        window = memoryview(lease)
        assert (window.readonly, window.format, window.nbytes) == (True, "B", len(lease))
        assert bytes(lease) == bytes(window) == dataset.get_bytes(8)
        assert not lease.copied
        assert dataset.stats()["pins"] == 1
        window.release()
    with pytest.raises(ClosedError, match=r"view\(i\)"):
        memoryview(lease)
    with pytest.raises(ClosedError):
        bytes(lease)
    assert dataset.stats()["pins"] == 0


def test_numpy_over_a_view_keeps_the_bytes_pinned(folder: Path) -> None:
    with StreamingDataset(folder, memory=TINY) as dataset:
        dataset[:3]
        lease = dataset.view(1)
        array = np.frombuffer(lease, "u1")
        before = array.tobytes()
        assert not array.flags.writeable
        lease.release()
        for _ in range(2):  # far more than the budget goes through
            datasets.check(dataset, range(COUNT))
            datasets.check(dataset.get_many(range(COUNT)), range(COUNT))
        assert array.tobytes() == before == dataset.get_bytes(1)
        assert dataset.stats()["pins"] == (0 if lease.copied else 1)
        del array
        assert dataset.stats()["pins"] == 0


def test_a_view_outlives_its_dataset(folder: Path) -> None:
    dataset = StreamingDataset(folder, memory="1MB")
    list(dataset)
    wanted = dataset.get_bytes(2)
    lease = dataset.view(2)
    assert not lease.copied
    dataset.close()
    assert bytes(lease) == wanted
    del dataset
    gc.collect()
    window = memoryview(lease)
    del lease
    assert bytes(window) == wanted


def test_a_lease_refuses_to_be_pickled(dataset: StreamingDataset) -> None:
    with dataset.view(0) as lease, pytest.raises(TypeError, match="pickle"):
        pickle.dumps(lease)


# -- a full arena ---------------------------------------------------------------------------


def hold_everything(dataset: StreamingDataset) -> list[Lease]:
    """Leases until no frame is free: what is then handed out is a private copy."""
    leases = []
    for i in range(len(dataset)):
        dataset.prefetch_items([i])
        lease = dataset.view(i)
        if not lease.copied:
            leases.append(lease)
    assert leases
    return leases


def test_items_are_still_readable_when_views_hold_every_frame(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "lazystore"), StreamingDataset(folder, memory=TINY) as dataset:
        list(dataset)
        leases = hold_everything(dataset)
        fell = dataset.stats()["fallbacks"]
        datasets.check(dataset, range(COUNT))
        datasets.check((dataset[i] for i in range(COUNT)), range(COUNT))
        datasets.check(dataset.get_many(range(COUNT)), range(COUNT))
        assert dataset.stats()["fallbacks"] > fell
        assert dataset.stats()["total_memory_usage"] <= TINY
        told = [record for record in caplog.records if "Streaming failed" in record.getMessage()]
        assert len(told) == 1
        assert str(folder) in told[0].getMessage()
        del leases
        fell = dataset.stats()["fallbacks"]
        datasets.check(dataset, range(COUNT))
        assert dataset.stats()["fallbacks"] == fell


def test_without_fallback_a_full_arena_is_an_error_that_counts_the_holders(folder: Path) -> None:
    with StreamingDataset(folder, memory=TINY, fallback="raise", timeout=0.2) as dataset:
        leases, error = [], None
        for i in range(COUNT):
            try:
                leases.append(dataset.view(i))
                next(iter(dataset)) if i == 0 else None
            except ArenaFullError as full:
                error = full
                break
        if error is None:  # views were handed out as copies: only a scan needs frames
            leases = hold_everything(dataset)
            with pytest.raises(ArenaFullError) as raised:
                list(dataset)
            error = raised.value
        assert "held" in str(error) and "release views" in str(error)
        assert isinstance(error, MemoryError)
        assert dataset.stats()["fallbacks"] == 0
        leases.clear()
        datasets.check(dataset, range(COUNT))


def test_an_item_larger_than_memory_is_read_directly(tmp_path: Path) -> None:
    values = [b"a" * 100, bytes(range(256)) * 2000, b"z" * 100]
    folder = datasets.one_leaf(tmp_path / "d", "bytes", values)
    with StreamingDataset(folder, memory=TINY) as dataset:
        assert list(dataset) == values
        assert dataset.stats()["fallbacks"] == 1
        assert [dataset[i] for i in (2, 1, 0)] == values[::-1]
        assert dataset.get_many([1, 0, 1]) == [values[1], values[0], values[1]]
        with dataset.view(1) as lease:
            assert lease.copied
            assert bytes(lease) == datasets.item_bytes([values[1]])
        assert dataset.stats()["high_water_mark"] <= TINY


def test_an_item_larger_than_memory_is_an_error_when_fallback_is_refused(tmp_path: Path) -> None:
    folder = datasets.one_leaf(tmp_path / "d", "bytes", [b"a", bytes(500_000), b"b"])
    with StreamingDataset(folder, memory=TINY, fallback="raise", timeout=0.2) as dataset:
        with pytest.raises(ArenaFullError, match=r"chunk-0-0\.bin \(chunk 0\), item 1"):
            list(dataset)
        assert (dataset[0], dataset[2]) == (b"a", b"b")
