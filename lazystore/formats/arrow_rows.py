"""Arrow columns as rows: which leaves a schema has, and how record batches become chunks in the classic layout.

The plain types (integers, floats, bool, text, bytes, and lists, structs and dictionaries of them) are rewritten in C
(:mod:`lazystore._core.rows`) and decoded like any other leaf. Cells of the other types are kept as Arrow
has them and given to pyarrow when they are looked at: they come back exactly as ``to_pylist`` has them. Where batches
come from is not known here. Needs pyarrow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from lazystore._core.row_image import row_image
from lazystore._core.row_shape import RowShape
from lazystore._core.rows import RowBatch
from lazystore.errors import BudgetTooSmallError, ConfigError, FormatError, MissingExtraError, UnsupportedError

if TYPE_CHECKING:
    from lazystore._core.row_shape import _RowType as RowType
    from lazystore._core.rows import _RowView as RowView

__all__ = ["RowsSchema", "RowsWriter", "has_dictionary", "require_pyarrow", "row_type_of"]

#: As :class:`~lazystore._core.decode.DecodePlan` takes them.
Leaf: TypeAlias = tuple[str, Any, dict[str, Any]]
MAX_IMAGE = (1 << 32) - 3
#: Bytes of a cell that is a stream of its own, besides its value.
PACKED_BYTES = 512


def require_pyarrow() -> Any:
    """The package.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import pyarrow
    except ImportError:
        raise MissingExtraError("Arrow and Parquet data need pyarrow: pip install lazystore[arrow]") from None
    return pyarrow


