"""`LazyStore` in storms: many threads and loops on one key, loaders that fail in every way, closing, forks, exits.

What is promised is told by outcomes and counters, never by time: deadlines here only end a hang.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from lazystore.errors import ClosedError, LoadCancelledError, ReentrantLoadError
from lazystore.lazy.store import LazyStore
from lazystore.testing import FakeClock

#: Seconds after which something hangs.
HANGS = 60


class OwnError(BaseException):
    """No Exception, as the outcomes of test frameworks are none."""


def balanced(store: LazyStore) -> dict[str, Any]:
    told = store.stats()
    assert told["hits"] + told["misses"] + told["joins"] == told["requests"]
    return told


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except BaseException as error:  # noqa: BLE001 - that is what it tells
        return error


def together(calls: Iterable[Callable[[], Any]]) -> list[Any]:
    """The outcomes of calls that are made at once, each in a thread."""
    found: list[Any] = []
    threads = [threading.Thread(target=lambda c=call: found.append(outcome(c)), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANGS)
        assert not thread.is_alive(), "hangs"
    return found


def storm(store: LazyStore, key: Any, threads: int = 64, tasks: int = 1000, loops: int = 4) -> list[Any]:
    """The outcomes of so many threads and tasks, on several loops, that want one key at once."""
    barrier = threading.Barrier(threads + loops)
    found: list[Any] = []

    def ask() -> None:
        barrier.wait(HANGS)
        found.append(outcome(lambda: store.get(key)))

    async def asking() -> None:
        barrier.wait(HANGS)
        found.extend(await asyncio.gather(*(store.aget(key) for _ in range(tasks // loops)), return_exceptions=True))

    together([*[ask] * threads, *[lambda: asyncio.run(asking())] * loops])
    assert len(found) == threads + tasks
    return found


def run(code: str, *arguments: str) -> str:
    """What a program prints, in development mode, with every warning an error."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", "-c", textwrap.dedent(code), *arguments],
        capture_output=True, text=True, timeout=HANGS, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# -- one load, many waiters -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_sixty_four_threads_and_a_thousand_tasks_on_four_loops_cause_one_load(kind: str) -> None:
    loads: list[Any] = []

    def load(key: Any) -> Any:
        loads.append(key)
        time.sleep(0.05)
        return [key]

    async def aload(key: Any) -> Any:
        loads.append(key)
        await asyncio.sleep(0.05)
        return [key]

    with LazyStore.from_keys(load if kind == "sync" else aload) as store:
        found = storm(store, "k")
        assert loads == ["k"] and len({id(value) for value in found}) == 1
        told = balanced(store)
        assert told["misses"] == told["loads"] == 1 and told["requests"] == len(found)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_what_a_loader_raises_in_a_storm_reaches_everybody_and_ends_with_it(kind: str) -> None:
    broken = True

    def load(key: Any) -> Any:
        time.sleep(0.02)
        if broken:
            raise LookupError(key)
        return key

    async def aload(key: Any) -> Any:
        return load(key)

    with LazyStore.from_keys(load if kind == "sync" else aload) as store:
        found = storm(store, "k", threads=32, tasks=200)
        assert {type(error) for error in found} == {LookupError}
        told = balanced(store)
        assert told["load_errors"] == told["misses"] and told["entries"] == 0
        broken = False
        assert store.get("k") == "k"


@pytest.mark.parametrize(
    "error", [SystemExit, KeyboardInterrupt, GeneratorExit, OwnError, MemoryError, StopAsyncIteration]
)
@pytest.mark.parametrize("timeout", [None, HANGS])
def test_a_coroutine_loader_may_raise_anything_at_a_thread_and_the_store_goes_on(
    error: type[BaseException], timeout: float | None
) -> None:
    calls: list[Any] = []

    async def load(key: Any) -> Any:
        calls.append(key)
        await asyncio.sleep(0)
        if key == "bad":
            raise error("as it is")
        return key

    with LazyStore.from_keys(load) as store:
        (found,) = together([lambda: store.get("bad", timeout=timeout)])
        assert type(found) is error and calls == ["bad"]
        assert together([lambda: store.get("good", timeout=timeout)]) == ["good"]


