"""lazystore: a user-space page cache for datasets.

Reads datasets larger than memory, from any storage, inside a hard byte budget. Public
names load when they are first used, so that ``import lazystore`` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lazystore._core.frames import Lease
    from lazystore.adapters.torch import StreamingDataLoader
    from lazystore.cache.disk import DiskTier
    from lazystore.config import EvictionPolicy, StreamingConfig
    from lazystore.errors import (
        ArenaFullError,
        BudgetTooSmallError,
        ChecksumError,
        ClosedError,
        ConfigError,
        CursorError,
        CursorExpiredError,
        CursorMismatchError,
        CursorTamperedError,
        DatasetNotFoundError,
        DecryptionError,
        DiskTierError,
        FetchError,
        FetchTimeoutError,
        FormatError,
        HubAccessError,
        ItemIndexError,
        ItemTimeoutError,
        KeyNotFoundError,
        LazyStoreError,
        LoadCancelledError,
        LoadError,
        LoadTimeoutError,
        MissingExtraError,
        ReentrantLoadError,
        SampleError,
        SourceChangedError,
        SyntheticDataWarning,
        TransportError,
        UnhashableKeyError,
        UnsafeDataError,
        UnsupportedError,
        WorkerDiedError,
        WorkerError,
        WriteError,
    )
    from lazystore.formats.encryption import FernetEncryption, RSAEncryption
    from lazystore.formats.registry import register_format
    from lazystore.formats.writer import DatasetWriter
    from lazystore.hub.multimodal import MultimodalDataset
    from lazystore.hub.registry import register_dataset
    from lazystore.hub.wrapper import StreamingDatasetWrapper
    from lazystore.lazy.decorators import chunked_load, lazy_load, paginated, streaming_load
    from lazystore.lazy.keysets import keyset
    from lazystore.lazy.page import Page
    from lazystore.lazy.source import Source
    from lazystore.lazy.store import LazyStore
    from lazystore.lazy.strategy import DataSize, LoadingStrategy
    from lazystore.parallel.async_mapper import aimap
    from lazystore.parallel.failures import Failure
    from lazystore.parallel.mapper import imap, imap_unordered
    from lazystore.parallel.plans.plan import StreamingOptimizationResult, optimize_streaming
    from lazystore.parallel.writing.complete import complete_dataset
    from lazystore.parallel.writing.merge import merge_datasets
    from lazystore.parallel.writing.write import write_dataset
    from lazystore.streaming.combine import (
        CombinedStreamingDataset,
        ConcatStreamingDataset,
        ParallelStreamingDataset,
    )
    from lazystore.streaming.dataset import StreamingDataset, train_test_split
    from lazystore.streaming.item_loader import BaseItemLoader, InMemoryItemLoader, TokensLoader

_HOMES = {
    "_core.frames": ("Lease",),
    "adapters.torch": ("StreamingDataLoader",),
    "cache.disk": ("DiskTier",),
    "config": ("EvictionPolicy", "StreamingConfig"),
    "errors": (
        "ArenaFullError",
        "BudgetTooSmallError",
        "ChecksumError",
        "ClosedError",
        "ConfigError",
        "CursorError",
        "CursorExpiredError",
        "CursorMismatchError",
        "CursorTamperedError",
        "DatasetNotFoundError",
        "DecryptionError",
        "DiskTierError",
        "FetchError",
        "FetchTimeoutError",
        "FormatError",
        "HubAccessError",
        "HubAccessError",
        "ItemIndexError",
        "ItemTimeoutError",
        "KeyNotFoundError",
        "LazyStoreError",
        "LoadCancelledError",
        "LoadError",
        "LoadTimeoutError",
        "MissingExtraError",
        "ReentrantLoadError",
        "SampleError",
        "SampleError",
        "SourceChangedError",
        "SyntheticDataWarning",
        "SyntheticDataWarning",
        "TransportError",
        "UnhashableKeyError",
        "UnsafeDataError",
        "UnsupportedError",
        "WorkerDiedError",
        "WorkerError",
        "WriteError",
    ),
    "formats.encryption": ("FernetEncryption", "RSAEncryption"),
    "formats.registry": ("register_format",),
    "formats.writer": ("DatasetWriter",),
    "hub.multimodal": ("MultimodalDataset",),
    "hub.registry": ("register_dataset",),
    "hub.wrapper": ("StreamingDatasetWrapper",),
    "lazy.decorators": ("chunked_load", "lazy_load", "paginated", "streaming_load"),
    "lazy.page": ("Page",),
    "lazy.source": ("Source",),
    "lazy.store": ("LazyStore",),
    "lazy.strategy": ("DataSize", "LoadingStrategy"),
    "lazy.keysets": ("keyset",),
    "parallel.async_mapper": ("aimap",),
    "parallel.failures": ("Failure",),
    "parallel.mapper": ("imap", "imap_unordered"),
    "parallel.plans.plan": ("StreamingOptimizationResult", "optimize_streaming"),
    "parallel.writing.complete": ("complete_dataset",),
    "parallel.writing.merge": ("merge_datasets",),
    "parallel.writing.write": ("write_dataset",),
    "streaming.combine": ("CombinedStreamingDataset", "ConcatStreamingDataset", "ParallelStreamingDataset"),
    "streaming.dataset": ("StreamingDataset", "train_test_split"),
    "streaming.item_loader": ("BaseItemLoader", "InMemoryItemLoader", "TokensLoader"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "ArenaFullError",
    "BaseItemLoader",
    "BudgetTooSmallError",
    "ChecksumError",
    "ClosedError",
    "CombinedStreamingDataset",
    "ConcatStreamingDataset",
    "ConfigError",
    "CursorError",
    "CursorExpiredError",
    "CursorMismatchError",
    "CursorTamperedError",
    "DataSize",
    "DatasetNotFoundError",
    "DatasetWriter",
    "DecryptionError",
    "DiskTier",
    "DiskTierError",
    "EvictionPolicy",
    "Failure",
    "FernetEncryption",
    "FetchError",
    "FetchTimeoutError",
    "FormatError",
    "HubAccessError",
    "InMemoryItemLoader",
    "ItemIndexError",
    "ItemTimeoutError",
    "KeyNotFoundError",
    "LazyStore",
    "LazyStoreError",
    "Lease",
    "LoadCancelledError",
    "LoadError",
    "LoadTimeoutError",
    "LoadingStrategy",
    "MissingExtraError",
    "MultimodalDataset",
    "Page",
    "ParallelStreamingDataset",
    "RSAEncryption",
    "ReentrantLoadError",
    "SampleError",
    "Source",
    "SourceChangedError",
    "StreamingConfig",
    "StreamingDataLoader",
    "StreamingDataset",
    "StreamingDatasetWrapper",
    "StreamingOptimizationResult",
    "SyntheticDataWarning",
    "TokensLoader",
    "TransportError",
    "UnhashableKeyError",
    "UnsafeDataError",
    "UnsupportedError",
    "WorkerDiedError",
    "WorkerError",
    "WriteError",
    "aimap",
    "chunked_load",
    "complete_dataset",
    "imap",
    "imap_unordered",
    "keyset",
    "lazy_load",
    "merge_datasets",
    "optimize_streaming",
    "paginated",
    "register_dataset",
    "register_format",
    "streaming_load",
    "train_test_split",
    "write_dataset",
]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'lazystore' has no attribute {name!r}")
    try:
        module = importlib.import_module(f"lazystore.{_HOME_OF[name]}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("lazystore._core."):
            raise ImportError(
                f"lazystore's compiled core is missing ({error.name}); install the package with "
                "`pip install .`, or build it in place with `python setup.py build_ext --inplace`"
            ) from error
        raise
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
