"""HTTP/1.1 on an asyncio protocol: requests in, answers out with flow control, pacing and accidents.

Reads only what a store of objects needs (no chunked request bodies, no trailers). Knows nothing of
buckets: an :class:`Application` says when and what to answer.
"""

from __future__ import annotations

import asyncio
import os
from http import HTTPStatus
from typing import Protocol, cast

from lazystore.testing.buckets import StoredObject
from lazystore.testing.traffic import Pacer, Record, Traffic

__all__ = ["Answer", "Application", "Connection", "Request", "piece_size"]

KIB = 1 << 10
#: Body bytes of all connections together that may lie in this process's memory.
MAX_BODY_MEMORY = 32 * KIB * KIB
#: The largest and the smallest piece of a body that is read and handed on at once.
MAX_PIECE = 256 * KIB
MIN_PIECE = 16 * KIB
#: Pieces under a bandwidth limit: small, so that parallel bodies share it evenly.
PACED_PIECE = 64 * KIB
#: Limits on what a client may send: a head, a body, and bytes ahead of their turn.
MAX_HEAD = 32 * KIB
MAX_REQUEST_BODY = 1024 * KIB
MAX_PIPELINED = 64 * KIB

REASONS = {status.value: status.phrase for status in HTTPStatus}


def piece_size(bodies: int, paced: bool) -> int:
    """Bytes of a body to read at once while ``bodies`` are being sent.

    ``bodies`` pieces stay within MAX_BODY_MEMORY, up to 2,048 bodies at a time.
    """
    largest = PACED_PIECE if paced else MAX_PIECE
    return max(MIN_PIECE, min(largest, MAX_BODY_MEMORY // max(1, bodies)))


class BadRequest(Exception):
    """The bytes are not a request this server reads; the connection is of no further use."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Request:
    """One request: the method, the target as sent, the headers with lower-case names, the body."""

    __slots__ = ("body", "headers", "keep_alive", "method", "record", "target")

    def __init__(self, method: str, target: str, version: str, headers: dict[str, str]) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.body = b""
        connection = headers.get("connection", "").lower()
        self.keep_alive = "close" not in connection if version == "HTTP/1.1" else "keep-alive" in connection
        self.record: Record | None = None


class Answer:
    """A head, and a body from memory or from a file; possibly one that comes to a bad end.

    Attributes:
        head: status line and headers, with the blank line.
        body: the body, when it does not come from a file.
        file: the file it comes from; released by the connection.
        begin, end: the part of ``file`` (or of ``body``) to send.
        silent: not even the head is sent.
        ending: "" for a complete answer; "cut" closes the connection after ``end``, "stall" leaves it
            open and silent.
    """

    __slots__ = ("begin", "body", "end", "ending", "file", "head", "silent")

    def __init__(
        self,
        head: bytes,
        body: bytes = b"",
        *,
        file: StoredObject | None = None,
        begin: int = 0,
        end: int = -1,
    ) -> None:
        self.head = head
        self.body = body
        self.file = file
        self.begin = begin
        self.end = len(body) if end < 0 else end
        self.silent = False
        self.ending = ""

    def read(self, size: int) -> bytes:
        """The next bytes of the body, at most ``size``; less only where a file was shortened."""
        upto = min(self.end, self.begin + size)
        if self.file is not None:
            piece = os.pread(self.file.fd, upto - self.begin, self.begin)
        else:
            piece = self.body[self.begin : upto]
        self.begin += len(piece)
        return piece


class Application(Protocol):
    """What a connection serves."""

    pacer: Pacer
    traffic: Traffic
    #: Bodies being sent now, over all connections.
    bodies: int

    def arrived(self, request: Request) -> float:
        """A request is complete; returns the seconds to wait before it is answered."""
        ...

    def answer(self, request: Request) -> Answer:
        """What to answer; does not raise for anything a client can ask."""
        ...


def parse_request(buffer: bytearray) -> tuple[Request, int] | None:
    """The first request in ``buffer`` and its length; None while its head is incomplete.

    Raises:
        BadRequest: no request of HTTP/1.0 or 1.1, or one too large.
    """
    stop = buffer.find(b"\r\n\r\n")
    if stop < 0:
        if len(buffer) > MAX_HEAD:
            raise BadRequest(431, "the head is larger than 32 KiB")
        return None
    lines = buffer[:stop].decode("latin-1").lstrip("\r\n").split("\r\n")
    parts = lines[0].split(" ")
    if len(parts) != 3 or parts[2] not in ("HTTP/1.1", "HTTP/1.0") or not parts[1]:
        raise BadRequest(400, "not an HTTP/1.1 request line")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise BadRequest(400, "not a header line")
        headers[name.lower()] = value.strip()
    return Request(parts[0], parts[1], parts[2], headers), stop + 4


def body_length(headers: dict[str, str]) -> int:
    """Bytes of the request's body.

    Raises:
        BadRequest: of unknown length, or too large.
    """
    if "transfer-encoding" in headers:
        raise BadRequest(411, "send a Content-Length; chunked bodies are not read")
    text = headers.get("content-length", "0")
    if not text.isascii() or not text.isdigit():
        raise BadRequest(400, "Content-Length is not a number")
    if len(text) > 12 or int(text) > MAX_REQUEST_BODY:
        raise BadRequest(413, "this store is read-only; bodies over 1 MiB are not read")
    return int(text)


class Connection(asyncio.Protocol):
    """One client connection; answers its requests in their order.

    At most one piece of a body is in memory: read when the previous one has left for the kernel.
    """

    def __init__(self, application: Application) -> None:
        self._app = application
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._request: Request | None = None
        self._answer: Answer | None = None
        self._head = b""
        self._timer: asyncio.Handle | None = None
        self._paused = False
        self._reading = True
        self._continued = False

    # -- what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        # Any rest that the kernel does not take pauses us: one piece is all we ever buffer.
        self._transport.set_write_buffer_limits(high=0)
        self._app.traffic.connections += 1

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._request is None:
            self._next_request()
        elif len(self._buffer) > MAX_PIPELINED and self._reading:
            self._reading = False
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._answer is not None and self._timer is None:
            # Not from in here: asyncio would report the connection lost twice if it were closed now.
            self._timer = self._loop.call_soon(self._send_on)

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._release()
        if self._request is not None and self._request.record is not None:
            self._app.traffic.finish(self._request.record, self._loop.time())
        self._request = None

    # -- one request after the other

    def _next_request(self) -> None:
        self._timer = None
        if self._transport.is_closing():
            return
        try:
            request = self._take_request()
        except BadRequest as error:
            self._refuse(error)
            return
        if request is None:
            if not self._reading:
                self._reading = True
                self._transport.resume_reading()
            return
        self._request = request
        self._continued = False
        delay = self._app.arrived(request)
        if delay > 0:
            self._timer = self._loop.call_later(delay, self._start_answer)
        else:
            self._start_answer()

    def _take_request(self) -> Request | None:
        """The next complete request, removed from the buffer."""
        parsed = parse_request(self._buffer)
        if parsed is None:
            return None
        request, head_length = parsed
        length = body_length(request.headers)
        if length:
            if len(self._buffer) < head_length + length:
                if not self._continued and request.headers.get("expect", "").lower() == "100-continue":
                    self._continued = True
                    self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                return None
            request.body = bytes(self._buffer[head_length : head_length + length])
        del self._buffer[: head_length + length]
        return request

    def _refuse(self, error: BadRequest) -> None:
        message = f"{error}\n".encode()
        head = (
            f"HTTP/1.1 {error.status} {REASONS[error.status]}\r\nContent-Type: text/plain\r\n"
            f"Content-Length: {len(message)}\r\nConnection: close\r\n\r\n"
        )
        self._buffer.clear()
        self._transport.write(head.encode() + message)
        self._transport.close()

    # -- its answer

    def _start_answer(self) -> None:
        self._timer = None
        assert self._request is not None
        self._answer = self._app.answer(self._request)
        self._app.bodies += 1
        self._head = b"" if self._answer.silent else self._answer.head
        self._send_on()

    def _send_on(self) -> None:
        """Send the next piece, now or when the bandwidth limit allows; finish when none is left."""
        self._timer = None
        answer = self._answer
        assert answer is not None
        if self._paused:
            return  # resume_writing() goes on
        left = answer.end - answer.begin
        if not left and not self._head:
            self._finish_answer(answer)
            return
        pacer = self._app.pacer
        size = min(left, piece_size(self._app.bodies, pacer.rate is not None))
        delay = pacer.reserve(len(self._head) + size, self._loop.time()) if pacer.rate is not None else 0.0
        if delay > 0:
            self._timer = self._loop.call_later(delay, self._send_piece, size)
        else:
            self._send_piece(size)

    def _send_piece(self, size: int) -> None:
        self._timer = None
        answer = self._answer
        assert answer is not None and self._request is not None
        piece = answer.read(size)
        if len(piece) < size:
            self._transport.abort()  # the file became shorter: what was promised cannot come
            return
        if self._request.record is not None:
            self._app.traffic.sent(self._request.record, size)
        head, self._head = self._head, b""
        # A memoryview spares the transport a copy of what the kernel does not take at once.
        self._transport.write(memoryview(head + piece if head else piece))
        if self._paused:
            return
        if answer.begin < answer.end:
            # Not a loop: other connections come first.
            self._timer = self._loop.call_soon(self._send_on)
        else:
            self._finish_answer(answer)

    def _finish_answer(self, answer: Answer) -> None:
        request = self._request
        assert request is not None
        if answer.ending == "stall":
            self._release()  # the request stays open, and with it the connection, until the client leaves
            return
        self._release()
        if request.record is not None:
            self._app.traffic.finish(request.record, self._loop.time())
        self._request = None
        if answer.ending == "cut" or not request.keep_alive:
            self._transport.close()
        elif self._buffer:
            self._timer = self._loop.call_soon(self._next_request)
        elif not self._reading:
            self._reading = True
            self._transport.resume_reading()

    def _release(self) -> None:
        if self._answer is not None:
            self._app.bodies -= 1
            if self._answer.file is not None:
                self._answer.file.release()
        self._answer = None
