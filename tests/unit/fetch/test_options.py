"""URLs are recognised and storage_options translated without losing anything."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from lazystore.errors import ConfigError, DatasetNotFoundError
from lazystore.fetch import open_source
from lazystore.fetch.options import check_extra, fsspec_options, is_local, local_path, protocol_of, redact, redacted
from lazystore.fetch.remote import RemoteSource


@pytest.mark.parametrize(
    ("url", "protocol"),
    [
        ("s3://bucket/path", "s3"),
        ("S3://bucket", "s3"),
        ("gs://b", "gs"),
        ("azure://container/path", "azure"),
        ("https://host/x", "https"),
        ("memory://x", "memory"),
        ("simplecache::s3://bucket/x", "simplecache"),
        ("zip://inner::s3://bucket/x.zip", "zip"),
        ("/data/set", ""),
        ("data/set", ""),
        ("./a::b", ""),
        ("C:\\data", ""),
        ("c://data", ""),
        ("odd/name://x", ""),
        ("file:///data", "file"),
        ("file:/data", "file"),
        ("local:/data", "local"),
    ],
)
def test_protocols(url: str, protocol: str) -> None:
    assert protocol_of(url) == protocol
    assert is_local(url) == (protocol in ("", "file", "local"))


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("/data/set", "/data/set"),
        ("data/set", "data/set"),
        ("file:///data/set", "/data/set"),
        ("file://localhost/data", "/data"),
        ("file:/data", "/data"),
        ("local:/data", "/data"),
        ("local:data/set", "data/set"),
        ("local:///data", "/data"),
        (Path("/data"), "/data"),
    ],
)
def test_local_paths(url: str | Path, path: str) -> None:
    assert local_path(url) == path


def test_the_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert local_path("~/data") == "/home/somebody/data"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:secret@host:8080/a?sig=xyz#f", "https://host:8080/a"),
        ("https://host/a", "https://host/a"),
        ("s3://bucket/what?", "s3://bucket/what?"),
        ("/plain/path@x", "/plain/path@x"),
    ],
)
def test_urls_are_shown_without_secrets(url: str, shown: str) -> None:
    assert redact(url) == shown


@pytest.mark.parametrize("protocol", ["s3", "s3a"])
def test_boto_names_become_those_of_s3fs(protocol: str) -> None:
    given = {
        "aws_access_key_id": "A",
        "aws_secret_access_key": "B",
        "aws_session_token": "C",
        "region_name": "eu-west-1",
        "endpoint_url": "http://localhost:9000",
        "profile_name": "me",
        "verify": False,
    }
    assert fsspec_options(protocol, given) == {
        "key": "A",
        "secret": "B",
        "token": "C",
        "endpoint_url": "http://localhost:9000",
        "profile": "me",
        "client_kwargs": {"region_name": "eu-west-1", "verify": False},
    }


def test_a_botocore_config_without_signature_means_anonymous() -> None:
    botocore = pytest.importorskip("botocore")
    config = pytest.importorskip("botocore.config").Config
    given = {"config": config(signature_version=botocore.UNSIGNED)}
    assert fsspec_options("s3", given) == {"anon": True}
    # The marker itself cannot be pickled; a source that was given it can.
    source = RemoteSource("s3://bucket", given)
    assert pickle.loads(pickle.dumps(source))._recipe()["storage_options"] == {"anon": True}


def test_the_rest_of_a_botocore_config_is_kept() -> None:
    config = pytest.importorskip("botocore.config").Config
    given = {"config": config(signature_version="s3v4", read_timeout=3, s3={"addressing_style": "path"})}
    assert fsspec_options("s3", given) == {
        "config_kwargs": {"signature_version": "s3v4", "read_timeout": 3, "s3": {"addressing_style": "path"}}
    }


@pytest.mark.parametrize(
    ("protocol", "options"),
    [
        ("s3", {"anon": True, "client_kwargs": {"region_name": "x"}, "config_kwargs": {"read_timeout": 1}}),
        ("s3", {"requester_pays": True, "something_new": 5}),
        ("gs", {"token": "/path/key.json", "project": "p"}),
        ("azure", {"account_name": "a", "account_key": "k"}),
        ("https", {"headers": {"a": "b"}}),
    ],
)
def test_the_filesystems_own_names_pass_unchanged(protocol: str, options: dict[str, Any]) -> None:
    before = {name: dict(value) if isinstance(value, dict) else value for name, value in options.items()}
    assert fsspec_options(protocol, options) == options
    assert options == before


def test_no_options_are_no_options() -> None:
    assert fsspec_options("s3", None) == {}
    assert fsspec_options("gs", {}) == {}


@pytest.mark.parametrize(
    "given",
    [
        {"key": "A", "aws_access_key_id": "B"},
        {"region_name": "a", "client_kwargs": {"region_name": "b"}},
        {"config": {"read_timeout": 1}, "config_kwargs": {"read_timeout": 2}},
    ],
)
def test_one_setting_under_two_names_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="twice"):
        fsspec_options("s3", given)


def test_the_same_value_twice_is_fine() -> None:
    assert fsspec_options("s3", {"key": "A", "aws_access_key_id": "A"}) == {"key": "A"}


def test_options_of_the_wrong_kind_are_refused() -> None:
    with pytest.raises(ConfigError, match="mapping"):
        fsspec_options("s3", ["anon"])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"botocore\.config\.Config"):
        fsspec_options("s3", {"config": "UNSIGNED"})


@pytest.mark.parametrize(
    ("protocol", "extra"), [("s3", "s3"), ("gs", "gcs"), ("azure", "azure"), ("abfs", "azure"), ("https", "http")]
)
def test_a_missing_package_names_its_extra(protocol: str, extra: str) -> None:
    assert f"pip install lazystore[{extra}]" in str(check_extra(protocol, ImportError("x")))


def test_a_missing_package_without_an_extra_keeps_fsspecs_words() -> None:
    assert "install paramiko" in str(check_extra("sftp", ImportError("install paramiko")))


# --- open_source -------------------------------------------------------------------------------------


@pytest.fixture
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable that either client looks at."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "FSSPEC_", "GOOGLE_", "AZURE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("FSSPEC_CONFIG_DIR", str(tmp_path / "none"))
    monkeypatch.delenv("FSSPEC_CONFIG_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))


def kind_of(source: Any) -> str:
    source.close()
    return type(source).__name__


@pytest.mark.parametrize("prefix", ["", "file://", "local:"])
def test_local_urls_get_a_local_source(prefix: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    source = open_source(f"{prefix}{tmp_path}", {"anything": "goes"})
    assert source.local
    assert source.read_all("a", limit=10, timeout=10) == b"abc"
    source.close()


def test_auto_takes_obstore_where_everything_carries_over(plain_environment: None) -> None:
    pytest.importorskip("obstore")
    assert kind_of(open_source("https://host/x")) == "ObstoreSource"
    signed = {"key": "a", "secret": "b", "region_name": "us-east-1"}
    assert kind_of(open_source("s3://bucket/x", signed)) == "ObstoreSource"


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("https://host/x?signature=1", None),
        ("https://host/x", {"client_kwargs": {"trust_env": True}}),
        ("s3://bucket/x", {"anon": True}),  # the region is not known
        ("s3://bucket/x", {"region_name": "us-east-1"}),  # credentials may be in a profile
        ("s3://bucket/x", {"key": "a", "secret": "b", "region_name": "r", "something_new": 1}),
        ("memory://x", None),
        ("simplecache::https://host/x", None),
    ],
)
def test_auto_takes_fsspec_otherwise(plain_environment: None, url: str, options: dict[str, Any] | None) -> None:
    assert kind_of(open_source(url, options)) == "RemoteSource"


def test_the_backend_can_be_named(plain_environment: None) -> None:
    pytest.importorskip("obstore")
    assert kind_of(open_source("https://host/x", backend="fsspec")) == "RemoteSource"
    assert kind_of(open_source("s3://bucket/x", {"anon": True}, backend="obstore")) == "ObstoreSource"
    with pytest.raises(ConfigError, match="backend"):
        open_source("https://host/x", backend="curl")  # type: ignore[arg-type]


def test_bounds_reach_the_source() -> None:
    source = open_source("memory://x", concurrency=3, max_in_flight_bytes=1234)
    assert source._recipe()["concurrency"] == 3  # type: ignore[attr-defined]
    assert source._recipe()["max_in_flight_bytes"] == 1234  # type: ignore[attr-defined]
    source.close()


def test_a_missing_local_folder_is_not_looked_for_elsewhere(tmp_path: Path) -> None:
    source = open_source(tmp_path / "nowhere")
    with pytest.raises(DatasetNotFoundError):
        source.read_all("index.json", limit=10, timeout=10)
    source.close()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "504 Server Error for url: https://cdn.test/repos/a?X-Amz-Signature=secret&Expires=1 (again)",
            "504 Server Error for url: https://cdn.test/repos/a (again)",
        ),
        ("Pool(host='a'): url: /b?Signature=secret (again)", "Pool(host='a'): url: /b (again)"),
        ("'http://me:secret@host/a' is refused", "'http://host/a' is refused"),
        ("is it? yes = no", "is it? yes = no"),
        ("", ""),
    ],
)  # fmt: skip
def test_texts_of_others_lose_the_secrets_of_their_urls(text: str, shown: str) -> None:
    assert redacted(text) == shown
