"""LitData's index.json, in all its ages: what a dataset's chunks, items and leaves are.

Parsing is pure: bytes in, a checked :class:`LitDataIndex` out. Layout of a chunk:
``u32 n | u32 offset[n+1] (absolute) | items``; an item is ``u32 size[leaves] | leaves``, or for
token datasets one bare array. What stands in the index is believed only where the chunk's
own bytes cannot say better; ``chunk_bytes`` is a hint, never a bound.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard, overload

from lazystore._core.index_scan import ChunkTable
from lazystore.errors import FormatError, UnsupportedError
from lazystore.formats.compression import require_codec

__all__ = [
    "FRAMED_MAGIC",
    "INDEX_NAME",
    "OFFSETS_AT",
    "OFFSET_WIDTH",
    "ROWS_MAGIC",
    "ChunkNames",
    "LitDataIndex",
    "parse_index",
]

INDEX_NAME = "index.json"
OFFSETS_AT = 4
OFFSET_WIDTH = 4
FRAMED_MAGIC = b"LDFZ01\0\0"
ROWS_MAGIC = b"LDARW01\0"
TOKENS_LOADER = "TokensLoader"
MAX_TOKENS = 1 << 32  # a chunk is shorter than 4 GiB
MAX_ITEMS = (1 << 32) // OFFSET_WIDTH  # a chunk's table alone would pass 4 GiB


Entry = tuple[bytes, int, int, int]


class ChunkNames(Sequence[str]):
    """File names of chunks: a list of str that keeps only their bytes, so that a million of them take 30 MB less.

    Parameters:
        text: the names in UTF-8, end to end.
        ends: where each ends in ``text``.

    Cost: a new str for each look. Threads: read-only. Pickling: by value.
    """

    __slots__ = ("_ends", "_text")

    def __init__(self, text: bytearray, ends: array[int]) -> None:
        self._text = text
        self._ends = ends

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self._ends))[index]
        begin = self._ends[i - 1] if i else 0
        # An index may hold half a surrogate pair; the storage says what it thinks of such a name.
        return self._text[begin : self._ends[i]].decode("utf-8", "surrogatepass")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<ChunkNames of {len(self)} chunks>"


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

    names: Sequence[str]
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


def parse_index(data: bytes | bytearray, *, place: str) -> LitDataIndex:
    """Check an index.json and take it apart.

    Parameters:
        data: the file's bytes.
        place: its path or URL, for messages.

    Raises:
        FormatError: not JSON, or not an index; the message names the key.
        UnsupportedError: encrypted, or of a kind this version does not read.

    Cost: ~800 MB/s and ~60 bytes a chunk for indexes as LitData writes them; others take a dict a chunk for the
    time of the call.
    """
    entries = _Entries(place)
    index = _load(data, entries, place)
    config = index.get("config")
    if not isinstance(index.get("chunks"), list):
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
    names, counts, hints, dims = entries.take()
    return LitDataIndex(
        names, counts, hints, dims, tags, spec, tokens, _compression(config, place), str(index.get("updated_at", "0"))
    )


def _load(data: bytes | bytearray, entries: _Entries, place: str) -> dict[str, Any]:
    """The index's object, its chunks in ``entries``; they are read apart from the rest where that can be."""
    try:
        begin, end = entries.table.scan(data, entries.odd)
        # The list is sound; with an empty one in its place, json says whether the rest is.
        rest: dict[str, Any] = json.loads((data[:begin] + b"[]" + data[end:]).decode("utf-8", "surrogatepass"))
        return rest
    except (ValueError, RecursionError):
        pass  # another form, or no JSON: json tells
    entries.restart()
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
    if isinstance(index.get("chunks"), list):
        for chunk in index["chunks"]:
            entries.table.append(*entries.check(chunk))
    return index


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


class _Entries:
    """The table of chunks, and the checks of the entries that go into it.

    The first entry that is refused is kept until :meth:`take`: what is wrong with the index as a whole comes first.
    """

    def __init__(self, place: str) -> None:
        self._place = place
        self.restart()

    def restart(self) -> None:
        """Forget all entries."""
        self.table = ChunkTable(max_count=MAX_ITEMS, max_dim=MAX_TOKENS)
        self._refused: FormatError | None = None

    def odd(self, text: bytes) -> Entry:
        """An entry out of its JSON text.

        Raises:
            ValueError, RecursionError: not JSON.
        """
        return self.check(json.loads(text.decode("utf-8", "surrogatepass")))

    def check(self, chunk: Any) -> Entry:
        """Name, items, size and tokens of the next entry."""
        try:
            return _entry(chunk, len(self.table), self._place)
        except FormatError as error:
            self._refused = self._refused or error
            return b"", 0, 0, -1

    def take(self) -> tuple[ChunkNames, array[int], array[int], array[int]]:
        """Names, counts, hints and dims.

        Raises:
            FormatError: an entry was refused.
        """
        if self._refused is not None:
            raise self._refused
        text, ends, counts, hints, dims = self.table.take()
        return ChunkNames(text, ends), counts, hints, dims


def _entry(chunk: Any, i: int, place: str) -> Entry:
    if not isinstance(chunk, dict):
        raise FormatError(f"{place}: chunk {i} is a {type(chunk).__name__}, not an object")
    name, count = _safe_name(chunk.get("filename"), i, place), chunk.get("chunk_size")
    if not _is_count(count) or count > MAX_ITEMS:
        raise FormatError(f'{place}: chunk {i} ({name}) has "chunk_size": {count!r}, not a number of items')
    hint, dim = chunk.get("chunk_bytes"), chunk.get("dim")
    if dim is not None and (not _is_count(dim) or dim > MAX_TOKENS):
        raise FormatError(f'{place}: chunk {i} ({name}) has "dim": {dim!r}')
    return name.encode("utf-8", "surrogatepass"), count, hint if _is_count(hint) else 0, -1 if dim is None else dim


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
