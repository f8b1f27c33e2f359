"""A Source over a filesystem object that exists already, rather than over a URL.

For whoever is handed an fsspec filesystem, with its credentials and its settings. Imports asyncio, so import it late.
"""

from __future__ import annotations

from typing import Any

from lazystore.fetch.engine import DEFAULT_IN_FLIGHT_BYTES, WireSource
from lazystore.fetch.remote import DEFAULT_CONCURRENCY, wire_of
from lazystore.fetch.retry import RetryPolicy
from lazystore.fetch.wire import Wire

__all__ = ["MountedSource"]


class MountedSource(WireSource):
    """The objects of an fsspec filesystem, by the paths it calls them.

    Args:
        fs: the filesystem, blocking or asynchronous; it is used as it is and never closed.
        concurrency: requests under way at once (at most 16 where it blocks).
        max_in_flight_bytes: payload bytes under way at once.
        policy: waits, clock and chance of the retries.

    Raises:
        ConfigError: (at the first read) a filesystem that only works inside coroutines.

    For threads and fork see :class:`lazystore.fetch.engine.WireSource`. Pickles with its filesystem.
    """

    def __init__(
        self,
        fs: Any,
        *,
        concurrency: int = DEFAULT_CONCURRENCY,
        max_in_flight_bytes: int = DEFAULT_IN_FLIGHT_BYTES,
        policy: RetryPolicy | None = None,
    ) -> None:
        protocol = fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
        super().__init__(
            f"{protocol}://", concurrency=concurrency, max_in_flight_bytes=max_in_flight_bytes, policy=policy
        )
        self._fs = fs

    def forget(self, name: str) -> None:
        """Unpin an object; what the filesystem remembers of listings may be older than the object is."""
        super().forget(name)
        self._fs.invalidate_cache(self._fs._parent(name))

    def _recipe(self) -> dict[str, Any]:
        return {"fs": self._fs, "concurrency": self._concurrency, "max_in_flight_bytes": self._room}

    def _connect(self) -> Wire:
        return wire_of(self._fs, "", self.url.removesuffix("/"), self._concurrency)
