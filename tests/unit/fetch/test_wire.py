"""Identities are compared by what both sides know; Content-Range is read strictly."""

from __future__ import annotations

import datetime

import pytest

from lazystore.fetch.retry import Verdict, WireError
from lazystore.fetch.wire import UNKNOWN, Identity, content_range, identity_of_info, range_ignored


@pytest.mark.parametrize(
    ("known", "seen", "words"),
    [
        (Identity(5, '"a"'), Identity(5, '"a"'), ""),
        (Identity(5, '"a"'), Identity(6, '"a"'), "size"),
        (Identity(5, '"a"'), Identity(5, '"b"'), "tag"),
        (Identity(UNKNOWN, '"a"'), Identity(6, '"a"'), ""),
        (Identity(5, '"a"', "yesterday"), Identity(5, '"a"', "today"), ""),
        (Identity(5, "", "yesterday"), Identity(5, "", "today"), "modified"),
        (Identity(5, '"a"'), Identity(5, "", "today"), ""),
        (Identity(5), Identity(5, '"b"', "today"), ""),
        (Identity(5, 'W/"a"'), Identity(5, '"a"'), ""),
        (Identity(5, 'W/"a"'), Identity(5, 'W/"b"'), "tag"),
    ],
)
def test_difference(known: Identity, seen: Identity, words: str) -> None:
    found = known.difference(seen)
    assert words in found
    assert bool(found) == bool(words)


def test_weak_tags_are_not_sent_as_a_condition() -> None:
    assert Identity(1, '"a"').strong_etag == '"a"'
    assert Identity(1, 'W/"a"').strong_etag == ""
    assert Identity(1).strong_etag == ""


def test_content_range() -> None:
    assert content_range("bytes 0-9/100") == (0, 10, 100)
    assert content_range("Bytes 5-5/*") == (5, 6, UNKNOWN)


@pytest.mark.parametrize("header", [None, "", "bytes */100", "items 0-9/100", "bytes 0-9", "bytes 0-9/100, 20-29/100"])
def test_unusable_content_range(header: str | None) -> None:
    with pytest.raises(WireError, match="Content-Range"):
        content_range(header)


def test_identity_of_info_takes_the_strictest_tag() -> None:
    when = datetime.datetime(2024, 1, 1)
    assert identity_of_info({"size": 5, "generation": "17", "etag": "x"}) == Identity(5, "17")
    assert identity_of_info({"size": 5, "ETag": '"x"', "LastModified": when}) == Identity(5, '"x"')
    assert identity_of_info({"size": 5, "mtime": 1.5, "type": "file"}) == Identity(5, "", "1.5")
    assert identity_of_info({"size": None}) == Identity(UNKNOWN)


def test_a_directory_has_no_identity() -> None:
    with pytest.raises(WireError) as caught:
        identity_of_info({"type": "directory", "size": 0})
    assert caught.value.verdict is Verdict.MISSING


def test_an_ignored_range_cannot_be_cured_by_repeating() -> None:
    assert range_ignored(77).verdict is Verdict.FATAL
    assert "all 77 bytes" in str(range_ignored(77))
    assert "the whole object" in str(range_ignored(UNKNOWN))
