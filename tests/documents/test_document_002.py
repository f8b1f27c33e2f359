"""The calls of the document on lazy loading of large data sets, block by block, with what each must give.

Its HTTP blocks are another matter. Page numbers count from 0 in this document only.
"""

from __future__ import annotations

import asyncio
import csv
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from lazystore.lazy import (
    AdaptiveLazyLoader,
    AdvancedLazyLoader,
    BackgroundLoader,
    ChunkStrategy,
    DataChunk,
    DataChunker,
    IntelligentBackgroundLoader,
    LazyLoadingConfig,
    LoadingStrategy,
    PaginatedDataLoader,
    StreamingDataLoader,
    chunked_load,
    default_store,
    lazy_load,
    streaming_load,
)

MIB = 1 << 20

CONFIG = {
    "default_strategy": LoadingStrategy.LAZY,
    "enable_streaming": True,
    "enable_chunking": True,
    "enable_pagination": True,
    "enable_background_loading": True,
    "max_memory_mb": 64,
    "chunk_size": MIB,
    "max_chunks_in_memory": 4,
    "prefetch_enabled": True,
    "prefetch_distance": 2,
    "background_workers": 4,
    "max_concurrent_loads": 10,
    "enable_caching": True,
    "cache_size": 1000,
    "cache_ttl": 3600,
}


@pytest.fixture(autouse=True)
def fresh_default_store() -> Any:
    yield
    default_store().close()


async def numbers() -> AsyncIterator[int]:
    for n in range(200):
        yield n


def a_page(page: int, page_size: int) -> list[dict[str, int]]:
    return [{"id": n} for n in range(page * page_size, min((page + 1) * page_size, 430))]


# -- features -------------------------------------------------------------------------------


def test_chunking_by_strategy() -> None:
    async def main() -> None:
        chunker = DataChunker(LazyLoadingConfig(chunk_size=64 * 1024))
        data = bytes(range(256)) * 2048
        fixed = await chunker.chunk_data(data, ChunkStrategy.FIXED_SIZE, chunk_size=128 * 1024)
        dynamic = await chunker.chunk_data(data, ChunkStrategy.DYNAMIC_SIZE)
        content = await chunker.chunk_data(data, ChunkStrategy.CONTENT_BASED)
        assert [chunk.size for chunk in fixed] == [128 * 1024] * 4
        for chunks in (fixed, dynamic, content):
            assert all(isinstance(chunk, DataChunk) for chunk in chunks)
            assert b"".join(chunk.data for chunk in chunks) == data

    asyncio.run(main())


def test_streams_by_name_and_index() -> None:
    async def main() -> None:
        async with StreamingDataLoader(LazyLoadingConfig(**CONFIG)) as loader:
            stream_id = await loader.create_stream("data_stream", numbers)
            assert [(await loader.get_stream_chunk(stream_id, i)).data for i in range(10)] == list(range(10))
            await loader.close_stream(stream_id)

    asyncio.run(main())


def test_pages_one_and_many() -> None:
    async def main() -> None:
        async with PaginatedDataLoader(LazyLoadingConfig(**CONFIG)) as loader:
            page = await loader.load_page(a_page, page=0, page_size=100)
            assert [row["id"] for row in page["data"]] == list(range(100))
            assert (page["page"], page["page_size"], page["has_previous"], page["has_next"]) == (0, 100, False, True)
            pages = await loader.load_pages(a_page, start_page=0, end_page=5, page_size=100)
            assert [len(page["data"]) for page in pages] == [100, 100, 100, 100, 30]
            assert pages[-1]["has_next"] is False and pages[-1]["total_pages"] is None
            assert [item["id"] for page in pages for item in page["data"]] == list(range(430))
            assert loader.get_page_cache_info()["cached_pages"] >= 5

    asyncio.run(main())


def test_background_prefetch() -> None:
    loaded: list[str] = []

    async def users() -> str:
        loaded.append("users")
        return "users"

    def products() -> str:
        loaded.append("products")
        return "products"

    async def main() -> None:
        background = BackgroundLoader(LazyLoadingConfig(**CONFIG))
        await background.start()
        await background.prefetch_data("user_data", users, priority=1)
        await background.prefetch_data("product_data", products, priority=2)
        assert await background.get("user_data") == "users"
        assert await background.get("product_data", timeout=30) == "products"
        await background.stop()

    asyncio.run(main())
    assert sorted(loaded) == ["products", "users"]


