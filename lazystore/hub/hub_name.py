"""Hub names as feeds: the ways to read the same samples, their order, and the hub's errors as ours.

Reading Parquet ourselves is ``direct``'s; pipelines of ``datasets`` are ``hf_stream``'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lazystore.config import default_memory
from lazystore.errors import ConfigError, MissingExtraError
from lazystore.hub.feed import Feed
from lazystore.hub.readings import digest

__all__ = ["HubName", "next_way", "open_name"]

Way = Literal["lazystore", "datasets", "download"]
WAYS: tuple[Way, ...] = ("lazystore", "datasets", "download")


@dataclass(frozen=True, slots=True)
class HubName:
    """Samples of the hub by name, and how they may be read; see :class:`~lazystore.hub.StreamingDatasetWrapper`."""

    name: str
    config: str | None
    split: str
    columns: tuple[str, ...] | None
    revision: str | None
    token: str | bool | None
    memory: int
    timeout: float
    retries: int

    def open(self, way: Way) -> Feed:
        """The feed of one way. Raises ``direct.NotDirect`` where our own reader cannot."""
        if way == "lazystore":
            return self._direct()
        return self._by_datasets(streaming=way == "datasets", way=way)

    @property
    def identity(self) -> str:
        return digest("hub", self.name, self.config, self.split, self.columns, self.revision)

    def _direct(self) -> Feed:
        from lazystore.hub.direct import open_direct
        from lazystore.hub.own_sources import DatasetFeed

        dataset = open_direct(
            self.name, config=self.config, split=self.split, columns=self.columns, revision=self.revision,
            token=self.token, memory=self.memory, timeout=self.timeout,
        )  # fmt: skip
        return DatasetFeed(dataset, name=self.name, identity=self.identity, origin=(self, "lazystore"))

    def _by_datasets(self, *, streaming: bool, way: Way) -> Feed:
        try:
            import datasets
        except ImportError as error:
            raise MissingExtraError('hub datasets need the datasets package: pip install "lazystore[hf]"') from error
        from lazystore.hub.hf_stream import HFStream
        from lazystore.hub.hf_table import HFTable

        loaded: Any = datasets.load_dataset(
            self.name, self.config, split=self.split, revision=self.revision, token=self.token, streaming=streaming
        )
        if self.columns is not None:
            loaded = loaded.select_columns(list(self.columns))
        kind = HFStream if streaming else HFTable
        return kind(loaded, name=self.name, identity=self.identity, origin=(self, way))


def open_name(
    name: str,
    *,
    config: str | None,
    split: str,
    columns: Sequence[str] | None,
    revision: str | None,
    token: str | bool | None,
    via: str,
    streaming: bool,
    memory: int | None,
    timeout: float,
    retries: int,
) -> Feed:
    """The feed of a hub name; see :func:`lazystore.hub.sources.feed_of`."""
    if via not in ("auto", "lazystore", "datasets"):
        raise ConfigError(f"via={via!r} is not one of 'auto', 'lazystore' and 'datasets'")
    hub = HubName(
        name, config, split, None if columns is None else tuple(columns), revision, token,
        memory or default_memory(), timeout, retries,
    )  # fmt: skip
    if not streaming:
        return hub.open("download")
    if via == "datasets":
        return hub.open("datasets")
    try:
        from lazystore.hub.direct import NotDirect
    except ImportError:
        return hub.open("datasets")
    try:
        return hub.open("lazystore")
    except NotDirect as error:
        if via == "lazystore":
            raise ConfigError(f"{name} cannot be read with via='lazystore': {error}; leave via='auto'") from None
        return hub.open("datasets")


def next_way(feed: Feed) -> Feed | None:
    """What to go on with where this way of reading a hub name failed; None: there is none left."""
    origin = getattr(feed, "origin", None)
    if origin is None or origin[1] == WAYS[-1]:
        return None
    hub, way = origin
    found: Feed = hub.open(WAYS[WAYS.index(way) + 1])
    return found
