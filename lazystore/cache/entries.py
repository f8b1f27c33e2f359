"""What the memory tier holds that no user gave it, and the claims of those who are about to store something.

These entries are never fresh as far as the map is concerned, so a hit, which is one call in C, costs nothing for
their being there: whoever misses looks a second time and finds them. The walk itself is not here.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable
from typing import Any, Final

from lazystore._core.cache_map import FOREVER
from lazystore.errors import without_trace

__all__ = ["MISSING", "STALE_NS", "Claim", "Claims", "Failed", "Unused", "same_again"]


class Missing:
    """The type of MISSING: None is a value like any other."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "MISSING"


#: There is no value.
MISSING: Final = Missing()


#: The ``fresh_ns`` of an entry that is stale from the start.
STALE_NS: Final = -1


class Unused:
    """A value that was loaded ahead and that nobody has asked for yet.

    Attributes:
        fresh_until, keep_until: nanoseconds of the monotonic clock; 0 for ever.
        weight: bytes it counts for in the budget.
        asked: somebody did, when it was stale already.
    """

    __slots__ = ("asked", "fresh_until", "keep_until", "value", "weight")

    def __init__(self, value: Any, fresh_until: int, keep_until: int, weight: int) -> None:
        self.value = value
        self.fresh_until = fresh_until
        self.keep_until = keep_until
        self.weight = weight
        self.asked = False

    def fresh_left(self, now: int) -> int:
        """Nanoseconds it stays fresh; FOREVER, or not above 0 when it is stale."""
        return self.fresh_until - now if self.fresh_until else FOREVER

    def keep_left(self, now: int) -> int:
        """The same of how long it is kept."""
        return self.keep_until - now if self.keep_until else FOREVER


class Failed:
    """A remembered error."""

    __slots__ = ("error",)

    #: Bytes it counts for in the budget.
    WEIGHT = 512

    def __init__(self, error: Exception) -> None:
        self.error = without_trace(same_again(error))


def same_again(error: Exception) -> Exception:
    """An error of the same type that says and holds the same, without a traceback, to be raised once more.

    Of one whose class cannot be copied it is the error itself: its traceback then starts anew.
    """
    try:
        found = copy.copy(error)
        same = type(found) is type(error) and str(found) == str(error)
    except Exception:  # noqa: BLE001 - a class may do anything in its constructor; the error itself will do
        same = False
    if not same or found is error:
        return error.with_traceback(None)
    found.__cause__, found.__context__ = error.__cause__, error.__context__
    found.__suppress_context__ = error.__suppress_context__
    return found.with_traceback(None)


class Claim:
    """The intention to store the value of a key, which an invalidation in between overrules.

    Attributes:
        doomed: the value is out of date before it could be stored.
    """

    __slots__ = ("count", "doomed")

    def __init__(self) -> None:
        self.count = 0
        self.doomed = False


class Claims:
    """Who is about to store what. Threads: under the caller's lock."""

    __slots__ = ("_by_key",)

    def __init__(self) -> None:
        self._by_key: dict[Hashable, Claim] = {}

    def enter(self, key: Hashable) -> Claim:
        """A claim, shared by all that hold one for this key since it was last doomed."""
        claim = self._by_key.get(key)
        if claim is None:
            claim = self._by_key[key] = Claim()
        claim.count += 1
        return claim

    def leave(self, key: Hashable, claim: Claim) -> None:
        """What was to be stored is stored, or never will be."""
        claim.count -= 1
        if not claim.count and self._by_key.get(key) is claim:
            del self._by_key[key]

    def doom(self, key: Hashable) -> bool:
        """Whatever is on its way for this key is out of date; says whether anything was."""
        claim = self._by_key.pop(key, None)
        if claim is not None:
            claim.doomed = True
        return claim is not None

    def keys(self) -> list[Hashable]:
        return list(self._by_key)

    def __len__(self) -> int:
        return len(self._by_key)
