"""Leaves that are fixed or nullable, for property tests: schemas of them, and items that follow those."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st
from models.decode_plan import DTYPES, NULL, flags_of

Leaf = tuple[Any, ...]
LeafBytes = Callable[[st.DrawFn, Leaf], bytes]

NUMBER_BYTES = {"int": 8, "float": 8, "bool": 1}


def fixed_sizes(leaf: Leaf) -> st.SearchStrategy[int] | None:
    """How long a leaf can always be; None if its bytes say themselves how many they are."""
    op, argument = leaf[:2]
    if op in NUMBER_BYTES:
        return st.just(NUMBER_BYTES[op])
    if op == "array":
        return st.integers(0, 3).map(lambda n: n * np.dtype(DTYPES[argument]).itemsize)
    if op == "packed_array":
        dtype, shape = argument
        return st.just(math.prod(shape) * np.dtype(dtype).itemsize) if dtype and shape is not None else None
    return None if op in ("ndarray", "value") else st.integers(0, 5)


def flagged(leaves: st.SearchStrategy[Leaf]) -> st.SearchStrategy[Leaf]:
    """The leaves as they are, fixed, or nullable."""

    def choose(leaf: Leaf) -> st.SearchStrategy[Leaf]:
        sizes = fixed_sizes(leaf)
        found: list[st.SearchStrategy[Leaf]] = [st.just(leaf), st.just((*leaf, {"nullable": True}))]
        if sizes is not None:
            found.append(sizes.map(lambda n: (*leaf, {"fixed": n})))
        return st.one_of(found)

    return leaves.flatmap(choose)


def item_of(draw: st.DrawFn, leaves: list[Leaf], leaf_bytes: LeafBytes) -> bytes:
    """An item: its sizes and leaves, those that are not fixed as ``leaf_bytes`` draws them."""
    sizes: list[int] = []
    parts: list[bytes] = []
    for leaf in leaves:
        flags = flags_of(leaf)
        if flags.get("nullable") and draw(st.booleans()):
            sizes.append(NULL)
            continue
        if "fixed" in flags and leaf[0] not in NUMBER_BYTES:
            n = flags["fixed"]
            parts.append(draw(st.sampled_from([b"a", b"\x01"])) * n)
        else:
            parts.append(leaf_bytes(draw, leaf))
        if "fixed" not in flags:
            sizes.append(len(parts[-1]))
    return struct.pack(f"<{len(sizes)}I", *sizes) + b"".join(parts)
