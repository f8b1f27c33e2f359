"""What the caller of a writer chose, checked once: limits of a chunk, compression, encryption, checksums.

A value without state: it travels to worker processes. What it means for the bytes is in ``packing``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Protocol

from lazystore.config import parse_bytes
from lazystore.errors import ConfigError

__all__ = ["DEFAULT_CHUNK_BYTES", "Encrypting", "WriteSettings", "write_settings", "zstd_level"]

DEFAULT_CHUNK_BYTES = 64_000_000
#: Items of a frame with ``compression_level="batch"``, unless said otherwise: LitData's own number.
BATCH_SIZE = 256
#: What plain "zstd" means in the format.
DEFAULT_ZSTD_LEVEL = 4
LEVELS = ("chunk", "batch", "sample")

_ZSTD = re.compile(r"zstd(?::(\d{1,2}))?")


class Encrypting(Protocol):
    """What a writer needs of an encryption."""

    @property
    def algorithm(self) -> str: ...
    @property
    def level(self) -> str: ...
    def encrypt(self, data: bytes, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class WriteSettings:
    """See :class:`~lazystore.DatasetWriter` for the meaning; made by :func:`write_settings`, which checks."""

    chunk_bytes: int | None = DEFAULT_CHUNK_BYTES
    chunk_size: int | None = None
    compression: str | None = None
    compression_level: str = "chunk"
    compression_batch_size: int = BATCH_SIZE
    encryption: Encrypting | None = None
    tokens: bool = False
    checksums: bool = True
    allow_pickle: bool = False

    @property
    def in_file(self) -> bool:
        """Compressed inside the chunk, frame by frame or item by item."""
        return self.compression is not None and self.compression_level != "chunk"

    @property
    def encrypts(self) -> str:
        """What is encrypted: "" (nothing), "sample" or "chunk"."""
        return "" if self.encryption is None else self.encryption.level

    def config(self, data_format: list[str], data_spec: str) -> dict[str, Any]:
        """The ``config`` of an index; keys LitData reads since 0.2.74 only are there only where needed."""
        config: dict[str, Any] = {
            "chunk_bytes": self.chunk_bytes,
            "chunk_size": self.chunk_size,
            "compression": self.compression,
            "data_format": data_format,
            "data_spec": data_spec,
            "encryption": None,
            "item_loader": "TokensLoader" if self.tokens else "PyTreeLoader",
        }
        if self.encryption is not None:
            config["encryption"] = {"algorithm": self.encryption.algorithm, "level": self.encryption.level}
        if self.in_file:
            config["compression_level"] = self.compression_level
            batch = self.compression_level == "batch"
            config["compression_batch_size"] = self.compression_batch_size if batch else None
        return config


def write_settings(
    *,
    chunk_bytes: int | str | None = None,
    chunk_size: int | None = None,
    compression: str | None = None,
    compression_level: str = "chunk",
    compression_batch_size: int = BATCH_SIZE,
    encryption: Encrypting | None = None,
    tokens: bool = False,
    checksums: bool = True,
    allow_pickle: bool = False,
) -> WriteSettings:
    """The settings, checked.

    Raises:
        ConfigError: a value that cannot work, or two that exclude each other.
    """
    if chunk_bytes is not None and chunk_size is not None:
        raise ConfigError(f"{chunk_bytes=} and {chunk_size=}: a chunk has one limit, give one of the two")
    if chunk_size is not None and (isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1):
        raise ConfigError(f"{chunk_size=} must be at least one item")
    limit = None
    if chunk_size is None:
        limit = parse_bytes(DEFAULT_CHUNK_BYTES if chunk_bytes is None else chunk_bytes, name="chunk_bytes")
    batch = compression_batch_size
    if isinstance(batch, bool) or not isinstance(batch, int) or not 1 <= batch < 1 << 32:
        raise ConfigError(f"{compression_batch_size=} must be at least one item")
    if compression_level not in LEVELS:
        raise ConfigError(f"{compression_level=} is not one of {', '.join(LEVELS)}")
    zstd_level(compression)
    if compression is None and compression_level != "chunk":
        raise ConfigError(f"{compression_level=} without compression; add compression='zstd'")
    settings = WriteSettings(
        limit, chunk_size, compression, compression_level, batch, encryption, tokens, checksums, allow_pickle
    )
    if encryption is not None:
        _check_encryption(encryption, settings)
    if tokens and settings.in_file:
        raise ConfigError(f"tokens with {compression_level=}: only whole chunks of tokens can be compressed")
    return settings


def _check_encryption(encryption: Any, settings: WriteSettings) -> None:
    if not callable(getattr(encryption, "encrypt", None)) or not isinstance(
        getattr(encryption, "algorithm", None), str
    ):
        raise ConfigError(f"encryption={encryption!r} is no encryption: it lacks encrypt(bytes), algorithm or level")
    if getattr(encryption, "level", None) not in ("sample", "chunk"):
        raise ConfigError(f"encryption={encryption!r} must have level 'sample' or 'chunk'")
    if settings.in_file:
        raise ConfigError(
            f"encryption with compression_level={settings.compression_level!r}: "
            "the format combines encryption with whole-chunk compression only"
        )
    if settings.tokens:
        raise ConfigError("encryption of tokens: the format has none")


def zstd_level(compression: str | None) -> int:
    """The number behind "zstd" or "zstd:N"; 0 for None.

    Raises:
        ConfigError: it is none of the three.
    """
    if compression is None:
        return 0
    match = _ZSTD.fullmatch(compression) if isinstance(compression, str) else None
    level = int(match.group(1) or DEFAULT_ZSTD_LEVEL) if match else 0
    if not 1 <= level <= 22:
        raise ConfigError(f"{compression=} is not None, 'zstd' or 'zstd:1' to 'zstd:22'")
    return level
