"""Codecs of whole chunks: the right bytes, in bounded memory, or an error that says what is wrong."""

from __future__ import annotations

import bz2
import gzip
import io
import random
import re
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.golden import GOLDEN

from lazystore.errors import BudgetTooSmallError, FetchError, FormatError, MissingExtraError, UnsupportedError
from lazystore.formats.stream_codecs import brotli_window, codec_for

LARGE = 1 << 27
CONTENT = random.Random(4).randbytes(90_000) + bytes(300_000) + b"the end, " * 1000


def _zstd(data: bytes) -> bytes:
    return bytes(pytest.importorskip("zstandard").ZstdCompressor().compress(data))


def _brotli(data: bytes) -> bytes:
    return bytes(pytest.importorskip("brotli").compress(data, quality=5))


def _snappy(data: bytes) -> bytes:
    return bytes(pytest.importorskip("cramjam").snappy.compress_raw(data))


PACK: dict[str, Callable[[bytes], bytes]] = {
    "zstd": _zstd,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "br": _brotli,
    "snappy": _snappy,
}
#: Streams that may follow each other in one file.
SEVERAL = ["zstd", "gz", "bz2"]
ALL = list(PACK)


class Stream(io.BytesIO):
    """As the cache gives them: peekable, and at most ``drop`` bytes a read."""

    def __init__(self, data: bytes, drop: int = sys.maxsize) -> None:
        super().__init__(data)
        self.drop = drop

    def peek(self, n: int) -> bytes:
        return bytes(self.getbuffer()[self.tell() : self.tell() + n])

    def read(self, n: int | None = -1, /) -> bytes:
        return super().read(min(self.drop, n if n is not None and n >= 0 else self.drop))


