"""What the machine has for this process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lazystore.config import memory_limit
from lazystore.parallel.plans import machine
from lazystore.parallel.plans.machine import available_memory, physical_cores


def test_memory_that_is_available_is_some_of_the_limit() -> None:
    available = available_memory()
    assert available is not None
    assert 0 < available <= memory_limit()


def test_a_group_has_what_its_limit_leaves_and_file_pages_count_as_free(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 400000\ninactive_file 300000\nactive_file 0\n")
    assert machine._left_in_cgroup(str(tmp_path), "memory.max", "memory.current", "inactive_file") == 600_000


@pytest.mark.parametrize("limit", ["max\n", None])
def test_a_group_without_a_limit_limits_nothing(tmp_path: Path, limit: str | None) -> None:
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit)
    assert machine._left_in_cgroup(str(tmp_path), "memory.max", "memory.current", "inactive_file") is None


def test_physical_cores_are_no_more_than_logical_ones() -> None:
    cores = physical_cores()
    assert cores is None or 1 <= cores <= (os.cpu_count() or cores)
