"""Ranged GETs over s3fs, straight through its ``get_object``.

``S3FileSystem._cat_file`` sends no If-Match, and drops the ETag and Content-Range of the answer.
Retries of s3fs and botocore are switched off where ours take over (see ``options.py``).
"""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

from lazystore.fetch.retry import Verdict, WireError
from lazystore.fetch.threads import LoopThread, defuse_loop
from lazystore.fetch.wire import UNKNOWN, Identity, Landing, content_range, range_ignored

__all__ = ["S3Wire"]

#: Connections botocore keeps when nobody says.
BOTOCORE_POOL = 10
#: Bytes taken from a body at a time.
CHUNK = 256 << 10


class S3Wire:
    """A Wire over an ``S3FileSystem(asynchronous=True)`` on an event loop of its own."""

    tells = True
    streams = True

    def __init__(self, fs: Any, root: str, thread: LoopThread) -> None:
        self._fs = fs
        self._thread = thread
        self.loop: asyncio.AbstractEventLoop = thread.loop
        self._bucket, prefix, _ = fs.split_path(root.rstrip("/") + "/")
        self._prefix = prefix.lstrip("/")
        self.connections = int(fs.config_kwargs.get("max_pool_connections", BOTOCORE_POOL))
        # The store of these users does not understand If-Match; answers are compared all the same.
        self._sends_if_match = not getattr(fs, "local_expiry_check", False)
        # One call is one attempt: the engine counts, waits and retries.
        fs.retries = 1

    def url(self, name: str) -> str:
        return f"s3://{self._bucket}/{self._prefix}{name}"

    async def prepare(self) -> None:
        await self._fs.set_session()

    async def _request(self, method: str, name: str, **parameters: Any) -> Any:
        return await self._fs._call_s3(
            method, self._fs.req_kw, Bucket=self._bucket, Key=self._prefix + name, **parameters
        )

    async def get(self, name: str, begin: int, end: int, pinned: Identity | None, landing: Landing) -> None:
        parameters = {"Range": f"bytes={begin}-{end - 1}"}
        if pinned is not None and self._sends_if_match and (etag := pinned.strong_etag):
            parameters["IfMatch"] = etag
        answer = await self._request("get_object", name, **parameters)
        body = answer["Body"]
        try:
            if "ContentRange" in answer:
                first, last, size = content_range(answer["ContentRange"])
            else:
                first, last, size = 0, answer.get("ContentLength", UNKNOWN), answer.get("ContentLength", UNKNOWN)
                if begin or last == UNKNOWN or last > end:
                    raise range_ignored(last)
            landing.answered(first, last, _identity(answer, size))
            await _pour(body, landing)
        finally:
            await _close(body)

    async def whole(self, name: str, limit: int, landing: Landing) -> None:
        answer = await self._request("get_object", name)
        body = answer["Body"]
        try:
            size = answer.get("ContentLength", UNKNOWN)
            if size != UNKNOWN:
                landing.answered(0, size, _identity(answer, size))
            await _pour(body, landing)
        finally:
            await _close(body)

    async def head(self, name: str) -> Identity:
        answer = await self._request("head_object", name)
        return _identity(answer, answer.get("ContentLength", UNKNOWN))

    async def aclose(self) -> None:
        creator = getattr(self._fs, "_s3creator", None)
        if creator is not None:
            self._fs._s3creator = None
            await creator.__aexit__(None, None, None)

    def release(self) -> None:
        self._thread.stop()

    def defuse(self) -> None:
        defuse_loop(self.loop)


async def _pour(body: Any, landing: Landing) -> None:
    while chunk := await body.read(CHUNK):
        landing.write(chunk)


async def _close(body: Any) -> None:
    """Give the connection back, or break it off if the body was not read to its end."""
    closing = body.close()
    if inspect.isawaitable(closing):  # so with aiobotocore's httpx sessions
        await closing


def _identity(answer: Any, size: int) -> Identity:
    etag = answer.get("ETag") or ""
    modified = answer.get("LastModified")
    if answer.get("DeleteMarker"):
        raise WireError(Verdict.MISSING, "it was deleted")
    return Identity(size, etag, "" if etag else str(modified or ""))
