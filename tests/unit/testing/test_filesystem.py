from __future__ import annotations

import asyncio
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazystore.errors import ConfigError
from lazystore.testing import FaultyFileSystem, FileFaults

DATA = bytes(range(256)) * 4
FILES = {"set/chunk-0.bin": DATA, "set/index.json": b"{}", "set/deep/er/x": b"x", "top": b"top"}


def make(**kwargs):
    return FaultyFileSystem(FILES, **kwargs)


def run(coroutine):
    return asyncio.run(coroutine)


# -- without faults it is a plain filesystem


@given(st.integers(-300, 1500) | st.none(), st.integers(-300, 1500) | st.none())
def test_ranges_are_those_of_bytes(start, end):
    assert make().cat_file("set/chunk-0.bin", start=start, end=end) == DATA[start:end]


def test_it_reads_and_lists_as_any_filesystem():
    fs = make()
    assert fs.cat_ranges(["faulty://top", "/top"], [0, 1], [1, 3]) == [b"t", b"op"]
    assert fs.size("faulty://set/chunk-0.bin") == len(DATA)
    assert fs.ls("set", detail=False) == ["set/chunk-0.bin", "set/deep", "set/index.json"]
    assert [e["type"] for e in fs.ls("set", detail=True)] == ["file", "directory", "file"]
    assert fs.ls("top", detail=False) == ["top"]
    assert fs.find("") == sorted(FILES)
    assert (fs.isdir("set/deep"), fs.isfile("set/deep"), fs.exists("nowhere")) == (True, False, False)
    with fs.open("set/chunk-0.bin") as file:
        file.seek(100)
        assert file.read(50) == DATA[100:150]
    for missing in (fs.info, fs.cat_file, fs.ls, fs.rm_file, fs.change):
        with pytest.raises(FileNotFoundError):
            missing("nowhere")


