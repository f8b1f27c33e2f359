"""`optimize`: a plan for ``multiprocessing.Pool.map``, where all results are wanted at once.

How a plan is made: ``planning``. For results that are used one by one: ``plan``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from lazystore.parallel.plans.plan import explanation, start_run
from lazystore.parallel.plans.planning import Plan, make_plan
from lazystore.parallel.plans.profile import DiagnosticProfile
from lazystore.parallel.plans.wishes import Wishes

__all__ = ["OptimizationResult", "optimize"]

#: share of the available memory that all results together may take without a warning
MUCH: Final = 0.5


@dataclass(eq=False, repr=False)
class OptimizationResult:
    """A plan for ``Pool(n_jobs).map(func, data, chunksize)``, or for its own :meth:`map`.

    Belongs to one thread and to the process that made it; not meant to be pickled; holds no worker.

    Parameters:
        n_jobs: workers, at least 1.
        chunksize: items a chunk, at least 1.
        reason: why, in one sentence.
        estimated_speedup: over a plain loop, predicted; 1.0 for a serial plan.
        warnings: what to know before running it.
        data: the items, all of them, as in ``StreamingOptimizationResult``.
        profile: the figures, with ``profile=True``; else None.
        executor_type: "process", "thread" or "serial", or the executor that was given.
    """

    n_jobs: int
    chunksize: int
    reason: str
    estimated_speedup: float
    warnings: list[str]
    data: Any
    profile: DiagnosticProfile | None
    executor_type: Any
    _plan: Plan = field(init=False)

    def map(self, **overrides: Any) -> list[Any]:
        """All results, in the order of the data; ``func`` is not called again for the items that were tried.

        Parameters:
            overrides: arguments of :func:`lazystore.imap`, which win over the plan.

        Raises:
            ConfigError: an argument cannot work; or the data can be iterated only once, and was already begun.
        """
        return list(start_run(self._plan, ".map()", overrides))

    def explain(self) -> str:
        """The plan, its reason, the figures behind it and what to mind when running it, over several lines."""
        own = f"pool.map(func, result.data, chunksize={self.chunksize})"
        return explanation(self._plan, [str(self)], own, ".map()")

    def __str__(self) -> str:
        head = (
            f"n_jobs={self.n_jobs}, chunksize={self.chunksize}, executor_type={_name(self.executor_type)}, "
            f"predicted speedup {self.estimated_speedup:.2f}x"
        )
        return "\n".join([head, self.reason, *(f"warning: {warning}" for warning in self.warnings)])

    def __repr__(self) -> str:
        return (
            f"OptimizationResult(n_jobs={self.n_jobs}, chunksize={self.chunksize}, "
            f"executor_type={_name(self.executor_type)}, estimated_speedup={self.estimated_speedup:.2f}, "
            f"warnings={len(self.warnings)}, reason={self.reason!r})"
        )


def optimize(
    func: Callable[[Any], Any],
    data: Any,
    sample_size: int = 5,
    target_chunk_duration: float = 0.2,
    verbose: bool = False,
    use_spawn_benchmark: bool = True,
    use_chunking_benchmark: bool = True,
    profile: bool = False,
    *,
    n_jobs: int | None = None,
    chunksize: int | None = None,
    backend: Any = "auto",
) -> OptimizationResult:
    """Plan how to run ``func`` over all of ``data`` when all results are wanted at once, as from ``Pool.map``.

    As :func:`lazystore.optimize_streaming`, whose parameters, cost and rules it shares, except that all results are
    in memory at the end: where they are predicted to take more than half of what is available (the host's, or what
    a container's limit leaves), or where nothing tells how many there will be, a warning says so.

    Raises:
        ConfigError: an argument cannot work; the message names it.
    """
    wishes = Wishes(
        func,
        sample_size,
        target_chunk_duration,
        verbose=verbose,
        use_spawn_benchmark=use_spawn_benchmark,
        use_chunking_benchmark=use_chunking_benchmark,
        n_jobs=n_jobs,
        chunksize=chunksize,
        backend=backend,
    )
    plan = make_plan(wishes, data, memory_warnings)
    result = OptimizationResult(
        n_jobs=plan.forecast.n_jobs,
        chunksize=plan.forecast.chunksize,
        reason=plan.reason,
        estimated_speedup=plan.forecast.speedup,
        warnings=plan.warnings,
        data=plan.source.data,
        profile=plan.profile if profile else None,
        executor_type=plan.backend,
    )
    result._plan = plan
    return result


def memory_warnings(profile: DiagnosticProfile) -> list[str]:
    """What there is to say about holding all results at once."""
    size = profile.format_bytes
    if profile.total_items is None:
        return ["nothing tells how many items there are: all of them, and all results, will be in memory at once"]
    results, available = profile.estimated_result_memory, profile.available_memory
    if results is None or available is None or results <= MUCH * available:
        return []
    weight = f"all results together take about {size(results)}, and {size(available)} are available"
    return [f"{weight}: use each as it comes, with optimize_streaming(...).imap()"]


def _name(executor_type: Any) -> str:
    return repr(executor_type) if isinstance(executor_type, str) else type(executor_type).__name__
