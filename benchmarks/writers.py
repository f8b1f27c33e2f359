"""The child side of making data: each function writes one kind of samples with one library's writer.

Every writer runs in one process and gets the samples in order.
"""

from __future__ import annotations

import itertools
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samples import ARRAY_LENGTH, samples

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker import Run

__all__ = [
    "array_record",
    "arrow",
    "hf",
    "lance",
    "lazystore",
    "litdata",
    "mds",
    "million",
    "parquet",
    "webdataset",
]

#: Rows of an Arrow record batch.
ARROW_ROWS = {"text": 8192, "arr": 8192, "blob": 256}
#: Chunks' worth of samples in a Parquet file.
PARQUET_CHUNKS = 8
#: Samples in each chunk of the dataset of a million chunks.
TINY = 4
#: An inode takes 65,000 links on ext4.
LINKS = 60_000


def litdata(run: Run) -> None:
    """LitData's own chunk writer, in the format of the installed version."""
    import litdata
    from litdata.streaming.cache import Cache

    spec = run.spec
    if litdata.__version__ != spec["version"]:
        raise RuntimeError(f"LitData {litdata.__version__} is installed, {spec['version']} is wanted")
    cache = Cache(spec["path"], chunk_bytes=spec["chunk_bytes"], compression=spec.get("compression"))
    for index, sample in enumerate(samples(spec["kind"], spec["count"])):
        cache[index] = sample
    cache.done()
    cache.merge(1)
    run.result["version"] = litdata.__version__


def mds(run: Run) -> None:
    """MosaicML's MDSWriter."""
    import streaming

    spec = run.spec
    columns = {
        "text": {"id": "int", "text": "str"},
        "arr": {"x": f"ndarray:float32:{ARRAY_LENGTH}", "y": "int"},
        "blob": {"image": "bytes", "label": "int"},
    }[spec["kind"]]
    with streaming.MDSWriter(out=spec["path"], columns=columns, size_limit=spec["chunk_bytes"]) as writer:
        for sample in samples(spec["kind"], spec["count"]):
            writer.write(sample)
    run.result["version"] = streaming.__version__


def hf(run: Run) -> None:
    """Hugging Face datasets: from_generator, then save_to_disk."""
    import datasets

    scratch = run.spec["path"] + ".scratch"
    _hf_dataset(run.spec, scratch).save_to_disk(run.spec["path"])
    shutil.rmtree(scratch)
    run.result["version"] = datasets.__version__


