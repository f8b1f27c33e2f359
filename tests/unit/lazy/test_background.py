from __future__ import annotations

import asyncio
import gc
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lazystore.cache.pressure import Pressure
from lazystore.cache.tiers import Tiers
from lazystore.cache.workers import Workers
from lazystore.errors import ClosedError, ConfigError, LoadCancelledError, UnhashableKeyError
from lazystore.lazy.background import AHEAD, Background
from lazystore.lazy.predict import NextN

PATIENCE = 20.0


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.001)


class Source:
    """Values by key, with a log; a closed gate holds the loads of all keys."""

    def __init__(self, size: int = 0) -> None:
        self.size = size
        self.loaded: list[Any] = []
        self.gate = threading.Event()
        self.gate.set()

    def load_of(self, key: Any) -> Callable[[], Any]:
        def load() -> Any:
            self.loaded.append(key)
            assert self.gate.wait(PATIENCE)
            if isinstance(key, str) and key.startswith("bad"):
                raise LookupError(key)
            return bytes(self.size) if self.size else ("value", key)

        return load


class Room:
    """A source, tiers, and what loads ahead of use."""

    def __init__(self, memory: int = 1 << 20, size: int = 0, **settings: Any) -> None:
        self.source = Source(size)
        self.workers = Workers(4, "test-background")
        self.tiers = Tiers(memory=memory, workers=self.workers)
        settings.setdefault("predictors", ())
        settings.setdefault("slots", 1)
        self.background = Background(self.tiers, self.source.load_of, **settings)

    def get(self, key: Any) -> Any:
        """As a store does it."""
        missed = self.tiers.peek(key, self) is self
        value = self.tiers.get(key, self.source.load_of(key))
        self.background.observe(key, missed)
        return value

    def rest(self) -> None:
        """Nothing is under way any more."""
        until(lambda: not self.background._under_way and not self.workers.running and not self.workers.queued)

    def close(self) -> None:
        self.source.gate.set()
        self.background.close()
        self.tiers.close()
        self.workers.close()


@pytest.fixture
def rooms() -> Iterator[Callable[..., Room]]:
    made: list[Room] = []

    def make(*args: Any, **settings: Any) -> Room:
        made.append(Room(*args, **settings))
        return made[-1]

    yield make
    for room in made:
        room.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("test-background")]


def hold(room: Room) -> None:
    """One load is under way, and stays so until the gate opens."""
    room.source.gate.clear()
    room.background.prefetch(["held"])
    until(lambda: room.source.loaded == ["held"])


# --- what was asked for ---


def test_no_thread_starts_before_the_first_load(rooms: Any) -> None:
    room = rooms(predictors=None)
    for number in range(2):
        room.background.observe(f"k{number}", missed=True)
    assert room.workers.threads == 0


def test_prefetched_values_land_in_the_cache_and_in_the_handle(rooms: Any) -> None:
    room = rooms()
    handles = room.background.prefetch(range(5))
    assert [handle.get() for handle in handles] == [("value", key) for key in range(5)]
    room.rest()
    assert all(handle.done for handle in handles) and sorted(room.source.loaded) == list(range(5))
    assert room.get(3) == ("value", 3) and len(room.source.loaded) == 5


def test_a_handle_is_done_without_being_asked_and_can_be_awaited(rooms: Any) -> None:
    room = rooms()
    (handle,) = room.background.prefetch(["k"])
    until(lambda: handle.done)
    assert handle.peek() == ("value", "k") and handle.error is None

    async def main() -> Any:
        return await room.background.prefetch(["j"])[0]

    assert asyncio.run(main()) == ("value", "j")


def test_async_loads_run_on_the_loop_that_asked_for_them(rooms: Any) -> None:
    room = rooms(slots=2)
    loops: list[Any] = []

    def load_of(key: int) -> Any:
        async def load() -> int:
            await asyncio.sleep(0.001)
            loops.append(asyncio.get_running_loop())
            if key == 3:
                raise LookupError(key)
            return key

        return load

    async def main() -> None:
        background = Background(room.tiers, load_of, predictors=(), slots=2)
        handles = background.prefetch(range(8))
        assert [await handle for handle in handles if handle.key != 3] == [0, 1, 2, 4, 5, 6, 7]
        with pytest.raises(LookupError):
            await handles[3]
        assert set(loops) == {asyncio.get_running_loop()} and len(loops) == 8
        while background.stats()["under_way"]:
            await asyncio.sleep(0.001)

    asyncio.run(main())


