"""The configuration names under the module path LitData's in-memory loader uses."""

from lazystore.config import EvictionPolicy, StreamingConfig

__all__ = ["EvictionPolicy", "StreamingConfig"]
