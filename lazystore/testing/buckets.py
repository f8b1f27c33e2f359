"""Folders as buckets: which file a key means, opened safely and with its identity; which keys there are.

Nothing outside a bucket's folder is ever opened or listed: no ``..``, no absolute names, no symbolic
link that leads out. Knows files and keys, but neither HTTP nor XML.
"""

from __future__ import annotations

import email.utils
import os
import stat
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from lazystore.errors import ConfigError, DatasetNotFoundError

__all__ = ["Buckets", "Entry", "StoreError", "StoredObject"]

#: Files kept open between requests.
MAX_OPEN = 64


class StoreError(Exception):
    """A request that S3 would answer with this error."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


class Entry(NamedTuple):
    """One listed key, or a folder of keys (then ``size`` is -1 and ``key`` ends in "/")."""

    key: str
    size: int
    mtime_ns: int
    etag: str


class StoredObject:
    """An open file: a descriptor, and the identity it had when it was opened or last checked."""

    __slots__ = ("_cached", "_users", "etag", "fd", "last_modified", "signature", "size")

    def __init__(self, fd: int, status: os.stat_result) -> None:
        self.fd = fd
        self.signature = signature_of(status)
        self.size = status.st_size
        self.etag = etag_of(status)
        self.last_modified = email.utils.formatdate(status.st_mtime, usegmt=True)
        self._users = 0
        self._cached = True

    def release(self) -> None:
        """The reader that :meth:`Buckets.open` gave this to is done with it."""
        self._users -= 1
        self._close_unused()

    def acquire(self) -> StoredObject:
        self._users += 1
        return self

    def forget(self) -> None:
        """Leaves the table of open files; the descriptor goes with its last reader."""
        self._cached = False
        self._close_unused()

    def _close_unused(self) -> None:
        if not self._cached and self._users == 0 and self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def signature_of(status: os.stat_result) -> tuple[int, int, int, int]:
    """What changes when a file is replaced or rewritten."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def etag_of(status: os.stat_result) -> str:
    """A quoted entity tag, new whenever the file is replaced or rewritten."""
    return f'"{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}"'