# -- configuration and basic use ------------------------------------------------------------


def test_the_configuration_has_the_documents_fields() -> None:
    config = LazyLoadingConfig(**CONFIG)
    assert {name: getattr(config, name) for name in CONFIG} == CONFIG
    assert LazyLoadingConfig().max_memory_mb == 1024 and LazyLoadingConfig().prefetch_distance == 2


def test_basic_loading_by_strategy() -> None:
    calls: list[str] = []

    async def load_large_dataset() -> list[int]:
        calls.append("large")
        return list(range(1000))

    async def main() -> None:
        loader = AdvancedLazyLoader(LazyLoadingConfig(max_memory_mb=64))
        await loader.initialize()
        data = await loader.load_data("dataset_1", load_large_dataset, LoadingStrategy.LAZY)
        again = await loader.load_data("dataset_1", load_large_dataset, LoadingStrategy.EAGER)
        assert data == list(range(1000)) and data is again and calls == ["large"]
        stream = await loader.load_data("dataset_2", numbers, LoadingStrategy.STREAMING)
        assert [item async for item in stream] == list(range(200))
        chunks = await loader.load_data("dataset_3", load_large_dataset, LoadingStrategy.CHUNKED, items=300)
        assert [len(chunk) async for chunk in chunks] == [300, 300, 300, 100]
        pages = await loader.load_data("dataset_4", load_large_dataset, LoadingStrategy.PAGINATED, size=400)
        assert [len(page) async for page in pages] == [400, 400, 200]
        handle = await loader.load_data("dataset_5", load_large_dataset, LoadingStrategy.BACKGROUND)
        assert await handle == list(range(1000))
        hybrid = await loader.load_data("dataset_6", load_large_dataset, LoadingStrategy.HYBRID)
        assert hybrid == list(range(1000))
        await loader.cleanup()
        await loader.cleanup()

    asyncio.run(main())


def test_a_stream_is_read_until_the_consumer_has_enough() -> None:
    closed: list[bool] = []

    async def endless() -> AsyncIterator[int]:
        n = 0
        try:
            while True:
                yield n
                n += 1
        finally:
            closed.append(True)

    async def main() -> None:
        async with StreamingDataLoader(LazyLoadingConfig(**CONFIG)) as loader:
            stream_id = await loader.create_stream("data_stream", endless)
            seen = []
            async for chunk in loader.get_stream_chunks(stream_id):
                seen.append(chunk.data)
                if chunk.index >= 100:
                    break
            info = loader.get_stream_info(stream_id)
            assert seen == list(range(101))
            assert info["stream_id"] == "data_stream" and info["consumed_chunks"] >= 101
            await loader.close_stream(stream_id)

    asyncio.run(main())
    assert closed == [True]


# -- integrations ---------------------------------------------------------------------------


class Database:
    """Users, activities and orders; counts its queries."""

    def __init__(self) -> None:
        self.queries = 0

    async def fetch_user(self, user_id: int) -> dict[str, int]:
        self.queries += 1
        await asyncio.sleep(0)
        return {"id": user_id}

    async def stream_user_activities(self, user_id: int) -> AsyncIterator[tuple[int, int]]:
        self.queries += 1
        for n in range(2500):
            yield user_id, n

    async def get_user_orders(self, user_id: int) -> list[int]:
        self.queries += 1
        return list(range(250))


def test_database_queries() -> None:
    database = Database()

    @lazy_load(LoadingStrategy.LAZY)
    async def load_user_data(user_id: int) -> dict[str, int]:
        return await database.fetch_user(user_id)

    @streaming_load(chunk_size=1000)
    async def stream_user_activities(user_id: int) -> AsyncIterator[tuple[int, int]]:
        async for activity in database.stream_user_activities(user_id):
            yield activity

    @chunked_load(chunk_size=100)
    async def load_user_orders(user_id: int) -> list[int]:
        return await database.get_user_orders(user_id)

    async def main() -> None:
        assert await load_user_data(7) == await load_user_data(user_id=7) == {"id": 7}
        assert database.queries == 1
        sizes = [len(chunk) async for chunk in stream_user_activities(7)]
        assert sizes == [1000, 1000, 500]
        chunks = await load_user_orders(7)
        assert [len(chunk) for chunk in chunks] == [100, 100, 50]

    asyncio.run(main())


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "large.txt"
    lines = [f"line {n}" for n in range(5000)]
    path.write_text("\n".join(lines), encoding="utf-8")

    @lazy_load(LoadingStrategy.CHUNKED)
    async def load_large_file(file_path: str) -> bytes:
        with open(file_path, "rb") as file:
            return file.read()

    @streaming_load()
    async def stream_file_content(file_path: str) -> AsyncIterator[str]:
        with open(file_path, encoding="utf-8") as file:
            for line in file:
                yield line.strip()

    async def main() -> None:
        chunks = await load_large_file(str(path))
        assert b"".join(bytes(chunk) for chunk in chunks) == path.read_bytes()
        assert [line async for line in stream_file_content(str(path))] == lines

    asyncio.run(main())


