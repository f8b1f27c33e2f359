"""obstore as the transport: Rust clients for S3, GCS, Azure and HTTP, most of the work off the GIL.

What fsspec options mean to obstore is mapped here as well, together with the judgement when that
mapping is complete: only then may ``backend="auto"`` prefer obstore.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import os
import re
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn
from urllib.parse import urlsplit

from lazystore.errors import ConfigError, MissingExtraError
from lazystore.fetch.engine import DEFAULT_IN_FLIGHT_BYTES, WireSource
from lazystore.fetch.options import AZURE, GCS, HTTP, S3, fsspec_options, protocol_of, redact
from lazystore.fetch.retry import RETRYABLE_CODES, RetryPolicy, Verdict, WireError, verdict_of_status
from lazystore.fetch.threads import LoopThread, defuse_loop
from lazystore.fetch.wire import Identity, Landing, Wire, range_ignored

__all__ = ["ObstoreSource", "StorePlan", "plan_store", "why_not"]

#: Requests at once when the caller does not say.
CONCURRENCY = 256
#: Bodies up to this many bytes are taken in one piece, longer ones in pieces of at least this size.
PIECE = 256 << 10
#: Seconds after which obstore itself gives a request up; the engine's own patience ends long before.
CLIENT_TIMEOUT = "3600s"


@dataclass(frozen=True, slots=True)
class StorePlan:
    """How to build an obstore store.

    Attributes:
        kind: class in ``obstore.store``.
        where: bucket, container, or for HTTP the URL.
        prefix: what precedes the names of objects inside it, "" or ending in "/".
        config: the store's settings.
        client: its HTTP client's settings.
    """

    kind: str
    where: str
    prefix: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    client: dict[str, Any] = field(default_factory=dict)


class Unmappable(Exception):
    """Why these options cannot be carried over to obstore."""


class ObstoreSource(WireSource):
    """Objects below an s3, gs, azure or http(s) URL, read through obstore.

    Args:
        url, storage_options: as for :class:`lazystore.fetch.remote.RemoteSource`.
        concurrency: requests under way at once; None: 256.
        max_in_flight_bytes: payload bytes under way at once.
        policy: waits, clock and chance of the retries.

    Raises:
        ConfigError: an option obstore has no equivalent for.
        MissingExtraError: obstore is not installed.

    Fork: obstore's threads do not exist in a forked child, and it cannot start new ones there; a child
    forked after obstore was loaded reads through fsspec instead (needing s3fs, gcsfs, adlfs or aiohttp).
    For the rest see :class:`lazystore.fetch.engine.WireSource`.
    """

    def __init__(
        self,
        url: str,
        storage_options: Mapping[str, Any] | None = None,
        *,
        concurrency: int | None = None,
        max_in_flight_bytes: int = DEFAULT_IN_FLIGHT_BYTES,
        policy: RetryPolicy | None = None,
    ) -> None:
        if not _installed():
            raise MissingExtraError("backend='obstore' needs obstore: pip install lazystore[fast]")
        self._options = fsspec_options(protocol_of(url), storage_options)
        try:
            self._plan = plan_store(url, self._options)
        except Unmappable as error:
            raise ConfigError(f"obstore cannot read {redact(url)} as asked: {error}; use backend='fsspec'") from None
        self._asked_concurrency = concurrency
        super().__init__(
            url,
            concurrency=CONCURRENCY if concurrency is None else concurrency,
            max_in_flight_bytes=max_in_flight_bytes,
            policy=policy,
        )

    def _recipe(self) -> dict[str, Any]:
        return {
            "url": self.url,
            "storage_options": self._options,
            "concurrency": self._asked_concurrency,
            "max_in_flight_bytes": self._room,
        }

    def _connect(self) -> Wire:
        if _forked_after_loading:
            from lazystore.fetch.remote import connect_fsspec

            try:
                return connect_fsspec(self.url, self._options, self._concurrency)
            except MissingExtraError as error:
                raise MissingExtraError(
                    f"obstore does not work in a forked process, and in its place {error}; or start processes "
                    "by 'spawn' or 'forkserver'"
                ) from error
        return ObstoreWire(self._plan, self.url)


class ObstoreWire:
    """A Wire over one obstore store, on an event loop of its own."""

    tells = True
    streams = True
    connections = 0

    def __init__(self, plan: StorePlan, url: str) -> None:
        self._obstore: Any = importlib.import_module("obstore")
        self._base_error: type[Exception] = importlib.import_module("obstore.exceptions").BaseError
        self._store = _build(plan)
        self._prefix = plan.prefix
        self._url = url.rstrip("/")
        self._thread = LoopThread("lazystore-obstore")
        self.loop: asyncio.AbstractEventLoop = self._thread.loop
        self._quiet = _Quiet(self.loop)

    def url(self, name: str) -> str:
        return redact(f"{self._url}/{name}")

    async def prepare(self) -> None:
        """Nothing to open."""

    async def get(self, name: str, begin: int, end: int, pinned: Identity | None, landing: Landing) -> None:
        options: dict[str, Any] = {"range": (begin, end)}
        if pinned is not None and (etag := pinned.strong_etag):
            options["if_match"] = etag
        try:
            answer = await self._obstore.get_async(self._store, self._prefix + name, options=options)
            first, last = answer.range
            landing.answered(first, last, _identity(answer.meta))
            await self._pour(answer, last - first, landing)
        except BaseException as error:
            self._judge(error)
            raise

    async def whole(self, name: str, limit: int, landing: Landing) -> None:
        try:
            answer = await self._obstore.get_async(self._store, self._prefix + name)
            identity = _identity(answer.meta)
            landing.answered(0, identity.size, identity)
            await self._pour(answer, identity.size, landing)
        except BaseException as error:
            self._judge(error)
            raise

    async def _pour(self, answer: Any, length: int, landing: Landing) -> None:
        if length <= PIECE:
            landing.write(await answer.bytes_async())
            return
        landing.expect(PIECE)
        async for piece in answer.stream(min_chunk_size=PIECE):
            landing.write(piece)
            landing.expect(PIECE)

    async def head(self, name: str) -> Identity:
        try:
            return _identity(await self._obstore.head_async(self._store, self._prefix + name))
        except BaseException as error:
            self._judge(error)
            raise

    def _judge(self, error: BaseException) -> None:
        """Raise the WireError if the error is one of obstore's; a Rust panic is, but is no Exception."""
        if isinstance(error, asyncio.CancelledError):
            self._quiet.cancelled()
        if isinstance(error, self._base_error):
            _translate(error)
        if type(error).__name__ == "PanicException":
            raise WireError(Verdict.FATAL, f"obstore failed internally: {error}") from error

    async def aclose(self) -> None:
        """Connections close with the store."""
        self._store = None

    def release(self) -> None:
        self._quiet.wait()
        self._thread.stop()

    def defuse(self) -> None:
        defuse_loop(self.loop)


