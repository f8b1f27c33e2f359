"""Which objects a directory holds, for datasets without an index and for patterns such as ``part-*.parquet``.

One directory, never those below it. Reading the objects is the sources' business (``local.py``, ``remote.py``);
fsspec is imported only for URLs that are not local.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import unquote

from lazystore.errors import ConfigError, DatasetNotFoundError, FetchError, LazyStoreError
from lazystore.fetch.options import HTTP, check_extra, fsspec_options, is_local, local_path, protocol_of, redact

__all__ = ["UNKNOWN_SIZE", "list_objects", "natural_key"]

UNKNOWN_SIZE = -1
ATTEMPTS = 3
FIRST_WAIT = 0.2  # seconds; doubled from attempt to attempt
_DIGITS = re.compile(r"([0-9]+)")


def natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sorts runs of ASCII digits as numbers: part-2 before part-10, whatever else there is in the names."""
    parts = []
    for part in _DIGITS.split(name):
        digits = part.lstrip("0")  # compared by length first: that is their order as numbers, however many there are
        parts.append((0, len(digits), digits) if part.isdigit() and part.isascii() else (1, 0, part))
    return [part for part in parts if part != (1, 0, "")], name


def list_objects(
    directory: str | os.PathLike[str],
    pattern: str = "*",
    storage_options: Mapping[str, Any] | None = None,
    *,
    timeout: float = 60.0,
) -> dict[str, int]:
    """Names and sizes (bytes, -1: unknown) of the files in a directory, in natural order.

    Args:
        directory: a path or any URL fsspec understands.
        pattern: of the names, as a shell has it: ``*``, ``?``, ``[abc]``. Names that begin with a dot are left out
            unless the pattern does so too. Directories are not descended.
        storage_options: as :func:`lazystore.fetch.open_source` takes them.
        timeout: seconds for each of at most three attempts, where the filesystem is asynchronous; others cannot
            be interrupted.

    Raises:
        ConfigError: a pattern with a slash; options the filesystem does not take.
        DatasetNotFoundError: there is no such directory.
        FetchError: it could not be listed.
        MissingExtraError: the filesystem's package is not installed.

    Cost: one request a thousand objects on object stores; ~200 bytes a name. HTTP servers are asked for their
    HTML listing, which gives no sizes.
    """
    if "/" in pattern or "\\" in pattern or not pattern:
        raise ConfigError(f"the pattern {pattern!r} must be one of file names, without a directory")
    text = os.fspath(directory)
    found = _local(local_path(text)) if is_local(text) else _remote(text, storage_options, timeout)
    hidden = pattern.startswith(".")
    chosen = {
        name: size
        for name, size in found
        if fnmatchcase(name, pattern) and (hidden or not name.startswith("."))
    }  # fmt: skip
    return {name: chosen[name] for name in sorted(chosen, key=natural_key)}


def _local(path: str) -> Iterator[tuple[str, int]]:
    try:
        with os.scandir(path or ".") as entries:
            found = [(entry.name, entry.stat().st_size) for entry in entries if entry.is_file()]
    except (FileNotFoundError, NotADirectoryError):
        raise DatasetNotFoundError(f"there is no directory {path}") from None
    except OSError as error:
        raise FetchError(f"{path} cannot be listed: {error.strerror}", url=path) from error
    return iter(found)


def _remote(url: str, storage_options: Mapping[str, Any] | None, timeout: float) -> Iterator[tuple[str, int]]:
    protocol = protocol_of(url)
    place = redact(url)
    try:
        from fsspec.core import url_to_fs

        # LitData's name of the protocol; adlfs knows it as az.
        target = "az" + url.removeprefix("azure") if protocol == "azure" else url
        fs, root = url_to_fs(target, skip_instance_cache=True, **fsspec_options(protocol, storage_options))
        entries = _listed(fs, root, place, timeout)
    except ImportError as error:
        raise check_extra(protocol, error) from error
    except LazyStoreError:
        raise
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"{place} cannot be opened with these storage_options: {error}") from error
    for entry in entries:
        name = _name(str(entry.get("name", "")), quoted=protocol in HTTP)
        if name and entry.get("type") == "file":
            size = entry.get("size")
            yield name, size if isinstance(size, int) and size >= 0 else UNKNOWN_SIZE


def _listed(fs: Any, root: str, place: str, timeout: float) -> list[dict[str, Any]]:
    """The filesystem's own entries; what does not look final is tried again."""
    wait = FIRST_WAIT
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return list(_ls(fs, root, timeout))
        except (FileNotFoundError, NotADirectoryError):
            raise DatasetNotFoundError(f"{place} does not exist, or is no directory that can be listed") from None
        except (OSError, TimeoutError) as error:
            if attempt == ATTEMPTS or isinstance(error, PermissionError):
                raise FetchError(f"{place} cannot be listed: {error!r}", url=place, attempts=attempt) from error
        except LazyStoreError:
            raise
        except Exception as error:  # clients raise types of their own (aiohttp's, botocore's)
            if isinstance(error, (TypeError, ValueError, KeyError, ImportError)) or attempt == ATTEMPTS:
                raise FetchError(f"{place} cannot be listed: {error!r}", url=place, attempts=attempt) from error
        time.sleep(wait)
        wait *= 2
    raise AssertionError("the last attempt returns or raises")


def _ls(fs: Any, root: str, timeout: float) -> list[dict[str, Any]]:
    from fsspec import asyn

    # By type: caching filesystems answer isinstance() in the name of what they wrap.
    if issubclass(type(fs), asyn.AsyncFileSystem) and fs.async_impl:
        listed: list[dict[str, Any]] | None = asyn.sync(fs.loop, fs._ls, root, timeout=timeout, detail=True)
        if listed is None:  # what fsspec's blocking calls make of a cancelled coroutine
            raise OSError("the filesystem gave no answer and no error: its request was cancelled")
        return listed
    return fs.ls(root, detail=True)  # type: ignore[no-any-return]


def _name(path: str, *, quoted: bool) -> str:
    """The last part of a path; "" for what is no file of the directory (links that sort a listing)."""
    if quoted:
        if "?" in path or "#" in path:
            return ""
        path = unquote(path)
    name = path.rpartition("/")[2]
    return "" if name in (".", "..") or "\\" in name or "\0" in name else name
