"""Bytes from anywhere: one call finds the source that suits a URL.

The modules behind it are imported when first needed: a local dataset never loads fsspec, asyncio or
a storage client.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

from lazystore.errors import ConfigError
from lazystore.fetch.options import is_local, local_path
from lazystore.fetch.source import FetchCounters, Read, Source, StorageSource

__all__ = ["FetchCounters", "Read", "Source", "StorageSource", "open_source"]


def open_source(
    url: str | os.PathLike[str],
    storage_options: Mapping[str, Any] | None = None,
    *,
    concurrency: int | None = None,
    max_in_flight_bytes: int | None = None,
    backend: Literal["auto", "fsspec", "obstore"] = "auto",
) -> StorageSource:
    """The source for the objects below ``url``; opens no connection and starts no thread.

    Args:
        url: a path, ``file://``, ``local:``, or any URL fsspec understands.
        storage_options: how to reach the storage; ignored for local paths. LitData's names (boto3's,
            GCS's, Azure's) and the fsspec filesystem's own are both understood.
        concurrency: requests under way at once; None leaves it to the backend (256 for obstore and
            HTTP, 128 for s3fs, 64 for others). Ignored for local paths.
        max_in_flight_bytes: payload bytes under way at once; None: 64 MiB. Ignored for local paths.
        backend: "fsspec", "obstore" (extra ``fast``), or "auto". Auto picks obstore for s3, gs, azure
            and http(s) if it is installed *and* everything it would need is known to carry over:
            every option, the credentials, for S3 also the region. Otherwise, and for any other
            protocol, fsspec. :func:`lazystore.fetch.obstore.why_not` says what stood in the way.

    Raises:
        ConfigError: options or a backend that cannot work.
        MissingExtraError: ``backend="obstore"`` without obstore. (A missing fsspec filesystem shows
            at the first read.)
    """
    text = os.fspath(url)
    text = text.rstrip("/") or text
    if is_local(text):
        from lazystore.fetch.local import LocalSource

        return LocalSource(local_path(text))
    if backend not in ("auto", "fsspec", "obstore"):
        raise ConfigError(f"backend={backend!r} must be 'auto', 'fsspec' or 'obstore'")
    bounds: dict[str, Any] = {"concurrency": concurrency}
    if max_in_flight_bytes is not None:
        bounds["max_in_flight_bytes"] = max_in_flight_bytes
    if backend != "fsspec":
        from lazystore.fetch.obstore import ObstoreSource, why_not

        if backend == "obstore" or not why_not(text, storage_options):
            return ObstoreSource(text, storage_options, **bounds)
    from lazystore.fetch.remote import RemoteSource

    return RemoteSource(text, storage_options, **bounds)
