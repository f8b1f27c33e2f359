"""Arrow messages that LitData wrote are read without pyarrow; damaged ones are refused before anything is believed."""

from __future__ import annotations

import pickle
import struct
from array import array
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models.rows import row
from support.golden import GOLDEN, assert_same, expected
from support.images import items_of

from lazystore._core.ipc import IpcLayout, IpcMessage, header_length
from lazystore._core.row_image import row_image
from lazystore._core.row_shape import RowShape
from lazystore.errors import ConfigError, FormatError, UnsupportedError

INT, TEXT = ("int", 8, (), ()), ("str", 4, (), ())
COLUMNS = [("id", "int", INT), ("text", "str", TEXT), ("label", "str", TEXT)]
SHAPE = RowShape(COLUMNS)
WHOLE = IpcLayout(SHAPE, SHAPE, [0, 1, 2])


def messages(name: str) -> Iterator[bytes]:
    """Record batches of a golden dataset, chunk by chunk; each message whole."""
    for path in sorted((GOLDEN / name / "data").glob("*.bin")):
        data = path.read_bytes()
        blob = data[len(data) - 12 - int.from_bytes(data[-12:-8], "little") : -12]
        at = 8
        while length := header_length(blob[at : at + 8]):
            message = IpcMessage(blob[at : at + length])
            if message.kind == 3:
                yield blob[at : at + length + message.body_bytes]
            at += length + message.body_bytes


def inflate(codec: str, data: memoryview, size: int) -> bytes:
    zstandard = pytest.importorskip("zstandard")
    assert codec == "zstd"
    found: bytes = zstandard.ZstdDecompressor().decompress(data, max_output_size=size)
    return found


def rows_of(layout: IpcLayout, shape: RowShape, data: bytes, ops: list[str]) -> list[dict[str, Any]]:
    message = IpcMessage(data)
    batch = layout.batch(message, data, inflate)
    image = row_image(shape, [(batch, 0, batch.rows)], limit=1 << 20)
    return [row(item, shape.names, [(op, None, {"nullable": True}) for op in ops]) for item in items_of(image)]


@pytest.mark.parametrize("name", ["litdata-rows", "litdata-rows-zstd"])
def test_golden_batches_are_read(name: str) -> None:
    found = [one for data in messages(name) for one in rows_of(WHOLE, SHAPE, data, ["int", "str", "str"])]
    assert_same(found, expected(name))


def test_only_the_wanted_columns_are_laid_in_the_order_wanted() -> None:
    shape = RowShape([COLUMNS[2], COLUMNS[0]])
    layout = IpcLayout(SHAPE, shape, [2, 0])
    data = next(messages("litdata-rows"))
    wanted = [{"label": one["label"], "id": one["id"]} for one in rows_of(WHOLE, SHAPE, data, ["int", "str", "str"])]
    assert rows_of(layout, shape, data, ["str", "int"]) == wanted
    message = IpcMessage(data)
    assert 0 < layout.wanted_bytes(message) < WHOLE.wanted_bytes(message) <= message.body_bytes


def test_what_a_header_says() -> None:
    (data, *_) = messages("litdata-rows-zstd")
    message = IpcMessage(data)
    assert (message.kind, message.rows, message.codec) == (3, 256, "zstd")
    assert message.header == header_length(data) and message.header + message.body_bytes == len(data)
    assert message.body_bytes < message.inflated(data) < 1 << 20
    assert header_length(b"\xff\xff\xff\xff\0\0\0\0") == header_length(bytes(8)) == 0
    for thing in (message, WHOLE):
        with pytest.raises(TypeError):
            pickle.dumps(thing)


@pytest.mark.parametrize("data", [b"", b"\xff\xff\xff\xff", b"\xff\xff\xff\xff\x10\0\0\0" + bytes(16), bytes(64)])
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        IpcMessage(data)


def test_batches_of_another_schema_are_refused() -> None:
    data = next(messages("litdata-rows"))
    for columns in ([*COLUMNS, ("more", "int", INT)], [("id", "str", TEXT), *COLUMNS[1:], ("more", "str", TEXT)]):
        shape = RowShape(columns)
        with pytest.raises(FormatError):
            rows_of(IpcLayout(shape, shape, range(4)), shape, data, ["int"] * 4)
    with pytest.raises(ConfigError):
        IpcLayout(SHAPE, RowShape([COLUMNS[0]]), [1])
    with pytest.raises(ConfigError):
        IpcLayout(SHAPE, RowShape([COLUMNS[0]]), [3])
    with pytest.raises(ConfigError):
        IpcLayout(SHAPE, RowShape([COLUMNS[0]]), [])


# -- parts of a body ------------------------------------------------------------------------


def parts(bounds: list[int]) -> array[int]:
    """Every other stretch between the bounds, as spans."""
    return array("q", [n for a, b in zip(bounds[::2], bounds[1::2], strict=False) for n in (a, b - a)])


