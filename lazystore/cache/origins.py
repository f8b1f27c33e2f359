"""Which source reads an object, and what the object is called there: one source a bucket or host.

How bytes travel is the source's business (``fetch``); pages of objects are in ``paged.py``.
"""

from __future__ import annotations

import hashlib
import os
import threading
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from lazystore.errors import ClosedError, ConfigError
from lazystore.fetch import open_source
from lazystore.fetch.options import AZURE, GCS, HTTP, S3, is_local, local_path, protocol_of, redact

if TYPE_CHECKING:
    from lazystore.fetch.source import StorageSource

__all__ = ["Origin", "Origins"]

#: Options that say where the storage is; of all others (credentials, time limits) the same object has the same bytes.
_PLACE_OPTIONS = ("endpoint_url", "endpoint", "account_name", "account_host", "host", "port", "base_url", "region_name")
#: Sources kept; beyond, the one that was asked for least recently is forgotten (and closed with its last object).
MAX_SOURCES = 64


class Origin(NamedTuple):
    """Where one object's bytes come from.

    Attributes:
        source: who reads it.
        name: what it is called there.
        label: what it is called in cache keys: the same in every process, without passwords and signatures.
        url: what it is called in messages.
    """

    source: StorageSource
    name: str
    label: str
    url: str


class Origins:
    """Sources by bucket or host, opened when first asked for.

    Args:
        storage_options: of every URL that comes without its own.
        backend: as for :func:`lazystore.fetch.open_source`.

    Threads: any may call. Fork: sources connect anew in the child. Not pickled: each process opens its own.
    """

    def __init__(self, storage_options: Mapping[str, Any] | None = None, *, backend: Any = "auto") -> None:
        self._options = dict(storage_options or {})
        self._backend = backend
        self._sources: dict[tuple[str, str], StorageSource] = {}
        self._lock = threading.RLock()
        self._closed = False
        _live.add(self)

    def find(self, url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> Origin:
        """The origin of a URL or a local path; opens no connection.

        Raises:
            ConfigError: the URL names no object, or options that cannot work.
            ClosedError: after :meth:`close`.
        """
        text = os.fspath(url)
        options = self._options if storage_options is None else dict(storage_options)
        root, name = _divided(text)
        if not root:
            return self._mounted(text, options)
        place = _digest(repr(sorted(_place(options).items()))) if _place(options) else ""
        source = self._shared((root, _digest(repr(sorted(options.items(), key=str)))), root, options)
        if source.local:
            return Origin(source, name, f"file://{os.path.realpath('/' + name)}", f"/{name}")
        label = redact(text)
        if label != text:
            label += f"#{_digest(text)}"
        return Origin(source, name, f"{label}@{place}" if place else label, redact(text))

    def mount(self, fs: Any, path: str) -> Origin:
        """The origin of a path in a filesystem object that exists already."""
        protocol = fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
        # Not fsspec's own token: that is another one in every process and thread.
        token = _digest(repr((type(fs).__qualname__, fs.storage_args, sorted(fs.storage_options.items(), key=str))))
        key = ("fs", token)
        with self._lock:
            source = self._sources.get(key)
        if source is None:
            from lazystore.fetch.mounted import MountedSource

            source = self._kept(key, MountedSource(fs))
        return Origin(source, path, f"{protocol}://{path}#{token}", f"{protocol}://{path}")

    def close(self) -> None:
        """Close every source; objects that are open raise ClosedError at their next fetch."""
        with self._lock:
            self._closed = True
            sources, self._sources = list(self._sources.values()), {}
        for source in sources:
            source.close()

    def _mounted(self, url: str, options: Mapping[str, Any]) -> Origin:
        """Of a URL that only its filesystem can take apart: chained ones, and protocols without buckets."""
        from fsspec.core import url_to_fs

        try:
            fs, path = url_to_fs(url, **options)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{redact(url)} cannot be opened with these storage_options: {error}") from error
        return self.mount(fs, path)

    def _shared(self, key: tuple[str, str], root: str, options: Mapping[str, Any]) -> StorageSource:
        with self._lock:
            source = self._sources.pop(key, None)
            if source is not None:
                self._sources[key] = source
                return source
        return self._kept(key, open_source(root, options, backend=self._backend))

    def _kept(self, key: tuple[str, str], source: StorageSource) -> StorageSource:
        with self._lock:
            if self._closed:
                raise ClosedError("these sources are closed; make another store")
            kept = self._sources.setdefault(key, source)
            if len(self._sources) > MAX_SOURCES:
                del self._sources[next(iter(self._sources))]
        return kept

    def _after_fork(self) -> None:
        self._lock = threading.RLock()


def _divided(url: str) -> tuple[str, str]:
    """``(root, name)``; an empty root where only the filesystem knows."""
    if is_local(url):
        path = os.path.abspath(local_path(url))
        return "/", path[1:]
    protocol = protocol_of(url)
    if protocol in HTTP:
        parts = urlsplit(url)
        name = unquote(parts.path).removeprefix("/")
        # A path that would not come back as it was (an escaped slash, say) is its own root.
        same = quote(f"/{name}") == quote(unquote(parts.path)) and "%2f" not in parts.path.lower()
        if not name or not same:
            return url, ""
        return urlunsplit((parts.scheme, parts.netloc, "", parts.query, "")), name
    if "::" not in url and protocol in S3 | GCS | AZURE:
        bucket, _, name = url.partition("://")[2].partition("/")
        if not (bucket and name):
            raise ConfigError(f"{url!r} names no object; give {protocol}://bucket/key")
        return f"{url.partition('://')[0]}://{bucket}", name
    return "", url


def _place(options: Mapping[str, Any]) -> dict[str, Any]:
    """Where these options say the storage is."""
    found: dict[str, Any] = {}
    for holder in (options, options.get("client_kwargs") or {}):
        found.update((name, holder[name]) for name in _PLACE_OPTIONS if holder.get(name))
    return found


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()


#: Whose locks a forked child makes anew.
_live: weakref.WeakSet[Origins] = weakref.WeakSet()


def _after_fork() -> None:
    for origins in list(_live):
        origins._after_fork()


os.register_at_fork(after_in_child=_after_fork)