class _Quiet:
    """Knows when obstore's threads are done with Python.

    Before 3.14 an interpreter that ends kills threads that ask for the GIL, and a Rust thread does not
    survive that: the process would abort after a script's last line. Two things bring them here: handing a
    result to the loop, which is observed, and noticing a cancellation, which is given a moment.
    """

    #: Seconds within which a cancelled request has let go, and the most that is waited for results.
    CANCELLED_S = 0.1
    RESULTS_S = 1.0

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        inside: set[int] = set()
        hand_over = loop.call_soon_threadsafe

        def observed(callback: Any, *args: Any, **kwargs: Any) -> Any:
            me = threading.get_ident()
            inside.add(me)
            try:
                return hand_over(callback, *args, **kwargs)
            finally:
                inside.discard(me)

        loop.call_soon_threadsafe = observed  # type: ignore[method-assign, assignment]
        self._inside = inside
        self._loop = loop
        self._until = 0.0

    def cancelled(self) -> None:
        """A request was cancelled just now."""
        self._until = time.monotonic() + self.CANCELLED_S

    def wait(self) -> None:
        """Return when no thread of obstore's is on its way in or out; at most about a second."""
        if asyncio._get_running_loop() is self._loop:
            return  # the loop must not wait for itself; nobody is leaving the interpreter here
        limit = time.monotonic() + self.RESULTS_S
        while self._inside and time.monotonic() < limit:
            time.sleep(0.001)
        time.sleep(max(0.001, self._until - time.monotonic()))


def _build(plan: StorePlan) -> Any:
    stores: Any = importlib.import_module("obstore.store")
    shared: dict[str, Any] = {
        "client_options": {"timeout": CLIENT_TIMEOUT, **plan.client},
        # One call is one attempt: the engine counts, waits and retries.
        "retry_config": {"max_retries": 0},
    }
    try:
        if plan.kind == "HTTPStore":
            return stores.HTTPStore(plan.where, **shared)
        return getattr(stores, plan.kind)(plan.where, config=plan.config, **shared)
    except Exception as error:
        raise ConfigError(f"obstore refuses the storage_options for {plan.where!r}: {error}") from error


def _identity(meta: Mapping[str, Any]) -> Identity:
    etag = meta.get("e_tag") or ""
    return Identity(int(meta["size"]), etag, "" if etag else str(meta.get("last_modified") or ""))


