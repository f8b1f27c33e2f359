"""Lazy access to any source: one store with one budget, chunks, pages, streams, background loading.

Names load when they are first used.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "strategy": ("ChunkStrategy", "CompressionType", "DataSize", "LoadStrategy", "LoadingStrategy", "Strategy"),
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
