"""What a `LazyStore` says to input that cannot work: a typed error that names the place, at once, and nothing left."""

from __future__ import annotations

import asyncio
import math
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lazystore.cache.disk import DiskTier
from lazystore.errors import (
    ConfigError,
    CursorExpiredError,
    CursorMismatchError,
    CursorTamperedError,
    DiskTierError,
    LoadTimeoutError,
    UnhashableKeyError,
)
from lazystore.lazy.keysets import keyset
from lazystore.lazy.store import LazyStore
from lazystore.testing import FakeClock

SECRET = b"0123456789abcdef" * 2


def echo(key: Any) -> Any:
    return key


def rows(offset: int, limit: int) -> list[int]:
    return list(range(offset, min(offset + limit, 120)))


def clean(store: LazyStore) -> None:
    """Nothing is under way, and the counters add up."""
    assert len(store.tiers.loads.flights) == 0 and len(store.tiers.memory.claims) == 0
    told = store.stats()
    assert told["hits"] + told["misses"] + told["joins"] == told["requests"]


# -- settings -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"memory": -1}, {"memory": "much"}, {"memory": 1.5}, {"memory": True}, {"memory": None}, {"memory": math.inf},
        {"ttl": 0}, {"ttl": -1}, {"ttl": math.nan}, {"ttl": "1"}, {"ttl": True},
        {"negative_ttl": -1}, {"stale_while_revalidate": math.nan}, {"stale_if_error": "x"}, {"ttl_jitter": 1},
        {"page": 0}, {"page": -1}, {"page": 1001}, {"page": 1.5}, {"max_page": 0}, {"items": 0}, {"chunk": 0},
        {"window": 0}, {"window": "wide"}, {"concurrency": 0}, {"concurrency": True}, {"prefetch": -1},
        {"prefetch": "much"}, {"codec": "gif"}, {"policy": "fifo"}, {"name": ""}, {"name": 5}, {"key": 5},
        {"weigh": 5}, {"on_evict": 5}, {"attempts": 0}, {"timeout": 0}, {"idle_timeout": -1}, {"cursor_ttl": 0},
        {"disk": 5}, {"disk": True}, {"no_such_setting": 1},
    ],
)  # fmt: skip
def test_a_setting_that_cannot_work_is_named_when_the_store_is_made(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        LazyStore.from_keys(echo, **settings)


@pytest.mark.parametrize("source", [5, 1.5, True, object(), echo, int])
def test_what_is_no_source_is_said_at_once(source: Any) -> None:
    with pytest.raises(ConfigError):
        LazyStore(source)


# -- pages and cursors ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad", [{"number": 0}, {"number": -1}, {"size": 0}, {"size": -3}, {"size": 1.5}, {"number": "1"}]
)
def test_pages_count_from_one_and_have_at_least_one_item(bad: dict[str, Any]) -> None:
    with LazyStore.from_range(rows) as store:
        with pytest.raises(ConfigError):
            store.page(**bad)
        with pytest.raises(ConfigError):
            asyncio.run(store.apage(**bad))
        clean(store)


def test_tampered_foreign_and_expired_cursors_are_three_errors() -> None:
    data = [{"id": number} for number in range(100)]
    order = keyset(["id"], unique="id")
    with LazyStore(data, secret=SECRET, cursor_ttl=1e-3) as brief, LazyStore(data, secret=SECRET) as store:
        cursor = store.page(keyset=order).next_cursor
        assert cursor is not None and store.page(cursor=cursor, keyset=order)[0] == {"id": 50}
        for place in range(0, len(cursor), 7):
            changed = cursor[:place] + ("A" if cursor[place] != "A" else "B") + cursor[place + 1 :]
            with pytest.raises(CursorTamperedError):
                store.page(cursor=changed, keyset=order)
        for nonsense in ("", "x", "é", cursor[:-1], cursor + "A", "A" * 10_000):
            with pytest.raises(CursorTamperedError):
                store.page(cursor=nonsense, keyset=order)
        with pytest.raises(CursorMismatchError):
            store.page(cursor=cursor, keyset=keyset(["-id"], unique="id"))
        old = brief.page(keyset=order).next_cursor
        threading.Event().wait(1.1)  # cursors count whole seconds
        with pytest.raises(CursorExpiredError):
            brief.page(cursor=old, keyset=order)
    with LazyStore(data) as other, pytest.raises(CursorTamperedError):
        other.page(cursor=cursor, keyset=order)


