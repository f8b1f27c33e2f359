"""What a column holds of an image or a recording, decoded: `decode_image`, `decode_audio`.

Bytes are hostile: sizes are taken from the header and refused before anything is unpacked, only common formats are
tried, and no path is ever opened. Nothing is resized or resampled here.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from lazystore.errors import FormatError, MissingExtraError, UnsafeDataError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["IMAGE_FORMATS", "MAX_SAMPLES", "decode_audio", "decode_image"]

#: Pillow's names of the image formats that are tried. Others start programs (EPS) or are none of datasets' business.
IMAGE_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
#: Numbers a recording may unpack to, all channels together: 512 MiB, 50 minutes of 44.1 kHz.
MAX_SAMPLES = 1 << 27
#: Files whose second word is their length, and in which byte order: WAV and AIFF.
_IFF: dict[bytes, Literal["little", "big"]] = {b"RIFF": "little", b"FORM": "big"}
#: The length in a file that was written to a pipe: it was not known when the header was written.
UNKNOWN_LENGTH = 0x7FFF_FF00
#: Bytes that writers miscount by.
SLACK = 8


def decode_image(value: Any) -> Any:
    """An image as a PIL image, or as the array it already is.

    Parameters:
        value: the bytes of an image file; a mapping with ``bytes`` as ``datasets`` has it undecoded; a PIL image; an
            array, a tensor or nested lists of 2 or 3 dimensions (lists of whole numbers below 256 become uint8).

    What ``datasets`` would give for the same bytes: the first frame, in the file's own mode, turned as its EXIF
    orientation says. Cost: one decode. At most ``PIL.Image.MAX_IMAGE_PIXELS`` pixels, checked before the pixels are
    unpacked (pillow itself only warns there); set that for larger ones.

    Raises:
        FormatError: no image of :data:`IMAGE_FORMATS`, cut short, damaged or with too many pixels.
        UnsafeDataError: nothing but a path or URL, which is not opened.
        MissingExtraError: pillow is not installed.
    """
    pillow = sys.modules.get("PIL.Image")
    if pillow is not None and isinstance(value, pillow.Image):
        return _loaded(value)
    if isinstance(value, Mapping):
        value = _stored(value, "image")
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _image_of(bytes(value))
    if isinstance(value, str):
        raise UnsafeDataError(_no_path(value, "image"))
    if isinstance(value, (list, tuple)) or hasattr(value, "__array__"):
        return _pixels(value)
    raise FormatError(f"an image cannot be made of a {type(value).__name__}: give file bytes, a PIL image or an array")


def decode_audio(value: Any, *, sampling_rate: Any = None, max_samples: int = MAX_SAMPLES) -> dict[str, Any]:
    """A recording as ``{"array": float32 array, "sampling_rate": Hz}``, at the rate it has.

    Parameters:
        value: the bytes of a file libsndfile reads (WAV, FLAC, Ogg, MP3, ...); a mapping with ``bytes``, or with
            ``array`` and ``sampling_rate``; a torchcodec decoder as ``datasets`` gives; an array or list of numbers.
        sampling_rate: Hz, of arrays that come without.
        max_samples: numbers that files may unpack to, all channels together; checked before they are unpacked.

    Several channels become their mean, as ``datasets`` has ``audio["array"]``; in arrays of two dimensions the
    channels come first. Arrays of 16 and 32 bit whole numbers become fractions of full scale. Cost: one decode.

    Raises:
        FormatError: no such recording, cut short, damaged, too long, or of no known rate.
        UnsafeDataError: nothing but a path or URL, which is not opened.
        MissingExtraError: soundfile is not installed.
    """
    if hasattr(value, "get_all_samples"):
        return _decoded(value, max_samples)
    if isinstance(value, Mapping):
        if value.get("array") is not None:
            rate = value.get("sampling_rate")
            return _waveform(value["array"], sampling_rate if rate is None else rate)
        value = _stored(value, "audio")
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _audio_of(bytes(value), max_samples)
    if isinstance(value, str):
        raise UnsafeDataError(_no_path(value, "audio"))
    if isinstance(value, (list, tuple)) or hasattr(value, "__array__"):
        return _waveform(value, sampling_rate)
    raise FormatError(f"a recording cannot be made of a {type(value).__name__}: give file bytes, or array and rate")


def _stored(value: Mapping[str, Any], kind: str) -> Any:
    """The file bytes in what ``datasets`` gives undecoded."""
    if value.get("bytes") is not None:
        return value["bytes"]
    path = value.get("path")
    if path is not None:
        raise UnsafeDataError(_no_path(path, kind))
    raise FormatError(f"{kind}: a mapping without 'bytes' (it has: {', '.join(map(str, value)) or 'nothing'})")


def _no_path(path: Any, kind: str) -> str:
    return (
        f"{kind}: there is only the path {str(path)[:100]!r}; data does not choose files to be opened."
        " Have `datasets` decode the column, or read the file in a processor of your own"
    )


# -- images ---------------------------------------------------------------------------------


def _image_of(data: bytes) -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError('images need the pillow package: pip install "lazystore[images]"') from error
    Image.init()  # once: makes all formats known
    try:
        opened = Image.open(io.BytesIO(data), formats=[name for name in IMAGE_FORMATS if name in Image.OPEN])
    except Image.UnidentifiedImageError as error:
        raise FormatError(f"{len(data)} bytes are no image ({', '.join(IMAGE_FORMATS)}): {data[:8]!r}") from error
    except MemoryError:
        raise
    except Exception as error:  # plugins raise whatever a damaged header leads them to, bomb warnings included
        raise FormatError(f"an image of {len(data)} bytes cannot be opened: {error}") from error
    return _loaded(opened)


def _loaded(image: Any) -> Any:
    """The image with its pixels unpacked and upright."""
    from PIL import Image, ImageOps

    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise FormatError(
            f"an image of {image.width} x {image.height} pixels, at most {limit} are allowed;"
            " set PIL.Image.MAX_IMAGE_PIXELS for more"
        )
    try:
        image.load()
        if image.getexif().get(0x0112) is not None:  # Orientation, EXIF 2.3 section 4.6.4
            image = ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception as error:
        raise FormatError(f"an image of {image.width} x {image.height} pixels is damaged: {error}") from error
    return image


def _pixels(value: Any) -> np.ndarray[Any, Any]:
    import numpy as np

    try:
        pixels = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise FormatError(f"an image's nested lists are no array: {error}") from error
    if pixels.ndim not in (2, 3) or pixels.dtype.kind not in "uifb" or not pixels.size:
        raise FormatError(f"an array of shape {pixels.shape} and type {pixels.dtype} is no image")
    if isinstance(value, (list, tuple)) and pixels.dtype.kind == "i" and pixels.min() >= 0 and pixels.max() < 256:
        pixels = pixels.astype(np.uint8)
    return pixels


# -- recordings -----------------------------------------------------------------------------


def _audio_of(data: bytes, limit: int) -> dict[str, Any]:
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: the package without the library
        raise MissingExtraError('recordings need the soundfile package: pip install "lazystore[audio]"') from error
    _check_whole(data)
    try:
        with soundfile.SoundFile(_File(data)) as file:
            frames, channels, rate = file.frames, file.channels, file.samplerate
            _check_length(frames * channels, limit, rate)
            array = file.read(dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError) as error:
        if isinstance(error, FormatError):
            raise
        reason = getattr(error, "error_string", error)  # without the memory address of our file
        raise FormatError(f"a recording of {len(data)} bytes cannot be read: {reason}") from error
    if len(array) < frames:
        raise FormatError(f"a recording is cut short: {len(array)} of {frames} samples")
    return {"array": array[:, 0] if channels == 1 else array.mean(axis=1), "sampling_rate": rate}


class _File(io.BytesIO):
    """Bytes as a file that damaged headers may send anywhere: an error could not pass through the library's C code."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        start = (0, self.tell(), len(self.getbuffer()))[whence]
        return super().seek(min(max(start + offset, 0), sys.maxsize))


