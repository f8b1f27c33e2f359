"""Parts of several writers become one dataset, or are refused; what a folder allows is known before writing."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import classic

from lazystore.errors import ConfigError, DatasetNotFoundError, FormatError
from lazystore.formats.chunk_files import Folder, open_folder
from lazystore.formats.dataset_folder import Claim, claim, finish_dataset, read_part, read_part_keys, write_part
from lazystore.formats.index_writer import Part, joined, part_of, same_schema
from lazystore.formats.key_writer import KeyTable
from lazystore.formats.sample_encoder import SampleEncoder
from lazystore.formats.shard_writer import ShardWriter
from lazystore.formats.write_settings import WriteSettings, write_settings
from lazystore.formats.writer import DatasetWriter, settings_to_append

SETTINGS = write_settings(chunk_size=3)


def samples(rank: int, count: int = 5) -> list[dict[str, Any]]:
    return [{"id": 100 * rank + i, "text": f"{rank}:{i}"} for i in range(count)]


def work(folder: Folder, rank: int, rows: list[Any], claimed: Claim, *, keys: KeyTable | None = None) -> Part:
    """What a worker does for its rank."""
    settings = settings_to_append(SETTINGS, claimed)
    key_fn = None if keys is None else (lambda sample: sample["id"])
    shard = ShardWriter(folder, settings, rank=rank, claim=claimed, start=1000 * rank, key_fn=key_fn, keys=keys)
    for row in rows:
        shard.write(row)
    shard.flush()
    write_part(folder, rank, shard.part, keys=keys)
    return shard.part


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("mode", [None, "append", "overwrite"])
def test_ranks_make_one_dataset_in_the_order_given(mode: str | None, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    old = samples(7)
    if mode:
        with DatasetWriter(tmp_path, key_fn=lambda s: s["id"]) as writer:
            for row in old:
                writer.write(row)
    folder = open_folder(tmp_path)
    claimed = pickle.loads(pickle.dumps(claim(folder, mode)))
    parts = {rank: work(folder, rank, samples(rank), claimed, keys=KeyTable()) for rank in (0, 10, 2)}
    assert "index.json" not in names(tmp_path) or list(classic.samples(tmp_path)) == old
    keys = KeyTable()
    if mode == "append":
        keys = KeyTable.read(claimed.keys.values(), count=5, place="here")
    for rank in (0, 2, 10):
        assert read_part(folder, rank) == parts[rank]
        keys.extend(read_part_keys(folder, rank, parts[rank]))
    order = [(f"rank {rank}", read_part(folder, rank)) for rank in (0, 2, 10)]
    index = finish_dataset(folder, order, claim=claimed, keys=keys, settled=True)
    wanted = (old if mode == "append" else []) + samples(0) + samples(2) + samples(10)
    assert list(classic.samples(tmp_path)) == wanted
    chunks = [chunk["filename"] for chunk in index["chunks"]]
    assert names(tmp_path) == sorted([*chunks, "index.json", "keys/shard-00000.parquet"])
    assert sorted(index["checksums"]["files"]) == sorted(chunks)


def test_a_rank_done_again_writes_the_same_names(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    first = work(folder, 3, samples(3), Claim())
    assert work(folder, 3, samples(3), Claim()) == first
    assert names(tmp_path) == ["3.index.json", "chunk-3-0.bin", "chunk-3-1.bin"]


def test_messages_of_a_rank_count_from_its_first_sample(tmp_path: Path) -> None:
    shard = ShardWriter(open_folder(tmp_path), SETTINGS, rank=1, start=500)
    shard.write({"a": 1})
    with pytest.raises(FormatError, match=r"sample 501, at \['a'\]"):
        shard.write({"a": "x"})


def test_parts_of_different_schemas_are_refused_by_name(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    one = work(folder, 0, [{"a": 1}], Claim())
    other = work(folder, 1, [{"a": "x"}], Claim())
    with pytest.raises(
        FormatError, match=r"rank 1 cannot be joined to rank 0.*data_format \(\['int'\] and \['str'\]\)"
    ):
        finish_dataset(folder, [("rank 0", one), ("rank 1", other)], claim=Claim())
    assert "index.json" not in names(tmp_path)


def test_ranks_without_samples_are_passed_over_and_none_at_all_is_refused(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    parts = [("rank 0", work(folder, 0, [], Claim())), ("rank 1", work(folder, 1, samples(1), Claim()))]
    assert read_part(folder, 0) == Part()
    with pytest.raises(FormatError, match="no part has any chunk"):
        finish_dataset(folder, parts[:1], claim=Claim())
    finish_dataset(folder, parts, claim=Claim())
    assert list(classic.samples(tmp_path)) == samples(1)


def test_two_parts_with_one_file_name_are_refused(tmp_path: Path) -> None:
    part = work(open_folder(tmp_path), 0, samples(0), Claim())
    with pytest.raises(FormatError, match=r"b holds the file chunk-0-0.bin"):
        joined([("a", part), ("b", part)])
    with pytest.raises(FormatError, match="did not finish"):
        joined([("a", dataclasses.replace(part, config=None))])


def test_a_part_that_is_not_there_or_torn_is_a_typed_error(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    with pytest.raises(DatasetNotFoundError):
        read_part(folder, 0)
    (tmp_path / "0.index.json").write_text('{"chunks": [')
    with pytest.raises(FormatError, match="not JSON"):
        read_part(folder, 0)
    with pytest.raises(DatasetNotFoundError):
        read_part_keys(folder, 0, Part())


def test_keys_of_two_ranks_that_are_equal_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    one, other = KeyTable(), KeyTable()
    for table in (one, other):
        table.add(table.check("same"))
    with pytest.raises(FormatError, match="sample 1 has the key 'same'"):
        one.extend(other)


@given(st.binary(max_size=60))
def test_sidecars_of_any_bytes_are_a_typed_error(data: bytes) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(FormatError):
        KeyTable.read([data], count=1, place="here")


# --- what a config says -----------------------------------------------------------------------------


def test_configs_of_all_ages_agree_where_they_mean_the_same() -> None:
    old = {"data_format": ["int"], "data_spec": "x", "compression": None}
    new = {
        **old,
        "encryption": None,
        "item_loader": "PyTreeLoader",
        "compression_level": None,
        "compression_batch_size": None,
        "chunk_bytes": 5,
        "types": {},
    }
    assert same_schema(old, new) == ""
    packed = {**old, "compression": "zstd"}
    assert same_schema(packed, {**packed, "compression_level": "chunk"}) == ""
    assert "compression_level" in same_schema(packed, {**packed, "compression_level": "batch"})
    assert "encryption" in same_schema(old, {**old, "encryption": {"algorithm": "fernet", "level": "sample"}})


@pytest.mark.parametrize("name", sorted(p.name for p in classic.GOLDEN.glob("litdata-classic-*")))
def test_schemas_of_golden_datasets_are_frozen_again_as_they_are(name: str) -> None:
    index = json.loads((classic.GOLDEN / name / "data" / "index.json").read_text())
    config = part_of(index, place=name).config
    assert config is not None
    if config["item_loader"] == "TokensLoader":
        return
    encoder = SampleEncoder.from_schema(config["data_format"], config["data_spec"])
    assert (encoder.data_format, encoder.data_spec) == (config["data_format"], config["data_spec"])


def test_settings_are_values_that_travel() -> None:
    settings = write_settings(chunk_bytes="1MB", compression="zstd:3", compression_level="batch")
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert settings.config([], "")["compression_batch_size"] == 256
    assert WriteSettings().chunk_bytes == 64_000_000


def test_a_claim_changes_nothing_and_names_what_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "chunk-0-0.bin").write_bytes(b"x")
    for mode in (None, "append"):
        with pytest.raises(ConfigError, match=str(tmp_path)):
            claim(open_folder(tmp_path), mode)
    assert claim(open_folder(tmp_path), "overwrite").chunk_name(2, 3, ".bin") == "chunk-2-3-v1.bin"
    assert names(tmp_path) == ["chunk-0-0.bin"]
