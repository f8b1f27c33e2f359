"""A walk: legs made by hand, errors in their place, code of the user in the middle, and feeds that say nonsense."""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import random
import struct
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from models.chunked import TABLE_AT
from support.slabs import BYTES, Legs, Resident, places, slabs_leg

from lazystore._core.collate import ObjectSink
from lazystore._core.decode import DecodePlan
from lazystore._core.scan import ItemIterator
from lazystore._core.walk import Progress, Walk
from lazystore.errors import ClosedError, FetchError, FormatError

SIZES = [0, 1, 100, 4000, 4096, 0, 9000, 3, 20000, 0, 1000, 4097]


def calling(function: Callable[[bytes], Any]) -> DecodePlan:
    return DecodePlan([("call", function)], [("leaf",)], names=["x"], headless=True)


def resident(*counts: int, sizes: list[int] = SIZES, seed: int = 1, **options: Any) -> Resident:
    chance = random.Random(seed)
    options.setdefault("budget", 32 << 20)
    return Resident([[chance.randbytes(chance.choice(sizes)) for _ in range(count)] for count in counts], **options)


def numbered(*counts: int, **options: Any) -> Resident:
    """Items that are their number, of 50 bytes."""
    numbers = iter(range(sum(counts)))
    return Resident([[b"%050d" % next(numbers) for _ in range(count)] for count in counts], **options)


def shuffled_leg(data: Resident, seed: int, skip: int = 0) -> tuple[tuple[Any, ...], list[bytes]]:
    """A leg over some items of every chunk, from slabs and from buffers, and what it must give."""
    chance = random.Random(seed)
    groups, flat = [], []
    for chunk, items in enumerate(data.items):
        numbers = chance.choices(range(len(items)), k=chance.randrange(1, 30))
        if chance.random() < 0.3:
            where: Any = [chance.choice([bytes, bytearray, memoryview])(items[number]) for number in numbers]
        else:
            where = data.slab(chunk)
        groups.append((chunk, where, numbers))
        flat += [items[number] for number in numbers]
    order = list(range(len(flat)))
    chance.shuffle(order)
    wanted = [b""] * len(flat)
    for item, place in zip(flat, order, strict=True):
        wanted[place] = item
    return slabs_leg(groups, order, skip), wanted[skip:]


# -- items ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_legs_of_every_kind_come_in_their_order(seed: int) -> None:
    data = resident(20, 1, 33, seed=seed)
    legs, wanted = [], []
    for k in range(6):
        leg, items = shuffled_leg(data, seed * 10 + k, skip=k)
        legs.append(leg)
        wanted += items
    legs.append(("range", ItemIterator(data.reader, 15, 40)))
    wanted += data.data.flat[15:40]
    legs.append(("list", [(2, 5, data.items[2][5]), (0, 1, bytearray(data.items[0][1]))]))
    wanted += [data.items[2][5], data.items[0][1]]
    legs.append(slabs_leg([(0, data.slab(0, 3, 9), [8, 3])], [0, 1]))
    wanted += [data.items[0][8], data.items[0][3]]
    walk = data.walk(*legs)
    found = []
    for item in walk:
        found.append(item)
        assert walk.progress.position == len(found)
        assert not walk.progress.finished
    assert found == wanted
    assert walk.progress.finished
    del walk, legs, leg
    gc.collect()
    assert data.pins() == 0
    data.store.check()


def test_empty_legs_are_passed_over() -> None:
    data = numbered(5)
    nothing = slabs_leg([], [])
    walk = data.walk(
        nothing, ("list", []), ("range", ItemIterator(data.reader, 2, 2)), nothing, ("list", [(0, 1, b"x")])
    )
    assert list(walk) == [b"x"]


def test_a_route_without_legs_is_finished_at_once() -> None:
    walk = numbered(5).walk()
    assert not walk.progress.finished
    assert list(walk) == []
    assert walk.progress.finished
    assert list(walk) == []


