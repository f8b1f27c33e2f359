"""What a caller asked a plan for, checked at the door."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from lazystore.errors import ConfigError
from lazystore.parallel.arguments import Given

__all__ = ["BACKENDS", "MOST_SAMPLES", "Wishes", "whole_number"]

BACKENDS: Final = ("auto", "process", "thread", "serial")
MOST_SAMPLES: Final = 10_000
MOST_TARGET_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Wishes:
    """The arguments of a plan; each is explained where the caller meets it, in ``optimize_streaming``.

    Raises:
        ConfigError: one of them cannot work; the message names it.
    """

    func: Callable[[Any], Any]
    sample_size: int = 5
    target_chunk_duration: float = 0.2
    prefer_ordered: bool | None = None
    buffer_size: int | None = None
    verbose: bool = False
    use_spawn_benchmark: bool = True
    use_chunking_benchmark: bool = True
    n_jobs: int | None = None
    chunksize: int | None = None
    backend: Any = "auto"
    max_buffer_bytes: int | str | None = None
    #: what may be ahead of the consumer, by ``max_buffer_bytes`` or by default
    most_bytes: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        if not callable(self.func):
            raise ConfigError(f"func must be callable, not a {type(self.func).__name__}")
        self._set("sample_size", whole_number("sample_size", self.sample_size, most=MOST_SAMPLES))
        self._set("target_chunk_duration", _seconds("target_chunk_duration", self.target_chunk_duration))
        if self.prefer_ordered not in (None, True, False):
            raise ConfigError(f"prefer_ordered={self.prefer_ordered!r}: give True, False or None")
        if self.buffer_size is not None:
            self._set("buffer_size", whole_number("buffer_size", self.buffer_size))
        given = Given(self.n_jobs, self.chunksize, self.max_buffer_bytes)
        self._set("n_jobs", given.workers or None)
        self._set("chunksize", given.chunk or None)
        self._set("most_bytes", given.bytes)
        if not (hasattr(self.backend, "submit") or (isinstance(self.backend, str) and self.backend in BACKENDS)):
            known = ", ".join(f'"{name}"' for name in BACKENDS)
            raise ConfigError(f"backend={self.backend!r}: give {known} or a concurrent.futures.Executor")
        if self.backend == "serial" and self.n_jobs not in (None, 1):
            raise ConfigError(f'n_jobs={self.n_jobs} and backend="serial" exclude each other')

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


def whole_number(name: str, value: Any, *, most: int | None = None) -> int:
    """``value`` as an int of at least 1.

    Raises:
        ConfigError: it is not.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < 1 or (most is not None and number > most):
        limit = "" if most is None else f" and at most {most}"
        raise ConfigError(f"{name}={value!r} must be a whole number of at least 1{limit}")
    return number


def _seconds(name: str, value: Any) -> float:
    good = isinstance(value, (int, float)) or hasattr(value, "__float__")
    if isinstance(value, bool) or not good or not 0 < float(value) <= MOST_TARGET_S or math.isnan(float(value)):
        raise ConfigError(f"{name}={value!r} must be above 0 and at most {MOST_TARGET_S:.0f} seconds")
    return float(value)
