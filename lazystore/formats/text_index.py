"""The sidecar of a text: what one pass over it found out, kept in a file of its own.

It holds the offset tables of the text's chunks, ready to be read as parts of them, and a directory of the chunks:

    magic "LZTEXT" u16 version | u64 directory begin | u64 directory bytes | u32 crc of the directory | u32 crc of this
    offset tables, one after another (none for compressed texts)
    directory: u32 n | JSON of n bytes | 5 arrays of u64: begin, bytes, items, table's begin, table's crc of each chunk

All little-endian; crc is CRC-32. A sidecar is written under another name and moved into place when it is whole. It is
used only for the very file it was made from (:meth:`Source.identity`) and the same rules; anything else, and anything
damaged, counts as absent. How texts are scanned is in ``text_scan.py``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import struct
import sys
import time
import zlib
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lazystore.errors import ConfigError

__all__ = ["IndexWriter", "TextIndex", "cache_folder", "damaged", "index_path", "load_index"]

log = logging.getLogger("lazystore")

MAGIC, VERSION = b"LZTEXT", 1
HEADER = struct.Struct("<6sHQQII")
COLUMNS = ("begins", "sizes", "counts", "tables", "sums")
SUFFIX = ".lzidx"
#: Seconds after which another process' unfinished sidecar is taken for abandoned.
ABANDONED_S = 24 * 3600
MAX_CHUNK = (1 << 32) - 1


@dataclass(slots=True)
class TextIndex:
    """What is known of one text.

    Attributes:
        path: the sidecar.
        identity, signature: which object it is of, and of which rules.
        begins, sizes, counts: each chunk's first byte in the (inflated) text, its bytes, its items.
        tables, sums: where in the sidecar its offset table is, and that table's CRC-32; of plain texts.
        head: the header record, with what stands before and after it.
        stored: bytes of the stored object.
        memory: bytes that inflating it takes, 0 for plain texts.

    Memory: 40 bytes a chunk.
    """

    path: str
    identity: str
    signature: str
    begins: array[int] = field(default_factory=lambda: array("Q"))
    sizes: array[int] = field(default_factory=lambda: array("Q"))
    counts: array[int] = field(default_factory=lambda: array("Q"))
    tables: array[int] = field(default_factory=lambda: array("Q"))
    sums: array[int] = field(default_factory=lambda: array("Q"))
    head: bytes = b""
    stored: int = 0
    memory: int = 0

    @property
    def digest(self) -> str:
        """Of what it says about the text's items: equal for equal texts, wherever they are."""
        found = hashlib.sha256(self.signature.encode())
        for column in (self.begins, self.sizes, self.counts, self.sums):
            found.update(_little(column))
        return found.hexdigest()[:16]


