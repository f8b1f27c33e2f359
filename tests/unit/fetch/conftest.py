"""What the fetch tests share: a served folder, every kind of remote source over it, a scripted wire."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lazystore.fetch.engine import WireSource
from lazystore.fetch.retry import RetryPolicy
from lazystore.fetch.threads import LoopThread, defuse_loop
from lazystore.fetch.wire import Identity, Landing
from lazystore.testing import ObjectStore

#: Bytes of the big object: several parts of one request each.
BIG = 20 << 20


@pytest.fixture(scope="session")
def objects() -> dict[str, bytes]:
    """Names and bytes that every kind of source holds."""
    rng = random.Random(7)
    return {
        "index.json": b'{"chunks": []}',
        "empty": b"",
        "one": b"x",
        "sub folder/a+b%c#d.bin": rng.randbytes(3000),
        "chunk.bin": rng.randbytes(200_000),
        "big.bin": rng.randbytes(BIG),
    }


@pytest.fixture(scope="session")
def served(objects: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of buckets with the objects in the bucket ``data``, below ``set/``."""
    root = tmp_path_factory.mktemp("served")
    for name, data in objects.items():
        path = root / "data" / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


@pytest.fixture(scope="module")
def store(served: Path) -> Iterator[ObjectStore]:
    """An object store without faults; tests that want some configure it and are followed by a reset."""
    with ObjectStore(served) as running:
        yield running


@pytest.fixture
def faultless(store: ObjectStore) -> Iterator[ObjectStore]:
    """The same store, its counters at zero, and without faults again afterwards."""
    store.reset()
    yield store
    store.configure(faults=None, latency_ms=0, bandwidth=None)


def s3_options(store: ObjectStore) -> dict[str, Any]:
    return {"anon": True, "endpoint_url": store.url, "region_name": "us-east-1"}


def build(kind: str, store: ObjectStore, objects: dict[str, bytes], **options: Any) -> WireSource:
    """A source of this kind over the objects."""
    from lazystore.fetch.obstore import ObstoreSource
    from lazystore.fetch.remote import RemoteSource

    if kind == "http":
        return RemoteSource(store.http_url("data", "set/"), **options)
    if kind == "s3":
        return RemoteSource(store.s3_url("data", "set"), s3_options(store), **options)
    if kind == "obstore-http":
        return ObstoreSource(store.http_url("data", "set/"), **options)
    if kind == "obstore-s3":
        return ObstoreSource(store.s3_url("data", "set"), s3_options(store), **options)
    import fsspec

    if kind == "memory":
        fs = fsspec.filesystem("memory")
        for name, data in objects.items():
            if not fs.exists(f"/fetch-tests/{name}"):
                fs.pipe_file(f"/fetch-tests/{name}", data)
        return RemoteSource("memory://fetch-tests", **options)
    from lazystore.testing import FaultyFileSystem

    fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)
    files = {f"set/{name}": data for name, data in objects.items()}
    return RemoteSource("faulty://set", {"files": files, **options.pop("storage_options", {})}, **options)


@pytest.fixture
def open_kind(store: ObjectStore, objects: dict[str, bytes]) -> Iterator[Callable[..., WireSource]]:
    """``open_kind(kind, **options)``: sources that are closed after the test."""
    opened: list[WireSource] = []

    def open_one(kind: str, **options: Any) -> WireSource:
        opened.append(build(kind, store, objects, **options))
        return opened[-1]

    yield open_one
    for source in opened:
        source.close()


async def no_sleep(seconds: float) -> None:
    await asyncio.sleep(0)


class ScriptedWire:
    """A wire whose answers a test writes down: one coroutine function for get, one for head."""

    def __init__(
        self,
        get: Callable[[str, int, int, Identity | None, Landing], Awaitable[None]],
        head: Callable[[str], Awaitable[Identity]] | None = None,
        *,
        tells: bool = True,
        streams: bool = True,
        connections: int = 0,
    ) -> None:
        self.connections = connections
        self._thread = LoopThread("scripted")
        self.loop = self._thread.loop
        self._get = get
        self._head = head
        self.tells = tells
        self.streams = streams
        self.gets: list[tuple[str, int, int, Identity | None]] = []
        self.heads: list[str] = []
        self.closed = False

    def url(self, name: str) -> str:
        return f"scripted://{name}"

    async def prepare(self) -> None:
        """Nothing to open."""

    async def get(self, name: str, begin: int, end: int, pinned: Identity | None, landing: Landing) -> None:
        self.gets.append((name, begin, end, pinned))
        await self._get(name, begin, end, pinned, landing)

    async def whole(self, name: str, limit: int, landing: Landing) -> None:
        self.gets.append((name, 0, -1, None))
        await self._get(name, 0, -1, None, landing)

    async def head(self, name: str) -> Identity:
        self.heads.append(name)
        assert self._head is not None
        return await self._head(name)

    async def aclose(self) -> None:
        self.closed = True

    def release(self) -> None:
        self._thread.stop()

    def defuse(self) -> None:
        defuse_loop(self.loop)


class ScriptedSource(WireSource):
    """A source over a ScriptedWire; its retries do not wait."""

    def __init__(self, wire: ScriptedWire, **options: Any) -> None:
        options.setdefault("concurrency", 8)
        options.setdefault("policy", RetryPolicy(sleep=no_sleep, rng=lambda: 0.5))
        self.wire = wire
        super().__init__("scripted://", **options)

    def _connect(self) -> Any:
        return self.wire

    def _recipe(self) -> dict[str, Any]:
        return {"url": self.url}


@pytest.fixture
def scripted() -> Iterator[Callable[..., ScriptedSource]]:
    """``scripted(get, head, tells=..., streams=..., connections=..., **source options)``."""
    opened: list[ScriptedSource] = []

    def open_one(get: Any, head: Any = None, **options: Any) -> ScriptedSource:
        wired = {name: options.pop(name) for name in ("tells", "streams", "connections") if name in options}
        opened.append(ScriptedSource(ScriptedWire(get, head, **wired), **options))
        return opened[-1]

    yield open_one
    for source in opened:
        source.close()
        source.wire.release()
