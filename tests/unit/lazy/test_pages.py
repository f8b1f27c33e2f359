"""Pages of any source: right neighbours, one load each, cursors bound to their source, walks that lose nothing."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lazystore
from lazystore import LazyStore, StreamingDataset
from lazystore.cache.tiers import Tiers
from lazystore.errors import (
    ConfigError,
    CursorExpiredError,
    CursorMismatchError,
    CursorTamperedError,
    LoadError,
    UnhashableKeyError,
    UnsupportedError,
)
from lazystore.lazy.cursor import CursorSigner
from lazystore.lazy.keysets import Seek, keyset
from lazystore.lazy.page import Page
from lazystore.lazy.pages import Pager
from lazystore.lazy.sorted_lines import SortedLines
from lazystore.lazy.source import Source

SECRET = b"a secret of sixteen bytes"
PATIENCE = 20.0


@pytest.fixture
def tiers() -> Iterator[Tiers]:
    made = Tiers(memory=8 << 20)
    yield made
    made.close()


class SetClock:
    """Time that a test moves."""

    real = False

    def __init__(self, now: float = 1e9) -> None:
        self.now = now

    def time(self) -> float:
        return self.now


class Numbers:
    """A function of a range, and the calls it got."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.calls: list[tuple[int, int]] = []

    def __call__(self, offset: int, limit: int, **filters: Any) -> list[int]:
        self.calls.append((offset, limit))
        return list(range(offset, min(offset + limit, self.count)))


class Broken(Exception):
    """What a loader raises."""


def shape(page: Page[Any]) -> tuple[Any, ...]:
    return (list(page), page.page, page.has_previous, page.has_next)


# -- numbers --------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False])
def test_pages_by_number_know_their_neighbours(tiers: Tiers, known: bool) -> None:
    numbers = Numbers(6)
    source = Source.from_sequence(range(6)) if known else Source.from_range(numbers)
    pager = Pager(source, tiers, size=3, prefetch=False)
    assert shape(pager.page()) == ([0, 1, 2], 1, False, True)
    assert shape(pager.page(2)) == ([3, 4, 5], 2, True, False), "a last page that is full has nothing behind it"
    assert shape(pager.page(2, size=4)) == ([4, 5], 2, True, False)
    assert shape(pager.page(1, size=7)) == ([0, 1, 2, 3, 4, 5], 1, False, False)
    assert shape(pager.page(9)) == ([], 9, True, False), "a page behind the end is empty, and no error"
    if not known:
        assert numbers.calls == [(0, 4), (3, 4), (4, 5), (0, 8), (24, 4)]


def test_a_source_of_known_size_is_asked_for_no_more_than_the_page(tiers: Tiers) -> None:
    numbers = Numbers(6)
    pager = Pager(Source.from_range(numbers, size=6), tiers, size=3, prefetch=False)
    assert [shape(pager.page(n))[2:] for n in (1, 2, 3)] == [(False, True), (True, False), (True, False)]
    assert numbers.calls == [(0, 3), (3, 3)], "and for nothing behind its end"


def test_an_empty_source_has_one_empty_page_and_no_walk(tiers: Tiers) -> None:
    for source in (Source.from_sequence([]), Source.from_range(Numbers(0))):
        pager = Pager(source, tiers)
        assert shape(pager.page()) == ([], 1, False, False)
        assert list(pager.pages()) == []


@pytest.mark.parametrize("number", [0, -1, True, 1.0, "2"])
def test_page_zero_and_what_is_no_number_are_refused_with_a_hint(tiers: Tiers, number: Any) -> None:
    pager = Pager(Source.from_sequence(range(9)), tiers)
    for ask in (pager.page, pager.pages):
        with pytest.raises(ConfigError, match="count from 1"):
            ask(number)


def test_sizes_below_one_are_refused_and_large_ones_clamped(tiers: Tiers) -> None:
    pager = Pager(Source.from_sequence(range(5000)), tiers, max_size=1000)
    for size in (0, -5, True, "50", 2.0):
        with pytest.raises(ConfigError, match="size"):
            pager.page(size=size)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="size"):
            Pager(Source.from_sequence([]), tiers, size=size)  # type: ignore[arg-type]
    page = pager.page(2, size=5000)
    assert (len(page), page.page_size, page[0]) == (1000, 1000, 1000)
    assert len(pager.page()) == 50


