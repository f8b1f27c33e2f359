"""What a dataset's form costs and asks for, seen from outside: frames inflated, keys, passwords, checksums, columns."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import datasets

from lazystore import (
    ChecksumError,
    ConfigError,
    DatasetWriter,
    DecryptionError,
    FernetEncryption,
    KeyNotFoundError,
    MissingExtraError,
    RSAEncryption,
    StreamingDataset,
)
from lazystore.testing import ObjectStore

COUNT = 2000


def write(folder: Path, **options: object) -> Path:
    with DatasetWriter(folder, **options) as writer:  # type: ignore[arg-type]
        for i in range(COUNT):
            writer.write(datasets.sample(i))
    return folder


# -- one frame, not the chunk ---------------------------------------------------------------


def test_an_item_of_a_framed_chunk_inflates_its_frame_alone_and_keeps_it(tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    folder = write(tmp_path / "d", compression="zstd", compression_level="batch", chunk_size=COUNT)
    with StreamingDataset(folder, memory="8MB") as dataset:
        datasets.check([dataset[700]], [700])
        once = dataset.stats()["bytes_decompressed"]
        whole = sum(len(dataset.get_bytes(i)) for i in range(512, 768))
        assert 0 < once <= 2 * whole < sum(dataset.opened.hints) // 2
        datasets.check((dataset[i] for i in range(512, 768)), range(512, 768))
        assert dataset.stats()["bytes_decompressed"] == once
        datasets.check([dataset[5]], [5])
        assert once < dataset.stats()["bytes_decompressed"] <= 3 * whole


def test_a_frame_far_away_is_fetched_alone(tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    pytest.importorskip("aiohttp")
    write(tmp_path / "b" / "d", compression="zstd", compression_level="batch", chunk_size=COUNT)
    stored = next((tmp_path / "b" / "d").glob("*.bin")).stat().st_size
    with (
        ObjectStore(tmp_path, latency_ms=0) as store,
        StreamingDataset(store.http_url("b", "d"), memory="8MB") as dataset,
    ):
        datasets.check([dataset[700]], [700])
        assert dataset.stats()["bytes_fetched"] < stored // 3


# -- encryption -----------------------------------------------------------------------------


def test_small_samples_encrypted_by_rsa_come_back_with_the_key_and_not_without(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    mine, other = RSAEncryption("secret"), RSAEncryption("secret")
    with DatasetWriter(tmp_path / "d", encryption=mine) as writer:
        for i in range(20):
            writer.write({"id": i, "word": "w" * (i % 9)})
    mine.save(tmp_path / "key.json")
    wanted = [{"id": i, "word": "w" * (i % 9)} for i in range(20)]
    with StreamingDataset(tmp_path / "d", encryption=RSAEncryption.load(tmp_path / "key.json", "secret")) as dataset:
        assert list(dataset) == wanted and dataset[7] == wanted[7]
    with StreamingDataset(tmp_path / "d", encryption=other) as dataset:
        with pytest.raises(DecryptionError, match=r"chunk-0-0\.bin"):
            dataset[0]


@pytest.mark.parametrize("level", ["sample", "chunk"])
def test_a_password_opens_what_it_closed(tmp_path: Path, level: str) -> None:
    pytest.importorskip("cryptography")
    encryption = FernetEncryption("right", level=level)
    folder = write(tmp_path / "d", encryption=encryption, chunk_bytes="200kB")
    encryption.save(tmp_path / "key.json")
    with StreamingDataset(
        folder, memory="16MB", encryption=FernetEncryption.load(tmp_path / "key.json", "right")
    ) as ds:
        datasets.check(ds, range(COUNT))
        datasets.check(ds.get_many([1999, 0, 77]), [1999, 0, 77])
        datasets.check([item for batch in ds.batches(100, "list") for item in batch], range(COUNT))
    with StreamingDataset(
        folder, memory="16MB", encryption=FernetEncryption.load(tmp_path / "key.json", "wrong")
    ) as ds:
        with pytest.raises(DecryptionError, match=r"chunk-0-0\.bin"):
            ds[0]
    with pytest.raises(ConfigError, match="encryption="):
        StreamingDataset(folder)


# -- checksums and keys ---------------------------------------------------------------------


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_flipped_bit_is_told_with_verify_and_only_its_chunk_is_lost(tmp_path: Path, compression: str | None) -> None:
    folder = write(tmp_path / "d", chunk_bytes="200kB", compression=compression)
    victim = sorted(folder.glob("chunk-0-1*.bin"))[0]
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    with StreamingDataset(folder, memory="16MB", verify=True) as dataset:
        first = dataset.opened.counts[0]
        datasets.check((dataset[i] for i in range(first)), range(first))
        with pytest.raises(ChecksumError, match=r"chunk-0-1.*blake2b"):
            dataset[first + 3]
        last = first + dataset.opened.counts[1]
        datasets.check((dataset[i] for i in range(last, COUNT)), range(last, COUNT))


def test_a_dataset_without_checksums_cannot_be_verified(tmp_path: Path) -> None:
    folder = write(tmp_path / "d", checksums=False)
    with pytest.raises(ConfigError, match="verify"):
        StreamingDataset(folder, verify=True)


def test_items_by_key(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    folder = write(tmp_path / "d", key_fn=lambda sample: f"user-{sample['id']}", chunk_bytes="200kB")
    with StreamingDataset(folder, memory="16MB") as dataset:
        datasets.check([dataset.get_by_key("user-1234"), dataset.get_by_key("user-0")], [1234, 0])
        with pytest.raises(KeyNotFoundError, match="nobody"):
            dataset.get_by_key("nobody")
    with StreamingDataset(write(tmp_path / "plain"), memory="16MB") as dataset:
        with pytest.raises((KeyNotFoundError, ConfigError, FileNotFoundError), match="key"):
            dataset.get_by_key("user-1")


# -- columns --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_columns_that_are_not_asked_for_are_not_fetched(tmp_path: Path, kind: str) -> None:
    pa = pytest.importorskip("pyarrow")
    pytest.importorskip("aiohttp")
    import pyarrow.feather
    import pyarrow.parquet

    table = pa.table({"id": range(20_000), "blob": [bytes([i % 251]) * 100 + str(i).encode() for i in range(20_000)]})
    (tmp_path / "b").mkdir()
    file = tmp_path / "b" / f"t.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(table, file, row_group_size=2000, compression="none", use_dictionary=False)
    else:
        pyarrow.feather.write_feather(table, str(file), compression="uncompressed", chunksize=2000)
    with ObjectStore(tmp_path, latency_ms=0) as store:
        with StreamingDataset(store.http_url("b", file.name), memory="16MB", columns=["id"]) as dataset:
            assert list(dataset) == [{"id": i} for i in range(20_000)]
            assert dataset[19_999] == {"id": 19_999}
            assert dataset.stats()["bytes_fetched"] < file.stat().st_size // 3
        with StreamingDataset(store.http_url("b", file.name), memory="16MB") as dataset:
            assert list(dataset) == table.to_pylist()


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    (tmp_path / "t.parquet").write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install lazystore\[arrow\]"):
        StreamingDataset(tmp_path / "t.parquet")[0]
