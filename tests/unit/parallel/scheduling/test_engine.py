"""The engine with simulated workers: what is delivered, whatever workers, items, sources and consumers do."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.simulated_workers import Costs, Script, Simulation, Spinning, VirtualClock

from lazystore.errors import ClosedError, ItemTimeoutError, WorkerDiedError, WorkerError
from lazystore.parallel.failures import Failure
from lazystore.parallel.scheduling.fleet import CRASHES, KILLS
from lazystore.parallel.scheduling.tuner import Limits

AUTO = ("serial", "thread", "process")


def double(item: int) -> int:
    return 2 * item


class Numbers:
    """A source that counts what was pulled from it, and may raise."""

    def __init__(self, count: int, raises_at: int | None = None) -> None:
        self.pulled = 0
        self._count = count
        self._raises_at = raises_at

    def __iter__(self) -> Iterator[int]:
        for number in range(self._count):
            if number == self._raises_at:
                raise OSError("the source broke")
            self.pulled += 1
            yield number


class Function:
    """Fails for some items: so many times until it succeeds, again and again."""

    def __init__(self, failing: dict[int, int]) -> None:
        self._failing = failing
        self._failed: Counter[int] = Counter()

    def __call__(self, item: int) -> int:
        if self._failed[item] < self._failing.get(item, 0):
            self._failed[item] += 1
            raise ValueError(item)
        self._failed[item] = 0
        return 2 * item


def seconds_of(shape: str, mean_s: float, count: int) -> list[float]:
    if shape == "constant":
        return [mean_s] * count
    if shape == "bimodal":
        return [mean_s * (20 if k % 17 == 5 else 0.2) for k in range(count)]
    if shape == "rising":
        return [mean_s * 2 * (k + 1) / count for k in range(count)]
    return [mean_s * (0.01 if k < count // 2 else 2.0) for k in range(count)]


@st.composite
def scenarios(draw: st.DrawFn) -> dict[str, Any]:
    count = draw(st.integers(0, 300))
    indices = st.integers(0, max(0, count - 1))
    chosen = st.lists(indices, max_size=3 if count else 0, unique=True)
    kinds = draw(st.sampled_from([("process",), ("thread",), AUTO, ("serial", "process")]))
    retries = draw(st.sampled_from([0, 0, 1, 3]))
    shape = draw(st.sampled_from(["constant", "bimodal", "rising", "fast then slow"]))
    return {
        "count": count,
        "seconds": seconds_of(shape, draw(st.sampled_from([2e-6, 1e-4, 3e-3, 0.1])), count),
        "result_bytes": draw(st.sampled_from([0, 100, 100_000])),
        "workers": draw(st.integers(1, 5)),
        "ordered": draw(st.booleans()),
        "kinds": kinds,
        "chunk": draw(st.sampled_from([0, 0, 1, 7])),
        "ahead": draw(st.sampled_from([0, 0, 1, 10])),
        "bytes": draw(st.sampled_from([1, 250_000, 256 << 20])),
        "total": draw(st.sampled_from([None, count, count, 2 * count, count // 2])),
        "on_error": draw(st.sampled_from(["raise", "yield", "skip", "instead"])),
        "retries": retries,
        "failing": dict.fromkeys(draw(chosen), draw(st.sampled_from([retries, 1000]))),
        "kills": dict.fromkeys(draw(chosen), draw(st.sampled_from([1, 1, 99])) if kinds == ("process",) else 1),
        "stuck": draw(chosen),
        "deaths": draw(st.lists(st.tuples(st.floats(0, 0.5), st.integers(0, 4)), max_size=3)),
        "stillborn": draw(st.integers(0, 2)),
        "raises_at": draw(st.one_of(st.none(), indices)),
        "consumer_s": draw(st.sampled_from([0.0, 1e-5, 0.01])),
        "start_s": draw(st.sampled_from([0.0, 0.06])),
    }


def instead(failure: Failure) -> Any:
    return "instead", failure.index


def expected(scenario: dict[str, Any]) -> list[Any]:
    """What a plain loop would give under the policy, with what happens to items in worker processes."""
    results: list[Any] = []
    count, breaks_at = scenario["count"], scenario["raises_at"]
    breaks = breaks_at is not None and breaks_at < count
    for k in range(breaks_at if breaks else count):
        error = ""
        if scenario["kinds"] == ("process",) and k in scenario["stuck"]:
            error = "TransportError"
        elif scenario["kills"].get(k, 0) > 10:
            error = "WorkerDiedError"
        elif scenario["failing"].get(k, 0) > scenario["retries"]:
            error = "ValueError"
        if not error:
            results.append(2 * k)
        elif scenario["on_error"] == "instead":
            results.append(("instead", k))
        elif scenario["on_error"] != "skip":
            results.append((error, k))
    return [*results, ("OSError", -1)] if breaks else results


def plain(result: Any) -> Any:
    """An error as its class and the item that its note tells."""
    if isinstance(result, Failure):
        assert plain(result.error)[1] == result.index
        return plain(result.error)
    if not isinstance(result, Exception):
        return result
    found = re.findall(r"item (\d+)", " ".join(getattr(result, "__notes__", ())))
    assert len(set(found)) < 2
    return type(result).__name__, int(found[0]) if found else -1


def drained(simulation: Simulation) -> Iterator[Any]:
    """All results, and errors where they are raised, until the end."""
    results = simulation.consumed()
    while True:
        try:
            yield next(results)
        except StopIteration:
            return
        except Spinning:
            raise
        except Exception as error:  # noqa: BLE001 (whatever is raised is looked at)
            yield error
            results = simulation.consumed()


def simulated(scenario: dict[str, Any], source: Iterable[int], func: Callable[[Any], Any]) -> Simulation:
    workers, on_error = scenario["workers"], scenario["on_error"]
    return Simulation(
        func,
        source,
        Script(
            scenario["seconds"], result_bytes=scenario["result_bytes"], kills=scenario["kills"], stuck=scenario["stuck"]
        ),
        workers=workers,
        kinds=scenario["kinds"],
        limits=Limits(workers, workers, scenario["chunk"], scenario["bytes"], scenario["ahead"]),
        ordered=scenario["ordered"],
        total=scenario["total"],
        on_error=instead if on_error == "instead" else on_error,
        retries=scenario["retries"],
        consumer_s=scenario["consumer_s"],
        costs=Costs(start_s=scenario["start_s"], birth_s=0.01 * (scenario["start_s"] > 0)),
        options={"deaths": scenario["deaths"], "stillborn": scenario["stillborn"]},
    )


@settings(max_examples=100)
@given(scenarios())
def test_every_item_is_delivered_once_as_by_a_plain_loop(scenario: dict[str, Any]) -> None:
    source = Numbers(scenario["count"], scenario["raises_at"])
    simulation = simulated(scenario, source, Function(scenario["failing"]))
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings(action="ignore"))
        if "serial" in scenario["kinds"]:
            stack.enter_context(simulation.serial_time())
        found = [plain(result) for result in drained(simulation)]
    wanted = expected(scenario)
    if not scenario["ordered"]:
        found, wanted = sorted(found, key=str), sorted(wanted, key=str)
    assert found == wanted
    assert simulation.stats.over
    assert all(backend.closed and not backend.out for backend in simulation.backends)


# -- how far it runs ahead --------------------------------------------------------------------------------------------


def furthest(simulation: Simulation, source: Numbers, results: int) -> int:
    """Most items that were pulled and not handed out, while so many results are taken."""
    most = 0
    for taken, _ in enumerate(simulation.consumed(), 1):
        most = max(most, source.pulled - taken)
        if taken == results:
            break
    simulation.engine.close()
    return most


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("ahead", [1, 2, 7, 100])
@given(shape=st.sampled_from(["constant", "bimodal", "fast then slow"]), seconds=st.sampled_from([2e-6, 1e-3, 0.1]))
@settings(max_examples=9)
def test_an_endless_source_is_never_further_ahead_than_asked_for(
    ahead: int, ordered: bool, shape: str, seconds: float
) -> None:
    source = Numbers(1000)
    simulation = Simulation(
        double,
        source,
        Script(seconds_of(shape, seconds, 1000)),
        limits=Limits(4, 4, ahead=ahead),
        workers=4,
        ordered=ordered,
        consumer_s=seconds / 3,
    )
    assert furthest(simulation, source, 200) <= ahead


@pytest.mark.parametrize("ordered", [True, False])
@given(
    seconds=st.sampled_from([2e-6, 1e-3, 0.1]),
    shape=st.sampled_from(["constant", "bimodal"]),
    consumer_s=st.sampled_from([0.0, 0.05]),
    fits=st.integers(0, 40),
)
@settings(max_examples=20)
def test_results_never_weigh_more_than_the_budget_and_one_item(
    ordered: bool, seconds: float, shape: str, consumer_s: float, fits: int
) -> None:
    source, weight, workers = Numbers(400), 1_000_000, 3
    simulation = Simulation(
        bytes_of,
        source,
        Script(seconds_of(shape, seconds, 400), result_bytes=weight),
        limits=Limits(workers, workers, bytes=fits * weight),
        workers=workers,
        ordered=ordered,
        consumer_s=consumer_s,
    )
    # two chunks of one item a worker are under way before anything is known of their results
    assert furthest(simulation, source, 300) <= max(fits + 1, 2 * workers)
    assert simulation.stats.peak_bytes <= max(fits + 1, 2 * workers) * weight


def bytes_of(item: int) -> Weighing:
    return WEIGHING


class Weighing:
    nbytes = 1_000_000


WEIGHING = Weighing()


def test_the_caller_alone_is_not_further_ahead_than_asked_for() -> None:
    source = Numbers(1000)
    simulation = Simulation(
        double, source, Script([2e-6] * 1000), kinds=("serial",), limits=Limits(4, ahead=5), workers=0
    )
    with simulation.serial_time():
        assert furthest(simulation, source, 900) <= 5


def test_the_first_results_do_not_wait_for_a_slow_source() -> None:
    clock = VirtualClock()

    def slow() -> Iterator[int]:
        for number in range(1000):
            clock.advance(0.0004)
            yield number

    simulation = Simulation(
        double, slow(), Script([0.001] * 1000), workers=16, clock=clock, costs=Costs(start_s=0.0, birth_s=0.0)
    )
    assert next(simulation) == 0
    assert clock.now < 0.05


# -- workers that are lost, late, refused, or do not pay --------------------------------------------------------------


@settings(max_examples=40)
@given(
    breaks_at=st.floats(0.0, 0.3),
    kinds=st.sampled_from([AUTO, ("process", "thread")]),
    seconds=st.sampled_from([1e-4, 0.003, 0.02]),
    ordered=st.booleans(),
    refuses=st.booleans(),
)
def test_threads_take_over_where_processes_break(
    breaks_at: float, kinds: tuple[str, ...], seconds: float, ordered: bool, refuses: bool
) -> None:
    simulation = Simulation(
        double,
        range(100),
        Script([seconds] * 100),
        workers=3,
        kinds=kinds,
        ordered=ordered,
        options={"breaks_at": breaks_at, "refuses": refuses},
    )
    with simulation.serial_time(), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = list(simulation)
    assert found == [2 * k for k in range(100)] if ordered else sorted(found) == [2 * k for k in range(100)]
    broke = len(simulation.backends) > 1
    assert [("thread" in str(warning.message)) for warning in told] == [True] * broke
    assert [backend.kind for backend in simulation.backends] in ([], ["process"], ["process", "thread"])


@settings(max_examples=40)
@given(breaks_at=st.floats(0.0, 0.3), ordered=st.booleans())
def test_where_nothing_takes_over_the_error_is_raised_and_no_end_is_pretended(breaks_at: float, ordered: bool) -> None:
    simulation = Simulation(
        double, range(100), Script([0.02] * 100), workers=3, ordered=ordered, options={"breaks_at": breaks_at}
    )
    found = []
    with pytest.raises(WorkerError, match="broke"):
        found.extend(simulation)
    with pytest.raises(ClosedError):
        next(simulation)
    assert simulation.backends[0].closed


@settings(max_examples=40)
@given(
    late=st.sets(st.integers(0, 59), max_size=4),
    on_error=st.sampled_from(["yield", "skip"]),
    retries=st.integers(0, 2),
    ordered=st.booleans(),
    chunk=st.sampled_from([0, 1, 8]),
)
def test_only_an_item_that_takes_too_long_fails(
    late: set[int], on_error: str, retries: int, ordered: bool, chunk: int
) -> None:
    simulation = Simulation(
        double,
        range(60),
        Script([5.0 if k in late else 0.004 for k in range(60)]),
        workers=2,
        timeout=1.0,
        retries=retries,
        on_error=on_error,
        ordered=ordered,
        limits=Limits(2, 2, chunk),
    )
    found = list(simulation)
    if on_error == "yield":
        failures = [result for result in found if isinstance(result, Failure)]
        assert all(isinstance(failure.error, ItemTimeoutError) for failure in failures)
        assert sorted(failure.index for failure in failures) == sorted(late)
    values = [result for result in found if not isinstance(result, Failure)]
    assert sorted(values) == [2 * k for k in range(60) if k not in late]
    assert not ordered or values == sorted(values)


def test_an_item_that_always_kills_is_found_and_no_other_fails() -> None:
    for code, most in ((-11, CRASHES), (-9, KILLS)):
        simulation = Simulation(
            double, range(50), Script([0.001] * 50, kills={17: 99}, exit_code=code), on_error="yield"
        )
        found = list(simulation)
        (failure,) = (result for result in found if isinstance(result, Failure))
        assert (failure.index, failure.error.exit_code, found.index(failure)) == (17, code, 17)
        assert isinstance(failure.error, WorkerDiedError)
        assert 99 - simulation.script.kills[17] <= most + 2  # some times among others, then alone
        assert len(found) == 50


def test_workers_that_do_not_pay_give_way_to_the_caller() -> None:
    count = 60_000
    # 20 us an item, and 1 ms a chunk's worth of bytes for each of them: workers cannot win
    simulation = Simulation(
        double,
        range(count),
        Script([20e-6] * count),
        workers=2,
        kinds=("serial", "process"),
        costs=Costs(submit_s=0.02, take_s=0.02, start_s=0.0),
        limits=Limits(2, 2, chunk=16),
    )
    with simulation.serial_time():
        assert list(simulation) == [2 * k for k in range(count)]
    assert simulation.in_caller > count / 2
    assert simulation.stats.done == count
    assert all(backend.closed and not backend.out for backend in simulation.backends)


@pytest.mark.parametrize("total", [None, 600])
@pytest.mark.parametrize("quick", [1, 20, 300, 512])
def test_the_caller_does_not_go_on_alone_when_items_turn_out_slow(quick: int, total: int | None) -> None:
    simulation = Simulation(
        double,
        range(600),
        Script([2e-6] * quick + [0.1] * (600 - quick)),
        workers=8,
        kinds=("serial", "process"),
        total=total,
    )
    with simulation.serial_time():
        assert list(simulation) == [2 * k for k in range(600)]
    assert simulation.in_caller < quick + 10
    assert simulation.stats.done == simulation.stats.handed_out == 600
    assert simulation.clock.now < 1.3 * (600 - quick) * 0.1 / 8 + 0.2


def test_waiting_work_goes_to_threads_and_computing_work_to_processes() -> None:
    for cpu_share, kind in ((0.05, "thread"), (1.0, "process")):
        simulation = Simulation(
            double, range(400), Script([0.004] * 400), kinds=AUTO, workers=4, cpu_share=cpu_share, total=400
        )
        with simulation.serial_time():
            assert list(simulation) == [2 * k for k in range(400)]
        assert [backend.kind for backend in simulation.backends] == [kind]
        assert simulation.clock.now < 0.6 * 400 * 0.004


def test_quick_work_stays_with_the_caller() -> None:
    simulation = Simulation(double, range(5000), Script([3e-7] * 5000), kinds=AUTO, workers=4, total=5000)
    with simulation.serial_time():
        assert list(simulation) == [2 * k for k in range(5000)]
    assert not simulation.backends


# -- interrupts -------------------------------------------------------------------------------------------------------


class Interrupted(VirtualClock):
    """Ctrl-C comes at the ``at``-th look at it."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.left = at

    def __call__(self) -> float:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return super().__call__()


