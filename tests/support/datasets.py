"""Datasets made on the spot: good ones through the writer, crafted ones byte by byte.

``sample(i)`` is a pure function of the item number, so every reader can check what it got.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lazystore import DatasetWriter, StreamingDataset

#: of samples written by :func:`write`, in leaf order
TAGS = ["int", "str", "bytes", "no_header_numpy:9"]
LEAF = {"type": None, "context": None, "children_spec": []}


def sample(i: int, size: int = 200) -> dict[str, Any]:
    """Item ``i``: about 1.5 ``size`` bytes, of many lengths, every byte a function of ``i``."""
    seed = hashlib.sha256(str(i).encode()).digest()
    length = int.from_bytes(seed[:4], "little") % (2 * size)
    return {
        "id": i,
        "text": f"item {i} — " + "täxt " * (seed[4] % 7),
        "blob": (seed * (length // len(seed) + 1))[:length],
        "vector": np.frombuffer(seed[:12], "<i4").astype("<f4") * np.float32(0.5),
    }


def same(one: Any, other: Any) -> bool:
    """Equal in type and value, arrays included."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def check(items: Iterable[Any], numbers: Iterable[int], size: int = 200) -> None:
    """The items are exactly the samples of these numbers, in this order."""
    items, numbers = list(items), list(numbers)
    assert [item["id"] for item in items] == numbers
    for item, i in zip(items, numbers, strict=True):
        assert same(item, sample(i, size)), f"item {i} came out as {item!r}"


def write(folder: Path, count: int, *, size: int = 200, **options: Any) -> Path:
    """``count`` samples through the writer; chunks of 50 items when nothing else is said."""
    if not options.keys() & {"chunk_size", "chunk_bytes"}:
        options["chunk_size"] = 50
    with DatasetWriter(folder, **options) as writer:
        for i in range(count):
            writer.write(sample(i, size))
    return folder


def copy(source: Path, folder: Path) -> Path:
    shutil.copytree(source, folder)
    return folder


def edit_index(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Apply a change to the parsed index.json."""
    path = folder / "index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))
    return folder


def edit_bytes(path: Path, at: int, data: bytes) -> None:
    """Overwrite bytes of a file; a negative position counts from the end."""
    content = bytearray(path.read_bytes())
    at = at if at >= 0 else len(content) + at
    content[at : at + len(data)] = data
    path.write_bytes(content)


def reads(dataset: StreamingDataset, i: int) -> dict[str, Callable[[], Any]]:
    """Every way to one item, each giving the decoded item."""
    return {
        "index": lambda: dataset[i],
        "batch": lambda: dataset.get_many([i])[0],
        "slice": lambda: dataset[i : i + 1][0],
        "bytes": lambda: dataset._opened.plan(dataset.get_bytes(i)),
        "view": lambda: dataset._opened.plan(memoryview(dataset.view(i))),
    }


# -- byte by byte ---------------------------------------------------------------------------


def item_bytes(leaves: Sequence[bytes]) -> bytes:
    """``u32 size[n] | leaves``."""
    return struct.pack(f"<{len(leaves)}I", *map(len, leaves)) + b"".join(leaves)


def chunk_bytes(items: Sequence[bytes]) -> bytes:
    """``u32 n | u32 offset[n + 1] | items``."""
    offsets = [4 + 4 * (len(items) + 1)]
    for item in items:
        offsets.append(offsets[-1] + len(item))
    return struct.pack(f"<{len(items) + 1 + 1}I", len(items), *offsets) + b"".join(items)


def dict_spec(*keys: str) -> str:
    return json.dumps([1, {"type": "builtins.dict", "context": json.dumps(keys), "children_spec": [LEAF] * len(keys)}])


def tree_spec(kind: str, context: Any, children: int = 0) -> str:
    return json.dumps([1, {"type": kind, "context": context, "children_spec": [LEAF] * children}])


def craft(folder: Path, chunks: Sequence[Sequence[bytes]], tags: Sequence[str], **config: Any) -> Path:
    """A dataset out of finished items; ``config`` overrides what the index says."""
    folder.mkdir(parents=True)
    entries = []
    for k, items in enumerate(chunks):
        data = chunk_bytes(items)
        (folder / f"chunk-0-{k}.bin").write_bytes(data)
        entries.append(
            {"chunk_bytes": len(data), "chunk_size": len(items), "dim": None, "filename": f"chunk-0-{k}.bin"}
        )
    settings = {
        "chunk_bytes": None, "chunk_size": 10, "compression": None, "data_format": list(tags),
        "data_spec": json.dumps([1, LEAF]), "encryption": None, "item_loader": "PyTreeLoader",
    }  # fmt: skip
    index = {"chunks": entries, "config": settings | config, "updated_at": "1"}
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def one_leaf(folder: Path, tag: str, values: Sequence[bytes]) -> Path:
    """Items of one bare leaf each."""
    return craft(folder, [[item_bytes([value]) for value in values]], [tag])
