"""A ``Source`` over bytes in memory that keeps a diary, and lets a test stand in the middle of a request."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from lazystore.errors import ClosedError, DatasetNotFoundError, FetchError, FetchTimeoutError
from lazystore.fetch.flight import Outcome, Wave
from lazystore.fetch.source import FetchCounters, Read


class DiarySource:
    """Objects of one directory, as storage far away (``local=False``) or near.

    ``waves`` holds one list of (name, begin, end) a call of ``run`` or ``start``; ``before`` is called in each,
    before anything lands, and may wait or raise. What is started lands at once, unless a :class:`Postman`
    brings it.
    """

    def __init__(self, objects: Mapping[str, bytes], *, local: bool = False) -> None:
        self.url = "diary://objects"
        self.local = local
        self.memory = 0
        self.counters = FetchCounters()
        self.objects = dict(objects)
        self.waves: list[list[tuple[str, int, int]]] = []
        self.before: Callable[[Sequence[Read]], None] = lambda reads: None
        self.closed = False
        self.postman: Postman | None = None

    @classmethod
    def of(cls, folder: Path, *, local: bool = False) -> DiarySource:
        return cls({path.name: path.read_bytes() for path in folder.iterdir()}, local=local)

    def run(self, reads: Sequence[Read], *, stat: Iterable[str] = (), timeout: float) -> dict[str, int]:
        assert timeout >= 0
        if self.postman is None:
            self._note(reads)
            return self._land(reads, list(stat))
        flight = self.start(reads, stat=stat, timeout=timeout, urgent=True)
        if not flight.wait(timeout):
            flight.cancel()
            raise FetchTimeoutError(f"{self.url} did not answer within {timeout:g} s", url=self.url, elapsed=timeout)
        return flight.result()

    def start(
        self,
        reads: Sequence[Read],
        *,
        stat: Iterable[str] = (),
        timeout: float,
        urgent: bool = False,
        on_done: Callable[[], None] | None = None,
    ) -> Wave:
        if self.closed:
            raise ClosedError(f"the source {self.url} is closed")
        self._note(reads)
        flight = Letter(self, reads, list(stat), Outcome(on_done), timeout)
        if self.postman is None:
            flight.deliver()
        else:
            self.postman.take(flight)
        return flight

    def read_all(self, name: str, *, limit: int, timeout: float) -> bytes:
        return self._object(name)[: limit + 1]

    def close(self) -> None:
        self.closed = True

    def asked(self) -> Counter[tuple[str, int]]:
        """How often each stored byte was asked for, by (name, position)."""
        return Counter((name, at) for wave in self.waves for name, begin, end in wave for at in range(begin, end))

    def nbytes(self) -> int:
        """Bytes asked for so far."""
        return sum(end - begin for wave in self.waves for _, begin, end in wave)

    def _note(self, reads: Sequence[Read]) -> None:
        self.waves.append([(read.name, read.begin, read.end) for read in reads])

    def _land(self, reads: Sequence[Read], names: list[str]) -> dict[str, int]:
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

    def _object(self, name: str) -> bytes:
        if name not in self.objects:
            raise DatasetNotFoundError(f"{self.url}/{name} does not exist")
        return self.objects[name]


class Letter(Wave):
    """A started wave of a :class:`DiarySource`; nothing is written once it is called off."""

    __slots__ = ("_lock", "_names", "_reads", "_source")

    def __init__(
        self, source: DiarySource, reads: Sequence[Read], names: list[str], outcome: Outcome, timeout: float
    ) -> None:
        super().__init__(outcome, source.url, timeout)
        self._source = source
        self._reads = list(reads)
        self._names = names
        self._lock = threading.RLock()

    def deliver(self) -> None:
        """Land it, well or badly."""
        with self._lock:
            reads, self._reads = self._reads, []
            if self.done():
                return
            try:
                sizes, error = self._source._land(reads, self._names), None
            except Exception as raised:  # noqa: BLE001 - whoever asks for the result meets it
                sizes, error = {}, raised.with_traceback(None)
            del reads
        self.outcome.settle(sizes, error)

    def _take_back(self) -> None:
        with self._lock:
            self._reads.clear()


class Postman:
    """A thread that brings what was started in an order of its own: the last first, or at random.

    Parameters:
        seed: None: whatever was started last comes first.
        patience: seconds it waits for more before it brings one.
    """

    def __init__(self, source: DiarySource, seed: int | None = None, *, patience: float = 0.001) -> None:
        self._source = source
        self._chance = random.Random(seed)
        self._last_first = seed is None
        self._patience = patience
        self._bag: list[Letter] = []
        self._more = threading.Condition()
        self._over = False
        self._thread = threading.Thread(target=self._work, name="postman", daemon=True)

    def take(self, letter: Letter) -> None:
        with self._more:
            self._bag.append(letter)
            self._more.notify()

    def _work(self) -> None:
        while True:
            with self._more:
                while not self._bag and not self._over:
                    self._more.wait()
                if self._over:
                    return
                count = -1
                while count != len(self._bag):  # whoever sends several sends them one after the other
                    count = len(self._bag)
                    self._more.wait(self._patience)
                letter = self._bag.pop(-1 if self._last_first else self._chance.randrange(len(self._bag)))
            letter.deliver()

    def __enter__(self) -> Postman:
        self._source.postman = self
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._source.postman = None
        with self._more:
            self._over = True
            self._more.notify()
        self._thread.join()
