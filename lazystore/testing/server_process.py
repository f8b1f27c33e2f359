"""A local server in a process of its own: starting it, asking its control URLs, ending it.

What it serves is the business of its module, which prints the server's URL once it listens; the
handles that users hold (``objectstore.py``, ``hub.py``) are made on this.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from lazystore.errors import ClosedError, ConfigError, LazyStoreError

__all__ = ["UNSET", "ServerProcess", "Unset"]

CONTROL_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0

# What `-m MODULE` does, with the lazystore that is running here: found behind the standard library and
# before anything installed.
_BOOT = """
import runpy, sys
module, home = sys.argv.pop(1), sys.argv.pop(1)
after = [i for i, path in enumerate(sys.path) if path.endswith(("site-packages", "dist-packages"))]
sys.path.insert(after[0] if after else len(sys.path), home)
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


class Unset:
    """Tells "leave it as it is" from None, which lifts a limit."""


UNSET: Final = Unset()


class ServerProcess:
    """The process that runs ``module`` as a program; a context manager.

    Args:
        module: dotted name; run with ``arguments``, it prints one line once it listens.
        arguments: command line.
        noun: what messages call it.
        start_timeout: seconds to wait for that line.

    Ends with :meth:`close`, and by itself when this process goes away: its stdin is a pipe of ours.
    A forked child may use it, and its ``close()`` leaves the server alone. Not to be pickled.
    """

    def __init__(self, module: str, arguments: Sequence[str], *, noun: str, start_timeout: float) -> None:
        self._module = module
        self._arguments = list(arguments)
        self._noun = noun
        self._start_timeout = start_timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._line = ""

    def start(self) -> Self:
        """Start the process and wait until it listens; returns the handle itself.

        Raises:
            ConfigError: it was started before.
            LazyStoreError: the process did not come up.
        """
        if self._process is not None:
            raise ConfigError(f"this {type(self).__name__} is already started; make another one")
        # -P: whatever lies in the working directory must not shadow the standard library.
        package_home = str(Path(__file__).resolve().parents[2])
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOT, self._module, package_home, *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,  # Ctrl-C is for the caller, who may still want to read
        )
        self._owner = os.getpid()
        try:
            self._line = self._first_line(self._process)
        except BaseException:
            self.close()
            raise
        return self

    def _first_line(self, process: subprocess.Popen[bytes]) -> str:
        assert process.stdout is not None
        deadline = time.monotonic() + self._start_timeout
        line = b""
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                raise LazyStoreError(f"the {self._noun} did not start within {self._start_timeout:g} s")
            piece = os.read(process.stdout.fileno(), 4096)
            if not piece:
                raise LazyStoreError(f"the {self._noun} ended before it listened; its stderr says why")
            line += piece
        return line.decode().strip()

    def _announced(self) -> str:
        """The line that the server printed.

        Raises:
            ClosedError: it is not running.
        """
        if not self._line:
            raise ClosedError(f"the {type(self).__name__} is not running; use it as a context manager or call start()")
        return self._line

    @property
    def pid(self) -> int:
        """Process id of the server."""
        self._announced()
        assert self._process is not None
        return self._process.pid

    def _control(self, url: str, method: str, verb: str, values: dict[str, Any] | None = None) -> dict[str, Any]:
        # No proxy: environments that set one would send the control request elsewhere.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        body = None if method == "GET" else json.dumps(values or {}).encode()
        request = urllib.request.Request(f"{url}/-/{verb}", data=body, method=method)
        try:
            with opener.open(request, timeout=CONTROL_TIMEOUT_S) as answer:
                result: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                message = error.read().decode(errors="replace").strip()
            raise ConfigError(f"the {self._noun} at {url} refused {verb}: {message}") from None
        except OSError as error:
            raise LazyStoreError(f"the {self._noun} at {url} does not answer: {error}") from error
        return result

    def close(self) -> None:
        """Stop the server; open connections are dropped. Closing twice is harmless."""
        process, self._process = self._process, None
        self._line = ""
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        if os.getpid() != self._owner:
            return  # a forked child: the server belongs to the parent
        process.terminate()  # not only by its stdin: forked children may hold the other end open
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError(f"{self!r} is tied to its process and cannot be pickled; send its url instead")
