"""Samples of every kind the format keeps, for writing by one library and reading by the other."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

WORDS = ["alpha", "beta", "gamma", "delta", "Ωmega", "naïve", "雪", ""]


def text(i: int) -> dict[str, Any]:
    chance = random.Random(i)
    return {"id": i, "text": " ".join(chance.choices(WORDS, k=chance.randrange(30)))}


def leaves(i: int) -> dict[str, Any]:
    chance = np.random.default_rng(i)
    return {
        "bool": i % 2 == 0,
        "int": (-1) ** i * (2**62 + i),
        "float": [1.5, float("inf"), -0.0, float("nan"), 1e-300][i % 5],
        "str": f"täxt {i} \u2028 " + "x" * (i % 7),
        "bytes": bytes(range(i % 256)),
        "none": None,
        "vector": chance.standard_normal(i % 9).astype("<f4"),
        "matrix": chance.integers(0, 255, (i % 3, 4), dtype="u1"),
        "half": chance.standard_normal((2, 1, 3)).astype("<f2"),
        "complex": np.full(3, 1 + 2j * i),
        "flags": np.array([True, False, i % 2 == 1]),
        "tensor": torch.arange(i % 5, dtype=torch.int64),
        "grid": torch.full((2, i % 4), float(i)),
        "byte": torch.full((3, 2, 1), i % 200, dtype=torch.uint8),
    }


def images(i: int) -> dict[str, Any]:
    mode = ["L", "RGB", "RGBA"][i % 3]
    return {"image": Image.new(mode, (3 + i % 4, 5), i), "label": i}


def arrays(i: int) -> dict[str, Any]:
    """Rows that no version stores as Arrow."""
    chance = np.random.default_rng(i)
    return {"id": i, "values": chance.standard_normal(20 + i % 30).astype("<f4"), "name": f"row {i}"}


def nested(i: int) -> dict[str, Any]:
    return {
        "one": {"deep": {"deeper": i}, "other": f"s{i}"},
        "ordered": OrderedDict(b=i, a=-i),
        "array": np.arange(i % 4),
    }


def pair(i: int) -> tuple[int, list[Any]]:
    return i, [f"text {i}", (float(i), b"bytes"), np.arange(3) * i]


def single_str(i: int) -> str:
    return f"only a text {i}" * (i % 5)


def single_int(i: int) -> int:
    return i * 7


def single_array(i: int) -> Any:
    return np.arange(1 + i % 6, dtype="<i4").reshape(1, -1)


def numbered(i: int) -> dict[int, Any]:
    return {0: i, 1: f"keys are ints {i}", 7: np.ones(2)}


KINDS: dict[str, Callable[[int], Any]] = {
    function.__name__: function
    for function in (
        text, leaves, images, arrays, nested, pair, single_str, single_int, single_array, numbered,
    )
}  # fmt: skip


def samples(kind: str, count: int) -> list[Any]:
    return [KINDS[kind](i) for i in range(count)]
