"""The child side of making data: each function writes one kind of samples with one library's writer.

Every writer runs in one process and gets the samples in order.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from samples import ARRAY_LENGTH, samples

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker import Run

__all__ = ["arrow", "hf", "lance", "lazystore", "litdata", "mds"]

#: Rows of an Arrow record batch.
ARROW_ROWS = {"text": 8192, "arr": 8192, "blob": 256}


def litdata(run: Run) -> None:
    """LitData's own chunk writer, in the format of the installed version."""
    import litdata
    from litdata.streaming.cache import Cache

    spec = run.spec
    if litdata.__version__ != spec["version"]:
        raise RuntimeError(f"LitData {litdata.__version__} is installed, {spec['version']} is wanted")
    cache = Cache(spec["path"], chunk_bytes=spec["chunk_bytes"])
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

    spec = run.spec
    scratch = spec["path"] + ".scratch"
    integer = datasets.Value("int64")
    features = datasets.Features(
        {
            "text": {"id": integer, "text": datasets.Value("string")},
            "arr": {"x": datasets.List(datasets.Value("float32"), length=ARRAY_LENGTH), "y": integer},
            "blob": {"image": datasets.Value("binary"), "label": integer},
        }[spec["kind"]]
    )
    made = datasets.Dataset.from_generator(
        samples,
        gen_kwargs={"kind": spec["kind"], "count": spec["count"]},
        features=features,
        cache_dir=scratch,
        writer_batch_size=1000 if spec["kind"] != "blob" else 100,
    )
    made.save_to_disk(spec["path"])
    shutil.rmtree(scratch)
    run.result["version"] = datasets.__version__


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
    import os

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
