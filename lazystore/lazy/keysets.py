"""Orders by which rows can be paged: what comes after a row, as SQL and by bisecting what is sorted.

An order is total (it ends in something unique) and places NULLs by rule, so that a walk from row to row meets each
row once, whatever is inserted or deleted meanwhile. Cursors and pages are made of this elsewhere; no I/O here.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from lazystore.errors import ConfigError, LoadError

__all__ = ["Clause", "Column", "Keyset", "Seek", "keyset"]

#: How a placeholder is written: number, name -> text. The five of PEP 249, and PostgreSQL's own.
_STYLES: dict[str, Callable[[int, str], str]] = {
    "qmark": lambda number, name: "?",
    "numeric": lambda number, name: f":{number}",
    "numbered": lambda number, name: f"${number}",
    "named": lambda number, name: f":{name}",
    "format": lambda number, name: "%s",
    "pyformat": lambda number, name: f"%({name})s",
}
_NAMED = ("named", "pyformat")
_REUSED = ("numeric", "numbered", *_NAMED)


@dataclass(frozen=True, slots=True)
class Column:
    """One column of an order: its name, which way it runs, whether it may be NULL, and where NULLs come."""

    name: str
    descending: bool = False
    nullable: bool = False
    nulls_first: bool = False

    def reversed(self) -> Column:
        """The same column read from the end."""
        return replace(self, descending=not self.descending, nulls_first=not self.nulls_first)


class Clause(NamedTuple):
    """SQL of one page: ``SELECT ... WHERE {where} ORDER BY {order_by} LIMIT n`` with ``params``.

    ``params`` is a dict for the styles "named" and "pyformat", else a tuple.
    """

    where: str
    order_by: str
    params: tuple[Any, ...] | dict[str, Any]


def keyset(
    order: Sequence[str],
    *,
    unique: str | Iterable[str],
    nulls: str = "last",
    nullable: Iterable[str] | None = None,
    get: Callable[[Any, str], Any] | None = None,
) -> Keyset:
    """An order to page by: ``keyset(["-created", "id"], unique="id")``.

    Parameters:
        order: columns, the most significant first; a minus in front: descending.
        unique: the column, or the columns together, of which no two rows have the same value, and none a NULL.
            All must be in the order: without them rows with equal values would be lost or repeated between pages.
        nulls: whether rows without a value come "last" or "first", in either direction.
        nullable: columns that may be NULL; None: all but the unique ones. An order without any and with one direction
            becomes a comparison of row values, which a database answers from one index.
        get: ``get(row, column)`` gives the value of a row; None: ``row[column]`` of mappings and of rows with
            ``keys()`` (sqlite3.Row), else the attribute.

    Raises:
        ConfigError: no total order, a name that is none, or a column given twice.

    Python compares as the source must: text by code points (SQL: a binary collation), no NaN.
    """
    names = [_checked_name(one) for one in order] if not isinstance(order, str) else []
    uniques = (unique,) if isinstance(unique, str) else tuple(unique)
    bare = [name.removeprefix("-") for name in names]
    if not names or len(set(bare)) < len(bare):
        raise ConfigError(f"order={order!r} must be a list of different columns, such as ['-created', 'id']")
    if not uniques or not set(uniques) <= set(bare):
        raise ConfigError(
            f"the order {', '.join(names)} is not total: end it in a column (or columns) that no two rows share, and "
            f"name that in unique= (it is {unique!r})"
        )
    if nulls not in ("last", "first"):
        raise ConfigError(f"nulls={nulls!r} is neither 'last' nor 'first'")
    may_be_null = set(bare) - set(uniques) if nullable is None else set(nullable)
    if isinstance(nullable, str) or not may_be_null <= set(bare) - set(uniques):
        raise ConfigError(f"nullable={nullable!r} must be a list of columns of the order that are not unique")
    columns = tuple(
        Column(name, given.startswith("-"), name in may_be_null, nulls == "first")
        for name, given in zip(bare, names, strict=True)
    )
    return Keyset(columns, uniques, get)


def _checked_name(name: Any) -> str:
    if not isinstance(name, str) or "\0" in name or not all(name.removeprefix("-").split(".")):
        raise ConfigError(f"{name!r} is no name of a column")
    return name


class Keyset:
    """A total order of rows; made by :func:`keyset`. Immutable; pickles if its ``get`` does."""

    __slots__ = ("_get", "columns", "unique")

    def __init__(
        self, columns: tuple[Column, ...], unique: tuple[str, ...], get: Callable[[Any, str], Any] | None = None
    ) -> None:
        self.columns = columns
        self.unique = unique
        self._get = get

    @property
    def identity(self) -> tuple[str, ...]:
        """What tells this order from others: part of cache keys and cursors."""
        nulls = "nulls first" if self.columns[0].nulls_first else "nulls last"
        return (*(f"{'-' if column.descending else ''}{column.name}" for column in self.columns), nulls)

    def position(self, row: Any) -> tuple[Any, ...]:
        """The values of a row that say where it is.

        Raises:
            LoadError: the row has no such column, or nothing where it must be unique.
        """
        values = tuple([self._value(row, column.name) for column in self.columns])
        for column, value in zip(self.columns, values, strict=True):
            if value is None and not column.nullable:
                raise LoadError(
                    f"a row has no {column.name!r}, which the order takes for unique or never NULL: {row!r:.200}"
                )
        return values

    def _value(self, row: Any, name: str) -> Any:
        try:
            if self._get is not None:
                return self._get(row, name)
            name = name.rpartition(".")[2]
            if isinstance(row, Mapping) or hasattr(row, "keys"):
                return row[name]
            return getattr(row, name)
        except (KeyError, IndexError, AttributeError) as error:
            raise LoadError(
                f"a row has no column {name!r}: {row!r:.200}; for tuples give keyset(get=...), which finds values"
            ) from error

    def compare(self, left: Sequence[Any], right: Sequence[Any]) -> int:
        """Below, at or above zero as ``left`` comes before, is, or comes after ``right``."""
        for column, mine, other in zip(self.columns, left, right, strict=True):
            if mine is None or other is None:
                if mine is not other:
                    return -1 if (mine is None) == column.nulls_first else 1
            elif mine != other:
                try:
                    return -1 if (mine < other) != column.descending else 1
                except TypeError as error:
                    raise LoadError(
                        f"values of {column.name!r} have no order: {mine!r:.80} and {other!r:.80}"
                    ) from error
        return 0

    def seek(self, values: Sequence[Any] | None = None, *, backward: bool = False) -> Seek:
        """The rows behind (``backward``: in front of) a position; None: from the first (last) row on."""
        return Seek(self, None if values is None else tuple(values), backward)

    def __reduce__(self) -> tuple[Any, ...]:
        return Keyset, (self.columns, self.unique, self._get)

    def __repr__(self) -> str:
        return f"<Keyset {', '.join(self.identity)}>"


@dataclass(frozen=True, slots=True, eq=False)
class Seek:
    """One question: which rows come next after ``values`` in this order?

    Attributes:
        keyset: the order.
        values: the position; None: the beginning (``backward``: the end).
        backward: rows in front of the position, the nearest first: the order reversed.
    """

    keyset: Keyset
    values: tuple[Any, ...] | None
    backward: bool = False

    @property
    def _columns(self) -> tuple[Column, ...]:
        columns = self.keyset.columns
        return tuple(column.reversed() for column in columns) if self.backward else columns

    def clause(self, style: str = "qmark", *, quote: str = '"', first: int = 1, prefix: str = "key") -> Clause:
        """The question in SQL: predicate, order and parameters. Give it the rows of ``LIMIT limit``, in its order.

        Parameters:
            style: of the placeholders, as PEP 249 names them: "qmark", "numeric" (``:1``), "named", "format",
                "pyformat"; also "numbered" (``$1``).
            quote: what quotes names: ``"``, for MySQL a backtick.
            first: number of the first placeholder.
            prefix: how names of placeholders begin.

        Raises:
            ConfigError: an unknown style.

        Names are quoted, values are parameters: nothing in either can become SQL. NULLs are ranked by CASE in the
        order, and by IS NULL in the predicate, so that every database places them alike.
        """
        if style not in _STYLES:
            raise ConfigError(f"style={style!r} is none of {', '.join(_STYLES)}")
        writer = _Writer(style, quote, first, prefix)
        columns = self._columns
        where = "1 = 1" if self.values is None else _after(writer, columns, self.values) or "1 = 0"
        order_by = ", ".join(part for column in columns for part in _order_terms(writer, column))
        return Clause(where, order_by, writer.params())

    def bisect(self, size: int) -> Generator[int, Any, range]:
        """Finds rows among ``size`` sorted ones: yields indices, is sent their rows, returns the range that is left.

        O(log n) rows are read. The range runs forward, also of a ``backward`` seek.
        """
        if self.values is None:
            return range(size)
        low, high = 0, size
        while low < high:
            middle = (low + high) // 2
            found = self.keyset.compare(self.keyset.position((yield middle)), self.values)
            if found < 0 or (found == 0 and not self.backward):
                low = middle + 1
            else:
                high = middle
        return range(low) if self.backward else range(low, size)


class _Writer:
    """Names and placeholders of one statement."""

    def __init__(self, style: str, quote: str, first: int, prefix: str) -> None:
        self.style, self.quote, self.first = style, quote, first
        self.prefix = prefix
        self._values: list[Any] = []
        self._known: dict[int, str] = {}  # column's place -> its placeholder, where one may stand twice

    def name(self, column: Column) -> str:
        """The quoted name; of "table.column" both parts."""
        quote = self.quote
        quoted = ".".join(f"{quote}{part.replace(quote, quote * 2)}{quote}" for part in column.name.split("."))
        return quoted.replace("%", "%%") if self.style in ("format", "pyformat") else quoted

    def value(self, place: int, value: Any) -> str:
        """A placeholder for the value of the column at ``place``."""
        if place in self._known:
            return self._known[place]
        self._values.append(value)
        count = len(self._values)
        text = _STYLES[self.style](self.first + count - 1, f"{self.prefix}{count}")
        if self.style in _REUSED:
            self._known[place] = text
        return text

    def params(self) -> tuple[Any, ...] | dict[str, Any]:
        if self.style in _NAMED:
            return {f"{self.prefix}{count}": value for count, value in enumerate(self._values, 1)}
        return tuple(self._values)


def _order_terms(writer: _Writer, column: Column) -> list[str]:
    name = writer.name(column)
    direction = "DESC" if column.descending else "ASC"
    if not column.nullable:
        return [f"{name} {direction}"]
    null, other = (0, 1) if column.nulls_first else (1, 0)
    return [f"CASE WHEN {name} IS NULL THEN {null} ELSE {other} END", f"{name} {direction}"]


def _after(writer: _Writer, columns: tuple[Column, ...], values: tuple[Any, ...]) -> str | None:
    """The predicate of the rows behind ``values``; None where there are none."""
    while values and values[-1] is None and not columns[-1].nulls_first:
        columns, values = columns[:-1], values[:-1]  # nothing comes behind a last NULL: what counts is before it
    if not values:
        return None
    alike = len({column.descending for column in columns}) == 1
    if alike and len(columns) > 1 and not any(column.nullable for column in columns):
        names = ", ".join(writer.name(column) for column in columns)
        marks = ", ".join(writer.value(place, value) for place, value in enumerate(values))
        return f"({names}) {'<' if columns[0].descending else '>'} ({marks})"
    first = columns[0]
    bound = ""
    if len(columns) > 1 and not first.nullable:
        # says again what follows from the rest, in the one form that lets a database enter its index
        bound = f"{writer.name(first)} {'<=' if first.descending else '>='} {writer.value(0, values[0])} AND "
    return bound + _behind(writer, columns, values, 0)


def _behind(writer: _Writer, columns: tuple[Column, ...], values: tuple[Any, ...], place: int) -> str:
    """``a > x OR (a = x AND (the same of the columns that follow))``, in parentheses; NULLs as ranked."""
    column, value = columns[place], values[place]
    name = writer.name(column)
    last = place + 1 == len(columns)
    if value is None:
        after = f"{name} IS NOT NULL" if column.nulls_first else ""
        same = f"{name} IS NULL"
    else:
        after = f"{name} {'<' if column.descending else '>'} {writer.value(place, value)}"
        if column.nullable and not column.nulls_first:
            after = f"{after} OR {name} IS NULL"
        same = "" if last else f"{name} = {writer.value(place, value)}"
    if last:
        return f"({after})"
    rest = _behind(writer, columns, values, place + 1)
    return f"({after} OR ({same} AND {rest}))" if after else f"({same} AND {rest})"
