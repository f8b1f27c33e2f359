"""Where an object is, and what it is called: one source a bucket or host, and no secret in a cache key."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lazystore.cache.origins import MAX_SOURCES, Origins
from lazystore.errors import ClosedError, ConfigError
from lazystore.fetch.wire_http import join_url


@pytest.fixture
def origins():
    found = Origins(backend="fsspec")
    yield found
    found.close()


@pytest.mark.parametrize(
    ("url", "root", "name"),
    [
        ("s3://bucket/a/b c.bin", "s3://bucket", "a/b c.bin"),
        ("gs://bucket/x", "gs://bucket", "x"),
        ("http://host:81/a/year=2020/x.bin", "http://host:81", "a/year=2020/x.bin"),
        ("https://host/a%20b", "https://host", "a b"),
        ("https://host/a?X-Sig=1", "https://host?X-Sig=1", "a"),
        ("https://host/a%2Fb", "https://host/a%2Fb", ""),
        ("https://host/", "https://host", ""),
    ],
)
def test_a_url_becomes_a_root_and_a_name(origins: Origins, url: str, root: str, name: str) -> None:
    origin = origins.find(url)
    assert (origin.source.url, origin.name) == (root, name)
    if url.startswith("http") and name:
        assert join_url(root, name).replace("%3D", "=") == url


def test_local_paths_are_read_from_the_root(origins: Origins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").write_bytes(b"hello")
    found = {origins.find(place) for place in ("x", "./x", tmp_path / "x", f"file://{tmp_path}/x")}
    assert len(found) == 1
    origin = found.pop()
    assert origin.source.local
    assert (origin.url, origin.label) == (f"{tmp_path}/x", f"file://{os.path.realpath(tmp_path / 'x')}")
    assert origin.source.read_all(origin.name, limit=9, timeout=1) == b"hello"


def test_objects_of_a_bucket_share_a_source_and_others_do_not(origins: Origins) -> None:
    one, two = origins.find("s3://bucket/a"), origins.find("s3://bucket/b")
    assert one.source is two.source
    assert origins.find("s3://other/a").source is not one.source
    assert origins.find("s3://bucket/a", {"key": "k", "secret": "s"}).source is not one.source


def test_labels_have_no_secrets_and_tell_places_apart(origins: Origins) -> None:
    with_secret = {"key": "AKIA", "secret": "hush", "client_kwargs": {"endpoint_url": "http://here"}}
    one = origins.find("s3://bucket/a", with_secret)
    assert "hush" not in repr(one.label)
    assert origins.find("s3://bucket/a", {**with_secret, "secret": "rotated"}).label == one.label
    assert origins.find("s3://bucket/a", {"endpoint_url": "http://there"}).label != one.label
    signed = origins.find("https://user:hush@host/a?X-Sig=hush")
    assert "hush" not in signed.label + signed.url
    assert signed.label != origins.find("https://host/a?X-Sig=other").label


def test_other_filesystems_are_mounted(origins: Origins) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe_file("/origins/a", b"hello")
    try:
        origin = origins.find("memory://origins/a")
        assert origin.source.read_all(origin.name, limit=9, timeout=10) == b"hello"
        assert origins.mount(memory, "/origins/a").label == origin.label
        before = origin.source.identity(origin.name, timeout=10)
        memory.pipe_file("/origins/a", b"hello again")
        origin.source.forget(origin.name)
        assert origin.source.identity(origin.name, timeout=10) != before
    finally:
        memory.rm("/origins", recursive=True)


@pytest.mark.parametrize("url", ["s3://bucket", "s3://bucket/", "gs:///key"])
def test_a_bucket_is_no_object(origins: Origins, url: str) -> None:
    with pytest.raises(ConfigError, match="names no object"):
        origins.find(url)


def test_the_number_of_sources_is_bounded(origins: Origins) -> None:
    kept = [origins.find(f"s3://bucket-{number}/x") for number in range(MAX_SOURCES + 5)]
    assert origins.find("s3://bucket-0/x").source is not kept[0].source
    assert origins.find(f"s3://bucket-{MAX_SOURCES + 4}/x").source is kept[-1].source


def test_closed_origins_open_nothing(origins: Origins) -> None:
    origins.find("s3://bucket/a")
    origins.close()
    with pytest.raises(ClosedError):
        origins.find("s3://bucket/a")
