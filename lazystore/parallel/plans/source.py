"""Data of any kind, of which the first items were taken to be tried: all of it is still there for who goes on.

What is done with the items: ``sampling``.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Set, ValuesView
from typing import Any, cast

from lazystore.errors import ConfigError
from lazystore.parallel.dataset_items import items_of

__all__ = ["Source"]


class Source:
    """Data of any kind, of which the first items are taken and stay part of it.

    Iterated exactly once for the samples. Who comes first, ``.imap()`` or the caller's own loop over ``data``, goes
    on with that same iterator; who comes later begins anew where the data can be begun anew.

    Parameters:
        given: what the caller handed over.
        ordered: of a dataset that workers read themselves: results are to come in its order.
        by_key: let workers read such a dataset; False: it is iterated like anything else.

    Attributes:
        data: all items, for the caller.
        dataset: the pass that was begun, where workers can read the data themselves.
        items: those that were taken.
        error: what the source raised.
        ended: nothing comes behind ``items`` any more.

    Raises:
        ConfigError: it cannot be iterated.
    """

    def __init__(self, given: Any, *, ordered: bool = True, by_key: bool = True) -> None:
        self.dataset = items_of(given, ordered=ordered) if by_key else None
        try:
            self._iterator: Iterator[Any] = iter(given) if self.dataset is None else self.dataset.items()
        except TypeError as error:
            raise ConfigError(
                f"data={_brief(given)} cannot be iterated; give a list, a generator, a dataset"
            ) from error
        self._given = given
        self._by = ""
        self._once = self._iterator is given
        self.items: list[Any] = []
        self.error: Exception | None = None
        self.ended = False
        self._total = _length(given)
        # What can surely be begun anew is handed back as it is. Of anything else that is iterable (a progress bar
        # around a generator, say) only the first pass is certain, so that one pass goes on from the samples.
        anew = not self._once and (hasattr(given, "__getitem__") or isinstance(given, (Set, ValuesView)))
        self.keeps_items = not anew
        self.data: Any = given if anew else _whole(self, self._once, self._total)

    @property
    def total(self) -> int | None:
        """Items in all, as far as the data says or sampling has seen the end."""
        return len(self.items) if self.ended else self._total

    def pull(self) -> bool:
        """Take one more item to ``items``; False at the end, or where the source raised (kept in ``error``)."""
        try:
            self.items.append(next(self._iterator))
        except StopIteration:
            self.ended = True
        except Exception as error:  # noqa: BLE001 (whatever it is, it is raised in its place by who goes on)
            self.error, self.ended = error, True
        else:
            return True
        return False

    def claim(self, who: str) -> bool:
        """Whether ``who`` goes on from the samples; False: they are gone, and the data is begun anew.

        Raises:
            ConfigError: the data can be iterated only once, and another has begun.
        """
        if not self._by:
            self._by = who
            return True
        if self._once:
            raise ConfigError(
                f"{who}: the data is a {type(self._given).__name__}, which can be iterated only once, and "
                f"{self._by} has begun to; make a new one and a new plan"
            )
        return False

    def release(self) -> None:
        """Who claimed it did not begin after all."""
        self._by = ""

    def rest(self) -> Iterator[Any]:
        """What comes behind the samples; raises what the source raised, in its place."""
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        if not self.ended:
            yield from self._iterator

    def anew(self) -> Iterable[Any]:
        """The data, to be begun once more."""
        return cast("Iterable[Any]", self._given)


class _Whole:
    """Items taken as samples, then the rest; begun anew at every further ``iter``."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __iter__(self) -> Iterator[Any]:
        if not self._source.claim("result.data"):
            return iter(self._source.anew())
        return _all_items(self._source)


class _SizedWhole(_Whole):
    def __init__(self, source: Source, total: int) -> None:
        super().__init__(source)
        self._total = total

    def __len__(self) -> int:
        return self._total


class _Remainder:
    """An iterator over the items taken as samples and then over the rest of an iterator."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._items: Iterator[Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._items is None:
            self._source.claim("result.data")
            self._items = _all_items(self._source)
        return next(self._items)


class _SizedRemainder(_Remainder):
    def __init__(self, source: Source, total: int) -> None:
        super().__init__(source)
        self._left = total

    def __next__(self) -> Any:
        item = super().__next__()
        self._left = max(0, self._left - 1)
        return item

    def __len__(self) -> int:
        return self._left


def _whole(source: Source, once: bool, total: int | None) -> Any:
    if once:
        return _Remainder(source) if total is None else _SizedRemainder(source, total)
    return _Whole(source) if total is None else _SizedWhole(source, total)


def _all_items(source: Source) -> Iterator[Any]:
    taken = source.items
    while taken:
        yield taken.pop(0)  # not kept: it may be large
    yield from source.rest()


def _length(given: Any) -> int | None:
    """Items the data says it has; a hint, never relied upon."""
    try:
        found = operator.length_hint(given, -1)
    except Exception:  # noqa: BLE001 (a length that cannot be had is no reason not to run)
        return None
    return found if found >= 0 else None


def _brief(value: object) -> str:
    return f"a {type(value).__name__}" if value is not None else "None"
