"""``@paginated``: a function that gives rows by position, page number or cursor becomes one that gives pages.

What pages are, how they are cached and how cursors are signed is ``pages.py``'s.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lazystore.cache.keys import Kind
from lazystore.cache.tiers import UNSET
from lazystore.config import whole
from lazystore.errors import ConfigError
from lazystore.lazy.calls import call_name, instance_token, looks_like_method
from lazystore.lazy.decorated import Stored
from lazystore.lazy.numbered import aread_pages, page_numbers, read_pages

if TYPE_CHECKING:
    from lazystore.cache.tiers import Tiers
    from lazystore.lazy.pages import Pager, Pages
    from lazystore.lazy.store import LazyStore

__all__ = ["Paginated", "paginated"]

_SIZES = ("page_size", "size", "per_page", "limit")


class Paginated(Stored):
    """A function that gives a :class:`~lazystore.lazy.Page`. Made by :func:`paginated`.

    Threads: any. Fork: as its store. Pickling: by its name.
    """

    def __init__(
        self, function: Callable[..., Any], *, size: int, max_size: int, mode: str, ttl: Any, store: LazyStore | None
    ) -> None:
        super().__init__(function, store)
        self._signature = inspect.signature(function)
        self._name = call_name(function)
        self._size, self._max_size, self._mode, self._ttl = min(size, max_size), max_size, mode, ttl
        self._asynchronous = inspect.iscoroutinefunction(function)
        self._way = _way_of(function, self._signature, mode)
        self._method = looks_like_method(function, self._signature)
        self._pager: tuple[LazyStore, Pager] | None = None

    def __set_name__(self, owner: type, name: str) -> None:
        self._method = True

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        self._method = self._method or instance is not None
        return super().__get__(instance, owner)

    # -- asking -------------------------------------------------------------------------

    def __call__(
        self, /, *args: Any, page: int | None = None, cursor: str | None = None, size: int | None = None, **kwargs: Any
    ) -> Any:
        """A page; an awaitable of one for a coroutine function.

        Parameters:
            args, kwargs: the function's other arguments.
            page: its number, from 1; cursor: of another page; size: items a page, at most ``max_size``.
        """
        pager, filters = self._ready(args, kwargs)
        if self._mode == "cursor" and page is not None:
            raise ConfigError(f"page={page!r}: {self._name} is paged by cursor: give cursor=page.next_cursor")
        ask = pager.apage if self._asynchronous else pager.page
        return ask(page, cursor=cursor, size=size, **filters)

    def pages(self, *args: Any, size: int | None = None, **kwargs: Any) -> Pages:
        """All pages, under ``for`` and ``async for``."""
        pager, filters = self._ready(args, kwargs)
        return pager.pages(size=size, **filters)

    def invalidate(self, *args: Any, **kwargs: Any) -> bool:
        """Forget its pages, of all arguments and instances. Whether there were any."""
        return self.store._tiers.clear(disk=True, prefix=self._name) > 0

    def stats(self) -> dict[str, Any]:
        """Those of its store."""
        return self.store.stats()

    def _ready(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Pager, dict[str, Any]]:
        """The pager, and the function's other arguments by name."""
        instance = args[0] if self._method and args else None
        if instance is not None:
            args = args[1:]
        names = [name for name in self._signature.parameters if name not in self._way.names][self._method :]
        if len(args) > len(names):
            raise TypeError(f"{self._name} takes {len(names)} arguments besides page, cursor and size, got {len(args)}")
        filters = dict(zip(names, args, strict=False))
        if twice := filters.keys() & kwargs.keys():
            raise TypeError(f"{self._name} got {', '.join(twice)} twice")
        filters |= kwargs
        for name in names:
            parameter = self._signature.parameters[name]
            if parameter.default is not inspect.Parameter.empty:
                filters.setdefault(name, parameter.default)
            elif name not in filters and parameter.kind is not inspect.Parameter.VAR_KEYWORD:
                raise TypeError(f"{self._name} misses argument {name!r}")
        return self._pager_of(instance), filters

    def _pager_of(self, instance: Any) -> Pager:
        from lazystore.lazy.pages import Pager
        from lazystore.lazy.source import Source

        store = self.store
        if instance is None and self._pager is not None and self._pager[0] is store:
            return self._pager[1]
        name, call = self._name, self.__wrapped__
        if instance is not None:
            name, call = f"{name}/{instance_token(instance)}", functools.partial(call, instance)
        read = self._way.reader(call, store._tiers, name, self._size, self._asynchronous)
        source = Source(name, after=read) if self._way.by_cursor else Source(name, range=read)
        pager = Pager(
            source, store._tiers, size=self._size, max_size=self._max_size, ttl=self._ttl, signer=store._signer,
            prefetch=store.options.prefetch != 0, timeout=store.options.timeout,
        )  # fmt: skip
        if instance is None:
            self._pager = store, pager
        return pager

    def __repr__(self) -> str:
        return f"<paginated {self._name}>"


# -- how a function wants to be asked -----------------------------------------------------


