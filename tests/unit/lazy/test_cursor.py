"""Cursors: what goes in comes out, only from the text that was made, for the source it was made for, in its time."""

from __future__ import annotations

import base64
import datetime
import decimal
import math
import pickle
import uuid
import zoneinfo
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lazystore.errors import (
    ConfigError,
    CursorError,
    CursorExpiredError,
    CursorMismatchError,
    CursorTamperedError,
)
from lazystore.lazy.cursor import MAX_CHARACTERS, CursorSigner, Position, decode_values, encode_values

HERE, ELSEWHERE = b"here    ", b"elsewher"
SECRET, OTHER = b"0123456789abcdef", b"another secret of enough bytes"
ZONES = [None, datetime.UTC, datetime.timezone(datetime.timedelta(hours=-3, minutes=-30, seconds=-5))]


class SetClock:
    """Time that a test moves."""

    def __init__(self, now: float = 1e9) -> None:
        self.now = now

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(1 << 300), 1 << 300),
    st.floats(allow_nan=False),
    st.text(),
    st.text(st.characters(categories=["Cs"]), max_size=3),
    st.binary(),
    st.dates(),
    st.datetimes(timezones=st.sampled_from(ZONES)),
    st.datetimes(timezones=st.timezones(), allow_imaginary=False),
    st.decimals(allow_nan=False),
    st.uuids(),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner), max_leaves=8
)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict):
        return type(one) is type(other) and _same(list(one.items()), list(other.items()))
    if isinstance(one, float):
        return type(other) is float and one == other and math.copysign(1, one) == math.copysign(1, other)
    if isinstance(one, datetime.datetime):
        return one.replace(tzinfo=None) == other.replace(tzinfo=None) and (one.fold, one.utcoffset()) == (
            other.fold,
            other.utcoffset(),
        )
    return type(one) is type(other) and one == other


@settings(max_examples=80, deadline=None)
@given(st.lists(values, max_size=4))
@example([-0.0, 5e-324, 0.1 + 0.2, math.inf, -math.inf])
@example([2**63, -(2**63) - 1, -1, -128, 127, 128, 255, 0])
@example([decimal.Decimal("1.10"), decimal.Decimal("-0"), decimal.Decimal("1E+30")])
@example([True, 1, 1.0, "1", b"1", None, ""])
def test_values_come_back_equal_and_of_the_same_types(given_values: list[Any]) -> None:
    found = decode_values(encode_values(given_values))
    assert len(found) == len(given_values) and all(map(_same, given_values, found)), found


def test_a_time_in_a_named_zone_comes_back_in_that_zone_on_the_same_side_of_a_change() -> None:
    berlin = zoneinfo.ZoneInfo("Europe/Berlin")
    twice = [datetime.datetime(2025, 10, 26, 2, 30, tzinfo=berlin, fold=fold) for fold in (0, 1)]
    found = decode_values(encode_values(twice))
    assert [one.tzinfo for one in found] == [berlin, berlin]
    assert [one.utcoffset() for one in found] == [one.utcoffset() for one in twice]


@pytest.mark.parametrize("value", [math.nan, decimal.Decimal("nan"), decimal.Decimal("snan"), object(), {1, 2}, 1j])
def test_what_has_no_place_or_no_form_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="cursor cannot hold"):
        encode_values([value])


def test_values_that_hold_themselves_are_refused() -> None:
    around: list[Any] = []
    around.append(around)
    with pytest.raises(ConfigError, match="nested"):
        encode_values(around)


def test_whole_numbers_of_other_libraries_count_as_ints() -> None:
    numpy = pytest.importorskip("numpy")
    assert decode_values(encode_values([numpy.int64(7), numpy.float64(0.5)])) == (7, 0.5)


positions = st.builds(
    Position,
    st.sampled_from(["offset", "source", "keyset"]),
    st.lists(scalars, max_size=3).map(tuple),
    st.booleans(),
    st.integers(0, 1 << 40),
)


@settings(max_examples=100, deadline=None)
@given(positions)
def test_a_position_comes_back_as_it_was_signed(position: Position) -> None:
    signer = CursorSigner(SECRET)
    try:
        text = signer.sign(position, HERE)
    except ConfigError:
        assert len(encode_values(position.values)) > 300
        return
    assert len(text) <= MAX_CHARACTERS
    assert set(text) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
    found = signer.open(text, HERE)
    assert found[0] == position.mode and found[2:] == position[2:]
    assert all(map(_same, position.values, found.values))


TEXT = CursorSigner(SECRET).sign(Position("keyset", ("b", 7, None)), HERE)


def test_any_changed_character_is_noticed() -> None:
    signer = CursorSigner(SECRET)
    for at in range(len(TEXT)):
        for other in "Aa0-_z9Q=/+ \n.é":
            if other != TEXT[at]:
                with pytest.raises(CursorTamperedError):
                    signer.open(TEXT[:at] + other + TEXT[at + 1 :], HERE)


def test_any_changed_bit_is_noticed() -> None:
    raw = base64.urlsafe_b64decode(TEXT + "=" * (-len(TEXT) % 4))
    signer = CursorSigner(SECRET)
    for bit in range(8 * len(raw)):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CursorTamperedError):
            signer.open(base64.urlsafe_b64encode(changed).rstrip(b"=").decode(), HERE)


