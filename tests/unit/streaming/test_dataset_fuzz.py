"""Mutated datasets: every outcome is the right item or a ``LazyStoreError``.

Chunks are compared with an oracle: what the mutated bytes say by the format's own rules. The index has no
oracle; there, nothing but lazystore's errors may come out.
"""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from models import classic
from support import datasets

from lazystore import LazyStoreError, StreamingDataset, TokensLoader

PER_CHUNK, CHUNKS = 8, 3
COUNT = PER_CHUNK * CHUNKS
KEYS = ("id", "text", "blob", "vector")
TINY = 65536


def base_files() -> dict[str, bytes]:
    """The good dataset, in memory."""
    with tempfile.TemporaryDirectory() as place:
        folder = datasets.write(Path(place) / "d", COUNT, size=30, chunk_size=PER_CHUNK)
        return {path.name: path.read_bytes() for path in folder.iterdir()}


GOOD = base_files()
INDEX = json.loads(GOOD["index.json"])
NAMES = [chunk["filename"] for chunk in INDEX["chunks"]]


@contextmanager
def on_disk(files: dict[str, bytes]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as place:
        for name, data in files.items():
            (Path(place) / name).write_bytes(data)
        yield Path(place)


# -- what may happen to bytes ---------------------------------------------------------------

positions = st.floats(0, 1, exclude_max=True)
interesting = st.sampled_from([0, 1, 2, 3, 4, 7, 8, 9, 36, 40, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1])
words = interesting | st.integers(0, 2**32 - 1)


def at(data: bytes, where: float, align: int = 1) -> int:
    return int(where * len(data)) // align * align


mutations: st.SearchStrategy[Callable[[bytes], bytes]] = st.one_of(
    st.builds(lambda p, v: lambda d: d[: at(d, p)] + bytes([v]) + d[at(d, p) + 1 :], positions, st.integers(0, 255)),
    # a word of the header or of the sizes: what readers trust
    st.builds(lambda p, v: lambda d: d[: at(d, p, 4)] + struct.pack("<I", v) + d[at(d, p, 4) + 4 :], positions, words),
    st.builds(
        lambda k, v: lambda d: d[: 4 * k] + struct.pack("<I", v) + d[4 * k + 4 :], st.integers(0, 2 + PER_CHUNK), words
    ),
    st.builds(
        lambda k, v: lambda d: d[: 4 * k] + struct.pack("<I", (word(d, k) + v) % 2**32) + d[4 * k + 4 :],
        st.integers(1, 1 + PER_CHUNK),
        st.integers(-8, 8),
    ),
    st.builds(lambda p: lambda d: d[: at(d, p)], positions),
    st.builds(lambda p, q: lambda d: d[: at(d, min(p, q))] + d[at(d, max(p, q)) :], positions, positions),
    st.builds(lambda p, extra: lambda d: d[: at(d, p)] + extra + d[at(d, p) :], positions, st.binary(max_size=40)),
    st.builds(lambda extra: lambda d: d + extra, st.binary(max_size=9000)),
)  # fmt: skip


def word(data: bytes, k: int) -> int:
    return int.from_bytes(data[4 * k : 4 * k + 4].ljust(4, b"\0"), "little")


# -- the oracle -----------------------------------------------------------------------------


def item_of(data: bytes, k: int) -> Any:
    """Item ``k`` of a chunk by the letter of the format; raises when the bytes do not follow it."""
    begin, end = struct.unpack_from("<2I", data, 4 + 4 * k)
    if not 4 + 4 * (PER_CHUNK + 1) <= begin <= end <= len(data):
        raise ValueError("offsets")
    sizes = struct.unpack_from("<4I", data, begin)
    if end - begin < 16 or sum(sizes) + 16 != end - begin:
        raise ValueError("sizes")
    values, position = [], begin + 16
    for tag, size in zip(datasets.TAGS, sizes, strict=True):
        leaf = data[position : position + size]
        if tag in ("int", "bool", "float") and len(leaf) != 8:
            raise ValueError("fixed size")
        values.append(classic.leaf_value(tag, leaf))
        position += size
    return dict(zip(KEYS, values, strict=True))


def check_read(read: Callable[[], Any], data: bytes, k: int) -> None:
    """The item the bytes say, or lazystore's error."""
    try:
        found = read()
    except LazyStoreError as error:
        assert "chunk-0-" in str(error)
        return
    assert datasets.same(found, item_of(data, k))


@given(st.dictionaries(st.sampled_from(range(CHUNKS)), st.lists(mutations, min_size=1, max_size=3), min_size=1))
@example({1: [lambda d: d[:4] + d[8:]]})
def test_mutated_chunks_give_what_their_bytes_say_or_an_error(
    changes: dict[int, list[Callable[[bytes], bytes]]],
) -> None:
    files = dict(GOOD)
    for chunk, steps in changes.items():
        for step in steps:
            files[NAMES[chunk]] = step(files[NAMES[chunk]])
    with on_disk(files) as folder:
        for memory in (TINY, "8MB"):
            with StreamingDataset(folder, memory=memory) as dataset:
                check_sweep(dataset, files)
            with StreamingDataset(folder, memory=memory) as dataset:
                check_iterate(dataset, files)
                check_sweep(dataset, files)


def check_sweep(dataset: StreamingDataset, files: dict[str, bytes]) -> None:
    for i in [*range(COUNT - 1, -1, -3), *range(COUNT)]:
        chunk, k = divmod(i, PER_CHUNK)
        data = files[NAMES[chunk]]
        check_read(lambda i=i: dataset[i], data, k)  # type: ignore[misc]
        check_read(lambda i=i: dataset.get_many([i])[0], data, k)  # type: ignore[misc]


def check_iterate(dataset: StreamingDataset, files: dict[str, bytes]) -> None:
    items = iter(dataset)
    for i in range(COUNT):
        chunk, k = divmod(i, PER_CHUNK)
        try:
            found = next(items)
        except LazyStoreError:
            return
        assert datasets.same(found, item_of(files[NAMES[chunk]], k))


# -- the index ------------------------------------------------------------------------------

scalars = (
    st.none() | st.booleans() | st.integers() | interesting | st.floats() | st.text(max_size=8)
    | st.sampled_from([
        "", "..", "../x", "/", "index.json", "chunk-0-0.bin", "chunk-0-1.bin", "zstd", "zstd:3", "sample", "batch",
        "TokensLoader", "PyTreeLoader", "int", "str", "pickle", "tensor", "numpy", "no_header_tensor:9", "pil",
        "no_header_numpy:9", "no_header_numpy:13", "builtins.dict", "builtins.list", "builtins.tuple",
        "collections.deque", "collections.OrderedDict", "collections.defaultdict", "null", "[]", '["a"]', "7",
        10**30, -1, 2**62, 2**63, 2**64,
    ])
)  # fmt: skip
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every node of a JSON tree."""
    found = [path]
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, child in children:
        found += places(child, (*path, key))
    return found


def put(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of the tree with one node replaced."""
    if not path:
        return value
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[path[0]] = put(tree[path[0]], path[1:], value)
    return copy


def check_harmless(folder: Path, **options: Any) -> None:
    """Open and read a little of everything; only lazystore's errors may come out."""
    try:
        dataset = StreamingDataset(folder, memory="1MB", **options)
    except LazyStoreError:
        return
    with dataset:
        total = len(dataset)
        assert total >= 0
        repr(dataset)
        for i in {i for i in (0, 1, COUNT - 1, total // 2, total - 1) if 0 <= i < total}:
            for read in (dataset.__getitem__, dataset.get_bytes, lambda i: dataset.get_many([i, i])):
                with suppress(LazyStoreError):
                    read(i)
        with suppress(LazyStoreError):
            list(islice(dataset, 2 * COUNT))
        dataset.get_memory_stats()


SPEC = json.loads(INDEX["config"]["data_spec"])


@given(st.data())
def test_a_mutated_index_is_read_or_refused(data: st.DataObject) -> None:
    index = INDEX
    for _ in range(data.draw(st.integers(1, 3))):
        if data.draw(st.booleans()) and isinstance(index, dict) and isinstance(index.get("config"), dict):
            path = data.draw(st.sampled_from(places(SPEC)))
            value = data.draw(trees)
            index = put(index, ("config",), {**index["config"], "data_spec": json.dumps(put(SPEC, path, value))})
        else:
            path = data.draw(st.sampled_from(places(index)))
            index = put(index, path, data.draw(trees))
    with on_disk({**GOOD, "index.json": json.dumps(index).encode()}) as folder:
        check_harmless(folder)
        check_harmless(folder, item_loader=TokensLoader(3), allow_pickle=False)


@given(st.lists(mutations, min_size=1, max_size=2))
def test_an_index_with_mutated_bytes_is_read_or_refused(steps: list[Callable[[bytes], bytes]]) -> None:
    content = GOOD["index.json"]
    for step in steps:
        content = step(content)
    with on_disk({**GOOD, "index.json": content}) as folder:
        check_harmless(folder)


def test_the_unmutated_dataset_is_read_as_the_oracle_says() -> None:
    with on_disk(GOOD) as folder, StreamingDataset(folder, memory=TINY) as dataset:
        datasets.check(dataset, range(COUNT), 30)
        for i in range(COUNT):
            assert datasets.same(dataset[i], item_of(GOOD[NAMES[i // PER_CHUNK]], i % PER_CHUNK))


def test_the_oracle_refuses_what_does_not_follow_the_format() -> None:
    good = GOOD[NAMES[0]]
    for bad in (good[:-1], good[:8] + b"\xff" + good[9:], good[: 4 * (PER_CHUNK + 2)] + b"\xff" * 4 + good[44:]):
        with pytest.raises((ValueError, struct.error)):
            for k in range(PER_CHUNK):
                item_of(bad, k)