def test_bytes_and_streams_have_no_pages(tiers: Tiers) -> None:
    with pytest.raises(ConfigError, match="chunks"):
        Pager(Source.from_bytes(b"abc"), tiers)
    with pytest.raises(UnsupportedError, match="from_range"):
        Pager(Source.from_stream([1, 2]), tiers)


def test_a_dataset_is_paged_by_position(tiers: Tiers, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"n": n}) + "\n" for n in range(120)))
    with StreamingDataset(str(path), memory="8MB", format_options={"index": str(tmp_path / "i")}) as dataset:
        pager = Pager(Source.from_sequence(dataset), tiers, total=True)
        assert [row["n"] for row in pager.page(3)] == list(range(100, 120))
        info = pager.page(1).info
        assert (info.total_items, info.total_pages, info.has_next) == (120, 3, True)
        assert asyncio.run(pager.apage(3)).items == pager.page(3).items
        assert tiers.counters()["requests"] == 0, "what the dataset caches is not cached again"


# -- cache ----------------------------------------------------------------------------------


def test_hit_and_age_are_true(tiers: Tiers) -> None:
    clock, numbers = SetClock(), Numbers(99)
    pager = Pager(Source.from_range(numbers), tiers, clock=clock, prefetch=False)  # type: ignore[arg-type]
    first = pager.page(1)
    assert (first.hit, first.age, first.loaded) == (False, 0.0, 1e9)
    clock.now += 7
    again = pager.page(1)
    assert (again.hit, again.age, again.loaded) == (True, 7.0, 1e9)
    assert again.items is first.items and len(numbers.calls) == 1
    assert pager.page(1, size=10).hit is False
    assert pager.page(cursor=first.next_cursor).hit is False
    assert pager.page(2).hit is True, "by number or by cursor: it is the same page"


def test_a_page_that_others_load_meanwhile_is_loaded_once(tiers: Tiers) -> None:
    calls: list[int] = []
    begun, go = threading.Event(), threading.Event()

    def slow(offset: int, limit: int) -> list[int]:
        calls.append(offset)
        begun.set()
        assert go.wait(PATIENCE)
        return list(range(offset, offset + limit))

    pager = Pager(Source.from_range(slow), tiers, prefetch=False)
    found: list[Page[Any]] = []
    threads = [threading.Thread(target=lambda: found.append(pager.page(1))) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert begun.wait(PATIENCE)
    time.sleep(0.05)
    go.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert calls == [0] and len(found) == 8
    assert not any(page.hit for page in found), "who waited for the load has no hit"


def test_filters_reach_the_function_and_tell_pages_apart(tiers: Tiers) -> None:
    got: list[dict[str, Any]] = []

    def rows(offset: int, limit: int, **filters: Any) -> list[Any]:
        got.append(filters)
        return [filters] * limit

    pager = Pager(Source.from_range(rows), tiers, prefetch=False)
    assert pager.page(1, user=7, styles=["a", "b"])[0] == {"user": 7, "styles": ["a", "b"]}
    assert pager.page(1, styles=["a", "b"], user=7).hit, "whatever their order"
    assert not pager.page(1, user=8, styles=["a", "b"]).hit
    assert not pager.page(1, user=None).hit and not pager.page(1).hit
    assert len(got) == 4
    nested = {"user": {"in": {3, 4}, 5: [None, 1.5]}}
    cursor = pager.page(1, **nested).next_cursor
    assert pager.page(1, **nested).hit and not pager.page(cursor=cursor, **nested).hit
    with pytest.raises(UnhashableKeyError):
        pager.page(1, user=bytearray(b"7"))
    with pytest.raises(ConfigError, match="filters"):
        Pager(Source.from_sequence([1]), tiers).page(1, user=7)


# -- cursors --------------------------------------------------------------------------------


def walked(pager: Pager, **filters: Any) -> list[Page[Any]]:
    """All pages by their cursors, as a client does it."""
    found = [pager.page(**filters)]
    while found[-1].next_cursor is not None:
        found.append(pager.page(cursor=found[-1].next_cursor, **filters))
    return found


def walked_back(pager: Pager, last: Page[Any]) -> list[Page[Any]]:
    found = [last]
    while found[-1].previous_cursor is not None:
        found.append(pager.page(cursor=found[-1].previous_cursor))
    return found[::-1]


def letters(cursor: Any, limit: int, **filters: Any) -> tuple[list[str], Any]:
    """A source with cursors of its own, which are dicts."""
    begin = cursor["from"] if cursor else 0
    text = "abcdefghij"
    return list(text[begin : begin + limit]), {"from": begin + limit} if begin + limit < len(text) else None


ROWS = [{"id": number, "score": (number * 7) % 3 or None} for number in range(10)]
ORDER = keyset(["-score", "id"], unique="id")
IN_ORDER = sorted(ROWS, key=lambda row: (row["score"] is None, -(row["score"] or 0), row["id"]))


def of_sql(seek: Seek, limit: int) -> list[Any]:
    base = sqlite3.connect(":memory:")
    base.row_factory = sqlite3.Row
    base.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, score INTEGER)")
    base.executemany("INSERT INTO t VALUES (:id, :score)", ROWS)
    clause = seek.clause()
    text = f"SELECT * FROM t WHERE {clause.where} ORDER BY {clause.order_by} LIMIT {limit}"
    found = [dict(row) for row in base.execute(text, clause.params)]
    base.close()
    return found


