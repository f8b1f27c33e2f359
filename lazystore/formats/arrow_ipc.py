"""Arrow IPC files and streams taken apart: footers, schemas, and record batches as checked row batches.

An IPC file is ``ARROW1 00 00 | messages | footer | i32 length | ARROW1``, a stream only messages. pyarrow reads
schemas, and batches of types the core does not know; all others are laid under :mod:`lazystore._core.rows` without
it, so that no length in a file is believed before it was checked. Nothing is read here: bytes in, values
out. Source of the layout: the Arrow columnar format, version 5 of the metadata.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lazystore._core.ipc import IpcLayout, IpcMessage, header_length
from lazystore._core.row_shape import RowShape
from lazystore.errors import BudgetTooSmallError, FormatError, UnsupportedError, with_place
from lazystore.formats.arrow_rows import RowsSchema, RowsWriter, has_dictionary, require_pyarrow, row_type_of

if TYPE_CHECKING:
    from lazystore._core.row_shape import _RowType as RowType

__all__ = ["BATCH", "DICTIONARY", "MAGIC", "Footer", "IpcRows", "parse_footer", "parse_message", "prefix_length"]

MAGIC = b"ARROW1"
TRAILER = 10  # i32 footer length | magic
SCHEMA, DICTIONARY, BATCH = 1, 2, 3
MAX_META = 1 << 28
MAX_BODY = 1 << 46


# -- messages -------------------------------------------------------------------------------


def prefix_length(prefix: bytes | memoryview, place: str) -> int:
    """Bytes of a message's header, out of its first 8; 0 at the end of a stream.

    Raises:
        FormatError: no message begins here.
    """
    try:
        return header_length(prefix)
    except FormatError as error:
        raise FormatError(f"{place}: {error}") from None


def parse_message(data: bytes | memoryview, place: str) -> IpcMessage:
    """Take a message's header apart.

    Parameters:
        data: the header, or the whole message.
        place: its file, for messages.

    Raises:
        FormatError, UnsupportedError: as :class:`~lazystore._core.ipc.IpcMessage`.
    """
    try:
        return IpcMessage(data)
    except (FormatError, UnsupportedError) as error:
        raise with_place(error, place) from None


def read_schema(message: bytes | memoryview, place: str) -> Any:
    """The ``pyarrow.Schema`` of a file's or stream's first message (in a file, it begins at byte 8).

    Raises:
        FormatError: it is no schema, or a damaged one.
        UnsupportedError: big-endian data.
    """
    pa = require_pyarrow()
    found = parse_message(message, place)
    if found.kind != SCHEMA:
        raise FormatError(f"{place} does not begin with an Arrow schema")
    if found.big_endian:
        raise UnsupportedError(f"{place} holds big-endian Arrow data, which lazystore does not read")
    try:
        return pa.ipc.read_schema(pa.py_buffer(bytes(message)))
    except (pa.ArrowException, OSError, ValueError, NotImplementedError) as error:
        raise FormatError(f"{place} has an Arrow schema that cannot be read: {error}") from error


# -- footers --------------------------------------------------------------------------------


@dataclass(slots=True)
class Footer:
    """Where a file's messages are: position, bytes of the header and bytes of the body of each, flat
    (``array('q')``, three entries a message)."""

    dictionaries: array[int]
    batches: array[int]


def parse_footer(tail: bytes | memoryview, size: int, place: str) -> Footer | int:
    """The footer, out of the last bytes of an IPC file; or how many last bytes that takes.

    Parameters:
        tail: the last bytes of the file, at least 10.
        size: bytes of the file (for a file inside another: of the inner one).
        place: its path or URL, for messages.

    Raises:
        FormatError: not an IPC file, or a damaged one.
    """
    if bytes(tail[-6:]) != MAGIC:
        raise FormatError(f"{place} does not end like an Arrow IPC file")
    length = int.from_bytes(tail[-TRAILER:-6], "little", signed=True)
    if not 0 < length <= min(size - TRAILER - 8, MAX_META):
        raise FormatError(f"{place} has an Arrow footer of {length} bytes in a file of {size}")
    if length + TRAILER > len(tail):
        return length + TRAILER
    end = size - length - TRAILER
    try:
        dictionaries, batches = _vectors(memoryview(tail)[len(tail) - TRAILER - length : len(tail) - TRAILER])
        return Footer(_blocks(dictionaries, end), _blocks(batches, end))
    except FormatError as error:
        raise FormatError(f"{place} has a damaged Arrow footer: {error}") from None


def _vectors(footer: memoryview) -> list[memoryview]:
    """The lists of dictionaries and of record batches: fields 2 and 3 of a flatbuffer's root table."""
    root = _load("<I", footer, 0)
    fields = root - _load("<i", footer, root)
    found = []
    for slot in (8, 10):
        offset = _load("<H", footer, fields + slot) if slot < _load("<H", footer, fields) else 0
        at = root + offset + _load("<I", footer, root + offset) if offset else -4
        nbytes = 24 * _load("<I", footer, at) if offset else 0
        if at + 4 + nbytes > len(footer):
            raise FormatError("a list of messages runs past its end")
        found.append(footer[at + 4 : at + 4 + nbytes])
    return found