def test_a_leader_whose_loop_is_closed_under_the_load_leaves_it_to_the_others() -> None:
    calls: list[Any] = []
    begun, joined = threading.Event(), threading.Event()

    async def load(key: Any) -> Any:
        calls.append(key)
        if len(calls) == 1:
            begun.set()
            await asyncio.sleep(HANGS)
        return key

    def lead() -> None:
        async def asked() -> None:
            leaders.append(asyncio.ensure_future(store.aget("k")))
            while not joined.is_set():
                await asyncio.sleep(0.001)

        leaders: list[Any] = []
        loop = asyncio.new_event_loop()
        loop.run_until_complete(asked())
        leaders[0]._log_destroy_pending = False  # our own task, left behind on purpose
        loop.close()

    with LazyStore.from_keys(load) as store:
        leader = threading.Thread(target=lead)
        leader.start()
        assert begun.wait(HANGS)
        waiters = threading.Thread(target=lambda: found.extend(storm(store, "k", threads=8, tasks=40)))
        found: list[Any] = []
        waiters.start()
        while store.tiers.loads.flights.joins < 40:
            time.sleep(0.001)
        joined.set()
        leader.join(HANGS)
        waiters.join(HANGS)
        assert set(found) == {"k"} and len(found) == 48 and len(calls) == 2
        balanced(store)


def test_tasks_that_are_cancelled_at_random_cancel_nobody_else_and_leave_nothing() -> None:
    async def load(key: Any) -> Any:
        await asyncio.sleep(0.002)
        return key

    async def asking(store: LazyStore, seed: int) -> None:
        chance = random.Random(seed)

        async def one(key: int) -> None:
            with suppress(TimeoutError):
                assert await asyncio.wait_for(store.aget(key), chance.random() * 0.004) == key

        for _ in range(8):
            tasks = [asyncio.create_task(one(number % 5)) for number in range(100)]
            patient = [asyncio.create_task(store.aget(number % 5)) for number in range(5)]
            await asyncio.gather(*tasks)
            assert await asyncio.gather(*patient) == list(range(5))

    with LazyStore.from_keys(load, memory=0) as store:
        assert together([lambda s=seed: asyncio.run(asking(store, s)) for seed in range(3)]) == [None] * 3
        assert balanced(store)["requests"] == 3 * 8 * 105
        assert len(store.tiers.loads.flights) == 0 and store.tiers.loads.slots.held == 0


# -- loads that ask for loads ---------------------------------------------------------------


def test_two_threads_whose_loads_cross_are_told_instead_of_waiting_for_each_other() -> None:
    both = threading.Barrier(2)

    def load(key: int) -> Any:
        if both.n_waiting or not both.broken:
            outcome(lambda: both.wait(5))
        return store.get(3 - key)

    with LazyStore.from_keys(load) as store:
        found = together([lambda: store.get(1), lambda: store.get(2)])
        assert {type(error) for error in found} == {ReentrantLoadError}
        assert store.tiers.loads.slots.held == 0
        balanced(store)


def test_two_stores_whose_async_and_sync_loads_cross_are_told() -> None:
    both = threading.Barrier(2)

    def of(other: Callable[[], LazyStore]) -> Callable[[int], Any]:
        def load(key: int) -> Any:
            outcome(lambda: both.wait(5))
            return other().get(key)

        return load

    with LazyStore.from_keys(of(lambda: second)) as first, LazyStore.from_keys(of(lambda: first)) as second:

        async def crossing() -> list[Any]:
            return await asyncio.gather(first.aget(1), second.aget(1), return_exceptions=True)

        (found,) = together([lambda: asyncio.run(crossing())])
        assert {type(error) for error in found} == {ReentrantLoadError}


def test_loads_of_loads_need_one_slot_however_deep_and_wide() -> None:
    def deep(key: int) -> int:
        return one.get(key - 1) + 1 if key else 0

    async def wide(key: int) -> int:
        if key < 32:
            return sum(await asyncio.gather(two.aget(2 * key), two.aget(2 * key + 1)))
        return 1

    with LazyStore.from_keys(deep, concurrency=1, prefetch=0) as one, LazyStore.from_keys(wide, concurrency=1) as two:
        calls = [lambda: one.get(40), lambda: one.get(60, timeout=HANGS), lambda: asyncio.run(one.aget(80))]
        for call, value in zip(calls, (40, 60, 80), strict=True):
            assert together([call]) == [value]
        assert together([lambda: two.get(1)]) == [32]
        two.clear()
        assert together([lambda: asyncio.run(two.aget(1))]) == [32]
        assert one.tiers.loads.slots.held == two.tiers.loads.slots.held == 0


# -- told in the middle of a load -----------------------------------------------------------


