"""From a function and its data to a plan: try some items, see what workers cost, predict, decide, say why.

What ``optimize_streaming`` and ``optimize`` have in common. Running a plan: ``plan``, ``pool_map``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from lazystore.errors import LazyStoreError
from lazystore.parallel.cpus import usable_cpus
from lazystore.parallel.failures import Failed
from lazystore.parallel.plans.forecast import HETEROGENEOUS, WORTH, Bounds, Costs, Forecast, Kind, Work, best_forecast
from lazystore.parallel.plans.machine import available_memory, physical_cores
from lazystore.parallel.plans.profile import DiagnosticProfile
from lazystore.parallel.plans.sampling import Samples, call, take_samples
from lazystore.parallel.plans.source import Source
from lazystore.parallel.plans.wishes import Wishes
from lazystore.parallel.plans.worker_costs import assumed_costs, measured_costs, start_method
from lazystore.parallel.scheduling.tuner import THREAD_S
from lazystore.parallel.workers.inner_threads import thread_environment
from lazystore.parallel.workers.worker_main import importing_main, leave_unguarded, serving

__all__ = ["Plan", "make_plan"]

#: what samples may weigh that are kept until they are delivered
HELD_BYTES: Final = 32 << 20
#: workers that cost next to nothing: if they do not pay, none do, and there is nothing to measure
HARDLY: Final = Costs(0.001, 20e-6)

_time = DiagnosticProfile.format_time
_size = DiagnosticProfile.format_bytes


@dataclass(slots=True)
class Plan:
    """A decision and what it rests on.

    Parameters:
        wishes: the caller's.
        source: the data, some items taken.
        samples: those items.
        forecast: of the way that was chosen.
        backend: "process", "thread", "serial", or the caller's executor.
        in_processes: whether processes may run it.
        reason: one sentence.
        warnings: what the caller should know before running it.
        profile: all figures.
    """

    wishes: Wishes
    source: Source
    samples: Samples
    forecast: Forecast
    backend: Any
    in_processes: bool
    reason: str
    warnings: list[str]
    profile: DiagnosticProfile

    def head(self, retries: int = 0) -> list[Any]:
        """Results or failures of the items that were tried, which are the source's ``items``.

        Parameters:
            retries: times each that failed is tried again first.
        """
        tried = list(zip(self.samples.trials, self.source.items, strict=True))
        for trial, item in tried:
            for _ in range(retries):
                if trial.error is not None:
                    trial.error = None
                    call(self.wishes.func, item, trial)
        return [
            trial.result if trial.error is None else Failed(trial.error, index, item)
            for index, (trial, item) in enumerate(tried)
        ]

    def forget_head(self) -> None:
        """They are delivered by now, or will be; nothing is kept here."""
        self.source.items = []
        for trial in self.samples.trials:
            trial.result = trial.error = None


def make_plan(
    wishes: Wishes,
    data: Any,
    check: Callable[[DiagnosticProfile], list[str]] | None = None,
    *,
    by_key: bool = True,
) -> Plan:
    """Take ``wishes.sample_size`` items of ``data``, call ``func`` once with each, and decide.

    Parameters:
        check: returns further warnings, given the figures.
        by_key: workers read data themselves that they can read.
    """
    if importing_main():
        leave_unguarded()
    say: Callable[[str], None] = print if wishes.verbose else _quiet
    source = Source(data, ordered=wishes.prefer_ordered is not False, by_key=by_key)
    shared = wishes.backend in ("thread", "serial")
    samples = take_samples(
        source, wishes.func, wishes.sample_size, most_bytes=min(HELD_BYTES, wishes.most_bytes), in_place=shared
    )
    say(f"tried {_count(samples)}{_stopped(samples)}")
    warnings = _sample_warnings(samples, source)
    bounds = Bounds(
        cpus=usable_cpus(),
        n_jobs=wishes.n_jobs or getattr(wishes.backend, "_max_workers", None),
        chunksize=wishes.chunksize,
        target_s=wishes.target_chunk_duration,
        ahead=wishes.buffer_size,
    )
    if not samples.good:
        return _blind_plan(wishes, source, samples, bounds, warnings)
    work = samples.work(source.total)
    say(f"an item takes {_time(work.run_s)}, {min(work.cpu_share, 1.0):.0%} of it computing")
    kinds = _kinds(wishes, samples)
    try:
        costs = _costs(wishes, work, bounds, kinds)
    except LazyStoreError as error:
        costs = assumed_costs()
        warnings.append(f"worker processes cannot be started here: {error}")
        kinds = tuple(kind for kind in kinds if kind != "process") or kinds
    for what, seconds, measured in (
        ("the start of a worker", costs.start_s, costs.start_measured),
        ("handling a chunk", costs.chunk_s, costs.chunk_measured),
    ):
        say(f"{what} takes {_time(seconds)} ({'measured' if measured else 'assumed'})")
    chosen = best_forecast(work, costs, bounds, kinds)
    plan = Plan(
        wishes,
        source,
        samples,
        chosen,
        backend=wishes.backend if _is_executor(wishes.backend) else chosen.kind,
        in_processes="process" in kinds,
        reason=_reason(work, chosen, wishes),
        warnings=warnings,
        profile=_profile(samples, work, costs, bounds, chosen),
    )
    warnings += _plan_warnings(plan, work, bounds)
    if check is not None:
        warnings += check(plan.profile)
    _add_advice(plan, work)
    say(plan.reason)
    for warning in warnings:
        say(f"warning: {warning}")
    return plan


def _quiet(line: str) -> None:
    """Print nothing."""


def _is_executor(backend: Any) -> bool:
    return not isinstance(backend, str)


# -- what may be chosen -------------------------------------------------------------------------------------------


def _kinds(wishes: Wishes, samples: Samples) -> tuple[Kind, ...]:
    backend = wishes.backend
    if _is_executor(backend):
        from concurrent.futures import ThreadPoolExecutor

        return ("thread",) if isinstance(backend, ThreadPoolExecutor) else ("process",)
    if backend == "auto":
        # inside a worker the processors are taken by its like
        return ("serial", "thread") if serving() or _stuck(wishes.func, samples) else ("serial", "thread", "process")
    return (backend,)


def _stuck(func: Callable[[Any], Any], samples: Samples) -> str:
    """Why processes are out of the question; not for a function that cloudpickle packs, where that is installed."""
    elsewhere = next((trial.stays for trial in samples.trials if trial.stays), "")
    return elsewhere or ("" if samples.func_stays and _packs_by_value(func) else samples.func_stays)


def _packs_by_value(func: Callable[[Any], Any]) -> bool:
    try:
        import cloudpickle
    except ImportError:
        return False  # optional
    try:
        cloudpickle.dumps(func)
    except Exception:  # noqa: BLE001 (whatever a class raises from its pickling, the answer is no)
        return False
    return True


def _costs(wishes: Wishes, work: Work, bounds: Bounds, kinds: tuple[Kind, ...]) -> Costs:
    """Measured where that can change the plan: not for work too small for any worker, nor for threads."""
    wanted = wishes.use_spawn_benchmark or wishes.use_chunking_benchmark
    if not wanted or "process" not in kinds or _is_executor(wishes.backend):
        return assumed_costs()
    if best_forecast(work, HARDLY, bounds, kinds).kind != "process":
        return assumed_costs()
    from lazystore.parallel.workers.process_backend import ProcessBackend

    return measured_costs(ProcessBackend, start=wishes.use_spawn_benchmark, chunks=wishes.use_chunking_benchmark)


def _blind_plan(wishes: Wishes, source: Source, samples: Samples, bounds: Bounds, warnings: list[str]) -> Plan:
    """Nothing is known of the work: none of the items tried worked, or there are none."""
    kind: Kind = "serial" if wishes.backend == "auto" or _is_executor(wishes.backend) else wishes.backend
    n_jobs = wishes.n_jobs or 1
    chosen = Forecast(kind if n_jobs == 1 or kind != "serial" else "process", n_jobs, wishes.chunksize or 1)
    return Plan(
        wishes,
        source,
        samples,
        chosen,
        backend=wishes.backend if _is_executor(wishes.backend) else chosen.kind,
        in_processes=True,
        reason=_blind_reason(source, samples),
        warnings=warnings,
        profile=DiagnosticProfile(
            sample_count=len(samples.trials),
            **_machine(bounds),
            total_items=source.total,
            target_chunk_duration=bounds.target_s,
            optimal_chunksize=chosen.chunksize,
            estimated_speedup=1.0,
        ),
    )


def _blind_reason(source: Source, samples: Samples) -> str:
    if samples.trials:
        return "Nothing is known of the work, because none of the items that were tried worked."
    if source.error is not None:
        return "Nothing is known of the work, because the source raised an error before it gave an item."
    return "The data is empty."


# -- what is said about it ----------------------------------------------------------------------------------------


def _count(samples: Samples) -> str:
    return f"{len(samples.trials)} of {samples.asked} items"


def _stopped(samples: Samples) -> str:
    return f" (then stopped: {samples.stopped})" if samples.stopped else ""


def _sample_warnings(samples: Samples, source: Source) -> list[str]:
    found = []
    failed = [(index, trial.error) for index, trial in enumerate(samples.trials) if trial.error is not None]
    if failed:
        index, error = failed[0]
        found.append(
            f"{len(failed)} of {len(samples.trials)} items that were tried raised an error (item {index}: "
            f"{type(error).__name__}: {error}); .imap() reports it in its place"
        )
    if source.error is not None:
        found.append(
            f"the source raised {type(source.error).__name__}: {source.error}; running the plan raises it again"
        )
    return found


def _plan_warnings(plan: Plan, work: Work, bounds: Bounds) -> list[str]:
    found = []
    chosen, wishes, samples = plan.forecast, plan.wishes, plan.samples
    if samples.stays:
        can = "nor can .imap() with processes" if wishes.backend == "process" else ".imap() can"
        found.append(f"a multiprocessing.Pool cannot run this ({samples.stays}); {can}")
    if chosen.kind == "thread" and not _is_executor(plan.backend):
        found.append(
            f"these are threads: with a pool of your own take multiprocessing.pool.ThreadPool({chosen.n_jobs}), "
            "not Pool; .imap() knows"
        )
    if samples.threaded and chosen.kind != "thread":
        found.append(_nested(work, chosen, bounds))
    if wishes.n_jobs is not None and wishes.n_jobs > bounds.cpus and work.cpu_share > 0.8:
        found.append(
            f"n_jobs={wishes.n_jobs}, but this process may use {bounds.cpus} processors, and the work computes"
        )
    if wishes.buffer_size is not None and wishes.buffer_size < chosen.n_jobs:
        found.append(
            f"buffer_size={wishes.buffer_size} keeps {chosen.n_jobs} workers waiting; give {chosen.n_jobs} or more"
        )
    if chosen.kind != "serial" and chosen.speedup < 1.0:
        found.append(f"as asked for, this is predicted to take {1 / chosen.speedup:.1f} times as long as a plain loop")
    return found


def _nested(work: Work, chosen: Forecast, bounds: Bounds) -> str:
    lines = "; ".join(
        f"os.environ[{name!r}] = '1'" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    )
    user_set = len(thread_environment(1)) < 2
    remedy = "" if user_set else f" One thread each is usually faster: {lines} before the libraries are imported."
    return (
        f"nested parallelism: func computes in threads of its own and keeps {work.cpu_share:.1f} processors busy, so "
        f"n_jobs is {chosen.n_jobs} for {bounds.cpus} processors.{remedy} .imap() limits them in its workers by itself"
    )


def _reason(work: Work, chosen: Forecast, wishes: Wishes) -> str:
    item = f"an item takes {_time(work.run_s)}"
    gain = f"{chosen.speedup:.2f} times a plain loop's speed"
    if chosen.kind == "serial":
        if wishes.backend == "serial":
            return f"Serial, as asked for: {item}."
        whole = "" if chosen.serial_s is None else f" and all of them {_time(chosen.serial_s)}"
        return f"Serial, for insufficient speedup: {item}{whole}, and workers would gain less than {WORTH - 1:.0%}."
    what = "threads" if chosen.kind == "thread" else "processes"
    what = what if chosen.n_jobs > 1 else what.removesuffix("es" if what == "processes" else "s")
    why = f"{item}, {min(work.cpu_share, 1.0):.0%} of it computing"
    given = " (as asked for)" if wishes.n_jobs is not None else ""
    limit = {"workers": "", "caller": ", limited by the caller's own work on each", "processors": ""}[chosen.bound]
    chunk = "1 item" if chosen.chunksize == 1 else f"{chosen.chunksize} items"
    return f"{chosen.n_jobs} {what}{given} with {chunk} a chunk: {why}; predicted {gain}{limit}."


def _add_advice(plan: Plan, work: Work) -> None:
    profile, chosen = plan.profile, plan.forecast
    if chosen.kind == "serial" and plan.wishes.backend == "auto":
        profile.rejection_reasons.append(f"workers are predicted to gain less than {WORTH - 1:.0%}")
        if work.run_s < 1e-3:
            profile.recommendations.append("give func more to do in a call: several items, or several operations")
    if plan.samples.stays:
        profile.rejection_reasons.append(f"processes: {plan.samples.stays}")
    if chosen.bound == "caller" and chosen.kind != "serial":
        slow = "the source" if work.source_s > work.pack_in_s + work.unpack_out_s else "pickling items and results"
        profile.constraints.append(f"more workers would wait: {slow} takes the caller's time")
    if plan.samples.stopped:
        profile.constraints.append(f"{_count(plan.samples)} were tried: {plan.samples.stopped}")
    if work.variation > HETEROGENEOUS and len(plan.samples.good) < 10:
        profile.recommendations.append("item times differ much: a larger sample_size would tell more")


# -- the figures --------------------------------------------------------------------------------------------------


def _machine(bounds: Bounds) -> dict[str, Any]:
    return {
        "physical_cores": physical_cores(),
        "logical_cores": os.cpu_count(),
        "usable_cores": bounds.cpus,
        "multiprocessing_start_method": start_method(),
        "available_memory": available_memory(),
    }


def _profile(samples: Samples, work: Work, costs: Costs, bounds: Bounds, chosen: Forecast) -> DiagnosticProfile:
    good = samples.good
    packed_in = any(trial.in_bytes is not None for trial in good)
    packed_out = any(trial.out_bytes is not None for trial in good)
    workers, threads = chosen.kind != "serial", chosen.kind == "thread"
    profile = DiagnosticProfile(
        sample_count=len(samples.trials),
        avg_execution_time=work.run_s,
        warm_up_time=work.first_extra_s,
        coefficient_of_variation=work.variation,
        is_heterogeneous=work.variation > HETEROGENEOUS,
        cpu_time_ratio=min(1.0, work.cpu_share),
        lock_held_ratio=None if samples.held is None else work.held_share,
        workload_type="cpu-bound" if work.cpu_share >= 0.7 else "io-bound" if work.cpu_share <= 0.3 else "mixed",
        is_picklable=not samples.stays,
        avg_pickle_time=work.pack_out_s + work.unpack_out_s if packed_out else None,
        avg_data_pickle_time=work.pack_in_s + work.unpack_in_s if packed_in else None,
        return_size_bytes=round(work.out_bytes) if packed_out else None,
        data_size_bytes=round(work.in_bytes) if packed_in else None,
        **_machine(bounds),
        spawn_cost=None if threads else costs.start_s,
        spawn_cost_measured=not threads and costs.start_measured,
        chunking_overhead=THREAD_S if threads else costs.chunk_s,
        chunking_overhead_measured=not threads and costs.chunk_measured,
        total_items=work.total,
        target_chunk_duration=bounds.target_s,
        optimal_chunksize=chosen.chunksize,
        max_workers_cpu=max(1, round(bounds.cpus / max(work.cpu_share, 1.0 / 32))),
        estimated_serial_time=chosen.serial_s,
        estimated_parallel_time=chosen.parallel_s,
        estimated_speedup=chosen.speedup,
        theoretical_max_speedup=chosen.most_speedup,
        speedup_efficiency=chosen.speedup / chosen.n_jobs,
        overhead_spawn=chosen.start_s if workers else 0.0,
        overhead_ipc=chosen.carry_s if workers else 0.0,
        overhead_chunking=chosen.chunks_s if workers else 0.0,
        parallel_compute_time=chosen.compute_s,
    )
    if packed_out and work.total is not None:
        profile.estimated_result_memory = round(work.out_bytes * work.total)
    in_flight = 2 * chosen.chunksize * (work.in_bytes + work.out_bytes)
    if profile.available_memory is not None and in_flight:
        profile.max_workers_memory = max(1, int(profile.available_memory // in_flight))
    return profile
