"""Items that are not one line or one record are told apart from those that are."""

from __future__ import annotations

import pickle

import pytest

from lazystore._core.fields import RecordReader, line_bytes, line_text
from lazystore.errors import ConfigError, FormatError


def test_a_record_is_a_dict_by_the_header() -> None:
    reader = RecordReader(("a", "b"), delimiter=b";", quote=b"'")
    assert reader(b"1;'x;''y'\r\n") == {"a": "1", "b": "x;'y"}
    assert reader(b";\n\n") == {"a": "", "b": ""}


@pytest.mark.parametrize(("item", "n"), [(b"1", 1), (b"1,2,3\n", 3), (b"\n", 1)])
def test_a_record_of_other_length_names_both_counts(item: bytes, n: int) -> None:
    with pytest.raises(FormatError, match=f"has {n} fields, the header 2"):
        RecordReader(("a", "b"))(item)


@pytest.mark.parametrize("item", [b"1,2\n3,4\n", b'1,"2', b'"1\n2'])
def test_items_that_are_not_one_record_are_refused(item: bytes) -> None:
    with pytest.raises(FormatError, match="the index is not this file's"):
        RecordReader(("a", "b"))(item)


def test_items_of_several_lines_are_refused() -> None:
    for read in (line_bytes, line_text):
        with pytest.raises(FormatError, match="more than one line"):
            read(b"a\nb")
        assert len(read(b"a\n \t\r\n\n")) == 1


def test_bytes_that_are_no_utf8_are_refused() -> None:
    with pytest.raises(UnicodeDecodeError):
        line_text(b"\xff\n")
    for item in (b"\xff,a", b'"\xff",a', b'"\xff""",a'):
        with pytest.raises(UnicodeDecodeError):
            RecordReader(("a", "b"))(item)


def test_what_makes_no_reader_is_refused() -> None:
    for options in ({"delimiter": b""}, {"delimiter": b"ab"}, {"quote": b"''"}):
        with pytest.raises(ConfigError):
            RecordReader((), **options)
    with pytest.raises(TypeError):
        pickle.dumps(RecordReader(()))
