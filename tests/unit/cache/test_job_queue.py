from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lazystore.cache.job_queue import Job, JobQueue


@dataclass
class Waiting:
    """What the order is said to be, written down naively: looked at anew each time."""

    number: int
    since: float
    priority: float
    demand: bool
    job: Job = field(compare=False)

    def urgency(self, now: float, tau: float) -> tuple[bool, float, int]:
        return (self.demand, self.priority + (now - self.since) / tau, -self.number)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.integers(-4, 4), st.booleans(), st.none() | st.integers(0, 3)),
        st.tuples(st.just("promote"), st.integers(0, 20), st.integers(-4, 8), st.booleans()),
        st.tuples(st.just("drop"), st.integers(0, 20)),
        st.tuples(st.just("pop"), st.booleans()),
        st.tuples(st.just("wait"), st.integers(0, 40)),
    ),
    max_size=80,
)


@given(STEPS, st.sampled_from([0.5, 4.0]))
def test_the_order_is_demand_then_priority_with_age_then_first_come(steps: list[tuple[Any, ...]], tau: float) -> None:
    now = [0.0]
    queue = JobQueue(tau, clock=lambda: now[0])
    model: list[Waiting] = []
    for number, (step, *args) in enumerate(steps):
        if step == "wait":
            now[0] += args[0]
        elif step == "push":
            priority, demand, key = args
            if queue.find(key) is None:
                job = Job(None, int, key=key, priority=priority, demand=demand)
                queue.push(job)
                model.append(Waiting(number, now[0], priority, demand, job))
        elif step == "pop":
            ready = [waiting for waiting in model if waiting.demand or args[0]]
            best = max(ready, key=lambda waiting: waiting.urgency(now[0], tau), default=None)
            assert queue.pop(args[0]) is (best and best.job)
            if best is not None:
                model.remove(best)
        elif model:
            chosen = model[args[0] % len(model)]
            if step == "drop":
                queue.drop(chosen.job)
                model.remove(chosen)
            else:
                raised = args[1] > chosen.priority or (args[2] and not chosen.demand)
                assert queue.promote(chosen.job, args[1], args[2]) == raised
                chosen.priority, chosen.demand = max(args[1], chosen.priority), chosen.demand or args[2]
        assert len(queue) == len(model) and set(queue.jobs()) == {waiting.job for waiting in model}
        for key in range(4):
            expected = next((waiting.job for waiting in model if waiting.job.key == key), None)
            assert queue.find(key) is expected


def test_promotions_and_cancellations_do_not_let_the_queue_grow() -> None:
    queue = JobQueue()
    kept = Job(None, int)
    queue.push(kept)
    for priority in range(1, 2000):
        queue.promote(kept, priority, False)
        gone = Job(None, int)
        queue.push(gone)
        queue.drop(gone)
    assert sum(map(len, queue._heaps)) < 100
    assert queue.pop() is kept and queue.pop() is None
