"""Text datasets opened without the machinery, for tests of the text formats."""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support.images import images_from, items_of

from lazystore.fetch.local import LocalSource
from lazystore.fetch.source import Read, Source
from lazystore.formats.format import Format, Opened, Options, Place, Unindexed

MIB = 1 << 20


def compressed(data: bytes, name: str) -> bytes:
    """As its name says."""
    if name.endswith(".gz"):
        return gzip.compress(data, 1)
    if name.endswith((".zst", ".zstd")):
        import zstandard

        return bytes(zstandard.ZstdCompressor(level=1).compress(data))
    return data


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).write_bytes(compressed(data, name))


def place_of(folder: Path | Source, names: list[str], *, budget: int = 64 * MIB) -> Place:
    source: Source = LocalSource(str(folder)) if isinstance(folder, Path) else folder
    return Place(source, source.url, dict.fromkeys(names, -1), b"", 30.0, budget)


def unindexed(format: Format, place: Place, **options: Any) -> Unindexed:
    found = format.open(place, Options(**options))
    assert isinstance(found, Unindexed), "there is an index already"
    return found


def indexed(format: Format, place: Place, **options: Any) -> Opened:
    found = format.open(place, Options(**options))
    assert isinstance(found, Opened), "there is no index"
    return found


def stored(opened: Opened) -> list[bytes]:
    """The stored items of all chunks or blocks; counts and hints are checked on the way."""
    found: list[bytes] = []
    if opened.images is not None:
        runs = [a for a, b in itertools.pairwise(opened.images.runs) if a < b]
        images = [image for first in runs for image in images_from(opened.images, opened.source, first)]
        assert [image.block for image in images] == list(range(len(opened.counts)))
        chunks = [bytes(image.data) for image in images]
    else:
        chunks = []
        for name, hint in zip(opened.names, opened.hints, strict=True):
            read = Read(name, 0, memoryview(bytearray(hint)))
            assert opened.source.run([read], stat=[name], timeout=5) == {name: hint}
            chunks.append(bytes(read.view))
    for chunk, count, hint in zip(chunks, opened.counts, opened.hints, strict=True):
        assert len(chunk) == hint
        found += items_of(chunk)
        assert len(items_of(chunk)) == count
    return found


def values(opened: Opened) -> list[Any]:
    return [opened.plan(item) for item in stored(opened)]
