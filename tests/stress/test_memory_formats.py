"""Peak memory while datasets much larger than the budget are read, in each format and form.

What a process had when everything was imported and the dataset open, plus the budget, plus 16 MiB.
"""

from __future__ import annotations

import json
import os
import random
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support import litdata_chunks, mosaic, scripts, texts

from lazystore import DatasetWriter, FernetEncryption
from lazystore.testing import ObjectStore

pytestmark = [
    pytest.mark.stress,
    pytest.mark.skipif(sys.platform != "linux", reason="needs /proc"),
    pytest.mark.skipif("LAZYSTORE_SANITIZED" in os.environ, reason="sanitizers need memory of their own"),
]

MIB = 1 << 20
SLACK = 16 * MIB
#: Items of each dataset: 20 to 60 kB, half of which does not compress. And of a small one, read before it is measured.
COUNT, FEW = 1200, 60
CHUNK = 150
NOISE = random.Random(1).randbytes(1 << 24)


def blob(i: int) -> bytes:
    half = 10_000 + i * 7919 % 20_000
    at = i * 104_729 % (len(NOISE) - half)
    return NOISE[at : at + half] + bytes(half)


Make = Callable[[Path, int], None]
FORMS: dict[str, tuple[str, str, Make]] = {}


def form(name: str, opened: str = "", budget: str = "8MB") -> Callable[[Make], Make]:
    def note(make: Make) -> Make:
        FORMS[name] = opened, budget, make
        return make

    return note


def groups(count: int, size: int = CHUNK) -> Iterator[range]:
    for begin in range(0, count, size):
        yield range(begin, min(begin + size, count))


# -- LitData --------------------------------------------------------------------------------


def written(folder: Path, count: int, **settings: Any) -> None:
    with DatasetWriter(folder, **{"chunk_bytes": "6MB", **settings}) as writer:
        for i in range(count):
            writer.write({"id": i, "blob": blob(i)})


def key(level: str) -> FernetEncryption:
    return FernetEncryption("secret", level=level, salt=bytes(16))


form("litdata")(lambda folder, count: written(folder, count))
form("litdata, zstd")(lambda folder, count: written(folder, count, compression="zstd"))
form("litdata, framed zstd")(
    lambda folder, count: written(
        folder, count, compression="zstd", compression_level="batch", compression_batch_size=8
    )
)
form("litdata, zstd samples")(
    lambda folder, count: written(folder, count, compression="zstd", compression_level="sample")
)
form("litdata, fernet samples")(lambda folder, count: written(folder, count, encryption=key("sample")))
form("litdata, fernet chunks", budget="24MB")(
    lambda folder, count: written(folder, count, encryption=key("chunk"), chunk_bytes="1MB")
)
form("litdata, fernet chunks zstd", budget="24MB")(
    lambda folder, count: written(folder, count, encryption=key("chunk"), chunk_bytes="1MB", compression="zstd")
)


def rows(folder: Path, count: int, **options: Any) -> None:
    chunks = [
        (len(g), litdata_chunks.arrow_rows([{"id": i, "blob": blob(i)} for i in g], batch=16, **options))
        for g in groups(count, 40)
    ]
    litdata_chunks.write_dataset(
        folder, chunks, data_format=["int", "bytes"], data_spec=litdata_chunks.spec(["id", "blob"])
    )


form("litdata, rows")(rows)
form("litdata, rows zstd", budget="16MB")(lambda folder, count: rows(folder, count, ipc="zstd"))


# -- MosaicML -------------------------------------------------------------------------------


def mds(folder: Path, count: int, compression: str | None = None) -> None:
    shards = []
    for k, group in enumerate(groups(count)):
        items = [struct.pack("<Iq", len(blob(i)), i) + blob(i) for i in group]
        shard = mosaic.put(folder, k, "mds", {"data": mosaic.mds_shard(items)}, compression, ["sha1"])
        columns = {"column_names": ["id", "blob"], "column_encodings": ["int", "bytes"], "column_sizes": [8, None]}
        shards.append(shard | columns | {"samples": len(items)})
    mosaic.write_index(folder, shards)


form("mds")(mds)
form("mds, gz")(lambda folder, count: mds(folder, count, "gz"))
form("mds, zstd")(lambda folder, count: mds(folder, count, "zstd"))


# -- text -----------------------------------------------------------------------------------