@pytest.mark.parametrize("kinds", [("process",), ("serial", "process")])
def test_an_interrupt_anywhere_never_leads_to_results_left_out(kinds: tuple[str, ...]) -> None:
    for at in range(1, 300, 3):
        clock = Interrupted(-1)
        simulation = Simulation(double, range(30), Script([0.004] * 30), workers=2, kinds=kinds, clock=clock)
        found: list[int] = []
        with simulation.serial_time():
            clock.left = at
            try:
                while True:
                    try:
                        found.append(next(simulation))
                    except KeyboardInterrupt:
                        continue
            except StopIteration:
                assert found == [2 * k for k in range(30)]
            except ClosedError:
                assert found == [2 * k for k in range(len(found))]
        assert all(backend.closed for backend in simulation.backends)
        if clock.left > 0:
            break


@pytest.mark.parametrize("kinds", [("process",), ("thread",), AUTO])
def test_what_is_not_an_exception_is_raised_in_its_place_whatever_the_policy(kinds: tuple[str, ...]) -> None:
    def leave(item: int) -> int:
        if item == 20:
            raise SystemExit(3)
        return item

    simulation = Simulation(leave, range(40), Script([0.01] * 40), workers=2, kinds=kinds, on_error="skip", retries=2)
    found = []
    with simulation.serial_time(), pytest.raises(SystemExit):
        for result in simulation:
            found.append(result)
    assert found == list(range(20))


