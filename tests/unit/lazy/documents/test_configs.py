"""The documents' configurations: what their fields mean to a store, and what they refuse."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from lazystore import config
from lazystore.errors import ConfigError
from lazystore.lazy.documents.configs import (
    ChunkConfig,
    LargeDataConfig,
    LazyLoadingConfig,
    PaginationConfig,
    StreamingConfig,
)
from lazystore.lazy.options import StoreOptions
from lazystore.lazy.strategy import CompressionType, LoadingStrategy

MIB = 1 << 20
NOT_POSITIVE = (0, -1, True, "1", None, float("nan"), float("inf"))
NOT_COUNTS = (0, -1, True, "1", None, 1.5)


def wrong() -> list[Any]:
    sizes = {
        LazyLoadingConfig: ("max_memory_mb", "cache_ttl", "slow_operation_threshold"),
        StreamingConfig: ("chunk_timeout",),
        LargeDataConfig: ("max_memory_mb", "memory_threshold", "cache_ttl", "load_timeout"),
    }
    counts = {
        LazyLoadingConfig: (
            "chunk_size", "max_chunks_in_memory", "background_workers", "max_concurrent_loads", "cache_size",
        ),
        ChunkConfig: ("chunk_size", "max_chunks_in_memory"),
        StreamingConfig: ("buffer_size", "max_concurrent_streams"),
        PaginationConfig: ("default_page_size", "max_page_size"),
        LargeDataConfig: ("retry_attempts", "max_background_tasks", "background_batch_size", "cache_size"),
    }  # fmt: skip
    found: list[Any] = [(kind, name, bad) for kind, names in sizes.items() for name in names for bad in NOT_POSITIVE]
    found += [(kind, name, bad) for kind, names in counts.items() for name in names for bad in NOT_COUNTS]
    found += [
        (LazyLoadingConfig, "prefetch_distance", -1), (LazyLoadingConfig, "default_strategy", "quick"),
        (ChunkConfig, "prefetch_chunks", -1), (ChunkConfig, "compression_threshold", -1),
        (ChunkConfig, "compression_type", "rar"), (PaginationConfig, "sort_direction", "up"),
        (PaginationConfig, "default_page_size", 1001), (LargeDataConfig, "memory_threshold", 1.1),
    ]  # fmt: skip
    return found


def test_a_value_that_cannot_be_is_refused_by_name() -> None:
    for kind, name, bad in wrong():
        said = "strategy" if name == "default_strategy" else name
        with pytest.raises(ConfigError, match=said):
            kind(**{name: bad})


def test_fields_of_a_lazy_configuration_become_settings_of_a_store() -> None:
    given = LazyLoadingConfig(
        max_memory_mb=64, chunk_size=65536, max_chunks_in_memory=4, prefetch_distance=5, background_workers=3,
        max_concurrent_loads=7, cache_ttl=60, slow_operation_threshold=0.5,
    )  # fmt: skip
    assert given.settings() == {
        "memory": 64 * MIB, "chunk": 65536, "window": 4 * 65536, "prefetch": 5, "background_workers": 3,
        "concurrency": 7, "ttl": 60, "slow_after": 0.5,
    }  # fmt: skip
    assert StoreOptions(**given.settings()).window == 4 * 65536


def test_switches_of_a_lazy_configuration() -> None:
    off = LazyLoadingConfig(enable_caching=False, prefetch_enabled=False, log_slow_operations=False).settings()
    assert (off["memory"], off["prefetch"], off["slow_after"]) == (0, 0, float("inf"))


@pytest.mark.parametrize("memory", [0.5, 1, 4, 1024])
def test_the_window_of_streams_leaves_memory_for_the_rest(memory: float) -> None:
    given = LazyLoadingConfig(max_memory_mb=memory, chunk_size=64 * 1024, max_chunks_in_memory=1000).settings()
    assert given["window"] <= given["memory"] // 4
    StoreOptions(**given)


def test_a_strategy_may_be_given_by_name() -> None:
    assert LazyLoadingConfig(default_strategy="on_demand").default_strategy is LoadingStrategy.LAZY  # type: ignore[arg-type]


def test_fields_of_a_large_configuration_become_settings_of_a_store() -> None:
    given = LargeDataConfig(
        max_memory_mb=32, enable_disk_cache=False, cache_ttl=60, load_timeout=5, retry_attempts=4,
        chunk_config=ChunkConfig(chunk_size=77, prefetch_chunks=2, compression_type=CompressionType.ZSTD),
        pagination_config=PaginationConfig(default_page_size=20, max_page_size=60),
        streaming_config=StreamingConfig(chunk_timeout=9), max_background_tasks=50,
    )  # fmt: skip
    assert given.settings() == {
        "memory": 32 * MIB, "items": 77, "page": 20, "max_page": 60, "prefetch": 2, "ttl": 60, "attempts": 4,
        "timeout": 5, "idle_timeout": 9, "codec": CompressionType.ZSTD, "background_workers": 20,
    }  # fmt: skip
    StoreOptions(**given.settings())


def test_memory_stays_within_half_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "memory_limit", lambda: 64 * MIB)
    assert LargeDataConfig(max_memory_mb=2048, enable_disk_cache=False).settings()["memory"] == 32 * MIB


def test_a_disk_tier_is_made_only_where_something_is_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert "disk" not in LargeDataConfig(max_memory_mb=8, enable_disk_cache=False).settings()
    nothing = LargeDataConfig(max_memory_mb=8, enable_caching=False).settings()
    assert nothing["memory"] == 0 and "disk" not in nothing
    assert not (tmp_path / "home").exists()
    LargeDataConfig(max_memory_mb=8).settings()["disk"].close()
    tier = LargeDataConfig(max_memory_mb=8, disk_cache_dir=tmp_path / "mine").settings()["disk"]
    assert tier.max_bytes == 32 * MIB
    tier.close()
    for folder in (tmp_path / "home" / "lazystore", tmp_path / "mine"):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_the_order_of_cursors_ends_with_what_is_unique() -> None:
    assert PaginationConfig().order == ["-created_at", "-id"]
    given = PaginationConfig(sort_field="score", cursor_field="row", sort_direction="asc")
    assert given.order == ["score", "row"]


def test_parts_of_a_configuration_are_not_shared() -> None:
    one, other = LargeDataConfig(), LargeDataConfig()
    one.chunk_config.chunk_size = 5
    assert other.chunk_config.chunk_size == 1000
    assert dataclasses.replace(one, cache_ttl=1).chunk_config is one.chunk_config
