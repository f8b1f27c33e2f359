"""How fast is a JSONL file indexed, and how fast are rows and pages of it read, anywhere?

    python benchmarks/bench_text_index.py --data DIR [--peers]

The floor of indexing is a C loop over ``memchr``: once on the file's bytes in memory, once with the ``pread`` that
everybody needs to get at them. It is compiled when the bench begins (``cc``). Pages have 50 rows, as dicts.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, Any

import harness
from harness import Contender
from samples import PROFILES, samples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from worker import Run

OURS, LOOP, READ_LOOP = "lazystore", "C memchr loop, file in memory", "C memchr loop, with pread"
ORJSON, KEYSET, OFFSET = "orjson alone, lines in memory", "SQLite keyset", "SQLite OFFSET"
PAGE = 50
FOLDER = "jsonl"
NAME = "rows.jsonl"
C_LOOP = """
#include <stdint.h>
#include <string.h>
#include <unistd.h>
#include <sys/types.h>

/* Offsets of the lines of a buffer; how many. */
uint64_t lines(const char *data, uint64_t n, uint64_t base, uint64_t *out) {
    const char *p = data, *end = data + n;
    uint64_t count = 0;
    while ((p = memchr(p, '\\n', end - p)) != NULL) out[count++] = base + (++p - data);
    return count;
}

/* The same for a file, read piece by piece. */
uint64_t file_lines(int fd, char *buffer, uint64_t room, uint64_t *out) {
    uint64_t at = 0, count = 0;
    ssize_t got;
    while ((got = pread(fd, buffer, room, at)) > 0) {
        count += lines(buffer, got, at, out + count);
        at += got;
    }
    return count;
}
"""


def write_rows(path: str, count: int) -> None:
    """The text samples as JSON lines."""
    with open(path + ".new", "w", encoding="utf-8") as file:
        for row in samples("text", count):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    os.replace(path + ".new", path)


# -- indexing -------------------------------------------------------------------------------


def lazystore_index(run: Run) -> None:
    """The whole index: read, scan, write the sidecar (a new one each time), open."""
    from lazystore import StreamingDataset

    path = os.path.join(run.spec["path"], NAME)
    with tempfile.TemporaryDirectory() as folder:
        sidecars = (os.path.join(folder, f"{n}.lzidx") for n in itertools.count())

        def index() -> Iterator[None]:
            with StreamingDataset(path, memory="64MB", format_options={"index": next(sidecars)}) as dataset:
                assert len(dataset) == run.spec["count"]
            yield

        for _ in index():
            pass
        run.ready()
        run.passes(index, run.spec["count"])


def c_loop(run: Run) -> None:
    """memchr in C, from memory or with pread."""
    library = ctypes.CDLL(run.spec["loop"])
    library.lines.restype = library.file_lines.restype = ctypes.c_uint64
    out = (ctypes.c_uint64 * (run.spec["count"] + 1))()
    path = os.path.join(run.spec["path"], NAME)
    size = os.path.getsize(path)
    room = 1 << 20 if run.spec["reads"] else size
    buffer = ctypes.create_string_buffer(room)
    with open(path, "rb", buffering=0) as file:
        if not run.spec["reads"]:
            file.readinto(buffer)
        run.ready()

        def loop() -> Iterator[None]:
            if run.spec["reads"]:
                found = library.file_lines(file.fileno(), buffer, ctypes.c_uint64(room), out)
            else:
                found = library.lines(buffer, ctypes.c_uint64(size), ctypes.c_uint64(0), out)
            assert found == run.spec["count"]
            yield

        run.passes(loop, run.spec["count"])


def readline(run: Run) -> None:
    """A Python loop over the file's lines."""
    path = os.path.join(run.spec["path"], NAME)
    run.ready()

    def loop() -> Iterator[None]:
        offsets, at = [0], 0
        with open(path, "rb") as file:
            for line in file:
                at += len(line)
                offsets.append(at)
        assert len(offsets) == run.spec["count"] + 1
        yield

    run.passes(loop, run.spec["count"])


# -- rows and pages -------------------------------------------------------------------------


def _order(run: Run, last: int) -> list[int]:
    chosen = random.Random(1)
    return [chosen.randrange(last) for _ in range(200_000)]


def lazystore_rows(run: Run) -> None:
    """ds[i], raw, resident."""
    os.environ["LAZYSTORE_CACHE_DIR"] = run.spec["path"]
    from lazystore import StreamingDataset

    run.ready()
    with StreamingDataset(os.path.join(run.spec["path"], NAME), memory=run.spec["memory"], raw=True) as dataset:
        assert len(dataset) == run.spec["count"]  # indexed: the pass below is one through the memory
        for _ in dataset:
            pass
        run.calls(lambda at: dataset[at[0]], _order(run, run.spec["count"]), 1)


def lazystore_pages(run: Run) -> None:
    """50 rows in one call, resident."""
    os.environ["LAZYSTORE_CACHE_DIR"] = run.spec["path"]
    from lazystore import StreamingDataset

    run.ready()
    with StreamingDataset(os.path.join(run.spec["path"], NAME), memory=run.spec["memory"]) as dataset:
        assert len(dataset) == run.spec["count"]  # indexed: the pass below is one through the memory
        for _ in dataset:
            pass
        _pages(run, lambda first: dataset.get_many(range(first, first + PAGE)))


def orjson_pages(run: Run) -> None:
    """The least that 50 rows cost: parsing them."""
    from orjson import loads

    with open(os.path.join(run.spec["path"], NAME), "rb") as file:
        lines = file.read().splitlines()
    run.ready()
    _pages(run, lambda first: [loads(line) for line in lines[first : first + PAGE]])


