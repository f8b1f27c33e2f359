"""MosaicML's index.json, version 2: shards, their files and columns, checked before anything is read by them.

Pure: bytes in, a checked :class:`MosaicIndex` out. How the items of a shard are stored is the business of
``mds.py`` and ``mosaic_text.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from lazystore.errors import FormatError, UnsupportedError
from lazystore.formats.file_names import is_inside

__all__ = ["Columns", "MosaicIndex", "Shard", "StoredFile", "parse_index"]

VERSION = 2
MAX_BYTES = 1 << 62
#: Tables have 32-bit entries: no shard holds more items, nor bytes.
MAX_SAMPLES = 1 << 30
TEXT_FORMATS = ("json", "csv", "tsv", "xsv")
_SEPARATORS = {"csv": ",", "tsv": "\t"}
#: Names of one encoding.
_ALIASES = {"jpegarray": "jpeg_array"}


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a shard.

    Attributes:
        name: its path below the dataset's directory.
        nbytes: its length.
        hashes: hex digests of its contents by algorithm.
    """

    name: str
    nbytes: int
    hashes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Columns:
    """What the samples of a shard look like.

    Attributes:
        names, encodings: of the columns, in stored order.
        sizes: bytes of each, 0 where they vary; () for text.
        newline, separator: of text shards.
    """

    names: tuple[str, ...]
    encodings: tuple[str, ...]
    sizes: tuple[int, ...] = ()
    newline: str = ""
    separator: str = ""


@dataclass(frozen=True, slots=True)
class Shard:
    """One entry of the index.

    Attributes:
        samples: number of items.
        compression: as the index calls it, "" for none.
        raw, zipped: its data, plain and compressed; only one of them need be stored. ``zipped`` is None without
            compression.
        raw_meta, zipped_meta: the same of a text shard's offset table.
    """

    samples: int
    compression: str
    raw: StoredFile
    zipped: StoredFile | None
    raw_meta: StoredFile | None
    zipped_meta: StoredFile | None


@dataclass(frozen=True, slots=True)
class MosaicIndex:
    """A checked index.

    Attributes:
        kind: format of the shards: mds, json, csv, tsv or xsv.
        columns: of all shards that have samples.
        shards: in dataset order.
    """

    kind: str
    columns: Columns
    shards: Sequence[Shard]


def parse_index(data: bytes | bytearray, *, place: str) -> MosaicIndex:
    """Check an index.json and take it apart.

    Parameters:
        data: the file's bytes.
        place: its path or URL, for messages.

    Raises:
        FormatError: not JSON, or not an index; the message names the shard and the key.
        UnsupportedError: another version; shards of several kinds, or with different columns.

    Cost: some 3 us and, while it runs, 2 KB a shard.
    """
    try:
        index = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(
            f"{place} is not JSON ({error}); the dataset was not finished, or this is another file"
        ) from None
    if not isinstance(index, dict) or not isinstance(index.get("shards"), list):
        raise FormatError(f'{place} has no list "shards"; it is not a MosaicML index')
    _check_version(index, place)
    shards, kind, columns, first = [], "", Columns((), ()), -1
    seen: dict[str, Columns] = {}  # shards mostly say the same about their columns: it is taken apart once
    for i, entry in enumerate(index["shards"]):
        where = f"{place}: shard {i}"
        if not isinstance(entry, dict):
            raise FormatError(f"{where} is a {type(entry).__name__}, not an object")
        _check_version(entry, where)
        shard_kind = entry.get("format")
        if shard_kind != "mds" and shard_kind not in TEXT_FORMATS:
            raise UnsupportedError(f'{where} has "format": {shard_kind!r}; mds, json, csv, tsv and xsv are read')
        shard = _shard(entry, shard_kind, where)
        shards.append(shard)
        if first >= 0 and not shard.samples:
            continue
        found = _columns(entry, shard_kind, where, seen)
        if first < 0 or not shards[first].samples:
            kind, columns, first = shard_kind, found, i
        elif shard_kind != kind or (found is not columns and found != columns):
            raise _unlike(place, first, kind, columns, i, shard_kind, found)
    return MosaicIndex(kind or "mds", columns, shards)


def _check_version(entry: Mapping[str, Any], where: str) -> None:
    version = entry.get("version")
    if version != VERSION or isinstance(version, bool):
        raise UnsupportedError(
            f'{where} has "version": {version!r}; lazystore reads version {VERSION}, the only one known'
        )