def test_a_loop_that_closes_under_background_loads_leaves_them_to_be_asked_for(rooms: Any) -> None:
    room = rooms()
    go = threading.Event()

    async def load() -> str:
        while not go.is_set():
            await asyncio.sleep(0.001)
        return "loaded"

    async def begin() -> Any:
        handle = room.background.submit("k", load)
        await asyncio.sleep(0.01)
        return handle

    handle = asyncio.run(begin())
    go.set()
    assert handle.get(timeout=PATIENCE) == "loaded" and handle.done
    assert room.background.prefetch(["next"])[0].get(timeout=PATIENCE) == ("value", "next")


def test_higher_priorities_come_first_and_equal_ones_in_turn(rooms: Any) -> None:
    room = rooms()
    hold(room)
    room.background.prefetch(["a", "b"], priority=1)
    room.background.prefetch(["c"], priority=9)
    room.background.prefetch(["d"], priority=1)
    room.source.gate.set()
    until(lambda: len(room.source.loaded) == 5)
    assert room.source.loaded == ["held", "c", "a", "b", "d"]


def test_a_key_is_queued_once_at_its_highest_priority(rooms: Any) -> None:
    room = rooms()
    hold(room)
    first, other = room.background.prefetch(["a", "b"])
    assert room.background.prefetch(["b"], priority=5) == [other]
    room.source.gate.set()
    until(lambda: first.done and other.done)
    assert room.source.loaded == ["held", "b", "a"]


def test_who_asks_for_a_queued_key_has_it_at_once_and_it_is_loaded_once(rooms: Any) -> None:
    room = rooms(slots=1)
    hold(room)
    handles = room.background.prefetch(["a", "b", "c"])
    room.source.gate.set()  # the queue stands: its only slot is taken until the held load has landed
    assert handles[2].get() == ("value", "c")
    assert room.get("b") == ("value", "b")
    room.rest()
    until(lambda: all(handle.done for handle in handles))
    assert sorted(room.source.loaded) == ["a", "b", "c", "held"]


def test_asking_a_handle_takes_it_out_of_the_queue(rooms: Any) -> None:
    room = rooms()
    room.source.gate.clear()
    room.background.prefetch(["held"])
    until(lambda: room.source.loaded)
    late = room.background.prefetch(["late"])[0]
    thread = threading.Thread(target=late.get)
    thread.start()
    until(lambda: "late" in room.source.loaded)
    assert room.background.stats()["waiting"] == 0 and room.background.stats()["taken"] == 1
    room.source.gate.set()
    thread.join()
    assert late.get() == ("value", "late") and room.source.loaded.count("late") == 1


def test_an_error_stays_in_the_handle_and_ends_nothing_else(rooms: Any) -> None:
    room = rooms()
    handles = room.background.prefetch(["bad", "good"])
    until(lambda: handles[1].done and handles[0].done)
    assert isinstance(handles[0].error, LookupError) and handles[1].get() == ("value", "good")
    with pytest.raises(LookupError):
        handles[0].get()
    assert room.source.loaded.count("bad") == 1


def test_submit_takes_a_load_of_its_own_and_its_settings(rooms: Any) -> None:
    room = rooms()
    handle = room.background.submit("named", lambda: [1], weigh=lambda value: 77)
    assert handle.get() == [1]
    room.rest()
    assert room.tiers.peek("named") == [1]


# --- giving up ---


def test_queued_loads_are_cancelled_by_key_by_group_and_all(rooms: Any) -> None:
    room = rooms()
    hold(room)
    background = room.background
    mine = background.prefetch(["a", "b"], group="mine")
    others = background.prefetch(["c", "d", "e"])
    assert background.cancel("c") == 1 and background.cancel("never queued") == 0
    assert background.cancel(group="mine") == 2 and background.cancel(group="mine") == 0
    assert background.cancel() == 2
    for handle in (*mine, *others):
        with pytest.raises(LoadCancelledError):
            handle.get()
    room.source.gate.set()
    room.rest()
    assert room.source.loaded == ["held"] and background.stats()["cancelled"] == 5


def test_a_handle_cancels_its_own_place_in_the_queue(rooms: Any) -> None:
    room = rooms()
    hold(room)
    one, two = room.background.prefetch(["a", "b"])
    assert one.cancel() and one.done and room.background.stats()["waiting"] == 1
    room.source.gate.set()
    assert two.get() == ("value", "b")
    room.rest()
    assert not two.cancel() and "a" not in room.source.loaded


def test_close_cancels_what_is_queued_and_takes_no_more(rooms: Any) -> None:
    room = rooms()
    hold(room)
    handle = room.background.prefetch(["a"])[0]
    room.background.close()
    room.background.close()
    assert isinstance(handle.error, LoadCancelledError)
    with pytest.raises(ClosedError):
        room.background.prefetch(["b"])


