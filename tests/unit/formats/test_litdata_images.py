"""Blocks of LitData chunks: what a block needs is read and no more, files are looked at once, damage is told."""

from __future__ import annotations

import json
import struct
import tracemalloc
from array import array
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import golden
from support.images import image, images_from, items_of
from support.litdata_chunks import CONFIG, arrow_blob, arrow_rows, classic, framed, int_str
from support.opened import samples
from support.sources import DiarySource

from lazystore.errors import BudgetTooSmallError, FormatError, LazyStoreError
from lazystore.formats.arrow_rows import RowsSchema
from lazystore.formats.format import Image, Opened, Options, Place, Wait
from lazystore.formats.litdata import LitDataIndex, parse_index
from lazystore.formats.litdata_format import LitDataFormat
from lazystore.formats.litdata_images import LitDataImages, divide

pytest.importorskip("zstandard")
pytest.importorskip("pyarrow")
BUDGET = 16 << 20


def rows_of(n: int, first: int = 0) -> list[dict[str, Any]]:
    return [{"a": i, "b": f"text {i}" * (i % 3)} for i in range(first, first + n)]


def items_of_rows(rows: Sequence[dict[str, Any]]) -> list[bytes]:
    return [int_str(row["a"], row["b"]) for row in rows]


def opened_from(
    chunks: Sequence[tuple[int, bytes]],
    *,
    hints: Sequence[int] = (),
    budget: int = BUDGET,
    sniff: str = "all",
    **config: Any,
) -> Opened:
    """A dataset in memory, opened; its source keeps a diary."""
    entries = [
        {"filename": f"c{k}.bin", "chunk_size": count, "chunk_bytes": hints[k] if hints else len(data), "dim": None}
        for k, (count, data) in enumerate(chunks)
    ]
    index = json.dumps({"chunks": entries, "config": CONFIG | config, "updated_at": "1"}).encode()
    source = DiarySource({f"c{k}.bin": data for k, (_, data) in enumerate(chunks)})
    place = Place(source, "memory://d", {}, index, timeout=5.0, budget=budget)
    opened = LitDataFormat().open(place, Options(extra={"sniff": "all"}))
    source.waves.clear()
    return opened


def batch_config(rows: int) -> dict[str, Any]:
    return {"compression": "zstd", "compression_level": "batch", "compression_batch_size": rows}


def asked(opened: Opened) -> int:
    """Bytes that were asked for since the diary was begun."""
    source = opened.source
    assert isinstance(source, DiarySource)
    total = sum(end - begin for wave in source.waves for _, begin, end in wave)
    source.waves.clear()
    return total


def index_of(counts: Sequence[int], hints: Sequence[int], **config: Any) -> LitDataIndex:
    entries = [
        {"filename": f"c{k}.bin", "chunk_size": count, "chunk_bytes": hint, "dim": None}
        for k, (count, hint) in enumerate(zip(counts, hints, strict=True))
    ]
    return parse_index(json.dumps({"chunks": entries, "config": CONFIG | config}).encode(), place="index.json")


# -- blocks ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "counts, hints, config, rows, blocks",
    [
        ([1000, 10, 0, 300], [10**8, 10**6, 0, 3 * 10**7], {}, 256, [0, 4, 5, 5, 7]),
        ([5000], [100], {}, 8192, [0, 1]),
        ([5000], [100], {"ipc_compression": "zstd"}, 1024, [0, 5]),
        ([5000, 5000], [500_000, 500_000], {}, 2048, [0, 3, 6]),
        ([5000], [500_000], {"ipc_compression": "zstd"}, 512, [0, 10]),
        ([100, 7], [10**4, 10**3], batch_config(16), 16, [0, 7, 8]),
        ([300_000], [10**7], batch_config(1), 4, [0, 75_000]),
        ([0], [0], {}, 256, [0, 0]),
        ([], [], {}, 256, [0]),
    ],
)
def test_blocks_follow_from_the_index_alone(
    counts: list[int], hints: list[int], config: dict[str, Any], rows: int, blocks: list[int]
) -> None:
    files, found = divide(index_of(counts, hints, **config))
    assert (found, list(files.blocks)) == (rows, blocks)


