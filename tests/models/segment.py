"""Segment files of the disk tier as ``_core/segment_file`` says they look, read in plain Python."""

from __future__ import annotations

import struct
from typing import NamedTuple

from lazystore._core.checksum import crc32c_tables as crc32c  # held to its own model elsewhere; this one is read often

SEGMENT = struct.Struct("=8sQQII")
RECORD = struct.Struct("=4sIIIIHHddQ")
MAGIC = b"LZSEG\x01\r\n"


class Record(NamedTuple):
    key: bytes
    payload: bytes
    kind: int
    created: float
    expires: float
    stamp: int
    live: bool
    begin: int
    end: int


def read(data: bytes) -> list[Record]:
    """All records of a segment, deleted ones too; asserts that each is as it should be."""
    magic, capacity, _number, salt, crc = SEGMENT.unpack_from(data)
    assert magic == MAGIC
    assert crc == crc32c(data[:28])
    assert len(data) <= capacity
    at, records = SEGMENT.size, []
    while at < len(data):
        fields = RECORD.unpack_from(data, at)
        mark, head_crc, payload_crc, key_bytes, payload_bytes, kind, zero, created, expires, stamp = fields
        assert mark in (b"LZR1", b"LZRx", b"LZRi")
        assert zero == 0
        body = at + RECORD.size
        key, payload = data[body : body + key_bytes], data[body + key_bytes : body + key_bytes + payload_bytes]
        assert head_crc == crc32c(data[at + 8 : body + key_bytes], salt)
        assert payload_crc == crc32c(payload)
        end = body + key_bytes + payload_bytes
        assert data[end : end + -end % 8] == bytes(-end % 8)
        if mark == b"LZRi":
            assert not key
            check_list(payload, at, data)
        records.append(Record(key, payload, kind, created, expires, stamp, mark == b"LZR1", at, end + -end % 8))
        at = end + -end % 8
    return records


def check_list(payload: bytes, begin: int, data: bytes) -> None:
    """A list of records says of each what the record itself says, but for its mark."""
    assert payload[-16:] == struct.pack("=Q8s", begin, b"LZLIST\r\n")
    at = 0
    while at < len(payload) - 16:
        (offset,) = struct.unpack_from("=Q", payload, at)
        size = RECORD.size + RECORD.unpack_from(payload, at + 8)[3]
        assert payload[at + 12 : at + 8 + size] == data[offset + 4 : offset + size]
        at += 8 + size + -size % 8
