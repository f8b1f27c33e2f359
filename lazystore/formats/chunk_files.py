"""Folders that files are written to: a local path, or any URL fsspec can write.

A file appears under its name whole or not at all. What the files are called and hold is decided in
``dataset_folder`` and ``packing``; reading datasets goes through ``fetch``.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib
import io
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lazystore.errors import ConfigError, DatasetNotFoundError, LazyStoreError, WriteError
from lazystore.fetch.options import check_extra, fsspec_options, is_local, local_path, protocol_of, redact

__all__ = ["ALGORITHM", "DIGEST_BYTES", "Folder", "LocalFolder", "RemoteFolder", "Written", "open_folder"]

#: The digest of stored files, as hashlib calls it, and its length in bytes.
ALGORITHM = "blake2b"
DIGEST_BYTES = 16

#: Our own temporary names: those of a killed process may be swept away.
_TEMPORARY = re.compile(r"\.(chunk-.*|.*index\.json|.*\.parquet)\.\d+\.tmp")

#: Storages where an object appears when its upload is complete; elsewhere a file is renamed into place.
_OBJECT_STORES = frozenset(
    {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "azure", "memory", "oci", "oss", "r2", "hf"}
)


@dataclass(frozen=True, slots=True)
class Written:
    """What :meth:`Folder.write` wrote.

    Attributes:
        nbytes: length of the file.
        digest: BLAKE2b of 16 bytes in hex, "" when it was not asked for.
    """

    nbytes: int
    digest: str


class Folder(Protocol):
    """A place for files. Threads: one at a time. Pickling: by its URL and options."""

    url: str

    def prepare(self) -> None:
        """Make the folder, where storages have such a thing.

        Raises:
            WriteError: it cannot be made or written to.
        """
        ...

    def names(self, below: str = "") -> list[str]:
        """Names of the files directly inside (or in the folder ``below``), sorted; none when it does not exist."""
        ...

    def read(self, name: str) -> bytes:
        """A whole file.

        Raises:
            DatasetNotFoundError: there is none of this name.
        """
        ...

    def write(self, name: str, pieces: Iterable[bytes | memoryview], *, digest: bool = False) -> Written:
        """Put a file there, in place of one of the same name; it is seen whole or not at all.

        Parameters:
            name: "file" or "folder/file".
            pieces: the contents, each used before the next is asked for; what making them raises passes through,
                and no file appears.
            digest: compute the digest on the way (1 GB/s).

        Raises:
            WriteError: the storage refused.
        """
        ...

    def delete(self, name: str) -> None:
        """Remove a file; one that is not there is as good as removed.

        Raises:
            WriteError: the storage refused.
        """
        ...

    def settle(self, names: Iterable[str]) -> None:
        """Return when these files would outlive a power cut."""
        ...

    def sweep(self) -> None:
        """Remove temporary files that killed processes left. Only while nobody writes to the folder."""
        ...


def open_folder(url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> Folder:
    """The folder at a path or URL; nothing is made or looked at yet.

    Parameters:
        url: a local path, ``file://`` or ``local:``, or any fsspec URL.
        storage_options: for the filesystem, in its own names or boto3's.

    Raises:
        ConfigError: options for a local path, or an unknown protocol or option.
        MissingExtraError: the filesystem's package is not installed.
    """
    if is_local(url):
        if storage_options:
            raise ConfigError(f"storage_options are for URLs; {os.fspath(url)} is a local path")
        return LocalFolder(local_path(url))
    return RemoteFolder(os.fspath(url), storage_options)


class LocalFolder:
    """A folder on this machine. Files are written under a temporary name and renamed.

    No file is synced by itself: :meth:`settle` does it for all at once, so that the system writes them back
    while later ones are being made.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self.url = str(self._path)
        if self._path.exists() and not self._path.is_dir():
            raise ConfigError(f"{self.url} is a file; output_dir must be a folder")

    def __repr__(self) -> str:
        return f"LocalFolder({self.url!r})"

    def prepare(self) -> None:
        with _named(self._path):
            self._path.mkdir(parents=True, exist_ok=True)
            if not os.access(self._path, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "no permission to write")

    def names(self, below: str = "") -> list[str]:
        path = self._path / below
        with _named(path):
            try:
                with os.scandir(path) as entries:
                    return sorted(entry.name for entry in entries if not entry.is_dir())
            except FileNotFoundError:
                return []

    def read(self, name: str) -> bytes:
        try:
            return (self._path / name).read_bytes()
        except FileNotFoundError:
            raise DatasetNotFoundError(f"{self._path / name} does not exist") from None

    def write(self, name: str, pieces: Iterable[bytes | memoryview], *, digest: bool = False) -> Written:
        target = self._path / name
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        state = hashlib.blake2b(digest_size=DIGEST_BYTES) if digest else None
        nbytes = 0
        try:
            with _named(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                with open(temporary, "wb", buffering=0) as file:
                    for piece in pieces:
                        if state is not None:
                            state.update(piece)
                        _write_all(file.fileno(), piece)
                        nbytes += len(piece)
                os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):  # the error under way says more
                temporary.unlink(missing_ok=True)
            raise
        return Written(nbytes, state.hexdigest() if state is not None else "")

    def delete(self, name: str) -> None:
        with _named(self._path / name):
            (self._path / name).unlink(missing_ok=True)

    def settle(self, names: Iterable[str]) -> None:
        folders = {self._path}
        for name in names:
            path = self._path / name
            _sync(path)
            folders.add(path.parent)
        for folder in sorted(folders):
            _sync(folder)

    def sweep(self) -> None:
        _sweep(self)


