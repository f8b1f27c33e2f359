"""Key sidecars: from a key that a dataset's writer gave an item to the item's number.

``keys/shard-%05d.parquet`` (the index says how many), or ``keys.parquet`` of older datasets: columns ``key`` (text or
int64) and ``index``, sorted by key, in one or more row groups. A lookup reads the footer of one shard and the row
groups whose keys may include it. Needs the ``arrow`` extra.
"""

from __future__ import annotations

import hashlib
import io
import operator
import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lazystore.errors import (
    BudgetTooSmallError,
    ConfigError,
    DatasetNotFoundError,
    FormatError,
    KeyNotFoundError,
    LazyStoreError,
    UnsupportedError,
)
from lazystore.fetch.source import Read

if TYPE_CHECKING:
    from lazystore.fetch.source import Source

__all__ = ["KeyIndex", "shard_of"]

SHARD, LEGACY = "keys/shard-{:05d}.parquet", "keys.parquet"
MAX_SHARDS = 100_000
#: Shares of the budget: for the keys of one row group while it is searched, and for keys that are kept.
GROUP_SHARE, KEPT_SHARE = 8, 16
#: Open shards: their footers are small, but each holds a reader of pyarrow's.
MAX_OPEN = 8


def shard_of(key: str | int, shards: int) -> int:
    """The shard a key is in, where they are divided by hash."""
    digest = hashlib.blake2b(str(key).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % shards


class KeyIndex:
    """Finds items by their keys; reads nothing before it is asked.

    Parameters:
        keys: ``keys`` of the dataset's index as stored, or None.
        total: items of the dataset.
        place: its URL, for messages.
        budget: bytes the dataset may use.

    Memory: 1/16 of the budget for keys that are kept (the row groups used last), and during a lookup at most 1/8 for
    one row group; ``reserved`` is both.
    Cost: for a key whose row group is kept some 20 us; else 2 requests, and 2 more for a shard's first.
    Threads: any may call, one looks up at a time. Fork: :meth:`reset_after_fork`. Pickling: refused; made anew.
    """

    def __init__(self, keys: Any, total: int, *, place: str, budget: int) -> None:
        self._keys, self._total, self._place = keys, total, place
        self._group_room, self._kept_room = budget // GROUP_SHARE, budget // KEPT_SHARE
        self.reserved = self._group_room + self._kept_room
        self._groups: OrderedDict[tuple[str, int], _Group] = OrderedDict()
        self._shards: OrderedDict[str, _Shard] = OrderedDict()
        self._lock = threading.Lock()
        self._only = ""  # the one file of a dataset whose index tells of no keys

    def __call__(self, key: Any, source: Source, timeout: float) -> int:
        """The number of the item with this key.

        Parameters:
            key: a str or an int, as it was written.
            source: the dataset's directory.
            timeout: seconds each read may take.

        Raises:
            KeyNotFoundError: no item has it.
            ConfigError: the key is neither a str nor an int.
            DatasetNotFoundError: the dataset has no key sidecar.
            FormatError: the sidecar is damaged, or names items that do not exist.
            MissingExtraError: pyarrow is not installed.
        """
        plain = _plain(key)
        with self._lock:
            name, shard = self._shard(plain, source, timeout)
            number = self._find(name, shard, plain)
        if number is None:
            raise KeyNotFoundError(f"{self._place} has no item with the key {key!r}")
        if not 0 <= number < self._total:
            raise FormatError(f"{self._place}/{name} gives key {key!r} the item {number}; there are {self._total}")
        return number

    def reset_after_fork(self) -> None:
        """In the child: a thread that was looking something up has stayed with the parent, halfway."""
        self._lock = threading.Lock()
        self._groups.clear()
        self._shards.clear()

    def _shard(self, key: str | int, source: Source, timeout: float) -> tuple[str, _Shard]:
        """The shard that has the key, if any has."""
        names = (
            [self._name(key)] if self._keys is not None else [self._only] if self._only else [SHARD.format(0), LEGACY]
        )
        for name in names:
            shard = self._shards.get(name)
            if shard is None:
                try:
                    shard = _Shard(source, name, f"{self._place}/{name}", timeout)
                except DatasetNotFoundError:
                    continue
                self._shards[name] = shard
                if len(self._shards) > MAX_OPEN:
                    self._shards.popitem(last=False)
            if self._keys is None:
                self._only = name
            self._shards.move_to_end(name)
            shard.file.source, shard.file.timeout = source, timeout
            return name, shard
        raise DatasetNotFoundError(f"{self._place} has no {' and no '.join(names)}: it was written without key_fn")

    def _name(self, key: str | int) -> str:
        keys = self._keys
        shards = keys.get("num_shards") if isinstance(keys, dict) else None
        if not isinstance(shards, int) or isinstance(shards, bool) or not 1 <= shards <= MAX_SHARDS:
            raise FormatError(f'{self._place} has "keys": {keys!r} in its index, which names no number of shards')
        sharding = keys.get("sharding", "hash")
        if keys.get("version", 1) != 1 or sharding not in ("hash", "none") or (sharding == "none" and shards > 1):
            raise UnsupportedError(f'{self._place} has "keys": {keys!r} in its index; version 1, by hash, is read')
        return SHARD.format(shard_of(key, shards) if shards > 1 else 0)

    def _find(self, name: str, shard: _Shard, key: str | int) -> int | None:
        for number in shard.groups_with(key):
            group = self._groups.get((name, number))
            if group is None:
                group = shard.group(number, self._group_room)
                self._groups[name, number] = group
                while len(self._groups) > 1 and sum(kept.nbytes for kept in self._groups.values()) > self._kept_room:
                    self._groups.popitem(last=False)
            self._groups.move_to_end((name, number))
            with _placed(f"{self._place}/{name}"):
                found = group.find(key)
            if group.nbytes > self._kept_room:
                del self._groups[name, number]
            if found is not None:
                return found
        return None

    def __reduce__(self) -> Any:
        raise TypeError("a KeyIndex cannot be pickled; it is made anew from the index")


def _plain(key: Any) -> str | int:
    if isinstance(key, str):
        return str(key)
    if not isinstance(key, bool) and hasattr(key, "__index__"):
        return operator.index(key)
    raise ConfigError(f"key {key!r} is neither a str nor an int")


class _Group:
    """The keys of one row group, sorted, and their items."""

    def __init__(self, table: Any) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        keys, items = (table.column(name).combine_chunks() for name in ("key", "index"))
        if keys.null_count or items.null_count:
            raise FormatError("it has rows without a key or an item")
        if len(keys) > 1 and not pc.all(pc.less_equal(keys.slice(0, len(keys) - 1), keys.slice(1))).as_py():
            order = pc.sort_indices(keys)
            keys, items = keys.take(order), items.take(order)
        self._keys, self._items = keys, items
        self._is_text = not pa.types.is_integer(keys.type)
        self.nbytes = int(keys.nbytes + items.nbytes)

    def find(self, key: str | int) -> int | None:
        """The key's item; None if it is not here."""
        if isinstance(key, str) is not self._is_text:
            return None
        low, high = 0, len(self._keys)
        while low < high:
            middle = (low + high) // 2
            if self._keys[middle].as_py() < key:
                low = middle + 1
            else:
                high = middle
        if low == len(self._keys) or self._keys[low].as_py() != key:
            return None
        return int(self._items[low].as_py())


class _Shard:
    """One Parquet file: its footer in memory, its row groups on demand.

    Raises:
        DatasetNotFoundError: it does not exist.
        FormatError: it is damaged, or has not the columns of keys.
    """

    def __init__(self, source: Source, name: str, place: str, timeout: float) -> None:
        from lazystore.formats.arrow_rows import require_pyarrow

        pa = require_pyarrow()
        import pyarrow.parquet as pq

        self.file = _RangedFile(source, name, timeout)
        self._place = place
        with _placed(place):
            self._parquet = pq.ParquetFile(self.file, pre_buffer=False)
            schema = self._parquet.schema_arrow
            types = {name: schema.field(name).type for name in ("key", "index") if name in schema.names}
            self._column = self._parquet.schema.names.index("key") if "key" in types else -1
        if len(types) < 2 or not pa.types.is_integer(types["index"]):
            raise FormatError(f"{place} has no columns key and index (integers)")
        self._is_text = pa.types.is_string(types["key"]) or pa.types.is_large_string(types["key"])
        if not self._is_text and not pa.types.is_integer(types["key"]):
            raise FormatError(f"{place} has keys of type {types['key']}, which are neither text nor integers")

    def groups_with(self, key: Any) -> Iterator[int]:
        """Row groups whose keys may include this one."""
        if isinstance(key, str) is not self._is_text:
            return
        low: Any
        high: Any
        for number in range(self._parquet.num_row_groups):
            with _placed(self._place):
                bounds = self._parquet.metadata.row_group(number).column(self._column).statistics
                known = bounds is not None and bounds.has_min_max
                low, high = (bounds.min, bounds.max) if known else (key, key)
            if type(low) is not type(key) or low <= key <= high:
                yield number

    def group(self, number: int, room: int) -> _Group:
        with _placed(self._place):
            nbytes = self._parquet.metadata.row_group(number).total_byte_size
            if nbytes > room:
                raise BudgetTooSmallError(
                    f"{self._place} has {nbytes} bytes of keys in one row group, {room} are allowed; "
                    f"give memory={GROUP_SHARE * nbytes} bytes or more"
                )
            return _Group(self._parquet.read_row_group(number, columns=["key", "index"], use_threads=False))


class _placed:
    """Turns what pyarrow raises for damaged files into a FormatError that names the file."""

    def __init__(self, place: str) -> None:
        self._place = place

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, LazyStoreError) and not isinstance(error, FormatError):
            return
        if isinstance(error, (ValueError, OSError, KeyError, NotImplementedError, TypeError, MemoryError)):
            raise FormatError(f"{self._place} is damaged: {error}") from error


class _RangedFile(io.RawIOBase):
    """An object of a source as a file that pyarrow reads ranges of."""

    def __init__(self, source: Source, name: str, timeout: float) -> None:
        self.source, self.timeout = source, timeout
        self._name = name
        self._size = source.run([], stat=[name], timeout=timeout)[name]
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def read(self, n: int = -1, /) -> bytes:
        left = max(0, self._size - self._at)
        data = bytearray(left if n is None or n < 0 else min(n, left))
        if data:
            self.source.run([Read(self._name, self._at, memoryview(data))], timeout=self.timeout)
            self._at += len(data)
        return bytes(data)
