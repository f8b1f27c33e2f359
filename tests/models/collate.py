"""Collating by decoding everything first: the oracle of the sinks.

A batch is a list of decoded leaves; columns are made with numpy when it is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from models.decode_plan import assemble, leaves_of

from lazystore.errors import ConfigError

SCALARS = {"int": "<i8", "float": "<f8", "bool": "?"}


def column(op: str, values: list[Any]) -> Any:
    if any(value is None for value in values):
        return values
    if op in SCALARS:
        return np.array(values, SCALARS[op])
    if op in ("array", "ndarray", "packed_array"):
        first = values[0]
        if first.size and first.ndim < 32 and all((v.dtype, v.shape) == (first.dtype, first.shape) for v in values):
            return np.stack(values)
    return values


class ColumnSinkModel:
    def __init__(
        self,
        leaves: list[tuple[Any, ...]],
        tree: list[tuple[Any, ...]],
        capacity: int,
        *,
        headless: bool = False,
        opener: Callable[[bytes], bytes] | None = None,
    ) -> None:
        self.opener = opener
        self.leaves = leaves
        self.tree = tree
        self.capacity = capacity
        self.headless = headless
        self.items: list[list[Any]] = []

    @property
    def count(self) -> int:
        return len(self.items)

    def add_bytes(self, item: bytes) -> None:
        if self.count == self.capacity:
            raise ConfigError("full")
        if self.opener is not None:
            item = self.opener(item)
        self.items.append(leaves_of(item, self.leaves, self.headless))

    def take_batch(self) -> Any:
        if not self.items:
            raise ConfigError("empty")
        columns = [column(op, [item[k] for item in self.items]) for k, (op, *_) in enumerate(self.leaves)]
        self.items = []
        return assemble(self.tree, columns)


def arrays_in(batch: Any) -> list[Any]:
    """The arrays anywhere in a batch."""
    if isinstance(batch, np.ndarray):
        return [batch]
    if isinstance(batch, dict):
        batch = list(batch.values())
    return [array for part in batch for array in arrays_in(part)] if isinstance(batch, (list, tuple)) else []
