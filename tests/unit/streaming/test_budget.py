"""The budget's lower end: the error names a minimum that works, and more is never worse."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import datasets

from lazystore import BudgetTooSmallError, DatasetWriter, InMemoryItemLoader, StreamingConfig, StreamingDataset

COUNT = 150


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One dataset plain and one compressed."""
    pytest.importorskip("zstandard")
    place = tmp_path_factory.mktemp("budget")
    datasets.write(place / "plain", COUNT)
    datasets.write(place / "zstd", COUNT, compression="zstd")
    return {"plain": str(place / "plain"), "zstd": str(place / "zstd")}


@pytest.fixture(scope="module")
def remote(local: dict[str, str]) -> Iterator[dict[str, str]]:
    """The same two behind fsspec."""
    import fsspec

    memory = fsspec.filesystem("memory")
    for name, folder in local.items():
        for path in Path(folder).iterdir():
            memory.pipe(f"/budget/{name}/{path.name}", path.read_bytes())
    yield {name: f"memory://budget/{name}" for name in local}
    memory.rm("/budget", recursive=True)


@pytest.fixture(params=["local plain", "local zstd", "remote plain", "remote zstd"])
def url(request: pytest.FixtureRequest, local: dict[str, str], remote: dict[str, str]) -> str:
    where, kind = request.param.split()
    return (local if where == "local" else remote)[kind]


def named(url: str, memory: int) -> int:
    with pytest.raises(BudgetTooSmallError) as raised:
        StreamingDataset(url, memory=memory)
    found = re.search(r"at least (\d+) bytes", str(raised.value))
    assert found, str(raised.value)
    assert url.removeprefix("memory:/") in str(raised.value)
    return int(found.group(1))


def test_the_smallest_budget_is_named_and_works(url: str) -> None:
    smallest = named(url, 1)
    assert named(url, smallest - 1) == smallest
    with StreamingDataset(url, memory=smallest) as dataset:
        datasets.check(dataset, range(COUNT))
        datasets.check((dataset[i] for i in range(COUNT - 1, -1, -1)), range(COUNT - 1, -1, -1))
        datasets.check(dataset.get_many(range(0, COUNT, 3)), range(0, COUNT, 3))
        assert dataset.stats()["high_water_mark"] <= smallest


def test_a_larger_budget_is_never_too_small(url: str) -> None:
    smallest = named(url, 1)
    for step in range(0, 2_000_000, 37_501):
        with StreamingDataset(url, memory=smallest + step) as dataset:
            if step % 5 == 0:
                datasets.check(dataset, range(COUNT))
            assert dataset.stats()["high_water_mark"] <= smallest + step


def test_a_loader_with_too_small_a_budget_is_refused_alike(local: dict[str, str]) -> None:
    smallest = named(local["plain"], 1)
    loader = InMemoryItemLoader(StreamingConfig(max_memory_size=smallest - 1))
    with pytest.raises(BudgetTooSmallError, match=f"at least {smallest} bytes"):
        StreamingDataset(local["plain"], item_loader=loader)


# -- compressed chunks in small budgets -----------------------------------------------------


def compressed(folder: Path, chunk_bytes: int, **options: Any) -> tuple[Path, int]:
    """Half-compressible items of 2 kB."""
    noise = np.random.default_rng(1).bytes(1 << 20)
    count = 3 * chunk_bytes // 2 // 2000
    with DatasetWriter(folder, chunk_bytes=chunk_bytes, compression="zstd", **options) as writer:
        for i in range(count):
            at = i * 997 % (len(noise) - 1000)
            writer.write({"id": i, "blob": noise[at : at + 1000] + bytes(960)})
    return folder, count


@pytest.mark.parametrize("chunk_bytes", [1_000_000, 2_100_000, 6_000_000])
def test_what_the_writer_compresses_is_read_in_eight_megabytes(tmp_path: Path, chunk_bytes: int) -> None:
    pytest.importorskip("zstandard")
    folder, count = compressed(tmp_path / "d", chunk_bytes)
    with StreamingDataset(folder, memory="8MB") as dataset:
        assert [item["id"] for item in dataset] == list(range(count))
        assert [dataset[i]["id"] for i in (count - 1, 5, count // 2, 0)] == [count - 1, 5, count // 2, 0]
        assert [item["id"] for item in dataset.get_many(range(count - 1, 0, -501))] == list(range(count - 1, 0, -501))
        assert dataset.stats()["high_water_mark"] <= 8_000_000


def test_a_window_larger_than_the_budget_is_told_with_the_budget_it_needs(tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    folder, count = compressed(tmp_path / "d", 6_000_000)
    with StreamingDataset(folder, memory=500_000) as dataset:
        for read in (lambda: dataset[0], lambda: next(iter(dataset)), lambda: dataset.get_many([0])):
            with pytest.raises(BudgetTooSmallError, match=r"chunk-0-0\.zstd\.bin") as raised:
                read()
            assert str(raised.value).count("chunk-0-0") == 1
    found = re.search(r"(\d{6,}) bytes", str(raised.value))
    assert found, str(raised.value)
    enough = max(map(int, re.findall(r"\d{6,}", str(raised.value).rpartition("chunk-0-0")[2])))
    with StreamingDataset(folder, memory=enough) as dataset:
        assert dataset[0]["id"] == 0
        assert sum(1 for _ in dataset) == count


def test_backward_reading_of_compressed_chunks_is_slow_but_right(tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    folder = datasets.write(tmp_path / "d", 600, chunk_size=300, compression="zstd")
    with StreamingDataset(folder, memory=350_000) as dataset:
        order = list(range(599, -1, -7))
        datasets.check((dataset[i] for i in order), order)
        datasets.check(dataset.get_many(order), order)
        datasets.check(dataset, range(600))
