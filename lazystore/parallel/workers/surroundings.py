"""What of the calling process a worker shares so that functions find the same world: directory, paths, environment.

It travels with every job, because workers outlive the calls they were started for and a program may move in between.
How workers start is in ``launch``; what becomes of ``__main__`` in a worker is decided by ``worker_main``.
"""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass

from lazystore.parallel.workers.inner_threads import OURS

__all__ = ["Surroundings"]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The calling process as functions see it.

    Attributes:
        directory: working directory; "" where it no longer exists.
        path: ``sys.path``.
        arguments: ``sys.argv``.
        variables: ``os.environ``.
        main: how the caller's ``__main__`` can be imported: ("name", module), ("path", file), or ("", "") where it
            cannot (an interactive session, ``python -c``, a notebook, a ``__main__.py``).
    """

    directory: str
    path: list[str]
    arguments: list[str]
    variables: dict[str, str]
    main: tuple[str, str]

    @classmethod
    def capture(cls) -> Surroundings:
        """Those of this process, now; 50 us."""
        directory = _directory()
        # "" in sys.path stands for the working directory
        path = [entry or directory for entry in sys.path if isinstance(entry, str)]
        return cls(directory, path, list(getattr(sys, "argv", [])), dict(os.environ), _main_module())

    def apply(self) -> None:
        """Make them those of this process; what already is as it should be is left alone."""
        if self.directory and self.directory != _directory():
            # a directory that was removed meanwhile is gone for the caller, too
            with contextlib.suppress(OSError):
                os.chdir(self.directory)
        if sys.path != self.path:
            sys.path[:] = self.path
        sys.argv[:] = self.arguments
        self._apply_variables()

    def _apply_variables(self) -> None:
        """Set the environment, except for what lazystore itself put into this worker's to limit inner threads."""
        ours = [name for name in os.environ.get(OURS, "").split(",") if name and name not in self.variables]
        kept = {name: os.environ[name] for name in ours if name in os.environ}
        if OURS in os.environ:
            kept[OURS] = ",".join(ours)
        wanted = self.variables | kept
        if os.environ == wanted:
            return
        for name in set(os.environ) - set(wanted):
            del os.environ[name]
        for name, value in wanted.items():
            if os.environ.get(name) != value:
                os.environ[name] = value


def _directory() -> str:
    try:
        return os.getcwd()
    except OSError:
        return ""


def _main_module() -> tuple[str, str]:
    """The way to import ``__main__``, by the rules of multiprocessing's spawn."""
    main = sys.modules.get("__main__")
    name = getattr(getattr(main, "__spec__", None), "name", None)
    if isinstance(name, str):
        # a package's or directory's __main__.py runs its program whoever imports it, so spawn leaves it alone
        return ("", "") if name.rpartition(".")[2] == "__main__" else ("name", name)
    file = getattr(main, "__file__", None)
    if isinstance(file, str):
        path = os.path.abspath(file) if os.path.isabs(file) or _directory() else file
        if os.path.exists(path):  # it is "<stdin>" for a program that is piped in
            return "path", path
    return "", ""
