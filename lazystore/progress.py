"""A progress bar that is quiet when nobody watches.

On a terminal: tqdm's bar when the ``progress`` extra is installed, else a plain line now and then.
Anywhere else (pipes, log files, CI): nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TextIO

__all__ = ["Progress"]

#: seconds between two plain lines
LINE_INTERVAL_S = 1.0


class Progress:
    """Progress of one task; a context manager.

    Made, updated and closed by one thread. An update costs a method call when nobody watches; callers
    in hot loops still count in steps.

    Parameters:
        total: units the task has, or None when unknown.
        label: what is being done.
        unit: what is counted, e.g. "files".
        file: where to report; default ``sys.stderr``. Only a terminal gets output.
        clock: seconds, monotonic; for tests.
    """

    def __init__(
        self,
        total: int | None,
        label: str,
        *,
        unit: str = "items",
        file: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.done = 0
        self._total = total
        self._label = label
        self._unit = unit
        self._file = sys.stderr if file is None else file
        self._clock = clock
        self._bar: Any = None
        self._watched = self._file is not None and self._file.isatty()
        self._next_line = clock() + LINE_INTERVAL_S
        if self._watched:
            self._bar = _tqdm_bar(total, label, unit, self._file)

    def update(self, count: int = 1) -> None:
        """``count`` more units are done."""
        self.done += count
        if not self._watched:
            return
        if self._bar is not None:
            self._bar.update(count)
        elif self._clock() >= self._next_line:
            self._next_line = self._clock() + LINE_INTERVAL_S
            self._line()

    def close(self) -> None:
        """End the report; the last state stays on the terminal. Closing twice is fine."""
        if not self._watched:
            return
        self._watched = False
        if self._bar is not None:
            self._bar.close()
        else:
            self._line()

    def _line(self) -> None:
        if self._total:
            share = f"{self.done:,} of {self._total:,} {self._unit} ({self.done / self._total:.0%})"
        else:
            share = f"{self.done:,} {self._unit}"
        self._file.write(f"{self._label}: {share}\n")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _tqdm_bar(total: int | None, label: str, unit: str, file: TextIO) -> Any:
    """tqdm's bar, or None without the package."""
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(total=total, desc=label, unit=f" {unit}", file=file, dynamic_ncols=True, unit_scale=True)
