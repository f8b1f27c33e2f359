"""CRC-32C a bit at a time: what ``_core/checksum`` must equal."""

from __future__ import annotations

POLYNOMIAL = 0x82F63B78  # RFC 3720's 0x1EDC6F41 with its bits the other way round


def crc32c(data: bytes, value: int = 0) -> int:
    crc = value ^ 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (POLYNOMIAL if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF
