"""Answers as bytes: heads, small documents, files with their ranges and preconditions (RFC 9110).

What the servers of this package have in common. What is answered to which request is decided elsewhere.
"""

from __future__ import annotations

import email.utils
import functools
import json
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any

from lazystore.testing.buckets import StoredObject, StoreError
from lazystore.testing.http_protocol import REASONS, Answer, Request
from lazystore.testing.listing import error_xml

__all__ = [
    "XML",
    "bytes_answer",
    "file_answer",
    "head_of",
    "json_answer",
    "names_etag",
    "parse_range",
    "parse_target",
    "xml_error",
]

XML = "application/xml"


def file_answer(
    request: Request, stored: StoredObject, *, kind: str = "application/octet-stream", more: str = ""
) -> Answer:
    """All of a file, the range asked for, or 304; ``more`` are further header lines.

    Takes the file over: it is released here unless the answer carries it; what of it is sent is noted in the record.

    Raises:
        StoreError: 412 and 416, as RFC 9110 (13.1.1, 14.4) has them.
    """
    try:
        answer = _of_file(request, stored, kind, more)
    except StoreError:
        stored.release()
        raise
    if answer.file is None:
        stored.release()
    elif request.record is not None:
        request.record.begin, request.record.end = answer.begin, answer.end
    return answer


def _of_file(request: Request, stored: StoredObject, kind: str, more: str) -> Answer:
    headers = request.headers
    match, none_match = headers.get("if-match"), headers.get("if-none-match")
    identity = f"{more}ETag: {stored.etag}\r\nLast-Modified: {stored.last_modified}\r\n"
    if match is not None and not names_etag(match, stored.etag):
        raise StoreError(412, "PreconditionFailed", "At least one of the preconditions did not hold")
    if none_match is not None and names_etag(none_match, stored.etag):
        return Answer(head_of(request, 304, None, "", identity))
    begin, end, status = 0, stored.size, 200
    wanted = headers.get("range")
    if wanted and headers.get("if-range", stored.etag) in (stored.etag, stored.last_modified):
        found = parse_range(wanted, stored.size)
        if found is not None:
            (begin, end), status = found, 206
            identity += f"Content-Range: bytes {begin}-{end - 1}/{stored.size}\r\n"
    identity += "Accept-Ranges: bytes\r\n"
    head = head_of(request, status, end - begin, kind, identity)
    if request.method == "HEAD":
        return Answer(head)
    return Answer(head, file=stored, begin=begin, end=end)


def parse_range(text: str, size: int) -> tuple[int, int] | None:
    """The half-open range that a Range header means; None when it is to be ignored (as several ranges are).

    Raises:
        StoreError: 416, nothing of the range lies within ``size`` bytes.
    """
    unit, _, spec = text.partition("=")
    first, dash, last = spec.strip().partition("-")
    first, last = first.strip(), last.strip()
    if unit.strip().lower() != "bytes" or not dash or not (first or last):
        return None
    if not all(part.isascii() and part.isdigit() and len(part) < 20 for part in (first, last) if part):
        return None
    if not first:
        begin, end = max(0, size - int(last)), size
    else:
        begin = int(first)
        end = min(int(last) + 1, size) if last else size
        if last and int(last) < begin:
            return None
    if begin >= size:
        raise StoreError(416, "InvalidRange", f"The requested range is not satisfiable; size {size}")
    return begin, end


def names_etag(header: str, etag: str) -> bool:
    """Whether an If-Match or If-None-Match header names ``etag``; quotes may be missing."""
    wanted = etag.strip('"')
    return any(
        part == "*" or part.removeprefix("W/").strip('"') == wanted
        for part in (piece.strip() for piece in header.split(","))
    )


@functools.lru_cache(maxsize=4096)
def parse_target(target: str) -> tuple[str, Mapping[str, str]]:
    """Decoded path and query of a request target; ("", {}) when it cannot be decoded."""
    if not target.startswith("/"):
        scheme, _, rest = target.partition("://")
        target = "/" + rest.partition("/")[2] if scheme in ("http", "https") else ""
    path, _, query = target.partition("?")
    try:
        # Targets are read as latin-1; bytes beyond ASCII are raw UTF-8.
        raw = urllib.parse.unquote_to_bytes(path.encode("latin-1"))
        pairs = urllib.parse.parse_qsl(query, keep_blank_values=True, errors="strict")
        return raw.decode(), dict(pairs)
    except ValueError:
        return "", {}


# -- heads and small bodies


@functools.lru_cache(maxsize=1)
def _date(second: int) -> str:
    return email.utils.formatdate(second, usegmt=True)


def head_of(request: Request, status: int, length: int | None, kind: str, more: str = "") -> bytes:
    """A status line and headers; ``length`` None is of an answer that has no body by definition."""
    lines = f"HTTP/1.1 {status} {REASONS[status]}\r\nDate: {_date(int(time.time()))}\r\n{more}"
    if length is not None:
        lines += f"Content-Type: {kind}\r\nContent-Length: {length}\r\n"
    if not request.keep_alive:
        lines += "Connection: close\r\n"
    return f"{lines}\r\n".encode("latin-1")


def bytes_answer(request: Request, status: int, body: bytes, kind: str, more: str = "") -> Answer:
    """A small body; without it where a HEAD asked."""
    head = head_of(request, status, len(body), kind, more)
    return Answer(head, b"" if request.method == "HEAD" else body)


def json_answer(request: Request, values: Any, status: int = 200, more: str = "") -> Answer:
    """A JSON document."""
    return bytes_answer(request, status, json.dumps(values).encode(), "application/json", more)


def xml_error(request: Request, error: StoreError) -> Answer:
    """What S3 answers to a request that it refuses."""
    resource_name = parse_target(request.target)[0]
    more = ""
    if error.status == 416:
        more = f"Content-Range: bytes */{error.message.rpartition(' ')[2]}\r\n"
    return bytes_answer(request, error.status, error_xml(error, resource_name), XML, more)