def lines(folder: Path, count: int, name: str) -> None:
    folder.mkdir()
    data = "".join(json.dumps({"id": i, "blob": blob(i).hex()}) + "\n" for i in range(max(FEW, count // 2)))
    texts.write(folder, {name: data.encode()})


for _name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst"):
    form(_name, _name)(lambda folder, count, name=_name: lines(folder, count, name))


# -- Arrow ----------------------------------------------------------------------------------


def table(count: int) -> Any:
    import pyarrow as pa

    return pa.table({"id": range(count), "blob": pa.array([blob(i) for i in range(count)], pa.binary())})


def ipc(folder: Path, count: int, compression: str | None = None) -> None:
    import pyarrow as pa

    folder.mkdir()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    rows = table(count)
    with pa.ipc.new_file(str(folder / "a.arrow"), rows.schema, options=options) as writer:
        writer.write_table(rows, max_chunksize=40)


form("ipc", "a.arrow")(ipc)
form("ipc, zstd", "a.arrow")(lambda folder, count: ipc(folder, count, "zstd"))
form("ipc, lz4", "a.arrow")(lambda folder, count: ipc(folder, count, "lz4"))


def parquet(folder: Path, count: int, **settings: Any) -> None:
    from pyarrow import parquet

    folder.mkdir()
    settings = {
        "row_group_size": count,
        "use_dictionary": False,
        "data_page_size": 1 << 18,
        "write_batch_size": 8,
        **settings,
    }
    parquet.write_table(table(count), folder / "a.parquet", **settings)


form("parquet, one row group", "a.parquet", "16MB")(parquet)
form("parquet, one row group, zstd", "a.parquet", "16MB")(
    lambda folder, count: parquet(folder, count, compression="zstd")
)
form("parquet, row groups", "a.parquet")(lambda folder, count: parquet(folder, count, row_group_size=40))


# -- reading --------------------------------------------------------------------------------

READ = (
    scripts.MEASURE
    + """
import ctypes, gc, random, sys
from lazystore import FernetEncryption, StreamingDataset

small, large, budget, encrypted = sys.argv[1:]
options = {"encryption": FernetEncryption("secret", level=encrypted, salt=bytes(16))} if encrypted else {}
chance = random.Random(1)
noise = random.Random(1).randbytes(1 << 24)

def check(i, item):
    half = 10_000 + i * 7919 % 20_000
    at = i * 104_729 % (len(noise) - half)
    blob = item["blob"]
    blob = bytes.fromhex(blob) if isinstance(blob, str) else blob
    assert item["id"] == i and len(blob) == 2 * half and blob[:half] == noise[at : at + half], i

def read(dataset):
    for i, item in enumerate(dataset):
        check(i, item)
    total = len(dataset)
    assert i + 1 == total
    for i in chance.choices(range(total), k=12):
        check(i, dataset[i])
    for _ in range(2):
        first = chance.randrange(total - 24)
        for i, item in enumerate(dataset.get_many(range(first, first + 24)), first):
            check(i, item)
    two = [iter(dataset), dataset.batches(8, "list")]
    for i in range(min(40, total // 8)):
        check(i, next(two[0]))
        for k, item in enumerate(next(two[1]), 8 * i):
            check(k, item)

with StreamingDataset(small, memory=budget, **options) as dataset:
    read(dataset)
del dataset
dataset = StreamingDataset(large, memory=budget, **options)
gc.collect()
getattr(ctypes.CDLL(None), "malloc_trim", int)(0)  # what was freed does not hide what comes now
before = restart_peak()
read(dataset)
found = dataset.stats()
assert found["high_water_mark"] <= found["max_memory_size"], found
print(memory("VmHWM") - before, found["max_memory_size"])
"""
)


def grown(
    small: Path | str, large: Path | str, name: str, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> tuple[int, int]:
    monkeypatch.setenv("LAZYSTORE_CACHE_DIR", str(cache))
    if "parquet" not in name:
        monkeypatch.setenv("ARROW_DEFAULT_MEMORY_POOL", "system")  # gives back what it had
    level = "sample" if "samples" in name and "fernet" in name else "chunk" if "fernet" in name else ""
    peak, bound = map(int, scripts.run(READ, small, large, FORMS[name][1], level, timeout=150).split())
    return peak, bound


def made(name: str, folder: Path) -> None:
    for package, parts in NEEDS.items():
        if any(part in name for part in parts):
            pytest.importorskip(package)
    if name == "mds, zstd":
        import zstandard

        mosaic.PACK.setdefault("zstd", zstandard.ZstdCompressor(level=1).compress)
    FORMS[name][2](folder / "small", FEW)
    FORMS[name][2](folder / "large", COUNT)


NEEDS: dict[str, Sequence[str]] = {
    "zstandard": ("zst",), "cryptography": ("fernet",), "pyarrow": ("rows", "ipc", "parquet"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_peak_memory_stays_within_the_budget(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(name, tmp_path)
    opened = FORMS[name][0]
    peak, bound = grown(tmp_path / "small" / opened, tmp_path / "large" / opened, name, monkeypatch, tmp_path / "cache")
    stored = sum(path.stat().st_size for path in (tmp_path / "large").rglob("*"))
    assert stored > 1.4 * bound
    assert peak <= bound + SLACK, f"{peak / MIB:.1f} MiB for a budget of {bound / MIB:.1f} MiB"


@pytest.mark.parametrize("name", ["litdata, framed zstd", "mds, zstd", "a.jsonl.gz", "parquet, row groups"])
def test_peak_memory_over_a_network_stays_within_the_budget(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("aiohttp")
    made(name, tmp_path)
    opened = FORMS[name][0]
    with ObjectStore(tmp_path, latency_ms=1) as store:
        small, large = store.http_url("small", opened), store.http_url("large", opened)
        peak, bound = grown(small, large, name, monkeypatch, tmp_path / "cache")
    assert peak <= bound + SLACK, f"{peak / MIB:.1f} MiB for a budget of {bound / MIB:.1f} MiB"
