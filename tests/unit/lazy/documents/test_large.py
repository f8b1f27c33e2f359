"""The second document's loader: presets, strategies of chunks, contexts, and stores that are shared."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import pytest

from lazystore.errors import ConfigError, UnsupportedError
from lazystore.lazy.chunk import DataChunk
from lazystore.lazy.documents.configs import LargeDataConfig
from lazystore.lazy.documents.large import (
    LargeDataLoader,
    create_lazy_loader,
    large_dataset_context,
    load_chunked_data,
    load_paginated_data,
)
from lazystore.lazy.store import LazyStore
from lazystore.lazy.strategy import DataSize, LoadStrategy


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def run(main: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(main)


def small(**settings: Any) -> LargeDataLoader:
    return LargeDataLoader(LargeDataConfig(**{"max_memory_mb": 16, "enable_disk_cache": False, **settings}))


def rows(offset: int, limit: int, **filters: Any) -> list[int]:
    return list(range(offset, min(offset + limit, 95)))


# -- made ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [DataSize.SMALL, "small"])
def test_a_size_goes_by_member_and_value(size: Any) -> None:
    loader = create_lazy_loader(size)
    assert loader.config.chunk_config.chunk_size == 100
    run(loader.close())


@pytest.mark.parametrize("size", ["gigantic", None, 3])
def test_an_unknown_size_names_the_known_ones(size: Any) -> None:
    with pytest.raises(ConfigError, match=r"data_size=.*SMALL, MEDIUM, LARGE, HUGE"):
        create_lazy_loader(size)


def test_a_setting_that_is_none_or_cannot_be_is_named() -> None:
    with pytest.raises(ConfigError, match="cache_seconds"):
        create_lazy_loader(DataSize.SMALL, cache_seconds=3)
    with pytest.raises(ConfigError, match="cache_ttl=0"):
        create_lazy_loader(DataSize.SMALL, cache_ttl=0)


def test_the_threshold_of_memory_reaches_who_watches_it() -> None:
    loader = small(memory_threshold=0.6)
    assert loader.store.tiers.pressure.threshold == 0.6
    run(loader.close())
    with LazyStore() as store:
        before = store.tiers.pressure.threshold
        LargeDataLoader(LargeDataConfig(memory_threshold=0.6), store=store)
        assert store.tiers.pressure.threshold == before, "a shared store keeps its own"


def test_a_shared_store_outlives_its_loaders() -> None:
    async def main() -> None:
        with LazyStore() as store:
            async with LargeDataLoader(store=store) as loader:
                assert "LargeDataLoader" in repr(loader)
            assert not store.stats()["closed"]
        async with small() as loader:
            pass
        await loader.close()
        assert loader.store.stats()["closed"]

    run(main())


# -- pages and chunks ------------------------------------------------------------------------


def test_a_loader_of_pages_is_called_by_name_and_must_be_a_function() -> None:
    asked: list[dict[str, Any]] = []

    def load(**given: Any) -> list[int]:
        asked.append(given)
        return []

    async def main() -> None:
        async with small() as loader:
            await loader.load_paginated_data(load, page=2, page_size=10, user="u")
            with pytest.raises(ConfigError, match="loader_func=7"):
                await loader.load_paginated_data(7)  # type: ignore[arg-type]

    run(main())
    assert asked[0].keys() == {"offset", "limit", "user"} and asked[0]["offset"] == 10 and asked[0]["user"] == "u"


@pytest.mark.parametrize("strategy", [LoadStrategy.STREAMING, "STREAMING", "streaming", "background", "on_demand"])
def test_chunks_come_in_order_whatever_the_strategy_and_its_spelling(strategy: Any) -> None:
    async def main() -> list[DataChunk]:
        async with small() as loader:
            return [chunk async for chunk in loader.load_chunked_data(str, iter([3, 1, 2]), strategy)]

    found = run(main())
    assert [(chunk.data, chunk.index, chunk.metadata["id"]) for chunk in found] == [
        ("3", 0, 3),
        ("1", 1, 1),
        ("2", 2, 2),
    ]


def test_a_strategy_that_is_unknown_or_switched_off_is_refused_at_once() -> None:
    async def main() -> None:
        async with small(enable_background_loading=False) as loader:
            with pytest.raises(ConfigError, match="EAGER"):
                loader.load_chunked_data(str, [1], "quick")  # type: ignore[arg-type]
            with pytest.raises(UnsupportedError, match="enable_background_loading=False"):
                loader.load_chunked_data(str, [1], LoadStrategy.BACKGROUND)

    run(main())


@pytest.mark.parametrize(
    ("value", "size"), [("häß", 5), (b"abc", 3), ([1, 2], 2), ({"a": 1, "b": 2}, 1), (None, 1), (7, 1)]
)
def test_chunks_are_measured_as_everywhere(value: Any, size: int) -> None:
    async def main() -> None:
        async with small() as loader:
            [chunk] = [chunk async for chunk in loader.load_chunked_data(lambda key: value, ["x"])]
            assert chunk.data == value and chunk.size == size

    run(main())


def test_chunks_that_nobody_asks_for_are_not_loaded() -> None:
    asked: list[int] = []

    async def main() -> None:
        async with small() as loader:
            chunks = loader.load_chunked_data(lambda key: asked.append(key), range(100), LoadStrategy.IMMEDIATE)
            async for _ in chunks:
                break
            await chunks.aclose()  # type: ignore[attr-defined]

    run(main())
    assert asked == [0]


def test_without_caching_pages_and_chunks_are_loaded_again() -> None:
    calls: list[int] = []

    def load(offset: int, limit: int) -> list[int]:
        calls.append(offset)
        return rows(offset, limit)

    async def main() -> None:
        async with small(enable_caching=False) as loader:
            for _ in range(2):
                page, info = await loader.load_paginated_data(load)
                assert len(page) == 50 and info.has_next
            assert loader.store.stats()["memory_used"] == 0

    run(main())
    assert calls == [0, 0]


def test_attempts_are_counted_in_all_and_the_last_error_comes_as_it_is() -> None:
    for attempts in (1, 3):
        calls: list[int] = []

        def failing(offset: int, limit: int, calls: list[int] = calls) -> list[int]:
            calls.append(1)
            raise ConnectionResetError("gone")

        async def main(attempts: int = attempts, failing: Any = failing) -> None:
            async with small(retry_attempts=attempts) as loader:
                with pytest.raises(ConnectionResetError, match="gone"):
                    await loader.load_paginated_data(failing)

        run(main())
        assert len(calls) == attempts


def test_functions_take_a_store_of_ones_own() -> None:
    async def main() -> None:
        with LazyStore(page=7) as store:
            page, info = await load_paginated_data(rows, store=store)
            assert len(page) == 7 and info.page == 1
            assert [chunk.data async for chunk in load_chunked_data(str, [1], store=store)] == ["1"]
            assert store.stats()["entries_by_kind"].keys() >= {"page", "chunk"}

    run(main())


# -- batches, contexts -----------------------------------------------------------------------


def test_batches_are_processed_one_after_the_other_by_sync_functions_too() -> None:
    async def source() -> AsyncIterator[int]:
        for n in range(7):
            yield n

    async def main() -> None:
        async with small(background_batch_size=3) as loader:

            async def gathered(**how: Any) -> list[Any]:
                return [found async for found in loader.batch_process_large_dataset(source(), lambda b: [b], **how)]

            assert await gathered() == [[0, 1, 2], [3, 4, 5], [6]]
            assert await gathered(batch_size=5) == [[0, 1, 2, 3, 4], [5, 6]]
            with pytest.raises(ConfigError, match="items"):
                await gathered(batch_size=0)

    run(main())


def test_a_context_makes_a_loader_and_closes_it_or_clears_the_one_given() -> None:
    async def main() -> None:
        async with large_dataset_context() as made:
            assert isinstance(made, LargeDataLoader)
        assert made.store.stats()["closed"]
        loader = small()
        async with large_dataset_context(loader) as same:
            assert same is loader
            await loader.load_paginated_data(rows)
            assert loader.store.stats()["entries"] == 1
        assert loader.store.stats()["entries"] == 0 and not loader.store.stats()["closed"]
        async with large_dataset_context(loader):
            await loader.close()  # leaving the context has nothing to free then

    run(main())


def test_clearing_tells_how_much_it_forgot() -> None:
    asked: list[str] = []

    async def main() -> None:
        async with small() as loader:
            for left in (2, 2, 0):
                if left:
                    assert [
                        chunk.size async for chunk in loader.load_chunked_data(asked.append, ["a", "b"], "eager")
                    ] == [1, 1]
                assert await loader.clear_cache() == left
                assert (await loader.get_stats())["active_chunks"] == 0

    run(main())
    assert asked == ["a", "b", "a", "b"]
