"""Where objects were redirected to is remembered, forgotten when that fails, and not told secrets."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from lazystore.errors import DatasetNotFoundError, FetchError, SourceChangedError
from lazystore.fetch.remote import RemoteSource
from lazystore.fetch.source import Read
from lazystore.testing import Faults, LocalHub

DATA = bytes(range(256)) * 64
NAME = "some/large.parquet"


@pytest.fixture(scope="module")
def running() -> Iterator[LocalHub]:
    with LocalHub() as hub:
        yield hub


@pytest.fixture
def hub(running: LocalHub) -> LocalHub:
    """A hub whose large files are elsewhere; counters at zero."""
    running.add("org/name", {NAME: DATA, "small.txt": b"not elsewhere", "other.parquet": DATA[::-1]})
    running.add("org/gated", {NAME: DATA}, gated=True, token="secret")
    running.calm()
    return running


def opened(hub: LocalHub, repo: str = "org/name", **options: Any) -> contextlib.closing[RemoteSource]:
    return contextlib.closing(RemoteSource(f"{hub.endpoint}/datasets/{repo}/resolve/main", options))


def read(source: RemoteSource, begin: int = 0, nbytes: int = 100, name: str = NAME) -> bytes:
    view = memoryview(bytearray(nbytes))
    source.run([Read(name, begin, view)], timeout=10)
    return bytes(view)


def test_only_the_first_range_is_redirected(hub: LocalHub) -> None:
    with opened(hub) as source:
        for begin in (0, 5000, 77, 16_000):
            assert read(source, begin) == DATA[begin : begin + 100]
    assert hub.traffic()["kinds"] == {"resolve": 1, "cdn": 4}


def test_objects_that_are_not_redirected_are_asked_for_where_they_are(hub: LocalHub) -> None:
    with opened(hub) as source:
        for _ in range(3):
            assert read(source, 4, 9, "small.txt") == b"elsewhere"
    assert hub.traffic()["kinds"] == {"resolve": 3}


def test_each_object_has_its_own_place(hub: LocalHub) -> None:
    with opened(hub) as source:
        for _ in range(2):
            assert read(source, 3, 50) == DATA[3:53]
            assert read(source, 3, 50, "other.parquet") == DATA[::-1][3:53]
    assert hub.traffic()["kinds"] == {"resolve": 2, "cdn": 4}


def test_sizes_and_ranges_agree(hub: LocalHub) -> None:
    with opened(hub) as source:
        view = memoryview(bytearray(10))
        assert source.run([Read(NAME, 1, view)], stat=[NAME], timeout=10) == {NAME: len(DATA)}
        assert bytes(view) == DATA[1:11]
        assert read(source, 300) == DATA[300:400]


def test_an_address_that_ran_out_is_asked_for_once_more(hub: LocalHub) -> None:
    with opened(hub) as source:
        read(source)
        hub.expire_links()
        hub.reset()
        assert read(source, 200) == DATA[200:300]
        assert read(source, 500) == DATA[500:600]
        assert source.counters.retries == 0
    found = hub.traffic()
    assert found["kinds"] == {"resolve": 1, "cdn": 3}
    assert found["statuses"] == {"302": 1, "206": 2, "403": 1}


def test_failures_elsewhere_lead_back_to_the_object_s_own_address(hub: LocalHub) -> None:
    with opened(hub) as source:
        read(source)
        hub.set(faults=Faults(first=("error_503",), only="repos/*"))
        hub.reset()
        assert read(source, 200) == DATA[200:300]
        assert source.counters.retries == 1
    assert hub.traffic()["kinds"] == {"cdn": 2, "resolve": 1}


def test_an_object_that_is_gone_is_gone(hub: LocalHub) -> None:
    with opened(hub) as source:
        read(source)
        hub.remove("org/name")
        hub.expire_links()
        with pytest.raises((DatasetNotFoundError, FetchError), match=r"HTTP 40[14]"):
            read(source, 200)


def test_tokens_are_shown_to_their_origin_only(hub: LocalHub) -> None:
    with opened(hub, "org/gated", headers={"Authorization": "Bearer secret"}) as source:
        for begin in (0, 100, 200):
            assert read(source, begin) == DATA[begin : begin + 100]
    found = hub.traffic()
    assert found["kinds"] == {"resolve": 1, "cdn": 3}
    assert found["statuses"] == {"302": 1, "206": 3}  # the CDN answers a token with 400


def test_tokens_of_the_whole_client_are_not_shown_elsewhere_either(hub: LocalHub) -> None:
    with opened(hub, "org/gated", client_kwargs={"headers": {"Authorization": "Bearer secret"}}) as source:
        for begin in (0, 100):
            assert read(source, begin) == DATA[begin : begin + 100]
    found = hub.traffic()
    assert found["statuses"] == {"302": 2, "206": 2}  # where aiohttp would show it, nothing is remembered


def test_a_pinned_object_that_is_replaced_elsewhere_is_noticed(hub: LocalHub) -> None:
    with opened(hub) as source:
        source.run([Read(NAME, 0, memoryview(bytearray(10)))], stat=[NAME], timeout=10)
        hub.add("org/name", {NAME: DATA[::-1]})
        hub.expire_links()
        with pytest.raises(SourceChangedError):
            read(source, 200)
