"""``index.json`` as it is written: parts of a dataset put together, and their JSON.

Pure. Parsing indexes for reading is ``litdata``'s; which files exist is ``dataset_folder``'s. The layout is
LitData's (keys sorted, default separators, ASCII), with one key of ours at the top that LitData passes over:
``"checksums": {"algorithm": "blake2b", "digest_size": 16, "files": {file name: hex digest of the stored file},
"updated_at": as the index's}``. LitData's ``dataset_update`` rewrites chunks, keeps the key as it is and sets a new
``updated_at``: digests with another one than the index's are out of date.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lazystore.errors import FormatError, UnsafeDataError
from lazystore.formats.chunk_files import ALGORITHM, DIGEST_BYTES
from lazystore.formats.file_names import is_inside

__all__ = ["Part", "index_bytes", "joined", "part_bytes", "part_of", "same_schema"]

#: Keys of ``config`` that must agree before chunks can share an index; the others are limits of the writer.
SCHEMA_KEYS = (
    "compression",
    "compression_level",
    "compression_batch_size",
    "data_format",
    "data_spec",
    "encryption",
    "item_loader",
)


@dataclass(slots=True)
class Part:
    """What one writer made: consecutive chunks of a dataset.

    Attributes:
        chunks: their entries in ``index.json``, in order.
        config: the ``config`` of the index; None when nothing was written.
        digests: hex digest by file name, for the files that have one.
    """

    chunks: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] | None = None
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Items."""
        return sum(int(chunk["chunk_size"]) for chunk in self.chunks)


def part_of(index: Mapping[str, Any], *, place: str) -> Part:
    """The part an index (a whole one, or that of one rank) describes.

    Raises:
        FormatError: it is not an index of LitData's.
        UnsafeDataError: it names a file outside of its folder.
    """
    chunks, config = index.get("chunks"), index.get("config")
    if not isinstance(chunks, list) or not (config is None or isinstance(config, dict)):
        raise FormatError(f'{place} has no list "chunks" and object "config"; it is not a LitData index')
    for i, chunk in enumerate(chunks):
        if not isinstance(chunk, dict) or not isinstance(chunk.get("filename"), str):
            raise FormatError(f"{place}: chunk {i} is no object with a file name")
        if not is_inside(chunk["filename"]):
            raise UnsafeDataError(
                f"{place} names the file {chunk['filename']!r}, which is no plain name inside its folder; refused"
            )
        if type(chunk.get("chunk_size")) is not int or not 0 <= chunk["chunk_size"] < 1 << 32:
            raise FormatError(f"{place}: chunk {i} has no number of items")
    return Part(list(chunks), copy.deepcopy(config), _digests(index))


def _digests(index: Mapping[str, Any]) -> dict[str, str]:
    """Our checksums in an index; those of another algorithm, or out of date, are not carried on."""
    sums = index.get("checksums")
    if not isinstance(sums, dict) or sums.get("algorithm") != ALGORITHM or sums.get("digest_size") != DIGEST_BYTES:
        return {}
    if sums.get("updated_at") != index.get("updated_at"):
        return {}
    files = sums.get("files")
    if not isinstance(files, dict):
        return {}
    return {name: digest for name, digest in files.items() if isinstance(digest, str)}


def joined(parts: Iterable[tuple[str, Part]], *, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The index of parts that follow each other, without ``updated_at``.

    Parameters:
        parts: a name for messages, and the part; those without chunks are passed over. The first one's limits
            (``chunk_bytes``, ``chunk_size``) stay.
        extra: other keys of the index ("keys", for one).

    Raises:
        FormatError: parts of different schemas, or two with one file name; or all are empty.
    """
    whole = Part()
    first, names = "", set[str]()
    for name, part in parts:
        if not part.chunks:
            continue
        if part.config is None:
            raise FormatError(f"{name} has chunks and no config: its writer did not finish")
        if whole.config is None:
            whole.config, first = part.config, name
        difference = same_schema(whole.config, part.config)
        if difference:
            raise FormatError(f"{name} cannot be joined to {first}: they differ in {difference}")
        for chunk in part.chunks:
            if chunk["filename"] in names:
                raise FormatError(f"{name} holds the file {chunk['filename']}, which an earlier part holds as well")
            names.add(chunk["filename"])
        whole.chunks += part.chunks
        whole.digests |= part.digests
    if whole.config is None:
        raise FormatError("no part has any chunk: a dataset's format comes from its samples")
    index: dict[str, Any] = {**(extra or {}), "chunks": whole.chunks, "config": whole.config}
    index |= _checksums({name: whole.digests[name] for name in whole.digests if name in names})
    return index


def same_schema(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Where two configs differ so that their chunks cannot share an index; "" when they can."""
    found = [f"{k} ({one.get(k)!r} and {other.get(k)!r})" for k in SCHEMA_KEYS if _plain(one, k) != _plain(other, k)]
    return "; ".join(found)


def _plain(config: Mapping[str, Any], key: str) -> Any:
    """A value, with what older indexes leave out; a level without compression means nothing."""
    value = config.get(key)
    if key in ("compression_level", "compression_batch_size"):
        if config.get("compression") is None:
            return None
        return value if value != "chunk" else None
    return "PyTreeLoader" if key == "item_loader" and value is None else value


def _checksums(digests: Mapping[str, str]) -> dict[str, Any]:
    if not digests:
        return {}
    return {"checksums": {"algorithm": ALGORITHM, "digest_size": DIGEST_BYTES, "files": dict(digests)}}


def part_bytes(part: Part) -> bytes:
    """The file of one rank's part, as LitData names and shapes it."""
    return _json({"chunks": part.chunks, "config": part.config, **_checksums(part.digests)})


def index_bytes(index: Mapping[str, Any]) -> bytes:
    """``index.json`` with the time of now, the only thing in a dataset that depends on it."""
    now = {"updated_at": str(time.time())}
    sums = {"checksums": {**index["checksums"], **now}} if "checksums" in index else {}
    return _json({**index, **sums, **now})


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True).encode("ascii")