def test_leaves_of_items_across_frames_are_decoded_alike() -> None:
    plan = DecodePlan(
        [("int", None), ("bytes", None), ("str", None)], [("leaf",)] * 3 + [("tuple", 3)], names=["a", "b", "c"]
    )
    chance = random.Random(1)
    values = [(i, chance.randbytes(size), "ä" * (size // 3)) for i, size in enumerate([10, 3000, 3000, 9000, 20000, 1])]
    items = []
    for number, data, text in values:
        leaves = [struct.pack("<q", number), data, text.encode()]
        items.append(struct.pack("<3I", *map(len, leaves)) + b"".join(leaves))
    held = Resident([items], plan=plan)
    order = [3, 1, 5, 0, 2, 4]
    walk = held.walk(slabs_leg([(0, held.slab(0), range(6))], order))
    assert [item[0] for item in walk] == [order.index(k) for k in range(6)]
    walk = held.walk(slabs_leg([(0, held.slab(0), range(6))], range(6)))
    assert list(walk) == values


def test_what_is_poured_is_what_is_handed_out() -> None:
    data = resident(20, 7, 33)
    legs = [shuffled_leg(data, k, skip=k) for k in range(4)]
    wanted = [item for _, items in legs for item in items]
    walk = data.walk(*[leg for leg, _ in legs], ("range", ItemIterator(data.reader, 0, 10)))
    wanted += data.data.flat[:10]
    sink = ObjectSink(BYTES)
    found = []
    chance = random.Random(1)
    while count := walk.pour(sink, chance.randrange(1, 9)):
        assert sink.count == count
        found += sink.take_batch()
        assert walk.progress.position == len(found)
        if chance.random() < 0.3 and len(found) < len(wanted):
            found.append(next(walk))
    assert found == wanted
    assert walk.progress.finished
    assert walk.pour(sink, 5) == 0


def test_pouring_nothing_takes_nothing() -> None:
    data = numbered(5)
    walk = data.walk(slabs_leg([(0, data.slab(0), [1, 2])], [0, 1]))
    sink = ObjectSink(BYTES)
    assert walk.pour(sink, 0) == 0
    assert walk.pour(sink, -3) == 0
    assert next(walk) == data.items[0][1]


def test_a_transform_is_applied_to_items_and_an_error_in_it_passes_by_its_item() -> None:
    def transform(item: bytes) -> int:
        if int(item) == 2:
            raise KeyError("mine")
        return int(item)

    data = numbered(5, transform=transform)
    walk = data.walk(slabs_leg([(0, data.slab(0), range(4))], range(4)), ("range", ItemIterator(data.reader, 4, 5)))
    assert [next(walk), next(walk)] == [0, 1]
    with pytest.raises(KeyError, match="mine"):
        next(walk)
    assert list(walk) == [3, 4]


def test_a_transform_may_ask_for_the_next_item() -> None:
    walk: Any = None

    def pair(item: bytes) -> tuple[int, Any]:
        return int(item), next(walk, None)

    data = numbered(4, transform=pair)
    walk = data.walk(slabs_leg([(0, data.slab(0), range(4))], range(4)))
    assert next(walk) == (0, (1, (2, (3, None))))


# -- errors ---------------------------------------------------------------------------------


def test_an_error_of_the_feed_is_raised_and_the_next_turn_goes_on() -> None:
    data = numbered(5)
    walk = data.walk(
        slabs_leg([(0, data.slab(0), [0, 1])], [0, 1]),
        FetchError("far away"),
        KeyboardInterrupt(),
        slabs_leg([(0, data.slab(0), [2])], [0]),
    )
    assert [int(next(walk)), int(next(walk))] == [0, 1]
    with pytest.raises(FetchError, match="far away"):
        next(walk)
    with pytest.raises(KeyboardInterrupt):
        next(walk)
    assert walk.progress.position == 2
    assert [int(item) for item in walk] == [2]


def test_an_error_of_the_feed_while_pouring_keeps_what_is_in_the_sink() -> None:
    data = numbered(5)
    walk = data.walk(
        slabs_leg([(0, data.slab(0), [0, 1])], [0, 1]), FetchError("far away"), slabs_leg([(0, data.slab(0), [2])], [0])
    )
    sink = ObjectSink(BYTES)
    with pytest.raises(FetchError):
        walk.pour(sink, 5)
    assert (sink.count, walk.progress.position) == (2, 2)
    assert walk.pour(sink, 5) == 1
    assert [int(item) for item in sink.take_batch()] == [0, 1, 2]


def test_an_item_that_cannot_be_decoded_is_named_and_nothing_before_it_is_lost() -> None:
    plan = DecodePlan([("str", None)], [("leaf",)], names=["x"], headless=True)
    data = Resident([[b"one", b"two", b"\xff\xfe", b"four"]], plan=plan)
    buffers = list(data.items[0])
    for leg in (
        slabs_leg([(0, data.slab(0), range(4))], range(4)),
        slabs_leg([(0, buffers, range(4))], range(4)),
        ("list", [(0, k, item) for k, item in enumerate(buffers)]),
        ("range", ItemIterator(data.reader, 0, 4)),
    ):
        walk = data.walk(leg)
        assert [next(walk), next(walk)] == ["one", "two"]
        for _ in range(2):  # it is still the next one
            with pytest.raises(FormatError, match=r"chunk 0\), item 2"):
                next(walk)
            assert walk.progress.position == 2


@pytest.mark.parametrize("place", [0, 3, 9])
def test_an_item_whose_offset_is_damaged_costs_no_other_item(place: int) -> None:
    data = numbered(10)
    content = bytearray(data.data.chunks[0])
    struct.pack_into("<I", content, TABLE_AT + 4 * 4, 2**31)  # the end of item 3 and the begin of item 4
    assert data.store.drop(0, 0)
    data.data.chunks[0] = bytes(content)
    clean = numbered(10).arguments(0)
    data.loader.fill_all()
    slab = data.slab(0, **clean)
    order = list(range(10))
    order[3], order[place] = order[place], order[3]
    # Item 4 is left out: only one item of the leg is damaged, and it comes at `place`.
    numbers = [number for number in range(10) if number != 4]
    positions = [at - (at > order[4]) for number, at in enumerate(order) if number != 4]
    walk = data.walk(slabs_leg([(0, slab, numbers)], positions), slabs_leg([(0, slab, [9])], [0]))
    found, errors = [], 0
    wanted = [numbers[positions.index(k)] for k in range(9)]
    for number in wanted[: wanted.index(3)]:
        assert int(next(walk)) == number
        found.append(number)
    with pytest.raises(FormatError, match="item 3"):
        next(walk)
    errors += 1
    assert (walk.progress.position, errors) == (len(found), 1)


def test_a_closed_store_ends_the_walk_with_an_error_each_time() -> None:
    data = numbered(5)
    for leg in (
        slabs_leg([(0, data.slab(0), range(4))], range(4)),
        ("range", ItemIterator(data.reader, 0, 4)),
        ("list", [(0, k, b"%050d" % k) for k in range(4)]),
    ):
        fresh = numbered(5)
        if leg[0] == "slabs":
            leg = slabs_leg([(0, fresh.slab(0), range(4))], range(4))
        elif leg[0] == "range":
            leg = ("range", ItemIterator(fresh.reader, 0, 4))
        walk = fresh.walk(leg)
        next(walk)
        fresh.store.close()
        for _ in range(3):
            with pytest.raises(ClosedError):
                next(walk)
        assert not walk.progress.finished
        walk.close()
        assert list(walk) == []


def test_a_store_closed_between_legs_is_an_error_each_time() -> None:
    data = numbered(5)
    walk = data.walk(("list", [(0, 0, b"x")]), ("list", [(0, 1, b"y")]))
    next(walk)
    data.store.close()
    for _ in range(2):
        with pytest.raises(ClosedError):
            next(walk)
    assert not walk.progress.finished


# -- ends -----------------------------------------------------------------------------------


def test_close_tells_the_feed_once_and_lets_everything_go() -> None:
    data = numbered(9)
    feed = Legs([slabs_leg([(0, data.slab(0), range(9))], range(9))])
    walk = Walk(data.reader, feed, Progress())
    next(walk)
    assert data.pins()
    walk.close()
    walk.close()
    assert feed.closed == 1
    assert data.pins() == 0
    assert list(walk) == []
    assert (walk.progress.position, walk.progress.finished) == (1, False)
    assert walk.pour(ObjectSink(BYTES), 3) == 0


def test_the_end_tells_the_feed_once_and_lets_everything_go() -> None:
    data = numbered(9)
    feed = Legs([slabs_leg([(0, data.slab(0), range(9))], range(9))])
    walk = Walk(data.reader, feed, Progress())
    assert len(list(walk)) == 9
    assert (feed.closed, data.pins()) == (1, 0)
    walk.close()
    assert feed.closed == 1


def test_a_walk_that_is_forgotten_lets_everything_go() -> None:
    data = numbered(9)
    walk = data.walk(slabs_leg([(0, data.slab(0), range(9))], range(9)))
    next(walk)
    gone = weakref.ref(walk)
    del walk
    gc.collect()
    assert gone() is None
    assert data.pins() == 0


def test_a_walk_in_a_cycle_is_collected() -> None:
    data = numbered(9)
    feed = Legs([slabs_leg([(0, data.slab(0), range(9))], range(9))])
    walk = Walk(data.reader, feed, Progress())
    feed.walk = walk  # type: ignore[attr-defined]
    next(walk)
    gone = weakref.ref(walk)
    del walk, feed
    gc.collect()
    assert gone() is None
    assert data.pins() == 0


def test_progress_goes_on_from_where_the_route_was_entered_and_outlives_the_walk() -> None:
    data = numbered(9)
    progress = Progress(100)
    walk = Walk(data.reader, Legs([slabs_leg([(0, data.slab(0), range(9))], range(9), skip=4)]), progress)
    assert [int(item) for item in walk] == [4, 5, 6, 7, 8]
    del walk
    assert (progress.position, progress.finished) == (105, True)
    assert "105" in repr(progress)


def test_walks_cannot_be_copied_or_pickled() -> None:
    walk = numbered(2).walk()
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="state_dict"):
            attempt(walk)


# -- the user's code in the middle ----------------------------------------------------------


def meddling(kind: str, act: Callable[[Walk, Resident], Any], sizes: tuple[int, int] = (600, 5000)) -> list[Any]:
    """Walk items whose decoder does something to the walk at the second item; what came and what was raised."""
    state: dict[str, Any] = {"count": 0}

    def decode(data: bytes) -> bytes:
        state["count"] += 1
        if state["count"] == 2:
            try:
                act(state["walk"], state["data"])
            finally:
                gc.collect()
                churn = [bytes(5000) for _ in range(50)]  # what was freed is soon something else
                del churn
        return bytes(data)

    # The second leaf is read after the first one's decoder has run.
    plan = DecodePlan([("call", decode), ("bytes", None)], [("leaf",), ("leaf",), ("tuple", 2)], names=["a", "b"])
    items = []
    for k in range(6):
        leaves = [b"%d" % k, bytes([65 + k]) * sizes[k % 2]]
        items.append(struct.pack("<2I", *map(len, leaves)) + b"".join(leaves))
    data = Resident([items], plan=plan)
    state["data"] = data
    leg = {
        "slabs": lambda: slabs_leg([(0, data.slab(0), range(6))], range(6)),
        "buffers": lambda: slabs_leg([(0, [bytearray(item) for item in items], range(6))], range(6)),
        "list": lambda: ("list", [(0, k, bytearray(item)) for k, item in enumerate(items)]),
        "range": lambda: ("range", ItemIterator(data.reader, 0, 6)),
    }[kind]()
    state["walk"] = walk = data.walk(leg, leg)
    del leg
    found: list[Any] = []
    for _ in range(3):
        try:
            first, second = next(walk)
        except (ValueError, ClosedError, StopIteration, FormatError) as error:
            found.append(type(error))
        else:
            assert second == bytes([65 + int(first)]) * sizes[int(first) % 2]
            found.append(int(first))
    return found


KINDS = ["slabs", "buffers", "list", "range"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(600, 700), (600, 9000), (9000, 600)], ids=str)
def test_a_decoder_that_closes_the_walk_crashes_nothing(kind: str, sizes: tuple[int, int]) -> None:
    found = meddling(kind, lambda walk, data: walk.close(), sizes)
    assert found[0] == 0
    assert set(found[1:]) <= {1, 2, ValueError, StopIteration}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(600, 700), (600, 9000), (9000, 600)], ids=str)
