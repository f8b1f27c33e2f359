"""What a run has done so far, kept beside its chunks so that the same call can go on after a kill.

One small file for the run and one for each task that ended, in the output folder under hidden names; they go
when the dataset is complete. A file appears whole or not at all, so a kill costs the tasks that were running.
"""

from __future__ import annotations

import base64
import bisect
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from lazystore.errors import ConfigError, FormatError
from lazystore.formats.index_writer import part_of
from lazystore.formats.key_writer import KeyTable
from lazystore.parallel.writing.cutting import digest
from lazystore.parallel.writing.tasks import Done

if TYPE_CHECKING:
    from lazystore.formats.chunk_files import Folder

__all__ = ["RUN_NAME", "Checkpoint", "fingerprint"]

#: the run's own file; those of tasks have the number of their first input in the name
RUN_NAME = ".job.json"
_PREFIX = ".job-"
#: how files begin that a kill left half written
_TEMPORARY = "..job"
_VERSION = 1
_HEAD = {"base": str, "before": list, "held": int, "runs": int}
_AGAIN = "to begin again, give mode='overwrite' and no use_checkpoint"


def fingerprint(fn: Callable[..., Any], total: int | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """What two runs must have in common: plain JSON, compared key by key.

    The code of ``fn`` is not looked at, so that a mistake in it can be mended between two runs.
    """
    return {"fn": _name(fn), "number of inputs": total, **{key: _plain(value) for key, value in options.items()}}


def _name(fn: Callable[..., Any]) -> str:
    if isinstance(fn, partial):
        summary = hashlib.blake2b(digest_size=8)
        digest([list(fn.args), fn.keywords], summary.update)
        return f"partial({_name(fn.func)}, {summary.hexdigest()})"
    named = fn if hasattr(fn, "__qualname__") else type(fn)
    return f"{named.__module__}:{named.__qualname__}"


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (str, int, float)):
        return value
    return _name(value) if callable(value) else f"{type(value).__module__}:{type(value).__qualname__}"


class Checkpoint:
    """The records of one run.

    One thread of one process; does not pickle. Two runs must not write to one folder at the same time.

    Parameters:
        folder: the output folder.
        run: this run's fingerprint.

    Attributes:
        records: what tasks gave, by the number of their first input.
        base: identifies the index that was in the folder before the first run, "" for none.
        before: chunk files that were there before the first run.
        held: items that the folder's dataset had before the first run.
        runs: how many there were before this one.
    """

    def __init__(self, folder: Folder, run: Mapping[str, Any]) -> None:
        self._folder = folder
        self._run = dict(run)
        self._firsts: list[int] = []
        self.records: dict[int, Done] = {}
        self.base = ""
        self.before: list[str] = []
        self.held = 0
        self.runs = 0

    def load(self) -> bool:
        """Read what an earlier run left; False if there was none.

        Raises:
            ConfigError: it was another call; says which argument differs.
            FormatError: the records are damaged.
        """
        names = set(self._folder.names())
        if RUN_NAME not in names:
            return False
        found = _object(self._folder.read(RUN_NAME), RUN_NAME)
        self._compare(found)
        self.base, self.before, self.held, self.runs = (found[key] for key in _HEAD)
        for name in sorted(names):
            if name.startswith(_PREFIX):
                done = _done(_object(self._folder.read(name), name), name)
                # A file that was taken away since is made again.
                if names.issuperset(done.files):
                    self.records[done.first] = done
        self._firsts = sorted(self.records)
        return True

    def _compare(self, found: dict[str, Any]) -> None:
        theirs = found.get("arguments")
        sound = all(type(found.get(key)) is kind for key, kind in _HEAD.items())
        if found.get("version") != _VERSION or not sound or not isinstance(theirs, dict):
            raise FormatError(f"{self._folder.url}/{RUN_NAME} is not a run of this version; {_AGAIN}")
        mine: dict[str, Any] = json.loads(json.dumps(self._run))
        for key in sorted(mine.keys() | theirs.keys()):
            if mine.get(key) != theirs.get(key):
                raise ConfigError(
                    f"{self._folder.url} holds an unfinished run with another {key}: {theirs.get(key)!r} then, "
                    f"{mine.get(key)!r} now. Continue with the same arguments; {_AGAIN}"
                )

    def begin(self) -> None:
        """Note a run before its first file appears."""
        head = {"version": _VERSION, "arguments": self._run, "base": self.base, "before": self.before}
        self._write(RUN_NAME, {**head, "held": self.held, "runs": self.runs + 1})

    def add(self, done: Done) -> None:
        """Note what a task gave. Its chunks lie in their places."""
        self._write(f"{_PREFIX}{done.first:012d}.json", done.as_json())

    def clear(self) -> None:
        """Forget the run."""
        names = [name for name in self._folder.names() if name.startswith((_PREFIX, _TEMPORARY))]
        for name in [*names, RUN_NAME]:
            self._folder.delete(name)

    def next_first(self, position: int) -> int | None:
        """First input, from ``position`` on, that an earlier run was through with."""
        at = bisect.bisect_left(self._firsts, position)
        return self._firsts[at] if at < len(self._firsts) else None

    def _write(self, name: str, value: Mapping[str, Any]) -> None:
        self._folder.write(name, [json.dumps(value).encode("ascii")])
        self._folder.settle([name])


def _object(data: bytes, name: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError as error:
        raise FormatError(f"{name} is damaged ({error}); remove it, and what it stood for is written again") from None
    if not isinstance(value, dict):
        raise FormatError(f"{name} is damaged: it is no object; remove it, and what it stood for is written again")
    return value


def _done(value: dict[str, Any], name: str) -> Done:
    try:
        part = value["part"]
        index = {"chunks": part["chunks"], "config": part["config"]}
        whole = replace(part_of(index, place=name), digests=dict(part["digests"]))
        keys = None
        if value["keys"] is not None:
            keys = KeyTable.read([base64.b64decode(value["keys"])], count=whole.count, place=name)
        done = Done(value["first"], value["count"], value["digest"], whole, float(value["fill"]), keys)
        if not (type(done.first) is type(done.count) is int and done.first >= 0 and done.count > 0):
            raise ValueError(f"inputs {done.first!r}, {done.count!r} of them")
        return done
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{name} is damaged ({error!r}); remove it, and what it stood for is written again") from None
