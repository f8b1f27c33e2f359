"""Run all benchmarks one after the other.

    python benchmarks/run.py                        small data, lazystore alone: a smoke test
    python benchmarks/run.py --data DIR --peers     the full data beside the other libraries

Takes the arguments of the bench files; --json names a folder here. What is measured is in bench_*.py and compare/.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import harness

__all__ = ["main"]

BENCHES = (
    "bench_import",
    "bench_sequential",
    "bench_random",
    "bench_larger_than_memory",
    "bench_object_store",
    "bench_epoch",
    "bench_shuffle",
    "bench_text_index",
    "bench_arrow",
    "bench_writer",
    "bench_cache",
    "bench_pages",
    "bench_files",
    "bench_hub",
    "bench_imap",
    "bench_imap_memory",
    "bench_imap_faults",
)
#: Need torch or the other libraries to say anything.
PEER_BENCHES = ("bench_dataloader", "bench_formats", "compare")
HERE = Path(__file__).resolve().parent


def main() -> int:
    """Run them; the status is that of the first that could not run, or 0."""
    options = harness.parser("All benchmarks, one after the other.").parse_args()
    arguments = []
    if options.quick or not (options.peers or options.data):
        arguments.append("--quick")
    if options.peers:
        arguments.append("--peers")
    for name in ("data", "rounds", "only"):
        value = getattr(options, name)
        if value is not None:
            arguments += [f"--{name}", str(value)]
    if options.json:
        os.makedirs(options.json, exist_ok=True)
    status = 0
    for bench in BENCHES + (PEER_BENCHES if options.peers else ()):
        folder = HERE / bench
        command = [sys.executable, str(folder if folder.is_dir() else folder.with_suffix(".py")), *arguments]
        if options.json:
            command += ["--json", os.path.join(options.json, f"{bench}.json")]
        status = status or subprocess.run(command).returncode
    return status


if __name__ == "__main__":
    sys.exit(main())
