"""Collating by decoding everything first: the oracle of the sinks.

A batch is a list of decoded leaves; columns are made with numpy when it is taken.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from models.decode_plan import assemble, leaf, split

from lazystore.errors import ConfigError

SCALARS = {"int": "<i8", "float": "<f8", "bool": "?"}


def column(op: str, values: list[Any]) -> Any:
    if op in SCALARS:
        return np.array(values, SCALARS[op])
    if op in ("array", "ndarray"):
        first = values[0]
        if first.size and first.ndim < 32 and all((v.dtype, v.shape) == (first.dtype, first.shape) for v in values):
            return np.stack(values)
    return values


class ColumnSinkModel:
    def __init__(
        self, leaves: list[tuple[str, Any]], tree: list[tuple[Any, ...]], capacity: int, *, headless: bool = False
    ) -> None:
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
        parts = [item] if self.headless else split(item, len(self.leaves))
        self.items.append([leaf(op, argument, data) for (op, argument), data in zip(self.leaves, parts, strict=True)])

    def take_batch(self) -> Any:
        if not self.items:
            raise ConfigError("empty")
        columns = [column(op, [item[k] for item in self.items]) for k, (op, _) in enumerate(self.leaves)]
        self.items = []
        return assemble(self.tree, columns)


def arrays_in(batch: Any) -> list[Any]:
    """The arrays anywhere in a batch."""
    if isinstance(batch, np.ndarray):
        return [batch]
    if isinstance(batch, dict):
        batch = list(batch.values())
    return [array for part in batch for array in arrays_in(part)] if isinstance(batch, (list, tuple)) else []