@settings(max_examples=40)
@given(
    changes=st.dictionaries(st.integers(1, 90), st.sampled_from(["serial", "thread", "process"]), max_size=3),
    breaks_at=st.sampled_from([inf, 0.02, 0.1, 0.2]),
    seconds=st.sampled_from([1e-4, 0.003, 0.02]),
    ahead=st.sampled_from([0, 1, 8]),
    ordered=st.booleans(),
)
def test_no_item_is_lost_when_workers_change(
    changes: dict[int, str], breaks_at: float, seconds: float, ahead: int, ordered: bool
) -> None:
    simulation = Simulation(
        double,
        range(100),
        Script([seconds] * 100),
        workers=3,
        kinds=AUTO,
        limits=Limits(3, 3, ahead=ahead),
        ordered=ordered,
        options={"breaks_at": breaks_at},
    )
    found: list[int] = []
    with simulation.serial_time(), warnings.catch_warnings(action="ignore"):
        for result in simulation:
            found.append(result)
            kind = changes.get(len(found))
            if kind in simulation.engine._kinds and simulation.engine._stage == "parallel":
                simulation.engine._change(kind, "it is the test's wish")
    assert found == [2 * k for k in range(100)] if ordered else sorted(found) == [2 * k for k in range(100)]
    assert all(backend.closed for backend in simulation.backends)


