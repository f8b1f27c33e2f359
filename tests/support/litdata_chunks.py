"""Writes LitData chunks of every form, and their index, byte by byte as the format has it."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROWS_MAGIC = b"LDARW01\0"


def item(*leaves: bytes) -> bytes:
    return struct.pack(f"<{len(leaves)}I", *map(len, leaves)) + b"".join(leaves)


def int_str(number: int, text: str) -> bytes:
    """An item of the schema that :func:`write_dataset` has by default."""
    return item(struct.pack("<q", number), text.encode())


def classic(items: Sequence[bytes]) -> bytes:
    at = 4 * (len(items) + 2)
    offsets = [at]
    for stored in items:
        offsets.append(offsets[-1] + len(stored))
    return struct.pack(f"<{len(items) + 2}I", len(items), *offsets) + b"".join(items)


def framed(items: Sequence[bytes], rows: int, *, sized: bool = True) -> bytes:
    import zstandard

    frames, entries, offsets = [], [], [0]
    for stored in items:
        offsets.append(offsets[-1] + len(stored))
    n_frames = -(-len(items) // rows)
    at = 24 + 4 * (len(items) + 1) + 24 * n_frames
    for first in range(0, len(items), rows):
        plain = b"".join(items[first : first + rows])
        frame = zstandard.ZstdCompressor(write_content_size=sized).compress(plain)
        entries.append(struct.pack("<IIQII", first, len(items[first : first + rows]), at, len(frame), len(plain)))
        frames.append(frame)
        at += len(frame)
    head = struct.pack("<8sHHIII", b"LDFZ01", 1, 0, len(items), rows, n_frames)
    return head + struct.pack(f"<{len(offsets)}I", *offsets) + b"".join(entries) + b"".join(frames)


def arrow_blob(
    rows: Sequence[dict[str, Any]], *, batch: int | Sequence[int] = 256, form: str = "file", ipc: Any = None
) -> bytes:
    """An IPC file or stream of the rows, ``batch`` rows (or such numbers of them) a record batch."""
    import pyarrow as pa

    table = pa.Table.from_pylist(list(rows))
    sink = pa.BufferOutputStream()
    make = pa.ipc.new_file if form == "file" else pa.ipc.new_stream
    sizes = [batch] * -(-len(rows) // batch) if isinstance(batch, int) else batch
    with make(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=ipc)) as writer:
        at = 0
        for n in sizes:
            for part in table.slice(at, n).combine_chunks().to_batches():
                writer.write_batch(part)
            at += n
    return bytes(sink.getvalue())


def arrow_rows(rows: Sequence[dict[str, Any]], *, body: bytes | None = None, **options: Any) -> bytes:
    """A chunk of Arrow rows; with ``body``, behind a classic chunk of as many items."""
    blob = arrow_blob(rows, **options)
    head = classic([b""] * len(rows)) if body is None else body
    return head + blob + struct.pack("<I", len(blob)) + ROWS_MAGIC


def write_dataset(
    folder: Path,
    chunks: Sequence[tuple[int, bytes]],
    *,
    names: Sequence[str] = (),
    top: dict[str, Any] | None = None,
    **config: Any,
) -> Path:
    """A dataset of (items, stored bytes) of each chunk; dicts of an int ``a`` and a str ``b`` unless told otherwise.

    Parameters:
        top: keys of the index besides its chunks and config; None for a date.
    """
    folder.mkdir(exist_ok=True)
    names = names or [f"chunk-0-{k}.bin" for k in range(len(chunks))]
    entries = []
    for name, (count, stored) in zip(names, chunks, strict=True):
        (folder / name).write_bytes(stored)
        entries.append({"chunk_bytes": len(stored), "chunk_size": count, "dim": None, "filename": name})
    index = {"chunks": entries, "config": CONFIG | config, **({"updated_at": "1"} if top is None else top)}
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def spec(keys: Sequence[str]) -> str:
    """A flat dict."""
    leaf = {"type": None, "context": None, "children_spec": []}
    return json.dumps(
        [1, {"type": "builtins.dict", "context": json.dumps(list(keys)), "children_spec": [leaf] * len(keys)}]
    )


#: As LitData 0.2.76 writes it for rows of Arrow.
CONFIG: dict[str, Any] = {
    "chunk_bytes": None, "chunk_size": 100, "compression": None, "compression_batch_size": None,
    "compression_level": None, "data_format": ["int", "str"], "data_spec": spec(["a", "b"]), "encryption": None,
    "ipc_compression": None, "item_loader": "PyTreeLoader", "types": {"a": "int", "b": "str"},
}  # fmt: skip
