"""The repositories of the hub bench: made once, always the same; what is asked of them is in bench_hub.py.

text    four files of row groups; two of six columns are a small part of the bytes
small   a first part of the same rows, for what holds everything or begins a hundred times
files   the same rows again in many small files
images  PNG pictures with a label, in the hub's own Image feature
"""

from __future__ import annotations

import importlib.util
import json
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lazystore.testing import LocalHub

__all__ = ["FEW_COLUMNS", "Repo", "add", "repositories"]

SEED = 20261122
WORDS = 20_000
#: Bytes of the text that bodies are cut from.
SOURCE_BYTES = 4 << 20
BODY = (400, 2000)
TITLE = (20, 60)
SIDE = 64
#: Two of six columns, a twentieth of the bytes.
FEW_COLUMNS = ("title", "topic")
WARM = 64


@dataclass(frozen=True)
class Repo:
    """A repository: its name on the hub, how many files of how many rows, and of how many a row group."""

    name: str
    files: int
    rows: int
    group: int
    images: bool = False

    @property
    def count(self) -> int:
        return self.files * self.rows


def repositories(quick: bool) -> dict[str, Repo]:
    """The repositories, by what the bench calls them; those whose name begins with "warm" are for warming up."""
    part = 100 if quick else 1
    found = {
        "text": Repo("bench/text", 4, 50_000 // part, 10_000 // part),
        "small": Repo("bench/small", 4, 10_000 // part, 2_500 // part),
        "resume": Repo("bench/resume", 4, 1_000 // part, 250 // part),
        "files": Repo("bench/files", 64 if not quick else 8, 500 // (part // 10 or 1), 500),
        "images": Repo("bench/images", 4, 500 // (part // 10 or 1), 100, images=True),
        "warm": Repo("bench/warm", 1, WARM, WARM),
        "warm images": Repo("bench/warm-images", 1, WARM, WARM, images=True),
    }
    if importlib.util.find_spec("PIL") is None:  # nobody could decode them
        return {kind: repo for kind, repo in found.items() if not repo.images}
    return found


def add(hub: LocalHub, folder: Path, repo: Repo) -> int:
    """Put a repository on the hub, its files made in ``folder`` where they are not there yet; its bytes."""
    files = {}
    size = 0
    for number in range(repo.files):
        path = folder / f"{repo.name.replace('/', '-')}-{repo.rows}-{repo.group}-{number:03}.parquet"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            _write(path, repo, number)
        files[f"data/train-{number:05}-of-{repo.files:05}.parquet"] = path
        size += path.stat().st_size
    hub.add(repo.name, files)
    return size


def _write(path: Path, repo: Repo, number: int) -> None:
    from pyarrow import parquet

    table = (_pictures if repo.images else _rows)(number * repo.rows, repo.rows)
    unfinished = path.with_suffix(".part")
    parquet.write_table(table, unfinished, row_group_size=repo.group)  # snappy, as the hub's own
    unfinished.rename(path)


def _rows(first: int, count: int) -> Any:
    import numpy as np
    import pyarrow as pa

    chance = np.random.default_rng((SEED, first))
    text = _text()
    numbers = np.arange(first, first + count)
    return pa.table(
        {
            "id": numbers,
            "title": _cut(chance, text, count, TITLE),
            "topic": [f"topic-{topic}" for topic in chance.integers(0, 200, count)],
            "score": chance.random(count),
            "words": chance.integers(1, 1 << 40, count),
            "body": _cut(chance, text, count, BODY),
        }
    )


def _text() -> str:
    """Words as often as in a language: the n-th one 1/n times."""
    import numpy as np

    chance = np.random.default_rng(SEED)
    letters = np.frombuffer(b"etaoinshrdlu", "S1").astype(str)
    known = np.array(["".join(chance.choice(letters, size)) for size in chance.integers(2, 11, WORDS)])
    drawn = np.minimum(chance.zipf(1.3, SOURCE_BYTES // 5), WORDS) - 1
    return " ".join(known[drawn])


def _cut(chance: Any, text: str, count: int, lengths: tuple[int, int]) -> list[str]:
    starts = chance.integers(0, len(text) - lengths[1], count).tolist()
    sizes = chance.integers(*lengths, count).tolist()
    return [text[start : start + size] for start, size in zip(starts, sizes, strict=True)]


def _pictures(first: int, count: int) -> Any:
    import numpy as np
    import pyarrow as pa

    chance = np.random.default_rng((SEED, first))
    pixels = chance.integers(0, 64, (count, SIDE, SIDE, 3), dtype=np.uint8)
    pixels += np.linspace(0, 180, SIDE, dtype=np.uint8)[:, None]  # some of it can be foretold, as in pictures
    images = [{"bytes": _png(picture), "path": f"{first + i}.png"} for i, picture in enumerate(pixels)]
    table = pa.table({"image": images, "id": np.arange(first, first + count)})
    features = {"image": {"_type": "Image"}, "id": {"dtype": "int64", "_type": "Value"}}
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def _png(pixels: Any) -> bytes:
    """A picture as PNG (https://www.w3.org/TR/png/), 8 bits a channel, no filter."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width, _ = pixels.shape
    lines = b"".join(b"\0" + line.tobytes() for line in pixels)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body
