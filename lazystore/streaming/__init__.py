"""Datasets as items: iteration, random access, batches, inside one memory budget."""

from lazystore.config import EvictionPolicy, StreamingConfig
from lazystore.streaming.dataset import StreamingDataset
from lazystore.streaming.item_loader import BaseItemLoader, InMemoryItemLoader, TokensLoader

__all__ = [
    "BaseItemLoader",
    "EvictionPolicy",
    "InMemoryItemLoader",
    "StreamingConfig",
    "StreamingDataset",
    "TokensLoader",
]
