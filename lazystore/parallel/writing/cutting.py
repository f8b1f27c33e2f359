"""Inputs cut into tasks: contiguous, in order, large enough for full chunks and small enough for balance.

Sizes are arithmetic on what earlier tasks gave, never on the clock: the same inputs and the same number of
workers give the same tasks. No task is run here.
"""

from __future__ import annotations

import hashlib
import itertools
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from lazystore.errors import ConfigError

__all__ = ["Cutter", "known_tasks", "task_size"]

#: inputs of each of the first tasks, which show how much one input gives
FIRST_TASK = 64

#: a task gives at most this many chunks: its last one is short, and a worker's death costs this much work
MOST_CHUNKS = 4

#: and, where there are few chunks for many workers, at least this part of one
LEAST_CHUNK = 0.25

#: tasks a worker, where the number of inputs is known
SHARES = 4

#: tasks between the first unfinished one and the last begun, per worker
AHEAD = 3

#: bounds on what waits in memory for a worker, whatever the outputs are
MAX_INPUTS = 1 << 18
MAX_BYTES = 16 << 20

#: inputs taken at a time, at most; the first time one, then more as they turn out to be small
SLICE = 4096
SLICE_BYTES = 1 << 20

#: seconds between two looks at the workers while inputs are iterated
LOOK_S = 0.05


def known_tasks(number: int, workers: int) -> int:
    """How many of the first tasks must be done before task ``number`` is cut; their outputs decide its size.

    >>> [known_tasks(n, 2) for n in range(9)]
    [0, 0, 1, 1, 1, 1, 1, 2, 3]
    """
    return 0 if number < workers else max(1, number - AHEAD * workers + 1)


def task_size(inputs: int, fill: float, *, workers: int, total: int | None) -> int:
    """Inputs for the next task.

    Parameters:
        inputs, fill: how many inputs earlier tasks had, and how many chunks they filled (1.5: one and a half).
        total: all inputs, if known.
    """
    if not inputs:
        return FIRST_TASK if total is None else min(FIRST_TASK, max(1, total // (AHEAD * SHARES * workers)))
    chunk = min(inputs / fill, MAX_INPUTS) if fill else MAX_INPUTS
    # When nobody knows how many inputs come, a task is no larger than all before it, so that the last ones balance.
    share = inputs if total is None else total / (SHARES * workers)
    size = min(max(share, LEAST_CHUNK * chunk), MOST_CHUNKS * chunk)
    if total is not None:
        size = min(size, -(-total // workers))
    return max(1, min(MAX_INPUTS, int(size)))


class Cutter:
    """Takes inputs from any iterable, in order.

    Holds no input but the slices it hands out. One thread; does not pickle.

    Parameters:
        inputs: sequences of the kinds list, tuple and range are sliced, all else is iterated once.
        pack: turns ``(inputs, number of the first)`` into what a task carries, and its bytes in memory.
        digests: keep a digest of each task's inputs, see :func:`digest`.
        meanwhile: called now and then while inputs are iterated.
    """

    def __init__(
        self,
        inputs: Iterable[Any],
        pack: Callable[[Sequence[Any], int], tuple[Any, int]],
        *,
        digests: bool = False,
        meanwhile: Callable[[], object] = int,
    ) -> None:
        self._sliced = inputs if isinstance(inputs, (list, tuple, range)) else None
        self._rest: Iterator[Any] = iter(()) if self._sliced is not None else iter(inputs)
        self._pack = pack
        self._digests = digests
        self._meanwhile = meanwhile
        self._next_look = 0.0
        self._step = 1
        #: number of the next input
        self.position = 0
        #: of the inputs last taken; "" without ``digests``
        self.digest = ""

    def take(self, size: int) -> list[Any]:
        """Up to ``size`` inputs, packed in slices; fewer when they are large, none at the end.

        Raises:
            ConfigError: an input cannot be packed.
            Exception: whatever the iterable raises.
        """
        parcels: list[Any] = []
        held = 0
        summary = hashlib.blake2b(digest_size=16)
        while size > 0 and held < MAX_BYTES:
            found = self._slice(min(size, self._step))
            if not len(found):
                break
            parcel, nbytes = self._pack(found, self.position)
            if self._digests:
                for value in found:
                    digest(value, summary.update)
            parcels.append(parcel)
            held += nbytes
            size -= len(found)
            self.position += len(found)
            # so many of this kind in the next slice
            room = SLICE_BYTES * len(found) // max(nbytes, 1)
            self._step = max(1, min(SLICE, 2 * self._step, room))
        self.digest = summary.hexdigest() if self._digests else ""
        return parcels

    def skip(self, count: int) -> str:
        """Pass over inputs that were worked on before; their digest.

        Raises:
            ConfigError: there are not so many.
        """
        summary = hashlib.blake2b(digest_size=16)
        end = self.position + count
        while self.position < end:
            found = self._slice(min(end - self.position, SLICE))
            if not len(found):
                raise ConfigError(
                    f"the run to continue had at least {end} inputs, now there are {self.position}; "
                    "continue with the same inputs"
                )
            for value in found:
                digest(value, summary.update)
            self.position += len(found)
        return summary.hexdigest()

    def _slice(self, most: int) -> Sequence[Any]:
        if self._sliced is not None:
            return self._sliced[self.position : self.position + most]
        found = []
        for value in itertools.islice(self._rest, most):
            found.append(value)
            # Inputs may come slowly, and workers get through with their tasks meanwhile.
            if time.monotonic() >= self._next_look:
                self._meanwhile()
                self._next_look = time.monotonic() + LOOK_S
        return found


def digest(value: Any, update: Callable[[bytes], object]) -> None:
    """Feed what identifies an input to a hash: contents of plain values, the type's name of all others.

    Pickles and reprs are no use here: both may differ between two runs for one and the same value.
    """
    kind = type(value)
    if kind is str:
        data = value.encode("utf-8", "surrogatepass")
        update(b"s%d:" % len(data) + data)
    elif kind is int or kind is bool or value is None:
        update(b"i%r;" % value)
    elif kind is float:
        update(b"f" + struct.pack("<d", value))
    elif kind is bytes:
        update(b"b%d:" % len(value) + value)
    elif kind in (list, tuple):
        update(b"l%d:" % len(value))
        for element in value:
            digest(element, update)
    elif kind is dict:
        update(b"d%d:" % len(value))
        for key, element in value.items():
            digest(key, update)
            digest(element, update)
    elif hasattr(value, "__fspath__"):
        digest(value.__fspath__(), update)
    else:
        update(f"o{kind.__module__}.{kind.__qualname__};".encode())
