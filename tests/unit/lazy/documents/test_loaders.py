"""The first document's loaders: what is switched off is refused, what is wrong is named, what is shared stays open."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

from lazystore.errors import ClosedError, ConfigError, ItemIndexError, KeyNotFoundError, UnsupportedError
from lazystore.lazy.documents import loaders
from lazystore.lazy.documents.configs import LazyLoadingConfig
from lazystore.lazy.documents.loaders import (
    AdaptiveLazyLoader,
    AdvancedLazyLoader,
    BackgroundLoader,
    IntelligentBackgroundLoader,
    PaginatedDataLoader,
    StreamingDataLoader,
)
from lazystore.lazy.store import LazyStore
from lazystore.lazy.strategy import Strategy

LOADERS = (
    AdaptiveLazyLoader, AdvancedLazyLoader, BackgroundLoader, IntelligentBackgroundLoader, PaginatedDataLoader,
    StreamingDataLoader,
)  # fmt: skip


def small(**settings: Any) -> LazyLoadingConfig:
    return LazyLoadingConfig(**{"max_memory_mb": 16, **settings})


def run(main: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(main)


def numbers() -> Iterator[int]:
    yield from range(5)


def a_page(page: int, size: int) -> list[int]:
    return list(range(page * size, min((page + 1) * size, 43)))


# -- all of them ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LOADERS)
def test_a_store_that_is_shared_outlives_its_loaders_and_one_of_its_own_does_not(kind: Any) -> None:
    async def main() -> None:
        with LazyStore(memory="1MB") as store:
            async with kind(store=store) as loader:
                assert loader.store is store
            store.load("x", lambda: 1, Strategy.EAGER)
        async with kind(small()) as loader:
            mine = loader.store
            assert not mine.stats()["closed"]
        assert mine.stats()["closed"] and loader.get_metrics()["errors"] == 0
        await loader.close()
        assert kind.__name__ in repr(loader)

    run(main())


def test_a_closed_loader_says_so() -> None:
    async def main() -> None:
        loader = AdvancedLazyLoader(small())
        await loader.cleanup()
        with pytest.raises(ClosedError):
            await loader.load_data("x", lambda: 1)

    run(main())


def test_without_caching_everything_is_loaded_again() -> None:
    calls: list[int] = []

    async def main() -> None:
        async with AdvancedLazyLoader(small(enable_caching=False)) as loader:
            for _ in range(2):
                await loader.load_data("x", lambda: calls.append(1))
            assert loader.get_metrics()["memory_usage"] == 0

    run(main())
    assert calls == [1, 1]


# -- AdvancedLazyLoader ---------------------------------------------------------------------


@pytest.mark.parametrize("switch", ["streaming", "chunking", "pagination", "background_loading"])
def test_a_strategy_that_is_switched_off_is_refused_however_it_is_spelled(switch: str) -> None:
    member = {"chunking": Strategy.CHUNKED, "pagination": Strategy.PAGINATED, "streaming": Strategy.STREAMING,
              "background_loading": Strategy.BACKGROUND}[switch]  # fmt: skip

    async def main() -> None:
        async with AdvancedLazyLoader(small(**{f"enable_{switch}": False})) as loader:
            for spelled in (member, member.name, member.value, member.value.title()):
                with pytest.raises(UnsupportedError, match=f"enable_{switch}=False"):
                    await loader.load_data("x", numbers, spelled)
            assert await loader.load_data("x", lambda: 1, Strategy.EAGER) == 1
            assert loader.get_metrics()["total_operations"] == 1

    run(main())


def test_auto_takes_nothing_that_is_switched_off() -> None:
    async def main() -> None:
        async with AdaptiveLazyLoader(small(enable_streaming=False, enable_chunking=False)) as loader:
            with pytest.raises(UnsupportedError, match="enable_streaming"):
                await loader.load_adaptive("x", numbers)
            with pytest.raises(UnsupportedError, match="enable_chunking"):
                await loader.load_adaptive("x", lambda: 1, nbytes=50_000_000)
            assert await loader.load_adaptive("x", [1, 2, 3]) == [1, 2, 3]
            assert sum(loader.store.stats()["auto_choices"].values()) == 1

    run(main())


@pytest.mark.parametrize("lazy", [Strategy.LAZY, "lazy", "LAZY", "Lazy", "on_demand", "ON_DEMAND", None])
def test_lazy_data_that_is_awaited_is_the_value_however_it_is_spelled(lazy: Any) -> None:
    async def main() -> None:
        async with AdvancedLazyLoader(small()) as loader:
            assert await loader.load_data("x", lambda: 7, lazy) == 7
            assert await loader.load_data("y", lambda: 8, "auto", nbytes=5_000_000) == 8

    run(main())


def test_an_unknown_strategy_names_the_known_ones() -> None:
    async def main() -> None:
        async with AdvancedLazyLoader(small()) as loader:
            with pytest.raises(ConfigError, match="EAGER"):
                await loader.load_data("x", lambda: 1, "quick")

    run(main())


# -- StreamingDataLoader --------------------------------------------------------------------


def test_streams_that_are_switched_off_taken_or_unknown() -> None:
    async def main() -> None:
        async with StreamingDataLoader(small(enable_streaming=False)) as loader:
            with pytest.raises(UnsupportedError, match="enable_streaming=False"):
                await loader.create_stream("s", numbers)
        async with StreamingDataLoader(small()) as loader:
            assert await loader.create_stream("s", numbers) == "s"
            with pytest.raises(ConfigError, match="'s'"):
                await loader.create_stream("s", numbers)
            with pytest.raises(KeyNotFoundError, match="none"):
                await loader.get_stream_chunk("none")
            with pytest.raises(KeyNotFoundError, match="none"):
                loader.get_stream_info("none")
            assert not await loader.close_stream("none")
            assert await loader.close_stream("s") and not await loader.close_stream("s")

    run(main())


def test_a_stream_tells_its_end_and_then_how_long_it_was() -> None:
    async def main() -> None:
        async with StreamingDataLoader(small()) as loader:
            await loader.create_stream("s", numbers)
            assert (await loader.get_stream_chunk("s", 2)).data == 2
            assert loader.get_stream_info("s")["total_chunks"] is None
            assert [chunk.data async for chunk in loader.get_stream_chunks("s")] == [3, 4]
            with pytest.raises(ItemIndexError):
                await loader.get_stream_chunk("s", 9)
            info = loader.get_stream_info("s")
            assert (info["total_chunks"], info["consumed_chunks"], info["stream_id"]) == (5, 5, "s")

    run(main())


def test_bytes_are_streamed_in_chunks_of_a_size() -> None:
    async def main() -> None:
        async with StreamingDataLoader(small()) as loader:
            await loader.create_stream("s", b"x" * 2500, chunk_size=1000)
            assert [chunk.size async for chunk in loader.get_stream_chunks("s")] == [1000, 1000, 500]

    run(main())


# -- PaginatedDataLoader --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"page": -1}, "page"), ({"page": 1.0}, "page"), ({"page": True}, "page"), ({"page_size": 0}, "size"),
     ({"page_size": -1}, "size"), ({"page_size": 2.5}, "size")],
)  # fmt: skip
def test_pages_that_cannot_be_are_refused_before_anything_is_called(wrong: dict[str, Any], said: str) -> None:
    calls: list[Any] = []

    async def main() -> None:
        async with PaginatedDataLoader(small()) as loader:
            with pytest.raises(ConfigError, match=said):
                await loader.load_page(lambda *a: calls.append(a) or [], **wrong)

    run(main())
    assert calls == []


def test_pages_that_are_switched_off() -> None:
    async def main() -> None:
        async with PaginatedDataLoader(small(enable_pagination=False)) as loader:
            with pytest.raises(UnsupportedError, match="enable_pagination=False"):
                await loader.load_page(a_page)
            with pytest.raises(UnsupportedError, match="enable_pagination=False"):
                await loader.load_pages(a_page)

    run(main())


def test_a_page_is_a_dict_and_what_is_not_known_is_none() -> None:
    async def main() -> None:
        async with PaginatedDataLoader(small()) as loader:
            page = await loader.load_page(a_page, page=4, page_size=10)
            assert page["data"] == [40, 41, 42] and page["timestamp"] > 0
            assert (page["page"], page["page_size"], page["total_items"], page["total_pages"]) == (4, 10, None, None)
            assert page["has_previous"] and not page["has_next"] and page["next_cursor"] is None
            listed = await loader.load_page(list(range(43)), page=0, page_size=10)
            assert listed["data"] == list(range(10)) and listed["has_next"] and listed["next_cursor"]
            empty = await loader.load_page([], page_size=10)
            assert (empty["data"], empty["has_next"], empty["has_previous"]) == ([], False, False)
            beyond = await loader.load_page(a_page, page=9, page_size=10)
            assert beyond["data"] == [] and not beyond["has_next"]

    run(main())


def test_each_page_of_a_function_is_asked_for_once() -> None:
    calls: list[tuple[int, int]] = []

    def counted(page: int, size: int) -> list[int]:
        calls.append((page, size))
        return a_page(page, size)

    async def main() -> None:
        async with PaginatedDataLoader(small(prefetch_enabled=False)) as loader:
            for number in (0, 1, 0, 1, 2):
                await loader.load_page(counted, number, 10, cache_key="rows")
            assert (await loader.load_page(lambda *a: [], 0, 10, cache_key="rows"))["data"] == list(range(10))
            info = loader.get_page_cache_info()
            assert info["cached_pages"] >= 3
            assert info["hits"] + info["misses"] + info["joins"] == info["requests"]

    run(main())
    assert calls == [(0, 10), (1, 10), (2, 10), (3, 10)], "the last one to know whether there is more"


@pytest.mark.parametrize(("span", "found"), [((1, 3), [10, 10]), ((3, 9), [10, 3]), ((2, 2), []), ((3, 1), [])])
def test_pages_of_a_span_as_range_has_it(span: tuple[int, int], found: list[int]) -> None:
    async def main() -> None:
        async with PaginatedDataLoader(small()) as loader:
            pages = await loader.load_pages(a_page, *span, page_size=10)
            assert [len(page["data"]) for page in pages] == found

    run(main())


@pytest.mark.parametrize(("span", "said"), [((-1, 2), "start_page"), ((0, -1), "end_page"), ((0, 1.5), "end_page")])
def test_the_ends_of_a_span_are_page_numbers(span: Any, said: str) -> None:
    async def main() -> None:
        async with PaginatedDataLoader(small()) as loader:
            with pytest.raises(ConfigError, match=said):
                await loader.load_pages(a_page, *span)

    run(main())


# -- BackgroundLoader -----------------------------------------------------------------------


def test_what_was_never_queued_is_a_key_error() -> None:
    async def main() -> None:
        async with BackgroundLoader(small()) as loader:
            with pytest.raises(KeyError, match="nothing was prefetched as 'x'"):
                await loader.get("x")

    run(main())


def test_background_loads_that_are_switched_off() -> None:
    async def main() -> None:
        async with BackgroundLoader(small(enable_background_loading=False)) as loader:
            with pytest.raises(UnsupportedError, match="enable_background_loading=False"):
                await loader.prefetch_data("x", lambda: 1)

    run(main())


def test_what_a_background_load_raised_reaches_who_asks_for_it() -> None:
    def failing() -> None:
        raise LookupError("no such thing")

    async def main() -> None:
        async with BackgroundLoader(small()) as loader:
            await loader.prefetch_data("x", failing)
            with pytest.raises(LookupError, match="no such thing"):
                await loader.get("x")

    run(main())


def test_a_wait_ends_at_its_timeout_and_the_load_goes_on() -> None:
    go = threading.Event()

    def slow() -> int:
        go.wait(30)
        return 5

    async def main() -> None:
        async with BackgroundLoader(small()) as loader:
            await loader.prefetch_data("x", slow)
            with pytest.raises(TimeoutError):
                await loader.get("x", timeout=0.05)
            go.set()
            assert await loader.get("x", timeout=30) == 5

    run(main())


class Value:
    pass


def test_values_are_kept_by_the_store_only() -> None:
    calls: list[weakref.ref[Value]] = []

    def load() -> Value:
        value = Value()
        calls.append(weakref.ref(value))
        return value

    async def main() -> None:
        async with BackgroundLoader(small()) as loader:
            await loader.prefetch_data("x", load)
            assert await loader.get("x") is await loader.get("x") is calls[0]()
            loader.store.clear()
            for _ in range(200):  # a worker may hold its last result for a moment
                gc.collect()
                if calls[0]() is None:
                    break
                await asyncio.sleep(0.01)
            assert calls[0]() is None, "what left the budget is not held on to"
            assert isinstance(await loader.get("x"), Value)

    run(main())
    assert len(calls) == 2


def test_of_many_names_the_oldest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "MOST_NAMES", 2)

    async def main() -> None:
        async with BackgroundLoader(small()) as loader:
            for name in ("a", "b", "a", "c"):
                await loader.prefetch_data(name, lambda: 1)
            assert await loader.get("a") == await loader.get("c") == 1
            with pytest.raises(KeyNotFoundError):
                await loader.get("b")

    run(main())


def test_a_stopped_loader_takes_nothing() -> None:
    async def main() -> None:
        loader = BackgroundLoader(small())
        await loader.start()
        await loader.stop()
        with pytest.raises(ClosedError):
            await (await loader.prefetch_data("x", lambda: 1))

    run(main())


# -- IntelligentBackgroundLoader ------------------------------------------------------------


def test_predictions_need_to_know_what_loads_a_key() -> None:
    async def main() -> None:
        async with IntelligentBackgroundLoader(small()) as loader:
            assert await loader.predict_and_prefetch([]) == []
            with pytest.raises(ConfigError, match="loader_of="):
                await loader.predict_and_prefetch([1, 2, 3])

    run(main())


@pytest.mark.parametrize(
    ("behavior", "first"),
    [
        ([2, 4, 6, 8], 10),
        ({"scores": {"a": 1.0, "b": 3.0}}, "b"),
        ({"a": 1.0, "b": 3.0}, "b"),
        ({"hint": ["x", "y"]}, "x"),
        ({"history": ["a", "b", "c", "a", "b", "c", "a"]}, "b"),
    ],
)
def test_what_is_likely_is_loaded_first(behavior: Any, first: Any) -> None:
    async def main() -> None:
        async with IntelligentBackgroundLoader(small(), loader_of=lambda key: lambda: ("value", key)) as loader:
            handles = await loader.predict_and_prefetch(behavior)
            assert await handles[0] == ("value", first)
            assert await loader.get(first) == ("value", first)

    run(main())


def test_a_hint_is_followed_some_keys_at_a_time() -> None:
    async def main() -> None:
        async with IntelligentBackgroundLoader(small(), loader_of=lambda key: lambda: key) as loader:
            handles = await loader.predict_and_prefetch({"hint": iter(range(10**9))})
            assert [await handle for handle in handles] == list(range(loaders.MOST_HINTED))

    run(main())


@pytest.mark.parametrize("wrong", ["abc", 7, {"a": "much"}, {"scores": {"a": True}}])
def test_a_behavior_that_is_none_is_refused(wrong: Any) -> None:
    async def main() -> None:
        async with IntelligentBackgroundLoader(small(), loader_of=lambda key: lambda: key) as loader:
            with pytest.raises(ConfigError, match="user_behavior"):
                await loader.predict_and_prefetch(wrong)

    run(main())
