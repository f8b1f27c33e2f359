"""LitData's index.json, in all its ages: what a dataset's chunks, items and leaves are.

Parsing is pure: bytes in, a checked :class:`LitDataIndex` out. Layout of a chunk:
``u32 n | u32 offset[n+1] (absolute) | items``; an item is ``u32 size[leaves] | leaves``, or for
token datasets one bare array. What stands in the index is believed only where the chunk's
own bytes cannot say better; ``chunk_bytes`` is a hint, never a bound.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from lazystore.errors import FormatError, UnsupportedError
from lazystore.formats.compression import require_codec

__all__ = ["FRAMED_MAGIC", "INDEX_NAME", "OFFSETS_AT", "OFFSET_WIDTH", "ROWS_MAGIC", "LitDataIndex", "parse_index"]

INDEX_NAME = "index.json"
OFFSETS_AT = 4
OFFSET_WIDTH = 4
FRAMED_MAGIC = b"LDFZ01\0\0"
ROWS_MAGIC = b"LDARW01\0"
TOKENS_LOADER = "TokensLoader"
MAX_TOKENS = 1 << 32  # a chunk is shorter than 4 GiB
MAX_ITEMS = (1 << 32) // OFFSET_WIDTH  # a chunk's table alone would pass 4 GiB


@dataclass(frozen=True, slots=True)
class LitDataIndex:
    """A checked index.

    Attributes:
        names: file name of each chunk, in dataset order.
        counts: items of each chunk (documents, for token datasets).
        hints: bytes of each chunk as the index has it; 0 when it does not say.
        dims: tokens of each chunk; -1 when the index does not say.
        tags: serializer tag of each leaf.
        data_spec: the tree of containers, as stored.
        tokens: items are bare arrays without a size (written with TokensLoader).
        compression: whole-chunk compression, "" for none.
        updated_at: version of the dataset, "0" when the index does not say.
    """

    names: list[str]
    counts: array[int]
    hints: array[int]
    dims: array[int]
    tags: list[str]
    data_spec: str | None
    tokens: bool
    compression: str
    updated_at: str

    def table_end(self, chunk: int) -> int:
        """First byte after the offset table of a chunk: where its first item may begin."""
        return OFFSETS_AT + OFFSET_WIDTH * (self.counts[chunk] + 1)


def parse_index(data: bytes, *, place: str) -> LitDataIndex:
    """Check an index.json and take it apart.

    Parameters:
        data: the file's bytes.
        place: its path or URL, for messages.

    Raises:
        FormatError: not JSON, or not an index; the message names the key.
        UnsupportedError: encrypted, or of a kind this version does not read.

    Cost: one JSON parse and ~100 bytes a chunk.
    """
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
    tags = _tags(config, place)
    tokens = _is_tokens(config, tags)
    if tokens and len(tags) != 1:
        raise FormatError(f"{place} is a token dataset with {len(tags)} leaves instead of 1")
    spec = config.get("data_spec")
    if spec is not None and not isinstance(spec, str):
        raise FormatError(f'{place} has a "data_spec" that is no string')
    names, counts, hints, dims = _chunks(chunks, place)
    return LitDataIndex(
        names, counts, hints, dims, tags, spec, tokens, _compression(config, place), str(index.get("updated_at", "0"))
    )


def _tags(config: Mapping[str, Any], place: str) -> list[str]:
    tags = config.get("data_format")
    if not isinstance(tags, list) or any(not isinstance(tag, str) for tag in tags):
        raise FormatError(f'{place} has no list of strings "data_format" in its config')
    return tags


def _is_tokens(config: Mapping[str, Any], tags: list[str]) -> bool:
    """Since August 2024 the index names its loader; before, a single headerless leaf implied tokens."""
    loader = config.get("item_loader")
    if loader is None:
        return len(tags) == 1 and tags[0].startswith(("no_header_tensor", "no_header_numpy"))
    if loader in ("ParquetLoader", "TemporalArrayLoader"):
        raise UnsupportedError(f"datasets written for {loader} are not read by this version of lazystore")
    return bool(loader == TOKENS_LOADER)


def _compression(config: Mapping[str, Any], place: str) -> str:
    """The whole-chunk compression; what is compressed inside the chunk shows in the chunk's bytes."""
    if config.get("encryption") is not None:
        raise UnsupportedError(
            f"{place} is encrypted ({config['encryption']}); this version reads no encrypted datasets"
        )
    compression = config.get("compression")
    level = config.get("compression_level")
    if compression is None:
        return ""
    if not isinstance(compression, str):
        raise FormatError(f'{place} has "compression": {compression!r}')
    if level == "sample":
        raise UnsupportedError(f"{place} is compressed sample by sample, which this version of lazystore does not read")
    if level == "batch":
        return ""  # framed or plain, chunk by chunk: the magic decides
    require_codec(compression)
    return compression


def _chunks(chunks: list[Any], place: str) -> tuple[list[str], array[int], array[int], array[int]]:
    names: list[str] = []
    counts, hints, dims = array("Q"), array("Q"), array("q")
    for i, chunk in enumerate(chunks):
        if not isinstance(chunk, dict):
            raise FormatError(f"{place}: chunk {i} is a {type(chunk).__name__}, not an object")
        name, count = chunk.get("filename"), chunk.get("chunk_size")
        names.append(_safe_name(name, i, place))
        if not _is_count(count) or count > MAX_ITEMS:
            raise FormatError(f'{place}: chunk {i} ({name}) has "chunk_size": {count!r}, not a number of items')
        hint, dim = chunk.get("chunk_bytes"), chunk.get("dim")
        if dim is not None and (not _is_count(dim) or dim > MAX_TOKENS):
            raise FormatError(f'{place}: chunk {i} ({name}) has "dim": {dim!r}')
        counts.append(count)
        hints.append(hint if _is_count(hint) and hint < 1 << 62 else 0)
        dims.append(-1 if dim is None else dim)
    return names, counts, hints, dims


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _safe_name(name: Any, i: int, place: str) -> str:
    """A chunk's file lies in the dataset's own directory, whatever the index says."""
    if not isinstance(name, str) or not name:
        raise FormatError(f'{place}: chunk {i} has "filename": {name!r}')
    parts = name.replace("\\", "/").split("/")
    if len(parts) > 1 or name in (".", "..") or "\0" in name or "://" in name:
        raise FormatError(
            f"{place}: chunk {i} names the file {name!r}, "
            "which is not a plain name inside the dataset's directory; refused"
        )
    return name
