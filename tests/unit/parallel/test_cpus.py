"""What limits the CPUs a process may use, read from the texts the kernel shows."""

from __future__ import annotations

import math
import os
import sys

import pytest

from lazystore.parallel import cpus


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    monkeypatch.setattr(cpus, "_kept", (-math.inf, 0))
    monkeypatch.delenv("LAZYSTORE_MAX_CPUS", raising=False)


@pytest.mark.parametrize(
    ("text", "quota"),
    [
        ("max 100000\n", math.inf),
        ("200000 100000\n", 2.0),
        ("150000 100000\n", 1.5),
        ("5000 10000", 0.5),
        ("300000", 3.0),  # the period may be left out
        ("", math.inf),
        ("nonsense here", math.inf),
        ("0 100000", math.inf),
    ],
)
def test_cpu_max_is_quota_over_period(text, quota):
    assert cpus.quota_v2(text) == quota


@pytest.mark.parametrize(
    ("quota_us", "period_us", "quota"),
    [("-1\n", "100000\n", math.inf), ("250000\n", "100000\n", 2.5), ("", "", math.inf), ("100000", "0", math.inf)],
)
def test_a_v1_quota_of_minus_one_limits_nothing(quota_us, period_us, quota):
    assert cpus.quota_v1(quota_us, period_us) == quota


def files(monkeypatch, texts):
    monkeypatch.setattr(cpus, "cgroup_folders", lambda controller: sorted({os.path.dirname(path) for path in texts}))
    monkeypatch.setattr(cpus, "_text", lambda path: texts.get(path, ""))


def test_the_tightest_quota_wins_and_is_rounded_up(monkeypatch):
    monkeypatch.setattr(cpus, "_scheduled", lambda: 64)
    files(
        monkeypatch,
        {
            "/sys/fs/cgroup/pod/cpu.max": "250000 100000",
            "/sys/fs/cgroup/pod/box/cpu.max": "800000 100000",
        },
    )
    assert cpus.usable_cpus() == 3


def test_there_is_always_one(monkeypatch):
    files(monkeypatch, {"/sys/fs/cgroup/cpu.max": "1000 100000"})
    assert cpus.usable_cpus() == 1


def test_a_v1_quota_counts(monkeypatch):
    monkeypatch.setattr(cpus, "_scheduled", lambda: 64)
    files(
        monkeypatch,
        {"/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000", "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"},
    )
    assert cpus.usable_cpus() == 4


def test_the_users_cap_counts_but_gives_no_cpus(monkeypatch):
    monkeypatch.setattr(cpus, "_scheduled", lambda: 8)
    files(monkeypatch, {})
    monkeypatch.setenv("LAZYSTORE_MAX_CPUS", " 3 ")
    assert cpus.usable_cpus() == 3
    monkeypatch.setattr(cpus, "_kept", (-math.inf, 0))
    monkeypatch.setenv("LAZYSTORE_MAX_CPUS", "30")
    assert cpus.usable_cpus() == 8


@pytest.mark.parametrize("text", ["0", "-2", "two", "1.5"])
def test_a_cap_that_is_no_number_of_cpus_is_ignored_with_a_warning(text):
    with pytest.warns(UserWarning, match="LAZYSTORE_MAX_CPUS"):
        assert cpus.user_cap({"LAZYSTORE_MAX_CPUS": text}) == math.inf


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_affinity_counts(monkeypatch):
    files(monkeypatch, {})
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert cpus.usable_cpus() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and /sys")
def test_files_of_this_machine_are_read_once_a_second(monkeypatch):
    read = []
    text = cpus._text
    monkeypatch.setattr(cpus, "_text", lambda path: read.append(path) or text(path))
    count = cpus.usable_cpus()
    assert 1 <= count <= (os.cpu_count() or 1)
    assert read
    seen = len(read)
    assert cpus.usable_cpus() == count
    assert len(read) == seen
    until, kept = cpus._kept
    monkeypatch.setattr(cpus, "_kept", (until - 10, kept))
    cpus.usable_cpus()
    assert len(read) > seen
