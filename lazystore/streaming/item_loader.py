"""Item loaders: how a dataset's bytes become items, and how much memory they may use.

The names are LitData's. A loader here is a value: it holds settings and, once a dataset uses
it, looks at that dataset's memory; the work is done below.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from lazystore.config import StreamingConfig
from lazystore.errors import ConfigError

if TYPE_CHECKING:
    from lazystore.streaming.dataset import StreamingDataset

__all__ = ["BaseItemLoader", "InMemoryItemLoader", "TokensLoader"]


#: A chunk is shorter than 4 GiB: no block of it can have more tokens.
MAX_BLOCK = 1 << 32


class BaseItemLoader:
    """Settings every loader has.

    Parameters:
        streaming_config: memory budget, eviction and timeout; None leaves them to the dataset's arguments.

    One loader describes one dataset at a time. Pickling: its settings. Threads, fork: immutable.
    """

    #: Tokens an item, 0 when items are what the writer stored.
    block_size = 0

    def __init__(self, streaming_config: StreamingConfig | None = None) -> None:
        if streaming_config is not None and not isinstance(streaming_config, StreamingConfig):
            raise ConfigError(f"streaming_config={streaming_config!r} is not a StreamingConfig")
        self.streaming_config = streaming_config
        self._dataset: weakref.ref[StreamingDataset] | None = None

    def attach(self, dataset: StreamingDataset) -> None:
        """Remember the dataset whose memory :meth:`get_memory_stats` shows. Called by the dataset."""
        self._dataset = weakref.ref(dataset)

    def get_memory_stats(self) -> dict[str, Any]:
        """The memory statistics of the dataset that uses this loader; see ``StreamingDataset.get_memory_stats``.

        Raises:
            ConfigError: no living dataset uses it.
        """
        dataset = self._dataset() if self._dataset is not None else None
        if dataset is None:
            raise ConfigError("no dataset uses this loader yet; pass it as StreamingDataset(..., item_loader=loader)")
        return dataset.get_memory_stats()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_dataset": None}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.streaming_config!r})"


class InMemoryItemLoader(BaseItemLoader):
    """Items served from memory, loaded progressively, inside ``streaming_config.max_memory_size`` bytes.

    Parameters:
        streaming_config: budget, eviction policy and timeout; 100 MiB, LRU and 30 s when not given.
    """

    def __init__(self, streaming_config: StreamingConfig | None = None) -> None:
        super().__init__(StreamingConfig() if streaming_config is None else streaming_config)


class TokensLoader(BaseItemLoader):
    """Token datasets as blocks of a fixed number of tokens.

    Parameters:
        block_size: tokens an item. The documents of one chunk are joined, the rest of a chunk that fills no
            block is left out (LitData's rule).
        streaming_config: as in the base class.
    """

    def __init__(self, block_size: int, streaming_config: StreamingConfig | None = None) -> None:
        super().__init__(streaming_config)
        if isinstance(block_size, bool) or not isinstance(block_size, int) or not 0 < block_size <= MAX_BLOCK:
            raise ConfigError(f"block_size={block_size!r} must be a number of tokens in 1..{MAX_BLOCK}")
        self.block_size = block_size

    def __repr__(self) -> str:
        return f"TokensLoader(block_size={self.block_size})"
