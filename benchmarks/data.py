"""The datasets on disk: made once by the real writers, found again afterwards.

    python benchmarks/data.py --data DIR [--kind text] [--format litdata-0.2.76]

Each dataset lies in DIR/<profile>/<kind>/<format>; a file beside it says how it was made, and its
presence that it is complete. Nothing here reads a dataset.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
from samples import KINDS, PROFILES, Profile

__all__ = ["CLASSIC", "FORMATS", "MILLION", "ZSTD", "Data", "size_of"]

#: Raised whenever the samples or a writer's arguments change: older data is then made anew.
RECIPE = 1
WRITE_LIMIT_S = 1200.0


@dataclass(frozen=True)
class Format:
    """Who writes a dataset: a function in writers.py, the side folder it needs, the kinds it makes."""

    call: str
    side: str = ""
    version: str = ""
    kinds: tuple[str, ...] = KINDS
    #: LitData's own ``compression`` argument.
    compression: str = ""
    #: Chunks by profile, where the number of chunks is the point.
    chunks: tuple[tuple[str, int], ...] = ()


CLASSIC = "litdata-0.2.61"
OWN = "lazystore"
ZSTD = "litdata-0.2.61-zstd"
MILLION = "million-chunks"
FORMATS = {
    CLASSIC: Format("writers:litdata", side="litdata-0.2.61", version="0.2.61"),
    "litdata-0.2.76": Format("writers:litdata", version="0.2.76"),
    "mds": Format("writers:mds"),
    "hf": Format("writers:hf"),
    "lance": Format("writers:lance"),
    "arrow": Format("writers:arrow", kinds=("text", "arr")),
    "parquet": Format("writers:parquet"),
    "webdataset": Format("writers:webdataset"),
    "array_record": Format("writers:array_record"),
    # LitData inflates such a chunk in place and deletes the compressed one: let it read copies only.
    ZSTD: Format("writers:litdata", side=CLASSIC, version="0.2.61", kinds=("text",), compression="zstd"),
    MILLION: Format("writers:million", kinds=("text",), chunks=(("full", 1_000_000), ("quick", 20_000))),
    # The same bytes as LitData's classic format, for machines without LitData.
    OWN: Format("writers:lazystore"),
}


class Data:
    """The folder with all datasets of one profile.

    Args:
        root: folder outside the repository; about 10 GB for the full profile.
        profile: "full" or "quick".
    """

    def __init__(self, root: str | os.PathLike[str], profile: str) -> None:
        self.profile: Profile = PROFILES[profile]
        self.root = Path(root).resolve() / profile
        repository = Path(__file__).resolve().parents[1]
        if self.root.is_relative_to(repository):
            raise SystemExit(f"--data {root} lies inside {repository}; give a folder elsewhere")

    @classmethod
    def of(cls, options: argparse.Namespace) -> Data:
        """The data that a bench file's arguments name."""
        return cls(harness.data_folder(options), "quick" if options.quick else "full")

    def ensure(self, kind: str, format: str) -> str:
        """The path of a dataset, made now if it is not complete.

        Raises:
            harness.NotInstalled: its writer is not installed.
        """
        path = self.root / kind / format
        wanted = self._recipe(kind, format)
        marker = path.with_name(format + ".json")
        if marker.exists() and json.loads(marker.read_text())["recipe"] == wanted:
            return str(path)
        marker.unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        print(f"making {self.profile.name} {kind} with {format} ...", file=sys.stderr, flush=True)
        begin = time.perf_counter()
        made = harness.run_child(
            harness.Contender(
                format,
                FORMATS[format].call,
                {**wanted, "path": str(path)},
                side=FORMATS[format].side,
                limit_s=WRITE_LIMIT_S,
            )
        )
        made = {"recipe": wanted, "seconds": round(time.perf_counter() - begin, 1), **made}
        made["bytes"] = size_of(path)
        marker.write_text(json.dumps(made, indent=1))
        return str(path)

    @functools.cache  # noqa: B019 - one Data lives as long as the process
    def classic(self, kind: str) -> str:
        """A dataset in LitData's classic format, by LitData 0.2.61, else by our own writer."""
        if self.profile.name == "quick":
            return self.ensure(kind, OWN)
        try:
            return self.ensure(kind, CLASSIC)
        except harness.NotInstalled as absent:
            print(f"{absent}; the classic data is written by lazystore instead", file=sys.stderr)
            return self.ensure(kind, OWN)

    def _recipe(self, kind: str, format: str) -> dict[str, Any]:
        made: dict[str, Any] = {
            "recipe": RECIPE,
            "kind": kind,
            "count": self.profile.counts[kind],
            "chunk_bytes": self.profile.chunk_bytes[kind],
            "version": FORMATS[format].version,
        }
        if FORMATS[format].compression:
            made["compression"] = FORMATS[format].compression
        if FORMATS[format].chunks:
            made["chunks"] = dict(FORMATS[format].chunks)[self.profile.name]
        return made


def size_of(path: str | os.PathLike[str]) -> int:
    """Bytes of all files in a folder."""
    return sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())


def main() -> int:
    """Make everything, or what is asked for."""
    parser = argparse.ArgumentParser(description="Make the benchmark datasets.")
    harness.add_data_argument(parser)
    parser.add_argument("--quick", action="store_true", help="the small profile")
    parser.add_argument("--kind", choices=KINDS, action="append", help="only this kind (repeatable)")
    parser.add_argument("--format", choices=FORMATS, action="append", help="only this format (repeatable)")
    options = parser.parse_args()
    data = Data.of(options)
    for format in options.format or (f for f in FORMATS if f not in (OWN, MILLION)):
        for kind in [k for k in FORMATS[format].kinds if k in (options.kind or KINDS)]:
            try:
                print(data.ensure(kind, format))
            except harness.NotInstalled as absent:
                print(f"{kind} {format}: {absent}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
