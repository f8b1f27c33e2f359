"""What the real LitData writes now, we read, equal to the input; golden data shows the same for what it wrote then."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("litdata")

from support import litdata_peer  # noqa: E402
from support.interop_samples import KINDS, samples  # noqa: E402
from support.litdata_peer import IN_FILE, assert_same  # noqa: E402

from lazystore import StreamingDataset  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

COUNT = 300
needs_in_file = pytest.mark.skipif(not IN_FILE, reason="this LitData knows no compression inside chunks")


def read(folder: Path, **options: Any) -> list[Any]:
    with StreamingDataset(folder, allow_pickle=True, **options) as dataset:
        items = list(dataset)
        assert_same(items, [dataset[i] for i in range(len(dataset))])
        return items


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_of_sample(kind: str, tmp_path: Path) -> None:
    values = samples(kind, COUNT)
    folder = litdata_peer.write(tmp_path / "theirs", values, chunk_size=70)
    if IN_FILE and kind == "nested":  # it makes a plain dict of an OrderedDict inside a row
        values = [{**value, "ordered": dict(value["ordered"])} for value in values]
    assert_same(read(folder), values)


@pytest.mark.parametrize("kind", ["text", "arrays", "pair", "single_str"])
@pytest.mark.parametrize(
    "options",
    [
        {"chunk_bytes": 3000},
        {"chunk_size": 30, "compression": "zstd"},
        pytest.param({"chunk_size": 300, "compression": "zstd", "compression_level": "batch"}, marks=needs_in_file),
        pytest.param({"chunk_size": 30, "compression": "zstd", "compression_level": "sample"}, marks=needs_in_file),
        pytest.param({"chunk_size": 30, "compression": "zstd", "compression_level": "chunk"}, marks=needs_in_file),
    ],
    ids=str,
)
def test_every_option(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    values = samples(kind, COUNT)
    assert_same(read(litdata_peer.write(tmp_path / "theirs", values, **options)), values)


@pytest.mark.parametrize("level", ["sample", "chunk"])
@pytest.mark.parametrize("kind", ["arrays", "pair"])
def test_encryption(level: str, kind: str, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    from litdata.utilities.encryption import FernetEncryption as Theirs

    from lazystore.formats.encryption import FernetEncryption

    key = Theirs("a password", level)
    key.save(str(tmp_path / "key.json"))
    values = samples(kind, COUNT)
    folder = litdata_peer.write(tmp_path / "theirs", values, chunk_size=70, encryption=key)
    assert_same(read(folder, encryption=FernetEncryption.load(tmp_path / "key.json", "a password")), values)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_tokens(kind: str, tmp_path: Path) -> None:
    from litdata.streaming.item_loader import TokensLoader as Theirs

    from lazystore import TokensLoader

    make = torch.arange if kind == "torch" else np.arange
    documents = [make(n, n + 3 + n % 11) for n in range(1, 80)]
    folder = litdata_peer.write(tmp_path / "theirs", documents, chunk_size=60, item_loader=Theirs())
    wanted = litdata_peer.iterated(folder, item_loader=Theirs(block_size=10))
    assert_same(read(folder, item_loader=TokensLoader(block_size=10)), wanted)


def optimized(i: int) -> dict[str, Any]:
    return {"id": i, "text": f"text {i}", "array": np.arange(i % 9)}


def test_optimize_with_workers(tmp_path: Path) -> None:
    """The whole way a user of LitData goes."""
    with tempfile.TemporaryDirectory(dir=tmp_path) as cache, pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATA_OPTIMIZER_CACHE_FOLDER", cache)
        patch.setenv("DATA_OPTIMIZER_DATA_CACHE_FOLDER", cache)
        litdata_peer.litdata.optimize(
            optimized, list(range(200)), str(tmp_path / "theirs"), chunk_size=30, num_workers=2, reorder_files=False
        )
    found = sorted(read(tmp_path / "theirs"), key=lambda sample: int(sample["id"]))
    assert_same(found, [optimized(i) for i in range(200)])
