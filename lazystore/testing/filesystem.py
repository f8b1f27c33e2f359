"""A filesystem in memory that misbehaves on purpose: for tests of what reads through fsspec.

    fs = FaultyFileSystem({"set/chunk.bin": data}, latency=0.01, faults=FileFaults(short=0.1, seed=3))
    fs.cat_file("set/chunk.bin", start=10, end=20)

Which calls go wrong is decided in ``faults.py``. For faults of a real connection (cut bodies, 503s)
use the object store instead.
"""

from __future__ import annotations

import asyncio
import datetime
import io
import math
import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fsspec.asyn import AsyncFileSystem
from fsspec.spec import AbstractBufferedFile

from lazystore.errors import ConfigError
from lazystore.testing.faults import Decision, FaultPlan, FileFaults

__all__ = ["Call", "FaultyFileSystem"]

#: Calls that the log remembers.
MAX_LOG = 65_536

#: The operations that faults and the log know.
OPERATIONS = ("cat_file", "info", "ls")
#: Faults of bytes: they only make sense where bytes are returned.
BYTE_FAULTS = frozenset({"short", "extra"})

_FIRST_MTIME = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)


@dataclass(slots=True)
class Call:
    """One call as the filesystem saw it.

    Attributes:
        op: "cat_file", "info" or "ls".
        path: without protocol.
        start, end: the range asked for, as it was given; None where nothing was given.
        began, finished: the event loop's clock, seconds; ``finished`` is None while under way.
        fault: the fault injected, or "".
        returned: bytes returned by cat_file; -1 when it returned none.
    """

    op: str
    path: str
    start: int | None
    end: int | None
    began: float
    finished: float | None = None
    fault: str = ""
    returned: int = -1


@dataclass(slots=True)
class _File:
    data: bytes
    version: int


