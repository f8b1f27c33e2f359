"""A store's settings, checked once and frozen; presets by the size of the data.

Sizes count bytes where the name says nothing (``memory``, ``chunk``, ``window``) and items where it says so
(``page``, ``items``): no setting means both.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lazystore.config import default_memory, memory_limit, parse_bytes, seconds, whole
from lazystore.errors import ConfigError
from lazystore.lazy.strategy import CompressionType, DataSize

if TYPE_CHECKING:
    from lazystore.cache.clock import Clock
    from lazystore.cache.disk import DiskTier

__all__ = ["PRESETS", "Preset", "StoreOptions", "cache_folder", "preset", "size_class"]

MIB = 1 << 20
MAX_PAGE = 1000
DEFAULT_WINDOW = 8 * MIB
#: Read-ahead of "auto" begins with so many parts and doubles up to eight.
AUTO = "auto"
_POLICIES = ("s3fifo", "lru")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """What a :class:`LazyStore` was asked for, as numbers. See there for what each means.

    Raises:
        ConfigError: a value is out of its range; the message names it.
    """

    # What was given; numbers once it is made.
    memory: Any = AUTO
    disk: DiskTier | str | os.PathLike[str] | None = None
    ttl: float | None = None
    chunk: Any = "1MiB"
    items: int = 1000
    window: Any = AUTO
    page: int = 50
    max_page: int = MAX_PAGE
    prefetch: Any = AUTO
    concurrency: Any = AUTO
    codec: Any = AUTO
    policy: str = "s3fifo"
    name: str | None = None
    ttl_jitter: float = 0.1
    negative_ttl: float = 0.0
    stale_while_revalidate: float = 0.0
    stale_if_error: float = 0.0
    attempts: int = 1
    timeout: float | None = None
    idle_timeout: float | None = None
    slow_after: float = 1.0
    background_workers: int = 4
    cursor_ttl: float | None = 3 * 86400.0
    weigh: Callable[[Any], int] | None = None
    on_evict: Callable[[Any, Any, str], None] | None = None
    clock: Clock | None = None

    def __post_init__(self) -> None:
        self._set("memory", 0 if self._is(self.memory, 0) else _memory(self.memory))
        self._set("chunk", parse_bytes(self.chunk, name="chunk"))
        self._set("window", self._fitting_window() if self.window == AUTO else parse_bytes(self.window, name="window"))
        for name in ("items", "page", "max_page", "attempts", "background_workers"):
            self._set(name, whole(name, getattr(self, name)))
        if self.page > self.max_page:
            raise ConfigError(f"page={self.page} is more items than max_page={self.max_page}")
        if self.prefetch != AUTO:
            self._set("prefetch", whole("prefetch", self.prefetch, least=0))
        self._set("concurrency", 10 if self.concurrency == AUTO else whole("concurrency", self.concurrency))
        for name in ("ttl", "timeout", "idle_timeout", "cursor_ttl"):
            if getattr(self, name) is not None:
                seconds(name, getattr(self, name))
        for name in ("ttl_jitter", "negative_ttl", "stale_while_revalidate", "stale_if_error", "slow_after"):
            seconds(name, getattr(self, name), above_zero=False)
        if self.ttl_jitter >= 1:
            raise ConfigError(f"ttl_jitter={self.ttl_jitter!r} is a share of the ttl, below 1")
        if self.policy not in _POLICIES:
            raise ConfigError(f"policy={self.policy!r} is not one of {', '.join(_POLICIES)}")
        self._set("codec", _codec(self.codec))
        if not (self.disk is None or hasattr(self.disk, "mode") or _is_folder(self.disk)):
            raise ConfigError(f"disk={self.disk!r} is neither a DiskTier nor the path of its folder")
        if self.name is not None and (not isinstance(self.name, str) or not self.name):
            raise ConfigError(f"name={self.name!r} is not a name")
        for name in ("weigh", "on_evict"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise ConfigError(f"{name}={getattr(self, name)!r} is not a function")

    def _fitting_window(self) -> int:
        """8 MiB, or a quarter of the memory where that is less; a store without memory has windows beside it."""
        return min(DEFAULT_WINDOW, max(1, self.memory // 4)) if self.memory else DEFAULT_WINDOW

    @staticmethod
    def _is(value: Any, number: int) -> bool:
        return type(value) is int and value == number

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @classmethod
    def made(cls, settings: dict[str, Any]) -> StoreOptions:
        """The settings of a call; one that there is not is named, with those there are."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(settings.keys() - known):
            raise ConfigError(f"LazyStore has no setting {', '.join(unknown)}; it has {', '.join(sorted(known))}")
        return cls(**settings)

    def given(self) -> dict[str, Any]:
        """The settings as keyword arguments."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class Preset(NamedTuple):
    """What a size class gets: items a chunk, chunks in memory at once, MiB of memory."""

    items: int
    chunks: int
    memory_mb: int


#: The documents' table.
PRESETS = {
    DataSize.SMALL: Preset(100, 50, 512),
    DataSize.MEDIUM: Preset(1000, 20, 1024),
    DataSize.LARGE: Preset(5000, 10, 2048),
    DataSize.HUGE: Preset(10_000, 5, 4096),
}


def size_class(name: str, size: Any) -> DataSize:
    """The member of a size class or its value.

    Raises:
        ConfigError: there is none; ``name`` is the argument's.
    """
    try:
        return DataSize(size)
    except ValueError:
        known = ", ".join(member.name for member in DataSize)
        raise ConfigError(f"{name}={size!r} is not one of DataSize's {known}") from None


def preset(size: DataSize | str) -> dict[str, Any]:
    """Settings for data of a size class: items a chunk, chunks in memory at once, memory, disk tier.

    Memory is clamped to half of what the machine or the container allows. LARGE and HUGE have a disk tier of four
    times the memory in :func:`cache_folder`. Whatever is given explicitly wins.
    """
    size = size_class("size", size)
    items, chunks, memory_mb = PRESETS[size]
    memory = min(memory_mb * MIB, memory_limit() // 2)
    found: dict[str, Any] = {"memory": memory, "items": items, "window": min(chunks * MIB, memory // 4)}
    if size in (DataSize.LARGE, DataSize.HUGE):
        from lazystore.cache.disk import DiskTier

        found["disk"] = DiskTier(cache_folder(), max_bytes=4 * memory)
    return found


def cache_folder() -> Path:
    """Where disk tiers lie if nobody says: ``$XDG_CACHE_HOME/lazystore``, else ``~/.cache/lazystore``."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "lazystore"


def _is_folder(disk: Any) -> bool:
    return isinstance(disk, (str, os.PathLike)) and bool(os.fspath(disk))


def _memory(memory: int | str) -> int:
    return default_memory() if memory == AUTO else parse_bytes(memory, name="memory")


def _codec(codec: CompressionType | str) -> str:
    try:
        return str(CompressionType(codec).value)
    except ValueError:
        known = ", ".join(member.value for member in CompressionType)
        raise ConfigError(f"codec={codec!r} is not one of {known}") from None
