"""A part is made once, at its first use."""

from __future__ import annotations

from lazystore.lazy.parts import part


class Whole:
    made = 0

    @part
    def engine(self) -> list[int]:
        """What moves it."""
        type(self).made += 1
        return [1]


def test_a_part_is_made_at_its_first_use_and_kept() -> None:
    whole = Whole()
    assert Whole.made == 0 and "engine" not in whole.__dict__
    assert whole.engine is whole.engine
    assert Whole.made == 1
    assert Whole().engine is not whole.engine


def test_a_part_of_a_class_tells_what_it_is() -> None:
    assert isinstance(Whole.engine, part)
    assert Whole.engine.__doc__ == "What moves it."
