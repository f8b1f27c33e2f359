"""Array leaves: dtypes, ownership, and headers that lie."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

from lazystore._core.arrays import capsules
from lazystore._core.decode import DecodePlan
from lazystore.errors import FormatError

DTYPES = ["i1", "<i2", "<i4", "<i8", "u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8", "<c8", "<c16", "?"]


def one_d(index: int) -> DecodePlan:
    return DecodePlan([("array", index)], [("leaf",)], names=["x"], headless=True)


N_D = DecodePlan([("ndarray", None)], [("leaf",)], names=["x"], headless=True)


def header(index: int, *dims: int, ndim: int | None = None) -> bytes:
    return struct.pack(f"<{2 + len(dims)}I", index, len(dims) if ndim is None else ndim, *dims)


@pytest.mark.parametrize("index", range(len(DTYPES)))
def test_every_dtype_of_the_format_comes_back(index: int) -> None:
    values = np.arange(24).astype(DTYPES[index])
    found = one_d(index)(values.tobytes())
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)
    cube = N_D(header(index, 2, 3, 4) + values.tobytes())
    assert cube.dtype == values.dtype
    np.testing.assert_array_equal(cube, values.reshape(2, 3, 4))


@pytest.mark.parametrize("make", [lambda: one_d(9)(bytes(40)), lambda: N_D(header(9, 5, 2) + bytes(40))])
def test_arrays_own_writable_aligned_memory(make: Any) -> None:
    array = make()
    flags = array.flags
    assert flags.owndata
    assert flags.writeable
    assert flags.aligned
    assert flags.c_contiguous
    assert array.base is None
    array += 1
    assert array.sum() == 10


def test_bytes_at_odd_addresses_are_read_right() -> None:
    values = np.arange(10, dtype="<f8")
    for shift in range(1, 8):
        buffer = memoryview(bytearray(shift) + values.tobytes())[shift:]
        np.testing.assert_array_equal(one_d(10)(buffer), values)


def test_shapes_without_elements_and_without_dimensions() -> None:
    assert one_d(9)(b"").shape == (0,)
    assert N_D(header(9, 0)).shape == (0,)
    assert N_D(header(9, 3, 0, 7)).shape == (3, 0, 7)
    scalar = N_D(header(9) + struct.pack("<f", 2.5))
    assert scalar.shape == ()
    assert scalar == 2.5
    assert N_D(header(4, *[1] * 32) + b"\7").shape == (1,) * 32


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1234567",
        header(14, 1) + b"x",
        header(2**32 - 1, 1) + b"x",
        header(9, ndim=1),
        header(9, ndim=2**32 - 1),
        header(9, *[1] * 33) + bytes(4),
        header(9, 2) + bytes(7),
        header(9, 2) + bytes(9),
        header(9, 2) + bytes(12),
        header(9, 2**32 - 1),
        header(4, 2**16, 2**16, 2**16, 2**16),
        header(3, 2**31, 2**31, 4) + bytes(8),
        header(12, 2**30, 2**30) + bytes(16),
        header(9, 0) + b"x",
        header(9, 0, 2**32 - 1, 2**32 - 1, 2**32 - 1),
        header(9, *[2**32 - 1] * 31, 0),
    ],
)
def test_headers_that_lie_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        N_D(data)


@pytest.mark.parametrize(("index", "n"), [(1, 1), (3, 9), (12, 15), (9, 3)])
def test_half_elements_are_refused(index: int, n: int) -> None:
    with pytest.raises(FormatError, match=f"{n} bytes"):
        one_d(index)(bytes(n))


# -- MosaicML's ------------------------------------------------------------------------------

CODES = {
    8: "uint8", 9: "int8", 16: "uint16", 17: "int16", 18: "float16", 32: "uint32", 33: "int32", 34: "float32",
    64: "uint64", 65: "int64", 66: "float64",
}  # fmt: skip


def packed(dtype: str, shape: tuple[int, ...] | None) -> DecodePlan:
    return DecodePlan([("packed_array", (dtype, shape))], [("leaf",)], names=["x"], headless=True)


def shape_header(*dims: int, k: int = 0, ndim: int | None = None) -> bytes:
    head = bytes([(len(dims) if ndim is None else ndim) << 2 | k])
    return head + b"".join(dim.to_bytes(1 << k, "little") for dim in dims)


@pytest.mark.parametrize(("code", "dtype"), CODES.items())
def test_every_packed_dtype_comes_back_whatever_of_it_is_stored(code: int, dtype: str) -> None:
    values = np.arange(24).astype(dtype).reshape(2, 3, 4)
    data = values.tobytes()
    for k in range(4):
        head = shape_header(2, 3, 4, k=k)
        for found in (packed("", None)(bytes([code]) + head + data), packed(dtype, None)(head + data),
                      packed("", (2, 3, 4))(bytes([code]) + data), packed(dtype, (2, 3, 4))(data)):  # fmt: skip
            assert found.dtype == values.dtype
            np.testing.assert_array_equal(found, values)
            assert found.flags.owndata
            assert found.flags.writeable
            assert found.flags.aligned
    number = packed(dtype, ())(data[-values.itemsize :])
    assert type(number) is values.dtype.type
    assert number == 23


def test_the_codes_are_those_and_no_others() -> None:
    for code in set(range(256)) - CODES.keys():
        with pytest.raises(FormatError, match=f"code {code} "):
            packed("", None)(bytes([code]) + shape_header(1) + bytes(8))


def test_packed_bytes_at_odd_addresses_are_read_right() -> None:
    values = np.arange(300, dtype="<i2")
    stored = bytes.fromhex("11052c01") + values.tobytes()
    for shift in range(1, 9):
        np.testing.assert_array_equal(packed("", None)(memoryview(bytearray(shift) + stored)[shift:]), values)
        assert packed("float64", ())(memoryview(bytearray(shift) + np.float64(0.5).tobytes())[shift:]) == 0.5


def test_packed_arrays_without_elements_have_their_shape() -> None:
    assert packed("float32", None)(shape_header(0)).shape == (0,)
    assert packed("float32", None)(shape_header(3, 0, 2**48 // 3 - 1, k=3)).shape == (3, 0, 2**48 // 3 - 1)
    assert packed("float32", (0, 4))(b"").shape == (0, 4)


def test_packed_arrays_have_as_many_dimensions_as_numpy_can_have() -> None:
    for ndim in (32, 33, 63):
        data = shape_header(*[1] * ndim) + b"x"
        if ndim == 32 or np.lib.NumpyVersion(np.__version__) >= "2.0.0":
            assert packed("uint8", None)(data).shape == (1,) * ndim
        else:
            with pytest.raises(FormatError, match="dimensions"):
                packed("uint8", None)(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        shape_header(ndim=0) + bytes(4),
        shape_header(ndim=1),
        shape_header(k=3, ndim=63) + bytes(63 * 8 - 1),
        shape_header(2) + bytes(7),
        shape_header(2) + bytes(9),
        shape_header(2) + bytes(12),
        shape_header(2**32 - 1, k=2) + bytes(8),
        shape_header(2**64 - 1, k=3) + bytes(8),
        shape_header(2**63, k=3),
        shape_header(2**62, k=3),
        shape_header(2**32, 2**32, k=3),
        shape_header(2**32, 2**32, 0, k=3),
        shape_header(0, 2**64 - 1, k=3),
        shape_header(2**31, 2**31, 4, k=2) + bytes(8),
        shape_header(0) + b"x",
    ],
)
def test_packed_headers_that_lie_are_refused(data: bytes) -> None:
    for stored in (data, memoryview(data + bytes(64))[: len(data)]):
        with pytest.raises(FormatError):
            packed("float32", None)(stored)
    with pytest.raises(FormatError):
        packed("", None)(b"\x22" + data)


@pytest.mark.parametrize("shape", [(), (2,), (2, 3), (0,)])
def test_packed_arrays_of_a_known_shape_have_its_bytes(shape: tuple[int, ...]) -> None:
    right = 4 * int(np.prod(shape, dtype=int))
    for n in {0, 1, 4, 8, right - 1, right + 1, right + 4} - {right, -1}:
        with pytest.raises(FormatError, match=f"{n} bytes"):
            packed("int32", shape)(bytes(n))


def test_the_c_functions_come_as_capsules() -> None:
    assert [type(capsule).__name__ for capsule in capsules()] == ["PyCapsule"] * 3
    assert [repr(capsule).split('"')[1] for capsule in capsules()] == [
        "lazystore.make_1d",
        "lazystore.make_nd",
        "lazystore.make_packed",
    ]
