"""Does a page cost the same wherever it lies, and do pages of much more than memory keep to the budget?

    python benchmarks/bench_pages.py --data DIR [--peers]

Pages have 50 rows, as dicts, of the text samples as JSON lines: 8,000 pages. "The last one" is page 7,999, which has a
page behind it.
"""

from __future__ import annotations

import os
import random
import sqlite3
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

import harness
from bench_text_index import FOLDER, NAME, write_rows
from harness import Contender
from samples import PROFILES

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker import Run

SIZE = 50
#: Bytes of RSS that reading pages may take beyond imports and budget.
ALLOWANCE = 32 << 20
#: Pages that are asked for in turns, so that drift of the machine hits first and last alike.
TURN = 200
GB = 1_000_000_000
#: Rows of one score in the table.
TIES = 10
OURS = "lazystore, by number"


def _tiers(memory: int) -> Any:
    from lazystore.cache.tiers import Tiers

    return Tiers(memory=memory)


def _dataset(run: Run) -> Any:
    os.environ["LAZYSTORE_CACHE_DIR"] = run.spec["path"]
    from lazystore import StreamingDataset

    return StreamingDataset(os.path.join(run.spec["path"], NAME), memory=run.spec["memory"])


# -- a page here and there ------------------------------------------------------------------


def _turns(run: Run, page: Callable[[int], object]) -> None:
    """Page 1, the last full one and random ones in turns, for a while; medians over the turns, microseconds each."""
    last = run.spec["count"] // SIZE - 1
    chosen = random.Random(1)
    pages = {"first": [1] * TURN, "last": [last] * TURN, "random": [chosen.randrange(1, last) for _ in range(TURN)]}
    taken: dict[str, list[float]] = {name: [] for name in pages}
    for numbers in pages.values():
        for number in numbers[: run.spec.get("warm", TURN)]:
            page(number)
    end = time.perf_counter() + run.spec["seconds"]
    while time.perf_counter() < end:
        for name, numbers in pages.items():
            numbers = numbers[: run.spec.get("turn", TURN)]
            begin = time.perf_counter()
            for number in numbers:
                page(number)
            taken[name].append((time.perf_counter() - begin) / len(numbers) * 1e6)
    run.result.update({name: statistics.median(one) for name, one in taken.items()})
    run.result["ratio"] = statistics.median(
        last / first for first, last in zip(taken["first"], taken["last"], strict=True)
    )
    run.peak()


def many(run: Run) -> None:
    """The rows alone, without a page around them."""
    dataset = _dataset(run)
    run.ready()
    with dataset:
        for _ in dataset:
            pass
        _turns(run, lambda number: dataset.get_many(range((number - 1) * SIZE, number * SIZE)))


