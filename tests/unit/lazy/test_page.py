"""A page is a sequence of its items, with the documents' fields, and links that are right and safe."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Sequence
from typing import Any

import pytest

from lazystore.lazy.page import Page, PageInfo


def a_page(**changes: Any) -> Page[Any]:
    fields = {
        "items": "abc", "page": 3, "page_size": 3, "has_next": True, "has_previous": True, "numbered": True,
        "cursors": (None, "N", "P"), **changes,
    }  # fmt: skip
    return Page(fields.pop("items"), **fields)


def test_a_page_is_a_sequence_of_its_items() -> None:
    page = a_page()
    assert isinstance(page, Sequence)
    assert list(page) == ["a", "b", "c"] and len(page) == 3 and page[0] == "a" and page[-1] == "c"
    assert page[1:] == ["b", "c"] and "b" in page and page.index("c") == 2 and list(reversed(page)) == ["c", "b", "a"]
    assert page.items == ("a", "b", "c")
    assert bool(page) and not a_page(items=())
    with pytest.raises(IndexError):
        page[3]


def test_two_items_unpack_into_items_and_information_comes_from_info() -> None:
    one, other = a_page(items=("x", "y"))
    assert (one, other) == ("x", "y")
    page = a_page()
    data, info = page, page.info
    assert list(data) == ["a", "b", "c"] and info.page == 3


def test_information_has_the_fields_of_the_documents() -> None:
    info = a_page(total_items=8).info
    assert info == PageInfo(3, 3, 8, 3, True, True, None, "N", "P")
    names = [field.name for field in dataclasses.fields(PageInfo)]
    assert names == [
        "page", "page_size", "total_items", "total_pages", "has_next", "has_previous", "cursor", "next_cursor",
        "previous_cursor",
    ]  # fmt: skip


@pytest.mark.parametrize(("total", "pages"), [(None, None), (0, 0), (1, 1), (3, 1), (4, 2), (9, 3)])
def test_total_pages_are_those_that_hold_everything(total: int | None, pages: int | None) -> None:
    assert a_page(total_items=total).total_pages == pages


def test_a_page_as_json_has_the_names_of_the_documents() -> None:
    found = json.loads(json.dumps(a_page(hit=True, loaded=12.5).to_dict()))
    assert found == {
        "data": ["a", "b", "c"], "page": 3, "page_size": 3, "total_items": None, "total_pages": None, "has_next": True,
        "has_previous": True, "cursor": None, "next_cursor": "N", "previous_cursor": "P", "timestamp": 12.5,
        "cache_hit": True,
    }  # fmt: skip


def test_cursors_are_signed_when_they_are_asked_for_and_only_once() -> None:
    signed: list[int] = []

    def sign() -> tuple[str | None, str | None, str | None]:
        signed.append(1)
        return ("C", "N", None)

    page = a_page(cursors=sign)
    assert list(page) and repr(page) == "<Page 3: 3 items>" and not signed
    assert (page.cursor, page.next_cursor, page.previous_cursor) == ("C", "N", None)
    assert page.info.next_cursor == "N" and signed == [1]


def test_a_pickled_page_has_everything_but_what_signs() -> None:
    page = a_page(cursors=lambda: ("C", "N", "P"), hit=True, age=2.0, loaded=5.0, total_items=9)
    copy = pickle.loads(pickle.dumps(page))
    assert copy.info == page.info and copy.items == page.items and copy.to_dict() == page.to_dict()
    assert (copy.hit, copy.age, copy.loaded, copy.numbered) == (True, 2.0, 5.0, True)


def test_links_by_number() -> None:
    links = a_page(total_items=20).links("https://x.example/posts?user=7&page=9&cursor=old")
    at = "https://x.example/posts?user=7&page="
    assert links == {
        "first": f"{at}1&page_size=3", "prev": f"{at}2&page_size=3", "next": f"{at}4&page_size=3",
        "last": f"{at}7&page_size=3",
    }  # fmt: skip
    assert links.header.split(", ") == [f'<{url}>; rel="{relation}"' for relation, url in links.items()]
    assert "last" not in a_page().links("/posts") and a_page().links("/posts")["first"] == "/posts?page=1&page_size=3"


def test_links_say_only_what_is_known() -> None:
    alone = a_page(page=1, has_next=False, has_previous=False, cursors=(None, None, None))
    assert set(alone.links("/p")) == {"first"}
    beyond = a_page(items=(), page=40, has_next=False, total_items=20)
    assert beyond.links("/p")["prev"] == "/p?page=7&page_size=3"
    assert a_page(items=(), total_items=0, has_next=False).links("/p")["last"] == "/p?page=1&page_size=3"


def test_links_by_cursor_have_neither_numbers_nor_last() -> None:
    by_cursor = a_page(cursors=("C", "N-_", "P"), total_items=20)
    expected = {"first": "?page_size=3", "prev": "?cursor=P&page_size=3", "next": "?cursor=N-_&page_size=3"}
    assert by_cursor.links("") == expected
    assert a_page(numbered=False, cursors=(None, "N-_", "P")).links("") == expected


@pytest.mark.parametrize(
    "evil", ["/p>; rel=x", "/a b", '/"x"', "/p\r\nSet-Cookie: a=b", "//h<script>/", "/ä?q=<>&r=\n"]
)
def test_no_base_url_breaks_out_of_the_header(evil: str) -> None:
    header = a_page(cursors=(None, None, None)).links(evil).header
    assert header.count("<") == header.count(">") == 3
    assert not set(header) & set("\r\n") and header.isascii()
    assert header.count('"') == 6 and all(" " not in part.split(">;")[0] for part in header.split(", <"))
