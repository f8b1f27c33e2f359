"""Zstd: what frames say about themselves, and frames of some items inflated in bounded memory.

Only decompression. Chunks that are compressed as a whole are streams (``stream_codecs.py``), compressed texts too
(``text_inflate.py``).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from lazystore.errors import FormatError, MissingExtraError, UnsupportedError

__all__ = [
    "ByteStream",
    "ZstdHeader",
    "inflate_frame",
    "is_zstd",
    "item_inflater",
    "read_header",
    "require_codec",
    "require_zstandard",
]

#: Compressed bytes inflated at a time: the GIL is let go of meanwhile, and had again afterwards.
READ_BYTES = 512 * 1024
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
#: History that frames made by streaming may ask for, however short they are; zstd's levels to 19 do.
STREAM_WINDOW = 8 << 20
ZSTD_HEAD = 18  # bytes a frame header may have (RFC 8878, 3.1.1.1)
_ZSTD = re.compile(r"zstd(:(?:[1-9]|1[0-9]|2[0-2]))?")


#: Setting up a decompressor takes longer than inflating an item; each thread keeps one.
_mine = threading.local()


class ByteStream(Protocol):
    """Compressed bytes in order: ``read(n)`` gives at most n, and b"" at the end."""

    def read(self, n: int = -1, /) -> bytes: ...


def is_zstd(compression: str) -> bool:
    """Whether an index's ``compression`` names zstd (``zstd`` or ``zstd:1`` .. ``zstd:22``)."""
    return _ZSTD.fullmatch(compression) is not None


def require_codec(compression: str) -> None:
    """Check at the door that a dataset's compression can be undone here.

    Raises:
        UnsupportedError: it is not zstd.
        MissingExtraError: the package is not installed.
    """
    if not is_zstd(compression):
        raise UnsupportedError(f"compression {compression!r} is not one lazystore reads (zstd, zstd:N)")
    require_zstandard()


@dataclass(frozen=True, slots=True)
class ZstdHeader:
    """What a zstd frame says about itself.

    Attributes:
        content_size: inflated bytes, -1 when the frame does not say.
        window: bytes of history inflating it needs.
    """

    content_size: int
    window: int


def read_header(head: bytes) -> ZstdHeader:
    """The header of a zstd frame.

    Parameters:
        head: at least the first 18 bytes of the frame, or all of a shorter one (RFC 8878, 3.1.1.1).

    Raises:
        FormatError: not a zstd frame.
    """
    zstandard = require_zstandard()
    try:
        parameters = zstandard.get_frame_parameters(head)
    except zstandard.ZstdError as error:
        raise FormatError(f"it is not a zstd frame ({error})") from None
    unknown = (zstandard.CONTENTSIZE_UNKNOWN, zstandard.CONTENTSIZE_ERROR)
    declared = -1 if parameters.content_size in unknown else int(parameters.content_size)
    return ZstdHeader(declared, int(parameters.window_size))


def require_zstandard() -> Any:
    """The package.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import zstandard
    except ImportError:
        raise MissingExtraError(
            "this dataset is zstd-compressed, which needs the package zstandard; pip install lazystore[zstd]"
        ) from None
    return zstandard


def inflate_frame(frame: bytes | memoryview, *, limit: int, size: int = -1) -> bytes:
    """All of one zstd frame.

    Parameters:
        frame: its bytes, nothing before and nothing after.
        limit: bytes it may inflate to.
        size: bytes it must inflate to, -1 when nobody knows.

    Raises:
        FormatError: no zstd frame, damaged, longer than ``limit``, or of another size.
        MissingExtraError: the package is not installed.

    Memory: what it inflates to; for a frame that does not say how much twice that, and its history (8 MiB at most, or
    ``limit``).
    """
    declared = read_header(bytes(frame[:ZSTD_HEAD])).content_size
    bound = limit if size < 0 else min(limit, size)
    if declared > bound or (size >= 0 and 0 <= declared != size):
        raise FormatError(
            f"a zstd frame of {len(frame)} bytes says it holds {declared} bytes; {size if size >= 0 else bound} are "
            + ("expected" if size >= 0 else "allowed")
        )
    import zstandard

    decompressor = getattr(_mine, "decompressor", None)
    if decompressor is None:
        decompressor = _mine.decompressor = zstandard.ZstdDecompressor()
    data: bytes
    try:
        if declared >= 0:
            data = decompressor.decompress(frame, allow_extra_data=False)
        else:
            data = _inflate_unsized(zstandard, frame, bound)
    except zstandard.ZstdError as error:
        raise FormatError(f"a zstd frame of {len(frame)} bytes cannot be inflated ({error}); it is damaged") from None
    if size >= 0 and len(data) != size:
        raise FormatError(f"a zstd frame of {len(frame)} bytes holds {len(data)} bytes instead of {size}")
    return data


def _inflate_unsized(zstandard: Any, frame: bytes | memoryview, limit: int) -> bytes:
    """A frame that does not say how long it is: counted first, in little memory, then inflated."""
    window = max(1 << limit.bit_length(), STREAM_WINDOW)
    counted, scratch = 0, bytearray(READ_BYTES)
    reader = zstandard.ZstdDecompressor(max_window_size=window).stream_reader(frame)
    while got := reader.readinto(scratch):
        counted += got
        if counted > limit:
            raise FormatError(f"a zstd frame of {len(frame)} bytes inflates to more than the {limit} bytes allowed")
    whole = zstandard.ZstdDecompressor(max_window_size=window).decompressobj()
    data = whole.decompress(frame)
    if not whole.eof or whole.unused_data:
        raise FormatError(f"a zstd frame of {len(frame)} bytes is not one whole frame; it is damaged")
    return bytes(data)


def item_inflater(limit: int) -> Callable[[bytes], bytes]:
    """What a decode plan does with an item compressed for itself, before decoding it.

    LitData 0.2.76 leaves some items as they are, whatever its index says, so the magic decides; no other item can
    begin with it, as its first leaf would have 4 GB.

    Parameters:
        limit: bytes an item may inflate to.

    Raises:
        MissingExtraError: the package is not installed.
    """
    require_zstandard()

    def opened(item: bytes) -> bytes:
        return inflate_frame(item, limit=limit) if item[:4] == ZSTD_MAGIC else item

    return opened
