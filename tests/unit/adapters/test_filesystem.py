"""``lazystore::`` as an fsspec filesystem: chained, cached, shared, read-only."""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from lazystore.errors import ConfigError, SourceChangedError, UnsupportedError
from lazystore.lazy.file import BufferedLazyFile
from lazystore.testing import ObjectStore

pytest.importorskip("fsspec.implementations.chained")

from lazystore.adapters.filesystem import LazyStoreFileSystem

DATA = random.Random(6).randbytes(300_000)
PAGE = 16 << 10


@pytest.fixture(scope="module", autouse=True)
def _registered() -> None:
    fsspec.register_implementation("lazystore", LazyStoreFileSystem, clobber=True)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("served")
    (root / "data" / "set" / "deep").mkdir(parents=True)
    (root / "data" / "a.bin").write_bytes(DATA)
    (root / "data" / "lines.txt").write_text("one\ntwo\n")
    for number in range(3):
        (root / "data" / "set" / f"{number}.bin").write_bytes(DATA[number * 1000 : (number + 1) * 1000])
    (root / "data" / "set" / "deep" / "x").write_bytes(b"")
    return root


@pytest.fixture(scope="module")
def running(served: Path) -> Iterator[ObjectStore]:
    with ObjectStore(served) as store:
        yield store


@pytest.fixture
def store(running: ObjectStore) -> Iterator[ObjectStore]:
    LazyStoreFileSystem.clear_instance_cache()
    running.reset()
    yield running
    LazyStoreFileSystem.clear_instance_cache()


def options(store: ObjectStore, **own: Any) -> dict[str, Any]:
    s3 = {"anon": True, "endpoint_url": store.url, "client_kwargs": {"region_name": "us-east-1"}}
    return {"lazystore": {"memory": "4MB", "page": PAGE, **own}, "s3": s3}


def opened(store: ObjectStore, path: str = "", **own: Any) -> tuple[LazyStoreFileSystem, str]:
    pytest.importorskip("s3fs")
    fs, found = fsspec.url_to_fs(f"lazystore::s3://data/{path}", **options(store, **own))
    assert isinstance(fs, LazyStoreFileSystem)
    return fs, found


@pytest.fixture
def memory() -> Iterator[Any]:
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/lz/a.bin", DATA)
    yield fs
    fs.rm("/lz", recursive=True)


def over(fs: Any, **own: Any) -> LazyStoreFileSystem:
    return LazyStoreFileSystem(fs=fs, page=PAGE, **{"memory": "4MB", **own})


def test_a_chained_url_opens_a_cached_file(store: ObjectStore) -> None:
    pytest.importorskip("s3fs")
    for _ in range(2):
        with fsspec.open("lazystore::s3://data/a.bin", "rb", **options(store)) as file:
            assert isinstance(file, BufferedLazyFile)
            assert (file.size, file.read()) == (len(DATA), DATA)
    assert store.stats()["bytes_sent"] == len(DATA)
    with fsspec.open("lazystore::s3://data/lines.txt", "r", **options(store)) as file:
        assert file.readlines() == ["one\n", "two\n"]


def test_http_local_and_any_other_filesystem_can_be_the_target(store: ObjectStore, served: Path, memory: Any) -> None:
    pytest.importorskip("aiohttp")
    local = (served / "data" / "a.bin").as_posix()
    for url in (store.http_url("data", "a.bin"), f"file://{local}", "memory://lz/a.bin"):
        with fsspec.open(f"lazystore::{url}", "rb", lazystore={"memory": "4MB", "page": PAGE}) as file:
            file.seek(-100, os.SEEK_END)
            assert file.read() == DATA[-100:]
    assert store.stats()["bytes_sent"] <= PAGE


