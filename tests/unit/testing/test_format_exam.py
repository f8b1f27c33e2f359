"""The exam of formats: two correct toy formats pass, and each way to be wrong fails by its name."""

from __future__ import annotations

import os
import struct
import time
import zlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from lazystore._core.decode import DecodePlan
from lazystore.errors import FormatError
from lazystore.fetch.segments import Segment, SegmentedSource, Span
from lazystore.fetch.source import Read, Source
from lazystore.formats.format import Format, Image, Opened, Options, Place, Want
from lazystore.testing import FormatCase, examine_format

DAMAGE = 40
COUNT = 150
RECORDS = [i.to_bytes(7, "little") for i in range(COUNT)]
TEXTS = [f"text {i} ".encode() * (i % 50) for i in range(COUNT)]
ONE_LEAF = [("leaf",)]


def fetched(source: Source, name: str, begin: int, nbytes: int) -> bytes:
    view = memoryview(bytearray(nbytes))
    source.run([Read(name, begin, view)], timeout=10.0)
    return bytes(view)


# -- a format whose files are put together into chunks --------------------------------------

#: "RECS", bytes of a record, number of records.
HEADER = struct.Struct("<4sII")
EACH = 64


def write_records(path: Path, records: Sequence[bytes] = RECORDS) -> Path:
    path.write_bytes(HEADER.pack(b"RECS", 7, len(records)) + b"".join(records))
    return path


class Records(Format):
    """Records of one length, 64 of which are a chunk."""

    name = "toy-records"
    suffixes = (".records",)

    def open(self, place: Place, options: Options) -> Opened:
        (file,) = place.names
        size = place.source.run([], stat=[file], timeout=place.timeout)[file]
        if size < HEADER.size:
            raise FormatError(f"{place.url}: {size} bytes are not even a header")
        magic, width, count = HEADER.unpack(fetched(place.source, file, 0, HEADER.size))
        if magic != b"RECS" or size != HEADER.size + width * count:
            raise FormatError(f"{place.url}: {size} bytes are no {count} records of {width}")
        counts = self.counts_of(count)

        def segments(name: str) -> list[Segment] | None:
            if not name.startswith("chunk-"):
                return None
            chunk = int(name[6:])
            return [
                self.table(counts[chunk], width),
                Span(file, HEADER.size + chunk * EACH * width, counts[chunk] * width),
            ]

        return Opened(
            format=self.name,
            source=SegmentedSource(place.source, segments),
            names=[f"chunk-{i}" for i in range(len(counts))],
            counts=counts,
            hints=array("Q", [4 * (n + 2) + n * width for n in counts]),
            plan=DecodePlan([("bytes", None)], ONE_LEAF, names=["record"], headless=True),
            exact=True,
            version=f"{width}-{count}",
        )

    def counts_of(self, count: int) -> array[int]:
        return array("Q", [min(EACH, count - at) for at in range(0, count, EACH)])

    def table(self, count: int, width: int) -> bytes:
        return struct.pack(f"<{count + 2}I", count, *(4 * (count + 2) + i * width for i in range(count + 1)))


# -- a format whose chunks are made ---------------------------------------------------------

BLOCK = struct.Struct("<II")  # stored bytes, items


def write_blocks(path: Path, items: Sequence[bytes] = TEXTS) -> Path:
    blocks = [items[at : at + 20] for at in range(0, len(items), 20)]
    packed = [zlib.compress(b"".join(struct.pack("<I", len(i)) + i for i in block)) for block in blocks]
    heads = b"".join(BLOCK.pack(len(data), len(block)) for data, block in zip(packed, blocks, strict=True))
    path.write_bytes(b"BLKS" + struct.pack("<I", len(blocks)) + heads + b"".join(packed))
    return path


class Runs:
    """Deflated blocks, three of which are a run."""

    LONGEST = 1 << 20

    def __init__(self, file: str, begins: Sequence[int], sizes: Sequence[int], counts: array[int]) -> None:
        self.file, self.begins, self.sizes, self.counts = file, begins, sizes, counts
        self.runs = array("Q", [*range(0, len(sizes), 3), len(sizes)])

    def scratch(self, run: int) -> int:
        return max(self.sizes[self.runs[run] : self.runs[run + 1]]) + self.LONGEST

    def open(self, run: int, first: int) -> Iterator[Any]:
        for block in range(first, self.runs[run + 1]):
            (data,) = yield [Want(self.file, self.begins[block], self.sizes[block])]
            yield self.image(block, bytes(data))

    def image(self, block: int, data: bytes) -> Image:
        inflater = zlib.decompressobj()
        try:
            plain = inflater.decompress(data, self.LONGEST)
        except zlib.error as error:
            raise FormatError(f"{self.file}: block {block}: {error}") from None
        if not inflater.eof:
            raise FormatError(f"{self.file}: block {block} is longer than {self.LONGEST} bytes, or ends early")
        return Image(block, self.packed(block, plain), len(plain))

    def packed(self, block: int, plain: bytes) -> bytes:
        items, at = [], 0
        while at < len(plain):
            if at + 4 > len(plain):
                raise FormatError(f"{self.file}: block {block} ends inside a length")
            (length,) = struct.unpack_from("<I", plain, at)
            items.append(plain[at + 4 : at + 4 + length])
            at += 4 + length
        if at != len(plain) or len(items) != self.counts[block]:
            raise FormatError(f"{self.file}: block {block} does not hold {self.counts[block]} items")
        offsets = [4 * (len(items) + 2)]
        for item in items:
            offsets.append(offsets[-1] + len(item))
        return struct.pack(f"<{len(items) + 2}I", len(items), *offsets) + b"".join(items)


