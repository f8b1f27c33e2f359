"""Values for the disk: what comes back as it was, what is refused, and compression that is bounded."""

from __future__ import annotations

import collections
import copy
import enum
import pickle
import struct
import threading
import zlib
from typing import Any

import numpy as np
import pytest

from lazystore.cache import packing
from lazystore.cache.packing import Codec, Unpackable, is_pickle, pack, saved_bytes, unpack
from lazystore.errors import ConfigError, FormatError, UnsafeDataError

PLAIN = Codec("none")


class Colour(enum.IntEnum):
    RED = 1


class Unwilling:
    def __reduce__(self) -> Any:
        raise RuntimeError("not me")


class Malicious:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("a pickle was read",))


def roundtrip(value: object, codec: Codec = PLAIN, **options: Any) -> Any:
    kind, buffers = pack(value, codec, **options)
    return unpack(kind, b"".join(map(bytes, buffers)), **options)


@pytest.mark.parametrize("codec", ["none", "zlib", "auto", "zstd:3"])
@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"bytes" * 100,
        "",
        "täxt \udc80 🎉" * 100,
        None,
        True,
        0,
        -(2**63),
        2**63,
        2**4000,
        1.5,
        [],
        (),
        {},
        [1, 1.0, True, "1", b"1", None, (1,), [1], {1: 2, "1": (), (1, 2): None}],
        {"deep": [{"er": [[[[()]]]]}] * 50},
    ],
    ids=lambda value: repr(value)[:20],
)
def test_plain_values_come_back_equal_and_of_the_same_types(value: object, codec: str) -> None:
    if codec.startswith("zstd"):
        pytest.importorskip("zstandard")
    found = roundtrip(value, Codec(codec))
    assert found == value
    assert type(found) is type(value)
    assert repr(found) == repr(value)


@pytest.mark.parametrize("value", [bytearray(b"abc"), memoryview(b"abc"), memoryview(b"a_b_c_")[::2]])
def test_bytes_like_objects_come_back_as_bytes(value: Any) -> None:
    assert roundtrip(value) == b"abc"


def test_memoryviews_of_other_items_come_back_as_their_bytes() -> None:
    assert roundtrip(memoryview(np.arange(4, dtype="<u2"))) == np.arange(4, dtype="<u2").tobytes()


ARRAYS = [
    np.arange(12).reshape(3, 4),
    np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    np.arange(24).reshape(2, 3, 4).transpose(1, 2, 0),
    np.zeros((0, 3), "f4"),
    np.array(3.5),
    np.array(["a", "bcd"]),
    np.array([b"a", b"bcd"]),
    np.array(["2026-01-01", "NaT"], "M8[D]"),
    np.array([(1, 2.0), (3, 4.0)], [("a", "<i4"), ("b", ">f8")]),
    np.array([True, False]),
    np.arange(5, dtype=">i2"),
    np.ones(3, "c16"),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}-{array.shape}")
def test_arrays_come_back_alike(array: np.ndarray[Any, Any]) -> None:
    for found in (roundtrip(array), roundtrip({"x": [array]})["x"][0], roundtrip(array, Codec("zlib"))):
        assert type(found) is np.ndarray
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found, array)
        assert found.flags.writeable
    assert roundtrip(np.asfortranarray(np.ones((2, 3)))).flags.f_contiguous


def test_an_array_that_cannot_be_written_to_stays_so() -> None:
    array = np.arange(5)
    array.flags.writeable = False
    assert not roundtrip(array).flags.writeable


def test_large_payloads_are_not_copied() -> None:
    data, array = bytes(10_000), np.zeros(10_000)
    assert pack(data, PLAIN)[1][0] is data
    assert np.shares_memory(np.frombuffer(pack(array, PLAIN)[1][1], array.dtype), array)


