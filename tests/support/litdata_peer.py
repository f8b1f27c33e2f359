"""The real LitData, for the tests in ``interop``: reading what we wrote, writing what we read.

Always on a copy of a dataset: LitData decompresses in place and deletes what it decompressed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("LITDATA_CHECK_UPDATES", "0")
litdata = pytest.importorskip("litdata")

VERSION = tuple(int(part) for part in litdata.__version__.split(".")[:3])
#: zstd inside the file, Arrow rows and key sidecars came with these
IN_FILE = VERSION >= (0, 2, 74)


def dataset(folder: Path, **options: Any) -> Any:
    """LitData's ``StreamingDataset`` over a copy."""
    copy = Path(tempfile.mkdtemp(dir=folder.parent, prefix="theirs-")) / "data"
    shutil.copytree(folder, copy)
    return litdata.StreamingDataset(str(copy), **options)


def iterated(folder: Path, **options: Any) -> list[Any]:
    """All items, as its iterator gives them."""
    return list(dataset(folder, **options))


def looked_up(folder: Path, **options: Any) -> list[Any]:
    """All items, one by one, backwards."""
    found = dataset(folder, **options)
    return [found[i] for i in reversed(range(len(found)))][::-1]


def blocks(folder: Path, size: int) -> list[list[int]]:
    """Blocks of tokens, copied at once: some versions give views of memory that goes when a chunk ends."""
    from litdata.streaming.item_loader import TokensLoader

    return [[int(token) for token in block] for block in dataset(folder, item_loader=TokensLoader(block_size=size))]


def write(folder: Path, samples: Iterable[Any], **options: Any) -> Path:
    """A dataset by LitData's own ``Cache`` writer, merged."""
    from litdata.streaming.cache import Cache

    folder.mkdir(parents=True)
    cache = Cache(str(folder), **options)
    for i, sample in enumerate(samples):
        cache[i] = sample
    cache.done()
    cache.merge()
    return folder


def difference(ours: Any, theirs: Any) -> str:
    """Empty, or where and how two samples differ; what LitData gives for bytes and scalars is known to vary."""
    if isinstance(theirs, memoryview):
        theirs = bytes(theirs)
    if isinstance(theirs, np.generic):
        theirs = theirs.item()
    if isinstance(ours, (list, tuple)) and type(ours) is type(theirs):
        return _children(range(len(ours)), ours, theirs) if len(ours) == len(theirs) else f": {len(theirs)} elements"
    if isinstance(ours, Mapping) and type(ours) is type(theirs):
        return _children(list(ours), ours, theirs) if list(ours) == list(theirs) else f": keys {list(theirs)}"
    if isinstance(ours, Sequence) and not isinstance(ours, (str, bytes)) and type(ours) is type(theirs):
        return difference(list(ours), list(theirs))
    if type(ours) is not type(theirs):
        return f": a {type(theirs).__name__}, {theirs!r}, instead of {ours!r}"
    return "" if _equal(ours, theirs) else f": {theirs!r} instead of {ours!r}"


def _children(keys: Iterable[Any], ours: Any, theirs: Any) -> str:
    for key in keys:
        found = difference(ours[key], theirs[key])
        if found:
            return f"[{key!r}]{found}"
    return ""


def _equal(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, np.ndarray):
        return (ours.dtype, ours.shape, ours.tobytes()) == (theirs.dtype, theirs.shape, theirs.tobytes())
    if hasattr(ours, "numpy"):
        return (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape) and bool((ours == theirs).all())
    if hasattr(ours, "tobytes"):
        return bool((ours.mode, ours.size, ours.tobytes()) == (theirs.mode, theirs.size, theirs.tobytes()))
    return bool(ours == theirs) or (ours != ours and theirs != theirs)


def assert_same(ours: Iterable[Any], theirs: Iterable[Any]) -> None:
    """All samples, in order."""
    ours, theirs = list(ours), list(theirs)
    assert len(ours) == len(theirs)
    for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        found = difference(one, other)
        assert not found, f"sample {i}{found}"
