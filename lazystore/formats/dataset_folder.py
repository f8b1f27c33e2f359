"""A dataset's folder while it is written: which files a writer may use, and how a dataset becomes visible.

A folder holds at most one dataset, the one its ``index.json`` lists. New chunks get names that no file has, the
index is replaced last and at once, and only then the files of a replaced dataset go: whoever looks, and whenever
the writer dies, there is the old dataset or the new one. One writer (or one team of ranks) a folder at a time.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lazystore.errors import ConfigError, FormatError
from lazystore.formats.chunk_files import Folder
from lazystore.formats.compression import inflate_frame
from lazystore.formats.index_writer import Part, index_bytes, joined, part_bytes, part_of
from lazystore.formats.key_writer import KEYS_ENTRY, KEYS_FILE, KeyTable
from lazystore.formats.packing import MAX_CHUNK_BYTES
from lazystore.formats.write_settings import Encrypting

__all__ = [
    "INDEX_NAME",
    "Claim",
    "check_same_key",
    "claim",
    "finish_dataset",
    "read_part",
    "read_part_keys",
    "write_part",
]

INDEX_NAME = "index.json"
MODES = (None, "append", "overwrite")

_CHUNK = re.compile(r"chunk-(\d+)-(\d+)(?:-v(\d+))?(?:[-.].*)?\.bin")
_PART = re.compile(r"\d+[.-]index\.json|\d+\.keys\.parquet")


@dataclass(frozen=True, slots=True)
class Claim:
    """What a writer found in a folder, and may do there. Pickles, for workers.

    Attributes:
        mode: None, "append" or "overwrite".
        version: goes into the names of new chunks where a dataset is replaced; 0: no need.
        part: the dataset to add to; empty for a new one.
        extra: further keys of its index.
        keys: its key sidecars, by file name.
        firsts: number of the first new chunk, by rank; 0 for ranks that are not there.
        old: files that go when the new dataset is there.
    """

    mode: str | None = None
    version: int = 0
    part: Part = field(default_factory=Part)
    extra: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, bytes] = field(default_factory=dict)
    firsts: dict[int, int] = field(default_factory=dict)
    old: tuple[str, ...] = ()

    def chunk_name(self, rank: int, number: int, suffix: str) -> str:
        """The file name of a rank's ``number``-th new chunk."""
        version = f"-v{self.version}" if self.version else ""
        return f"chunk-{rank}-{self.firsts.get(rank, 0) + number}{version}{suffix}"


def claim(folder: Folder, mode: str | None) -> Claim:
    """Look at a folder before writing to it; nothing is changed.

    Parameters:
        folder: where to.
        mode: None: there must be no dataset yet, whole or torn. "append": add to the one that is there, if any.
            "overwrite": take the place of whatever dataset is there.

    Raises:
        ConfigError: an unknown mode; a dataset that is in the way, or not LitData's, or torn.
        FormatError: the index cannot be understood (append).
        WriteError: the folder cannot be listed.
    """
    if mode not in MODES:
        raise ConfigError(f"{mode=} is not None, 'append' or 'overwrite'")
    names = folder.names()
    chunks = [name for name in names if _CHUNK.fullmatch(name)]
    parts = [name for name in names if _PART.fullmatch(name)]
    found = [name for name in names if name == INDEX_NAME] + parts + chunks
    if not found:
        return Claim(mode)
    if mode is None:
        raise ConfigError(
            f"{folder.url} holds a dataset already ({found[0]}, {len(found)} files in all); give another folder, "
            "mode='append' or mode='overwrite', or remove those files first"
        )
    if mode == "append":
        return _to_append(folder, names, chunks)
    if INDEX_NAME in names:
        _refuse_foreign(folder)
    versions = [int(match[3] or 0) for name in chunks if (match := _CHUNK.fullmatch(name))]
    keys = tuple(_keys_of(folder))
    return Claim(mode, version=1 + max(versions, default=0), old=(*parts, *chunks, *keys))


def _to_append(folder: Folder, names: Sequence[str], chunks: Sequence[str]) -> Claim:
    if INDEX_NAME not in names:
        raise ConfigError(
            f"{folder.url} holds chunks without an index.json: its writer did not finish; complete_dataset() it "
            "first, or write with mode='overwrite'"
        )
    place = f"{folder.url}/{INDEX_NAME}"
    index = _index(folder)
    part = part_of(index, place=place)
    if part.config is None:
        raise FormatError(f"{place} has no config: its writer stored nothing; write with mode='overwrite'")
    if part.config.get("item_loader") in ("ParquetLoader", "TemporalArrayLoader"):
        raise ConfigError(f"{place} is an index for {part.config['item_loader']}; chunks cannot be added to it")
    firsts: dict[int, int] = {}
    # names that only the folder knows are those of a writer that was killed: they are left alone
    for name in [*chunks, *(str(chunk["filename"]) for chunk in part.chunks)]:
        match = _CHUNK.fullmatch(name)
        if match is not None:
            rank = int(match[1])
            firsts[rank] = max(firsts.get(rank, 0), int(match[2]) + 1)
    extra = {k: v for k, v in index.items() if k not in ("chunks", "config", "checksums", "updated_at")}
    keys = {name: folder.read(name) for name in _keys_of(folder)} if "keys" in extra else {}
    return Claim("append", part=part, extra=extra, keys=keys, firsts=firsts)


def _refuse_foreign(folder: Folder) -> None:
    """An index of another kind lists files that are not ours to replace."""
    try:
        index = _index(folder)
    except FormatError:
        return  # what cannot be read is no loss
    config = index.get("config")
    if "chunks" not in index or (isinstance(config, dict) and config.get("item_loader") == "ParquetLoader"):
        raise ConfigError(
            f"{folder.url}/{INDEX_NAME} is not the index of a LitData dataset's own chunks; it is not overwritten: "
            "give another folder, or remove it first"
        )


