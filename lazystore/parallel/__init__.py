"""Functions run over streams by workers (`imap`), plans for that, and datasets written by many workers.

Names load when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lazystore.parallel.async_mapper import aimap
    from lazystore.parallel.batches import process_in_batches
    from lazystore.parallel.failures import Failure
    from lazystore.parallel.mapper import imap, imap_unordered
    from lazystore.parallel.plan import StreamingOptimizationResult, optimize_streaming
    from lazystore.parallel.pool_map import OptimizationResult, optimize
    from lazystore.parallel.profile import DiagnosticProfile

_HOMES = {
    "DiagnosticProfile": "profile",
    "Failure": "failures",
    "OptimizationResult": "pool_map",
    "StreamingOptimizationResult": "plan",
    "aimap": "async_mapper",
    "imap": "mapper",
    "imap_unordered": "mapper",
    "optimize": "pool_map",
    "optimize_streaming": "plan",
    "process_in_batches": "batches",
}

__all__ = [
    "DiagnosticProfile",
    "Failure",
    "OptimizationResult",
    "StreamingOptimizationResult",
    "aimap",
    "imap",
    "imap_unordered",
    "optimize",
    "optimize_streaming",
    "process_in_batches",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
