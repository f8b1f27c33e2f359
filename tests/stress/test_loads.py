"""Loads in whole processes: storms on one key, interrupts, forks under a load, and exits with a hung loader."""

from __future__ import annotations

import os
import sys
import time

import pytest
from support import scripts

pytestmark = pytest.mark.stress

HEAD = """
import asyncio, faulthandler, gc, os, random, signal, sys, threading, time, warnings
faulthandler.dump_traceback_later(100, exit=True)
warnings.simplefilter("error")
warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
from support.loading import in_thread, joined, opened, outcome, until
from lazystore.cache.bridge import Bridge
from lazystore.cache.flight import Deadline
from lazystore.cache.loads import Loads
from lazystore.cache.workers import Workers
from lazystore.errors import LazyStoreError, LoadCancelledError, LoadTimeoutError, ReentrantLoadError
"""

STORM = (
    HEAD
    + """
THREADS, LOOPS, TASKS = 64, 4, 250
kind, result = sys.argv[1], sys.argv[2]
gate = threading.Event()
runs = []

def sync():
    runs.append(1)
    gate.wait()
    if result == "raises":
        raise KeyError("mine")
    return 42

async def coro():
    runs.append(1)
    while not gate.is_set():
        await asyncio.sleep(0.005)
    if result == "raises":
        raise KeyError("mine")
    return 42

call = sync if kind == "sync" else coro if kind == "async" else lambda: coro()
got = []

async def task(loads):
    try:
        got.append(await loads.aload("cold", call))
    except Exception as error:
        got.append(error)

async def tasks(loads):
    await asyncio.gather(*(task(loads) for _ in range(TASKS)))

with opened() as loads:
    threads = [in_thread(lambda: got.append(outcome(lambda: loads.load("cold", call)))) for _ in range(THREADS)]
    threads += [in_thread(lambda: asyncio.run(tasks(loads))) for _ in range(LOOPS)]
    until(lambda: loads.flights.joins == THREADS + LOOPS * TASKS - 1, 90)
    gate.set()
    joined(*threads)
    assert len(got) == THREADS + LOOPS * TASKS and len(runs) == 1, (len(got), len(runs))
    assert all(type(one) is KeyError for one in got) if result == "raises" else got == [42] * len(got)
    assert len({id(one) for one in got}) == 1
    assert loads.load("cold", lambda: "anew") == "anew"
"""
)


@pytest.mark.parametrize("result", ["returns", "raises"])
@pytest.mark.parametrize("kind", ["sync", "async", "returns an awaitable"])
def test_sixty_four_threads_and_a_thousand_tasks_on_one_cold_key_load_once(kind: str, result: str) -> None:
    scripts.run(STORM, kind, result, timeout=110)


