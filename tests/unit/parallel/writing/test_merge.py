"""``merge_datasets``: the items of all datasets, in order, in one; the sources untouched, and all or nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support import golden
from support.datasets import check, edit_index, sample, write

from lazystore import DatasetWriter, StreamingDataset
from lazystore.errors import ConfigError, DatasetNotFoundError, FormatError, LazyStoreError, UnsafeDataError
from lazystore.formats.chunk_files import LocalFolder
from lazystore.parallel.writing.merge import merge_datasets


def read(folder: Path) -> list[Any]:
    with StreamingDataset(folder) as dataset:
        return list(dataset)


def index(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "index.json").read_text()))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def part(folder: Path, numbers: range, **options: Any) -> Path:
    with DatasetWriter(folder, chunk_size=7, **options) as writer:
        for number in numbers:
            writer.write(sample(number))
    return folder


def test_items_of_all_in_order(tmp_path: Path) -> None:
    sources = [part(tmp_path / f"part {n}", range(n * 20, n * 20 + 20)) for n in range(3)]
    before = [contents(source) for source in sources]
    assert merge_datasets(sources, tmp_path / "out") == 60
    check(read(tmp_path / "out"), range(60))
    assert [contents(source) for source in sources] == before
    merged = index(tmp_path / "out")
    assert [chunk["filename"] for chunk in merged["chunks"]] == [f"chunk-0-{n}.bin" for n in range(9)]
    assert sorted(contents(tmp_path / "out")) == sorted(["index.json", *(c["filename"] for c in merged["chunks"])])


@pytest.mark.parametrize(
    "name", sorted(path.parents[1].name for path in golden.GOLDEN.glob("litdata-*/data/index.json"))
)
def test_litdatas_own_datasets_keep_every_byte(name: str, tmp_path: Path) -> None:
    """Whatever is inside their chunks."""
    source = golden.GOLDEN / name / "data"
    before = contents(source)
    merge_datasets([source, source], tmp_path / "out")
    assert contents(source) == before
    old, new = index(source), index(tmp_path / "out")
    twice = [source / chunk["filename"] for chunk in old["chunks"]] * 2
    copies = [tmp_path / "out" / chunk["filename"] for chunk in new["chunks"]]
    assert [path.read_bytes() for path in copies] == [path.read_bytes() for path in twice]
    assert new["config"] == old["config"]
    assert len({path.name for path in copies}) == len(copies)
    compression = old["config"].get("compression")
    for one, other in zip(copies, twice, strict=True):
        assert one.name.endswith(f".{compression}.bin") == other.name.endswith(f".{compression}.bin")


def test_the_merged_golden_dataset_reads_as_twice_its_items(tmp_path: Path) -> None:
    golden.require("litdata-classic-leaves")
    source = golden.GOLDEN / "litdata-classic-leaves" / "data"
    merge_datasets([source, source], tmp_path / "out")
    golden.assert_same(read(tmp_path / "out"), golden.expected("litdata-classic-leaves") * 2)


def test_whole_file_compression_keeps_its_names(tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    sources = [part(tmp_path / str(n), range(n * 20, n * 20 + 20), compression="zstd:3") for n in range(2)]
    merge_datasets(sources, tmp_path / "out")
    assert {chunk["filename"] for chunk in index(tmp_path / "out")["chunks"]} == {
        f"chunk-0-{n}.zstd:3.bin" for n in range(6)
    }
    check(read(tmp_path / "out"), range(40))


def test_limits_and_types_may_differ(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a", 20, chunk_size=3), write(tmp_path / "b", 20, chunk_bytes="1MB")
    edit_index(one, lambda found: found["config"].update(types={"id": "int"}))
    merge_datasets([one, other], tmp_path / "out")
    assert "types" not in index(tmp_path / "out")["config"]
    check(read(tmp_path / "out"), [*range(20), *range(20)])


def test_checksums_are_carried_over_or_made(tmp_path: Path) -> None:
    with_sums, without = part(tmp_path / "a", range(20)), part(tmp_path / "b", range(20, 40), checksums=False)
    merge_datasets([with_sums, without], tmp_path / "out")
    again = part(tmp_path / "c", range(20))
    files = index(tmp_path / "out")["checksums"]["files"]
    assert len(files) == 6
    assert files["chunk-0-0.bin"] == index(again)["checksums"]["files"]["chunk-0-0.bin"]
    merge_datasets([with_sums, without], tmp_path / "none", checksums=False)
    assert "checksums" not in index(tmp_path / "none")


@pytest.mark.parametrize("checksums", [True, False])
def test_damage_is_found_on_the_way_and_nothing_stays(checksums: bool, tmp_path: Path) -> None:
    sources = [part(tmp_path / str(n), range(20)) for n in range(2)]
    path = sources[1] / "chunk-0-1.bin"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"chunk-0-1.bin is damaged: its digest"):
        merge_datasets(sources, tmp_path / "out", checksums=checksums)
    assert contents(tmp_path / "out") == {}


def test_empty_datasets_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "index.json").write_text('{"chunks": [], "config": null}')
    merge_datasets([tmp_path / "empty", part(tmp_path / "a", range(20))], tmp_path / "out")
    check(read(tmp_path / "out"), range(20))
    with pytest.raises(ConfigError, match="none of the datasets has an item"):
        merge_datasets([tmp_path / "empty"], tmp_path / "nothing")


def test_other_schemas_are_refused(tmp_path: Path) -> None:
    one = part(tmp_path / "a", range(20))
    with DatasetWriter(tmp_path / "b") as writer:
        writer.write({"other": 1.5})
    with pytest.raises(ConfigError, match=r"b cannot be merged with .*a: they differ in .*data_format"):
        merge_datasets([one, tmp_path / "b"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_keys_are_those_of_all(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    sources = [part(tmp_path / str(n), range(n * 20, n * 20 + 20), key_fn=lambda item: item["id"]) for n in range(2)]
    merge_datasets(sources, tmp_path / "out")
    table = parquet.read_table(tmp_path / "out/keys/shard-00000.parquet").to_pylist()
    assert {line["key"]: line["index"] for line in table} == {n: n for n in range(40)}
    plain = part(tmp_path / "plain", range(40, 60))
    with pytest.raises(ConfigError, match=r"plain has no keys, and others have; keys=False"):
        merge_datasets([*sources, plain], tmp_path / "mixed")
    merge_datasets([*sources, plain], tmp_path / "mixed", keys=False)
    assert "keys" not in index(tmp_path / "mixed")
    check(read(tmp_path / "mixed"), range(60))
    with pytest.raises(FormatError, match="key"):
        merge_datasets([sources[0], sources[0]], tmp_path / "double")
    assert not (tmp_path / "double").exists()


def test_urls_are_merged_with_folders(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    one, other = part(tmp_path / "a", range(20)), part(tmp_path / "b", range(20, 40))
    fsspec.filesystem("memory").put(f"{other}/", f"{tmp_path}/there/", recursive=True)
    merge_datasets([one, f"memory://{tmp_path}/there"], f"memory://{tmp_path}/both")
    merge_datasets([f"memory://{tmp_path}/both"], tmp_path / "out")
    check(read(tmp_path / "out"), range(40))


def test_a_missing_dataset_or_chunk_is_named(tmp_path: Path) -> None:
    one = part(tmp_path / "a", range(20))
    with pytest.raises(DatasetNotFoundError, match="nowhere"):
        merge_datasets([one, tmp_path / "nowhere"], tmp_path / "out")
    (one / "chunk-0-1.bin").unlink()
    with pytest.raises(DatasetNotFoundError, match=r"chunk-0-1\.bin"):
        merge_datasets([one], tmp_path / "out")
    assert not (tmp_path / "out").exists() or contents(tmp_path / "out") == {}


def test_a_dataset_in_the_way_is_refused(tmp_path: Path) -> None:
    one = part(tmp_path / "a", range(20))
    before = contents(one)
    with pytest.raises(ConfigError, match="holds a dataset already"):
        merge_datasets([one], one)
    assert contents(one) == before


@pytest.mark.parametrize("name", ["../secret", "a/b", "..", "", "s3://b/c", "a\0b", "a\\b"])
def test_names_that_lead_elsewhere_are_refused(name: str, tmp_path: Path) -> None:
    one = part(tmp_path / "a", range(5))
    edit_index(one, lambda found: found["chunks"][0].update(filename=name))
    with pytest.raises(UnsafeDataError, match="no plain name"):
        merge_datasets([one], tmp_path / "out")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"chunks": 1}', '{"chunks": [1], "config": {}}', "null"])
def test_an_index_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    one = part(tmp_path / "a", range(5))
    (one / "index.json").write_text(text)
    with pytest.raises(LazyStoreError):
        merge_datasets([one], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("inputs", [[], "folder"])
def test_no_list_of_datasets_is_refused(inputs: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="input_dirs"):
        merge_datasets(inputs, tmp_path / "out")


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [part(tmp_path / str(n), range(20)) for n in range(2)]
    real = LocalFolder.write

    def full(self: LocalFolder, name: str, pieces: Any, **options: Any) -> Any:
        if name == "chunk-0-4.bin":
            raise OSError(28, "No space left on device")
        return real(self, name, pieces, **options)

    monkeypatch.setattr(LocalFolder, "write", full)
    with pytest.raises(OSError, match="No space left"):
        merge_datasets(sources, tmp_path / "out")
    assert contents(tmp_path / "out") == {}


def test_large_files_go_through_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "a", 300, chunk_bytes="1MB")
    monkeypatch.setattr("lazystore.parallel.writing.stored.WAVE_BYTES", 1000)
    merge_datasets([source], tmp_path / "out")
    shutil.rmtree(source)
    check(read(tmp_path / "out"), range(300))