async def of_sql_async(seek: Seek, limit: int) -> list[Any]:
    await asyncio.sleep(0)
    return of_sql(seek, limit)


def lines() -> SortedLines:
    return SortedLines(Source.from_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in IN_ORDER)))


async def numbers_async(offset: int, limit: int) -> list[int]:
    await asyncio.sleep(0)
    return list(range(10))[offset : offset + limit]


#: Name -> a pager over ten items of that kind of source, and the items.
KINDS: dict[str, tuple[Callable[[Tiers], Pager], list[Any]]] = {
    "sequence": (lambda tiers: Pager(Source.from_sequence(range(10)), tiers, size=4), list(range(10))),
    "range": (lambda tiers: Pager(Source.from_range(Numbers(10)), tiers, size=4), list(range(10))),
    "async range": (lambda tiers: Pager(Source.from_range(numbers_async), tiers, size=4), list(range(10))),
    "source cursors": (lambda tiers: Pager(Source.from_cursor(letters), tiers, size=4), list("abcdefghij")),
    "keyset, list": (lambda tiers: Pager(Source.from_sequence(IN_ORDER), tiers, size=4, keyset=ORDER), IN_ORDER),
    "keyset, sql": (lambda tiers: Pager(Source.from_cursor(of_sql), tiers, size=4, keyset=ORDER), IN_ORDER),
    "keyset, async sql": (lambda tiers: Pager(Source.from_cursor(of_sql_async), tiers, size=4, keyset=ORDER), IN_ORDER),
    "keyset, lines": (lambda tiers: Pager(Source.from_cursor(lines().rows), tiers, size=4, keyset=ORDER), IN_ORDER),
    "keyset, range": (
        lambda tiers: Pager(
            Source.from_range(lambda offset, limit: IN_ORDER[offset : offset + limit], size=10),
            tiers,
            size=4,
            keyset=ORDER,
        ),
        IN_ORDER,
    ),
}
kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
def test_cursors_lead_through_everything_and_back(tiers: Tiers, kind: str) -> None:
    make, items = KINDS[kind]
    pager = make(tiers)
    there = walked(pager)
    assert [list(page) for page in there] == [items[:4], items[4:8], items[8:]]
    assert [page.page for page in there] == [1, 2, 3]
    assert [(page.has_previous, page.has_next) for page in there] == [(False, True), (True, True), (True, False)]
    back = walked_back(pager, there[-1])
    assert [list(page) for page in back] == [list(page) for page in there]
    assert back[0].has_previous is False and back[0].page == 1
    assert list(walked_back(pager, pager.page(cursor=back[0].next_cursor))[0]) == items[:4]


