"""Words for how things are loaded: strategies, sizes, ways to cut, codecs. Values only, no behaviour.

Two documents name these differently; each name is here once, the other as an alias of the same member
(an ``enum`` alias: ``Strategy.IMMEDIATE is Strategy.EAGER``).
"""

from __future__ import annotations

import enum

from lazystore.config import parse_bytes

__all__ = ["ChunkStrategy", "CompressionType", "DataSize", "LoadStrategy", "LoadingStrategy", "Strategy"]

MIB = 1 << 20


class Strategy(enum.Enum):
    """How :meth:`LazyStore.load` gives its data.

    EAGER: the value, now. LAZY: a handle that loads when it is asked. STREAMING: one ordered pass in a bounded
    window. CHUNKED: addressable parts, each loaded and cached by itself. PAGINATED: pages. BACKGROUND: a handle that
    is queued at once; a stale value is served while it is refreshed. AUTO: from the size, if it is known.
    """

    EAGER = "eager"
    LAZY = "lazy"
    STREAMING = "streaming"
    CHUNKED = "chunked"
    PAGINATED = "paginated"
    BACKGROUND = "background"
    AUTO = "auto"

    IMMEDIATE = "eager"  # noqa: PIE796 - an alias
    ON_DEMAND = "lazy"  # noqa: PIE796 - an alias
    HYBRID = "auto"  # noqa: PIE796 - an alias


#: The documents' names of :class:`Strategy`.
LoadingStrategy = Strategy
LoadStrategy = Strategy


class ChunkStrategy(enum.Enum):
    """Where :class:`DataChunker` cuts.

    FIXED_SIZE: every chunk has the same size but the last. DYNAMIC_SIZE: steered to a time a chunk. CONTENT_BASED:
    where the content says so (FastCDC for bytes, delimiters for text, ``boundary`` for objects). TIME_BASED: when a
    chunk is full or has waited long enough.
    """

    FIXED_SIZE = "fixed_size"
    DYNAMIC_SIZE = "dynamic_size"
    CONTENT_BASED = "content_based"
    TIME_BASED = "time_based"


class CompressionType(enum.Enum):
    """Codecs of stored values. AUTO: zstd where it can be imported, else zlib."""

    NONE = "none"
    ZLIB = "zlib"
    ZSTD = "zstd"
    AUTO = "auto"

    GZIP = "zlib"  # noqa: PIE796 - an alias: the same DEFLATE stream, in a header of its own


class DataSize(enum.Enum):
    """Classes of sizes: below 1 MiB, 10 MiB, 100 MiB, and above."""

    SMALL = "small"
    MEDIUM = "medium"
    LARGE = "large"
    HUGE = "huge"

    @classmethod
    def of(cls, nbytes: int | str) -> DataSize:
        """The class of a size in bytes (``0``, ``"20MB"``).

        Raises:
            ConfigError: not a size.
        """
        if nbytes == 0 and not isinstance(nbytes, bool):
            return cls.SMALL
        size = parse_bytes(nbytes, name="nbytes")
        bounds = ((MIB, cls.SMALL), (10 * MIB, cls.MEDIUM), (100 * MIB, cls.LARGE))
        return next((found for bound, found in bounds if size < bound), cls.HUGE)