def parquet(run: Run) -> None:
    """Hugging Face datasets: from_generator, then to_parquet, one file for about eight chunks."""
    import datasets

    spec = run.spec
    scratch = spec["path"] + ".scratch"
    made = _hf_dataset(spec, scratch)
    files = -(-made.data.nbytes // (PARQUET_CHUNKS * spec["chunk_bytes"]))
    os.makedirs(spec["path"])
    for number in range(files):
        part = made.shard(files, number, contiguous=True)
        part.to_parquet(os.path.join(spec["path"], f"train-{number:05d}-of-{files:05d}.parquet"))
    shutil.rmtree(scratch)
    run.result["version"] = datasets.__version__


def _hf_dataset(spec: dict[str, Any], scratch: str) -> Any:
    """The samples as a datasets.Dataset, kept in the folder ``scratch``."""
    import datasets

    integer = datasets.Value("int64")
    features = datasets.Features(
        {
            "text": {"id": integer, "text": datasets.Value("string")},
            "arr": {"x": datasets.List(datasets.Value("float32"), length=ARRAY_LENGTH), "y": integer},
            "blob": {"image": datasets.Value("binary"), "label": integer},
        }[spec["kind"]]
    )
    return datasets.Dataset.from_generator(
        samples,
        gen_kwargs={"kind": spec["kind"], "count": spec["count"]},
        features=features,
        cache_dir=scratch,
        writer_batch_size=1000 if spec["kind"] != "blob" else 100,
    )


def lance(run: Run) -> None:
    """Lance's own writer with its default settings."""
    import lance
    import pyarrow

    spec = run.spec
    schema = _schema(spec["kind"])
    reader = pyarrow.RecordBatchReader.from_batches(schema, _batches(spec["kind"], spec["count"], schema))
    lance.write_dataset(reader, spec["path"], schema=schema)
    run.result["version"] = lance.__version__


def arrow(run: Run) -> None:
    """One uncompressed Arrow IPC file."""
    import pyarrow

    spec = run.spec
    schema = _schema(spec["kind"])
    os.makedirs(spec["path"])
    with (
        pyarrow.OSFile(os.path.join(spec["path"], "data.arrow"), "wb") as sink,
        pyarrow.ipc.new_file(sink, schema) as writer,
    ):
        for batch in _batches(spec["kind"], spec["count"], schema):
            writer.write_batch(batch)
    run.result["version"] = pyarrow.__version__


def _schema(kind: str) -> Any:
    import pyarrow as pa

    fields = {
        "text": [("id", pa.int64()), ("text", pa.string())],
        "arr": [("x", pa.list_(pa.float32(), ARRAY_LENGTH)), ("y", pa.int64())],
        "blob": [("image", pa.binary()), ("label", pa.int64())],
    }[kind]
    return pa.schema(fields)


def _batches(kind: str, count: int, schema: Any) -> Iterator[Any]:
    import numpy as np
    import pyarrow as pa

    rows: list[dict[str, Any]] = []

    def batch() -> Any:
        columns = []
        for field in schema:
            values = [row[field.name] for row in rows]
            if pa.types.is_fixed_size_list(field.type):
                flat = pa.array(np.concatenate(values))
                columns.append(pa.FixedSizeListArray.from_arrays(flat, ARRAY_LENGTH))
            else:
                columns.append(pa.array(values, type=field.type))
        return pa.record_batch(columns, schema=schema)

    for sample in samples(kind, count):
        rows.append(sample)
        if len(rows) == ARROW_ROWS[kind]:
            yield batch()
            rows.clear()
    if rows:
        yield batch()


def lazystore(run: Run) -> None:
    """lazystore's own writer: LitData's classic format."""
    from lazystore.formats.writer import DatasetWriter

    spec = run.spec
    with DatasetWriter(spec["path"], chunk_bytes=spec["chunk_bytes"]) as writer:
        for sample in samples(spec["kind"], spec["count"]):
            writer.write(sample)


def webdataset(run: Run) -> None:
    """WebDataset's ShardWriter: a member a field, in tars of about a chunk."""
    from importlib.metadata import version

    import webdataset

    spec = run.spec
    names = {"text": ("cls", "txt"), "arr": ("npy", "cls"), "blob": ("jpg", "cls")}[spec["kind"]]
    os.makedirs(spec["path"])
    pattern = os.path.join(spec["path"], "%06d.tar")
    with webdataset.ShardWriter(pattern, maxsize=spec["chunk_bytes"], verbose=0) as writer:
        for index, sample in enumerate(samples(spec["kind"], spec["count"])):
            writer.write({"__key__": f"{index:08d}", **dict(zip(names, sample.values(), strict=True))})
    run.result["version"] = version("webdataset")


def array_record(run: Run) -> None:
    """ArrayRecord's writer, one record a group as Grain asks for; a record is a pickled sample.

    The format holds bytes and leaves their meaning to its user; pickle is the fastest codec at hand.
    """
    from importlib.metadata import version

    from array_record.python.array_record_module import ArrayRecordWriter

    spec = run.spec
    os.makedirs(spec["path"])
    records = (pickle.dumps(sample, protocol=5) for sample in samples(spec["kind"], spec["count"]))
    for number in itertools.count():
        first = next(records, None)
        if first is None:
            break
        writer = ArrayRecordWriter(os.path.join(spec["path"], f"{number:05d}.array_record"), "group_size:1")
        writer.write(first)
        size = len(first)
        while size < spec["chunk_bytes"] and (record := next(records, None)) is not None:
            writer.write(record)
            size += len(record)
        writer.close()
    run.result["version"] = version("array_record")


def million(run: Run) -> None:
    """spec["chunks"] classic chunks of the same four samples: one file under very many names."""
    from lazystore.formats.writer import DatasetWriter

    spec = run.spec
    with DatasetWriter(spec["path"], chunk_bytes=spec["chunk_bytes"]) as writer:
        for sample in samples(spec["kind"], TINY):
            writer.write(sample)
    folder = Path(spec["path"])
    index = json.loads((folder / "index.json").read_text())
    (only,) = index["chunks"]
    content = (folder / only["filename"]).read_bytes()
    chunks = [{**only, "filename": f"chunk-0-{number}.bin"} for number in range(spec["chunks"])]
    original = ""
    for number, chunk in enumerate(chunks):
        path = os.path.join(folder, chunk["filename"])
        if number % LINKS == 0:
            original = path
            Path(path).write_bytes(content)
        else:
            os.link(original, path)
    (folder / "index.json").write_text(json.dumps({**index, "chunks": chunks}))