def _write_all(descriptor: int, piece: bytes | memoryview) -> None:
    done = os.write(descriptor, piece)
    while done < len(piece):
        done += os.write(descriptor, memoryview(piece)[done:])


def _sync(path: Path) -> None:
    with _named(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a filesystem that has no such thing
                raise
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _named(path: Path) -> Any:
    """The system's error as ours, with the path."""
    try:
        yield
    except LazyStoreError:
        raise
    except OSError as error:
        raise WriteError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error


class RemoteFolder:
    """A folder behind an fsspec URL.

    Object stores show an object when its upload is complete (large ones go up in parts, as many at a time as the
    filesystem likes); on other filesystems a file is written under a temporary name and moved. A file's contents are
    put together in memory first. Retries are those of the filesystem.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self._options = dict(storage_options or {})
        self._given = url
        self.url = redact(url).rstrip("/")
        self._fs, root = _filesystem(url, self._options)
        self._root = root.rstrip("/")
        protocols = self._fs.protocol if isinstance(self._fs.protocol, (tuple, list)) else (self._fs.protocol,)
        self._whole = not _OBJECT_STORES.isdisjoint(protocols)

    def __repr__(self) -> str:
        return f"RemoteFolder({self.url!r})"

    def prepare(self) -> None:
        """Object stores have no folders; others make them with the first file."""

    def __reduce__(self) -> Any:
        return RemoteFolder, (self._given, self._options)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def names(self, below: str = "") -> list[str]:
        folder = self._path(below) if below else self._root
        with _reported(self.url, "listed"):
            self._fs.invalidate_cache()
            try:
                entries = self._fs.ls(folder, detail=True)
            except FileNotFoundError:
                return []
            prefix = f"{folder.lstrip('/')}/"
            found = []
            for entry in entries:
                path = str(entry["name"]).lstrip("/")
                name = path.removeprefix(prefix)
                if entry["type"] != "directory" and path.startswith(prefix) and name and "/" not in name:
                    found.append(name)
        return sorted(found)

    def read(self, name: str) -> bytes:
        try:
            return bytes(self._fs.cat_file(self._path(name)))
        except FileNotFoundError:
            raise DatasetNotFoundError(f"{self.url}/{name} does not exist") from None

    def write(self, name: str, pieces: Iterable[bytes | memoryview], *, digest: bool = False) -> Written:
        whole = io.BytesIO()
        for piece in pieces:
            whole.write(piece)
        data = whole.getvalue()
        path = self._path(name)
        with _reported(f"{self.url}/{name}", "written"):
            if self._whole:
                self._fs.pipe_file(path, data)
            else:
                self._move_into_place(path, data)
        return Written(len(data), hashlib.blake2b(data, digest_size=DIGEST_BYTES).hexdigest() if digest else "")

    def _move_into_place(self, path: str, data: bytes) -> None:
        parent, _, name = path.rpartition("/")
        temporary = f"{parent}/.{name}.{os.getpid()}.tmp"
        self._fs.makedirs(parent, exist_ok=True)
        try:
            self._fs.pipe_file(temporary, data)
            self._fs.mv(temporary, path)
        except BaseException:
            with contextlib.suppress(Exception):  # the error under way says more
                self._fs.rm_file(temporary)
            raise

    def delete(self, name: str) -> None:
        with _reported(f"{self.url}/{name}", "deleted"), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    def settle(self, names: Iterable[str]) -> None:
        """An upload that was acknowledged is kept."""

    def sweep(self) -> None:
        _sweep(self)


def _sweep(folder: Folder) -> None:
    for below in ("", "keys"):
        for name in folder.names(below):
            if _TEMPORARY.fullmatch(name):
                folder.delete(f"{below}/{name}" if below else name)


def _filesystem(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    protocol = protocol_of(url)
    core: Any = importlib.import_module("fsspec.core")
    if url.startswith("azure://"):
        url = "az" + url.removeprefix("azure")  # the protocol's name at LitData; adlfs knows it as az
    try:
        fs, root = core.url_to_fs(url, **fsspec_options(protocol, options))
    except ImportError as error:
        raise check_extra(protocol, error) from error
    except LazyStoreError:
        raise
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"{redact(url)} cannot be opened with these storage_options: {error}") from error
    return fs, str(root)


@contextlib.contextmanager
def _reported(url: str, verb: str) -> Any:
    """Whatever a filesystem raises, as ours: each has errors of its own."""
    try:
        yield
    except (LazyStoreError, FileNotFoundError):
        raise
    except NotImplementedError as error:
        raise ConfigError(f"{url} cannot be {verb}: its filesystem only reads; give another output_dir") from error
    except Exception as error:
        number = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
        raise WriteError(number, f"it could not be {verb}: {error!r}", url) from error
