"""Settings of a store: checked by name, frozen, and presets that explicit settings win against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lazystore import config
from lazystore.errors import ConfigError
from lazystore.lazy import options
from lazystore.lazy.options import StoreOptions, cache_folder, preset
from lazystore.lazy.strategy import ChunkStrategy, CompressionType, DataSize, LoadingStrategy, LoadStrategy, Strategy

MIB = 1 << 20


def test_defaults_are_numbers() -> None:
    found = StoreOptions()
    assert found.memory == config.default_memory()
    assert (found.chunk, found.page, found.concurrency, found.codec) == (MIB, 50, 10, "auto")


def test_no_memory_is_a_setting() -> None:
    assert StoreOptions(memory=0).memory == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"memory": -1}, {"memory": "much"}, {"memory": False}, {"chunk": 0}, {"window": "0MB"}, {"page": 0},
        {"page": 2.5}, {"page": 2000}, {"prefetch": -1}, {"prefetch": "some"}, {"concurrency": 0}, {"ttl": 0},
        {"ttl": -1}, {"ttl_jitter": 1}, {"timeout": 0}, {"negative_ttl": -1}, {"policy": "fifo"}, {"codec": "rar"},
        {"name": ""}, {"weigh": 3}, {"on_evict": "print"}, {"attempts": 0}, {"items": True},
        {"background_workers": 0},
    ],
    ids=str,
)  # fmt: skip
def test_a_setting_that_cannot_work_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        StoreOptions(**wrong)


@pytest.mark.parametrize("size", list(DataSize))
def test_a_preset_stays_within_half_of_the_machine(
    size: DataSize, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(options, "memory_limit", lambda: 64 * MIB)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = preset(size)
    assert found["memory"] == 32 * MIB
    assert ("disk" in found) == (size in (DataSize.LARGE, DataSize.HUGE))
    StoreOptions(**found)


def test_an_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="SMALL, MEDIUM, LARGE, HUGE"):
        preset("gigantic")


def test_the_cache_folder_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/somewhere")
    assert cache_folder() == Path("/var/somewhere/lazystore")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_folder() == Path("/home/me/.cache/lazystore")


def test_the_documents_names_are_aliases_of_one_member() -> None:
    assert LoadingStrategy is LoadStrategy is Strategy
    assert Strategy.IMMEDIATE is Strategy.EAGER
    assert Strategy.ON_DEMAND is Strategy.LAZY
    assert Strategy.HYBRID is Strategy.AUTO
    assert CompressionType.GZIP is CompressionType.ZLIB
    assert {member.name for member in ChunkStrategy} == {"FIXED_SIZE", "DYNAMIC_SIZE", "CONTENT_BASED", "TIME_BASED"}


@pytest.mark.parametrize(
    ("nbytes", "size"),
    [
        (0, DataSize.SMALL), (MIB - 1, DataSize.SMALL), (MIB, DataSize.MEDIUM), (10 * MIB, DataSize.LARGE),
        ("99MiB", DataSize.LARGE), (100 * MIB, DataSize.HUGE), ("3GB", DataSize.HUGE),
    ],
)  # fmt: skip
def test_the_class_of_a_size(nbytes: Any, size: DataSize) -> None:
    assert DataSize.of(nbytes) is size


@pytest.mark.parametrize("nbytes", [-1, "big", None, True])
def test_what_is_no_size_has_no_class(nbytes: Any) -> None:
    with pytest.raises(ConfigError):
        DataSize.of(nbytes)