@pytest.mark.parametrize(
    "value",
    [
        {1, 2},
        object(),
        Colour.RED,
        collections.OrderedDict(a=1),
        collections.namedtuple("Point", "x y")(1, 2),
        np.float64(1.5),
        np.array([object()]),
        np.ma.masked_array([1, 2], [True, False]),
        np.zeros(2, np.dtype("i4", metadata={"a": 1})),
        [{"deep": {1, 2}}],
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_would_not_come_back_the_same_is_refused(value: object) -> None:
    with pytest.raises(Unpackable, match="allow_pickle=True"):
        pack(value, PLAIN)


def test_circles_are_refused() -> None:
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(Unpackable, match="deep"):
        pack(circle, PLAIN)


def test_pickles_need_to_be_asked_for_on_both_sides() -> None:
    value = {1, 2}
    kind, buffers = pack(value, PLAIN, allow_pickle=True)
    assert is_pickle(kind)
    assert unpack(kind, bytes(buffers[0]), allow_pickle=True) == value
    with pytest.raises(UnsafeDataError, match="allow_pickle"):
        unpack(kind, bytes(buffers[0]))
    assert not is_pickle(pack("plain", PLAIN, allow_pickle=True)[0])


def test_a_pickle_in_the_place_of_another_kind_is_not_read() -> None:
    evil = pickle.dumps(Malicious())
    for kind in {1, 2, 3, 4}:
        try:
            unpack(kind, evil, allow_pickle=False)
        except FormatError:
            continue
        assert kind == 1  # bytes are bytes


def test_what_does_not_pickle_is_unpackable() -> None:
    with pytest.raises(Unpackable, match="not me"):
        pack(Unwilling(), PLAIN, allow_pickle=True)


@pytest.mark.parametrize("codec", ["zlib", "auto"])
def test_only_what_gets_smaller_is_compressed(codec: str) -> None:
    import os

    noise, text = os.urandom(5000), b"all the same " * 400
    kind, buffers = pack(noise, Codec(codec))
    assert (kind, saved_bytes(kind, buffers)) == (1, 0)
    kind, buffers = pack(text, Codec(codec))
    stored = sum(len(bytes(part)) for part in buffers)
    assert kind > 15
    assert stored < len(text) * 0.9
    assert saved_bytes(kind, buffers) == len(text) - stored
    assert pack(b"short" * 10, Codec(codec))[0] == 1


def test_inflating_is_bounded() -> None:
    kind, buffers = pack(bytes(10_000_000), Codec("zlib"))
    whole = b"".join(map(bytes, buffers))
    with pytest.raises(FormatError, match="allowed"):
        unpack(kind, whole, limit=1_000_000)
    lying = struct.pack("<Q", 1000) + whole[8:]  # says 1000 bytes and holds ten million
    with pytest.raises(FormatError, match="damaged"):
        unpack(kind, lying)
    with pytest.raises(FormatError, match=r"inflated|damaged"):
        unpack(kind, whole[:-5])
    with pytest.raises(FormatError):
        unpack(kind, b"short")


def test_a_lying_zstd_frame_is_refused() -> None:
    pytest.importorskip("zstandard")
    kind, buffers = pack(bytes(1_000_000), Codec("zstd"))
    whole = b"".join(map(bytes, buffers))
    with pytest.raises(FormatError):
        unpack(kind, struct.pack("<Q", 1000) + whole[8:])
    with pytest.raises(FormatError):
        unpack(kind, whole[:-5])
    assert unpack(kind, whole) == bytes(1_000_000)


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (9, b""),
        (7 << 4 | 1, struct.pack("<Q", 1) + zlib.compress(b"x")),
        (2, b"\xff"),
        (3, b""),
        (3, b"NN"),
        (3, b"?"),
        (3, b"l\xff\xff\xff\xff"),
        (3, b"d\1\0\0\0l\0\0\0\0N"),
        (3, b"l\1\0\0\0" * 200 + b"N"),
        (4, b""),
        (4, b"\xff\xff\xff\xff"),
        (4, struct.pack("<I", 20) + b'["|O",[1],"C",false]' + bytes(8)),
        (4, struct.pack("<I", 21) + b'["<f8",[9],"C",false]' + bytes(8)),
    ],
)
def test_damaged_payloads_are_format_errors(kind: int, payload: bytes) -> None:
    with pytest.raises(FormatError):
        unpack(kind, payload)


@pytest.mark.parametrize("name", ["", "gzip", "zstd:0", "zstd:23", "zstd:", None, 3])
def test_unknown_codecs_are_refused(name: Any) -> None:
    with pytest.raises(ConfigError, match="codec"):
        Codec(name)


def test_without_zstd_auto_is_zlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "has_zstd", lambda: False)
    assert Codec("auto").flag == packing.ZLIB
    from lazystore.errors import MissingExtraError

    with pytest.raises(MissingExtraError, match="zstandard"):
        Codec("zstd:3")


def test_a_codec_copies_and_pickles() -> None:
    codec = pickle.loads(pickle.dumps(copy.deepcopy(Codec("zlib"))))
    assert (codec.name, codec.flag) == ("zlib", packing.ZLIB)


def test_threads_compress_at_once() -> None:
    codec, wrong = Codec("auto"), []

    def work(number: int) -> None:
        for turn in range(50):
            value = [f"{number} {turn}"] * 200
            if roundtrip(value, codec) != value:
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