def test_a_decoder_that_closes_everything_crashes_nothing(kind: str, sizes: tuple[int, int]) -> None:
    def act(walk: Walk, data: Resident) -> None:
        try:
            walk.close()
        finally:
            data.store.close()

    found = meddling(kind, act, sizes)
    assert found[0] == 0
    assert set(found[1:]) <= {1, ValueError, ClosedError, StopIteration}


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_that_asks_for_the_next_item_is_told_so(kind: str) -> None:
    raised: list[Exception] = []

    def act(walk: Walk, data: Resident) -> None:
        for ask in (lambda: next(walk), lambda: walk.pour(ObjectSink(BYTES), 3)):
            try:
                ask()
            except ValueError as error:
                raised.append(error)

    assert meddling(kind, act) == [0, 1, 2]
    assert len(raised) == 2
    assert all("already running" in str(error) for error in raised)


# -- feeds that say nonsense ----------------------------------------------------------------


def nonsense(data: Resident) -> dict[str, Any]:
    slab = data.slab(0)
    gone = data.slab(0)
    gone.release()
    empty = places()
    return {
        "a place twice": slabs_leg([(0, slab, range(30))], [0] * 30),
        "a place left out": slabs_leg([(0, slab, [1, 2, 3])], [0, 1, 1]),
        "a place outside": slabs_leg([(0, slab, [1])], [9]),
        "a place far outside": slabs_leg([(0, slab, [1])], [2**32 - 1]),
        "too few items": slabs_leg([(0, slab, [1])], [0, 1]),
        "too many items": slabs_leg([(0, slab, [1, 2])], [0]),
        "too many groups": slabs_leg([(0, slab, [1]), (0, slab, [2])], [0]),
        "no groups": slabs_leg([], [0]),
        "a number outside": slabs_leg([(0, slab, [30])], [0]),
        "a number far outside": slabs_leg([(0, slab, [2**32 - 1])], [0]),
        "a released slab": slabs_leg([(0, gone, [1])], [0]),
        "a slab of another chunk": slabs_leg([(1, slab, [1])], [0]),
        "a chunk that is none": slabs_leg([(99, [b"x"], [1])], [0]),
        "a chunk of another type": slabs_leg([("x", slab, [1])], [0]),
        "a short list": slabs_leg([(0, [b"x"], range(8))], range(8)),
        "an empty list": slabs_leg([(0, [], [0])], [0]),
        "a list of no buffers": slabs_leg([(0, [7], [0])], [0]),
        "a tuple of buffers": slabs_leg([(0, (b"x",), [0])], [0]),
        "an int": slabs_leg([(0, 7, [0])], [0]),
        "None": slabs_leg([(0, None, [0])], [0]),
        "a group of two": ("slabs", [(0, slab)], places(0), 0, 1),
        "a group that is none": ("slabs", [7], places(0), 0, 1),
        "numbers of another type": ("slabs", [(0, slab, [0])], places(0), 0, 1),
        "places of another type": ("slabs", [(0, slab, places(0))], [0], 0, 1),
        "no list of groups": ("slabs", None, places(0), 0, 1),
        "a skip too far": ("slabs", [(0, slab, places(0))], places(0), 2, 1),
        "a skip below": ("slabs", [(0, slab, places(0))], places(0), -1, 1),
        "a stop too far": ("slabs", [(0, slab, places(0))], places(0), 0, 2),
        "a huge stop": ("slabs", [(0, slab, places(0))], places(0), 0, 2**62),
        "slabs alone": ("slabs",),
        "range alone": ("range",),
        "list alone": ("list",),
        "nothing": (),
        "no leg": None,
        "another kind": ("circle", 3),
        "a list of another type": ("list", 7),
        "a list of pairs": ("list", [(0, 0)]),
        "a list of no buffers, alone": ("list", [(0, 0, 7)]),
        "a list with a number below": ("list", [(0, -1, b"")]),
        "a range of another type": ("range", 7),
        "a range of nothing": ("range", None),
        "empty": ("slabs", [(0, slab, empty)], empty, 0, 1),
    }


