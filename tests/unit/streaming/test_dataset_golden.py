"""What the real writers wrote is read back as its authors meant it, by every path and in the smallest budget."""

from __future__ import annotations

import hashlib
import random
import re
import sys
from collections import OrderedDict, deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import classic
from support import datasets, golden

from lazystore import (
    BudgetTooSmallError,
    ConfigError,
    MissingExtraError,
    StreamingDataset,
    TokensLoader,
    UnsafeDataError,
)
from lazystore.streaming.item_loader import BaseItemLoader

BLOCKS = {"litdata-classic-tokens": 32, "litdata-classic-tokens-numpy": 25}


def smallest_budget(folder: Path, **options: Any) -> int:
    """What the error names when the budget is one byte."""
    with pytest.raises(BudgetTooSmallError) as raised:
        StreamingDataset(folder, memory=1, **options)
    named = re.search(r"at least (\d+) bytes", str(raised.value))
    assert named, str(raised.value)
    return int(named.group(1))


def opened(name: str, budget: str, loader: BaseItemLoader | None = None) -> StreamingDataset:
    golden.require(name)
    place = golden.place(name)
    options: dict[str, Any] = {**golden.options(name), "item_loader": loader}
    memory = smallest_budget(place, **options) if budget == "smallest" else budget
    return StreamingDataset(place, memory=memory, **options)


@pytest.fixture(params=["8MB", "smallest"])
def budget(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_there_are_golden_datasets_to_read() -> None:
    assert len(golden.READABLE) == 49
    assert all(list((golden.GOLDEN / name / "data").iterdir()) for name in golden.READABLE)


@pytest.mark.parametrize("name", golden.READABLE)
def test_iterating_gives_every_sample_in_order(name: str, budget: str) -> None:
    with opened(name, budget) as dataset:
        golden.assert_same(dataset, golden.expected(name))
        golden.assert_same(dataset, golden.expected(name))  # the second pass finds a warm memory


@pytest.mark.parametrize("name", golden.READABLE)
def test_every_order_of_indices_gives_the_same_samples(name: str, budget: str) -> None:
    wanted = golden.expected(name)
    forward = list(range(len(wanted)))
    shuffled = random.Random(1).sample(forward, len(forward))
    for order in (forward, forward[::-1], shuffled, shuffled):
        with opened(name, budget) as dataset:
            assert len(dataset) == len(wanted)
            golden.assert_same((dataset[i] for i in order), [wanted[i] for i in order])


@pytest.mark.parametrize("name", golden.READABLE)
def test_batches_and_slices_give_the_same_samples(name: str, budget: str) -> None:
    wanted = golden.expected(name)
    order = random.Random(2).choices(range(-len(wanted), len(wanted)), k=2 * len(wanted))
    with opened(name, budget) as dataset:
        golden.assert_same(dataset.get_many(order), [wanted[i] for i in order])
        golden.assert_same(dataset.__getitems__(order), [wanted[i] for i in order])
        for cut in (slice(None), slice(None, None, -1), slice(3, -2, 3), slice(-5, None), slice(9, 2)):
            golden.assert_same(dataset[cut], wanted[cut])


@pytest.mark.parametrize("name", [name for name in golden.CLASSIC if name not in BLOCKS])
def test_stored_bytes_are_those_in_the_file(name: str, budget: str) -> None:
    golden.require(name)
    folder = golden.GOLDEN / name / "data"
    with opened(name, budget) as dataset:
        for i, leaves in enumerate(classic.items(folder)):
            data = dataset.get_bytes(i)
            assert data[4 * len(leaves) :] == b"".join(leaves)
            with dataset.view(i) as lease:
                assert bytes(lease) == data


@pytest.mark.parametrize("name", BLOCKS)
def test_tokens_come_in_blocks(name: str, budget: str) -> None:
    size = BLOCKS[name]
    wanted = golden.expected(name, f"expected_blocks_{size}.jsonl")
    order = random.Random(3).sample(range(len(wanted)), len(wanted))
    with opened(name, budget, TokensLoader(block_size=size)) as dataset:
        assert len(dataset) == len(wanted)
        golden.assert_same(dataset, wanted)
    with opened(name, budget, TokensLoader(block_size=size)) as dataset:
        golden.assert_same((dataset[i] for i in order), [wanted[i] for i in order])
        golden.assert_same(dataset.get_many(order), [wanted[i] for i in order])
        golden.assert_same(dataset[5:20:3], wanted[5:20:3])


def test_blocks_of_an_index_that_does_not_count_tokens_are_the_same(tmp_path: Path) -> None:
    name = "litdata-classic-tokens-numpy"
    folder = datasets.copy(golden.GOLDEN / name / "data", tmp_path / "data")
    datasets.edit_index(folder, lambda index: [chunk.update(dim=None) for chunk in index["chunks"]])
    wanted = golden.expected(name, "expected_blocks_25.jsonl")
    with StreamingDataset(folder, item_loader=TokensLoader(25)) as dataset:
        golden.assert_same(dataset, wanted)


def test_jpeg_pixels_are_those_of_the_stored_file() -> None:
    name = "litdata-classic-images"
    golden.require(name)
    import io

    from PIL import Image

    stored = list(classic.items(golden.GOLDEN / name / "data"))
    with opened(name, "8MB") as dataset:
        for item, leaves, want in zip(dataset, stored, golden.expected(name), strict=True):
            assert hashlib.sha256(leaves[2]).hexdigest() == want["dict"]["jpg"]["jpeg_file"]["sha256"]
            assert item["jpg"].tobytes() == Image.open(io.BytesIO(leaves[2])).tobytes()


# -- what is not read -----------------------------------------------------------------------


@pytest.mark.parametrize("name", golden.ENCRYPTED)
def test_encrypted_datasets_say_what_opens_them(name: str) -> None:
    with pytest.raises(ConfigError, match=r"index\.json.*fernet.*encryption="):
        StreamingDataset(golden.GOLDEN / name / "data")


def test_pickles_are_not_loaded_unless_allowed() -> None:
    with StreamingDataset(golden.GOLDEN / "litdata-classic-pickle" / "data") as dataset:
        for read in (lambda: dataset[0], lambda: list(dataset), lambda: dataset.get_many([0, 5])):
            with pytest.raises(UnsafeDataError, match=r"chunk-0-.*allow_pickle=True"):
                read()


def test_none_needs_no_pickle() -> None:
    name = "litdata-classic-leaves"
    golden.require(name)
    with StreamingDataset(golden.GOLDEN / name / "data") as dataset:
        assert dataset[0]["none"] is None
        golden.assert_same(dataset, golden.expected(name))


# -- without the optional packages ----------------------------------------------------------


def test_tensors_without_torch_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with StreamingDataset(golden.GOLDEN / "litdata-classic-single-leaf-tensor" / "data") as dataset:
        with pytest.raises(MissingExtraError, match=r"pip install lazystore\[torch\]"):
            dataset[0]
    with StreamingDataset(golden.GOLDEN / "litdata-le-tensor" / "data") as dataset:
        with pytest.raises(MissingExtraError, match=r"pip install lazystore\[torch\]"):
            list(dataset)


def test_compressed_chunks_without_zstandard_name_the_extra_when_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingExtraError, match=r"pip install lazystore\[zstd\]"):
        StreamingDataset(golden.GOLDEN / "litdata-classic-zstd" / "data")