CHAOS = (
    HEAD
    + """
sys.setswitchinterval(1e-5)
nesting = int(sys.argv[1]) % 2  # who is cancelled while it lends its slot leaves a load beside the limit
seed, seconds = int(sys.argv[1]), float(sys.argv[2])
end = time.monotonic() + seconds
allowed = (LazyStoreError, KeyError, KeyboardInterrupt, asyncio.CancelledError)
running, most, lock = 0, 0, threading.Lock()

def step(by):
    global running, most
    with lock:
        running += by
        most = max(most, running)

def what(loads, chance, depth):
    "A loader of one of many kinds, that may ask for other keys."
    kind, number, pause = chance.random(), chance.randrange(6), chance.random() * 0.002
    nested = nesting and chance.random() < 0.3 and depth < 3
    inner = None
    if nested:
        inner = what(loads, chance, depth + 1)
    fate = chance.random()

    def end_of_it():
        if fate < 0.1:
            raise KeyError("mine")
        if fate < 0.13 and not threading.current_thread().name.startswith("lazystore"):
            raise KeyboardInterrupt  # as it reaches a thread; from a worker it would be everybody's error
        if fate < 0.16:
            raise asyncio.CancelledError
        return number

    def sync():
        if not depth: step(1)
        try:
            time.sleep(pause)
            if inner:
                if not depth: step(-1)
                try:
                    if fate < 0.4:
                        loads.load(*inner, deadline=Deadline(0.05) if fate < 0.2 else None)
                    else:
                        asyncio.run(loads.aload(*inner))
                finally:
                    if not depth: step(1)
            return end_of_it()
        finally:
            if not depth: step(-1)

    async def coro():
        if not depth: step(1)
        try:
            await asyncio.sleep(pause)
            if inner:
                if not depth: step(-1)
                try:
                    await loads.aload(*inner, deadline=Deadline(0.05) if fate < 0.2 else None)
                finally:
                    if not depth: step(1)
            if fate < 0.13:
                raise KeyError("not one that ends loops")
            return end_of_it()
        finally:
            if not depth: step(-1)

    return number, sync if kind < 0.4 else coro if kind < 0.8 else lambda: coro()

def threads_work(loads, seed):
    chance = random.Random(seed)
    while time.monotonic() < end:
        try:
            key, call = what(loads, chance, 0)
            way = chance.random()
            if way < 0.6:
                loads.load(key, call)
            elif way < 0.8:
                loads.load(key, call, deadline=Deadline(chance.random() * 0.01))
            elif way < 0.9:
                loads.start(key, call, priority=chance.random())
            else:
                loads.forget(key)
        except allowed:
            pass

async def tasks_work(loads, seed):
    chance = random.Random(seed)
    for _ in range(20):
        try:
            key, call = what(loads, chance, 0)
            way = chance.random()
            if way < 0.5:
                await loads.aload(key, call)
            elif way < 0.7:
                await loads.aload(key, call, deadline=Deadline(chance.random() * 0.01))
            elif way < 0.9:
                await asyncio.wait_for(loads.aload(key, call), chance.random() * 0.01)
            else:
                loads.start(key, call)
        except (TimeoutError, *allowed) as error:
            assert not isinstance(error, KeyboardInterrupt)

async def loops_work(loads, seed):
    tasks = [asyncio.create_task(tasks_work(loads, (seed, k).__hash__())) for k in range(10)]
    if seed % 3:
        await asyncio.gather(*tasks)
    else:
        await asyncio.sleep(0.02)  # the loop ends under its loads

def loops(loads, seed):
    while time.monotonic() < end:
        seed += 1
        asyncio.run(loops_work(loads, seed))

with opened(workers=3, concurrency=4) as loads:
    workers = [in_thread(lambda k=k: threads_work(loads, seed * 1000 + k)) for k in range(8)]
    workers += [in_thread(lambda k=k: loops(loads, seed * 1000 + k)) for k in range(3)]
    joined(*workers)
    until(lambda: not loads.flights.under_way())
assert nesting or most <= 4, most
gc.collect()
"""
)


@pytest.mark.parametrize("seed", range(2))
def test_any_mixture_of_callers_loaders_errors_and_interrupts_ends(seed: int) -> None:
    scripts.run(CHAOS, seed, os.environ.get("LOADS_SECONDS", "1.5"), timeout=110)


def test_ctrl_c_in_a_leading_thread_leaves_the_lead_to_a_waiter() -> None:
    script = (
        HEAD
        + """
with opened() as loads:
    begun, got = threading.Event(), []
    def hung():
        begun.set()
        time.sleep(60)
    def interrupt():
        begun.wait()
        waiter = in_thread(lambda: got.append(loads.load("k", lambda: "anew")))
        until(lambda: loads.flights.joins == 1)
        os.kill(os.getpid(), signal.SIGINT)
        joined(waiter)
    helper = in_thread(interrupt)
    try:
        loads.load("k", hung)
    except KeyboardInterrupt:
        joined(helper)
        assert got == ["anew"], got
    else:
        raise SystemExit("not interrupted")
"""
    )
    scripts.run(script)


