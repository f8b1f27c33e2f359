"""Datasets as they lie in storage: their index as a part, their files' sizes and bytes. Read only, bounded memory."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lazystore.errors import FormatError, UnsupportedError
from lazystore.fetch import Read, Source, open_source
from lazystore.formats.dataset_folder import INDEX_NAME
from lazystore.formats.index_writer import Part, part_of

__all__ = ["StoredDataset", "index_part", "sizes", "whole_file_suffix"]

#: an index of millions of chunks is shorter
MAX_INDEX_BYTES = 1 << 31
#: bytes of a file asked for at a time, in so many requests
WAVE_BYTES = 32 << 20
REQUESTS = 4
#: sizes asked for at a time
STATS = 256
#: kinds of index whose files are not chunks
_FOREIGN = ("ParquetLoader",)


def index_part(data: bytes | bytearray, place: str) -> tuple[Part, dict[str, Any]]:
    """An index as a part, and its other keys; file names are checked.

    Raises:
        FormatError: not a LitData index. UnsafeDataError: a file name that leads elsewhere.
        UnsupportedError: an index of files that are not chunks.
    """
    try:
        index = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{place} is not JSON: {error}") from None
    if not isinstance(index, dict):
        raise FormatError(f"{place} holds a {type(index).__name__}, not an object")
    part = part_of(index, place=place)
    if part.config is not None and part.config.get("item_loader") in _FOREIGN:
        raise UnsupportedError(f"{place} lists Parquet files, not chunks; write them with write_dataset instead")
    return part, {key: value for key, value in index.items() if key not in ("chunks", "config", "updated_at")}


def whole_file_suffix(name: str, config: Mapping[str, Any] | None) -> str:
    """The end of a chunk's file name, with the compression of the whole file if it has one."""
    compression = None if config is None else config.get("compression")
    suffix = f".{compression}.bin" if compression else ".bin"
    return suffix if name.endswith(suffix) else ".bin"


def sizes(source: Source, names: Sequence[str], *, timeout: float) -> dict[str, int]:
    """Bytes of files that are there.

    Raises:
        DatasetNotFoundError, FetchError.
    """
    found: dict[str, int] = {}
    for begin in range(0, len(names), STATS):
        found |= source.run([], stat=names[begin : begin + STATS], timeout=timeout)
    return found


class StoredDataset:
    """One dataset that is read from.

    Parameters:
        url, storage_options: where it is.
        timeout: seconds one read may take, retries included.

    Raises:
        DatasetNotFoundError: there is no index. FormatError, UnsafeDataError, UnsupportedError: not one of ours.
        FetchError: the storage failed.
    """

    def __init__(
        self, url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None, *, timeout: float
    ) -> None:
        self._source = open_source(url, storage_options)
        self._timeout = timeout
        self.url = self._source.url
        try:
            data = self._source.read_all(INDEX_NAME, limit=MAX_INDEX_BYTES, timeout=timeout)
            self.part, self.extra = index_part(data, f"{self.url}/{INDEX_NAME}")
        except BaseException:
            self._source.close()
            raise

    def read(self, name: str) -> bytes:
        """A small file."""
        return bytes(self._source.read_all(name, limit=MAX_INDEX_BYTES, timeout=self._timeout))

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return sizes(self._source, [name], timeout=self._timeout)[name]

    def pieces(self, name: str) -> Iterator[bytes]:
        """A file's bytes, in order; holds 32 MiB at a time."""
        end = self.size(name)
        for begin in range(0, end, WAVE_BYTES):
            buffer = bytearray(min(WAVE_BYTES, end - begin))
            step = -(-len(buffer) // REQUESTS)
            view = memoryview(buffer)
            reads = [Read(name, begin + at, view[at : at + step]) for at in range(0, len(buffer), step)]
            self._source.run(reads, timeout=self._timeout)
            yield bytes(buffer)

    def close(self) -> None:
        """Release the storage."""
        self._source.close()
