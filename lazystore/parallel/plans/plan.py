"""`optimize_streaming`: a plan for running a function over a stream, and the run itself.

Here: what callers meet. How a plan is made: ``planning`` (decisions), ``forecast`` (arithmetic), ``sampling`` (trying
items), ``worker_costs`` (trying a worker). What runs it: ``imap``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from lazystore.parallel.plans.planning import Plan, make_plan
from lazystore.parallel.plans.profile import DiagnosticProfile
from lazystore.parallel.plans.wishes import Wishes

if TYPE_CHECKING:
    from lazystore.parallel.dataset_items import DatasetItems
    from lazystore.parallel.mapper import Imap

__all__ = ["StreamingOptimizationResult", "explanation", "optimize_streaming", "start_part", "start_run"]

#: arguments of ``imap`` that are numbers
_NUMBERS: Final = ("n_jobs", "chunksize", "max_buffer_bytes", "retries", "timeout", "total")


@dataclass(eq=False, repr=False)
class StreamingOptimizationResult:
    """A plan for ``imap`` or ``imap_unordered``, of ``multiprocessing.Pool`` or of its own (:meth:`imap`).

    Belongs to one thread, and to the process that made it: it holds the function and the data, so it is not meant to
    be pickled. It holds no worker and no thread; the worker that was tried is in the common warm pool, which ends by
    itself.

    Parameters:
        n_jobs: workers, at least 1.
        chunksize: items a chunk, at least 1.
        use_ordered: ``imap`` rather than ``imap_unordered``.
        reason: why, in one sentence.
        estimated_speedup: over a plain loop, predicted; 1.0 for a serial plan.
        warnings: what to know before running it.
        data: the items, all of them, whatever the data was: the very object where that can be iterated again,
            otherwise a stand-in that yields the items that were tried and then the rest.
        profile: the figures, with ``profile=True``; else None.
        buffer_size: results that may wait for the consumer in :meth:`imap`. A ``Pool`` has no such limit.
        backend: "process", "thread", "serial", or the executor that was given.
    """

    n_jobs: int
    chunksize: int
    use_ordered: bool
    reason: str
    estimated_speedup: float
    warnings: list[str]
    data: Any
    profile: DiagnosticProfile | None
    buffer_size: int
    backend: Any
    _plan: Plan = field(init=False)

    def imap(self, **overrides: Any) -> Imap:
        """Run the plan: an iterator over the results, the items that were tried first.

        ``func`` is not called again for those items: over plan and run it is called once with each item (retries and
        workers that die aside). What was asked for is kept to, and so is a planned number of processes. Beyond that
        the run goes on measuring, as :func:`lazystore.imap` does: chunks grow and shrink, it takes workers when they
        begin to pay, and turns to others when items are not what the first ones promised.

        With data that can be iterated again, a second call is a second run over all of it.

        Parameters:
            overrides: arguments of :func:`lazystore.imap`, which win over the plan: ``n_jobs``, ``chunksize``,
                ``backend``, ``ordered``, ``on_error``, ``retries``, ``timeout``, ``initializer``, ``progress``,
                ``total``, ``max_buffer_bytes``.

        Raises:
            ConfigError: an argument cannot work; or the data can be iterated only once, and was already begun.
        """
        return start_run(self._plan, ".imap()", {"ordered": self.use_ordered} | overrides)

    def explain(self) -> str:
        """The plan, its reason, the figures behind it and what to mind when running it, over several lines."""
        order = "in order" if self.use_ordered else "as they come"
        run_by = "imap" if self.use_ordered else "imap_unordered"
        return explanation(
            self._plan,
            [
                str(self),
                f"Order: results {order} ({_why_ordered(self._plan.wishes.prefer_ordered)}).",
            ],
            f"pool.{run_by}(func, result.data, chunksize={self.chunksize})",
            ".imap()",
        )

    def __str__(self) -> str:
        lines = [
            (
                f"n_jobs={self.n_jobs}, chunksize={self.chunksize}, backend={_backend_name(self.backend)}, "
                f"{'ordered' if self.use_ordered else 'unordered'}, predicted speedup {self.estimated_speedup:.2f}x"
            ),
            self.reason,
            *(f"warning: {warning}" for warning in self.warnings),
        ]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return (
            f"StreamingOptimizationResult(n_jobs={self.n_jobs}, chunksize={self.chunksize}, "
            f"use_ordered={self.use_ordered}, backend={_backend_name(self.backend)}, "
            f"estimated_speedup={self.estimated_speedup:.2f}, warnings={len(self.warnings)}, reason={self.reason!r})"
        )


def optimize_streaming(
    func: Callable[[Any], Any],
    data: Any,
    sample_size: int = 5,
    target_chunk_duration: float = 0.2,
    prefer_ordered: bool | None = None,
    buffer_size: int | None = None,
    verbose: bool = False,
    use_spawn_benchmark: bool = True,
    use_chunking_benchmark: bool = True,
    profile: bool = False,
    *,
    n_jobs: int | None = None,
    chunksize: int | None = None,
    backend: Any = "auto",
    max_buffer_bytes: int | str | None = None,
) -> StreamingOptimizationResult:
    """Try the first items, see what workers cost here, and plan how to run ``func`` over all of ``data``.

    The plan is for ``multiprocessing.Pool`` (``pool.imap(func, result.data, chunksize=result.chunksize)``) as well
    as for ``result.imap()``, which needs no pool, does not call ``func`` again for the items that were tried, and
    bounds what waits for the consumer. When there is nothing to decide, :func:`lazystore.imap` plans as it runs.

    Sampling calls ``func`` once with each item that is tried, in this thread. Unless ``backend`` is "thread" or
    "serial" it gets a pickled copy of the item, as a worker would: items that ``func`` changes are untouched when a
    pool runs them again. An item that fails is reported by ``result.imap()``, in its place; the plan rests on the
    others.

    Where this departs from the rules it replaces, and why:

    - Workers are refused for a predicted gain below a tenth over *all* items, not because one item takes less than
      starting a worker does: a million items of 1 ms are worth two workers.
    - Chunks are as small as they can be with handling below 2.5 % of their time (5 % where items are unlike), not as
      many items as fit ``target_chunk_duration``: results, errors and the end come sooner. The duration is a limit;
      so are a quarter of each worker's share of the items, and 4 MiB.
    - Items of unlike duration (coefficient of variation above 0.5) shrink chunks, as before, but at most to half:
      less would cost more in handling than it saves in waiting.
    - Order is kept unless ``prefer_ordered=False``. Start cost, which is paid once, says nothing about the order
      of results, and no program should get them shuffled because its machine was slow to start processes.
    - The caller's own work on each item (source, pickling, chunks) bounds the useful number of workers (the
      bottleneck law).
    - Functions that wait are planned with threads, more of them than processors. Threads of numerical libraries inside
      ``func`` are measured; loading such a library alone does not cost workers.
    - Sampling ends early after a second of waiting for the source, a second in ``func``, or 32 MiB of results.

    Cost: ``sample_size`` calls of ``func``, and some milliseconds; up to 0.15 s when a worker is started to be
    measured, which happens only where its cost could change the plan. The worker is then kept warm for the run.
    Nothing global is changed: no start method, no tracemalloc, no environment.

    Parameters:
        func: what is to be called with each item.
        data: any iterable, endless ones included. A slow source is waited for until it gave one item.
        sample_size: most items to try, 1 to 10000.
        target_chunk_duration: most seconds a chunk should take, up to 3600.
        prefer_ordered: False: results as they come. True or None: in the order of the data.
        buffer_size: results that may wait for the consumer in ``result.imap()``; None: by bytes.
        verbose: print what is found, line by line, as it is found.
        use_spawn_benchmark: measure the start of a worker; False: assume a typical figure.
        use_chunking_benchmark: measure the handling of a chunk; False: likewise.
        profile: fill ``result.profile``.
        n_jobs: this many workers, whatever is predicted.
        chunksize: this many items a chunk, likewise.
        backend: "auto", "process", "thread", "serial" or a ``concurrent.futures.Executor``, likewise.
        max_buffer_bytes: most bytes of results beyond the consumer in ``result.imap()``, such as "64MB".

    Raises:
        ConfigError: an argument cannot work; the message names it.

    May be called from any thread, and in worker processes (daemonic ones cannot start workers: the cost is then
    assumed, with a warning).
    """
    wishes = Wishes(
        func,
        sample_size,
        target_chunk_duration,
        prefer_ordered,
        buffer_size,
        verbose,
        use_spawn_benchmark,
        use_chunking_benchmark,
        n_jobs,
        chunksize,
        backend,
        max_buffer_bytes,
    )
    plan = make_plan(wishes, data)
    chosen = plan.forecast
    result = StreamingOptimizationResult(
        n_jobs=chosen.n_jobs,
        chunksize=chosen.chunksize,
        use_ordered=prefer_ordered is not False,
        reason=plan.reason,
        estimated_speedup=chosen.speedup,
        warnings=plan.warnings,
        data=plan.source.data,
        profile=plan.profile if profile else None,
        buffer_size=_buffer_size(plan),
        backend=plan.backend,
    )
    result._plan = plan
    return result


def start_run(plan: Plan, who: str, overrides: dict[str, Any]) -> Imap:
    """The plan's function over the plan's data by ``imap``'s engine, results of the samples first."""
    source = plan.source
    if not source.claim(who):
        return start_part(plan, source.anew(), overrides, total=source.total)
    try:
        run = start_part(plan, source.rest(), overrides, total=source.total, head=True, dataset=source.dataset)
    except BaseException:
        source.release()  # an argument that cannot work must not cost the samples
        raise
    plan.forget_head()
    return run


