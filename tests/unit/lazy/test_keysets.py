"""Orders: every walk meets each row that stays exactly once, in SQL and by bisecting; no text becomes SQL."""

from __future__ import annotations

import contextlib
import itertools
import pickle
import sqlite3
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazystore.errors import ConfigError, LoadError
from lazystore.lazy.keysets import Keyset, Seek, keyset

ORDERS = [
    ["id"],
    ["-id"],
    ["a", "id"],
    ["-a", "id"],
    ["a", "-b", "id"],
    ["-a", "-b", "-id"],
    ["b", "a", "id"],
]
VALUES = st.none() | st.integers(-2, 2)
ROWS = st.dictionaries(
    st.integers(0, 40), st.tuples(VALUES, st.none() | st.sampled_from(["", "x", "ä", "z"])), max_size=14
)
#: What happens between two pages: ids that go, and rows that come.
CHANGES = st.lists(st.tuples(st.sets(st.integers(0, 40), max_size=2), ROWS), max_size=8)


def after(order: Keyset, row: dict[str, Any], other: dict[str, Any]) -> bool:
    return order.compare(order.position(row), order.position(other)) > 0


class Table:
    """Rows in SQLite."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.base = sqlite3.connect(":memory:")
        self.base.row_factory = sqlite3.Row
        self.base.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, a, b)")
        self.change(set(), rows)

    def change(self, gone: set[int], come: list[dict[str, Any]]) -> None:
        self.base.executemany("DELETE FROM t WHERE id = ?", [(one,) for one in gone])
        self.base.executemany("INSERT INTO t (id, a, b) VALUES (:id, :a, :b)", come)

    def rows(self, seek: Seek, limit: int) -> list[Any]:
        where, order_by, params = seek.clause()
        return self.base.execute(f"SELECT * FROM t WHERE {where} ORDER BY {order_by} LIMIT {limit}", params).fetchall()


class Sorted:
    """Rows in a list that is kept sorted."""

    def __init__(self, order: Keyset, rows: list[dict[str, Any]]) -> None:
        self.order = order
        self.kept: list[dict[str, Any]] = []
        self.change(set(), rows)

    def change(self, gone: set[int], come: list[dict[str, Any]]) -> None:
        self.kept = [row for row in self.kept if row["id"] not in gone]
        for row in come:  # an insertion sort of its own, so that the bisecting under test is not its own judge
            at = sum(after(self.order, row, other) for other in self.kept)
            self.kept.insert(at, row)

    def rows(self, seek: Seek, limit: int) -> list[Any]:
        steps, row = seek.bisect(len(self.kept)), None
        while True:
            try:
                row = self.kept[steps.send(row)]
            except StopIteration as end:
                left = [self.kept[index] for index in end.value]
                return left[::-1][:limit] if seek.backward else left[:limit]


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(ORDERS), st.sampled_from(["last", "first"]), st.booleans(), st.integers(1, 4), ROWS, CHANGES,
    st.sampled_from(["sql", "list"]),
)  # fmt: skip
def test_a_walk_meets_each_row_that_stays_exactly_once(
    names: list[str], nulls: str, backward: bool, size: int, rows: Any, changes: Any, kind: str
) -> None:
    order = keyset(names, unique="id", nulls=nulls)
    now = {number: {"id": number, "a": a, "b": b} for number, (a, b) in rows.items()}
    table = Table(list(now.values())) if kind == "sql" else Sorted(order, list(now.values()))
    stays, ever = set(now), set(now)
    met: list[int] = []
    all_met: list[dict[str, Any]] = []
    position = None
    changing = iter(changes)
    with contextlib.closing(table.base) if isinstance(table, Table) else contextlib.nullcontext():
        while found := table.rows(order.seek(position, backward=backward), size):
            met += [row["id"] for row in found]
            all_met += [dict(row) for row in found]
            position = order.position(found[-1])
            gone, come = next(changing, (set(), {}))
            # a row that goes never comes back, so that "once" means something
            new = {n: {"id": n, "a": a, "b": b} for n, (a, b) in come.items() if n not in ever}
            ever |= set(new)
            table.change(gone, list(new.values()))
            stays -= gone
    assert len(met) == len(set(met)), "a row came twice"
    assert stays <= set(met), "a row that was there all the time did not come"
    for one, other in itertools.pairwise(all_met):
        assert after(order, one, other) if backward else after(order, other, one)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(ORDERS), st.sampled_from(["last", "first"]), ROWS, st.booleans())
def test_sql_and_python_agree_on_the_order(names: list[str], nulls: str, rows: Any, backward: bool) -> None:
    order = keyset(names, unique="id", nulls=nulls)
    given_rows = [{"id": number, "a": a, "b": b} for number, (a, b) in rows.items()]
    table, kept = Table(given_rows), Sorted(order, given_rows)
    with contextlib.closing(table.base):
        for row in [None, *given_rows]:
            seek = order.seek(None if row is None else order.position(row), backward=backward)
            assert [dict(one) for one in table.rows(seek, 99)] == kept.rows(seek, 99)


def test_columns_without_nulls_in_one_direction_become_a_comparison_of_row_values() -> None:
    order = keyset(["created", "id"], unique="id", nullable=[])
    clause = order.seek((5, 7)).clause("numbered")
    assert clause == ('("created", "id") > ($1, $2)', '"created" ASC, "id" ASC', (5, 7))
    assert order.seek((5, 7), backward=True).clause("numbered").where == '("created", "id") < ($1, $2)'


def test_mixed_directions_become_the_expanded_form_with_a_bound_for_the_index() -> None:
    order = keyset(["-created", "id"], unique="id", nullable=[])
    clause = order.seek((5, 7)).clause("numbered")
    assert clause.where == '"created" <= $1 AND ("created" < $1 OR ("created" = $1 AND ("id" > $2)))'
    assert clause.order_by == '"created" DESC, "id" ASC'
    assert clause.params == (5, 7)
    assert order.seek((5, 7)).clause("qmark").params == (5, 5, 5, 7)


def test_nulls_are_ranked_in_predicate_and_order() -> None:
    order = keyset(["-created", "id"], unique="id", nulls="last")
    clause = order.seek((5, 7)).clause("numbered")
    assert clause.where == '("created" < $1 OR "created" IS NULL OR ("created" = $1 AND ("id" > $2)))'
    assert clause.order_by == 'CASE WHEN "created" IS NULL THEN 1 ELSE 0 END, "created" DESC, "id" ASC'
    assert order.seek((None, 7)).clause("numbered")[::2] == ('("created" IS NULL AND ("id" > $1))', (7,))
    back = order.seek((None, 7), backward=True).clause("numbered")
    assert back.where == '("created" IS NOT NULL OR ("created" IS NULL AND ("id" < $1)))'
    assert back.order_by.startswith('CASE WHEN "created" IS NULL THEN 0 ELSE 1 END, "created" ASC')


def test_a_table_with_an_index_is_searched_not_scanned() -> None:
    with contextlib.closing(sqlite3.connect(":memory:")) as base:
        base.execute("CREATE TABLE t (created INTEGER NOT NULL, id INTEGER NOT NULL)")
        base.execute("CREATE UNIQUE INDEX i ON t (created DESC, id ASC)")
        for names in (["-created", "id"], ["created", "-id"]):
            clause = keyset(names, unique="id", nullable=()).seek((5, 7)).clause()
            text = f"EXPLAIN QUERY PLAN SELECT * FROM t WHERE {clause.where} ORDER BY {clause.order_by} LIMIT 50"
            plan = " ".join(row[3] for row in base.execute(text, clause.params))
            assert "SEARCH" in plan and "SCAN" not in plan and "TEMP B-TREE" not in plan, plan


@pytest.mark.parametrize(
    ("style", "params", "mark"),
    [
        ("qmark", (5, 5, 5, 7), "?"),
        ("format", (5, 5, 5, 7), "%s"),
        ("numeric", (5, 7), ":4"),
        ("numbered", (5, 7), "$4"),
        ("named", {"key1": 5, "key2": 7}, ":key2"),
        ("pyformat", {"key1": 5, "key2": 7}, "%(key2)s"),
    ],
)
def test_every_style_has_its_placeholders(style: str, params: Any, mark: str) -> None:
    order = keyset(["-created", "id"], unique="id", nullable=[])
    clause = order.seek((5, 7)).clause(style, first=3)
    assert clause.params == params
    assert mark in clause.where


@pytest.mark.parametrize("style", ["qmark", "numbered", "named", "numeric"])
@pytest.mark.filterwarnings("error")
def test_sqlite_takes_the_styles_it_knows(style: str) -> None:
    order = keyset(["-a", "b", "id"], unique="id")
    rows = [{"id": n, "a": n % 3 or None, "b": str(n % 2)} for n in range(12)]
    table = Table(rows)
    with contextlib.closing(table.base) as base:
        seek = order.seek((2, "0", 2))
        where, order_by, params = seek.clause(style)
        if style in ("numbered", "numeric"):
            params = {str(number): value for number, value in enumerate(params, 1)}
        found = base.execute(f"SELECT * FROM t WHERE {where} ORDER BY {order_by}", params).fetchall()
        assert [row["id"] for row in found] == [row["id"] for row in table.rows(seek, 99)] != []


def test_names_cannot_become_sql() -> None:
    evil = 'id" OR 1=1; DROP TABLE t; --'
    order = keyset([evil, "id"], unique="id")
    where, order_by, _ = order.seek((1, 2)).clause()
    assert where.count('"id"" OR 1=1; DROP TABLE t; --"') == 3
    assert '"id" OR' not in where + order_by
    rows = [{"id": 1, "a": 1, "b": None}]
    table = Table(rows)
    with contextlib.closing(table.base) as base:
        # sqlite takes an unknown quoted name for a string: harmless, and the table is still there
        base.execute(f"SELECT * FROM t WHERE {where} ORDER BY {order_by}", (1, 1, 2)).fetchall()
        assert len(base.execute("SELECT * FROM t").fetchall()) == 1


def test_values_never_stand_in_the_text() -> None:
    order = keyset(["a", "id"], unique="id")
    where, _, params = order.seek(("'; DROP TABLE t; --", 1)).clause()
    assert "DROP" not in where and "'; DROP TABLE t; --" in params


def test_percent_in_names_is_doubled_where_it_would_be_a_placeholder() -> None:
    order = keyset(["%s", "id"], unique="id")
    assert '"%%s"' in order.seek((1, 2)).clause("format").where
    assert '"%s"' in order.seek((1, 2)).clause("qmark").where


def test_names_of_tables_are_quoted_apart_and_quotes_can_be_others() -> None:
    order = keyset(["-p.created", "p.id"], unique="p.id")
    assert order.seek((1, 2)).clause().order_by.endswith('"p"."created" DESC, "p"."id" ASC')
    assert order.seek((1, 2)).clause(quote="`").order_by.endswith("`p`.`created` DESC, `p`.`id` ASC")
    assert order.position({"created": 3, "id": 4}) == (3, 4)


@pytest.mark.parametrize(
    ("order", "unique", "words"),
    [
        (["-created"], "id", "not total"),
        (["created"], (), "not total"),
        (["created", "tenant"], ("tenant", "id"), "not total"),
        ([], "id", "list of different columns"),
        ("id", "id", "list of different columns"),
        (["id", "-id"], "id", "list of different columns"),
        (["a\0b", "id"], "id", "no name"),
        (["", "id"], "id", "no name"),
        (["-", "id"], "id", "no name"),
        (["t..a", "id"], "id", "no name"),
        ([1, "id"], "id", "no name"),
    ],
)
def test_orders_that_would_lose_rows_are_refused(order: Any, unique: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        keyset(order, unique=unique)


def test_other_arguments_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="neither"):
        keyset(["id"], unique="id", nulls="middle")
    for nullable in (["id"], ["c"], "a"):
        with pytest.raises(ConfigError, match="nullable"):
            keyset(["a", "id"], unique="id", nullable=nullable)
    with pytest.raises(ConfigError, match="qmark"):
        keyset(["id"], unique="id").seek((1,)).clause("dollars")


def test_two_columns_can_be_unique_together() -> None:
    order = keyset(["tenant", "number"], unique=("tenant", "number"))
    assert order.seek(("a", 1)).clause("numbered").where == '("tenant", "number") > ($1, $2)'


class Thing:
    created = 4
    id = 5


def test_rows_may_be_mappings_objects_or_what_get_understands() -> None:
    names = ["created", "id"]
    order = keyset(names, unique="id")
    assert order.position({"created": 4, "id": 5}) == order.position(Thing()) == (4, 5)
    with_get = keyset(names, unique="id", get=lambda row, name: row[names.index(name)])
    assert with_get.position((4, 5)) == (4, 5)
    with pytest.raises(LoadError, match="get="):
        order.position((4, 5))
    with pytest.raises(LoadError, match="no column 'created'"):
        order.position({"id": 5})


def test_null_where_there_must_be_none_is_told() -> None:
    with pytest.raises(LoadError, match="'id'"):
        keyset(["a", "id"], unique="id").position({"a": 1, "id": None})
    with pytest.raises(LoadError, match="'a'"):
        keyset(["a", "id"], unique="id", nullable=[]).position({"a": None, "id": 1})


def test_values_of_types_without_an_order_are_told() -> None:
    with pytest.raises(LoadError, match="no order"):
        keyset(["id"], unique="id").compare(("a",), (1,))


def test_orders_have_an_identity_and_pickle() -> None:
    order = keyset(["-a", "id"], unique="id", nulls="first")
    same = pickle.loads(pickle.dumps(order))
    assert same.identity == order.identity == ("-a", "id", "nulls first")
    others = [keyset(["a", "id"], unique="id"), keyset(["-a", "id"], unique="id")]
    assert len({order.identity, *(one.identity for one in others)}) == 3
    assert same.seek((1, 2)).clause() == order.seek((1, 2)).clause()
