"""`TorchKind`: how our datasets tell torch that they iterate, without torch and without inheriting from it.

A ``DataLoader`` asks ``isinstance(dataset, IterableDataset)`` and nothing else: yes means that it iterates the
dataset in the dataset's own order, no that it makes indices itself. Our datasets can do both, so the answer
depends on who asks. Here: that answer. Loading, sharding and state live elsewhere.
"""

from __future__ import annotations

import sys
from abc import ABCMeta
from types import FrameType
from typing import Any

__all__ = ["TorchKind"]

#: `IterableDataset` is an ABC: its ``isinstance`` passes through this function, whose argument says that it is meant.
_ABC_CHECK = ABCMeta.__instancecheck__.__code__
#: Arguments that make a loader choose the items itself; torch's loaders and their likes share these names.
_CHOOSERS = ("sampler", "batch_sampler")


class TorchKind:
    """Mixin of datasets that iterate in an order of their own; without state, slots or a metaclass.

    ``isinstance(dataset, torch.utils.data.IterableDataset)`` is true, except when

    - a loader's constructor asks that was given ``sampler=`` or ``batch_sampler=``, or
    - somebody asks who holds a ``DataLoader`` made in that way for this very dataset
      (trainers look at a loader's dataset before they replace its sampler),

    and the dataset has items by index. Every other question is answered as for any class: ``type(dataset)``,
    ``dataset.__class__``, ``isinstance`` with other classes, pickling and copying know nothing of torch.
    Cost: a microsecond or two for each ``isinstance`` that is not settled by the dataset's own bases.
    """

    __slots__ = ()

    @property
    def __class__(self) -> type[Any]:
        asked = sys._getframe(1)
        if asked.f_code is _ABC_CHECK:
            iterable = getattr(sys.modules.get("torch.utils.data"), "IterableDataset", None)
            # None while torch itself is still being imported
            if iterable is not None and asked.f_locals["cls"] is iterable and not _by_index(self, asked.f_back):
                return iterable  # type: ignore[no-any-return]
        return type(self)

    @__class__.setter
    def __class__(self, value: type[Any]) -> None:
        object.__dict__["__class__"].__set__(self, value)


def _by_index(dataset: object, asker: FrameType | None) -> bool:
    """Whether the code that asks takes items of this dataset by index."""
    if asker is None or not hasattr(type(dataset), "__getitem__"):
        return False
    known = asker.f_locals
    if asker.f_code.co_name == "__init__" and all(name in known for name in _CHOOSERS):
        return any(known[name] is not None for name in _CHOOSERS)
    if known is asker.f_globals:  # a script's own variables: they tell nothing of who asks
        return False
    torch_data = sys.modules["torch.utils.data"]
    return any(
        issubclass(type(value), torch_data.DataLoader)
        and getattr(value, "dataset", None) is dataset
        and getattr(value, "_dataset_kind", None) == torch_data._DatasetKind.Map
        for value in known.values()
    )