def test_calls_of_another_service() -> None:
    calls = 0

    @lazy_load(LoadingStrategy.BACKGROUND)
    async def fetch_external_data(api_url: str) -> dict[str, str]:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.001)
        return {"url": api_url}

    @streaming_load()
    async def stream_external_data(api_url: str) -> AsyncIterator[bytes]:
        for n in range(3):
            yield f"{api_url}{n}".encode()

    async def main() -> None:
        found = await asyncio.gather(*(fetch_external_data("http://service/x") for _ in range(20)))
        assert found == [{"url": "http://service/x"}] * 20 and calls == 1
        assert [chunk async for chunk in stream_external_data("u")] == [b"u0", b"u1", b"u2"]

    asyncio.run(main())


# -- metrics --------------------------------------------------------------------------------

METRICS = {
    "total_operations", "streaming_operations", "chunked_operations", "paginated_operations", "background_operations",
    "cache_hits", "cache_misses", "cache_hit_rate", "total_load_time", "average_load_time", "memory_usage", "errors",
}  # fmt: skip


def test_metrics_count_what_happened() -> None:
    async def failing() -> None:
        raise OSError("down")

    async def main() -> None:
        async with AdvancedLazyLoader(LazyLoadingConfig(max_memory_mb=64)) as loader:
            for _ in range(4):
                await loader.load_data("a", lambda: "x" * 1000)
            (await loader.load_data("s", numbers, LoadingStrategy.STREAMING)).close()
            await loader.load_data("c", lambda: [1, 2], LoadingStrategy.CHUNKED)
            await (await loader.load_data("b", lambda: 1, LoadingStrategy.BACKGROUND))
            with pytest.raises(OSError, match="down"):
                await loader.load_data("e", failing)
            metrics = loader.get_metrics()
            assert metrics.keys() >= METRICS
            assert metrics["streaming_operations"] == metrics["background_operations"] == 1
            assert metrics["total_operations"] >= 8 and metrics["errors"] == 1
            assert metrics["cache_hits"] >= 3
            assert metrics["cache_hits"] + metrics["cache_misses"] == loader.store.stats()["requests"]
            assert 0 < metrics["cache_hit_rate"] < 1 and 0 < metrics["memory_usage"] <= 64

    asyncio.run(main())


def test_a_failed_load_is_an_exception_to_fall_back_from() -> None:
    attempts: list[int] = []

    async def load() -> str:
        attempts.append(1)
        if len(attempts) == 1:
            raise ConnectionResetError("gone")
        return "data"

    async def main() -> str:
        async with AdvancedLazyLoader() as loader:
            try:
                return str(await loader.load_data("dataset", load))
            except ConnectionResetError:
                return await load()

    assert asyncio.run(main()) == "data"


def test_slow_loads_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    config = LazyLoadingConfig(enable_metrics=True, log_slow_operations=True, slow_operation_threshold=0.02)

    async def slow() -> int:
        await asyncio.sleep(0.1)
        return 1

    async def main() -> None:
        async with AdvancedLazyLoader(config) as loader:
            with caplog.at_level(logging.WARNING, logger="lazystore"):
                await loader.load_data("turtle", slow)
            assert loader.get_metrics()["average_load_time"] > 0.02

    asyncio.run(main())
    assert "turtle" in caplog.text


# -- advanced -------------------------------------------------------------------------------


