"""Damage to files of datasets: bytes and numbers of binary files, values of JSON ones, contents of compressed ones.

Deterministic: the same chance makes the same damage. What readers make of it is for others to say.
"""

from __future__ import annotations

import bz2
import copy
import gzip
import json
import math
import random
import struct
from collections.abc import Callable
from typing import Any

__all__ = ["FORGED", "PACKED", "damage", "damaged_bytes", "damaged_json"]

#: What forged numbers say: limits of types, near misses, and numbers no file is as long as.
WORDS = [0, 1, 2, 3, 4, 7, 8, 9, 255, 1 << 16, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]
LONG = [*WORDS, 1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
FORGED: list[Any] = [
    0, 1, -1, 2, 65536, 1 << 31, 1 << 32, 1 << 40, 1 << 63, 1 << 64, 10**30, 1.5, math.nan, math.inf, 1e300, "", "x",
    "\0", "..", "../other", "/etc/passwd", "a/b", "s3://a/b", "0", "int", "str", "zstd", "pkl", "\ud800", "é" * 300,
    None, True, False, [], {}, [[]], [0], [1, 2, 3], {"a": 1}, [None] * 9,
]  # fmt: skip


def _brotli(data: bytes) -> bytes:
    import brotli

    return bytes(brotli.compress(data, quality=1))


def _unbrotli(data: bytes) -> bytes:
    import brotli

    return bytes(brotli.decompress(data))


def _zstd(data: bytes) -> bytes:
    import zstandard

    return bytes(zstandard.ZstdCompressor(level=1).compress(data))


def _unzstd(data: bytes) -> bytes:
    import zstandard

    return bytes(zstandard.ZstdDecompressor().decompressobj().decompress(data))


def _snappy(data: bytes) -> bytes:
    import cramjam

    return bytes(cramjam.snappy.compress_raw(data))


def _unsnappy(data: bytes) -> bytes:
    import cramjam

    return bytes(cramjam.snappy.decompress_raw(data))


Coder = Callable[[bytes], bytes]
#: How files with such an end are packed and unpacked.
PACKED: dict[str, tuple[Coder, Coder]] = {
    ".gz": (lambda data: gzip.compress(data, 1), gzip.decompress),
    ".bz2": (bz2.compress, bz2.decompress),
    ".br": (_brotli, _unbrotli),
    ".snappy": (_snappy, _unsnappy),
    ".zstd": (_zstd, _unzstd),
    ".zst": (_zstd, _unzstd),
    ".zstd.bin": (_zstd, _unzstd),
}


def damage(files: dict[str, bytes], chance: random.Random, *, exchange: bool = True) -> dict[str, bytes]:
    """The files that are damaged now, by their names.

    Parameters:
        exchange: files may take the place of others, whole.
    """
    names = sorted(files)
    indexes = [name for name in names if name.endswith("index.json")]
    others = [name for name in names if name not in indexes]
    chosen = indexes if indexes and (not others or chance.random() < 0.35) else others
    found = {}
    for name in chance.sample(chosen, min(len(chosen), chance.choice([1, 1, 1, 2]))):
        data = files[name]
        ends = [end for end in PACKED if name.endswith(end)]
        if name.endswith(".json") and chance.random() < 0.8:
            found[name] = damaged_json(data, chance)
        elif ends and chance.random() < 0.4:
            pack, unpack = PACKED[ends[-1]]
            try:
                found[name] = pack(damaged_bytes(unpack(data), chance))
            except Exception as error:  # noqa: BLE001 - packed in another way than its name says: batches of LitData
                assert ".bin" in name, error
                found[name] = damaged_bytes(data, chance)
        elif exchange and len(others) > 1 and chance.random() < 0.05:
            found[name] = files[chance.choice(others)]
        else:
            found[name] = damaged_bytes(data, chance)
    return {name: data for name, data in found.items() if data != files[name]}


def damaged_bytes(data: bytes, chance: random.Random) -> bytes:
    """One to five changes, mostly at the beginning and the end, where formats keep what they go by."""
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 1, 2, 5])):
        _change(changed, chance)
    return bytes(changed)


