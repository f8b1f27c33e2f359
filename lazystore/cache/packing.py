"""Values to bytes for the disk tier and back: equal, and of the same types; compressed where that pays.

Bytes-like objects come back as bytes; str, ndarrays and trees of plain values (None, bool, int, float, str, bytes,
list, tuple, dict, ndarrays inside) as they were. Anything else needs pickle, which must have been asked for by name.
Where the bytes lie is for ``disk.py``; how trees are written for ``_core/tree``.
"""

from __future__ import annotations

import ast
import functools
import json
import re
import struct
import sys
import threading
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lazystore._core.noise import is_noise
from lazystore._core.tree import decode, encode
from lazystore.errors import ConfigError, FormatError, LazyStoreError, MissingExtraError, UnsafeDataError
from lazystore.formats.compression import inflate_frame

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Codec", "Unpackable", "is_pickle", "pack", "saved_bytes", "unpack"]

#: What a payload is: the low four bits of a record's kind. The bits above say how it is compressed.
BYTES, TEXT, TREE, ARRAY, PICKLE = 1, 2, 3, 4, 5
RAW, ZLIB, ZSTD = 0, 1 << 4, 2 << 4
SHAPE_BITS = 15
#: Shorter payloads are not worth a try, and compressed ones must be so much smaller.
MIN_COMPRESSED = 256
WORTH = 0.9
#: Bytes a payload may inflate to, whatever it says.
MAX_INFLATED = 1 << 32
ZSTD_LEVEL, ZLIB_LEVEL = 1, 1
_SIZE = struct.Struct("<Q")
_ARRAY_HEAD = struct.Struct("<I")
_CODEC = re.compile(r"auto|none|zlib|zstd(?::([1-9]|1[0-9]|2[0-2]))?")

_mine = threading.local()


class Unpackable(LazyStoreError, TypeError):
    """A value that nothing but pickle can carry, and pickle was not allowed."""


class Codec:
    """How payloads are compressed.

    Parameters:
        name: ``"auto"``, ``"zstd"``, ``"zstd:N"`` (level 1 to 22), ``"zlib"`` or ``"none"``.

    Raises:
        ConfigError: another name.
        MissingExtraError: zstd without a package for it.

    Threads: any; each has compressors of its own. Pickles.
    """

    def __init__(self, name: str = "auto") -> None:
        found = _CODEC.fullmatch(name) if isinstance(name, str) else None
        if found is None:
            raise ConfigError(f"codec={name!r} is not one of 'auto', 'zstd', 'zstd:1' to 'zstd:22', 'zlib', 'none'")
        self.name = name
        self.level = int(found[1] or ZSTD_LEVEL)
        self.flag = RAW
        if name == "zlib":
            self.flag = ZLIB
        elif name != "none":
            self.flag = ZSTD if has_zstd() else ZLIB
            if self.flag == ZLIB and name != "auto":
                raise MissingExtraError(f"codec={name!r} needs the zstandard package: pip install lazystore[zstd]")

    def compress(self, data: bytes | memoryview) -> bytes:
        """The compressed bytes, worth it or not."""
        return zlib.compress(data, ZLIB_LEVEL) if self.flag == ZLIB else _deflate_zstd(data, self.level)

    def __repr__(self) -> str:
        return f"Codec({self.name!r})"


@functools.cache
def _codec(name: str) -> Codec:
    return Codec(name)


def pack(value: object, codec: Codec | str = "auto", allow_pickle: bool = False) -> tuple[int, list[Buffer]]:
    """A value as a kind and the buffers of its payload; large ones are not copied unless they are compressed.

    Raises:
        Unpackable: it cannot be carried.
        ConfigError, MissingExtraError: as :class:`Codec` has it.
    """
    codec = codec if isinstance(codec, Codec) else _codec(codec)
    shape, buffers = _shaped(value, allow_pickle)
    if codec.flag == RAW:
        return shape, buffers
    size = sum(memoryview(part).nbytes for part in buffers)
    if size < MIN_COMPRESSED:
        return shape, buffers
    whole = memoryview(buffers[0]).cast("B") if len(buffers) == 1 else memoryview(b"".join(buffers))
    if is_noise(whole):
        return shape, buffers
    small = codec.compress(whole)
    if len(small) + _SIZE.size > WORTH * size:
        return shape, buffers
    return shape | codec.flag, [_SIZE.pack(size), small]


def unpack(kind: int, payload: bytes, *, allow_pickle: bool = False, limit: int = MAX_INFLATED) -> Any:
    """The value of a kind and its payload.

    Parameters:
        limit: bytes a compressed payload may inflate to.

    Raises:
        FormatError: the payload is damaged, or of a kind that this version does not know.
        UnsafeDataError: a pickle, which was not allowed.
    """
    if kind == BYTES:
        return payload
    shape = kind & SHAPE_BITS
    if shape == PICKLE and not allow_pickle:
        raise UnsafeDataError("a stored value is a pickle; reading it needs allow_pickle=True")
    if kind != shape:
        payload = _inflated(kind - shape, payload, limit)
    if shape == BYTES:
        return payload
    if shape == TEXT:
        return _text(payload)
    if shape == TREE:
        return decode(payload, _array)
    if shape == ARRAY:
        return _array(payload)
    if shape == PICKLE:
        import pickle

        return pickle.loads(payload)
    raise FormatError(f"a stored value has the unknown kind {kind}")


def is_pickle(kind: int) -> bool:
    """Whether a record's kind is that of pickles."""
    return kind & SHAPE_BITS == PICKLE


def saved_bytes(kind: int, buffers: Sequence[Buffer]) -> int:
    """Bytes that compression made a packed value smaller by."""
    if kind & ~SHAPE_BITS not in (ZLIB, ZSTD) or memoryview(buffers[0]).nbytes != _SIZE.size:
        return 0
    return int(_SIZE.unpack_from(buffers[0])[0]) - sum(memoryview(part).nbytes for part in buffers)