FORK = (
    HEAD
    + """
from lazystore.cache.single_flight import current_load

def in_child(work):
    pid = os.fork()
    if pid:
        return pid
    signal.alarm(30)  # not faulthandler: its watchdog has stayed with the parent
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        import traceback
        traceback.print_exc()
    finally:
        os._exit(code)

async def coro():
    return "coro"

def anew():
    assert loads.load("sync", lambda: "anew") == "anew"
    assert loads.load("async", coro) == "coro"
    assert loads.load("timed", lambda: 1, deadline=Deadline(20)) == 1
    assert asyncio.run(loads.aload("sync", lambda: 2)) == 2
    assert loads.start("background", coro).wait(Deadline(20)) == "coro"
    for flight in flights:
        assert flight.done
        try:
            flight.wait()
        except LoadCancelledError:
            pass
    loads.close(5)
    loads.bridge.workers.close()
    loads.bridge.close()

with opened(workers=2, concurrency=3) as loads:
    go, begun = threading.Event(), []
    async def slow():
        begun.append(1)
        while not go.is_set():
            await asyncio.sleep(0.001)
        return "slow"
    def slow_sync():
        begun.append(1)
        go.wait()
        return "slow"
    threads = [in_thread(lambda: loads.load("async", slow)), in_thread(lambda: loads.load("sync", slow_sync))]
    threads += [in_thread(lambda: asyncio.run(loads.aload("timed", slow_sync)))]
    # all have begun: a child forked in the middle of an import waits for that module for ever, in any Python program
    until(lambda: len(begun) == 3)
    threads += [in_thread(lambda: loads.load("no slot", slow_sync))]
    flights = [loads.start("background", slow)]
    until(lambda: len(loads.flights) == 5)
    threads += [in_thread(lambda: loads.load("sync", slow_sync))]
    stop = threading.Event()
    def busy():
        while not stop.is_set():
            loads.load("other", int) if loads.slots.held < 3 else loads.flights.join("x")[0].settle(1)
    threads_busy = [in_thread(busy) for _ in range(2)]  # so that a fork meets locks that are held
    for _ in range(12):
        assert os.waitstatus_to_exitcode(os.waitpid(in_child(anew), 0)[1]) == 0
    stop.set()
    joined(*threads_busy)
    go.set()
    joined(*threads)
    assert flights[0].wait(Deadline(20)) == "slow"

    def forks():
        pid = os.fork()
        if pid == 0:
            return "child's"
        return pid
    pid = loads.load("forks", forks)
    if pid == "child's":
        assert current_load() is None and loads.load("sync", lambda: 3) == 3
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
"""
)


@pytest.mark.skipif(sys.platform != "linux", reason="forks a process with threads")
def test_a_child_forked_under_loads_loads_anew() -> None:
    scripts.run(FORK, timeout=110)


HUNG = (
    HEAD
    + """
faulthandler.cancel_dump_traceback_later()
workers = Workers(2)
bridge = Bridge(workers)
loads = Loads(bridge)
begun = threading.Event()

def sync():
    begun.set()
    time.sleep(600)

async def coro():
    begun.set()
    await asyncio.sleep(600)

way = sys.argv[1]
if way == "worker":
    loads.start("k", sync)
elif way == "own loop":
    loads.start("k", coro)
elif way == "own loop, blocked":
    async def blocks():
        sync()
    loads.start("k", blocks)
elif way == "daemon waits":
    threading.Thread(target=lambda: loads.load("k", coro), daemon=True).start()
elif way == "deadline":
    try:
        loads.load("k", sync, deadline=Deadline(0.05))
    except LoadTimeoutError:
        pass
elif way == "iteration":
    async def items():
        while True:
            begun.set()
            yield 1
            await asyncio.sleep(600)
    walk = bridge.iterate(items())
    next(walk)
    def step():
        try:
            next(walk)
        except Exception:  # its end, if the process lives long enough to tell it
            pass
    threading.Thread(target=step, daemon=True).start()
else:
    async def use():
        task = asyncio.create_task(loads.aload("k", coro if way == "task" else sync))
        while not begun.is_set():
            await asyncio.sleep(0.001)
    asyncio.run(use())
begun.wait()
time.sleep(0.05)
if len(sys.argv) > 2:
    del loads, bridge, workers
"""
)


@pytest.mark.parametrize("dropped", [[], ["dropped"]], ids=["kept", "dropped"])
@pytest.mark.parametrize(
    "way", ["worker", "own loop", "own loop, blocked", "daemon waits", "deadline", "iteration", "task", "task's worker"]
)
def test_a_process_with_a_hung_loader_ends_promptly_and_silently(way: str, dropped: list[str]) -> None:
    begun = time.monotonic()
    scripts.run(HUNG, way, *dropped, timeout=60)
    assert time.monotonic() - begun < 45  # not the loader's 600 s