@given(
    st.lists(st.integers(0, 3000), max_size=6),
    st.integers(0, 1 << 40),
    st.sampled_from([{}, batch_config(1), batch_config(16), batch_config(100), {"ipc_compression": "zstd"}]),
)
def test_blocks_hold_all_items_in_whole_units(counts: list[int], hint: int, config: dict[str, Any]) -> None:
    index = index_of(counts, [hint] * len(counts), **config)
    images = LitDataImages(index, rows=RowsSchema(None), encryption=None, budget=BUDGET)
    blocks = images.files.blocks
    assert sum(images.counts) == sum(counts) and len(images.counts) == blocks[-1] == len(images.names) == len(
        images.hints
    )
    unit = config.get("compression_batch_size", 256)
    for file, count in enumerate(counts):
        found = list(images.counts[blocks[file] : blocks[file + 1]])
        assert sum(found) == count
        assert all(n % unit == 0 for n in found[:-1]) and len(set(found[:-1])) <= 1
        assert images.names[blocks[file] : blocks[file + 1]] == [f"c{file}.bin"] * len(found)
    assert images.runs == array("Q", range(blocks[-1] + 1))


# -- what is read ---------------------------------------------------------------------------


def test_one_frame_is_read_and_inflated_for_a_block() -> None:
    items = items_of_rows(rows_of(1000))
    data = framed(items, 100)
    opened = opened_from([(1000, data)], **batch_config(100))
    assert len(opened.counts) == 10
    made = image(opened, 3)
    assert items_of(made.data) == items[300:400]
    assert made.opened == sum(map(len, items[300:400]))
    assert asked(opened) < 4096 + 1100 + 240 + 404 + len(data) // 5  # the file's form, its table, one frame
    image(opened, 7)
    assert asked(opened) < 404 + len(data) // 5


@pytest.mark.parametrize("form", ["file", "stream"])
@pytest.mark.parametrize("ipc", [None, "zstd", "lz4"])
def test_record_batches_are_read_one_by_one(form: str, ipc: str | None) -> None:
    rows = [{"a": i, "b": "x" * 3000} for i in range(1000)]
    data = arrow_rows(rows, form=form, ipc=ipc)
    opened = opened_from([(1000, data)], hints=[3_000_000], ipc_compression=ipc)
    assert len(opened.counts) == 4
    made = image(opened, 2)
    assert items_of(made.data) == items_of_rows(rows[512:768])
    assert (made.opened > 256 * 3000) is (ipc is not None)
    asked(opened)
    image(opened, 1)
    assert asked(opened) < len(data) // 3 or ipc is not None


def test_a_block_of_a_classic_chunk_reads_its_items_and_their_offsets() -> None:
    items = [int_str(i, "x" * 2000) for i in range(600)]
    opened = opened_from([(600, classic(items))])
    assert items_of(image(opened, 1).data) == items[256:512]
    asked(opened)
    image(opened, 0)
    assert asked(opened) == 4 * 257 + sum(map(len, items[:256]))


