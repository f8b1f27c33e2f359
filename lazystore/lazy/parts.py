"""Parts of an object that are made at their first use.

``functools.cached_property`` of Python 3.11 holds one lock for all objects of a class while it makes a value: a child
forked meanwhile would wait for it for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

__all__ = ["part"]

T = TypeVar("T")


class part(Generic[T]):
    """An attribute that is made at its first use, without a lock: of two made at once one is dropped, unused."""

    def __init__(self, make: Callable[[Any], T]) -> None:
        self._make = make
        self._name = make.__name__
        self.__doc__ = make.__doc__

    @overload
    def __get__(self, owner: None, kind: type) -> part[T]: ...
    @overload
    def __get__(self, owner: object, kind: type) -> T: ...
    def __get__(self, owner: Any, kind: type) -> Any:
        if owner is None:
            return self
        return owner.__dict__.setdefault(self._name, self._make(owner))