def sqlite_pages(run: Run) -> None:
    """A table with a column a key, already built."""
    path = os.path.join(run.spec["path"], "rows.sqlite")
    if not os.path.exists(path):
        _build_sqlite(path, os.path.join(run.spec["path"], NAME))
    base = sqlite3.connect(path)
    names = [column[1] for column in base.execute("pragma table_info(rows)")][1:]
    columns = ", ".join(names)
    keyset = f"select {columns} from rows where number >= ? order by number limit {PAGE}"
    offset = f"select {columns} from rows order by number limit {PAGE} offset ?"
    query = keyset if run.spec["keyset"] else offset
    for _ in base.execute("select * from rows"):
        pass
    run.ready()
    _pages(run, lambda first: [dict(zip(names, row, strict=True)) for row in base.execute(query, (first,))])


def _build_sqlite(path: str, source: str) -> None:
    with open(source, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    base = sqlite3.connect(path + ".new")
    names = list(rows[0])
    base.execute(f"create table rows (number integer primary key, {', '.join(names)})")
    marks = ", ".join("?" * (len(names) + 1))
    values = ((i, *map(_plain, row.values())) for i, row in enumerate(rows))
    base.executemany(f"insert into rows values ({marks})", values)
    base.commit()
    base.close()
    os.replace(path + ".new", path)


def _plain(value: Any) -> Any:
    return value if isinstance(value, (int, float, str)) else json.dumps(value)


def _pages(run: Run, page: Callable[[int], list[Any]]) -> None:
    order = _order(run, run.spec["count"] - PAGE)
    assert all(len(page(first)) == PAGE for first in order[:20])
    run.calls(lambda at: page(at[0]), order, 1)


# -- the parent -----------------------------------------------------------------------------


def _compile(folder: str) -> str:
    """The C loop as a library; "" without a compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return ""
    source = os.path.join(folder, "loop.c")
    with open(source, "w") as file:
        file.write(C_LOOP)
    subprocess.run([compiler, "-O3", "-shared", "-fPIC", "-o", source[:-1] + "so", source], check=True)
    return source[:-1] + "so"


def _microseconds(run: dict[str, Any]) -> float:
    return float(run["seconds"][0] / run["items"] * 1e6)


def _milliseconds(run: dict[str, Any]) -> float:
    return 1e3 / harness.later_rate(run) * float(run["items"])


def main() -> int:
    """Measure what the arguments ask for."""
    options = harness.parser("Indexing a JSONL file, and reading it anywhere.").parse_args()
    profile = PROFILES["quick" if options.quick else "full"]
    folder = os.path.join(harness.data_folder(options), FOLDER, profile.name)
    os.makedirs(folder, exist_ok=True)
    count = profile.counts["text"]
    if not os.path.exists(os.path.join(folder, NAME)):
        write_rows(os.path.join(folder, NAME), count)
    size = os.path.getsize(os.path.join(folder, NAME))
    base = {
        "path": folder, "count": count, "passes": 6, "memory": max(profile.memory, 2 * size),
        "seconds": 0.25 if options.quick else 1.0,
    }  # fmt: skip
    out = harness.Report(f"A JSONL file of {count} lines, {size / 1e6:.0f} MB", options.json)
    with tempfile.TemporaryDirectory() as scratch:
        loop = _compile(scratch)
        indexing = [Contender(OURS, "bench_text_index:lazystore_index", base)]
        if loop:
            for name, reads in ((LOOP, False), (READ_LOOP, True)):
                indexing.append(Contender(name, "bench_text_index:c_loop", {**base, "loop": loop, "reads": reads}))
        indexing.append(Contender("Python, line by line", "bench_text_index:readline", base))
        rows = harness.compare(indexing, options)
    ours = rows.named(OURS)
    out.table(
        "finding every line, ms (first time left out)", rows,
        {
            "ms": lambda row: harness.spread(row.values(_milliseconds)),
            "lazystore faster": harness.ratio(ours, harness.later_rate),
            "RSS after import, MB": harness.megabytes("rss_after_import"),
            "peak RSS, MB": harness.megabytes("rss_peak"),
        },
    )  # fmt: skip
    for name in (LOOP, READ_LOOP):
        out.target(f"indexing, share of the {name}", harness.share(rows.named(name), ours, harness.later_rate), 0.6)
    out.target("indexing, peak RSS beyond imports, bytes", harness.excess(ours, 0), 16 << 20, at_least=False)
    _lookups(out, base, options)
    return out.finish()


def _lookups(out: harness.Report, base: dict[str, Any], options: Any) -> None:
    """Rows and pages."""
    rows = harness.compare([Contender(OURS, "bench_text_index:lazystore_rows", base)], options)
    out.table("ds[i], raw, resident", rows, {"rows/s": lambda row: harness.spread(row.values(harness.first_rate))})
    out.target("random raw rows/s", rows.named(OURS).median(harness.first_rate), 300e3)
    contenders = [
        Contender(OURS, "bench_text_index:lazystore_pages", base),
        Contender(ORJSON, "bench_text_index:orjson_pages", base),
    ]
    if options.peers:
        for name, keyset in ((KEYSET, True), (OFFSET, False)):
            contenders.append(Contender(name, "bench_text_index:sqlite_pages", {**base, "keyset": keyset}))
    rows = harness.compare(contenders, options)
    out.table(
        f"a page of {PAGE} rows as dicts, anywhere, resident", rows,
        {"us": lambda row: harness.spread(row.values(_microseconds))},
    )  # fmt: skip
    out.target(f"a page of {PAGE} rows, us", rows.named(OURS).median(_microseconds), 60, at_least=False)


if __name__ == "__main__":
    sys.exit(main())
