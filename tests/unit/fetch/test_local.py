"""``LocalSource``: bytes of local files straight into buffers; files are the ones that were opened first."""

from __future__ import annotations

import gc
import os
import pickle
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazystore.errors import ClosedError, DatasetNotFoundError, FetchError, SourceChangedError
from lazystore.fetch import local
from lazystore.fetch.local import LocalSource
from lazystore.fetch.source import Read

DATA = random.Random(0).randbytes(50_000)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a").write_bytes(DATA)
    (tmp_path / "b").write_bytes(DATA[::-1])
    (tmp_path / "empty").write_bytes(b"")
    return tmp_path


@pytest.fixture
def source(folder: Path) -> Iterator[LocalSource]:
    opened = LocalSource(str(folder))
    yield opened
    opened.close()


def read(name: str, begin: int, end: int) -> Read:
    return Read(name, begin, memoryview(bytearray(end - begin)))


def run(source: LocalSource, *reads: Read, stat: tuple[str, ...] = ()) -> dict[str, int]:
    return source.run(reads, stat=stat, timeout=5)


def descriptors() -> set[str]:
    return set(os.listdir("/dev/fd"))


# -- reading --------------------------------------------------------------------------------


def test_ranges_of_many_files_land_in_their_buffers(source: LocalSource) -> None:
    reads = [read("a", 0, 10), read("b", 49_990, 50_000), read("a", 10, 1000), read("a", 5, 6), read("a", 7, 7)]
    run(source, *reads)
    for one in reads:
        data = DATA if one.name == "a" else DATA[::-1]
        assert bytes(one.view) == data[one.begin : one.end]
        assert one.got == len(one.view)


def test_sizes_come_with_the_ranges(source: LocalSource) -> None:
    assert run(source, read("a", 0, 1), stat=("a", "empty")) == {"a": 50_000, "empty": 0}
    assert run(source) == {}


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)).map(sorted), max_size=12), st.booleans())
def test_any_ranges_in_any_order(cuts: list[list[int]], known: bool) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "f").write_bytes(DATA[:50])
        source = LocalSource(place)
        reads = [read("f", begin, end) for begin, end in cuts]
        stat = ("f",) if known else ()
        beyond = any(end > 50 and end > begin for begin, end in cuts)
        try:
            run(source, *reads, stat=stat)
        except FetchError:
            assert beyond and not known
        else:
            assert known or not beyond
            for one in reads:
                got = DATA[:50][one.begin : one.end]
                assert (one.got, bytes(one.view[: one.got])) == (len(got), got)
        finally:
            source.close()


def test_adjacent_ranges_are_one_request(source: LocalSource) -> None:
    parts = [read("a", k * 100, k * 100 + 100) for k in range(200)]
    run(source, *parts)
    assert b"".join(bytes(part.view) for part in parts) == DATA[:20_000]
    assert source.counters.requests == 1
    assert source.counters.bytes_fetched == 20_000


def test_more_buffers_than_the_system_takes_at_once(source: LocalSource) -> None:
    parts = [read("a", k * 10, k * 10 + 10) for k in range(5000)]
    run(source, *parts)
    assert b"".join(bytes(part.view) for part in parts) == DATA


