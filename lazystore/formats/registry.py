"""Which format a dataset is in: by name, by its index.json, by the ends of its file names.

Formats are imported when they are needed. Those of other packages come from the entry point group
``lazystore.formats`` (name = ``"module:Class"``) or from :func:`register_format`.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from lazystore.errors import ConfigError, FormatError
from lazystore.formats.format import Format

__all__ = [
    "find_format",
    "format_for_files",
    "format_for_index",
    "format_names",
    "register_format",
    "suffixes_of",
]

GROUP = "lazystore.formats"
#: Where lazystore's own formats are, and the ends of the file names they read.
_OWN: dict[str, tuple[str, tuple[str, ...]]] = {
    "litdata": ("lazystore.formats.litdata_format:LitDataFormat", ()),
    "mds": ("lazystore.formats.mds:MdsFormat", ()),
    "jsonl": ("lazystore.formats.text:JsonlFormat", (".jsonl", ".ndjson", ".jsonlines")),
    "csv": ("lazystore.formats.text:CsvFormat", (".csv",)),
    "tsv": ("lazystore.formats.text:TsvFormat", (".tsv",)),
    "lines": ("lazystore.formats.text:LinesFormat", (".txt", ".lines")),
    "parquet": ("lazystore.formats.arrow:ParquetFormat", (".parquet",)),
    "arrow": ("lazystore.formats.arrow:ArrowFormat", (".arrow", ".feather", ".ipc")),
}
#: A text file may be compressed as a whole.
_COMPRESSED = ("", ".gz", ".zst", ".zstd")
_TEXT = ("jsonl", "csv", "tsv", "lines")
_registered: dict[str, Format] = {}
_found: dict[str, Format] = {}


def register_format(format: Format) -> None:
    """Make a format known in this process, under its ``name``.

    Raises:
        ConfigError: lazystore has a format of that name.
    """
    if format.name in _OWN:
        raise ConfigError(f"format name {format.name!r} is taken by lazystore's own")
    _registered[format.name] = format


def format_names() -> list[str]:
    """Names that ``format=`` accepts."""
    return [*_OWN, *_registered, *(name for name in _entry_points() if name not in _registered)]


def find_format(name: str) -> Format:
    """The format of this name.

    Raises:
        ConfigError: there is none.
    """
    if name in _registered:
        return _registered[name]
    if name not in _found:
        if name in _OWN:
            place = _OWN[name][0]
        elif (points := _entry_points()) and name in points:
            place = points[name]
        else:
            raise ConfigError(f"format={name!r} is not one of {', '.join(format_names())}")
        module, _, attribute = place.partition(":")
        _found[name] = getattr(importlib.import_module(module), attribute)()
    return _found[name]


def format_for_index(index: bytes | bytearray, *, place: str) -> Format:
    """The format of a dataset with an index.json.

    Raises:
        FormatError: nobody knows it.
    """
    outline = _outline(index, place)
    if "chunks" in outline:
        return find_format("parquet" if _is_parquet(outline) else "litdata")
    if "shards" in outline:
        return find_format("mds")
    for name in _others():
        if find_format(name).recognises(outline):
            return find_format(name)
    raise FormatError(f"{place} is not the index of a dataset that lazystore knows: no chunks, no shards")


def format_for_files(names: Iterable[str], *, place: str) -> tuple[Format, list[str]]:
    """The one format of some files, and those of them that are in it; others (README, ...) are left out.

    Raises:
        ConfigError: they are in several formats.
        FormatError: in none.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        if format := _by_suffix(name):
            found.setdefault(format, []).append(name)
    if len(found) > 1:
        raise ConfigError(f"{place} holds files of several formats ({', '.join(found)}); say which with format=")
    if not found:
        raise FormatError(f"{place}: no file there has a name that tells its format; say it with format=")
    ((format, files),) = found.items()
    return find_format(format), files


def _by_suffix(name: str) -> str:
    """The format a file name stands for; "" for none."""
    lower = name.lower()
    return next((format for format in (*_OWN, *_others()) if lower.endswith(suffixes_of(format))), "")


def suffixes_of(name: str) -> tuple[str, ...]:
    """Ends of the file names of a format."""
    if name in _OWN:
        return tuple(a + b for a in _OWN[name][1] for b in (_COMPRESSED if name in _TEXT else ("",)))
    return find_format(name).suffixes


def _others() -> list[str]:
    return [*_registered, *(name for name in _entry_points() if name not in _registered)]


@cache
def _entry_points() -> dict[str, str]:
    """Asked once: it looks through every installed package, and a folder may hold many names to ask about."""
    from importlib.metadata import entry_points

    return {point.name: point.value for point in entry_points(group=GROUP)}


def _is_parquet(outline: Mapping[str, Any]) -> bool:
    config = outline.get("config")
    return isinstance(config, dict) and config.get("item_loader") == "ParquetLoader"


def _outline(index: bytes | bytearray, place: str) -> dict[str, Any]:
    """The index without its long lists, whose keys stay: a million chunks are not parsed to learn who reads them."""
    head, found = b'{"chunks": [', index.rfind(b'], "config"')
    if found > 0 and index.startswith(head):
        try:
            return dict(json.loads(index[: len(head)] + index[found:]))
        except (ValueError, TypeError, RecursionError):
            pass  # the end was found inside something else
    try:
        outline = json.loads(index)
    except (ValueError, RecursionError) as error:
        raise FormatError(
            f"{place} is not JSON ({error}); the dataset was not finished, or this is another file"
        ) from None
    if not isinstance(outline, dict):
        raise FormatError(f"{place} is not an index: it holds a {type(outline).__name__}, not an object")
    return {key: [] if isinstance(value, list) else value for key, value in outline.items()}
