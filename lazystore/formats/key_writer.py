"""Keys of items: collected while a dataset is written, and the sidecar files they end up in.

LitData's layout: ``keys/shard-%05d.parquet`` with the columns key (int64 or text), index, chunk_index and
chunk_offset, sorted by key, and ``"keys"`` in ``index.json``. We write one shard. Looking keys up is ``keys``'s.
"""

from __future__ import annotations

import io
import operator
from collections.abc import Iterable, Sequence
from typing import Any

from lazystore.errors import FormatError, MissingExtraError

__all__ = ["KEYS_ENTRY", "KEYS_FILE", "KeyTable"]

KEYS_FILE = "keys/shard-00000.parquet"
#: What ``index.json`` says of one shard.
KEYS_ENTRY = {"version": 1, "num_shards": 1, "sharding": "none"}
_ROWS = 1_000_000
#: Seconds; what is read is in memory.
READ_TIMEOUT = 60.0


class KeyTable:
    """The keys of consecutive items, in order, all of one kind and each there once.

    Parameters:
        first: number of the first item, for messages.

    Raises:
        MissingExtraError: without the ``arrow`` extra.

    Memory: all keys, about 100 bytes an int and 130 a short str. Threads: one at a time. Pickling: by value.
    """

    def __init__(self, first: int = 0) -> None:
        _pyarrow()
        self._first = first
        #: key -> None, in item order: dicts keep it
        self._keys: dict[int | str, None] = {}
        self._kind: type = object

    def __len__(self) -> int:
        return len(self._keys)

    def check(self, key: object) -> int | str:
        """The key of the next item as :meth:`add` takes it.

        Raises:
            FormatError: neither an int of 64 bits nor a str, of another kind than the first, or there already.
        """
        number = self._first + len(self._keys)
        plain: int | str
        if isinstance(key, str):
            plain = str(key)
        elif not isinstance(key, bool) and hasattr(key, "__index__"):
            plain = operator.index(key)
            if not -(1 << 63) <= plain < 1 << 63:
                raise FormatError(f"sample {number} has the key {plain}, which needs more than 64 bits; use a str")
        else:
            raise FormatError(f"sample {number} has the key {key!r}; keys are int or str")
        if self._keys and type(plain) is not self._kind:
            raise FormatError(
                f"sample {number} has the key {plain!r}; the first key is a {self._kind.__name__}, and all must be"
            )
        if plain in self._keys:
            raise FormatError(f"sample {number} has the key {plain!r}, which an earlier sample has as well")
        return plain

    def add(self, key: int | str) -> None:
        """Append the key of the next item, as :meth:`check` gave it."""
        self._kind = type(key)
        self._keys[key] = None

    def extend(self, other: KeyTable) -> None:
        """Append the keys of the items after these.

        Raises:
            FormatError: as in :meth:`check`.
        """
        for key in other._keys:
            self.add(self.check(key))

    @classmethod
    def read(cls, files: Iterable[bytes], *, count: int, place: str) -> KeyTable:
        """The keys of an existing dataset.

        Parameters:
            files: its sidecar files.
            count: items it has.

        Raises:
            FormatError: not such files, or not one key an item.
        """
        from lazystore.fetch.local import LocalSource
        from lazystore.fetch.segments import SegmentedSource
        from lazystore.formats.keys import read_keys

        table = cls()
        pairs: list[tuple[int, int | str]] = []
        for number, data in enumerate(files):
            name = f"key sidecar {number}"
            source = SegmentedSource(LocalSource("."), {name: [data]})  # of which nothing but the sidecar is asked
            for key, index in read_keys(source, name, place=place, timeout=READ_TIMEOUT):
                if len(pairs) == count:
                    raise FormatError(f"{place}: the key sidecar has more keys than the dataset has items ({count})")
                pairs.append((index, key))
        pairs.sort(key=operator.itemgetter(0))
        if len(pairs) < count or [index for index, _ in pairs] != list(range(len(pairs))):
            raise FormatError(f"{place}: the key sidecar does not have one key for each of {count} items")
        for _, key in pairs:
            table.add(table.check(key))
        return table

    def part_file(self) -> bytes:
        """The keys of one rank, numbered from 0: what :meth:`read` reads again."""
        return self._file([])

    def file(self, chunk_sizes: Sequence[int]) -> bytes:
        """The sidecar file.

        Parameters:
            chunk_sizes: items of each of the dataset's chunks.
        """
        return self._file(chunk_sizes)

    def _file(self, chunk_sizes: Sequence[int]) -> bytes:
        pyarrow = _pyarrow()
        import numpy
        import pyarrow.parquet as parquet

        kind = pyarrow.int64() if self._kind is int else pyarrow.string()
        index = numpy.arange(len(self._keys), dtype=numpy.int64)
        columns = {"key": pyarrow.array(list(self._keys), type=kind), "index": pyarrow.array(index)}
        if len(chunk_sizes):
            ends = numpy.cumsum(numpy.asarray(chunk_sizes, dtype=numpy.int64))
            columns["chunk_index"] = pyarrow.array(numpy.searchsorted(ends, index, side="right").astype(numpy.int32))
            # LitData's name for what is the item's number in the dataset; 32 bits is what it keeps
            columns["chunk_offset"] = pyarrow.array(index.astype(numpy.int32))
        out = io.BytesIO()
        rows = pyarrow.table(columns).sort_by("key")
        parquet.write_table(rows, out, compression="zstd", row_group_size=_ROWS)
        return out.getvalue()


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError:
        raise MissingExtraError("key_fn needs the pyarrow package: pip install lazystore[arrow]") from None
    return pyarrow