@given(st.sampled_from(["litdata-rows", "litdata-rows-zstd"]), st.data())
def test_an_excerpt_has_the_buffers_of_its_parts_and_no_others(name: str, data: st.DataObject) -> None:
    stored = next(messages(name))
    message = IpcMessage(stored)
    body, buffers = stored[message.header :], message.buffers
    edges = [at + n for at, nbytes in zip(buffers[::2], buffers[1::2], strict=True) for n in (0, nbytes)]
    bound = st.integers(0, len(body)) | st.sampled_from([*edges, len(body)])
    spans = parts(sorted(data.draw(st.lists(bound, max_size=8))))
    pairs = list(zip(spans[::2], spans[1::2], strict=True))
    less = bytes(message.excerpt(stored, spans)) + b"".join(body[at : at + n] for at, n in pairs)
    found = IpcMessage(less)
    assert (found.kind, found.rows, found.codec, found.header) == (3, message.rows, message.codec, message.header)
    assert found.header + found.body_bytes == len(less)
    for k in range(0, len(buffers), 2):
        at, nbytes = buffers[k : k + 2]
        inside = any(begin <= at and at + nbytes <= begin + n for begin, n in pairs)
        # Between two parts that touch, a buffer may be in both; only one is looked at, never another's bytes.
        now, n_now = found.buffers[k : k + 2]
        assert n_now == (nbytes if inside else 0)
        assert less[found.header + now :][:n_now] == body[at : at + n_now]


@given(st.integers(0, 5000), st.lists(st.sampled_from([0, 1, 2]), unique=True))
def test_the_parts_of_wanted_columns_hold_their_buffers_and_are_far_apart(gap: int, pick: list[int]) -> None:
    data = next(messages("litdata-rows"))
    message = IpcMessage(data)
    shape = RowShape([COLUMNS[k] for k in pick])
    layout = IpcLayout(SHAPE, shape, pick)
    spans = layout.spans(message, gap)
    pairs = list(zip(spans[::2], spans[1::2], strict=True))
    for (a, n), (b, _) in pairwise(pairs):
        assert b - a - n > gap
    assert all(a % 64 == 0 and 0 <= a <= a + n <= message.body_bytes for a, n in pairs)
    assert layout.wanted_bytes(message) <= sum(spans[1::2])
    less = bytes(message.excerpt(data, spans)) + b"".join(data[message.header + a :][:n] for a, n in pairs)
    ops = [COLUMNS[k][1] for k in pick]
    assert rows_of(layout, shape, less, ops) == rows_of(layout, shape, data, ops)
    if gap == 0 and len(pick) == 1:
        assert sum(spans[1::2]) < layout.wanted_bytes(message) + 3 * 128


def test_parts_that_are_none_of_the_body_are_refused() -> None:
    data = next(messages("litdata-rows"))
    message = IpcMessage(data)
    for spans in ([-1, 4], [0, -1], [0, message.body_bytes + 1], [64, 64, 0, 64], [0, 65, 64, 64], [1 << 62, 1 << 62]):
        with pytest.raises(FormatError, match="does not lie"):
            message.excerpt(data, array("q", spans))
    with pytest.raises(FormatError, match="not the header"):
        message.excerpt(data[: message.header - 1], array("q"))


def test_unsigned_numbers_may_be_laid_as_bytes() -> None:
    shape = RowShape([("id", "bytes", ("raw", 8, (), ()))])
    IpcLayout(RowShape([("id", "int", ("uint", 8, (), ()))]), shape, [0])
    with pytest.raises(ConfigError):
        IpcLayout(RowShape([("id", "int", ("uint", 4, (), ()))]), shape, [0])


# -- damage ---------------------------------------------------------------------------------

SMALL = [min(messages(name), key=len) for name in ("litdata-rows", "litdata-rows-zstd")]


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(SMALL), st.data())
def test_damaged_messages_raise_or_give_rows(original: bytes, data: st.DataObject) -> None:
    header = header_length(original)
    damaged = bytearray(original)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, header) | st.integers(0, len(original)))
        new = data.draw(st.sampled_from([b"\xff" * 4, b"\xff\xff\xff\x7f", bytes(4), b"\x80"]) | st.binary(max_size=8))
        damaged[at : at + len(new)] = new
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(damaged))) :]

    def careful(codec: str, stored: memoryview, size: int) -> bytes:
        if size > 1 << 20 or codec != "zstd":
            raise FormatError("more than there is")
        try:
            return inflate(codec, stored, size)
        except pytest.importorskip("zstandard").ZstdError:
            raise FormatError("no zstd") from None

    try:
        message = IpcMessage(damaged)
        batch = WHOLE.batch(message, damaged, careful)
        image = row_image(SHAPE, [(batch, 0, batch.rows)], limit=1 << 20)
    except (FormatError, UnsupportedError):
        return
    assert len(items_of(image)) == message.rows


def test_every_truncation_of_a_header_is_refused() -> None:
    header = header_length(SMALL[0])
    for end in range(header):
        with pytest.raises(FormatError):
            IpcMessage(SMALL[0][:end])


def test_headers_in_the_older_form_are_read() -> None:
    data = SMALL[0]
    (length,) = struct.unpack_from("<i", data, 4)
    older = data[4:]
    assert header_length(older) == length + 4
    assert rows_of(WHOLE, SHAPE, older, ["int", "str", "str"]) == rows_of(WHOLE, SHAPE, data, ["int", "str", "str"])
