"""The error tree.

Every error a caller can meet is a :class:`LazyStoreError` *and* the builtin that
callers of ordinary Python code already catch. Messages name the place (chunk,
item, byte range, URL) and the remedy.

    LazyStoreError
    ├── ConfigError (ValueError)            an argument that cannot work
    │   └── BudgetTooSmallError             the byte budget is below the workable minimum
    ├── DatasetNotFoundError (FileNotFoundError)   directory, index or chunk is missing
    ├── FormatError (ValueError)            bytes do not follow their format
    │   └── UnsafeDataError                 reading them would need trust not given
    ├── ItemIndexError (IndexError)         no such item
    ├── ClosedError (ValueError)            the dataset or store is closed
    ├── ArenaFullError (MemoryError)        every frame is pinned
    ├── FetchError (OSError)                bytes could not be had
    │   ├── FetchTimeoutError (TimeoutError)
    │   └── SourceChangedError              the object changed while it was read
    ├── MissingExtraError (ImportError)     an optional package is not installed
    └── UnsupportedError (NotImplementedError)     known, but not in this version
"""

from __future__ import annotations

__all__ = [
    "ArenaFullError",
    "BudgetTooSmallError",
    "ClosedError",
    "ConfigError",
    "DatasetNotFoundError",
    "FetchError",
    "FetchTimeoutError",
    "FormatError",
    "ItemIndexError",
    "LazyStoreError",
    "MissingExtraError",
    "SourceChangedError",
    "UnsafeDataError",
    "UnsupportedError",
]


class LazyStoreError(Exception):
    """Root of everything lazystore raises on purpose."""


class ConfigError(LazyStoreError, ValueError):
    """An argument or option that cannot work."""


class BudgetTooSmallError(ConfigError):
    """The byte budget is below the smallest that works; the message names it."""


class DatasetNotFoundError(LazyStoreError, FileNotFoundError):
    """A dataset directory, its index, or one of its chunks does not exist."""

    # FileNotFoundError formats (errno, strerror); with one argument str() is that argument.


class FormatError(LazyStoreError, ValueError):
    """Bytes from outside do not follow the format they claim."""


class UnsafeDataError(FormatError):
    """Reading the bytes would execute or escape something the caller did not allow."""


class ItemIndexError(LazyStoreError, IndexError):
    """There is no item at this index."""


class ClosedError(LazyStoreError, ValueError):
    """The dataset, store or lease is closed."""


class ArenaFullError(LazyStoreError, MemoryError):
    """Every frame of the arena is pinned by a lease or a running read."""


class FetchError(LazyStoreError, OSError):
    """Bytes could not be had from the source.

    Attributes:
        url: the object asked for.
        begin, end: the byte range asked for, half open; -1, -1 for the whole object or its metadata.
        attempts: requests made, the first included.
        elapsed: seconds from the first request to giving up.
    """

    def __init__(
        self,
        message: str,
        *,
        url: str = "",
        begin: int = -1,
        end: int = -1,
        attempts: int = 0,
        elapsed: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.url = url
        self.begin = begin
        self.end = end
        self.attempts = attempts
        self.elapsed = elapsed


class FetchTimeoutError(FetchError, TimeoutError):
    """The deadline passed before the bytes came."""


class SourceChangedError(FetchError):
    """The object was replaced or rewritten after reading began."""


class MissingExtraError(LazyStoreError, ImportError):
    """An optional package is needed; the message holds the pip line that installs it."""


class UnsupportedError(LazyStoreError, NotImplementedError):
    """A known feature of a format or of lazystore that this version does not have."""
