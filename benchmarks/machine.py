"""Where a result was measured: machine, versions, commit. No measurement here."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

__all__ = ["describe", "is_busy", "summary"]

PACKAGES = (
    "lazystore",
    "numpy",
    "fsspec",
    "s3fs",
    "aiohttp",
    "obstore",
    "torch",
    "litdata",
    "mosaicml-streaming",
    "datasets",
    "pylance",
    "pyarrow",
    "webdataset",
    "grain",
    "array_record",
    "zstandard",
    "joblib",
    "mpire",
    "huggingface_hub",
    "pillow",
)


def describe() -> dict[str, Any]:
    """What a reader of the figures needs to know."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "versions": {package: version for package in PACKAGES if (version := _version(package))},
        "commit": _commit(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "load": os.getloadavg()[0],
    }


def is_busy() -> bool:
    """Whether others used more than a quarter of the cores during the last minute."""
    return os.getloadavg()[0] > 0.25 * len(os.sched_getaffinity(0))


def summary() -> str:
    """One line of the above."""
    facts = describe()
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return (
        f"{facts['cores']} cores of {facts['cpu']}, {facts['memory_bytes'] / 1e9:.0f} GB, "
        f"Python {facts['python']}, commit {facts['commit']}, load {facts['load']:.1f}; {versions}"
    )


def _cpu() -> str:
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _commit() -> str:
    """The commit of the working tree, with "+" when it has changes."""
    git = ["git", "-C", str(Path(__file__).resolve().parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
        if head.returncode:
            return "none"
        changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    except FileNotFoundError:
        return "unknown (no git)"
    return head.stdout.strip() + ("+" if changes.stdout.strip() else "")