def pages(run: Run) -> None:
    """Pages of a dataset, by number or cursor, resident."""
    from lazystore.lazy.pages import Pager
    from lazystore.lazy.source import Source

    dataset, tiers = _dataset(run), _tiers(1 << 20)
    run.ready()
    with dataset:
        for _ in dataset:
            pass
        pager = Pager(Source.from_sequence(dataset), tiers)
        _turns(run, _by_cursor(pager) if run.spec["cursor"] else pager.page)
        assert len(pager.page(run.spec["count"] // SIZE - 1)) == SIZE
    tiers.close()


def _by_cursor(pager: Any) -> Callable[[int], object]:
    """Each page as a client of an API asks for it: its cursor is opened, and those of its neighbours signed."""
    cursors: dict[int, str] = {}

    def page(number: int) -> object:
        cursor = cursors.get(number)
        if cursor is None:
            before = pager.page(max(1, number - 1))
            cursor = cursors[number] = before.next_cursor
        return pager.page(cursor=cursor).next_cursor

    return page


def cached(run: Run) -> None:
    """Pages of a function that are in the page cache."""
    from lazystore.lazy.pages import Pager
    from lazystore.lazy.source import Source

    dataset, tiers = _dataset(run), _tiers(run.spec["memory"])
    run.ready()
    with dataset:
        source = Source.from_range(lambda offset, limit: dataset.get_many(range(offset, offset + limit)))
        pager = Pager(source.named("rows"), tiers, prefetch=False)
        _turns(run, pager.page)
        assert pager.page(1).hit
    tiers.close()


def lines(run: Run) -> None:
    """Keyset pages of the file itself: bisected by bytes, with no index and nothing kept."""
    from orjson import loads

    from lazystore.lazy.keysets import keyset
    from lazystore.lazy.sorted_lines import SortedLines

    path = os.path.join(run.spec["sorted"], NAME)
    run.ready()
    order = keyset(["number"], unique="number")
    rows = SortedLines(path, parse=loads)
    _turns(run, lambda number: rows.rows(order.seek(((number - 1) * SIZE - 1,)), SIZE + 1))
    assert rows.rows(order.seek((SIZE - 1,)), 1)[0]["number"] == SIZE


def fastapi_pages(run: Run) -> None:
    """fastapi-pagination's paginate over all rows in memory."""
    from fastapi_pagination import Page, Params, paginate
    from fastapi_pagination.api import set_page
    from orjson import loads

    with open(os.path.join(run.spec["path"], NAME), "rb") as file:
        run.ready()
        rows = [loads(line) for line in file]
    with set_page(Page[Any]):
        _turns(run, lambda number: paginate(rows, Params(page=number, size=SIZE)))
        assert len(paginate(rows, Params(page=3, size=SIZE)).items) == SIZE


def sqlite_pages(run: Run) -> None:
    """Pages of an SQL query over an index, ten rows a score: by OFFSET, or by the keyset's predicate."""
    from lazystore.lazy.keysets import keyset

    base = sqlite3.connect(os.path.join(run.spec["sorted"], "scores.sqlite"))
    base.row_factory = sqlite3.Row
    run.ready()
    order = keyset(["-score", "id"], unique="id", nullable=[])

    def by_keyset(number: int) -> list[Any]:
        row = (number - 1) * SIZE - 1
        where, order_by, params = order.seek((-(row // TIES), row)).clause()
        text = f"SELECT * FROM t WHERE {where} ORDER BY {order_by} LIMIT {SIZE + 1}"
        return [dict(row) for row in base.execute(text, params)]

    def by_offset(number: int) -> list[Any]:
        text = f"SELECT * FROM t ORDER BY score DESC, id LIMIT {SIZE + 1} OFFSET ?"
        return [dict(row) for row in base.execute(text, ((number - 1) * SIZE,))]

    assert by_keyset(7) == by_offset(7) and len(by_keyset(7)) == SIZE + 1
    _turns(run, by_keyset if run.spec["keyset"] else by_offset)
    base.close()


# -- much more than memory ------------------------------------------------------------------


def many_pages(run: Run) -> None:
    """Every page of the file by a walk, again and again, until so many bytes have come by."""
    from lazystore.lazy.pages import Pager
    from lazystore.lazy.source import Source

    dataset, tiers = _dataset(run), _tiers(1 << 20)
    size = os.path.getsize(os.path.join(run.spec["path"], NAME))
    run.ready()
    begin, read = time.perf_counter(), 0
    with dataset:
        pager = Pager(Source.from_sequence(dataset), tiers)
        while read < run.spec["bytes"]:
            assert sum(map(len, pager.pages())) == run.spec["count"]
            read += size
    _passed(run, begin, read)
    tiers.close()


def many_function_pages(run: Run) -> None:
    """Pages of a function of (offset, limit), all of them through the page cache, read ahead."""
    from lazystore.lazy.pages import Pager
    from lazystore.lazy.source import Source

    row = 4000
    rows = run.spec["bytes"] // row
    tiers = _tiers(run.spec["memory"])
    run.ready()
    begin, read = time.perf_counter(), 0

    def made(offset: int, limit: int) -> list[bytes]:
        return [bytes([n % 251]) * row for n in range(offset, min(offset + limit, rows))]

    pager = Pager(Source.from_range(made), tiers)
    for page in pager.pages():
        read += sum(map(len, page))
    assert read == rows * row
    _passed(run, begin, read)
    tiers.close()


def _passed(run: Run, begin: float, read: int) -> None:
    run.result["gb"] = read / GB
    run.result["rate"] = read / 1e6 / (time.perf_counter() - begin)
    run.peak()


# -- the parent -----------------------------------------------------------------------------


def _sorted_data(folder: str, path: str, count: int) -> str:
    """The same rows with their numbers, and a table of scores; made once."""
    import json

    target = os.path.join(folder, "sorted")
    os.makedirs(target, exist_ok=True)
    if not os.path.exists(os.path.join(target, NAME)):
        with open(path, encoding="utf-8") as source, open(os.path.join(target, "new"), "w", encoding="utf-8") as file:
            for number, line in enumerate(source):
                file.write(json.dumps({"number": number, **json.loads(line)}, ensure_ascii=False) + "\n")
        os.replace(os.path.join(target, "new"), os.path.join(target, NAME))
    table = os.path.join(target, "scores.sqlite")
    if not os.path.exists(table):
        base = sqlite3.connect(table + ".new")
        base.execute("CREATE TABLE t (id INTEGER NOT NULL, score INTEGER NOT NULL, text TEXT)")
        base.executemany("INSERT INTO t VALUES (?, ?, ?)", ((n, -(n // TIES), f"row {n} " * 10) for n in range(count)))
        base.execute("CREATE UNIQUE INDEX i ON t (score DESC, id ASC)")
        base.commit()
        base.close()
        os.replace(table + ".new", table)
    return target


def _field(name: str) -> Callable[[dict[str, Any]], float]:
    return lambda run: float(run[name])


def _cost(out: harness.Report, base: dict[str, Any], options: Any) -> None:
    """A page here and there."""
    contenders = [
        Contender("get_many alone", "bench_pages:many", base),
        Contender(OURS, "bench_pages:pages", {**base, "cursor": False}),
        Contender("lazystore, signed cursors", "bench_pages:pages", {**base, "cursor": True}),
        Contender("lazystore, of a function, cached", "bench_pages:cached", base),
        Contender("lazystore, keyset, bisecting the file", "bench_pages:lines", base),
        Contender("SQLite, keyset", "bench_pages:sqlite_pages", {**base, "keyset": True}),
        Contender("SQLite, OFFSET", "bench_pages:sqlite_pages", {**base, "keyset": False, "turn": 10, "warm": 2}),
    ]
    if options.peers:
        contenders.append(Contender("fastapi-pagination, all rows in a list", "bench_pages:fastapi_pages", base))
    rows = harness.compare(contenders, options)
    columns = {
        title: lambda row, name=name: harness.spread(row.values(_field(name)))
        for title, name in (("page 1, us", "first"), ("the last one, us", "last"), ("random, us", "random"))
    }
    columns["last : first"] = lambda row: harness.spread(row.values(_field("ratio")))
    columns["peak RSS, MB"] = harness.megabytes("rss_peak")
    out.table(f"a page of {SIZE} rows", rows, columns)
    ours = rows.named(OURS)
    out.target("the last page, us", ours.median(_field("last")), 80, at_least=False)
    out.target("the last page : page 1", ours.median(_field("ratio")), 1.2, at_least=False)


def _memory(out: harness.Report, base: dict[str, Any], options: Any) -> None:
    """Much more than memory."""
    spec = {**base, "memory": 64 << 20, "bytes": GB // 4 if options.quick else 5 * GB}
    rows = harness.compare(
        [
            Contender("pages of the file", "bench_pages:many_pages", spec, limit_s=600.0),
            Contender("pages of a function", "bench_pages:many_function_pages", spec, limit_s=600.0),
        ],
        options,
    )
    out.table(
        "a walk through all pages, budget 67 MB", rows,
        {
            "GB": lambda row: harness.spread(row.values(_field("gb"))),
            "MB/s": lambda row: harness.spread(row.values(_field("rate"))),
            "RSS after import, MB": harness.megabytes("rss_after_import"),
            "peak RSS, MB": harness.megabytes("rss_peak"),
        },
    )  # fmt: skip
    for row in rows:
        excess = harness.excess(row, spec["memory"])
        out.target(f"{row.contender.name}, RSS beyond imports and budget, bytes", excess, ALLOWANCE, at_least=False)


def main() -> int:
    """Measure what the arguments ask for."""
    options = harness.parser("Pages: their cost by where they lie, and their memory.").parse_args()
    profile = PROFILES["quick" if options.quick else "full"]
    folder = os.path.join(harness.data_folder(options), FOLDER, profile.name)
    os.makedirs(folder, exist_ok=True)
    path, count = os.path.join(folder, NAME), profile.counts["text"]
    if not os.path.exists(path):
        write_rows(path, count)
    size = os.path.getsize(path)
    base = {
        "path": folder, "sorted": _sorted_data(folder, path, count), "count": count,
        "memory": max(profile.memory, 2 * size), "seconds": 0.5 if options.quick else 2.0,
    }  # fmt: skip
    out = harness.Report(f"Pages of {SIZE} rows of a JSONL file of {count} lines, {size / 1e6:.0f} MB", options.json)
    _cost(out, base, options)
    _memory(out, base, options)
    return out.finish()


if __name__ == "__main__":
    sys.exit(main())