class FaultyFileSystem(AsyncFileSystem):  # type: ignore[misc]
    """An asynchronous fsspec filesystem over a dictionary, with latency, faults and a call log.

    Args:
        files: bytes by path ("folder/name", no protocol, no leading slash). Copied.
        latency: seconds before each answer; calls wait at the same time, not one after the other.
        jitter: sigma of a lognormal factor on the latency; 0: none.
        faults: one set for all operations, or by operation ("cat_file", "info", "ls").
        seed: chooses the jitter; each set of faults has its own seed.
        kwargs: for fsspec (``asynchronous``, ``loop``, ...).

    Attributes:
        calls: the latest 65,536 calls, oldest first.
        in_flight, peak_concurrent: calls under way, and the most there ever were.

    Raises:
        ConfigError: faults for an operation that is not known.

    Never cached by fsspec: two with the same arguments are two filesystems. Calls run on fsspec's loop
    (or the given one); ``change`` and ``calls`` may be used from any thread between calls. Pickles as
    its arguments: counts, log and changes stay behind.
    """

    protocol = "faulty"
    cachable = False
    async_impl = True
    root_marker = ""

    def __init__(
        self,
        files: Mapping[str, bytes] | None = None,
        *,
        latency: float = 0.0,
        jitter: float = 0.0,
        faults: FileFaults | Mapping[str, FileFaults] | None = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._files = {path.strip("/"): _File(bytes(data), 0) for path, data in (files or {}).items()}
        self._latency = latency
        self._jitter = jitter
        self._random = random.Random(seed)
        self._faults = _by_operation(faults)
        self._plans: dict[str, FaultPlan] = {op: chosen.plan() for op, chosen in self._faults.items()}
        self.calls: deque[Call] = deque(maxlen=MAX_LOG)
        self.in_flight = 0
        self.peak_concurrent = 0

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        stripped = super()._strip_protocol(path)
        return [p.lstrip("/") for p in stripped] if isinstance(stripped, list) else stripped.lstrip("/")

    def change(self, path: str, data: bytes | None = None) -> None:
        """Replace a file's bytes, or only its etag and mtime when ``data`` is None.

        Raises:
            FileNotFoundError: there is no such file.
        """
        file = self._file(self._strip_protocol(path))
        if data is not None:
            file.data = bytes(data)
        file.version += 1
        self.invalidate_cache()

    def fault_counts(self) -> dict[str, int]:
        """Injected faults by kind, as far as the log reaches."""
        counts: dict[str, int] = {}
        for call in self.calls:
            if call.fault:
                counts[call.fault] = counts.get(call.fault, 0) + 1
        return counts

    # -- what fsspec calls

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        path = self._strip_protocol(path)
        call, decision = self._begin("cat_file", path, start, end)
        try:
            await self._mishap(call, decision)
            data = self._file(path).data
            wanted = data[start:end]
            if decision.kind == "short" and wanted:
                call.fault = "short"
                wanted = wanted[: int(len(wanted) * decision.fraction)]
            elif decision.kind == "extra" and len(wanted) < len(data):
                call.fault = "extra"
                wanted = data
            call.returned = len(wanted)
            return wanted
        finally:
            self._finish(call)

    async def _info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        call, decision = self._begin("info", path, None, None)
        try:
            await self._mishap(call, decision)
            if path in self._files:
                return self._describe(path)
            if self._children(path):
                return _folder(path)
            raise FileNotFoundError(path)
        finally:
            self._finish(call)

    async def _ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        path = self._strip_protocol(path)
        call, decision = self._begin("ls", path, None, None)
        try:
            await self._mishap(call, decision)
            if path in self._files:
                found = [self._describe(path)]
            else:
                found = self._children(path)
                if not found and path:
                    raise FileNotFoundError(path)
            return found if detail else [entry["name"] for entry in found]
        finally:
            self._finish(call)

    async def _get_file(self, rpath: str, lpath: str, **kwargs: Any) -> None:
        data = await self._cat_file(rpath)
        with open(lpath, "wb") as file:
            file.write(data)

    async def _pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        path = self._strip_protocol(path)
        if mode == "create" and path in self._files:
            raise FileExistsError(path)
        old = self._files.get(path)
        self._files[path] = _File(bytes(value), old.version + 1 if old else 0)

    async def _rm_file(self, path: str, **kwargs: Any) -> None:
        path = self._strip_protocol(path)
        self._file(path)
        del self._files[path]

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        if mode != "rb":
            raise io.UnsupportedOperation(f"mode {mode!r}: use pipe_file() to write")
        return _FaultyFile(self, path, mode, **kwargs)

    # -- shared steps

    def _begin(self, op: str, path: str, start: int | None, end: int | None) -> tuple[Call, Decision]:
        call = Call(op, path, start, end, asyncio.get_running_loop().time())
        self.calls.append(call)
        self.in_flight += 1
        self.peak_concurrent = max(self.peak_concurrent, self.in_flight)
        plan = self._plans.get(op)
        return call, plan.draw(path, op, start, end) if plan is not None else Decision("", 0.0)

    def _finish(self, call: Call) -> None:
        self.in_flight -= 1
        call.finished = asyncio.get_running_loop().time()

    async def _mishap(self, call: Call, decision: Decision) -> None:
        """Let the latency pass, then carry out the faults that have nothing to do with bytes."""
        delay = self._latency
        if delay and self._jitter:
            delay *= math.exp(self._random.gauss(0.0, self._jitter))
        if delay:
            await asyncio.sleep(delay)
        kind = decision.kind
        if not kind or kind in BYTE_FAULTS:
            return
        if kind == "changed":
            if call.path in self._files:
                call.fault = kind
                self._files[call.path].version += 1
            return
        call.fault = kind
        if kind == "stall":
            await asyncio.Event().wait()
        if kind == "cancelled":
            raise asyncio.CancelledError(f"injected into {call.op} of {call.path}")
        errors = self._faults[call.op].errors
        raise errors[int(decision.fraction * len(errors))](f"injected into {call.op} of {call.path}")

    def _file(self, path: str) -> _File:
        try:
            return self._files[path]
        except KeyError:
            raise FileNotFoundError(path) from None

    def _describe(self, path: str) -> dict[str, Any]:
        file = self._files[path]
        return {
            "name": path,
            "size": len(file.data),
            "type": "file",
            "ETag": f'"{file.version:x}"',
            "mtime": _FIRST_MTIME + datetime.timedelta(seconds=file.version),
        }

    def _children(self, folder: str) -> list[dict[str, Any]]:
        base = folder + "/" if folder else ""
        found: dict[str, dict[str, Any]] = {}
        for path in self._files:
            if path.startswith(base):
                name, below, _ = path[len(base) :].partition("/")
                full = base + name
                found[full] = _folder(full) if below else self._describe(full)
        return [found[name] for name in sorted(found)]


class _FaultyFile(AbstractBufferedFile):  # type: ignore[misc]
    """Reads through the filesystem's ``cat_file``, faults included."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        data: bytes = self.fs.cat_file(self.path, start=start, end=end)
        return data


def _folder(path: str) -> dict[str, Any]:
    return {"name": path, "size": 0, "type": "directory"}


def _by_operation(faults: FileFaults | Mapping[str, FileFaults] | None) -> dict[str, FileFaults]:
    if faults is None:
        return {}
    if isinstance(faults, FileFaults):
        return dict.fromkeys(OPERATIONS, faults)
    unknown = sorted(set(faults) - set(OPERATIONS))
    if unknown:
        raise ConfigError(f"faults for {unknown[0]!r}: known operations are {', '.join(OPERATIONS)}")
    return dict(faults)
