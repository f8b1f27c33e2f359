"""`Streams`: streams by name, as a service has them that opens one in a request and reads it in others."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from lazystore.cache.locks import forkable_lock
from lazystore.errors import ConfigError, KeyNotFoundError
from lazystore.lazy.chunk import DataChunk, size_of
from lazystore.lazy.stream import Stream, StreamInfo

__all__ = ["Streams"]


class Streams:
    """Open streams by name.

    Parameters:
        open_stream: ``open_stream(source, name=..., chunk=...)`` gives a :class:`Stream`; ``chunk`` may be None.

    Streams that nobody read for longer than their idle timeout are closed whenever the registry is used.
    Threads: any number. Fork, pickling: as the streams.
    """

    def __init__(self, open_stream: Callable[..., Stream]) -> None:
        self._open = open_stream
        self._lock = forkable_lock()
        self._streams: dict[str, Stream] = {}

    def create_stream(self, stream_id: str, data_source: Any, chunk_size: int | str | None = None) -> Stream:
        """Open a stream under a name.

        Parameters:
            stream_id: the name, unused so far or of a closed stream.
            data_source: what :class:`Stream` takes.
            chunk_size: bytes a piece; None: as the source gives them.

        Raises:
            ConfigError: the name is taken. As :class:`Stream` does.
        """
        with self._lock:
            for name in [name for name, stream in list(self._streams.items()) if stream.closed]:
                self._streams.pop(name, None)  # whoever reads it was told why since the last one was made
        self._expire()
        with self._lock:
            found = self._streams.get(stream_id)
            if found is not None and not found.closed:
                raise ConfigError(
                    f"a stream {stream_id!r} is open: close_stream({stream_id!r}) first, or take another name"
                )
            stream = self._streams[stream_id] = self._open(data_source, name=stream_id, chunk=chunk_size)
        return stream

    def get(self, stream_id: str) -> Stream:
        """The stream of this name.

        Raises:
            KeyNotFoundError: there is none.
        """
        self._expire()
        try:
            return self._streams[stream_id]
        except KeyError:
            raise KeyNotFoundError(f"no stream {stream_id!r} is open: create_stream() makes one") from None

    def get_stream_chunk(self, stream_id: str, index: int | None = None) -> DataChunk:
        """Piece ``index``, from the window or by reading on; None: the next.

        Raises:
            KeyNotFoundError: no such stream. ItemIndexError: the window does not hold it any more, or the stream ended
            before it. ClosedError; what the source raises.
        """
        return _chunk(*self.get(stream_id).numbered(index))

    async def aget_stream_chunk(self, stream_id: str, index: int | None = None) -> DataChunk:
        """:meth:`get_stream_chunk` for event loops."""
        return _chunk(*await self.get(stream_id).anumbered(index))

    def get_stream_chunks(self, stream_id: str) -> Iterator[DataChunk]:
        """The pieces that were not read yet, in order; raises as :meth:`get` does, at once."""
        return _rest(self.get(stream_id))

    def aget_stream_chunks(self, stream_id: str) -> AsyncIterator[DataChunk]:
        """:meth:`get_stream_chunks` for event loops."""
        return _arest(self.get(stream_id))

    def close_stream(self, stream_id: str) -> bool:
        """Close the stream of exactly this name and forget it; whether there was one."""
        stream = self._streams.pop(stream_id, None)
        if stream is not None:
            stream.close()
        return stream is not None

    async def aclose_stream(self, stream_id: str) -> bool:
        """:meth:`close_stream` for event loops."""
        stream = self._streams.pop(stream_id, None)
        if stream is not None:
            await stream.aclose()
        return stream is not None

    def get_stream_info(self, stream_id: str) -> StreamInfo:
        """How far a stream is; raises as :meth:`get` does."""
        return self.get(stream_id).info()

    def close(self) -> None:
        """Close all of them."""
        while self._streams:
            self._streams.popitem()[1].close()

    async def aclose(self) -> None:
        """:meth:`close` for event loops."""
        while self._streams:
            await self._streams.popitem()[1].aclose()

    def _expire(self) -> None:
        for stream in list(self._streams.values()):
            stream.expire()

    def __contains__(self, stream_id: object) -> bool:
        return stream_id in self._streams

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._streams))

    def __len__(self) -> int:
        return len(self._streams)


def _rest(stream: Stream) -> Iterator[DataChunk]:
    try:
        while True:
            yield _chunk(*stream.read())
    except StopIteration:
        return


async def _arest(stream: Stream) -> AsyncIterator[DataChunk]:
    while True:
        try:
            found = await stream.aread()
        except StopAsyncIteration:
            return
        yield _chunk(*found)


def _chunk(number: int, piece: Any) -> DataChunk:
    return DataChunk(piece, number, size_of(piece))
