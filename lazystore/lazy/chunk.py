"""`DataChunk`: a piece of something larger, and where it was.

Values only. Where the cuts are is the chunker's business (``chunker``).
"""

from __future__ import annotations

import hashlib
import marshal
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["DataChunk", "content_id", "size_of"]


#: Levels of objects in objects that are looked through.
MAX_LEVELS = 1000
_PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes, type(...)})
_CONTAINERS = frozenset({list, tuple, set, frozenset})


@dataclass(frozen=True, slots=True)
class DataChunk:
    """A piece of something larger.

    Attributes:
        data: the piece: a read-only memoryview of bytes, a str of text, a list of objects.
        index: its number, from 0 on.
        size: bytes of bytes, UTF-8 bytes of text, items of objects.
        offset: where it begins, in the same unit; None where that was not kept.
        metadata: what else is known of it.

    Immutable, as far as what it holds is. Pickles (a memoryview as bytes).
    """

    data: Any = field(repr=False)
    index: int
    size: int
    offset: int | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict, compare=False)
    _id: str = field(default="", init=False, repr=False, compare=False)

    @property
    def id(self) -> str:
        """A name that the content alone decides (:func:`content_id`), computed when it is first asked for."""
        if not self._id:
            object.__setattr__(self, "_id", content_id(self.data))
        return self._id

    def __len__(self) -> int:
        return self.size

    def __reduce__(self) -> tuple[Any, ...]:
        data = bytes(self.data) if isinstance(self.data, memoryview) else self.data
        return DataChunk, (data, self.index, self.size, self.offset, dict(self.metadata))


def content_id(data: Any) -> str:
    """32 hexadecimal digits that are equal for equal content: BLAKE2b (RFC 7693) of 128 bits.

    Of bytes: of the bytes; of text: of its UTF-8; so text and its bytes have one id. Of objects: of their marshalled
    form (version 2, the last without references between objects) where they are None, numbers, text, bytes, and lists,
    tuples, dicts (in their order) and sets of such; else of their pickled form, which may differ for equal objects.

    Raises: what pickling raises, for objects that refuse it. Cost: about a nanosecond a byte, and a copy of objects.
    """
    if isinstance(data, str):
        packed: Any = data.encode("utf-8", "surrogatepass")
    elif isinstance(data, (bytes, bytearray, memoryview)):
        packed = data
    else:
        packed = marshal.dumps(data, 2) if _is_plain(data) else pickle.dumps(data, protocol=5)
    return hashlib.blake2b(packed, digest_size=16).hexdigest()


def _is_plain(data: Any) -> bool:
    """Whether marshalling tells it from everything else: of arrays it would take the bytes alone, without their type.

    Nested deeper than marshal takes it is not."""
    level = [data]
    for _ in range(MAX_LEVELS):
        found: list[Any] = []
        for one in level:
            kind = type(one)
            if kind is dict:
                found += one.keys()
                found += one.values()
            elif kind in _CONTAINERS:
                found += one
            elif kind not in _PLAIN:
                return False
        if not found:
            return True
        level = found
    return False


def size_of(data: Any) -> int:
    """Bytes of bytes, UTF-8 bytes of text, items of a list or tuple, 1 of any other object."""
    if isinstance(data, str):
        return len(data) if data.isascii() else len(data.encode("utf-8", "surrogatepass"))
    if isinstance(data, memoryview):
        return data.nbytes
    return len(data) if isinstance(data, (bytes, bytearray, list, tuple)) else 1
