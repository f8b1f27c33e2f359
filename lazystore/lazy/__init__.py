"""Lazy access to any source: one store with one budget, chunks, pages, streams, background loading.

Names load when they are first used.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "chunk": ("DataChunk",),
    "documents.chunker": ("DataChunker",),
    "chunks": ("Chunks",),
    "cursor": ("CursorSigner",),
    "decorators": ("chunked_load", "lazy_load", "paginated", "streaming_load"),
    "documents.configs": ("ChunkConfig", "LargeDataConfig", "LazyLoadingConfig", "PaginationConfig", "StreamingConfig"),
    "documents.large": (
        "LargeDataLoader",
        "create_lazy_loader",
        "large_dataset_context",
        "load_chunked_data",
        "load_paginated_data",
    ),
    "documents.loaders": (
        "AdaptiveLazyLoader",
        "AdvancedLazyLoader",
        "BackgroundLoader",
        "IntelligentBackgroundLoader",
        "PaginatedDataLoader",
        "StreamingDataLoader",
    ),
    "documents.metrics": ("get_metrics", "get_stats"),
    "file": ("LazyFile",),
    "handle": ("Handle",),
    "keysets": ("Keyset", "keyset"),
    "loading": ("time_left",),
    "page": ("Page", "PageInfo"),
    "pages": ("Pages",),
    "predict": ("Markov", "NextN", "Stride"),
    "source": ("Source",),
    "store": ("LazyStore", "default_store"),
    "strategy": ("ChunkStrategy", "CompressionType", "DataSize", "LoadStrategy", "LoadingStrategy", "Strategy"),
    "stream": ("Stream",),
    "streams": ("Streams",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
