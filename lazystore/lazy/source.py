"""What a store loads from: one small description of any source, and how each kind of thing becomes one.

A source says what it *can* do; it never caches, waits or runs threads. Functions may be ``async``, or return
awaitables: whoever calls a source goes through the bridge (``cache.bridge``).
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import itertools
import marshal
import weakref
from collections.abc import AsyncIterable, Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from lazystore.cache.bridge import close_unawaited, is_async
from lazystore.cache.keys import canonical
from lazystore.config import whole
from lazystore.errors import ConfigError, ItemIndexError, LazyStoreError, LoadError, UnsupportedError
from lazystore.lazy.walks import by_cursor, by_range

if TYPE_CHECKING:
    from lazystore.cache.paged import PagedObject

__all__ = ["AnyIterable", "Source", "as_source", "function_identity", "function_key", "is_stable"]

AnyIterable: TypeAlias = Iterable[Any] | AsyncIterable[Any]

_numbers = itertools.count(1)
_objects: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
_REMEDY = {
    "keys": "LazyStore.from_keys(f) with f(key)",
    "range": "LazyStore.from_range(f) with f(offset, limit), or a sequence",
    "cursor": "LazyStore.from_cursor(f) with f(cursor, limit)",
    "stream": "LazyStore.from_stream(f) with f() giving an iterator",
}


class Source:
    """Where values come from.

    Attributes:
        identity: what tells it from other sources, in cache keys and cursors.
        can: of "keys" (``fetch_key``), "range" (``fetch_range`` of items), "cursor" (``fetch_after``), "stream"
            (``open``), "bytes" (``fetch_range`` counts bytes of one object).
        cached: its own memory holds what it gives: nothing of it is cached again.
        instant: it never waits, so that an event loop may call it directly.

    Not changed once made; safe in threads as far as the functions in it are. Pickles where they do.
    """

    __slots__ = (
        "_after", "_key", "_open", "_opens_at_once", "_range", "_size", "cached", "can", "identity", "instant",
    )  # fmt: skip

    def __init__(
        self,
        identity: Hashable,
        *,
        key: Callable[[Any], Any] | None = None,
        range: Callable[..., Any] | None = None,
        after: Callable[..., Any] | None = None,
        open: Callable[[], Any] | None = None,
        size: int | Callable[[], int] | None = None,
        of_bytes: bool = False,
        cached: bool = False,
        instant: bool = False,
        opens_at_once: bool = False,
    ) -> None:
        self.identity = identity
        self._key, self._range, self._after, self._open, self._size = key, range, after, open, size
        self.cached = cached
        self.instant = instant
        self._opens_at_once = opens_at_once or instant
        found = {"keys": key, "range": range, "cursor": after, "stream": open}
        self.can = frozenset(name for name, function in found.items() if function is not None) | (
            frozenset({"bytes"}) if of_bytes else frozenset()
        )

    @property
    def size(self) -> int | None:
        """Items (bytes of one that can "bytes"), or None where only reading to the end would tell.

        Raises:
            LoadError: the function that tells gave no number. What it raises.
        """
        if not callable(self._size):
            return self._size
        found = self._size()
        if isinstance(found, bool) or not hasattr(found, "__index__") or found < 0:
            close_unawaited(found)
            raise LoadError(f"size= of {self!r} gave a {type(found).__name__}, not a number of {self.unit}")
        return int(found)

    @property
    def is_sized(self) -> bool:
        """Whether it has a :attr:`size`; nobody is asked for it."""
        return self._size is not None

    def is_async(self, ability: str) -> bool:
        """Whether the function behind an ability ("keys", "range", "cursor", "stream") is a coroutine function."""
        functions = {"keys": self._key, "range": self._range, "cursor": self._after, "stream": self._open}
        function = functions[ability]
        return function is not None and is_async(function)

    @property
    def key_function(self) -> Callable[[Any], Any] | None:
        """The function of keys whose values are worth caching; None where there is none."""
        return None if self.cached else self._key

    @property
    def unit(self) -> str:
        """What offsets count: "bytes" or "items"."""
        return "bytes" if "bytes" in self.can else "items"

    def fetch_key(self, key: Any) -> Any:
        """The value of one key, or an awaitable of it."""
        return self._key(key) if self._key is not None else self._cannot("keys", "get one key")

    def fetch_range(self, offset: int, limit: int, **filters: Any) -> Any:
        """At most ``limit`` items (bytes) from ``offset`` on, fewer only at the end; or an awaitable of them."""
        if self._range is None:
            self._cannot("range", "be read by position")
        return self._range(offset, limit, **filters)

    def fetch_after(self, cursor: Any, limit: int, **filters: Any) -> Any:
        """``(items, next_cursor)`` behind a cursor (None: the beginning; None given back: the end), or an awaitable."""
        if self._after is None:
            self._cannot("cursor", "go on from a cursor")
        return self._after(cursor, limit, **filters)

    def named(self, name: Hashable) -> Source:
        """The same under another identity: a text means the same in every process."""
        twin = copy.copy(self)
        twin.identity = name
        return twin

    def open(self) -> AnyIterable:
        """One pass over everything: a sync or async iterable of items (blocks of bytes of one that can "bytes")."""
        if self._open is None:
            self._cannot("stream", "be read in one pass")
        found: AnyIterable = self._open()
        if not isinstance(found, (Iterable, AsyncIterable, Awaitable)) and not hasattr(found, "__getitem__"):
            raise LoadError(f"{self!r} gave a {type(found).__name__} to iterate over, which cannot be iterated over")
        return found

    def load_of_key(self, key: Any) -> Callable[[], Any]:
        """What loads a key, bound: a coroutine function where the source's is one, so that nobody hops to find out."""
        if self._key is None:
            self._cannot("keys", "get one key")
        return partial(self._key, key)

    def load_of_range(self, offset: int, limit: int, **filters: Any) -> Callable[[], Any]:
        """The same of a range."""
        if self._range is None:
            self._cannot("range", "be read by position")
        return partial(self._range, offset, limit, **filters)

    @property
    def opens_at_once(self) -> bool:
        """Whether :meth:`open` runs no code that may block: of what is in memory, and of generators."""
        at_once = (inspect.isgeneratorfunction, inspect.isasyncgenfunction, inspect.iscoroutinefunction)
        return self._opens_at_once or any(test(self._open) for test in at_once)

    def require(self, *abilities: str) -> None:
        """Refuse a source that has none of ``abilities``.

        Raises:
            UnsupportedError: says what it can, and what to make instead.
        """
        if not self.can.intersection(abilities):
            self._cannot(abilities[0], "do this")

    def _cannot(self, ability: str, what: str) -> NoReturn:
        can = ", ".join(sorted(self.can)) or "nothing"
        raise UnsupportedError(f"{self!r} cannot {what} (it can: {can}); make the store by {_REMEDY[ability]}")

    def __repr__(self) -> str:
        return f"Source({self.identity!r}, can={'|'.join(sorted(self.can))})"

    # -- how things become sources ------------------------------------------------------

    @classmethod
    def from_keys(cls, function: Callable[[Any], Any]) -> Source:
        """``function(key)`` gives the value of a key."""
        return cls(_checked(function, "from_keys"), key=function)

    @classmethod
    def from_range(cls, function: Callable[..., Any], *, size: int | Callable[[], int] | None = None) -> Source:
        """``function(offset, limit)`` gives at most ``limit`` items, fewer only at the end; ``size`` items, if known.

        Filters of :meth:`LazyStore.page` are handed on to it by name. A function in place of ``size`` is asked for
        every part, also in event loops: it must not wait.
        """
        identity = _checked(function, "from_range")
        if callable(size):
            if is_async(size):
                raise ConfigError("size= is an async function: give a number, or a function that tells it at once")
        elif size is not None:
            size = whole("size", size, least=0)
        found = cls(
            identity, range=function, size=size, open=lambda: by_range(function, lambda: found.size),
            opens_at_once=is_async(function),
        )  # fmt: skip
        return found

    @classmethod
    def from_cursor(cls, function: Callable[..., Any]) -> Source:
        """``function(cursor, limit)`` gives ``(items, next_cursor)``; None is the first and, given back, the last."""
        return cls(
            _checked(function, "from_cursor"), after=function, open=lambda: by_cursor(function),
            opens_at_once=is_async(function),
        )  # fmt: skip

    @classmethod
    def from_stream(cls, function: Callable[[], AnyIterable] | AnyIterable) -> Source:
        """``function()`` opens a new pass; an iterable stands for itself (an iterator: for one pass only)."""
        if not callable(function) and isinstance(function, (Iterable, AsyncIterable)):
            identity = ("iterable", type(function).__name__, next(_numbers))
            return cls(identity, open=lambda: function, opens_at_once=True)
        return cls(_checked(function, "from_stream"), open=function)

    @classmethod
    def from_sequence(cls, sequence: Sequence[Any]) -> Source:
        """Anything with ``len`` and ``[i]``, slices included: lists, arrays, datasets; never copied."""
        is_memory = isinstance(sequence, (list, tuple, range, str)) or hasattr(sequence, "__array_interface__")
        many = getattr(sequence, "get_many", None)  # of our datasets

        def items(offset: int, limit: int) -> Any:
            stop = min(offset + limit, total())
            return sequence[offset:stop] if many is None else many(range(offset, max(offset, stop)))

        def item(index: int) -> Any:
            if isinstance(index, int) and not -total() <= index < total():
                raise ItemIndexError(f"item {index} is not in 0..{total() - 1} of {type(sequence).__name__}")
            return sequence[index]

        def total() -> int:
            all_ranks = 0 if many is None else getattr(sequence, "total", 0)
            return int(all_ranks or len(sequence))

        def opened() -> Iterable[Any]:
            if hasattr(type(sequence), "__iter__"):
                return sequence
            return map(sequence.__getitem__, range(total()))  # its [i] need not know where it ends

        return cls(
            ("sequence", type(sequence).__name__, next(_numbers)),
            key=item, range=items, open=opened, size=total, cached=True, instant=is_memory, opens_at_once=True,
        )  # fmt: skip

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> Source:
        """Bytes in memory; parts are views of them."""
        view = memoryview(data).cast("B").toreadonly()
        return cls(
            ("bytes", next(_numbers)),
            range=lambda offset, limit: view[offset : offset + limit], open=lambda: (view,), size=len(view),
            of_bytes=True, cached=True, instant=True,
        )  # fmt: skip

    @classmethod
    def from_object(cls, url: str, opened: Callable[[], PagedObject]) -> Source:
        """One stored object, whose pages are cached below; ``opened()`` opens it at first use."""
        return cls(
            ("object", url),
            range=lambda offset, limit: opened().read(offset, limit), open=lambda: opened().blocks(),
            size=lambda: opened().size, of_bytes=True, cached=True,
        )  # fmt: skip


