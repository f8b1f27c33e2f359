"""Leaves of samples to bytes: which of LitData's encodings a value gets, and what it looks like there.

Decoding is ``leaves``' and the Cython core's; the containers round the leaves are ``sample_encoder``'s.
numpy, torch and pillow are used only where a value of theirs is in hand.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import sys
from typing import Any

__all__ = ["PICKLED_NONE", "WRITABLE", "MisfitError", "describe", "is_jpegs", "leaf_bytes", "leaf_tag"]

#: None has no encoding of its own in the format: it is this pickle, which readers know by its bytes.
PICKLED_NONE = b"\x80\x04N."

#: numpy's array protocol type string without byte order -> dtype index; sized strings, datetimes and
#: records have no index, and objects (14) would need pickle.
NUMPY_DTYPES = {
    **{f"i{size}": index for index, size in enumerate((1, 2, 4, 8))},
    **{f"u{size}": 4 + index for index, size in enumerate((1, 2, 4, 8))},
    "f2": 8,
    "f4": 9,
    "f8": 10,
    "c8": 11,
    "c16": 12,
    "b1": 13,
}

#: torch dtype -> the index LitData's own writer gives it.
TORCH_DTYPES = {
    "float32": 1, "float64": 3, "complex64": 5, "complex128": 7, "float16": 9, "bfloat16": 10, "uint8": 11,
    "int8": 12, "int16": 14, "int32": 16, "int64": 18, "bool": 19, "uint16": 20,
}  # fmt: skip

#: pillow's modes whose pixels say all there is; palettes are not kept by the format.
PIL_MODES = frozenset({"1", "L", "LA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16"})

WRITABLE = (
    "str, bytes, bool, int, float, None, numpy arrays, torch tensors and images, in dicts, OrderedDicts, lists and "
    "tuples"
)

_INT64 = struct.Struct("<q")
_FLOAT64 = struct.Struct("<d")


class MisfitError(Exception):
    """Something in a sample cannot be written; ``path`` grows from the leaf outwards."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.path: list[object] = []


def describe(value: object) -> str:
    """A value's kind, for messages."""
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return "None" if value is None else f"a value of type {name}"


def leaf_tag(value: object, *, allow_pickle: bool = False) -> str:
    """The encoding for a leaf; bool goes before int, whose subclass it is.

    Raises:
        MisfitError: the format has none, but for pickle, and that was not allowed.
    """
    if isinstance(value, str):
        return "str"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int"
    if isinstance(value, float):
        return "float"
    if isinstance(value, bytes):
        return "bytes"
    if value is None:
        return "pickle"
    try:
        tag = _typed_tag(value)
    except MisfitError:
        if allow_pickle:
            return "pickle"
        raise
    if tag:
        return tag
    if allow_pickle:
        return "pickle"
    raise MisfitError(
        f"{describe(value)} cannot be written; samples are made of {WRITABLE} (allow_pickle=True pickles it)"
    )