@pytest.mark.parametrize("told", ["invalidate", "clear", "put"])
def test_what_is_told_during_a_load_overrules_it(told: str) -> None:
    begun, go = threading.Event(), threading.Event()
    calls: list[Any] = []

    def load(key: Any) -> str:
        calls.append(key)
        begun.set()
        assert go.wait(HANGS)
        return f"load {len(calls)}"

    with LazyStore.from_keys(load) as store:
        found: list[Any] = []
        early = threading.Thread(target=lambda: found.append(store.get("k")))
        early.start()
        assert begun.wait(HANGS)
        if told == "invalidate":
            assert store.invalidate("k")
        elif told == "clear":
            store.clear()
        else:
            store.tiers.put("k", "told")
        late = threading.Thread(target=lambda: found.append(store.get("k")))
        late.start()  # must not be given what was loaded before it asked
        if told == "put":
            late.join(HANGS)
        else:
            while len(calls) < 2:
                time.sleep(0.001)
        go.set()
        early.join(HANGS)
        late.join(HANGS)
        after = store.get("k")
        assert after == ("told" if told == "put" else "load 2") and after in found and len(found) == 2
        balanced(store)


def test_callbacks_may_call_the_store() -> None:
    def evicted(key: Any, value: Any, cause: str) -> None:
        left.append(key)
        if key < 1_000_000:
            store.get(key + 1_000_000)
            store.invalidate(key + 1_000_000)
            store.stats()

    def weighed(value: Any) -> int:
        if value % 7 == 0 and value % 11 != 4:
            store.get(value + 1)
        return 500

    def named(key: int) -> int:
        if key % 11 == 5:
            store.get(key - 1)
        return key

    left: list[int] = []
    with LazyStore.from_keys(lambda key: key, memory=20_000, on_evict=evicted, weigh=weighed, key=named) as store:
        (found,) = together([lambda: [store.get(number) for number in range(200)]])
        assert found == list(range(200)) and left
        told = balanced(store)
        assert told["peak"] <= 20_000


# -- time -----------------------------------------------------------------------------------


def test_values_that_expire_and_are_refreshed_all_the_time_fail_nobody() -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with LazyStore.from_keys(lambda key: key, ttl=0.01, stale_while_revalidate=0.02) as store:
            end = time.monotonic() + 1.5

            def asking() -> int:
                chance, asked = random.Random(), 0
                while time.monotonic() < end:
                    key = chance.randrange(20)
                    assert store.get(key) == key
                    asked += 1
                return asked

            asked = together([asking] * 16)
            assert balanced(store)["requests"] == sum(asked) and store.stats()["refreshes"] > 0
    finally:
        sys.setswitchinterval(interval)


def test_stale_values_stand_in_for_errors_and_errors_are_remembered_by_the_clock() -> None:
    clock = FakeClock()
    calls: list[Any] = []

    def load(key: Any) -> int:
        calls.append(key)
        if len(calls) > 1:
            raise ConnectionError(len(calls))
        return 1

    times: dict[str, float] = {"ttl": 10, "ttl_jitter": 0, "stale_if_error": 100, "negative_ttl": 5}
    with LazyStore.from_keys(load, clock=clock, prefetch=0, **times) as store:
        assert store.get("k") == 1
        clock.advance(9.9)
        assert store.get("k") == 1 and len(calls) == 1
        clock.advance(100)
        assert store.get("k") == 1 and len(calls) == 2 and store.stats()["stale_on_error"] == 1
        clock.advance(1)  # beyond ttl + stale_if_error
        found = [outcome(lambda: store.get("k")) for _ in range(3)]
        assert [error.args for error in found] == [(3,)] * 3 and len(calls) == 3
        clock.advance(5.1)
        assert outcome(lambda: store.get("k")).args == (4,)
        balanced(store)


# -- closing, ending, forking ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_closing_in_a_storm_ends_every_wait_and_leaves_no_thread(kind: str) -> None:
    stop = threading.Event()
    found: list[Any] = []

    async def aload(key: Any) -> Any:
        await asyncio.sleep(HANGS)

    def load(key: Any) -> Any:
        stop.wait(HANGS)

    before = threading.active_count()
    store = LazyStore.from_keys(load if kind == "sync" else aload, concurrency=4)

    def ask(key: int) -> None:
        found.append(outcome(lambda: store.get(key)))

    threads = [threading.Thread(target=ask, args=(key,)) for key in (*range(3), *range(20))]
    for thread in threads:
        thread.start()
    while len(store.tiers.loads.flights) < 20 or store.tiers.loads.flights.joins < 3:
        time.sleep(0.001)
    store.close(grace=0)
    stop.set()  # loaders that have begun cannot be interrupted
    for thread in threads:
        thread.join(HANGS)
    assert len(found) == 23
    assert {type(error) for error in found} <= {LoadCancelledError, ClosedError, type(None)}
    end = time.monotonic() + HANGS
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.001)
    assert threading.active_count() <= before


