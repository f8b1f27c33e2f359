"""The gate admits in order and within its bounds; the watch barks at silence only."""

from __future__ import annotations

import asyncio
import time

from lazystore.fetch.flow import LAG_S, Gate, Watch
from lazystore.fetch.source import FetchCounters


def test_a_heavy_waiter_is_not_overtaken() -> None:
    async def scene() -> list[str]:
        gate = Gate(10, 100, FetchCounters())
        order: list[str] = []

        async def pass_through(name: str, weight: int) -> None:
            await gate.enter(weight)
            order.append(name)
            await asyncio.sleep(0.001)
            gate.leave(weight)

        await gate.enter(60)
        tasks = [asyncio.create_task(pass_through(*pair)) for pair in (("heavy", 90), ("light", 10), ("other", 10))]
        await asyncio.sleep(0.01)
        assert order == []
        gate.leave(60)
        await asyncio.gather(*tasks)
        return order

    assert asyncio.run(scene()) == ["heavy", "light", "other"]


def test_slots_are_a_bound_of_their_own() -> None:
    async def scene() -> None:
        counters = FetchCounters()
        gate = Gate(2, 100, counters)
        await gate.enter(1)
        await gate.enter(1)
        third = asyncio.create_task(gate.enter(1))
        await asyncio.sleep(0.01)
        assert not third.done()
        assert counters.in_flight_bytes == 2
        gate.leave(1)
        await third
        gate.leave(1)
        gate.leave(1)
        assert (counters.in_flight_bytes, counters.in_flight_peak) == (0, 2)

    asyncio.run(scene())


def test_a_cancelled_waiter_leaves_no_trace_and_lets_others_pass() -> None:
    async def scene() -> None:
        counters = FetchCounters()
        gate = Gate(10, 100, counters)
        await gate.enter(60)
        heavy = asyncio.create_task(gate.enter(90))
        light = asyncio.create_task(gate.enter(10))
        await asyncio.sleep(0.01)
        assert not light.done()
        heavy.cancel()
        await light
        assert counters.in_flight_bytes == 70

    asyncio.run(scene())


def test_cancelled_in_the_breath_of_admission() -> None:
    async def scene() -> None:
        counters = FetchCounters()
        gate = Gate(1, 100, counters)
        await gate.enter(5)
        waiter = asyncio.create_task(gate.enter(5))
        await asyncio.sleep(0.01)
        gate.leave(5)  # admits the waiter, whose task has not run yet
        waiter.cancel()
        await asyncio.wait([waiter])
        assert waiter.cancelled()
        assert counters.in_flight_bytes == 0
        await asyncio.wait_for(gate.enter(5), 10)

    asyncio.run(scene())


def test_silence_makes_the_watch_bark_once() -> None:
    async def scene() -> None:
        watch = Watch()
        watch.start(0.01)
        barked = False
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            barked = watch.barked()
        finally:
            watch.stop()
        assert barked
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        assert not watch.barked()

    asyncio.run(scene())


def test_progress_keeps_it_quiet() -> None:
    async def scene() -> None:
        watch = Watch()
        watch.start(0.5)
        for _ in range(20):
            await asyncio.sleep(0.05)
            watch.feed()
        watch.stop()
        assert watch.first > 0

    asyncio.run(scene())


def test_announced_pauses_are_granted() -> None:
    async def scene() -> None:
        watch = Watch()
        watch.start(0.01)
        watch.feed(extra=30.0)
        await asyncio.sleep(0.2)
        watch.stop()

    asyncio.run(scene())


def test_somebody_elses_cancellation_is_not_its_own() -> None:
    async def scene() -> bool:
        watch = Watch()
        watch.start(60)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return watch.barked()
        finally:
            watch.stop()
        return True

    async def main() -> bool:
        task = asyncio.create_task(scene())
        await asyncio.sleep(0.01)
        task.cancel()
        return await task

    assert asyncio.run(main()) is False


def test_a_loop_that_was_held_up_is_not_taken_for_silence() -> None:
    async def scene() -> None:
        watch = Watch()
        answer = asyncio.get_running_loop().create_future()
        watch.start(0.05)
        asyncio.get_running_loop().call_later(0.06, answer.set_result, None)
        await asyncio.sleep(0)
        time.sleep(0.1 + 2 * LAG_S)  # as a long call that holds the GIL: both timers are late now
        await answer
        watch.stop()

    asyncio.run(scene())


def test_a_request_that_swallows_the_bark_leaves_the_task_clean() -> None:
    async def scene() -> None:
        watch = Watch()
        watch.start(0.01)
        try:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                raise ConnectionResetError("the client's own words") from None
        except ConnectionResetError:
            watch.stop()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    asyncio.run(scene())


def test_those_in_a_hurry_pass_all_that_wait() -> None:
    async def scene() -> list[str]:
        gate = Gate(1, 100, FetchCounters())
        order: list[str] = []

        async def pass_through(name: str, urgent: bool) -> None:
            await gate.enter(10, urgent)
            order.append(name)
            gate.leave(10)

        await gate.enter(10)
        tasks = [asyncio.create_task(pass_through(name, name.isupper())) for name in ("a", "b", "C", "D")]
        await asyncio.sleep(0.01)
        gate.leave(10)
        await asyncio.gather(*tasks)
        return order

    assert asyncio.run(scene()) == ["C", "D", "a", "b"]


