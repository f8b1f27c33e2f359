"""Datasets of a few KB that want to become hundreds of MB, and others that are nothing but too deep or too many."""

from __future__ import annotations

import bz2
import gzip
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["BOMBS"]

MIB = 1 << 20
BIG = (192 if "HUNT_FULL" in os.environ else 64) * MIB
PIECE = bytes(MIB)
#: What to open, in the folder that was given; and options.
Made = tuple[str, dict[str, Any]]
BOMBS: dict[str, Callable[[Path], Made]] = {}


def _bomb(name: str) -> Callable[[Callable[[Path], Made]], Callable[[Path], Made]]:
    def note(make: Callable[[Path], Made]) -> Callable[[Path], Made]:
        BOMBS[name] = make
        return make

    return note


# -- compressors ----------------------------------------------------------------------------


def _pieces(head: bytes, size: int = BIG, fill: bytes = b"\0") -> Iterator[bytes]:
    """``head``, then ``fill`` up to ``size``."""
    yield head
    piece, left = fill * MIB, size - len(head)
    while left > 0:
        yield piece[:left]
        left -= len(piece)


def _stream(coder: Any, pieces: Iterator[bytes], feed: str = "compress") -> bytes:
    out = [getattr(coder, feed)(piece) for piece in pieces]
    return b"".join([*out, coder.finish() if hasattr(coder, "finish") else coder.flush()])


def _zstd(pieces: Iterator[bytes], size: int = -1, **settings: Any) -> bytes:
    import zstandard

    if settings:
        parameters = zstandard.ZstdCompressionParameters.from_level(1, **settings)
        compressor = zstandard.ZstdCompressor(compression_params=parameters)
    else:
        compressor = zstandard.ZstdCompressor(level=1)
    return _stream(compressor.compressobj(size=size), pieces)


def _gz(pieces: Iterator[bytes], size: int = -1) -> bytes:
    return _stream(zlib.compressobj(1, wbits=31), pieces)


def _bz2(pieces: Iterator[bytes], size: int = -1) -> bytes:
    return _stream(bz2.BZ2Compressor(1), pieces)


def _br(pieces: Iterator[bytes], size: int = -1) -> bytes:
    import brotli

    return _stream(brotli.Compressor(quality=1), pieces, "process")