# -- loaders --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", [None, 0, "", b"", [], {}, object(), NotImplemented, Ellipsis, ValueError("a value"), int, iter([1])],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_whatever_a_loader_returns_is_a_value(value: Any) -> None:
    calls: list[Any] = []
    with LazyStore.from_keys(lambda key: (calls.append(key), value)[1]) as store:
        assert store.get(1) is value and store.get(1, timeout=5) is value and asyncio.run(store.aget(1)) is value
        assert calls == [1]
        clean(store)


@pytest.mark.parametrize(
    "error", [ValueError, KeyError, OSError, RecursionError, MemoryError, SystemExit, StopAsyncIteration]
)
def test_what_a_loader_raises_comes_as_it_is_by_every_verb(error: type[BaseException]) -> None:
    def load(key: Any) -> Any:
        raise error("as it is")

    with LazyStore.from_keys(load) as store:
        calls: list[Callable[[], Any]] = [
            lambda: store.get(1),
            lambda: store.get(2, timeout=30),
            lambda: store.prefetch([3])[0].get(30),
            lambda: store.load("a", lambda: load(4)),
            lambda: store.load("b", lambda: load(5), "LAZY").get(),
        ]
        if issubclass(error, Exception):  # else it ends the loop, as it should
            calls.append(lambda: asyncio.run(store.aget(6)))
        for call in calls:
            with pytest.raises(error) as caught:
                call()
            assert type(caught.value) is error and caught.value.args == ("as it is",)
        clean(store)


def test_a_loader_that_hangs_is_left_at_the_timeout_by_every_verb() -> None:
    go = threading.Event()

    async def aload(key: Any) -> Any:
        while not go.is_set():
            await asyncio.sleep(0.001)
        return key

    def load(key: Any) -> Any:
        assert go.wait(60)
        return key

    for loader in (load, aload):
        go.clear()
        with LazyStore.from_keys(loader) as store:
            for call in (
                lambda: store.get(1, timeout=0.02),
                lambda: asyncio.run(store.aget(2, timeout=0.02)),
                lambda: store.prefetch([3])[0].get(0.02),
            ):
                with pytest.raises(LoadTimeoutError):
                    call()
            go.set()
            assert [store.get(key, timeout=60) for key in (1, 2, 3)] == [1, 2, 3]


def test_a_loop_closed_under_a_load_costs_nobody_the_value() -> None:
    begun, go = threading.Event(), threading.Event()

    def load(key: Any) -> Any:
        begun.set()
        assert go.wait(60)
        return key

    with LazyStore.from_keys(load) as store:

        async def leaving() -> None:
            tasks.append(asyncio.ensure_future(store.aget(1)))
            while not begun.is_set():
                await asyncio.sleep(0.001)

        tasks: list[Any] = []
        loop = asyncio.new_event_loop()
        loop.run_until_complete(leaving())
        tasks[0]._log_destroy_pending = False  # our own task, left behind on purpose
        loop.close()
        go.set()
        assert store.get(1, timeout=60) == 1
        clean(store)


