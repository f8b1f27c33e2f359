"""Appending and overwriting: the old dataset or the new one, whatever happens and whenever."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from models import classic

from lazystore import StreamingDataset
from lazystore.errors import ConfigError, FormatError, UnsafeDataError, WriteError
from lazystore.formats.chunk_files import LocalFolder
from lazystore.formats.writer import DatasetWriter


def write(folder: Path, samples: Any, **options: Any) -> dict[str, Any]:
    with DatasetWriter(folder, **options) as writer:
        for sample in samples:
            writer.write(sample)
    return classic.read_index(folder)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


OLD = [{"id": i, "text": "old " * i} for i in range(10)]
NEW = [{"id": i, "text": "new " * i} for i in range(7)]


# --- append -----------------------------------------------------------------------------------------


def test_appending_leaves_old_chunks_alone_and_continues_their_numbers(tmp_path: Path) -> None:
    write(tmp_path, OLD, chunk_size=4)
    before = files(tmp_path)
    index = write(tmp_path, NEW, chunk_size=3, mode="append")
    after = files(tmp_path)
    assert {name: after[name] for name in before if name != "index.json"} == {
        name: data for name, data in before.items() if name != "index.json"
    }
    assert [c["filename"] for c in index["chunks"]] == [f"chunk-0-{k}.bin" for k in range(6)]
    assert list(classic.samples(tmp_path)) == OLD + NEW
    assert sorted(index["checksums"]["files"]) == [f"chunk-0-{k}.bin" for k in range(6)]
    assert index["config"]["chunk_size"] == 4  # the index's limits stay those it was begun with


def test_appending_to_nothing_makes_a_dataset(tmp_path: Path) -> None:
    write(tmp_path / "new", OLD, mode="append")
    assert list(classic.samples(tmp_path / "new")) == OLD


def test_appending_no_sample_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path, OLD)
    before = files(tmp_path)
    with DatasetWriter(tmp_path, mode="append"):
        pass
    assert files(tmp_path) == before


def test_appended_samples_must_fit_the_dataset_not_only_each_other(tmp_path: Path) -> None:
    write(tmp_path, OLD)
    with DatasetWriter(tmp_path, mode="append") as writer:
        with pytest.raises(FormatError, match=r"sample 10, at \['id'\]: a value of type str"):
            writer.write({"id": "1", "text": "x"})
        with pytest.raises(FormatError, match=r"sample 10: keys differ"):
            writer.write({"id": 1})
        writer.write({"text": "order of keys is the dataset's", "id": 10})
    assert list(classic.samples(tmp_path))[-1] == {"id": 10, "text": "order of keys is the dataset's"}
    assert classic.split_chunk((tmp_path / "chunk-0-1.bin").read_bytes(), 2)[0][0] == (10).to_bytes(8, "little")


def test_foreign_top_level_keys_survive_appending(tmp_path: Path) -> None:
    index = write(tmp_path, OLD, checksums=False)
    (tmp_path / "index.json").write_text(json.dumps({**index, "mine": {"a": 1}}))
    index = write(tmp_path, NEW, mode="append")
    assert index["mine"] == {"a": 1}
    assert list(index["checksums"]["files"]) == ["chunk-0-1.bin"]  # old files have none


@pytest.mark.parametrize("golden", ["litdata-classic-text", "litdata-classic-zstd", "litdata-classic-containers"])
def test_datasets_written_by_litdata_can_be_added_to(golden: str, tmp_path: Path) -> None:
    theirs = classic.GOLDEN / golden
    for path in (theirs / "data").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    items = list(classic.items(tmp_path))
    config = classic.read_index(tmp_path)["config"]
    with StreamingDataset(tmp_path, memory="4MB") as dataset:
        sample = dataset[0]
    index = write(tmp_path, [sample], mode="append")
    assert index["config"] == config  # compression was taken over
    assert list(classic.items(tmp_path)) == [*items, items[0]]


def test_names_of_a_killed_appender_are_not_used_again(tmp_path: Path) -> None:
    write(tmp_path, OLD)
    (tmp_path / "chunk-0-5.bin").write_bytes(b"left over")
    index = write(tmp_path, NEW, mode="append")
    assert [c["filename"] for c in index["chunks"]] == ["chunk-0-0.bin", "chunk-0-6.bin"]
    assert (tmp_path / "chunk-0-5.bin").read_bytes() == b"left over"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compression": "zstd"}, "differ in compression"),
        ({"tokens": True}, "item_loader"),
    ],
)
def test_appending_with_other_storage_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    write(tmp_path, OLD)
    before = files(tmp_path)
    with pytest.raises(ConfigError, match=message):
        DatasetWriter(tmp_path, mode="append", **options)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (b"{", FormatError, "not JSON"),
        (b"[" * 100_000, FormatError, "not JSON"),
        (b"[]", FormatError, "holds a list"),
        (b'{"shards": []}', FormatError, "no list"),
        (b'{"chunks": [], "config": null}', FormatError, "no config"),
        (b'{"chunks": [7], "config": {}}', FormatError, "chunk 0"),
        (b'{"chunks": [{"filename": "a", "chunk_size": -1}], "config": {}}', FormatError, "number of items"),
        (b'{"chunks": [], "config": {"item_loader": "ParquetLoader"}}', ConfigError, "ParquetLoader"),
    ],
)
def test_what_is_no_dataset_cannot_be_added_to(
    index: bytes, error: type[Exception], message: str, tmp_path: Path
) -> None:
    (tmp_path / "index.json").write_bytes(index)
    with pytest.raises(error, match=message):
        DatasetWriter(tmp_path, mode="append")
    assert files(tmp_path) == {"index.json": index}


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"data_format": ["int"], "data_spec": "{"}, FormatError),
        ({"data_format": ["int"], "data_spec": "[1, {}]"}, FormatError),
        ({"data_format": ["int"], "data_spec": "[2, null]"}, FormatError),
        ({"data_format": ["int", "int"]}, FormatError),
        ({"data_format": []}, FormatError),
    ],
)
def test_damaged_schemas_cannot_be_added_to(config: dict[str, Any], error: type[Exception], tmp_path: Path) -> None:
    index = write(tmp_path, [1, 2])
    (tmp_path / "index.json").write_text(json.dumps({**index, "config": {**index["config"], **config}}))
    with pytest.raises(error):
        DatasetWriter(tmp_path, mode="append")


def test_chunks_without_an_index_cannot_be_added_to(tmp_path: Path) -> None:
    (tmp_path / "chunk-0-0.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match="complete_dataset"):
        DatasetWriter(tmp_path, mode="append")


def test_failing_append_leaves_the_dataset_as_it_was(tmp_path: Path) -> None:
    write(tmp_path, OLD)
    before = files(tmp_path)
    with pytest.raises(RuntimeError), DatasetWriter(tmp_path, mode="append", chunk_size=1) as writer:
        writer.write(NEW[0])
        writer.write(NEW[1])
        raise RuntimeError("stop")
    assert files(tmp_path) == before


# --- overwrite --------------------------------------------------------------------------------------


def test_overwriting_keeps_the_old_dataset_readable_until_the_new_one_is_there(tmp_path: Path) -> None:
    write(tmp_path, OLD, chunk_size=4)
    writer = DatasetWriter(tmp_path, mode="overwrite", chunk_size=2)
    for sample in NEW:
        writer.write(sample)
        assert list(classic.samples(tmp_path)) == OLD
    writer.close()
    assert list(classic.samples(tmp_path)) == NEW
    names = [c["filename"] for c in classic.read_index(tmp_path)["chunks"]]
    assert sorted(files(tmp_path)) == sorted([*names, "index.json"])


def test_overwriting_again_and_again_never_reuses_a_name_that_is_there(tmp_path: Path) -> None:
    seen: set[str] = set()
    for _ in range(4):
        index = write(tmp_path, OLD, mode="overwrite", chunk_size=5)
        names = {c["filename"] for c in index["chunks"]}
        assert names.isdisjoint(seen)
        assert sorted(files(tmp_path)) == sorted([*names, "index.json"])
        seen = names
    assert list(classic.samples(tmp_path)) == OLD


def test_overwriting_clears_what_killed_writers_left_and_nothing_else(tmp_path: Path) -> None:
    for name in ("0.index.json", "3.keys.parquet", "1-index.json", "chunk-7-0.zstd.bin", ".chunk-0-0.bin.123.tmp"):
        (tmp_path / name).write_bytes(b"torn")
    mine = ("notes.txt", "train.parquet", "chunk.bin", ".chunk-0-0.tmp")
    for name in mine:
        (tmp_path / name).write_bytes(b"mine")
    write(tmp_path, NEW, mode="overwrite")
    assert sorted(files(tmp_path)) == sorted([*mine, "chunk-0-0-v1.bin", "index.json"])


@pytest.mark.parametrize("index", ['{"shards": []}', '{"chunks": [], "config": {"item_loader": "ParquetLoader"}}'])
def test_datasets_of_another_kind_are_not_overwritten(index: str, tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(index)
    with pytest.raises(ConfigError, match="not overwritten"):
        DatasetWriter(tmp_path, mode="overwrite")


def test_an_index_that_cannot_be_read_may_be_overwritten(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text("{")
    write(tmp_path, NEW, mode="overwrite")
    assert list(classic.samples(tmp_path)) == NEW


def test_failing_overwrite_leaves_the_dataset_as_it_was(tmp_path: Path) -> None:
    write(tmp_path, OLD, chunk_size=4)
    before = files(tmp_path)
    with pytest.raises(RuntimeError), DatasetWriter(tmp_path, mode="overwrite", chunk_size=1) as writer:
        writer.write(NEW[0])
        writer.write(NEW[1])
        raise RuntimeError("stop")
    assert files(tmp_path) == before


def test_unknown_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mode='w'"):
        DatasetWriter(tmp_path, mode="w")


def test_folder_that_cannot_be_written_is_refused_before_the_first_sample(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(WriteError, match="Not a directory"):
        DatasetWriter(tmp_path / "file" / "below")


# --- kill -9 ----------------------------------------------------------------------------------------

KILL_AT_EVERY_CALL = """
import os, signal, sys
from pathlib import Path
from lazystore.formats.writer import DatasetWriter