def as_source(given: Any) -> Source:
    """The source of what was given to a store: a sequence, a dataset, bytes, an iterable; not a URL (the store's).

    Raises:
        ConfigError: a function (which of the four constructors says what its arguments are), or no source at all.
    """
    if isinstance(given, Source):
        return given
    if isinstance(given, (bytes, bytearray, memoryview)):
        return Source.from_bytes(given)
    if isinstance(given, Mapping):
        return Source(("mapping", next(_numbers)), key=given.__getitem__, cached=True, instant=type(given) is dict)
    if hasattr(given, "__getitem__") and hasattr(given, "__len__"):
        return Source.from_sequence(given)
    if isinstance(given, (Iterable, AsyncIterable)):
        return Source.from_stream(given)
    if callable(given):
        raise ConfigError(
            f"{function_identity(given)} is a function: say what its arguments are by LazyStore.from_keys(f), "
            "from_range(f), from_cursor(f) or from_stream(f)"
        )
    raise ConfigError(f"source={given!r} is no URL, sequence, dataset, iterable or bytes")


def function_identity(function: Any) -> str:
    """``module.qualified_name`` of a function, partial, bound method or callable object."""
    while hasattr(function, "func") and hasattr(function, "args"):  # functools.partial
        function = function.func
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return f"{getattr(function, '__module__', None) or type(function).__module__}.{name}"


