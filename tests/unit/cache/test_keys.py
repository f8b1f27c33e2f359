"""Keys as bytes: equal keys have equal bytes, others have others, and beginnings stay beginnings."""

from __future__ import annotations

import datetime
import enum
import pathlib
import subprocess
import sys
import uuid
from collections import namedtuple
from typing import Any

import numpy
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lazystore.cache.keys import Kind, begins_with, canonical, prefixes
from lazystore.errors import ConfigError, UnhashableKeyError


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1


class Right(enum.Flag):
    READ = 1
    WRITE = 2


Point = namedtuple("Point", "x y")

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary(), st.uuids(), st.dates(),
    st.datetimes(), st.timedeltas(), st.sampled_from([*Colour, *Level, *Right, Right.READ | Right.WRITE, *Kind]),
    st.datetimes(timezones=st.sampled_from([datetime.UTC, datetime.timezone(datetime.timedelta(hours=5, seconds=1))])),
    st.text("ab/.\x00", min_size=1).map(lambda text: pathlib.PurePosixPath(text.replace("\x00", "c"))),
)  # fmt: skip
keys = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.lists(inner, max_size=3).map(frozenset),
    max_leaves=6,
)


@given(keys, keys)
@example(1, True)
@example(1, 1.0)
@example(0.0, -0.0)
@example((1,), (True,))
@example(2**70, float(2**70))
@example("", b"")
@example(("a", "b"), ("a\x00", "b"))
@example(("a",), ("a", None))
@example(((),), ())
@example(frozenset({()}), frozenset())
@example(Point(1, 2), (1, 2))
@example(Level.LOW, 1)
@example(numpy.int64(5), 5)
@example(numpy.float64(0.5), 0.5)
@example(numpy.float32(0.5), 0.5)
@example(numpy.bool_(True), 1)
@example(numpy.str_("a"), "a")
@example(numpy.bytes_(b"a"), b"a")
@example(Colour.RED, "red")
@example(Kind.PAGE, "page")
@example("\udc80", "\udc81")
@example(datetime.datetime(2020, 1, 1), datetime.date(2020, 1, 1))
@example(
    datetime.datetime(2020, 1, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=1))),
    datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC),
)
def test_bytes_are_equal_exactly_where_keys_are(one: Any, other: Any) -> None:
    assert (canonical(one) == canonical(other)) == bool(one == other)


@given(st.text(max_size=5), st.text(max_size=5), st.sampled_from([None, *Kind]))
def test_prefixes_find_what_begins_with_them(text: str, prefix: str, kind: Kind | None) -> None:
    for key in (text, text.encode("utf-8", "surrogatepass"), (text, 1), (kind, text) if kind else (text,)):
        found = any(canonical(key).startswith(beginning) for beginning in prefixes(prefix))
        assert found == begins_with(key, prefix) == text.startswith(prefix)


@pytest.mark.parametrize("key", [1, None, (), (1, "a"), (Kind.PAGE,), (Kind.PAGE, 1), frozenset("a")])
def test_other_keys_begin_with_no_string(key: Any) -> None:
    assert not begins_with(key, "")
    assert not any(canonical(key).startswith(beginning) for beginning in prefixes(""))


def test_bytes_are_the_same_in_another_process() -> None:
    key = "('a', 1, 2.5, None, b'c', frozenset({'x', 'y', 'z', 'w'}), Kind.CHUNK)"
    program = f"from lazystore.cache.keys import *; print(canonical({key}).hex())"
    found = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True, text=True, check=True, timeout=60,
        ).stdout.strip()
        for seed in ("1", "2")
    }  # fmt: skip
    assert found == {canonical(eval(key)).hex()}


def test_the_fold_of_a_time_does_not_count_as_it_does_not_for_equality() -> None:
    zone = datetime.timezone(datetime.timedelta(hours=2))
    early = datetime.datetime(2020, 10, 25, 2, 30, tzinfo=zone)
    assert canonical(early) == canonical(early.replace(fold=1))


class Loud(str):
    """Compares without case."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and self.lower() == other.lower()

    def __hash__(self) -> int:
        return hash(self.lower())


class Plain(str):
    __slots__ = ()


def test_a_derived_class_counts_as_its_base_if_it_compares_as_that() -> None:
    assert canonical(Plain("a")) == canonical("a")
    with pytest.raises(ConfigError, match="Loud"):
        canonical(Loud("a"))


def nested(depth: int) -> Any:
    key: Any = ()
    for _ in range(depth):
        key = (key,)
    return key


@pytest.mark.parametrize(
    "key",
    [
        object(), 1j, float("nan"), nested(40), numpy.datetime64(1, "ns"), numpy.longdouble(0.1), range(3), print,
        pathlib.PureWindowsPath("a"), (1, object()),
    ],
)  # fmt: skip
def test_other_keys_have_no_form(key: Any) -> None:
    with pytest.raises(ConfigError):
        canonical(key)


@pytest.mark.parametrize("key", [[], {}, set(), bytearray(b"a"), ("a", [])])
def test_what_is_not_hashable_is_refused_by_name(key: Any) -> None:
    with pytest.raises(UnhashableKeyError):
        canonical(key)


def test_infinity_is_a_key_like_any_other() -> None:
    assert len({canonical(key) for key in (float("inf"), float("-inf"), "inf", 0)}) == 4


def test_a_uuid_is_not_its_text() -> None:
    key = uuid.UUID(int=0)
    assert canonical(key) != canonical(str(key)) != canonical(key.bytes)