def start_part(
    plan: Plan,
    items: Iterable[Any],
    overrides: dict[str, Any],
    *,
    total: int | None,
    head: bool = False,
    first: int = 0,
    dataset: DatasetItems | None = None,
) -> Imap:
    """The plan's function over ``items``.

    Parameters:
        overrides: arguments of ``imap``.
        total: items in all.
        head: results of the samples come first; ``items`` are those behind them.
        first: number of the first item.
        dataset: what ``items`` come from, where workers can read that themselves.
    """
    from lazystore.parallel.arguments import Given
    from lazystore.parallel.mapper import start_imap

    settings = _settings(plan, overrides) | {"total": total} | overrides
    given = Given(**{name: settings.pop(name) for name in _NUMBERS if name in settings})
    return start_imap(
        plan.wishes.func,
        items,
        given=given,
        ahead=plan.wishes.buffer_size or 0,
        first=first,
        done=plan.head(given.retries) if head else (),
        done_items=plan.source.items if head else (),
        dataset=dataset,
        **settings,
    )


def _settings(plan: Plan, overrides: dict[str, Any]) -> dict[str, Any]:
    """What the plan says of a run, as arguments of ``imap``."""
    wishes = plan.wishes
    asked = {name: getattr(wishes, name) for name in ("n_jobs", "chunksize", "max_buffer_bytes", "backend")}
    if wishes.backend != "auto" or {"n_jobs", "backend"} & {*overrides}:
        return asked
    if not plan.in_processes:
        return asked | {"backend": plan.backend, "n_jobs": plan.forecast.n_jobs}  # it would try, and warn
    if plan.backend == "process" and not plan.samples.threaded:
        # not the backend: the run can still turn to threads, for an item that does not pickle, say
        return asked | {"n_jobs": plan.forecast.n_jobs}
    return asked


