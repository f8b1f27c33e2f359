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


def leaf_operation(tag: str, *, allow_pickle: bool, serializers: Mapping[str, Any] | None = None) -> Operation:
    """The decode operation of a tag, as :class:`~lazystore._core.decode.DecodePlan` takes it.

    Parameters:
        tag: one entry of ``data_format``.
        allow_pickle: leaves that need unpickling may be unpickled.
        serializers: the user's own, by tag: objects with ``deserialize(bytes)``, or functions; tried first.

    Raises:
        FormatError: nobody knows the tag.
        UnsupportedError: known to LitData, not readable by this version.
    """
    name, _, detail = tag.partition(":")
    for key in (tag, detail, name):
        if serializers and key and key in serializers:
            serializer = serializers[key]
            return "call", getattr(serializer, "deserialize", serializer)
    if tag in _DIRECT:
        return _DIRECT[tag]
    if name == "no_header_numpy":
        return _numpy_1d(tag, detail)
    if name == "no_header_tensor":
        return "call", _torch_1d(tag, detail)
    if name == "tensor":
        return "call", TensorDecoder()
    if "pickle" in (name, detail):
        return "none_or_call", _load_pickle if allow_pickle else _refuse_pickle
    if name == "jpeg_array":
        return "call", decode_jpeg_array
    if name == "pil":
        return "call", decode_pil
    if name == "image" or "jpeg" in (name, detail):
        return "call", decode_image
    if name in _FILES:
        return "bytes", None
    if name in ("json", "graph"):
        raise UnsupportedError(f"leaf encoding {tag!r} is not read by this version of lazystore")
    raise FormatError(
        f"leaf encoding {tag!r} is unknown; if it is your own, "
        f"pass serializers={{{tag!r}: object with deserialize(bytes)}}"
    )


def _dtype_index(tag: str, detail: str, count: int) -> int:
    if not (detail.isascii() and detail.isdigit() and len(detail) <= 3) or int(detail) >= count:
        raise FormatError(f"leaf encoding {tag!r} names no dtype between 0 and {count - 1}")
    return int(detail)


def _numpy_1d(tag: str, detail: str) -> Operation:
    index = _dtype_index(tag, detail, 18)
    if index >= len(NUMPY_ITEM_BYTES):
        raise UnsafeDataError(f"leaf encoding {tag!r} is an object, string or void array; it cannot be read safely")
    return "array", index


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


def decode_jpeg_array(data: bytes) -> list[Any]:
    """Several JPEG files, ``u32 n | u32 size[n] | files``, as a list of images (of bytes without pillow)."""
    n = struct.unpack_from("<I", data)[0] if len(data) >= 4 else 0
    if len(data) < 4 + 4 * n:
        raise FormatError(f"a list of images in {len(data)} bytes cannot hold {n} sizes")
    sizes = struct.unpack_from(f"<{n}I", data, 4)
    at = 4 + 4 * n
    if at + sum(sizes) != len(data):
        raise FormatError(f"the sizes of {n} images do not add up to the leaf's {len(data)} bytes")
    images = []
    for size in sizes:
        images.append(decode_image(data[at : at + size]))
        at += size
    return images