def _index(folder: Folder) -> dict[str, Any]:
    try:
        index = json.loads(folder.read(INDEX_NAME))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{folder.url}/{INDEX_NAME} is not JSON: {error}") from None
    if not isinstance(index, dict):
        raise FormatError(f"{folder.url}/{INDEX_NAME} holds a {type(index).__name__}, not an object")
    return index


def _keys_of(folder: Folder) -> list[str]:
    """Key sidecars of the dataset in a folder."""
    below = [f"keys/{name}" for name in folder.names("keys") if re.fullmatch(r"shard-\d{5}\.parquet", name)]
    return below + [name for name in folder.names() if name == "keys.parquet"]


def check_same_key(folder: Folder, part: Part, encryption: Encrypting | None) -> None:
    """Refuse to add to an encrypted dataset with another key: one object with its password may have another salt.

    Parameters:
        part: the dataset that is added to; its first chunk is read.

    Raises:
        ConfigError: what is stored cannot be decrypted with it.
        DatasetNotFoundError, FormatError: the chunk is not there, or damaged.
    """
    decrypt = getattr(encryption, "decrypt", None)
    if encryption is None or decrypt is None or not part.chunks or part.config is None:
        return
    name = part.chunks[0]["filename"]
    data = folder.read(name)
    if part.config.get("compression") is not None:
        try:
            data = inflate_frame(data, limit=MAX_CHUNK_BYTES)
        except FormatError as error:
            raise FormatError(f"{folder.url}/{name}: {error}") from None
    if encryption.level == "sample":
        if len(data) < 12:
            raise FormatError(f"{folder.url}/{name} has {len(data)} bytes, too few for a chunk")
        _, begin, end = struct.unpack_from("<3I", data)
        data = data[begin:end]
    try:
        decrypt(data)
    except Exception as error:
        raise ConfigError(
            f"{folder.url}/{name} cannot be decrypted with the encryption given ({error}); to add to the dataset, "
            "load the key it was written with"
        ) from error


def finish_dataset(
    folder: Folder,
    parts: Sequence[tuple[str, Part]],
    *,
    claim: Claim,
    keys: KeyTable | None = None,
    settled: bool = False,
) -> dict[str, Any]:
    """Make what was written the folder's dataset, and clear away what it replaces.

    Parameters:
        folder: where the chunks of all parts lie already.
        parts: a name for messages and the part, in dataset order; the dataset that is added to comes before them.
        claim: what :func:`claim` found before they were written.
        keys: keys of all items, those of the dataset that is added to included.
        settled: the chunks would outlive a power cut already (:func:`write_part` sees to that).

    Returns the index. If the process dies, the folder has the dataset it had or the new one. Only where a dataset
    with keys is *replaced*, a process that dies between two files leaves one whose items are found by number, while
    looking up a key raises.

    Raises:
        FormatError: parts that cannot be joined, or nothing was written.
        WriteError: the storage refused; the old dataset is as it was.
    """
    extra = {key: value for key, value in claim.extra.items() if key != "keys"}
    if keys is not None:
        extra["keys"] = KEYS_ENTRY
    index = joined([(folder.url, claim.part), *parts], extra=extra)
    if not settled:
        folder.settle(chunk["filename"] for _, part in parts for chunk in part.chunks)
    sidecar = b"" if keys is None else keys.file([int(chunk["chunk_size"]) for chunk in index["chunks"]])
    old_keys = [name for name in claim.old if name.endswith(".parquet") and not _PART.fullmatch(name)]
    for name in old_keys:
        folder.delete(name)  # rather none than those of other items
    if keys is not None and not old_keys:
        # appended keys say the same of the old items
        folder.write(KEYS_FILE, [sidecar])
        folder.settle([KEYS_FILE])
    folder.write(INDEX_NAME, [index_bytes(index)])
    folder.settle([INDEX_NAME])
    if keys is not None and old_keys:
        folder.write(KEYS_FILE, [sidecar])
        folder.settle([KEYS_FILE])
    for name in claim.old:
        if name not in old_keys:
            folder.delete(name)
    for name in folder.names():
        if _PART.fullmatch(name):
            folder.delete(name)
    folder.sweep()
    return index


def write_part(folder: Folder, rank: int, part: Part, *, keys: KeyTable | None = None) -> None:
    """One rank's part as ``{rank}.index.json``, LitData's name: from then on its work is not lost.

    Parameters:
        keys: keys of its items; they go to ``{rank}.keys.parquet``.
    """
    folder.settle(chunk["filename"] for chunk in part.chunks)
    if keys is not None:
        folder.write(f"{rank}.keys.parquet", [keys.part_file()])
    folder.write(f"{rank}.index.json", [part_bytes(part)])


def read_part(folder: Folder, rank: int) -> Part:
    """What :func:`write_part` wrote.

    Raises:
        DatasetNotFoundError, FormatError: it did not, or something else is there.
    """
    name = f"{rank}.index.json"
    try:
        index: Mapping[str, Any] = json.loads(folder.read(name))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{folder.url}/{name} is not JSON: {error}") from None
    return part_of(index, place=f"{folder.url}/{name}")


def read_part_keys(folder: Folder, rank: int, part: Part) -> KeyTable:
    """The keys :func:`write_part` wrote.

    Raises:
        DatasetNotFoundError, FormatError: it did not, or something else is there.
    """
    name = f"{rank}.keys.parquet"
    return KeyTable.read([folder.read(name)], count=part.count, place=f"{folder.url}/{name}")
