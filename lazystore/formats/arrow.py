"""Parquet files and Arrow IPC files as datasets: one file, a pattern, a directory, or LitData's Parquet index.

What is read at opening is the directory of every file (Parquet's footer, the record batches' headers); files are
looked at together, 64 at a time. How blocks are made is in ``parquet_images.py`` and ``arrow_images.py``.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from lazystore._core.decode import DecodePlan
from lazystore.errors import ConfigError, FormatError
from lazystore.formats.arrow_blocks import Blocks, together
from lazystore.formats.arrow_images import IpcImages, read_ipc_directory
from lazystore.formats.arrow_ipc import IpcRows
from lazystore.formats.arrow_rows import RowsSchema, require_pyarrow
from lazystore.formats.format import BlockNames, Files, Format, Opened, Options, Place
from lazystore.formats.litdata import parse_chunks
from lazystore.formats.parquet_images import (
    TAIL_BYTES,
    KeptFooters,
    ParquetFooter,
    ParquetImages,
    read_parquet_footer,
)

__all__ = ["ArrowFormat", "ParquetFormat"]

STATS_AT_ONCE = 1024
#: Share of the budget that one file's directory, an inflated batch or an image may take.
SHARE = 4
LEAST = 1 << 20
#: Share of the budget that small remote files may take which are kept whole, and bytes that they take at most.
WHOLE_SHARE = 16
WHOLE_ROOM = 4 << 20
#: The same for footers of other remote files.
FOOTERS_SHARE, FOOTERS_ROOM = 64, 4 << 20
#: A first file of at most so many bytes is: somebody waits for its first row.
WHOLE_FIRST = 1 << 20


class ArrowFormat(Format):
    """Arrow IPC files, IPC streams and Feather version 2: ``.arrow``, ``.feather``, ``.ipc``.

    Rows are dicts, as ``to_pylist`` gives them. Files need not have the same columns, but types that only pyarrow
    decodes (timestamps, decimals, maps, ...) ask for that. Of record batches only what ``columns=`` take is fetched
    where that leaves out a quarter or more; gaps of less than 32 KiB are fetched along. Dictionaries are fetched, all
    of them, where a wanted column has one. Bodies may be compressed with lz4 or zstd. No ``format_options``.
    """

    name = "arrow"
    suffixes = (".arrow", ".feather", ".ipc")

    def open(self, place: Place, options: Options) -> Opened:
        """See :meth:`Format.open`."""
        require_pyarrow()
        sizes, _ = _files(place, options, self.name)
        limit = max(LEAST, place.budget // SHARE)
        found = together(
            place.source,
            [(name, read_ipc_directory(name, nbytes, options.columns)) for name, nbytes in sizes.items()],
            timeout=place.timeout, limit=limit,
        )  # fmt: skip
        rows: RowsSchema | None = None
        writers: dict[bytes, IpcRows] = {}
        for directory in found:
            if rows is None:
                rows = IpcRows.own(directory.schema, directory.name, options.columns).rows
            if directory.schema not in writers:
                writers[directory.schema] = IpcRows(rows, directory.schema, directory.name, options.columns)
        assert rows is not None
        units = [(d.rows, [s + rows.row_bytes * n for s, n in zip(d.sizes, d.rows, strict=True)]) for d in found]
        blocks = Blocks(units, share=True)
        images = IpcImages(found, [writers[d.schema] for d in found], blocks, limit=limit)
        about = {
            "schema": _about_schema(writers[found[0].schema].schema, rows.keys),
            "compression": sorted({d.codec for d in found} - {""}),
            "record_batches": sum(len(d.rows) for d in found),
        }
        version = _digest([(d.name, d.nbytes, d.schema, d.batches.tobytes()) for d in found])
        return _opened(self.name, place, sizes, rows, images, blocks, about, version)


class ParquetFormat(Format):
    """Parquet files (``.parquet``), and LitData's index of such (``item_loader`` "ParquetLoader").

    Rows are dicts, as ``to_pylist`` gives them. Only the column chunks of ``columns=`` are fetched. Files need not
    have the same columns, but types that only pyarrow decodes ask for that. No ``format_options``.
    """

    name = "parquet"
    suffixes = (".parquet",)

    def recognises(self, index: Mapping[str, Any]) -> bool:
        """LitData's index of a Parquet dataset."""
        config = index.get("config")
        return isinstance(config, Mapping) and config.get("item_loader") == "ParquetLoader"

    def open(self, place: Place, options: Options) -> Opened:
        """See :meth:`Format.open`."""
        require_pyarrow()
        sizes, counts = _files(place, options, self.name)
        limit = max(LEAST, place.budget // SHARE)
        whole = _small(sizes, place)
        kept = KeptFooters(0 if place.source.local else min(place.budget // FOOTERS_SHARE, FOOTERS_ROOM))
        found = together(
            place.source,
            [
                (name, read_parquet_footer(name, nbytes, options.columns, whole=name in whole, kept=kept))
                for name, nbytes in sizes.items()
            ],
            timeout=place.timeout, limit=limit,
        )  # fmt: skip
        for footer in found:
            if counts and sum(footer.rows) != counts[footer.name]:
                raise FormatError(f"{footer.name} has {sum(footer.rows)} rows, the index says {counts[footer.name]}")
        self.examine(found, options)
        rows = RowsSchema.from_arrow(found[0].schema, options.columns)
        units = [(f.rows, [s + rows.row_bytes * n for s, n in zip(f.sizes, f.rows, strict=True)]) for f in found]
        blocks = Blocks(units, share=False)
        images = ParquetImages(found, rows, blocks, columns=options.columns, limit=limit)
        about = {
            "schema": _about_schema(found[0].schema, rows.keys),
            "row_groups": sum(len(f.rows) for f in found),
        }
        version = _digest([(f.name, f.nbytes, f.digest, b"") for f in found])
        opened = _opened(self.name, place, sizes, rows, images, blocks, about, version)
        opened.reserved = sum(sizes[name] for name in whole) + kept.taken
        return opened

    def examine(self, footers: Sequence[ParquetFooter], options: Options) -> None:
        """For formats that build on this one: refuse files by what they say about themselves, before more is made."""


def _files(place: Place, options: Options, name: str) -> tuple[dict[str, int], dict[str, int]]:
    """Sizes of the files, asked for where they are unknown; and the rows an index says they have."""
    options.refuse_all_but("columns", format=name)
    if options.extra:
        raise ConfigError(f"format {name!r} has no format_options; given were {sorted(options.extra)}")
    sizes, counts = dict(place.names), {}
    if place.index:
        _, chunks = parse_chunks(place.index, place=f"{place.url}/index.json", paths=True)
        sizes = dict.fromkeys(chunks.names, -1)
        counts = dict(zip(chunks.names, chunks.counts, strict=True))
        if len(counts) < len(chunks.names):
            raise FormatError(f"{place.url}/index.json names a file twice")
    if not sizes:
        raise FormatError(f"{place.url} has no files in format {name!r}")
    unknown = [file for file, nbytes in sizes.items() if nbytes < 0]
    for k in range(0, len(unknown), STATS_AT_ONCE):
        sizes |= place.source.run([], stat=unknown[k : k + STATS_AT_ONCE], timeout=place.timeout)
    return sizes, counts


def _small(sizes: Mapping[str, int], place: Place) -> set[str]:
    """Files that are fetched whole at once, because their pages cost a further round trip and hardly more bytes."""
    room = 0 if place.source.local else min(place.budget // WHOLE_SHARE, WHOLE_ROOM)
    chosen = set()
    for number, (name, nbytes) in enumerate(sizes.items()):
        if nbytes <= min(room, TAIL_BYTES if number else WHOLE_FIRST):
            room -= nbytes
            chosen.add(name)
    return chosen


def _opened(
    name: str,
    place: Place,
    sizes: Mapping[str, int],
    rows: RowsSchema,
    images: IpcImages | ParquetImages,
    blocks: Blocks,
    about: dict[str, Any],
    version: str,
) -> Opened:
    names = list(sizes)
    bounds = blocks.files
    files = Files(
        names=names,
        counts=array("Q", [sum(blocks.counts[a:b]) for a, b in pairwise(bounds)]),
        hints=array("Q", sizes.values()),
        blocks=bounds,
    )
    return Opened(
        format=name,
        source=place.source,
        names=BlockNames(files),
        counts=blocks.counts,
        hints=blocks.hints,
        plan=DecodePlan(rows.leaves, rows.tree, names=rows.names, loose=images.loose),
        images=images,
        files=files,
        version=version,
        about=about,
    )


def _about_schema(schema: Any, keys: Sequence[str]) -> dict[str, str]:
    return {key: str(schema.field(key).type) for key in keys}


def _digest(parts: Sequence[tuple[str, int, bytes, bytes]]) -> str:
    """The contents, as far as the files' directories tell."""
    digest = hashlib.blake2b(digest_size=12)
    for name, nbytes, one, other in parts:
        digest.update(f"{name}\0{nbytes}\0{len(one)}\0{len(other)}\0".encode("utf-8", "surrogatepass"))
        digest.update(one)
        digest.update(other)
    return digest.hexdigest()