def _change(data: bytearray, chance: random.Random) -> None:
    size = len(data)
    near = min(size, chance.choice([8, 64, 400]))
    at = chance.choice([chance.randrange(size + 1), chance.randrange(near + 1), size - chance.randrange(near + 1)])
    match chance.randrange(10):
        case 0:
            data[at : at + 1] = bytes([chance.randrange(256)])
        case 1 if at < size:
            data[at] ^= 1 << chance.randrange(8)
        case 2:
            at = at // 4 * 4
            data[at : at + 4] = struct.pack(chance.choice("<>") + "I", chance.choice(WORDS))
        case 3:
            at = at // chance.choice([4, 8]) * 4
            data[at : at + 8] = struct.pack(chance.choice("<>") + "Q", chance.choice(LONG))
        case 4:  # a neighbour's number, or nearly this one
            at = at // 4 * 4
            number = int.from_bytes(data[at : at + 4], "little") + chance.choice([-4, -1, 1, 4, 256])
            data[at : at + 4] = struct.pack("<I", number & 0xFFFFFFFF)
        case 5:
            del data[at:]
        case 6:
            del data[at : at + chance.randrange(1, 20)]
        case 7:
            data[at:at] = chance.randbytes(chance.randrange(1, 20))
        case 8:
            length = chance.randrange(1, 40)
            low, high = sorted((at, chance.randrange(size + 1)))
            length = min(length, high - low, size - high)
            one, other = data[low : low + length], data[high : high + length]
            data[low : low + length], data[high : high + length] = other, one
        case _:
            data += chance.choice([chance.randbytes(9), bytes(chance.randrange(1, 4000)), bytes(data[:at])])


def damaged_json(data: bytes, chance: random.Random) -> bytes:
    """One or two values changed, left out, exchanged, or repeated."""
    try:
        root = [json.loads(data)]
    except ValueError:
        return damaged_bytes(data, chance)
    for _ in range(chance.choice([1, 1, 1, 2])):
        places = list(_places(root))
        above, key = chance.choice(places)
        if isinstance(above[key], str) and above[key][:1] in ("{", "[") and chance.random() < 0.7:
            above[key] = damaged_json(above[key].encode(), chance).decode(errors="replace")  # JSON in JSON
            continue
        match chance.randrange(6):
            case 0 | 1 | 2:
                above[key] = _forged(above[key], chance)
            case 3 if above is not root:
                del above[key]
            case 4:
                there, other = chance.choice(places)
                above[key], there[other] = copy.deepcopy(there[other]), copy.deepcopy(above[key])
            case 5 if isinstance(above, list) and above is not root:
                above.extend(copy.deepcopy(above[key]) for _ in range(chance.choice([1, 3, 40])))
            case _ if isinstance(above, dict):
                above[chance.choice(["x", "", "compression", "encryption", "hashes", "format"])] = _forged(0, chance)
    return json.dumps(root[0]).encode()


def _forged(value: Any, chance: random.Random) -> Any:
    if isinstance(value, int) and chance.random() < 0.5:
        return value + chance.choice([-1, 1, 4, -value, value, 1 << 20])
    if isinstance(value, str) and value and chance.random() < 0.5:
        at = chance.randrange(len(value))
        return value[:at] + chance.choice(["", "x", "9", ":", "/", "99999999999"]) + value[at + 1 :]
    return copy.deepcopy(chance.choice(FORGED))


def _places(node: Any) -> Any:
    """Every value as its container and key."""
    stack = [node]
    while stack:
        above = stack.pop()
        for key, value in list(above.items() if isinstance(above, dict) else enumerate(above)):
            yield above, key
            if isinstance(value, dict | list):
                stack.append(value)
