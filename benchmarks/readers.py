"""The child side of reading: how each library opens a dataset, and what is timed on it.

``OPENERS`` holds one function a library; each says in its docstring what one of its items is. The
timed functions (``sequential``, ``random_items``, ``batches``, ``views``, ``plain_preadv``) are the
same for all libraries. Imports happen inside the functions: a child imports its own library only.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worker import Run

__all__ = ["OPENERS", "Opened", "Taken", "batches", "plain_preadv", "random_items", "rows_of", "sequential", "views"]

ORDER_SEED = 7
#: Lookups before the clock starts: opens files and builds what a library builds lazily.
WARM_UP_LOOKUPS = 300
#: One read of the plain baseline, bytes; the size of a frame.
PLAIN_READ = 1 << 20


@dataclass
class Opened:
    """A dataset as its library gives it.

    Attributes:
        length: number of items.
        iterate: starts one pass in dataset order.
        rows: ``rows[i]`` is item i; None: the library has no random access.
        take: items of many indices at once, as a list; None: no such call.
        resident: makes everything resident that can be; None: there is nothing to do.
        counters: the library's own figures.
        loadable: what torch's DataLoader is given; None: it takes nothing of this library.
    """

    length: int
    iterate: Callable[[], Iterable[Any]]
    rows: Any = None
    take: Callable[[list[int]], Any] | None = None
    resident: Callable[[], object] | None = None
    counters: Callable[[], dict[str, Any]] | None = None
    loadable: Any = None


def lazystore(run: Run) -> Opened:
    """lazystore: dicts; the budget is spec["memory"] bytes."""
    import numpy  # noqa: F401 - arr needs it, and its memory belongs to the imports

    from lazystore import StreamingDataset

    run.ready()
    dataset = StreamingDataset(run.spec["path"], memory=run.spec["memory"])

    def read_all() -> None:
        for _ in dataset:
            pass

    return Opened(len(dataset), lambda: dataset, dataset, dataset.get_many, read_all, dataset.get_memory_stats)


def litdata(run: Run) -> Opened:
    """LitData: dicts; on mapped chunks a bytes leaf is a memoryview of the map, not a copy."""
    from litdata import StreamingDataset

    run.ready()
    dataset = StreamingDataset(run.spec["path"], cache_dir=run.spec.get("cache"))
    return Opened(len(dataset), lambda: dataset, dataset)


def litdata_copied(run: Run) -> Opened:
    """LitData with the image of each item copied into bytes, as every other library returns it."""
    opened = litdata(run)
    items = opened.iterate

    def copied() -> Iterator[dict[str, Any]]:
        for item in items():
            item["image"] = bytes(item["image"])
            yield item

    return Opened(opened.length, copied)


def mosaicml(run: Run) -> Opened:
    """MosaicML's LocalDataset: dicts."""
    from streaming import LocalDataset

    run.ready()
    dataset = LocalDataset(run.spec["path"])
    return Opened(dataset.size, lambda: (dataset[i] for i in range(dataset.size)), dataset)


def hf(run: Run) -> Opened:
    """Hugging Face datasets: dicts; arr in its numpy format, which is faster than lists."""
    import datasets

    run.ready()
    datasets.disable_progress_bars()
    dataset = datasets.load_from_disk(run.spec["path"])
    if run.spec["kind"] == "arr":
        dataset = dataset.with_format("numpy")
    return Opened(len(dataset), lambda: dataset, dataset, dataset.__getitems__)


class Taken:
    """Lance's take of one row, as indexing."""

    def __init__(self, dataset: Any, kind: str) -> None:
        self.dataset = dataset
        self.kind = kind

    def __getitem__(self, index: int) -> dict[str, Any]:
        table = self.dataset.take([index])
        return next(rows_of(self.kind, table.to_batches()[0]))


def lance(run: Run) -> Opened:
    """Lance: dicts from to_batches and to_pylist; arr as numpy rows, which is faster than lists."""
    import lance

    kind = run.spec["kind"]
    run.ready()
    dataset = lance.dataset(run.spec["path"], storage_options=run.spec.get("options"))

    def iterate() -> Iterator[dict[str, Any]]:
        for batch in dataset.to_batches():
            yield from rows_of(kind, batch)

    def take(indices: list[int]) -> list[dict[str, Any]]:
        return [row for batch in dataset.take(indices).to_batches() for row in rows_of(kind, batch)]

    return Opened(dataset.count_rows(), iterate, Taken(dataset, kind), take)


def pyarrow(run: Run) -> Opened:
    """pyarrow from RAM, in 8,192-row batches: dicts by to_pylist; arr as numpy rows unless told otherwise."""
    import pyarrow

    kind = run.spec["kind"]
    run.ready()
    with pyarrow.OSFile(os.path.join(run.spec["path"], "data.arrow")) as file:
        table = pyarrow.ipc.open_file(file).read_all()

    def iterate() -> Iterator[dict[str, Any]]:
        for batch in table.to_batches():
            yield from batch.to_pylist() if run.spec.get("to_pylist") else rows_of(kind, batch)

    return Opened(table.num_rows, iterate)


def rows_of(kind: str, batch: Any) -> Iterator[dict[str, Any]]:
    """The rows of a record batch as dicts."""
    if kind != "arr":
        return iter(batch.to_pylist())
    vectors = batch.column("x").flatten().to_numpy().reshape(batch.num_rows, -1)
    return ({"x": x, "y": y} for x, y in zip(vectors, batch.column("y").to_pylist(), strict=True))


