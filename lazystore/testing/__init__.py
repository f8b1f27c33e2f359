"""What users and our own tests share: a local object store and a local hub of datasets, with latency,
a bandwidth limit and faults, a fault-injecting filesystem, the seeded plans behind them, a clock set by
hand, and the exam of new formats.

Names are imported when first used, so that this package costs nothing until then.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lazystore.testing.clock import FakeClock as FakeClock
    from lazystore.testing.faults import FaultPlan as FaultPlan
    from lazystore.testing.faults import Faults as Faults
    from lazystore.testing.faults import FileFaults as FileFaults
    from lazystore.testing.filesystem import FaultyFileSystem as FaultyFileSystem
    from lazystore.testing.format_exam import FormatCase as FormatCase
    from lazystore.testing.format_exam import examine_format as examine_format
    from lazystore.testing.hub import LocalHub as LocalHub
    from lazystore.testing.objectstore import ObjectStore as ObjectStore
    from lazystore.testing.traffic import dependent_waves as dependent_waves

_HOMES = {
    "FakeClock": "clock",
    "FaultPlan": "faults",
    "Faults": "faults",
    "FaultyFileSystem": "filesystem",
    "FileFaults": "faults",
    "FormatCase": "format_exam",
    "LocalHub": "hub",
    "ObjectStore": "objectstore",
    "dependent_waves": "traffic",
    "examine_format": "format_exam",
}

__all__ = [
    "FakeClock",
    "FaultPlan",
    "Faults",
    "FaultyFileSystem",
    "FileFaults",
    "FormatCase",
    "LocalHub",
    "ObjectStore",
    "dependent_waves",
    "examine_format",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
