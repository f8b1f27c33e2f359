"""Numbers that `imap`, its async twin and its plans are given, checked at the door."""

from __future__ import annotations

import contextlib
import functools
import operator
from collections.abc import AsyncIterable, Iterable
from typing import Any, Final, SupportsFloat, SupportsIndex

from lazystore.config import memory_limit, parse_bytes
from lazystore.errors import ConfigError

__all__ = ["Given", "length_of"]

#: bytes ahead of the consumer, unless given: a share of memory, and no more than this
MOST_BYTES: Final = 256 << 20


@functools.lru_cache(maxsize=1)
def _memory() -> int:
    """Looked up once: it takes longer than a short run."""
    return memory_limit()


class Given:
    """Numbers of a call, checked."""

    def __init__(
        self,
        n_jobs: int | None = None,
        chunksize: int | None = None,
        max_buffer_bytes: int | str | None = None,
        retries: int = 0,
        timeout: float | None = None,
        total: int | None = None,
    ) -> None:
        self.workers = _count("n_jobs", n_jobs)
        self.chunk = _count("chunksize", chunksize)
        self.bytes = (
            min(MOST_BYTES, _memory() // 8)
            if max_buffer_bytes is None
            else parse_bytes(max_buffer_bytes, name="max_buffer_bytes")
        )
        if not _is_count(retries, 0):
            raise ConfigError(f"retries={retries!r}: give a number of times, 0 or more")
        self.retries = operator.index(retries)
        if timeout is not None and not (_is_number(timeout) and 0 < float(timeout) < float("inf")):
            raise ConfigError(f"timeout={timeout!r}: give seconds above zero, or None")
        self.timeout = None if timeout is None else float(timeout)
        if total is not None and not _is_count(total, 0):
            raise ConfigError(f"total={total!r}: give a number of items, 0 or more")
        self.total = None if total is None else operator.index(total)


def _count(name: str, value: int | None) -> int:
    if value is None:
        return 0
    if not _is_count(value, 1):
        raise ConfigError(f"{name}={value!r}: give 1 or more, or None to have it chosen")
    return operator.index(value)


def _is_count(value: object, least: int) -> bool:
    return not isinstance(value, bool) and isinstance(value, SupportsIndex) and operator.index(value) >= least


def _is_number(value: object) -> bool:
    return not isinstance(value, (bool, str)) and isinstance(value, SupportsFloat)


def length_of(data: Iterable[Any] | AsyncIterable[Any], before: int = 0) -> int | None:
    """Items in all, where the data tells; a hint, not to be relied on."""
    with contextlib.suppress(Exception):
        length = operator.length_hint(data, -1)
        return None if length < 0 else length + before
    return None
