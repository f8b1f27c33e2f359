"""Functions run over streams by workers (`imap`), plans for that, and datasets written by many workers.

Names load when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lazystore.parallel.async_mapper import aimap
    from lazystore.parallel.failures import Failure
    from lazystore.parallel.mapper import imap, imap_unordered
    from lazystore.parallel.plans.batches import process_in_batches
    from lazystore.parallel.plans.plan import StreamingOptimizationResult, optimize_streaming
    from lazystore.parallel.plans.pool_map import OptimizationResult, optimize
    from lazystore.parallel.plans.profile import DiagnosticProfile

_HOMES = {
    "DiagnosticProfile": "plans.profile",
    "Failure": "failures",
    "OptimizationResult": "plans.pool_map",
    "StreamingOptimizationResult": "plans.plan",
    "aimap": "async_mapper",
    "imap": "mapper",
    "imap_unordered": "mapper",
    "optimize": "plans.pool_map",
    "optimize_streaming": "plans.plan",
    "process_in_batches": "plans.batches",
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
