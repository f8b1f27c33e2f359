"""The error tree.

Every error a caller can meet is a :class:`LazyStoreError` *and* the builtin that
callers of ordinary Python code already catch. Messages name the place (chunk,
item, byte range, URL) and the remedy.

    LazyStoreError
    ├── ConfigError (ValueError)            an argument that cannot work
    │   ├── BudgetTooSmallError             the byte budget is below the workable minimum
    │   └── CursorError                     a page cursor that cannot be used
    │       ├── CursorTamperedError         not made by this store, or changed on its way
    │       ├── CursorMismatchError         made for another source, order, filter or page size rule
    │       └── CursorExpiredError          made too long ago
    ├── UnhashableKeyError (TypeError)      a key that no cache can find again
    ├── DatasetNotFoundError (FileNotFoundError)   directory, index or chunk is missing
    ├── HubAccessError (PermissionError)    a hub refuses access: gated, private, wrong token
    ├── FormatError (ValueError)            bytes do not follow their format
    │   ├── DecryptionError                 not encrypted with the password or key that was given, or damaged
    │   ├── UnsafeDataError                 reading them would need trust not given
    │   └── ChecksumError                   they are not the bytes that were written
    ├── ItemIndexError (IndexError)         no such item
    ├── KeyNotFoundError (KeyError)         no item has this key
    ├── ClosedError (ValueError)            the dataset or store is closed
    ├── ArenaFullError (MemoryError)        every frame is pinned
    ├── FetchError (OSError)                bytes could not be had
    │   ├── FetchTimeoutError (TimeoutError)
    │   └── SourceChangedError              the object changed while it was read
    ├── WriteError (OSError)                bytes could not be written
    ├── DiskTierError (OSError)             a disk tier's folder cannot be used
    ├── LoadError (RuntimeError)            a load gave nothing that can be used
    │   ├── LoadCancelledError              it was cancelled, or its event loop or store ended under it
    │   └── ReentrantLoadError              a loader asked for the very key it was loading
    ├── LoadTimeoutError (TimeoutError)     a load, or a wait for a stream, took longer than it was given
    ├── SampleError (ValueError)            a sample could not be processed
    ├── WorkerError (RuntimeError)          a worker process died, or an executor broke
    │   └── WorkerDiedError                 an item of imap ended the process that ran it, again and again
    ├── ItemTimeoutError (TimeoutError)     an item of imap took longer than its timeout
    ├── TransportError (TypeError)          a function, an item or a result cannot travel between processes
    ├── MissingExtraError (ImportError)     an optional package is not installed
    └── UnsupportedError (NotImplementedError)     known, but not in this version

Warnings: SyntheticDataWarning (UserWarning), samples are made up because the real ones could not be had.
"""

from __future__ import annotations

from typing import TypeVar

__all__ = [
    "ArenaFullError",
    "BudgetTooSmallError",
    "ChecksumError",
    "ClosedError",
    "ConfigError",
    "CursorError",
    "CursorExpiredError",
    "CursorMismatchError",
    "CursorTamperedError",
    "DatasetNotFoundError",
    "DecryptionError",
    "DiskTierError",
    "FetchError",
    "FetchTimeoutError",
    "FormatError",
    "HubAccessError",
    "ItemIndexError",
    "ItemTimeoutError",
    "KeyNotFoundError",
    "LazyStoreError",
    "LoadCancelledError",
    "LoadError",
    "LoadTimeoutError",
    "MissingExtraError",
    "ReentrantLoadError",
    "SampleError",
    "SourceChangedError",
    "SyntheticDataWarning",
    "TransportError",
    "UnhashableKeyError",
    "UnsafeDataError",
    "UnsupportedError",
    "WorkerDiedError",
    "WorkerError",
    "WriteError",
]

E = TypeVar("E", bound=Exception)


class LazyStoreError(Exception):
    """Root of everything lazystore raises on purpose."""


class ConfigError(LazyStoreError, ValueError):
    """An argument or option that cannot work."""


class BudgetTooSmallError(ConfigError):
    """The byte budget is below the smallest that works; the message names it.

    Attributes:
        needed: bytes that what was refused takes for itself; 0 where that is not known.
    """

    def __init__(self, message: str, *, needed: int = 0) -> None:
        super().__init__(message)
        self.needed = needed


class CursorError(ConfigError):
    """A page cursor that cannot be used."""


class CursorTamperedError(CursorError):
    """The cursor was not made by this store (or with its secret), or it was changed on its way."""


