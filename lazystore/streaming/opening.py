"""Opening a dataset: arguments checked, its format found, the budget divided."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import lazystore.formats.litdata_format  # noqa: F401 - most datasets': loaded with the class, not when one is opened
from lazystore._core.frames import FrameStore
from lazystore.cache.memory import ChunkMemory
from lazystore.config import EvictionPolicy, StreamingConfig, default_memory, parse_bytes
from lazystore.errors import ConfigError, FormatError, MissingExtraError, UnsupportedError, with_place
from lazystore.formats.format import Opened, Options, Unindexed
from lazystore.streaming.division import disk_room, divide
from lazystore.streaming.item_loader import BaseItemLoader
from lazystore.streaming.locating import INDEX_NAME, Root, find_place

if TYPE_CHECKING:
    from lazystore.cache.disk import DiskTier
    from lazystore.fetch.source import Source

__all__ = ["check_arguments", "config_of", "make_memory", "open_dataset", "placed", "with_disk"]

DEFAULT_TIMEOUT = 30.0


def config_of(
    loader: BaseItemLoader | None, memory: int | str | None, policy: EvictionPolicy | None, timeout: float | None
) -> StreamingConfig:
    """One configuration out of the loader's and the arguments; saying a thing twice is an error."""
    if loader is not None and not isinstance(loader, BaseItemLoader):
        raise ConfigError(f"item_loader={loader!r} is not one of lazystore's item loaders")
    given = loader.streaming_config if loader is not None else None
    if given is None:
        return StreamingConfig(
            max_memory_size=default_memory() if memory is None else parse_bytes(memory),
            eviction_policy=policy or EvictionPolicy.S3FIFO,
            chunk_timeout=DEFAULT_TIMEOUT if timeout is None else timeout,
        )
    for name, value in (("memory", memory), ("eviction_policy", policy), ("timeout", timeout)):
        if value is not None:
            raise ConfigError(f"{name} is given both as an argument and in the loader's streaming_config; give it once")
    return given


def check_arguments(seed: int, batch_size: int, transform: Any, fallback: str) -> None:
    """Refuse values that cannot work, by name."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ConfigError(f"seed={seed!r} is not an integer")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(f"batch_size={batch_size!r} must be a number of items, at least 1")
    if transform is not None and not callable(transform):
        raise ConfigError(f"transform={transform!r} is not callable")
    if fallback not in ("direct", "raise"):
        raise ConfigError(f"fallback={fallback!r} is neither 'direct' nor 'raise'")


def with_disk(source: Source, disk: DiskTier | str | os.PathLike[str] | None, budget: int) -> Source:
    """The source, with a disk tier before it if there is one.

    Raises:
        ConfigError: something else is given, or the dataset is local.
        DiskTierError: the folder cannot be used.
    """
    if disk is None:
        return source
    from lazystore.cache.disk import DiskTier
    from lazystore.cache.disk_source import DiskSource

    try:
        if not isinstance(disk, (str, os.PathLike, DiskTier)):
            raise ConfigError(f"disk={disk!r} is neither a DiskTier nor the folder of one")
        if source.local:
            raise ConfigError(f"{source.url} is on this machine: a disk tier would hold a second copy; leave disk out")
        return DiskSource(source, disk if isinstance(disk, DiskTier) else DiskTier(disk), room=disk_room(budget))
    except BaseException:
        source.close()
        raise


def open_dataset(
    root: Root,
    source: Source,
    *,
    url: str,
    arguments: Mapping[str, Any],
    block_size: int,
    timeout: float,
    budget: int,
) -> Opened | Unindexed:
    """Find out what is at a place, and open it.

    Parameters:
        root, source: the directory, and what reads in it.
        url: as the caller named it, for messages.
        arguments: those of :class:`~lazystore.StreamingDataset`.
        block_size: tokens an item, 0 for items as they were written.
        timeout: seconds a read may take.
        budget: bytes the dataset may use.
    """
    format, place = find_place(
        source, root,
        url=url, format=arguments["format"], storage_options=dict(arguments["storage_options"] or {}),
        timeout=timeout, budget=budget,
    )  # fmt: skip
    extra = arguments["format_options"]
    if extra is not None and not isinstance(extra, Mapping):
        raise ConfigError(f"format_options={extra!r} is not a mapping")
    options = Options(
        allow_pickle=arguments["allow_pickle"], serializers=arguments["serializers"],
        encryption=arguments["encryption"], verify=bool(arguments["verify"]),
        validate_hash=arguments["validate_hash"], columns=arguments["columns"], raw=bool(arguments["raw"]),
        block_size=block_size, extra=dict(extra or {}),
    )  # fmt: skip
    with placed(f"{source.url}/{INDEX_NAME}" if place.index else url):
        return format.open(place, options)


@contextmanager
def placed(place: str) -> Iterator[None]:
    """Put the dataset in front of errors that do not name it."""
    try:
        yield
    except (ConfigError, FormatError, UnsupportedError, MissingExtraError) as error:
        if (place.rpartition("/")[0] or place) in str(error):
            raise
        raise with_place(error, place) from error


def make_memory(opened: Opened, config: StreamingConfig, budget: int, fallback: bool) -> ChunkMemory:
    """A memory inside a budget.

    Raises:
        BudgetTooSmallError: there is no such memory; says how much it takes.
    """
    division = divide(opened, budget)
    store = FrameStore(division.arena, frame_bytes=division.frame_bytes, policy=config.eviction_policy.value)
    return ChunkMemory(
        opened.source, opened, store,
        timeout=config.chunk_timeout, fallback=fallback, codec=opened.codec, images=opened.images,
        scratch_room=division.scratch, tables_room=division.tables,
    )  # fmt: skip