@settings(max_examples=80, deadline=None)
@given(
    st.one_of(
        st.text(),
        st.text("abcXYZ019-_=", max_size=600),
        st.binary(max_size=400).map(lambda raw: base64.urlsafe_b64encode(raw).rstrip(b"=").decode()),
        st.integers(0, len(TEXT)).map(lambda cut: TEXT[:cut]).filter(lambda text: text != TEXT),
        st.text(max_size=3).filter(bool).map(lambda more: TEXT + more),
        st.binary(),
        st.none() | st.integers(),
    )
)
def test_whatever_else_comes_is_tampered_and_nothing_worse(text: Any) -> None:
    with pytest.raises(CursorTamperedError):
        CursorSigner(SECRET).open(text, HERE)


def test_a_cursor_of_another_store_is_tampered() -> None:
    for signer in (CursorSigner(OTHER), CursorSigner()):
        with pytest.raises(CursorTamperedError, match="not made by this store"):
            signer.open(TEXT, HERE)
    with pytest.raises(CursorTamperedError):
        CursorSigner().open(CursorSigner().sign(Position("offset", (1,)), HERE), HERE)


def test_a_cursor_for_something_else_is_a_mismatch_also_when_it_expired() -> None:
    clock = SetClock()
    signer = CursorSigner(SECRET, lifetime=10, clock=clock)
    text = signer.sign(Position("offset", (1,)), HERE)
    for now in (clock.now, clock.now + 100):
        clock.now = now
        with pytest.raises(CursorMismatchError, match="another source, order or filter"):
            signer.open(text, ELSEWHERE)


def test_a_cursor_expires_when_its_lifetime_is_over() -> None:
    clock = SetClock()
    signer = CursorSigner(SECRET, lifetime=10, clock=clock)
    text = signer.sign(Position("offset", (1,)), HERE)
    clock.now += 9.9
    assert signer.open(text, HERE).values == (1,)
    clock.now += 0.1
    with pytest.raises(CursorExpiredError, match="first page"):
        signer.open(text, HERE)
    for_ever = CursorSigner(SECRET, lifetime=None, clock=clock)
    text = for_ever.sign(Position("offset", (1,)), HERE)
    clock.now = 9e9
    assert for_ever.open(text, HERE).values == (1,)


def test_the_three_errors_are_different_and_all_cursor_errors() -> None:
    kinds = {CursorTamperedError, CursorMismatchError, CursorExpiredError}
    assert all(issubclass(one, CursorError) and issubclass(one, ValueError) for one in kinds)
    assert not any(issubclass(one, other) for one in kinds for other in kinds - {one})


def test_secrets_rotate() -> None:
    old, both, new = CursorSigner([OTHER]), CursorSigner([SECRET, OTHER]), CursorSigner([SECRET])
    position = Position("offset", (5,))
    assert both.open(old.sign(position, HERE), HERE) == position
    assert new.open(both.sign(position, HERE), HERE) == position
    with pytest.raises(CursorTamperedError):
        old.open(both.sign(position, HERE), HERE)


def test_a_position_that_is_too_long_is_refused_when_it_is_signed() -> None:
    with pytest.raises(ConfigError, match="shorter columns"):
        CursorSigner(SECRET).sign(Position("keyset", ("x" * 400,)), HERE)


@pytest.mark.parametrize("secrets", [[], b"", "short", [SECRET, b"short"], [32], [None]])
def test_secrets_that_protect_nothing_are_refused(secrets: Any) -> None:
    with pytest.raises(ConfigError, match="at least 16 bytes"):
        CursorSigner(secrets)


@pytest.mark.parametrize("lifetime", [0, -1, math.inf, math.nan, "3"])
def test_lifetimes_that_are_none_are_refused(lifetime: Any) -> None:
    with pytest.raises(ConfigError, match="above zero"):
        CursorSigner(SECRET, lifetime=lifetime)


def test_a_pickled_signer_opens_the_cursors_of_the_first_and_its_repr_tells_no_secret() -> None:
    signer = CursorSigner(SECRET, lifetime=None)
    copy = pickle.loads(pickle.dumps(signer))
    position = Position("keyset", (uuid.UUID(int=7),))
    assert copy.open(signer.sign(position, HERE), HERE) == position
    assert SECRET.decode() not in repr(signer)


def test_what_is_no_secret_and_no_lifetime_is_refused() -> None:
    for wrong in ([], [5], b"short", ["x" * 16, None]):
        with pytest.raises(ConfigError, match="secrets="):
            CursorSigner(wrong)  # type: ignore[arg-type]
    for lifetime in (0, -1, float("nan"), float("inf"), True, "1"):
        with pytest.raises(ConfigError, match="lifetime="):
            CursorSigner(lifetime=lifetime)  # type: ignore[arg-type]


def test_a_very_long_lifetime_is_one() -> None:
    signer = CursorSigner(lifetime=1e300)
    position = Position("offset", (7,))
    assert signer.open(signer.sign(position, b"b" * 8), b"b" * 8) == position


def test_times_finer_than_a_cursor_holds_are_refused() -> None:
    pandas = pytest.importorskip("pandas")
    with pytest.raises(ConfigError, match="nanoseconds"):
        encode_values([pandas.Timestamp("2020-01-01T00:00:00.123456789")])
    exact = pandas.Timestamp("2020-01-01T00:00:00.123456")
    assert decode_values(encode_values([exact])) == (exact,)
