"""LitData's index.json, in all its ages: what a dataset's chunks, items and leaves are.

Parsing is pure: bytes in, a checked :class:`LitDataIndex` out. Layout of a chunk:
``u32 n | u32 offset[n+1] (absolute) | items``; an item is ``u32 size[leaves] | leaves``, or for
token datasets one bare array. What stands in the index is believed only where the chunk's
own bytes cannot say better; ``chunk_bytes`` is a hint, never a bound.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeGuard, overload

from lazystore._core.index_scan import ChunkTable
from lazystore.errors import FormatError, UnsupportedError
from lazystore.formats.compression import is_zstd, require_codec
from lazystore.formats.file_names import is_inside

__all__ = [
    "FRAMED_MAGIC",
    "FRAME_ROWS",
    "INDEX_NAME",
    "OFFSETS_AT",
    "OFFSET_WIDTH",
    "ROWS_MAGIC",
    "Checksums",
    "ChunkNames",
    "Chunks",
    "LitDataIndex",
    "parse_chunks",
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
#: Items of a frame or record batch when nothing else is said.
FRAME_ROWS = 256
_HEX = re.compile("[0-9a-fA-F]*")


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

    def all_end_with(self, suffix: str) -> bool:
        """Whether every name does."""
        wanted = suffix.encode()
        return all(
            self._text.endswith(wanted, begin, end)
            for begin, end in zip(chain((0,), self._ends), self._ends, strict=False)
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<ChunkNames of {len(self)} chunks>"


@dataclass(frozen=True, slots=True)
class Chunks:
    """The chunk list of an index.

    Attributes:
        names: file name of each chunk, in dataset order.
        counts: items of each.
        hints: bytes of each as the index has it; 0 when it does not say.
        dims: tokens of each; -1 when the index does not say.
    """

    names: ChunkNames
    counts: array[int]
    hints: array[int]
    dims: array[int]


@dataclass(frozen=True, slots=True)
class Checksums:
    """Digests of whole stored files, which lazystore's writer adds to the index.

    Attributes:
        algorithm: "blake2b".
        digest_size: bytes of a digest.
        files: digest of each file's stored bytes, in hex, by file name.
    """

    algorithm: str
    digest_size: int
    files: dict[str, str]


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
        dated: the index has the time it was written, which merged ones lack.
        compression_level: "batch" (frames of items inside the chunk), "sample" (every item for itself) or "".
        frame_rows: items of a frame with level "batch"; 256 when the index does not say.
        ipc_compression: of Arrow rows, "" for none.
        types: kinds of the rows' fields, as stored since LitData 0.2.74; None before.
        encryption: (algorithm, level "sample" or "chunk"), or None.
        keys: how the key sidecar is divided, as stored, or None.
        checksums: digests of the files, or None.
        old: written before July 2024, when numpy's dtypes may have had other numbers.
    """

    names: ChunkNames
    counts: array[int]
    hints: array[int]
    dims: array[int]
    tags: list[str]
    data_spec: str | None
    tokens: bool
    compression: str
    updated_at: str
    dated: bool = True
    compression_level: str = ""
    frame_rows: int = FRAME_ROWS
    ipc_compression: str = ""
    types: Any = None
    encryption: tuple[str, str] | None = None
    keys: Any = None
    checksums: Checksums | None = None
    old: bool = False

    def table_end(self, chunk: int) -> int:
        """First byte after the offset table of a chunk: where its first item may begin."""
        return OFFSETS_AT + OFFSET_WIDTH * (self.counts[chunk] + 1)


def parse_chunks(data: bytes | bytearray, *, place: str, paths: bool = False) -> tuple[dict[str, Any], Chunks]:
    """Take the chunk list out of an index.json, whatever the rest says.

    Parameters:
        data: the file's bytes.
        place: its path or URL, for messages.
        paths: files may lie in folders below the dataset's own.

    Returns:
        (the index with its chunk list left empty or as it was, the chunks).

    Raises:
        FormatError: not JSON, or not a LitData index.

    Cost: as :func:`parse_index`.
    """
    index, entries = _read(data, place, paths)
    return index, entries.take()


def parse_index(data: bytes | bytearray, *, place: str) -> LitDataIndex:
    """Check an index.json and take it apart.

    Parameters:
        data: the file's bytes.
        place: its path or URL, for messages.

    Raises:
        FormatError: not JSON, or not an index; the message names the key.
        UnsupportedError: of a kind this version does not read.
        MissingExtraError: whole chunks are compressed, and the package for that is not installed.

    Cost: ~800 MB/s and ~60 bytes a chunk for indexes as LitData writes them; others take a dict a chunk for the
    time of the call.
    """
    index, entries = _read(data, place, paths=False)
    config = index.get("config")
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
    compression, level = _compression(config, place)
    chunks = entries.take()
    return LitDataIndex(
        chunks.names, chunks.counts, chunks.hints, chunks.dims, tags, spec, tokens, compression,
        updated_at=str(index.get("updated_at", "0")),
        dated="updated_at" in index,
        compression_level=level,
        frame_rows=_frame_rows(config, place),
        ipc_compression=str(config.get("ipc_compression") or ""),
        types=config.get("types"),
        encryption=_encryption(config, place),
        keys=index.get("keys"),
        checksums=_checksums(index.get("checksums"), index.get("updated_at"), place),
        old="encryption" not in config and "item_loader" not in config,
    )  # fmt: skip


