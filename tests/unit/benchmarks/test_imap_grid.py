"""The grid's items do what their cell says, wrong results are noticed, the best of a family is its lowest median, and
a contender that hangs costs nobody else their turn."""

from __future__ import annotations

import importlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks are for Linux")

FOLDER = Path(__file__).parents[3] / "benchmarks"
CALIBRATION = {"python": 0.02, "numpy": 0.001, "sleep": 1.0, "mixed": 0.02}


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    """Modules of the benchmarks folder, whose names stay out of the other tests' way."""
    before = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    names = ("cells", "work", "contenders", "host", "rounds", "tables", "footprint")
    found = {name: importlib.import_module(f"imap.{name}") for name in names}
    yield found | {
        name: importlib.import_module(name) for name in ("harness", "bench_imap_memory", "bench_imap_faults")
    }
    sys.path.remove(str(FOLDER))
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(FOLDER) in str(sys.modules[name].__file__):
            del sys.modules[name]


def small(modules: dict[str, ModuleType], **changes: Any) -> Any:
    return modules["cells"].Cell("small", 50.0, 12, **changes)


def outcome(
    modules: dict[str, ModuleType],
    name: str,
    seconds: Iterable[float],
    *families: str,
    problem: str = "",
    chunk: int = 1,
) -> Any:
    contender = modules["contenders"].Contender(name, "plain", {"chunk": chunk}, families=families)
    runs = [{"seconds": s, "first_s": s / 10, "busy_s": s, "own_cpu_s": s} for s in seconds]
    return modules["rounds"].Outcome(contender, runs, problem)


def test_the_grid_has_forty_cells_with_names_of_their_own_and_work_of_a_second(modules: dict[str, ModuleType]) -> None:
    cells = modules["cells"].CELLS
    assert len(cells) >= 40
    assert len({cell.name for cell in cells}) == len(cells)
    assert all(cell.serial_s <= 2.1 for cell in cells)
    assert len(modules["cells"].QUICK) == 6


def test_times_of_a_cell_have_its_mean_and_its_shape(modules: dict[str, ModuleType]) -> None:
    for cell in modules["cells"].CELLS:
        times = cell.times_us()
        assert len(times) == cell.count
        assert statistics.fmean(times) == pytest.approx(cell.item_us)
        assert times == cell.times_us()  # the same in every process
        if cell.shape == "sorted":
            assert times == sorted(times, reverse=True)
        if cell.shape == "drift":
            assert times[-1] == pytest.approx(100 * times[0])
        if cell.shape == "bimodal":
            assert max(times) == pytest.approx(50 * min(times))


@pytest.mark.parametrize("result", ["number", "bytes", "array", "objects"])
@pytest.mark.parametrize("payload", ["number", "bytes", "array"])
@pytest.mark.parametrize("source", ["list", "generator", "sleeping"])
def test_a_plain_loop_gives_what_is_expected(
    modules: dict[str, ModuleType], result: str, payload: str, source: str
) -> None:
    cell = small(
        modules, result=result, result_size=4_000, payload=payload, payload_size=800, source=source, source_us=1
    )
    plain = modules["contenders"].PLAIN
    data = cell.data(CALIBRATION)
    right = cell.expected(CALIBRATION)
    assert len(set(right)) == cell.count
    said = modules["host"].run(plain, cell, CALIBRATION, data, right)
    assert 0 < said["first_s"] <= said["seconds"] <= said["closed_s"]
    assert modules["host"].run(plain, cell, CALIBRATION, data, right)  # sources can be made anew


