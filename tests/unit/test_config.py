"""Sizes, limits and configuration values are checked where they are made."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazystore import config
from lazystore.config import EvictionPolicy, StreamingConfig, default_memory, memory_limit, parse_bytes
from lazystore.errors import ConfigError

MIB = 1 << 20


@pytest.mark.parametrize(
    "text, size",
    [
        (1, 1), ("1", 1), ("1b", 1), ("64MB", 64_000_000), ("64mb", 64_000_000), ("64MiB", 64 * MIB), ("64M", 64 * MIB),
        ("64m", 64 * MIB), (" 1.5 GB ", 1_500_000_000), ("1kB", 1000), ("1KiB", 1024), ("1k", 1024), ("1TB", 10**12),
        ("1TiB", 1 << 40), ("1t", 1 << 40), ("0.5KiB", 512), (10**14, 10**14), ("00064kb", 64_000),
    ],
)  # fmt: skip
def test_sizes_in_decimal_and_binary_units(text: int | str, size: int) -> None:
    assert parse_bytes(text) == size
    assert type(parse_bytes(text)) is int


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "MB", "64 M B", "64XB", "-1", "-5MB", "0", "0MB", "1e9", "nan", "inf", "0.1", "64MB!", "6,4MB", "٣MB٣",
        0, -1, True, False, None, 1.5, b"64MB", [], 10**30, "9" * 400, "9" * 400 + "GB", "1" * 30 + "TB",
    ],
)  # fmt: skip
def test_anything_else_is_no_size(text: Any) -> None:
    with pytest.raises(ConfigError, match="budget"):
        parse_bytes(text, name="budget")


def test_numpy_integers_are_sizes() -> None:
    assert parse_bytes(np.int64(4096)) == 4096
    assert type(parse_bytes(np.int64(4096))) is int


@given(st.integers(1, 2**40), st.sampled_from(["", "b", "B"]))
def test_any_number_of_bytes_is_itself(size: int, unit: str) -> None:
    assert parse_bytes(f"{size}{unit}") == size


# -- what the machine allows ----------------------------------------------------------------


def limits(monkeypatch: pytest.MonkeyPatch, **files: str | None) -> None:
    """Pretend these are the control-group files; None: not there."""
    named = {name.replace("_", "/"): text for name, text in files.items()}
    monkeypatch.setattr(config, "_cgroup_limit_files", lambda: list(named))

    def pretend(path: str) -> Any:
        import io

        text = named[path]
        if text is None:
            raise FileNotFoundError(path)
        return io.StringIO(text)

    monkeypatch.setattr(config, "open", pretend, raising=False)


def test_the_tightest_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    limits(monkeypatch, a="max\n", b=f"{900 * MIB}\n", c=f"{400 * MIB}\n", d=None, e="")
    assert memory_limit() == 400 * MIB
    assert default_memory() == 100 * MIB


def test_without_limits_the_host_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    limits(monkeypatch, a="max\n", b=None)
    host = memory_limit()
    assert host >= 64 * MIB
    limits(monkeypatch, a=str(2**63 - 4096))  # what version 1 writes for "none"
    assert memory_limit() == host


def test_the_default_budget_is_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "memory_limit", lambda: 1 << 50)
    assert default_memory() == 256 * MIB


def test_the_files_of_this_machine_are_looked_at_without_error() -> None:
    assert 0 < default_memory() <= 256 * MIB
    assert all(path.startswith("/sys/fs/cgroup") for path in config._cgroup_limit_files())


def test_limits_of_all_groups_above_are_looked_at() -> None:
    folders = config.parse_cgroups("0::/user.slice/job 7/step\n", "cpu")
    root = "/sys/fs/cgroup"
    assert folders == [
        root,
        f"{root}/cpu",
        f"{root}/user.slice",
        f"{root}/user.slice/job 7",
        f"{root}/user.slice/job 7/step",
    ]


def test_of_v1_only_the_hierarchy_of_the_cpu_controller_counts() -> None:
    folders = config.parse_cgroups("9:memory:/a\n5:cpu,cpuacct:/docker/b\n4:cpuset:/c\n1:name=systemd:/d\n", "cpu")
    assert folders[2:] == ["/sys/fs/cgroup/cpu/docker", "/sys/fs/cgroup/cpu/docker/b"]


def test_a_group_outside_of_what_a_container_sees_is_not_followed_upwards() -> None:
    assert config.parse_cgroups("0::/../other\n", "cpu")[2:] == ["/sys/fs/cgroup/other"]
    assert config.parse_cgroups("", "cpu") == ["/sys/fs/cgroup", "/sys/fs/cgroup/cpu"]
    assert config.parse_cgroups("garbage\n0\n::\n", "cpu") == ["/sys/fs/cgroup", "/sys/fs/cgroup/cpu"]


# -- StreamingConfig ------------------------------------------------------------------------


def test_defaults_are_the_documented_ones() -> None:
    found = StreamingConfig()
    assert dataclasses.asdict(found) == {
        "max_memory_size": 100 * 1024 * 1024,
        "eviction_policy": EvictionPolicy.LRU,
        "chunk_timeout": 30.0,
        "enable_memory_monitoring": True,
    }


def test_fields_go_by_position_as_documented() -> None:
    assert StreamingConfig(7, EvictionPolicy.FIFO, 1.0, False) == StreamingConfig(
        max_memory_size=7, eviction_policy=EvictionPolicy.FIFO, chunk_timeout=1.0, enable_memory_monitoring=False
    )


def test_sizes_and_policies_may_be_written_as_text() -> None:
    found = StreamingConfig(max_memory_size="64MB", eviction_policy="s3fifo")  # type: ignore[arg-type]
    assert found.max_memory_size == 64_000_000
    assert found.eviction_policy is EvictionPolicy.S3FIFO


@pytest.mark.parametrize(
    "field, value",
    [
        ("max_memory_size", 0), ("max_memory_size", "lots"), ("max_memory_size", None), ("eviction_policy", "mru"),
        ("eviction_policy", None), ("eviction_policy", 1), ("chunk_timeout", 0), ("chunk_timeout", -1),
        ("chunk_timeout", float("nan")), ("chunk_timeout", "30"), ("chunk_timeout", None),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        StreamingConfig(**{field: value})


def test_a_config_is_a_value() -> None:
    found = StreamingConfig(chunk_timeout=5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.chunk_timeout = 6  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(found)) == copy.copy(found) == found
    assert hash(found) == hash(StreamingConfig(chunk_timeout=5))


def test_policies_have_stable_names() -> None:
    assert {policy.name for policy in EvictionPolicy} >= {"LRU", "FIFO", "S3FIFO"}
    assert pickle.loads(pickle.dumps(EvictionPolicy.LRU)) is EvictionPolicy.LRU