def test_a_chain_may_go_on_below(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("in/x.bin", DATA)
    fs, path = fsspec.url_to_fs(f"lazystore::zip://in/x.bin::file://{tmp_path}/a.zip", lazystore={"memory": "4MB"})
    assert fs.cat_file(path, start=5, end=50) == DATA[5:50]


def test_listing_is_the_targets(store: ObjectStore) -> None:
    fs, path = opened(store, "set")
    assert path == "data/set"
    files = [f"data/set/{number}.bin" for number in range(3)]
    assert fs.ls(path, detail=False) == ["data/set/deep", *files] or sorted(fs.ls(path, detail=False)) == sorted(
        ["data/set/deep", *files]
    )
    assert sorted(fs.glob(f"{path}/*.bin")) == files
    assert sorted(fs.find(path)) == [*files, "data/set/deep/x"]
    assert (fs.isdir(path), fs.isfile(files[0]), fs.exists("data/nope")) == (True, True, False)
    assert fs.info(files[1])["size"] == fs.size(files[1]) == 1000
    assert next(iter(fs.walk(path)))[0] == path
    assert fs.du(path) == 3000
    assert fs.unstrip_protocol(path) == "lazystore::s3://data/set"
    assert fs.ukey(files[0]) == fs.fs.ukey(files[0])
    assert fs.checksum(files[0]) == fs.fs.checksum(files[0])


def test_paths_may_be_written_with_either_protocol(store: ObjectStore) -> None:
    fs, _ = opened(store)
    for path in ("data/lines.txt", "s3://data/lines.txt", "lazystore::s3://data/lines.txt"):
        assert fs.cat_file(path) == b"one\ntwo\n"


def test_many_objects_are_read_at_once_each_in_one_request(store: ObjectStore) -> None:
    fs, path = opened(store, "set")
    found = fs.cat([f"{path}/{number}.bin" for number in range(3)])
    assert found == {f"data/set/{number}.bin": DATA[number * 1000 : (number + 1) * 1000] for number in range(3)}
    sent = store.stats()["gets"]
    assert sent <= 4  # on a busy machine one may have been hedged
    assert fs.cat(f"{path}/*.bin") == found
    assert fs.cat(f"{path}/1.bin") == found["data/set/1.bin"]
    assert store.stats()["gets"] == sent


def test_ranges_of_many_objects(store: ObjectStore) -> None:
    fs, _ = opened(store)
    names = ["data/a.bin", "data/set/1.bin", "data/a.bin"]
    assert fs.cat_ranges(names, [5, -10, None], [20, None, 3]) == [DATA[5:20], DATA[1990:2000], DATA[:3]]
    assert fs.cat_ranges(names, 0, 4) == [DATA[:4], DATA[1000:1004], DATA[:4]]
    found = fs.cat_ranges(["data/nope", "data/a.bin"], 0, 4)
    assert isinstance(found[0], FileNotFoundError)
    assert found[1] == DATA[:4]
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges(["data/nope", "data/a.bin"], 0, 4, on_error="raise")
    assert list(fs.cat(["data/nope", "data/lines.txt"], on_error="omit")) == ["data/lines.txt"]
    assert fs.cat_file("data/a.bin", start=-5) == DATA[-5:]
    assert fs.cat_file("data/a.bin", start=10, end=-10) == DATA[10:-10]


def test_what_does_not_exist_is_not_found(store: ObjectStore) -> None:
    fs, _ = opened(store)
    for call in (fs.open, fs.cat_file, fs.cat):
        with pytest.raises(FileNotFoundError):
            call("data/nope")


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("pipe_file", ("/lz/x", b"")), ("pipe", ("/lz/x", b"")), ("put_file", ("x", "/lz/x")), ("put", ("x", "/lz/x")),
        ("rm", ("/lz/a.bin",)), ("rm_file", ("/lz/a.bin",)), ("mkdir", ("/lz/d",)), ("makedirs", ("/lz/d",)),
        ("rmdir", ("/lz",)), ("cp_file", ("/lz/a.bin", "/lz/b")), ("mv", ("/lz/a.bin", "/lz/b")),
        ("touch", ("/lz/x",)), ("open", ("/lz/x", "wb")), ("write_text", ("/lz/x", "")), ("copy", ("/lz/a.bin", "/b")),
    ],
)  # fmt: skip
def test_writing_is_refused_and_says_where_to_write(memory: Any, verb: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(UnsupportedError, match="use the target itself, memory://"):
        getattr(over(memory), verb)(*arguments)
    assert memory.find("/lz") == ["/lz/a.bin"]


def test_filesystems_with_the_same_settings_share_one_budget(memory: Any, tmp_path: Path) -> None:
    one, other_page = over(memory), LazyStoreFileSystem(fs=memory, page=2 * PAGE, memory="4MB")
    assert one.cat_file("/lz/a.bin") == other_page.cat_file("/lz/a.bin") == DATA
    assert one.counters() == other_page.counters()
    assert one.counters()["bytes"] >= 2 * len(DATA)
    assert over(memory, memory="5MB").counters()["bytes"] == 0
    assert over(memory, disk=str(tmp_path / "tier")).counters()["bytes"] == 0
    one.clear_cache()
    assert other_page.counters()["bytes"] == 0


def test_threads_share_it_too(memory: Any) -> None:
    mine = over(memory)
    mine.cat_file("/lz/a.bin")
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(over(fsspec.filesystem("memory")).counters()["bytes"]))
    thread.start()
    thread.join()
    assert found == [mine.counters()["bytes"]]


