from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image

from lazystore.errors import FormatError, MissingExtraError, UnsafeDataError
from lazystore.hub import media
from lazystore.hub.media import decode_audio, decode_image

PIXELS = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
WAVE = (np.sin(np.arange(800) / 10) / 2).astype(np.float32)


def image_file(form: str = "PNG", image: Any = None, **options: Any) -> bytes:
    file = io.BytesIO()
    (image or Image.fromarray(PIXELS)).save(file, form, **options)
    return file.getvalue()


def sound_file(form: str = "WAV", wave: Any = WAVE, rate: int = 8000, **options: Any) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format=form, **options)
    return file.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


IMAGES = {form: image_file(form) for form in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM", "WEBP")}
KNOWN = soundfile.available_formats()  # MP3 since libsndfile 1.1
SOUNDS = {form: sound_file(form) for form in ("WAV", "FLAC", "OGG", "AIFF", "MP3") if form in KNOWN}


# -- images ---------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview, lambda data: {"bytes": data, "path": "a.png"}])
def test_an_image_file_becomes_the_image_it_holds(wrap: Any) -> None:
    image = decode_image(wrap(IMAGES["PNG"]))
    assert np.array_equal(np.asarray(image), PIXELS) and image.mode == "RGB"


@pytest.mark.parametrize("form", IMAGES)
def test_every_common_format_is_read(form: str) -> None:
    assert decode_image(IMAGES[form]).size == (7, 5)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "I;16", "F"])
def test_the_mode_of_the_file_stays(mode: str) -> None:
    form = "TIFF" if mode in ("CMYK", "F", "I;16") else "PNG"
    assert decode_image(image_file(form, Image.new(mode, (3, 2)))).mode == mode


def test_the_exif_orientation_is_applied_as_datasets_does() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(image_file("JPEG", exif=exif)).size == (5, 7)
    assert decode_image(Image.open(io.BytesIO(image_file("JPEG", exif=exif)))).size == (5, 7)


def test_of_a_moving_image_the_first_frame_is_taken() -> None:
    frames = [Image.new("L", (4, 4), shade) for shade in (10, 200)]
    image = decode_image(image_file("GIF", frames[0], save_all=True, append_images=frames[1:]))
    assert image.convert("L").getpixel((0, 0)) == 10


def test_pil_images_and_arrays_stay_what_they_are() -> None:
    image = Image.fromarray(PIXELS)
    assert decode_image(image) is image
    assert decode_image(PIXELS) is PIXELS
    grey = np.zeros((2, 3), np.float32)
    assert decode_image(grey) is grey


def test_nested_lists_become_bytes_where_they_fit() -> None:
    assert np.array_equal(decode_image(PIXELS.tolist()), PIXELS)
    assert decode_image(PIXELS.tolist()).dtype == np.uint8
    assert decode_image([[0, 256]]).dtype == np.int64
    assert decode_image([[0.5, 1.0]]).dtype == np.float64


def test_a_tensor_becomes_an_array() -> None:
    class Tensor:
        """As torch's, to numpy."""

        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            return PIXELS

    assert np.array_equal(decode_image(Tensor()), PIXELS)


@pytest.mark.parametrize("value", [[[1, 2], [3]], [1, 2, 3], np.zeros((0, 3)), np.array([["a"]]), 5, object(), None])
def test_what_is_no_image_is_refused(value: Any) -> None:
    with pytest.raises(FormatError, match="image"):
        decode_image(value)


