"""Every kind of remote source keeps the same promises, over real connections, with and without faults."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lazystore.errors import ConfigError, DatasetNotFoundError, FetchError, MissingExtraError, SourceChangedError
from lazystore.fetch.engine import WireSource
from lazystore.fetch.remote import RemoteSource
from lazystore.fetch.source import Read
from lazystore.testing import Faults, FileFaults, ObjectStore

WIRED = ["http", "s3", "obstore-http", "obstore-s3"]
ALL = [*WIRED, "memory", "faulty"]
ODD_NAME = "sub folder/a+b%c#d.bin"

OpenKind = Callable[..., WireSource]
Objects = dict[str, bytes]


def read_of(name: str, begin: int, length: int) -> Read:
    return Read(name, begin, memoryview(bytearray(length)))


def check(reads: list[Read], objects: Objects) -> None:
    for read in reads:
        assert bytes(read.view[: read.got]) == objects[read.name][read.begin : read.begin + read.got]
        assert read.got == len(read.view)


def scattered(objects: Objects, count: int, *, seed: int = 1, length: int = 300) -> list[Read]:
    rng = random.Random(seed)
    names = ["chunk.bin", "big.bin"]
    reads = []
    for _ in range(count):
        name = rng.choice(names)
        size = rng.randrange(1, length)
        reads.append(read_of(name, rng.randrange(len(objects[name]) - size), size))
    return reads


@pytest.mark.parametrize("kind", ALL)
def test_ranges_arrive_exactly(kind: str, open_kind: OpenKind, objects: Objects) -> None:
    source = open_kind(kind)
    reads = [*scattered(objects, 40), read_of(ODD_NAME, 1000, 2000), read_of("one", 0, 1)]
    assert source.run(reads, timeout=60) == {}
    check(reads, objects)
    assert source.counters.bytes_fetched == sum(len(read.view) for read in reads)
    assert source.counters.in_flight_bytes == 0


@pytest.mark.parametrize("kind", ALL)
def test_long_objects_arrive_in_parts(kind: str, open_kind: OpenKind, objects: Objects) -> None:
    source = open_kind(kind, max_in_flight_bytes=6 << 20)
    read = read_of("big.bin", 12345, len(objects["big.bin"]) - 12345)
    source.run([read], timeout=60)
    check([read], objects)
    assert source.counters.in_flight_peak <= 6 << 20
    assert source.counters.requests >= 4


@pytest.mark.parametrize("kind", ALL)
def test_sizes_and_ranges_come_together(kind: str, open_kind: OpenKind, objects: Objects) -> None:
    source = open_kind(kind)
    read = read_of("chunk.bin", 5, 50)
    names = ["chunk.bin", "one", "empty", ODD_NAME]
    assert source.run([read], stat=names, timeout=60) == {name: len(objects[name]) for name in names}
    check([read], objects)
    assert source.counters.waves == 1


@pytest.mark.parametrize("kind", ALL)
def test_reads_past_the_end_give_what_there_is_when_the_size_is_asked(
    kind: str, open_kind: OpenKind, objects: Objects
) -> None:
    source = open_kind(kind)
    size = len(objects["chunk.bin"])
    across, beyond, nothing = read_of("chunk.bin", size - 7, 50), read_of("chunk.bin", size, 5), read_of("empty", 0, 5)
    sizes = source.run([across, beyond, nothing], stat=["chunk.bin", "empty"], timeout=60)
    assert sizes == {"chunk.bin": size, "empty": 0}
    assert (across.got, beyond.got, nothing.got) == (7, 0, 0)
    assert bytes(across.view[:7]) == objects["chunk.bin"][-7:]


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("ahead", [3, -3])
def test_reads_past_the_end_are_errors_otherwise(kind: str, ahead: int, open_kind: OpenKind, objects: Objects) -> None:
    source = open_kind(kind)
    size = len(objects["chunk.bin"])
    with pytest.raises(FetchError, match=f"ends at byte {size}"):
        source.run([read_of("chunk.bin", size + ahead, 10)], timeout=60)


@pytest.mark.parametrize("kind", ALL)
def test_whole_objects(kind: str, open_kind: OpenKind, objects: Objects) -> None:
    source = open_kind(kind)
    for name in ("index.json", "empty", "one", "chunk.bin", ODD_NAME):
        assert source.read_all(name, limit=len(objects[name]), timeout=60) == objects[name]
    with pytest.raises(FetchError, match="longer than 100 bytes"):
        source.read_all("chunk.bin", limit=100, timeout=60)
    assert source.counters.in_flight_bytes == 0


@pytest.mark.parametrize("kind", ALL)
def test_a_missing_object_is_named(kind: str, open_kind: OpenKind) -> None:
    source = open_kind(kind)
    for call in (
        lambda: source.run([read_of("no-such.bin", 0, 5)], timeout=60),
        lambda: source.run([], stat=["no-such.bin"], timeout=60),
        lambda: source.run([read_of("no-such.bin", 0, 5)], stat=["no-such.bin"], timeout=60),
        lambda: source.read_all("no-such.bin", limit=10, timeout=60),
    ):
        with pytest.raises(DatasetNotFoundError, match=r"no-such\.bin.*check the URL"):
            call()


@pytest.mark.parametrize("kind", ["memory", "faulty"])
def test_a_folder_is_not_an_object(kind: str, open_kind: OpenKind) -> None:
    source = open_kind(kind)
    with pytest.raises(DatasetNotFoundError):
        source.run([], stat=["sub folder"], timeout=60)


@pytest.mark.parametrize("kind", ALL)
def test_many_threads_share_one_source(kind: str, open_kind: OpenKind, objects: Objects) -> None:
    source = open_kind(kind, concurrency=16, max_in_flight_bytes=1 << 20)
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for turn in range(3):
                reads = scattered(objects, 10, seed=seed * 10 + turn)
                source.run(reads, stat=["chunk.bin"], timeout=60)
                check(reads, objects)
        except BaseException as error:  # noqa: BLE001 - reported by the main thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert source.counters.in_flight_bytes == 0
    assert source.counters.in_flight_peak <= 1 << 20


@pytest.mark.parametrize("kind", WIRED)
def test_one_wave_sends_one_request_per_range_and_no_more(
    kind: str, open_kind: OpenKind, objects: Objects, faultless: ObjectStore
) -> None:
    source = open_kind(kind)
    reads = [read_of("chunk.bin", i * 100, 50) for i in range(64)]
    source.run(reads, stat=["chunk.bin"], timeout=60)
    stats = faultless.stats()
    # On a machine that is busy elsewhere a request may look slow, and get a rival.
    most = 64 + source.counters.extra["hedges"]
    assert 64 <= stats["requests"].pop("GET") <= most <= 64 + 3
    assert stats["requests"] == {}
    assert 64 * 50 <= stats["bytes_sent"] <= most * 50
    assert source.counters.requests == most


@pytest.mark.parametrize("kind", WIRED)
def test_connections_allow_all_requests_at_once(
    kind: str, open_kind: OpenKind, objects: Objects, faultless: ObjectStore
) -> None:
    faultless.configure(latency_ms=400)
    source = open_kind(kind, concurrency=120)
    reads = [read_of("chunk.bin", i * 100, 50) for i in range(120)]
    source.run(reads, timeout=120)
    check(reads, objects)
    # Well beyond botocore's 10 and aiohttp's 100 connections. (A request by s3fs takes so long to send that
    # on a busy machine the first are back before the last are out.)
    assert faultless.stats()["peak_concurrent"] > (20 if kind == "s3" else 100)


@pytest.mark.parametrize("kind", WIRED)
@pytest.mark.parametrize("same_length", [True, False])
def test_a_rewritten_object_is_noticed(
    kind: str, same_length: bool, open_kind: OpenKind, served: Path, faultless: ObjectStore
) -> None:
    path = served / "data" / "set" / f"changing-{kind}-{same_length}.bin"
    path.write_bytes(b"a" * 1000)
    source = open_kind(kind)
    source.run([], stat=[path.name], timeout=60)
    source.run([read_of(path.name, 10, 10)], timeout=60)
    path.write_bytes(b"b" * (1000 if same_length else 990))
    os.utime(path, ns=(time.time_ns(), time.time_ns() + 7_000_000_000))
    with pytest.raises(SourceChangedError, match="open it again") as caught:
        source.run([read_of(path.name, 10, 10)], timeout=60)
    assert path.name in caught.value.url


@pytest.mark.parametrize("kind", WIRED)
def test_a_server_that_ignores_the_range_is_found_out_before_it_sends_everything(
    kind: str, open_kind: OpenKind, objects: Objects, faultless: ObjectStore
) -> None:
    faultless.configure(faults=Faults(ignore_range=1.0))
    source = open_kind(kind)
    for begin in (0, 1000):
        with pytest.raises(FetchError, match="ignores Range"):
            source.run([read_of("big.bin", begin, 1000)], timeout=60)
    assert source.counters.bytes_fetched == 0
    assert source.counters.retries == 0


@pytest.mark.parametrize("kind", ["http", "s3"])
def test_the_whole_object_is_a_fine_answer_to_a_range_that_covers_it(
    kind: str, open_kind: OpenKind, objects: Objects, faultless: ObjectStore
) -> None:
    faultless.configure(faults=Faults(ignore_range=1.0))
    source = open_kind(kind)
    read = read_of("one", 0, 1)
    source.run([read], timeout=60)
    check([read], objects)


@pytest.mark.parametrize("kind", WIRED)
@pytest.mark.parametrize("fault", ["error_503", "cut"])
def test_each_request_may_fail_once(
    kind: str, fault: str, open_kind: OpenKind, objects: Objects, faultless: ObjectStore
) -> None:
    faultless.configure(faults=Faults(first=(fault,)))
    source = open_kind(kind)
    reads = [*scattered(objects, 10), read_of("big.bin", 0, 3 << 20)]
    sizes = source.run(reads, stat=["chunk.bin", "one", "empty"], timeout=60)
    check(reads, objects)
    assert sizes == {name: len(objects[name]) for name in ("chunk.bin", "one", "empty")}
    assert source.read_all("index.json", limit=100, timeout=60) == objects["index.json"]
    assert source.counters.retries >= 11


@pytest.mark.parametrize("kind", WIRED)
def test_every_byte_is_right_when_one_request_in_three_goes_wrong(
    kind: str, open_kind: OpenKind, objects: Objects, faultless: ObjectStore
) -> None:
    source = open_kind(kind)
    source.run(scattered(objects, 20, seed=99), timeout=60)  # latencies are known from here on
    faultless.configure(faults=Faults(error_503=0.1, cut=0.1, stall=0.1, seed=5))
    reads = [*scattered(objects, 100), read_of("big.bin", 0, len(objects["big.bin"]))]
    source.run(reads, timeout=120)
    check(reads, objects)
    injected = faultless.stats()["faults"]
    assert set(injected) == {"error_503", "cut", "stall"}
    assert source.counters.extra["stalls"] >= 1
    assert source.counters.in_flight_bytes == 0


def test_every_byte_is_right_over_a_filesystem_that_tells_nothing(open_kind: OpenKind, objects: Objects) -> None:
    faults = FileFaults(error=0.1, short=0.1, cancelled=0.1, seed=3, errors=(ConnectionResetError, TimeoutError))
    source = open_kind("faulty", storage_options={"faults": {"cat_file": faults}})
    reads = [*scattered(objects, 200), read_of("big.bin", 0, len(objects["big.bin"]))]
    source.run(reads, stat=["chunk.bin"], timeout=120)
    check(reads, objects)
    assert source.counters.retries > 20


def test_extra_bytes_from_a_filesystem_are_refused(open_kind: OpenKind, objects: Objects) -> None:
    source = open_kind("faulty", storage_options={"faults": {"cat_file": FileFaults(extra=1.0)}})
    with pytest.raises(FetchError, match="ignores Range"):
        source.run([read_of("chunk.bin", 5, 50)], timeout=60)


def test_a_blocking_filesystem_that_gives_none_is_asked_again(open_kind: OpenKind, objects: Objects) -> None:
    source = open_kind("memory")
    source.run([], stat=["chunk.bin"], timeout=60)
    assert source._link is not None
    fs: Any = source._link.wire._fs  # type: ignore[attr-defined]
    honest, answers = fs.cat_file, [None, None]

    def gives_none(path: str, start: int, end: int) -> Any:
        return answers.pop() if answers else honest(path, start=start, end=end)

    fs.cat_file = gives_none
    try:
        read = read_of("chunk.bin", 5, 50)
        source.run([read], timeout=60)
    finally:
        del fs.cat_file
    check([read], objects)
    assert source.counters.retries == 2


def test_blocking_calls_that_hang_end_with_the_deadline(open_kind: OpenKind) -> None:
    source = open_kind("memory")
    source.run([], stat=["chunk.bin"], timeout=60)
    assert source._link is not None
    fs: Any = source._link.wire._fs  # type: ignore[attr-defined]
    release = threading.Event()
    fs.cat_file = lambda path, start, end: release.wait(60)
    try:
        read = read_of("chunk.bin", 5, 50)
        with pytest.raises(FetchError, match=r"chunk\.bin bytes 5-55 did not come within 0\.2 s"):
            source.run([read], timeout=0.2)
    finally:
        release.set()
        del fs.cat_file
    assert bytes(read.view) == bytes(50)


@pytest.mark.parametrize("status", [403, 401])
def test_refused_access_names_the_remedy(status: int) -> None:
    with _OneAnswer(f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n") as url:
        source = RemoteSource(url)
        with pytest.raises(FetchError, match="storage_options"):
            source.run([read_of("a", 0, 5)], timeout=60)
        source.close()


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ("HTTP/1.1 206 Partial\r\nContent-Length: 5\r\n\r\nabcde", "unusable Content-Range"),
        ("HTTP/1.1 206 Partial\r\nContent-Length: 5\r\nContent-Range: bytes 3-7/99\r\n\r\nabcde", "answers from 3"),
        ("HTTP/1.1 206 Partial\r\nContent-Length: 9\r\nContent-Range: bytes 0-8/99\r\n\r\nabcdefghi", "ignores Range"),
        (
            "HTTP/1.1 206 A\r\nContent-Length: 5\r\nContent-Encoding: gzip\r\nContent-Range: bytes 0-4/99\r\n\r\nabcde",
            "Content-Encoding: gzip",
        ),
    ],
)
def test_answers_that_do_not_fit_the_question_are_refused(head: str, words: str) -> None:
    with _OneAnswer(head) as url:
        source = RemoteSource(url)
        with pytest.raises(FetchError, match=words):
            source.run([read_of("a", 0, 5)], timeout=60)
        source.close()


def test_a_size_that_the_answer_does_not_tell_is_asked_for() -> None:
    answer = "HTTP/1.1 206 Partial\r\nContent-Length: 5\r\nContent-Range: bytes 0-4/*\r\n\r\nabcde"
    size = "HTTP/1.1 200 OK\r\nContent-Length: 77\r\n\r\n"
    with _OneAnswer(answer, size) as url:
        source = RemoteSource(url)
        read = read_of("a", 0, 5)
        assert source.run([read], stat=["a"], timeout=60) == {"a": 77}
        assert bytes(read.view) == b"abcde"
        source.close()


def test_a_server_that_refuses_head_is_asked_for_one_byte() -> None:
    refused = "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"
    answer = "HTTP/1.1 206 Partial\r\nContent-Length: 1\r\nContent-Range: bytes 0-0/4321\r\n\r\na"
    with _OneAnswer(refused, answer) as url:
        source = RemoteSource(url)
        assert source.run([], stat=["a"], timeout=60) == {"a": 4321}
        source.close()


def test_headers_from_storage_options_are_sent_and_ours_do_not_hide_them() -> None:
    with _OneAnswer("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi") as url:
        source = RemoteSource(url, {"headers": {"X-Secret": "42"}, "client_kwargs": {"headers": {"X-Other": "7"}}})
        assert source.read_all("a b", limit=10, timeout=60) == b"hi"
        source.close()
        request = _OneAnswer.last_request
    assert b"X-Secret: 42" in request
    assert b"X-Other: 7" in request
    assert b"Accept-Encoding: identity" in request
    assert request.startswith(b"GET /root/a%20b?sig=xyz ")


@pytest.mark.parametrize("kind", ["http", "s3"])
def test_the_users_own_bound_on_connections_is_kept(
    kind: str, store: ObjectStore, objects: Objects, faultless: ObjectStore
) -> None:
    if kind == "http":
        import aiohttp

        async def get_client(**kwargs: Any) -> Any:
            kwargs["connector"] = aiohttp.TCPConnector(limit=7)
            return aiohttp.ClientSession(**kwargs)

        source = RemoteSource(store.http_url("data", "set"), {"get_client": get_client})
    else:
        options = {"anon": True, "endpoint_url": store.url, "config_kwargs": {"max_pool_connections": 7}}
        source = RemoteSource(store.s3_url("data", "set"), options)
    faultless.configure(latency_ms=200)
    reads = scattered(objects, 30)
    source.run(reads, timeout=60)
    check(reads, objects)
    source.close()
    assert 2 <= faultless.stats()["peak_concurrent"] <= 7


def test_secrets_in_urls_stay_out_of_messages() -> None:
    with _OneAnswer("HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n") as url:
        source = RemoteSource(url)
        with pytest.raises(FetchError) as caught:
            source.run([read_of("a", 0, 5)], timeout=60)
        source.close()
    assert "xyz" not in str(caught.value)
    assert "xyz" not in caught.value.url


def test_an_unknown_protocol_is_a_configuration_error() -> None:
    source = RemoteSource("nosuch://place")
    with pytest.raises(ConfigError, match="nosuch"):
        source.run([read_of("a", 0, 5)], timeout=60)


def test_an_option_the_filesystem_does_not_take_is_a_configuration_error(store: ObjectStore) -> None:
    source = RemoteSource("s3://bucket", {"key": "a", "username": "b"})
    with pytest.raises(ConfigError, match="storage_options"):
        source.run([read_of("a", 0, 5)], timeout=60)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    source = RemoteSource("s3://bucket")
    with pytest.raises(MissingExtraError, match=r"pip install lazystore\[s3\]"):
        source.run([read_of("a", 0, 5)], timeout=60)


def test_asynchronous_filesystems_are_refused(open_kind: OpenKind) -> None:
    source = open_kind("faulty", storage_options={"asynchronous": True})
    with pytest.raises(ConfigError, match="asynchronous"):
        source.run([read_of("a", 0, 5)], timeout=60)


def test_chained_urls_read_through_what_they_chain(objects: Objects, open_kind: OpenKind, tmp_path: Path) -> None:
    open_kind("memory").run([], stat=["one"], timeout=60)  # puts the objects there
    source = RemoteSource("filecache::memory://fetch-tests", {"filecache": {"cache_storage": str(tmp_path)}})
    reads = scattered(objects, 5)
    source.run(reads, stat=["chunk.bin"], timeout=60)
    check(reads, objects)
    source.close()


class _OneAnswer:
    """A server that gives each request the next of these answers (the last one for ever)."""

    last_request = b""

    def __init__(self, *answers: str) -> None:
        self._answers = [answer.encode() for answer in answers]
        self._writers: list[asyncio.StreamWriter] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    async def _serve(self) -> tuple[asyncio.Server, int]:
        async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._writers.append(writer)
            try:
                while True:
                    _OneAnswer.last_request = await reader.readuntil(b"\r\n\r\n")
                    writer.write(self._answers.pop(0) if len(self._answers) > 1 else self._answers[0])
            except (asyncio.IncompleteReadError, ConnectionError):
                writer.close()

        server = await asyncio.start_server(converse, "127.0.0.1", 0)
        return server, server.sockets[0].getsockname()[1]

    def __enter__(self) -> str:
        self._thread.start()
        self._server, port = asyncio.run_coroutine_threadsafe(self._serve(), self._loop).result(10)
        return f"http://127.0.0.1:{port}/root/?sig=xyz"

    def __exit__(self, *_: object) -> None:
        async def stop() -> None:
            self._server.close()
            for writer in self._writers:
                writer.close()
            for writer in self._writers:
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()
            await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