class _ByOffset:
    """``function(..., offset, limit)``."""

    by_cursor = False
    names = ("offset", "limit")

    def reader(self, call: Any, tiers: Tiers, name: str, size: int, asynchronous: bool) -> Callable[..., Any]:
        """What reads rows for a pager."""

        def read(offset: int, limit: int, /, **filters: Any) -> Any:
            return call(**filters, offset=offset, limit=limit)

        return read


class _ByCursor:
    """``function(..., cursor, limit)`` that gives rows and the next cursor."""

    by_cursor = True

    def __init__(self, size_name: str) -> None:
        self.names: tuple[str, ...] = ("cursor", size_name)

    def reader(self, call: Any, tiers: Tiers, name: str, size: int, asynchronous: bool) -> Callable[..., Any]:
        """What reads rows for a pager."""

        def read(cursor: Any, limit: int, /, **filters: Any) -> Any:
            return call(**filters, **dict(zip(self.names, (cursor, limit), strict=True)))

        return read


class _ByNumber:
    """``function(..., page, page_size)``, or ``function(..., page)`` with pages of the decorator's size.

    Its pages are cached as they are; whether another follows is known from the first row of the next one, which is
    loaded for that. They are counted from its own default for ``page`` if that is 0, else from 1.
    """

    by_cursor = False

    def __init__(self, size_name: str | None, first: int) -> None:
        self.names: tuple[str, ...] = ("page",) if size_name is None else ("page", size_name)
        self._first = first

    def reader(self, call: Any, tiers: Tiers, name: str, size: int, asynchronous: bool) -> Callable[..., Any]:
        """What reads rows for a pager."""

        def read(offset: int, limit: int, /, **filters: Any) -> Any:
            told = tuple(sorted(filters.items()))

            def asked(number: int) -> tuple[Any, Callable[[], Any]]:
                return (Kind.CALL, name, told, number), functools.partial(self._load, call, number, size, filters)

            def page(number: int) -> list[Any]:
                return _rows(tiers.get(*asked(number)), size, name)

            async def apage(number: int) -> list[Any]:
                return _rows(await tiers.aget(*asked(number)), size, name)

            numbers = page_numbers(offset, limit, size)
            return aread_pages(numbers, apage) if asynchronous else read_pages(numbers, page)

        return read

    def _load(self, call: Any, number: int, size: int, filters: dict[str, Any]) -> Any:
        values = (number + self._first, size)[: len(self.names)]
        return call(**filters, **dict(zip(self.names, values, strict=True)))


def _rows(page: Any, size: int, name: str) -> list[Any]:
    rows = list(page)
    if len(rows) > size:
        raise ConfigError(f"{name} gave {len(rows)} rows for a page of {size}: give the decorator its page size")
    return rows


def _way_of(function: Any, signature: inspect.Signature, mode: str) -> Any:
    parameters = signature.parameters
    size_name = next((name for name in _SIZES if name in parameters), None)
    for parameter in parameters.values():
        if parameter.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL):
            raise ConfigError(f"{function.__qualname__}({parameter}) cannot be called by names, as @paginated does")
        if parameter.name in ("number", "total"):
            raise ConfigError(
                f"{function.__qualname__}({parameter}): pages have a {parameter.name} of their own; rename it"
            )
    if "cursor" in parameters and size_name is not None and mode == "cursor":
        return _ByCursor(size_name)
    if "offset" in parameters and "limit" in parameters:
        return _ByOffset()
    if "page" in parameters:
        return _ByNumber(size_name, 0 if parameters["page"].default == 0 else 1)
    raise ConfigError(
        f"{function.__qualname__}{signature} cannot be paged: it needs parameters (offset, limit), (page, page_size) "
        'or (page), or with mode="cursor" (cursor, limit)'
    )


def paginated(
    size: Any = 50, *, max_size: int = 1000, mode: str = "page", ttl: Any = UNSET, store: LazyStore | None = None
) -> Any:
    """Make a function that gives rows give pages; with or without parentheses.

    Parameters:
        size: items a page where the call does not say.
        max_size: the most items a page; more is clamped.
        mode: "page": asked for by number or by the cursor of another page. "cursor": by cursor only.
        ttl: seconds a page stays fresh; None: for ever. Not given: the store's.
        store: where pages are kept. None: the one that all decorated functions share.

    The function, sync or async, has parameters ``(offset, limit)``; or ``(page, page_size)`` or ``(page)``; or, with
    mode "cursor", ``(cursor, limit)``, and gives ``(rows, next_cursor)`` then. Its other arguments are given in each
    call and are part of the key. Calls take ``page=`` (from 1), ``cursor=`` and ``size=``, and give a
    :class:`~lazystore.lazy.Page`; ``pages(...)`` gives all of them.

    Raises:
        ConfigError: a function that cannot be asked that way; page 0; a size below 1.
    """
    if callable(size):
        return paginated()(size)
    if mode not in ("page", "cursor"):
        raise ConfigError(f"mode={mode!r} is neither 'page' nor 'cursor'")
    for name, value in (("size", size), ("max_size", max_size)):
        whole(name, value)

    def decorate(function: Any) -> Any:
        if isinstance(function, (staticmethod, classmethod)):
            return type(function)(decorate(function.__func__))
        return Paginated(function, size=size, max_size=max_size, mode=mode, ttl=ttl, store=store)

    return decorate
