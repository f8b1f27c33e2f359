"""A plain reader of LitData's classic chunks, slow and obvious: the oracle for writer and reader.

``items`` cuts a dataset into leaf bytes, ``from_expected`` turns a line of ``expected.jsonl`` back
into the sample (arrays and long byte strings, kept there as hashes only, come from the leaf bytes).
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections import OrderedDict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parents[1] / "golden"

NUMPY_DTYPES = ["i1", "<i2", "<i4", "<i8", "u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8", "<c8", "<c16", "?"]


class NotPlain(Exception):
    """A value that needs an optional package (tensor, image) or a container this oracle does not build."""


def read_index(folder: Path) -> dict[str, Any]:
    index: dict[str, Any] = json.loads((folder / "index.json").read_text())
    return index


def chunk_bytes(folder: Path, chunk: dict[str, Any], compression: str | None) -> bytes:
    data = (folder / chunk["filename"]).read_bytes()
    if compression is None:
        return data
    import zstandard

    return zstandard.ZstdDecompressor().decompress(data)


def split_chunk(data: bytes, leaves: int) -> list[list[bytes]]:
    (count,) = struct.unpack_from("<I", data)
    offsets = struct.unpack_from(f"<{count + 1}I", data, 4)
    assert offsets[0] == 4 + 4 * (count + 1)
    assert offsets[-1] == len(data)
    found = []
    for begin, end in pairwise(offsets):
        sizes = struct.unpack_from(f"<{leaves}I", data, begin)
        at = begin + 4 * leaves
        item = []
        for size in sizes:
            item.append(data[at : at + size])
            at += size
        assert at == end
        found.append(item)
    return found


def items(folder: Path) -> Iterator[list[bytes]]:
    """The leaf bytes of every item, in dataset order."""
    index = read_index(folder)
    config = index["config"]
    for chunk in index["chunks"]:
        found = split_chunk(chunk_bytes(folder, chunk, config["compression"]), len(config["data_format"]))
        assert len(found) == chunk["chunk_size"]
        yield from found


def leaf_value(tag: str, data: bytes) -> Any:
    match tag.split(":"):
        case ["str"]:
            return data.decode("utf-8")
        case ["bool"]:
            return data != b"\x00"
        case ["int"]:
            return struct.unpack("<q", data)[0]
        case ["float"]:
            return struct.unpack("<d", data)[0]
        case ["bytes"]:
            return data
        case ["pickle"] if data == b"\x80\x04N.":
            return None
        case ["no_header_numpy", index]:
            return np.frombuffer(data, NUMPY_DTYPES[int(index)])
        case ["numpy"]:
            index, rank = struct.unpack_from("<2I", data)
            shape = struct.unpack_from(f"<{rank}I", data, 8)
            return np.frombuffer(data, NUMPY_DTYPES[int(index)], offset=8 + 4 * rank).reshape(shape)
    raise NotPlain(tag)


def tree_value(node: dict[str, Any], leaves: Iterator[Any]) -> Any:
    """Leaves put back into the tree of a parsed ``data_spec`` node."""
    kind, context = node["type"], node["context"]
    if kind is None:
        return next(leaves)
    children = [tree_value(child, leaves) for child in node["children_spec"]]
    if kind == "builtins.dict":
        return dict(zip(json.loads(context), children, strict=True))
    if kind == "collections.OrderedDict":
        return OrderedDict(zip(json.loads(context), children, strict=True))
    if kind == "builtins.list":
        return children
    if kind == "builtins.tuple":
        return tuple(children)
    raise NotPlain(kind)


def samples(folder: Path) -> Iterator[Any]:
    """Every sample of a dataset made of plain leaves."""
    config = read_index(folder)["config"]
    version, root = json.loads(config["data_spec"])
    assert version == 1
    for item in items(folder):
        values = (leaf_value(t, d) for t, d in zip(config["data_format"], item, strict=True))
        yield tree_value(root, values)


def expected_lines(dataset: Path, name: str = "expected.jsonl") -> Iterator[Any]:
    with (dataset / name).open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def from_expected(value: dict[str, Any], leaves: Iterator[tuple[str, bytes]]) -> Any:
    """The sample behind one value of ``expected.jsonl``; ``leaves`` are its (tag, bytes) in order."""
    kind, inner = next(iter(value.items()))  # bytes_sha256 has a second key, its length
    match kind:
        case "dict":
            return {key: from_expected(child, leaves) for key, child in inner.items()}
        case "dict_items" | "odict":
            # keys are values as well, but no leaves
            pairs = [(from_expected(k, iter([("", b"")])), from_expected(v, leaves)) for k, v in inner]
            return dict(pairs) if kind == "dict_items" else OrderedDict(pairs)
        case "list":
            return [from_expected(child, leaves) for child in inner]
        case "tuple":
            return tuple(from_expected(child, leaves) for child in inner)
    tag, data = next(leaves)
    match kind:
        case "none":
            return None
        case "bool" | "int" | "str":
            return inner
        case "float":
            return float.fromhex(inner) if inner not in {"nan", "inf", "-inf"} else float(inner)
        case "bytes":
            return base64.b64decode(inner)
        case "bytes_sha256":
            assert hashlib.sha256(data).hexdigest() == inner
            return data
        case "ndarray":
            array = leaf_value(tag, data)
            assert array.dtype.str == inner["dtype"]
            assert list(array.shape) == inner["shape"]
            assert hashlib.sha256(array.tobytes()).hexdigest() == inner["sha256"]
            return array
    raise NotPlain(kind)


def golden_samples(dataset: Path) -> Iterator[Any]:
    """The samples that were given to the real writer."""
    config = read_index(dataset / "data")["config"]
    for line, item in zip(expected_lines(dataset), items(dataset / "data"), strict=True):
        yield from_expected(line, iter(zip(config["data_format"], item, strict=True)))
