"""Damaged datasets of every format, and bombs, read in processes that may not grow.

What is asked: the right item, or a LazyStoreError that names the file; no other error, no crash, no hang, no memory
beyond the budget, and no wrong item where there are checksums. ``HUNT_TURNS`` and ``HUNT_SEED`` search deeper;
``HUNT_KEEP`` is a folder where damaged datasets that were answered wrongly are kept, ``HUNT_FULL`` makes bombs larger.
"""

from __future__ import annotations

import os
import shutil
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
from support import golden, hunting, prey, scripts

pytestmark = [
    pytest.mark.stress,
    pytest.mark.skipif(sys.platform != "linux", reason="needs /proc"),
]

TURNS = int(os.environ.get("HUNT_TURNS", "16"))
SEED = int(os.environ.get("HUNT_SEED", "1"))


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    """All groups in one process: imports take longer than damage."""
    return hunting.found("main", list(prey.CASES), SEED, TURNS, timeout=170 + 10 * TURNS)


@pytest.mark.timeout(180 + 10 * TURNS)
@pytest.mark.parametrize("group", list(prey.CASES))
def test_damaged_datasets_give_right_items_or_our_errors(group: str, found: list[dict[str, Any]]) -> None:
    assert [one for one in found if one["group"] == group] == []


@pytest.mark.skipif("LAZYSTORE_SANITIZED" in os.environ, reason="sanitizers need memory of their own")
def test_bombs_do_not_take_more_than_the_budget() -> None:
    assert hunting.found("bombs") == []


ABANDONED = """
import gc, struct, sys
from pathlib import Path
from typing import Any
from lazystore import LazyStoreError, StreamingDataset

def read(way):
    with StreamingDataset(sys.argv[1], memory="600kB") as dataset:
        walk = iter(dataset) if way == "items" else dataset.batches(3, way)
        try:
            for _ in walk:
                pass
        except LazyStoreError:
            return
    raise SystemExit("nothing is damaged")

for way in ("items", "list", "numpy"):
    for _ in range(3):
        read(way)
gc.collect()
print(sum(type(one).__name__ in ("StreamingDataset", "ChunkMemory") for one in gc.get_objects()))
"""


@pytest.mark.parametrize("name", ["litdata-classic-text", "litdata-classic-zstd", "mosaic-csv", "mds-plain", "mds-gz"])
def test_datasets_that_failed_are_not_kept_alive(name: str, tmp_path: Path) -> None:
    golden.require(name)
    shutil.copytree(golden.GOLDEN / name / "data", tmp_path / "d")
    *_, victim = sorted(path for path in (tmp_path / "d").iterdir() if path.suffix != ".json")
    victim.chmod(0o644)
    data = bytearray(victim.read_bytes())
    data[8:16] = struct.pack("<II", 1 << 31, 1 << 31)
    victim.write_bytes(data)
    assert scripts.run(ABANDONED, tmp_path / "d").strip() == "0"