# obstore tells most failures in words only; these are the ones that carry the facts.
_STATUS = re.compile(r"status code: (\d{3})|\bstatus: (\d{3}),")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_TRANSIENT = re.compile(r"kind: (Timeout|Interrupted|Request|Decode)\b|operation timed out")
_NO_LISTENER = re.compile(r"kind: Connect\b|dns error|tcp connect error")


def _translate(error: Exception) -> NoReturn:
    """Raise the WireError for one of obstore's errors."""
    kind = type(error).__name__
    text = str(error)
    words = text.partition("\n\nDebug source")[0]
    status = _STATUS.search(text)
    code = _CODE.search(text)
    if code and code[1] in RETRYABLE_CODES:
        raise WireError(Verdict.RETRY, words) from error
    if status:
        raise WireError(verdict_of_status(int(status[1] or status[2])), words) from error
    if "Range request not supported" in text or "non-partial response" in text:
        raise range_ignored(-1) from error
    if kind == "PreconditionError":
        raise WireError(Verdict.CHANGED, words) from error
    if kind in ("PermissionDeniedError", "UnauthenticatedError"):
        raise WireError(Verdict.DENIED, words) from error
    if "redirect without LOCATION" in text:
        raise WireError(
            Verdict.FATAL, "the bucket is in another region: name it as region_name in storage_options"
        ) from error
    if _NO_LISTENER.search(text):
        raise WireError(Verdict.BRIEF, words) from error
    if _TRANSIENT.search(text):
        raise WireError(Verdict.RETRY, words) from error
    raise WireError(Verdict.FATAL, words) from error


# --- which options carry over ----------------------------------------------------------------------


def why_not(url: str, storage_options: Mapping[str, Any] | None = None) -> str:
    """Why ``backend="auto"`` reads this URL through fsspec; "" when it takes obstore.

    Raises:
        ConfigError: options that cannot work with either.
    """
    if protocol_of(url) not in S3 | GCS | AZURE | HTTP:
        return f"obstore does not read {protocol_of(url) or 'local'} URLs"
    if not _installed():
        return "obstore is not installed"
    if _forked_after_loading:
        return "this process was forked after obstore was loaded"
    if any(name.startswith("FSSPEC_") for name in os.environ):
        return "fsspec is configured by the environment"
    if os.path.isdir(os.environ.get("FSSPEC_CONFIG_DIR", os.path.expanduser("~/.config/fsspec"))):
        return "fsspec is configured by files"
    try:
        plan = plan_store(url, fsspec_options(protocol_of(url), storage_options))
    except Unmappable as error:
        return str(error)
    return _uncertain(plan)


def plan_store(url: str, options: Mapping[str, Any]) -> StorePlan:
    """How to build the store for a URL and the fsspec filesystem's options.

    Raises:
        Unmappable: with the first option that has no equivalent.
    """
    protocol = protocol_of(url)
    left = {name: value for name, value in options.items() if value is not None}
    if protocol in HTTP:
        plan = _plan_http(url, left)
    else:
        where, _, prefix = url.partition("://")[2].partition("/")
        prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        if protocol in S3:
            plan = _plan_s3(where, prefix, left)
        elif protocol in GCS:
            plan = _plan_gcs(where, prefix, left)
        elif protocol in AZURE:
            plan = _plan_azure(where, prefix, left)
        else:
            raise Unmappable(f"obstore does not read {protocol or 'local'} URLs")
        if not where or "@" in where or "?" in url:
            raise Unmappable("its URL holds more than a bucket and a path")
    _nothing_left(left)
    return plan


def _nothing_left(left: Mapping[str, Any], place: str = "") -> None:
    if left:
        raise Unmappable(f"it has no equivalent for {place}{', '.join(sorted(left))}")


def _plan_http(url: str, left: dict[str, Any]) -> StorePlan:
    parts = urlsplit(url)
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise Unmappable("its URL holds a query or credentials")
    headers = dict(left.pop("headers", {}))
    client_kwargs = dict(left.pop("client_kwargs", {}))
    headers = {**client_kwargs.pop("headers", {}), **headers}
    _nothing_left(client_kwargs, "client_kwargs ")
    client: dict[str, Any] = {"allow_http": True} if parts.scheme.lower() == "http" else {}
    if headers:
        client["default_headers"] = headers
    return StorePlan("HTTPStore", url.rstrip("/"), client=client)


