"""`process_in_batches`: all results of a function over a dataset, computed one batch after the other.

How a batch is run: ``imap``. For results that are used one by one: ``plan``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import islice
from typing import Any, Final

from lazystore.errors import ConfigError
from lazystore.parallel.plans.machine import available_memory
from lazystore.parallel.plans.plan import start_part
from lazystore.parallel.plans.planning import Plan, make_plan
from lazystore.parallel.plans.pool_map import memory_warnings
from lazystore.parallel.plans.wishes import Wishes, whole_number

__all__ = ["process_in_batches"]

#: items of a batch where nothing tells what they weigh, and at most
FEW_ITEMS: Final = 1000
MOST_ITEMS: Final = 1 << 20


def process_in_batches(
    func: Callable[[Any], Any],
    data: Any,
    batch_size: int | None = None,
    max_memory_percent: float = 0.5,
    sample_size: int = 5,
    verbose: bool = False,
    *,
    n_jobs: int | None = None,
    chunksize: int | None = None,
    backend: Any = "auto",
) -> list[Any]:
    """``[func(item) for item in data]``, a batch at a time: no item of a batch is taken before the one before is done.

    So what is on its way (items pulled, results not yet in the list) is bounded by a batch, and source and workers
    never run ahead. The list itself holds all results; where it is predicted not to fit the memory available, a
    ``ResourceWarning`` says so: :func:`lazystore.imap` then is the better choice. ``func`` is called once with
    each item (workers that die aside); the workers stay warm from batch to batch.

    Parameters:
        func: called with each item.
        data: any finite iterable.
        batch_size: items a batch; None: as many as ``max_memory_percent`` of the memory that is available before
            each batch holds, by what the first items and results weigh; at most 1 048 576.
        max_memory_percent: share of the available memory that a batch may take, above 0 and at most 1.
        sample_size: items to try first, 1 to 10000.
        verbose: print what is found and where it stands.
        n_jobs, chunksize, backend: as in :func:`lazystore.imap`.

    Raises:
        ConfigError: an argument cannot work; the message names it.
        Exception: whatever ``func`` or the source raised; nothing is returned then.
    """
    wishes = Wishes(
        func,
        sample_size,
        verbose=verbose,
        use_spawn_benchmark=False,  # the engine finds out as it runs
        use_chunking_benchmark=False,
        n_jobs=n_jobs,
        chunksize=chunksize,
        backend=backend,
    )
    if batch_size is not None:
        batch_size = whole_number("batch_size", batch_size)
    share = _share(max_memory_percent)
    plan = make_plan(wishes, data, by_key=False)
    if plan.source.total is not None:
        for warning in memory_warnings(plan.profile):
            warnings.warn(warning, ResourceWarning, stacklevel=2)
    return _run(plan, batch_size, share)


def _run(plan: Plan, batch_size: int | None, share: float) -> list[Any]:
    rest = plan.source.rest()
    waiting = len(plan.source.items)  # tried already, part of the first batch
    results: list[Any] = []
    number = 0
    while True:
        size = batch_size or _batch_size(plan, share)
        batch = list(islice(rest, max(0, size - waiting)))
        if not batch and not waiting:
            return results
        number += 1
        if plan.wishes.verbose:
            print(f"batch {number}: {waiting + len(batch)} items")
        run = start_part(plan, batch, {}, total=waiting + len(batch), head=waiting > 0, first=len(results))
        if waiting:
            plan.forget_head()
            waiting = 0
        results += run


def _batch_size(plan: Plan, share: float) -> int:
    """Items whose results, and themselves, fit the share of the memory that is available now."""
    profile = plan.profile
    weight = (profile.return_size_bytes or 0) + (profile.data_size_bytes or 0)
    available = available_memory()
    if not weight or available is None:
        return FEW_ITEMS
    return max(plan.forecast.n_jobs, min(MOST_ITEMS, int(available * share / weight)))


def _share(value: Any) -> float:
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not good or not 0 < value <= 1:
        raise ConfigError(f"max_memory_percent={value!r} must be a share, above 0 and at most 1 (0.5: a half)")
    return float(value)