class RowsSchema:
    """The rows of a dataset: a flat dict, each of whose values may be None.

    Parameters:
        columns: name, operation and argument of each leaf, in order; None: rows have no fixed columns, all of
            them are written loose.

    Threads: immutable. Pickling: refused by what its leaves hold; make it anew from the schema.
    """

    def __init__(self, columns: Sequence[tuple[str, str, Any]] | None) -> None:
        self._columns = None if columns is None else list(columns)

    @classmethod
    def from_arrow(cls, schema: Any, columns: Sequence[str] | None = None) -> RowsSchema:
        """The rows of a file.

        Parameters:
            schema: a ``pyarrow.Schema``.
            columns: those that are wanted, in the order wanted; None: all.

        Raises:
            ConfigError: a column that is not there.
            UnsupportedError: two columns of one name.
        """
        return cls([(c.name, c.op, c.argument) for c in _columns(schema, columns)])

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(name for name, _, _ in self._columns or ())

    @property
    def leaves(self) -> list[Leaf]:
        """As :class:`~lazystore._core.decode.DecodePlan` takes them."""
        return [(op, argument, {"nullable": True}) for _, op, argument in self._columns or ()]

    @property
    def tree(self) -> list[tuple[Any, ...]]:
        """The plan's program: one flat dict."""
        return [("leaf",)] * len(self.keys) + [("dict", self.keys)]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row in an image besides what its cells have in the file, about."""
        packed = sum(isinstance(argument, PackedCell) for _, _, argument in self._columns or ())
        return 4 * (len(self.keys) + 1) + PACKED_BYTES * packed

    @property
    def names(self) -> list[str]:
        """One a leaf, for messages."""
        return [f"{name}: {op}" for name, op, _ in self._columns or ()]

    def writer(self, schema: Any, columns: Sequence[str] | None = None) -> RowsWriter:
        """Who writes the rows of batches of this ``pyarrow.Schema``.

        Columns that are the dataset's own (names, order, operations) are written for its plan; any others are
        written loose: such a row names its columns itself, and comes out with those it has.

        Raises:
            ConfigError, UnsupportedError: as :meth:`from_arrow`; loose rows of a type that they cannot hold.
        """
        found = _columns(schema, columns)
        fits = self._columns is not None and [c.name for c in found] == list(self.keys)
        for mine, column in zip(self._columns or (), found, strict=False):
            fits = fits and (column.form == "none" or mine[1:] == (column.op, column.argument))
        return RowsWriter(schema, found, loose=not fits)


class RowsWriter:
    """Writes rows of record batches that have one schema; see :meth:`RowsSchema.writer`.

    Attributes:
        loose: rows name their columns themselves.
        pick: number in the schema of each wanted column.
        shape: the wanted columns as the core has them.

    Threads: immutable. Pickling: refused.
    """

    def __init__(self, schema: Any, columns: Sequence[_Column], *, loose: bool) -> None:
        self._schema = schema
        self._columns = columns
        self.pick = [schema.get_field_index(column.name) for column in columns]
        self._packed = any(column.packed for column in columns)
        self.loose = loose
        for column in columns:
            if loose and column.op == "call" and column.argument is not _unsigned:
                raise UnsupportedError(
                    f"column {column.name!r} has type {column.type}, which can be read only where all files of the "
                    "dataset have the same columns in the same order; choose others with columns="
                )
        self.shape = RowShape(
            [(c.name, c.form, ("uint", 8, (), ()) if loose and c.op == "call" else c.row_type) for c in columns],
            loose=loose,
        )

    def image(self, batches: Any, first_row: int, n_rows: int, *, limit: int = MAX_IMAGE) -> bytearray:
        """The chunk ``u32 n | u32 offset[n+1] | rows`` of some rows.

        Parameters:
            batches: record batches, or a table; what :meth:`bind` made of a batch will do as well.
            first_row, n_rows: counted over all of them.
            limit: bytes the image may have.

        Raises:
            FormatError: the batches have another schema or fewer rows, or their buffers contradict themselves.
            BudgetTooSmallError: the image would be larger than ``limit``.

        Cost: ~5 us a column and batch, and ~20 ns a row of an int and 250 bytes of text.
        """
        return row_image(self.shape, self._parts(batches, first_row, n_rows, limit), limit=limit)

    def bind(self, batch: Any, *, limit: int = MAX_IMAGE) -> RowBatch:
        """A record batch's buffers, checked; for several images of one batch.

        Raises:
            FormatError: the batch has another schema, or its buffers are too short.
            BudgetTooSmallError: cells that are written as streams of their own take more than ``limit``.
        """
        if batch.schema is not self._schema and not batch.schema.equals(self._schema):
            raise FormatError(f"a record batch has the columns {batch.schema.names}, not {self._schema.names}")
        views: list[RowView] = []
        for column, k in zip(self._columns, self.pick, strict=True):
            array = batch.column(k)
            _views(_pack(array, limit) if column.packed else array, column.row_type, views)
        return RowBatch(self.shape, views, batch.num_rows)

    def _parts(self, batches: Any, first: int, n: int, limit: int) -> Iterator[tuple[RowBatch, int, int]]:
        if hasattr(batches, "to_batches"):
            batches = batches.to_batches()
        for batch in batches:
            if not n:
                break
            bound = isinstance(batch, RowBatch)
            rows = batch.rows if bound else batch.num_rows
            skip = min(first, rows)
            take = min(n, rows - skip)
            first -= skip
            n -= take
            if self._packed and take:
                yield self.bind(batch.slice(skip, take), limit=limit), 0, take
            elif take:
                yield batch if bound else self.bind(batch), skip, take
        if n:
            raise FormatError(f"{n} rows are missing: the record batches have fewer than expected")


# -- types ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Column:
    """How one column is written (``form``, ``row_type``, ``packed``) and read (``op``, ``argument``)."""

    name: str
    type: Any
    form: str
    row_type: RowType
    op: str
    argument: Any = None
    packed: bool = False


def _columns(schema: Any, wanted: Sequence[str] | None) -> list[_Column]:
    try:
        return _found_columns(schema, wanted)
    except UnicodeDecodeError as error:
        raise FormatError(f"the schema has a name that is not UTF-8: {error}") from error


def _found_columns(schema: Any, wanted: Sequence[str] | None) -> list[_Column]:
    names = list(schema.names)
    if wanted is not None:
        if isinstance(wanted, str) or not all(isinstance(name, str) for name in wanted):
            raise ConfigError(f"columns={wanted!r} must be a list of column names")
        if missing := [name for name in wanted if name not in names]:
            raise ConfigError(f"columns={missing} are not in the data, which has {names}")
    chosen = names if wanted is None else list(wanted)
    for name in chosen:
        if names.count(name) > 1:
            raise UnsupportedError(f"two columns are called {name!r}; rows are dicts, so choose others with columns=")
    if len(set(chosen)) < len(chosen):
        raise ConfigError(f"columns={wanted!r} names a column twice")
    return [_column(name, schema.field(name).type) for name in chosen]


def _column(name: str, type_: Any) -> _Column:
    row_type = row_type_of(type_)
    if row_type is None:
        return _Column(name, type_, "bytes", ("bytes", 8, (), ()), "call", PackedCell(type_), packed=True)
    if row_type[0] == "null":
        return _Column(name, type_, "none", row_type, "value")
    if require_pyarrow().types.is_uint64(type_):
        return _Column(name, type_, "bytes", ("raw", 8, (), ()), "call", _unsigned)
    if _is_cell(type_):
        return _Column(name, type_, "bytes", row_type, "call", Cell(type_))
    form = _form(row_type)
    return _Column(name, type_, form, row_type, form)


def row_type_of(type_: Any) -> RowType | None:
    """An Arrow type as :class:`RowShape` takes it; None is "not one that the core can lay out"."""
    types = require_pyarrow().types
    return ("raw", type_.bit_width // 8, (), ()) if _is_cell(type_) else _row_type(types, type_)


def has_dictionary(row_type: RowType) -> bool:
    """Whether values of it may lie in a dictionary."""
    return row_type[0] == "dict" or any(map(has_dictionary, row_type[2]))


def _form(row_type: RowType) -> str:
    kind, _, children, _ = row_type
    if kind == "dict":
        return _form(children[0])
    return _FORMS.get(kind, "value")


_FORMS = {kind: kind for kind in ("int", "float", "bool", "str", "bytes")} | {"uint": "int", "raw": "bytes"}


def _row_type(types: Any, type_: Any) -> RowType | None:
    """The type as :class:`RowShape` takes it; None is "not one of the plain types"."""
    for test, row_type in _PLAIN:
        if getattr(types, test)(type_):
            return row_type
    if types.is_fixed_size_binary(type_):
        return "raw", type_.byte_width, (), ()
    if types.is_dictionary(type_):
        index = _row_type(types, type_.index_type)
        child = _row_type(types, type_.value_type)
        if index is None or child is None or types.is_uint64(type_.value_type):
            return None
        return "dict", -index[1] if index[0] == "int" else index[1], (child,), ()
    if types.is_struct(type_):
        fields = [type_.field(i) for i in range(type_.num_fields)]
        keys = tuple(field.name for field in fields)
        members = [_row_type(types, field.type) for field in fields]
        if None in members or len(set(keys)) < len(keys):
            return None
        return "struct", 0, tuple(member for member in members if member is not None), keys
    if types.is_list(type_) or types.is_large_list(type_) or types.is_fixed_size_list(type_):
        item = _row_type(types, type_.value_type)
        if item is None:
            return None
        if types.is_fixed_size_list(type_):
            return "array", type_.list_size, (item,), ()
        return "list", 8 if types.is_large_list(type_) else 4, (item,), ()
    return None


_PLAIN: tuple[tuple[str, RowType], ...] = (
    ("is_null", ("null", 0, (), ())),
    ("is_boolean", ("bool", 0, (), ())),
    *((f"is_int{8 * n}", ("int", n, (), ())) for n in (1, 2, 4, 8)),
    *((f"is_uint{8 * n}", ("uint", n, (), ())) for n in (1, 2, 4, 8)),
    *((f"is_float{8 * n}", ("float", n, (), ())) for n in (2, 4, 8)),
    ("is_string", ("str", 4, (), ())),
    ("is_large_string", ("str", 8, (), ())),
    ("is_binary", ("bytes", 4, (), ())),
    ("is_large_binary", ("bytes", 8, (), ())),
)


def _is_cell(type_: Any) -> bool:
    """Types of so many bytes a cell that pyarrow has an object of its own for."""
    types = require_pyarrow().types
    return bool(types.is_temporal(type_) or types.is_decimal(type_) or types.is_interval(type_))


# -- arrays ---------------------------------------------------------------------------------


def _views(array: Any, row_type: RowType, views: list[RowView]) -> None:
    """Buffers of an array and what is below it, in depth-first order."""
    kind, _, children, _ = row_type
    if kind == "dict":
        indices = array.indices
        valid, data = indices.buffers()
        views.append((indices.offset, len(indices), valid, data, None))
        _views(array.dictionary, children[0], views)
        return
    buffers = array.buffers()
    if kind == "null":
        views.append((0, len(array), None, None, None))
    elif kind in ("str", "bytes"):
        views.append((array.offset, len(array), buffers[0], buffers[1], buffers[2]))
    elif kind in ("struct", "array"):
        views.append((array.offset, len(array), buffers[0], None, None))
        for k, child in enumerate(children):
            # field() is already cut to the struct's own elements, values is not.
            _views(array.field(k) if kind == "struct" else array.values, child, views)
    else:
        views.append((array.offset, len(array), buffers[0], buffers[1], None))
        if kind == "list":
            _views(array.values, children[0], views)


def _pack(array: Any, limit: int) -> Any:
    """Each cell as an Arrow stream of its own: any type there is, at ~20 us a cell.

    Raises:
        BudgetTooSmallError: they take more than ``limit``, as cells that are runs of one value well may.
    """
    pa = require_pyarrow()
    cells: list[bytes | None] = []
    total = 0
    schema = pa.schema([("cell", array.type)])
    for i in range(len(array)):
        one = array.slice(i, 1)
        if one.null_count:
            cells.append(None)
            continue
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema) as stream:
            stream.write_batch(pa.record_batch([one], schema=schema))
        stream_bytes = sink.getvalue()
        total += stream_bytes.size
        if total > limit:
            needed = total * len(array) // (i + 1)
            raise BudgetTooSmallError(
                f"{len(array)} rows of type {array.type} take about {needed} bytes, an image may have {limit}: "
                f"give at least {4 * needed} bytes of memory, unless the file is damaged",
                needed=needed,
            )
        cells.append(stream_bytes.to_pybytes())
    return pa.array(cells, pa.large_binary())


# -- cells that pyarrow decodes --------------------------------------------------------------


def _unsigned(data: bytes) -> int:
    return int.from_bytes(data, "little")


class Cell:
    """Decodes a cell of a type of fixed width: timestamps, dates, times, durations, decimals, intervals."""

    def __init__(self, type_: Any) -> None:
        self._type = type_
        self._pa = require_pyarrow()

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other._type.equals(self._type)

    __hash__ = None  # type: ignore[assignment]

    def __call__(self, data: bytes) -> Any:
        pa = self._pa
        return self._value(lambda: pa.Array.from_buffers(self._type, 1, [None, pa.py_buffer(data)]))

    def _value(self, make: Callable[[], Any]) -> Any:
        try:
            return make()[0].as_py()
        except (ValueError, OverflowError, ArithmeticError, self._pa.ArrowException) as error:
            raise FormatError(f"a cell of type {self._type} is no Python value: {error}") from error


class PackedCell(Cell):
    """Decodes a cell that is an Arrow stream of one row, made here in memory."""

    def __call__(self, data: bytes) -> Any:
        return self._value(lambda: self._pa.ipc.open_stream(data).read_next_batch().column(0))