def _shaped(value: object, allow_pickle: bool) -> tuple[int, list[Buffer]]:
    if isinstance(value, bytes) and type(value) is bytes:
        return BYTES, [value]
    if isinstance(value, str) and type(value) is str:
        return TEXT, [value.encode("utf-8", "surrogatepass")]
    if isinstance(value, (bytearray, memoryview)):
        return BYTES, [value if memoryview(value).c_contiguous else bytes(value)]
    try:
        if _is_array(value):
            return ARRAY, _array_parts(value)
        return TREE, [encode(value, _leaf)]
    except TypeError as error:
        if not allow_pickle:
            raise Unpackable(
                f"a {type(value).__name__} cannot be stored on disk ({error}); "
                "give plain values, or allow_pickle=True for folders that only you can write to"
            ) from None
    import pickle

    try:
        return PICKLE, [pickle.dumps(value, protocol=5)]
    except Exception as error:  # whatever a value's own __reduce__ raises
        raise Unpackable(f"a {type(value).__name__} cannot be pickled: {error}") from error


# --- arrays ---


def _is_array(value: object) -> bool:
    numpy = sys.modules.get("numpy")  # without it there are none
    return numpy is not None and type(value) is numpy.ndarray


def _leaf(value: object) -> bytes:
    if not _is_array(value):
        raise TypeError(f"it holds a {type(value).__name__}")
    return b"".join(_array_parts(value))


def _array_parts(array: Any) -> list[Buffer]:
    """Head and data of an ndarray; dtypes that do not come back from their description are refused."""
    import numpy

    dtype = array.dtype
    if dtype.hasobject:
        raise TypeError("it is an array of objects")
    described = repr(dtype.descr) if dtype.names else dtype.str
    try:
        same = _dtype(described) == dtype and not dtype.metadata
    except (TypeError, ValueError, SyntaxError):
        same = False
    if not same:
        raise TypeError(f"it is an array of dtype {dtype}")
    fortran = array.flags.f_contiguous and not array.flags.c_contiguous
    head = json.dumps([described, array.shape, "F" if fortran else "C", bool(array.flags.writeable)]).encode()
    data = numpy.ascontiguousarray(array.T if fortran else array)
    return [_ARRAY_HEAD.pack(len(head)) + head, data.reshape(-1).view("u1").data if data.size else b""]


def _dtype(described: str) -> Any:
    import numpy

    return numpy.dtype(ast.literal_eval(described) if described.startswith("[") else described)


def _array(payload: bytes) -> Any:
    import numpy

    try:
        (n,) = _ARRAY_HEAD.unpack_from(payload)
        described, shape, order, writeable = json.loads(payload[4 : 4 + n])
        dtype = _dtype(described)
        if dtype.hasobject:
            raise ValueError("it has objects")
        flat = numpy.frombuffer(payload, dtype, offset=4 + n) if len(payload) > 4 + n else numpy.empty(0, dtype)
        array = flat.reshape(shape, order=order)
    except (ValueError, TypeError, SyntaxError, struct.error) as error:
        raise FormatError(f"a stored array cannot be read ({error}); it is damaged") from None
    return array.copy(order) if writeable else array  # as it was put: the payload itself cannot be written to


def _text(payload: bytes) -> str:
    try:
        return payload.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise FormatError(f"a stored str is no UTF-8 ({error}); it is damaged") from None


# --- compression ---


def has_zstd() -> bool:
    """Whether zstd can be used: Python's own from 3.14 on, else the package."""
    try:
        _zstd()
    except ImportError:
        return False
    return True


def _zstd() -> Any:
    if sys.version_info >= (3, 14):
        from compression import zstd

        return zstd
    import zstandard

    return zstandard


def _deflate_zstd(data: bytes | memoryview, level: int) -> bytes:
    if sys.version_info >= (3, 14):
        return bytes(_zstd().compress(data, level))
    found: tuple[int, Callable[[bytes | memoryview], bytes]] | None = getattr(_mine, "compress", None)
    if found is None or found[0] != level:  # a compressor is for one thread at a time, and costly to make
        found = _mine.compress = (level, _zstd().ZstdCompressor(level=level).compress)
    return found[1](data)


def _inflated(flag: int, payload: bytes, limit: int) -> bytes:
    """Undo a codec; never more bytes than the payload says, nor than are allowed."""
    if len(payload) < _SIZE.size:
        raise FormatError("a compressed value has no size; it is damaged")
    (size,) = _SIZE.unpack_from(payload)
    if size > limit:
        raise FormatError(f"a stored value inflates to {size} bytes; {limit} are allowed")
    body = memoryview(payload)[_SIZE.size :]
    try:
        data = _undone(flag, body, size)
    except (zlib.error, EOFError, ImportError) as error:
        raise FormatError(f"a stored value cannot be inflated: {error}") from None
    if len(data) != size:
        raise FormatError(f"a stored value inflates to {len(data)} bytes and says {size}; it is damaged")
    return data


def _undone(flag: int, body: memoryview, size: int) -> bytes:
    if flag == ZLIB:
        return zlib.decompressobj().decompress(body, size + 1)
    if flag != ZSTD:
        raise FormatError(f"a stored value is compressed in the unknown way {flag >> 4}")
    if sys.version_info < (3, 14):
        return inflate_frame(body, size=size, limit=size)
    zstd = _zstd()
    try:
        return bytes(zstd.ZstdDecompressor().decompress(body, max_length=size + 1))
    except zstd.ZstdError as error:
        raise FormatError(f"a stored value cannot be inflated: {error}; it is damaged") from None