def _read(data: bytes | bytearray, place: str, paths: bool) -> tuple[dict[str, Any], _Entries]:
    entries = _Entries(place, paths)
    index = _load(data, entries, place)
    if not isinstance(index.get("chunks"), list):
        raise FormatError(f'{place} has no list "chunks"; it is not a LitData index')
    return index, entries


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


def _compression(config: Mapping[str, Any], place: str) -> tuple[str, str]:
    """The whole-chunk compression, and where in a chunk it is compressed otherwise.

    It is the writer's intention only: chunks of Arrow rows, and since LitData 0.2.74 others too, may be stored
    otherwise, which their bytes say.
    """
    compression = config.get("compression")
    level = config.get("compression_level")
    if compression is None:
        return "", ""
    if not isinstance(compression, str):
        raise FormatError(f'{place} has "compression": {compression!r}')
    if level not in (None, "chunk", "batch", "sample"):
        raise UnsupportedError(f'{place} has "compression_level": {level!r}; chunk, batch and sample are read')
    if level in ("batch", "sample"):
        if not is_zstd(compression):
            raise UnsupportedError(f"{place}: compression {compression!r} inside chunks is not zstd")
        return "", str(level)
    require_codec(compression)
    return compression, ""


def _frame_rows(config: Mapping[str, Any], place: str) -> int:
    rows = config.get("compression_batch_size")
    if rows is None:
        return FRAME_ROWS
    if not _is_count(rows) or not 0 < rows <= MAX_ITEMS:
        raise FormatError(f'{place} has "compression_batch_size": {rows!r}, not a number of items')
    return rows


def _encryption(config: Mapping[str, Any], place: str) -> tuple[str, str] | None:
    found = config.get("encryption")
    if found is None:
        return None
    algorithm, level = (found.get("algorithm"), found.get("level")) if isinstance(found, dict) else (None, None)
    if not isinstance(algorithm, str) or level not in ("sample", "chunk"):
        raise FormatError(f'{place} has "encryption": {found!r}, which names no algorithm and level')
    return algorithm, str(level)


def _checksums(found: Any, updated_at: Any, place: str) -> Checksums | None:
    """Lazystore's own key; what others put under that name is theirs.

    LitData's updates rewrite chunks, keep the key as it is, and date the index anew: digests of another date are those
    of an earlier dataset.
    """
    if not isinstance(found, dict) or found.get("algorithm") != "blake2b":
        return None
    if found.get("updated_at", updated_at) != updated_at:
        return None
    size, files = found.get("digest_size"), found.get("files")
    if not _is_count(size) or not 1 <= size <= 64 or not isinstance(files, dict):
        raise FormatError(f'{place} has "checksums" without a digest_size of 1 to 64 and files')
    for name, digest in files.items():
        if not isinstance(digest, str) or len(digest) != 2 * size or _HEX.fullmatch(digest) is None:
            raise FormatError(f'{place}: "checksums" of {name!r} is {digest!r}, not {size} bytes in hex')
    return Checksums("blake2b", size, files)


class _Entries:
    """The table of chunks, and the checks of the entries that go into it.

    The first entry that is refused is kept until :meth:`take`: what is wrong with the index as a whole comes first.
    """

    def __init__(self, place: str, paths: bool) -> None:
        self._place = place
        self._paths = paths
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
            return _entry(chunk, len(self.table), self._place, self._paths)
        except FormatError as error:
            self._refused = self._refused or error
            return b"", 0, 0, -1

    def take(self) -> Chunks:
        """What was gathered.

        Raises:
            FormatError: an entry was refused.
        """
        if self._refused is not None:
            raise self._refused
        text, ends, counts, hints, dims = self.table.take()
        return Chunks(ChunkNames(text, ends), counts, hints, dims)


def _entry(chunk: Any, i: int, place: str, paths: bool) -> Entry:
    if not isinstance(chunk, dict):
        raise FormatError(f"{place}: chunk {i} is a {type(chunk).__name__}, not an object")
    name, count = _safe_name(chunk.get("filename"), i, place, paths), chunk.get("chunk_size")
    if not _is_count(count) or count > MAX_ITEMS:
        raise FormatError(f'{place}: chunk {i} ({name}) has "chunk_size": {count!r}, not a number of items')
    hint, dim = chunk.get("chunk_bytes"), chunk.get("dim")
    if dim is not None and (not _is_count(dim) or dim > MAX_TOKENS):
        raise FormatError(f'{place}: chunk {i} ({name}) has "dim": {dim!r}')
    return name.encode("utf-8", "surrogatepass"), count, hint if _is_count(hint) else 0, -1 if dim is None else dim


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _safe_name(name: Any, i: int, place: str, paths: bool) -> str:
    """A chunk's file lies in the dataset's own directory, whatever the index says; or, with ``paths``, below it."""
    if not isinstance(name, str) or not name:
        raise FormatError(f'{place}: chunk {i} has "filename": {name!r}')
    if not is_inside(name, below=paths):
        raise FormatError(
            f"{place}: chunk {i} names the file {name!r}, "
            "which is not a plain name inside the dataset's directory; refused"
        )
    return name
