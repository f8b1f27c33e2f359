"""The fsspec protocol ``lazystore::``: what pandas, pyarrow, zarr and friends read through fsspec comes through the
page cache of a store.

    pandas.read_parquet("lazystore::s3://bucket/key", storage_options={"lazystore": {"memory": "256MB"}})

Pages, budgets and reading ahead are the business of ``cache.paged``; listing is the target filesystem's. Needs an
fsspec that has chained filesystems (2025.9 or later).
"""

from __future__ import annotations

import os
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, NoReturn

import fsspec

from lazystore.cache.disk import DiskTier
from lazystore.cache.locks import forkable_lock
from lazystore.cache.origins import Origin, Origins
from lazystore.cache.paged import DEFAULT_PAGE, DEFAULT_TIMEOUT, PagedObject
from lazystore.cache.tiers import Tiers
from lazystore.config import default_memory, parse_bytes
from lazystore.errors import ConfigError, LazyStoreError, MissingExtraError, SourceChangedError, UnsupportedError
from lazystore.fetch.options import AZURE, GCS, HTTP, S3
from lazystore.lazy.file import BUFFER, BufferedLazyFile, LazyFile

try:
    from fsspec.implementations.chained import ChainedFileSystem
except ImportError as error:
    raise MissingExtraError(
        f"lazystore:: needs an fsspec that has chained filesystems: pip install 'fsspec>=2025.9' ({error})"
    ) from error

__all__ = ["LazyStoreFileSystem"]

#: Objects whose identity is remembered for ``recheck`` seconds.
MAX_REMEMBERED = 1024
#: Objects that are opened, and read from, at once.
AT_ONCE = 64
#: Protocols that lazystore's own fetching speaks; through all others the target filesystem does.
_SPOKEN = S3 | GCS | AZURE | HTTP | {"file", "local"}
#: What fsspec or the target's own constructor is told, and the storage is not.
_NOT_OF_STORAGE = frozenset({"asynchronous", "loop", "skip_instance_cache", "use_listings_cache", "batch_size"})


class _Shared:
    """One budget: the tiers of all filesystems with the same ``memory`` and ``disk``."""

    def __init__(self, memory: int, disk: DiskTier | None) -> None:
        self.tiers = Tiers(memory=memory, disk=disk, namespace="lazystore.files")


_shared: weakref.WeakValueDictionary[tuple[int, str], _Shared] = weakref.WeakValueDictionary()
_sharing = forkable_lock()


def _refusing(name: str) -> Callable[..., NoReturn]:
    """A method that says that this filesystem only reads."""

    def refuse(self: LazyStoreFileSystem, *args: Any, **kwargs: Any) -> NoReturn:
        self._refuse(f"{name}()")

    refuse.__doc__ = "Refused: this filesystem only reads."
    return refuse