def is_stable(identity: Hashable) -> bool:
    """Whether an identity means the same in the next process: needed before anything is kept on disk under it."""
    return isinstance(identity, str) or (isinstance(identity, tuple) and identity[:1] == ("object",))


def function_key(function: Any) -> Hashable:
    """What tells a function from others: its name, if it is one of a module; else also what it was made of.

    Functions made anew for every call (a function in a function, a lambda) are the same if their code, defaults and
    captured values are; partials if what they bind is; methods if their objects are.
    """
    name = function_identity(function)
    plain = getattr(function, "__qualname__", "")
    if plain and "<" not in plain and not hasattr(function, "__self__") and not name.startswith("__main__."):
        return name
    try:
        return (name, *_made_of(function))
    except TypeError:
        return name, _number_of(function)  # of captured values that have no identity: this very function only


def _made_of(function: Any) -> tuple[Hashable, ...]:
    if isinstance(function, partial):
        bound = tuple((key, _told(value)) for key, value in sorted(function.keywords.items()))
        return ("partial", function_key(function.func), tuple(map(_told, function.args)), bound)
    owner = getattr(function, "__self__", None)
    code = getattr(function, "__code__", None)
    if code is None:
        return ("object", _told(function if owner is None else owner))
    cells = getattr(function, "__closure__", None) or ()
    captured = tuple(_told(cell.cell_contents) for cell in cells if _is_filled(cell))
    defaults = tuple(map(_told, function.__defaults__ or ()))
    named = tuple((key, _told(value)) for key, value in sorted((function.__kwdefaults__ or {}).items()))
    digest = hashlib.blake2b(marshal.dumps(code), digest_size=16).hexdigest()
    return (digest, None if owner is None else _told(owner), captured, defaults, named)


def _told(value: Any) -> Hashable:
    """A value as part of an identity: itself, if other processes could tell it too; else a number of the object.

    Raises:
        TypeError: it has neither.
    """
    if inspect.isroutine(value) or isinstance(value, partial):
        return function_key(value)
    try:
        canonical(value)
    except LazyStoreError:
        return "object", _number_of(value)
    found: Hashable = value
    return found


def _number_of(value: Any) -> int:
    """A number of an object for as long as it lives. Raises TypeError where it has no weak references or no hash."""
    try:
        return _objects[value]
    except KeyError:
        number = _objects[value] = next(_numbers)
        return number


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - asked for its error
    except ValueError:
        return False
    return True


def _checked(function: Any, constructor: str) -> Hashable:
    if not callable(function):
        raise ConfigError(f"LazyStore.{constructor} takes a function, got {function!r}")
    return function_key(function)
