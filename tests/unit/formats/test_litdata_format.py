"""LitData datasets of every version and option are opened the right way and read equal to what was written."""

from __future__ import annotations

import hashlib
import json
import struct
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support import golden
from support.litdata_chunks import arrow_rows, classic, framed, int_str, item, spec, write_dataset
from support.opened import open_folder, place_of, samples, stored_items

from lazystore import StreamingDataset
from lazystore.errors import (
    BudgetTooSmallError,
    ChecksumError,
    ConfigError,
    DatasetNotFoundError,
    DecryptionError,
    FormatError,
    MissingExtraError,
    UnsafeDataError,
    UnsupportedError,
)
from lazystore.formats.encryption import FernetEncryption
from lazystore.formats.format import Opened, Options
from lazystore.formats.litdata_format import LitDataFormat

DATASETS = sorted(path.parent.name for path in golden.GOLDEN.glob("litdata-*/data"))
BLOCKS = sorted((path.parent.name, path.name) for path in golden.GOLDEN.glob("litdata-*/expected_blocks_*.jsonl"))


def open_golden(name: str, **options: Any) -> Opened:
    if "tensor" in str(golden.config(name)["data_format"]):
        pytest.importorskip("torch")
    key = golden.GOLDEN / name / "key"
    if key.exists() and "encryption" not in options:
        pytest.importorskip("cryptography")
        options["encryption"] = FernetEncryption.load(key / "key.json", (key / "password.txt").read_text())
    return open_folder(LitDataFormat(), golden.GOLDEN / name / "data", **options)


def open_dataset(folder: Path, **options: Any) -> Opened:
    return open_folder(LitDataFormat(), folder, **options)


def rows_of(n: int, first: int = 0) -> list[dict[str, Any]]:
    return [{"a": i, "b": f"text {i}" * (i % 3)} for i in range(first, first + n)]


def items_of_rows(rows: list[dict[str, Any]]) -> list[bytes]:
    return [int_str(row["a"], row["b"]) for row in rows]


# -- golden datasets ------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATASETS)
def test_datasets_of_the_real_writer_equal_what_was_written(name: str) -> None:
    opened = open_golden(name, allow_pickle=True)
    golden.assert_same(samples(opened), golden.expected(name))
    assert opened.format == "litdata" and json.loads(json.dumps(opened.about)) == opened.about


@pytest.mark.parametrize("name, file", BLOCKS)
def test_blocks_of_tokens_equal_what_litdata_serves(name: str, file: str) -> None:
    opened = open_golden(name, block_size=int(file.split("_")[-1].removesuffix(".jsonl")))
    assert opened.stride and opened.documents is not None
    golden.assert_same(samples(opened), golden.expected(name, file))


@pytest.mark.parametrize(
    "way, names",
    [
        ("stored", ["litdata-classic-text", "litdata-leaves", "litdata-json-leaf", "litdata-containers",
                    "litdata-merged", "litdata-sample-zstd", "litdata-fernet-sample",
                    "litdata-tokens", "litdata-single-leaf-str"]),
        ("codec", ["litdata-chunk-zstd", "litdata-classic-zstd"]),
        ("images", ["litdata-rows", "litdata-nested-rows", "litdata-framed-zstd", "litdata-fernet-chunk"]),
    ],
)  # fmt: skip
def test_which_way_a_dataset_goes(way: str, names: list[str]) -> None:
    for name in names:
        opened = open_golden(name, allow_pickle=True)
        found = "images" if opened.images is not None else "codec" if opened.codec is not None else "stored"
        assert (name, found) == (name, way)


@pytest.mark.parametrize("name", [name for name in DATASETS if "fernet" in name])
def test_a_wrong_password_is_told(name: str) -> None:
    key = golden.GOLDEN / name / "key" / "key.json"
    pytest.importorskip("cryptography")
    opened = open_golden(name, encryption=FernetEncryption.load(key, "wrong"))
    with pytest.raises(DecryptionError, match="password"):
        samples(opened)


def test_an_encrypted_dataset_needs_its_key_and_a_plain_one_none() -> None:
    with pytest.raises(ConfigError, match="encrypted"):
        open_golden("litdata-fernet-sample", encryption=None)
    own = SimpleNamespace(algorithm="fernet", level="sample", decrypt=bytes)
    with pytest.raises(ConfigError, match="not encrypted"):
        open_golden("litdata-classic-text", encryption=own)
    with pytest.raises(ConfigError, match="level chunk"):
        open_golden("litdata-fernet-chunk", encryption=own)


def test_pickles_are_refused_without_leave() -> None:
    with pytest.raises(UnsafeDataError, match="allow_pickle=True"):
        samples(open_golden("litdata-classic-pickle"))


