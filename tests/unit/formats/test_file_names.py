"""No name that an index gives leads out of the dataset's directory."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazystore.formats.file_names import is_inside


@pytest.mark.parametrize("name", ["a", "chunk-0-0.bin", "a.b..c", "...", "ä", "a:b", " ", "C:"])
def test_plain_names_are_inside(name: str) -> None:
    assert is_inside(name) and is_inside(name, below=True) and is_inside(f"part/{name}", below=True)
    assert not is_inside(f"part/{name}")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "/a", "a/", "a//b", "../a", "a/../b", "a/./b", "a\\b", "a\0", "s3://a/b", None, 3, b"a", []]
)
def test_others_are_not(name: object) -> None:
    assert not is_inside(name) and not is_inside(name, below=True)


@given(st.text(st.sampled_from("./\\\0:a"), max_size=12))
def test_what_is_inside_stays_inside(name: str) -> None:
    if is_inside(name, below=True):
        path = os.path.normpath(os.path.join("/data/set", name))
        assert path.startswith("/data/set/") and path == f"/data/set/{name}"
