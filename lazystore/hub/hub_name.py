"""Hub names as feeds: the ways to read the same samples, and which comes after which.

Reading Parquet ourselves is ``direct``'s; pipelines of ``datasets`` are ``hf_stream``'s; what its errors mean,
``hub_errors``'s.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from lazystore.config import default_memory
from lazystore.errors import ConfigError, MissingExtraError
from lazystore.fetch.options import redacted
from lazystore.hub.feed import Feed, Mark, Reading
from lazystore.hub.hub_errors import translated
from lazystore.hub.near import near
from lazystore.hub.readings import IteratorReading, digest

__all__ = ["HubName", "Origin", "Section", "next_way", "open_name"]

#: Our own reader; the pipeline of ``datasets`` over the network; all of it downloaded by ``datasets`` first.
Way = Literal["lazystore", "datasets", "download"]
WAYS: tuple[Way, ...] = ("lazystore", "datasets", "download")
_log = logging.getLogger(__name__)
_COMMIT = re.compile(r"hf://datasets/[^@\s]+@([0-9a-f]{40})/")
_ELSEWHERE = re.compile(r"\w+://|.*\.(parquet|arrow|jsonl?|csv|tsv|txt)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class HubName:
    """Samples of the hub by name; see :class:`~lazystore.hub.StreamingDatasetWrapper` for what the fields mean.

    Attributes:
        memory: bytes that our own reader may hold.
        timeout: seconds to open it, retries included.
        retries: attempts at that after the first.
    """

    name: str
    config: str | None
    split: str
    columns: tuple[str, ...] | None
    revision: str | None
    token: str | bool | None
    memory: int
    timeout: float
    retries: int

    def open(self, way: Way, why: str = "") -> Feed:
        """The feed of one way.

        Parameters:
            why: no way before it was taken.

        Raises:
            NotDirect: our own reader cannot. DatasetNotFoundError, HubAccessError, ConfigError, FetchError,
            UnsupportedError, MissingExtraError.
        """
        found = self._direct() if way == "lazystore" else self._by_datasets(way, why)
        _log.debug("%s: split %r by way of %s%s", self.name, self.split, way, f" ({why})" if why else "")
        return found

    def ask(self) -> None:
        """Raise unless the hub answers within ``timeout``: from one that is silent ``datasets`` downloads for minutes.

        Raises:
            FetchError, HubAccessError, DatasetNotFoundError.
        """
        from lazystore.hub.repository import hub_token, read_repository

        read_repository(self.name, revision=self.revision, token=hub_token(self.token), timeout=self.timeout)

    def identity(self, commit: str) -> str:
        """The same of every way, so that a state is good for all of them."""
        return digest("hub", self.name, self.config, self.split, self.columns, commit or self.revision)

    def _direct(self) -> Feed:
        from lazystore.hub.direct import open_direct
        from lazystore.hub.own_sources import DatasetFeed

        dataset = open_direct(
            self.name, config=self.config, split=self.split, columns=self.columns, revision=self.revision,
            token=self.token, memory=self.memory, timeout=self.timeout,
        )  # fmt: skip
        commit = str(dataset.opened.about["commit"])
        hub = replace(self, revision=commit)  # what takes over from it reads the same commit
        return DatasetFeed(dataset, name=self.name, identity=self.identity(commit), origin=Origin(hub, "lazystore"))

    def _by_datasets(self, way: Way, why: str) -> Feed:
        try:
            import datasets
        except ImportError as error:
            raise MissingExtraError(
                f'{self.name} is to be read by the datasets package: pip install "lazystore[hf]"'
            ) from error
        from lazystore.hub.hf_stream import HFStream
        from lazystore.hub.hf_table import HFTable

        def load() -> Any:
            return datasets.load_dataset(
                self.name, self.config, split=self.split, revision=self.revision, token=self.token,
                streaming=way == "datasets",
            )  # fmt: skip

        loaded = translated(load, self, bounded=way == "datasets")
        commit = _commit_of(loaded)
        origin = Origin(replace(self, revision=commit or self.revision), way, why)
        selected = self._selected(loaded)
        if way == "datasets":
            return HFStream(selected, name=self.name, identity=self.identity(commit), origin=origin)
        return HFTable(selected, name=self.name, identity=self.identity(commit), origin=origin)

    def _selected(self, loaded: Any) -> Any:
        if self.columns is None:
            return loaded
        known = loaded.column_names
        if known is None:  # of a stream whose files do not say it before they are read
            loaded = translated(loaded._resolve_features, self)
            known = loaded.column_names or []
        for column in self.columns:
            if column not in known:
                there = f"it has {', '.join(known)}{near(column, known)}"
                raise ConfigError(f"{self.name} has no column {column!r}, {there}")
        return loaded.select_columns(list(self.columns))


def _commit_of(loaded: Any) -> str:
    """The commit that ``datasets`` reads, as the addresses of its files have it; "" where they do not say."""
    if hasattr(loaded, "_ex_iterable"):
        from lazystore.hub.hf_identity import addresses_of

        told = addresses_of(loaded)
    else:
        told = " ".join(loaded.info.download_checksums or {})
    found = _COMMIT.search(told)
    return found.group(1) if found else ""


@dataclass(frozen=True, slots=True)
class Origin:
    """Which way of reading which name a feed is; ``why`` our own reader was not the one."""

    hub: HubName
    way: Way
    why: str = ""

    def counters(self) -> dict[str, Any]:
        """For ``stats()``."""
        return {"way": self.way} | ({"not_lazystore": self.why} if self.why else {})


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
    if not streaming and via == "lazystore":
        raise ConfigError("streaming=False downloads by the datasets package; leave it, or via='lazystore', out")
    if not isinstance(split, str) or not split:
        raise ConfigError(f"split={split!r} is not the name of a split; it is like 'train'")
    if isinstance(columns, str):
        raise ConfigError(f"columns={columns!r} is a string; give a list of names")
    if columns is not None and not all(isinstance(column, str) for column in columns):
        raise ConfigError(f"columns={columns!r} must be names of columns")
    local = os.path.isdir(name)
    if not local and (os.path.isfile(name) or _ELSEWHERE.match(name)):
        raise ConfigError(f"{name!r} is no name of a dataset on the hub; give lazystore.StreamingDataset({name!r})")
    hub = HubName(
        name, config, split, None if columns is None else tuple(columns), revision, token,
        memory or default_memory(), timeout, retries,
    )  # fmt: skip
    if not streaming:
        return hub.open("download")
    if via == "datasets":
        return hub.open("datasets")
    from lazystore.hub.direct import NotDirect

    try:
        return hub.open("lazystore")
    except NotDirect as error:
        if via == "lazystore":
            raise ConfigError(f"{name} cannot be read with via='lazystore': {error}; leave via='auto'") from None
        return hub.open("datasets", str(error))


def next_way(feed: Feed) -> Feed | None:
    """What to go on with where this way of reading a hub name failed: the next one that opens; None: none is left.

    It has the samples that ``feed`` has, also where that is one reader's part. A part by files has no successor:
    nothing else knows which samples are in which file.

    Raises:
        What opening the last way raises, if none opens.
    """
    origin = feed.origin
    if origin is None:
        return None
    for way in WAYS[WAYS.index(origin.way) + 1 :]:
        try:
            if way == "download":
                origin.hub.ask()
            found = origin.hub.open(way, origin.why)
        except Exception as error:  # errors of pyarrow and datasets, too: the next way may do
            if way == WAYS[-1]:
                raise
            _log.warning("%s cannot be read by way of %s either: %s", origin.hub.name, way, redacted(str(error)))
        else:
            return found if feed.part is None else Section(found, feed.part)
    return None


class Section(Feed):
    """Some samples in a row of another feed, numbered from 0."""

    part: range

    def __init__(self, whole: Feed, part: range) -> None:
        self._whole = whole
        self.part = part
        self.origin = whole.origin
        self.name = f"{whole.name} [{part.start}:{part.stop}]"
        self.length = len(part)
        self.random, self.keeps, self.again = whole.random, whole.keeps, whole.again

    @property
    def identity(self) -> str:
        return digest(self._whole.identity, self.part)

    def open(self, position: int = 0, mark: Mark | None = None) -> Reading:
        first, left = self.part.start, max(0, len(self.part) - position)
        moved = None if mark is None else Mark(mark.position + first, mark.state)
        reading = self._whole.open(first + position, moved)

        def marked(_: int) -> Mark | None:
            found = reading.mark()
            return None if found is None or found.position < first else Mark(found.position - first, found.state)

        return IteratorReading(lambda: itertools.islice(reading, left), position, mark=marked, close=reading.close)

    def get(self, index: int) -> Any:
        return self._whole.get(self.part[index])

    def counters(self) -> dict[str, Any]:
        return self._whole.counters()

    def close(self) -> None:
        self._whole.close()
