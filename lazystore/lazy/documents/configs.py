"""The documents' configuration classes, and what their fields mean to a store.

Fields keep their names, units and defaults. A field that asks for nothing (``enable_streaming``: verbs that are not
called cost nothing) is accepted; setting it to False makes the adapter refuse that verb.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from lazystore.errors import ConfigError
from lazystore.lazy.choosing import strategy_of
from lazystore.lazy.options import cache_folder
from lazystore.lazy.strategy import CompressionType, LoadingStrategy

__all__ = ["ChunkConfig", "LargeDataConfig", "LazyLoadingConfig", "PaginationConfig", "StreamingConfig"]

MIB = 1 << 20


def _positive(config: object, **values: float) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
            raise ConfigError(f"{type(config).__name__}: {name}={value!r} must be a number above zero")


def _counts(config: object, least: int = 1, **values: int) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"{type(config).__name__}: {name}={value!r} must be a whole number, at least {least}")


@dataclass(slots=True)
class LazyLoadingConfig:
    """Settings of :class:`AdvancedLazyLoader` and its kin.

    Attributes:
        default_strategy: of ``load_data`` when none is given.
        enable_streaming, enable_chunking, enable_pagination, enable_background_loading: False: that verb is refused.
        max_memory_mb: the store's hard budget, in MiB.
        chunk_size: bytes a chunk.
        max_chunks_in_memory: times ``chunk_size`` is the window of a stream.
        prefetch_enabled, prefetch_distance: parts read ahead in sequential use.
        background_workers: threads for background loads.
        max_concurrent_loads: loads at once, background ones included.
        enable_caching: False: nothing is kept.
        cache_size: entries that fit at the least; the budget in bytes is what limits.
        cache_ttl: seconds a value stays fresh.
        enable_metrics: accepted; counting is always on.
        log_slow_operations, slow_operation_threshold: log loads that take longer, in seconds.

    Raises:
        ConfigError: a size or time is not above zero.
    """

    default_strategy: LoadingStrategy = LoadingStrategy.LAZY
    enable_streaming: bool = True
    enable_chunking: bool = True
    enable_pagination: bool = True
    enable_background_loading: bool = True
    max_memory_mb: float = 1024
    chunk_size: int = MIB
    max_chunks_in_memory: int = 10
    prefetch_enabled: bool = True
    prefetch_distance: int = 2
    background_workers: int = 4
    max_concurrent_loads: int = 10
    enable_caching: bool = True
    cache_size: int = 1000
    cache_ttl: float = 3600
    enable_metrics: bool = True
    log_slow_operations: bool = True
    slow_operation_threshold: float = 1.0

    def __post_init__(self) -> None:
        _positive(
            self, max_memory_mb=self.max_memory_mb, cache_ttl=self.cache_ttl,
            slow_operation_threshold=self.slow_operation_threshold,
        )  # fmt: skip
        _counts(
            self, chunk_size=self.chunk_size, max_chunks_in_memory=self.max_chunks_in_memory,
            background_workers=self.background_workers, max_concurrent_loads=self.max_concurrent_loads,
            cache_size=self.cache_size,
        )  # fmt: skip
        _counts(self, 0, prefetch_distance=self.prefetch_distance)
        self.default_strategy = strategy_of(self.default_strategy)

    def settings(self) -> dict[str, Any]:
        """The same as settings of a :class:`~lazystore.LazyStore`."""
        memory = int(self.max_memory_mb * MIB)
        return {
            "memory": memory if self.enable_caching else 0,
            "chunk": self.chunk_size,
            "window": min(self.chunk_size * self.max_chunks_in_memory, max(memory // 4, self.chunk_size)),
            "prefetch": self.prefetch_distance if self.prefetch_enabled else 0,
            "background_workers": self.background_workers,
            "concurrency": self.max_concurrent_loads,
            "ttl": self.cache_ttl,
            "slow_after": self.slow_operation_threshold if self.log_slow_operations else float("inf"),
        }


@dataclass(slots=True)
class ChunkConfig:
    """How chunks are held.

    Attributes:
        chunk_size: items a chunk.
        max_chunks_in_memory: accepted; the budget in bytes is what limits.
        prefetch_chunks: chunks read ahead in sequential use; 0: none.
        compression_threshold: accepted; what does not shrink by a tenth is stored as it is.
        compression_type: of what goes to disk.

    Raises:
        ConfigError: a number or the codec cannot be.
    """

    chunk_size: int = 1000
    max_chunks_in_memory: int = 10
    prefetch_chunks: int = 3
    compression_threshold: int = 1024
    compression_type: CompressionType = CompressionType.GZIP

    def __post_init__(self) -> None:
        _counts(self, chunk_size=self.chunk_size, max_chunks_in_memory=self.max_chunks_in_memory)
        _counts(self, 0, prefetch_chunks=self.prefetch_chunks, compression_threshold=self.compression_threshold)
        try:
            self.compression_type = CompressionType(self.compression_type)
        except ValueError:
            known = ", ".join(member.name for member in CompressionType)
            raise ConfigError(
                f"ChunkConfig: compression_type={self.compression_type!r} is not one of {known}"
            ) from None


@dataclass(slots=True)
class StreamingConfig:
    """Settings of streams: not :class:`lazystore.StreamingConfig`, which is a dataset's.

    Attributes:
        chunk_timeout: seconds nobody may read a stream before it closes.
        buffer_size, max_concurrent_streams: accepted; windows of streams come out of the one budget, which limits both.
        enable_compression, compression_level: accepted; compression belongs to the transport.
    """

    buffer_size: int = 8192
    chunk_timeout: float = 30.0
    max_concurrent_streams: int = 100
    enable_compression: bool = True
    compression_level: int = 6

    def __post_init__(self) -> None:
        _positive(self, chunk_timeout=self.chunk_timeout)
        _counts(self, buffer_size=self.buffer_size, max_concurrent_streams=self.max_concurrent_streams)


@dataclass(slots=True)
class PaginationConfig:
    """Settings of pages.

    Attributes:
        default_page_size, max_page_size: items a page where none is said, and at most (larger ones are clamped).
        enable_cursor_pagination: accepted; pages have cursors always, and who does not use them pays nothing.
        cursor_field, sort_field, sort_direction: what :attr:`order` is made of, for keyset cursors:
            ``keyset(config.order, unique=config.cursor_field)``.

    Raises:
        ConfigError: a size is no number above zero, or the direction neither "asc" nor "desc".
    """

    default_page_size: int = 50
    max_page_size: int = 1000
    enable_cursor_pagination: bool = True
    cursor_field: str = "id"
    sort_field: str = "created_at"
    sort_direction: str = "desc"

    def __post_init__(self) -> None:
        _counts(self, default_page_size=self.default_page_size, max_page_size=self.max_page_size)
        if self.default_page_size > self.max_page_size:
            sizes = f"default_page_size={self.default_page_size} is above max_page_size={self.max_page_size}"
            raise ConfigError(f"PaginationConfig: {sizes}")
        if self.sort_direction not in ("asc", "desc"):
            raise ConfigError(f"PaginationConfig: sort_direction={self.sort_direction!r} is neither 'asc' nor 'desc'")

    @property
    def order(self) -> list[str]:
        """The order of keyset cursors: the sort field, then the unique one."""
        sign = "-" if self.sort_direction == "desc" else ""
        return [f"{sign}{self.sort_field}", f"{sign}{self.cursor_field}"]


@dataclass(slots=True)
class LargeDataConfig:
    """Settings of :class:`LargeDataLoader`.

    Attributes:
        max_memory_mb: the hard budget, in MiB; half of what the machine or container allows is the most.
        memory_threshold: share of the container's memory in use from which on the budget gives way.
        enable_disk_cache, disk_cache_dir: a disk tier (of four times the memory), and its folder:
            ``$XDG_CACHE_HOME/lazystore`` if none is given, created readable by its owner only.
        enable_caching, cache_size, cache_ttl: as in :class:`LazyLoadingConfig`.
        load_timeout: seconds a load may take, all attempts together.
        retry_attempts: attempts in all.
        chunk_config, pagination_config, streaming_config: see there.
        enable_metrics, enable_monitoring: accepted; counting is always on, and memory is watched while it is used.
        enable_background_loading: False: strategy BACKGROUND is refused.
        max_background_tasks: loads in the background at once (20 at most).
        background_batch_size: items a batch of :meth:`LargeDataLoader.batch_process_large_dataset`.

    Raises:
        ConfigError: a value cannot be; the message names it.
    """

    max_memory_mb: float = 2048
    memory_threshold: float = 0.75
    enable_disk_cache: bool = True
    disk_cache_dir: str | os.PathLike[str] | None = None
    enable_caching: bool = True
    cache_size: int = 1000
    cache_ttl: float = 3600
    load_timeout: float = 60.0
    retry_attempts: int = 3
    chunk_config: ChunkConfig = field(default_factory=ChunkConfig)
    pagination_config: PaginationConfig = field(default_factory=PaginationConfig)
    streaming_config: StreamingConfig = field(default_factory=StreamingConfig)
    enable_metrics: bool = True
    enable_monitoring: bool = True
    enable_background_loading: bool = True
    max_background_tasks: int = 20
    background_batch_size: int = 100

    def __post_init__(self) -> None:
        _positive(
            self, max_memory_mb=self.max_memory_mb, cache_ttl=self.cache_ttl, load_timeout=self.load_timeout,
            memory_threshold=self.memory_threshold,
        )  # fmt: skip
        _counts(
            self, retry_attempts=self.retry_attempts, max_background_tasks=self.max_background_tasks,
            background_batch_size=self.background_batch_size, cache_size=self.cache_size,
        )  # fmt: skip
        if not 0 < self.memory_threshold <= 1:
            raise ConfigError(f"LargeDataConfig: memory_threshold={self.memory_threshold!r} is a share, 0 to 1")

    def settings(self) -> dict[str, Any]:
        """The same as settings of a :class:`~lazystore.LazyStore`; makes the disk tier's folder if one is asked for."""
        from lazystore.cache.disk import DiskTier
        from lazystore.config import memory_limit

        memory = min(int(self.max_memory_mb * MIB), memory_limit() // 2)
        chunks = self.chunk_config
        found: dict[str, Any] = {
            "memory": memory if self.enable_caching else 0,
            "items": chunks.chunk_size,
            "page": self.pagination_config.default_page_size,
            "max_page": self.pagination_config.max_page_size,
            "prefetch": chunks.prefetch_chunks,
            "ttl": self.cache_ttl,
            "attempts": self.retry_attempts,
            "timeout": self.load_timeout,
            "idle_timeout": self.streaming_config.chunk_timeout,
            "codec": chunks.compression_type,
            "background_workers": min(self.max_background_tasks, 20),
        }
        if self.enable_disk_cache and self.enable_caching:
            folder = cache_folder() if self.disk_cache_dir is None else self.disk_cache_dir
            found["disk"] = DiskTier(folder, max_bytes=4 * memory, codec=chunks.compression_type.value)
        return found
