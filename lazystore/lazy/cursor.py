"""Signed page cursors: a position in an order, as short text that a client hands back and cannot change.

The text is opaque and safe in URLs, holds no pickle, and is bound to its source, filters and order, and to a time.
What positions mean lives in ``pages`` and ``keysets``.
"""

from __future__ import annotations

import binascii
import datetime
import decimal
import hashlib
import hmac
import math
import os
import struct
import uuid
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from lazystore.cache.clock import Clock
from lazystore.config import seconds
from lazystore.errors import ConfigError, CursorExpiredError, CursorMismatchError, CursorTamperedError

__all__ = ["BINDING_BYTES", "MAX_CHARACTERS", "CursorSigner", "Position", "decode_values", "encode_values"]

MAX_CHARACTERS = 512
VERSION = 1
MAC_BYTES = 16
BINDING_BYTES = 8
#: version, mode, expiry in wall seconds (0: never), page number (0: unknown), binding
HEAD = struct.Struct(f">BBQQ{BINDING_BYTES}s")
BACKWARD = 0x80
LATEST = 2**64 - 1
MAX_DEPTH = 8
SECRET_BYTES = 16  # the shortest secret that is taken
#: About three days, as Google's AIP-158 advises for page tokens.
LIFETIME = 3 * 24 * 3600.0


class Position(NamedTuple):
    """Where a page begins.

    Attributes:
        mode: what ``values`` are: "offset", "source" (the source's own cursor) or "keyset".
        values: typed values (:func:`encode_values`).
        backward: the page ends before the position, in place of beginning after it.
        number: the page's number in its walk, from 1; 0 where nobody knows.
    """

    mode: str
    values: tuple[Any, ...]
    backward: bool = False
    number: int = 0


MODES = ("offset", "source", "keyset")


