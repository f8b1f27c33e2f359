"""CRC-32C: the golden values of RFC 3720 (B.4), by vectors, by the processor's instruction and by tables."""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable

import pytest

from lazystore._core.checksum import IMPLEMENTATION, crc32c, crc32c_narrow, crc32c_tables

GOLDEN = [
    (bytes(32), 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(range(31, -1, -1)), 0x113FDB5C),
    (
        bytes.fromhex(
            "01c000000000000000000000000000001400000000000400000000140000001828000000000000000200000000000000"
        ),
        0xD9963A56,
    ),
    (b"123456789", 0xE3069283),
    (b"", 0),
]
every = pytest.mark.parametrize("function", [crc32c, crc32c_narrow, crc32c_tables])


@every
@pytest.mark.parametrize(("data", "value"), GOLDEN)
def test_golden_values(function: Callable[..., int], data: bytes, value: int) -> None:
    assert function(data) == value


@every
@pytest.mark.parametrize("length", [1, 7, 8, 511, 512, 513, 767, 768, 769, 831, 6143, 6144, 6145, 40_000, 100_001])
def test_any_way_to_cut_gives_the_same(function: Callable[..., int], length: int) -> None:
    data = bytes(i * 7 + (i >> 8) & 255 for i in range(length))
    whole = crc32c_tables(data)
    assert function(data) == whole
    for cut in {0, 1, length // 3, length // 2, length}:
        assert function(data[cut:], function(data[:cut])) == whole
        assert function(memoryview(data)[cut:], crc32c_tables(data[:cut])) == whole


@every
def test_what_is_no_contiguous_buffer_is_refused(function: Callable[..., int]) -> None:
    with pytest.raises(BufferError):
        function(memoryview(bytes(10))[::2])
    with pytest.raises(TypeError):
        function("text")
    with pytest.raises(OverflowError):
        function(b"", -1)


def test_the_instruction_is_used_where_there_is_one() -> None:
    if platform.machine() in ("x86_64", "AMD64"):
        assert IMPLEMENTATION in ("avx512", "sse4.2", "tables")
    elif platform.machine() in ("arm64", "aarch64"):
        assert IMPLEMENTATION in ("armv8", "tables")
    else:
        assert IMPLEMENTATION == "tables"


def test_threads_hash_at_once() -> None:
    data = bytes(range(256)) * 4096
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(crc32c(data))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [crc32c_tables(data)] * 4
