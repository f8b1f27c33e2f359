"""A ``Source`` over bytes in memory that keeps a diary, and lets a test stand in the middle of a request."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from lazystore.errors import ClosedError, DatasetNotFoundError, FetchError
from lazystore.fetch.source import FetchCounters, Read


class DiarySource:
    """Objects of one directory, as storage far away (``local=False``) or near.

    ``waves`` holds one list of (name, begin, end) a call of ``run``; ``before`` is called in each,
    before anything lands, and may wait or raise.
    """

    def __init__(self, objects: Mapping[str, bytes], *, local: bool = False) -> None:
        self.url = "diary://objects"
        self.local = local
        self.counters = FetchCounters()
        self.objects = dict(objects)
        self.waves: list[list[tuple[str, int, int]]] = []
        self.before: Callable[[Sequence[Read]], None] = lambda reads: None
        self.closed = False

    @classmethod
    def of(cls, folder: Path, *, local: bool = False) -> DiarySource:
        return cls({path.name: path.read_bytes() for path in folder.iterdir()}, local=local)

    def run(self, reads: Sequence[Read], *, stat: Iterable[str] = (), timeout: float) -> dict[str, int]:
        assert timeout >= 0
        names = list(stat)
        self.waves.append([(read.name, read.begin, read.end) for read in reads])
        self.before(reads)
        if self.closed:
            raise ClosedError(f"the source {self.url} is closed")
        sizes = {name: len(self._object(name)) for name in names}
        for read in reads:
            data = self._object(read.name)[read.begin : read.end]
            read.view[: len(data)] = data
            read.got = len(data)
            if read.got < len(read.view) and read.name not in sizes:
                raise FetchError(f"{self.url}/{read.name} ends before byte {read.end}", begin=read.begin, end=read.end)
        self.counters.requests += len(reads)
        self.counters.bytes_fetched += sum(read.got for read in reads)
        self.counters.waves += 1
        return sizes

    def read_all(self, name: str, *, limit: int, timeout: float) -> bytes:
        return self._object(name)[: limit + 1]

    def close(self) -> None:
        self.closed = True

    def _object(self, name: str) -> bytes:
        if name not in self.objects:
            raise DatasetNotFoundError(f"{self.url}/{name} does not exist")
        return self.objects[name]
