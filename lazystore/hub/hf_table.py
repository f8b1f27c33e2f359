"""`HFTable`: a `datasets.Dataset` as a feed: Arrow tables on local disk or in memory, read by number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from lazystore.errors import ItemIndexError
from lazystore.hub.feed import Feed, Mark, Reading
from lazystore.hub.readings import IteratorReading, digest

if TYPE_CHECKING:
    from datasets import Dataset

    from lazystore.hub.hub_name import Origin

__all__ = ["HFTable"]


class HFTable(Feed):
    """A ``datasets.Dataset``: memory-mapped Arrow files, so nothing is cached once more. Samples are its own rows.

    Threads: any number may read. Fork, spawn: as the dataset.
    """

    random = True
    keeps = True

    def __init__(self, dataset: Dataset, *, name: str = "", identity: str = "", origin: Origin | None = None) -> None:
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
        if position >= len(dataset):  # datasets makes no empty selection there
            return IteratorReading(lambda: (), position)
        return IteratorReading(lambda: dataset.select(range(position, len(dataset))), position)

    def get(self, index: int) -> Any:
        if not 0 <= index < self.length:
            raise ItemIndexError(f"{self.name}: sample {index} is not in 0..{self.length - 1}")
        return self.dataset[index]

    def get_many(self, indices: Sequence[int]) -> list[Any]:
        return [self.get(index) for index in indices]

    def share(self, index: int, count: int) -> Self | None:
        part = range(self.length * index // count, self.length * (index + 1) // count)
        return type(self)(self.dataset.select(part), name=self.name, identity=digest(self.identity, part))

    def close(self) -> None:
        """Nothing: files are mapped as long as the dataset lives."""
