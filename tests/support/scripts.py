"""Python scripts in a process of their own: where a crash, an exit or the peak memory is what is tested."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import lazystore

#: where the lazystore under test lies, and these helpers
PATHS = [str(Path(lazystore.__file__).parents[1]), str(Path(__file__).parents[1])]

MEASURE = """
import os

def memory(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field + ":"))

def restart_peak():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return memory("VmRSS")
"""


def run(script: str | Path, *arguments: object, timeout: float = 60) -> str:
    """The stdout of code, or of a file; it must end by itself, with code 0, and say nothing on stderr."""
    what = [str(script)] if isinstance(script, Path) else ["-c", script]
    process = subprocess.Popen(
        [sys.executable, *what, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(PATHS), "PYTHONWARNINGS": "default"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"still running after {timeout} s\n{out}{err}") from None
    assert (process.returncode, err) == (0, ""), f"exit code {process.returncode}\n{out}{err}"
    return out
