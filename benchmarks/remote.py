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
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from readers import ORDER_SEED, Opened, _rows, _Taken

if TYPE_CHECKING:
    from worker import Run

__all__ = ["bare_ranges", "cold_items", "first_info", "first_item", "many"]

REGION = "us-east-1"
#: Anything will do: the local object store checks no signature.
KEY = "benchmark"
#: Connections that 256 parallel requests need at once; botocore's default is 10.
POOL = 256
perf_counter = time.perf_counter


def _control(spec: dict[str, Any], verb: str) -> Any:
    """Ask the object store to forget ("reset") or to tell ("stats") what it has served."""
    data = b"{}" if verb == "reset" else None
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(f"{spec['endpoint']}/-/{verb}", data=data)) as answer:
        return json.load(answer)


def _served(run: Run) -> None:
    """Note what the object store has served since the reset."""
    from lazystore.testing import dependent_waves

    stats = _control(run.spec, "stats")
    run.result["requests"] = sum(stats["requests"].values())
    run.result["bytes_fetched"] = stats["bytes_sent"]
    run.result["waves"] = dependent_waves(stats["log"])


# --- who reads ------------------------------------------------------------------------------------


def _import_filesystem(via: str) -> None:
    if via == "s3":
        import s3fs  # noqa: F401
    elif via == "http":
        import aiohttp  # noqa: F401
        import fsspec.implementations.http  # noqa: F401
    else:
        import obstore.store  # noqa: F401


def _s3_options(spec: dict[str, Any]) -> dict[str, Any]:
    return {"anon": True, "endpoint_url": spec["endpoint"], "client_kwargs": {"region_name": REGION}}


def lazystore(run: Run) -> Callable[[], Opened]:
    """lazystore through fsspec's s3 or http filesystem, or through obstore on the same s3 URL."""
    import numpy  # noqa: F401 - its memory belongs to the imports

    from lazystore import StreamingDataset

    spec = run.spec
    _import_filesystem(spec["via"])
    options: dict[str, Any] = {"backend": "obstore" if spec["via"] == "obstore" else "fsspec"}
    if spec["via"] == "http":
        url = f"{spec['endpoint']}/{spec['bucket']}/{spec['prefix']}"
    else:
        url = f"s3://{spec['bucket']}/{spec['prefix']}"
        options["storage_options"] = _s3_options(spec)

    def connect() -> Opened:
        dataset = StreamingDataset(url, memory=spec["memory"], **options)
        return Opened(len(dataset), lambda: dataset, dataset, dataset.get_many)

    return connect


def litdata(run: Run) -> Callable[[], Opened]:
    """LitData over s3 with an empty cache folder; many items are asked one by one."""
    from litdata import StreamingDataset
    from litdata.streaming import downloader

    # Its obstore client refuses plain http, and no argument reaches it.
    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True
    spec = run.spec
    options = {
        "endpoint_url": spec["endpoint"],
        "aws_access_key_id": KEY,
        "aws_secret_access_key": KEY,
        "region_name": REGION,
    }
    cache = tempfile.mkdtemp(dir=spec["scratch"])

    def connect() -> Opened:
        url = f"s3://{spec['bucket']}/{spec['prefix']}"
        dataset = StreamingDataset(url, cache_dir=cache, storage_options=options)
        return Opened(len(dataset), lambda: dataset, dataset, lambda many: [dataset[i] for i in many])

    return connect


def mosaicml(run: Run) -> Callable[[], Opened]:
    """MosaicML over s3 with an empty local folder; the endpoint comes from the environment."""
    from streaming import StreamingDataset

    spec = run.spec
    local = tempfile.mkdtemp(dir=spec["scratch"])

    def connect() -> Opened:
        remote = f"s3://{spec['bucket']}/{spec['prefix']}"
        dataset = StreamingDataset(remote=remote, local=local, shuffle=False, batch_size=1)
        return Opened(len(dataset), lambda: dataset, dataset, lambda many: [dataset[i] for i in many])

    return connect