def test_the_budget_holds(memory: Any) -> None:
    memory.pipe_file("/lz/big.bin", DATA * 10)
    fs = over(memory, memory="1MB")
    assert fs.cat_file("/lz/big.bin") == DATA * 10
    with fs.open("/lz/big.bin") as file:
        while file.read(10_000):
            pass
    assert fs.counters()["peak"] <= 1_000_000


def test_the_disk_tier_outlives_the_memory(memory: Any, store: ObjectStore, tmp_path: Path) -> None:
    disk = {"path": str(tmp_path / "tier"), "max_bytes": "4MB", "mode": "through"}
    for _ in range(2):
        fs, _ = opened(store, disk=disk)
        assert fs.cat_file("data/a.bin") == DATA
        fs.clear_cache()
        LazyStoreFileSystem.clear_instance_cache()
        del fs
    assert store.stats()["bytes_sent"] <= len(DATA) + PAGE


def test_an_object_that_changed_is_read_anew(memory: Any) -> None:
    fs = over(memory, recheck=1000.0)
    assert fs.cat_file("/lz/a.bin") == DATA
    memory.pipe_file("/lz/a.bin", DATA[::-1])
    assert fs.cat_file("/lz/a.bin") == DATA  # taken to be unchanged for so long
    fs.invalidate_cache("/lz/a.bin")
    assert fs.cat_file("/lz/a.bin") == DATA[::-1]
    strict = over(memory, recheck=0.0)
    assert strict.cat_file("/lz/a.bin") == DATA[::-1]
    memory.pipe_file("/lz/a.bin", DATA)
    assert strict.cat_file("/lz/a.bin") == DATA


def test_a_change_that_a_fetch_finds_is_cured_where_nobody_has_seen_old_bytes(served: Path, store: ObjectStore) -> None:
    pytest.importorskip("aiohttp")
    changing = served / "data" / "cured.bin"
    changing.write_bytes(DATA)
    fs, path = fsspec.url_to_fs(
        f"lazystore::{store.http_url('data', 'cured.bin')}", lazystore={"page": PAGE, "recheck": 1000.0}
    )
    assert fs.cat_file(path, start=0, end=10) == DATA[:10]
    changing.write_bytes(DATA[::-1])
    assert fs.cat_file(path, start=200_000, end=200_010) == DATA[::-1][200_000:200_010]


def test_an_open_file_never_mixes_versions(served: Path, store: ObjectStore) -> None:
    pytest.importorskip("aiohttp")
    (served / "data" / "changing.bin").write_bytes(DATA)
    fs, path = fsspec.url_to_fs(f"lazystore::{store.http_url('data', 'changing.bin')}", lazystore={"page": PAGE})
    with fs.open(path) as file:
        assert file.read(10) == DATA[:10]
        (served / "data" / "changing.bin").write_bytes(DATA[::-1])
        file.seek(200_000)
        with pytest.raises(SourceChangedError):
            file.read(10)
    assert fs.cat_file(path, start=200_000, end=200_010) == DATA[::-1][200_000:200_010]


def test_it_pickles_and_tokenizes_as_its_arguments(store: ObjectStore) -> None:
    fs, path = opened(store, "a.bin")
    assert pickle.loads(pickle.dumps(fs)) is fs
    with fs.open(path) as file:
        file.seek(100)
        with pickle.loads(pickle.dumps(file)) as copy:
            assert copy.read(5) == DATA[100:105]
    future = pickle.loads(pickle.dumps(fsspec.open("lazystore::s3://data/a.bin", **options(store))))
    with future as file:
        assert file.read(5) == DATA[:5]
    assert fs.__dask_tokenize__() == opened(store, "a.bin")[0].__dask_tokenize__()


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"target_protocol": "memory", "fs": fsspec.filesystem("memory")},
        {"target_protocol": "memory", "disk": 5},
        {"target_protocol": "memory", "memory": "lots"},
        {"target_protocol": "memory", "page": 0},
        {"target_protocol": "memory", "anon": True},
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        LazyStoreFileSystem(**arguments)


def test_it_is_quiet_about_what_nobody_closed() -> None:
    code = """
import fsspec
from lazystore.adapters.filesystem import LazyStoreFileSystem
fsspec.register_implementation("lazystore", LazyStoreFileSystem, clobber=True)
fsspec.filesystem("memory").pipe_file("/a", bytes(300_000))
file = fsspec.open("lazystore::memory://a", lazystore={"memory": "4MB", "page": 16384}).open()
for _ in range(5):
    file.read(20000)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
