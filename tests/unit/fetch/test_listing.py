"""A directory's files by name and size, wherever it is, in the order people count in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazystore.errors import ConfigError, DatasetNotFoundError, FetchError, MissingExtraError
from lazystore.fetch.listing import UNKNOWN_SIZE, list_objects, natural_key
from lazystore.testing import FaultyFileSystem, FileFaults, ObjectStore

FILES = {"part-10.parquet": 3, "part-2.parquet": 1, "part-1 a+b%c.parquet": 2, "index.json": 4, ".hidden": 5}
PARTS = ["part-1 a+b%c.parquet", "part-2.parquet", "part-10.parquet"]

Place = tuple[str, Mapping[str, Any] | None]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("listed")
    folder = root / "data" / "set"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "part-5.parquet").write_bytes(b"below")
    for name, size in FILES.items():
        (folder / name).write_bytes(b"x" * size)
    return root


@pytest.fixture(scope="module")
def store(root: Path) -> Iterator[ObjectStore]:
    with ObjectStore(root) as running:
        yield running


@pytest.fixture(params=["local", "http", "s3", "memory"])
def place(request: pytest.FixtureRequest, root: Path, store: ObjectStore) -> Place:
    if request.param == "local":
        return str(root / "data" / "set"), None
    if request.param == "http":
        return store.http_url("data", "set"), None
    if request.param == "s3":
        pytest.importorskip("s3fs")
        return store.s3_url("data", "set"), {"anon": True, "endpoint_url": store.url, "region_name": "us-east-1"}
    memory = fsspec.filesystem("memory")
    memory.pipe({f"/listed/set/{name}": b"x" * size for name, size in FILES.items()})
    memory.pipe({"/listed/set/sub/part-5.parquet": b"below"})
    return "memory://listed/set", None


def test_files_are_listed_in_natural_order_with_their_sizes_and_nothing_below(place: Place) -> None:
    url, options = place
    for pattern, names in {"*.parquet": PARTS, "part-?.parquet": PARTS[1:2], "*": ["index.json", *PARTS]}.items():
        found = list_objects(url, pattern, options)
        assert list(found) == names
        for name, size in found.items():
            assert size == FILES[name] or (url.startswith("http") and size == UNKNOWN_SIZE)


def test_hidden_files_are_listed_only_when_asked_for(place: Place) -> None:
    url, options = place
    assert list(list_objects(url, ".h*", options)) == [".hidden"]
    assert ".hidden" not in list_objects(url, "*", options)


def test_a_directory_that_is_not_there_is_said_to_be_missing(place: Place) -> None:
    url, options = place
    with pytest.raises(DatasetNotFoundError, match="nowhere"):
        list_objects(url + "/nowhere", "*", options)


@pytest.mark.parametrize("pattern", ["sub/*.parquet", "..\\*", ""])
def test_patterns_stay_inside_one_directory(pattern: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pattern"):
        list_objects(tmp_path, pattern)


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Callable[[FileFaults], None]:
    """``faulty://`` is a filesystem with these faults in its listings."""

    def use(faults: FileFaults) -> None:
        fs = FaultyFileSystem({f"set/{name}": b"x" * size for name, size in FILES.items()}, faults={"ls": faults})
        monkeypatch.setattr("fsspec.core.url_to_fs", lambda url, **options: (fs, "set"))

    monkeypatch.setattr("lazystore.fetch.listing.FIRST_WAIT", 0.0)
    return use


@pytest.mark.parametrize("fault", ["error", "cancelled"])
def test_a_listing_that_fails_once_is_tried_again(fault: str, faulty: Callable[[FileFaults], None]) -> None:
    faulty(FileFaults(first=(fault,)))
    assert list(list_objects("faulty://set", "*.parquet")) == PARTS


def test_a_listing_that_keeps_failing_is_given_up_with_the_reason(faulty: Callable[[FileFaults], None]) -> None:
    faulty(FileFaults(error=1.0))
    with pytest.raises(FetchError, match="cannot be listed") as caught:
        list_objects("faulty://set")
    assert caught.value.attempts == 3


def test_a_filesystem_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(MissingExtraError, match="gcs"):
        list_objects("gs://bucket/set")


def test_options_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="twice"):
        list_objects("s3://bucket/set", "*", {"key": "a", "aws_access_key_id": "b"})


@given(st.lists(st.integers(0, 10**30), min_size=1))
def test_numbers_in_names_sort_as_numbers(numbers: list[int]) -> None:
    names = [f"part-{n}.parquet" for n in numbers]
    assert sorted(names, key=natural_key) == [f"part-{n}.parquet" for n in sorted(numbers)]


@given(st.lists(st.text()))
def test_any_names_have_one_order(names: list[str]) -> None:
    backwards = names[::-1]
    assert sorted(names, key=natural_key) == sorted(backwards, key=natural_key)
