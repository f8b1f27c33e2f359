"""Ranged GETs over fsspec's HTTP filesystem, straight through its aiohttp session.

``HTTPFileSystem._cat_file`` reads the whole answer before it looks at the status, and takes
whatever comes for the range; here status, Content-Range and ETag are checked before the body,
which then goes chunk by chunk into the caller's buffer. All of the filesystem's settings count.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit, urlunsplit

from lazystore.fetch.options import redact
from lazystore.fetch.retry import Verdict, WireError, verdict_of_status
from lazystore.fetch.threads import LoopThread, defuse_loop
from lazystore.fetch.wire import UNKNOWN, Identity, Landing, content_range, range_ignored

__all__ = ["HttpWire", "client_maker", "join_url"]

#: Bytes of an error answer that are read so that its connection can be used again.
MAX_ERROR_BODY = 64 << 10
#: Prepared URLs kept; parsing one costs more than the rest of a small request's preparation.
MAX_URLS = 4096
#: Answers of a place that an object was redirected to, by which its address may have run out: signed ones do.
EXPIRED = frozenset({400, 401, 403, 404, 410})
#: What is shown only to the origin it was given for.
SECRETS = ("Authorization", "Proxy-Authorization", "Cookie")
#: Answers to HEAD that say nothing about GET: not implemented, or not covered by a signed URL.
HEAD_REFUSED = frozenset({400, 403, 405, 501})


def client_maker(connections: int) -> Any:
    """A ``get_client`` for HTTPFileSystem whose connector allows that many connections.

    aiohttp's own limit is 100, which would queue requests that were admitted already.
    """

    async def get_client(loop: Any = None, **options: Any) -> Any:
        import aiohttp

        if "connector" not in options:
            options["connector"] = aiohttp.TCPConnector(limit=connections)
        return aiohttp.ClientSession(**options)

    return get_client


def join_url(root: str, name: str) -> str:
    """The URL of an object below ``root``: a query of the root (a signature) stays at the end."""
    parts = urlsplit(root)
    path = f"{parts.path.rstrip('/')}/{quote(name)}" if name else parts.path
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


class HttpWire:
    """A Wire over an ``HTTPFileSystem(asynchronous=True)`` on an event loop of its own.

    Where an object was redirected to is remembered, so that every range but the first goes there at once; after any
    failure there the object's own address is asked again. Secrets are not shown to other origins.
    """

    tells = True
    streams = True

    def __init__(self, fs: Any, root: str, thread: LoopThread) -> None:
        self._fs = fs
        self._root = root
        self._thread = thread
        self.loop: asyncio.AbstractEventLoop = thread.loop
        self.connections = 0
        self._session: Any = None
        self._urls: dict[str, Any] = {}
        #: Where objects were redirected to; None: to be asked for anew.
        self._moved: dict[str, _Moved | None] = {}
        options = dict(fs.kwargs)
        self._headers: dict[str, str] = {**options.pop("headers", {}), "Accept-Encoding": "identity"}
        self._options = options

    def url(self, name: str) -> str:
        return redact(join_url(self._root, name))

    async def prepare(self) -> None:
        self._session = await self._fs.set_session()
        # The user may have brought a connector, or a whole client, with bounds of its own.
        connector = self._session.connector
        bounds = [getattr(connector, "limit", 0), getattr(connector, "limit_per_host", 0)]
        self.connections = min((bound for bound in bounds if bound), default=0)

    def _target(self, name: str) -> Any:
        url = self._urls.get(name)
        if url is None:
            if len(self._urls) >= MAX_URLS:
                self._urls.clear()
            url = self._urls[name] = self._fs.encode_url(join_url(self._root, name))
        return url

    async def get(self, name: str, begin: int, end: int, pinned: Identity | None, landing: Landing) -> None:
        wanted = {"Range": f"bytes={begin}-{end - 1}"}
        etag = pinned.strong_etag if pinned is not None else ""
        moved = self._moved.get(name)
        if moved is not None and await self._get_moved(
            name, moved, {**wanted, "If-Match": etag} if etag else wanted, landing, begin, end
        ):
            return
        # An address that redirects may not know the tag of where it leads; the answer's own is compared all the same.
        if etag and name not in self._moved:
            wanted["If-Match"] = etag
        headers = {**self._headers, **wanted}
        async with self._session.get(self._target(name), headers=headers, **self._options) as answer:
            if answer.history:
                self._remember(name, answer)
            await _land(answer, landing, begin, end)

    async def _get_moved(
        self, name: str, moved: _Moved, wanted: Mapping[str, str], landing: Landing, begin: int, end: int
    ) -> bool:
        """Get a range where the object was redirected to; False: its address there has run out."""
        try:
            async with self._session.get(moved.url, headers={**moved.headers, **wanted}, **moved.options) as answer:
                if answer.status not in EXPIRED:
                    await _land(answer, landing, begin, end)
                    return True
                await _refusal(answer)
        except Exception:
            self._forget(name, moved)
            raise
        self._forget(name, moved)
        return False

    def _remember(self, name: str, answer: Any) -> None:
        """Note where an object was redirected to, if it can be asked for there without showing secrets."""
        if len(self._moved) >= MAX_URLS:
            self._moved.clear()
        self._moved[name] = None
        if answer.status != 206:
            return
        headers = self._headers
        options = {name: value for name, value in self._options.items() if name != "params"}  # the new URL has its own
        if answer.url.origin() != self._target(name).origin():
            session = self._session
            if session.auth is not None or any(secret in session.headers for secret in SECRETS):
                return  # aiohttp would show these to everybody
            headers = {name: value for name, value in headers.items() if name.title() not in SECRETS}
            options = {name: value for name, value in options.items() if name not in ("auth", "cookies")}
        self._moved[name] = _Moved(answer.url, headers, options)

    def _forget(self, name: str, moved: _Moved) -> None:
        if self._moved.get(name) is moved:
            self._moved[name] = None

    async def whole(self, name: str, limit: int, landing: Landing) -> None:
        async with self._session.get(self._target(name), headers=self._headers, **self._options) as answer:
            if answer.status != 200:
                raise await _refusal(answer)
            if (size := _length(answer)) != UNKNOWN:
                landing.answered(0, size, _identity(answer, size))
            await _pour(answer, landing)

    async def head(self, name: str) -> Identity:
        options = {"allow_redirects": True, **self._options}
        async with self._session.head(self._target(name), headers=self._headers, **options) as answer:
            if answer.status == 200 and (size := _length(answer)) != UNKNOWN:
                return _identity(answer, size)
            if answer.status != 200 and answer.status not in HEAD_REFUSED:
                raise await _refusal(answer)
        # One byte tells as much: Content-Range holds the size.
        headers = {**self._headers, "Range": "bytes=0-0"}
        async with self._session.get(self._target(name), headers=headers, **self._options) as answer:
            if answer.status == 206:
                _, _, size = content_range(answer.headers.get("Content-Range"))
                return _identity(answer, size)
            if answer.status == 416:  # nothing has a first byte but the empty object has none
                return _identity(answer, 0)
            if answer.status == 200:
                answer.close()
                return _identity(answer, _length(answer))
            raise await _refusal(answer)

    async def aclose(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def release(self) -> None:
        self._thread.stop()

    def defuse(self) -> None:
        defuse_loop(self.loop)


class _Moved(NamedTuple):
    """Where an object was redirected to, and what is said there."""

    url: Any
    headers: Mapping[str, str]
    options: Mapping[str, Any]


async def _land(answer: Any, landing: Landing, begin: int, end: int) -> None:
    """Take the answer to a request for a range."""
    if answer.status == 206:
        _refuse_encoding(answer)
        first, last, size = content_range(answer.headers.get("Content-Range"))
    elif answer.status == 200:
        first, last, size = 0, _length(answer), _length(answer)
        # The whole object is what was asked for only if it is known to fit.
        if begin or last == UNKNOWN or last > end:
            answer.close()
            raise range_ignored(last)
    else:
        raise await _refusal(answer)
    landing.answered(first, last, _identity(answer, size))
    await _pour(answer, landing)


async def _pour(answer: Any, landing: Landing) -> None:
    content = answer.content
    while chunk := await content.readany():
        landing.write(chunk)


def _length(answer: Any) -> int:
    """Bytes of the body, or UNKNOWN: not told, or told for a compressed form of it."""
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        return UNKNOWN
    length = answer.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else UNKNOWN


def _refuse_encoding(answer: Any) -> None:
    encoding = answer.headers.get("Content-Encoding", "identity")
    if encoding not in ("identity", ""):
        raise WireError(
            Verdict.FATAL,
            f"the server compresses the range on its way (Content-Encoding: {encoding}); turn that off there",
        )


def _identity(answer: Any, size: int) -> Identity:
    etag = answer.headers.get("ETag", "")
    return Identity(size, etag, "" if etag else answer.headers.get("Last-Modified", ""))


async def _refusal(answer: Any) -> WireError:
    """What an answer without the wanted bytes means."""
    length = _length(answer)
    if 0 <= length <= MAX_ERROR_BODY:
        await answer.read()
    else:
        answer.close()
    retry_after = answer.headers.get("Retry-After", "")
    return WireError(
        verdict_of_status(answer.status),
        f"HTTP {answer.status} {answer.reason or ''}".rstrip(),
        retry_after=float(retry_after) if retry_after.isdigit() else 0.0,
    )
