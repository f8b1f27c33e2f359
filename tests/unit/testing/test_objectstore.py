from __future__ import annotations

import asyncio
import http.client
import json
import os
import pickle
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import lazystore.testing
from lazystore.errors import ClosedError, ConfigError, DatasetNotFoundError, LazyStoreError
from lazystore.testing import Faults, ObjectStore, dependent_waves

BLOB = random.Random(5).randbytes(3_000_000)
NOTE = b"hello, store\n"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    (root / "data" / "sub dir").mkdir(parents=True)
    (root / "data" / "blob.bin").write_bytes(BLOB)
    (root / "data" / "sub dir" / "n+te.txt").write_bytes(NOTE)
    (root / "data" / "empty").write_bytes(b"")
    (root / "other").mkdir()
    (root / "secret.txt").write_bytes(b"secret")
    return root


@pytest.fixture(scope="module")
def running(root):
    with ObjectStore(root) as store:
        yield store


@pytest.fixture
def store(running):
    running.configure(latency_ms=0, jitter=0, bandwidth=None, faults=None)
    running.reset()
    return running


def environment():
    """For interpreters started here: the same lazystore."""
    return {**os.environ, "PYTHONPATH": str(Path(lazystore.testing.__file__).parents[2])}


def ask(store, path, method="GET", **headers):
    """Status, headers and body; names of headers with "_" for "-"."""
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(store.url).netloc, timeout=20)
    try:
        connection.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def talk(store, raw):
    """What the server says to these bytes until it closes the connection."""
    parts = urllib.parse.urlsplit(store.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as sock:
        sock.sendall(raw)
        said = b""
        while piece := sock.recv(65536):
            said += piece
    return said


# -- objects


def test_an_object_comes_whole_with_its_identity(store):
    status, headers, body = ask(store, "/data/blob.bin")
    assert (status, body) == (200, BLOB)
    assert headers["Content-Length"] == str(len(BLOB))
    assert headers["Accept-Ranges"] == "bytes"
    assert headers["ETag"].startswith('"')
    assert headers["Last-Modified"].endswith("GMT")
    head_status, head_headers, nothing = ask(store, "/data/blob.bin", "HEAD")
    assert (head_status, nothing) == (200, b"")
    for name in ("Content-Length", "ETag", "Last-Modified", "Accept-Ranges", "Content-Type"):
        assert head_headers[name] == headers[name]


def test_keys_are_percent_decoded(store):
    assert ask(store, urllib.parse.urlsplit(store.http_url("data", "sub dir/n+te.txt")).path)[2] == NOTE
    assert ask(store, "/data/sub%20dir/n%2Bte.txt")[2] == NOTE


@pytest.mark.parametrize(
    ("wanted", "begin", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=1000-300999", 1000, 301_000),
        ("bytes=2999990-", 2_999_990, 3_000_000),
        ("bytes=-7", 2_999_993, 3_000_000),
        ("bytes=5-9999999", 5, 3_000_000),
    ],
)
def test_a_range_comes_as_206(store, wanted, begin, end):
    status, headers, body = ask(store, "/data/blob.bin", Range=wanted)
    assert (status, body) == (206, BLOB[begin:end])
    assert headers["Content-Range"] == f"bytes {begin}-{end - 1}/{len(BLOB)}"
    entry = store.stats()["log"][-1]
    assert (entry["begin"], entry["end"], entry["sent"]) == (begin, end, end - begin)


def test_a_range_beyond_the_object_is_416(store):
    status, headers, _ = ask(store, "/data/blob.bin", Range="bytes=3000000-")
    assert (status, headers["Content-Range"]) == (416, "bytes */3000000")
    assert ask(store, "/data/empty", Range="bytes=0-")[0] == 416
    assert ask(store, "/data/empty")[::2] == (200, b"")


def test_conditions_are_honoured(store):
    etag = ask(store, "/data/blob.bin", "HEAD")[1]["ETag"]
    assert ask(store, "/data/blob.bin", If_Match=etag, Range="bytes=0-3")[::2] == (206, BLOB[:4])
    assert ask(store, "/data/blob.bin", If_Match='"other"')[0] == 412
    status, headers, body = ask(store, "/data/blob.bin", If_None_Match=etag)
    assert (status, headers["ETag"], body) == (304, etag, b"")
    assert ask(store, "/data/blob.bin", If_None_Match='"other"', Range="bytes=0-3")[0] == 206
    assert ask(store, "/data/blob.bin", If_Range='"other"', Range="bytes=0-3")[0] == 200
    assert ask(store, "/data/blob.bin", If_Range=etag, Range="bytes=0-3")[0] == 206


def test_a_rewritten_object_has_another_etag(store, root):
    path = root / "other" / "changing"
    path.write_bytes(b"one")
    old = ask(store, "/other/changing")[1]["ETag"]
    path.write_bytes(b"three")
    status, headers, body = ask(store, "/other/changing")
    assert (status, body) == (200, b"three")
    assert headers["ETag"] != old
    assert ask(store, "/other/changing", If_Match=old)[0] == 412
    path.unlink()
    assert ask(store, "/other/changing")[0] == 404


@pytest.mark.parametrize("path", ["/data/none", "/none/blob.bin", "/data/sub%20dir", "/data/none/", "/data//blob.bin"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_what_is_not_there_is_404(store, path, method):
    status, _, body = ask(store, path, method, Authorization="AWS4-HMAC-SHA256 any")
    assert status == 404
    assert (b"<Code>NoSuch" in body) == (method == "GET")


def test_folders_are_pages_of_links_for_http_clients_and_nothing_for_s3_clients(store):
    for path in ("/data", "/data/", "/data/sub%20dir", "/data/sub%20dir/"):
        status, headers, body = ask(store, path)
        assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert b'<a href="/data/sub%20dir/' in body
    assert ask(store, "/data/sub%20dir", Range="bytes=0-9")[0] == 404
    assert ask(store, "/data/sub%20dir", User_Agent="object_store/1")[0] == 404
    assert ask(store, "/data/sub%20dir", "HEAD")[0] == 404
    assert ask(store, "/data/../data")[0] == 404


# -- closed doors


@pytest.mark.parametrize(
    "path",
    [
        "/secret.txt", "/data/../secret.txt", "/data/%2e%2e/secret.txt", "/data/..%2fsecret.txt",
        "/../secret.txt", "/%2e%2e/secret.txt", "//secret.txt", "/./secret.txt", "/data/%2Fsecret.txt",
        "/data/%00", "/data/%ff",
    ],
)  # fmt: skip
def test_nothing_outside_the_buckets_is_served(store, path):
    said = talk(store, f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
    assert said[:11] in (b"HTTP/1.1 40", b"HTTP/1.1 41")
    assert b"secret\n" not in said
    assert not said.endswith(b"secret")


def test_only_the_loopback_address_listens(store):
    port = urllib.parse.urlsplit(store.url).port
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=20).close()


def test_foreign_host_names_are_turned_away(store):
    assert ask(store, "/data/empty", Host="evil.example")[0] == 421
    assert ask(store, "/-/stats", Host="evil.example:80")[0] == 421
    assert ask(store, "/data/empty", Host="localhost:1")[0] == 200


@pytest.mark.parametrize("method", ["PUT", "DELETE", "POST"])
def test_the_store_is_read_only(store, root, method):
    assert ask(store, "/data/empty", method)[0] == 501
    assert (root / "data" / "empty").exists()


# -- the wire


def test_pipelined_requests_are_answered_in_order(store):
    one = "GET /data/blob.bin HTTP/1.1\r\nHost: localhost\r\nRange: bytes={0}-{0}\r\n{1}\r\n"
    raw = "".join(one.format(i, "Connection: close\r\n" if i == 299 else "") for i in range(300))
    said = talk(store, raw.encode())
    heads = said.split(b"HTTP/1.1 206 Partial Content\r\n")[1:]
    assert b"".join(head.partition(b"\r\n\r\n")[2] for head in heads) == BLOB[:300]


def test_a_request_may_arrive_byte_by_byte(store):
    parts = urllib.parse.urlsplit(store.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as sock:
        for byte in b"GET /data/sub%20dir/n+te.txt HTTP/1.0\r\n\r\n":
            sock.sendall(bytes([byte]))
        said = b""
        while piece := sock.recv(65536):
            said += piece
    assert said.endswith(NOTE)
    assert b"Connection: close" in said


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 40_000, 431),
        (b"POST /-/reset HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        (b"PUT /data/x HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", 413),
    ],
)
def test_what_is_not_understood_closes_the_connection(store, raw, status):
    assert talk(store, raw).startswith(b"HTTP/1.1 %d " % status)


def test_a_client_that_waits_for_100_gets_it(store):
    body = b'{"latency_ms": 0}'
    head = b"POST /-/configure HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nConnection: close\r\n"
    parts = urllib.parse.urlsplit(store.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as sock:
        sock.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body))
        assert sock.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(body)
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 OK")


# -- latency, bandwidth, counters


def fetch_together(store, count, path="/data/blob.bin"):
    """``count`` requests, all sent before the first answer is read."""
    parts = urllib.parse.urlsplit(store.url)
    raw = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nRange: bytes=0-99\r\nConnection: close\r\n\r\n"
    sockets = [socket.create_connection((parts.hostname, parts.port), timeout=30) for _ in range(count)]
    for sock in sockets:
        sock.sendall(raw.encode())
    said = []
    for sock in sockets:
        answer = b""
        while piece := sock.recv(65536):
            answer += piece
        said.append(answer)
        sock.close()
    return said


def test_parallel_requests_wait_out_the_latency_together(store):
    store.configure(latency_ms=1000)
    said = fetch_together(store, 64)
    assert all(answer.endswith(BLOB[:100]) for answer in said)
    stats = store.stats()
    assert stats["peak_concurrent"] == 64
    assert dependent_waves(stats["log"]) == 1
    assert all(entry["finished"] - entry["received"] >= 0.999 for entry in stats["log"])


def test_dependent_requests_are_waves(store):
    store.configure(latency_ms=50)
    for _ in range(3):
        ask(store, "/data/empty")
    assert dependent_waves(store.stats()["log"]) == 3


def test_jitter_spreads_the_latency_reproducibly(store):
    def waits():
        store.reset()
        fetch_together(store, 20, "/data/sub%20dir/n+te.txt")
        log = store.stats()["log"]
        return [entry["finished"] - entry["received"] for entry in log]

    store.configure(latency_ms=40, jitter=0.8, faults=Faults(seed=4))
    expected = random.Random(4)
    factors = [2.718281828459045 ** expected.gauss(0.0, 0.8) for _ in range(20)]
    assert all(wait >= 0.040 * factor * 0.999 for wait, factor in zip(waits(), factors, strict=True))
    assert max(factors) > 2 * min(factors)


def test_the_bandwidth_limit_holds_over_all_connections(store):
    store.configure(bandwidth="20MB")
    began = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        bodies = list(pool.map(lambda _: ask(store, "/data/blob.bin")[2], range(4)))
    took = time.monotonic() - began
    assert bodies == [BLOB] * 4
    # A bound from below only: 12 MB cannot come faster than 20 MB/s, but for one piece each and the burst.
    assert took >= (4 * len(BLOB) - 4 * 65536) / 20e6 - 0.01


def test_counters_count_and_reset(store):
    ask(store, "/data/blob.bin", Range="bytes=0-99")
    ask(store, "/data/blob.bin", "HEAD")
    ask(store, "/data/none")
    stats = store.stats()
    assert stats["requests"] == {"GET": 2, "HEAD": 1}
    assert stats["gets"] == 2
    assert stats["statuses"] == {"206": 1, "200": 1, "404": 1}
    assert [entry["status"] for entry in stats["log"]] == [206, 200, 404]
    assert [entry["path"] for entry in stats["log"]] == ["/data/blob.bin", "/data/blob.bin", "/data/none"]
    assert stats["log"][0]["received"] <= stats["log"][0]["finished"] <= stats["log"][1]["received"]
    assert stats["bytes_sent"] == sum(entry["sent"] for entry in stats["log"])
    store.reset()
    stats = store.stats()
    assert (stats["requests"], stats["log"], stats["bytes_sent"], stats["in_flight"]) == ({}, [], 0, 0)


def test_the_log_is_bounded(root):
    with ObjectStore({"data": root / "data"}, log=5) as store:
        for _ in range(8):
            ask(store, "/data/empty")
        stats = store.stats()
        assert (len(stats["log"]), stats["log_dropped"], stats["gets"]) == (5, 3, 8)


# -- faults


def test_503_is_answered_as_s3_does(store):
    store.configure(faults=Faults(error_503=1.0))
    status, _, body = ask(store, "/data/blob.bin")
    assert (status, b"<Code>SlowDown</Code>" in body) == (503, True)
    assert store.stats()["faults"] == {"error_503": 1}


def test_a_cut_body_ends_early_on_a_closed_connection(store):
    store.configure(faults=Faults(cut=1.0))
    for path, wanted in (("/data/blob.bin", BLOB), ("/data/sub%20dir/n+te.txt", NOTE)):
        with pytest.raises(http.client.IncompleteRead) as caught:
            ask(store, path)
        assert len(caught.value.partial) < len(wanted)
        assert wanted.startswith(caught.value.partial)
    with pytest.raises(http.client.RemoteDisconnected):
        ask(store, "/data/blob.bin", "HEAD")
    stats = store.stats()
    assert stats["faults"] == {"cut": 3}
    assert stats["log"][0]["end"] == len(BLOB)
    assert stats["log"][0]["sent"] < len(BLOB)
    assert stats["in_flight"] == 0


def wait_for_fault(store):
    """The log's last entry, once its fault is settled."""
    deadline = time.monotonic() + 20
    while True:
        log = store.stats()["log"]
        if log and log[-1]["fault"]:
            return log[-1]
        assert time.monotonic() < deadline


def test_a_stall_sends_nothing_or_half_and_lets_go_when_the_client_does(store):
    store.configure(faults=Faults(stall=1.0))
    parts = urllib.parse.urlsplit(store.url)
    said = []
    for first in range(12):
        with socket.create_connection((parts.hostname, parts.port), timeout=20) as sock:
            wanted = f"Range: bytes={first}-{first + 999}"
            sock.sendall(f"GET /data/blob.bin HTTP/1.1\r\nHost: localhost\r\n{wanted}\r\n\r\n".encode())
            entry = wait_for_fault(store)
            assert (entry["finished"], store.stats()["in_flight"]) == (None, 1)
            got = b""
            while entry["status"] and len(got.partition(b"\r\n\r\n")[2]) < 500:
                got += sock.recv(65536)
            sock.settimeout(0.05)
            with pytest.raises(TimeoutError):
                sock.recv(1)
            said.append(len(got.partition(b"\r\n\r\n")[2]) if got else -1)
        deadline = time.monotonic() + 20
        while store.stats()["in_flight"]:
            assert time.monotonic() < deadline
        store.reset()
    assert set(said) == {-1, 500}


def test_an_ignored_range_answers_with_everything(store):
    store.configure(faults=Faults(ignore_range=1.0))
    status, headers, body = ask(store, "/data/sub%20dir/n+te.txt", Range="bytes=0-3")
    assert (status, body, headers["Content-Range"]) == (200, NOTE, None)
    assert ask(store, "/data/sub%20dir/n+te.txt")[0] == 200
    assert store.stats()["faults"] == {"ignore_range": 1}


def test_faults_befall_each_request_first_and_then_let_it_pass(store):
    store.configure(faults=Faults(first=("error_503",), only="data/*"))
    assert [ask(store, "/data/empty")[0] for _ in range(3)] == [503, 200, 200]
    assert [ask(store, "/data/blob.bin", Range="bytes=0-1")[0] for _ in range(2)] == [503, 206]
    assert ask(store, "/other/none")[0] == 404
    store.configure(latency_ms=1)  # other settings leave the plan where it is
    assert ask(store, "/data/empty")[0] == 200
    store.reset()
    assert ask(store, "/data/empty")[0] == 503


def test_the_same_seed_hits_the_same_requests(store):
    def run(seed):
        store.configure(faults=Faults(error_503=0.5, seed=seed))
        return [ask(store, "/data/blob.bin", Range=f"bytes={i}-{i}")[0] for i in range(40)]

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_control_requests_are_neither_late_nor_faulty_nor_counted(store):
    store.configure(latency_ms=600_000, faults=Faults(cut=1.0))
    store.reset()
    assert store.stats()["requests"] == {}


# -- clients


def test_fsspec_http_reads_and_lists(store):
    pytest.importorskip("aiohttp")
    import fsspec

    fs = fsspec.filesystem("http", skip_instance_cache=True)
    url = store.http_url("data", "blob.bin")
    assert (fs.info(url)["size"], fs.size(url)) == (len(BLOB), len(BLOB))
    assert fs.cat_file(url, start=1000, end=2000) == BLOB[1000:2000]
    starts = list(range(0, 100_000, 1000))
    ranges = fs.cat_ranges([url] * len(starts), starts, [s + 10 for s in starts])
    assert ranges == [BLOB[s : s + 10] for s in starts]
    listed = {entry["name"]: entry["type"] for entry in fs.ls(store.http_url("data", ""), detail=True)}
    assert listed == {
        store.http_url("data", "blob.bin"): "file",
        store.http_url("data", "empty"): "file",
        store.http_url("data", "sub dir/"): "directory",
    }
    assert fs.find(store.http_url("data")) == [
        store.http_url("data", key) for key in ("blob.bin", "empty", "sub dir/n+te.txt")
    ]
    with fsspec.open(store.http_url("data", "sub dir/n+te.txt"), "rb") as file:
        assert file.read() == NOTE
    with pytest.raises(FileNotFoundError):
        fs.cat_file(store.http_url("data", "none"))


@pytest.mark.s3
def test_s3fs_reads_and_lists(store):
    s3fs = pytest.importorskip("s3fs")
    fs = s3fs.S3FileSystem(skip_instance_cache=True, **store.s3_options())
    url = store.s3_url("data", "blob.bin")
    info = fs.info(url)
    assert (info["size"], info["type"]) == (len(BLOB), "file")
    assert info["ETag"] == ask(store, "/data/blob.bin", "HEAD")[1]["ETag"]
    assert fs.cat_file(url, start=1000, end=2000) == BLOB[1000:2000]
    assert fs.cat_ranges([url] * 3, [0, 5, 9], [2, 8, 10]) == [BLOB[:2], BLOB[5:8], BLOB[9:10]]
    assert sorted(fs.ls("s3://data", detail=False)) == ["data/blob.bin", "data/empty", "data/sub dir"]
    assert fs.find("s3://data") == ["data/blob.bin", "data/empty", "data/sub dir/n+te.txt"]
    assert fs.cat("s3://data/sub dir/n+te.txt") == NOTE
    assert fs.isdir("s3://data/sub dir")
    assert fs.exists("s3://data")
    assert not fs.exists("s3://nowhere/at-all")
    with pytest.raises(FileNotFoundError):
        fs.cat_file("s3://data/none")
    with fs.open(url) as file:
        file.seek(2_000_000)
        assert file.read(100) == BLOB[2_000_000:2_000_100]


@pytest.mark.s3
def test_signed_requests_are_taken_without_a_look_at_the_signature(store):
    s3fs = pytest.importorskip("s3fs")
    options = {**store.s3_options(), "anon": False, "key": "any", "secret": "thing"}
    fs = s3fs.S3FileSystem(skip_instance_cache=True, **options)
    assert sorted(fs.ls("")) == ["data", "other"]
    assert fs.cat_file("s3://data/blob.bin", start=5, end=9) == BLOB[5:9]


def test_obstore_s3_reads_and_lists(store):
    pytest.importorskip("obstore")
    import obstore
    from obstore.store import S3Store

    s3 = S3Store("data", **store.obstore_options())
    meta = obstore.head(s3, "blob.bin")
    assert meta["size"] == len(BLOB)
    assert bytes(obstore.get_range(s3, "blob.bin", start=1000, end=2000)) == BLOB[1000:2000]
    parts = obstore.get_ranges(s3, "blob.bin", starts=[0, 2_000_000], ends=[10, 2_000_010])
    assert [bytes(part) for part in parts] == [BLOB[:10], BLOB[2_000_000:2_000_010]]
    assert bytes(obstore.get(s3, "sub dir/n+te.txt").bytes()) == NOTE
    found = [entry["path"] for batch in obstore.list(s3) for entry in batch]
    assert found == ["blob.bin", "empty", "sub dir/n+te.txt"]
    tops = obstore.list_with_delimiter(s3)
    assert [entry["path"] for entry in tops["objects"]] == ["blob.bin", "empty"]
    assert list(tops["common_prefixes"]) == ["sub dir"]
    with pytest.raises(FileNotFoundError):
        obstore.head(s3, "none")


def test_obstore_http_reads(store):
    pytest.importorskip("obstore")
    import obstore
    from obstore.store import HTTPStore

    web = HTTPStore.from_url(store.http_url("data").rstrip("/"), client_options={"allow_http": True})
    assert obstore.head(web, "blob.bin")["size"] == len(BLOB)
    assert bytes(obstore.get_range(web, "blob.bin", start=1000, end=2000)) == BLOB[1000:2000]


def test_aiohttp_keeps_its_connections(store):
    aiohttp = pytest.importorskip("aiohttp")

    async def run():
        connector = aiohttp.TCPConnector(limit=4)
        async with aiohttp.ClientSession(connector=connector) as session:

            async def one(begin):
                headers = {"Range": f"bytes={begin}-{begin + 9}"}
                async with session.get(store.http_url("data", "blob.bin"), headers=headers) as answer:
                    return await answer.read()

            return await asyncio.gather(*[one(i * 10) for i in range(200)])

    assert b"".join(asyncio.run(run())) == BLOB[:2000]
    assert store.stats()["connections"] <= 4 + 1  # and the control request's own


# -- the process


def test_memory_stays_bounded_with_slow_readers_of_large_objects(tmp_path):
    if not os.path.exists("/proc/self/status"):
        pytest.skip("needs /proc to read the server's memory")
    size = 64 << 20
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(size)
    with ObjectStore({"b": tmp_path}) as store:
        parts = urllib.parse.urlsplit(store.url)
        before = peak_memory(store.pid)
        sockets = [socket.create_connection((parts.hostname, parts.port), timeout=30) for _ in range(200)]
        for sock in sockets:
            sock.sendall(b"GET /b/sparse HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for sock in sockets:
            assert len(sock.recv(1 << 16)) > 0
        deadline = time.monotonic() + 30
        while store.stats()["in_flight"] < 200:
            assert time.monotonic() < deadline
        for sock in sockets:
            sock.close()
        grown = peak_memory(store.pid) - before
    assert grown < 48 << 20  # 32 MiB of pieces, and the connections themselves


def peak_memory(pid):
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM:"))


def wait_until_refused(url):
    parts = urllib.parse.urlsplit(url)
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection((parts.hostname, parts.port), timeout=5).close()
        except ConnectionRefusedError:
            return
        assert time.monotonic() < deadline, "the server outlived its parent"
        time.sleep(0.05)


PARENT = """
import os, sys, time
from lazystore.testing import ObjectStore
store = ObjectStore({"data": sys.argv[1]}).start()
if sys.argv[2] == "fork" and os.fork() == 0:
    os.close(1)
    time.sleep(60)
    os._exit(0)
print(store.url, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("children", ["none", "fork"])
def test_the_server_ends_when_its_parent_is_killed(root, children):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(root / "data"), children],
        stdout=subprocess.PIPE,
        start_new_session=True,
        env=environment(),
    )
    assert parent.stdout is not None
    try:
        url = parent.stdout.readline().decode().strip()
        parent.kill()
        parent.wait()
        wait_until_refused(url)
    finally:
        parent.stdout.close()
        if children == "fork":
            os.killpg(parent.pid, signal.SIGKILL)


def test_the_command_line_serves_until_its_stdin_ends(tmp_path):
    size = 32 << 20
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(size)
    command = [sys.executable, "-m", "lazystore.testing.objectstore", "--bucket", f"d={tmp_path}"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment())
    assert process.stdout is not None
    url = process.stdout.readline().decode().strip()
    for _ in range(3):  # larger than socket buffers, each on a connection that the server closes
        with urllib.request.urlopen(f"{url}/d/sparse", timeout=20) as answer:
            assert len(answer.read()) == size
    said, complaints = process.communicate(timeout=20)
    assert (process.returncode, said, complaints) == (0, b"", b"")


@pytest.mark.parametrize(
    "arguments",
    [[], ["--root", "/does/not/exist"], ["--bucket", "x"], ["--root", ".", "--latency-ms", "-1"],
     ["--root", ".", "--faults", '{"cut": 7}'], ["--root", ".", "--bandwidth", "fast"]],
)  # fmt: skip
def test_the_command_line_explains_what_cannot_work(arguments):
    command = [sys.executable, "-m", "lazystore.testing.objectstore", *arguments]
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, env=environment(), timeout=60)
    assert done.returncode in (1, 2)
    assert done.stdout == b""
    assert done.stderr.startswith(b"error: ")
    assert b"Traceback" not in done.stderr


def test_a_taken_port_is_reported(store, root):
    port = urllib.parse.urlsplit(store.url).port
    with pytest.raises(LazyStoreError, match="before it listened"):
        ObjectStore(root, port=port).start()


def test_arguments_that_cannot_work_are_refused_at_once(tmp_path):
    with pytest.raises(DatasetNotFoundError):
        ObjectStore(tmp_path / "none")
    with pytest.raises(ConfigError):
        ObjectStore({})
    with pytest.raises(ConfigError):
        ObjectStore(tmp_path, bandwidth="fast")


def test_refused_changes_leave_the_settings_alone(store):
    store.configure(faults=Faults(error_503=1.0))
    with pytest.raises(ConfigError, match="latency_ms"):
        store.configure(latency_ms=-5, faults=None)
    assert ask(store, "/data/empty")[0] == 503


def test_a_closed_store_says_so(root):
    store = ObjectStore(root)
    with pytest.raises(ClosedError):
        store.url  # noqa: B018
    with store:
        url = store.url
        with pytest.raises(ConfigError):
            store.start()
    wait_until_refused(url)
    with pytest.raises(ClosedError):
        store.stats()
    store.close()
    assert "not running" in repr(store)


def test_a_server_that_was_killed_is_reported(root):
    with ObjectStore(root) as store:
        os.kill(store.pid, signal.SIGKILL)
        wait_until_refused(store.url)
        with pytest.raises(LazyStoreError, match="does not answer"):
            store.stats()


def test_a_store_does_not_pickle(store):
    with pytest.raises(TypeError, match="url"):
        pickle.dumps(store)


def test_closing_in_a_forked_child_leaves_the_server_running(root):
    script = """
import os, sys
from lazystore.testing import ObjectStore
with ObjectStore({"data": sys.argv[1]}) as store:
    child = os.fork()
    if child == 0:
        store.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    print(store.stats()["gets"])
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(root / "data")],
        capture_output=True, text=True, timeout=60, env=environment(),
    )  # fmt: skip
    assert done.stdout == "0\n", done.stderr


def test_many_threads_may_ask_for_stats(store):
    found = []
    threads = [threading.Thread(target=lambda: found.append(store.stats())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [json.dumps(each["requests"]) for each in found] == ["{}"] * 8
