"""What we write, the real LitData reads, equal to the input: every leaf, container and option of the writer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("litdata")

from support import jobs, litdata_peer  # noqa: E402
from support.interop_samples import KINDS, samples  # noqa: E402
from support.litdata_peer import IN_FILE, assert_same, iterated, looked_up  # noqa: E402

from lazystore import DatasetWriter  # noqa: E402
from lazystore.formats.chunk_files import open_folder  # noqa: E402
from lazystore.formats.dataset_folder import write_part  # noqa: E402
from lazystore.formats.shard_writer import ShardWriter  # noqa: E402
from lazystore.formats.write_settings import write_settings  # noqa: E402
from lazystore.parallel.writing.complete import complete_dataset  # noqa: E402
from lazystore.parallel.writing.merge import merge_datasets  # noqa: E402
from lazystore.parallel.writing.write import write_dataset  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

COUNT = 100
needs_in_file = pytest.mark.skipif(not IN_FILE, reason="this LitData knows no compression inside chunks")


def ours(folder: Path, values: list[Any], **options: Any) -> Path:
    if not options.keys() & {"chunk_size", "chunk_bytes"}:
        options["chunk_size"] = 16
    with DatasetWriter(folder, **options) as writer:
        for value in values:
            writer.write(value)
    return folder


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("read", [iterated, looked_up])
def test_every_kind_of_sample(kind: str, read: Any, tmp_path: Path) -> None:
    values = samples(kind, COUNT)
    assert_same(values, read(ours(tmp_path / "out", values)))


@pytest.mark.parametrize("kind", ["text", "leaves", "pair", "single_str"])
@pytest.mark.parametrize(
    "options",
    [
        {"chunk_bytes": 700},
        {"chunk_bytes": "64MB"},
        {"chunk_size": 1},
        {"checksums": False},
        {"compression": "zstd"},
        {"compression": "zstd:9", "chunk_bytes": 2000},
        pytest.param({"compression": "zstd", "compression_level": "batch"}, marks=needs_in_file),
        pytest.param(
            {"compression": "zstd:3", "compression_level": "batch", "compression_batch_size": 5}, marks=needs_in_file
        ),
        pytest.param({"compression": "zstd", "compression_level": "sample"}, marks=needs_in_file),
    ],
    ids=str,
)
def test_every_option(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    values = samples(kind, COUNT)
    folder = ours(tmp_path / "out", values, **options)
    assert_same(values, iterated(folder))
    assert_same(values, looked_up(folder))


@pytest.mark.parametrize("level", ["sample", "chunk"])
@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("kind", ["arrays", "pair"])
def test_encryption(level: str, compression: str | None, kind: str, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    from litdata.utilities.encryption import FernetEncryption as Theirs

    from lazystore.formats.encryption import FernetEncryption

    mine = FernetEncryption("a password", level)
    mine.save(tmp_path / "key.json")
    values = samples(kind, COUNT)
    folder = ours(tmp_path / "out", values, encryption=mine, compression=compression)
    assert_same(values, iterated(folder, encryption=Theirs.load(str(tmp_path / "key.json"), "a password")))
    # and with the key LitData made
    key = Theirs("another password", level)
    key.save(str(tmp_path / "theirs.json"))
    loaded = FernetEncryption.load(tmp_path / "theirs.json", "another password")
    folder = ours(tmp_path / "again", values, encryption=loaded, compression=compression)
    assert_same(values, iterated(folder, encryption=key))


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("limit", [{"chunk_size": 100}, {"chunk_bytes": 900}], ids=str)
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_tokens(kind: str, limit: dict[str, Any], compression: str | None, tmp_path: Path) -> None:
    from litdata.streaming.item_loader import TokensLoader

    make = torch.arange if kind == "torch" else np.arange
    dtype: Any = torch.int32 if kind == "torch" else np.int32
    documents = [make(n, n + 3 + n % 11, dtype=dtype) for n in range(1, 80)]
    options: dict[str, Any] = {**limit, "compression": compression}
    folder = ours(tmp_path / "out", documents, tokens=True, **options)
    if compression and IN_FILE:
        options["compression_level"] = "chunk"
    theirs = litdata_peer.write(tmp_path / "theirs", documents, item_loader=TokensLoader(), **options)
    found = litdata_peer.blocks(folder, 10)
    assert found == litdata_peer.blocks(theirs, 10)
    assert found[0] == [1, 2, 3, 4, 2, 3, 4, 5, 6, 3]
    assert len(found) > 40


def test_appended(tmp_path: Path) -> None:
    values = samples("leaves", COUNT)
    folder = ours(tmp_path / "out", values[:30])
    ours(folder, values[30:70], mode="append")
    ours(folder, values[70:], mode="append")
    assert_same(values, iterated(folder))


def test_added_to_a_dataset_of_litdatas(tmp_path: Path) -> None:
    values = samples("arrays", COUNT)
    folder = litdata_peer.write(tmp_path / "out", values[:50], chunk_size=16)
    ours(folder, values[50:], mode="append")
    assert_same(values, iterated(folder))


def test_overwritten(tmp_path: Path) -> None:
    folder = ours(tmp_path / "out", samples("text", COUNT))
    ours(folder, samples("leaves", COUNT), mode="overwrite")
    assert_same(samples("leaves", COUNT), iterated(folder))


def test_written_by_workers(tmp_path: Path) -> None:
    write_dataset(jobs.slow_row, range(300), tmp_path / "out", num_workers=2, chunk_bytes=1500)
    assert_same([jobs.row(number) for number in range(300)], iterated(tmp_path / "out"))


def test_merged(tmp_path: Path) -> None:
    values = samples("arrays", COUNT)
    parts = [
        ours(tmp_path / "a", values[:30]),
        litdata_peer.write(tmp_path / "b", values[30:60], chunk_size=7),
        ours(tmp_path / "c", values[60:], chunk_bytes=500),
    ]
    merge_datasets(parts, tmp_path / "out")
    assert_same(values, iterated(tmp_path / "out"))


@pytest.mark.parametrize("kind", ["text", "arrays", "pair"])
@pytest.mark.parametrize("by", ["lazystore", "litdata"])
def test_completed(kind: str, by: str, tmp_path: Path) -> None:
    """Parts of several ranks, whoever joins them."""
    values = samples(kind, COUNT)
    folder = tmp_path / "out"
    for rank in range(11):
        writer = ShardWriter(open_folder(folder), write_settings(chunk_size=4), rank=rank)
        for value in values[rank * 10 : rank * 10 + 10]:
            writer.write(value)
        writer.flush()
        if writer.part.chunks:
            write_part(open_folder(folder), rank, writer.part)
    if by == "lazystore":
        complete_dataset(folder)
    elif hasattr(litdata_peer.litdata, "complete_dataset"):
        litdata_peer.litdata.complete_dataset(str(folder))
    else:
        pytest.skip("this LitData has no complete_dataset")
    assert_same(values, iterated(folder))


def test_found_by_key(tmp_path: Path) -> None:
    pytest.importorskip("polars")
    if not hasattr(litdata_peer.litdata.StreamingDataset, "get_by_key"):
        pytest.skip("this LitData knows no keys")
    values = samples("arrays", COUNT)
    for folder, key_fn in [(tmp_path / "text", by_name), (tmp_path / "int", by_id)]:
        dataset = litdata_peer.dataset(ours(folder, values, key_fn=key_fn))
        for i in (0, 1, 57, COUNT - 1):
            assert_same([values[i]], [dataset.get_by_key(key_fn(values[i]))])
        with pytest.raises(KeyError):
            dataset.get_by_key(key_fn({"id": COUNT, "name": "nobody"}))


def by_name(sample: dict[str, Any]) -> str:
    return str(sample["name"])


def by_id(sample: dict[str, Any]) -> int:
    return int(sample["id"])


def test_through_their_loader(tmp_path: Path) -> None:
    from litdata import StreamingDataLoader

    folder = ours(tmp_path / "out", samples("text", COUNT))
    loader = StreamingDataLoader(litdata_peer.dataset(folder, shuffle=True), batch_size=8)
    found = [int(number) for batch in loader for number in batch["id"]]
    assert sorted(found) == list(range(COUNT))
    assert found != sorted(found)


# -- where chunks end ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["arrays", "pair", "single_str", "numbered", "text"])
@pytest.mark.parametrize(
    "limit", [{"chunk_size": 7}, {"chunk_bytes": 600}, {"chunk_bytes": 150}, {"chunk_bytes": "2KB"}], ids=str
)
def test_chunks_are_litdatas_byte_for_byte(kind: str, limit: dict[str, Any], tmp_path: Path) -> None:
    """Where LitData itself writes the classic layout."""
    if IN_FILE and kind == "text":
        pytest.skip("this LitData writes such rows as Arrow")
    values = [value for value in samples(kind, COUNT) if value != ""]
    theirs = litdata_peer.write(tmp_path / "theirs", values, **limit)
    folder = ours(tmp_path / "ours", values, **limit)
    assert chunks(folder) == chunks(theirs)


def chunks(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("chunk-*.bin")}


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_token_chunks_are_litdatas_byte_for_byte(kind: str, tmp_path: Path) -> None:
    from litdata.streaming.item_loader import TokensLoader

    make = torch.arange if kind == "torch" else np.arange
    documents = [make(n, n + 3 + n % 11) for n in range(1, 80)]
    for limit in ({"chunk_size": 60}, {"chunk_bytes": 700}):
        name = next(iter(limit))
        theirs = litdata_peer.write(tmp_path / f"theirs {name}", documents, item_loader=TokensLoader(), **limit)
        folder = ours(tmp_path / f"ours {name}", documents, tokens=True, **limit)
        assert chunks(folder) == chunks(theirs)


@pytest.mark.parametrize("kind", ["arrays", "pair", "leaves"])
def test_the_index_has_what_litdata_writes(kind: str, tmp_path: Path) -> None:
    values = samples(kind, 20)
    theirs = json.loads((litdata_peer.write(tmp_path / "theirs", values, chunk_size=7) / "index.json").read_text())
    mine = json.loads((ours(tmp_path / "ours", values, chunk_size=7) / "index.json").read_text())
    assert mine["chunks"] == theirs["chunks"]
    assert {key: theirs["config"].get(key) for key in mine["config"]} == mine["config"]
