"""zstd streams: inflated forward into the caller's buffers, checked, in bounded memory."""

from __future__ import annotations

import io
import random
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lazystore.errors import FormatError, MissingExtraError, UnsupportedError
from lazystore.formats.compression import (
    ZstdInflater,
    inflate_frame,
    is_zstd,
    item_inflater,
    read_header,
    require_codec,
)

zstandard = pytest.importorskip("zstandard")

CONTENT = random.Random(0).randbytes(40_000) + bytes(60_000)
LARGE = 1 << 27


def pack(content: bytes, **options: Any) -> bytes:
    return bytes(zstandard.ZstdCompressor(**options).compress(content))


PACKED = pack(CONTENT)


def inflate(data: bytes, size: int, *, max_window: int = LARGE) -> bytes:
    buffer = bytearray(size)
    got = ZstdInflater(io.BytesIO(data), max_window=max_window).readinto(memoryview(buffer))
    return bytes(buffer[:got])


def test_a_frame_comes_back_whole() -> None:
    assert inflate(PACKED, len(CONTENT)) == CONTENT
    assert inflate(PACKED, len(CONTENT) + 1000) == CONTENT
    assert inflate(pack(b""), 10) == b""


@given(st.lists(st.integers(0, 30_000), max_size=20))
def test_pieces_of_any_size_follow_each_other(sizes: list[int]) -> None:
    inflater = ZstdInflater(io.BytesIO(PACKED), max_window=LARGE)
    at = 0
    for size in sizes:
        buffer = bytearray(size)
        got = inflater.readinto(memoryview(buffer))
        assert got == min(size, len(CONTENT) - at)
        assert buffer[:got] == CONTENT[at : at + got]
        at += got
        assert inflater.position == at


def test_a_stream_that_comes_in_drops_is_the_same() -> None:
    class Drops(io.BytesIO):
        def read(self, n: int | None = -1, /) -> bytes:
            return super().read(min(7, n if n is not None and n >= 0 else 7))

    buffer = bytearray(len(CONTENT))
    assert ZstdInflater(Drops(PACKED), max_window=LARGE).readinto(memoryview(buffer)) == len(CONTENT)
    assert buffer == CONTENT


@pytest.mark.parametrize("keep", [0, 1, 5, 100, len(PACKED) - 1])
def test_a_stream_that_ends_early_gives_what_there_is(keep: int) -> None:
    try:
        found = inflate(PACKED[:keep], len(CONTENT))
    except FormatError:
        return
    assert len(found) < len(CONTENT)
    assert CONTENT.startswith(found)


@pytest.mark.parametrize("data", [b"no zstd at all", b"\x28\xb5\x2f\xfd" + b"\xff" * 40])
def test_a_stream_that_is_no_frame_is_a_format_error(data: bytes) -> None:
    with pytest.raises(FormatError, match="zstd stream cannot be inflated after 0 bytes"):
        inflate(data, 10)


@given(st.integers(0, len(PACKED) - 1), st.integers(1, 255))
def test_a_damaged_frame_with_a_checksum_is_never_taken_for_good(at: int, flip: int) -> None:
    good = pack(CONTENT, write_checksum=True)
    damaged = bytearray(good)
    damaged[at % len(good)] ^= flip
    try:
        found = inflate(bytes(damaged), len(CONTENT) + 1)
    except FormatError:
        return
    assert found == CONTENT or len(found) != len(CONTENT) or at % len(good) < 18


def test_an_error_of_the_stream_itself_comes_through() -> None:
    class Broken(io.BytesIO):
        def read(self, n: int | None = -1, /) -> bytes:
            raise ConnectionResetError("cut")

    with pytest.raises(ConnectionResetError):
        ZstdInflater(Broken(), max_window=LARGE).readinto(memoryview(bytearray(10)))


def test_a_window_beyond_the_bound_is_refused_not_allocated() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=25, write_content_size=False)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    packed = packer.compress(CONTENT) + packer.flush()
    assert read_header(packed).window == 1 << 25
    assert inflate(packed, len(CONTENT), max_window=1 << 25) == CONTENT
    with pytest.raises(FormatError):
        inflate(packed, len(CONTENT), max_window=1 << 24)