class CursorSigner:
    """Makes cursors, and opens only those it made.

    HMAC-SHA256, truncated to 16 bytes (RFC 2104 §5), over everything a cursor holds; compared in constant time.

    Parameters:
        secrets: one, or several, of at least 16 bytes each. The first signs, all are accepted: rotate by putting a new
            one in front, and drop the old one when its cursors have expired. None: a random one, so that cursors end
            with the process (forked and pickled copies share it).
        lifetime: seconds a cursor stays good; None: for ever.
        clock: where wall time comes from.

    Raises:
        ConfigError: no secret, one that is too short, or a lifetime that is not above zero.

    Threads: any. Fork, pickle: copies accept each other's cursors; a pickle holds the secrets.
    """

    __slots__ = ("_clock", "_lifetime", "_secrets")

    def __init__(
        self,
        secrets: bytes | str | Iterable[bytes | str] | None = None,
        *,
        lifetime: float | None = LIFETIME,
        clock: Clock | None = None,
    ) -> None:
        if secrets is None:
            secrets = os.urandom(32)
        if not isinstance(secrets, (bytes, str, Iterable)):
            raise ConfigError(f"secrets={secrets!r} are bytes, or several of them")
        given = [secrets] if isinstance(secrets, (bytes, str)) else list(secrets)
        encoded = [one.encode() if isinstance(one, str) else one for one in given]
        if not encoded or not all(isinstance(one, bytes) and len(one) >= SECRET_BYTES for one in encoded):
            raise ConfigError(f"secrets= needs at least one, of at least {SECRET_BYTES} bytes each: os.urandom(32)")
        self._secrets = tuple(encoded)
        if lifetime is not None and seconds("lifetime", lifetime) == math.inf:
            raise ConfigError("lifetime=inf must be above zero and end; None is for cursors that never expire")
        self._lifetime = lifetime
        self._clock = clock or Clock()

    def sign(self, position: Position, binding: bytes) -> str:
        """The cursor of a position; ``binding`` (8 bytes) stands for source, filters and order. At most 512 characters.

        Raises:
            ConfigError: the values are of types that cursors do not hold, or too long.
        """
        mode = MODES.index(position.mode) | (BACKWARD if position.backward else 0)
        expires = 0 if self._lifetime is None else min(math.ceil(self._clock.time() + self._lifetime), LATEST)
        body = HEAD.pack(VERSION, mode, expires, position.number, binding) + encode_values(position.values)
        text = urlsafe_b64encode(body + self._mac(self._secrets[0], body)).rstrip(b"=").decode()
        if len(text) > MAX_CHARACTERS:
            raise ConfigError(
                f"a cursor would take {len(text)} characters ({MAX_CHARACTERS} at most): order by shorter columns"
            )
        return text

    def open(self, text: str, binding: bytes) -> Position:
        """The position in a cursor.

        Raises:
            CursorTamperedError: not made by this signer, or not the text it made.
            CursorMismatchError: made for another source, filters or order.
            CursorExpiredError: made too long ago.
        """
        body = self._verified(text)
        version, mode, expires, number, bound = HEAD.unpack_from(body)
        if version != VERSION:
            raise CursorMismatchError(f"this cursor has version {version}, this lazystore makes {VERSION}; begin again")
        if not hmac.compare_digest(bound, binding):
            raise CursorMismatchError(
                "this cursor was made for another source, order or filter: use it there, or begin at the first page"
            )
        if expires and self._clock.time() >= expires:
            raise CursorExpiredError("this cursor has expired; begin at the first page")
        values = decode_values(body[HEAD.size :])
        return Position(MODES[mode & ~BACKWARD], values, bool(mode & BACKWARD), number)

    def _verified(self, text: str) -> bytes:
        """The body of a cursor whose signature is right."""
        wrong = CursorTamperedError(
            "this cursor was not made by this store (or its secret is gone), or it was changed; begin at the first page"
        )
        if not isinstance(text, str) or not text.isascii() or len(text) > MAX_CHARACTERS:
            raise wrong
        try:
            raw = urlsafe_b64decode(text + "=" * (-len(text) % 4))
        except (binascii.Error, ValueError):
            raise wrong from None
        # Several texts decode to the same bytes (spare bits, characters that are skipped): only ours will do.
        if urlsafe_b64encode(raw).rstrip(b"=").decode() != text or len(raw) < HEAD.size + MAC_BYTES:
            raise wrong
        body, mac = raw[:-MAC_BYTES], raw[-MAC_BYTES:]
        if not any([hmac.compare_digest(mac, self._mac(secret, body)) for secret in self._secrets]):  # noqa: C419
            raise wrong
        return body

    @staticmethod
    def _mac(secret: bytes, body: bytes) -> bytes:
        return hmac.digest(secret, b"lazystore cursor\0" + body, hashlib.sha256)[:MAC_BYTES]

    def __repr__(self) -> str:
        return f"CursorSigner({len(self._secrets)} secrets, lifetime={self._lifetime})"  # and never the secrets

    def __reduce__(self) -> tuple[Any, ...]:
        return _signer, (self._secrets, self._lifetime, self._clock)


def _signer(secrets: tuple[bytes, ...], lifetime: float | None, clock: Clock) -> CursorSigner:
    return CursorSigner(secrets, lifetime=lifetime, clock=clock)


# -- values as bytes: a tag, a length, the value --------------------------------------------


def encode_values(values: Iterable[Any], depth: int = 0) -> bytes:
    """Typed bytes of None, bool, int of any size, float (exact), str, bytes, date, datetime (with its zone), Decimal,
    UUID, and lists, tuples and dicts of those; :func:`decode_values` gives equal values of the same types.

    Raises:
        ConfigError: another type, NaN (it has no place in an order), or nested too deeply.
    """
    if depth > MAX_DEPTH:
        raise ConfigError(f"a cursor's values may be nested {MAX_DEPTH} deep")
    return b"".join([_encode(value, depth) for value in values])