def test_images_without_pillow_are_the_stored_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "litdata-classic-images"
    monkeypatch.setitem(sys.modules, "PIL", None)
    stored = list(classic.items(golden.GOLDEN / name / "data"))
    with StreamingDataset(golden.GOLDEN / name / "data") as dataset:
        for item, leaves, want in zip(dataset, stored, golden.expected(name), strict=True):
            assert (item["rgb"], item["gray"], item["jpg"]) == tuple(leaves[:3])
            assert hashlib.sha256(item["jpg"]).hexdigest() == want["dict"]["jpg"]["jpeg_file"]["sha256"]
            files = want["dict"]["many"]["list"]
            assert [hashlib.sha256(file).hexdigest() for file in item["many"]] == [
                file["jpeg_file"]["sha256"] for file in files
            ]


@pytest.mark.parametrize(
    "package, name",
    [("torch", "litdata-classic-text"), ("PIL", "litdata-classic-leaves"), ("zstandard", "litdata-classic-merged")],
)
def test_packages_that_a_dataset_does_not_need_may_be_missing(
    package: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden.require(name)
    monkeypatch.setitem(sys.modules, package, None)
    with StreamingDataset(golden.GOLDEN / name / "data") as dataset:
        golden.assert_same(dataset, golden.expected(name))


# -- the comparator itself ------------------------------------------------------------------

SHA_EMPTY = hashlib.sha256(b"").hexdigest()


@pytest.mark.parametrize(
    "value, want",
    [
        (True, {"int": 1}),
        (1, {"bool": True}),
        (np.int64(3), {"int": 3}),
        (0.0, {"float": "-0x0.0p+0"}),
        (np.float64(1.5), {"float": (1.5).hex()}),
        (bytearray(b"a"), {"bytes": "YQ=="}),
        ("a", {"bytes": "YQ=="}),
        (None, {"str": "None"}),
        ([1], {"tuple": [{"int": 1}]}),
        ([1], {"list": [{"int": 1}, {"int": 2}]}),
        ({"b": 1, "a": 2}, {"dict": {"a": {"int": 2}, "b": {"int": 1}}}),
        ({1: 1}, {"dict_items": [[{"str": "1"}, {"int": 1}]]}),
        ({"a": 1}, {"odict": [[{"str": "a"}, {"int": 1}]]}),
        (OrderedDict(a=1), {"dict": {"a": {"int": 1}}}),
        (deque([1], 5), {"deque": {"maxlen": 4, "items": [{"int": 1}]}}),
        (np.zeros(0, "<f4"), {"ndarray": {"dtype": "<f8", "shape": [0], "sha256": SHA_EMPTY}}),
        (np.zeros((0, 2), "<f4"), {"ndarray": {"dtype": "<f4", "shape": [0], "sha256": SHA_EMPTY}}),
        (np.ones(1, "<f4"), {"ndarray": {"dtype": "<f4", "shape": [1], "sha256": SHA_EMPTY}}),
    ],
)
def test_the_comparator_tells_look_alikes_apart(value: Any, want: dict[str, Any]) -> None:
    assert golden.difference(value, want)
    with pytest.raises(AssertionError):
        golden.assert_same([value], [want])
