"""Tiny dataset repositories of every shape that is found on the Hub, made when asked for.

``publish(hub, "text")`` puts "samples/text" there. Contents are the same in every run.
"""

from __future__ import annotations

import datetime
import decimal
import io
import json
import math
import struct
import wave
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lazystore.testing import LocalHub

OWNER = "samples"
READER = "hf_reader"
SPLIT_ROWS = {"train": 100, "validation": 20, "test": 10}
WORDS = ("alpha", "beta", "Ωmega", "naïve", "雪", "", "a\nb", "zwölf Boxkämpfer")
RATE = 8000

Files = dict[str, bytes]


def name_of(sample: str, owner: str = OWNER) -> str:
    return f"{owner}/{sample}"


def publish(hub: LocalHub, sample: str, owner: str = OWNER) -> str:
    """Commit the sample, with the ways in that belong to it; returns the repository's name.

    An owner of its own is for tests that must not meet what others left in the libraries' caches.
    """
    files = REPOS[sample]()
    options: dict[str, Any] = {"token": READER} if sample in ("gated", "private") else {}
    hub.add(name_of(sample, owner), files, gated=sample == "gated", private=sample == "private", **options)
    if sample == "converted":
        hub.add(name_of(sample, owner), converted_files(), revision="refs/convert/parquet")
    return name_of(sample, owner)


# -- parts


