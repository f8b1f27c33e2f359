"""Trees of plain values: promises the model does not cover; it is in ``tests/property/test_disk_model.py``."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from lazystore._core.tree import decode, encode
from lazystore.errors import FormatError


class Leaf:
    pass


def test_what_is_not_plain_is_the_callers() -> None:
    leaf = Leaf()
    data = encode([1, {"x": leaf}], lambda found: b"leaf" if found is leaf else b"")
    assert decode(data, lambda found: found.decode()) == [1, {"x": "leaf"}]


@pytest.mark.parametrize("kind", [type("S", (str,), {}), type("I", (int,), {}), type("L", (list,), {})])
def test_subclasses_are_not_plain(kind: Any) -> None:
    seen: list[object] = []

    def other(found: object) -> bytes:
        seen.append(found)
        return b""

    encode((kind(), None), other)
    assert type(seen[0]) is kind


def test_what_the_caller_raises_arrives() -> None:
    def refuse(_: object) -> bytes:
        raise LookupError("not this one")

    with pytest.raises(LookupError, match="not this one"):
        encode([Leaf()], refuse)


def test_containers_that_change_meanwhile_are_refused_not_misread() -> None:
    numbers: list[Any] = [Leaf(), 1, 2, 3]
    names: dict[str, Any] = {"a": Leaf(), "b": 1, "c": 2}

    def empty(_: object) -> bytes:
        numbers.clear()
        names.clear()
        gc.collect()
        return b""

    with pytest.raises(TypeError, match="changed"):
        encode(numbers, empty)
    names.update(a=Leaf(), b=1)
    with pytest.raises(TypeError, match="changed"):
        encode(names, empty)

    def grow(_: object) -> bytes:
        names.update({str(i): i for i in range(1000)})
        return b""

    names.update(a=Leaf(), b=1)
    with pytest.raises(TypeError, match="changed"):
        encode(names, grow)


def test_depth_is_bounded_both_ways() -> None:
    def nested(depth: int) -> list[Any]:
        return [] if depth == 1 else [nested(depth - 1)]

    assert decode(encode(nested(100), repr), repr) == nested(100)
    with pytest.raises(TypeError, match="deep"):
        encode(nested(101), repr)
    with pytest.raises(FormatError, match="deep"):
        decode(b"l\1\0\0\0" * 101 + b"N", repr)


def test_rows_share_their_keys() -> None:
    rows = decode(encode([{"id": n, "a name": str(n)} for n in range(3)], repr), repr)
    assert [list(map(id, row)) for row in rows] == [list(map(id, rows[0]))] * 3


def test_many_different_keys_come_back() -> None:
    value = {f"{n:x}" * (1 + n % 3): n for n in range(5000)} | {"": -1, "ä": -2, "k" * 33: -3, "\0": -4}
    assert decode(encode([value, value], repr), repr) == [value, value]


@pytest.mark.parametrize("data", [b"", b"l\1\0\0\0", b"i\0", b"s\5\0\0\0abc", b"s\1\0\0\0\xff", b"d\1\0\0\0s\1\0\0\0"])
def test_what_ends_too_early_is_a_format_error(data: bytes) -> None:
    with pytest.raises(FormatError):
        decode(data, repr)