def test_tiers_that_close_first_leave_no_handle_waiting(rooms: Any) -> None:
    room = rooms()
    hold(room)
    handles = room.background.prefetch(["a", "b"])
    threading.Timer(0.02, room.source.gate.set).start()
    room.tiers.close()
    until(lambda: all(handle.done for handle in handles))


def test_a_forgotten_one_is_freed(rooms: Any) -> None:
    room = rooms()
    assert room.background.prefetch(["a"])[0].get() == ("value", "a")
    room.rest()
    gone = weakref.ref(room.background)
    room.background.close()
    room.background = Background(room.tiers)
    gc.collect()
    assert gone() is None


# --- the budget ---


def test_loads_wait_for_room_and_nothing_loaded_is_wasted(rooms: Any) -> None:
    """Values of a tenth of the budget: as many are loaded as fit beside each other, the rest as they are used."""
    room = rooms(10 * 4000, size=3500)
    handles = room.background.prefetch(range(40))
    room.rest()
    until(lambda: not room.background._pumping)
    loaded = len(room.source.loaded)
    assert 5 <= loaded <= 11, "a full cache waits"
    for key in range(40):
        assert len(room.get(key)) == 3500
    room.rest()
    stats = room.background.stats()
    assert stats["wasted"] == 0 and all(handle.get() for handle in handles)
    assert room.tiers.counters()["peak"] <= 10 * 4000


def test_under_pressure_guesses_are_dropped_and_what_was_asked_for_waits(
    rooms: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pressure, "look", lambda self: 1.0)
    room = rooms(predictors=[NextN(2)])
    room.tiers.pressure.severe = True
    (asked,) = room.background.prefetch(["asked"])
    room.get(1)
    guessed = room.background.predict_and_prefetch({"x": 0.5})
    assert room.source.loaded == [1] and not asked.done
    assert room.background.stats()["refused"] == 1 and room.background.stats()["waiting"] == 1
    room.tiers.pressure.severe = False
    assert guessed[0].get() == ("value", "x"), "a refused one loads when it is asked"
    room.get(7)
    until(lambda: asked.done)
    room.rest()
    assert 8 in room.source.loaded and 9 in room.source.loaded


# --- a known order ---


def test_a_known_order_is_read_ahead_as_it_is_used(rooms: Any) -> None:
    room, read = rooms(8 << 20), []

    def order() -> Iterator[int]:
        for key in range(10_000):
            read.append(key)
            yield key

    room.background.hint(order())
    room.rest()
    assert AHEAD <= len(read) <= AHEAD + 1
    for key in range(300):
        room.get(key)
        if key % 8 == 0:
            room.rest()
    stats = room.background.stats()
    assert len(read) <= 300 + AHEAD + 1 and stats["used"] >= 200
    assert len(room.source.loaded) == len(set(room.source.loaded)), "nothing was loaded twice"


def test_what_is_skipped_of_a_known_order_does_not_stop_it(rooms: Any) -> None:
    room = rooms()
    room.background.hint(range(1000))
    room.rest()
    for key in range(0, 600, 20):
        room.get(key)
        room.rest()
    assert 590 in room.source.loaded


def test_a_known_order_goes_on_though_hits_of_it_are_not_shown(rooms: Any) -> None:
    room = rooms()
    for key in range(AHEAD):
        room.tiers.get(key, lambda: "cached")
    room.background.hint(range(1000))
    room.rest()
    assert room.source.loaded == []
    room.get(AHEAD)
    room.rest()
    assert len(room.source.loaded) > AHEAD // 2


def test_a_known_order_goes_before_guesses_and_ends(rooms: Any) -> None:
    room = rooms(predictors=[NextN(2)])
    room.background.hint([500, 600])
    room.rest()
    assert room.source.loaded == [500, 600]
    for key in (500, 600, 1):
        room.get(key)
    room.rest()
    assert {2, 3} <= set(room.source.loaded), "guesses are back"


def test_an_order_that_raises_is_told_and_dropped(rooms: Any) -> None:
    room = rooms()

    def order() -> Iterator[int]:
        yield 1
        raise LookupError("no order")

    room.get(1)
    with pytest.raises(LookupError, match="no order"):
        room.background.hint(order())
    room.background.prefetch([2])
    room.rest()
    assert room.source.loaded == [1, 2]


def test_a_new_order_replaces_the_old_one(rooms: Any) -> None:
    room = rooms()
    hold(room)
    room.background.hint(range(100, 200))
    room.background.hint([7])
    room.source.gate.set()
    until(lambda: 7 in room.source.loaded)
    room.rest()
    assert room.source.loaded == ["held", 7]


# --- guesses ---


