"""``Delivery`` against its model: the same results, errors and rests, whatever is asked for in whatever order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from models.delivery import DeliveryModel

from lazystore._core.delivery import Delivery

values = st.lists(st.integers(-4, 30), max_size=6)
moves = st.one_of(
    st.tuples(st.just("deliver"), values),
    st.tuples(st.just("serve"), values, st.integers(0, 1 << 40), st.integers(-1, 5), st.booleans()),
    st.tuples(st.sampled_from(["end", "raise"])),
)
asked = st.sampled_from(["next", "next", "next", "next", "take", "untouched", "waiting", "served"])


def function(item: int) -> Any:
    """Fails in all the ways a function may, for negative items."""
    if item == -1:
        raise ValueError(item)
    if item == -2:
        raise StopIteration(item)
    if item == -3:
        raise LookupError(item)
    if item == -4:
        raise KeyboardInterrupt
    return item * item


def caught(error: Exception, index: int, item: int) -> tuple[Any, ...]:
    if isinstance(error, LookupError):
        raise RuntimeError(index) from error
    return () if isinstance(error, StopIteration) else ((type(error).__name__, index, item),)


def moving(script: list[tuple[Any, ...]]) -> Callable[[Any], bool]:
    left = iter(script)

    def more(delivery: Any) -> bool:
        name, *arguments = next(left, ("end",))
        if name == "deliver":
            delivery.deliver(list(arguments[0]))
        elif name == "serve":
            delivery.serve(function, list(arguments[0]), *arguments[1:])
        elif name == "raise":
            raise OSError("the engine's")
        return bool(name != "end")

    return more


class Scripted(Delivery):
    def __init__(self, script: list[tuple[Any, ...]]) -> None:
        super().__init__()
        self._more = moving(script)

    def more(self) -> bool:
        return self._more(self)

    def caught(self, error: Exception, index: int, item: int) -> tuple[Any, ...]:
        return caught(error, index, item)


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except BaseException as error:  # noqa: BLE001 (whatever comes out is compared)
        return type(error), error.args


@settings(max_examples=200)
@given(st.lists(moves, max_size=12), st.lists(asked, max_size=80))
def test_delivery_is_its_model(script: list[tuple[Any, ...]], questions: list[str]) -> None:
    real, model = Scripted(script), DeliveryModel(moving(script), caught)
    for question in questions:
        if question == "next":
            assert outcome(lambda: next(real)) == outcome(lambda: next(model))
        elif question == "waiting":
            assert real.waiting == model.waiting
        elif question == "served":
            timed, seconds, computed_s, longest_s, longest_at = real.served()
            assert timed == model.timed
            assert 0 <= longest_s <= seconds
            assert computed_s >= 0
            assert longest_at >= 0 or not longest_s
        else:
            assert getattr(real, question)() == getattr(model, question)()
