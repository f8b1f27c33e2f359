"""Reading ahead: in order it goes ahead of the reader, as far as needed; elsewhere it fetches nothing extra."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from support.paging import VersionedSource, origin_of
from support.sources import Postman

from lazystore.cache.page_ahead import SHARE, PagesAhead
from lazystore.cache.page_waves import board_of
from lazystore.cache.paged import PagedObject
from lazystore.cache.tiers import Tiers
from lazystore.errors import FetchError

PAGE = 4096
PAGES = 200
DATA = random.Random(4).randbytes(PAGES * PAGE)


@pytest.fixture
def far() -> VersionedSource:
    return VersionedSource({"a": DATA})


@pytest.fixture
def tiers() -> Iterator[Tiers]:
    with_room = Tiers(memory=16 << 20)
    yield with_room
    with_room.close()


def walk(paged: PagedObject, ahead: PagesAhead, begin: int, end: int, step: int) -> bytes:
    found = b""
    for at in range(begin, end, step):
        ahead.reads(at, min(at + step, end))
        found += paged.read(at, min(step, end - at))
    return found


@pytest.mark.parametrize("step", [1000, PAGE, 3 * PAGE + 5])
def test_a_reader_in_order_gets_every_byte_once_and_is_ahead_of_its_needs(
    far: VersionedSource, tiers: Tiers, step: int
) -> None:
    paged = PagedObject(origin_of(far), tiers, page=PAGE)
    ahead = PagesAhead(paged)
    assert walk(paged, ahead, 0, 50 * PAGE, step) == DATA[: 50 * PAGE]
    assert set(far.asked().values()) == {1}
    last = max(end for wave in far.waves for _, _, end in wave)
    assert 50 * PAGE < last <= 50 * PAGE + 8 * PAGE  # what lands at once needs no long window
    ahead.end()
    assert (tiers.ledger.reserved, len(board_of(tiers))) == (0, 0)


def test_the_window_grows_while_the_reader_has_to_wait(far: VersionedSource, tiers: Tiers) -> None:
    paged = PagedObject(origin_of(far), tiers, page=PAGE)
    ahead = PagesAhead(paged)
    with Postman(far, patience=0.002):
        assert walk(paged, ahead, 0, 150 * PAGE, PAGE) == DATA[: 150 * PAGE]
        ahead.end()
    assert max(len(wave) for wave in far.waves) >= 16
    assert set(far.asked().values()) == {1}


def test_jumps_fetch_what_they_touch(far: VersionedSource, tiers: Tiers) -> None:
    paged = PagedObject(origin_of(far), tiers, page=PAGE)
    ahead = PagesAhead(paged)
    for at in (50, 3, 120, 40, 199, 0):
        walk(paged, ahead, at * PAGE + 7, at * PAGE + 100, 93)
    assert far.nbytes() == 6 * PAGE


def test_the_first_read_says_nothing_about_the_next(far: VersionedSource, tiers: Tiers) -> None:
    paged = PagedObject(origin_of(far), tiers, page=PAGE)
    ahead = PagesAhead(paged)
    walk(paged, ahead, 0, 100, 50)  # a header, say
    assert far.nbytes() == PAGE


def test_a_jump_calls_off_what_is_under_way_and_keeps_what_has_landed(far: VersionedSource, tiers: Tiers) -> None:
    paged = PagedObject(origin_of(far), tiers, page=PAGE)
    ahead = PagesAhead(paged)
    walk(paged, ahead, 0, 2 * PAGE, PAGE)
    ahead.reads(100 * PAGE, 100 * PAGE + 1)
    assert (tiers.ledger.reserved, len(board_of(tiers))) == (0, 0)
    far.waves.clear()
    paged.read(2 * PAGE, 10)
    assert not any(far.waves)


def test_no_more_than_its_share_of_the_budget_is_ahead() -> None:
    far, tiers = VersionedSource({"a": DATA}), Tiers(memory=256 << 10)
    paged = PagedObject(origin_of(far), tiers, page=PAGE)
    readers = [PagesAhead(paged) for _ in range(5)]
    most = 0
    with Postman(far, patience=0.002):
        for at in range(0, 30 * PAGE, PAGE):
            for number, reader in enumerate(readers):
                begin = number * 40 * PAGE + at
                reader.reads(begin, begin + PAGE)
                assert paged.read(begin, PAGE) == DATA[begin : begin + PAGE]
                most = max(most, tiers.ledger.reserved)
        for reader in readers:
            reader.end()
    assert most <= tiers.ledger.limit // 2
    assert tiers.ledger.peak <= tiers.ledger.limit
    assert tiers.ledger.limit // SHARE >= 16 * PAGE
    tiers.close()


def test_a_failure_ahead_is_met_only_where_it_persists(far: VersionedSource, tiers: Tiers) -> None:
    paged = PagedObject(origin_of(far), tiers, page=PAGE)
    ahead = PagesAhead(paged)
    failures = iter(range(2))

    def fail_some(reads: list[object]) -> None:
        if reads and far.waves[-1][0][1] >= 2 * PAGE and next(failures, None) is not None:
            raise FetchError("lost on the way")

    far.before = fail_some  # type: ignore[assignment]
    assert walk(paged, ahead, 0, 20 * PAGE, PAGE) == DATA[: 20 * PAGE]
    assert next(failures, None) is None
    ahead.end()