def test_forgotten_stores_leave_no_thread_and_no_file(tmp_path: Path) -> None:
    async def load(key: Any) -> Any:
        return key

    def used(number: int) -> None:
        (tmp_path / f"{number}.bin").write_bytes(bytes(100_000))
        store = LazyStore.from_keys(load, disk=tmp_path / f"disk{number}", name="used")
        assert store.get(1) == 1 and store.get(2, timeout=HANGS) == 2
        assert [handle.get(HANGS) for handle in store.prefetch([3, 4])] == [3, 4]
        store.load("later", lambda: 1, "LAZY")
        with store.open(tmp_path / f"{number}.bin") as file:
            assert len(file.read(10)) == 10
        assert len(list(store.pages(source=list(range(120))))) == 3
        assert list(store.stream(iter(range(5)), ahead=True)) == list(range(5))

    used(0)  # what is loaded once for all is loaded now
    gc.collect()
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    for number in range(1, 4):
        used(number)
    end = time.monotonic() + HANGS
    while threading.active_count() > threads and time.monotonic() < end:
        gc.collect()
        time.sleep(0.01)
    assert threading.active_count() <= threads
    if sys.platform == "linux":
        assert len(os.listdir("/proc/self/fd")) <= files


def test_ctrl_c_in_a_leader_leaves_the_load_to_those_who_wait() -> None:
    told = run(
        """
        import os, signal, threading, time
        from lazystore import LazyStore

        def load(key):
            calls.append(key)
            if len(calls) == 1:
                begun.set()
                time.sleep(60)
            return key

        def interrupt():
            begun.wait()
            while store.tiers.loads.flights.joins < 8:
                time.sleep(0.001)
            os.kill(os.getpid(), signal.SIGINT)

        def ask():
            begun.wait()
            found.append(store.get("k"))

        calls, found, begun = [], [], threading.Event()
        with LazyStore.from_keys(load) as store:
            threads = [threading.Thread(target=ask) for _ in range(8)] + [threading.Thread(target=interrupt)]
            for thread in threads:
                thread.start()
            try:
                store.get("k")
            except KeyboardInterrupt:
                print("interrupted")
            for thread in threads:
                thread.join()
            print(found == ["k"] * 8, len(calls))
        """
    )
    assert told.split() == ["interrupted", "True", "2"]