@kinds
def test_walks_are_the_same_under_for_and_async_for(tiers: Tiers, kind: str) -> None:
    make, items = KINDS[kind]
    pager = make(tiers)
    expected = [items[:4], items[4:8], items[8:]]
    walk = pager.pages()
    assert [list(page) for page in walk] == expected == [list(page) for page in walk]

    async def loop(walk: Any) -> list[Any]:
        return [list(page) async for page in walk]

    assert asyncio.run(loop(pager.pages())) == expected
    assert asyncio.run(loop(make(tiers).pages(2, 3))) == expected[1:2] == [list(page) for page in pager.pages(2, 3)]
    assert list(pager.pages(3, 3)) == list(pager.pages(9)) == []
    assert [list(page) for page in pager.load_pages(1, 9)] == expected
    assert [list(page) for page in asyncio.run(pager.aload_pages(1, 9))] == expected
    assert [list(page) for page in pager.load_pages(2, 3)] == expected[1:2]


def test_a_cursor_is_good_for_its_source_filters_and_order_only(tiers: Tiers) -> None:
    clock = SetClock()
    signer = CursorSigner(SECRET, lifetime=60, clock=clock)  # type: ignore[arg-type]

    def pager(source: Source, **options: Any) -> Pager:
        return Pager(source, tiers, size=3, signer=signer, prefetch=False, **options)

    numbers = pager(Source.from_range(Numbers(10)).named("numbers"))
    cursor = numbers.page(user=7).next_cursor
    assert cursor is not None and list(numbers.page(cursor=cursor, user=7)) == [3, 4, 5]
    assert list(numbers.page(cursor=cursor, size=1, user=7)) == [3], "the size may change on the way"
    same = pager(Source.from_range(Numbers(10)).named("numbers"))
    assert list(same.page(cursor=cursor, user=7)) == [3, 4, 5], "another process with the secret understands it"
    for other, filters in [
        (numbers, {}), (numbers, {"user": 8}), (numbers, {"user": 7, "more": 1}),
        (pager(Source.from_range(Numbers(10)).named("others")), {"user": 7}),
    ]:  # fmt: skip
        with pytest.raises(CursorMismatchError):
            other.page(cursor=cursor, **filters)
    up, down = (
        pager(Source.from_sequence(IN_ORDER).named("rows"), keyset=keyset([*names], unique="id"))
        for names in (["-score", "id"], ["-score", "-id"])
    )
    with pytest.raises(CursorMismatchError):
        down.page(cursor=up.page().next_cursor)
    with pytest.raises(CursorTamperedError):
        numbers.page(cursor=cursor[:-1] + ("A" if cursor[-1] != "A" else "B"), user=7)
    clock.now += 60
    with pytest.raises(CursorExpiredError):
        numbers.page(cursor=cursor, user=7)
    with pytest.raises(ConfigError, match="one of them"):
        numbers.page(2, cursor=cursor)


def test_pages_without_numbers_refuse_numbers(tiers: Tiers) -> None:
    for source, options in ((Source.from_cursor(letters), {}), (Source.from_cursor(of_sql), {"keyset": ORDER})):
        pager = Pager(source, tiers, **options)  # type: ignore[arg-type]
        assert pager.page(1).page == 1
        with pytest.raises(ConfigError, match="no page numbers"):
            pager.page(2)


def test_sizes_that_change_on_the_way_back_lose_no_item(tiers: Tiers) -> None:
    pager = Pager(Source.from_sequence(range(10)), tiers, size=4)
    page = pager.page(cursor=pager.page(size=3).next_cursor, size=5)
    assert list(page) == [3, 4, 5, 6, 7]
    before = pager.page(cursor=page.previous_cursor, size=5)
    assert shape(before) == ([0, 1, 2], 1, False, True)