def _snappy(pieces: Iterator[bytes], size: int = -1) -> bytes:
    """Copies of 64 bytes, three bytes each: snappy does not shrink things further."""
    head = next(pieces)
    length = sum(map(len, pieces)) + len(head)
    out, rest = bytearray(), length
    while rest >= 128:
        out.append(rest & 127 | 128)
        rest >>= 7
    out.append(rest)
    out += struct.pack("<BB", 60 << 2, len(head)) + head + b"\0"
    left = length - len(head) - 1
    out += b"\xfe\x01\x00" * (left // 64)
    if left % 64:
        out += bytes([(left % 64 - 1) << 2 | 2, 1, 0])
    return bytes(out)


CODERS: dict[str, Callable[..., bytes]] = {"zstd": _zstd, "gz": _gz, "bz2": _bz2, "br": _br, "snappy": _snappy}


# -- LitData --------------------------------------------------------------------------------


def _litdata(folder: Path, chunk: bytes, said: int, count: int = 1, **config: Any) -> Made:
    name = (
        "chunk-0-0.zstd.bin" if config.get("compression_level") is None and config["compression"] else "chunk-0-0.bin"
    )
    (folder / name).write_bytes(chunk)
    leaf = {"type": None, "context": None, "children_spec": []}
    spec = [1, {"type": "builtins.dict", "context": '["a"]', "children_spec": [leaf]}]
    settings = {"chunk_bytes": None, "chunk_size": count, "compression_level": None, "data_format": ["bytes"],
                "data_spec": json.dumps(spec), "encryption": None, "item_loader": "PyTreeLoader", **config}  # fmt: skip
    chunks = [{"chunk_bytes": said, "chunk_size": count, "dim": None, "filename": name}]
    (folder / "index.json").write_text(json.dumps({"chunks": chunks, "config": settings}))
    return ".", {}


def _head(size: int = BIG) -> bytes:
    """Of a chunk with one item."""
    return struct.pack("<IIII", 1, 12, size, size - 16)


@_bomb("litdata zstd, index says little")
def _(folder: Path) -> Made:
    return _litdata(folder, _zstd(_pieces(_head())), 100, compression="zstd")


@_bomb("litdata zstd, one item")
def _(folder: Path) -> Made:
    return _litdata(folder, _zstd(_pieces(_head()), BIG), BIG, compression="zstd")


@_bomb("litdata zstd, offsets at the end")
def _(folder: Path) -> Made:
    head = struct.pack("<I", BIG // 8)
    return _litdata(folder, _zstd(_pieces(head), BIG), BIG, BIG // 8, compression="zstd")


@_bomb("litdata zstd, a window of 2 GiB")
def _(folder: Path) -> Made:
    return _litdata(folder, _zstd(_pieces(_head(), 4 * MIB), window_log=30), 4 * MIB, compression="zstd")


def _sample(folder: Path, frame: bytes) -> Made:
    chunk = struct.pack("<III", 1, 12, 12 + len(frame)) + frame
    return _litdata(folder, chunk, len(chunk), compression="zstd", compression_level="sample")


@_bomb("litdata sample zstd, size said")
def _(folder: Path) -> Made:
    return _sample(folder, _zstd(_pieces(struct.pack("<I", BIG - 4)), BIG))


@_bomb("litdata sample zstd, size not said")
def _(folder: Path) -> Made:
    return _sample(folder, _zstd(_pieces(struct.pack("<I", BIG - 4))))


@_bomb("litdata sample zstd, size a lie")
def _(folder: Path) -> Made:
    frame = bytearray(_zstd(_pieces(struct.pack("<I", BIG - 4)), BIG))
    at = frame.index(struct.pack("<I", BIG))
    frame[at : at + 4] = struct.pack("<I", 4096)
    return _sample(folder, bytes(frame))


def _framed(folder: Path, frame: bytes, said: int, end: int = BIG) -> Made:
    table = 24 + 8 + 24
    chunk = struct.pack("<8sHHIII", b"LDFZ01", 1, 0, 1, 256, 1) + struct.pack("<II", 0, end)
    chunk += struct.pack("<IIQII", 0, 1, table, len(frame), said) + frame
    return _litdata(folder, chunk, len(chunk), compression="zstd", compression_level="batch",
                    compression_batch_size=256)  # fmt: skip


@_bomb("litdata framed, said")
def _(folder: Path) -> Made:
    return _framed(folder, _zstd(_pieces(struct.pack("<I", BIG - 4)), BIG), BIG)


@_bomb("litdata framed, table says little")
def _(folder: Path) -> Made:
    return _framed(folder, _zstd(_pieces(struct.pack("<I", 96)), BIG), 100, 100)


@_bomb("litdata framed, size not said")
def _(folder: Path) -> Made:
    return _framed(folder, _zstd(_pieces(struct.pack("<I", 96))), 100, 100)


@_bomb("litdata framed, four billion items")
def _(folder: Path) -> Made:
    count = (1 << 32) - 2
    chunk = struct.pack("<8sHHIII", b"LDFZ01", 1, 0, count, 256, count // 256 + 1) + bytes(4000)
    return _litdata(folder, chunk, len(chunk), count, compression="zstd", compression_level="batch",
                    compression_batch_size=256)  # fmt: skip


@_bomb("litdata rows, zstd")
def _(folder: Path) -> Made:
    blob = _ipc_blob({"a": [bytes(BIG // 2)]}, "zstd")
    chunk = struct.pack("<III", 1, 12, 12) + blob + struct.pack("<I", len(blob)) + b"LDARW01\0"
    return _litdata(folder, chunk, len(chunk), compression=None, ipc_compression="zstd")


@_bomb("litdata plain, billions of items in the index")
def _(folder: Path) -> Made:
    return _litdata(folder, struct.pack("<III", 1, 12, 20) + bytes(8), 20, (1 << 32) - 1, compression=None)


# -- MosaicML -------------------------------------------------------------------------------


def _mds(folder: Path, coder: str, said: int) -> Made:
    size = BIG // 2 if coder == "snappy" else BIG
    data = CODERS[coder](_pieces(struct.pack("<IIII", 1, 12, size, size - 16), size), size)
    (folder / f"s.mds.{coder}").write_bytes(data)
    zipped = {"basename": f"s.mds.{coder}", "bytes": len(data), "hashes": {}}
    shard = {
        "column_encodings": ["bytes"], "column_names": ["x"], "column_sizes": [None], "compression": coder,
        "format": "mds", "hashes": [], "raw_data": {"basename": "s.mds", "bytes": said or size, "hashes": {}},
        "samples": 1, "size_limit": None, "version": 2, "zip_data": zipped,
    }  # fmt: skip
    (folder / "index.json").write_text(json.dumps({"shards": [shard], "version": 2}))
    return ".", {}


for _coder in CODERS:
    BOMBS[f"mds {_coder}, index says little"] = lambda folder, coder=_coder: _mds(folder, coder, 4000)
    BOMBS[f"mds {_coder}, one item"] = lambda folder, coder=_coder: _mds(folder, coder, 0)


@_bomb("mosaic lines, compressed table")
def _(folder: Path) -> Made:
    table = _gz(_pieces(struct.pack("<II", 1, 12)))
    (folder / "s.json.gz").write_bytes(gzip.compress(b'{"x": 1}\n'))
    (folder / "s.json.meta.gz").write_bytes(table)
    files = {
        "raw_data": ("s.json", 9), "zip_data": ("s.json.gz", (folder / "s.json.gz").stat().st_size),
        "raw_meta": ("s.json.meta", 12), "zip_meta": ("s.json.meta.gz", len(table)),
    }  # fmt: skip
    shard: dict[str, Any] = {
        "columns": {"x": "int"}, "compression": "gz", "format": "json", "hashes": [], "newline": "\n", "samples": 1,
        "size_limit": None, "version": 2,
    }  # fmt: skip
    shard |= {key: {"basename": name, "bytes": size, "hashes": {}} for key, (name, size) in files.items()}
    (folder / "index.json").write_text(json.dumps({"shards": [shard], "version": 2}))
    return ".", {}


# -- text -----------------------------------------------------------------------------------


def _text(folder: Path, name: str, data: bytes) -> Made:
    (folder / name).write_bytes(data)
    return name, {}


for _end, _code in ((".gz", _gz), (".zst", _zstd)):
    BOMBS[f"one line{_end}"] = lambda folder, end=_end, code=_code: _text(
        folder, f"a.txt{end}", code(_pieces(b"x", fill=b"x"))
    )
    BOMBS[f"empty lines{_end}"] = lambda folder, end=_end, code=_code: _text(
        folder, f"a.jsonl{end}", code(_pieces(b'{"a": 1}\n', fill=b"\n"))
    )
    BOMBS[f"an open quote{_end}"] = lambda folder, end=_end, code=_code: _text(
        folder, f"a.csv{end}", code(_pieces(b'a,b\n1,"', fill=b"\n"))
    )
    BOMBS[f"a header{_end}"] = lambda folder, end=_end, code=_code: _text(
        folder, f"a.csv{end}", code(_pieces(b"a,b", fill=b","))
    )


@_bomb("zst, a window of 1 GiB")
def _(folder: Path) -> Made:
    return _text(folder, "a.txt.zst", _zstd(_pieces(b"x\n", 4 * MIB), window_log=30))


@_bomb("gz, a name without end")
def _(folder: Path) -> Made:
    return _text(folder, "a.txt.gz", b"\x1f\x8b\x08\x08\0\0\0\0\0\xff" + b"n" * 24 * MIB)


@_bomb("gz, members without contents")
def _(folder: Path) -> Made:
    return _text(folder, "a.txt.gz", gzip.compress(b"", 1) * 200_000 + gzip.compress(b"a\nb\n"))


@_bomb("zst, frames that are skipped")
def _(folder: Path) -> Made:
    frames = struct.pack("<II", 0x184D2A50, 0) * 500_000
    return _text(folder, "a.txt.zst", frames + _zstd(iter([b"a\nb\n"])))


@_bomb("JSON, deep")
def _(folder: Path) -> Made:
    return _text(folder, "a.jsonl", b'{"a": 1}\n' + b"[" * 3_000_000 + b"\n" + b'{"a":' * 100_000 + b"\n")


@_bomb("JSON, a number of many digits")
def _(folder: Path) -> Made:
    return _text(folder, "a.jsonl", b"9" * 1_000_000 + b"\n" + b"-1e" + b"9" * 100_000 + b"\n")


@_bomb("CSV, a million fields")
def _(folder: Path) -> Made:
    return _text(folder, "a.csv", b"a,b\n" + b"," * 1_000_000 + b"\n")


# -- indexes --------------------------------------------------------------------------------


@_bomb("index, deep")
def _(folder: Path) -> Made:
    _text(folder, "index.json", b'{"chunks": ' + b"[" * 1_000_000)
    return ".", {}


@_bomb("index, data_spec deep")
def _(folder: Path) -> Made:
    made = _litdata(folder, struct.pack("<III", 1, 12, 20) + bytes(8), 20, compression=None)
    index = json.loads((folder / "index.json").read_text())
    spec = '{"type": "builtins.list", "context": "null", "children_spec": ['
    index["config"]["data_spec"] = "[1, " + spec * 20_000 + "]}" * 20_000 + "]"
    (folder / "index.json").write_text(json.dumps(index))
    return made


@_bomb("index, a number of many digits")
def _(folder: Path) -> Made:
    (folder / "index.json").write_text('{"chunks": [{"chunk_bytes": ' + "9" * 100_000 + '}], "config": {}}')
    return ".", {}


# -- Arrow ----------------------------------------------------------------------------------


def _ipc_blob(columns: dict[str, Any], compression: str | None = None) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    table = pa.table(columns)
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _ipc(folder: Path, columns: dict[str, Any], compression: str | None = None) -> Made:
    (folder / "a.arrow").write_bytes(_ipc_blob(columns, compression))
    return "a.arrow", {}


for _codec in ("zstd", "lz4"):
    BOMBS[f"ipc {_codec}, one value"] = lambda folder, codec=_codec: _ipc(folder, {"a": [bytes(BIG // 2)]}, codec)
    BOMBS[f"ipc {_codec}, many rows"] = lambda folder, codec=_codec: _ipc(
        folder, {"a": memoryview(bytes(BIG // 2)).cast("q")}, codec
    )


@_bomb("ipc zstd, a size that is a lie")
def _(folder: Path) -> Made:
    blob = _ipc_blob({"a": [bytes(BIG // 4)]}, "zstd")
    at = blob.rindex(struct.pack("<q", BIG // 4))
    (folder / "a.arrow").write_bytes(blob[:at] + struct.pack("<q", 1000) + blob[at + 8 :])
    return "a.arrow", {}


@_bomb("ipc, a billion nulls")
def _(folder: Path) -> Made:
    import pyarrow as pa

    return _ipc(folder, {"a": pa.nulls(1_000_000_000)})


@_bomb("ipc, nothing but rows")
def _(folder: Path) -> Made:
    import pyarrow as pa

    kind = pa.binary(0)
    return _ipc(folder, {"a": pa.Array.from_buffers(kind, (1 << 31) - 1, [None, pa.py_buffer(b"")])})


@_bomb("ipc, runs")
def _(folder: Path) -> Made:
    import pyarrow as pa

    runs = pa.RunEndEncodedArray.from_arrays(pa.array([(1 << 31) - 1], pa.int64()), pa.array(["x" * 1000]))
    return _ipc(folder, {"a": runs})


@_bomb("ipc, a dictionary of long words")
def _(folder: Path) -> Made:
    import pyarrow as pa

    words = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int8()), pa.array(["x" * 400_000]))
    return _ipc(folder, {"a": words}, "zstd")


@_bomb("ipc, lists of many nulls")
def _(folder: Path) -> Made:
    import pyarrow as pa

    offsets = pa.py_buffer(struct.pack("<3i", 0, 1_000_000_000, 2_000_000_000))
    lists = pa.Array.from_buffers(pa.list_(pa.null()), 2, [None, offsets], children=[pa.nulls(2_000_000_000)])
    return _ipc(folder, {"a": lists})


def _parquet(folder: Path, columns: dict[str, Any], **settings: Any) -> Made:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table(columns), folder / "a.parquet", row_group_size=1 << 30, **settings)
    return "a.parquet", {}


@_bomb("parquet, one value")
def _(folder: Path) -> Made:
    return _parquet(folder, {"a": [bytes(BIG // 2)]}, compression="zstd")


@_bomb("parquet, one word again and again")
def _(folder: Path) -> Made:
    import pyarrow as pa

    words = pa.DictionaryArray.from_arrays(pa.array(memoryview(bytes(1_000_000)).cast("b")), pa.array(["x" * 2000]))
    return _parquet(folder, {"a": words}, store_schema=False)


@_bomb("parquet, one long word again and again")
def _(folder: Path) -> Made:
    import pyarrow as pa

    words = pa.DictionaryArray.from_arrays(pa.array(memoryview(bytes(2000)).cast("b")), pa.array(["x" * 900_000]))
    return _parquet(folder, {"a": words}, store_schema=False)


@_bomb("parquet, one number again and again")
def _(folder: Path) -> Made:
    return _parquet(folder, {"a": memoryview(bytes(BIG // 2)).cast("q")}, compression="zstd")


@_bomb("parquet, one number, plain pages")
def _(folder: Path) -> Made:
    numbers = memoryview(bytes(BIG // 2)).cast("q")
    return _parquet(folder, {"a": numbers}, compression="zstd", use_dictionary=False, data_page_size=1 << 30)


@_bomb("parquet, nulls")
def _(folder: Path) -> Made:
    import pyarrow as pa

    return _parquet(folder, {"a": pa.nulls(20_000_000), "b": pa.nulls(20_000_000, pa.string())})


@_bomb("parquet, a list of many nulls")
def _(folder: Path) -> Made:
    import pyarrow as pa

    offsets = pa.py_buffer(struct.pack("<2i", 0, 20_000_000))
    lists = pa.Array.from_buffers(pa.list_(pa.int64()), 1, [None, offsets], children=[pa.nulls(20_000_000, pa.int64())])
    return _parquet(folder, {"a": lists})