def test_lost_doubled_and_disordered_results_are_noticed(
    modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    import contextlib

    host, cell = modules["host"], small(modules)
    right = cell.expected(CALIBRATION)
    made: list[Any] = []

    @contextlib.contextmanager
    def liar(func: Any, data: Any, cell: Any) -> Iterator[Any]:
        yield made

    monkeypatch.setitem(modules["contenders"].MAKERS, "plain", liar)
    ordered = modules["contenders"].PLAIN
    unordered = modules["contenders"].Contender("any order", "plain", ordered=False)
    for results, passes in (
        (right, [True, True]),
        (right[::-1], [False, True]),
        (right[:-1], [False, False]),
        ([*right[:-1], right[0]], [False, False]),
        ([*right, right[0]], [False, False]),
    ):
        made[:] = results
        for contender, expected in zip((ordered, unordered), passes, strict=True):
            try:
                host.run(contender, cell, CALIBRATION, list, right)
                passed = True
            except host.Ended:
                passed = False
            assert passed is expected, (contender.name, results)


def test_damaged_payload_is_noticed(modules: dict[str, ModuleType]) -> None:
    work = modules["work"]
    with pytest.raises(ValueError, match="item 3 was damaged"):
        work.Work("python")(work.Item(3, 1, b"ab"))


def test_chunk_one_competes_for_the_best_chunk_as_well(modules: dict[str, ModuleType]) -> None:
    sides, rounds, tables = modules["contenders"], modules["rounds"], modules["tables"]
    one = outcome(modules, "Pool, chunk 1", [1.0, 3.0, 1.1], sides.POOL_ONE, sides.POOL_BEST)
    four = outcome(modules, "Pool, chunk 4", [1.2, 1.2, 1.2], sides.POOL_BEST)
    plain = outcome(modules, "plain loop", [2.0])
    measured = rounds.Measured(small(modules), [plain, one, four])
    assert measured.best(sides.POOL_BEST) is one
    assert tables.reference_s(measured) == 1.1
    assert tables.relative(measured, "plain loop") == pytest.approx(2.0 / 1.1)
    one.problem = "struck"
    assert measured.best(sides.POOL_BEST) is four


def test_settings_that_stay_are_the_quickest_and_the_fixed_ones(modules: dict[str, ModuleType]) -> None:
    sides, rounds = modules["contenders"], modules["rounds"]
    tried = [outcome(modules, "Pool, chunk 1", [9.0], sides.POOL_ONE, sides.POOL_BEST)]
    tried += [outcome(modules, f"Pool, chunk {n}", [float(n)], sides.POOL_BEST) for n in (4, 2, 3)]
    tried.append(outcome(modules, "Pool, chunk 5", [], sides.POOL_BEST, problem="over 8 s"))
    assert [o.contender.name for o in rounds._chosen(tried)] == ["Pool, chunk 1", "Pool, chunk 2", "Pool, chunk 3"]


def test_regret_is_against_the_best_setting(modules: dict[str, ModuleType]) -> None:
    sides, rounds, tables = modules["contenders"], modules["rounds"], modules["tables"]
    ours = outcome(modules, "lazystore, warm", [1.2])
    settings = [outcome(modules, f"process 2 x {n}", [t], sides.ORACLE_WARM) for n, t in ((1, 1.5), (4, 1.0))]
    measured = rounds.Measured(small(modules), [outcome(modules, "plain loop", [2.0]), ours, *settings])
    assert tables.regrets([measured], "lazystore, warm", sides.ORACLE_WARM) == {"small": pytest.approx(0.2)}
    assert tables.regrets([measured], "lazystore, cold", sides.ORACLE_COLD) == {}


def test_a_contender_that_hangs_is_reported_and_the_others_have_their_turn(
    modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds, sides = modules["rounds"], modules["contenders"]
    monkeypatch.setattr(rounds, "LEAST_LIMIT_S", 2.0)
    monkeypatch.setattr(rounds, "LIMIT_TIMES", 0.0)
    cell = small(modules)
    field = rounds.Field(CALIBRATION, 1, False, None)
    outcomes = [rounds.Outcome(sides.PLAIN), rounds.Outcome(sides.Contender("none such", "none"))]
    rounds._run(cell, outcomes, field)
    assert len(outcomes[0].runs) == 1 and not outcomes[0].problem
    assert outcomes[1].problem == "KeyError: 'none'"
    asleep = modules["cells"].Cell("asleep", 30e6, 1, kind="sleep")
    late = [rounds.Outcome(sides.PLAIN), rounds.Outcome(sides.Contender("none such", "none"))]
    rounds._run(asleep, late, field)
    assert late[0].problem == "over 2 s"
    assert late[1].problem == "KeyError: 'none'"


def test_report_prints_peers_wins_and_holds_the_promises(
    modules: dict[str, ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    sides, rounds, tables = modules["contenders"], modules["rounds"], modules["tables"]
    slow = rounds.Measured(
        small(modules),
        [
            outcome(modules, "plain loop", [2.0]),
            outcome(modules, "Pool, chunk 4", [1.0], sides.POOL_BEST, chunk=4),
            outcome(modules, "joblib, warm", [1.9]),
            outcome(modules, "lazystore, cold", [1.5]),
            outcome(modules, "lazystore, warm", [1.2]),
            outcome(modules, "process 2 x 4", [1.0], sides.ORACLE_WARM),
        ],
    )
    out = modules["harness"].Report("test", None)
    tables.report([slow], out)
    said = capsys.readouterr().out
    row = next(line for line in said.splitlines() if line.startswith("| small | 1 k |"))
    assert row.split(" | ")[3:] == ["2.00", "**1.00** (4)", "1.90", "1.50", "1.20 |"]
    targets = {target.promise: target for target in out.targets}
    assert targets["lazystore, warm: regret, worst"].measured == pytest.approx(0.2)
    assert targets["lazystore, cold: share of the best peer's speed, worst cell"].measured == pytest.approx(1 / 1.5)
    assert targets["lazystore, warm: times joblib, warm's speed, geometric mean"].measured == pytest.approx(1.9 / 1.2)
    assert targets["lazystore, cold: time, worst"].verdict == "MISSED"


def test_footprint_sees_memory_of_children_and_files_in_memory(modules: dict[str, ModuleType]) -> None:
    footprint = modules["footprint"]
    code = (
        f"import sys, os; sys.path.insert(0, {str(FOLDER)!r}); from imap import footprint\n"
        "import subprocess\n"
        "before = footprint.total_bytes()\n"
        "fd = os.memfd_create('x'); os.pwrite(fd, bytes(3_000_000), 1 << 40)\n"
        "middle = footprint.total_bytes()\n"
        "child = subprocess.Popen([sys.executable, '-c', 'x = b\"a\" * 20_000_000; print(1, flush=True); input()'],"
        " stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "after = footprint.total_bytes()\n"
        "child.communicate(b'\\n')\n"
        "print(middle - before, after - middle, len(footprint.session_pids(os.getsid(0))))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, start_new_session=True)
    assert not done.returncode, done.stderr
    files, child, left = map(int, done.stdout.split())
    assert 2_900_000 <= files <= 4_500_000
    assert 20_000_000 <= child <= 60_000_000
    assert left == 1
    assert os.getpid() in footprint.session_pids(os.getsid(0))


def test_growth_begins_at_the_first_result(modules: dict[str, ModuleType]) -> None:
    memory = modules["bench_imap_memory"]
    samples = [(0.1, 100), (0.5, 500), (1.0, 600), (2.0, 650), (3.0, 630)]
    run = {"base": 90, "first_s": 0.3, "samples": samples}
    assert memory.growth(run) == 150
    assert memory.peak(run) == 560
    flat = [(t / 10, 1000) for t in range(40)]
    assert memory.late_growth({"samples": flat}) == 0
    rising = [(t / 10, 100 * t) for t in range(40)]
    assert memory.late_growth({"samples": rising}) == pytest.approx(1000, rel=0.1)


def test_units_are_loop_turns_not_a_span_of_time(modules: dict[str, ModuleType]) -> None:
    begin = time.process_time()
    modules["work"].spin(200_000, 1)
    assert time.process_time() > begin
    assert modules["work"].spin(3, 1) == modules["work"].spin(1, modules["work"].spin(2, 1))


@pytest.mark.parametrize("maker", ["lazystore", "pool", "threads", "executor"])
def test_contenders_of_the_library_and_of_ours_give_what_is_expected(
    modules: dict[str, ModuleType], maker: str
) -> None:
    cell = small(modules, result="bytes", result_size=3_000, source="generator")
    options = {
        "pool": {"chunk": 2},
        "executor": {"chunk": 2},
        "threads": {"workers": 2},
        "lazystore": {"backend": "thread"},
    }
    contender = modules["contenders"].Contender(maker, maker, options[maker])
    outcomes = [modules["rounds"].Outcome(contender)]
    modules["rounds"]._run(cell, outcomes, modules["rounds"].Field(CALIBRATION, 1, False, None))
    assert not outcomes[0].problem
    (run,) = outcomes[0].runs
    assert run["seconds"] > 0
    assert ("chose" in run) is (maker == "lazystore")


def test_kills_hit_workers_and_their_results_are_counted(modules: dict[str, ModuleType]) -> None:
    spec = {"kills": 2, "seed": 1, "size": 8, "ordered": True}
    found = modules["harness"].run_child(modules["harness"].Contender("", "bench_imap_faults:kills", spec))
    assert found["kills"] == 2
    assert found["items"] > 0
    assert not any(found[name] for name in ("lost", "doubled", "given_up", "strange", "out_of_order")), found


def test_an_interrupted_script_leaves_nothing(modules: dict[str, ModuleType]) -> None:
    found = modules["bench_imap_faults"].interrupts(1, 1)
    assert len(found["gone_s"]) == 1
    assert (found["hung"], found["orphans"]) == (0, 0)  # files in /dev/shm may be those of other tests


def test_files_that_somebody_holds_are_not_abandoned(
    modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(modules["bench_imap_faults"], "SHARED", tmp_path)
    (tmp_path / "left").write_bytes(b"x")
    with open(tmp_path / "held", "wb"):
        assert modules["bench_imap_faults"].abandoned({"left", "held", "gone"}) == {"left"}
