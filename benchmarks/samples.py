"""The three datasets: how large they are, what is in them, and a hash over some of their samples.

Samples are a pure function of (kind, index block): every writer gets the same ones, and so does
every check. Nothing here knows a file format.
"""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["KINDS", "PROFILES", "Profile", "digest", "probe_indices", "samples", "sizes"]

KINDS = ("text", "arr", "blob")
SEED = 20240917
MB = 1_000_000
#: Samples are made in blocks of this many, each from a generator of its own.
BLOCK = 500
ARRAY_LENGTH = 256
IMAGE_BYTES = (20_000, 100_000)
#: Samples hashed for the comparison of contenders.
PROBES = 64


@dataclass(frozen=True)
class Profile:
    """Sizes of one run: the full one is what results are quoted from, the quick one is a smoke test.

    Attributes:
        counts: samples by kind.
        chunk_bytes: chunk size by kind, bytes.
        memory: budget of the ordinary runs, bytes; about a quarter of blob.
        small: budgets of the larger-than-memory runs, bytes; the first is about 1/15 of blob.
        resident: a budget that holds the whole of blob, bytes.
    """

    name: str
    counts: dict[str, int]
    chunk_bytes: dict[str, int]
    memory: int
    small: tuple[int, ...]
    resident: int


PROFILES = {
    "full": Profile(
        name="full",
        counts={"text": 400_000, "arr": 100_000, "blob": 16_000},
        chunk_bytes={"text": 8 * MB, "arr": 16 * MB, "blob": 64 * MB},
        memory=256 * MB,
        small=(64 * MB, 8 * MB),
        resident=1200 * MB,
    ),
    "quick": Profile(
        name="quick",
        counts={"text": 40_000, "arr": 10_000, "blob": 1_600},
        chunk_bytes={"text": MB, "arr": 2 * MB, "blob": 6 * MB},
        memory=26 * MB,
        small=(6 * MB, 3 * MB),
        resident=120 * MB,
    ),
}


def samples(kind: str, count: int, start: int = 0) -> Iterator[dict[str, Any]]:
    """Samples ``start`` to ``count`` of a kind, the same ones on every call."""
    make = {"text": _text, "arr": _array, "blob": _blob}[kind]
    for block in range(start // BLOCK, -(-count // BLOCK)):
        for offset, sample in enumerate(make(block)):
            if start <= block * BLOCK + offset < count:
                yield sample


@functools.cache
def _words() -> list[str]:
    """2,000 made-up words; two of them have a letter outside ASCII: 1 text in 25 is not plain ASCII."""
    rng = random.Random(SEED)
    words = []
    for number in range(2000):
        word = "".join(rng.choices("etaoinshrdlucmfwypvbgk", k=rng.randint(2, 9)))
        words.append(word + "é" if number % 1000 == 0 else word)
    return words


def _text(block: int) -> Iterator[dict[str, Any]]:
    rng = random.Random(SEED * 3 + block)
    words = _words()
    for offset in range(BLOCK):
        yield {"id": block * BLOCK + offset, "text": " ".join(rng.choices(words, k=rng.randint(24, 54)))}


def _array(block: int) -> Iterator[dict[str, Any]]:
    import numpy as np

    rng = np.random.default_rng([SEED, 1, block])
    rows = rng.standard_normal((BLOCK, ARRAY_LENGTH), dtype=np.float32)
    for offset in range(BLOCK):
        yield {"x": rows[offset].copy(), "y": block * BLOCK + offset}


def _blob(block: int) -> Iterator[dict[str, Any]]:
    import numpy as np

    rng = np.random.default_rng([SEED, 2, block])
    lengths = rng.integers(*IMAGE_BYTES, size=BLOCK, endpoint=True)
    for offset in range(BLOCK):
        yield {"image": rng.bytes(int(lengths[offset])), "label": block * BLOCK + offset}


def sizes(kind: str, count: int) -> list[int]:
    """Classic LitData item sizes of the first ``count`` samples of text or blob, bytes."""
    key = {"text": "text", "blob": "image"}[kind]
    header = 2 * 4 + 8  # two leaf sizes and the integer
    return [header + len(_raw(sample[key])) for sample in samples(kind, count)]


def _raw(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)


def probe_indices(count: int) -> list[int]:
    """The indices whose samples are hashed: both ends, the middle, and random ones; ascending."""
    chosen = {0, 1, count // 2, count - 2, count - 1}
    chosen.update(random.Random(SEED).sample(range(count), min(PROBES, count)))
    return sorted(chosen)


def digest(picked: Iterable[tuple[int, Any]]) -> str:
    """One hash over (index, sample) pairs, equal for equal values in whatever type a library yields."""
    state = hashlib.blake2b(digest_size=8)
    for index, sample in picked:
        state.update(b"#%d" % index)
        for key in sorted(sample):
            state.update(key.encode() + b"=")
            state.update(_canonical(sample[key]))
    return state.hexdigest()


def _canonical(value: Any) -> bytes:
    if isinstance(value, str):
        return b"s" + value.encode()
    if isinstance(value, (bytes, bytearray, memoryview)):
        return b"b" + bytes(value)
    if getattr(value, "ndim", 0) or isinstance(value, list):
        import numpy as np

        return b"f" + np.asarray(value, dtype=np.float32).tobytes()
    return b"i%d" % int(value)
