"""Pushed gzip and zstd streams: any cut gives the same text, damage and bombs are met in time."""

from __future__ import annotations

import contextlib
import gzip
import random
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazystore.errors import BudgetTooSmallError, FormatError, UnsupportedError
from lazystore.formats.text_inflate import PIECE_BYTES, open_stream

zstandard = pytest.importorskip("zstandard")

TEXT = b"".join(b"%d,some text %d\n" % (i, i * i) for i in range(30_000))
NOISE = random.Random(0).randbytes(300_000)


def zstd(data: bytes, **options: Any) -> bytes:
    return bytes(zstandard.ZstdCompressor(**options).compress(data))


def streamed(data: bytes, **options: Any) -> bytes:
    """Of unknown length, with a window."""
    maker = zstandard.ZstdCompressor(**options).compressobj()
    return bytes(maker.compress(data) + maker.flush())


SKIPPABLE = (0x184D2A53).to_bytes(4, "little") + (70_000).to_bytes(4, "little") + bytes(70_000)
WHOLE = {
    "gzip": ("gzip", gzip.compress(TEXT), TEXT),
    "gzip of noise": ("gzip", gzip.compress(NOISE), NOISE),
    "gzip members": ("gzip", b"".join(map(gzip.compress, [TEXT, b"", b"x"])) + bytes(99), TEXT + b"x"),
    "gzip of zeros": ("gzip", gzip.compress(bytes(5_000_000)), bytes(5_000_000)),
    "nothing as gzip": ("gzip", b"", b""),
    "zstd": ("zstd", zstd(TEXT), TEXT),
    "zstd of noise": ("zstd", zstd(NOISE), NOISE),
    "zstd with checksum": ("zstd", zstd(TEXT, write_checksum=True), TEXT),
    "zstd of unknown length": ("zstd", streamed(TEXT, write_checksum=True), TEXT),
    "zstd frames": ("zstd", zstd(TEXT) + SKIPPABLE + streamed(b"x") + zstd(b"") + SKIPPABLE, TEXT + b"x"),
    "zstd of zeros": ("zstd", zstd(bytes(5_000_000)), bytes(5_000_000)),
    "zstd, one small frame": ("zstd", zstd(b"a"), b"a"),
    "nothing as zstd": ("zstd", b"", b""),
}  # fmt: skip


def inflate(codec: str, data: bytes, cuts: list[int] | None = None, limit: int = 16 << 20) -> bytes:
    stream = open_stream(codec, limit)
    out = bytearray()
    borders = [0, *sorted(cuts or []), len(data)]
    for begin, end in zip(borders, borders[1:], strict=False):  # noqa: RUF007
        for piece in stream.feed(memoryview(data)[begin:end]):
            assert 0 < len(piece) <= PIECE_BYTES
            out += piece
    stream.end()
    return bytes(out)


@pytest.mark.parametrize("case", WHOLE)
def test_the_text_comes_back_whatever_the_cuts(case: str) -> None:
    codec, data, text = WHOLE[case]
    assert inflate(codec, data) == text
    assert inflate(codec, data, list(range(0, len(data), max(1, len(data) // 50)))) == text
    if len(data) < 1000:
        assert inflate(codec, data, list(range(len(data)))) == text


@pytest.mark.parametrize("case", ["gzip", "zstd", "zstd with checksum", "zstd of unknown length", "zstd frames"])
def test_a_truncated_stream_is_never_taken_for_a_whole_one(case: str) -> None:
    codec, data, _ = WHOLE[case]
    ends = {
        len(zstd(TEXT)),
        len(zstd(TEXT) + SKIPPABLE),
        len(data) - len(SKIPPABLE),
        len(data) - len(zstd(b"") + SKIPPABLE),
    }
    for length in {*range(1, 30), *range(1, len(data), len(data) // 40), *range(len(data) - 8, len(data))} - ends:
        with pytest.raises(FormatError):
            inflate(codec, data[:length])


@pytest.mark.parametrize("case", ["gzip", "zstd with checksum"])
@given(at=st.integers(0, 1 << 30), flip=st.integers(1, 255))
def test_damage_is_an_error_or_harmless(case: str, at: int, flip: int) -> None:
    codec, data, text = WHOLE[case]
    damaged = bytearray(data)
    damaged[at % len(data)] ^= flip
    with contextlib.suppress(FormatError, UnsupportedError, BudgetTooSmallError):
        assert inflate(codec, bytes(damaged)) == text


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
@given(data=st.binary(max_size=200))
def test_anything_else_is_refused(codec: str, data: bytes) -> None:
    try:
        inflate(codec, data)
    except (FormatError, UnsupportedError, BudgetTooSmallError):
        return
    assert not data.strip(b"\0") or data[1:4] == b"*M\x18"


def test_what_follows_a_stream_is_refused() -> None:
    for codec, case in (("gzip", "gzip"), ("zstd", "zstd")):
        with pytest.raises(FormatError):
            inflate(codec, WHOLE[case][1] + b"more and more")
    with pytest.raises(FormatError, match="followed by"):
        inflate("gzip", WHOLE["gzip"][1] + b"\0\0x")


def test_a_bomb_comes_in_small_pieces() -> None:
    blocks = b"".join(((100_000 << 3) | (1 << 1)).to_bytes(3, "little") + b"a" for _ in range(10_000))
    bomb = zstandard.FRAME_HEADER + b"\x00\x58" + blocks  # a gigabyte in 40 KB
    stream = open_stream("zstd", 16 << 20)
    pieces = stream.feed(bomb)
    assert [len(next(pieces)) for _ in range(3)] == [100_000] * 3
    stream = open_stream("gzip", 16 << 20)
    assert len(next(stream.feed(gzip.compress(bytes(50_000_000))))) == PIECE_BYTES


def test_a_window_beyond_the_memory_is_refused() -> None:
    data = streamed(TEXT, compression_params=zstandard.ZstdCompressionParameters(window_log=25))
    with pytest.raises(BudgetTooSmallError, match="window of 33554432 bytes"):
        inflate("zstd", data)
    assert inflate("zstd", data, limit=64 << 20) == TEXT


def test_a_dictionary_is_refused() -> None:
    maker = zstandard.train_dictionary(4096, [b"some text %d and more %d" % (i, i * i) for i in range(3000)])
    with pytest.raises(UnsupportedError, match="dictionary"):
        inflate("zstd", zstd(TEXT, dict_data=maker))


def test_zlib_streams_are_no_gzip() -> None:
    with pytest.raises(FormatError, match="header"):
        inflate("gzip", zlib.compress(TEXT))