def test_the_way_back_of_source_cursors_is_bounded_and_then_unknown(tiers: Tiers) -> None:
    def numbered(cursor: Any, limit: int) -> tuple[list[int], Any]:
        number = cursor or 0
        return [number], number + 1 if number < 30 else None

    pages = walked(Pager(Source.from_cursor(numbered), tiers, size=1))
    assert len(pages) == 31 and all(len(page.next_cursor or "") < 400 for page in pages)
    pager = Pager(Source.from_cursor(numbered), tiers, size=1)
    back = walked_back(pager, walked(pager)[-1])
    assert [page[0] for page in back] == list(range(22, 31))
    assert back[0].has_previous is None and back[0].page == 23


def test_long_cursors_of_a_source_shorten_the_way_back_first(tiers: Tiers) -> None:
    def long(cursor: Any, limit: int) -> tuple[list[int], Any]:
        number = len(cursor) - 150 if cursor else 0
        return [number], "x" * (151 + number) if number < 3 else None

    assert [page[0] for page in walked(Pager(Source.from_cursor(long), tiers, size=1))] == [0, 1, 2, 3]
    pager = Pager(Source.from_cursor(lambda cursor, limit: ([1], "y" * 500)), tiers, size=1)
    page = pager.page()
    assert page.has_next and list(page) == [1], "the page itself is there"
    with pytest.raises(ConfigError, match="512"):
        page.next_cursor  # noqa: B018


def test_an_empty_page_in_the_middle_is_no_end(tiers: Tiers) -> None:
    def sparse(cursor: Any, limit: int) -> tuple[list[int], Any]:
        number = cursor or 0
        return ([number] if number % 3 == 0 else []), number + 1 if number < 7 else None

    pager = Pager(Source.from_cursor(sparse), tiers)
    assert [list(page) for page in pager.pages()] == [[0], [3], [6]]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([["a", "id"], ["-a", "id"], ["a", "-id"]]), st.sampled_from(["last", "first"]), st.integers(1, 4),
    st.dictionaries(st.integers(0, 20), st.none() | st.integers(-1, 1), max_size=10), st.integers(0, 9), st.data(),
)  # fmt: skip
def test_pages_of_a_list_that_changes_meet_each_row_that_stays_once(
    names: list[str], nulls: str, size: int, rows: dict[int, Any], turn: int, data: st.DataObject
) -> None:
    order = keyset(names, unique="id", nulls=nulls)
    kept = [{"id": number, "a": a} for number, a in rows.items()]

    def sort() -> None:
        import functools

        kept.sort(
            key=functools.cmp_to_key(lambda one, other: order.compare(order.position(one), order.position(other)))
        )

    sort()
    made = Tiers(memory=1 << 20)
    pager = Pager(Source.from_sequence(kept), made, size=size, keyset=order)
    met: list[int] = []
    stays, ever = set(rows), set(rows)
    page = pager.page()
    while True:
        met += [row["id"] for row in page]
        if page.next_cursor is None:
            break
        gone = data.draw(st.sets(st.integers(0, 40), max_size=2))
        come = data.draw(st.dictionaries(st.integers(21, 40), st.none() | st.integers(-1, 1), max_size=2))
        kept[:] = [row for row in kept if row["id"] not in gone]
        kept += [{"id": number, "a": a} for number, a in come.items() if number not in ever]
        ever |= set(come)
        sort()
        stays -= gone
        page = pager.page(cursor=page.next_cursor)
    assert len(met) == len(set(met)) and stays <= set(met)
    made.close()


def test_bisecting_what_is_not_sorted_is_told(tiers: Tiers) -> None:
    pager = Pager(Source.from_sequence(ROWS), tiers, keyset=ORDER)
    with pytest.raises(LoadError, match="not in the order"):
        pager.page()
    with pytest.raises(ConfigError, match="size"):
        Pager(Source.from_range(Numbers(5)), tiers, keyset=ORDER)


# -- walks, many pages, the next page -------------------------------------------------------


