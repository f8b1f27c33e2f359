"""Bad input gets an error of its own type that names the place, and loses nothing that is good."""

from __future__ import annotations

import gc
import os
import struct
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
from support import datasets

from lazystore import (
    DatasetNotFoundError,
    FetchError,
    FormatError,
    LazyStoreError,
    StreamingDataset,
    UnsafeDataError,
    UnsupportedError,
)

COUNT, PER_CHUNK = 120, 40
TABLE_END = 4 + 4 * (PER_CHUNK + 1)
BAD = "chunk-0-1.bin"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three chunks of 40 items, ~12 kB each: several frames of the smallest budget."""
    return datasets.write(tmp_path_factory.mktemp("damage") / "good", COUNT, chunk_size=PER_CHUNK)


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return datasets.copy(good, tmp_path / "dataset")


# -- one bad chunk among good ones ----------------------------------------------------------


def words(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def set_bytes(at: int, data: bytes) -> Callable[[Path], None]:
    return lambda path: datasets.edit_bytes(path, at, data)


def cut(size: int) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, size)


def entry(k: int) -> int:
    """Position of an entry of the offset table."""
    return 4 + 4 * k


#: what is done to the chunk, the error, and what its message tells
CHUNK_DAMAGE: dict[str, tuple[Callable[[Path], None], type[LazyStoreError], str]] = {
    "missing": (Path.unlink, DatasetNotFoundError, "does not exist"),
    "empty": (cut(0), FormatError, "empty or truncated"),
    "three bytes": (cut(3), FormatError, "empty or truncated"),
    "cut after the count": (cut(4), FormatError, "truncated"),
    "cut in the table": (cut(TABLE_END - 2), FormatError, "truncated"),
    "cut after the table": (cut(TABLE_END), FormatError, "truncated|past the end"),
    "cut in the items": (cut(5000), FormatError, "truncated|past the end"),
    "one item more": (set_bytes(0, words(PER_CHUNK + 1)), FormatError, "41 items, the index says 40"),
    "one item less": (set_bytes(0, words(PER_CHUNK - 1)), FormatError, "39 items, the index says 40"),
    "no items": (set_bytes(0, words(0)), FormatError, "0 items, the index says 40"),
    "2**32 - 1 items": (set_bytes(0, words(2**32 - 1)), FormatError, "4294967295 items, the index says 40"),
    "framed zstd": (set_bytes(0, b"LDFZ01\0\0"), UnsupportedError, "zstd"),
}


@pytest.mark.parametrize("memory", [65536, "8MB"])
@pytest.mark.parametrize("damage", CHUNK_DAMAGE)
def test_a_bad_chunk_is_named_and_the_others_are_read(folder: Path, damage: str, memory: int | str) -> None:
    spoil, error, told = CHUNK_DAMAGE[damage]
    spoil(folder / BAD)
    others = [*range(PER_CHUNK), *range(2 * PER_CHUNK, COUNT)]
    with StreamingDataset(folder, memory=memory) as dataset:
        for i in (PER_CHUNK, PER_CHUNK + 7, 2 * PER_CHUNK - 1):
            for way, read in datasets.reads(dataset, i).items():
                with pytest.raises(error, match=BAD) as raised:
                    read()
                assert type(raised.value) is error, way
                raised.match(told)
                assert str(raised.value).count(BAD) == 1, "the place is told more than once"
        datasets.check((dataset[i] for i in others), others)
        datasets.check(dataset.get_many(others), others)
        assert dataset.stats()["fallbacks"] == 0


@pytest.mark.parametrize("memory", [65536, "8MB"])
@pytest.mark.parametrize("damage", CHUNK_DAMAGE)
def test_iterating_gives_everything_before_a_bad_chunk_then_its_error(
    folder: Path, damage: str, memory: int | str
) -> None:
    spoil, error, told = CHUNK_DAMAGE[damage]
    spoil(folder / BAD)
    with StreamingDataset(folder, memory=memory) as dataset:
        items = iter(dataset)
        datasets.check([next(items) for _ in range(PER_CHUNK)], range(PER_CHUNK))
        with pytest.raises(error, match=BAD) as raised:
            next(items)
        raised.match(told)
        datasets.check(dataset[2 * PER_CHUNK :], range(2 * PER_CHUNK, COUNT))


def test_a_chunk_that_comes_back_is_read(folder: Path) -> None:
    (folder / BAD).rename(folder / "away")
    with StreamingDataset(folder) as dataset:
        with pytest.raises(DatasetNotFoundError, match=BAD):
            dataset[50]
        (folder / "away").rename(folder / BAD)
        datasets.check(dataset, range(COUNT))


@pytest.mark.parametrize("kind", ["directory", "pipe", "no permission", "link to nothing", "link in a circle"])
def test_a_chunk_that_is_no_readable_file(folder: Path, kind: str) -> None:
    path = folder / BAD
    if kind == "no permission":
        path.chmod(0)
        if os.access(path, os.R_OK):
            pytest.skip("this user may read everything")
    else:
        path.unlink()
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind.startswith("link"):
        path.symlink_to(path.name if "circle" in kind else "nothing")
    error = DatasetNotFoundError if kind == "link to nothing" else FetchError
    with StreamingDataset(folder) as dataset:
        for way, read in datasets.reads(dataset, 50).items():
            with pytest.raises(error, match=BAD) as raised:
                read()
            assert isinstance(raised.value, OSError), way
        items = iter(dataset)
        datasets.check([next(items) for _ in range(PER_CHUNK)], range(PER_CHUNK))
        with pytest.raises(error, match=BAD):
            next(items)


def test_more_behind_the_last_item_is_not_looked_at(folder: Path) -> None:
    with (folder / BAD).open("ab") as file:
        file.write(b"a footer of a later version" * 500)
    with StreamingDataset(folder, memory=65536) as dataset:
        datasets.check(dataset, range(COUNT))
        datasets.check((dataset[i] for i in range(COUNT)), range(COUNT))


def test_a_gap_between_table_and_items_is_not_looked_at(folder: Path) -> None:
    items = [datasets.item_bytes([str(i).encode() * 30]) for i in range(3)]
    crafted = datasets.craft(folder.parent / "gap", [items], ["str"])
    data = datasets.chunk_bytes(items)
    table = struct.unpack_from("<4I", data, 4)
    path = crafted / "chunk-0-0.bin"
    path.write_bytes(words(3, *(offset + 100 for offset in table)) + bytes(100) + data[20:])
    with StreamingDataset(crafted) as dataset:
        assert list(dataset) == dataset[:] == [str(i) * 30 for i in range(3)]


def test_arrow_rows_are_told_apart(folder: Path) -> None:
    table = words(PER_CHUNK, *([TABLE_END] * (PER_CHUNK + 1)))
    (folder / BAD).write_bytes(table + b"arrow stream" * 40 + words(3) + b"LDARW01\0")
    with StreamingDataset(folder) as dataset:
        for read in datasets.reads(dataset, PER_CHUNK).values():
            with pytest.raises(UnsupportedError, match=rf"{BAD}.*Arrow rows"):
                read()
        datasets.check(dataset[:PER_CHUNK], range(PER_CHUNK))


# -- one bad item among good ones -----------------------------------------------------------


def table_of(path: Path) -> tuple[int, ...]:
    return struct.unpack_from(f"<{PER_CHUNK + 1}I", path.read_bytes(), 4)


#: (which entry of the table, its new value from the old table and the chunk's length)
OFFSET_DAMAGE: dict[str, tuple[int, Callable[[tuple[int, ...], int], int]]] = {
    "backwards": (9, lambda table, size: table[8] - 1),
    "first one into the table": (0, lambda table, size: 12),
    "zero": (9, lambda table, size: 0),
    "first one zero": (0, lambda table, size: 0),
    "last one zero": (PER_CHUNK, lambda table, size: 0),
    "past the end": (9, lambda table, size: size + 1),
    "first one past the end": (0, lambda table, size: 2**32 - 1),
    "last one past the end": (PER_CHUNK, lambda table, size: size + 1),
    "last one far past the end": (PER_CHUNK, lambda table, size: 2**32 - 1),
    "after the next": (9, lambda table, size: table[12]),
}


@pytest.mark.parametrize("memory", [65536, "8MB"])
@pytest.mark.parametrize("damage", OFFSET_DAMAGE)
def test_offsets_that_make_no_sense_are_refused_before_anything_is_read_through_them(
    folder: Path, damage: str, memory: int | str
) -> None:
    path = folder / BAD
    position, value = OFFSET_DAMAGE[damage]
    datasets.edit_bytes(path, entry(position), words(value(table_of(path), path.stat().st_size)))
    touched = [PER_CHUNK + k for k in (position - 1, position) if 0 <= k < PER_CHUNK]
    if damage == "after the next":
        del touched[0]  # it ends inside the chunk: whether it decodes is the leaves' business
    others = [*range(PER_CHUNK), *range(2 * PER_CHUNK, COUNT)]
    with StreamingDataset(folder, memory=memory) as dataset:
        for i in touched:
            for way, read in datasets.reads(dataset, i).items():
                with pytest.raises(FormatError, match=rf"{BAD} \(chunk 1\)") as raised:
                    read()
                assert type(raised.value) is FormatError, way
                raised.match("offset|bytes")
        datasets.check((dataset[i] for i in others), others)
        with pytest.raises(FormatError, match=BAD):
            list(dataset)


SIZE_DAMAGE = {
    "too large": lambda sizes: [sizes[0], sizes[1] + 1, sizes[2], sizes[3]],
    "too small": lambda sizes: [sizes[0], sizes[1], sizes[2], sizes[3] - 4],
    "huge": lambda sizes: [sizes[0], 2**32 - 1, sizes[2], sizes[3]],
    "all huge": lambda sizes: [2**32 - 1] * 4,
    "sum wraps to the item": lambda sizes: [sizes[0], 2**32 - 1, sizes[2], sizes[3] + sizes[1] + 1],
    "zero": lambda sizes: [0, 0, 0, 0],
}


@pytest.mark.parametrize("memory", [65536, "8MB"])
@pytest.mark.parametrize("damage", SIZE_DAMAGE)
def test_leaf_sizes_that_do_not_fit_spoil_one_item(folder: Path, damage: str, memory: int | str) -> None:
    path = folder / BAD
    begin = table_of(path)[20]
    sizes = struct.unpack_from("<4I", path.read_bytes(), begin)
    datasets.edit_bytes(path, begin, words(*SIZE_DAMAGE[damage](sizes)))
    bad = PER_CHUNK + 20
    others = [i for i in range(COUNT) if i != bad]
    with StreamingDataset(folder, memory=memory) as dataset:
        for read in (lambda: dataset[bad], lambda: dataset.get_many([0, bad, 1]), lambda: dataset[bad:]):
            with pytest.raises(FormatError, match=rf"{BAD} \(chunk 1\), item 20: .*(leaf|leaves)") as raised:
                read()
            assert str(raised.value).count(BAD) == 1, "the place is told more than once"
        datasets.check((dataset[i] for i in others), others)
        datasets.check(dataset.get_many(others), others)
        items = iter(dataset)
        datasets.check([next(items) for _ in range(bad)], range(bad))
        for _ in range(2):  # an iterator stays where it is: it never skips in silence
            with pytest.raises(FormatError, match="item 20"):
                next(items)
        datasets.check((dataset[i] for i in others), others)
        assert len(dataset.get_bytes(bad)) == table_of(path)[21] - begin


@pytest.mark.parametrize("memory", [65536, "8MB"])
def test_text_that_is_not_utf8_spoils_one_item(folder: Path, memory: int | str) -> None:
    path = folder / BAD
    text = table_of(path)[3] + 16 + 8
    datasets.edit_bytes(path, text, b"\xff")
    with StreamingDataset(folder, memory=memory) as dataset:
        for read in (lambda: dataset[43], lambda: dataset.get_many([43]), lambda: list(dataset)):
            with pytest.raises(FormatError, match=rf"{BAD} \(chunk 1\), item 3: .*utf-8"):
                read()
        datasets.check((dataset[i] for i in (42, 44)), (42, 44))


def test_a_pickle_that_is_no_pickle_is_a_format_error(tmp_path: Path) -> None:
    folder = datasets.one_leaf(tmp_path / "d", "pickle", [b"\x80\x04N.", b"garbage", b"", b"\x80\x05"])
    with StreamingDataset(folder, allow_pickle=True) as dataset:
        assert dataset[0] is None
        for i in (1, 2, 3):
            with pytest.raises(FormatError, match=rf"item {i}: .*pickle"):
                dataset[i]


def test_a_pickle_is_not_executed_without_leave(tmp_path: Path) -> None:
    bomb = b"cos\nmkdir\n(V" + str(tmp_path / "ran").encode() + b"\ntR."
    folder = datasets.one_leaf(tmp_path / "d", "pickle", [bomb])
    with StreamingDataset(folder) as dataset:
        for read in (lambda: dataset[0], lambda: list(dataset), lambda: dataset.get_many([0])):
            with pytest.raises(UnsafeDataError, match="allow_pickle=True"):
                read()
    assert not (tmp_path / "ran").exists()


def test_a_dataset_whose_reading_failed_is_let_go_of(folder: Path) -> None:
    """Errors that are kept for later must not keep the frames they came through, and with them the memory."""
    data = bytearray((folder / BAD).read_bytes())
    data[20:24] = b"\5\0\0\0"
    (folder / BAD).write_bytes(bytes(data))

    def read() -> weakref.ref[StreamingDataset]:
        with StreamingDataset(folder, memory=300_000) as dataset:
            with pytest.raises(FormatError):
                for _ in dataset.batches(5):
                    pass
            with pytest.raises(FormatError):
                list(dataset)
            dataset.set_shuffle(True)
            with pytest.raises(FormatError):
                list(dataset)
            return weakref.ref(dataset)

    found = read()
    gc.collect()
    assert found() is None
