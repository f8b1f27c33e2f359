"""Datasets to be damaged: every golden one, and small ones of the other formats made here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support import golden

__all__ = ["CASES", "Case"]


@dataclass(frozen=True)
class Case:
    """A dataset and how it is read.

    Attributes:
        make: puts it into an empty folder; returns what to open, relative to the folder.
        options: for :class:`~lazystore.StreamingDataset`.
        checked: no wrong value may come out of damaged data files: they have checksums.
        exchange: that holds as well for files in the place of others.
        indexed: damage to a file does not move the items of others: an index says where they are.
        needs: packages.
    """

    make: Callable[[Path], str]
    options: Callable[[], dict[str, Any]] = dict
    checked: bool = False
    exchange: bool = True
    indexed: bool = True
    needs: tuple[str, ...] = ()


def _golden(name: str, **more: Any) -> Case:
    def make(folder: Path) -> str:
        shutil.copytree(golden.GOLDEN / name / "data", folder, dirs_exist_ok=True)
        for path in folder.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        return golden.place(name).name if name.startswith("plain-text/") else "."

    def options() -> dict[str, Any]:
        # Who lets pickles in trusts their bytes.
        return {**golden.options(name), "allow_pickle": False, **more}

    sealed = "fernet-chunk" in name
    text = name.startswith("plain-text/")
    return Case(make, options, checked=sealed or bool(more), exchange=not sealed, indexed=not text)


def samples(count: int = 150) -> list[dict[str, Any]]:
    import numpy as np

    return [
        {"id": i, "text": f"item {i} " * (i % 7), "xs": np.arange(i % 5, dtype="f4") + i, "blob": bytes([i % 256]) * i}
        for i in range(count)
    ]


def _written(*, tokens: bool = False, **settings: Any) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        import numpy as np

        from lazystore import DatasetWriter

        items = [np.arange(k, k + 40 + k % 9, dtype="u2") for k in range(60)] if tokens else samples()
        with DatasetWriter(folder / "d", tokens=tokens, chunk_size=500 if tokens else 40, **settings) as writer:
            for item in items:
                writer.write(item)
        return "d"

    return make


def _encrypted(level: str, **settings: Any) -> Case:
    def make(folder: Path) -> str:
        return _written(encryption=_key(level), **settings)(folder)

    return Case(
        make, lambda: {"verify": True, "encryption": _key(level)}, checked=True, needs=("cryptography", "zstandard")
    )


def _key(level: str) -> Any:
    from lazystore import FernetEncryption

    return FernetEncryption("secret", level=level, salt=bytes(16))


def _tokens_options() -> dict[str, Any]:
    from lazystore import TokensLoader

    return {"item_loader": TokensLoader(block_size=16), "verify": True}


TEXTS = {
    "jsonl": "".join(json.dumps({"id": i, "text": f"zeile {i} é" * (i % 5)}) + "\n" for i in range(300)),
    "csv": "id,text\r\n" + "".join(f'{i},"a ""quoted""\nline {i}"\r\n' for i in range(200)),
    "tsv": "id\ttext\n" + "".join(f"{i}\tline {i}\n" for i in range(200)),
    "txt": "".join(f"line {i}" + "\n" * (i % 3) for i in range(300)),
}


def _text(kind: str, end: str, files: int = 1) -> Case:
    def make(folder: Path) -> str:
        from support.texts import compressed

        for k in range(files):
            (folder / f"{k}.{kind}{end}").write_bytes(compressed(TEXTS[kind].encode(), end))
        return f"0.{kind}{end}" if files == 1 else "."

    return Case(make, indexed=False, needs=("zstandard",) if end == ".zst" else ())


def _beside(kind: str, end: str) -> Case:
    """With its index in the same folder, which is damaged as well."""
    made = _text(kind, end)

    def make(folder: Path) -> str:
        from lazystore import StreamingDataset

        name = made.make(folder)
        with StreamingDataset(folder / name, format_options={"index": "beside"}) as dataset:
            assert len(dataset)
        return name

    return Case(make, lambda: {"format_options": {"index": "beside"}}, indexed=False, needs=made.needs)


def _table(rows: int = 400) -> Any:
    import pyarrow as pa

    nested = pa.struct([("a", pa.int32()), ("b", pa.list_(pa.string()))])
    return pa.table(
        {
            "id": pa.array(range(rows), pa.int64()),
            "text": pa.array([None if i % 11 == 0 else f"row {i} " * (i % 4) for i in range(rows)]),
            "raw": pa.array([bytes([i % 256]) * (i % 9) for i in range(rows)], pa.binary()),
            "flag": pa.array([None if i % 5 == 0 else i % 2 == 0 for i in range(rows)]),
            "x": pa.array([i / 3 for i in range(rows)], pa.float32()),
            "deep": pa.array([None if i % 7 == 0 else {"a": i, "b": ["x"] * (i % 3)} for i in range(rows)], nested),
        }
    )


def _parquet(files: int = 1, indexed: bool = False, read: dict[str, Any] | None = None, **settings: Any) -> Case:
    def make(folder: Path) -> str:
        from pyarrow import parquet

        for k in range(files):
            parquet.write_table(_table(), folder / f"{k}.parquet", row_group_size=150, **settings)
        if indexed:
            chunks = [
                {"chunk_bytes": 9, "chunk_size": 400, "dim": None, "filename": f"{k}.parquet"} for k in range(files)
            ]
            config = {"item_loader": "ParquetLoader", "compression": None, "data_format": ["int64"], "chunk_size": None}
            (folder / "index.json").write_text(json.dumps({"chunks": chunks, "config": config}))
        return "0.parquet" if files == 1 else "."

    return Case(make, lambda: dict(read or {}), indexed=False, needs=("pyarrow",))


def _arrow(kind: str, compression: str | None = None, extra: bool = False, read: dict[str, Any] | None = None) -> Case:
    def make(folder: Path) -> str:
        import pyarrow as pa

        table = _table()
        if extra:
            table = table.append_column("word", pa.array(["a", "b", None, "c"] * 100).dictionary_encode())
            table = table.append_column("when", pa.array(range(400), pa.timestamp("us")))
        options = pa.ipc.IpcWriteOptions(compression=compression)
        new = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
        with new(str(folder / "0.arrow"), table.schema, options=options) as writer:
            writer.write_table(table, max_chunksize=90)
        return "0.arrow"

    return Case(make, lambda: dict(read or {}), indexed=False, needs=("pyarrow",))


_NEEDS = ("zstandard",)
CASES: dict[str, dict[str, Case]] = {
    "litdata": {name: _golden(name) for name in golden.LITDATA},
    "mosaic": {
        **{name: _golden(name) for name in golden.READABLE if name.startswith(("mds-", "mosaic-"))},
        "mds-hashes, verified": _golden("mds-hashes", verify=True),
        "mds-hashes, sha1": _golden("mds-hashes", validate_hash="sha1"),
    },
    "written": {
        "plain": Case(_written(), lambda: {"verify": True}, checked=True),
        "keys": Case(_written(key_fn=lambda item: f"key {item['id']}"), lambda: {"verify": True}, checked=True,
                     needs=("pyarrow",)),
        "zstd": Case(_written(compression="zstd"), lambda: {"verify": True}, checked=True, needs=_NEEDS),
        "zstd batches": Case(_written(compression="zstd", compression_level="batch", compression_batch_size=8),
                             lambda: {"verify": True}, checked=True, needs=_NEEDS),
        "zstd samples": Case(_written(compression="zstd", compression_level="sample"), lambda: {"verify": True},
                             checked=True, needs=_NEEDS),
        "tokens": Case(_written(tokens=True), _tokens_options, checked=True),
        "fernet samples": _encrypted("sample"),
        "fernet chunks": _encrypted("chunk"),
        "fernet chunks zstd": _encrypted("chunk", compression="zstd"),
    },
    "text": {
        **{name: _golden(name) for name in golden.READABLE if name.startswith("plain-text/")},
        **{kind + end: _text(kind, end) for kind in TEXTS for end in ("", ".gz", ".zst")},
        "three jsonl": _text("jsonl", "", 3),
        "three jsonl.gz": _text("jsonl", ".gz", 3),
        **{f"{kind}{end}, index beside": _beside(kind, end) for kind in ("jsonl", "csv") for end in ("", ".gz")},
    },
    "arrow": {
        "parquet": _parquet(),
        "parquet zstd": _parquet(compression="zstd"),
        "parquet plain": _parquet(compression="none", use_dictionary=False),
        "parquet gzip v2": _parquet(compression="gzip", data_page_version="2.0", data_page_size=500),
        "parquet columns": _parquet(2, read={"columns": ["text", "id"]}),
        "parquet index": _parquet(3, indexed=True),
        "ipc": _arrow("file"),
        "ipc zstd": _arrow("file", "zstd"),
        "ipc lz4": _arrow("file", "lz4"),
        "ipc stream": _arrow("stream"),
        "ipc stream zstd": _arrow("stream", "zstd"),
        "ipc dictionary": _arrow("file", extra=True),
        "ipc stream dictionary": _arrow("stream", "lz4", extra=True),
        "ipc columns": _arrow("file", "zstd", read={"columns": ["x", "text"]}),
    },
}  # fmt: skip
