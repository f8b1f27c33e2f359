from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazystore.lazy.calls import CallKeys


def spelled(a: int, b: int = 2, /, c: int = 3, *rest: int, d: int = 4, **more: int) -> tuple[Any, ...]:
    return a, b, c, rest, d, tuple(sorted(more.items()))


VALUES = st.integers(0, 2)


@given(st.lists(VALUES, max_size=6), st.dictionaries(st.sampled_from("cdexyab"), VALUES))
def test_calls_have_one_key_exactly_if_the_function_sees_the_same_arguments(args: list[int], kwargs: Any) -> None:
    keys = CallKeys(spelled, None)
    try:
        seen = spelled(*args, **kwargs)
    except TypeError as error:
        with pytest.raises(TypeError) as caught:
            keys.make(*args, **kwargs)
        assert str(caught.value).split("()")[-1] == str(error).split("()")[-1]
    else:
        assert keys.make(*args, **kwargs)[2:] == seen
