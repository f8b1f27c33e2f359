"""`DeprecatedLoading`: methods of `MultimodalDataset` from when datasets were downloaded first. They do nothing."""

from __future__ import annotations

import logging
import warnings
from typing import Any

__all__ = ["DeprecatedLoading"]

_log = logging.getLogger(__name__)


class DeprecatedLoading:
    """Mixin with the old methods: each warns, also in the log, and returns what says "nothing was loaded"."""

    __slots__ = ()

    def _load_data(self, *arguments: Any, **options: Any) -> list[Any]:
        """Deprecated: samples are streamed. An empty list."""
        _deprecated("_load_data", "iterate over the dataset, or take samples by number")
        return []

    def _ensure_local_dataset(self, *arguments: Any, **options: Any) -> None:
        """Deprecated: nothing is downloaded. None."""
        _deprecated("_ensure_local_dataset", "nothing is downloaded; use_streaming=False has datasets do it")

    def _load_single_dataset(self, *arguments: Any, **options: Any) -> list[Any]:
        """Deprecated: datasets are streamed. An empty list."""
        _deprecated("_load_single_dataset", "name the dataset with dataset_name=")
        return []


def _deprecated(name: str, instead: str) -> None:
    message = f"MultimodalDataset.{name}() is deprecated and does nothing: {instead}"
    _log.warning(message)
    warnings.warn(message, DeprecationWarning, stacklevel=3)
