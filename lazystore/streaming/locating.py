"""What a URL names: a directory with an index, a directory of files, some files by a pattern, or one file.

From that the format follows, unless the caller says it. What the bytes mean is the format's business.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lazystore.errors import ConfigError, DatasetNotFoundError
from lazystore.fetch.listing import list_objects
from lazystore.fetch.options import is_local, local_path
from lazystore.formats.format import Format, Place
from lazystore.formats.registry import find_format, format_for_files, format_for_index, suffixes_of

if TYPE_CHECKING:
    from lazystore.fetch.source import Source

__all__ = ["INDEX_NAME", "Root", "find_place", "root_of"]

INDEX_NAME = "index.json"
#: An index of a million chunks has some 100 MB; what is longer is no index.
MAX_INDEX_BYTES = 1 << 30
#: Formats whose files may be named one by one.
_FILE_FORMATS = ("jsonl", "csv", "tsv", "lines", "parquet", "arrow")


@dataclass(frozen=True, slots=True)
class Root:
    """Where reading begins.

    Attributes:
        url: the directory.
        pattern: names of files in it, with ``*`` and ``[...]``; "": the directory as such.
        named: the pattern is one file's name.
    """

    url: str
    pattern: str = ""
    named: bool = False


def root_of(url: str, format: str | Format | None) -> Root:
    """Take a URL apart; looks at the local disk only."""
    if isinstance(format, Format) and format.files is not None:
        return Root(url)
    if is_local(url):
        path = local_path(url)
        head, name = os.path.split(path.rstrip("/"))
        if os.path.isdir(path) or not name:
            return Root(path)
        if os.path.isfile(path):
            return Root(head or ".", name, named=True)
        if not ("*" in name or "[" in name):
            return Root(path)  # nothing is there: reading says so
    else:
        head, name = url.rstrip("/").rpartition("/")[::2]
    suffixes = _suffixes(format) if format else tuple(end for known in _FILE_FORMATS for end in suffixes_of(known))
    if "*" in name or "[" in name:
        return Root(head or ".", name)
    if suffixes and name.lower().endswith(suffixes):
        return Root(head or ".", name, named=True)
    return Root(url)


def find_place(
    source: Source,
    root: Root,
    *,
    url: str,
    format: str | Format | None,
    storage_options: Mapping[str, Any],
    timeout: float,
    budget: int,
) -> tuple[Format, Place]:
    """The format of what a URL names, and what there is.

    Raises:
        DatasetNotFoundError: nothing is there.
        ConfigError: several formats lie side by side, or the one that was asked for is not there.
    """
    if isinstance(format, Format) and format.files is not None:
        return format, Place(source, url, format.files, b"", timeout, budget)
    if root.pattern:
        names = {root.pattern: -1} if root.named else _listed(root, url, storage_options, timeout)
        return (*_of_files(names, url, format, source, timeout, budget),)
    try:
        index = source.read_all(INDEX_NAME, limit=MAX_INDEX_BYTES, timeout=timeout)
    except DatasetNotFoundError:
        names = _listed(root, url, storage_options, timeout)
        if source.local and not os.path.exists(source.url):
            raise DatasetNotFoundError(f"{url} does not exist") from None
        if not any(_is_data(name, format) for name in names):
            raise DatasetNotFoundError(_nothing_there(source.url, names)) from None
        return (*_of_files(names, url, format, source, timeout, budget),)
    place = f"{source.url}/{INDEX_NAME}"
    found = _named(format) if format else format_for_index(index, place=place)
    return found, Place(source, source.url, {}, index, timeout, budget)


def _of_files(
    names: Mapping[str, int], url: str, format: str | Format | None, source: Source, timeout: float, budget: int
) -> tuple[Format, Place]:
    if format:
        found = _named(format)
        files = [name for name in names if len(names) == 1 or _is_data(name, format)]
        if not files:
            raise ConfigError(f"{url}: no file there has a name of format {found.name!r} ({', '.join(found.suffixes)})")
    else:
        found, files = format_for_files(names, place=url)
    return found, Place(source, url, {name: names[name] for name in files}, b"", timeout, budget)


def _is_data(name: str, format: str | Format | None) -> bool:
    formats = (format,) if format else _FILE_FORMATS
    return any(name.lower().endswith(_suffixes(known) or ("",)) for known in formats)


def _named(format: str | Format) -> Format:
    return format if isinstance(format, Format) else find_format(format)


def _suffixes(format: str | Format) -> tuple[str, ...]:
    return format.suffixes if isinstance(format, Format) else suffixes_of(format)


def _listed(root: Root, url: str, storage_options: Mapping[str, Any], timeout: float) -> dict[str, int]:
    """Files in the directory that fit the pattern."""
    try:
        found = list_objects(root.url, root.pattern or "*", storage_options, timeout=timeout)
    except DatasetNotFoundError:
        found = {}
    if root.pattern and not any(fnmatch.fnmatchcase(name, root.pattern) for name in found):
        raise DatasetNotFoundError(f"{url}: no file in {root.url} fits {root.pattern!r}")
    return found


def _nothing_there(url: str, names: Mapping[str, int]) -> str:
    unfinished = sorted(name for name in names if name.endswith((f".{INDEX_NAME}", f"-{INDEX_NAME}")))
    if unfinished:
        return (
            f"{url}/{INDEX_NAME} does not exist, but {unfinished[0]} does: the run that wrote the dataset was "
            "interrupted; lazystore.complete_dataset finishes it"
        )
    return (
        f"{url}/{INDEX_NAME} does not exist, nor files of a format that lazystore reads: the path is wrong, or the "
        "dataset was not finished (the index is written last)"
    )