def cache_folder() -> Path:
    """Where sidecars are kept: ``$LAZYSTORE_CACHE_DIR``, else ``$XDG_CACHE_HOME/lazystore``, else
    ``~/.cache/lazystore``."""
    if chosen := os.environ.get("LAZYSTORE_CACHE_DIR"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lazystore"


def index_path(url: str, name: str, signature: str, *, choice: str, local: bool, alone: bool) -> Path:
    """The sidecar's place.

    Parameters:
        url, name: of the text: its directory, and its name there.
        choice: "" for the cache folder, "beside" for the text's own, else a path: of the sidecar where the text is
            ``alone``, of a folder for the sidecars of several.

    Raises:
        ConfigError: beside a text that is not on a local disk.
    """
    if choice == "beside":
        if not local:
            raise ConfigError(f"index='beside' is for local files, {url} is not: give a path, or leave it out")
        return Path(url) / (name + SUFFIX)
    if choice and alone and not os.path.isdir(choice):
        return Path(choice)
    place = hashlib.sha256("\n".join((url.rstrip("/"), name, signature)).encode("utf-8", "surrogateescape"))
    return (Path(choice) if choice else cache_folder() / "text") / (place.hexdigest()[:32] + SUFFIX)


class IndexWriter:
    """A sidecar being written.

    Parameters:
        path: where it will be.
        index: gathers what is known; :meth:`finish` completes it.

    Raises:
        ConfigError: it cannot be written there.

    Attributes:
        mine: this process began it. A forked child only lets go of its parent's.

    Memory: the directory so far. Threads: one. A process that dies leaves a temporary file, which the next one
    that writes the same sidecar a day later removes.
    """

    def __init__(self, path: Path, identity: str, signature: str) -> None:
        self.index = TextIndex(str(path), identity, signature)
        self._path = path
        self._pid = os.getpid()
        self._temporary = path.with_name(f".{path.name}.{self._pid}-{time.monotonic_ns()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _sweep(path)
            # Unbuffered: a forked child would write what is in the buffer once more when it lets go of the file.
            self._file: Any = open(self._temporary, "xb", buffering=0)  # noqa: SIM115 - closed by finish() and close()
            self._put(bytes(HEADER.size))
        except OSError as error:
            raise self._refusal(error) from error
        self._at = HEADER.size

    def add(self, table: bytes, begin: int, nbytes: int, count: int, *, keep_table: bool) -> None:
        """The next chunk."""
        index = self.index
        for column, value in zip(COLUMNS, (begin, nbytes, count, 0, 0), strict=True):
            getattr(index, column).append(value)
        if keep_table:
            index.tables[-1], index.sums[-1] = self._at, zlib.crc32(table)
            self._write(table)

    def finish(self) -> None:
        """Complete it and move it into place, unless another process has put an equal one there meanwhile."""
        index = self.index
        about = {
            "identity": index.identity, "signature": index.signature, "head": index.head.decode("latin-1"),
            "stored": index.stored, "memory": index.memory,
        }  # fmt: skip
        text = json.dumps(about).encode()
        directory = struct.pack("<I", len(text)) + text + b"".join(_little(getattr(index, name)) for name in COLUMNS)
        place = (MAGIC, VERSION, self._at, len(directory), zlib.crc32(directory))
        self._write(directory)
        try:
            self._file.seek(0)
            self._put(HEADER.pack(*place, zlib.crc32(HEADER.pack(*place, 0))))
            self._file.close()
            if load_index(self._path, index.identity, index.signature) is None:
                os.replace(self._temporary, self._path)
        except OSError as error:
            raise self._refusal(error) from error
        finally:
            self.close()

    @property
    def mine(self) -> bool:
        return self._pid == os.getpid()

    def close(self) -> None:
        """Give it up, if it is not finished."""
        self._file.close()
        if self.mine:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._temporary)

    def _write(self, data: bytes) -> None:
        try:
            self._put(data)
        except OSError as error:
            self.close()
            raise self._refusal(error) from error
        self._at += len(data)

    def _put(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]

    def _refusal(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"the index {self._path} cannot be written ({error.strerror or error}): set LAZYSTORE_CACHE_DIR to a "
            'folder that can be, or pass format_options={"index": path}'
        )


def load_index(path: Path, identity: str, signature: str) -> TextIndex | None:
    """The sidecar of a text; None when there is none for it, or one that is damaged or of an older state of it."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(HEADER.size)
            begin, length, directory_sum = _checked_header(head, size)
            file.seek(begin)
            directory = file.read(length)
        if zlib.crc32(directory) != directory_sum:
            raise _Unusable("its directory is damaged")
        index = _parse(str(path), directory, begin)
    except FileNotFoundError:
        return None
    except (OSError, _Unusable) as error:
        log.warning("the index %s is not used: %s", path, error)
        return None
    if index.identity != identity or index.signature != signature or identity.endswith("-"):
        log.info("the index %s is of another state of its text", path)
        return None
    return index


def damaged(path: str) -> None:
    """Remove a sidecar whose tables turned out to be damaged, so that it is made anew."""
    log.warning("the index %s is damaged, and removed", path)
    with contextlib.suppress(OSError):
        os.unlink(path)


class _Unusable(Exception):
    """Why a sidecar is none."""


def _checked_header(head: bytes, size: int) -> tuple[int, int, int]:
    """Where the directory is, and its CRC."""
    if len(head) < HEADER.size:
        raise _Unusable("it is truncated")
    magic, version, begin, length, directory_sum, own = HEADER.unpack(head)
    if magic != MAGIC or version != VERSION:
        raise _Unusable("it is no index, or one of another version")
    if own != zlib.crc32(HEADER.pack(magic, version, begin, length, directory_sum, 0)):
        raise _Unusable("its header is damaged")
    if begin + length != size or begin < HEADER.size:
        raise _Unusable("it is truncated")
    return begin, length, directory_sum


def _parse(path: str, directory: bytes, end: int) -> TextIndex:
    """The directory's contents, checked; ``end``: where the tables end."""
    try:
        (n,) = struct.unpack_from("<I", directory)
        about = json.loads(directory[4 : 4 + n])
        index = TextIndex(
            path, str(about["identity"]), str(about["signature"]),
            head=about["head"].encode("latin-1"), stored=int(about["stored"]), memory=int(about["memory"]),
        )  # fmt: skip
        columns = memoryview(directory)[4 + n :]
        chunks = len(columns) // (8 * len(COLUMNS))
        if len(columns) != 8 * len(COLUMNS) * chunks:
            raise _Unusable("its columns differ in length")
        for k, name in enumerate(COLUMNS):
            getattr(index, name).frombytes(columns[8 * chunks * k : 8 * chunks * (k + 1)])
            if sys.byteorder == "big":
                getattr(index, name).byteswap()
    except (ValueError, KeyError, TypeError, AttributeError, struct.error, RecursionError) as error:
        raise _Unusable(f"its directory is damaged ({error!r})") from None
    _check_chunks(index, end)
    return index


def _check_chunks(index: TextIndex, end: int) -> None:
    """Chunks follow each other, have items and bytes that fit u32 tables, and tables where tables are."""
    at, table = (index.begins[0] if index.begins else 0), HEADER.size
    plain = index.memory == 0
    if not (index.memory >= 0 and index.stored >= 0):
        raise _Unusable("its sizes are below zero")
    for begin, size, count, where in zip(index.begins, index.sizes, index.counts, index.tables, strict=True):
        length = 4 * (count + 2)
        if begin != at or not 0 < count <= size or length + size > MAX_CHUNK:
            raise _Unusable("its chunks do not follow each other")
        if plain and where != table:
            raise _Unusable("its tables do not follow each other")
        at += size
        table += length
    if plain and (table != end or at > index.stored):
        raise _Unusable("its tables do not fit it")


def _little(column: array[int]) -> bytes:
    if sys.byteorder == "big":
        column = array(column.typecode, column)
        column.byteswap()
    return column.tobytes()


def _sweep(path: Path) -> None:
    """Remove what processes that died have left of this sidecar."""
    for left in path.parent.glob(f".{path.name}.*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > ABANDONED_S:
                left.unlink()
