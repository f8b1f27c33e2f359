"""Who is still there: processes are marked by an environment variable that their children inherit."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

from support.scripts import PATHS

MARK = "LAZYSTORE_TEST_FAMILY"


class Family:
    """A Python script and all processes that come of it, orphans included.

    Parameters:
        script: the code.
        arguments: for it.
        seconds: after so long it is killed.
    """

    def __init__(self, script: str | Path, *arguments: object, seconds: float = 60.0) -> None:
        self.mark = uuid.uuid4().hex
        self.seconds = seconds
        what = [str(script)] if isinstance(script, Path) else ["-c", script]
        self.process = subprocess.Popen(
            [sys.executable, *what, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(PATHS), MARK: self.mark},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def line(self) -> str:
        """The next line it says."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def say(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def wait(self) -> tuple[int, str, str]:
        """Exit code of the script, and the rest of what it said on stdout and stderr."""
        try:
            out, err = self.process.communicate(timeout=self.seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            out, err = self.process.communicate()
            raise AssertionError(f"still running after {self.seconds} s\n{out}{err}") from None
        return self.process.returncode, out, err

    def members(self) -> list[int]:
        """Ids of the script's process and all that came of it, as far as they are alive."""
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._is_member(pid)]

    def _is_member(self, pid: int) -> bool:
        try:
            environ = Path(f"/proc/{pid}/environ").read_bytes()
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            return False
        return state != "Z" and f"{MARK}={self.mark}".encode() in environ.split(b"\0")

    def gone(self, within: float = 10.0) -> list[int]:
        """Who is left after so many seconds; nobody, as a rule much sooner."""
        until = time.monotonic() + within
        while (left := self.members()) and time.monotonic() < until:
            time.sleep(0.02)
        return left

    def shared_files(self) -> list[str]:
        """Files of shared memory with a name that any of them has open or mapped now."""
        found = []
        for pid in self.members():
            try:
                targets = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd")]
                lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
                targets += [line.split(maxsplit=5)[5] for line in lines if len(line.split()) > 5]
            except (FileNotFoundError, ProcessLookupError):
                continue
            found += [name for name in targets if name.startswith("/dev/shm/") and not name.endswith("(deleted)")]
        return found

    def kill(self) -> None:
        """End all of them."""
        for pid in self.members():
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                continue
        self.process.kill()

    def __enter__(self) -> Family:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