class Blocks(Format):
    """Deflated blocks of byte strings."""

    name = "toy-blocks"
    suffixes = (".blocks",)
    Images = Runs

    def open(self, place: Place, options: Options) -> Opened:
        (file,) = place.names
        size = place.source.run([], stat=[file], timeout=place.timeout)[file]
        head = fetched(place.source, file, 0, min(size, 8))
        blocks = int.from_bytes(head[4:], "little")
        if len(head) < 8 or head[:4] != b"BLKS" or not 0 < blocks <= (size - 8) // BLOCK.size:
            raise FormatError(f"{place.url} has no header that fits its {size} bytes")
        table = list(BLOCK.iter_unpack(fetched(place.source, file, 8, blocks * BLOCK.size)))
        sizes, begins, at = [stored for stored, _ in table], [], 8 + blocks * BLOCK.size
        for stored in sizes:
            begins.append(at)
            at += stored
        counts = array("Q", [count for _, count in table])
        if at != size or not all(sizes) or not all(0 < count <= 1000 for count in counts):
            raise FormatError(f"{place.url}: its blocks do not fit its {size} bytes")
        return Opened(
            format=self.name,
            source=place.source,
            names=[file] * blocks,
            counts=counts,
            hints=array("Q", [0] * blocks),
            plan=DecodePlan([("bytes", None)], ONE_LEAF, names=["text"], headless=True),
            images=self.Images(file, begins, sizes, counts),
            version=str(zlib.crc32(str(table).encode())),
        )


# -- those that are right -------------------------------------------------------------------


def test_correct_format_with_chunks_put_together_passes(tmp_path: Path) -> None:
    cases = [
        FormatCase(write_records(tmp_path / "many.records"), RECORDS),
        FormatCase(str(write_records(tmp_path / "one.records", RECORDS[:1])), RECORDS[:1]),
    ]
    examine_format(Records(), cases, damage=DAMAGE)


def test_correct_format_with_made_chunks_passes(tmp_path: Path) -> None:
    examine_format(Blocks(), [FormatCase(write_blocks(tmp_path / "a.blocks"), TEXTS)], damage=DAMAGE)


def test_cache_folder_is_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    examine_format(Records(), [FormatCase(write_records(tmp_path / "a.records"), RECORDS)], damage=1)
    assert os.environ["XDG_CACHE_HOME"] == "/somewhere"


# -- those that are wrong -------------------------------------------------------------------


def failure(format: Format, path: Path, items: Sequence[bytes], **options: Any) -> str:
    case = FormatCase(path, items, checked=options.pop("checked", False))
    with pytest.raises(AssertionError) as raised:
        examine_format(format, [case], damage=DAMAGE, **options)
    return str(raised.value)


class Wrong(Records):
    """The base of what is wrong; no end of a file name is its own."""

    suffixes = ()


class CountsTooMany(Wrong):
    name = "toy-counts"

    def counts_of(self, count: int) -> array[int]:
        counts = super().counts_of(count)
        counts[-1] += 1
        return counts


class OffsetsFromItems(Wrong):
    name = "toy-offsets"

    def table(self, count: int, width: int) -> bytes:
        return struct.pack(f"<{count + 2}I", count, *(i * width for i in range(count + 1)))


class AnswersToEverything(Wrong):
    name = "toy-everything"

    def recognises(self, index: Any) -> bool:
        return True


class OtherVersions(Wrong):
    name = "toy-versions"

    def open(self, place: Place, options: Options) -> Opened:
        opened = super().open(place, options)
        opened.version = str(time.monotonic_ns())
        return opened


class Careless(Wrong):
    name = "toy-careless"

    def open(self, place: Place, options: Options) -> Opened:
        (file,) = place.names
        HEADER.unpack(place.source.read_all(file, limit=1 << 30, timeout=10.0)[: HEADER.size])
        return super().open(place, options)


