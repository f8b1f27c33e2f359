"""Reading the next page ahead: begun by two in a row, ended by three in vain, never in anyone's way."""

from __future__ import annotations

import os
from typing import Any

import pytest

from lazystore.lazy.next_page import PATIENCE, WALKS, NextPages


class Cache:
    """Stands for the tiers: what was started, and whether there is memory."""

    may_speculate = True

    def __init__(self) -> None:
        self.started: list[Any] = []

    def start(self, key: Any, call: Any, *, ttl: Any) -> None:
        self.started.append(key)


@pytest.fixture
def cache() -> Cache:
    return Cache()


@pytest.fixture
def pages(cache: Cache) -> NextPages:
    return NextPages(cache, True)  # type: ignore[arg-type]


def test_only_what_came_after_another_page_is_followed(pages: NextPages) -> None:
    assert not pages.follows(1, 2)
    assert pages.follows(2, 3)
    assert pages.follows(3, None)
    assert not pages.follows(4, 5)  # a jump
    assert not pages.follows(2, 3)  # it came already


def test_walks_are_told_apart_and_the_oldest_are_forgotten(pages: NextPages) -> None:
    for walk in range(WALKS + 1):
        assert not pages.follows((walk, 1), (walk, 2))
    assert not pages.follows((0, 2), None)
    assert all(pages.follows((walk, 2), None) for walk in range(1, WALKS + 1))


def test_three_pages_in_a_row_read_for_nothing_end_it(pages: NextPages, cache: Cache) -> None:
    for number in range(PATIENCE):
        assert pages.enabled
        pages.start(number, list, None)
        assert pages.asked(number, useful=False)
    assert not pages.enabled
    assert cache.started == list(range(PATIENCE))


def test_a_useful_one_begins_the_count_anew(pages: NextPages) -> None:
    for number in range(4 * PATIENCE):
        pages.start(number, list, None)
        pages.asked(number, useful=number % PATIENCE == PATIENCE - 1)
    assert pages.enabled


def test_what_was_not_started_is_not_judged(pages: NextPages) -> None:
    assert not pages.asked("never", useful=False)
    pages.start("once", list, None)
    assert not pages.asked("other", useful=False)
    assert pages.asked("once", useful=True)
    assert not pages.asked("once", useful=False)


def test_nothing_is_started_without_memory_to_speculate_with(pages: NextPages, cache: Cache) -> None:
    cache.may_speculate = False
    pages.start(1, list, None)
    assert not cache.started
    assert not pages.asked(1, useful=False)


def test_keys_that_ask_for_pages_while_they_are_compared_wait_for_nobody(pages: NextPages) -> None:
    class Nosy:
        def __hash__(self) -> int:
            return 1

        def __eq__(self, other: object) -> bool:
            pages.follows("inner", None)
            return self is other

    one, other = Nosy(), Nosy()
    pages.follows("first", one)
    assert not pages.follows(other, None)
    assert pages.follows(one, None)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_finds_the_lock_open(pages: NextPages) -> None:
    pages.start("parents", list, None)
    with pages._lock:  # as another thread of the parent might
        child = os.fork()
        if not child:
            status = 1
            try:
                import threading

                done = threading.Thread(target=pages.follows, args=(1, 2), daemon=True)
                done.start()
                done.join(20)
                status = int(done.is_alive() or pages.asked("parents", useful=False))
            finally:
                os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