def _plan_s3(bucket: str, prefix: str, left: dict[str, Any]) -> StorePlan:
    config: dict[str, Any] = {}
    client: dict[str, Any] = {}
    inner = dict(left.pop("client_kwargs", {}))
    endpoint = left.pop("endpoint_url", None) or inner.pop("endpoint_url", None)
    inner.pop("endpoint_url", None)
    if endpoint:
        if not str(endpoint).startswith(("http://", "https://")):
            raise Unmappable(f"endpoint_url={endpoint!r} is not an http(s) URL")
        config["endpoint"] = endpoint
        if str(endpoint).startswith("http://"):
            client["allow_http"] = True
    if region := inner.pop("region_name", None):
        config["region"] = region
    if inner.pop("verify", True) is not True:
        raise Unmappable("it has no equivalent for verify")
    for name, theirs in (("key", "access_key_id"), ("secret", "secret_access_key"), ("token", "session_token")):
        if name in left:
            config[theirs] = left.pop(name)
    if left.pop("anon", False):
        config["skip_signature"] = True
    if left.pop("requester_pays", False):
        config["request_payer"] = True
    if left.pop("use_ssl", True) is not True and not endpoint:
        raise Unmappable("it has no equivalent for use_ssl without an endpoint_url")
    _plan_s3_config(dict(left.pop("config_kwargs", {})))
    _nothing_left(inner, "client_kwargs ")
    return StorePlan("S3Store", bucket, prefix, config, client)


def _plan_s3_config(given: dict[str, Any]) -> None:
    """What of a botocore Config is obstore's way of doing anyhow."""
    if given.get("signature_version") in ("s3v4", "v4"):
        del given["signature_version"]
    style = given.get("s3")
    if isinstance(style, Mapping) and dict(style) in ({}, {"addressing_style": "path"}):
        del given["s3"]
    _nothing_left(given, "config_kwargs ")


def _plan_gcs(bucket: str, prefix: str, left: dict[str, Any]) -> StorePlan:
    config: dict[str, Any] = {}
    token = left.pop("token", None)
    if token == "anon":
        config["skip_signature"] = True
    elif isinstance(token, (str, os.PathLike)) and os.path.isfile(token):
        config[_gcs_key_kind(token)] = os.fspath(token)
    elif token is not None and token != "google_default":
        raise Unmappable("it has no equivalent for this token")
    return StorePlan("GCSStore", bucket, prefix, config)


def _gcs_key_kind(path: str | os.PathLike[str]) -> str:
    """The setting a credentials file goes to, by what it says it is."""
    try:
        with open(path, encoding="utf-8") as file:
            kind = json.load(file).get("type")
    except (OSError, ValueError, AttributeError):
        kind = None
    known = {"service_account": "service_account", "authorized_user": "application_credentials"}
    if kind not in known:
        raise Unmappable(f"it has no equivalent for a token file of type {kind!r}")
    return known[kind]


#: adlfs' names and obstore's.
_AZURE_NAMES = {
    "account_name": "account_name",
    "account_key": "account_key",
    "sas_token": "sas_key",
    "tenant_id": "tenant_id",
    "client_id": "client_id",
    "client_secret": "client_secret",
}


def _plan_azure(container: str, prefix: str, left: dict[str, Any]) -> StorePlan:
    config = {theirs: left.pop(name) for name, theirs in _AZURE_NAMES.items() if name in left}
    # adlfs takes anon=False for "use the default credentials", which are not the same everywhere.
    if left.get("anon") is True:
        del left["anon"]
        config["skip_signature"] = True
    return StorePlan("AzureStore", container, prefix, config)


def _uncertain(plan: StorePlan) -> str:
    """What the two clients would look up differently when the options leave it open; "" if nothing."""
    config = plan.config
    if plan.kind == "S3Store":
        region = "region" in config or any(os.environ.get(n) for n in ("AWS_REGION", "AWS_DEFAULT_REGION"))
        if not region and "endpoint" not in config:
            return "the bucket's region is not known; name it as region_name"
        signed = "skip_signature" in config or {"access_key_id", "secret_access_key"} <= set(config)
        if not signed and not all(os.environ.get(n) for n in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")):
            return "the credentials are not among the options, and obstore does not read AWS profiles"
        if any(os.environ.get(n) for n in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")):
            return "AWS_PROFILE or an AWS endpoint is set in the environment"
    elif plan.kind == "GCSStore" and not config and not os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
        return "the credentials are not among the options"
    elif plan.kind == "AzureStore":
        if "account_name" not in config:
            return "the account is not among the options"
        if not config.keys() - {"account_name"}:
            return "the credentials are not among the options"
    return ""


def _installed() -> bool:
    return "obstore" in sys.modules or importlib.util.find_spec("obstore") is not None


#: Whether this process was forked from one that had obstore loaded: its runtime would hang here.
_forked_after_loading = False


def _note_fork() -> None:
    global _forked_after_loading
    _forked_after_loading = "obstore" in sys.modules


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)
