"""The child side: how each library opens a dataset, on disk or in the object store, in order or shuffled.

``OPENERS`` holds one function a library: it imports, and returns ``connect``, which opens the dataset
and is what a clock may cover. Shuffling is each library's own; its docstring says how, and what one
item is. spec: ``path`` (local) or ``endpoint``, ``bucket`` and ``prefix`` (object store); ``shuffle``,
``scratch`` (an empty folder for its cache), ``files`` (the names in the dataset's folder).
"""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import remote
from readers import Opened, Taken, rows_of

if TYPE_CHECKING:
    from worker import Run

__all__ = ["OPENERS", "Connect"]

Connect = Callable[[], Opened]
SEED = 42
#: Items that WebDataset and HF's iterable datasets shuffle among; both leave it to the user, this is in their guides.
BUFFER = 1000
#: Random rows that Lance is asked for in one take.
TAKE = 1024
#: What MosaicML is told of the batches to come: it fetches ahead by them.
BATCH = 256


def is_remote(spec: dict[str, Any]) -> bool:
    """Whether the dataset lies in the object store."""
    return "endpoint" in spec


def _names(spec: dict[str, Any], suffix: str) -> list[str]:
    return sorted(name for name in spec["files"] if name.endswith(suffix))


def lazystore(run: Run) -> Connect:
    """lazystore: dicts; shuffled among what the budget of spec["memory"] bytes holds."""
    import numpy  # noqa: F401 - arr needs it, and its memory belongs to the imports

    from lazystore import StreamingDataset, __version__

    spec = run.spec
    run.result["version"] = __version__
    where, options = spec.get("path", ""), {}
    if is_remote(spec):
        remote.import_filesystem(spec["via"])
        where, options = remote.own_target(spec)

    def connect() -> Opened:
        dataset = StreamingDataset(where, memory=spec["memory"], shuffle=spec["shuffle"], seed=SEED, **options)
        return Opened(
            len(dataset),
            lambda: dataset,
            dataset,
            dataset.get_many,
            counters=dataset.get_memory_stats,
            loadable=dataset,
        )

    return connect


def litdata(run: Run) -> Connect:
    """LitData: dicts; shuffled chunks, and items inside each."""
    import litdata
    from litdata.streaming import downloader

    spec = run.spec
    run.result["version"] = litdata.__version__
    where: str = spec.get("path", "")
    options: dict[str, Any] = {}
    if is_remote(spec):
        where = remote.s3_url(spec)
        options["storage_options"] = remote.litdata_options(spec)
        # Newer versions read through obstore, whose client refuses plain http; no argument reaches it.
        if hasattr(downloader, "_OBSTORE_CLIENT_OPTIONS"):
            downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True

    def connect() -> Opened:
        dataset = litdata.StreamingDataset(
            where, cache_dir=spec["scratch"], shuffle=spec["shuffle"], seed=SEED, **options
        )
        return Opened(len(dataset), lambda: dataset, dataset, loadable=dataset)

    return connect


def mosaicml(run: Run) -> Connect:
    """MosaicML: dicts; its default shuffle. The endpoint of the store comes from the environment."""
    import streaming

    spec = run.spec
    run.result["version"] = streaming.__version__
    where = {"local": spec.get("path")}
    if is_remote(spec):
        where = {"remote": remote.s3_url(spec), "local": os.path.join(spec["scratch"], "local")}

    def connect() -> Opened:
        streaming.base.util.clean_stale_shared_memory()
        dataset = streaming.StreamingDataset(**where, shuffle=spec["shuffle"], shuffle_seed=SEED, batch_size=BATCH)
        return Opened(len(dataset), lambda: dataset, dataset, loadable=dataset)

    return connect