# -- forms that are mixed -------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        {"compression": "zstd", "compression_level": "batch", "compression_batch_size": 256},
        {"compression": "zstd", "compression_level": "batch", "compression_batch_size": 10},
        {"types": {"a": "int", "b": "json"}},
    ],
)
def test_one_dataset_may_hold_every_form(config: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    rows = rows_of(900)
    items = items_of_rows(rows)
    chunks = [
        (300, arrow_rows(rows[:300])),
        (200, framed(items[300:500], 256)),
        (100, classic(items[500:600])),
        (290, framed(items[600:890], 7)),
        (10, arrow_rows(rows[890:], form="stream")),
    ]
    opened = open_dataset(write_dataset(tmp_path / "d", chunks, **config))
    assert samples(opened) == rows


def test_rows_of_other_columns_come_with_their_own(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    chunks = [
        [{"a": 1, "b": "x"}],
        [{"b": "y", "a": 2}],
        [{"a": 3}],
        [{"a": 4, "c": {"d": [1, None]}}],
        [{"a": 2.5, "b": None}],
    ]
    stored = [(len(rows), arrow_rows(rows)) for rows in chunks]
    opened = open_dataset(write_dataset(tmp_path / "d", stored))
    found = samples(opened)
    assert found == [row for rows in chunks for row in rows]
    assert [list(row) for row in found] == [["a", "b"], ["b", "a"], ["a"], ["a", "c"], ["a", "b"]]


def test_whole_chunks_beside_arrow_rows(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    zstandard = pytest.importorskip("zstandard")
    rows = rows_of(60)
    whole = zstandard.compress(classic(items_of_rows(rows[30:])))
    folder = write_dataset(
        tmp_path / "d", [(30, arrow_rows(rows[:30], ipc="zstd")), (30, whole)],
        names=["chunk-0-0.bin", "chunk-0-1.zstd:3.bin"], compression="zstd:3", ipc_compression="zstd",
    )  # fmt: skip
    opened = open_dataset(folder)
    assert opened.images is not None and list(opened.images.runs) == [0, 1, 2]
    assert samples(opened) == rows


@pytest.mark.parametrize("compressed", [False, True])
def test_chunks_are_opened_before_they_are_looked_at(compressed: bool, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    zstandard = pytest.importorskip("zstandard")
    own = SimpleNamespace(algorithm="mine", level="chunk", decrypt=lambda data: data[::-1])
    rows = rows_of(700)
    stored = [arrow_rows(rows[:300])[::-1], classic(items_of_rows(rows[300:]))[::-1]]
    names = ["c0.bin", "c1.bin"]
    config: dict[str, Any] = {"encryption": {"algorithm": "mine", "level": "chunk"}}
    if compressed:
        stored, names = [zstandard.compress(data) for data in stored], ["c0.zstd.bin", "c1.zstd.bin"]
        config["compression"] = "zstd"
    folder = write_dataset(tmp_path / "d", [(300, stored[0]), (400, stored[1])], names=names, **config)
    opened = open_dataset(folder, encryption=own)
    assert samples(opened) == rows


def test_rows_that_were_left_in_plain_text_are_read_with_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    own = SimpleNamespace(algorithm="mine", level="sample", decrypt=lambda data: data[::-1])
    rows = rows_of(50)
    tokens = [stored[::-1] for stored in items_of_rows(rows[40:])]
    folder = write_dataset(
        tmp_path / "d", [(40, arrow_rows(rows[:40])), (10, classic(tokens))],
        encryption={"algorithm": "mine", "level": "sample"},
    )  # fmt: skip
    with pytest.warns(UserWarning, match="plain text"):
        opened = open_dataset(folder, encryption=own)
    assert samples(opened) == rows


def test_items_that_were_not_compressed_are_read_as_they_are(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    rows = rows_of(9)
    items = [zstandard.compress(stored) if i % 2 else stored for i, stored in enumerate(items_of_rows(rows))]
    config = {"compression": "zstd", "compression_level": "sample", "types": "json"}
    assert samples(open_dataset(write_dataset(tmp_path / "d", [(9, classic(items))], **config))) == rows


# -- looking --------------------------------------------------------------------------------


def test_classic_chunks_of_new_datasets_are_read_where_they_lie(tmp_path: Path) -> None:
    rows = rows_of(30)
    opened = open_dataset(write_dataset(tmp_path / "d", [(30, classic(items_of_rows(rows)))]))
    assert opened.images is None
    assert samples(opened) == rows


def test_merged_datasets_without_a_date_are_looked_at(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    rows = rows_of(30)
    chunks = [(20, classic(items_of_rows(rows[:20]))), (10, arrow_rows(rows[20:]))]
    folder = write_dataset(tmp_path / "d", chunks, top={}, types=None)
    assert samples(open_dataset(folder)) == rows


def test_what_the_looks_missed_is_found_when_every_chunk_is_looked_at(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    rows = rows_of(30)
    items = items_of_rows(rows)
    chunks = [(10, classic(items[:10])), (10, arrow_rows(rows[10:20])), (10, classic(items[20:]))]
    folder = write_dataset(tmp_path / "d", chunks)
    opened = open_dataset(folder, extra={"sniff": "all"})
    assert samples(opened) == rows
    with pytest.raises((FormatError, AssertionError)):
        samples(open_dataset(folder))  # empty items: the chunk's offsets end before the file


def test_looking_can_be_left_out(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "d", [(5, classic(items_of_rows(rows_of(5))))])
    (folder / "chunk-0-0.bin").unlink()
    assert open_dataset(folder, extra={"sniff": "none"}).images is None
    with pytest.raises(DatasetNotFoundError, match=r"chunk-0-0\.bin"):
        open_dataset(folder)


@pytest.mark.parametrize("trailer", [1, 40, 10**6, 0])
def test_a_classic_chunk_that_ends_like_arrow_rows_is_classic(trailer: int, tmp_path: Path) -> None:
    last = item(struct.pack("<q", 1), b"x" * 50 + struct.pack("<I", trailer) + b"LDARW01\0")
    data = classic([int_str(0, "a"), last])
    for extra in ({"sniff": "auto"}, {"sniff": "all"}):
        folder = write_dataset(tmp_path / extra["sniff"], [(2, data)])
        assert list(stored_items(open_dataset(folder, extra=extra))) == [int_str(0, "a"), last]


# -- arguments ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"columns": ["a"]}, {"raw": True}, {"validate_hash": "xxh64"}, {"extra": {"sniff": "some"}},
        {"extra": {"sniffs": "all"}}, {"block_size": 4}, {"verify": True},
    ],
)  # fmt: skip
def test_options_of_other_formats_are_refused(options: dict[str, Any], tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "d", [(1, classic([int_str(1, "")]))])
    with pytest.raises(ConfigError):
        open_dataset(folder, **options)


def test_a_folder_without_an_index_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match=r"index\.json"):
        LitDataFormat().open(place_of(tmp_path), Options())


def test_the_index_is_recognised_by_its_chunks() -> None:
    assert LitDataFormat().recognises({"chunks": []}) and not LitDataFormat().recognises({"shards": []})


def test_users_serializers_decode_leaves_and_arrow_rows_have_none(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    rows = rows_of(6)
    chunks = [(3, arrow_rows(rows[:3])), (3, classic(items_of_rows(rows[3:])))]
    opened = open_dataset(
        write_dataset(tmp_path / "d", chunks), serializers={"str": lambda data: data.decode().upper()}
    )
    assert [row["b"] for row in samples(opened)] == [row["b"] for row in rows[:3]] + [
        row["b"].upper() for row in rows[3:]
    ]


def test_empty_datasets_have_no_items(tmp_path: Path) -> None:
    for number, chunks in enumerate(([], [(0, classic([]))])):
        opened = open_dataset(write_dataset(tmp_path / str(number), chunks))
        assert samples(opened) == [] and sum(opened.counts) == 0


def test_indexes_of_any_age_open(tmp_path: Path) -> None:
    rows = rows_of(4)
    folder = write_dataset(tmp_path / "d", [(4, classic(items_of_rows(rows)))])
    index = json.loads((folder / "index.json").read_text())
    del index["updated_at"]
    index["config"] = {key: index["config"][key] for key in ("data_format", "data_spec", "compression")}
    for chunk_bytes in (0, 1, None, 10**12, "many", index["chunks"][0]["chunk_bytes"]):
        index["chunks"][0]["chunk_bytes"] = chunk_bytes
        del index["chunks"][0]["dim"]
        index["chunks"][0]["dim"] = None
        (folder / "index.json").write_text(json.dumps(index))
        for extra in ({}, {"sniff": "all"}):
            opened = open_dataset(folder, extra=extra)
            assert samples(opened) == rows and opened.version.endswith("'0')")


@pytest.mark.parametrize("loader", ["TemporalArrayLoader", "ParquetLoader"])
def test_datasets_of_other_loaders_are_told(loader: str, tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "d", [(1, classic([b""]))], item_loader=loader)
    with pytest.raises(UnsupportedError, match=loader):
        open_dataset(folder)


@pytest.mark.parametrize(
    "config",
    [
        {"encryption": {"algorithm": "fernet", "level": "sample"}},
        {"encryption": {"algorithm": "fernet", "level": "chunk"}},
        {"compression": "zstd", "compression_level": "batch"},
    ],
)
def test_tokens_are_neither_encrypted_nor_compressed_inside(config: dict[str, Any], tmp_path: Path) -> None:
    own = SimpleNamespace(algorithm="fernet", level=config.get("encryption", {}).get("level"), decrypt=bytes)
    folder = write_dataset(
        tmp_path / "d", [(1, classic([bytes(8)]))],
        **{"item_loader": "TokensLoader", "data_format": ["no_header_numpy:3"], **config},
    )  # fmt: skip
    with pytest.raises(UnsupportedError, match="token"):
        open_dataset(folder, **({"encryption": own} if "encryption" in config else {}))


@pytest.mark.parametrize(
    "package, extra, name",
    [("pyarrow", "arrow", "litdata-rows"), ("zstandard", "zstd", "litdata-framed-zstd"),
     ("zstandard", "zstd", "litdata-sample-zstd"), ("zstandard", "zstd", "litdata-chunk-zstd")],
)  # fmt: skip
def test_a_missing_package_is_named_with_its_extra(
    package: str, extra: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"lazystore\[{extra}\]"):
        samples(open_golden(name))


def test_a_deep_schema_does_no_harm(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "d", [(1, classic([int_str(1, "")]))])
    index = json.loads((folder / "index.json").read_text())
    types: Any = "int"
    for _ in range(300):
        types = {"type": "list", "value": types}
    index["config"]["types"] = {"a": types, "b": "str"}
    (folder / "index.json").write_text(json.dumps(index))
    assert samples(open_dataset(folder)) == [{"a": 1, "b": ""}]


def test_nothing_is_warned_about_ordinary_datasets(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_dataset(write_dataset(tmp_path / "d", [(1, classic([int_str(1, "")]))]))


# -- checksums ------------------------------------------------------------------------------


def with_checksums(folder: Path, **changed: str) -> Path:
    index = json.loads((folder / "index.json").read_text())
    names = [chunk["filename"] for chunk in index["chunks"]]
    files = {name: hashlib.blake2b((folder / name).read_bytes(), digest_size=16).hexdigest() for name in names}
    index["checksums"] = {"algorithm": "blake2b", "digest_size": 16, "files": files | changed}
    (folder / "index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("form", ["classic", "rows"])
def test_checksums_are_verified_when_asked(form: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    rows = rows_of(20)
    data = classic(items_of_rows(rows)) if form == "classic" else arrow_rows(rows)
    folder = with_checksums(write_dataset(tmp_path / "d", [(20, data)]))
    opened = open_dataset(folder, verify=True)
    try:
        assert samples(opened) == rows
    finally:
        opened.source.close()
    damaged = bytearray(data)
    damaged[-20 if form == "rows" else -1] ^= 1
    (folder / "chunk-0-0.bin").write_bytes(damaged)
    opened = open_dataset(folder, verify=True)
    try:
        with pytest.raises(ChecksumError):
            samples(opened)
    finally:
        opened.source.close()


def test_checksums_are_verified_in_a_small_budget(tmp_path: Path) -> None:
    folder = with_checksums(write_dataset(tmp_path / "d", [(20, classic(items_of_rows(rows_of(20))))]))
    with StreamingDataset(folder, memory="1MB", verify=True) as dataset:
        assert list(dataset) == rows_of(20)


def test_a_chunk_without_a_checksum_is_told(tmp_path: Path) -> None:
    folder = with_checksums(write_dataset(tmp_path / "d", [(1, classic([int_str(1, "")]))]))
    index = json.loads((folder / "index.json").read_text())
    index["checksums"]["files"] = {}
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(FormatError, match=r"none for chunk-0-0\.bin"):
        open_dataset(folder, verify=True)


# -- leaves in images -----------------------------------------------------------------------


def test_framed_items_of_any_leaves(tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    arrays = [np.arange(i, dtype="<f4") for i in range(20)]
    items = [item(array.tobytes(), struct.pack("<q", i)) for i, array in enumerate(arrays)]
    config = {
        "data_format": ["no_header_numpy:9", "int"], "data_spec": spec(["x", "i"]), "compression": "zstd",
        "compression_level": "batch", "compression_batch_size": 8, "types": {"x": "json", "i": "int"},
    }  # fmt: skip
    opened = open_dataset(write_dataset(tmp_path / "d", [(20, framed(items, 8))], **config))
    assert list(opened.counts) == [8, 8, 4]
    for i, row in enumerate(samples(opened)):
        assert np.array_equal(row["x"], arrays[i]) and row["i"] == i


def test_a_block_beyond_the_budget_says_what_would_do(tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    items = [int_str(i, "x" * 100_000) for i in range(10)]
    config = {"compression": "zstd", "compression_level": "batch", "compression_batch_size": 10}
    folder = write_dataset(tmp_path / "d", [(10, framed(items, 10))], **config)
    with pytest.raises(BudgetTooSmallError, match=r"chunk-0-0\.bin.*memory="):
        samples(open_folder(LitDataFormat(), folder, budget=1 << 20))
    assert list(stored_items(open_folder(LitDataFormat(), folder, budget=8 << 20))) == items
