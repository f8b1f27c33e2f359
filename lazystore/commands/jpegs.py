"""JPEG leaves that are written again as they were stored: decoding and compressing them once more would lose something.

Decoders for ``serializers=``, used by ``convert`` alone. Without pillow the leaves are bytes, which keep by themselves.
"""

from __future__ import annotations

import io
from functools import cache
from typing import TYPE_CHECKING, Any

from lazystore.errors import FormatError
from lazystore.formats.leaves import decode_jpeg_array

if TYPE_CHECKING:
    from lazystore import StreamingDataset

__all__ = ["KEEPING_JPEGS", "holds_jpegs"]


def holds_jpegs(dataset: StreamingDataset) -> bool:
    """Whether some of its leaves are JPEG files, and there is something to decode them."""
    from lazystore.commands.layout import layout_of

    layout = layout_of(dataset)
    if layout.opened.format not in ("litdata", "mds") or not any("jpeg" in str(leaf) for leaf in layout.schema.items()):
        return False
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        return False
    return True


@cache
def _stored_jpeg() -> Any:
    from PIL import JpegImagePlugin

    class StoredJpeg(JpegImagePlugin.JpegImageFile):  # type: ignore[misc]
        """An image that is saved as the bytes it was opened from."""

        def __init__(self, data: bytes) -> None:
            super().__init__(io.BytesIO(data))
            self._stored = data

        def save(self, fp: Any, *_: Any, **__: Any) -> None:
            fp.write(self._stored)

    return StoredJpeg


def _image(data: bytes) -> Any:
    try:
        return _stored_jpeg()(data)
    except (OSError, SyntaxError, ValueError) as error:
        raise FormatError(f"a JPEG leaf of {len(data)} bytes cannot be opened: {error}") from None


def _images(data: bytes) -> list[Any]:
    return decode_jpeg_array(data, _image)


#: By the leaf's tag.
KEEPING_JPEGS = {"jpeg": _image, "jpeg_array": _images}