def explanation(plan: Plan, opening: list[str], own_pool: str, own_run: str) -> str:
    """What ``explain()`` returns: the decision, the figures, and what to mind."""
    tried = len(plan.samples.trials)
    minds = [
        f"Predictions are worth what {tried} items tell; what is marked as assumed was not measured.",
        f"result{own_run} calls func once with each item over plan and run, and tunes chunks as it goes.",
        f"{own_pool} in a pool of your own calls func again for the {tried} items that were tried.",
        "Such a pool also keeps finished results without limit when the loop over them is slower than its workers.",
    ]
    return "\n\n".join([*opening, plan.profile.explain_decision(), "To mind\n" + "\n".join(f"  {m}" for m in minds)])


def _buffer_size(plan: Plan) -> int:
    """Two chunks a worker, as far as their results fit the bytes."""
    wishes, chosen = plan.wishes, plan.forecast
    if wishes.buffer_size is not None:
        return wishes.buffer_size
    items = 2 * chosen.n_jobs * chosen.chunksize
    weight = plan.profile.return_size_bytes
    return max(chosen.n_jobs, min(items, wishes.most_bytes // weight) if weight else items)


def _why_ordered(preferred: bool | None) -> str:
    return "the default: order costs a bounded buffer, no more" if preferred is None else "as asked for"


def _backend_name(backend: Any) -> str:
    return repr(backend) if isinstance(backend, str) else type(backend).__name__
