"""The child side of the object store bench: how each library opens a remote dataset, and what is timed.

spec: ``library`` and ``via`` say who reads and through what; ``endpoint``, ``bucket`` and ``prefix`` say
where; imports of the library and of its filesystem happen before the clock starts.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from readers import ORDER_SEED, Opened, Taken, rows_of

if TYPE_CHECKING:
    from worker import Run

__all__ = [
    "bare_epoch",
    "bare_ranges",
    "cold_items",
    "control",
    "first_info",
    "first_item",
    "import_filesystem",
    "lance_options",
    "litdata_options",
    "many",
    "own_target",
    "s3_options",
    "s3_url",
    "served",
]

REGION = "us-east-1"
#: Anything will do: the local object store checks no signature.
KEY = "benchmark"
#: Connections that 256 parallel requests need at once; botocore's default is 10.
POOL = 256
perf_counter = time.perf_counter


def control(spec: dict[str, Any], verb: str, values: dict[str, Any] | None = None) -> Any:
    """Ask the object store to forget ("reset"), to tell ("stats") what it has served, or to "configure" itself."""
    data = None if verb == "stats" else json.dumps(values or {}).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(f"{spec['endpoint']}/-/{verb}", data=data)) as answer:
        return json.load(answer)


def served(run: Run) -> None:
    """Note what the object store has served since the reset."""
    from lazystore.testing import dependent_waves

    stats = control(run.spec, "stats")
    run.result["requests"] = sum(stats["requests"].values())
    run.result["bytes_fetched"] = stats["bytes_sent"]
    run.result["faults"] = sum(stats["faults"].values())
    run.result["waves"] = dependent_waves(stats["log"])


# --- who reads ------------------------------------------------------------------------------------


def import_filesystem(via: str) -> None:
    """Import what a run reads through: its memory and its time are not the run's."""
    if via == "s3":
        import s3fs  # noqa: F401
    elif via == "http":
        import aiohttp  # noqa: F401
        import fsspec.implementations.http  # noqa: F401
    else:
        import obstore.store  # noqa: F401


def s3_url(spec: dict[str, Any]) -> str:
    """Where the dataset lies, as every S3 client writes it."""
    return f"s3://{spec['bucket']}/{spec['prefix']}"


def s3_options(spec: dict[str, Any]) -> dict[str, Any]:
    """fsspec's ``storage_options`` for the local object store."""
    return {"anon": True, "endpoint_url": spec["endpoint"], "client_kwargs": {"region_name": REGION}}