def test_a_read_that_the_system_cuts_short_is_continued(source: LocalSource, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.preadv

    def stingy(fd: int, buffers: list[memoryview], offset: int) -> int:
        return whole(fd, [buffers[0][:7]], offset)

    monkeypatch.setattr(os, "preadv", stingy)
    parts = [read("a", 0, 20), read("a", 20, 21), read("a", 21, 60)]
    run(source, *parts)
    assert b"".join(bytes(part.view) for part in parts) == DATA[:60]


def test_an_error_of_the_system_is_a_fetch_error_with_its_place(
    source: LocalSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(fd: int, buffers: list[memoryview], offset: int) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(FetchError, match=r"/a.*Input/output error") as raised:
        run(source, read("a", 10, 20))
    assert (raised.value.begin, raised.value.end) == (10, 20)
    assert raised.value.url.endswith("/a")


def test_whole_files(source: LocalSource) -> None:
    assert source.read_all("a", limit=50_000, timeout=5) == DATA
    assert source.read_all("empty", limit=0, timeout=5) == b""
    with pytest.raises(FetchError, match=r"/a has 50000 bytes, at most 49999"):
        source.read_all("a", limit=49_999, timeout=5)


# -- what is not there ----------------------------------------------------------------------


def test_a_missing_file_is_named(source: LocalSource, folder: Path) -> None:
    for attempt in (lambda: run(source, read("nothing", 0, 1)), lambda: run(source, stat=("nothing",))):
        with pytest.raises(DatasetNotFoundError, match=f"{folder}/nothing does not exist"):
            attempt()
    (folder / "nothing").write_bytes(b"now it is")
    assert run(source, stat=("nothing",)) == {"nothing": 9}


def test_a_range_beyond_the_end_is_an_error_unless_the_size_was_asked_for(source: LocalSource) -> None:
    beyond = read("a", 49_990, 50_010)
    with pytest.raises(FetchError, match=r"/a ends at byte 50000, bytes 49990\.\.50010 were expected") as raised:
        run(source, beyond)
    assert (raised.value.begin, raised.value.end) == (49_990, 50_010)
    run(source, beyond, stat=("a",))
    assert beyond.got == 10
    behind = read("a", 60_000, 60_010)
    run(source, behind, stat=("a",))
    assert behind.got == 0


@pytest.mark.parametrize("kind", ["directory", "pipe", "socket", "device"])
def test_only_files_are_read_and_nothing_hangs(source: LocalSource, folder: Path, kind: str) -> None:
    path = folder / "odd"
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        import socket

        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    else:
        path.symlink_to("/dev/zero")
    before = descriptors()
    for attempt in (
        lambda: run(source, read("odd", 0, 10)),
        lambda: run(source, stat=("odd",)),
        lambda: source.read_all("odd", limit=100, timeout=5),
    ):
        with pytest.raises(FetchError, match="/odd"):
            attempt()
    assert descriptors() == before


# -- identity -------------------------------------------------------------------------------


def touch_later(path: Path) -> None:
    later = path.stat().st_mtime_ns + 10**9
    os.utime(path, ns=(later, later))


@pytest.mark.parametrize("size", [50_000, 60_000, 10, 0])
def test_a_file_that_changes_is_noticed_at_the_next_read(source: LocalSource, folder: Path, size: int) -> None:
    run(source, read("a", 0, 5))
    (folder / "a").write_bytes(bytes(size))
    touch_later(folder / "a")
    for stat in ((), ("a",)):
        with pytest.raises(SourceChangedError, match=r"/a was changed") as raised:
            run(source, read("a", 0, 5), stat=stat)
        assert raised.value.url.endswith("/a")


def test_a_file_replaced_under_its_name_stays_the_one_that_was_opened(source: LocalSource, folder: Path) -> None:
    run(source, read("a", 0, 5))
    (folder / "other").write_bytes(bytes(50_000))
    os.replace(folder / "other", folder / "a")
    again = read("a", 100, 200)
    run(source, again)
    assert bytes(again.view) == DATA[100:200]


def test_a_replaced_file_is_noticed_when_it_has_to_be_opened_again(folder: Path) -> None:
    names = [f"file-{k}" for k in range(local.MAX_OPEN_FILES + 1)]
    for name in names:
        (folder / name).write_bytes(name.encode())
    source = LocalSource(str(folder))
    run(source, *[read(name, 0, 5) for name in names])  # the first one is closed again by now
    (folder / "other").write_bytes(b"another file")
    os.replace(folder / "other", folder / names[0])
    with pytest.raises(SourceChangedError, match=names[0]):
        run(source, read(names[0], 0, 5))
    source.close()


# -- descriptors ----------------------------------------------------------------------------


def test_open_files_are_bounded_and_given_back(folder: Path) -> None:
    before = descriptors()
    source = LocalSource(str(folder))
    count = 3 * local.MAX_OPEN_FILES
    for k in range(count):
        (folder / f"file-{k}").write_bytes(b"%d" % k)
    for _ in range(2):
        for k in range(count):
            one = read(f"file-{k}", 0, len(b"%d" % k))
            run(source, one)
            assert bytes(one.view) == b"%d" % k
    assert len(descriptors() - before) <= local.MAX_OPEN_FILES
    source.close()
    assert descriptors() == before


def test_a_source_that_is_dropped_gives_its_files_back(folder: Path) -> None:
    before = descriptors()
    source = LocalSource(str(folder))
    run(source, read("a", 0, 5))
    del source
    gc.collect()
    assert descriptors() == before


def test_a_closed_source_refuses_and_says_which(source: LocalSource, folder: Path) -> None:
    run(source, read("a", 0, 5))
    source.close()
    source.close()
    for attempt in (
        lambda: run(source, read("a", 0, 5)),
        lambda: run(source, stat=("a",)),
        lambda: source.read_all("a", limit=10**6, timeout=5),
    ):
        with pytest.raises(ClosedError, match=str(folder)):
            attempt()


def test_descriptors_are_not_inherited_by_programs(source: LocalSource) -> None:
    run(source, read("a", 0, 5))
    opened = source._files["a"].fd
    assert not os.get_inheritable(opened)


def test_closing_while_others_read_gives_whole_bytes_or_a_closed_error(folder: Path) -> None:
    for _ in range(30):
        source = LocalSource(str(folder))
        wrong: list[object] = []

        def work(source: LocalSource = source, wrong: list[object] = wrong) -> None:
            try:
                for k in range(200):
                    one = read("ab"[k % 2], k, k + 500)
                    run(source, one)
                    if bytes(one.view) != (DATA if one.name == "a" else DATA[::-1])[k : k + 500]:
                        wrong.append(one)
            except ClosedError:
                pass
            except BaseException as error:  # noqa: BLE001 - reported by the main thread
                wrong.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        source.close()
        for thread in threads:
            thread.join()
        assert wrong == []


# -- threads, processes ---------------------------------------------------------------------


def test_many_threads_over_more_files_than_may_be_open(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "MAX_OPEN_FILES", 3)
    for k in range(12):
        (folder / f"f{k}").write_bytes(bytes([k]) * 1000)
    before = descriptors()
    source = LocalSource(str(folder))
    wrong: list[object] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        try:
            for _ in range(300):
                k = chance.randrange(12)
                one = read(f"f{k}", chance.randrange(900), 1000)
                run(source, one)
                if bytes(one.view) != bytes([k]) * len(one.view):
                    wrong.append(k)
        except BaseException as error:  # noqa: BLE001 - reported by the main thread
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    source.close()
    assert wrong == []
    assert descriptors() == before


def test_a_pickled_source_is_its_root(source: LocalSource, folder: Path) -> None:
    run(source, read("a", 0, 5))
    twin = pickle.loads(pickle.dumps(source))
    assert (twin.url, twin.counters.requests, twin.local) == (str(folder), 0, True)
    one = read("a", 0, 5)
    run(twin, one)
    assert bytes(one.view) == DATA[:5]
    twin.close()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_after_a_fork_the_child_reads_on(source: LocalSource) -> None:
    run(source, read("a", 0, 5))
    pid = os.fork()
    if not pid:
        code = 1
        try:
            source.reset_after_fork()
            one = read("a", 100, 200)
            run(source, one)
            code = 0 if bytes(one.view) == DATA[100:200] else 2
            source.close()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    one = read("a", 300, 400)
    run(source, one)
    assert bytes(one.view) == DATA[300:400]


def test_a_relative_root_is_fixed_when_the_source_is_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    source = LocalSource(folder.name)
    monkeypatch.chdir("/")
    assert source.url == str(folder)
    assert source.read_all("empty", limit=9, timeout=5) == b""
    assert str(folder) in repr(source)
    source.close()
