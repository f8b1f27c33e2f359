"""What of the options carries over to obstore, what keeps auto from it, and how its errors are read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

obstore = pytest.importorskip("obstore")

from lazystore.errors import ConfigError, FetchError, MissingExtraError  # noqa: E402
from lazystore.fetch import obstore as subject  # noqa: E402
from lazystore.fetch.obstore import ObstoreSource, StorePlan, Unmappable, plan_store, why_not  # noqa: E402
from lazystore.fetch.retry import Verdict, WireError  # noqa: E402
from lazystore.fetch.source import Read  # noqa: E402

KEYS = {"key": "a", "secret": "b"}


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable and no file that either client looks at."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "FSSPEC_", "GOOGLE_", "AZURE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("url", "options", "plan"),
    [
        ("s3://b", {"anon": True}, StorePlan("S3Store", "b", "", {"skip_signature": True})),
        (
            "s3://b/p/q/",
            {**KEYS, "token": "c", "client_kwargs": {"region_name": "r"}},
            StorePlan(
                "S3Store",
                "b",
                "p/q/",
                {"access_key_id": "a", "secret_access_key": "b", "session_token": "c", "region": "r"},
            ),
        ),
        (
            "s3://b/p",
            {"anon": False, "endpoint_url": "http://localhost:9000", "use_ssl": False, "requester_pays": True},
            StorePlan(
                "S3Store",
                "b",
                "p/",
                {"endpoint": "http://localhost:9000", "request_payer": True},
                {"allow_http": True},
            ),
        ),
        (
            "s3a://b",
            {"config_kwargs": {"signature_version": "s3v4", "s3": {"addressing_style": "path"}}},
            StorePlan("S3Store", "b"),
        ),
        ("gs://b/p", {"token": "anon"}, StorePlan("GCSStore", "b", "p/", {"skip_signature": True})),
        (
            "azure://c/p",
            {"account_name": "n", "account_key": "k"},
            StorePlan("AzureStore", "c", "p/", {"account_name": "n", "account_key": "k"}),
        ),
        (
            "az://c",
            {"account_name": "n", "sas_token": "s"},
            StorePlan("AzureStore", "c", "", {"account_name": "n", "sas_key": "s"}),
        ),
        ("http://h/p/", {}, StorePlan("HTTPStore", "http://h/p", client={"allow_http": True})),
        (
            "https://h/p",
            {"headers": {"A": "1"}, "client_kwargs": {"headers": {"B": "2"}}},
            StorePlan("HTTPStore", "https://h/p", client={"default_headers": {"A": "1", "B": "2"}}),
        ),
    ],
)
def test_options_with_an_equivalent_carry_over(url: str, options: dict[str, Any], plan: StorePlan) -> None:
    assert plan_store(url, options) == plan


@pytest.mark.parametrize(
    ("url", "options", "words"),
    [
        ("s3://b", {**KEYS, "profile": "me"}, "profile"),
        ("s3://b", {**KEYS, "client_kwargs": {"verify": False}}, "verify"),
        ("s3://b", {**KEYS, "client_kwargs": {"api_version": "1"}}, "api_version"),
        ("s3://b", {**KEYS, "config_kwargs": {"read_timeout": 1}}, "read_timeout"),
        ("s3://b", {**KEYS, "config_kwargs": {"s3": {"addressing_style": "virtual"}}}, "s3"),
        ("s3://b", {**KEYS, "use_ssl": False}, "use_ssl"),
        ("s3://b", {**KEYS, "endpoint_url": "localhost:9000"}, "endpoint_url"),
        ("s3://b/x?versionId=3", KEYS, "more than a bucket"),
        ("gs://b", {"token": "cloud"}, "token"),
        ("gs://b", {"project": "p"}, "project"),
        ("az://c", {"connection_string": "x"}, "connection_string"),
        ("az://c", {"account_name": "n", "anon": False}, "anon"),
        ("abfs://c@account.dfs.core.windows.net/p", {}, "more than a bucket"),
        ("https://h/p?sig=1", {}, "query"),
        ("https://user:pw@h/p", {}, "credentials"),
        ("https://h/p", {"auth": 1}, "auth"),
        ("memory://x", {}, "memory"),
    ],
)
def test_options_without_an_equivalent_are_named(url: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(Unmappable, match=words):
        plan_store(url, options)
    assert words in why_not(url, options)
    if not url.startswith("memory"):
        with pytest.raises(ConfigError, match=words):
            ObstoreSource(url, options)


@pytest.mark.parametrize(
    ("kind", "setting"), [("service_account", "service_account"), ("authorized_user", "application_credentials")]
)
def test_a_token_file_goes_where_its_type_says(kind: str, setting: str, tmp_path: Path) -> None:
    path = tmp_path / "token.json"
    path.write_text(json.dumps({"type": kind}))
    assert plan_store("gs://b", {"token": str(path)}) == StorePlan("GCSStore", "b", "", {setting: str(path)})
    path.write_text(json.dumps({"type": "external_account"}))
    with pytest.raises(Unmappable, match="external_account"):
        plan_store("gs://b", {"token": str(path)})


@pytest.mark.parametrize(
    ("url", "options", "environment", "words"),
    [
        ("s3://b", {"anon": True}, {}, "region"),
        ("s3://b", {"anon": True}, {"AWS_REGION": "r"}, ""),
        ("s3://b", {"anon": True, "endpoint_url": "http://h"}, {}, ""),
        ("s3://b", {"region_name": "r"}, {}, "credentials"),
        ("s3://b", {"region_name": "r"}, {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}, ""),
        ("s3://b", {"region_name": "r", "key": "a"}, {}, "credentials"),
        ("s3://b", {"region_name": "r", **KEYS}, {}, ""),
        ("s3://b", {"region_name": "r", **KEYS}, {"AWS_ENDPOINT_URL": "http://h"}, "environment"),
        ("s3://b", {"region_name": "r", **KEYS}, {"FSSPEC_S3_ENDPOINT_URL": "http://h"}, "environment"),
        ("gs://b", {}, {}, "credentials"),
        ("gs://b", {"token": "anon"}, {}, ""),
        ("gs://b", {}, {"GOOGLE_APPLICATION_CREDENTIALS": "/x"}, ""),
        ("az://c", {"account_name": "n"}, {}, "credentials"),
        ("az://c", {"account_key": "k"}, {}, "account"),
        ("az://c", {"account_name": "n", "account_key": "k"}, {}, ""),
        ("https://h", {}, {}, ""),
        ("sftp://h", {}, {}, "does not read"),
    ],
)
def test_auto_needs_certainty(
    url: str, options: dict[str, Any], environment: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    reason = why_not(url, options)
    assert words in reason
    assert bool(reason) == bool(words)


def test_auto_respects_fsspecs_configuration_files(tmp_path: Path) -> None:
    (tmp_path / ".config" / "fsspec").mkdir(parents=True)
    assert "files" in why_not("https://h")


def test_without_obstore_auto_says_so_and_the_source_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "_installed", lambda: False)
    assert "not installed" in why_not("https://h")
    with pytest.raises(MissingExtraError, match=r"pip install lazystore\[fast\]"):
        ObstoreSource("https://h")


def test_settings_obstore_itself_refuses_are_a_configuration_error() -> None:
    source = ObstoreSource("azure://c", {"account_name": "n", "account_key": "not base64!"})
    with pytest.raises(ConfigError, match="obstore refuses"):
        source.run([Read("a", 0, memoryview(bytearray(1)))], timeout=20)
    source.close()


@pytest.mark.parametrize(
    ("words", "verdict"),
    [
        ("Error performing GET http://h in 1ms - Server returned non-2xx status code: 503 Slow Down: x", Verdict.RETRY),
        ("... non-2xx status code: 429 Too Many Requests: ", Verdict.RETRY),
        ("... non-2xx status code: 400 Bad Request: <Error><Code>RequestTimeout</Code></Error>", Verdict.RETRY),
        ("... non-2xx status code: 400 Bad Request: <Error><Code>MalformedXML</Code></Error>", Verdict.FATAL),
        ("... non-2xx status code: 416 Range Not Satisfiable: ", Verdict.BEYOND),
        ("... non-2xx status code: 412 Precondition Failed: ", Verdict.CHANGED),
        ("Generic S3 error: Received non-partial response when range requested", Verdict.FATAL),
        ("Received redirect without LOCATION, this normally indicates an incorrectly configured region", Verdict.FATAL),
        ("HTTP error: body error\n\nDebug source:\n kind: Interrupted,", Verdict.RETRY),
        ("HTTP error: sending\n\nDebug source:\n kind: Timeout,", Verdict.RETRY),
        ("HTTP error: sending\n\nDebug source:\n kind: Connect,", Verdict.BRIEF),
        ("something new", Verdict.FATAL),
    ],
)
def test_obstores_words_are_understood(words: str, verdict: Verdict) -> None:
    with pytest.raises(WireError) as caught:
        subject._translate(obstore.exceptions.GenericError(words))
    assert caught.value.verdict is verdict
    assert "Debug source" not in str(caught.value)


def test_a_panic_in_rust_is_an_error_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        pass

    async def panics(*_: Any, **__: Any) -> None:
        raise PanicException("relative URL without a base")

    monkeypatch.setattr(obstore, "get_async", panics)
    source = ObstoreSource("http://127.0.0.1:9/x")
    with pytest.raises(FetchError, match="relative URL"):
        source.run([Read("a", 0, memoryview(bytearray(1)))], timeout=60)
    source.close()


def test_where_nobody_listens_obstore_gives_up_soon() -> None:
    source = ObstoreSource("http://127.0.0.1:9/x")
    with pytest.raises(FetchError, match="check the host") as caught:
        source.run([Read("a", 0, memoryview(bytearray(1)))], timeout=60)
    assert caught.value.attempts == 4
    source.close()
