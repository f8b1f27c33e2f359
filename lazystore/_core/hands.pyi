from array import array
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from typing_extensions import disjoint_base

__test__: dict[str, Any]

_SpanT = TypeVar("_SpanT", bound=tuple[int, int, int])
_GroupT = TypeVar("_GroupT")

@disjoint_base
class Hand:
    @property
    def span(self) -> Any: ...
    def __new__(cls, span: tuple[int, int, int], order: int, turn: int, born: int) -> Hand: ...
    def __reduce__(self) -> NoReturn: ...

def deal(
    hands: list[Hand],
    number: int,
    window: int,
    steps: int,
    make_group: Callable[[_SpanT, array[int]], _GroupT],
) -> tuple[list[_GroupT], list[_SpanT]]: ...
