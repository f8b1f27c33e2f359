"""``lazystore::`` under the libraries that read through fsspec: pandas, pyarrow, zarr, h5py."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from typing import Any

import fsspec
import pytest

pytest.importorskip("fsspec.implementations.chained")
pa = pytest.importorskip("pyarrow")

from lazystore.adapters.filesystem import LazyStoreFileSystem  # noqa: E402

OPTIONS = {"lazystore": {"memory": "8MB", "page": "32KiB"}}
ROWS = 20_000


@pytest.fixture
def memory() -> Iterator[Any]:
    fsspec.register_implementation("lazystore", LazyStoreFileSystem, clobber=True)
    LazyStoreFileSystem.clear_instance_cache()
    fs = fsspec.filesystem("memory")
    yield fs
    LazyStoreFileSystem.clear_instance_cache()
    if fs.exists("/users"):
        fs.rm("/users", recursive=True)


def table() -> Any:
    return pa.table(
        {"n": list(range(ROWS)), "half": [n / 2 for n in range(ROWS)], "s": [f"row {n}" for n in range(ROWS)]}
    )


def test_pyarrow_reads_files_and_datasets(memory: Any) -> None:
    parquet, dataset = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow.dataset")
    for year in (2020, 2021):
        stored = io.BytesIO()
        parquet.write_table(table(), stored, row_group_size=5000)
        memory.pipe_file(f"/users/set/year={year}/part.parquet", stored.getvalue())
    fs, path = fsspec.url_to_fs("lazystore::memory://users/set", **OPTIONS)
    assert parquet.read_table(f"{path}/year=2020/part.parquet", filesystem=fs, columns=["s"]).num_rows == ROWS
    whole = dataset.dataset(path, filesystem=fs, partitioning="hive")
    found = whole.to_table(columns=["n", "year"], filter=dataset.field("year") == 2021)
    assert found.column("n").to_pylist() == list(range(ROWS))


def test_pandas_reads_csv_and_parquet(memory: Any) -> None:
    pandas = pytest.importorskip("pandas")
    frame = table().to_pandas()
    memory.pipe_file("/users/a.csv", frame.to_csv(index=False).encode())
    stored = io.BytesIO()
    frame.to_parquet(stored)
    memory.pipe_file("/users/a.parquet", stored.getvalue())
    pandas.testing.assert_frame_equal(
        pandas.read_csv("lazystore::memory://users/a.csv", storage_options=OPTIONS), frame
    )
    found = pandas.read_parquet("lazystore::memory://users/a.parquet", storage_options=OPTIONS, columns=["half"])
    pandas.testing.assert_frame_equal(found, frame[["half"]])


def test_zarr_reads_arrays(memory: Any) -> None:
    pytest.importorskip("zarr", minversion="3")
    import numpy as np
    import zarr
    from zarr.storage import FsspecStore, MemoryStore

    async def copied() -> None:
        kept = MemoryStore()
        array = await zarr.api.asynchronous.create_array(kept, shape=(60, 60), chunks=(20, 20), dtype="i4")
        await array.setitem(slice(None), np.arange(3600).reshape(60, 60))
        for key in [key async for key in kept.list()]:
            value = await kept.get(key, zarr.core.buffer.default_buffer_prototype())
            assert value is not None
            memory.pipe_file(f"/users/z/{key}", value.to_bytes())

    asyncio.run(copied())
    store = FsspecStore.from_url("lazystore::memory://users/z", storage_options=OPTIONS, read_only=True)
    assert (zarr.open_array(store, mode="r")[:] == np.arange(3600).reshape(60, 60)).all()


def test_h5py_reads_datasets(memory: Any) -> None:
    h5py = pytest.importorskip("h5py")
    stored = io.BytesIO()
    with h5py.File(stored, "w") as file:
        file["x"] = list(range(1000))
    memory.pipe_file("/users/a.h5", stored.getvalue())
    with fsspec.open("lazystore::memory://users/a.h5", "rb", **OPTIONS) as opened, h5py.File(opened) as file:
        assert list(file["x"][10:13]) == [10, 11, 12]
