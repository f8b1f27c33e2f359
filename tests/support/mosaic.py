"""MosaicML datasets for tests: small ones written by the reference's words, and chunks read without the machinery."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from support.images import items_of

from lazystore.fetch.local import LocalSource
from lazystore.fetch.source import Read, Source
from lazystore.formats.format import Opened, Options, Place
from lazystore.formats.mds import MdsFormat

PACK: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "bz2": bz2.compress}
LIMIT = 1 << 27


class Stream(io.BytesIO):
    """As the cache gives them: peekable within a piece, and at most ``piece`` bytes a read."""

    def __init__(self, data: bytes, piece: int = sys.maxsize) -> None:
        super().__init__(data)
        self.piece = piece

    def peek(self, n: int) -> bytes:
        at = self.tell()
        return bytes(self.getbuffer()[at : min(at + n, at - at % self.piece + self.piece)])

    def read(self, n: int | None = -1, /) -> bytes:
        left = self.piece - self.tell() % self.piece
        return super().read(left if n is None or n < 0 else min(n, left))


def opened(source: Source | Path, index: Mapping[str, Any] | bytes | None = None, **options: Any) -> Opened:
    """A dataset opened by the format alone."""
    source = LocalSource(str(source)) if isinstance(source, Path) else source
    if index is None:
        index = source.read_all("index.json", limit=LIMIT, timeout=30.0)
    data = json.dumps(index).encode() if isinstance(index, Mapping) else bytes(index)
    return MdsFormat().open(Place(source, source.url, {}, data, 30.0, 1 << 28), Options(**options))


def chunk(found: Opened, i: int, *, piece: int = 1 << 20, steps: int = 1 << 20) -> bytes:
    """A chunk as the machinery comes to see it, in the classic layout."""
    name = found.names[i]
    size = found.source.run((), stat=(name,), timeout=30.0)[name]
    data = bytearray(size)
    if size:
        found.source.run([Read(name, 0, memoryview(data))], timeout=30.0)
    if found.codec is None:
        return bytes(data)
    inflater = found.codec.open(Stream(bytes(data), piece), limit=LIMIT, stored=0, size=found.hints[i])
    out = bytearray()
    while True:
        step = memoryview(bytearray(steps))
        got = inflater.readinto(step)
        out += step[:got]
        if got < steps:
            return bytes(out)


def stored_items(found: Opened) -> list[bytes]:
    """All items, as stored; every chunk has the length and the count that the index says."""
    items: list[bytes] = []
    for i, (count, hint) in enumerate(zip(found.counts, found.hints, strict=True)):
        data = chunk(found, i)
        assert len(data) == hint
        here = items_of(data)
        assert len(here) == count
        items += here
    return items


def values(found: Opened) -> list[Any]:
    return [found.plan(item) for item in stored_items(found)]


def table(items: Sequence[bytes], begin: int) -> bytes:
    offsets = [begin]
    for item in items:
        offsets.append(offsets[-1] + len(item))
    return struct.pack(f"<I{len(offsets)}I", len(items), *offsets)


def mds_shard(items: Sequence[bytes], config: bytes = b'{"some": "config"}') -> bytes:
    return table(items, 4 * (len(items) + 2) + len(config))[: 4 * (len(items) + 2)] + config + b"".join(items)


def file_info(name: str, data: bytes, hashes: Sequence[str] = ()) -> dict[str, Any]:
    return {
        "basename": name,
        "bytes": len(data),
        "hashes": {algorithm: hashlib.new(algorithm, data).hexdigest() for algorithm in hashes},
    }


def put(
    folder: Path, i: int, kind: str, parts: Mapping[str, bytes], compression: str | None, hashes: Sequence[str] = ()
) -> dict[str, Any]:
    """Store a shard's files (``data``, ``meta``); returns what its entry says of them."""
    entry: dict[str, Any] = {"version": 2, "format": kind, "compression": compression, "hashes": list(hashes)}
    entry |= {"size_limit": "64mb"}
    for part, data in parts.items():
        name = f"shard.{i:05d}.{kind}" + (".meta" if part == "meta" else "")
        entry[f"raw_{part}"] = file_info(name, data, hashes)
        entry[f"zip_{part}"] = None
        if compression:
            algorithm = compression.partition(":")[0]
            name, data = f"{name}.{algorithm}", PACK[algorithm](data)
            entry[f"zip_{part}"] = file_info(name, data, hashes)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return entry


def write_index(folder: Path, shards: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    index = {"version": 2, "shards": list(shards)}
    (folder / "index.json").write_text(json.dumps(index))
    return index


def text_item(number: int, words: str) -> bytes:
    """A sample of the columns ``number: int, words: str``."""
    data = words.encode()
    return struct.pack("<Iq", len(data), number) + data


COLUMNS = {"column_names": ["number", "words"], "column_encodings": ["int", "str"], "column_sizes": [8, None]}


def write_mds(
    folder: Path, shards: Sequence[Sequence[str]], compressions: Sequence[str | None], hashes: Sequence[str] = ()
) -> dict[str, Any]:
    """A dataset of numbered words; returns its index."""
    entries, number = [], 0
    for i, (words, compression) in enumerate(zip(shards, compressions, strict=True)):
        items = [text_item(number + k, word) for k, word in enumerate(words)]
        number += len(items)
        entry = put(folder, i, "mds", {"data": mds_shard(items)}, compression, hashes)
        entries.append(entry | COLUMNS | {"samples": len(items)})
    return write_index(folder, entries)


def write_text(
    folder: Path, kind: str, shards: Sequence[Sequence[bytes]], compressions: Sequence[str | None], **more: Any
) -> dict[str, Any]:
    """A dataset of text shards with these lines; ``more``: keys of every entry."""
    head = b"number,words\n" if kind != "json" else b""
    entries = []
    for i, (lines, compression) in enumerate(zip(shards, compressions, strict=True)):
        meta = table(lines, len(head)) + b'{"config": 1}'
        entry = put(folder, i, kind, {"data": head + b"".join(lines), "meta": meta}, compression)
        entries.append(entry | {"samples": len(lines), "newline": "\n"} | more)
    return write_index(folder, entries)
