"""One page: a sequence of its items that knows where it is, what it is part of, and how to go on.

A page is a value: it never loads anything. Pages are made by ``pages``; cursors are signed by ``cursor``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar, overload
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

__all__ = ["Links", "Page", "PageInfo"]

T = TypeVar("T")
#: What a page's ``links`` may put into a query.
_PARAMETERS = ("page", "page_size", "cursor")


@dataclass(frozen=True, slots=True)
class PageInfo:
    """What there is to know about a page besides its items.

    Attributes:
        page: its number, from 1; of a cursor's page the number in its walk; None where nobody knows.
        page_size: items that were asked for, at most the pager's ``max_size``.
        total_items, total_pages: of everything; None unless asked for.
        has_next: whether something comes after it.
        has_previous: whether something comes before it; None where only the source would know.
        cursor: of this page; None of one that was asked for by its number.
        next_cursor, previous_cursor: of its neighbours, where they can be had.
    """

    page: int | None
    page_size: int
    total_items: int | None
    total_pages: int | None
    has_next: bool
    has_previous: bool | None
    cursor: str | None = None
    next_cursor: str | None = None
    previous_cursor: str | None = None


class Links(dict[str, str]):
    """URLs of a page's neighbours by relation ("first", "prev", "next", "last"); only those that are known."""

    @property
    def header(self) -> str:
        """The value of a ``Link`` header (RFC 8288); "" without neighbours."""
        return ", ".join(f'<{url}>; rel="{relation}"' for relation, url in self.items())


class Page(Sequence[T], Generic[T]):
    """The items of one page, in order, with the fields of :class:`PageInfo`.

    Iterating, indexing, slicing and ``len`` are about the items, so that a page does not unpack into data and
    information: ``data, info = page, page.info`` does (and is what ``load_paginated_data`` returns).

    Attributes:
        items: the items, as a tuple; the objects are the cache's own, not copies.
        page, page_size, total_items, has_next, has_previous: as in :class:`PageInfo`.
        hit: it came from the store's cache, nothing was loaded for it. Never of what is its own cache (a sequence).
        age: seconds between its loading and its being asked for; 0.0 of one that was just loaded.
        loaded: wall time of its loading, seconds since 1970.
        numbered: its neighbours can be asked for by number.

    Immutable, but for the cursors, which are signed when first asked for. Pickles (with its cursors).
    """

    __slots__ = (
        "_cursors", "age", "has_next", "has_previous", "hit", "items", "loaded", "numbered", "page", "page_size",
        "total_items",
    )  # fmt: skip

    def __init__(
        self,
        items: Sequence[T],
        *,
        page: int | None,
        page_size: int,
        has_next: bool,
        has_previous: bool | None,
        total_items: int | None = None,
        hit: bool = False,
        age: float = 0.0,
        loaded: float = 0.0,
        numbered: bool = False,
        cursors: Callable[[], tuple[str | None, str | None, str | None]] | tuple[str | None, str | None, str | None],
    ) -> None:
        self.items = tuple(items)
        self.page = page
        self.page_size = page_size
        self.has_next = has_next
        self.has_previous = has_previous
        self.total_items = total_items
        self.hit = hit
        self.age = age
        self.loaded = loaded
        self.numbered = numbered
        self._cursors = cursors

    # -- a sequence ---------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> list[T]: ...

    def __getitem__(self, index: int | slice) -> T | list[T]:
        return list(self.items[index]) if isinstance(index, slice) else self.items[index]

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)

    # -- what it knows ------------------------------------------------------------------

    @property
    def total_pages(self) -> int | None:
        """Pages of this size that hold everything; None unless a total was asked for."""
        return None if self.total_items is None else -(-self.total_items // self.page_size)

    @property
    def cursor(self) -> str | None:
        """The cursor it was asked for by."""
        return self._signed()[0]

    @property
    def next_cursor(self) -> str | None:
        """The cursor of the page after it; None at the end.

        Raises:
            ConfigError: the position does not fit into 512 characters, or has a type that no cursor holds.
        """
        return self._signed()[1]

    @property
    def previous_cursor(self) -> str | None:
        """The cursor of the page before it; None at the beginning, and where it cannot be had. Raises alike."""
        return self._signed()[2]

    def _signed(self) -> tuple[str | None, str | None, str | None]:
        if not isinstance(self._cursors, tuple):
            self._cursors = self._cursors()
        return self._cursors

    @property
    def info(self) -> PageInfo:
        """Everything but the items, as a value. Cost: some microseconds, for three signatures."""
        cursor, following, previous = self._signed()
        return PageInfo(
            self.page, self.page_size, self.total_items, self.total_pages, self.has_next, self.has_previous,
            cursor, following, previous,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """The page as JSON would have it: ``data``, the fields of :class:`PageInfo`, ``timestamp``, ``cache_hit``."""
        return {"data": list(self.items), **asdict(self.info), "timestamp": self.loaded, "cache_hit": self.hit}

    def links(self, base_url: str) -> Links:
        """URLs of the neighbours, as a dict with a ``.header``.

        Parameters:
            base_url: of the collection, absolute or relative; its other query parameters stay, ``page``, ``cursor``
                and ``page_size`` are set. A page that was asked for by number, of a source that has numbers,
                links by number; any other by cursor, with neither numbers nor "last".
        """
        size = self.page_size
        cursor, following, previous = self._signed()
        found = Links()
        if cursor is None and self.numbered:
            assert self.page is not None
            last = self.total_pages
            found["first"] = _with_query(base_url, page=1, page_size=size)
            if self.has_previous:
                before = self.page - 1 if last is None else min(self.page - 1, max(last, 1))
                found["prev"] = _with_query(base_url, page=before, page_size=size)
            if self.has_next:
                found["next"] = _with_query(base_url, page=self.page + 1, page_size=size)
            if last is not None:
                found["last"] = _with_query(base_url, page=max(last, 1), page_size=size)
            return found
        found["first"] = _with_query(base_url, page_size=size)
        for relation, text in (("prev", previous), ("next", following)):
            if text is not None:
                found[relation] = _with_query(base_url, cursor=text, page_size=size)
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        state = {name: getattr(self, name) for name in self.__slots__ if not name.startswith("_") and name != "items"}
        return _rebuilt, (self.items, {**state, "cursors": self._signed()})

    def __repr__(self) -> str:
        of = "" if self.total_pages is None else f" of {self.total_pages}"
        return f"<Page {self.page}{of}: {len(self.items)} items>"


def _rebuilt(items: tuple[Any, ...], state: dict[str, Any]) -> Page[Any]:
    return Page(items, **state)


def _with_query(base_url: str, **parameters: Any) -> str:
    """The URL with these parameters; nothing in it can end the header's ``<...>``, or the header."""
    scheme, netloc, path, query, _ = urlsplit(base_url)
    kept = [(name, value) for name, value in parse_qsl(query, keep_blank_values=True) if name not in _PARAMETERS]
    path, netloc = quote(path, safe="/%:@!$&'()*+,;=~"), quote(netloc, safe="%:@[]!$&'()*+,;=~")
    return urlunsplit((scheme, netloc, path, urlencode([*kept, *parameters.items()]), ""))
