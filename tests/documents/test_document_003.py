"""The calls of the lazy loading guide, block by block, with what each must give. Its HTTP blocks are another matter."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from lazystore.errors import ConfigError
from lazystore.lazy import (
    ChunkConfig,
    CompressionType,
    DataChunk,
    DataSize,
    LargeDataConfig,
    LargeDataLoader,
    LoadStrategy,
    PageInfo,
    PaginationConfig,
    StreamingConfig,
    create_lazy_loader,
    default_store,
    get_metrics,
    get_stats,
    large_dataset_context,
    load_chunked_data,
    load_paginated_data,
)

MIB = 1 << 20


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield
    default_store().close()


def small(**settings: Any) -> LargeDataLoader:
    return LargeDataLoader(LargeDataConfig(**{"max_memory_mb": 32, "enable_disk_cache": False, **settings}))


async def load_caption_history(offset: int = 0, limit: int = 50, user_id: str = "", style: str = "") -> list[Any]:
    return [
        {"id": f"caption_{n + 1}", "user": user_id, "style": style} for n in range(offset, min(offset + limit, 120))
    ]


class Chunks:
    """A loader by chunk id that counts."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def __call__(self, chunk_id: str) -> bytes:
        self.asked.append(chunk_id)
        await asyncio.sleep(0)
        return chunk_id.encode() * 1000


# -- sizes and strategies -------------------------------------------------------------------


def test_sizes_and_their_bounds() -> None:
    assert [size.value for size in DataSize] == ["small", "medium", "large", "huge"]
    assert [DataSize.of(n) for n in (MIB - 1, MIB, 10 * MIB, 100 * MIB + 1)] == list(DataSize)


def test_strategies() -> None:
    names = ("IMMEDIATE", "STREAMING", "PAGINATED", "BACKGROUND", "ON_DEMAND")
    assert len({LoadStrategy[name] for name in names}) == 5


def test_a_loader_for_a_size() -> None:
    async def main() -> None:
        for size, items, chunks, memory in (
            (DataSize.SMALL, 100, 50, 512),
            (DataSize.MEDIUM, 1000, 20, 1024),
            (DataSize.LARGE, 5000, 10, 2048),
            (DataSize.HUGE, 10_000, 5, 4096),
        ):
            async with create_lazy_loader(size) as loader:
                config = loader.config
                assert (config.chunk_config.chunk_size, config.chunk_config.max_chunks_in_memory) == (items, chunks)
                assert config.max_memory_mb == memory
                assert loader.store.options.memory <= memory * MIB
                assert config.enable_disk_cache == (size is not DataSize.SMALL)

    asyncio.run(main())


def test_settings_of_ones_own_win() -> None:
    async def main() -> None:
        async with create_lazy_loader(DataSize.LARGE, enable_disk_cache=False) as loader:
            assert not loader.config.enable_disk_cache
        async with create_lazy_loader(DataSize.HUGE, max_memory_mb=64) as loader:
            assert loader.config.max_memory_mb == 64

    asyncio.run(main())
    with pytest.raises(ConfigError, match="max_memory"):
        create_lazy_loader(DataSize.SMALL, max_memory=64)


# -- pages ----------------------------------------------------------------------------------


def test_a_page_and_what_is_known_of_it() -> None:
    async def main() -> None:
        async with small() as lazy_loader:
            data, page_info = await lazy_loader.load_paginated_data(
                loader_func=load_caption_history, page=1, page_size=50, user_id="u1", style="casual"
            )
            assert [row["id"] for row in data][:2] == ["caption_1", "caption_2"]
            assert data[0]["user"] == "u1" and data[0]["style"] == "casual"
            assert isinstance(page_info, PageInfo)
            assert (page_info.page, page_info.page_size) == (1, 50)
            assert page_info.total_items is None and page_info.total_pages is None
            assert page_info.has_next and not page_info.has_previous
            last, info = await lazy_loader.load_paginated_data(load_caption_history, page=3)
            assert len(last) == 20 and not info.has_next and info.has_previous

    asyncio.run(main())


def test_a_page_is_cached_and_filters_tell_pages_apart() -> None:
    calls: list[int] = []

    async def load(offset: int, limit: int, user_id: str = "") -> list[str]:
        calls.append(offset)
        return [user_id] * min(limit, 10)

    async def main() -> None:
        async with small() as loader:
            first, _ = await loader.load_paginated_data(load, user_id="a")
            again, _ = await loader.load_paginated_data(load, user_id="a")
            other, _ = await loader.load_paginated_data(load, user_id="b")
            assert list(first) == list(again) == ["a"] * 10 and list(other) == ["b"] * 10
            assert not first.hit and again.hit
            assert len(calls) == 2

    asyncio.run(main())


