"""MosaicML's JSON, CSV, TSV and XSV shards: lines in one file, their offsets in another.

Both together are a chunk in the classic layout once the offsets are moved past their table: put together as they lie,
or while they are inflated.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Sequence
from typing import Any

from lazystore._core.decode import DecodePlan
from lazystore.errors import FormatError
from lazystore.fetch.segments import Segment, SegmentedSource, Span
from lazystore.formats.format import OFFSET_WIDTH, OFFSETS_AT, Opened, Options, Place
from lazystore.formats.mosaic_codec import TextCodec
from lazystore.formats.mosaic_files import MAX_SHARD_BYTES, about, stored_forms, verified
from lazystore.formats.mosaic_index import Columns, MosaicIndex, Shard, StoredFile

__all__ = ["open_text"]

_CASTS: dict[str, Callable[[str], Any]] = {"str": str, "int": int, "float": float}


def open_text(index: MosaicIndex, place: Place, options: Options) -> Opened:
    """Open a dataset of text shards; see :class:`~lazystore.formats.mds.MdsFormat`.

    Raises:
        FormatError: as the index is damaged, or names a column type nobody knows.
    """
    forms = stored_forms(index, place)
    largest = max((shard.raw.nbytes for shard in index.shards), default=0)
    codec = TextCodec(forms, largest) if any(forms) else None
    objects: dict[str, Sequence[Segment]] = {}
    names, hints, files = [], array("Q"), []
    for i, (shard, form) in enumerate(zip(index.shards, forms, strict=True)):
        meta, data = _stored(shard, form)
        hints.append(_chunk_bytes(i, shard, place))
        names.append(data.name)
        if shard.samples:
            files += [meta, data]
        assert shard.raw_meta is not None
        if codec is not None:
            objects[data.name] = codec.segments(form, shard.samples, meta, shard.raw_meta, data, shard.raw)
        else:
            table = OFFSET_WIDTH * (shard.samples + 1)
            objects[data.name] = (
                Span(meta.name, 0, OFFSETS_AT),
                Span(meta.name, OFFSETS_AT, table, shift=OFFSETS_AT + table),
                Span(data.name, 0, data.nbytes),
            )
    return Opened(
        format="mds",
        source=SegmentedSource(verified(files, options, place), objects),
        names=names,
        counts=array("Q", [shard.samples for shard in index.shards]),
        hints=hints,
        plan=line_plan(index.kind, index.columns, options),
        exact=True,
        codec=codec,
        version=hashlib.blake2b(place.index, digest_size=16).hexdigest(),
        about=about(index, forms),
    )


def _stored(shard: Shard, form: str) -> tuple[StoredFile, StoredFile]:
    """Offset table and data as they are stored."""
    meta, data = (shard.zipped_meta, shard.zipped) if form else (shard.raw_meta, shard.raw)
    assert meta is not None
    assert data is not None
    return meta, data


def _chunk_bytes(i: int, shard: Shard, place: Place) -> int:
    assert shard.raw_meta is not None
    table_end = OFFSETS_AT + OFFSET_WIDTH * (shard.samples + 1)
    if shard.raw_meta.nbytes < table_end:
        raise FormatError(
            f"{place.url}: shard {i} has {shard.samples} samples, {shard.raw_meta.name} {shard.raw_meta.nbytes} bytes"
        )
    if table_end + shard.raw.nbytes > MAX_SHARD_BYTES:
        raise FormatError(
            f"{place.url}: shard {i} ({shard.raw.name}) has {shard.raw.nbytes} bytes, beyond what 32-bit offsets "
            "reach; write it again with a smaller size_limit"
        )
    return table_end + shard.raw.nbytes


# -- lines ----------------------------------------------------------------------------------


def line_plan(kind: str, columns: Columns, options: Options) -> DecodePlan:
    """The plan of a line: a dict of its columns; its bytes without the newline with ``raw``.

    Raises:
        FormatError: a column type that text shards do not have.
    """
    newline = columns.newline.encode()
    if options.raw:
        decode: Callable[[bytes], Any] = lambda line: line.removesuffix(newline)  # noqa: E731
    elif kind == "json":
        decode = _json_row
    else:
        decode = _row_parser(columns, options)
    return DecodePlan([("call", decode)], [("leaf",)], names=[kind], headless=True)


def _json_row(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the line {line[:40]!r} ({len(line)} bytes) is no JSON: {error}") from None


def _row_parser(columns: Columns, options: Options) -> Callable[[bytes], dict[str, Any]]:
    """Lines of values between separators, without quotes: what holds a separator was never written."""
    names, newline, separator = columns.names, columns.newline, columns.separator
    casts = [_cast(name, encoding, options) for name, encoding in zip(names, columns.encodings, strict=True)]

    def decode(line: bytes) -> dict[str, Any]:
        try:
            values = line.decode("utf-8").removesuffix(newline).split(separator)
            if len(values) != len(names):
                raise FormatError(f"the line {line[:40]!r} has {len(values)} values, the schema {len(names)} columns")
            return {name: cast(value) for name, cast, value in zip(names, casts, values, strict=True)}
        except FormatError:
            raise
        except ValueError as error:
            raise FormatError(f"the line {line[:40]!r} ({len(line)} bytes) cannot be decoded: {error}") from None

    return decode


def _cast(name: str, encoding: str, options: Options) -> Callable[[str], Any]:
    for key in (name, encoding):
        if options.serializers and key in options.serializers:
            serializer = options.serializers[key]
            function = getattr(serializer, "deserialize", serializer)
            return lambda text: function(text.encode())
    if encoding not in _CASTS:
        raise FormatError(
            f"column {name!r} has the encoding {encoding!r}; text shards have str, int and float. If it is your own, "
            f"pass serializers={{{encoding!r}: object with deserialize(bytes)}}"
        )
    return _CASTS[encoding]
