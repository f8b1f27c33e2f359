"""How items are stored: compression, encryption, tokens, keys, checksums; byte for byte where LitData's are known."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import classic

from lazystore.errors import ConfigError, FormatError
from lazystore.formats.writer import DatasetWriter

FRAMED = b"LDFZ01\0\0"


def write(folder: Path, samples: Any, **options: Any) -> dict[str, Any]:
    with DatasetWriter(folder, **options) as writer:
        for sample in samples:
            writer.write(sample)
    return classic.read_index(folder)


def inflate(data: bytes) -> bytes:
    import zstandard

    assert zstandard.get_frame_parameters(data).content_size == len(zstandard.ZstdDecompressor().decompress(data))
    return bytes(zstandard.ZstdDecompressor().decompress(data))


def unframed(data: bytes, rows: int) -> bytes:
    """A framed chunk as the classic one, everything the directory says checked on the way."""
    magic, version, flags, count, step, frames = struct.unpack_from("<8sHHIII", data)
    assert (magic, version, flags, step) == (FRAMED, 1, 0, rows)
    assert frames == math.ceil(count / step)
    offsets = struct.unpack_from(f"<{count + 1}I", data, 24)
    assert offsets[0] == 0
    at = 24 + 4 * (count + 1) + 24 * frames
    body = b""
    for i in range(frames):
        first, items, begin, length, raw = struct.unpack_from("<IIQII", data, 24 + 4 * (count + 1) + 24 * i)
        assert (first, items, begin) == (i * step, min(step, count - i * step), at)
        frame = inflate(data[begin : begin + length])
        assert len(frame) == raw == offsets[first + items] - offsets[first]
        body += frame
        at += length
    assert at == len(data)
    table = struct.pack(f"<{count + 2}I", count, *(offset + 4 * (count + 2) for offset in offsets))
    return table + body


def unsampled(data: bytes) -> bytes:
    """A chunk of compressed items as the classic one."""
    (count,) = struct.unpack_from("<I", data)
    offsets = struct.unpack_from(f"<{count + 1}I", data, 4)
    assert offsets[-1] == len(data)
    items = [inflate(data[a:b]) for a, b in pairwise(offsets)]
    ends = [8 + 4 * count]
    for item in items:
        ends.append(ends[-1] + len(item))
    return struct.pack(f"<{count + 2}I", count, *ends) + b"".join(items)


# --- compression inside the chunk -------------------------------------------------------------------


@pytest.mark.parametrize(("name", "level"), [("litdata-framed-zstd", "batch"), ("litdata-sample-zstd", "sample")])
def test_rewriting_litdatas_own_gives_the_same_directory_and_items(name: str, level: str, tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    golden = classic.GOLDEN / name
    theirs = classic.read_index(golden / "data")
    config = theirs["config"]
    rows = config["compression_batch_size"] or 256

    def plain(folder: Path, chunk: dict[str, Any]) -> bytes:
        data = (folder / chunk["filename"]).read_bytes()
        assert len(data) == chunk["chunk_bytes"]
        return unframed(data, rows) if level == "batch" else unsampled(data)

    samples = []
    for chunk in theirs["chunks"]:
        for leaves in classic.split_chunk(plain(golden / "data", chunk), len(config["data_format"])):
            values = map(classic.leaf_value, config["data_format"], leaves)
            samples.append(classic.tree_value(json.loads(config["data_spec"])[1], values))
    ours = write(
        tmp_path,
        samples,
        chunk_bytes=config["chunk_bytes"],
        chunk_size=config["chunk_size"],
        compression=config["compression"],
        compression_level=level,
        compression_batch_size=rows,
    )
    assert {k: v for k, v in ours["config"].items() if config[k] != v} == {}
    for mine, chunk in zip(ours["chunks"], theirs["chunks"], strict=True):
        assert (mine["filename"], mine["chunk_size"]) == (chunk["filename"], chunk["chunk_size"])
        assert plain(tmp_path, mine) == plain(golden / "data", chunk)


@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=30),
    step=st.integers(1, 40),
    level=st.sampled_from(["batch", "sample"]),
)
def test_compressed_inside_chunks_hold_what_plain_ones_hold(
    sizes: list[int], step: int, level: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pytest.importorskip("zstandard")
    folder = tmp_path_factory.mktemp("inside")
    samples = [bytes([i % 7]) * size for i, size in enumerate(sizes)]
    plain = write(folder / "plain", samples, chunk_bytes=100)
    packed = write(
        folder / "packed",
        samples,
        chunk_bytes=100,
        compression="zstd:1",
        compression_level=level,
        compression_batch_size=step,
    )
    for one, other in zip(plain["chunks"], packed["chunks"], strict=True):
        data = (folder / "packed" / other["filename"]).read_bytes()
        assert len(data) == other["chunk_bytes"]
        assert one["filename"] == other["filename"]
        wanted = (folder / "plain" / one["filename"]).read_bytes()
        assert (unframed(data, step) if level == "batch" else unsampled(data)) == wanted


def test_items_without_bytes_cannot_be_framed_and_say_so(tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    with DatasetWriter(tmp_path, compression="zstd", compression_level="batch") as writer:
        with pytest.raises(FormatError, match="sample 0: it has no bytes"):
            writer.write({})
        writer.write({"a": 1})
    write(tmp_path / "sample", [{}, {}], compression="zstd", compression_level="sample")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compression_level": "batch"}, "without compression"),
        ({"compression": "zstd", "compression_level": "file"}, "chunk, batch, sample"),
        ({"compression": "zstd", "compression_level": "batch", "compression_batch_size": 0}, "at least one"),
        ({"compression": "zstd", "compression_level": "batch", "tokens": True}, "whole chunks of tokens"),
        ({"item_loader": 3}, "TokensLoader"),
        ({"encryption": "secret"}, "lacks"),
        ({"storage_options": {"key": "x"}}, "local path"),
    ],
)
def test_arguments_that_exclude_each_other_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        DatasetWriter(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


# --- encryption -------------------------------------------------------------------------------------


class Rot:
    """An encryption that can be undone by eye, and refuses what is longer than a limit."""

    algorithm = "rot"

    def __init__(self, level: str, shift: int = 1, limit: int = 1 << 40) -> None:
        self.level, self.shift, self.limit = level, shift, limit

    def encrypt(self, data: bytes) -> bytes:
        if len(data) > self.limit:
            raise ValueError("too long")
        return b"rot" + bytes((byte + self.shift) % 256 for byte in data)

    def decrypt(self, data: bytes) -> bytes:
        plain = bytes((byte - self.shift) % 256 for byte in data[3:])
        if data[:3] != b"rot" or self.shift != 1:
            raise ValueError("another key")
        return plain


SAMPLES = [{"id": i, "text": "x" * i} for i in range(20)]


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("level", ["sample", "chunk"])
def test_encryption_replaces_items_or_chunks(level: str, compression: str | None, tmp_path: Path) -> None:
    if compression:
        pytest.importorskip("zstandard")
    plain = write(tmp_path / "plain", SAMPLES, chunk_size=7)
    index = write(tmp_path / "dark", SAMPLES, chunk_size=7, encryption=Rot(level), compression=compression)
    assert index["config"]["encryption"] == {"algorithm": "rot", "level": level}
    for one, other in zip(plain["chunks"], index["chunks"], strict=True):
        wanted = (tmp_path / "plain" / one["filename"]).read_bytes()
        data = (tmp_path / "dark" / other["filename"]).read_bytes()
        data = inflate(data) if compression else data
        assert len(data) == other["chunk_bytes"]
        if level == "chunk":
            assert Rot(level).decrypt(data) == wanted
            continue
        (count,) = struct.unpack_from("<I", data)
        ends = struct.unpack_from(f"<{count + 1}I", data, 4)
        opened = b"".join(Rot(level).decrypt(data[a:b]) for a, b in pairwise(ends))
        assert opened == wanted[8 + 4 * count :]


def test_chunks_close_by_the_size_of_encrypted_items(tmp_path: Path) -> None:
    index = write(tmp_path, [b"x" * 10] * 9, chunk_bytes=51, encryption=Rot("sample"))  # 4 + 10, and 3
    assert [chunk["chunk_size"] for chunk in index["chunks"]] == [3, 3, 3]


def test_an_item_that_cannot_be_encrypted_is_refused_by_number(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path, encryption=Rot("sample", limit=20)) as writer:
        writer.write("short")
        with pytest.raises(FormatError, match=r"sample 1: its 104 bytes cannot be encrypted with rot: too long"):
            writer.write("x" * 100)
        writer.write("short")
    with pytest.raises(FormatError, match=r"a chunk of .* cannot be encrypted"):
        write(tmp_path / "chunk", ["short"], encryption=Rot("chunk", limit=5))
    assert list((tmp_path / "chunk").iterdir()) == []


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("level", ["sample", "chunk"])
def test_appending_needs_the_key_the_dataset_was_written_with(
    level: str, compression: str | None, tmp_path: Path
) -> None:
    if compression:
        pytest.importorskip("zstandard")
    write(tmp_path, SAMPLES, encryption=Rot(level), compression=compression)
    for wrong in (None, Rot("chunk" if level == "sample" else "sample")):
        with pytest.raises(ConfigError, match="differ in encryption"):
            DatasetWriter(tmp_path, mode="append", encryption=wrong)
    with pytest.raises(ConfigError, match="another key"):
        DatasetWriter(tmp_path, mode="append", encryption=Rot(level, shift=2))
    index = write(tmp_path, SAMPLES, mode="append", encryption=Rot(level))
    assert sum(chunk["chunk_size"] for chunk in index["chunks"]) == 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compression": "zstd", "compression_level": "batch"}, "whole-chunk compression only"),
        ({"tokens": True}, "encryption of tokens"),
    ],
)
def test_encryption_goes_with_whole_chunks_only(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        DatasetWriter(tmp_path, encryption=Rot("sample"), **options)
    with pytest.raises(ConfigError, match="level"):
        DatasetWriter(tmp_path, encryption=Rot("file"))


# --- tokens -----------------------------------------------------------------------------------------


class TokensLoader:
    """What LitData calls it."""


def test_rewriting_golden_tokens_gives_the_same_bytes(tmp_path: Path) -> None:
    golden = classic.GOLDEN / "litdata-classic-tokens-numpy"
    theirs = classic.read_index(golden / "data")
    config = theirs["config"]
    samples = []
    for chunk in theirs["chunks"]:
        data = (golden / "data" / chunk["filename"]).read_bytes()
        (count,) = struct.unpack_from("<I", data)
        ends = struct.unpack_from(f"<{count + 1}I", data, 4)
        samples += [classic.leaf_value(config["data_format"][0], data[a:b]) for a, b in pairwise(ends)]
    ours = write(
        tmp_path,
        samples,
        chunk_bytes=config["chunk_bytes"],
        chunk_size=config["chunk_size"],
        checksums=False,
        item_loader=TokensLoader(),
    )
    assert {**ours, "updated_at": ""} == {**theirs, "updated_at": ""}
    for chunk in theirs["chunks"]:
        assert (tmp_path / chunk["filename"]).read_bytes() == (golden / "data" / chunk["filename"]).read_bytes()


@given(lengths=st.lists(st.integers(0, 12), min_size=1, max_size=30), limit=st.integers(1, 40))
def test_chunk_size_counts_tokens_and_dim_is_their_sum(
    lengths: list[int], limit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("tokens")
    index = write(folder, [np.arange(n, dtype="u2") for n in lengths], chunk_size=limit, tokens=True)
    left = list(lengths)
    for chunk in index["chunks"]:
        group, left = left[: chunk["chunk_size"]], left[chunk["chunk_size"] :]
        assert chunk["dim"] == sum(group)
        # an empty document counts as one, as in LitData
        assert sum(n or 1 for n in group) <= limit or len(group) == 1
        assert not left or sum(n or 1 for n in group) + (left[0] or 1) > limit
    assert not left
    assert index["config"]["item_loader"] == "TokensLoader"


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([1, 2], None, "sample 0.*list"),
        (np.zeros((2, 2)), None, "sample 0: .*'numpy'.*1-D"),
        ({"a": np.zeros(2)}, None, "sample 0.*dict"),
        (np.zeros(2, "u2"), np.zeros(2, "i4"), "sample 1.*no_header_numpy:2.*no_header_numpy:5"),
    ],
)
def test_what_is_no_tokens_is_refused(first: Any, second: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=message), DatasetWriter(tmp_path, tokens=True) as writer:
        writer.write(first)
        writer.write(second)


def test_tokens_can_be_appended_in_their_own_dtype_only(tmp_path: Path) -> None:
    write(tmp_path, [np.arange(5, dtype="u2")], tokens=True)
    index = write(tmp_path, [np.arange(7, dtype="u2")], tokens=True, mode="append")
    assert [chunk["dim"] for chunk in index["chunks"]] == [5, 7]
    with pytest.raises(FormatError, match="sample 2: tokens of encoding"):
        write(tmp_path, [np.arange(5)], tokens=True, mode="append")
    assert classic.read_index(tmp_path) == index


# --- checksums --------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_checksums_are_those_of_the_stored_files(compression: str | None, tmp_path: Path) -> None:
    if compression:
        pytest.importorskip("zstandard")
    index = write(tmp_path, SAMPLES, chunk_size=7, compression=compression)
    sums = index["checksums"]
    assert (sums["algorithm"], sums["digest_size"], sums["updated_at"]) == ("blake2b", 16, index["updated_at"])
    assert sums["files"] == {
        chunk["filename"]: hashlib.blake2b((tmp_path / chunk["filename"]).read_bytes(), digest_size=16).hexdigest()
        for chunk in index["chunks"]
    }
    assert "checksums" not in write(tmp_path, SAMPLES, mode="overwrite", checksums=False)


def test_checksums_from_before_another_writer_came_are_dropped(tmp_path: Path) -> None:
    index = write(tmp_path, SAMPLES)
    (tmp_path / "index.json").write_text(json.dumps({**index, "updated_at": "9"}))  # as LitData's dataset_update does
    index = write(tmp_path, SAMPLES, mode="append")
    assert list(index["checksums"]["files"]) == ["chunk-0-1.bin"]


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    found = []
    for folder in ("a", "b"):
        index = write(tmp_path / folder, SAMPLES, chunk_size=7, compression="zstd", compression_level="batch")
        chunks = [(tmp_path / folder / chunk["filename"]).read_bytes() for chunk in index["chunks"]]
        assert index.pop("updated_at") == index["checksums"].pop("updated_at")
        found.append((index, chunks))
    assert found[0] == found[1]


# --- keys -------------------------------------------------------------------------------------------


def rows(folder: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as parquet

    return list(parquet.read_table(folder / "keys" / "shard-00000.parquet").to_pylist())


@pytest.mark.parametrize("kind", [int, str])
def test_keys_lead_to_items_and_chunks(kind: type, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    index = write(tmp_path, SAMPLES, chunk_size=7, key_fn=lambda s: kind(1000 - s["id"]))
    assert index["keys"] == {"version": 1, "num_shards": 1, "sharding": "none"}
    found = rows(tmp_path)
    assert [row["key"] for row in found] == sorted(kind(1000 - i) for i in range(20))
    for row in found:
        assert kind(1000 - row["index"]) == row["key"]
        assert (row["chunk_index"], row["chunk_offset"]) == (row["index"] // 7, row["index"])
    import pyarrow as pa
    import pyarrow.parquet as parquet

    schema = parquet.read_schema(tmp_path / "keys" / "shard-00000.parquet")
    assert schema.types == [pa.int64() if kind is int else pa.string(), pa.int64(), pa.int32(), pa.int32()]


def test_a_key_that_is_there_already_is_refused_and_the_writer_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    with DatasetWriter(tmp_path, key_fn=lambda s: s["id"], chunk_size=2) as writer:
        writer.write({"id": 1})
        with pytest.raises(FormatError, match="sample 1 has the key 1, which an earlier"):
            writer.write({"id": 1})
        writer.write({"id": 2})
    assert [row["key"] for row in rows(tmp_path)] == [1, 2]
    with DatasetWriter(tmp_path, key_fn=lambda s: s["id"], mode="append") as writer:
        with pytest.raises(FormatError, match="sample 2 has the key 1"):
            writer.write({"id": 1})
        writer.write({"id": 0})
    assert [(row["key"], row["index"], row["chunk_index"]) for row in rows(tmp_path)] == [
        (0, 2, 1),
        (1, 0, 0),
        (2, 1, 0),
    ]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (1.5, "int or str"),
        (None, "int or str"),
        (True, "int or str"),
        (2**63, "64 bits"),
        ("x", "the first key is a int"),
    ],
)
def test_keys_are_ints_or_strs_alike(key: Any, message: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    keys = iter([5, key, np.int32(6)])
    with DatasetWriter(tmp_path, key_fn=lambda s: next(keys)) as writer:
        writer.write(0)
        with pytest.raises(FormatError, match=message):
            writer.write(1)
        writer.write(2)
    assert [(row["key"], row["index"]) for row in rows(tmp_path)] == [(5, 0), (6, 1)]


def test_all_items_have_keys_or_none(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    write(tmp_path / "with", SAMPLES, key_fn=lambda s: s["id"])
    write(tmp_path / "without", SAMPLES)
    with pytest.raises(ConfigError, match="has keys"):
        DatasetWriter(tmp_path / "with", mode="append")
    with pytest.raises(ConfigError, match="has no keys"):
        DatasetWriter(tmp_path / "without", mode="append", key_fn=lambda s: s["id"])
    assert "keys" not in write(tmp_path / "with", SAMPLES, mode="overwrite")
    assert list((tmp_path / "with" / "keys").iterdir()) == []


@pytest.mark.parametrize("damage", ["gone", "torn", "short"])
def test_damaged_keys_cannot_be_added_to(damage: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    write(tmp_path, SAMPLES, key_fn=lambda s: s["id"])
    path = tmp_path / "keys" / "shard-00000.parquet"
    if damage == "gone":
        path.unlink()
    elif damage == "torn":
        path.write_bytes(path.read_bytes()[:50])
    else:
        write(tmp_path / "other", SAMPLES[:5], key_fn=lambda s: s["id"])
        path.write_bytes((tmp_path / "other" / "keys" / "shard-00000.parquet").read_bytes())
    with pytest.raises(FormatError, match="key sidecar"):
        DatasetWriter(tmp_path, mode="append", key_fn=lambda s: s["id"])
