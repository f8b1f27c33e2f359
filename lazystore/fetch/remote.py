"""Any storage fsspec knows, as a Source.

Plain HTTP and S3 have wires of their own (``wire_http.py``, ``wire_s3.py``); every other asynchronous
filesystem is driven through ``_cat_file`` on its own loop, every blocking one through
``cat_file`` on a few threads. fsspec and asyncio are imported with this module, so import it late.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Mapping
from typing import Any

from lazystore.errors import ConfigError, LazyStoreError
from lazystore.fetch.engine import DEFAULT_IN_FLIGHT_BYTES, WireSource
from lazystore.fetch.options import check_extra, fsspec_options, protocol_of, redact
from lazystore.fetch.retry import RetryPolicy, Verdict, WireError
from lazystore.fetch.threads import DaemonPool, LoopThread, defuse_loop
from lazystore.fetch.wire import UNKNOWN, Identity, Landing, Wire, identity_of_info
from lazystore.fetch.wire_http import HttpWire, client_maker
from lazystore.fetch.wire_s3 import S3Wire

__all__ = ["CONCURRENCY", "RemoteSource", "connect_fsspec", "wire_of"]

#: Requests at once, by protocol, when the caller does not say. With s3fs a request costs so much
#: processor time (0.6 ms here) that more would only queue inside; a small GET over HTTP costs a tenth.
CONCURRENCY = {"http": 256, "https": 256, "s3": 128, "s3a": 128}
DEFAULT_CONCURRENCY = 64
#: Threads for filesystems that block.
MAX_THREADS = 16


class RemoteSource(WireSource):
    """Objects below an fsspec URL.

    Args:
        url: any URL fsspec understands, chained ones (``simplecache::s3://...``) included.
        storage_options: as LitData users write them (boto3, GCS or Azure names) or as the fsspec
            filesystem takes them; see :func:`lazystore.fetch.options.fsspec_options`.
        concurrency: requests under way at once; None: 256 for HTTP, 128 for S3, 64 elsewhere (16
            where the filesystem blocks).
        max_in_flight_bytes: payload bytes under way at once.
        policy: waits, clock and chance of the retries.

    Raises:
        ConfigError: options that contradict each other; (at the first read) a protocol nobody knows.
        MissingExtraError: (at the first read) the filesystem's package is not installed.

    For threads, fork and pickle see :class:`lazystore.fetch.engine.WireSource`.
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
        protocol = protocol_of(url)
        self._asked_concurrency = concurrency
        # Mapped at once: botocore's UNSIGNED marker would not survive pickling.
        self._options = fsspec_options(protocol, storage_options)
        super().__init__(
            url,
            concurrency=CONCURRENCY.get(protocol, DEFAULT_CONCURRENCY) if concurrency is None else concurrency,
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
        return connect_fsspec(self.url, self._options, self._concurrency)


def connect_fsspec(url: str, options: Mapping[str, Any], connections: int) -> Wire:
    """The filesystem of a URL, made afresh, in the wire that suits it.

    ``options`` are the filesystem's own (see :func:`fsspec_options`); the caller's mapping is not changed.

    Raises:
        ConfigError: unknown protocol, or options the filesystem does not take.
        MissingExtraError: its package is not installed.
    """
    protocol = protocol_of(url)
    settings = dict(options)
    try:
        if protocol in ("http", "https"):
            return _connect_http(url, settings, connections)
        if protocol in ("s3", "s3a"):
            return _connect_s3(url, settings, connections)
        return _connect_other(url, settings, connections)
    except ImportError as error:
        raise check_extra(protocol, error) from error
    except LazyStoreError:
        raise
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"{redact(url)} cannot be opened with these storage_options: {error}") from error


def _connect_http(url: str, settings: dict[str, Any], connections: int) -> Wire:
    http: Any = importlib.import_module("fsspec.implementations.http")
    settings.setdefault("get_client", client_maker(connections))
    # asynchronous: the session is opened on our loop, and no finaliser of fsspec's touches it.
    fs = http.HTTPFileSystem(asynchronous=True, skip_instance_cache=True, **settings)
    return HttpWire(fs, url, LoopThread("lazystore-http"))


def _connect_s3(url: str, settings: dict[str, Any], connections: int) -> Wire:
    s3fs: Any = importlib.import_module("s3fs")
    configured = dict(settings.pop("config_kwargs", None) or {})
    # botocore queues what exceeds its pool of 10 connections, and would retry on its own besides.
    configured.setdefault("max_pool_connections", connections)
    configured.setdefault("retries", {"total_max_attempts": 1})
    fs = s3fs.S3FileSystem(asynchronous=True, skip_instance_cache=True, config_kwargs=configured, **settings)
    return S3Wire(fs, url.partition("://")[2], LoopThread("lazystore-s3"))


def _connect_other(url: str, settings: dict[str, Any], connections: int) -> Wire:
    core: Any = importlib.import_module("fsspec.core")
    if url.startswith("azure://"):
        url = "az" + url.removeprefix("azure")  # LitData's name of the protocol, adlfs knows it as az
    fs, root = core.url_to_fs(url, skip_instance_cache=True, **settings)
    return wire_of(fs, root, url, connections)


def wire_of(fs: Any, root: str, url: str, connections: int) -> Wire:
    """The wire over a filesystem object, whatever its kind.

    Args:
        fs, root: a filesystem of fsspec's, and the path in it that names are relative to; "" for none.
        url: what messages call it.
        connections: requests under way at once, where the filesystem blocks.

    Raises:
        ConfigError: a filesystem that only works inside coroutines.
    """
    asyn: Any = importlib.import_module("fsspec.asyn")
    # By type: caching filesystems answer isinstance() and async_impl in the name of what they wrap.
    if issubclass(type(fs), asyn.AsyncFileSystem) and fs.async_impl:
        if fs.asynchronous:
            raise ConfigError("asynchronous=True is for use inside coroutines: leave it out of storage_options")
        return AsyncFsWire(fs, root, url)
    cached: Any = importlib.import_module("fsspec.implementations.cached")
    # Two threads at fsspec's file caches see each other's half-written files.
    alone = issubclass(type(fs), cached.CachingFileSystem)
    return SyncFsWire(fs, root, url, 1 if alone else min(connections, MAX_THREADS))


class _FsWire:
    """What both wires over fsspec's common interface share: answers are bytes and nothing else."""

    tells = False
    streams = False
    connections = 0

    def __init__(self, fs: Any, root: str, url: str) -> None:
        self._fs = fs
        self._root = root.rstrip("/")
        self._url = url.rstrip("/")

    def url(self, name: str) -> str:
        return redact(f"{self._url}/{name}")

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if self._root else name

    async def prepare(self) -> None:
        """Filesystems connect by themselves."""

    async def _cat(self, path: str, begin: int, end: int) -> Any:
        raise NotImplementedError

    async def _info(self, path: str) -> Any:
        raise NotImplementedError

    async def get(self, name: str, begin: int, end: int, pinned: Identity | None, landing: Landing) -> None:
        landing.write(_some(await self._cat(self._path(name), begin, end)))

    async def whole(self, name: str, limit: int, landing: Landing) -> None:
        # Both at once: the answer alone could be cut without anybody noticing.
        telling = asyncio.ensure_future(self.head(name))
        try:
            try:
                # One byte beyond the limit tells an object that is too long from one that just fits.
                data = _some(await self._cat(self._path(name), 0, limit + 1))
            except Exception:
                if (await telling).size != 0:
                    raise
                data = b""  # an empty object has no range to answer with
            identity = await telling
        finally:
            telling.cancel()
        size = len(data) if identity.size == UNKNOWN else identity.size
        landing.answered(0, size, identity)
        landing.write(data)

    async def head(self, name: str) -> Identity:
        return identity_of_info(await self._info(self._path(name)))


class AsyncFsWire(_FsWire):
    """A Wire over any asynchronous filesystem, on the loop it belongs to (fsspec's own thread)."""

    def __init__(self, fs: Any, root: str, url: str) -> None:
        super().__init__(fs, root, url)
        self.loop: asyncio.AbstractEventLoop = fs.loop

    async def _cat(self, path: str, begin: int, end: int) -> Any:
        return await self._fs._cat_file(path, start=begin, end=end)

    async def _info(self, path: str) -> Any:
        return await self._fs._info(path)

    async def aclose(self) -> None:
        """Sessions end with the filesystem: its finaliser closes them."""

    def release(self) -> None:
        """The loop is shared with all of fsspec and goes on."""

    def defuse(self) -> None:
        defuse_loop(self.loop)


class SyncFsWire(_FsWire):
    """A Wire over a blocking filesystem: its calls run on a few daemon threads.

    A call that hangs keeps its thread even after it was given up; with all threads stuck, reads end
    with the deadline's error.
    """

    def __init__(self, fs: Any, root: str, url: str, threads: int) -> None:
        super().__init__(fs, root, url)
        self._thread = LoopThread("lazystore-fetch")
        self.connections = threads
        self._pool = DaemonPool(threads, "lazystore-fetch-worker")
        self.loop: asyncio.AbstractEventLoop = self._thread.loop

    async def _cat(self, path: str, begin: int, end: int) -> Any:
        # Keywords: the second positional parameter of some filesystems is not the start.
        return await self._pool.call(self._fs.cat_file, path, start=begin, end=end)

    async def _info(self, path: str) -> Any:
        return await self._pool.call(self._fs.info, path)

    async def aclose(self) -> None:
        """Nothing to await."""

    def release(self) -> None:
        self._pool.close()
        self._thread.stop()

    def defuse(self) -> None:
        defuse_loop(self.loop)


def _some(data: Any) -> Any:
    """fsspec's blocking calls give None where a coroutine was cancelled under them."""
    if data is None:
        raise WireError(Verdict.RETRY, "the filesystem gave no bytes and no error: its request was cancelled")
    return data
