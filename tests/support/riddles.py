"""A format whose blocks have to be made: items lie in the file with every byte complemented, in runs of blocks.

A file is ``u32 length, u32 sizes of the blocks' bodies`` and the bodies; each body ``u32 size[k] | items``. Blocks of a
run are only to be had one after the other. The smallest real :class:`~lazystore.formats.format.Images`.
"""

from __future__ import annotations

import json
import struct
from array import array
from collections.abc import Generator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from lazystore._core.decode import DecodePlan
from lazystore.errors import FormatError
from lazystore.fetch.source import Source
from lazystore.formats.format import Files, Format, Image, Opened, Options, Place, Step, Wait, Want

PLAN = DecodePlan([("bytes", None)], [("leaf",)], names=["blob"], headless=True)


def item(i: int, size: int = 300) -> bytes:
    """Item ``i``: of many lengths, every byte a function of ``i``."""
    return (b"%d." % i * size)[: (i * 37) % (2 * size)]


def riddle(data: bytes) -> bytes:
    return bytes(byte ^ 0xFF for byte in data)


def file_of(blocks: Sequence[Sequence[bytes]]) -> bytes:
    """A file of blocks of items."""
    bodies = [struct.pack(f"<{len(block)}I", *map(len, block)) + riddle(b"".join(block)) for block in blocks]
    return struct.pack(f"<{len(bodies) + 1}I", len(bodies), *map(len, bodies)) + b"".join(bodies)


class Riddles:
    """Blocks of such files.

    ``wait`` makes every run ask once to wait for another; ``log`` notes what is opened, ("open", run, first), and
    what is closed before its end, ("drop", run).
    """

    def __init__(
        self, names: Sequence[str], counts: Sequence[Sequence[int]], *, run: int = 1, wait: bool = False
    ) -> None:
        self._names = names
        self._counts = [list(row) for row in counts]
        self._run = run
        self._wait = wait
        self.log: list[tuple[Any, ...]] = []
        starts = [0]
        self._of_run: list[tuple[int, int]] = []  # file, first block in it
        for number, row in enumerate(self._counts):
            for first in range(0, len(row), run):
                self._of_run.append((number, first))
                starts.append(starts[-1] + min(run, len(row) - first))
        self.runs = array("Q", starts)

    def scratch(self, run: int) -> int:
        return 1 << 15

    def open(self, run: int, first: int) -> Generator[Step, Any, None]:
        self.log.append(("open", run, first))
        number, begin = self._of_run[run]
        name, row = self._names[number], self._counts[number]
        try:
            if self._wait:
                yield Wait()
            (head,) = yield [Want(name, 0, 4 * (len(row) + 1))]
            n, *sizes = struct.unpack(f"<{len(row) + 1}I", head)
            if n != len(row):
                raise FormatError(f"it has {n} blocks instead of {len(row)}")
            starts = list(accumulate(sizes, initial=4 * (n + 1)))
            for block in range(self.runs[run], self.runs[run + 1]):
                k = begin + block - self.runs[run]
                (body,) = yield [Want(name, starts[k], sizes[k])]
                if block >= first:
                    yield Image(block, _image(bytes(body), row[k]), opened=sizes[k])
        except GeneratorExit:
            self.log.append(("drop", run))
            raise


def _image(body: bytes, count: int) -> bytes:
    sizes = struct.unpack_from(f"<{count}I", body)
    items = riddle(body[4 * count :])
    if sum(sizes) != len(items):
        raise FormatError("the sizes of its items do not add up")
    offsets = accumulate(sizes, initial=4 * (count + 2))
    return struct.pack(f"<{count + 2}I", count, *offsets) + items


def files(blocks_a_file: Sequence[int], items_a_block: int = 40) -> tuple[dict[str, bytes], list[list[int]]]:
    """Objects, and the counts of their blocks; items are numbered through."""
    objects: dict[str, bytes] = {}
    counts: list[list[int]] = []
    i = 0
    for number, n in enumerate(blocks_a_file):
        row = [[item(k) for k in range(i + b * items_a_block, i + (b + 1) * items_a_block)] for b in range(n)]
        i += n * items_a_block
        objects[f"r{number}.bin"] = file_of(row)
        counts.append([items_a_block] * n)
    return objects, counts


def opened(source: Source, counts: Sequence[Sequence[int]], images: Riddles) -> Opened:
    """Such files as a dataset."""
    names = [f"r{number}.bin" for number in range(len(counts))]
    blocks = array("Q", (count for row in counts for count in row))
    return Opened(
        "riddles", source, [name for name, row in zip(names, counts, strict=True) for _ in row], blocks,
        array("Q", (12_000 for _ in blocks)), PLAN, images=images,
        files=Files(
            names, array("Q", map(sum, counts)), array("Q", (12_000 * len(row) for row in counts)),
            array("Q", accumulate(map(len, counts), initial=0)),
        ),
    )  # fmt: skip


class RiddleFormat(Format):
    """Folders of such files: ``index.json`` is ``{"riddles": [[file name, [items of each block]], ...], "run": n}``."""

    name = "riddles"

    def recognises(self, index: Mapping[str, Any]) -> bool:
        return "riddles" in index

    def open(self, place: Place, options: Options) -> Opened:
        index = json.loads(place.index)
        names = [name for name, _ in index["riddles"]]
        counts = [row for _, row in index["riddles"]]
        return opened(place.source, counts, Riddles(names, counts, run=index["run"]))


def write(folder: Path, blocks_a_file: Sequence[int], *, run: int = 1) -> int:
    """A folder of riddles; returns the number of items."""
    objects, counts = files(blocks_a_file)
    folder.mkdir(parents=True)
    for name, data in objects.items():
        (folder / name).write_bytes(data)
    index = {"riddles": [[name, row] for name, row in zip(objects, counts, strict=True)], "run": run}
    (folder / "index.json").write_text(json.dumps(index))
    return sum(map(sum, counts))
