"""A writer holds one chunk's items, and what storing that chunk takes; never the dataset."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

MIB = 1 << 20
CHUNK = 24 * MIB

WRITE = """
import json, os, resource, sys
from lazystore.formats.writer import DatasetWriter

options = json.loads(sys.argv[2])
if options.get("compression"):
    import zstandard
if options.pop("arrays", False):
    import numpy
    make = lambda i: {"x": numpy.full(2500, i), "n": i}
else:
    make = lambda i: {"x": os.urandom(options_size), "n": i}
options_size = options.pop("size")
count = options.pop("count")

def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))

with DatasetWriter(sys.argv[1] + "/warm", chunk_size=2, **options) as writer:
    for i in range(3):
        writer.write(make(i))
before = peak()
with DatasetWriter(sys.argv[1] + "/all", chunk_bytes=24 << 20, **options) as writer:
    for i in range(count):
        writer.write(make(i))
print(json.dumps({"grew": peak() - before, "written": writer.bytes_written}))
"""


@pytest.mark.parametrize(
    ("options", "chunks"),
    [
        ({"size": 20_000, "count": 5000}, 1.0),
        ({"size": 200, "count": 400_000}, 1.0),
        ({"arrays": True, "size": 0, "count": 5000}, 1.0),
        ({"size": 20_000, "count": 5000, "compression": "zstd"}, 1.0),
        ({"size": 20_000, "count": 5000, "compression": "zstd", "compression_level": "batch"}, 2.0),
        ({"size": 20_000, "count": 5000, "compression": "zstd", "compression_level": "sample"}, 2.0),
    ],
)
def test_memory_is_that_of_a_chunk_whatever_is_written(options: dict[str, Any], chunks: float, tmp_path: Path) -> None:
    if options.get("compression"):
        pytest.importorskip("zstandard")
    run = subprocess.run(
        [sys.executable, "-c", WRITE, str(tmp_path), json.dumps(options)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["written"] > 3 * CHUNK or options.get("compression")
    # what malloc keeps between chunks, the pieces handed to the disk, zstd's own tables
    assert found["grew"] < chunks * CHUNK * 1.1 + 12 * MIB, found
