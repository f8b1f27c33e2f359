"""What a leaf's tag means: LitData's serializer names to operations of the decode plan.

Tags come from ``data_format`` in index.json (``"str"``, ``"no_header_numpy:9"``, ``"image:png"``).
The fast ones are C operations; the rest are functions of the leaf's bytes, kept here.
"""

from __future__ import annotations

import math
import pickle
import struct
from collections.abc import Callable, Mapping
from typing import Any

from lazystore.errors import FormatError, MissingExtraError, UnsafeDataError, UnsupportedError
from lazystore.formats.json_leaf import decode_json_leaf

__all__ = ["LeafFunction", "leaf_operation"]

LeafFunction = Callable[[bytes], Any]
Operation = tuple[str, Any]

#: LitData's torch dtype table; both aliases of a dtype occur in the wild.
TORCH_DTYPES = (
    "float32", "float32", "float64", "float64", "complex64", "complex64", "complex128", "complex128",
    "float16", "float16", "bfloat16", "uint8", "int8", "int16", "int16", "int32", "int32", "int64",
    "int64", "bool", "uint16",
)  # fmt: skip
TORCH_ITEM_BYTES = {
    "float32": 4, "float64": 8, "complex64": 8, "complex128": 16, "float16": 2, "bfloat16": 2, "uint8": 1,
    "int8": 1, "int16": 2, "int32": 4, "int64": 8, "bool": 1, "uint16": 2,
}  # fmt: skip
#: Bytes an element of the numpy dtypes that have a fixed size and no Python objects, by LitData's index:
#: i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 c8 c16 bool. Higher indexes are objects, strings and void.
NUMPY_ITEM_BYTES = (1, 2, 4, 8, 1, 2, 4, 8, 2, 4, 8, 8, 16, 1)
#: LitData until ~0.2.6 numbered from 11 on: f16 c8 c16 c32 bool. The size of its elements tells which numbering an
#: array with a header follows.
LAST_SURE_DTYPE = 10
_OLD_DTYPES = {(11, 16): "longdouble", (12, 8): "c8", (13, 16): "c16", (14, 32): "clongdouble", (15, 1): "?"}
MAX_RANK = 64

_DIRECT: dict[str, Operation] = {
    "str": ("str", None),
    "text": ("str", None),
    "bytes": ("bytes", None),
    "int": ("int", None),
    "float": ("float", None),
    "bool": ("bool", None),
    "numpy": ("ndarray", None),
}
#: Media whose stored file bytes are handed out as they are.
_FILES = {"video", "audio", "nifti", "mesh", "pdf", "tifffile", "tiff", "tif", "file"}
#: LitData's own serializers: of a tag ``a:b``, ``b`` is the one that decodes when it is among them, else ``a``.
_NAMES = {
    "str", "text", "bool", "int", "float", "video", "audio", "image", "nifti", "mesh", "pdf", "graph", "tifffile",
    "file", "pil", "jpeg", "jpeg_array", "bytes", "no_header_numpy", "numpy", "no_header_tensor", "tensor", "json",
    "pickle",
}  # fmt: skip


def leaf_operation(
    tag: str, *, allow_pickle: bool, serializers: Mapping[str, Any] | None = None, old: bool = False
) -> Operation:
    """The decode operation of a tag, as :class:`~lazystore._core.decode.DecodePlan` takes it.

    Parameters:
        tag: one entry of ``data_format``.
        allow_pickle: leaves that need unpickling may be unpickled.
        serializers: the user's own, by tag: objects with ``deserialize(bytes)``, or functions; tried first.
        old: written when LitData numbered numpy's dtypes beyond 10 otherwise, or perhaps not.

    Raises:
        FormatError: nobody knows the tag.
        UnsafeDataError: arrays of Python objects.
        UnsupportedError: what the bytes are cannot be known.
    """
    name, _, detail = tag.partition(":")
    for key in (tag, detail, name):
        if serializers and key and key in serializers:
            serializer = serializers[key]
            return "call", getattr(serializer, "deserialize", serializer)
    if name == "no_header_numpy":
        return _numpy_1d(tag, detail, old)
    if name == "no_header_tensor":
        return "call", _torch_1d(tag, detail)
    if detail in _NAMES:
        name = detail
    elif detail and name in _DIRECT:
        name = ""  # these have no variants
    operation = _operation(name, allow_pickle, old)
    if operation is None:
        raise FormatError(
            f"leaf encoding {tag!r} is unknown; if it is your own, "
            f"pass serializers={{{tag!r}: object with deserialize(bytes)}}"
        )
    return operation