def test_sequential_use_is_prefetched_and_counted(rooms: Any) -> None:
    room = rooms(predictors=None, slots=3)
    for key in range(200):
        room.get(key)
        room.rest()
    stats = room.background.stats()
    assert stats["used"] > 150 and stats["wasted"] == 0
    assert stats["predictors"]["Stride"]["accuracy"] > 0.9
    assert len(room.source.loaded) <= 200 + 8 == 208


def test_a_path_taken_before_is_prefetched(rooms: Any) -> None:
    room = rooms(predictors=None)
    path = ["home", "list", "item", "cart", "pay"]
    for _ in range(4):
        for key in path:
            room.get(key)
    room.rest()
    room.tiers.clear()
    room.source.loaded.clear()
    room.get("home")
    room.rest()
    assert room.source.loaded[:2] == ["home", "list"]


def test_use_without_a_pattern_turns_guessing_off(rooms: Any) -> None:
    room = rooms(8 << 20, predictors=[NextN(1)])
    source = random.Random(5)
    for _ in range(400):
        room.get(source.randrange(10**9))
        room.rest()
    stats = room.background.stats()
    assert stats["predictors"]["NextN"]["open"] is False and stats["predictors"]["NextN"]["issued"] == 64


def test_no_predictors_and_nothing_hinted_is_not_worth_showing(rooms: Any) -> None:
    assert not rooms(predictors=()).background.active
    assert rooms(predictors=None).background.active


def test_a_predictor_may_be_any_function(rooms: Any) -> None:
    room = rooms(predictors=[lambda history: [(history[-1] + "!", 0.9)]])
    room.get("a")
    room.rest()
    assert room.source.loaded == ["a", "a!"]
    assert "<lambda>" in room.background.stats()["predictors"]


def test_behaviour_is_learnt_from_and_what_is_likely_is_prefetched(rooms: Any) -> None:
    room = rooms(predictors=None)
    handles = room.background.predict_and_prefetch([1, 2, 3, 4])
    assert [handle.key for handle in handles][:2] == [5, 6] and handles[0].get() == ("value", 5)
    handles = room.background.predict_and_prefetch({"user": 0.2, "cart": 0.9})
    assert [handle.key for handle in handles] == ["cart", "user"]
    room.background.predict_and_prefetch({"history": ["x"], "hint": ["y", "z"]})
    room.rest()
    assert {"y", "z", "cart", "user"} <= set(room.source.loaded)
    with pytest.raises(ConfigError):
        room.background.predict_and_prefetch("abc")


def test_keys_are_cache_keys_after_key_of_and_must_be_hashable(rooms: Any) -> None:
    room = rooms(key_of=lambda key: ("k", key))
    room.background.prefetch(["a"])[0].get()
    room.rest()
    assert room.tiers.peek(("k", "a")) == ("value", "a")
    with pytest.raises(UnhashableKeyError, match="not hashable"):
        rooms().background.prefetch([["a"]])


def test_without_a_source_keys_alone_are_refused(rooms: Any) -> None:
    room = rooms()
    with pytest.raises(ConfigError, match="submit"):
        Background(room.tiers).prefetch(["a"])


def test_showing_a_key_costs_little(rooms: Any) -> None:
    background = rooms(predictors=None).background
    for _ in range(3):
        background.observe("hot")
    assert len(background._history) == 0, "a hit is noted, nothing more"


def test_many_threads_show_prefetch_and_cancel(rooms: Any) -> None:
    room = rooms(4 << 20, predictors=None, slots=3)
    source = random.Random(2)

    def work(seed: int) -> None:
        mine = random.Random(seed)
        for number in range(150):
            assert room.get(seed * 1000 + number) == ("value", seed * 1000 + number)
            if number % 10 == 0:
                handles = room.background.prefetch([mine.randrange(10**6) for _ in range(3)], priority=mine.random())
                handles[0].cancel()
            if number % 37 == 0:
                room.background.cancel()

    threads = [threading.Thread(target=work, args=(source.randrange(100),)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(lambda: room.background.stats()["waiting"] == 0)
    room.rest()


def test_a_forked_child_begins_empty(rooms: Any) -> None:
    room = rooms()
    hold(room)
    handles = room.background.prefetch(["a", "b"])
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            room.source.gate.set()
            empty = room.background.stats()["waiting"] == 0 == room.background.stats()["under_way"]
            asked = handles[0].get() == ("value", "a")
            fresh = room.background.prefetch(["c"])[0].get() == ("value", "c")
            code = 0 if empty and asked and fresh else 1
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    room.source.gate.set()
    assert [handle.get() for handle in handles] == [("value", "a"), ("value", "b")]