def test_small_ones_and_those_in_a_hurry_pass_what_only_the_throttle_holds_back() -> None:
    async def scene() -> None:
        gate = Gate(8, 100 << 20, FetchCounters())
        gate.throttle.limit = 1
        await gate.enter(1 << 20)
        held = asyncio.create_task(gate.enter(1 << 20))
        await asyncio.sleep(0.01)
        assert not held.done()
        await asyncio.wait_for(gate.enter(1000), 10)
        await asyncio.wait_for(gate.enter(1 << 20, urgent=True), 10)
        assert gate.slip_in(1000)
        gate.leave(1 << 20)
        await asyncio.sleep(0.01)
        assert not held.done()  # the urgent one still counts
        gate.leave(1 << 20)
        await asyncio.wait_for(held, 10)

    asyncio.run(scene())


def test_small_ones_do_not_pass_what_waits_for_room() -> None:
    async def scene() -> list[str]:
        gate = Gate(8, 3 << 20, FetchCounters())
        order: list[str] = []

        async def pass_through(name: str, weight: int) -> None:
            await gate.enter(weight)
            order.append(name)

        await gate.enter(2 << 20)
        assert gate.slip_in(1000)
        heavy = asyncio.create_task(pass_through("heavy", 2 << 20))
        await asyncio.sleep(0.01)
        small = asyncio.create_task(pass_through("small", 1000))
        await asyncio.sleep(0.01)
        assert not gate.slip_in(1000)
        assert order == []
        gate.leave(1000)
        gate.leave(2 << 20)
        await asyncio.gather(heavy, small)
        return order

    assert asyncio.run(scene()) == ["heavy", "small"]


def test_the_throttle_bounds_the_slots() -> None:
    async def scene() -> None:
        gate = Gate(8, 100, FetchCounters())
        gate.throttle.lanes = 2
        await gate.enter(1)
        await gate.enter(1)
        third = asyncio.create_task(gate.enter(1))
        await asyncio.sleep(0.01)
        assert not third.done()
        assert not gate.slip_in(1)
        gate.leave(1)
        await asyncio.wait_for(third, 10)

    asyncio.run(scene())


def test_a_watch_nudges_while_nothing_is_heard() -> None:
    async def scene() -> None:
        watch = Watch()
        nudges: list[float] = []

        def nudge(waited: float) -> bool:
            nudges.append(waited)
            return len(nudges) == 2

        watch.start(60, nudge)
        await asyncio.sleep(0.4)
        assert len(nudges) == 2
        assert 0 < nudges[0] < nudges[1]
        watch.stop()
        watch.start(60, nudges.append)  # type: ignore[arg-type]
        watch.feed()
        await asyncio.sleep(0.2)
        assert len(nudges) == 2
        watch.stop()

    asyncio.run(scene())


def test_the_silence_in_the_midst_of_an_answer_is_measured_and_bounded_on_its_own() -> None:
    async def scene() -> None:
        watch = Watch()
        watch.start(lambda heard: 0.05 if heard else 60.0)
        await asyncio.sleep(0.2)
        watch.feed()
        await asyncio.sleep(0.02)
        watch.feed()
        assert watch.lull >= 0.01
        barked = False
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            barked = watch.barked()
        finally:
            watch.stop()
        assert barked
        assert 0.05 <= watch.silence < 30

    asyncio.run(scene())


def test_an_overtaken_request_is_cancelled_and_its_task_stays_clean() -> None:
    async def scene() -> None:
        watch = Watch()
        task = asyncio.current_task()
        assert task is not None
        for caught in (True, False):
            watch.start(60)
            loop = asyncio.get_running_loop()
            loop.call_later(0.01, watch.overtake, loop.time())
            gave_way = False
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                gave_way = watch.gave_way() if caught else False
            watch.stop()
            assert gave_way is caught
            assert watch.first > 0
            assert task.cancelling() == 0

    asyncio.run(scene())


def test_bytes_that_landed_make_room_before_their_request_has_ended() -> None:
    async def scene() -> None:
        counters = FetchCounters()
        gate = Gate(10, 100, counters)
        await gate.enter(80)
        waiter = asyncio.create_task(gate.enter(60))
        gate.ease(30)
        await asyncio.sleep(0)
        assert not waiter.done()
        gate.ease(10)
        await waiter
        assert counters.in_flight_bytes == 100
        gate.leave(80, 40)
        gate.leave(60)
        assert (counters.in_flight_bytes, counters.in_flight_peak) == (0, 100)
        await gate.enter(100)  # all of the room is back, and no more than that
        late = asyncio.create_task(gate.enter(1))
        await asyncio.sleep(0.01)
        assert not late.done()
        late.cancel()

    asyncio.run(scene())