def test_files_can_be_written_removed_and_fetched(tmp_path):
    fs = make()
    before = fs.info("top")["ETag"]
    fs.pipe_file("top", b"new")
    assert (fs.cat_file("top"), fs.info("top")["ETag"] != before) == (b"new", True)
    with pytest.raises(FileExistsError):
        fs.pipe_file("top", b"again", mode="create")
    fs.get_file("top", str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == b"new"
    fs.rm_file("top")
    assert not fs.exists("top")
    with pytest.raises(OSError, match="pipe_file"):
        fs.open("top", "wb")


def test_two_filesystems_are_two_even_with_equal_arguments():
    first, second = FaultyFileSystem(seed=1), FaultyFileSystem(seed=1)
    first.pipe_file("a", b"a")
    assert not second.exists("a")


def test_it_pickles_as_its_arguments():
    fs = make(faults=FileFaults(short=1.0), seed=3)
    copy = pickle.loads(pickle.dumps(fs))
    assert len(copy.cat_file("set/chunk-0.bin")) < len(DATA)
    assert copy.size("top") == 3


# -- latency and log


def test_calls_wait_at_the_same_time_and_are_logged():
    async def reads():
        fs = make(latency=0.2, asynchronous=True, skip_instance_cache=True)
        await asyncio.gather(*[fs._cat_file("set/chunk-0.bin", i, i + 1) for i in range(30)])
        return fs

    fs = run(reads())
    assert (fs.peak_concurrent, fs.in_flight, len(fs.calls)) == (30, 0, 30)
    assert all(call.finished - call.began >= 0.199 for call in fs.calls)
    assert [(c.op, c.path, c.start, c.end, c.fault, c.returned) for c in fs.calls] == [
        ("cat_file", "set/chunk-0.bin", i, i + 1, "", 1) for i in range(30)
    ]


def test_jitter_stretches_some_waits():
    fs = make(latency=0.01, jitter=1.0, seed=2)
    for _ in range(10):
        fs.info("top")
    waits = [call.finished - call.began for call in fs.calls]
    assert max(waits) > 0.012


# -- faults


def test_errors_come_from_the_chosen_types_at_the_chosen_rate():
    errors = (ConnectionResetError, TimeoutError)
    fs = make(faults={"cat_file": FileFaults(error=0.5, errors=errors, seed=1)})
    met = []
    for i in range(200):
        try:
            fs.cat_file("set/chunk-0.bin", start=i, end=i + 1)
        except errors as error:  # fsspec's blocking calls raise a TimeoutError of their own
            met.append(next(kind for kind in errors if isinstance(error, kind)))
    assert set(met) == set(errors)
    assert 70 <= len(met) <= 130
    assert fs.fault_counts() == {"error": len(met)}
    assert fs.size("top") == 3


@given(st.integers(0, 1000), st.integers(1, 30), st.integers(0, 50))
def test_short_reads_are_true_beginnings(start, length, seed):
    fs = make(faults=FileFaults(short=1.0, seed=seed))
    got = fs.cat_file("set/chunk-0.bin", start=start, end=start + length)
    assert len(got) < length
    assert DATA[start:].startswith(got)


def test_extra_bytes_are_the_whole_file():
    fs = make(faults=FileFaults(extra=1.0))
    assert fs.cat_file("set/chunk-0.bin", start=10, end=20) == DATA
    assert fs.fault_counts() == {"extra": 1}
    assert fs.cat_file("set/chunk-0.bin") == DATA
    assert fs.fault_counts() == {"extra": 1}


def test_a_change_renews_etag_mtime_and_if_asked_the_bytes():
    fs = make(faults={"cat_file": FileFaults(changed=1.0)})
    infos = [fs.info("top")]
    assert fs.cat_file("top") == b"top"
    infos.append(fs.info("top"))
    fs.change("top")
    infos.append(fs.info("top"))
    fs.change("top", b"other")
    infos.append(fs.info("top"))
    assert len({info["ETag"] for info in infos}) == len({info["mtime"] for info in infos}) == 4
    assert [info["size"] for info in infos] == [3, 3, 3, 5]
    assert fs.ukey("top") != fs.ukey("set/index.json")


def test_a_stall_lasts_until_it_is_cancelled():
    async def stall():
        fs = make(faults=FileFaults(stall=1.0, only="*.bin"), asynchronous=True)
        assert await fs._cat_file("top") == b"top"
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(fs._cat_file("set/chunk-0.bin"), 0.05)
        return fs

    fs = run(stall())
    assert (fs.in_flight, fs.fault_counts()) == (0, {"stall": 1})
    assert fs.calls[-1].finished is not None


def test_a_cancelled_call_gives_none_to_blocking_callers_and_an_error_to_awaiting_ones():
    fs = make(faults=FileFaults(cancelled=1.0))
    assert fs.cat_file("top") is None

    async def awaiting():
        inner = make(faults=FileFaults(cancelled=1.0), asynchronous=True)
        with pytest.raises(asyncio.CancelledError):
            await inner._cat_file("top")

    run(awaiting())


def test_first_faults_are_met_once_by_each_range():
    fs = make(faults={"cat_file": FileFaults(first=("error", "short"), errors=(TimeoutError,))})
    for start in (0, 100):
        with pytest.raises(TimeoutError):
            fs.cat_file("set/chunk-0.bin", start=start, end=start + 10)
        assert len(fs.cat_file("set/chunk-0.bin", start=start, end=start + 10)) < 10
        assert fs.cat_file("set/chunk-0.bin", start=start, end=start + 10) == DATA[start : start + 10]


def test_faults_of_bytes_leave_listings_alone():
    fs = make(faults=FileFaults(short=0.5, extra=0.5))
    assert fs.info("top")["size"] == 3
    assert fs.ls("set/deep/er", detail=False) == ["set/deep/er/x"]
    assert fs.fault_counts() == {}


def test_faults_for_unknown_operations_are_refused():
    with pytest.raises(ConfigError, match="cat_fil"):
        make(faults={"cat_fil": FileFaults()})
