"""One run under way: what it sends for ahead, where it pauses, and what is left when it is closed."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Generator
from types import SimpleNamespace
from typing import Any

import pytest
from support.sources import DiarySource, Letter

from lazystore.cache.making import Making
from lazystore.errors import FetchError, FormatError
from lazystore.formats.format import Ahead, Arrival, Image, Pause, Step, Want

DATA = bytes(range(200))
Steps = Generator[Step, Any, None]


class Scripted:
    """One run that does what a test says."""

    def __init__(self, steps: Callable[[Scripted], Steps]) -> None:
        self.runs = array("q", [0, 2])
        self.bytes = 100
        self.steps = steps

    def scratch(self, run: int) -> int:
        return self.bytes

    def open(self, run: int, first: int) -> Steps:
        return self.steps(self)


def making(steps: Callable[[Scripted], Steps], source: DiarySource, *, room: int = 1000) -> Making:
    return Making(
        Scripted(steps), 0, 0,
        source=source, timeout=20.0, room=room, on_arrival=lambda: None,
    )  # fmt: skip


def source() -> DiarySource:
    return DiarySource({"a": DATA})


def by_hand(storage: DiarySource) -> list[Letter]:
    """What is started from now on; a test delivers it."""
    bag: list[Letter] = []
    storage.postman = SimpleNamespace(take=bag.append)  # type: ignore[assignment]
    return bag


def two_windows(run: Scripted) -> Steps:
    (first,) = yield [Want("a", 0, 10)]
    sent = yield Ahead([Want("a", 10, 20)])
    yield Image(0, bytes(first))
    (second,) = (yield Arrival()) if sent else (yield [Want("a", 10, 20)])
    yield Image(1, bytes(second))


def images(run: Making) -> list[bytes]:
    found = []
    while not run.over and run.next < 2:
        if run.pump(urgent=True):
            found.append(bytes(run.take().data))
        else:
            run.hurry(20.0)
    return found


def test_what_is_sent_for_ahead_travels_while_the_image_before_it_is_made() -> None:
    storage = source()
    run = making(two_windows, storage)
    assert run.pump(urgent=True)
    assert storage.waves == [[("a", 0, 10)], [("a", 10, 30)]]
    assert bytes(run.take().data) == DATA[:10]
    assert run.pump(urgent=True) and bytes(run.take().data) == DATA[10:30]
    assert len(storage.waves) == 2


def test_nothing_waits_for_what_is_ahead_before_it_is_needed() -> None:
    storage = source()
    bag = by_hand(storage)
    run = making(two_windows, storage)
    assert not run.pump(urgent=True)
    bag[0].deliver()
    assert run.pump(urgent=True) and len(bag) == 2
    assert bytes(run.take().data) == DATA[:10]
    assert not run.pump(urgent=True) and run.on_its_way
    bag[1].deliver()
    assert run.pump(urgent=True) and bytes(run.take().data) == DATA[10:30]


def test_where_there_is_no_room_nothing_is_sent_for_ahead() -> None:
    storage = source()
    run = making(two_windows, storage)
    run.allowed = 99
    assert images(run) == [DATA[:10], DATA[10:30]]
    assert storage.waves == [[("a", 0, 10)], [("a", 10, 30)]]


def test_trouble_with_what_was_sent_for_ahead_is_met_when_it_is_needed() -> None:
    storage = source()

    def before(reads: Any) -> None:
        if reads[0].begin:
            raise FetchError("the storage is down")

    storage.before = before
    run = making(two_windows, storage)
    assert run.pump(urgent=True) and bytes(run.take().data) == DATA[:10]
    with pytest.raises(FetchError, match="down"):
        run.pump(urgent=True)
    assert run.over


def test_closing_calls_off_what_was_sent_for_ahead() -> None:
    storage = source()
    bag = by_hand(storage)
    run = making(two_windows, storage)
    run.pump(urgent=True)
    bag[0].deliver()
    assert run.pump(urgent=True) and not bag[1].done()
    run.close()
    assert bag[1].done()


@pytest.mark.parametrize(
    ("step", "times", "what"), [(Arrival(), 1, "never sent"), (Ahead([Want("a", 0, 1)]), 2, "sends ahead twice")]
)
def test_a_format_that_is_wrong_about_what_it_sent_is_refused(step: Step, times: int, what: str) -> None:
    def steps(run: Scripted) -> Steps:
        for _ in range(times):
            yield step

    with pytest.raises(FormatError, match=what):
        making(steps, source()).pump(urgent=True)


def test_a_run_that_nobody_waits_for_stays_where_it_pauses_and_says_what_it_will_take() -> None:
    def steps(run: Scripted) -> Steps:
        yield Pause(70)
        run.bytes += 70
        yield Image(0, b"made")

    run = making(steps, source())
    for _ in range(2):
        assert not run.pump() and not run.ready and (run.held, run.growth) == (100, 70)
    assert run.pump(urgent=True)
    assert bytes(run.take().data) == b"made" and (run.held, run.growth) == (170, 0)