def _typed_tag(value: Any) -> str:
    """The encoding of a value of another package's; "" when it is of none. One in hand means it is loaded."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray):
        return _numpy_tag(value)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _torch_tag(value)
    image = sys.modules.get("PIL.Image")
    if image is not None and isinstance(value, image.Image):
        return _image_tag(value)
    return "jpeg_array" if is_jpegs(value) else ""


def _numpy_tag(array: Any) -> str:
    index = NUMPY_DTYPES.get(array.dtype.str[1:])
    if index is None:
        raise MisfitError(f"an array of dtype {array.dtype}; the format keeps bool, integers, floats and complex")
    if hasattr(array, "mask"):
        raise MisfitError("a masked array, whose mask the format cannot keep; fill it first")
    if array.ndim == 0:
        raise MisfitError("a 0-dimensional array; write array.item(), or array.reshape(1)")
    return "numpy" if array.ndim > 1 else f"no_header_numpy:{index}"


def _torch_tag(tensor: Any) -> str:
    index = TORCH_DTYPES.get(str(tensor.dtype).removeprefix("torch."))
    if index is None:
        raise MisfitError(f"a tensor of dtype {tensor.dtype}, which the format does not have")
    if str(tensor.layout) != "torch.strided":
        raise MisfitError("a sparse tensor; write tensor.to_dense(), or its parts")
    return "tensor" if tensor.ndim != 1 else f"no_header_tensor:{index}"


def _is_jpeg(value: object) -> bool:
    # by name: pillow loads the module of a kind of file with the first file of that kind
    plugin = sys.modules.get("PIL.JpegImagePlugin")
    return plugin is not None and isinstance(value, plugin.JpegImageFile)


def _image_tag(image: Any) -> str:
    if _is_jpeg(image):
        return "jpeg"
    if image.mode not in PIL_MODES:
        raise MisfitError(f"an image of mode {image.mode}, which the format cannot keep; write image.convert('RGB')")
    return "pil"


def is_jpegs(value: object) -> bool:
    """Whether this is a list or tuple of opened JPEG files: one leaf, not a container."""
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(map(_is_jpeg, value))


def leaf_bytes(tag: str, value: Any) -> bytes:
    """A leaf of this encoding.

    Raises:
        MisfitError: the value is none the encoding can hold.
    """
    if tag == "str":
        try:
            return bytes(value.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise MisfitError(f"text that UTF-8 cannot hold ({error.reason} at {error.start})") from None
    if tag == "int":
        try:
            return _INT64.pack(value)
        except struct.error:
            raise MisfitError(f"the int {value} needs more than 64 bits; write it as a str") from None
    if tag == "float":
        return _FLOAT64.pack(value)
    if tag == "bytes":
        return bytes(value)
    if tag == "bool":
        return b"\x01" if value else b"\x00"
    if tag == "pickle":
        return PICKLED_NONE if value is None else _pickled(value)
    if tag in ("pil", "jpeg", "jpeg_array"):
        return _image_bytes(tag, value)
    return _tensor_bytes(tag, value) if "tensor" in tag else _array_bytes(tag, value)


def _pickled(value: object) -> bytes:
    try:
        return pickle.dumps(value, protocol=4)  # one that every Python since 3.4 reads
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise MisfitError(f"{describe(value)}, which cannot be pickled: {error}") from error


def _array_bytes(tag: str, array: Any) -> bytes:
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    data: bytes = little.tobytes("C")
    if tag != "numpy":
        return data
    index = NUMPY_DTYPES[array.dtype.str[1:]]
    return struct.pack(f"<2I{array.ndim}I", index, array.ndim, *array.shape) + data


def _tensor_bytes(tag: str, tensor: Any) -> bytes:
    """The header of an n-dimensional tensor is big-endian, unlike everything else."""
    torch = sys.modules["torch"]
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    # numpy has no bfloat16; the bytes of a tensor are the same under any dtype
    data = bytes(plain.reshape(-1).view(torch.uint8).numpy().tobytes()) if plain.numel() else b""
    if tag != "tensor":
        return data
    index = TORCH_DTYPES[str(tensor.dtype).removeprefix("torch.")]
    return struct.pack(f">2I{tensor.ndim}I", index, tensor.ndim, *tensor.shape) + data


def _image_bytes(tag: str, value: Any) -> bytes:
    try:
        if tag == "pil":
            mode: bytes = value.mode.encode("ascii")
            return struct.pack("<3I", *value.size, len(mode)) + mode + bytes(value.tobytes())
        if tag == "jpeg":
            return _jpeg_bytes(value)
        files = [_jpeg_bytes(image) for image in value]
    except (OSError, SyntaxError, ValueError) as error:
        raise MisfitError(f"an image that cannot be read: {error}") from error
    return struct.pack(f"<{len(files) + 1}I", len(files), *map(len, files)) + b"".join(files)


def _jpeg_bytes(image: Any) -> bytes:
    """The file the image was opened from, else the image compressed again with the file's own tables."""
    if image.filename and os.path.isfile(image.filename):
        with open(image.filename, "rb") as file:
            return file.read()
    out = io.BytesIO()
    image.save(out, format="JPEG", quality="keep")
    return out.getvalue()