def test_a_header_tells_size_and_window() -> None:
    header = read_header(PACKED[:18])
    assert (header.content_size, header.window) == (len(CONTENT), len(CONTENT))
    unknown = read_header(pack(CONTENT, write_content_size=False))
    assert unknown.content_size == -1
    assert unknown.window >= 1 << 10
    assert read_header(pack(b"")).content_size == 0


@pytest.mark.parametrize("head", [b"", b"\x28", b"\x28\xb5\x2f", b"not a frame at all", bytes(18)])
def test_bytes_that_are_no_header_are_a_format_error(head: bytes) -> None:
    with pytest.raises(FormatError, match="zstd"):
        read_header(head)


@pytest.mark.parametrize("name", ["zstd", "zstd:1", "zstd:9", "zstd:10", "zstd:22"])
def test_names_of_the_format_are_known(name: str) -> None:
    assert is_zstd(name)
    require_codec(name)


@pytest.mark.parametrize("name", ["", "gzip", "zstd:0", "zstd:23", "zstd:-1", "zstd:01", "zstd:", "Zstd", "zstd:1\n"])
def test_other_names_are_not(name: str) -> None:
    assert not is_zstd(name)
    with pytest.raises(UnsupportedError, match="zstd:N"):
        require_codec(name)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    for attempt in (
        lambda: require_codec("zstd"),
        lambda: read_header(PACKED),
        lambda: ZstdInflater(io.BytesIO(PACKED), max_window=LARGE),
    ):
        with pytest.raises(MissingExtraError, match=r"pip install lazystore\[zstd\]"):
            attempt()


# -- frames of some items -------------------------------------------------------------------


def frame_of(data: bytes, *, sized: bool = True, level: int = 3) -> bytes:
    return bytes(zstandard.ZstdCompressor(level=level, write_content_size=sized).compress(data))


def streamed(data: bytes) -> bytes:
    """A frame whose header asks for a long history, and does not know its length."""
    compressor = zstandard.ZstdCompressor(level=5).compressobj()
    return bytes(compressor.compress(data) + compressor.flush())


FRAMES = {"sized": frame_of, "unsized": lambda data: frame_of(data, sized=False), "streamed": streamed}


@pytest.mark.parametrize("kind", FRAMES)
@given(st.binary(max_size=3000))
@example(b"")
@example(b"x" * 300_000)
def test_frames_are_inflated_whole(kind: str, data: bytes) -> None:
    frame = FRAMES[kind](data)
    assert inflate_frame(frame, limit=len(data)) == data
    assert inflate_frame(memoryview(frame), limit=1 << 20, size=len(data)) == data


@pytest.mark.parametrize("kind", FRAMES)
def test_frames_of_another_length_are_refused(kind: str) -> None:
    frame = FRAMES[kind](b"abc" * 100)
    for wrong in (frame[:-1], frame + b"x", frame + frame, frame[4:], b"", frame[:6]):
        with pytest.raises(FormatError):
            inflate_frame(wrong, limit=1000)
    for options in ({"limit": 299}, {"limit": 1000, "size": 299}, {"limit": 1000, "size": 301}, {"limit": 0}):
        with pytest.raises(FormatError):
            inflate_frame(frame, **options)


@pytest.mark.parametrize("kind", FRAMES)
def test_a_bomb_does_not_inflate_beyond_the_limit(kind: str) -> None:
    bomb = FRAMES[kind](bytes(64 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="allowed"):
            inflate_frame(bomb, limit=1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_items_are_inflated_if_they_are_compressed() -> None:
    opened = item_inflater(1000)
    assert opened(frame_of(b"abc")) == b"abc"
    for plain in (b"", b"\x28\xb5\x2f", b"\3\0\0\0abc"):
        assert opened(plain) == plain
    with pytest.raises(FormatError, match="allowed"):
        opened(frame_of(bytes(1001)))


def test_frames_are_inflated_by_many_threads_at_once() -> None:
    frames = [(frame_of(bytes([k]) * 5000 * k), bytes([k]) * 5000 * k) for k in range(1, 40)]
    with ThreadPoolExecutor(8) as threads:
        for _ in range(5):
            found = list(threads.map(lambda pair: inflate_frame(pair[0], limit=1 << 20), frames))
            assert found == [data for _, data in frames]
