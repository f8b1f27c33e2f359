from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazystore.testing.answers import names_etag, parse_range, parse_target
from lazystore.testing.buckets import StoreError

DATA = bytes(range(100))


@given(st.integers(0, 120), st.integers(0, 120))
def test_a_closed_range_means_the_bytes_from_first_to_last(first, last):
    if last < first:
        assert parse_range(f"bytes={first}-{last}", 100) is None
    elif first >= 100:
        with pytest.raises(StoreError) as caught:
            parse_range(f"bytes={first}-{last}", 100)
        assert caught.value.status == 416
    else:
        found = parse_range(f"bytes={first}-{last}", 100)
        assert found is not None
        assert DATA[slice(*found)] == DATA[first : last + 1]


@given(st.integers(1, 150))
def test_a_suffix_range_means_the_last_bytes(count):
    found = parse_range(f"bytes=-{count}", 100)
    assert found is not None
    assert DATA[slice(*found)] == DATA[-count:]


def test_an_open_range_runs_to_the_end():
    assert parse_range("bytes=90-", 100) == (90, 100)
    assert parse_range(" Bytes = 0 - 0 ", 1) == (0, 1)


@pytest.mark.parametrize(("text", "size"), [("bytes=-0", 5), ("bytes=0-", 0), ("bytes=5-", 5), ("bytes=-5", 0)])
def test_ranges_without_a_byte_are_not_satisfiable(text, size):
    with pytest.raises(StoreError) as caught:
        parse_range(text, size)
    assert caught.value.status == 416


@pytest.mark.parametrize(
    "text",
    [
        "bytes=",
        "bytes=-",
        "bytes",
        "items=0-1",
        "bytes=a-b",
        "bytes=0-1,3-4",
        "bytes=1--2",
        "",
        "bytes=\u00b2-",
    ],
)
def test_ranges_that_are_none_are_ignored(text):
    assert parse_range(text, 100) is None


@pytest.mark.parametrize(
    ("header", "named"),
    [
        ('"e"', True),
        ("e", True),
        ("*", True),
        ('W/"e"', True),
        ('"x", "e"', True),
        ('"x"', False),
        ("", False),
    ],
)
def test_etags_are_compared_with_and_without_quotes(header, named):
    assert names_etag(header, '"e"') is named


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/b/k", "/b/k", {}),
        ("/b/a%20b%2Bc+d", "/b/a b+c+d", {}),
        ("/b/%C3%A9", "/b/\u00e9", {}),
        (
            "/b?list-type=2&prefix=a%2Fb&delimiter=",
            "/b",
            {"list-type": "2", "prefix": "a/b", "delimiter": ""},
        ),
        ("http://127.0.0.1:80/b/k?x=1", "/b/k", {"x": "1"}),
        ("/b/%ff", "", {}),
        ("b/k", "", {}),
        ("*", "", {}),
    ],
)
def test_targets_are_decoded(target, path, query):
    assert parse_target(target) == (path, query)
