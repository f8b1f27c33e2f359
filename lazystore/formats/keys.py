"""Key sidecars: from a key that a dataset's writer gave an item to the item's number.

``keys/shard-%05d.parquet`` (the index says how many), or ``keys.parquet`` of older datasets: columns ``key`` (text or
int64) and ``index``, sorted by key, in one or more row groups. They are read as Parquet datasets are, block by block:
what damaged files hold never reaches a reader that trusts them. Needs the ``arrow`` extra.
"""

from __future__ import annotations

import hashlib
import operator
import struct
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from lazystore.errors import (
    BudgetTooSmallError,
    ConfigError,
    DatasetNotFoundError,
    FormatError,
    KeyNotFoundError,
    LazyStoreError,
    UnsupportedError,
    with_place,
)
from lazystore.formats.driving import images_of
from lazystore.formats.format import OFFSET_WIDTH, OFFSETS_AT, Options, Place

if TYPE_CHECKING:
    from lazystore.fetch.source import Source

__all__ = ["KeyIndex", "read_keys", "shard_of"]

SHARD, LEGACY = "keys/shard-{:05d}.parquet", "keys.parquet"
MAX_SHARDS = 100_000
#: Shares of the budget: for what reading a block of keys takes, and for keys that are kept.
READ_SHARE, KEPT_SHARE = 8, 16
#: Open shards: their footers are small, but each holds one of pyarrow's.
MAX_OPEN = 8
#: Bytes that reading a whole sidecar may take besides its keys, where nobody has set a budget.
ALL_ROOM = 256 << 20
#: Share of the room for reading that an image may take; runs of Parquet's images may hold twice as much.
ROOM_SHARE = 2
INTEGERS = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
TEXTS = {"string", "large_string", "string_view"}


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

    Memory: 1/16 of the budget for keys that are kept (the blocks used last, 256 KiB each), and during a lookup at most
        1/8 for what reading blocks takes; ``reserved`` is both.
    Cost: for a key whose block is kept some 20 us, and 0.1 us more a block kept; else it reads the first block of some
        row groups (bisecting), and one row group up to where the key is. The first key that a shard has not is looked
        for in all of it, which tells whether it is sorted; where it is not, so is every key.
    Threads: any may call, one looks up at a time. Fork: :meth:`reset_after_fork`. Pickling: refused; made anew.
    """

    def __init__(self, keys: Any, total: int, *, place: str, budget: int) -> None:
        self._keys, self._total, self._place = keys, total, place
        self._read_room, self._kept_room = budget // READ_SHARE, budget // KEPT_SHARE
        self.reserved = self._read_room + self._kept_room
        self._blocks: OrderedDict[tuple[str, int], _Block] = OrderedDict()
        self._held = 0  # bytes of those
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
            BudgetTooSmallError: its row groups cannot be read in 1/8 of the budget.
            MissingExtraError: pyarrow is not installed.
        """
        plain = _plain(key)
        with self._lock:
            name, shard = self._shard(plain, source, timeout)
            number = self._find(name, shard, plain, source, timeout)
        if number is None:
            raise KeyNotFoundError(f"{self._place} has no item with the key {key!r}")
        if not 0 <= number < self._total:
            raise FormatError(f"{self._place}/{name} gives key {key!r} the item {number}; there are {self._total}")
        return number

    def reset_after_fork(self) -> None:
        """In the child: a thread that was looking something up has stayed with the parent, halfway."""
        self._lock = threading.Lock()
        self._blocks.clear()
        self._held = 0
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
                    shard = _Shard(source, name, self._place, timeout, room=self._read_room)
                except DatasetNotFoundError:
                    continue
                self._shards[name] = shard
                if len(self._shards) > MAX_OPEN:
                    self._shards.popitem(last=False)
            if self._keys is None:
                self._only = name
            self._shards.move_to_end(name)
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

    def _find(self, name: str, shard: _Shard, key: Any, source: Source, timeout: float) -> int | None:
        if isinstance(key, str) is not shard.is_text:
            return None
        if shard.sorted is not False:
            number = self._search(name, shard, key, source, timeout)
            if number is not None or shard.sorted:
                return number
        return shard.look_through(key, source, timeout)

    def _search(self, name: str, shard: _Shard, key: Any, source: Source, timeout: float) -> int | None:
        """The key's item, if the shard is sorted; None may mean that it is not."""
        low, high = 0, shard.runs[-1]
        for (owner, number), block in self._blocks.items():
            if owner == name:
                if block.last < key:
                    low = max(low, number + 1)
                elif key < block.first:
                    high = min(high, number)
                else:
                    self._blocks.move_to_end((owner, number))
                    return block.find(key)
        while low < high:
            first, last = (bisect_right(shard.runs, number) - 1 for number in (low, high - 1))
            # Blocks of one run are made one after the other: the first ones of runs are probed, and one run is walked.
            probing = first < last
            begin = shard.runs[(first + last + 1) // 2] if probing else low
            with closing(shard.blocks(begin, source, timeout)) as blocks:
                for number, block in blocks:
                    self._keep(name, number, block)
                    if block.first <= key <= block.last:
                        return block.find(key)
                    if key < block.first:
                        high = number
                        break
                    low = number + 1
                    if probing or low >= high:
                        break
        return None

    def _keep(self, name: str, number: int, block: _Block) -> None:
        if block.nbytes <= self._kept_room and (name, number) not in self._blocks:
            self._blocks[name, number] = block
            self._held += block.nbytes
            while self._held > self._kept_room:
                self._held -= self._blocks.popitem(last=False)[1].nbytes

    def __reduce__(self) -> Any:
        raise TypeError("a KeyIndex cannot be pickled; it is made anew from the index")


def _plain(key: Any) -> str | int:
    if isinstance(key, str):
        return str(key)
    if not isinstance(key, bool) and hasattr(key, "__index__"):
        return operator.index(key)
    raise ConfigError(f"key {key!r} is neither a str nor an int")


def read_keys(source: Source, name: str, *, place: str, timeout: float) -> Iterator[tuple[str | int, int]]:
    """All keys of one sidecar file and their items, in stored order.

    Raises:
        DatasetNotFoundError, FormatError, MissingExtraError: as in a lookup.
        BudgetTooSmallError: reading it takes more than 256 MiB.
    """
    shard = _Shard(source, name, place, timeout, room=ALL_ROOM)
    for first in shard.runs[:-1]:
        for _, block in shard.blocks(first, source, timeout):
            yield from block.pairs()


class _Shard:
    """One Parquet file: what its footer says is in memory, its blocks are made on demand.

    Parameters:
        room: bytes that reading a block may take.

    Attributes:
        runs: first block of each run (a row group, or a few), and the number of blocks.
        sorted: None as long as nobody has looked through all of it.

    Raises:
        DatasetNotFoundError: it does not exist.
        FormatError: it is damaged, or has not the columns of keys.
    """

    def __init__(self, source: Source, name: str, place: str, timeout: float, *, room: int) -> None:
        from lazystore.formats.arrow import SHARE, ParquetFormat

        self._place, self._name, self._room = place, name, room
        self._needed = room
        with self.placed():
            try:
                opened = ParquetFormat().open(
                    Place(source, place, {name: -1}, b"", timeout, room * SHARE // ROOM_SHARE),
                    Options(columns=["key", "index"]),
                )
            except ConfigError as error:
                raise FormatError(f"{name} has no columns key and index: {error}") from error
            assert opened.images is not None
            types = opened.about["schema"]
            if types["index"] not in INTEGERS:
                raise FormatError(f"{name} has no columns key and index (integers): {types}")
            if types["key"] not in INTEGERS | TEXTS:
                raise FormatError(f"{name} has keys of type {types['key']}, which are neither text nor integers")
        self.is_text = types["key"] in TEXTS
        self.plan = opened.plan
        self._images = opened.images
        self.runs = opened.images.runs
        self.sorted: bool | None = None

    def blocks(self, first: int, source: Source, timeout: float) -> Generator[tuple[int, _Block], None, None]:
        """Number and keys of block ``first`` and of those after it in its run."""
        with self.placed(), closing(images_of(self._images, source, first, timeout, self._allow)) as made:
            for image in made:
                yield image.block, _Block(self, image.data)

    def look_through(self, key: Any, source: Source, timeout: float) -> int | None:
        """The key's item, whatever the order of the keys. Finds out about that on the way."""
        last = None
        for first in self.runs[:-1]:
            with closing(self.blocks(first, source, timeout)) as blocks:
                for _, block in blocks:
                    for other, item in block.pairs():
                        if other == key:  # it was not where it ought to be
                            self.sorted = False
                            return item
                        if last is not None and other < last:
                            self.sorted = False
                        last = other
        self.sorted = self.sorted is None or self.sorted
        return None

    def _allow(self, scratch: int) -> None:
        self._needed = max(self._needed, scratch)
        if scratch > self._room:
            raise BudgetTooSmallError(f"{self._name}: reading its keys takes {scratch} bytes, {self._room} are allowed")

    @contextmanager
    def placed(self) -> Iterator[None]:
        """Errors about what is in the file name the dataset, and those about memory the remedy."""
        try:
            yield
        except BudgetTooSmallError as error:
            # Twice as much, since what is read at a time grows with the budget
            raise BudgetTooSmallError(
                f"{self._place}: {error}; give memory={2 * READ_SHARE * self._needed} bytes or more"
            ) from error
        except (FormatError, UnsupportedError) as error:
            raise with_place(error, f"{self._place}/{self._name}") from error
        except LazyStoreError:
            raise
        except (ValueError, OSError) as error:  # what pyarrow raises for damaged files
            raise FormatError(f"{self._place}: {self._name} is damaged: {error}") from error


class _Block:
    """The keys of one block and their items: its image, whose rows are decoded when they are asked for.

    Attributes:
        first, last: its first and last key.
        nbytes: memory it takes, about.
    """

    __slots__ = ("_count", "_image", "_shard", "first", "last", "nbytes")

    def __init__(self, shard: _Shard, image: bytes | bytearray | memoryview) -> None:
        self._shard, self._image = shard, memoryview(image)
        self.nbytes = len(self._image)
        (self._count,) = struct.unpack_from("<I", self._image)
        self.first, self.last = self._pair(0)[0], self._pair(self._count - 1)[0]

    def pairs(self) -> Iterator[tuple[Any, int]]:
        """All of them, as stored."""
        with self._shard.placed():
            for number in range(self._count):
                yield self._pair(number)

    def find(self, key: Any) -> int | None:
        """The key's item, if the keys are sorted; None if it is not where it would be."""
        low, high = 0, self._count
        with self._shard.placed():
            while low < high:
                middle = (low + high) // 2
                if self._pair(middle)[0] < key:
                    low = middle + 1
                else:
                    high = middle
            if low < self._count:
                found, item = self._pair(low)
                return item if found == key else None
        return None

    def _pair(self, number: int) -> tuple[Any, int]:
        begin, end = struct.unpack_from("<2I", self._image, OFFSETS_AT + OFFSET_WIDTH * number)
        row = self._shard.plan(self._image[begin:end])
        if row["key"] is None or row["index"] is None:
            raise FormatError("it has rows without a key or an item")
        return row["key"], row["index"]