class LazyStoreFileSystem(ChainedFileSystem):  # type: ignore[misc]
    """Any other filesystem, read through pages that are cached in memory and, if asked for, on disk.

    Args:
        target_protocol, target_options: the filesystem that is read, as fsspec's chained URLs hand them over
            (``lazystore::s3://...`` with ``s3={...}``); or ``fs``: the filesystem itself.
        memory: hard budget in bytes (``"256MB"``) for pages and what is on its way, shared by all filesystems of this
            process with the same ``memory`` and ``disk``. Default: 256 MiB, or a quarter of the memory limit.
        disk: a second tier: a folder, a mapping of :class:`~lazystore.DiskTier`'s arguments, or one itself.
        page: bytes of a page, which is what a read fetches at least (1 MiB); small ones suit small random reads.
        recheck: seconds for which an object that was opened is taken to be unchanged by the next opening. What is
            fetched is compared with the opened version in any case.
        timeout: seconds that fetching may take, retries included.
        backend: ``"auto"``, ``"fsspec"`` or ``"obstore"``: what talks to S3, GCS, Azure and HTTP.

    S3, GCS, Azure and HTTP are fetched by lazystore's own client (verified, retried, in parallel), with the target's
    options; all others through the target filesystem. Files that it opens are
    :class:`~lazystore.lazy.file.BufferedLazyFile`; ``block_size`` and ``cache_type`` of ``open`` have no meaning here.
    It only reads: every method that writes raises UnsupportedError.

    Threads: any. Fork, pickle, dask: as its arguments; each process has a budget of its own. Instances are cached by
    fsspec; the cache ends with the last of them. Interpreter exit: nothing to wait for.

    Raises:
        ConfigError: arguments that cannot work. MissingExtraError: no package for the target's protocol.
    """

    protocol: ClassVar[str] = "lazystore"
    _strip_tokenize_options = ("fo",)

    def __init__(
        self,
        target_protocol: str | None = None,
        target_options: Mapping[str, Any] | None = None,
        fs: Any = None,
        fo: str = "",
        *,
        memory: int | str | None = None,
        disk: DiskTier | str | os.PathLike[str] | Mapping[str, Any] | None = None,
        page: int | str = DEFAULT_PAGE,
        recheck: float = 5.0,
        timeout: float = DEFAULT_TIMEOUT,
        backend: str = "auto",
        **storage_options: Any,
    ) -> None:
        unknown = sorted(set(storage_options) - {"asynchronous", "loop", "use_listings_cache"})
        if unknown:
            raise ConfigError(f"lazystore:: has no option {unknown[0]!r}; options of the target go under its protocol")
        if (fs is None) == (target_protocol is None):
            raise ConfigError("lazystore:: reads another filesystem: write lazystore::s3://..., or give fs alone")
        super().__init__(**storage_options)
        self.fs = fs if fs is not None else fsspec.filesystem(target_protocol, **dict(target_options or {}))
        self._page, self._recheck, self._timeout = parse_bytes(page, name="page"), recheck, timeout
        self._shared = _share(memory, disk)
        self._options = {n: v for n, v in self.fs.storage_options.items() if n not in _NOT_OF_STORAGE}
        self._origins = Origins(self._options, backend=backend)
        self._known: OrderedDict[str, tuple[float, PagedObject]] = OrderedDict()
        # An instance's own: which protocol is stripped besides "lazystore" depends on its target.
        self._strip_protocol = self._stripped

    def _stripped(self, path: Any) -> Any:
        if isinstance(path, list):
            return [self._stripped(one) for one in path]
        text = os.fspath(path)
        for prefix in ("lazystore::", "lazystore://"):
            text = text.removeprefix(prefix)
        return self.fs._strip_protocol(text)

    # -- reading ------------------------------------------------------------------------

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> BufferedLazyFile:
        if mode != "rb":
            self._refuse(f"open(mode={mode!r})")
        return BufferedLazyFile(self._file(self._strip_protocol(path)), BUFFER)

    def _file(self, path: str) -> LazyFile:
        return LazyFile(self._object(path), reopen=partial(LazyStoreFileSystem._file, self, path))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        """Bytes of an object, through the cache; negative positions count from its end."""
        path = self._strip_protocol(path)
        try:
            return _between(self._object(path, whole=start is None), [(start, end)])[0]
        except SourceChangedError:
            self._forget(path)  # it changed since it was opened, not while it is read: no reader has seen any of it
            return _between(self._object(path), [(start, end)])[0]

    def cat_ranges(
        self,
        paths: Sequence[str],
        starts: Any,
        ends: Any,
        max_gap: int | None = None,
        on_error: str = "return",
        **kwargs: Any,
    ) -> list[Any]:
        """Ranges of many objects: what is missing travels at the same time. ``max_gap`` is not needed."""
        count = len(paths)
        starts = starts if isinstance(starts, Iterable) else [starts] * count
        ends = ends if isinstance(ends, Iterable) else [ends] * count
        wanted: dict[str, list[tuple[int, Any, Any]]] = {}
        for number, (path, start, end) in enumerate(zip(paths, starts, ends, strict=True)):
            wanted.setdefault(self._strip_protocol(path), []).append((number, start, end))
        found: list[Any] = [b""] * count
        for path, result in self._read_many({p: [(s, e) for _, s, e in parts] for p, parts in wanted.items()}):
            if isinstance(result, LazyStoreError):
                if on_error == "raise":
                    raise result
                result = [result] * len(wanted[path])
            for (number, _, _), data in zip(wanted[path], result, strict=True):
                found[number] = data
        return found

    def cat(self, path: Any, recursive: bool = False, on_error: str = "raise", **kwargs: Any) -> Any:
        """Whole objects: bytes of one, or a dict of several, which travel at the same time."""
        paths = self.expand_path(path, recursive=recursive)
        if isinstance(path, str) and len(paths) == 1 and paths[0] == self._strip_protocol(path):
            return self.cat_file(paths[0])
        found = {}
        for name, result in self._read_many({path: [(None, None)] for path in paths}):
            if not isinstance(result, LazyStoreError):
                found[name] = result[0]
            elif on_error == "raise":
                raise result
            elif on_error == "return":
                found[name] = result
        return found

    def _read_many(self, wanted: Mapping[str, list[tuple[Any, Any]]]) -> Iterable[tuple[str, Any]]:
        """Ranges of each object, or the error in their place."""
        paths = list(wanted)
        for at in range(0, len(paths), AT_ONCE):
            some = paths[at : at + AT_ONCE]
            whole = all(start is None for path in some for start, _ in wanted[path])
            opened = dict(zip(some, self._objects(some, whole=whole), strict=True))
            waves = [
                (one, one.send_for(_resolved(one.size, wanted[path])))
                for path, one in opened.items() if isinstance(one, PagedObject)
            ]  # fmt: skip
            try:
                for path, one in opened.items():
                    yield path, one if isinstance(one, LazyStoreError) else self._ranges(path, one, wanted[path])
            finally:
                for one, wave in waves:
                    if wave is not None:
                        wave.hand_over(one.keep)

    def _ranges(self, path: str, paged: PagedObject, ranges: list[tuple[Any, Any]]) -> list[bytes] | LazyStoreError:
        try:
            return _between(paged, ranges)
        except LazyStoreError as error:
            self._forget(path)
            return error

    def _object(self, path: str, *, whole: bool = False) -> PagedObject:
        found = self._objects([path], whole=whole)[0]
        if isinstance(found, LazyStoreError):
            raise found
        return found

    def _objects(self, paths: Sequence[str], *, whole: bool) -> list[PagedObject | LazyStoreError]:
        """Objects by path, those opened a moment ago as they are."""
        now = time.monotonic()
        found: dict[str, PagedObject | LazyStoreError] = {}
        for path in paths:
            at, paged = self._known.get(path, (0.0, None))
            if paged is not None and now - at < self._recheck:
                found[path] = paged
        new = [path for path in paths if path not in found]
        # One seen before is likely to be in the cache: its first page need not come along.
        unseen = whole and not any(path in self._known for path in new)
        opened = PagedObject.open_many(
            [self._origin(path) for path in new], self._shared.tiers,
            page=self._page, timeout=self._timeout, first_page=unseen,
        )  # fmt: skip
        for path, one in zip(new, opened, strict=True):
            found[path] = one
            if isinstance(one, PagedObject):
                self._known[path] = now, one
                if len(self._known) > MAX_REMEMBERED:
                    self._known.popitem(last=False)
        return [found[path] for path in paths]

    def _origin(self, path: str) -> Origin:
        protocol = self.fs.protocol if isinstance(self.fs.protocol, str) else self.fs.protocol[0]
        if protocol in _SPOKEN and type(self.fs) is fsspec.get_filesystem_class(protocol):
            return self._origins.find(self.fs.unstrip_protocol(path))
        return self._origins.mount(self.fs, path)

    def _forget(self, path: str) -> None:
        self._known.pop(path, None)

    def clear_cache(self, *, disk: bool = False) -> None:
        """Drop all cached pages of this budget from memory, and from disk if asked for."""
        self._known.clear()
        self._shared.tiers.clear(memory=True, disk=disk)

    def counters(self) -> dict[str, Any]:
        """What the cache did so far; of all filesystems that share this budget."""
        return dict(self._shared.tiers.counters())

    def invalidate_cache(self, path: str | None = None) -> None:
        """Forget listings, and which version of an object is the current one; pages stay with their version."""
        if path is None:
            self._known.clear()
            self.fs.invalidate_cache()
        else:
            self._forget(self._strip_protocol(path))
            self.fs.invalidate_cache(self._strip_protocol(path))

    # -- the target's business ----------------------------------------------------------

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        """The target's listing."""
        return self.fs.ls(self._strip_protocol(path), detail=detail, **kwargs)

    def info(self, path: str, **kwargs: Any) -> Any:
        """The target's description of an object or a directory."""
        return self.fs.info(self._strip_protocol(path), **kwargs)

    def exists(self, path: str, **kwargs: Any) -> bool:
        """Whether the target has it."""
        return bool(self.fs.exists(self._strip_protocol(path), **kwargs))

    def isdir(self, path: str) -> bool:
        """Whether the target says that it is a directory."""
        return bool(self.fs.isdir(self._strip_protocol(path)))

    def isfile(self, path: str) -> bool:
        """Whether the target says that it is a file."""
        return bool(self.fs.isfile(self._strip_protocol(path)))

    def find(self, path: str, maxdepth: int | None = None, withdirs: bool = False, **kwargs: Any) -> Any:
        """All files below a path, as the target finds them."""
        return self.fs.find(self._strip_protocol(path), maxdepth=maxdepth, withdirs=withdirs, **kwargs)

    def glob(self, path: str, maxdepth: int | None = None, **kwargs: Any) -> Any:
        """Files by a pattern, as the target finds them."""
        return self.fs.glob(self._strip_protocol(path), maxdepth=maxdepth, **kwargs)

    def walk(self, path: str, maxdepth: int | None = None, **kwargs: Any) -> Any:
        """Directories and files below a path, as the target walks them."""
        return self.fs.walk(self._strip_protocol(path), maxdepth=maxdepth, **kwargs)

    def du(self, path: str, **kwargs: Any) -> Any:
        """Bytes below a path, as the target counts them."""
        return self.fs.du(self._strip_protocol(path), **kwargs)

    def ukey(self, path: str) -> str:
        """The target's key of an object's version."""
        return str(self.fs.ukey(self._strip_protocol(path)))

    def checksum(self, path: str) -> Any:
        """The target's checksum."""
        return self.fs.checksum(self._strip_protocol(path))

    def created(self, path: str) -> Any:
        """When the target says it was made."""
        return self.fs.created(self._strip_protocol(path))

    def modified(self, path: str) -> Any:
        """When the target says it was changed."""
        return self.fs.modified(self._strip_protocol(path))

    def sign(self, path: str, expiration: int = 100, **kwargs: Any) -> Any:
        """A signed URL of the target's."""
        return self.fs.sign(self._strip_protocol(path), expiration=expiration, **kwargs)

    def unstrip_protocol(self, name: str) -> str:
        """The chained URL of a path."""
        return f"lazystore::{self.fs.unstrip_protocol(self._strip_protocol(name))}"

    def _parent(self, path: str) -> str:
        return str(self.fs._parent(self._strip_protocol(path)))

    # -- writing ------------------------------------------------------------------------

    def _refuse(self, what: str) -> NoReturn:
        protocol = self.fs.protocol if isinstance(self.fs.protocol, str) else self.fs.protocol[0]
        raise UnsupportedError(f"lazystore:: only reads, {what} writes: use the target itself, {protocol}://")

    pipe_file, pipe, put_file, put = map(_refusing, ("pipe_file", "pipe", "put_file", "put"))
    cp_file, copy, mv, touch = map(_refusing, ("cp_file", "copy", "mv", "touch"))
    rm_file, _rm, rm = map(_refusing, ("rm_file", "_rm", "rm"))
    mkdir, makedirs, rmdir = map(_refusing, ("mkdir", "makedirs", "rmdir"))
    write_bytes, write_text = map(_refusing, ("write_bytes", "write_text"))


def _share(memory: int | str | None, disk: Any) -> _Shared:
    """The tiers for these settings: those that exist, or new ones."""
    nbytes = default_memory() if memory is None else parse_bytes(memory)
    if isinstance(disk, Mapping):
        disk = DiskTier(**disk)
    elif isinstance(disk, (str, os.PathLike)):
        disk = DiskTier(disk)
    elif disk is not None and not isinstance(disk, DiskTier):
        raise ConfigError(f"disk={disk!r} is no folder, no mapping of DiskTier's arguments and no DiskTier")
    key = (nbytes, "" if disk is None else os.path.realpath(disk.path))
    with _sharing:
        shared = _shared.get(key)
        if shared is None:
            shared = _shared[key] = _Shared(nbytes, disk)
        return shared


def _resolved(size: int, ranges: Iterable[tuple[int | None, int | None]]) -> list[tuple[int, int]]:
    """Half-open ranges from Python's way of writing them."""
    found = []
    for start, end in ranges:
        begin, stop, _ = slice(start, end).indices(size)
        found.append((begin, max(begin, stop)))
    return found


def _between(paged: PagedObject, ranges: Iterable[tuple[int | None, int | None]]) -> list[bytes]:
    return paged.read_ranges(_resolved(paged.size, ranges))