# -- verdicts that turn out wrong -------------------------------------------------------------------------------------


def misjudged(
    seconds: list[float], *, seen: float, true: float, total: bool, start_s: float = 0.06, **options: Any
) -> Simulation:
    """A function that the caller sees compute for the share ``seen`` of its time; in workers it is ``true``."""
    count = len(seconds)
    return Simulation(
        double,
        range(count),
        Script(seconds),
        cpu_share=seen,
        kinds=options.pop("kinds", AUTO),
        limits=options.pop("limits", Limits(cpus=2)),
        total=count if total else None,
        costs=Costs(start_s=start_s, birth_s=0.0),
        options={"cpu_share": true},
        **options,
    )


def lock_unknown(simulation: Simulation) -> None:
    """Nothing is known of the interpreter's lock, nor looked at: that would be in real time."""
    simulation.engine._probe._held_known = False
    simulation.engine._probe.flow.held_share = 1.0
    simulation.engine._probe._start_sampler = lambda: None  # type: ignore[method-assign]


@settings(max_examples=40)
@given(
    each_s=st.sampled_from([1e-4, 1e-3, 2e-3, 0.02, 0.3]),
    share=st.sampled_from([0.0, 0.03, 0.2]),
    start_s=st.sampled_from([0.0, 0.001, 0.06]),
    total=st.booleans(),
    ordered=st.booleans(),
    quick=st.integers(0, 40),
)
def test_threads_take_over_within_a_few_items_what_processes_only_wait_for(
    each_s: float, share: float, start_s: float, total: bool, ordered: bool, quick: int
) -> None:
    count = max(60, int(0.6 / each_s))
    seconds = [each_s / 10] * quick + [each_s] * (count - quick)
    simulation = misjudged(seconds, seen=1.0, true=share, total=total, start_s=start_s, ordered=ordered)
    with simulation.serial_time():
        lock_unknown(simulation)
        assert sorted(simulation) == [2 * k for k in range(count)]
    kinds = [backend.kind for backend in simulation.backends]
    assert kinds == ["process", "thread"]
    processes, threads = simulation.backends
    assert threads.workers > 4
    begun_s = 0.05 + start_s
    # what each of the two had when the first three came back, and the caller's own until then
    assert sum(processes.reported.values()) <= max(30, 4 * 0.012 / each_s + quick)
    assert simulation.clock.now < begun_s + 0.012 + 8 * each_s + 2 * sum(seconds) / 7