class CursorMismatchError(CursorError):
    """The cursor was made for another source, order or filter."""


class CursorExpiredError(CursorError):
    """The cursor was made too long ago; begin at the first page."""


class UnhashableKeyError(LazyStoreError, TypeError):
    """A key is not hashable, so that no cache can find it again."""


class DatasetNotFoundError(LazyStoreError, FileNotFoundError):
    """A dataset directory, its index, or one of its chunks does not exist."""

    # FileNotFoundError formats (errno, strerror); with one argument str() is that argument.


class HubAccessError(LazyStoreError, PermissionError):
    """A hub refuses access: the repository is gated or private, or the token is missing or wrong."""


class FormatError(LazyStoreError, ValueError):
    """Bytes from outside do not follow the format they claim."""


class DecryptionError(FormatError):
    """Bytes were not encrypted with the password or key that was given, or they are damaged."""


class UnsafeDataError(FormatError):
    """Reading the bytes would execute or escape something the caller did not allow."""


class ChecksumError(FormatError):
    """Stored bytes have another checksum than the index gives, also after they were fetched once more."""


class ItemIndexError(LazyStoreError, IndexError):
    """There is no item at this index."""


class KeyNotFoundError(LazyStoreError, KeyError):
    """No item has this key."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""  # KeyError itself would show the message's repr


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


class WriteError(LazyStoreError, OSError):
    """Bytes could not be written; nothing half-written stays."""


class DiskTierError(LazyStoreError, OSError):
    """The folder of a disk tier cannot be used: read-only, another user's, writable by others, no folder."""


class LoadError(LazyStoreError, RuntimeError):
    """A load gave nothing that can be used. What a loader itself raises reaches its callers as it is."""


class LoadCancelledError(LoadError):
    """The load was cancelled, or its event loop or its store ended before it did."""


class ReentrantLoadError(LoadError):
    """A loader asked for the very key it was loading: it would wait for itself."""


class LoadTimeoutError(LazyStoreError, TimeoutError):
    """A load, or a wait for the next part of a stream, took longer than it was given."""


class SampleError(LazyStoreError, ValueError):
    """A sample could not be processed: a column is missing, an image does not decode, the tokenizer raised.

    Attributes:
        dataset: name of the dataset it comes from.
        index: its number in there.
    """

    def __init__(self, message: str, dataset: str = "", index: int = -1) -> None:
        super().__init__(message)
        self.dataset = dataset
        self.index = index

    def __reduce__(self) -> tuple[type, tuple[str, str, int]]:
        return type(self), (str(self), self.dataset, self.index)


class WorkerError(LazyStoreError, RuntimeError):
    """Work given to another process did not come back: the process died, or its executor broke."""


class WorkerDiedError(WorkerError):
    """An item ended the process that ran it, also when it ran there alone.

    Attributes:
        index: the item's number in the data.
        exit_code: exit status of the process; negative: the signal that ended it.
    """

    def __init__(self, message: str, *, index: int = -1, exit_code: int = 0) -> None:
        super().__init__(message)
        self.index = index
        self.exit_code = exit_code


class ItemTimeoutError(LazyStoreError, TimeoutError):
    """An item took longer than it was given.

    Attributes:
        index: the item's number in the data.
    """

    def __init__(self, message: str, *, index: int = -1) -> None:
        super().__init__(message)
        self.index = index


class TransportError(LazyStoreError, TypeError):
    """A function, an item or a result cannot travel between processes: it does not pickle, or does not come back."""


class MissingExtraError(LazyStoreError, ImportError):
    """An optional package is needed; the message holds the pip line that installs it."""


class UnsupportedError(LazyStoreError, NotImplementedError):
    """A known feature of a format or of lazystore that this version does not have."""


class SyntheticDataWarning(UserWarning):
    """Samples are made up because the real ones could not be had; the cause is in ``stats()``."""


def with_place(error: E, place: str) -> E:
    """The same error with a place in front of its message; what else it tells stays."""
    found = type(error)(f"{place}: {error}")
    found.__dict__.update(error.__dict__)
    return found


def without_trace(error: E) -> E:
    """The error, to be kept for later: no traceback, its own or of what led to it, holds on to frames any more."""
    seen: set[int] = set()
    led: BaseException | None = error
    while led is not None and id(led) not in seen:
        seen.add(id(led))
        led.__traceback__ = None
        led = led.__cause__ or led.__context__
    return error
