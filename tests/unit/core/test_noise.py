"""Noise is told from what compresses: the estimate, against the entropy in plain Python and against zlib."""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazystore._core.noise import is_noise


def model(data: bytes) -> bool:
    if len(data) < 1024:
        return False
    step = (len(data) - 64) // 15
    sample = b"".join(data[i * step : i * step + 64] for i in range(16))
    return -sum(n / 1024 * math.log2(n / 1024) for n in Counter(sample).values()) > 7.7


@given(st.integers(1, 256), st.integers(0, 5000), st.randoms(use_true_random=False))
def test_the_estimate_is_the_entropy_of_a_sample(symbols: int, length: int, rng: object) -> None:
    data = bytes(rng.randrange(symbols) for _ in range(length))  # type: ignore[attr-defined]
    assert is_noise(data) == model(data)


@pytest.mark.parametrize("length", [1024, 1025, 10_000, 1_000_000])
def test_noise_is_noise(length: int) -> None:
    noise = os.urandom(length)
    assert is_noise(noise)
    assert is_noise(memoryview(noise))
    assert not is_noise(noise[:1023])


@pytest.mark.parametrize(
    "data",
    [
        bytes(5000),
        b"some text, as people write it. " * 100,
        struct.pack("<2000I", *range(2000)),
        struct.pack("<1000d", *(math.sin(i) for i in range(1000))),
        bytes(range(128)) * 40,
        zlib.compress(os.urandom(4000)).hex().encode(),
    ],
    ids=["zeros", "text", "integers", "floats", "ascii", "hex"],
)
def test_what_compresses_is_no_noise(data: bytes) -> None:
    assert not is_noise(data)


def test_only_buffers_are_taken() -> None:
    with pytest.raises(TypeError):
        is_noise("text")  # type: ignore[arg-type]
    with pytest.raises(BufferError):
        is_noise(memoryview(bytes(4000))[::2])