@pytest.mark.parametrize("form", IMAGES)
def test_an_image_that_is_cut_short_is_refused(form: str) -> None:
    data = IMAGES[form]
    for length in (0, 1, 10, len(data) // 2):
        with pytest.raises(FormatError, match="image"):
            decode_image(data[:length])


@pytest.mark.parametrize("data", [b"", b"no image at all", SOUNDS["WAV"], b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x00" * 4096])
def test_other_bytes_are_refused_with_what_would_be_taken(data: bytes) -> None:
    with pytest.raises(FormatError, match="PNG, JPEG"):
        decode_image(data)


def test_postscript_is_never_given_to_an_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow runs Ghostscript for EPS files; this is a real one."""
    started: list[Any] = []

    def ghostscript(*given: Any, **options: Any) -> Any:
        started.append(given)
        return Image.new("RGB", (4, 4)).im

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", ghostscript)
    eps = image_file("EPS", Image.new("RGB", (4, 4)))
    with pytest.raises(FormatError, match="no image"):
        decode_image(eps)
    with pytest.raises(FormatError, match="no image"):
        decode_image({"bytes": eps, "path": "innocent.png"})
    assert not started
    Image.open(io.BytesIO(eps)).load()
    assert started, "pillow itself would have"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 20_000, 2**31 - 1])
def test_a_header_that_claims_too_many_pixels_is_refused_before_they_are_made(side: int) -> None:
    with pytest.raises(FormatError, match=r"pixels|size"):
        decode_image(png_that_claims(side, side))


def test_pillows_own_limit_is_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    big = image_file(image=Image.new("L", (100, 100)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    assert decode_image(big).size == (100, 100)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9_999)
    with pytest.raises((FormatError, Image.DecompressionBombWarning)):
        decode_image(big)
    with pytest.raises(FormatError, match="MAX_IMAGE_PIXELS"):
        decode_image(Image.new("L", (100, 100)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert decode_image(big).size == (100, 100)


@pytest.mark.parametrize("decode", [decode_image, decode_audio])
@pytest.mark.parametrize("wrap", [str, lambda path: {"path": path}, lambda path: {"bytes": None, "path": path}])
def test_a_path_is_never_opened(tmp_path: Any, decode: Any, wrap: Any) -> None:
    """The files are there and good: only the rule keeps them closed."""
    image, sound = tmp_path / "a.png", tmp_path / "a.wav"
    image.write_bytes(IMAGES["PNG"])
    sound.write_bytes(SOUNDS["WAV"])
    for path in (str(image), str(sound), "../../etc/passwd", "https://example.org/a.png"):
        with pytest.raises(UnsafeDataError, match="path"):
            decode(wrap(path))


@pytest.mark.parametrize("decode", [decode_image, decode_audio])
@pytest.mark.parametrize("value", [{}, {"bytes": None, "path": None}, {"data": b"x"}, {"bytes": 5}, {"bytes": [1]}])
def test_a_mapping_without_bytes_is_refused(decode: Any, value: Any) -> None:
    with pytest.raises(FormatError):
        decode(value)


# -- recordings -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", SOUNDS)
@pytest.mark.parametrize("wrap", [bytes, lambda data: {"bytes": data, "path": None}])
def test_a_sound_file_becomes_floats_at_its_own_rate(form: str, wrap: Any) -> None:
    audio = decode_audio(wrap(SOUNDS[form]))
    assert audio["sampling_rate"] == 8000 and audio["array"].dtype == np.float32 and audio["array"].shape == (800,)
    assert np.abs(audio["array"] - WAVE).max() < (0.3 if form in ("OGG", "MP3") else 1e-4)


def test_several_channels_become_their_mean() -> None:
    two = np.stack([WAVE, -WAVE / 2], axis=1)
    audio = decode_audio(sound_file("WAV", two, subtype="FLOAT"))
    assert np.allclose(audio["array"], WAVE / 4, atol=1e-6)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int16, np.int32, list])
def test_arrays_become_floats(kind: Any) -> None:
    scale = {np.int16: 2.0**15, np.int32: 2.0**31}.get(kind, 1.0)
    given_ = WAVE.tolist() if kind is list else (WAVE * scale).astype(kind)
    audio = decode_audio({"array": given_, "sampling_rate": 22050, "path": "a.wav"})
    assert audio["sampling_rate"] == 22050 and audio["array"].dtype == np.float32
    assert np.abs(audio["array"] - WAVE).max() < 1e-4


def test_channels_of_an_array_come_first_and_become_their_mean() -> None:
    two = np.stack([WAVE, -WAVE / 2])
    found = decode_audio({"array": two, "sampling_rate": 8000})["array"]
    assert np.allclose(found, WAVE / 4) and found.dtype == np.float32
    assert np.array_equal(decode_audio({"array": WAVE[None], "sampling_rate": 8000})["array"], WAVE)
    for wrong in (two.T, np.zeros((0, 5), np.float32)):
        with pytest.raises(FormatError, match="channels come first"):
            decode_audio({"array": wrong, "sampling_rate": 8000})


def test_an_array_that_fits_is_not_copied() -> None:
    assert decode_audio({"array": WAVE, "sampling_rate": 8000})["array"] is WAVE


def test_a_bare_array_takes_the_rate_of_its_column_and_has_none_otherwise() -> None:
    assert decode_audio(WAVE, sampling_rate=np.int64(8000))["sampling_rate"] == 8000
    assert decode_audio({"array": WAVE}, sampling_rate=8000)["sampling_rate"] == 8000
    assert decode_audio({"array": WAVE, "sampling_rate": 16000}, sampling_rate=8000)["sampling_rate"] == 16000
    for value in (WAVE, {"array": WAVE}, {"array": WAVE, "sampling_rate": None}):
        with pytest.raises(FormatError, match="sampling_rate"):
            decode_audio(value)


@pytest.mark.parametrize("rate", [0, -1, "fast", float("nan"), float("inf"), [1, 2]])
def test_a_rate_that_is_none_is_refused(rate: Any) -> None:
    with pytest.raises(FormatError, match="rate"):
        decode_audio({"array": WAVE, "sampling_rate": rate})


@pytest.mark.parametrize(
    "array", [np.zeros((2, 2, 2)), np.float32(1), ["a"], [[1.0], [1.0, 2.0]], np.zeros(3, np.uint8)]
)
def test_what_are_no_samples_is_refused(array: Any) -> None:
    with pytest.raises(FormatError, match="recording"):
        decode_audio({"array": array, "sampling_rate": 8000})


@pytest.mark.parametrize("data", [b"", b"RIFF", b"no sound at all", IMAGES["PNG"], bytes(4096)])
def test_bytes_that_are_no_sound_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        decode_audio(data)


@pytest.mark.parametrize("form", [form for form in SOUNDS if form != "OGG"])  # whose header has no length
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_recording_that_is_cut_short_is_refused(form: str, part: float) -> None:
    with pytest.raises(FormatError):
        decode_audio(SOUNDS[form][: int(len(SOUNDS[form]) * part)])


def test_a_header_that_points_before_the_file_raises_nothing_inside_the_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    damaged = bytearray(SOUNDS["AIFF"])
    damaged[39] = 255
    with pytest.raises(FormatError, match=r"cannot be read: [^<]*$"):
        decode_audio(bytes(damaged))
    assert not seen


def test_a_file_written_to_a_pipe_has_no_length_in_its_header() -> None:
    data = bytearray(SOUNDS["WAV"])
    data[4:8] = b"\xff\xff\xff\xff"
    assert len(decode_audio(bytes(data))["array"]) == 800


def test_a_recording_that_unpacks_to_too_much_is_refused_before() -> None:
    silence = sound_file("FLAC", np.zeros((100_000, 2), np.float32))
    assert len(silence) < 20_000
    with pytest.raises(FormatError, match=r"200000 samples.*at most 150000"):
        decode_audio(silence, max_samples=150_000)
    assert len(decode_audio(silence, max_samples=200_000)["array"]) == 100_000


def test_a_header_that_claims_endless_sound_is_refused() -> None:
    data = bytearray(SOUNDS["FLAC"])
    data[21] |= 0x0F  # STREAMINFO, RFC 9639 section 8.2: 36 bits of total samples
    data[22:26] = b"\xff\xff\xff\xff"
    with pytest.raises(FormatError):
        decode_audio(bytes(data))


class Decoder:
    """What torchcodec's ``AudioDecoder`` has; it cannot be subscripted, as the plain one."""

    def __init__(self, data: Any, rate: int = 16000, seconds: float | None = None, channels: int | None = None) -> None:
        self._data, self._rate = data, rate
        self.metadata = SimpleNamespace(
            duration_seconds_from_header=seconds, sample_rate=rate if seconds else None, num_channels=channels
        )

    def get_all_samples(self) -> Any:
        if isinstance(self._data, Exception):
            raise self._data
        tensor = SimpleNamespace(cpu=lambda: SimpleNamespace(numpy=lambda: self._data))
        return SimpleNamespace(data=tensor, sample_rate=self._rate)


def test_a_decoder_as_datasets_gives_is_read() -> None:
    one = decode_audio(Decoder(WAVE[None]))
    assert np.array_equal(one["array"], WAVE) and one["sampling_rate"] == 16000
    two = decode_audio(Decoder(np.stack([WAVE, WAVE / 2]), seconds=0.05, channels=2))
    assert np.allclose(two["array"], WAVE * 0.75) and two["array"].shape == (800,)


def test_a_decoder_of_damaged_or_endless_sound_is_refused() -> None:
    with pytest.raises(FormatError, match="damaged stream"):
        decode_audio(Decoder(RuntimeError("damaged stream")))
    with pytest.raises(FormatError, match="at most"):
        decode_audio(Decoder(AssertionError("it was unpacked"), seconds=1e7))


# -- both -----------------------------------------------------------------------------------


@given(
    st.sampled_from([(decode_image, data) for data in IMAGES.values()] + [(decode_audio, d) for d in SOUNDS.values()]),
    st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=6),
    st.none() | st.integers(0, 2**16),
)
@settings(max_examples=150, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_decoded_or_refused(sample: Any, damage: list[tuple[int, int]], end: int | None) -> None:
    decode, data = sample
    damaged = bytearray(data)
    for place, value in damage:
        damaged[place % len(data)] = value
    try:
        decode(bytes(damaged[:end]))
    except FormatError:
        return


@pytest.mark.parametrize(
    ("decode", "data", "module", "extra"),
    [(decode_image, IMAGES["PNG"], "PIL", "images"), (decode_audio, SOUNDS["WAV"], "soundfile", "audio")],
)
def test_a_missing_package_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, decode: Any, data: bytes, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf'pip install "lazystore\[{extra}\]"'):
        decode(data)


def test_importing_it_imports_no_decoder() -> None:
    code = (
        "import sys, lazystore.hub.samples, lazystore.hub.collating, lazystore.hub.synthetic;"
        "print(sorted({'numpy', 'PIL', 'soundfile', 'torch', 'datasets', 'pyarrow', 'tokenizers'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"


def test_formats_that_start_programs_are_not_among_those_tried() -> None:
    assert not {"EPS", "PSD", "WMF", "FPX", "MSP"} & set(media.IMAGE_FORMATS)