def _encode(value: Any, depth: int) -> bytes:
    if value.is_nan() if isinstance(value, decimal.Decimal) else isinstance(value, float) and value != value:
        raise ConfigError("a cursor cannot hold NaN: it has no place in an order; filter such rows, or make them None")
    if isinstance(value, float):
        return _tagged(b"f", struct.pack(">d", value))
    if isinstance(value, (list, tuple)):
        return _tagged(b"l" if isinstance(value, list) else b"t", encode_values(value, depth + 1))
    if isinstance(value, Mapping):
        return _tagged(b"m", encode_values([part for pair in value.items() for part in pair], depth + 1))
    for kind, tag, encode in _ENCODERS:
        if isinstance(value, kind):
            return _tagged(tag, encode(value))
    if hasattr(value, "__index__"):  # numpy's integers
        return _encode(value.__index__(), depth)
    raise ConfigError(
        f"a cursor cannot hold a {type(value).__name__}; it holds None, bool, int, float, str, bytes, date, datetime, "
        "Decimal, UUID, and lists, tuples and dicts of those"
    )


def _tagged(tag: bytes, payload: bytes) -> bytes:
    size, head = len(payload), bytearray(tag)
    while size > 127:  # LEB128
        head.append(size & 127 | 128)
        size >>= 7
    head.append(size)
    return bytes(head) + payload


def _from_int(value: int) -> bytes:
    return int(value).to_bytes(value.bit_length() // 8 + 1, "big", signed=True)


def _from_datetime(value: datetime.datetime) -> bytes:
    if getattr(value, "nanosecond", 0):  # of pandas: rows between two microseconds would come again
        raise ConfigError(f"a cursor holds microseconds, and {value!r} has nanoseconds: round the column")
    # Two datetimes of one zone compare by their wall times, so a zone with a name comes back as that zone.
    zone = getattr(value.tzinfo, "key", None)
    text = value.replace(tzinfo=None).isoformat() if zone else value.isoformat()
    return f"{value.fold}{text}|{zone or ''}".encode()


def _to_datetime(data: bytes) -> datetime.datetime:
    text, _, zone = data.decode().partition("|")
    value = datetime.datetime.fromisoformat(text[1:]).replace(fold=int(text[0]))
    if zone:
        import zoneinfo

        value = value.replace(tzinfo=zoneinfo.ZoneInfo(zone))
    return value


def _to_float(data: bytes) -> float:
    (value,) = struct.unpack(">d", data)
    return float(value)


def _to_dict(data: bytes) -> dict[Any, Any]:
    parts = decode_values(data)
    return dict(zip(parts[::2], parts[1::2], strict=True))


#: In this order: a bool is an int, a datetime a date.
_ENCODERS: tuple[tuple[type, bytes, Any], ...] = (
    (type(None), b"N", lambda value: b""),
    (bool, b"B", lambda value: b"1" if value else b""),
    (int, b"i", _from_int),
    (str, b"s", lambda value: value.encode("utf-8", "surrogatepass")),
    (bytes, b"b", bytes),
    (datetime.datetime, b"D", _from_datetime),
    (datetime.date, b"d", lambda value: value.isoformat().encode()),
    (decimal.Decimal, b"n", lambda value: str(value).encode()),
    (uuid.UUID, b"u", lambda value: value.bytes),
)
_DECODERS: dict[int, Any] = {
    ord("N"): lambda data: None,
    ord("B"): lambda data: data == b"1",
    ord("i"): lambda data: int.from_bytes(data, "big", signed=True),
    ord("f"): _to_float,
    ord("s"): lambda data: data.decode("utf-8", "surrogatepass"),
    ord("b"): bytes,
    ord("D"): _to_datetime,
    ord("d"): lambda data: datetime.date.fromisoformat(data.decode()),
    ord("n"): lambda data: decimal.Decimal(data.decode()),
    ord("u"): lambda data: uuid.UUID(bytes=data),
    ord("l"): lambda data: list(decode_values(data)),
    ord("t"): lambda data: decode_values(data),
    ord("m"): _to_dict,
}


def decode_values(data: bytes) -> tuple[Any, ...]:
    """What :func:`encode_values` encoded. Only for bytes whose signature was verified."""
    values, at = [], 0
    while at < len(data):
        tag, at = data[at], at + 1
        size = shift = 0
        while data[at] > 127:
            size, shift, at = size | (data[at] & 127) << shift, shift + 7, at + 1
        size, at = size | data[at] << shift, at + 1
        values.append(_DECODERS[tag](data[at : at + size]))
        at += size
    return tuple(values)