NONSENSE = sorted(nonsense(numbered(30, 30)))


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_of_a_feed_is_refused_and_crashes_nothing(name: str) -> None:
    data = numbered(30, 30)
    good = slabs_leg([(0, data.slab(0), range(9))], range(9))
    walk = data.walk(good, nonsense(data)[name], good)  # the first leg leaves spots that must not be met again
    assert len([next(walk) for _ in range(9)]) == 9
    refused = 0
    for _ in range(40):
        try:
            next(walk)
        except StopIteration:
            break
        except (ValueError, TypeError, IndexError, OverflowError, BufferError, FormatError, AttributeError):
            refused += 1
            if refused > 3:
                break
    # The number of a chunk is only for messages.
    assert refused or name in ("a slab of another chunk", "a chunk that is none", "a chunk of another type")
    walk.close()
    del walk, good
    gc.collect()
    assert data.pins() == 0
    data.store.check()


def test_a_feed_may_close_the_walk_in_its_turn() -> None:
    data = numbered(9)
    walks: list[Walk] = []

    def closing() -> Any:
        walks[0].close()
        return slabs_leg([(0, data.slab(0), range(3))], range(3))

    walk = data.walk(closing)
    walks.append(walk)
    with contextlib.suppress(ValueError):
        assert len(list(walk)) in (0, 3)
    walks.clear()
    walk.close()
    del walk
    gc.collect()
    assert data.pins() == 0


def test_a_feed_may_not_ask_the_walk_for_items() -> None:
    data = numbered(9)
    walks: list[Walk] = []
    walk = data.walk(lambda: next(walks[0]))
    walks.append(walk)
    with pytest.raises(ValueError, match="already running"):
        next(walk)
    walks.clear()


@pytest.mark.parametrize("arguments", [(None, None, None), (1, 2, 3), ()])
def test_a_walk_of_other_things_is_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError):
        Walk(*arguments)
    data = numbered(3)
    with pytest.raises(TypeError):
        Walk(data.reader, Legs([]), None)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Walk(None, Legs([]), Progress())  # type: ignore[arg-type]
