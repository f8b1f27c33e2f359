"""Copies of samples for those who get them, so that nobody changes what a cache or another reader holds.

How much copying a sample needs is found out once for a whole batch. What is cached is ``batches``' business.
"""

from __future__ import annotations

import copy
import datetime
import decimal
import enum
import fractions
import pathlib
import sys
import types
import uuid
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

__all__ = ["DEEP", "FLAT", "SHARED", "copied", "depth_of", "fresh"]

#: What handing out a sample takes: nothing; ``dict.copy``; new containers and arrays all the way down.
SHARED, FLAT, DEEP = 0, 1, 2

_ATOMS: set[type] = {
    str, bytes, int, float, bool, complex, type(None), type(Ellipsis), range, type, types.FunctionType,
    types.BuiltinFunctionType, datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone,
    decimal.Decimal, fractions.Fraction, uuid.UUID,
}  # fmt: skip


def _is_atom(kind: type) -> bool:
    """Whether objects of this type never change."""
    if kind in _ATOMS:
        return True
    numpy = sys.modules.get("numpy")
    return issubclass(kind, (enum.Enum, pathlib.PurePath)) or (
        numpy is not None and issubclass(kind, numpy.generic) and not issubclass(kind, numpy.void)
    )


def _are_atoms(values: Iterable[Any]) -> bool:
    return all(map(_is_atom, set(map(type, values))))


def depth_of(samples: list[Any]) -> int:
    """How deep samples have to be copied: :data:`SHARED`, :data:`FLAT` or :data:`DEEP`. Cost: 30 ns a value."""
    kinds = set(map(type, samples))
    if kinds == {dict}:
        return FLAT if _are_atoms(chain.from_iterable(map(dict.values, samples))) else DEEP
    if kinds == {tuple}:
        return SHARED if _are_atoms(chain.from_iterable(samples)) else DEEP
    return SHARED if all(map(_is_atom, kinds)) else DEEP


def copied(samples: Iterator[Any], depth: int) -> Iterator[Any]:
    """The samples as copies, made when they are taken; in C where they are flat."""
    if depth == SHARED:
        return samples
    return map(dict.copy if depth == FLAT else fresh, samples)


def fresh(value: Any) -> Any:
    """A copy that shares nothing that can be changed: containers rebuilt, arrays, tensors and images copied.

    Objects of other classes are copied as :func:`copy.deepcopy` does it; one that cannot be (it holds a lock, a file,
    a decoder) is handed on itself.
    """
    kind = type(value)
    if kind in _ATOMS:
        return value
    if kind is dict:
        return {key: each if type(each) in _ATOMS else fresh(each) for key, each in value.items()}
    if kind is list:
        return [each if type(each) in _ATOMS else fresh(each) for each in value]
    if kind is tuple:
        return value if _are_atoms(value) else tuple([fresh(each) for each in value])
    if _is_atom(kind):
        return value
    return _copier(kind)(value)


def _copier(kind: type) -> Callable[[Any], Any]:
    numpy, torch, images = (sys.modules.get(name) for name in ("numpy", "torch", "PIL.Image"))
    if numpy is not None and kind is numpy.ndarray:
        return _array
    if torch is not None and issubclass(kind, torch.Tensor):
        return _tensor
    if images is not None and issubclass(kind, images.Image):
        return _image
    if kind in (set, bytearray):
        return kind.copy
    return _deep


def _array(value: Any) -> Any:
    return copy.deepcopy(value) if value.dtype.hasobject else value.copy(order="K")


def _tensor(value: Any) -> Any:
    return value.detach().clone().requires_grad_(value.requires_grad)


def _image(value: Any) -> Any:
    found = value.copy()
    found.format = value.format  # which Image.copy forgets
    return found


def _deep(value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except Exception:  # noqa: BLE001 - whatever its own code raises: it cannot be copied
        return value
