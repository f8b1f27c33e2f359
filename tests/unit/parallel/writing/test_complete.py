"""``complete_dataset``: what finished writers left becomes the dataset, or the error says what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import golden, jobs
from support.datasets import check, copy, sample

from lazystore import StreamingDataset
from lazystore.errors import ConfigError, DatasetNotFoundError, FormatError, LazyStoreError, UnsafeDataError
from lazystore.formats.chunk_files import LocalFolder, open_folder
from lazystore.formats.dataset_folder import write_part
from lazystore.formats.key_writer import KeyTable
from lazystore.formats.shard_writer import ShardWriter
from lazystore.formats.write_settings import write_settings
from lazystore.parallel.writing.complete import complete_dataset
from lazystore.parallel.writing.write import write_dataset

RANKS = 12


def read(folder: Path) -> list[Any]:
    with StreamingDataset(folder) as dataset:
        return list(dataset)


def index(folder: Path, name: str = "index.json") -> dict[str, Any]:
    return dict(json.loads((folder / name).read_text()))


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def parts(path: Path, *, keys: bool = False, **options: Any) -> Path:
    """What twelve ranks leave that wrote ten samples each, and were not merged."""
    folder = open_folder(path)
    for rank in range(RANKS):
        table = KeyTable() if keys else None
        writer = ShardWriter(
            folder,
            write_settings(chunk_size=4, **options),
            rank=rank,
            key_fn=(lambda item: item["id"]) if keys else None,
            keys=table,
        )
        for number in range(rank * 10, rank * 10 + 10):
            writer.write(sample(number))
        writer.flush()
        write_part(folder, rank, writer.part, keys=table)
    return path


def test_parts_are_joined_in_natural_order(tmp_path: Path) -> None:
    out = parts(tmp_path / "out")
    assert complete_dataset(out) == 120
    check(read(out), range(120))
    listed = index(out)
    assert names(out) == sorted(["index.json", *(chunk["filename"] for chunk in listed["chunks"])])
    assert sorted(listed["checksums"]["files"]) == sorted(chunk["filename"] for chunk in listed["chunks"])


def test_a_complete_dataset_is_left_alone(tmp_path: Path) -> None:
    out = parts(tmp_path / "out")
    complete_dataset(out)
    before = (out / "index.json").read_bytes()
    assert complete_dataset(out) == 120
    assert (out / "index.json").read_bytes() == before


def split(name: str, folder: Path, sign: str) -> dict[str, Any]:
    """A golden dataset as LitData leaves it when the last step did not happen: one part a chunk."""
    copy(golden.GOLDEN / name / "data", folder)
    whole = index(folder)
    (folder / "index.json").unlink()
    for rank, chunk in enumerate(whole["chunks"]):
        part = {"chunks": [chunk], "config": whole["config"]}
        (folder / f"{rank}{sign}index.json").write_text(json.dumps(part, sort_keys=True))
    return whole


@pytest.mark.parametrize("sign", [".", "-"])
@pytest.mark.parametrize("name", sorted(p.parents[1].name for p in golden.GOLDEN.glob("litdata-*/data/index.json")))
def test_what_litdata_leaves_is_completed(name: str, sign: str, tmp_path: Path) -> None:
    whole = split(name, tmp_path / "out", sign)
    complete_dataset(tmp_path / "out")
    made = index(tmp_path / "out")
    assert made["chunks"] == whole["chunks"]
    assert made["config"] == whole["config"]
    assert not [path for path in names(tmp_path / "out") if path.endswith(f"{sign}index.json")]


def test_a_rank_its_node_has_already_counts_once(tmp_path: Path) -> None:
    out = parts(tmp_path / "out")
    node = {"chunks": index(out, "0.index.json")["chunks"] + index(out, "1.index.json")["chunks"]}
    (out / "0-index.json").write_text(json.dumps({**node, "config": index(out, "0.index.json")["config"]}))
    complete_dataset(out)
    check(read(out), range(120))


def test_keys_are_joined(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    out = parts(tmp_path / "out", keys=True)
    complete_dataset(out)
    table = parquet.read_table(out / "keys/shard-00000.parquet").to_pylist()
    assert {line["key"]: line["index"] for line in table} == {n: n for n in range(120)}
    assert not [name for name in names(out) if name.endswith("keys.parquet")]


def test_missing_keys_are_named(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    out = parts(tmp_path / "out", keys=True)
    (out / "3.keys.parquet").unlink()
    with pytest.raises(DatasetNotFoundError, match=r"keys of some parts are missing: 3\.keys\.parquet"):
        complete_dataset(out)


def test_missing_chunks_are_named(tmp_path: Path) -> None:
    out = parts(tmp_path / "out")
    before = names(out)
    for name in ("chunk-3-1.bin", "chunk-11-0.bin"):
        (out / name).unlink()
    with pytest.raises(DatasetNotFoundError, match=r"2 of 36 chunks are missing: chunk-11-0.bin, chunk-3-1.bin"):
        complete_dataset(out)
    assert names(out) == [name for name in before if name not in ("chunk-3-1.bin", "chunk-11-0.bin")]


@pytest.mark.parametrize("change", [-1, 1])
def test_chunks_of_another_size_are_named(change: int, tmp_path: Path) -> None:
    out = parts(tmp_path / "out")
    data = (out / "chunk-3-1.bin").read_bytes()
    (out / "chunk-3-1.bin").write_bytes(data[:-1] if change < 0 else data + b"x")
    with pytest.raises(
        FormatError, match=rf"1 of 36 .* chunk-3-1.bin \({len(data) + change} bytes instead of {len(data)}"
    ):
        complete_dataset(out)
    assert not (out / "index.json").exists()


def test_compressed_chunks_are_not_held_to_their_packed_size(tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    out = parts(tmp_path / "out", compression="zstd")
    (out / "chunk-3-1.zstd.bin").write_bytes(b"")
    with pytest.raises(FormatError, match=r"chunk-3-1.zstd.bin \(0 bytes instead of some\)"):
        complete_dataset(out)
    parts(tmp_path / "whole", compression="zstd")
    complete_dataset(tmp_path / "whole")
    check(read(tmp_path / "whole"), range(120))


def test_the_work_of_a_dead_writer_is_not_passed_over_in_silence(tmp_path: Path) -> None:
    out = parts(tmp_path / "out")
    (out / "5.index.json").unlink()
    with pytest.raises(ConfigError, match=r"no part lists chunk-5-0.bin, chunk-5-1.bin, chunk-5-2.bin: .*partial=True"):
        complete_dataset(out)
    assert complete_dataset(out, partial=True) == 110
    check(read(out), [*range(50), *range(60, 120)])


def test_an_unfinished_run_is_not_for_completing(tmp_path: Path) -> None:
    with pytest.raises(LookupError):
        write_dataset(
            jobs.failing, range(200), tmp_path / "out", num_workers=0, inputs_per_task=20, use_checkpoint=True
        )
    with pytest.raises(ConfigError, match="call it again with use_checkpoint=True"):
        complete_dataset(tmp_path / "out")


@pytest.mark.parametrize("make", [True, False])
def test_nothing_to_complete(make: bool, tmp_path: Path) -> None:
    if make:
        (tmp_path / "out").mkdir()
    with pytest.raises(DatasetNotFoundError, match="nothing was finished there"):
        complete_dataset(tmp_path / "out")


def test_parts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    out = parts(tmp_path / "out")
    part = index(out, "4.index.json")
    part["config"]["data_format"][0] = "float"
    (out / "4.index.json").write_text(json.dumps(part))
    with pytest.raises(FormatError, match=r"4\.index\.json cannot be joined to 0\.index\.json: .*data_format"):
        complete_dataset(out)


@pytest.mark.parametrize("name", ["../chunk-0-0.bin", "/etc/passwd", "a\0b"])
def test_names_that_lead_elsewhere_are_refused(name: str, tmp_path: Path) -> None:
    out = parts(tmp_path / "out")
    part = index(out, "4.index.json")
    part["chunks"][0]["filename"] = name
    (out / "4.index.json").write_text(json.dumps(part))
    with pytest.raises(UnsafeDataError):
        complete_dataset(out)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "{}", '{"chunks": [{}], "config": null}', '{"chunks": [], "config": 1}']
)
def test_a_part_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    out = parts(tmp_path / "out")
    (out / "4.index.json").write_text(text)
    with pytest.raises(LazyStoreError):
        complete_dataset(out)
    assert not (out / "index.json").exists()


def test_a_url_is_completed(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    fs = fsspec.filesystem("memory")
    fs.put(f"{parts(tmp_path / 'a')}/", f"{tmp_path}/there/", recursive=True)
    assert complete_dataset(f"memory://{tmp_path}/there") == 120
    fs.get(f"{tmp_path}/there/", f"{tmp_path}/back/", recursive=True)
    check(read(tmp_path / "back"), range(120))


def test_a_process_that_dies_on_the_way_leaves_all_that_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = parts(tmp_path / "out")

    def broken(self: LocalFolder, name: str, pieces: Any, **options: Any) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(LocalFolder, "write", broken)
        with pytest.raises(OSError, match="No space left"):
            complete_dataset(out)
    complete_dataset(out)
    check(read(out), range(120))
