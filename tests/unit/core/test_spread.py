"""Items across frames: the leaves of any plan come out as they would of contiguous bytes."""

from __future__ import annotations

import random
import struct
import zlib
from typing import Any

import pytest
from models.chunked import ChunkedItems, Loader
from models.decode_plan import NULL, DecodePlanModel, same

from lazystore._core.decode import DecodePlan
from lazystore._core.frames import FrameStore
from lazystore._core.reader import Reader
from lazystore.errors import FormatError

FRAME = 4096
NUMBERS = ("packed_array", ("uint16", None))
LEAVES: list[tuple[Any, ...]] = [
    ("int", None, {"fixed": 8}),
    ("bytes", None),
    ("packed_array", ("float32", (900,)), {"fixed": 3600}),
    ("str", None, {"nullable": True}),
    ("call", bytes.hex, {"nullable": True}),
    ("bytes", None, {"fixed": 5000}),
    (*NUMBERS, {"nullable": True}),
]
TREES: list[list[tuple[Any, ...]]] = [
    [*[("leaf",)] * len(LEAVES), ("dict", [*"abcdefg"])],
    [*[("leaf",)] * len(LEAVES), ("tuple", 3), ("list", 5)],
]


def stored_items(rng: random.Random, n: int) -> list[bytes]:
    items = []
    for number in range(n):
        data = rng.randbytes(rng.choice([0, 5, 3000, 9000]))
        text = None if rng.random() < 0.5 else "ä" * rng.choice([0, 3, 2500])
        called = None if rng.random() < 0.5 else rng.randbytes(3)
        values = None if rng.random() < 0.5 else rng.randbytes(2 * rng.choice([1, 2100]))
        array = None if values is None else b"\x05" + struct.pack("<H", len(values) // 2) + values
        sizes = [NULL if part is None else len(part) for part in (data, text and text.encode(), called, array)]
        sizes[1] = 0 if text == "" else sizes[1]
        parts = [number.to_bytes(8, "little"), data, rng.randbytes(3600), (text or "").encode(), called or b""]
        items.append(struct.pack("<4I", *sizes) + b"".join([*parts, rng.randbytes(5000), array or b""]))
    return items


def reader_of(items: list[bytes], plan: DecodePlan) -> Reader:
    store = FrameStore(1 << 20, frame_bytes=FRAME)
    data = ChunkedItems([items[:7], items[7:]])
    loader = Loader(store, data, "frames")
    reader = loader.reader = Reader(store, plan, loader, data.counts)
    return reader


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("opener", [None, zlib.decompress])
@pytest.mark.parametrize("seed", range(3))
def test_items_of_several_frames_decode_as_from_one_buffer(tree: Any, opener: Any, seed: int) -> None:
    items = stored_items(random.Random(seed), 20)
    if opener is not None:
        items = [zlib.compress(item) for item in items]
    plan = DecodePlan(LEAVES, tree, names="abcdefg", opener=opener)
    model = DecodePlanModel(LEAVES, tree, opener=opener)
    reader = reader_of(items, plan)
    for _ in range(2):
        for k, item in enumerate(items):
            assert same(reader.get(k), model(item))
            assert same(plan(item), model(item))


@pytest.mark.parametrize("cut", [1, 5001, 9000])
@pytest.mark.parametrize("tree", TREES)
def test_an_item_of_several_frames_that_is_too_short_is_refused(cut: int, tree: Any) -> None:
    item = stored_items(random.Random(1), 20)[0]
    reader = reader_of([item[: max(len(item) - cut, 0)]] * 8, DecodePlan(LEAVES, tree, names="abcdefg"))
    for k in range(8):
        with pytest.raises(FormatError):
            reader.get(k)
