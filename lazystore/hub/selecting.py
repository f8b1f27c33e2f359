"""`MultimodalDataset`'s arguments, dataset by dataset: where each is read, which columns, and how often it comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lazystore.errors import ConfigError
from lazystore.hub.interleave import shares
from lazystore.hub.near import near
from lazystore.hub.registry import DatasetSpec
from lazystore.hub.samples import check_spec

__all__ = ["sources_of", "weights_of"]


def sources_of(
    specs: Sequence[DatasetSpec], split: Any, columns: Any, hub: Mapping[str, Any]
) -> list[tuple[Any, dict[str, Any]]]:
    """What wrappers read of these datasets, and with which options.

    Parameters:
        columns: those to read, of all or by dataset; None: all there are.
        hub: further options that are for hub names only.

    Raises:
        ConfigError: a source by split has not this one; columns that are no names, or leave out what is needed; a
            dataset that is not here; a spec that cannot work.
    """
    for spec in specs:
        check_spec(spec)
    chosen = _columns_of(columns, specs)
    return [_source(spec, split, {**hub, "columns": own}) for spec, own in zip(specs, chosen, strict=True)]


def _source(spec: DatasetSpec, split: Any, hub: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    if not isinstance(split, str) or not split:
        raise ConfigError(f"split={split!r} must be a split's name, such as 'train'")
    there = spec.splits.get(split, split)
    if isinstance(spec.path, str):
        return spec.path, {**hub, "config": spec.config, "split": there, "revision": spec.revision}
    if isinstance(spec.path, Mapping):
        if there not in spec.path:
            known = [str(name) for name in spec.path]
            raise ConfigError(f"dataset {spec.name!r} has no split {there!r}{near(there, known)}: {', '.join(known)}")
        return spec.path[there], {}
    return spec.path, {}


def _columns_of(columns: Any, specs: Sequence[DatasetSpec]) -> list[list[str] | None]:
    if columns is None:
        return [None] * len(specs)
    by_name = columns if isinstance(columns, Mapping) else {spec.name: columns for spec in specs}
    _known("columns", by_name, specs)
    return [_chosen(by_name[spec.name], spec) if spec.name in by_name else None for spec in specs]


def _chosen(columns: Any, spec: DatasetSpec) -> list[str]:
    names = [columns] if isinstance(columns, str) or not isinstance(columns, Sequence) else list(columns)
    if isinstance(columns, str) or not names or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(f"columns={columns!r} must be names of columns, at least one")
    if not isinstance(spec.path, str):
        raise ConfigError(
            f"columns= is for datasets of the hub; choose those of {spec.name!r} where its source is made"
        )
    for role, column in spec.columns.items():
        if not set(names) & ({column} if isinstance(column, str) else set(column)):
            raise ConfigError(
                f"columns={names} leave out {column!r}, which dataset {spec.name!r} needs for {role!r}; add it, or"
                " register the dataset without it"
            )
    return names


def weights_of(weights: Any, specs: Sequence[DatasetSpec]) -> list[float] | None:
    """A weight a dataset; None: by their lengths.

    Raises:
        ConfigError: too few or too many, a dataset that is not here, or no numbers above zero.
    """
    if weights is None:
        return None
    if isinstance(weights, Mapping):
        _known("weights", weights, specs)
        missing = [spec.name for spec in specs if spec.name not in weights]
        if missing:
            raise ConfigError(f"weights= has none for {', '.join(missing)}")
        weights = [weights[spec.name] for spec in specs]
    if isinstance(weights, str) or not hasattr(weights, "__len__"):
        raise ConfigError(f"weights={weights!r} must be one number a dataset, or a mapping of names to numbers")
    if len(weights) != len(specs):
        raise ConfigError(f"{len(weights)} weights are given for {len(specs)} datasets")
    shares(weights)
    return [float(weight) for weight in weights]


def _known(option: str, names: Mapping[str, Any], specs: Sequence[DatasetSpec]) -> None:
    known = [spec.name for spec in specs]
    for name in names:
        if name not in known:
            raise ConfigError(
                f"{option}= has {name!r}, which is none of the datasets {', '.join(known)}{near(name, known)}"
            )
