"""Whole-chunk compression: streams that are inflated as they arrive, in bounded memory.

Only decompression, and only forward: random access within a compressed chunk means
starting over, which the cache decides about.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Protocol

from lazystore.errors import FormatError, MissingExtraError, UnsupportedError

__all__ = ["ByteStream", "ZstdHeader", "ZstdInflater", "is_zstd", "read_header", "require_codec"]

#: Compressed bytes inflated at a time: the GIL is let go of meanwhile, and had again afterwards.
READ_BYTES = 512 * 1024
_ZSTD = re.compile(r"zstd(:(?:[1-9]|1[0-9]|2[0-2]))?")


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
    _zstandard()


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
    _zstandard()
    import zstandard

    try:
        parameters = zstandard.get_frame_parameters(head)
    except zstandard.ZstdError as error:
        raise FormatError(f"it is not a zstd frame ({error})") from None
    unknown = (zstandard.CONTENTSIZE_UNKNOWN, zstandard.CONTENTSIZE_ERROR)
    declared = -1 if parameters.content_size in unknown else int(parameters.content_size)
    return ZstdHeader(declared, int(parameters.window_size))


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise MissingExtraError("this dataset is zstd-compressed; pip install lazystore[zstd]") from None
    return zstandard.ZstdDecompressor


class ZstdInflater:
    """One zstd frame, inflated forward into caller-owned buffers.

    Parameters:
        stream: the compressed bytes.
        max_window: bytes of history the frame may ask for; bounds the memory used (RFC 8878, 3.1.1.1.2).

    Threads: one at a time. Not picklable.
    """

    def __init__(self, stream: ByteStream, *, max_window: int) -> None:
        decompressor = _zstandard()(max_window_size=max(max_window, 1 << 10))
        self._reader = decompressor.stream_reader(stream, read_size=READ_BYTES)
        self.position = 0

    def readinto(self, view: memoryview) -> int:
        """Fill ``view`` as far as the frame goes; returns the bytes written, less than its length only at the end.

        Raises:
            FormatError: the bytes are no zstd frame, are damaged, or need a larger window.
        """
        done = 0
        try:
            while done < len(view):
                got = self._reader.readinto(view[done:])
                if not got:
                    break
                done += got
        except Exception as error:
            if type(error).__name__ != "ZstdError":
                raise
            raise FormatError(
                f"the zstd stream cannot be inflated after {self.position + done} bytes ({error}); it is damaged"
            ) from error
        self.position += done
        return done