def _unlike(
    place: str, a: int, kind: str, columns: Columns, b: int, other_kind: str, other: Columns
) -> UnsupportedError:
    def told(kind: str, columns: Columns) -> str:
        return f"{kind} with " + ", ".join(f"{n}: {e}" for n, e in zip(columns.names, columns.encodings, strict=True))

    return UnsupportedError(
        f"{place} joins shards that are not alike: shard {a} is {told(kind, columns)}; "
        f"shard {b} is {told(other_kind, other)}. Open the directories it was merged from one by one, "
        "and combine the datasets"
    )


def _shard(entry: Mapping[str, Any], kind: str, where: str) -> Shard:
    samples, compression = entry.get("samples"), entry.get("compression")
    if not _is_count(samples) or samples >= MAX_SAMPLES:
        raise FormatError(f'{where} has "samples": {samples!r}, not a number of items')
    if compression is not None and not isinstance(compression, str):
        raise FormatError(f'{where} has "compression": {compression!r}')
    zipped = kind in TEXT_FORMATS and bool(compression)
    return Shard(
        samples,
        compression or "",
        _file(entry, "raw_data", where),
        _file(entry, "zip_data", where) if compression else None,
        _file(entry, "raw_meta", where) if kind in TEXT_FORMATS else None,
        _file(entry, "zip_meta", where) if zipped else None,
    )


def _file(entry: Mapping[str, Any], key: str, where: str) -> StoredFile:
    info = entry.get(key)
    if not isinstance(info, dict):
        raise FormatError(f'{where} has "{key}": {json.dumps(info)}, not an object')
    name, nbytes, hashes = info.get("basename"), info.get("bytes"), info.get("hashes")
    if not is_inside(name, below=True):  # a merged dataset's shards lie in directories of their own
        raise FormatError(
            f'{where} has "{key}" named {name!r}, which is not a plain path inside the dataset\'s directory; refused'
        )
    if not _is_count(nbytes):
        raise FormatError(f'{where} ({name}) has "bytes": {nbytes!r} in its "{key}"')
    if hashes is None:
        hashes = {}
    if not isinstance(hashes, dict) or any(not isinstance(digest, str) for digest in hashes.values()):
        raise FormatError(f'{where} ({name}) has "hashes": {json.dumps(hashes)} in its "{key}", not digests by name')
    return StoredFile(name, nbytes, hashes)


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_BYTES


# -- columns --------------------------------------------------------------------------------

_KEYS = ("columns", "column_names", "column_encodings", "column_sizes", "newline", "separator")


def _columns(entry: Mapping[str, Any], kind: str, where: str, seen: dict[str, Columns]) -> Columns:
    key = repr([kind, *[entry.get(name) for name in _KEYS]])
    if key not in seen:
        seen[key] = _parse_columns(entry, kind, where)
    return seen[key]


def _parse_columns(entry: Mapping[str, Any], kind: str, where: str) -> Columns:
    if kind == "json":
        columns = entry.get("columns")
        if not isinstance(columns, dict):
            raise FormatError(f'{where} has no object "columns"')
        entry = {**entry, "column_names": list(columns), "column_encodings": list(columns.values())}
    names, encodings = _strings(entry, "column_names", where), _strings(entry, "column_encodings", where)
    if len(names) != len(encodings) or len(set(names)) != len(names):
        raise FormatError(f"{where} has {len(names)} column names and {len(encodings)} encodings, or a name twice")
    encodings = [_ALIASES.get(encoding, encoding) for encoding in encodings]
    sizes = _sizes(entry, len(names), where) if kind == "mds" else ()
    newline = _text(entry, "newline", where) if kind != "mds" else ""
    separator = _SEPARATORS.get(kind) or (_text(entry, "separator", where) if kind == "xsv" else "")
    return Columns(tuple(names), tuple(encodings), sizes, newline, separator)


def _strings(entry: Mapping[str, Any], key: str, where: str) -> list[str]:
    values = entry.get(key)
    if not isinstance(values, list) or any(not isinstance(value, str) for value in values):
        raise FormatError(f'{where} has no list of strings as "{key}"')
    return values


def _sizes(entry: Mapping[str, Any], count: int, where: str) -> tuple[int, ...]:
    sizes = entry.get("column_sizes")
    if not isinstance(sizes, list) or len(sizes) != count:
        raise FormatError(f'{where} has no list of {count} "column_sizes"')
    for size in sizes:
        if size is not None and (not _is_count(size) or size >> 32):
            raise FormatError(f'{where} has {size!r} among its "column_sizes"')
    return tuple(size or 0 for size in sizes)


def _text(entry: Mapping[str, Any], key: str, where: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not value:
        raise FormatError(f'{where} has "{key}": {value!r}')
    return value
