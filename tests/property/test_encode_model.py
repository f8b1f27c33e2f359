"""The core's encoder of flat dicts and its buffer of items against plain ones, and their edges."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import item_encoder
from models.item_buffer import ItemBufferModel

from lazystore._core.encode import FlatEncoder, ItemBuffer
from lazystore.errors import ConfigError, ItemIndexError


class Text(str):
    pass


VALUES = st.one_of(
    st.text(st.characters(), max_size=40),
    st.text(st.characters(max_codepoint=127), max_size=40),
    st.binary(max_size=40),
    st.integers(-(2**65), 2**65),
    st.integers(-3, 3),
    st.floats(),
    st.booleans(),
    st.none(),
    st.just(Text("text")),
    st.just(bytearray(b"x")),
)
OF_KIND: dict[str, st.SearchStrategy[Any]] = {
    "str": st.one_of(st.text(st.characters(), max_size=20), st.just("\ud800"), st.just("z" * 65_000)),
    "bytes": st.one_of(st.binary(max_size=20), st.just(b"z" * 65_000)),
    "int": st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**70), 2**70)),
    "float": st.floats(),
    "bool": st.booleans(),
}
KEYS = st.one_of(st.text(max_size=3), st.integers(-2, 2))


def shout(value: Any) -> Any:
    return repr(value).encode() if value is not None else "not bytes"


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[Any], list[item_encoder.Kind], Any]:
    keys = draw(st.lists(KEYS, min_size=1, max_size=6, unique=True))
    kinds: list[item_encoder.Kind] = [draw(st.sampled_from([*OF_KIND, shout])) for _ in keys]
    sample = {k: draw(VALUES if callable(kind) else OF_KIND[kind]) for k, kind in zip(keys, kinds, strict=True)}
    change = draw(st.integers(0, 7))
    if change == 0:
        sample[draw(st.sampled_from(keys))] = draw(VALUES)
    elif change == 1:
        del sample[draw(st.sampled_from(keys))]
    elif change == 2:
        sample["another"] = 1
    elif change == 3:
        sample = dict(reversed(list(sample.items())))
    elif change == 4:
        return keys, kinds, OrderedDict(sample)
    return keys, kinds, sample


@given(cases())
def test_items_are_those_of_the_plain_encoder(case: tuple[list[Any], list[item_encoder.Kind], Any]) -> None:
    keys, kinds, sample = case
    encoder = FlatEncoder(keys, kinds)
    expected = item_encoder.encode(keys, kinds, sample)
    assert encoder(sample) == expected
    assert encoder(sample) == expected  # and nothing stays from one sample to the next


@pytest.mark.parametrize("kind", ["str", "bytes"])
@pytest.mark.parametrize("room", [-1, 0, 1])
def test_the_longest_item_is_made_and_one_byte_more_is_left_to_the_caller(kind: str, room: int) -> None:
    length = item_encoder.ROOM - 16 + room
    value = "x" * length if kind == "str" else b"x" * length
    item = FlatEncoder(["n", "v"], ["int", kind])({"n": 1, "v": value})
    assert (item is None) == (room > 0)
    assert FlatEncoder(["v", "n"], [kind, "int"])({"n": 1, "v": value}) is None or room <= 0


def test_what_a_function_raises_passes_and_the_encoder_goes_on() -> None:
    calls: list[Callable[[], None]] = []

    def made(value: int) -> bytes:
        if value == 2:
            raise ZeroDivisionError("two")
        if calls:
            calls.pop()()
        return b"%d" % value

    encoder = FlatEncoder(["v"], [made])
    with pytest.raises(ZeroDivisionError, match="two"):
        encoder({"v": 2})
    # a sample encoded from inside another one is left to the caller: the buffer is in use
    inner: list[Any] = []
    calls.append(lambda: inner.append(encoder({"v": 3})))
    assert encoder({"v": 1}) == b"\x01\0\0\0" + b"1"
    assert inner == [None]


@pytest.mark.parametrize(
    ("keys", "kinds"),
    [([], []), (["a"], []), (["a"], ["text"]), (["a"], [None]), (range(1025), ["int"] * 1025)],
)
def test_plans_that_cannot_work_are_refused(keys: Any, kinds: Any) -> None:
    with pytest.raises(ConfigError):
        FlatEncoder(keys, kinds)


def test_it_does_not_pickle_and_says_what_it_is() -> None:
    encoder = FlatEncoder(["a", "b"], ["int", "str"])
    assert repr(encoder) == "<FlatEncoder of 2 leaves>"
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(encoder)


# --- ItemBuffer -------------------------------------------------------------------------------------

LIMITS = st.tuples(st.integers(0, 200), st.integers(0, 12), st.integers(400, 700))
ITEMS = st.lists(st.tuples(st.binary(max_size=60), st.integers(1, 5), st.integers(4, 90), st.booleans()), max_size=60)


@given(LIMITS, ITEMS)
def test_the_buffer_closes_and_reads_like_a_list(limits: tuple[int, int, int], steps: list[Any]) -> None:
    model = ItemBufferModel(*limits)
    buffer = ItemBuffer(max_bytes=limits[0], max_count=limits[1], max_packed=limits[2])
    for item, count, more, clear in steps:
        packed = len(item) + more
        taken = buffer.add(item, count=count, packed=packed)
        assert taken == model.add(item, count, packed)
        if not taken or clear:
            assert len(buffer) == len(model.items)
            assert (buffer.nbytes, buffer.counted) == (sum(map(len, model.items)), sum(model.counts))
            assert bytes(buffer) == b"".join(model.items)
            assert buffer.offsets() == model.offsets(0)
            assert buffer.offsets(70) == model.offsets(70)
            for k in range(len(model.items)):
                begin, end = buffer.span(k, k + 1)
                assert bytes(buffer)[begin:end] == model.items[k]
            assert buffer.span(0, len(buffer)) == (0, buffer.nbytes)
            buffer.clear()
            model.clear()


@given(LIMITS, st.lists(st.one_of(st.text(max_size=30), st.none()), max_size=40))
def test_flat_samples_go_in_as_their_items_do(limits: tuple[int, int, int], values: list[str | None]) -> None:
    encoder = FlatEncoder(["v"], ["str"])
    one = ItemBuffer(max_bytes=limits[0], max_count=limits[1], max_packed=limits[2])
    other = ItemBuffer(max_bytes=limits[0], max_count=limits[1], max_packed=limits[2])
    for value in values:
        item = encoder({"v": value})
        taken = one.add_flat(encoder, {"v": value})
        assert taken == (-1 if item is None else other.add(item))
        assert bytes(one) == bytes(other)
        assert one.offsets() == other.offsets()
        if not taken:
            one.clear()
            other.clear()


def test_items_grow_past_the_first_room() -> None:
    buffer = ItemBuffer(max_bytes=1 << 30, max_count=1 << 30, max_packed=1 << 30)
    items = [bytes([i % 251]) * (i % 300) for i in range(5000)] + [b"z" * 3_000_000]
    assert all(buffer.add(item) for item in items)
    assert bytes(buffer) == b"".join(items)
    buffer.clear()
    assert bytes(buffer) == b""
    assert buffer.offsets() == bytes(4)


def test_a_view_keeps_the_items_where_they_are() -> None:
    buffer = ItemBuffer(max_bytes=100, max_count=100, max_packed=1000)
    buffer.add(b"one")
    with memoryview(buffer) as view:
        assert (bytes(view), view.readonly) == (b"one", True)
        with pytest.raises(BufferError):
            buffer.add(b"two")
        with pytest.raises(BufferError):
            buffer.clear()
    buffer.add(b"two")
    assert bytes(buffer) == b"onetwo"
    with memoryview(ItemBuffer(max_bytes=1, max_count=1, max_packed=100)) as empty:
        assert bytes(empty) == b""


@pytest.mark.parametrize(("item", "packed"), [(b"x" * 89, 0), (b"x", 93), (b"xx", 1)])
def test_items_that_fit_in_no_chunk_are_refused(item: bytes, packed: int) -> None:
    buffer = ItemBuffer(max_bytes=1000, max_count=10, max_packed=100)
    with pytest.raises(ConfigError):
        buffer.add(item, packed=packed)
    assert len(buffer) == 0
    assert buffer.add(b"x" * 88)


def test_spans_and_limits_that_are_none_are_refused() -> None:
    buffer = ItemBuffer(max_bytes=10, max_count=10, max_packed=100)
    buffer.add(b"x")
    for span in ((-1, 0), (0, 2), (1, 0)):
        with pytest.raises(ItemIndexError):
            buffer.span(*span)
    with pytest.raises(ConfigError, match="32 bits"):
        buffer.offsets(0xFFFFFFFF)
    with pytest.raises(ConfigError, match="4 GiB"):
        ItemBuffer(max_bytes=1, max_count=1, max_packed=1 << 32)
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(buffer)
    assert repr(buffer) == "<ItemBuffer of 1 items, 1 bytes>"