def test_a_chunker_of_ones_own() -> None:
    class CustomChunker(DataChunker):
        async def chunk_by_semantic_boundaries(self, data: list[str]) -> list[DataChunk]:
            chunks: list[DataChunk] = []
            current: list[str] = []
            size = 0
            for item in data:
                if size + len(item) > self.config.chunk_size and current:
                    chunks.append(self._create_chunk(current, len(chunks)))
                    current, size = [], 0
                current.append(item)
                size += len(item)
            return [*chunks, self._create_chunk(current, len(chunks))] if current else chunks

    paragraphs = ["a" * 40, "b" * 40, "c" * 40]
    chunks = asyncio.run(CustomChunker(LazyLoadingConfig(chunk_size=100)).chunk_by_semantic_boundaries(paragraphs))
    assert [chunk.data for chunk in chunks] == [paragraphs[:2], paragraphs[2:]]
    assert [chunk.index for chunk in chunks] == [0, 1]


def test_adaptive_loading_calls_a_loader_once() -> None:
    calls: list[int] = []

    async def small() -> list[int]:
        calls.append(1)
        return [1, 2, 3]

    async def main() -> None:
        async with AdaptiveLazyLoader() as loader:
            assert await loader.load_adaptive("small", small) == [1, 2, 3]
            stream = await loader.load_adaptive("big", numbers)
            assert [item async for item in stream] == list(range(200))

    asyncio.run(main())
    assert calls == [1]


def test_predicted_data_is_prefetched() -> None:
    loaded: list[Any] = []

    def loader_of(key: Any) -> Any:
        def load() -> Any:
            loaded.append(key)
            return key

        return load

    async def main() -> None:
        async with IntelligentBackgroundLoader(LazyLoadingConfig(**CONFIG), loader_of=loader_of) as loader:
            handles = await loader.predict_and_prefetch({"history": [1, 2, 3, 4, 5]})
            assert await handles[0] == 6

        class Mine(IntelligentBackgroundLoader):
            def _predict_likely_data(self, user_behavior: Any) -> list[tuple[Any, float]]:
                return [(name, 2.0) for name in user_behavior["likes"]]

        async with Mine(loader_of=loader_of) as mine:
            await mine.predict_and_prefetch({"likes": ["tea", "cake"]})
            assert [await mine.get("tea"), await mine.get("cake")] == ["tea", "cake"]

    asyncio.run(main())
    assert 6 in loaded and "tea" in loaded


# -- use cases ------------------------------------------------------------------------------


def test_a_large_csv_in_chunks(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([n, n * 2] for n in range(2300))

    @lazy_load(LoadingStrategy.CHUNKED, items=1)
    async def process_large_csv(file_path: str) -> list[list[str]]:
        with open(file_path, encoding="utf-8") as file:
            lines = [line.strip() for line in file]
        return [lines[at : at + 1000] for at in range(0, len(lines), 1000)]

    async def main() -> None:
        chunks = await process_large_csv(str(path))
        assert [len(chunk[0]) for chunk in chunks] == [1000, 1000, 300]

    asyncio.run(main())


def test_an_endless_source_is_never_gathered() -> None:
    read: list[int] = []

    @streaming_load()
    async def stream_sensor_data(sensor_id: str) -> AsyncIterator[int]:
        while True:
            read.append(len(read))
            yield read[-1]
            await asyncio.sleep(0)

    async def main() -> None:
        seen = []
        async for value in stream_sensor_data("s1"):
            seen.append(value)
            if len(seen) == 20:
                break
        assert seen == list(range(20))
        assert len(read) <= 22

    asyncio.run(main())


def test_a_catalog_is_loaded_in_the_background_and_kept() -> None:
    calls: list[str] = []

    @lazy_load(LoadingStrategy.BACKGROUND)
    async def load_product_catalog(category: str) -> list[str]:
        calls.append(category)
        return [f"{category} {n}" for n in range(3)]

    async def main() -> None:
        assert await load_product_catalog("tea") == await load_product_catalog(category="tea")
        assert load_product_catalog.invalidate("tea")
        await load_product_catalog("tea")

    asyncio.run(main())
    assert calls == ["tea", "tea"]


def test_a_sync_function_stays_sync() -> None:
    calls: list[int] = []

    @lazy_load(LoadingStrategy.LAZY)
    def load_large_dataset() -> list[int]:
        calls.append(1)
        return [1, 2, 3]

    assert load_large_dataset() == load_large_dataset() == [1, 2, 3]
    assert calls == [1]
    assert load_large_dataset.stats()["hits"] >= 1
