"""A :class:`~support.sources.DiarySource` that has identities, for what remembers objects by them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from support.sources import DiarySource

from lazystore.cache.origins import Origin
from lazystore.errors import SourceChangedError
from lazystore.fetch.source import Read


class VersionedSource(DiarySource):
    """Objects that can be replaced; what was pinned is compared at every read, as real sources do.

    ``told`` False: the storage tells nothing but sizes. ``stats`` counts questions for identities.
    """

    told = True
    stats = 0

    def replace(self, name: str, data: bytes) -> None:
        self.objects[name] = data
        self.versions[name] = self.versions.get(name, 1) + 1

    @property
    def versions(self) -> dict[str, int]:
        return self.__dict__.setdefault("_versions", {})

    @property
    def pins(self) -> dict[str, str]:
        return self.__dict__.setdefault("_pins", {})

    def forget(self, name: str) -> None:
        self.pins.pop(name, None)

    def identity(self, name: str, *, timeout: float) -> str:
        return self._pin(name)

    def _pin(self, name: str) -> str:
        if name not in self.pins:
            type(self).stats += 1
            self.pins[name] = self._now(name)
        return self.pins[name]

    def _now(self, name: str) -> str:
        tag = f"v{self.versions.get(name, 1)}" if self.told else ""
        return f"{len(self._object(name))}-{tag}"

    def _land(self, reads: Sequence[Read], names: Iterable[str]) -> dict[str, int]:
        sizes = super()._land(reads, list(names))
        for name in [*sizes, *(read.name for read in reads)]:
            if self._pin(name) != self._now(name):
                raise SourceChangedError(f"{self.url}/{name} was changed", url=self.url)
        return sizes


def origin_of(source: VersionedSource, name: str = "a") -> Origin:
    """Where an object of it is, for a PagedObject."""
    return Origin(source, name, f"{source.url}/{name}", f"{source.url}/{name}")