OPENERS: dict[str, Callable[[Run], Opened]] = {
    "lazystore": lazystore,
    "litdata": litdata,
    "litdata_copied": litdata_copied,
    "mosaicml": mosaicml,
    "hf": hf,
    "lance": lance,
    "pyarrow": pyarrow,
}


def sequential(run: Run) -> None:
    """Whole passes in dataset order, as ``for item in dataset: pass``."""
    opened = OPENERS[run.spec["library"]](run)
    if run.spec.get("resident") and opened.resident:
        opened.resident()
    run.passes(opened.iterate, opened.length)
    run.result["digest"] = _sequential_digest(opened.iterate(), opened.length)
    _note_counters(run, opened)


def _sequential_digest(items: Iterable[Any], count: int) -> str:
    """The hash over the probe samples, in one untimed pass that also counts the items."""
    from samples import digest, probe_indices

    wanted = set(probe_indices(count))
    seen = 0

    def picked() -> Iterator[tuple[int, Any]]:
        nonlocal seen
        for index, item in enumerate(items):
            seen = index + 1
            if index in wanted:
                yield index, item

    result = digest(picked())
    if seen != count:
        raise RuntimeError(f"{seen} items in a pass over {count}")
    return result


def random_items(run: Run) -> None:
    """``rows[i]`` in random order, everything resident that the library can keep."""
    order = _order(run)
    opened = OPENERS[run.spec["library"]](run)
    rows = opened.rows
    if opened.resident:
        opened.resident()

    def call(indices: list[int]) -> None:
        for index in indices:
            rows[index]

    call(order[:WARM_UP_LOOKUPS])
    run.calls(call, order, step=100)
    _random_digest(run, rows.__getitem__, opened.length)
    _note_counters(run, opened)


def batches(run: Run) -> None:
    """spec["batch"] random items in one call, everything resident that the library can keep."""
    order = _order(run)
    opened = OPENERS[run.spec["library"]](run)
    take = opened.take
    if take is None:
        rows = opened.rows

        def take(indices: list[int]) -> list[Any]:
            return [rows[index] for index in indices]

    if opened.resident:
        opened.resident()
    take(order[: run.spec["batch"]])
    run.calls(take, order, step=run.spec["batch"])
    _random_digest(run, lambda index: take([index])[0], opened.length)
    _note_counters(run, opened)


def _order(run: Run) -> list[int]:
    """All indices in random order, made before memory is measured."""
    order = list(range(run.spec["count"]))
    random.Random(ORDER_SEED).shuffle(order)
    return order


def _random_digest(run: Run, get: Callable[[int], Any], count: int) -> None:
    from samples import digest, probe_indices

    if count != run.spec["count"]:
        raise RuntimeError(f"{count} items where {run.spec['count']} were written")
    run.result["digest"] = digest((index, get(index)) for index in probe_indices(count))


def _note_counters(run: Run, opened: Opened) -> None:
    """lazystore's own counters, without the long table of chunks."""
    if opened.counters is not None:
        stats = opened.counters()
        run.result["counters"] = {name: value for name, value in stats.items() if name != "chunks"}


def views(run: Run) -> None:
    """lazystore only: a zero-copy lease on each item in dataset order, released before the next."""
    from lazystore import StreamingDataset

    run.ready()
    dataset = StreamingDataset(run.spec["path"], memory=run.spec["memory"])
    count = len(dataset)

    def leases() -> Iterator[None]:
        view = dataset.view
        for index in range(count):
            with view(index):
                yield

    run.passes(leases, count)
    run.result["digest"] = _view_digest(dataset, count)


def _view_digest(dataset: Any, count: int) -> str:
    from samples import digest, probe_indices

    def picked() -> Iterator[tuple[int, Any]]:
        for index in probe_indices(count):
            with dataset.view(index) as leased:
                yield index, _blob_item(bytes(leased))

    return digest(picked())


def _blob_item(raw: bytes) -> dict[str, Any]:
    """A blob item from its classic bytes: u32 sizes of image and label, then the two."""
    image = int.from_bytes(raw[:4], "little")
    return {"image": raw[8 : 8 + image], "label": int.from_bytes(raw[8 + image :], "little")}


def plain_preadv(run: Run) -> None:
    """The floor under every reader: all chunk files by preadv into a ring of spec["memory"] bytes.

    spec["huge"] asks for huge pages, which cost the first pass fewer faults.
    """
    import mmap

    path = run.spec["path"]
    files = sorted(os.path.join(path, name) for name in os.listdir(path) if name.endswith(".bin"))
    total = sum(os.path.getsize(file) for file in files)
    run.ready()
    # Private pages, untouched: like any reader's, this ring is faulted in during the first pass.
    size = run.spec["memory"] // PLAIN_READ * PLAIN_READ
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if run.spec.get("huge"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    ring = memoryview(pages)
    frames = [ring[at : at + PLAIN_READ] for at in range(0, len(ring), PLAIN_READ)]
    position = 0

    def read_all() -> Iterable[None]:
        nonlocal position
        done = 0
        for file in files:
            descriptor = os.open(file, os.O_RDONLY)
            offset = 0
            while got := os.preadv(descriptor, [frames[position]], offset):
                offset += got
                position = (position + 1) % len(frames)
            os.close(descriptor)
            done += offset
        if done != total:
            raise RuntimeError(f"{done} of {total} bytes read")
        return ()

    run.passes(read_all, run.spec["count"])
    run.result["bytes"] = total