def _load(form: str, data: memoryview, at: int) -> int:
    if not 0 <= at <= len(data) - struct.calcsize(form):
        raise FormatError("it points outside of itself")
    value: int = struct.unpack_from(form, data, at)[0]
    return value


def _blocks(data: memoryview, end: int) -> array[int]:
    """``i64 offset | i32 header length | pad | i64 body length`` of each message, checked to lie before ``end``."""
    blocks = array("q")
    for offset, header, body in struct.iter_unpack("<qi4xq", data):
        if offset < 0 or not 8 <= header <= MAX_META or not 0 <= body <= MAX_BODY or offset + header + body > end:
            raise FormatError(f"a message of {header} + {body} bytes at {offset} does not lie in the file")
        blocks.extend((offset, header, body))
    return blocks


# -- bodies ---------------------------------------------------------------------------------


class IpcRows:
    """Row batches out of the messages of files that have one schema.

    Parameters:
        rows: of the dataset.
        schema_message: the files' first message, header and all.
        place: one of them, for messages.
        columns: those that are wanted; None: all.

    Raises:
        FormatError, UnsupportedError, ConfigError: as :func:`read_schema` and :meth:`RowsSchema.writer`.

    Attributes:
        rows: of the dataset.
        schema: the files', as pyarrow has it.
        writer: makes images out of the batches.
        native: the core knows every wanted type; otherwise pyarrow reads the batches, which takes their bytes once
            more. Dictionaries are needed only then.

    Threads: immutable. Pickling: refused.
    """

    def __init__(
        self, rows: RowsSchema, schema_message: bytes, place: str, columns: Sequence[str] | None = None
    ) -> None:
        self.rows = rows
        self.schema = read_schema(schema_message, place)
        self.writer: RowsWriter = rows.writer(self.schema, columns)
        self._message = schema_message
        pick = self.writer.pick
        wanted = [row_type_of(self.schema.field(k).type) for k in pick]
        stored = [(str(field.name), "value", _stored_type(field.type)) for field in self.schema]
        known = [(name, form, found) for name, form, found in stored if found is not None]
        self.native = len(known) == len(stored) and not any(one is None or has_dictionary(one) for one in wanted)
        self._layout: IpcLayout | None = None
        self._fields: list[int] = []  # that pyarrow reads; none: all
        if len(known) == len(stored):
            shape = self.writer.shape if self.native else RowShape([known[k] for k in pick], loose=True)
            self._layout = IpcLayout(RowShape(known, loose=True), shape, pick)
        if not self.native and 0 < len(pick) < len(stored):
            self._fields = sorted(pick)
            self.writer = rows.writer(require_pyarrow().schema([self.schema.field(k) for k in self._fields]), columns)

    @classmethod
    def own(cls, schema_message: bytes, place: str, columns: Sequence[str] | None) -> IpcRows:
        """For a dataset of this file alone."""
        return cls(RowsSchema.from_arrow(read_schema(schema_message, place), columns), schema_message, place, columns)

    def wanted_bytes(self, message: IpcMessage) -> int:
        """Bytes that the wanted columns take in a batch's body, as stored."""
        if self._layout is None or not self.native:
            return message.body_bytes
        return self._layout.wanted_bytes(message)

    def spans(self, message: IpcMessage, gap: int) -> array[int] | None:
        """What to fetch of a batch's body; see :meth:`~lazystore._core.ipc.IpcLayout.spans`.

        Returns:
            None for all of it: the wanted columns would leave out less than a quarter, or than ``gap``, or a column is
            of a type whose buffers nobody here can count.
        """
        # Counted first, which is cheap: most often everything is wanted.
        most = min(3 * message.body_bytes // 4, message.body_bytes - gap)
        if self._layout is None or self._layout.wanted_bytes(message) >= most:
            return None
        spans = self._layout.spans(message, gap)
        return spans if sum(spans[1::2]) < most else None

    def batch(
        self,
        data: memoryview,
        *,
        room: int,
        message: IpcMessage | None = None,
        before: Sequence[memoryview] = (),
        place: str = "Arrow data",
    ) -> Any:
        """A checked record batch for :meth:`RowsWriter.image`: a row batch over ``data``, or pyarrow's.

        Parameters:
            data: its message, header and body; buffers of columns that are not wanted may be empty.
            room: bytes that compressed buffers may inflate to; those of columns that are not wanted stay as they are.
            message: what :func:`parse_message` made of the header, if that was done.
            before: the dictionary messages that precede it, whole.
            place: its file, for messages.

        Raises:
            FormatError: it is damaged, or not of this schema.
            BudgetTooSmallError: compressed buffers say they need more than ``room``.
        """
        if message is None:
            message = parse_message(data, place)
        inflated = message.inflated(data) + sum(parse_message(one, place).inflated(one) for one in before)
        if inflated > room:
            raise BudgetTooSmallError(
                f"{place} has compressed Arrow data that says it inflates to {inflated} bytes, {room} may be used: "
                "give it more memory, unless the file is damaged"
            )
        try:
            if self.native and self._layout is not None:
                return self._layout.batch(message, data, inflate)
            return self._foreign([*before, data])
        except FormatError as error:
            raise FormatError(f"{place}: {error}") from None

    def _foreign(self, messages: Sequence[memoryview]) -> Any:
        """By pyarrow, its own checks of all arrays included."""
        pa = require_pyarrow()
        try:
            options = pa.ipc.IpcReadOptions(included_fields=self._fields)
            with pa.ipc.open_stream(pa.py_buffer(b"".join([self._message, *messages])), options=options) as stream:
                batch = stream.read_next_batch()
            batch.validate(full=True)
        except (pa.ArrowException, OSError, ValueError, NotImplementedError, StopIteration) as error:
            raise FormatError(f"a record batch cannot be read: {error!r}") from None
        return batch


def _stored_type(type_: Any) -> RowType | None:
    """A type that has the same arrays and buffers in a batch; None is "not one of those that can be counted".

    Of a dictionary's values a batch has only the indices.
    """
    pa = require_pyarrow()
    types = pa.types
    if isinstance(type_, pa.BaseExtensionType):
        return _stored_type(type_.storage_type)
    if types.is_dictionary(type_):
        return _stored_type(type_.index_type)
    if types.is_map(type_):
        return _stored_type(pa.list_(pa.struct([("key", type_.key_type), ("value", type_.item_type)])))
    if types.is_struct(type_):
        members = tuple(_stored_type(type_.field(k).type) for k in range(type_.num_fields))
        known = tuple(one for one in members if one is not None)
        return ("struct", 0, known, tuple(map(str, range(len(known))))) if len(known) == len(members) else None
    if types.is_list(type_) or types.is_large_list(type_) or types.is_fixed_size_list(type_):
        item = _stored_type(type_.value_type)
        if item is None:
            return None
        if types.is_fixed_size_list(type_):
            return "array", type_.list_size, (item,), ()
        return "list", 8 if types.is_large_list(type_) else 4, (item,), ()
    return row_type_of(type_)


def inflate(codec: str, data: memoryview, size: int) -> Any:
    """A compressed buffer as one of exactly ``size`` bytes."""
    pa = require_pyarrow()
    try:
        inflated = pa.Codec(codec).decompress(pa.py_buffer(data), decompressed_size=size)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise FormatError(f"a {codec} buffer of Arrow data cannot be inflated: {error}") from None
    if inflated.size != size:
        raise FormatError(f"a {codec} buffer of Arrow data inflates to {inflated.size} bytes instead of {size}")
    return inflated