class Buckets:
    """The folders served, by bucket name.

    Args:
        root: each folder right below it is a bucket; None: only ``named`` ones are.
        named: further buckets, or all; they come before those of ``root``.

    Raises:
        DatasetNotFoundError: a folder does not exist.
        ConfigError: nothing to serve, or a bucket name that no URL could hold.
    """

    def __init__(self, root: str | None, named: Mapping[str, str]) -> None:
        if root is None and not named:
            raise ConfigError("nothing to serve; give --root DIR or --bucket NAME=DIR")
        for name in named:
            if not name or "/" in name or name in (".", "..", "-"):
                raise ConfigError(f"{name!r} cannot be a bucket name; take letters, digits and dashes")
        for folder in filter(None, [root, *named.values()]):
            if not os.path.isdir(folder):
                raise DatasetNotFoundError(f"{folder!r} is not a folder the object store could serve")
        self._root = None if root is None else os.path.realpath(root)
        self._named = {name: os.path.realpath(folder) for name, folder in named.items()}
        self._open: OrderedDict[tuple[str, str], StoredObject] = OrderedDict()

    def names(self) -> list[str]:
        """All bucket names, sorted."""
        found = set(self._named)
        if self._root is not None:
            with os.scandir(self._root) as entries:
                found.update(e.name for e in entries if self._is_bucket(e.name) and _is_text(e.name))
        return sorted(found)

    def _is_bucket(self, name: str) -> bool:
        try:
            self.folder(name)
        except StoreError:
            return False
        return True

    def folder(self, bucket: str) -> str:
        """The real path of a bucket's folder.

        Raises:
            StoreError: there is no such bucket.
        """
        if bucket in self._named:
            return self._named[bucket]
        if self._root is not None and _is_plain(bucket) and bucket != "-":
            folder = os.path.realpath(os.path.join(self._root, bucket))
            if folder.startswith(_below(self._root)) and os.path.isdir(folder):
                return folder
        raise StoreError(404, "NoSuchBucket", "The specified bucket does not exist")

    def open(self, bucket: str, key: str) -> StoredObject:
        """The object's file, to be given back by ``release()``. Costs one ``stat`` when it is open already.

        Raises:
            StoreError: there is no such bucket or object.
        """
        found = self._open.get((bucket, key))
        if found is not None:
            try:
                current = signature_of(os.stat(self._join(bucket, key)))
            except OSError:
                current = (-1, -1, -1, -1)
            if current == found.signature:
                self._open.move_to_end((bucket, key))
                return found.acquire()
            self._open.pop((bucket, key)).forget()
        found = self._open_file(bucket, key).acquire()
        self._open[(bucket, key)] = found
        if len(self._open) > MAX_OPEN:
            self._open.popitem(last=False)[1].forget()
        return found

    def _join(self, bucket: str, key: str) -> str:
        folder = self._named.get(bucket)
        return os.path.join(folder, key) if folder else os.path.join(self._root or "", bucket, key)

    def _open_file(self, bucket: str, key: str) -> StoredObject:
        folder = self.folder(bucket)
        missing = StoreError(404, "NoSuchKey", "The specified key does not exist.")
        if not all(_is_plain(part) for part in key.split("/")):
            raise missing
        path = os.path.realpath(os.path.join(folder, key))
        if not path.startswith(_below(folder)):
            raise missing
        try:
            # NONBLOCK: opening a named pipe must not hang. NOFOLLOW: links are resolved and judged above.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except PermissionError:
            raise StoreError(403, "AccessDenied", "The file may not be read") from None
        except OSError:
            raise missing from None
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise missing
        return StoredObject(fd, status)

    def keys(self, bucket: str, *, prefix: str = "", after: str = "", shallow: bool = False) -> Iterator[Entry]:
        """Keys in UTF-8 order, lazily; memory is that of the folders on the way down.

        Names that are not UTF-8 are left out. Links are followed to files inside the bucket only.

        Args:
            bucket: the bucket's name.
            prefix: only keys that begin so.
            after: only keys beyond this one.
            shallow: folders beyond the prefix appear as one entry instead of their keys.

        Raises:
            StoreError: there is no such bucket.
        """
        folder = self.folder(bucket)
        return _walk(folder, folder, "", prefix, after, shallow)

    def is_folder(self, bucket: str, key: str) -> bool:
        """Whether ``key`` (with or without a "/" at its end; "" is the bucket) is a folder in the bucket."""
        folder = self.folder(bucket)
        if key and not all(_is_plain(part) for part in key.removesuffix("/").split("/")):
            return False
        path = os.path.realpath(os.path.join(folder, key))
        return os.path.isdir(path) and (path == folder or path.startswith(_below(folder)))


def _walk(root: str, folder: str, base: str, prefix: str, after: str, shallow: bool) -> Iterator[Entry]:
    for name, entry in _sorted_entries(root, folder):
        key = base + name
        if not name.endswith("/"):
            if key.startswith(prefix) and key > after:
                status = entry.stat()
                yield Entry(key, status.st_size, status.st_mtime_ns, etag_of(status))
            continue
        if not key.startswith(prefix) and not prefix.startswith(key):
            continue
        if key <= after and not after.startswith(key):
            continue  # every key in there sorts before `after`
        if shallow and key.startswith(prefix) and key != prefix:
            if not after.startswith(key) and _has_file(root, entry.path):
                yield Entry(key, -1, 0, "")
            continue
        yield from _walk(root, entry.path, key, prefix, after, shallow)


def _sorted_entries(root: str, folder: str) -> list[tuple[str, os.DirEntry[str]]]:
    """Files, and folders with a "/" appended: that is how their keys sort."""
    found: list[tuple[str, os.DirEntry[str]]] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not _is_text(entry.name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    found.append((entry.name + "/", entry))
                elif entry.is_file() and (not entry.is_symlink() or _leads_inside(root, entry.path)):
                    found.append((entry.name, entry))
    except (FileNotFoundError, PermissionError):
        return []  # a folder that went away, or that nobody may read, holds no keys
    return sorted(found, key=lambda item: item[0])


def _has_file(root: str, folder: str) -> bool:
    return next(_walk(root, folder, "", "", "", False), None) is not None


def _leads_inside(root: str, path: str) -> bool:
    return os.path.realpath(path).startswith(_below(root))


def _below(folder: str) -> str:
    return folder.rstrip("/") + "/"


def _is_plain(part: str) -> bool:
    return part not in ("", ".", "..") and "/" not in part and "\0" not in part


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