# -- keys -----------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [[1], {}, set(), bytearray(b"a"), (1, [2])], ids=repr)
def test_a_key_that_is_not_hashable_is_said_by_every_verb(key: Any) -> None:
    with LazyStore.from_keys(echo) as store:
        for call in (
            lambda: store.get(key),
            lambda: store.get(key, timeout=5),
            lambda: store.get(key, fallback=1),
            lambda: asyncio.run(store.aget(key)),
            lambda: store.invalidate(key),
            lambda: store.prefetch([key]),
            lambda: store.load(key, dict),
            lambda: store.load(key, dict, "LAZY").get(),
            lambda: store.load(key, dict, "BACKGROUND").get(),
            lambda: store.load(key, list, "CHUNKED"),
        ):
            with pytest.raises(UnhashableKeyError):
                call()
        clean(store)


class Nasty:
    """A key whose hash or comparison raises, or calls the store."""

    def __init__(self, value: int, on_hash: Callable[[], Any] = int, on_eq: Callable[[], Any] = int) -> None:
        self.value, self.on_hash, self.on_eq = value, on_hash, on_eq

    def __hash__(self) -> int:
        self.on_hash()
        return 7

    def __eq__(self, other: object) -> bool:
        self.on_eq()
        return isinstance(other, Nasty) and self.value == other.value


@pytest.mark.parametrize("error", [ValueError, KeyError, TypeError])
def test_keys_whose_comparison_or_hash_raises_raise_it_and_break_nothing(error: type[Exception]) -> None:
    def raising() -> None:
        raise error("the key's own")

    with LazyStore.from_keys(lambda key: key.value if isinstance(key, Nasty) else key) as store:
        assert store.get(Nasty(1, on_eq=raising)) == 1  # alone it is compared with none
        for call in (
            lambda: store.get(Nasty(2, on_eq=raising)),
            lambda: store.get(Nasty(2, on_eq=raising), timeout=5),
            lambda: store.invalidate(Nasty(2, on_eq=raising)),
            lambda: asyncio.run(store.aget(Nasty(2, on_eq=raising))),
        ):
            with pytest.raises(error):
                call()
        for hashed in (
            lambda: store.get(Nasty(3, on_hash=raising)),
            lambda: store.invalidate(Nasty(3, on_hash=raising)),
        ):
            with pytest.raises(UnhashableKeyError if error is TypeError else error):
                hashed()
        assert store.get("well") == "well"
        clean(store)


@pytest.mark.parametrize("verb", ["get", "clear", "stats"])
def test_keys_whose_comparison_calls_the_store_break_nothing(verb: str) -> None:
    deep = [0]

    def calling() -> None:
        if deep[0] < 3:
            deep[0] += 1
            store.get(("inner", deep[0])) if verb == "get" else getattr(store, verb)()
            deep[0] -= 1

    with LazyStore.from_keys(lambda key: key.value if isinstance(key, Nasty) else key) as store:
        for number in range(30):
            assert store.get(Nasty(number % 5, on_eq=calling)) == number % 5
        clean(store)


def test_keys_that_are_equal_are_one_and_nan_is_equal_to_itself_only() -> None:
    calls: list[Any] = []
    with LazyStore.from_keys(lambda key: (calls.append(key), key)[1]) as store:
        assert [store.get(key) for key in (1, 1.0, True, 0, False, -0.0, "1", b"1")] == [1, 1, 1, 0, 0, 0, "1", b"1"]
        nan = math.nan
        assert store.get(nan) is store.get(nan)
        assert calls[:2] == [1, 0] and len(calls) == 5


# -- times ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ttl", [0, -1, math.nan, "x", True])
def test_a_ttl_that_cannot_work_is_said_before_anything_is_loaded(ttl: Any) -> None:
    calls: list[Any] = []
    with LazyStore.from_keys(lambda key: calls.append(key)) as store:
        for call in (lambda: store.get(1, ttl=ttl), lambda: asyncio.run(store.aget(1, ttl=ttl))):
            with pytest.raises(ConfigError, match="ttl"):
                call()
        assert calls == []
        clean(store)


