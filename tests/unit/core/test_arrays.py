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


def test_the_c_functions_come_as_capsules() -> None:
    assert [type(capsule).__name__ for capsule in capsules()] == ["PyCapsule", "PyCapsule"]
    assert [repr(capsule).split('"')[1] for capsule in capsules()] == ["lazystore.make_1d", "lazystore.make_nd"]