def inflate(
    name: str, data: bytes, size: int = 0, *, limit: int = LARGE, steps: Any = (), drop: int = 1 << 20
) -> bytes:
    inflater = codec_for(name).open(Stream(data, drop), limit=limit, stored=len(data), size=size)
    out = bytearray()
    for step in (*steps, *[64_000] * (len(CONTENT) // 64_000 + 8)):
        piece = memoryview(bytearray(step))
        got = inflater.readinto(piece)
        out += piece[:got]
        if got < step:
            break
    assert inflater.readinto(memoryview(bytearray(10))) == 0, "it ended, and goes on"
    return bytes(out)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("content", [b"", b"x", CONTENT], ids=len)
def test_what_was_packed_comes_back(name: str, known: bool, content: bytes) -> None:
    assert inflate(name, PACK[name](content), len(content) if known else 0) == content


@pytest.mark.parametrize("name", ALL)
@given(st.lists(st.integers(0, 50_000), max_size=12), st.sampled_from([1 << 20, 4096, 70_001]))
def test_pieces_of_any_size_follow_each_other(name: str, steps: list[int], drop: int) -> None:
    assert inflate(name, packed(name), len(CONTENT), steps=steps, drop=drop) == CONTENT


@pytest.mark.parametrize("name", ALL)
def test_stored_bytes_may_come_in_drops(name: str) -> None:
    content = CONTENT[89_000:91_000]
    assert inflate(name, PACK[name](content), len(content), drop=1) == content


_packed: dict[str, bytes] = {}


def packed(name: str) -> bytes:
    return _packed.setdefault(name, PACK[name](CONTENT))


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize("drop", [1, 1 << 20])
def test_several_streams_are_one(name: str, drop: int) -> None:
    parts = [b"first ", b"", b"second " * 30, b"third"]
    data = b"".join(PACK[name](part) for part in parts)
    whole = b"".join(parts)
    assert inflate(name, data, len(whole), drop=drop) == whole
    if name != "zstd":  # the first frame declares its size, which is taken for all there is
        assert inflate(name, data, drop=drop) == whole


def test_zstd_frames_that_declare_nothing_and_skippable_ones_are_read_through() -> None:
    zstandard = pytest.importorskip("zstandard")
    packer = zstandard.ZstdCompressor(write_content_size=False, write_checksum=True)
    data = packer.compress(b"one ") + b"\x5a\x2a\x4d\x18\x03\0\0\0abc" + packer.compress(b"two" * 100_000)
    assert inflate("zstd", data) == b"one " + b"two" * 100_000
    assert inflate("zstd", data, drop=1) == b"one " + b"two" * 100_000


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("known", [True, False])
def test_other_bytes_after_the_end_are_an_error(name: str, known: bool) -> None:
    for tail in (b"x", b"\0" * 8, b"garbage" * 20_000):
        with pytest.raises(FormatError):
            inflate(name, packed(name) + tail, len(CONTENT) if known else 0)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("known", [True, False])
def test_an_early_end_is_an_error_wherever_it_is(name: str, known: bool) -> None:
    data = PACK[name](CONTENT[89_900:90_300])
    for keep in range(len(data)):
        with pytest.raises(FormatError):
            inflate(name, data[:keep], 400 if known else 0)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("wrong", [-1, 1, 1 << 40])
def test_another_size_than_the_index_says_is_an_error(name: str, wrong: int) -> None:
    with pytest.raises((FormatError, BudgetTooSmallError)):
        inflate(name, packed(name), len(CONTENT) + wrong)


@pytest.mark.parametrize("name", ALL)
@given(st.data())
def test_damaged_bytes_give_an_error_or_a_chunk_of_the_right_length(name: str, data: st.DataObject) -> None:
    good = CONTENT[89_500:92_000]
    stored = bytearray(PACK[name](good))
    for _ in range(data.draw(st.integers(1, 4))):
        stored[data.draw(st.integers(0, len(stored) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = inflate(name, bytes(stored), len(good), limit=1 << 24)
    except (FormatError, BudgetTooSmallError):
        return
    assert len(found) == len(good)
    if name in ("gz", "bz2"):  # their check sums say so
        assert found == good


@pytest.mark.parametrize("name", ALL)
@given(st.binary(max_size=200), st.sampled_from([0, 5, 1000]))
def test_any_bytes_are_an_error_or_a_stream(name: str, data: bytes, size: int) -> None:
    try:
        found = inflate(name, data, size, limit=1 << 24)
    except (FormatError, BudgetTooSmallError):
        return
    assert not size or len(found) == size


BOMB = bytes(1 << 26)


@pytest.mark.parametrize("name", ["zstd", "gz", "bz2", "br"])
@pytest.mark.parametrize("size", [1000, 0])
def test_a_bomb_gives_no_more_than_is_asked_for(name: str, size: int) -> None:
    data = PACK[name](BOMB)
    view = memoryview(bytearray(1000))
    codec = codec_for(name)
    tracemalloc.start()
    try:
        try:
            inflater = codec.open(Stream(data), limit=LARGE, stored=len(data), size=size)
            assert inflater.readinto(view) == 1000
        except FormatError:
            assert size
        assert tracemalloc.get_traced_memory()[1] < 6 << 20
    finally:
        tracemalloc.stop()


def test_a_snappy_block_is_measured_before_anything_is_allocated() -> None:
    codec = codec_for("snappy")
    for claimed in (b"\xff\xff\xff\xff\x0f", b"\xff\xff\xff\xff\x7f", b"\x80" * 9):
        with pytest.raises((FormatError, BudgetTooSmallError)):
            codec.open(Stream(claimed + b"x" * 50), limit=1 << 20, stored=55, size=0)
    with pytest.raises(BudgetTooSmallError, match=r"needs \d+ bytes"):
        codec.open(Stream(packed("snappy")), limit=10_000, stored=0, size=0)
    with pytest.raises(FormatError):  # more stored bytes than any block of that length has
        codec.open(Stream(b"\x05" + b"x" * 100_000), limit=1 << 20, stored=0, size=5)


@pytest.mark.parametrize("name", ALL)
def test_too_little_memory_is_said_before_any_is_taken(name: str) -> None:
    with pytest.raises(BudgetTooSmallError, match=r"needs \d+ bytes"):
        codec_for(name).open(Stream(packed(name)), limit=1024, stored=len(packed(name)), size=len(CONTENT))


@pytest.mark.parametrize("name", ALL)
def test_the_memory_said_is_enough_to_open_with(name: str) -> None:
    data, codec = packed(name), codec_for(name, largest=len(CONTENT))
    memory = codec.open(Stream(data), limit=LARGE, stored=len(data), size=len(CONTENT)).memory
    assert 0 < memory < 8 << 20
    assert name == "zstd" or memory <= codec.memory
    assert inflate(name, data, len(CONTENT), limit=max(memory, codec.memory)) == CONTENT


@pytest.mark.parametrize("name", ALL)
def test_a_storage_error_stays_one(name: str) -> None:
    class Broken(Stream):
        def read(self, n: int | None = -1, /) -> bytes:
            if self.tell() > 50:
                raise FetchError("the storage is away")
            return super().read(min(40, n or 40))

    with pytest.raises(FetchError, match="away"):
        inflater = codec_for(name).open(Broken(packed(name)), limit=LARGE, stored=0, size=len(CONTENT))
        inflater.readinto(memoryview(bytearray(len(CONTENT))))


@pytest.mark.parametrize("name", ["zstd:1", "zstd:22", "gz:0", "gz:9", "bz2:1", "br:0", "br:11", "snappy"])
def test_levels_are_part_of_the_name_and_nothing_more(name: str) -> None:
    algorithm = name.partition(":")[0]
    assert codec_for(name).name == name
    assert inflate(name, PACK[algorithm](b"abc"), 3) == b"abc"


@pytest.mark.parametrize(
    "name", ["", "zstd:0", "zstd:23", "gz:10", "bz2:0", "br:12", "snappy:1", "lz4", "gzip", "ZSTD", "zstd:", "gz:-1"]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UnsupportedError, match=re.escape(repr(name))):
        codec_for(name)


@pytest.mark.parametrize(
    ("name", "module", "extra"), [("br", "brotli", "mds"), ("snappy", "cramjam", "mds"), ("zstd", "zstandard", "zstd")]
)
def test_a_missing_package_is_named_with_its_extra(
    name: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"{module}.*pip install lazystore\[{extra}\]"):
        codec_for(name)


def test_the_windows_of_brotli_are_those_of_its_standard() -> None:
    brotli = pytest.importorskip("brotli")
    for bits in range(10, 25):
        head = brotli.compress(b"some bytes, so that nothing special happens " * 50, lgwin=bits)[0]
        assert brotli_window(head) == 1 << bits
    assert brotli_window(0b0010001) == 0


@pytest.mark.parametrize("name", ["br", "bz2", "gz", "snappy", "zstd"])
def test_shards_of_the_real_writer_inflate_to_their_indexed_length(name: str) -> None:
    pytest.importorskip(
        {"br": "brotli", "snappy": "cramjam", "zstd": "zstandard"}.get(name, name.replace("gz", "gzip"))
    )
    import json

    folder: Path = GOLDEN / f"mds-{name}" / "data"
    for shard in json.loads((folder / "index.json").read_bytes())["shards"]:
        stored = (folder / shard["zip_data"]["basename"]).read_bytes()
        found = inflate(shard["compression"], stored, shard["raw_data"]["bytes"])
        assert int.from_bytes(found[:4], "little") == shard["samples"]