def _operation(name: str, allow_pickle: bool, old: bool) -> Operation | None:
    """By the serializer's name; None is "no such serializer"."""
    if name == "numpy" and old:
        return "call", decode_old_array
    if name in _DIRECT:
        return _DIRECT[name]
    if name in _FILES:
        return "bytes", None
    if name == "tensor":
        return "call", TensorDecoder()
    if name == "pickle":
        return "none_or_call", _load_pickle if allow_pickle else _refuse_pickle
    if name == "graph":
        return "call", decode_graph if allow_pickle else _refuse_pickle
    function = _FUNCTIONS.get(name)
    return None if function is None else ("call", function)


def _dtype_index(tag: str, detail: str, count: int) -> int:
    if not (detail.isascii() and detail.isdigit() and len(detail) <= 3) or int(detail) >= count:
        raise FormatError(f"leaf encoding {tag!r} names no dtype between 0 and {count - 1}")
    return int(detail)


def _numpy_1d(tag: str, detail: str, old: bool) -> Operation:
    index = _dtype_index(tag, detail, 18)
    if old and index > LAST_SURE_DTYPE:
        raise UnsupportedError(
            f"leaf encoding {tag!r} of a dataset from before July 2024 stands for one of two dtypes, and the bytes do "
            f"not say which; pass serializers={{{tag!r}: lambda data: numpy.frombuffer(data, YOUR_DTYPE)}}"
        )
    if index >= len(NUMPY_ITEM_BYTES):
        raise UnsafeDataError(f"leaf encoding {tag!r} is an object, string or void array; it cannot be read safely")
    return "array", index