@settings(max_examples=40)
@given(
    each_s=st.sampled_from([1e-4, 1e-3, 2e-3, 0.02]),
    share=st.sampled_from([0.6, 0.8, 1.0]),
    start_s=st.sampled_from([0.0, 0.001, 0.06]),
    total=st.booleans(),
    known=st.booleans(),
)
def test_what_computes_stays_with_processes(
    each_s: float, share: float, start_s: float, total: bool, known: bool
) -> None:
    count = max(60, int(0.6 / each_s))
    simulation = misjudged([each_s] * count, seen=1.0, true=share, total=total, start_s=start_s)
    with simulation.serial_time():
        if not known:
            lock_unknown(simulation)
        assert list(simulation) == [2 * k for k in range(count)]
    assert [backend.kind for backend in simulation.backends] == ["process"]


@pytest.mark.parametrize("each_s", [1e-4, 2e-3, 0.02])
@pytest.mark.parametrize("total", [True, False])
def test_processes_take_over_what_threads_compute(each_s: float, total: bool) -> None:
    count = max(100, int(1.0 / each_s))
    simulation = misjudged([each_s] * count, seen=0.05, true=0.95, total=total)
    with simulation.serial_time():
        lock_unknown(simulation)
        assert list(simulation) == [2 * k for k in range(count)]
    assert [backend.kind for backend in simulation.backends] == ["thread", "process"]
    threads, _ = simulation.backends
    assert sum(threads.reported.values()) <= max(100, 0.3 / each_s)  # what all of them had in hand