def test_a_file_whose_size_the_index_has_wrong_takes_one_wave_more() -> None:
    rows = rows_of(600)
    items = items_of_rows(rows)
    for data in (arrow_rows(rows), framed(items, 256), classic(items)):
        for hint in (0, 5, len(data) // 2, len(data) - 1, len(data) + 1, 3 * len(data), 1 << 50):
            opened = opened_from([(600, data)], hints=[hint])
            assert samples(opened) == rows


def test_two_runs_look_at_a_file_once() -> None:
    rows = [{"a": i, "b": "x" * 2000} for i in range(600)]
    opened = opened_from([(600, arrow_rows(rows))])
    images = opened.images
    assert images is not None
    first, second = images.open(0, 0), images.open(1, 1)
    assert isinstance(next(first), list)
    assert isinstance(next(second), Wait)
    assert isinstance(next(second), Wait)
    first.close()  # gives up: the other one looks for itself
    assert isinstance(second.send(None), list)
    second.close()
    assert items_of(image(opened, 1).data) == items_of_rows(rows[256:512])


def test_directories_of_files_are_kept_in_bounds() -> None:
    rows = rows_of(10)
    opened = opened_from([(10, arrow_rows(rows))] * 40, budget=1 << 20)
    assert samples(opened) == rows * 40
    images = opened.images
    assert isinstance(images, LitDataImages)
    assert 0 < images._forms_bytes <= 64 * 1024 and len(images._forms) < 40


def test_runs_hold_no_more_than_they_say() -> None:
    rows = rows_of(3000)
    items = [int_str(i, "y" * (i * 37 % 500)) for i in range(3000)]
    chunks = [
        (3000, arrow_rows(rows)),
        (3000, arrow_rows(rows, ipc="zstd")),
        (3000, framed(items, 256)),
        (3000, classic(items)),
    ]
    opened = opened_from(chunks)
    images = opened.images
    assert images is not None
    for run in range(len(images.runs) - 1):
        before = images.scratch(run)
        assert 0 < before <= BUDGET // 4
        source = opened.source
        assert isinstance(source, DiarySource)
        steps = images.open(run, images.runs[run])
        answer: Any = None
        while not isinstance(step := steps.send(answer), Image):
            assert isinstance(step, list)
            wanted = sum(getattr(want, "nbytes", 0) for want in step)
            assert wanted <= images.scratch(run) <= BUDGET // 4
            data = source.objects[step[0].name]
            answer = [
                len(data) if not hasattr(want, "nbytes") else memoryview(padded(data, want.begin, want.nbytes))
                for want in step
            ]
        steps.close()
        assert images.scratch(run) <= BUDGET // 4


def padded(data: bytes, begin: int, nbytes: int) -> bytes:
    return data[begin : begin + nbytes].ljust(nbytes, b"\0")


# -- odd forms ------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 255, 256, 257, 512, 513])
@pytest.mark.parametrize("form", ["file", "stream"])
def test_arrow_rows_of_any_number(n: int, form: str) -> None:
    rows = [{"a": i, "b": None if i % 5 == 0 else "ü" * (i % 4)} for i in range(n)]
    for ipc in (None, "zstd"):
        assert samples(opened_from([(n, arrow_rows(rows, form=form, ipc=ipc))])) == rows


@given(st.lists(st.integers(1, 400), min_size=1, max_size=8), st.sampled_from(["file", "stream"]))
@example([255, 257], "file")
@example([256, 100, 256], "file")
@example([1] * 8, "stream")
@settings(max_examples=30)
def test_batches_of_any_length_are_counted(sizes: list[int], form: str) -> None:
    rows = rows_of(sum(sizes))
    assert samples(opened_from([(len(rows), arrow_rows(rows, batch=sizes, form=form))])) == rows


def test_arrow_rows_behind_a_classic_body() -> None:
    rows = rows_of(300)
    data = arrow_rows(rows, body=classic(items_of_rows(rows)))
    assert samples(opened_from([(300, data)])) == rows


def test_nested_rows() -> None:
    rows: list[dict[str, Any]] = [
        {
            "a": i,
            "n": {"l": [1, 2][: i % 3], "s": None if i % 2 else {"t": [{"q": 1.5}]}},
            "y": b"\0\xff",
            "z": [[], [None]],
        }
        for i in range(300)
    ]
    assert samples(opened_from([(300, arrow_rows(rows))])) == rows


@pytest.mark.parametrize("rows", [1, 3, 256, 1000])
@pytest.mark.parametrize("sized", [False, True])
def test_frames_of_any_length(rows: int, sized: bool) -> None:
    items = items_of_rows(rows_of(300))
    for block_rows in (1, 7, 256):
        opened = opened_from([(300, framed(items, rows, sized=sized))], **batch_config(block_rows))
        assert [
            opened.plan(item)["a"]
            for block in range(len(opened.counts))
            for item in items_of(image(opened, block).data)
        ] == list(range(300))


def test_a_long_table_of_frames_is_read_in_parts() -> None:
    items = items_of_rows(rows_of(4000))
    opened = opened_from([(4000, framed(items, 1))], **batch_config(1))
    image(opened, 5)
    asked(opened)
    assert items_of(image(opened, 3999).data) == items[3999:]
    assert asked(opened) < 200


def test_empty_items_in_frames() -> None:
    opened = opened_from(
        [(5, framed([b""] * 5, 2))], data_format=[], data_spec=json.dumps([1, EMPTY]), **batch_config(2)
    )
    assert samples(opened) == [{}] * 5


EMPTY = {"type": "builtins.dict", "context": "[]", "children_spec": []}


def test_sealed_files_are_one_run_from_any_block() -> None:
    rows = [{"a": i, "b": "x" * 2000} for i in range(600)]
    index = index_of([600], [10**6 * 2], encryption={"algorithm": "mine", "level": "chunk"})

    class Mine:
        algorithm, level = "mine", "chunk"

        def decrypt(self, data: bytes) -> bytes:
            return data[::-1]

    images = LitDataImages(index, rows=RowsSchema(None), encryption=Mine(), budget=64 << 20)
    source = DiarySource({"c0.bin": arrow_rows(rows)[::-1]})
    assert list(images.runs) == [0, 3]
    assert [made.block for made in images_from(images, source, 1)] == [1, 2]
    assert [made.opened > 0 for made in images_from(images, source, 0)] == [True, False, False]


# -- hostile bytes --------------------------------------------------------------------------


def damaged_framed(**fields: int) -> bytes:
    """A framed chunk of 20 items in frames of 8, with fields of its header or its second frame changed."""
    data = bytearray(framed(items_of_rows(rows_of(20)), 8))
    table = 24 + 4 * 21 + 24
    places = {
        "version": (8, "<H"), "flags": (10, "<H"), "n": (12, "<I"), "rows": (16, "<I"), "frames": (20, "<I"),
        "first": (table, "<I"), "count": (table + 4, "<I"), "offset": (table + 8, "<Q"), "stored": (table + 16, "<I"),
        "length": (table + 20, "<I"), "item": (24 + 4 * 9, "<I"), "last": (24 + 4 * 20, "<I"),
    }  # fmt: skip
    for name, value in fields.items():
        at, form = places[name]
        struct.pack_into(form, data, at, value)
    return bytes(data)


HUGE = (1 << 32) - 1
#: The plan lets text that is no UTF-8 to the dataset, which makes a FormatError of it.
OURS = (LazyStoreError, UnicodeDecodeError)


@pytest.mark.parametrize(
    "fields",
    [
        {"version": 2}, {"flags": 1}, {"n": 19}, {"n": HUGE}, {"rows": 0}, {"rows": 7}, {"rows": HUGE}, {"frames": 2},
        {"frames": HUGE}, {"first": 7}, {"count": 9}, {"offset": 0}, {"offset": 1 << 63}, {"stored": 0},
        {"stored": HUGE}, {"length": 0}, {"length": HUGE}, {"length": 1}, {"item": HUGE}, {"item": 0}, {"last": 0},
        {"last": HUGE},
    ],
)  # fmt: skip
def test_damaged_framed_headers_are_refused(fields: dict[str, int]) -> None:
    opened = opened_from([(20, damaged_framed(**fields))], **batch_config(8))
    tracemalloc.start()
    try:
        with pytest.raises((FormatError, BudgetTooSmallError)):
            samples(opened)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_frame_that_inflates_to_more_than_it_says_is_refused() -> None:
    import zstandard

    for sized in (False, True):
        bomb = zstandard.ZstdCompressor(write_content_size=sized).compress(bytes(200 << 20))
        items = items_of_rows(rows_of(2))
        data = bytearray(framed(items, 2))
        length = sum(map(len, items))
        entry = 24 + 12
        at = entry + 24
        struct.pack_into("<IIQII", data, entry, 0, 2, at, len(bomb), length)
        opened = opened_from([(2, bytes(data[:at]) + bomb)], **batch_config(2))
        tracemalloc.start()
        try:
            with pytest.raises(FormatError):
                samples(opened)
            assert tracemalloc.get_traced_memory()[1] < 8 << 20
        finally:
            tracemalloc.stop()


def test_an_arrow_buffer_that_claims_more_than_the_budget_is_refused() -> None:
    rows = [{"a": i, "b": "x" * 500} for i in range(100)]
    data = bytearray(arrow_rows(rows, ipc="zstd"))
    magic = data.find(b"\x28\xb5\x2f\xfd")
    assert magic > 0
    for claim in (1 << 40, (1 << 62), 50 << 20, -5):
        struct.pack_into("<q", data, magic - 8, claim)
        with pytest.raises((BudgetTooSmallError, FormatError)):
            samples(opened_from([(100, bytes(data))], ipc_compression="zstd"))


@pytest.mark.parametrize("data", [b"", b"\1\0\0\0", b"LDFZ01\0\0", bytes(12), bytes(100), b"\x28\xb5\x2f\xfd" * 10])
def test_files_of_no_form_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        samples(opened_from([(1, data)]))


def test_another_number_of_items_than_the_index_has_is_an_error() -> None:
    rows = rows_of(5)
    for data in (classic(items_of_rows(rows)), arrow_rows(rows), framed(items_of_rows(rows), 2)):
        for count in (4, 6):
            with pytest.raises(FormatError, match=f"{count} items"):
                samples(opened_from([(count, data)]))


@pytest.mark.parametrize("blob", [b"x", b"ARROW1\0\0" + bytes(40) + b"ARROW1", b"\xff\xff\xff\xff\0\0\0\0", bytes(64)])
def test_trailers_without_arrow_data_are_refused(blob: bytes) -> None:
    data = classic([b""]) + blob + struct.pack("<I", len(blob)) + b"LDARW01\0"
    with pytest.raises(LazyStoreError):
        samples(opened_from([(1, data)]))


def test_dictionaries_are_told_apart() -> None:
    import pyarrow as pa

    table = pa.table({"a": pa.array(["x", "y"]).dictionary_encode()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    blob = bytes(sink.getvalue())
    data = classic([b"", b""]) + blob + struct.pack("<I", len(blob)) + b"LDARW01\0"
    with pytest.raises(LazyStoreError, match="dictionar"):
        samples(opened_from([(2, data)]))


GOLDEN_IMAGES = ["litdata-rows", "litdata-rows-zstd", "litdata-nested-rows", "litdata-framed-zstd"]


@cache
def sound() -> dict[str, tuple[int, bytes, dict[str, Any]]]:
    """Chunks to be damaged: (items, bytes, config)."""
    found: dict[str, tuple[int, bytes, dict[str, Any]]] = {}
    for name in GOLDEN_IMAGES:
        index = json.loads((golden.GOLDEN / name / "data" / "index.json").read_text())
        chunk = index["chunks"][-1]
        data = (golden.GOLDEN / name / "data" / chunk["filename"]).read_bytes()
        found[name] = chunk["chunk_size"], data, index["config"]
    rows = rows_of(40)
    found["stream"] = 40, arrow_rows(rows, form="stream", batch=16), CONFIG
    return found


def mutations(data: st.DataObject, whole: bytes) -> bytes:
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        # The ends and what follows the table are where the structure is.
        at = data.draw(st.integers(0, len(changed) - 1) | st.integers(max(0, len(changed) - 700), len(changed) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "extend", "swap", "u32", "u64"])):
            case "flip":
                changed[at] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del changed[at + 1 :]
            case "extend":
                changed += data.draw(st.binary(min_size=1, max_size=20))
            case "swap":
                other = data.draw(st.integers(0, len(changed) - 1))
                changed[at], changed[other] = changed[other], changed[at]
            case "u32":
                value = data.draw(st.sampled_from([0, 1, 255, 1 << 20, 1 << 31, HUGE]))
                changed[at : at + 4] = struct.pack("<I", value)
            case _:
                value = data.draw(st.sampled_from([0, 1 << 33, 1 << 62, (1 << 64) - 1]))
                changed[at : at + 8] = struct.pack("<Q", value)
    return bytes(changed)


@pytest.mark.parametrize(
    "name", ["litdata-rows", "litdata-rows-zstd", "litdata-nested-rows", "litdata-framed-zstd", "stream"]
)
@given(data=st.data())
@settings(max_examples=150)
def test_damaged_chunks_are_an_error_of_ours_or_rows(name: str, data: st.DataObject) -> None:
    count, whole, config = sound()[name]
    changed = mutations(data, whole)
    opened = opened_from([(count, changed)], hints=[len(whole)], **config)
    try:
        found = samples(opened)
    except OURS:
        return
    assert len(found) == count


def sample_items(name: str) -> Iterator[tuple[Opened, bytes]]:
    from lazystore.formats.encryption import FernetEncryption

    folder = golden.GOLDEN / name
    options: dict[str, Any] = {}
    if (folder / "key").exists():
        key = folder / "key"
        options["encryption"] = FernetEncryption.load(key / "key.json", (key / "password.txt").read_text())
    source = DiarySource.of(folder / "data")
    place = Place(source, "memory://d", {}, source.objects["index.json"], timeout=5.0, budget=BUDGET)
    opened = LitDataFormat().open(place, Options(**options))
    for stored in items_of(source.objects["chunk-0-0.bin"]):
        yield opened, stored


@pytest.mark.parametrize("name", ["litdata-sample-zstd", "litdata-fernet-sample", "litdata-classic-fernet-sample"])
def test_damaged_items_are_an_error_of_ours_or_a_sample(name: str) -> None:
    pytest.importorskip("cryptography")
    items = list(sample_items(name))

    @given(st.sampled_from(items), st.data())
    @settings(max_examples=150)
    def check(pair: tuple[Opened, bytes], data: st.DataObject) -> None:
        opened, stored = pair
        try:
            found = opened.plan(mutations(data, stored))
        except OURS:
            return
        assert isinstance(found, dict)

    check()


def test_an_item_that_inflates_beyond_the_budget_is_refused() -> None:
    import zstandard

    opened = next(sample_items("litdata-sample-zstd"))[0]
    for sized in (False, True):
        bomb = zstandard.ZstdCompressor(write_content_size=sized).compress(bytes(200 << 20))
        tracemalloc.start()
        try:
            with pytest.raises(FormatError, match="allowed"):
                opened.plan(bomb)
            assert tracemalloc.get_traced_memory()[1] < 4 << 20
        finally:
            tracemalloc.stop()


def test_arrow_blobs_of_these_tests_are_what_pyarrow_reads() -> None:
    import pyarrow as pa

    rows = rows_of(600)
    assert pa.ipc.open_file(arrow_blob(rows)).read_all().to_pylist() == rows
    assert pa.ipc.open_stream(arrow_blob(rows, form="stream")).read_all().to_pylist() == rows