def _check_whole(data: bytes) -> None:
    """libsndfile takes a WAV or AIFF file that ends early for a shorter one; its header knows better."""
    order = _IFF.get(data[:4])
    if order is not None:
        declared = int.from_bytes(data[4:8], order)
        if declared < UNKNOWN_LENGTH and declared + 8 > len(data) + SLACK:
            raise FormatError(f"a recording is cut short: {len(data)} of {declared + 8} bytes")


def _check_length(count: float, limit: int, rate: int) -> None:
    if count > limit:
        raise FormatError(
            f"a recording of {count:.0f} samples at {rate} Hz, at most {limit} are unpacked; read it in a processor"
            " of your own with lazystore.hub.media.decode_audio(value, max_samples=...)"
        )


def _decoded(decoder: Any, limit: int) -> dict[str, Any]:
    """What a torchcodec ``AudioDecoder`` unpacks; ``datasets`` from 4.0 on gives one for each recording."""
    about = decoder.metadata
    seconds, rate = getattr(about, "duration_seconds_from_header", None), getattr(about, "sample_rate", None)
    if seconds is not None and rate is not None:
        _check_length(seconds * rate * (getattr(about, "num_channels", None) or 1), limit, rate)
    try:
        samples = decoder.get_all_samples()
    except (RuntimeError, ValueError) as error:  # libtorch's errors are RuntimeErrors
        raise FormatError(f"a recording cannot be read: {error}") from error
    return _waveform(samples.data.cpu().numpy(), samples.sample_rate)


def _waveform(value: Any, rate: Any) -> dict[str, Any]:
    import numpy as np

    try:
        is_list = isinstance(value, (list, tuple))
        array = np.asarray(value, dtype=np.float32) if is_list else np.asarray(value)
        rate = int(rate) if rate is not None else 0
    except (ValueError, TypeError, OverflowError, RuntimeError) as error:
        raise FormatError(f"a recording's numbers or rate are none: {error}") from error
    if array.ndim not in (1, 2) or (array.dtype.kind != "f" and array.dtype not in (np.int16, np.int32)):
        raise FormatError(f"an array of shape {array.shape} and type {array.dtype} is no recording")
    if array.ndim == 2 and not 0 < len(array) <= array.shape[1]:
        raise FormatError(
            f"a recording of {len(array)} channels with {array.shape[1]} samples: the channels come first"
        )
    if rate <= 0:
        raise FormatError(
            "a recording without a sampling rate: give {'array': ..., 'sampling_rate': ...}, or name the column"
            " with the role 'sampling_rate' in the dataset's spec"
        )
    if array.dtype.kind == "i":
        array = array / np.float32(1 << (8 * array.dtype.itemsize - 1))
    array = array.astype(np.float32, copy=False)
    if array.ndim == 2:
        array = array[0] if len(array) == 1 else array.mean(axis=0)
    return {"array": array, "sampling_rate": rate}