def lance(run: Run) -> Callable[[], Opened]:
    """Lance over s3; no cache on disk."""
    import lance

    spec = run.spec
    options = {
        "aws_endpoint": spec["endpoint"],
        "aws_access_key_id": KEY,
        "aws_secret_access_key": KEY,
        "aws_region": REGION,
        "aws_virtual_hosted_style_request": "false",
        "allow_http": "true",
    }

    def connect() -> Opened:
        dataset = lance.dataset(f"s3://{spec['bucket']}/{spec['prefix']}", storage_options=options)

        def iterate() -> Iterable[dict[str, Any]]:
            for batch in dataset.to_batches():
                yield from _rows(spec["kind"], batch)

        def take(indices: list[int]) -> list[dict[str, Any]]:
            return [r for b in dataset.take(indices).to_batches() for r in _rows(spec["kind"], b)]

        return Opened(dataset.count_rows(), iterate, _Taken(dataset, spec["kind"]), take)

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
    _import_filesystem(spec["via"])
    run.ready()
    begin = perf_counter()
    _Bare(spec).info("index.json")
    run.result["seconds"] = [perf_counter() - begin]


def first_item(run: Run) -> None:
    """From nothing to the first item of an iteration."""
    connect = LIBRARIES[run.spec["library"]](run)
    run.ready()
    _control(run.spec, "reset")
    begin = perf_counter()
    items = iter(connect().iterate())
    item = next(items)
    run.result["seconds"] = [perf_counter() - begin]
    run.peak()
    _served(run)
    _digest(run, [(0, item)])


def cold_items(run: Run) -> None:
    """spec["lookups"] random ds[i], each of an item not asked for before, one after the other."""
    connect = LIBRARIES[run.spec["library"]](run)
    run.ready()
    opened = connect()
    opened.rows[0]
    order = _order(run.spec, run.spec["lookups"])
    _control(run.spec, "reset")
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
    _served(run)
    _digest(run, picked[:1])


def many(run: Run) -> None:
    """spec["batch"] random items in one call, none of them asked for before."""
    connect = LIBRARIES[run.spec["library"]](run)
    run.ready()
    opened = connect()
    opened.rows[0]
    order = _order(run.spec, run.spec["batch"])
    assert opened.take is not None
    _control(run.spec, "reset")
    begin = perf_counter()
    items = opened.take(order)
    run.result["seconds"] = [perf_counter() - begin]
    run.peak()
    _served(run)
    # Some libraries answer in ascending order of index: the values are compared, not their order.
    ids = sorted(zip((item["id"] for item in items), items, strict=True), key=lambda pair: int(pair[0]))
    _digest(run, [(int(number), item) for number, item in ids])


def bare_ranges(run: Run) -> None:
    """The same 256 items as bare parallel ranged GETs: exact ranges, known beforehand."""
    with open(run.spec["ranges"]) as file:
        ranges = json.load(file)
    _import_filesystem(run.spec["via"])
    run.ready()
    bare = _Bare(run.spec)
    bare.info("index.json")
    _control(run.spec, "reset")
    begin = perf_counter()
    pieces = bare.read(ranges)
    run.result["seconds"] = [perf_counter() - begin]
    run.peak()
    _served(run)
    wanted = [end - start for _, start, end in ranges]
    if [len(piece) for piece in pieces] != wanted:
        raise RuntimeError("the bare ranges came back with other lengths")


def _order(spec: dict[str, Any], length: int) -> list[int]:
    """The indices to look up; item 0 is left out, the warm-up has read it."""
    return random.Random(ORDER_SEED).sample(range(1, spec["count"]), length)


def _digest(run: Run, picked: Sequence[tuple[int, Any]]) -> None:
    from samples import digest

    run.result["digest"] = digest(picked)


class _Bare:
    """A filesystem on its own: one info call, or many ranges at once."""

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
            self.filesystem = fsspec.filesystem("s3", **_s3_options(spec), config_kwargs=pool)
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
