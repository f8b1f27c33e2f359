"""What the engine asks of a storage client, and the two small things that pass between them.

A ``Wire`` speaks to one storage from inside an event loop and knows nothing of retries, deadlines
or budgets; a ``Landing`` takes the bytes of one attempt and checks what the answer claims first.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from lazystore.fetch.retry import Verdict, WireError

__all__ = ["UNKNOWN", "Identity", "Landing", "Wire", "content_range", "identity_of_info", "range_ignored"]

#: The size of an object nobody told yet.
UNKNOWN = -1

_CONTENT_RANGE = re.compile(r"\s*bytes\s+(\d+)-(\d+)/(\d+|\*)\s*", re.IGNORECASE)


class Identity(NamedTuple):
    """Which object it is, as far as the storage tells.

    Attributes:
        size: bytes, or UNKNOWN.
        etag: entity tag or generation as the storage writes it, "" when it has none.
        mtime: time of modification as text, "" when not told.
    """

    size: int
    etag: str = ""
    mtime: str = ""

    @property
    def strong_etag(self) -> str:
        """The tag if it may be sent as If-Match (weak tags never match there), else ""."""
        return "" if self.etag.startswith("W/") else self.etag

    def difference(self, seen: Identity) -> str:
        """Why ``seen`` is another object, in words; "" when nothing says so.

        Only what both sides know is compared. The tag decides over the time of modification.
        """
        if self.size != seen.size and UNKNOWN not in (self.size, seen.size):
            return f"its size was {self.size} bytes and is now {seen.size}"
        if self.etag and seen.etag:
            same = self.etag.removeprefix("W/") == seen.etag.removeprefix("W/")
            return "" if same else f"its tag was {self.etag} and is now {seen.etag}"
        if self.mtime and seen.mtime and self.mtime != seen.mtime:
            return f"it was modified at {self.mtime} and now at {seen.mtime}"
        return ""


class Landing(Protocol):
    """The receiving end of one attempt."""

    def answered(self, begin: int, end: int, identity: Identity | None) -> None:
        """The answer holds bytes [begin, end) of this object; call it before :meth:`write`.

        Raises:
            WireError: that is not what was asked for, or not the object that was pinned.
        """
        ...

    def expect(self, length: int) -> None:
        """The next ``length`` bytes come without a sign of progress: grant them time."""
        ...

    def write(self, data: Any) -> None:
        """The next bytes of the answer (any buffer of bytes)."""
        ...


class Wire(Protocol):
    """One storage client, used from its event loop only.

    Attributes:
        loop: the running event loop it belongs to.
        tells: its answers come with the object's size and identity, so that asking for them
            separately is not needed.
        streams: bytes are written as they arrive; else each answer comes in one piece at its end.
        connections: requests it can carry at once, 0 for any number; final after :meth:`prepare`.
    """

    connections: int
    loop: asyncio.AbstractEventLoop
    tells: bool
    streams: bool

    def url(self, name: str) -> str:
        """The object's URL for messages, without secrets."""
        ...

    async def prepare(self) -> None:
        """Open sessions; called before the first request, by one task at a time."""
        ...

    async def get(self, name: str, begin: int, end: int, pinned: Identity | None, landing: Landing) -> None:
        """One request for bytes [begin, end); ask the storage to compare ``pinned`` if it can."""
        ...

    async def whole(self, name: str, limit: int, landing: Landing) -> None:
        """One request for the whole object, given up once it proves longer than ``limit`` bytes."""
        ...

    async def head(self, name: str) -> Identity:
        """Size and identity of an object."""
        ...

    async def aclose(self) -> None:
        """Close sessions."""
        ...

    def release(self) -> None:
        """Stop the threads it started; called after :meth:`aclose`, not from the loop."""
        ...

    def defuse(self) -> None:
        """Called in a forked child: make sure that dropping this object touches nothing of the parent's."""
        ...


def content_range(header: str | None) -> tuple[int, int, int]:
    """``(begin, end, size)`` of a Content-Range header, half open; the size may be UNKNOWN.

    Raises:
        WireError: absent or malformed.
    """
    match = _CONTENT_RANGE.fullmatch(header or "")
    if match is None:
        raise WireError(Verdict.FATAL, f"partial answer with an unusable Content-Range {header!r}")
    size = UNKNOWN if match[3] == "*" else int(match[3])
    return int(match[1]), int(match[2]) + 1, size


def range_ignored(length: int) -> WireError:
    """The server would send the whole object for a range."""
    told = f"all {length} bytes" if length >= 0 else "the whole object"
    return WireError(
        Verdict.FATAL,
        f"the server ignores Range and answers with {told}; serve the data from a server that supports range requests",
    )


# fsspec leaves these names to each filesystem. A generation (GCS) is the strictest, so it comes first.
_TAG_KEYS = ("generation", "etag", "ETag", "e_tag", "content_md5", "md5Hash")
_TIME_KEYS = ("LastModified", "last_modified", "Last-Modified", "updated", "mtime", "modified", "created")


def identity_of_info(info: Mapping[str, Any]) -> Identity:
    """Identity from an fsspec ``info`` dictionary.

    Raises:
        WireError: it describes a directory.
    """
    if info.get("type") == "directory":
        raise WireError(Verdict.MISSING, "it is a directory, not an object")
    size = info.get("size")
    etag = next((str(info[key]) for key in _TAG_KEYS if info.get(key)), "")
    mtime = "" if etag else next((str(info[key]) for key in _TIME_KEYS if info.get(key)), "")
    return Identity(UNKNOWN if size is None else int(size), etag, mtime)