def test_a_walk_reads_each_row_once(tiers: Tiers) -> None:
    numbers = Numbers(10)
    pages = list(Pager(Source.from_range(numbers), tiers, size=4, prefetch=False).pages())
    assert [list(page) for page in pages] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert numbers.calls == [(0, 5), (5, 4), (9, 4)], "the row that told of a next page begins that page"


def test_many_pages_are_loaded_at_once_but_not_too_many(tiers: Tiers) -> None:
    lock, now, most = threading.Lock(), [0], [0]
    both = threading.Barrier(2, timeout=PATIENCE)

    def rows(offset: int, limit: int) -> list[int]:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        both.wait()  # nobody goes on alone
        with lock:
            now[0] -= 1
        return list(range(offset, min(offset + limit, 12)))

    pages = Pager(Source.from_range(rows), tiers, size=2, prefetch=False).load_pages(1, 7, concurrency=2)
    assert [page[0] for page in pages] == [0, 2, 4, 6, 8, 10] and most == [2]


def test_many_pages_are_loaded_at_once_in_a_loop_but_not_too_many(tiers: Tiers) -> None:
    now, most = [0], [0]

    async def rows(offset: int, limit: int) -> list[int]:
        now[0] += 1
        most[0] = max(most[0], now[0])
        await asyncio.sleep(0.01)
        now[0] -= 1
        return list(range(offset, min(offset + limit, 12)))

    pager = Pager(Source.from_range(rows), tiers, size=2, prefetch=False)
    pages = asyncio.run(pager.aload_pages(1, 7, concurrency=3))
    assert [page[0] for page in pages] == [0, 2, 4, 6, 8, 10] and most == [3]


def test_the_first_error_is_raised_and_the_rest_not_begun(tiers: Tiers) -> None:
    calls: list[int] = []

    def rows(offset: int, limit: int) -> list[int]:
        calls.append(offset)
        if offset == 4:
            raise Broken("page 3")
        return list(range(offset, offset + limit))

    pager = Pager(Source.from_range(rows), tiers, size=2, prefetch=False)
    with pytest.raises(Broken, match="page 3"):
        pager.load_pages(1, 1000, concurrency=2)
    assert len(calls) <= 6
    with pytest.raises(Broken, match="page 3"):
        asyncio.run(pager.aload_pages(1, 1000, concurrency=2))
    with pytest.raises(Broken, match="page 3"):
        list(pager.pages())
    with pytest.raises(Broken, match="page 3"):
        pager.page(3)


def test_loading_many_pages_ends_at_the_last_one(tiers: Tiers) -> None:
    numbers = Numbers(5)
    pager = Pager(Source.from_range(numbers), tiers, size=2, prefetch=False)
    assert [list(page) for page in pager.load_pages(1, 10_000)] == [[0, 1], [2, 3], [4]]
    assert len(numbers.calls) < 10
    assert pager.load_pages(7, 9) == [] == pager.load_pages(3, 3)
    for bad in ({"concurrency": 0}, {"size": 0}):
        with pytest.raises(ConfigError):
            pager.load_pages(1, 2, **bad)  # type: ignore[arg-type]


def _until(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


def test_the_next_page_is_read_ahead_once_two_were_asked_for_in_a_row(tiers: Tiers) -> None:
    numbers = Numbers(100)
    pager = Pager(Source.from_range(numbers), tiers, size=10)
    pager.page(1)
    assert tiers.workers.threads == 0 and numbers.calls == [(0, 11)]
    pager.page(2)
    assert _until(lambda: len(numbers.calls) == 3)
    assert numbers.calls[2] == (21, 10), "without the row that is known already"
    assert _until(lambda: pager.page(3).hit), "and page 3 is there"
    assert list(pager.page(3)) == list(range(20, 30))


def test_pages_here_and_there_are_not_read_ahead(tiers: Tiers) -> None:
    numbers = Numbers(100)
    pager = Pager(Source.from_range(numbers), tiers, size=10)
    for number in (5, 1, 3, 9, 7):
        pager.page(number)
    assert tiers.workers.threads == 0 and len(numbers.calls) == 5
    calm = Pager(Source.from_range(Numbers(100)), tiers, size=10, prefetch=False)
    assert len([calm.page(n) for n in range(1, 11)]) == 10
    assert tiers.workers.threads == 0


def test_a_function_that_works_in_its_own_thread_only_is_asked_there_and_reading_ahead_ends(tiers: Tiers) -> None:
    base = sqlite3.connect(":memory:")
    base.execute("CREATE TABLE t (n INTEGER)")
    base.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(100)])
    threads: list[str] = []

    def rows(offset: int, limit: int) -> list[Any]:
        threads.append(threading.current_thread().name)
        return [n for (n,) in base.execute("SELECT n FROM t ORDER BY n LIMIT ? OFFSET ?", (limit, offset))]

    pager = Pager(Source.from_range(rows), tiers, size=5)
    met = []
    for page in pager.pages():
        met += page
        assert _until(lambda: not tiers.workers.queued and not tiers.workers.running)
    base.close()
    assert met == list(range(100))
    elsewhere = [name for name in threads if name != threading.current_thread().name]
    assert len(elsewhere) == 3, "three were read ahead for nothing"


