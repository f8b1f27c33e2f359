"""zstd frames: what they say about themselves, and their content, checked, in bounded memory."""

from __future__ import annotations

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
    inflate_frame,
    is_zstd,
    item_inflater,
    read_header,
    require_codec,
)

zstandard = pytest.importorskip("zstandard")

CONTENT = random.Random(0).randbytes(40_000) + bytes(60_000)


def pack(content: bytes, **options: Any) -> bytes:
    return bytes(zstandard.ZstdCompressor(**options).compress(content))


PACKED = pack(CONTENT)


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
        lambda: inflate_frame(PACKED, limit=len(CONTENT)),
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
