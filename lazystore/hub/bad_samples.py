"""Samples whose processing fails: the error that says which one it was, and what can be had of it all the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from lazystore.errors import LazyStoreError, SampleError
from lazystore.hub.registry import MODALITIES, DatasetSpec
from lazystore.hub.samples import SYNTHETIC, Fields, process

__all__ = ["POLICIES", "partial_sample", "sample_error"]

POLICIES = ("raise", "skip", "yield")


def sample_error(error: Exception, spec: DatasetSpec, number: int) -> SampleError:
    """The error as a SampleError that names dataset and sample; one that is so already is itself."""
    if isinstance(error, SampleError) and error.dataset:
        return error
    reason = str(error) if isinstance(error, SampleError) else f"{type(error).__name__}: {error}"
    wrapped = SampleError(f"dataset {spec.name!r}, sample {number}: {reason}", spec.name, number)
    wrapped.__cause__ = error
    return wrapped


def partial_sample(spec: DatasetSpec, row: Any, number: int, error: SampleError, config: Any) -> dict[str, Any]:
    """What can be had of a sample that failed, with ``"error"``: why it did.

    All but the tokens if it was the tokenizer; else those of text, image, audio and label that are columns of their
    own and can be read by themselves.
    """
    kept: dict[str, Any] = {"task": spec.task, "dataset": spec.name}
    try:
        kept |= process(spec, row, number, None, config)
    except SampleError:
        if isinstance(row, Mapping):
            for role in MODALITIES:
                kept |= _alone(spec, role, row, number, config)
            kept |= _label(spec, row)
    kept["modalities"] = tuple(name for name in MODALITIES if name in kept)
    if isinstance(row, Mapping) and row.get(SYNTHETIC) is True:
        kept["synthetic"] = True
    return kept | {"error": str(error)}


# What fails here is left out: the sample carries the error of its whole.


def _alone(spec: DatasetSpec, role: str, row: Mapping[str, Any], number: int, config: Any) -> dict[str, Any]:
    if role not in spec.columns:
        return {}
    alone = dataclasses.replace(spec, columns={role: spec.columns[role]}, processor="multimodal")
    try:
        return process(alone, row, number, None, config)
    except SampleError:
        return {}


def _label(spec: DatasetSpec, row: Mapping[str, Any]) -> dict[str, Any]:
    try:
        label = Fields(spec, row).label()
    except LazyStoreError:
        return {}
    return {} if label is None else {"labels": label}
