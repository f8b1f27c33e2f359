"""Opens a dataset directory by its format and decodes its items, without the machinery above formats."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.images import images_from, items_of

from lazystore.fetch.local import LocalSource
from lazystore.formats.format import Format, Opened, Options, Place

BUDGET = 64 << 20


def place_of(folder: Path, *, budget: int = BUDGET) -> Place:
    index = folder / "index.json"
    return Place(
        LocalSource(str(folder)),
        str(folder),
        {},
        index.read_bytes() if index.exists() else b"",
        timeout=30.0,
        budget=budget,
    )


def open_folder(format: Format, folder: Path, *, budget: int = BUDGET, **options: Any) -> Opened:
    opened = format.open(place_of(folder, budget=budget), Options(**options))
    assert isinstance(opened, Opened)
    return opened


def stored_items(opened: Opened) -> Iterator[bytes]:
    """Every item's bytes, in order, whichever way the dataset goes; counts are checked."""
    if opened.images is not None:
        runs = opened.images.runs
        for run in range(len(runs) - 1):
            blocks = list(images_from(opened.images, opened.source, runs[run]))
            assert [image.block for image in blocks] == list(range(runs[run], runs[run + 1]))
            for image in blocks:
                items = items_of(image.data)
                assert len(items) == opened.counts[image.block]
                yield from items
        return
    for chunk, count in enumerate(opened.counts):
        if not count:
            continue
        data = opened.source.read_all(opened.names[chunk], limit=1 << 30, timeout=30.0)
        if opened.codec is not None:
            data = inflated(opened, bytes(data))
        if opened.stride:
            begin = opened.table_end(chunk)
            items = [
                bytes(data[at : at + opened.stride])
                for at in range(begin, begin + count * opened.stride, opened.stride)
            ]
        else:
            items = items_of(data)
        assert len(items) == count
        yield from items


class Stream(io.BytesIO):
    """Stored bytes as a codec reads them."""

    def peek(self, n: int) -> bytes:
        return self.getvalue()[self.tell() : self.tell() + n]


def inflated(opened: Opened, stored: bytes) -> bytes:
    assert opened.codec is not None
    inflater = opened.codec.open(Stream(stored), limit=8 << 20, stored=len(stored), size=0)
    found, scratch = bytearray(), memoryview(bytearray(1 << 16))
    while got := inflater.readinto(scratch):
        found += scratch[:got]
    return bytes(found)


def samples(opened: Opened) -> list[Any]:
    """Every item, decoded."""
    return [opened.plan(item) for item in stored_items(opened)]
