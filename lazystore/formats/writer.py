"""``DatasetWriter``: samples into a folder in LitData's classic format, which every LitData reads.

Packing of items into chunks, the files, and ``index.json``; what an item's bytes are is decided in
``sample_encoder``. One process, one folder, local paths only.
"""

from __future__ import annotations

import json
import os
import re
import struct
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lazystore.config import parse_bytes
from lazystore.errors import ClosedError, ConfigError, FormatError, MissingExtraError
from lazystore.formats.sample_encoder import SampleEncoder

__all__ = ["DatasetWriter"]

DEFAULT_CHUNK_BYTES = 64_000_000

#: Offsets inside a chunk are u32.
MAX_CHUNK_BYTES = (1 << 32) - 1

#: What plain "zstd" means in the format.
DEFAULT_ZSTD_LEVEL = 4

_ZSTD = re.compile(r"zstd(?::(\d{1,2}))?")

#: Files that make a folder somebody's dataset, complete or not.
_DATASET_FILE = re.compile(r"(.*\.)?(.*-)?index\.json|chunk-.*\.bin")


class DatasetWriter:
    """Write samples to a new dataset folder.

    A context manager: leaving the block completes the dataset by writing ``index.json`` last; leaving
    it through an exception removes what was written, so that a folder with an index is always whole.
    Files appear under their final names by rename, never half written (no fsync: a power cut may lose
    them). Holds the items of one chunk in memory, twice that while the chunk is written.

    Belongs to the thread and the process that made it; does not pickle.

    Parameters:
        output_dir: a local folder, made if missing; it must not hold a dataset.
        chunk_bytes: close a chunk before its items exceed this many bytes: an int, or "64MB"
            (decimal) or "64MiB". A larger item gets a chunk of its own. Default 64 MB.
        chunk_size: instead of ``chunk_bytes``, close a chunk at this many items. In both cases a chunk
            also closes before 4 GiB, where the format's offsets end.
        compression: None, ``"zstd"`` or ``"zstd:LEVEL"`` (1 to 22): each chunk is one zstd frame.

    Raises:
        ConfigError: an argument that cannot work, or a folder that holds a dataset already.
        MissingExtraError: compression without the ``zstd`` extra.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        *,
        chunk_bytes: int | str | None = None,
        chunk_size: int | None = None,
        compression: str | None = None,
    ) -> None:
        if chunk_bytes is not None and chunk_size is not None:
            raise ConfigError(f"{chunk_bytes=} and {chunk_size=}: a chunk has one limit, give one of the two")
        if chunk_size is not None and (isinstance(chunk_size, bool) or chunk_size < 1):
            raise ConfigError(f"{chunk_size=} must be at least one item")
        self._chunk_size = chunk_size
        self._chunk_bytes: int | None = None
        if chunk_size is None:
            self._chunk_bytes = parse_bytes(
                DEFAULT_CHUNK_BYTES if chunk_bytes is None else chunk_bytes, name="chunk_bytes"
            )
        self._compression = compression
        self._compress = _compressor(compression)
        self._folder = Path(output_dir)
        _refuse_dataset(self._folder)
        self._folder.mkdir(parents=True, exist_ok=True)

        self._encoder: SampleEncoder | None = None
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._chunks: list[dict[str, Any]] = []
        self._closed = False
        #: samples accepted so far
        self.num_items = 0
        #: bytes of the chunk files written so far, as they lie on disk
        self.bytes_written = 0

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        counts = f"{self.num_items} items, {len(self._chunks)} chunks"
        return f"DatasetWriter({str(self._folder)!r}, {counts}, {state})"

    def write(self, sample: object) -> None:
        """Append one sample. The first fixes the structure; a refused sample leaves the writer usable.

        Raises:
            FormatError: the sample's structure or a leaf's type differs from the first sample's, or
                the format cannot keep it; names the sample and the key.
            ClosedError: the writer is closed.
            OSError: a chunk could not be written.
        """
        self._require_open()
        encoder = self._encoder or SampleEncoder(sample, number=self.num_items)
        item = encoder.encode(sample, number=self.num_items)
        if _packed_size(1, len(item)) > MAX_CHUNK_BYTES:
            raise FormatError(
                f"sample {self.num_items}: its {len(item)} bytes do not fit in a chunk, whose offsets end at "
                "4 GiB; split the sample"
            )
        if self._pending and self._is_full_with(item):
            self._flush()
        self._encoder = encoder
        self._pending.append(item)
        self._pending_bytes += len(item)
        self.num_items += 1

    def close(self) -> None:
        """Write the last chunk, then ``index.json``. Closing twice is fine.

        Raises:
            ConfigError: no sample was written, so there is no format to record.
            OSError: a file could not be written; the folder is left without an index.
        """
        if self._closed:
            return
        if self._encoder is None:
            self._abort()
            raise ConfigError(f"no sample was written to {self._folder}: a dataset's format comes from its samples")
        try:
            if self._pending:
                self._flush()
            self._publish("index.json", json.dumps(self._index(self._encoder), sort_keys=True).encode("ascii"))
        except BaseException:
            self._abort()
            raise
        self._closed = True

    def __enter__(self) -> Self:
        self._require_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        elif not self._closed:
            self._abort()

    def _require_open(self) -> None:
        if self._closed:
            raise ClosedError(f"the writer of {self._folder} is closed; make a new one for another folder")

    def _is_full_with(self, item: bytes) -> bool:
        """The format's packing rule: sums of item bytes (headers not counted) or of items pass the limit."""
        size = self._pending_bytes + len(item)
        if _packed_size(len(self._pending) + 1, size) > MAX_CHUNK_BYTES:
            return True
        if self._chunk_size is not None:
            return len(self._pending) + 1 > self._chunk_size
        return self._chunk_bytes is not None and size > self._chunk_bytes

    def _flush(self) -> None:
        """One chunk file: u32 count | u32 offsets[count + 1] | items."""
        count = len(self._pending)
        offsets = [_packed_size(count, 0)]
        for item in self._pending:
            offsets.append(offsets[-1] + len(item))
        packed = b"".join([struct.pack(f"<{count + 2}I", count, *offsets), *self._pending])
        suffix = f".{self._compression}.bin" if self._compression else ".bin"
        name = f"chunk-0-{len(self._chunks)}{suffix}"
        size = len(packed)
        if self._compress is not None:
            packed = self._compress(packed)
        self._publish(name, packed)
        # chunk_bytes is the packed size, before compression
        self._chunks.append({"chunk_bytes": size, "chunk_size": count, "dim": None, "filename": name})
        self.bytes_written += len(packed)
        self._pending.clear()
        self._pending_bytes = 0

    def _index(self, encoder: SampleEncoder) -> dict[str, Any]:
        return {
            "chunks": self._chunks,
            "config": {
                "chunk_bytes": self._chunk_bytes,
                "chunk_size": self._chunk_size,
                "compression": self._compression,
                "data_format": encoder.data_format,
                "data_spec": encoder.data_spec,
                "encryption": None,
                "item_loader": "PyTreeLoader",
            },
            "updated_at": str(time.time()),
        }

    def _publish(self, name: str, data: bytes) -> None:
        temporary = self._folder / f".{name}.{os.getpid()}.tmp"
        try:
            temporary.write_bytes(data)
            os.replace(temporary, self._folder / name)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _abort(self) -> None:
        """Close without an index, and take back the chunks this writer made (only those)."""
        self._closed = True
        self._pending.clear()
        for chunk in self._chunks:
            (self._folder / chunk["filename"]).unlink(missing_ok=True)


def _packed_size(items: int, item_bytes: int) -> int:
    return 4 + 4 * (items + 1) + item_bytes


def _refuse_dataset(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; output_dir must be a folder")
    names = sorted(os.listdir(folder)) if folder.exists() else []
    found = [name for name in names if _DATASET_FILE.fullmatch(name)]
    if found:
        raise ConfigError(
            f"{folder} holds a dataset already ({found[0]}, {len(found)} files in all); give another folder, "
            "or remove those files first"
        )


def _compressor(compression: str | None) -> Callable[[bytes], bytes] | None:
    if compression is None:
        return None
    match = _ZSTD.fullmatch(compression)
    level = int(match.group(1) or DEFAULT_ZSTD_LEVEL) if match else 0
    if not 1 <= level <= 22:
        raise ConfigError(f"{compression=} is not None, 'zstd' or 'zstd:1' to 'zstd:22'")
    try:
        import zstandard
    except ImportError:
        raise MissingExtraError(f"{compression=} needs the zstandard package: pip install lazystore[zstd]") from None

    def compress(data: bytes) -> bytes:
        # the frame states its content size, which LitData's decompressor wants
        return bytes(zstandard.ZstdCompressor(level=level, write_content_size=True).compress(data))

    return compress
