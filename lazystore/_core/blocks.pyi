from array import array
from collections.abc import Sequence
from typing import Any

from typing_extensions import disjoint_base

from lazystore._core.permute import Permutation

__test__: dict[str, Any]

@disjoint_base
class Blocks:
    @property
    def items(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def largest(self) -> int: ...
    def __new__(
        cls,
        chunks: array[int],
        item_ends: array[int],
        block_ends: array[int],
        *,
        lead: int,
        nbytes: int,
        largest: int,
    ) -> Blocks: ...
    def span(self, block: int) -> tuple[int, int, int]: ...
    def count(self, order: Permutation, first: int, last: int) -> int: ...
    def find(self, order: Permutation, item: int) -> tuple[int, int]: ...
    def deal(self, order: Permutation, first: int, count: int) -> tuple[list[tuple[int, array[int]]], array[int]]: ...
    def __len__(self) -> int: ...
    def __reduce__(self) -> tuple[Any, ...]: ...

def cut_blocks(
    counts: Sequence[int],
    nbytes: Sequence[int],
    order: Permutation | None,
    first: int,
    last: int,
    *,
    block_bytes: int,
    block_items: int,
) -> Blocks: ...
def _rebuild(
    chunks: array[int], item_ends: array[int], block_ends: array[int], lead: int, nbytes: int, largest: int
) -> Blocks: ...
