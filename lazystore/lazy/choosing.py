"""Which strategy AUTO takes: from what is known before anything is loaded. Pure; no loader is called to find out."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

from lazystore._core.weigh import weigh
from lazystore.errors import ConfigError
from lazystore.lazy.source import Source
from lazystore.lazy.strategy import DataSize, Strategy

__all__ = ["choose", "is_generator", "strategy_of"]

_BY_SIZE = {
    DataSize.SMALL: Strategy.EAGER,
    DataSize.MEDIUM: Strategy.LAZY,
    DataSize.LARGE: Strategy.CHUNKED,
    DataSize.HUGE: Strategy.STREAMING,
}


def strategy_of(given: Strategy | str) -> Strategy:
    """The strategy of a member, its name or its value, in any case; aliases too.

    Raises:
        ConfigError: there is none of that name.
    """
    if isinstance(given, Strategy):
        return given
    text = str(getattr(given, "value", given))
    found = Strategy.__members__.get(text.upper())
    if found is None:
        raise ConfigError(f"strategy={given!r} is not one of {', '.join(Strategy.__members__)}")
    return found


def choose(what: Any, nbytes: int | None) -> tuple[Strategy, str]:
    """The strategy for a loader or a source, and why.

    Parameters:
        what: a :class:`Source`, or a function without arguments.
        nbytes: the caller's word on its size; None: not known.

    Functions that give a value are EAGER: their size shows once it is loaded, and then it is loaded.
    """
    if nbytes is not None:
        size = DataSize.of(nbytes)
        return _BY_SIZE[size], f"{size.name} by the size given"
    if isinstance(what, Source):
        return _for_source(what)
    if is_generator(what):
        return Strategy.STREAMING, "a generator is read in one pass"
    return Strategy.EAGER, "a function gives its value at once, whatever its size"


def is_generator(function: Any) -> bool:
    """Whether a function is a generator, sync or async: what it gives is read once."""
    while isinstance(function, partial):
        function = function.func
    call = getattr(type(function), "__call__", None)  # noqa: B004 - the method is wanted, not whether there is one
    return any(inspect.isgeneratorfunction(f) or inspect.isasyncgenfunction(f) for f in (function, call))


def _for_source(source: Source) -> tuple[Strategy, str]:
    total = source.size
    if total is None:
        return Strategy.STREAMING, "of unknown size"
    if "bytes" in source.can:
        size = DataSize.of(total)
        return _BY_SIZE[size], f"{size.name}: {total} bytes"
    if not total:
        return Strategy.EAGER, "empty"
    if source.instant:
        size = DataSize.of(max(1, weigh(source.fetch_key(0))) * total)
        return _BY_SIZE[size], f"{size.name}: {total} items like the first"
    return Strategy.CHUNKED, f"{total} items of unknown size"
