"""Running routes: the items of a route in its order, each byte once where the arena allows it, under all trouble."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from models.walk import route_items
from support import datasets
from support.benches import Bench
from support.sources import DiarySource, Postman

from lazystore.errors import ArenaFullError, ClosedError, FetchError, FetchTimeoutError, FormatError
from lazystore.streaming.order import ListLeg, RangeLeg, Route, WindowLeg
from lazystore.streaming.prefetch import window_bytes

KINDS = ["sequential", "window", "global", "litdata"]
#: name: (items of each chunk, lengths to choose from)
SETS: dict[str, tuple[list[int], list[int]]] = {
    "middling": ([70, 1, 130, 64, 200, 3], [100, 700, 2000]),
    "tiny": ([2000, 1500, 10, 1800], [5, 11]),
    "long": ([5, 9, 4, 7], [9000, 30_000]),
    "single chunk": ([500], [300, 600]),
    "single items": ([1] * 60, [500, 3000]),
}


def made(name: str) -> list[list[bytes]]:
    counts, sizes = SETS[name]
    chance = random.Random(name)
    numbers = iter(range(sum(counts)))
    return [[b"%d|" % next(numbers) + chance.randbytes(chance.choice(sizes)) for _ in range(n)] for n in counts]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("routes")
    return {
        name: datasets.craft(
            place / name.replace(" ", "-"), [[datasets.item_bytes([item]) for item in chunk] for chunk in made(name)],
            ["bytes"],
        )
        for name in SETS
    }  # fmt: skip


def flat(name: str) -> list[bytes]:
    return [item for chunk in made(name) for item in chunk]


def opened(folder: Path, budget: int = 1 << 20, *, local: bool = False, **options: Any) -> Bench:
    options.setdefault("tables_room", budget // 32)
    return Bench(DiarySource.of(folder, local=local), budget, **options)


def route_of(bench: Bench, kind: str, budget: int = 1 << 20, epoch: int = 1) -> Route:
    window, block = window_bytes(budget, opaque=False)
    return bench.route(kind, window=window, block=block, epoch=epoch)


def wanted(bench: Bench, route: Route, items: list[bytes]) -> list[bytes]:
    return [items[i] for i in route_items(route.legs(), bench.index.counts)]


def ended(bench: Bench) -> None:
    bench.memory.settle()
    bench.check()


# -- items ----------------------------------------------------------------------------------


@pytest.mark.parametrize("arrival", ["at once", "last first", "random"])
@pytest.mark.parametrize("budget", [1 << 16, 1 << 18, 1 << 23], ids=lambda n: f"{n >> 10}K")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SETS)
def test_the_routes_items_come_in_the_routes_order(
    folders: dict[str, Path], name: str, kind: str, budget: int, arrival: str
) -> None:
    bench = opened(folders[name], budget)
    items = flat(name)
    postman = Postman(bench.source, None if arrival == "last first" else 3, patience=0.0)
    with contextlib.nullcontext() if arrival == "at once" else postman:
        for epoch in (1, 2):
            route = route_of(bench, kind, budget, epoch)
            walk = bench.walk(route, shared=sum(bench.index.hints) < budget * 0.8)
            assert list(walk) == wanted(bench, route, items)
            assert walk.progress.finished
            assert walk.progress.position == len(items)
            ended(bench)


@pytest.mark.parametrize("kind", KINDS)
def test_a_route_entered_anywhere_gives_the_rest(folders: dict[str, Path], kind: str) -> None:
    items = flat("middling")
    for start in (0, 1, 17, 100, 333, len(items) - 1, len(items)):
        bench = opened(folders["middling"], 1 << 17)
        route = route_of(bench, kind, 1 << 17)
        assert list(bench.walk(route, start)) == wanted(bench, route, items)[start:]
        ended(bench)


# -- bytes ----------------------------------------------------------------------------------


def repeated(bench: Bench, head: int = 8) -> dict[tuple[str, int], int]:
    """Bytes asked for more than once, but for the heads of chunks."""
    return {at: times for at, times in bench.source.asked().items() if times > 1 and at[1] >= head}


@pytest.mark.parametrize("arrival", ["at once", "random"])
@pytest.mark.parametrize("name", ["middling", "tiny", "single chunk", "single items"])
@pytest.mark.parametrize("kind", ["sequential", "window"])
def test_no_byte_is_fetched_twice_in_an_epoch(folders: dict[str, Path], kind: str, name: str, arrival: str) -> None:
    budget = 1 << 18
    bench = opened(folders[name], budget)
    with Postman(bench.source, 3, patience=0.0) if arrival == "random" else contextlib.nullcontext():
        list(bench.walk(route_of(bench, kind, budget)))
    assert bench.memory.fallbacks == 0
    tables = {
        (chunk, at)
        for chunk, count in zip(bench.index.names, bench.index.counts, strict=True)
        for at in range(4 + 4 * (count + 1))
    }
    # Tables that are not kept may come again with each block, the bytes of items never.
    again = repeated(bench).keys() - tables
    assert not again, f"{len(again)} bytes came again"


@pytest.mark.parametrize("kind", ["sequential", "window", "litdata"])
def test_what_fits_is_fetched_once_for_all_epochs(folders: dict[str, Path], kind: str) -> None:
    bench = opened(folders["middling"], 1 << 21)
    items = flat("middling")
    for epoch in (1, 2, 3):
        route = route_of(bench, kind, 1 << 21, epoch)
        assert list(bench.walk(route, shared=True)) == wanted(bench, route, items)
        if epoch == 1:
            fetched = bench.source.nbytes()
    assert bench.source.nbytes() == fetched
    assert not repeated(bench)
    ended(bench)


def test_the_first_item_of_a_shuffle_costs_little(folders: dict[str, Path]) -> None:
    bench = opened(folders["middling"], 1 << 23)
    next(bench.walk(route_of(bench, "window", 1 << 18)))
    assert bench.source.nbytes() < sum(bench.index.hints)


# -- room -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pinned", ["all", "half", "on and off"])
def test_frames_that_others_hold_cost_requests_and_no_item(folders: dict[str, Path], kind: str, pinned: str) -> None:
    bench = opened(folders["middling"], 1 << 17)
    items = flat("middling")
    route = route_of(bench, kind, 1 << 17)
    walk = bench.walk(route)
    chance = random.Random(1)
    found, held = [], []
    for k, item in enumerate(walk):
        found.append(item)
        if pinned == "on and off" and k % 40 == 39:
            held.clear()
        elif pinned != "half" or len(held) < bench.store.n_frames // 2:
            held.append(bench.reader.view(chance.randrange(len(items))))
    assert found == wanted(bench, route, items)
    held.clear()
    ended(bench)


def test_items_without_room_are_counted_as_fallbacks(folders: dict[str, Path]) -> None:
    bench = opened(folders["middling"], 1 << 16)
    held = fill_up(bench)
    route = route_of(bench, "window", 1 << 16)
    assert list(bench.walk(route)) == wanted(bench, route, flat("middling"))
    assert bench.memory.fallbacks > 0
    for fill in held:
        fill.release()
    ended(bench)


def test_without_fallback_items_without_room_are_an_error_that_goes_with_its_cause(folders: dict[str, Path]) -> None:
    bench = opened(folders["middling"], 1 << 16, fallback=False)
    held = fill_up(bench)
    route = route_of(bench, "window", 1 << 16)
    walk = bench.walk(route)
    for _ in range(3):
        with pytest.raises(ArenaFullError, match="chunk-0-"):
            next(walk)
    assert bench.memory.fallbacks == 0
    for fill in held:
        fill.release()
    assert list(walk) == wanted(bench, route, flat("middling"))
    ended(bench)


def fill_up(bench: Bench) -> list[Any]:
    """Hold every frame."""
    held: list[Any] = []
    with pytest.raises(ArenaFullError):
        while True:
            held.append(bench.store.begin(77, len(held), 64))
            memoryview(held[-1])[:] = bytes(64)
            held[-1].commit()
    held.pop() if held[-1] is None else None
    return held


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget", [1 << 16, 1 << 18, 1 << 22])
def test_items_read_by_number_meanwhile_wait_for_nobody(folders: dict[str, Path], kind: str, budget: int) -> None:
    bench = opened(folders["middling"], budget, timeout=60.0)
    items = flat("middling")
    route = route_of(bench, kind, budget)
    chance = random.Random(5)
    found = []
    began = time.monotonic()
    for item in bench.walk(route):
        found.append(item)
        if chance.random() < 0.2:
            i = chance.randrange(len(items))
            assert bench.reader.get(i) == items[i]
    assert time.monotonic() - began < 40, "a read waited for a deadline"
    assert found == wanted(bench, route, items)
    ended(bench)


@pytest.mark.parametrize(
    "kinds", [("window", "window"), ("window", "sequential"), ("litdata", "global"), ("window",) * 4]
)
@pytest.mark.parametrize("budget", [1 << 17, 1 << 22])
def test_routes_that_run_at_the_same_time_share_the_arena(
    folders: dict[str, Path], kinds: tuple[str, ...], budget: int
) -> None:
    bench = opened(folders["middling"], budget, timeout=30.0)
    items = flat("middling")
    routes = [route_of(bench, kind, budget, epoch) for epoch, kind in enumerate(kinds)]
    walks = [bench.walk(route) for route in routes]
    found: list[list[bytes]] = [[] for _ in routes]
    chance = random.Random(1)
    alive = list(range(len(routes)))
    while alive:
        k = chance.choice(alive)
        for _ in range(chance.randrange(1, 60)):
            try:
                found[k].append(next(walks[k]))
            except StopIteration:
                alive.remove(k)
                break
    for route, got in zip(routes, found, strict=True):
        assert got == wanted(bench, route, items)
    walks.clear()
    ended(bench)


# -- trouble --------------------------------------------------------------------------------


def collect(walk: Any, *, most: int = 5000) -> tuple[list[bytes], int]:
    """All items, however often an error comes between."""
    found: list[bytes] = []
    errors = 0
    while True:
        try:
            found.append(next(walk))
        except StopIteration:
            return found, errors
        except FetchError:
            errors += 1
            assert errors < most


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", [0.5, 0.1])
def test_waves_that_fail_lose_and_repeat_no_item(folders: dict[str, Path], kind: str, rate: float) -> None:
    for budget in (1 << 17, 1 << 21):
        bench = opened(folders["middling"], budget)
        chance = random.Random(3)

        def before(reads: Any) -> None:
            if chance.random() < rate:  # noqa: B023
                raise FetchError("far away")

        bench.source.before = before
        route = route_of(bench, kind, budget)
        found, _ = collect(bench.walk(route))
        assert found == wanted(bench, route, flat("middling"))
        ended(bench)


@pytest.mark.parametrize("kind", KINDS)
def test_a_chunk_that_cannot_be_had_stops_the_walk_there_and_no_sooner(folders: dict[str, Path], kind: str) -> None:
    bench = opened(folders["middling"], 1 << 17)

    def before(reads: Any) -> None:
        if any(read.name == "chunk-0-2.bin" for read in reads):
            raise FetchError(f"{reads[0].name}: far away")

    bench.source.before = before
    items = flat("middling")
    route = route_of(bench, kind, 1 << 17)
    numbers = route_items(route.legs(), bench.index.counts)
    first = next(k for k, i in enumerate(numbers) if 71 <= i < 201)
    walk = bench.walk(route)
    found = []
    for _ in range(3):
        with pytest.raises(FetchError, match="far away"):
            for item in walk:
                found.append(item)
        assert found == [items[i] for i in numbers[: len(found)]]
        assert walk.progress.position == len(found)
        assert not walk.progress.finished
    # A leg comes as a whole: no more than the rest of one is missing.
    leg = leg_of(route, first)
    assert first - leg <= len(found) <= first
    bench.source.before = lambda reads: None
    found += walk
    assert found == wanted(bench, route, items)
    ended(bench)


def leg_of(route: Route, position: int) -> int:
    """Length of the leg that has a position."""
    at = 0
    for leg in route.legs():
        at += len(leg)
        if position < at:
            return len(leg)
    raise AssertionError


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_chunk_is_named_wherever_it_comes(folders: dict[str, Path], kind: str) -> None:
    for damage in (b"\xff\xff\xff\xff", b"\0\0\0\0"):
        bench = opened(folders["middling"], 1 << 17)
        content = bytearray(bench.source.objects["chunk-0-2.bin"])
        content[4 + 4 * 60 : 8 + 4 * 60] = damage
        bench.source.objects["chunk-0-2.bin"] = bytes(content)
        route = route_of(bench, kind, 1 << 17)
        items = flat("middling")
        want = wanted(bench, route, items)
        walk = bench.walk(route)
        found = []
        for _ in range(2):
            with pytest.raises(FormatError, match=r"chunk-0-2.bin \(chunk 2\)"):
                for item in walk:
                    found.append(item)
        assert found == want[: len(found)]
        walk.close()
        ended(bench)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_walk_goes_on(folders: dict[str, Path], kind: str, error: type[BaseException]) -> None:
    for at in (1, 2, 5, 9):
        bench = opened(folders["middling"], 1 << 17)
        start, run, count = bench.source.start, bench.source.run, 0

        def interrupted(call: Any, *arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == at:  # noqa: B023
                raise error("now")
            return call(*arguments, **options)

        bench.source.start = lambda *a, **o: interrupted(start, *a, **o)  # type: ignore[method-assign]  # noqa: B023
        bench.source.run = lambda *a, **o: interrupted(run, *a, **o)  # type: ignore[method-assign]  # noqa: B023
        route = route_of(bench, kind, 1 << 17)
        walk = bench.walk(route)
        found: list[bytes] = []
        for _ in range(3):
            try:
                for item in walk:
                    found.append(item)
            except error:
                continue
        assert found == wanted(bench, route, flat("middling"))
        ended(bench)


@pytest.mark.parametrize("kind", KINDS)
def test_storage_that_never_answers_is_a_timeout_that_names_the_place(folders: dict[str, Path], kind: str) -> None:
    bench = opened(folders["middling"], 1 << 17, timeout=0.2)
    with Postman(bench.source, patience=100):
        walk = bench.walk(route_of(bench, kind, 1 << 17))
        with pytest.raises((FetchTimeoutError, FetchError)):
            next(walk)
        walk.close()
        ended(bench)


# -- ends -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["closed", "forgotten", "ended"])
@pytest.mark.parametrize("stop", [0, 1, 60, 250])
@pytest.mark.parametrize("kind", KINDS)
def test_a_walk_that_stops_leaves_nothing(folders: dict[str, Path], kind: str, stop: int, how: str) -> None:
    threads = threading.active_count()
    bench = opened(folders["middling"], 1 << 17)
    with Postman(bench.source, 1, patience=0.0):
        walk = bench.walk(route_of(bench, kind, 1 << 17))
        for _ in range(stop):
            next(walk)
        if how == "ended":
            list(walk)
        else:
            (walk if how == "closed" else bench.feed).close()
            (walk if how == "closed" else bench.feed).close()
        del walk
        assert bench.store.counters()["pins"] == 0
        assert bench.store.filling == 0
    ended(bench)
    assert threading.active_count() == threads


@pytest.mark.parametrize("kind", KINDS)
def test_a_memory_closed_in_the_middle_is_an_error_and_no_end(folders: dict[str, Path], kind: str) -> None:
    bench = opened(folders["middling"], 1 << 17)
    walk = bench.walk(route_of(bench, kind, 1 << 17))
    next(walk)
    bench.memory.close()
    for _ in range(3):
        with pytest.raises(ClosedError):
            for _ in walk:
                pass
    assert not walk.progress.finished
    walk.close()
    assert bench.store.counters()["pins"] == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop", [0, 1, 100, 300])
def test_parent_and_forked_child_read_on(folders: dict[str, Path], kind: str, stop: int) -> None:
    bench = opened(folders["middling"], 1 << 17, timeout=20.0)
    want = wanted(bench, route_of(bench, kind, 1 << 17), flat("middling"))
    with Postman(bench.source, 1, patience=0.0):
        walk = bench.walk(route_of(bench, kind, 1 << 17))
        found = [next(walk) for _ in range(stop)]
        postman, bench.source.postman = bench.source.postman, None
        child = os.fork()
        if child == 0:  # what is under way is lost here, as on every fork; so is the postman's thread
            code = 3
            try:
                bench.memory.reset_after_fork()
                code = 0 if found + list(walk) == want else 1
            except BaseException:  # noqa: BLE001 - it must not come back into pytest
                import traceback

                traceback.print_exc()
            finally:
                os._exit(code)
        bench.source.postman = postman
        found += walk
    assert found == want
    deadline = time.monotonic() + 60
    while not (ended_child := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(child, 9)
            os.waitpid(child, 0)
            raise AssertionError("the child hangs")
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(ended_child[1]) == 0
    ended(bench)


# -- the plan -------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1 << 16, 1 << 20, 1 << 26, 1 << 36])
def test_a_window_is_less_than_the_budget_and_some_blocks(budget: int) -> None:
    window, block = window_bytes(budget, opaque=False)
    assert 0 < window <= budget
    assert 0 < block <= window


def test_legs_of_every_kind_may_follow_each_other(folders: dict[str, Path]) -> None:
    bench = opened(folders["middling"], 1 << 18)
    items = flat("middling")
    legs: list[Any] = []
    for kind in ("window", "sequential", "global", "sequential", "window", "litdata", "global", "global"):
        legs += route_of(bench, kind, 1 << 18).legs(30, 300)
    assert {type(leg) for leg in legs} == {WindowLeg, RangeLeg, ListLeg}

    class Together:
        @property
        def length(self) -> int:
            return sum(map(len, legs))

        def legs(self, start: int = 0, stop: int | None = None) -> Any:
            return iter(legs)

    route = Together()
    assert list(bench.walk(route)) == wanted(bench, route, items)
    assert Counter(type(leg) for leg in legs)[RangeLeg] == 2
    ended(bench)