def test_functions_made_for_each_request_share_pages_only_if_they_mean_the_same() -> None:
    def made(user: str) -> Any:
        async def load(offset: int = 0, limit: int = 50) -> list[str]:
            return [user]

        return load

    async def main() -> None:
        async with small() as loader:
            for user in ("a", "b", "a"):
                page, _ = await loader.load_paginated_data(made(user))
                assert list(page) == [user]
            assert page.hit

    asyncio.run(main())


def test_page_sizes_are_bounded() -> None:
    async def main() -> None:
        config = PaginationConfig(default_page_size=20, max_page_size=60)
        async with small(pagination_config=config) as loader:
            assert len((await loader.load_paginated_data(load_caption_history))[0]) == 20
            assert len((await loader.load_paginated_data(load_caption_history, page_size=5000))[0]) == 60
            for page, size in ((0, 10), (1, 0), (-1, 10)):
                with pytest.raises(ConfigError):
                    await loader.load_paginated_data(load_caption_history, page=page, page_size=size)

    asyncio.run(main())


# -- chunks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [LoadStrategy.STREAMING, LoadStrategy.BACKGROUND, LoadStrategy.IMMEDIATE])
def test_chunks_by_id(strategy: LoadStrategy) -> None:
    ids = [f"c{n}" for n in range(12)]
    load = Chunks()

    async def main() -> None:
        async with small() as loader:
            found = [chunk async for chunk in loader.load_chunked_data(load, ids, strategy)]
            assert all(isinstance(chunk, DataChunk) for chunk in found)
            assert [bytes(chunk.data) for chunk in found] == [name.encode() * 1000 for name in ids]
            again = [bytes(chunk.data) async for chunk in loader.load_chunked_data(load, ids, strategy)]
            assert again == [name.encode() * 1000 for name in ids]

    asyncio.run(main())
    assert sorted(load.asked) == sorted(ids)


def test_a_loader_may_make_its_chunks_itself() -> None:
    async def load(chunk_id: str) -> DataChunk:
        return DataChunk(data=b"abc", index=3, size=3, metadata={"id": chunk_id})

    async def main() -> None:
        async with small() as loader:
            [chunk] = [chunk async for chunk in loader.load_chunked_data(load, ["x"])]
            assert chunk.data == b"abc" and chunk.metadata["id"] == "x"

    asyncio.run(main())


def test_chunk_settings() -> None:
    config = ChunkConfig()
    assert (config.chunk_size, config.max_chunks_in_memory, config.prefetch_chunks) == (1000, 10, 3)
    assert (config.compression_threshold, config.compression_type) == (1024, CompressionType.GZIP)
    assert StreamingConfig().buffer_size == 8192


# -- memory, disk, metrics ------------------------------------------------------------------


def test_memory_is_bounded_and_what_leaves_it_goes_to_disk(tmp_path: Path) -> None:
    calls: list[str] = []

    async def load(chunk_id: str) -> bytes:
        calls.append(chunk_id)
        return chunk_id.encode().ljust(100_000, b".")

    ids = [f"chunk_{n}" for n in range(60)]

    async def main() -> None:
        config = LargeDataConfig(max_memory_mb=2, enable_disk_cache=True, disk_cache_dir=str(tmp_path / "tier"))
        for run in range(2):
            async with LargeDataLoader(config) as loader:
                for _ in range(2):
                    async for chunk in loader.load_chunked_data(load, ids):
                        assert len(chunk.data) == 100_000
                    assert loader.store.stats()["memory_used"] <= 2 * MIB
                stats = await loader.get_stats()
                assert stats["disk_cache_hits"] > 0
                assert 0 < stats["disk_cache_size_mb"] <= 8
                assert stats["compression_savings"] > 1_000_000 or run == 1, "nothing new is stored then"
        assert len(calls) < 75, "the second loader found on disk what it was asked for"

    asyncio.run(main())
    assert (tmp_path / "tier").stat().st_mode & 0o777 == 0o700