def test_an_interpreter_ends_while_loads_of_every_kind_hang() -> None:
    told = run(
        """
        import asyncio, threading, time
        from lazystore import LazyStore, LoadTimeoutError

        async def aload(key):
            await asyncio.sleep(1000)

        for load in (lambda key: time.sleep(1000), aload):
            store = LazyStore.from_keys(load)
            store.prefetch([1, 2, 3])
            threading.Thread(target=store.get, args=(4,), daemon=True).start()
            for call in (lambda: store.get(5, timeout=0.1), lambda: asyncio.run(store.aget(6, timeout=0.1))):
                try:
                    call()
                except LoadTimeoutError:
                    print("timeout")
        stream = store.stream(iter(range(10)), ahead=True)
        print(next(stream))
        stream.close()
        """
    )
    assert told.split() == ["timeout"] * 4 + ["0"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_children_forked_under_load_get_their_values_and_end(tmp_path: Path) -> None:
    told = run(
        """
        import asyncio, faulthandler, logging, os, random, sys, threading, time, warnings
        from lazystore import DiskTier, LazyStore

        logging.getLogger("asyncio").setLevel(logging.ERROR)  # in development mode it tells of slow callbacks
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is the point

        def load(key):
            return {"key": key, "value": "x" * 200}

        async def aload(key):
            await asyncio.sleep(0.0005)
            return key

        def using(seed):
            chance = random.Random(seed)
            while not stop.is_set():
                key, verb = chance.randrange(300), chance.randrange(9)
                if verb < 4:
                    assert store.get(key)["key"] == key
                elif verb == 4:
                    store.prefetch([key, key + 1])
                elif verb == 5:
                    store.invalidate(key)
                elif verb == 6:
                    assert second.get(key, timeout=30) == key
                elif verb == 7:
                    store.stats()
                else:
                    assert store.page(2, source=rows)[0] == 50

        def child():
            faulthandler.dump_traceback_later(20, exit=True)
            assert all(store.get(key)["key"] == key for key in range(0, 300, 29))
            assert store.get(5, timeout=15)["key"] == 5 and second.get(7) == 7
            assert asyncio.run(second.aget(8)) == 8 and asyncio.run(store.aget(9))["key"] == 9
            assert store.prefetch([1])[0].get(15)["key"] == 1
            assert store.page(1, source=rows)[0] == 0
            told = store.stats()
            assert told["hits"] + told["misses"] + told["joins"] == told["requests"]
            store.close(), second.close()

        rows, stop = list(range(200)), threading.Event()
        disk = DiskTier(sys.argv[1], max_bytes="1MB", mode="through")
        store = LazyStore.from_keys(load, memory="100kB", disk=disk, name="n", ttl=0.05, stale_while_revalidate=0.05)
        second = LazyStore.from_keys(aload, memory="50kB")
        # A module that is being imported when its importer is not forked along stays locked in the child: CPython's.
        second.get(0, timeout=30), store.prefetch([1])[0].get(30), store.page(1, source=rows), store.stats()
        threads = [threading.Thread(target=using, args=(seed,), daemon=True) for seed in range(5)]
        for thread in threads:
            thread.start()
        ends = []
        for _ in range(12):
            pid = os.fork()
            if not pid:
                try:
                    child()
                    os._exit(0)
                except BaseException:
                    sys.excepthook(*sys.exc_info())
                    os._exit(3)
            ends.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        stop.set()
        for thread in threads:
            thread.join()
        store.close(), second.close()
        print(ends == [0] * 12)
        """,
        str(tmp_path / "disk"),
    )
    assert told.split() == ["True"]


# -- one folder, many processes -------------------------------------------------------------

_WORKER = """
import os, random, sys
from lazystore import DiskTier, LazyStore

folder, seed = sys.argv[1], int(sys.argv[2])
chance = random.Random(seed)

def load(key):
    return {"key": key, "value": str(key) * (key % 300 + 1)}

disk = DiskTier(folder, max_bytes=500_000, mode="through")
with LazyStore.from_keys(load, disk=disk, name="shared", memory="50kB", prefetch=0) as store:
    print("begun", flush=True)
    for turn in range(1500 if seed else 10**9):
        key = chance.randrange(1000)
        assert store.get(key) == load(key)
        if turn % 50 == 0:
            store.invalidate(chance.randrange(1000))
    told = store.stats()
    assert told["hits"] + told["misses"] + told["joins"] == told["requests"] and told["disk"]["corrupt"] == 0
    print(told["disk_health"])
"""


def test_processes_share_a_folder_and_one_that_is_killed_costs_no_value(tmp_path: Path) -> None:
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-X", "dev", "-c", _WORKER, str(tmp_path / "disk"), str(seed)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for seed in range(4)
    ]  # fmt: skip
    endless, *others = workers
    try:
        assert endless.stdout is not None and endless.stdout.readline() == "begun\n"
        time.sleep(0.3)
        endless.kill()
        endless.communicate(timeout=HANGS)
        for worker in others:
            assert worker.communicate(timeout=HANGS) == ("begun\nok\n", "")
    finally:
        for worker in workers:
            worker.kill()
    sizes = [path.stat().st_size for path in (tmp_path / "disk").iterdir()]
    assert sum(sizes) <= 500_000

    def load(key: int) -> Any:
        return {"key": key, "value": str(key) * (key % 300 + 1)}

    with LazyStore.from_keys(load, disk=tmp_path / "disk", name="shared") as store:
        assert all(store.get(key) == load(key) for key in range(1000))
        told = balanced(store)
        assert told["disk_hits"] > 0 and store.health()["status"] == "ok"


def test_hits_misses_and_joins_add_up_at_every_look_during_a_storm() -> None:
    with LazyStore.from_keys(lambda key: bytes(key % 50 * 100), memory=100_000, prefetch=0) as store:
        end = time.monotonic() + 0.7

        def using() -> int:
            chance, asked = random.Random(), 0
            while time.monotonic() < end:
                store.get(chance.randrange(400))
                asked += 1
            return asked

        def looking() -> Counter[str]:
            seen: Counter[str] = Counter()
            while time.monotonic() < end:
                told = balanced(store)
                assert told["memory_used"] + told["reserved"] <= told["memory_limit"] == 100_000
                seen["looks"] += 1
            return seen

        found = together([using] * 6 + [looking] * 2)
        assert all(isinstance(each, (int, Counter)) for each in found), found
        assert balanced(store)["requests"] == sum(each for each in found if isinstance(each, int))