def decode_old_array(data: bytes) -> Any:
    """The ``numpy`` leaf of a dataset whose dtype numbers are uncertain: ``u32 dtype | u32 rank | u32 dims | data``."""
    import numpy as np

    from lazystore._core.decode import DecodePlan

    if len(data) >= 8:
        index, rank = struct.unpack_from("<II", data)
        if index > LAST_SURE_DTYPE and rank <= MAX_RANK and len(data) >= 8 + 4 * rank:
            shape = struct.unpack_from(f"<{rank}I", data, 8)
            count, stored = math.prod(shape), len(data) - 8 - 4 * rank
            name = _OLD_DTYPES.get((index, stored // count)) if count and stored % count == 0 else None
            if name is not None and np.dtype(name).itemsize * count == stored:
                return np.frombuffer(bytearray(data[-stored:]), name).reshape(shape)
    return DecodePlan([("ndarray", None)], [("leaf",)], names=["numpy"], headless=True)(data)


def _load_pickle(data: bytes) -> Any:
    try:
        return pickle.loads(data)
    except Exception as error:
        raise FormatError(f"a pickle leaf of {len(data)} bytes cannot be loaded: {error!r}") from error


def _refuse_pickle(data: bytes) -> Any:
    raise UnsafeDataError(
        f"a pickle leaf of {len(data)} bytes; unpickling runs code from the dataset: "
        "pass allow_pickle=True if you trust whoever wrote it"
    )


# -- torch ----------------------------------------------------------------------------------


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise MissingExtraError("the dataset holds torch tensors; pip install lazystore[torch]") from None
    return torch


def _tensor(data: bytes | memoryview, dtype: Any, shape: tuple[int, ...]) -> Any:
    """A tensor that owns a writable copy of its bytes."""
    torch = _torch()
    if not len(data):
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)


def _torch_1d(tag: str, detail: str) -> LeafFunction:
    name = TORCH_DTYPES[_dtype_index(tag, detail, len(TORCH_DTYPES))]

    def decode(data: bytes) -> Any:
        dtype = getattr(_torch(), name)
        if len(data) % dtype.itemsize:
            raise FormatError(f"{len(data)} bytes are not a whole number of {name} elements")
        return _tensor(data, dtype, (len(data) // dtype.itemsize,))

    return decode


class TensorDecoder:
    """The ``tensor`` leaf: ``u32 dtype | u32 rank | u32 dims[rank] | data``.

    The header is big-endian since LitData 0.2.57 and was little-endian before; the index does
    not say which. Of the two readings at most one fits the leaf's length, but for index 0 and
    rank 0, where they agree; the byte order found first is tried first from then on.
    """

    def __init__(self) -> None:
        self._order = ">"

    def __call__(self, data: bytes) -> Any:
        for order in (self._order, "<" if self._order == ">" else ">"):
            header = self._header(data, order)
            if header is not None:
                self._order = order
                dtype, shape = header
                return _tensor(memoryview(data)[8 + 4 * len(shape) :], dtype, shape)
        raise FormatError(f"a tensor leaf of {len(data)} bytes has no header that fits its length")

    def _header(self, data: bytes, order: str) -> tuple[Any, tuple[int, ...]] | None:
        """Dtype and shape if this byte order makes sense of the leaf; None is "not this order"."""
        if len(data) < 8:
            return None
        index, rank = struct.unpack_from(order + "II", data)
        if index >= len(TORCH_DTYPES) or rank > MAX_RANK or len(data) < 8 + 4 * rank:
            return None
        shape = struct.unpack_from(f"{order}{rank}I", data, 8)
        dtype = getattr(_torch(), TORCH_DTYPES[index])
        count = math.prod(shape)
        if 8 + 4 * rank + count * dtype.itemsize != len(data):
            return None
        # An empty tensor may claim any other dimensions; torch cannot count strides beyond 63 bits.
        extent = math.prod(dim for dim in shape if dim)
        return (dtype, shape) if extent < 1 << 59 else None


# -- graphs ---------------------------------------------------------------------------------


def decode_graph(data: bytes) -> Any:
    """A packed graph, see :mod:`lazystore.formats.graph_leaf`; unpickles what describes it."""
    from lazystore.formats.graph_leaf import unpack_graph

    return unpack_graph(data, tensor=TensorDecoder(), load=_load_pickle)


# -- images ---------------------------------------------------------------------------------


def _pillow() -> Any:
    """PIL.Image, or False when pillow is not installed: images then stay bytes, as documented."""
    try:
        from PIL import Image
    except ImportError:
        return False
    return Image


def decode_image(data: bytes) -> Any:
    """An encoded image file as a PIL image (pillow's own size limits apply); its bytes without pillow."""
    image = _pillow()
    if not image:
        return data
    import io

    try:
        opened = image.open(io.BytesIO(data))
        opened.load()
    except (OSError, ValueError, SyntaxError, image.DecompressionBombError) as error:
        raise FormatError(f"an image leaf of {len(data)} bytes cannot be decoded: {error}") from error
    return opened


#: Bytes a pixel of pillow's modes; mode "1" packs eight.
_PIXEL_BYTES = {
    "L": 1, "P": 1, "LA": 2, "PA": 2, "La": 2, "I;16": 2, "I;16L": 2, "I;16B": 2, "RGB": 3, "YCbCr": 3, "LAB": 3,
    "HSV": 3, "RGBA": 4, "RGBa": 4, "RGBX": 4, "CMYK": 4, "I": 4, "F": 4,
}  # fmt: skip


def _raw_size(mode: str, width: int, height: int) -> int:
    """Bytes the pixels must have, known before pillow allocates what the header claims."""
    return (width + 7) // 8 * height if mode == "1" else _PIXEL_BYTES[mode] * width * height


def decode_pil(data: bytes) -> Any:
    """A raw image, ``u32 width | u32 height | u32 n | mode[n] | pixels``; its bytes without pillow."""
    image = _pillow()
    if not image:
        return data
    if len(data) < 12:
        raise FormatError(f"a raw image leaf of {len(data)} bytes has no header")
    width, height, n = struct.unpack_from("<III", data)
    try:
        mode = data[12 : 12 + n].decode("ascii")
        if _raw_size(mode, width, height) != len(data) - 12 - n:
            raise FormatError(f"a raw {mode} image of {width} x {height} pixels has {len(data) - 12 - n} bytes")
        return image.frombytes(mode, (width, height), data[12 + n :])
    except FormatError:
        raise
    except (ValueError, KeyError, OverflowError) as error:
        raise FormatError(f"a raw image leaf of {len(data)} bytes is not {width} x {height} pixels: {error}") from error


def decode_jpeg_array(data: bytes, decode: LeafFunction = decode_image) -> list[Any]:
    """Several JPEG files, ``u32 n | u32 size[n] | files``, as a list of what ``decode`` makes of each file: images
    (bytes without pillow).
    """
    n = struct.unpack_from("<I", data)[0] if len(data) >= 4 else 0
    if len(data) < 4 + 4 * n:
        raise FormatError(f"a list of images in {len(data)} bytes cannot hold {n} sizes")
    sizes = struct.unpack_from(f"<{n}I", data, 4)
    at = 4 + 4 * n
    if at + sum(sizes) != len(data):
        raise FormatError(f"the sizes of {n} images do not add up to the leaf's {len(data)} bytes")
    images = []
    for size in sizes:
        images.append(decode(data[at : at + size]))
        at += size
    return images


_FUNCTIONS: dict[str, LeafFunction] = {
    "json": decode_json_leaf,
    "jpeg_array": decode_jpeg_array,
    "pil": decode_pil,
    "image": decode_image,
    "jpeg": decode_image,
}
