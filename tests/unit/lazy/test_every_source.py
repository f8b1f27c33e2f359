"""Every verb over every kind of source: the same items under `for` and under `async for`, and nothing left running."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lazystore import LazyStore
from lazystore.errors import LazyStoreError, UnsupportedError
from lazystore.lazy.source import Source

N = 130
DATA = bytes(range(N))


class Squares:
    """Has a length and items, and neither slices' wrap nor an end of its own."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int | slice) -> Any:
        return list(range(N))[index] if isinstance(index, slice) else index


def rows(offset: int, limit: int) -> list[int]:
    return list(range(N))[offset : offset + limit]


async def arows(offset: int, limit: int) -> list[int]:
    await asyncio.sleep(0)
    return rows(offset, limit)


def after(cursor: int | None, limit: int) -> tuple[list[int], int | None]:
    found = rows(cursor or 0, limit)
    end = (cursor or 0) + len(found)
    return found, end if end < N else None


async def aafter(cursor: int | None, limit: int) -> tuple[list[int], int | None]:
    return after(cursor, limit)


def opened() -> Iterator[int]:
    yield from range(N)


async def aopened() -> AsyncIterator[int]:
    for number in range(N):
        yield number


async def opening() -> AsyncIterator[int]:
    return aopened()


ITEMS: dict[str, Callable[[], Any]] = {
    "list": lambda: list(range(N)),
    "range": lambda: range(N),
    "array": lambda: np.arange(N),
    "items": Squares,
    "range, size": lambda: Source.from_range(rows, size=N),
    "range, size told": lambda: Source.from_range(rows, size=lambda: N),
    "range, no size": lambda: Source.from_range(rows),
    "async range, size": lambda: Source.from_range(arows, size=N),
    "async range, no size": lambda: Source.from_range(arows),
    "awaitable range": lambda: Source.from_range(lambda offset, limit: arows(offset, limit)),
    "cursor": lambda: Source.from_cursor(after),
    "async cursor": lambda: Source.from_cursor(aafter),
    "generator": lambda: Source.from_stream(opened),
    "async generator": lambda: Source.from_stream(aopened),
    "coroutine": lambda: Source.from_stream(opening),
    "iterable": lambda: Source.from_stream(range(N)),
}


def plain(parts: Any) -> list[int]:
    """The numbers in parts: items, lists of them, pages, or bytes."""
    found: list[int] = []
    for part in parts:
        found += [int(part)] if isinstance(part, (int, np.integer)) else [int(item) for item in part]
    return found


async def gathered(parts: Any) -> list[Any]:
    return [part async for part in parts]


@pytest.fixture(autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() <= before


@pytest.mark.parametrize("kind", ITEMS)
def test_items_come_whole_and_in_order_by_every_verb(kind: str) -> None:
    with LazyStore(ITEMS[kind](), memory="8MB") as store:
        pages = "range" in store._open_source().can or "cursor" in store._open_source().can
        assert plain(store.chunks(items=40)) == list(range(N))
        with store.stream() as stream:
            assert plain(stream) == list(range(N))
        with store.stream(ahead=True, items=7) as stream:
            assert plain(stream) == list(range(N))
        assert plain([store.load("all", None, "eager")]) == list(range(N))
        if pages:
            assert plain(store.pages(size=40)) == list(range(N))
            assert plain(store.load_pages(1, 9, size=40)) == list(range(N))
            assert plain([store.page(size=40)]) == list(range(40))
        else:
            with pytest.raises(UnsupportedError, match="from_range"):
                store.page()


@pytest.mark.parametrize("kind", ITEMS)
def test_and_in_event_loops(kind: str) -> None:
    async def main() -> None:
        async with LazyStore(ITEMS[kind](), memory="8MB") as store:
            pages = "range" in store._open_source().can or "cursor" in store._open_source().can
            assert plain(await gathered(store.chunks(items=40))) == list(range(N))
            async with store.stream() as stream:
                assert plain(await gathered(stream)) == list(range(N))
            async with store.stream(ahead=True, items=7) as stream:
                assert plain(await gathered(stream)) == list(range(N))
            assert plain([await store.aload("all", None, "eager")]) == list(range(N))
            if pages:
                assert plain(await gathered(store.pages(size=40))) == list(range(N))
                assert plain(await store.aload_pages(1, 9, size=40)) == list(range(N))
                assert plain([await store.apage(size=40)]) == list(range(40))

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["bytes", "array of bytes", "file"])
def test_bytes_come_whole_and_in_order(kind: str, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(DATA)
    given: dict[str, Any] = {"bytes": DATA, "array of bytes": bytearray(DATA), "file": tmp_path / "data"}

    async def main(store: LazyStore) -> None:
        assert b"".join(await gathered(store.chunks(chunk=40))) == DATA
        async with store.stream(chunk=40) as stream:
            assert b"".join(await gathered(stream)) == DATA
        assert bytes(await store.aload("all", None, "eager")) == DATA
        assert bytes(await store.aget(slice(5, 9))) == DATA[5:9]
        assert await store.chunks(chunk=40).aget(-1) == DATA[120:]  # type: ignore[union-attr]

    with LazyStore(given[kind], memory="8MB") as store:
        asyncio.run(main(store))
        assert b"".join(store.chunks(chunk=40)) == DATA
        with store.stream(chunk=40) as stream:
            assert b"".join(stream) == DATA
        assert bytes(store.load("all", None, "eager")) == DATA
        assert bytes(store.get(slice(-3, None))) == DATA[-3:]
        with pytest.raises(LazyStoreError, match="chunks"):
            store.page()


@pytest.mark.parametrize("empty", [[], b"", range(0), np.arange(0), Source.from_range(lambda *_: [])], ids=repr)
def test_what_is_empty_is_empty_by_every_verb(empty: Any) -> None:
    with LazyStore(empty, memory="8MB") as store:
        assert list(store.chunks()) == []
        assert b"".join(store.stream()) == b""
        assert len(store.load("all", None, "eager")) == 0
        if not isinstance(empty, bytes):
            page = store.page()
            assert (len(page), page.has_next, page.has_previous) == (0, False, False)
            assert list(store.pages()) == []


def test_a_file_is_opened_and_measured_outside_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lazystore.cache.paged import PagedObject

    (tmp_path / "data").write_bytes(DATA)
    threads: list[int] = []
    ask = PagedObject._ask

    def watched(self: PagedObject, first: bool) -> None:
        threads.append(threading.get_ident())
        ask(self, first)

    monkeypatch.setattr(PagedObject, "_ask", watched)

    async def main(verb: Callable[[LazyStore], Any]) -> None:
        async with LazyStore(tmp_path / "data", memory="8MB") as store:
            await verb(store)

    verbs: list[Callable[[LazyStore], Any]] = [
        lambda store: gathered(store.chunks(chunk=40)),
        lambda store: store.chunks(chunk=40).aget(-1),  # type: ignore[union-attr]
        lambda store: gathered(store.stream(chunk=40)),
        lambda store: store.aget(slice(0, 5)),
        lambda store: store.aload("all", None),
    ]
    for verb in verbs:
        asyncio.run(main(verb))
    assert len(threads) == len(verbs)
    assert threading.get_ident() not in threads
