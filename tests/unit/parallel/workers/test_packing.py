"""Values come back as they were; what is large is not copied into the pickle, and bad values hurt only themselves."""

from __future__ import annotations

import os
import pickle
import platform
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.scripts import PATHS

from lazystore.parallel.workers.packing import (
    BESIDE,
    Packed,
    Part,
    joined,
    load,
    pack,
    packed_pickle,
    parts_of_memory,
    parts_of_store,
)

BIG = 100_000


def written(packed: Packed) -> bytes:
    return b"".join([b"" if packed.plain else packed.head(), *packed.pieces])


@pytest.fixture(params=["memory", "store"])
def way(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Takes what was packed to the other end, one way or the other."""
    fd = os.memfd_create("test")

    def parts(packed: Packed, data: bytes | None = None) -> Iterator[Part]:
        data = written(packed) if data is None else data
        if request.param == "memory":
            return parts_of_memory(memoryview(data), packed.plain)
        os.ftruncate(fd, 0)
        os.pwrite(fd, data, 1 << 40)
        return parts_of_store(fd, 1 << 40, len(data), packed.plain)

    yield parts
    os.close(fd)


def there(way: Any, value: object) -> Any:
    (part,) = way(pack(value))
    return load(part)


@pytest.mark.parametrize(
    "value",
    [
        None,
        list(range(100_000)),
        b"x" * BIG,
        [b"x" * BIG, "y" * BIG, "é" * BIG, bytearray(b"z" * BIG)],
        {"deep": ({"down": b"x" * (1 << 20)},)},
        [b"", "", bytearray()],
        ["a" * 1000] * 1000,
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_come_back(way: Any, value: object) -> None:
    back = there(way, value)
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize("count", [0, 1, BESIDE - 1, BESIDE, 1 << 20])
def test_arrays_come_back_and_can_be_written_to(way: Any, count: int) -> None:
    array = numpy.arange(count, dtype="u1")
    back = there(way, {"array": array})["array"]
    assert numpy.array_equal(back, array)
    assert back.flags.writeable
    back += 1
    assert numpy.array_equal(array, numpy.arange(count, dtype="u1"))


def test_arrays_that_cannot_be_written_to_stay_so(way: Any) -> None:
    for count in (10, 1 << 20):
        array = numpy.zeros(count, "u1")
        array.flags.writeable = False
        assert not there(way, array).flags.writeable


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_any_layout_come_back(way: Any, order: Any) -> None:
    array = numpy.arange(1 << 16, dtype="f8").reshape((256, 256), order=order)
    for some in (array, array[::2, 3:], array.T, array[:, ::-1]):
        assert numpy.array_equal(there(way, some), some)


def test_large_things_are_not_copied_into_the_pickle() -> None:
    data, array = b"x" * (1 << 20), numpy.zeros(1 << 20, "u1")
    packed = pack([data, {"deep": array}])
    assert any(piece is data for piece in packed.pieces)
    assert any(isinstance(piece, memoryview) and piece.nbytes == array.nbytes for piece in packed.pieces)
    assert packed.shape[1:] == [1, 1 << 20]


def test_one_object_that_is_there_twice_comes_back_as_one(way: Any) -> None:
    array, data = numpy.zeros(BIG, "u1"), b"x" * BIG
    back = there(way, [array, array, data, data])
    assert back[0] is back[1]
    assert back[2] is back[3]


def test_another_picklers_work_travels_as_well(way: Any) -> None:
    (part,) = way(packed_pickle(pickle.dumps([1, 2])))
    assert load(part) == [1, 2]


class Mine:
    """Comes back if it may."""

    def __init__(self, may: bool) -> None:
        self.may = may

    def __reduce__(self) -> tuple[object, ...]:
        return _mine, (self.may, b"x" * BIG)


def _mine(may: bool, _: bytes) -> Mine:
    if not may:
        raise LookupError("not here")
    return Mine(may)


def test_parts_are_independent(way: Any) -> None:
    shared = b"s" * BIG
    values = [1, Mine(may=False), shared, numpy.ones(BIG, "u1"), Mine(may=True), shared]
    parts = way(joined([pack(value) for value in values]))
    assert load(next(parts)) == 1
    with pytest.raises(LookupError):
        load(next(parts))
    assert load(next(parts)) == shared
    assert load(next(parts)).sum() == BIG
    assert load(next(parts)).may
    assert load(next(parts)) == shared
    assert next(parts, None) is None


def test_what_does_not_pickle_raises_its_own_error() -> None:
    with pytest.raises((AttributeError, pickle.PicklingError)):
        pack(lambda: None)
    with pytest.raises(TypeError):
        pack([b"x" * BIG, (item for item in [1])])


@settings(max_examples=60)
@given(st.data())
def test_damaged_messages_are_told_from_whole_ones(data: st.DataObject) -> None:
    packed = joined([pack([1]), pack(numpy.zeros(BESIDE, "u1")), pack(b"x" * BESIDE * 3)])
    whole = written(packed)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(EOFError):
        list(parts_of_memory(memoryview(whole[:cut]), plain=False))
    place = data.draw(st.integers(0, 8 * packed.shape.__len__() + 7))
    bent = bytearray(whole)
    bent[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises((EOFError, MemoryError)):
        list(parts_of_memory(memoryview(bytes(bent)), plain=False))


def test_a_file_that_is_too_short_is_an_end(way: Any) -> None:
    fd = os.memfd_create("test")
    try:
        for size in (0, 100, BIG - 1):
            os.ftruncate(fd, size)
            with pytest.raises(EOFError):
                list(parts_of_store(fd, 0, BIG, plain=True))
    finally:
        os.close(fd)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others have ways of their own")
def test_memory_of_large_values_is_kept_for_the_next_ones() -> None:
    code = """
import resource, sys
from lazystore.parallel.workers.packing import keep_freed

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for count in [1, 5, 2, 5, 1, 4] * 5:
        values = [b"x" * 1_000_000 for _ in range(count)]
        del values
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
before = faults()
keep_freed(1_000_000)
faults()
# the system may take pages away for a moment, whoever they belong to
assert min(faults() for _ in range(5)) < before / 5, before
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(PATHS)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