def test_an_error_of_reading_ahead_is_not_the_one_of_who_asks(tiers: Tiers) -> None:
    begun, go = threading.Event(), threading.Event()

    def rows(offset: int, limit: int) -> list[int]:
        if threading.current_thread() is not me:
            begun.set()
            assert go.wait(PATIENCE)
            raise Broken("read ahead")
        return list(range(offset, offset + limit))

    me = threading.current_thread()
    pager = Pager(Source.from_range(rows), tiers, size=5)
    pager.page(1), pager.page(2)
    assert begun.wait(PATIENCE)
    threading.Timer(0.05, go.set).start()
    assert list(pager.page(3)) == [10, 11, 12, 13, 14], "it waited for the one under way, then read itself"


def test_a_forked_child_goes_on_with_the_pager_though_a_lock_was_held(tiers: Tiers) -> None:
    pager = Pager(Source.from_range(Numbers(100)), tiers, size=10)
    pager.page(1)
    pager._ahead._lock.acquire()
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if list(pager.page(2)) == list(range(10, 20)) else 1)
        finally:
            os._exit(2)
    pager._ahead._lock.release()
    end = time.monotonic() + PATIENCE
    while (found := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < end:
        time.sleep(0.01)
    if found == (0, 0):
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert found == (child, 0)


# -- totals ---------------------------------------------------------------------------------


def test_totals_are_none_unless_asked_for(tiers: Tiers) -> None:
    pager = Pager(Source.from_sequence(range(101)), tiers)
    assert pager.page().total_items is None and pager.page().info.total_pages is None
    assert (pager.page(total=True).total_items, pager.page(total=True).total_pages) == (101, 3)
    assert pager.page(total=7).total_items == 7 and pager.page(total=None).total_items is None
    for total in (-1, "many", 1.5):
        with pytest.raises(ConfigError, match="total="):
            pager.page(total=total)
    with pytest.raises(ConfigError, match="does not know"):
        Pager(Source.from_range(Numbers(3)), tiers, total=True).page()


def test_a_total_that_is_counted_is_counted_once_for_each_filter(tiers: Tiers) -> None:
    counted: list[dict[str, Any]] = []

    def count(**filters: Any) -> int:
        counted.append(filters)
        return 99

    async def acount(**filters: Any) -> int:
        return count(**filters) + 1

    pager = Pager(Source.from_range(Numbers(3)), tiers, total=count)
    assert [pager.page(n, user=1).total_items for n in (1, 2, 1)] == [99, 99, 99]
    assert pager.page(user=2).total_items == 99 and counted == [{"user": 1}, {"user": 2}]
    other = Pager(Source.from_range(Numbers(3)).named("other"), tiers)
    assert asyncio.run(other.apage(total=acount)).total_items == 100 == other.page(total=acount).total_items
    assert [page.total_items for page in Pager(Source.from_sequence(range(60)), tiers, total=True).pages()] == [60, 60]


# -- bad input ------------------------------------------------------------------------------


@pytest.mark.parametrize("given_rows", [None, 5, {"a": 1}, "abc", b"abc", range(60)])
def test_a_range_that_gives_no_rows_or_too_many_is_told(tiers: Tiers, given_rows: Any) -> None:
    pager = Pager(Source.from_range(lambda offset, limit: given_rows), tiers)
    with pytest.raises(LoadError, match="gave"):
        pager.page()


@pytest.mark.parametrize("answer", [None, [1, 2, 3], (1, 2), ([1], [2], [3]), (None, None), ("abc", None)])
def test_a_cursor_function_that_gives_no_pair_is_told(tiers: Tiers, answer: Any) -> None:
    with pytest.raises(LoadError, match="gave"):
        Pager(Source.from_cursor(lambda cursor, limit: answer), tiers).page()


def test_a_source_that_gives_its_own_cursor_back_never_ends_and_is_told(tiers: Tiers) -> None:
    pager = Pager(Source.from_cursor(lambda cursor, limit: ([1], "again")), tiers)
    with pytest.raises(LoadError, match="never end"):
        list(pager.pages())


def test_none_is_an_item_like_any_other(tiers: Tiers) -> None:
    pager = Pager(Source.from_range(lambda offset, limit: [None] * min(limit, 4 - offset)), tiers, size=3)
    assert [list(page) for page in pager.pages()] == [[None] * 3, [None]]


def test_iterators_and_arrays_are_rows_too(tiers: Tiers) -> None:
    numpy = pytest.importorskip("numpy")
    pager = Pager(Source.from_range(lambda offset, limit: iter(range(offset, min(5, offset + limit)))), tiers, size=3)
    assert [list(page) for page in pager.pages()] == [[0, 1, 2], [3, 4]]
    array = Pager(Source.from_sequence(numpy.arange(5)), tiers, size=3)
    assert [list(page) for page in array.pages()] == [[0, 1, 2], [3, 4]]


# -- memory ---------------------------------------------------------------------------------

MEMORY_PROBE = """
import json, os, sys
from lazystore.cache.tiers import Tiers
from lazystore.lazy.pages import Pager
from lazystore.lazy.source import Source

budget, pages, row = 8 << 20, 300, 20_000
def rss(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))
def rows(offset, limit):
    return [os.urandom(16) * (row // 16) for _ in range(min(limit, 50 * pages - offset))]
with __import__("contextlib").closing(Tiers(memory=budget)) as tiers:
    pager = Pager(Source.from_range(rows), tiers)
    pager.page(1)
    before, read = rss("VmRSS"), 0
    for page in pager.pages():
        read += sum(map(len, page))
print(json.dumps({"grown": rss("VmHWM") - before, "read": read, "budget": budget}))
"""


@pytest.mark.skipif("LAZYSTORE_SANITIZED" in os.environ, reason="sanitizers keep shadow memory")
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_pages_of_much_more_than_the_budget_keep_to_it() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", MEMORY_PROBE],
        env={**os.environ, "PYTHONPATH": str(Path(lazystore.__file__).parents[1])},
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["read"] >= 290_000_000
    assert found["grown"] <= found["budget"] + (32 << 20), found
    assert done.stderr == ""


def test_two_ways_to_count_are_two_totals() -> None:
    with LazyStore.from_range(lambda offset, limit: list(range(9))[offset : offset + limit]) as store:
        assert store.page(total=lambda: 9).total_items == 9
        assert store.page(total=lambda: 5).total_items == 5


def test_loads_that_load_pages_wait_for_no_thread_of_their_own() -> None:
    def total(store: LazyStore, key: int) -> int:
        source = Source.from_range(lambda offset, limit: list(range(40))[offset : offset + limit]).named(("n", key))
        return sum(sum(page) for page in store.load_pages(1, 5, size=10, source=source))

    async def main() -> list[int]:
        async with LazyStore(concurrency=2) as store:
            loads = [store.aload(("sum", key), partial(total, store, key), "eager") for key in range(6)]
            return await asyncio.wait_for(asyncio.gather(*loads), 30)

    assert asyncio.run(main()) == [780] * 6