def test_the_configuration_has_the_documents_fields() -> None:
    config = LargeDataConfig()
    assert (config.max_memory_mb, config.memory_threshold, config.enable_disk_cache) == (2048, 0.75, True)
    assert (config.enable_caching, config.cache_size, config.cache_ttl) == (True, 1000, 3600)
    tuned = LargeDataConfig(
        load_timeout=60.0, retry_attempts=3, chunk_config=ChunkConfig(chunk_size=1000, max_chunks_in_memory=10)
    )
    assert tuned.settings()["attempts"] == 3 and tuned.settings()["timeout"] == 60.0


STATS = {
    "total_chunks_loaded", "total_pages_loaded", "total_streams", "cache_hits", "disk_cache_hits",
    "compression_savings", "memory_usage_mb", "avg_chunk_load_time", "avg_page_load_time", "active_chunks",
    "active_pages", "active_streams", "background_tasks", "disk_cache_size_mb",
}  # fmt: skip


def test_statistics_count_what_happened() -> None:
    async def slow(chunk_id: str) -> bytes:
        await asyncio.sleep(0.01)
        return b"x" * 1000

    async def main() -> None:
        async with small() as loader:
            async for _ in loader.load_chunked_data(slow, ["a", "b", "c"]):
                pass
            for _ in range(2):
                await loader.load_paginated_data(load_caption_history, page=1)
            stats = await loader.get_stats()
            assert stats.keys() >= STATS
            assert (stats["total_chunks_loaded"], stats["total_pages_loaded"]) == (3, 1)
            assert stats["avg_chunk_load_time"] >= 0.01
            assert stats["active_chunks"] == 3 and stats["active_pages"] == 1
            assert stats["cache_hits"] >= 1 and 0 < stats["hit_ratio"] < 1
            assert stats["memory_usage_mb"] > 0

    asyncio.run(main())


def test_statistics_of_what_decorators_share() -> None:
    assert get_stats().keys() >= STATS
    assert get_metrics()["errors"] == 0


def test_health_as_a_route_would_tell_it() -> None:
    async def main() -> dict[str, Any]:
        async with small() as loader:
            await loader.load_paginated_data(load_caption_history)
            stats = await loader.get_stats()
            return {
                "status": loader.store.health()["status"],
                "memory_usage_mb": stats["memory_usage_mb"],
                "active_resources": stats["active_chunks"] + stats["active_pages"],
                "timestamp": time.time(),
            }

    found = asyncio.run(main())
    assert found["status"] == "ok" and found["active_resources"] == 1


# -- practices ------------------------------------------------------------------------------


def test_a_context_frees_memory_and_lets_errors_out() -> None:
    async def failing(offset: int, limit: int) -> list[int]:
        raise RuntimeError("no database")

    async def safe() -> Any:
        loader = small()
        try:
            async with large_dataset_context(loader):
                data, _ = await loader.load_paginated_data(load_caption_history, page=1)
                assert len(data) == 50
                return await loader.load_paginated_data(failing, page=1)
        except RuntimeError as error:
            assert loader.store.stats()["entries"] == 0
            return {"error": "loading_failed", "message": str(error)}
        finally:
            await loader.close()

    assert asyncio.run(safe()) == {"error": "loading_failed", "message": "no database"}


def test_functions_without_a_loader_use_the_shared_store() -> None:
    async def main() -> None:
        page, info = await load_paginated_data(load_caption_history, page=2, page_size=10)
        assert len(page) == 10 and info.page == 2
        assert [bytes(c.data)[:1] async for c in load_chunked_data(Chunks(), ["a", "b"])] == [b"a", b"b"]

    asyncio.run(main())


def test_batches_of_a_large_set_in_order() -> None:
    async def process(batch: list[int]) -> list[int]:
        await asyncio.sleep(0)
        return [n * n for n in batch]

    async def main() -> list[int]:
        async with small(background_batch_size=100) as loader:
            return [found async for found in loader.batch_process_large_dataset(range(250), process)]

    assert asyncio.run(main()) == [n * n for n in range(250)]


def test_a_load_is_tried_again_and_given_up_in_time() -> None:
    attempts: list[int] = []

    async def flaky(offset: int, limit: int) -> list[int]:
        attempts.append(1)
        if len(attempts) < 3:
            raise ConnectionResetError("again")
        return [1]

    async def hanging(offset: int, limit: int) -> list[int]:
        await asyncio.sleep(60)
        return []

    async def main() -> None:
        async with small(retry_attempts=3, load_timeout=0.3) as loader:
            assert list((await loader.load_paginated_data(flaky))[0]) == [1]
            with pytest.raises(TimeoutError):
                await loader.load_paginated_data(hanging)

    asyncio.run(main())
    assert len(attempts) == 3
