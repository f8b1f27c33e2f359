from __future__ import annotations

import os
import urllib.parse
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazystore.testing.buckets import Buckets, StoreError
from lazystore.testing.listing import error_xml, folder_html, list_buckets_xml, list_objects_xml, list_page

KEYS = ["a.txt", "a/b/1", "a/b/2", "a/c", "a0", "b/<x>&y", "c d/e+f", "d--e--f", "d--g", "\u00e9"]
NAMESPACE = "{http://s3.amazonaws.com/doc/2006-03-01/}"


@pytest.fixture(scope="module")
def buckets(tmp_path_factory):
    root = tmp_path_factory.mktemp("listing")
    for key in KEYS:
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * len(key))
        os.utime(path, ns=(0, 1_700_000_000_123_000_000))
    return Buckets(None, {"b": str(root)})


def list_all(buckets, query):
    """Every page, through the XML, as a client would walk them; keys and prefixes in order."""
    pages, token = [], ""
    while True:
        asked = {**query, "encoding-type": "url"} | ({"continuation-token": token} if token else {})
        answer = ET.fromstring(list_objects_xml("b", asked, list_page(buckets, "b", asked)))

        def text(element, tag):
            return element.findtext(NAMESPACE + tag) or ""

        keys = [urllib.parse.unquote(text(e, "Key")) for e in answer.iter(NAMESPACE + "Contents")]
        prefixes = [urllib.parse.unquote(text(e, "Prefix")) for e in answer.iter(NAMESPACE + "CommonPrefixes")]
        assert int(text(answer, "KeyCount")) == len(keys) + len(prefixes)
        pages.append((keys, prefixes))
        token = text(answer, "NextContinuationToken")
        assert (text(answer, "IsTruncated") == "true") == bool(token)
        if not token:
            return pages


@settings(max_examples=200)
@given(
    prefix=st.sampled_from(["", "a", "a/", "a/b", "a/b/", "b/", "c d/", "d", "none"]),
    delimiter=st.sampled_from(["", "/", "--"]),
    limit=st.integers(1, 12),
)
def test_pages_hold_every_key_once_in_order(buckets, prefix, delimiter, limit):
    expected_keys, expected_prefixes = [], []
    for key in sorted(KEYS, key=str.encode):
        if not key.startswith(prefix):
            continue
        cut = key.find(delimiter, len(prefix)) if delimiter else -1
        if cut < 0:
            expected_keys.append(key)
        elif key[: cut + len(delimiter)] not in expected_prefixes:
            expected_prefixes.append(key[: cut + len(delimiter)])
    pages = list_all(buckets, {"prefix": prefix, "delimiter": delimiter, "max-keys": str(limit)})
    assert [key for keys, _ in pages for key in keys] == expected_keys
    assert [p for _, prefixes in pages for p in prefixes] == expected_prefixes
    assert all(len(keys) + len(prefixes) <= limit for keys, prefixes in pages)


def test_start_after_skips(buckets):
    page = list_page(buckets, "b", {"start-after": "a/c"})
    assert [entry.key for entry in page.contents] == [k for k in sorted(KEYS, key=str.encode) if k > "a/c"]


def test_a_listing_says_size_time_and_etag(buckets):
    answer = ET.fromstring(list_objects_xml("b", {"prefix": "b/"}, list_page(buckets, "b", {"prefix": "b/"})))
    entry = answer.find(NAMESPACE + "Contents")
    assert entry is not None
    assert entry.findtext(NAMESPACE + "Key") == "b/<x>&y"
    assert entry.findtext(NAMESPACE + "Size") == str(len("b/<x>&y"))
    assert entry.findtext(NAMESPACE + "LastModified") == "2023-11-14T22:13:20.123Z"
    stored = buckets.open("b", "b/<x>&y")
    assert entry.findtext(NAMESPACE + "ETag") == stored.etag
    stored.release()


def test_no_keys_asked_no_keys_given(buckets):
    page = list_page(buckets, "b", {"max-keys": "0"})
    assert (len(page), page.next_after) == (0, "")


@pytest.mark.parametrize(
    "query",
    [{"max-keys": "x"}, {"max-keys": "-1"}, {"continuation-token": "\u00e9"}, {"continuation-token": "a"}],
)
def test_parameters_that_make_no_sense_are_refused(buckets, query):
    with pytest.raises(StoreError) as caught:
        list_page(buckets, "b", query)
    assert caught.value.status == 400


def test_names_are_escaped_wherever_they_appear(buckets):
    names = ET.fromstring(list_buckets_xml(["a&b", "c"]))
    assert [e.text for e in names.iter(NAMESPACE + "Name")] == ["a&b", "c"]
    error = ET.fromstring(error_xml(StoreError(404, "NoSuchKey", "<gone>"), "/b/<&>"))
    assert (error.findtext("Message"), error.findtext("Resource")) == ("<gone>", "/b/<&>")
    page = folder_html("b", "b/", buckets.keys("b", prefix="b/", shallow=True)).decode()
    assert 'href="/b/b/%3Cx%3E%26y"' in page
    assert "&lt;x&gt;&amp;y</a>" in page
