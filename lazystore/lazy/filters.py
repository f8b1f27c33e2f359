"""Filters of a query as parts of cache keys and cursors: equal ones alike, whatever order they were given in."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from lazystore.cache.keys import canonical
from lazystore.errors import ConfigError, UnhashableKeyError

__all__ = ["bound", "frozen"]


def frozen(filters: Any) -> Hashable:
    """Filters, and the dicts, lists and sets in them, as a hashable value.

    Raises:
        UnhashableKeyError: something else in them is not hashable.
    """
    if isinstance(filters, dict):
        return ("dict", frozenset([(name, frozen(one)) for name, one in filters.items()])) if filters else ()
    if isinstance(filters, (list, tuple)):
        return ("list", *[frozen(one) for one in filters])  # no list looks like a dict
    if isinstance(filters, (set, frozenset)):
        return frozenset([frozen(one) for one in filters])
    try:
        hash(filters)
    except TypeError:
        kind = type(filters).__name__
        raise UnhashableKeyError(
            f"a filter of type {kind} is not hashable, so that its pages cannot be found again"
        ) from None
    found: Hashable = filters
    return found


def bound(part: Hashable) -> bytes:
    """Bytes of something that a cursor is bound to.

    Other processes make the same of what they understand; of anything else (a lambda) it is the hash, good in this one.
    """
    try:
        return canonical(part)
    except ConfigError:
        return canonical(hash(part))