@pytest.mark.parametrize("ttl", [math.inf, 1e12, 1e300, 10**30])
def test_a_ttl_longer_than_any_clock_is_for_ever(ttl: float) -> None:
    clock = FakeClock()
    calls: list[Any] = []
    with LazyStore.from_keys(lambda key: calls.append(key), ttl=ttl, clock=clock) as store:
        store.get(1)
        store.get(2, ttl=ttl)
        clock.advance(1e9)
        store.get(1)
        store.get(2)
        assert calls == [1, 2]


# -- disk -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["read-only", "world-writable", "another user's", "a file", "below a file", "nothing"])
def test_a_folder_that_cannot_be_trusted_or_used_is_refused_with_the_remedy(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "disk"
    if kind in ("a file", "below a file"):
        folder.write_bytes(b"")
        folder = folder / "below" if kind == "below a file" else folder
    elif kind != "nothing":
        folder.mkdir()
        folder.chmod({"read-only": 0o500, "world-writable": 0o777}.get(kind, 0o700))
    if kind == "another user's":
        if os.getuid() != 0:
            pytest.skip("only root may give folders away")
        os.chown(folder, 12345, 12345)
    path: Any = "" if kind == "nothing" else folder
    for call in (lambda: DiskTier(path), lambda: LazyStore.from_keys(echo, disk=path, name="n")):
        with pytest.raises((DiskTierError, ConfigError)):
            call()


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_FSIZE stands in for a full disk")
def test_a_full_disk_costs_no_value_and_health_tells_of_it(tmp_path: Path) -> None:
    code = """
        import resource, signal, sys
        from lazystore import DiskTier, LazyStore

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        load = lambda key: {"key": key, "value": f"x{key}" * 1000}
        disk = DiskTier(sys.argv[1], mode="through", codec="none")
        with LazyStore.from_keys(load, disk=disk, name="n", memory="1MB") as store:
            for _ in range(2):
                assert all(store.get(key) == load(key) for key in range(100))
                store.clear()
            health = store.health()
            print(health["status"], "EFBIG" in health["reasons"][0], store.stats()["disk_hits"] > 0)
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", "-c", textwrap.dedent(code), str(tmp_path / "disk")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr, done.stdout.split()) == (0, "", ["degraded", "True", "True"])


def test_two_stores_on_one_folder_see_each_others_values_and_keep_their_names_apart(tmp_path: Path) -> None:
    calls: list[Any] = []

    def made(name: str) -> LazyStore:
        return LazyStore.from_keys(
            lambda key: (calls.append(key), f"{name} {key}")[1],
            disk=DiskTier(tmp_path / "disk", mode="through"),
            name=name,
        )

    with made("one") as first, made("one") as again, made("two") as other:
        assert first.get(1) == "one 1" and other.get(1) == "two 1"
        threading.Event().wait(0.2)  # what another tier stored is seen a tenth of a second later at most
        assert again.get(1) == "one 1" and len(calls) == 2
        assert first.clear(disk=True) >= 1
        assert other.get(1) == "two 1"
        other.clear()
        assert other.get(1) == "two 1"


# -- pickling -------------------------------------------------------------------------------


def test_a_store_and_a_page_pickle_and_what_is_under_way_says_why_it_does_not(tmp_path: Path) -> None:
    with LazyStore.from_keys(echo, memory="64MB") as store, store.stream(iter([1])) as stream:
        copied = pickle.loads(pickle.dumps(store))
        assert copied.get(1) == 1 and list(pickle.loads(pickle.dumps(store.page(1, source=[1, 2])))) == [1, 2]
        copied.close()
        under_way = [
            stream, store.chunks([1]), store.pages(source=[1]), store.background, store.tiers, store.prefetch([1])[0],
            store.load("a", int, "LAZY"),
        ]  # fmt: skip
        for thing in under_way:
            with pytest.raises(TypeError, match="pickled"):
                pickle.dumps(thing)