mode, keyed, root = sys.argv[1], sys.argv[2] == "keys", Path(sys.argv[3])
key_fn = (lambda s: s["id"]) if keyed else None
shift = 100 if mode == "append" else 0
if keyed:
    import pyarrow.parquet

def samples(word, count, shift=0):
    return [{"id": i + shift, "text": word * i} for i in range(count)]

def write(folder, samples, **options):
    with DatasetWriter(folder, chunk_size=3, key_fn=key_fn, **options) as writer:
        for sample in samples:
            writer.write(sample)

calls = 0
def deadly(function, last):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call

n = 0
while True:
    folder = root / str(n)
    if mode != "new":
        write(folder, samples("old", 5))
    n += 1
    child = os.fork()
    if child == 0:
        for name in ("write", "replace", "unlink", "open", "fsync"):
            setattr(os, name, deadly(getattr(os, name), n))
        write(folder, samples("new", 5, shift), **({} if mode == "new" else {"mode": mode}))
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        break
print(n)
"""


@pytest.mark.parametrize("keys", ["", "keys"])
@pytest.mark.parametrize("mode", ["new", "append", "overwrite"])
def test_killed_at_any_call_there_is_the_old_dataset_or_the_new_one(mode: str, keys: str, tmp_path: Path) -> None:
    if keys:
        pytest.importorskip("pyarrow")
    run = subprocess.run(
        [sys.executable, "-c", KILL_AT_EVERY_CALL, mode, keys, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert run.returncode == 0, run.stderr
    deaths = int(run.stdout) - 1
    old = [{"id": i, "text": "old" * i} for i in range(5)]
    shift = 100 if mode == "append" else 0
    new = [{"id": i + shift, "text": "new" * i} for i in range(5)]
    after = {"new": new, "append": old + new, "overwrite": new}[mode]
    seen = set()
    for n in range(deaths + 1):
        folder = tmp_path / str(n)
        state = list(classic.samples(folder)) if (folder / "index.json").exists() else None
        assert state in ([None, after] if mode == "new" else [old, after]), f"killed at call {n + 1}"
        seen.add(str(state))
        if keys and state is not None:
            _check_keys(folder, state)
        # whatever is left can be written over
        assert write(folder, new, mode="overwrite")["chunks"]
        assert list(classic.samples(folder)) == new
        assert len(files(folder)) == 2
    assert len(seen) == 2
    assert deaths > 10


def _check_keys(folder: Path, state: list[dict[str, Any]]) -> None:
    """No key leads to another item; it may lead nowhere."""
    import pyarrow.parquet as parquet

    path = folder / "keys" / "shard-00000.parquet"
    if not path.exists():
        return
    rows = parquet.read_table(path).to_pylist()
    for row in rows:
        if row["index"] < len(state):
            assert state[row["index"]]["id"] == row["key"]
    assert len(rows) >= len(state)


def test_an_index_that_names_files_elsewhere_is_not_added_to(tmp_path: Path) -> None:
    write(tmp_path / "out", OLD)
    index = (tmp_path / "out" / "index.json").read_text().replace("chunk-0-0.bin", "../chunk-0-0.bin")
    (tmp_path / "out" / "index.json").write_text(index)
    with pytest.raises(UnsafeDataError, match="inside its folder"):
        DatasetWriter(tmp_path / "out", mode="append")


def test_the_error_that_ended_a_writer_is_told_even_where_chunks_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: LocalFolder, name: str) -> None:
        raise WriteError(5, "refused", name)

    with pytest.raises(RuntimeError, match="mine") as caught, DatasetWriter(tmp_path / "out", chunk_size=2) as writer:
        for sample in OLD:
            writer.write(sample)
        monkeypatch.setattr(LocalFolder, "delete", refuse)
        raise RuntimeError("mine")
    assert "could not be removed" in caught.value.__notes__[0]