def webdataset(run: Run) -> Connect:
    """WebDataset: dicts of decoded members; tars shuffled, then items in a buffer. Remote tars come through curl."""
    import webdataset

    spec = run.spec
    run.result["version"] = version("webdataset")
    root = f"{spec['endpoint']}/{spec['bucket']}/{spec['prefix']}" if is_remote(spec) else spec["path"]
    urls = [f"{root}/{name}" for name in _names(spec, ".tar")]
    fields = {
        "text": {"id": "cls", "text": "txt"},
        "arr": {"x": "npy", "y": "cls"},
        "blob": {"image": "jpg", "label": "cls"},
    }[spec["kind"]]

    def named(source: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        # Not by map(), which puts the key of each sample back in.
        for members in source:
            yield {name: members[member] for name, member in fields.items()}

    def connect() -> Opened:
        shards = len(urls) if spec["shuffle"] else False
        dataset = webdataset.WebDataset(urls, shardshuffle=shards, seed=SEED)
        if spec["shuffle"]:
            dataset = dataset.shuffle(BUFFER, seed=SEED)
        made = dataset.decode().compose(named)
        return Opened(spec["count"], lambda: made, loadable=made)

    return connect


def hf(run: Run) -> Connect:
    """Hugging Face datasets, map style: dicts; arr as numpy; a permutation of all indices."""
    import datasets

    spec = run.spec
    run.result["version"] = datasets.__version__
    datasets.disable_progress_bars()
    where, options = spec.get("path", ""), {}
    if is_remote(spec):
        import s3fs  # noqa: F401 - its memory and its time belong to the imports

        where, options = remote.s3_url(spec), {"storage_options": remote.s3_options(spec)}

    def connect() -> Opened:
        dataset = datasets.load_from_disk(where, **options)
        if spec["shuffle"]:
            dataset = dataset.shuffle(seed=SEED, keep_in_memory=True)
        if spec["kind"] == "arr":
            dataset = dataset.with_format("numpy")
        return Opened(len(dataset), lambda: dataset, dataset, dataset.__getitems__, loadable=dataset)

    return connect


def hf_iterable(run: Run) -> Connect:
    """Hugging Face datasets, streaming=True over Parquet: dicts; arr as numpy; files and a buffer shuffled."""
    import datasets

    spec = run.spec
    run.result["version"] = datasets.__version__
    datasets.disable_progress_bars()
    root, options = spec.get("path", ""), {}
    if is_remote(spec):
        import s3fs  # noqa: F401 - its memory and its time belong to the imports

        root, options = remote.s3_url(spec), {"storage_options": remote.s3_options(spec)}
    files = [f"{root}/{name}" for name in _names(spec, ".parquet")]

    def connect() -> Opened:
        dataset = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True, **options)
        if spec["shuffle"]:
            dataset = dataset.shuffle(seed=SEED, buffer_size=BUFFER)
        if spec["kind"] == "arr":
            dataset = dataset.with_format("numpy")
        return Opened(spec["count"], lambda: dataset, loadable=dataset)

    return connect


def grain(run: Run) -> Connect:
    """Grain over ArrayRecord, local only: unpickled dicts, read by its threads; a permutation of all indices."""
    import grain

    spec = run.spec
    run.result["version"] = version("grain")
    files = [os.path.join(spec["path"], name) for name in _names(spec, ".array_record")]

    def connect() -> Opened:
        source = grain.sources.ArrayRecordDataSource(files)
        dataset = grain.MapDataset.source(source)
        if spec["shuffle"]:
            dataset = dataset.shuffle(seed=SEED)
        made = dataset.map(pickle.loads)
        return Opened(len(made), made.to_iter_dataset, made, loadable=made)

    return connect


def lance(run: Run) -> Connect:
    """Lance: dicts from record batches; arr as numpy rows. Shuffled: takes of a permutation, it has no own shuffle."""
    import lance

    spec = run.spec
    kind = spec["kind"]
    run.result["version"] = lance.__version__
    where, options = spec.get("path", ""), None
    if is_remote(spec):
        where, options = remote.s3_url(spec), remote.lance_options(spec)

    def connect() -> Opened:
        dataset = lance.dataset(where, storage_options=options)
        length = dataset.count_rows()

        def take(indices: list[int]) -> list[dict[str, Any]]:
            return [row for batch in dataset.take(indices).to_batches() for row in rows_of(kind, batch)]

        def in_order() -> Iterator[dict[str, Any]]:
            for batch in dataset.to_batches():
                yield from rows_of(kind, batch)

        def shuffled() -> Iterator[dict[str, Any]]:
            order = list(range(length))
            random.Random(SEED).shuffle(order)
            for begin in range(0, length, TAKE):
                yield from take(order[begin : begin + TAKE])

        iterate: Callable[[], Iterable[Any]] = shuffled if spec["shuffle"] else in_order
        return Opened(length, iterate, Taken(dataset, kind), take)

    return connect


OPENERS: dict[str, Callable[[Run], Connect]] = {
    "lazystore": lazystore,
    "litdata": litdata,
    "mosaicml": mosaicml,
    "webdataset": webdataset,
    "hf": hf,
    "hf_iterable": hf_iterable,
    "grain": grain,
    "lance": lance,
}