def test_threads_do_not_take_over_where_their_number_was_given_or_processes_were_asked_for() -> None:
    for kinds, limits in (
        (AUTO, Limits(cpus=2, workers=2)),
        (("process",), Limits(cpus=2, workers=2)),
        (("process", "thread"), Limits(cpus=32, workers=2)),  # what a timeout leaves: only processes can be ended
        (("serial", "process"), Limits(cpus=2)),
    ):
        simulation = misjudged([0.01] * 100, seen=1.0, true=0.02, total=True, kinds=kinds, limits=limits)
        with simulation.serial_time():
            lock_unknown(simulation)
            assert list(simulation) == [2 * k for k in range(100)]
        assert [backend.kind for backend in simulation.backends] == ["process"]


def test_a_first_item_that_waits_does_not_make_a_waiting_function() -> None:
    simulation = misjudged([0.002] * 200, seen=1.0, true=1.0, total=True)
    shares = iter([0.0, *[1.0] * 10_000])
    with simulation.serial_time():
        lock_unknown(simulation)
        probe = simulation.engine._probe
        probe.first_ended(0.002, next(shares), long=False)
        assert probe.look(0.002, 200) is None  # one brief item: the next one tells
        assert list(simulation) == [2 * k for k in range(200)]
    assert [backend.kind for backend in simulation.backends] == ["process"]


@pytest.mark.parametrize("start_s", [0.001, 0.06])
def test_the_caller_does_not_sit_over_slow_items_while_workers_have_nothing_to_do(start_s: float) -> None:
    seconds = [20e-6] * 400 + [2e-3] * 400
    simulation = misjudged(seconds, seen=1.0, true=1.0, total=True, start_s=start_s)
    with simulation.serial_time():
        assert list(simulation) == [2 * k for k in range(800)]
    assert simulation.clock.now < 1.06 * sum(seconds) / 2 + start_s


def test_workers_go_on_behind_an_item_that_takes_long() -> None:
    # the slow one is the first of its kind, and nothing has told how slow it is
    seconds = [0.005] * 20 + [0.4] + [0.005] * 180
    simulation = Simulation(double, range(201), Script(seconds), workers=2, total=201)
    assert list(simulation) == [2 * k for k in range(201)]
    assert simulation.clock.now < 0.06 + 1.1 * sum(seconds) / 2
