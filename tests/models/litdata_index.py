"""An index.json by ``json.loads`` of the whole document: the oracle of ``parse_index``, errors included."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from lazystore.errors import FormatError, UnsupportedError


@dataclass
class IndexModel:
    """What a ``LitDataIndex`` holds, as lists."""

    names: list[str] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    hints: list[int] = field(default_factory=list)
    dims: list[int] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    data_spec: str | None = None
    updated_at: str = "0"


def parse(data: bytes, place: str) -> IndexModel:
    """Any index without loader, encryption and compression; what is wrong first is told."""
    try:
        index = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(
            f"{place} is not JSON ({error}); the dataset was not finished, or this is another file"
        ) from None
    if not isinstance(index, dict):
        raise FormatError(f"{place} is not a LitData index: it holds a {type(index).__name__}, not an object")
    if "shards" in index and "chunks" not in index:
        raise UnsupportedError(f"{place} is a MosaicML index; this version of lazystore reads LitData datasets")
    chunks, config = index.get("chunks"), index.get("config")
    if not isinstance(chunks, list):
        raise FormatError(f'{place} has no list "chunks"; it is not a LitData index')
    if not isinstance(config, dict):
        raise FormatError(
            f'{place} has "config": {json.dumps(config)}: the writer stored nothing; write the dataset again'
        )
    tags = config.get("data_format")
    if not isinstance(tags, list) or any(not isinstance(tag, str) for tag in tags):
        raise FormatError(f'{place} has no list of strings "data_format" in its config')
    spec = config.get("data_spec")
    if spec is not None and not isinstance(spec, str):
        raise FormatError(f'{place} has a "data_spec" that is no string')
    found = IndexModel(tags=tags, data_spec=spec, updated_at=str(index.get("updated_at", "0")))
    for i, chunk in enumerate(chunks):
        _add(found, i, chunk, place)
    return found


def _add(found: IndexModel, i: int, chunk: Any, place: str) -> None:
    if not isinstance(chunk, dict):
        raise FormatError(f"{place}: chunk {i} is a {type(chunk).__name__}, not an object")
    name, count, hint, dim = (chunk.get(key) for key in ("filename", "chunk_size", "chunk_bytes", "dim"))
    if not isinstance(name, str) or not name:
        raise FormatError(f'{place}: chunk {i} has "filename": {name!r}')
    if name in (".", "..") or any(mark in name for mark in ("/", "\\", "\0")):
        raise FormatError(
            f"{place}: chunk {i} names the file {name!r}, "
            "which is not a plain name inside the dataset's directory; refused"
        )
    if not _counts(count) or count > 1 << 30:
        raise FormatError(f'{place}: chunk {i} ({name}) has "chunk_size": {count!r}, not a number of items')
    if dim is not None and (not _counts(dim) or dim > 1 << 32):
        raise FormatError(f'{place}: chunk {i} ({name}) has "dim": {dim!r}')
    found.names.append(name)
    found.counts.append(count)
    found.hints.append(hint if _counts(hint) else 0)
    found.dims.append(-1 if dim is None else dim)


def _counts(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62