def rows(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [
        {"id": i, "text": f"{WORDS[i % len(WORDS)]} {i}", "score": None if i % 7 == 3 else i / 4, "label": i % 3}
        for i in range(first, first + count)
    ]


def parquet(
    table: pa.Table | list[dict[str, Any]],
    *,
    group: int = 16,
    features: Mapping[str, Any] | None = None,
    **options: Any,
) -> bytes:
    """A Parquet file; ``features`` as `datasets` notes them in it."""
    if isinstance(table, list):
        table = pa.Table.from_pylist(table)
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    found = io.BytesIO()
    pq.write_table(table, found, row_group_size=group, **options)
    return found.getvalue()


def value(dtype: str) -> dict[str, Any]:
    return {"dtype": dtype, "_type": "Value"}


def jsonl(values: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in values).encode()


def card(metadata: str, text: str = "# A sample\n") -> bytes:
    return f"---\n{metadata.strip()}\n---\n{text}".encode()


def image(i: int, kind: str = "PNG") -> bytes:
    from PIL import Image

    found = io.BytesIO()
    mode = ("RGB", "L", "RGBA")[i % 3] if kind == "PNG" else "RGB"
    Image.linear_gradient("L").resize((8 + i, 6)).convert(mode).save(found, kind)
    return found.getvalue()


def wav(i: int, rate: int = RATE, channels: int = 1) -> bytes:
    """A 16-bit tone of ``100 + i`` frames."""
    found = io.BytesIO()
    with wave.open(found, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        tone = [round(20_000 * math.sin(2 * math.pi * (220 + 20 * i) * t / rate)) for t in range(100 + i)]
        file.writeframes(struct.pack(f"<{len(tone) * channels}h", *(v for v in tone for _ in range(channels))))
    return found.getvalue()


# -- repositories


def text() -> Files:
    """Parquet in the usual place: several files and splits, row groups of 16 rows, a card without metadata."""
    files = {"README.md": b"# Rows of text\n"}
    for split, count in SPLIT_ROWS.items():
        parts = 3 if split == "train" else 1
        edges = [count * part // parts for part in range(parts + 1)]
        for part in range(parts):
            own = rows(edges[part + 1] - edges[part], edges[part])
            files[f"data/{split}-{part:05d}-of-{parts:05d}.parquet"] = parquet(own)
    return files


def carded() -> Files:
    """Two configurations by the card, with features there and in the files; the second is the default."""
    metadata = """
license: mit
configs:
- config_name: first
  data_files:
  - split: train
    path: first/train-*
  - split: test
    path:
    - first/test-*
- config_name: second
  default: true
  data_files: second/*.parquet
dataset_info:
- config_name: first
  features:
  - name: id
    dtype: int64
  - name: text
    dtype: string
  - name: score
    dtype: float64
  - name: label
    dtype:
      class_label:
        names:
          '0': low
          '1': middle
          '2': high
  splits:
  - name: train
    num_bytes: 1000
    num_examples: 30
  - name: test
    num_bytes: 100
    num_examples: 5
  download_size: 1000
  dataset_size: 1100
"""
    features = {
        "id": value("int64"),
        "text": value("string"),
        "score": value("float64"),
        "label": {"names": ["low", "middle", "high"], "_type": "ClassLabel"},
    }
    return {
        "README.md": card(metadata),
        "first/train-0.parquet": parquet(rows(20), features=features),
        "first/train-1.parquet": parquet(rows(10, 20), features=features),
        "first/test-0.parquet": parquet(rows(5, 500), features=features),
        "second/a.parquet": parquet(rows(12, 100)),
        "second/b.parquet": parquet(rows(8, 112)),
    }


def types() -> Files:
    """A column of each plain type, with a null in every one, and nested ones."""
    day, zone = datetime.date(2024, 2, 29), datetime.UTC
    moment = datetime.datetime(2024, 2, 29, 12, 30, 15, 123456)
    columns: dict[str, pa.Array] = {
        "bool": pa.array([True, None, False, True]),
        **{f"{t}": pa.array([0, None, 1, 100], getattr(pa, t)()) for t in ("int8", "int16", "int32", "int64")},
        **{f"u{t}": pa.array([0, None, 1, 100], getattr(pa, f"u{t}")()) for t in ("int8", "int16", "int32", "int64")},
        "float32": pa.array([0.5, None, math.inf, 1e-30], pa.float32()),
        "float64": pa.array([0.1, None, -math.inf, -0.0]),
        "string": pa.array(["", None, "雪", "a\0b"]),
        "large_string": pa.array(["x", None, "y" * 300, ""], pa.large_string()),
        "binary": pa.array([b"", None, b"\xff\0", b"x"]),
        "date": pa.array([day, None, day, day]),
        "second": pa.array([moment, None, moment, moment], pa.timestamp("s")),
        "milli": pa.array([moment, None, moment, moment], pa.timestamp("ms")),
        "micro": pa.array([moment, None, moment, moment], pa.timestamp("us")),
        "zoned": pa.array([moment.replace(tzinfo=zone), None] * 2, pa.timestamp("us", "UTC")),
        "time": pa.array([moment.time(), None] * 2, pa.time64("us")),
        "duration": pa.array([datetime.timedelta(seconds=1, microseconds=5), None] * 2, pa.duration("us")),
        "decimal": pa.array([decimal.Decimal("1.25"), None] * 2, pa.decimal128(10, 2)),
        "null": pa.nulls(4),
        "ints": pa.array([[1, 2], None, [], [None, 3]]),
        "strings": pa.array([["a"], [], None, ["b", None, ""]]),
        "deep": pa.array([[[1], []], None, [None, [2, 3]], []]),
        "struct": pa.array([{"a": 1, "b": "x"}, None, {"a": None, "b": None}, {"a": 2, "b": "雪"}]),
        "structs": pa.array([[{"a": 1, "b": [1.5]}], [], None, [{"a": None, "b": None}, None]]),
        "fixed": pa.array([[1, 2], [3, 4], None, [5, 6]], pa.list_(pa.int16(), 2)),
    }
    return {"data/train.parquet": parquet(pa.table(columns), group=3)}


def wide() -> Files:
    """Many columns and another compression: what choosing columns is good for."""
    table = pa.table({f"column_{c}": [f"{c}-{i}-" + "x" * 40 for i in range(60)] for c in range(12)})
    return {"train.parquet": parquet(table, group=20, compression="zstd"), "test.parquet": parquet(table.slice(0, 5))}


def folders() -> Files:
    """Splits by folder."""
    return {
        "train/a.parquet": parquet(rows(10)),
        "train/b.parquet": parquet(rows(10, 10)),
        "test/a.parquet": parquet(rows(5, 20)),
    }


def unsplit() -> Files:
    """Parquet that no name tells a split: all of it is "train"."""
    return {"one.parquet": parquet(rows(6)), "two.parquet": parquet(rows(6, 6))}


def featured() -> Files:
    """Parquet that says more of its columns than Arrow does: labels, a list of labels, a matrix."""
    features = {
        "label": {"names": ["no", "yes"], "_type": "ClassLabel"},
        "tags": {"feature": {"names": ["x", "y", "z"], "_type": "ClassLabel"}, "_type": "List"},
        "matrix": {"shape": [2, 3], "dtype": "float32", "_type": "Array2D"},
        "text": value("string"),
    }
    table = pa.table(
        {
            "label": pa.array([i % 2 for i in range(8)], pa.int64()),
            "tags": pa.array([list(range(i % 4)) for i in range(8)], pa.list_(pa.int64())),
            "matrix": pa.array([[[i, 1, 2], [3, 4, 5]] for i in range(8)], pa.list_(pa.list_(pa.float32()))),
            "text": [f"row {i}" for i in range(8)],
        }
    )
    return {"data/train-00000-of-00001.parquet": parquet(table, group=5, features=features)}


def images() -> Files:
    """Parquet with pictures in it, some null."""
    features = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pictures = [None if i == 4 else {"bytes": image(i), "path": f"{i}.png"} for i in range(7)]
    table = pa.table({"image": pa.array(pictures, kind), "label": pa.array([i % 2 for i in range(7)], pa.int64())})
    return {"data/train-00000-of-00001.parquet": parquet(table, group=3, features=features)}


def audio() -> Files:
    """Parquet with sound in it."""
    features = {"audio": {"sampling_rate": RATE, "_type": "Audio"}, "text": value("string")}
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    sounds = [{"bytes": wav(i, channels=1 + (i == 2)), "path": f"{i}.wav"} for i in range(5)]
    table = pa.table({"audio": pa.array(sounds, kind), "text": [f"tone {i}" for i in range(5)]})
    return {"data/train-00000-of-00001.parquet": parquet(table, group=2, features=features)}


def json_lines() -> Files:
    """JSON lines, two files a split."""
    return {"train-0.jsonl": jsonl(rows(15)), "train-1.jsonl": jsonl(rows(15, 15)), "test.jsonl": jsonl(rows(4, 30))}


def csv() -> Files:
    lines = ["id,text", *(f'{i},"row {i}, quoted"' for i in range(12))]
    return {"train.csv": ("\n".join(lines) + "\n").encode()}


def image_folder() -> Files:
    """Pictures whose folders are their labels."""
    return {f"train/{('cat', 'dog')[i % 2]}/{i}.png": image(i) for i in range(6)}


def image_captions() -> Files:
    """Pictures with a line of metadata each."""
    told = [{"file_name": f"{i}.jpg", "text": f"picture {i}"} for i in range(5)]
    return {f"train/{i}.jpg": image(i, "JPEG") for i in range(5)} | {"train/metadata.jsonl": jsonl(told)}


def audio_folder() -> Files:
    """Sounds with a line of metadata each."""
    told = ["file_name,transcription", *(f"{i}.wav,tone {i}" for i in range(4))]
    return {f"data/{i}.wav": wav(i) for i in range(4)} | {"data/metadata.csv": ("\n".join(told) + "\n").encode()}


def readable() -> Files:
    return {"README.md": card("license: mit"), "data/train-00000-of-00001.parquet": parquet(rows(9))}


def empty() -> Files:
    return {"README.md": card("license: mit")}


def nothing() -> Files:
    return {}


def script() -> Files:
    """A repository of a loading script, which `datasets` no longer runs."""
    return {"script.py": b"raise SystemExit('nobody runs this')\n", "README.md": card("license: mit")}


def converted() -> Files:
    """A loading script, and what the Hub made of its rows in a branch of their own."""
    return {"converted.py": b"raise SystemExit('nobody runs this')\n", "README.md": card("license: mit")}


def converted_files() -> Files:
    return {
        "default/train/0000.parquet": parquet(rows(10)),
        "default/test/0000.parquet": parquet(rows(5, 10)),
        "other/train/0000.parquet": parquet(rows(5, 50)),
    }


REPOS: dict[str, Callable[[], Files]] = {
    "text": text,
    "carded": carded,
    "types": types,
    "wide": wide,
    "folders": folders,
    "unsplit": unsplit,
    "featured": featured,
    "images": images,
    "audio": audio,
    "json-lines": json_lines,
    "csv": csv,
    "image-folder": image_folder,
    "image-captions": image_captions,
    "audio-folder": audio_folder,
    "gated": readable,
    "private": readable,
    "empty": empty,
    "nothing": nothing,
    "script": script,
    "converted": converted,
}
