"""`HFTable`: a `datasets.Dataset` as a feed: Arrow tables on local disk or in memory, read by number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from lazystore.errors import ItemIndexError
from lazystore.hub.feed import Feed, Mark, Reading
from lazystore.hub.readings import IteratorReading, digest

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["HFTable"]


class HFTable(Feed):
    """A ``datasets.Dataset``: memory-mapped Arrow files, so nothing is cached once more. Samples are its own rows.

    Threads: any number may read. Fork, spawn: as the dataset.
    """

    random = True
    keeps = True

    def __init__(self, dataset: Dataset, *, name: str = "", identity: str = "", origin: Any = None) -> None:
        self.origin = origin
        self.dataset = dataset
        self.name = name or str(dataset.info.dataset_name or "datasets.Dataset")
        self._identity = identity

    @property
    def length(self) -> int:  # type: ignore[override]
        return len(self.dataset)

    @property
    def identity(self) -> str:
        return self._identity or digest("table", self.dataset._fingerprint, str(self.dataset.format["type"]))

    def open(self, position: int = 0, mark: Mark | None = None) -> Reading:
        dataset = self.dataset
        if position == 0:
            return IteratorReading(lambda: dataset)
        return IteratorReading(lambda: dataset.select(range(min(position, len(dataset)), len(dataset))), position)

    def get(self, index: int) -> Any:
        if not 0 <= index < self.length:
            raise ItemIndexError(f"{self.name}: sample {index} is not in 0..{self.length - 1}")
        return self.dataset[index]

    def get_many(self, indices: Sequence[int]) -> list[Any]:
        return [self.get(index) for index in indices]

    def share(self, index: int, count: int) -> Self | None:
        return type(self)(self.dataset.shard(count, index, contiguous=True), name=self.name)

    def close(self) -> None:
        """Nothing: the dataset was given."""
