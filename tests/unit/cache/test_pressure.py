"""Memory pressure from files of our own making: it lowers a target, and nothing that cannot be read limits anything."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from lazystore.cache.pressure import Pressure
from lazystore.errors import ConfigError
from lazystore.testing import FakeClock

GROUP = "/sys/fs/cgroup/box/work"


class Machine:
    """A folder that looks like the root of a machine."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.clock = FakeClock()
        self.write("/proc/self/cgroup", "0::/box/work\n")

    def write(self, path: str, text: str) -> None:
        at = self.root / path.lstrip("/")
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_text(text)

    def group(self, folder: str, *, limit: str, current: int, inactive: int = 0) -> None:
        self.write(f"{folder}/memory.max", f"{limit}\n")
        self.write(f"{folder}/memory.current", f"{current}\n")
        self.write(f"{folder}/memory.stat", f"anon 5\ninactive_file {inactive}\n")

    def stalls(self, avg10: float, folder: str = GROUP) -> None:
        text = (
            f"some avg10={avg10:.2f} avg60=0.00 avg300=0.00 total=5\nfull avg10=99.00 avg60=0.00 avg300=0.00 total=1\n"
        )
        self.write(f"{folder}/memory.pressure", text)

    def pressure(self, threshold: float = 0.9) -> Pressure:
        return Pressure(threshold=threshold, clock=self.clock, root=str(self.root))

    def look(self, pressure: Pressure, seconds: float = 1.0) -> float:
        self.clock.advance(seconds)
        return pressure.look()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_without_files_there_is_no_limit(tmp_path: Path) -> None:
    pressure = Pressure(root=str(tmp_path))
    assert pressure.look() == 1.0
    assert (pressure.severe, pressure.reason) == (False, "")


@pytest.mark.parametrize(
    ("avg10", "share", "severe"), [(0.0, 1.0, False), (10.0, 1.0, False), (10.5, 0.75, False), (25.5, 0.5, True)]
)
def test_stalls_lower_the_target_and_end_speculation(
    machine: Machine, avg10: float, share: float, severe: bool
) -> None:
    machine.stalls(avg10)
    pressure = machine.pressure()
    assert machine.look(pressure) == share
    assert pressure.severe == severe
    assert bool(pressure.reason) == (share < 1)


def test_the_machines_stalls_count_where_the_group_tells_none(machine: Machine) -> None:
    machine.write("/proc/pressure/memory", "some avg10=30.00 avg60=0.00 avg300=0.00 total=5\n")
    assert machine.look(machine.pressure()) == 0.5


@pytest.mark.parametrize(("current", "share"), [(800, 1.0), (910, 0.75), (960, 0.5)])
def test_use_near_the_limit_counts(machine: Machine, current: int, share: float) -> None:
    machine.group(GROUP, limit="1000", current=current)
    assert machine.look(machine.pressure()) == share


def test_the_tightest_ancestor_counts(machine: Machine) -> None:
    machine.group(GROUP, limit="max", current=990)
    machine.group("/sys/fs/cgroup/box", limit="1000", current=990)
    assert machine.look(machine.pressure()) == 0.5


def test_the_soft_limit_counts_too(machine: Machine) -> None:
    machine.group(GROUP, limit="100000", current=990)
    machine.write(f"{GROUP}/memory.high", "1000\n")
    assert machine.look(machine.pressure()) == 0.5


def test_pages_of_files_that_can_be_dropped_do_not_count(machine: Machine) -> None:
    machine.group(GROUP, limit="1000", current=990, inactive=500)
    assert machine.look(machine.pressure()) == 1.0


def test_running_out_of_memory_since_the_last_look_is_severe(machine: Machine) -> None:
    machine.group(GROUP, limit="1000", current=10)
    machine.write(f"{GROUP}/memory.events", "low 0\nhigh 7\nmax 3\noom 2\noom_kill 1\n")
    pressure = machine.pressure()
    assert machine.look(pressure) == 1.0  # that was before
    machine.write(f"{GROUP}/memory.events", "low 0\nhigh 900\nmax 300\noom 2\noom_kill 1\n")
    assert machine.look(pressure) == 1.0  # reading files does this
    machine.write(f"{GROUP}/memory.events", "low 0\nhigh 900\nmax 300\noom 3\noom_kill 1\n")
    assert machine.look(pressure) == 0.5
    assert pressure.severe
    machine.look(pressure)
    assert not pressure.severe


def test_version_1_groups_count(machine: Machine) -> None:
    machine.write("/proc/self/cgroup", "5:memory:/box\n3:cpu:/other\n")
    folder = "/sys/fs/cgroup/memory/box"
    machine.write(f"{folder}/memory.limit_in_bytes", "1000\n")
    machine.write(f"{folder}/memory.usage_in_bytes", "970\n")
    machine.write(f"{folder}/memory.stat", "inactive_file 900\ntotal_inactive_file 50\n")
    assert machine.look(machine.pressure()) == 0.75
    machine.write(f"{folder}/memory.limit_in_bytes", "9223372036854771712\n")  # how version 1 says "none"
    assert machine.look(machine.pressure()) == 1.0


def test_the_target_comes_back_slowly(machine: Machine) -> None:
    machine.stalls(50)
    pressure = machine.pressure()
    assert machine.look(pressure) == 0.5
    machine.stalls(0)
    assert machine.look(pressure) == pytest.approx(0.55)
    assert machine.look(pressure, 4) == pytest.approx(0.75)
    assert machine.look(pressure, 3600) == 1.0


def test_files_are_read_once_a_second_at_most(machine: Machine) -> None:
    machine.stalls(0)
    pressure = machine.pressure()
    machine.look(pressure)
    machine.stalls(50)
    for _ in range(10):
        assert machine.look(pressure, 0.05) == 1.0
    assert pressure.looks == 1
    assert machine.look(pressure, 0.6) == 0.5


@pytest.mark.parametrize("text", ["", "some\n", "some avg10=\n", "some avg10=x\n", "\udcff", "some avg10=nan\n"])
def test_nonsense_limits_nothing(machine: Machine, text: str) -> None:
    for path in (f"{GROUP}/memory.pressure", f"{GROUP}/memory.max", f"{GROUP}/memory.events", f"{GROUP}/memory.stat"):
        machine.write(path, text.encode("utf-8", "replace").decode())
    assert machine.look(machine.pressure()) == 1.0


def test_it_pickles_as_its_arguments_and_refuses_bad_ones(tmp_path: Path) -> None:
    copy = pickle.loads(pickle.dumps(Pressure(threshold=0.5, root=str(tmp_path))))
    assert (copy.threshold, copy.root, copy.share) == (0.5, str(tmp_path), 1.0)
    for threshold in (0, 1.5, float("nan")):
        with pytest.raises(ConfigError):
            Pressure(threshold=threshold)


def test_this_machines_own_files_can_be_read() -> None:
    assert 0 < Pressure().look() <= 1.0
