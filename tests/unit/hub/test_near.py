"""Names that somebody may have meant."""

from __future__ import annotations

from lazystore.hub.near import near


def test_names_like_it_are_told_whatever_their_case() -> None:
    assert near("HumanEvall", ["beans", "humaneval"]) == " (did you mean 'humaneval'?)"
    assert near("trian", ["train", "Train2", "test"]).startswith(" (did you mean 'train' or ")


def test_without_any_like_it_nothing_is_said() -> None:
    assert near("x", ["train", "test"]) == ""
    assert near("x", []) == ""
    assert near(3, ["3"]) == ""