class Hangs(Wrong):
    name = "toy-hangs"

    def open(self, place: Place, options: Options) -> Opened:
        try:
            return super().open(place, options)
        except FormatError:
            time.sleep(3600)
            raise


class Crashes(Wrong):
    name = "toy-crashes"

    def open(self, place: Place, options: Options) -> Opened:
        try:
            return super().open(place, options)
        except FormatError:
            os.abort()


class Floods(Wrong):
    name = "toy-floods"

    def open(self, place: Place, options: Options) -> Opened:
        try:
            return super().open(place, options)
        except FormatError:
            bytearray(1 << 40)
            raise


@pytest.mark.parametrize(
    ("format", "text"),
    [
        (CountsTooMany(), "counts add up to 151, there are 150 items"),
        (OffsetsFromItems(), "chunk 0 (chunk-0): its first item begins at byte 0, inside the table"),
        (AnswersToEverything(), "indexes of others would be read as this format"),
        (OtherVersions(), "opened a second time, it has another version"),
        (Careless(), "error: unpack requires"),
        (Crashes(), "the process crashed, signal 6"),
        (Floods(), "MemoryError"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_wrong_format_fails_by_name(format: Format, text: str, tmp_path: Path) -> None:
    found = failure(format, write_records(tmp_path / "".join(["a", *format.suffixes])), RECORDS)
    assert text in found and f"format {format.name!r} fails" in found


def test_hang_is_told_from_slowness(tmp_path: Path) -> None:
    assert "it hung for 2 s" in failure(Hangs(), write_records(tmp_path / "a.records"), RECORDS, patience=2.0)


def test_wrong_items_are_shown(tmp_path: Path) -> None:
    wanted = [*RECORDS[:9], b"another", *RECORDS[10:]]
    found = failure(Records(), write_records(tmp_path / "a.records"), wanted)
    assert f"item 9 is {RECORDS[9]!r} instead of b'another'" in found


def test_damage_that_checksums_had_to_notice_is_told(tmp_path: Path) -> None:
    found = failure(Records(), write_records(tmp_path / "a.records"), RECORDS, checked=True)
    assert "no checksum noticed" in found


def made(name: str, **methods: Any) -> Format:
    """A blocks format whose images have other methods."""
    images = type("Images", (Runs,), methods)
    return type("Wrong", (Blocks,), {"name": name, "suffixes": (), "Images": images})()


def ends_early(self: Runs, run: int, first: int) -> Iterator[Any]:
    (data,) = yield [Want(self.file, self.begins[first], self.sizes[first])]
    yield self.image(first, bytes(data))


def begins_with_the_run(self: Runs, run: int, first: int) -> Iterator[Any]:
    return Runs.open(self, run, self.runs[run])


def does_not_close(self: Runs, run: int, first: int) -> Iterator[Any]:
    for block in range(first, self.runs[run + 1]):
        while True:
            try:
                (data,) = yield [Want(self.file, self.begins[block], self.sizes[block])]
                break
            except GeneratorExit:
                continue
        yield self.image(block, bytes(data))


def small_scratch(self: Runs, run: int) -> int:
    return 10


def drops_an_item(self: Runs, block: int, plain: bytes) -> bytes:
    data = Runs.packed(self, block, plain)
    if block != 2:
        return data
    (count,) = struct.unpack_from("<I", data)
    return struct.pack("<I", count - 1) + data[4:]


def remembers(self: Runs, run: int, first: int) -> Iterator[Any]:
    """Keeps its place in the object: two runs at once disturb each other."""
    self.at = first  # type: ignore[attr-defined]
    while self.at < self.runs[run + 1]:  # type: ignore[attr-defined]
        block = self.at  # type: ignore[attr-defined]
        (data,) = yield [Want(self.file, self.begins[block], self.sizes[block])]
        yield self.image(block, bytes(data))
        self.at += 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "methods", "text"),
    [
        ("toy-early", {"open": ends_early}, "run 0 ended before block 1 of 3"),
        ("toy-begins", {"open": begins_with_the_run}, "where"),
        ("toy-open", {"open": does_not_close}, "does not let itself be closed"),
        ("toy-scratch", {"scratch": small_scratch}, "its scratch is 10"),
        ("toy-drops", {"packed": drops_an_item}, "block 2: it has 19 items, counts says 20"),
        ("toy-remembers", {"open": remembers}, "Do runs of made blocks begin at any block, go on side by side"),
    ],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of the one that cannot be closed
def test_wrong_images_fail_by_name(name: str, methods: dict[str, Any], text: str, tmp_path: Path) -> None:
    assert text in failure(made(name, **methods), write_blocks(tmp_path / "a.blocks"), TEXTS)


def test_without_a_dataset_there_is_no_exam() -> None:
    with pytest.raises(AssertionError, match="no dataset"):
        examine_format(Records(), [])