def own_target(spec: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """lazystore's URL and storage arguments: fsspec's s3 or http filesystem, or obstore on the same s3 URL."""
    options: dict[str, Any] = {"backend": "obstore" if spec["via"] == "obstore" else "fsspec"}
    if spec["via"] == "http":
        return f"{spec['endpoint']}/{spec['bucket']}/{spec['prefix']}", options
    return s3_url(spec), {**options, "storage_options": s3_options(spec)}


def lazystore(run: Run) -> Callable[[], Opened]:
    """lazystore through one of its filesystems."""
    import numpy  # noqa: F401 - its memory belongs to the imports

    from lazystore import StreamingDataset

    spec = run.spec
    import_filesystem(spec["via"])
    url, options = own_target(spec)

    def connect() -> Opened:
        dataset = StreamingDataset(url, memory=spec["memory"], **options)
        return Opened(len(dataset), lambda: dataset, dataset, dataset.get_many)

    return connect


def litdata_options(spec: dict[str, Any]) -> dict[str, Any]:
    """LitData's ``storage_options`` for the local object store."""
    return {
        "endpoint_url": spec["endpoint"],
        "aws_access_key_id": KEY,
        "aws_secret_access_key": KEY,
        "region_name": REGION,
    }


def lance_options(spec: dict[str, Any]) -> dict[str, str]:
    """Lance's ``storage_options`` for the local object store."""
    return {
        "aws_endpoint": spec["endpoint"],
        "aws_access_key_id": KEY,
        "aws_secret_access_key": KEY,
        "aws_region": REGION,
        "aws_virtual_hosted_style_request": "false",
        "allow_http": "true",
    }


def litdata(run: Run) -> Callable[[], Opened]:
    """LitData over s3 with an empty cache folder; many items are asked one by one."""
    from litdata import StreamingDataset
    from litdata.streaming import downloader

    # Its obstore client refuses plain http, and no argument reaches it.
    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True
    spec = run.spec
    options = litdata_options(spec)
    cache = tempfile.mkdtemp(dir=spec["scratch"])

    def connect() -> Opened:
        dataset = StreamingDataset(s3_url(spec), cache_dir=cache, storage_options=options)
        return Opened(len(dataset), lambda: dataset, dataset, lambda many: [dataset[i] for i in many])

    return connect


def mosaicml(run: Run) -> Callable[[], Opened]:
    """MosaicML over s3 with an empty local folder; the endpoint comes from the environment."""
    from streaming import StreamingDataset

    spec = run.spec
    local = tempfile.mkdtemp(dir=spec["scratch"])

    def connect() -> Opened:
        dataset = StreamingDataset(remote=s3_url(spec), local=local, shuffle=False, batch_size=1)
        return Opened(len(dataset), lambda: dataset, dataset, lambda many: [dataset[i] for i in many])

    return connect


def lance(run: Run) -> Callable[[], Opened]:
    """Lance over s3; no cache on disk."""
    import lance

    spec = run.spec
    options = lance_options(spec)

    def connect() -> Opened:
        dataset = lance.dataset(s3_url(spec), storage_options=options)

        def iterate() -> Iterable[dict[str, Any]]:
            for batch in dataset.to_batches():
                yield from rows_of(spec["kind"], batch)

        def take(indices: list[int]) -> list[dict[str, Any]]:
            return [r for b in dataset.take(indices).to_batches() for r in rows_of(spec["kind"], b)]

        return Opened(dataset.count_rows(), iterate, Taken(dataset, spec["kind"]), take)

    return connect


LIBRARIES: dict[str, Callable[[Run], Callable[[], Opened]]] = {
    "lazystore": lazystore,
    "litdata": litdata,
    "mosaicml": mosaicml,
    "lance": lance,
}


# --- what is timed --------------------------------------------------------------------------------


def first_info(run: Run) -> None:
    """What a filesystem object takes for its very first info call: connecting and one round trip."""
    spec = run.spec
    import_filesystem(spec["via"])
    run.ready()
    begin = perf_counter()
    _Bare(spec).info("index.json")
    run.result["seconds"] = [perf_counter() - begin]


def first_item(run: Run) -> None:
    """From nothing to the first item of an iteration."""
    connect = LIBRARIES[run.spec["library"]](run)
    run.ready()
    control(run.spec, "reset")
    begin = perf_counter()
    items = iter(connect().iterate())
    item = next(items)
    run.result["seconds"] = [perf_counter() - begin]
    run.peak()
    served(run)
    _digest(run, [(0, item)])


def cold_items(run: Run) -> None:
    """spec["lookups"] random ds[i], each of an item not asked for before, one after the other."""
    connect = LIBRARIES[run.spec["library"]](run)
    run.ready()
    opened = connect()
    opened.rows[0]
    order = _order(run.spec, run.spec["lookups"])
    control(run.spec, "reset")
    seconds = []
    picked = []
    limit = perf_counter() + run.spec["seconds"]
    for index in order:
        begin = perf_counter()
        item = opened.rows[index]
        seconds.append(perf_counter() - begin)
        picked.append((index, item))
        if perf_counter() > limit:
            break
    run.result["seconds"] = seconds
    run.peak()
    served(run)
    _digest(run, picked[:1])


def many(run: Run) -> None:
    """spec["batch"] random items in one call, none of them asked for before."""
    connect = LIBRARIES[run.spec["library"]](run)
    run.ready()
    opened = connect()
    opened.rows[0]
    order = _order(run.spec, run.spec["batch"])
    assert opened.take is not None
    control(run.spec, "reset")
    begin = perf_counter()
    items = opened.take(order)
    run.result["seconds"] = [perf_counter() - begin]
    run.peak()
    served(run)
    # Some libraries answer in ascending order of index: the values are compared, not their order.
    ids = sorted(zip((item["id"] for item in items), items, strict=True), key=lambda pair: int(pair[0]))
    _digest(run, [(int(number), item) for number, item in ids])


def bare_ranges(run: Run) -> None:
    """The same 256 items as bare parallel ranged GETs: exact ranges, known beforehand."""
    with open(run.spec["ranges"]) as file:
        ranges = json.load(file)
    import_filesystem(run.spec["via"])
    run.ready()
    bare = _Bare(run.spec)
    bare.info("index.json")
    control(run.spec, "reset")
    begin = perf_counter()
    pieces = bare.read(ranges)
    run.result["seconds"] = [perf_counter() - begin]
    run.peak()
    served(run)
    wanted = [end - start for _, start, end in ranges]
    if [len(piece) for piece in pieces] != wanted:
        raise RuntimeError("the bare ranges came back with other lengths")


def _order(spec: dict[str, Any], length: int) -> list[int]:
    """The indices to look up; item 0 is left out, the warm-up has read it."""
    return random.Random(ORDER_SEED).sample(range(1, spec["count"]), length)


def _digest(run: Run, picked: Sequence[tuple[int, Any]]) -> None:
    from samples import digest

    run.result["digest"] = digest(picked)


def bare_epoch(run: Run) -> None:
    """Every byte of the dataset in ranges of spec["range"] bytes, spec["parallel"] under way, thrown away.

    spec["files"]: (name, bytes) of all objects, known beforehand; those in spec["before"] come before the
    others are begun. What an epoch cannot beat.
    """
    spec = run.spec
    import_filesystem(spec["via"])
    step = spec["range"]
    ranges = [(name, begin, min(begin + step, size)) for name, size in spec["files"] for begin in range(0, size, step)]
    run.ready()
    control(spec, "configure", {"faults": None})
    control(spec, "reset")
    begin = perf_counter()
    bare = _Bare(spec)
    total = bare.drain([one for one in ranges if one[0] in spec["before"]], spec["parallel"])
    total += bare.drain([one for one in ranges if one[0] not in spec["before"]], spec["parallel"])
    run.result["seconds"] = [perf_counter() - begin]
    run.peak()
    served(run)
    if total != sum(size for _, size in spec["files"]):
        raise RuntimeError(f"{total} bytes came back where {spec['files']} were asked for")


class _Bare:
    """A filesystem on its own: one info call, many ranges at once, or many in a bounded stream."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.via = spec["via"]
        self.prefix = spec["prefix"] + "/"
        if self.via == "obstore":
            from obstore.store import S3Store

            self.store = S3Store(
                spec["bucket"],
                endpoint=spec["endpoint"],
                region=REGION,
                skip_signature=True,
                virtual_hosted_style_request=False,
                client_options={"allow_http": True},
            )
            return
        import fsspec

        if self.via == "s3":
            pool = {"max_pool_connections": POOL}
            self.filesystem = fsspec.filesystem("s3", **s3_options(spec), config_kwargs=pool)
            self.prefix = f"{spec['bucket']}/{self.prefix}"
        else:
            self.filesystem = fsspec.filesystem("http")
            self.prefix = f"{spec['endpoint']}/{spec['bucket']}/{self.prefix}"

    def info(self, name: str) -> None:
        if self.via == "obstore":
            self.store.head(self.prefix + name)
        else:
            self.filesystem.info(self.prefix + name)

    def read(self, ranges: Sequence[tuple[str, int, int]]) -> list[Any]:
        names = [self.prefix + name for name, _, _ in ranges]
        starts = [start for _, start, _ in ranges]
        ends = [end for _, _, end in ranges]
        if self.via != "obstore":
            return list(self.filesystem.cat_ranges(names, starts, ends, batch_size=len(names)))
        import asyncio

        async def gather() -> list[Any]:
            store = self.store
            waiting = (
                store.get_range_async(name, start=start, end=end)
                for name, start, end in zip(names, starts, ends, strict=True)
            )
            return list(await asyncio.gather(*waiting))

        return asyncio.run(gather())

    def drain(self, ranges: Sequence[tuple[str, int, int]], parallel: int) -> int:
        """Fetch and drop all ranges, ``parallel`` at a time; the bytes that came."""
        import asyncio

        async def piece(name: str, begin: int, end: int) -> int:
            if self.via == "obstore":
                return len(await self.store.get_range_async(self.prefix + name, start=begin, end=end))
            return len(await self.filesystem._cat_file(self.prefix + name, start=begin, end=end))

        async def worker(waiting: Iterator[tuple[str, int, int]]) -> int:
            return sum([await piece(*one) for one in waiting])

        async def everything() -> int:
            waiting = iter(ranges)
            return sum(await asyncio.gather(*(worker(waiting) for _ in range(parallel))))

        if self.via == "obstore":
            return asyncio.run(everything())
        from fsspec.asyn import sync

        return int(sync(self.filesystem.loop, everything))
