"""Datasets of the Hugging Face hub, streamed: one wrapper for any source, and multimodal datasets by task.

Names load when they are first used; ``datasets`` is imported only where a source needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lazystore.errors import SyntheticDataWarning as SyntheticDataWarning
    from lazystore.hub.collating import MultimodalCollator as MultimodalCollator
    from lazystore.hub.multimodal import MultimodalDataset as MultimodalDataset
    from lazystore.hub.registry import DatasetSpec as DatasetSpec
    from lazystore.hub.registry import register_dataset as register_dataset
    from lazystore.hub.registry import registered_datasets as registered_datasets
    from lazystore.hub.registry import unregister_dataset as unregister_dataset
    from lazystore.hub.wrapper import StreamingDatasetWrapper as StreamingDatasetWrapper

_HOMES = {
    "DatasetSpec": "lazystore.hub.registry",
    "MultimodalCollator": "lazystore.hub.collating",
    "MultimodalDataset": "lazystore.hub.multimodal",
    "StreamingDatasetWrapper": "lazystore.hub.wrapper",
    "SyntheticDataWarning": "lazystore.errors",
    "register_dataset": "lazystore.hub.registry",
    "registered_datasets": "lazystore.hub.registry",
    "unregister_dataset": "lazystore.hub.registry",
}

__all__ = [
    "DatasetSpec",
    "MultimodalCollator",
    "MultimodalDataset",
    "StreamingDatasetWrapper",
    "SyntheticDataWarning",
    "register_dataset",
    "registered_datasets",
    "unregister_dataset",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
