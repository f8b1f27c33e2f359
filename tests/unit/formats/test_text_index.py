"""The sidecar of a text: where it lives, what it is tied to, and that a damaged one never gives wrong rows."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from support.texts import indexed, place_of, stored, unindexed, values, write

from lazystore.errors import ClosedError, ConfigError, FormatError, SourceChangedError
from lazystore.fetch.local import LocalSource
from lazystore.formats import text_index, text_pass
from lazystore.formats.format import Opened, Options, Unindexed
from lazystore.formats.text import CsvFormat, JsonlFormat
from lazystore.formats.text_index import cache_folder, load_index

ROWS = [{"id": i, "text": "x" * (i % 7)} for i in range(300)]
DATA = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
JSONL = JsonlFormat()


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("LAZYSTORE_CACHE_DIR", str(folder))
    monkeypatch.setattr(text_pass, "CHUNK_BYTES", 2000)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, {"a.jsonl": DATA, "a.jsonl.gz": DATA})
    return tmp_path


def build(folder: Path, name: str = "a.jsonl", **extra: str) -> Path:
    """Index it; the sidecar."""
    opened = unindexed(JSONL, place_of(folder, [name]), extra=extra).build()
    assert values(opened) == ROWS
    (side,) = {path for path in _sidecars(folder, extra) if path.is_file()}
    return side


def _sidecars(folder: Path, extra: dict[str, str]) -> list[Path]:
    chosen = extra.get("index", "")
    if chosen == "beside":
        return list(folder.glob("*.lzidx"))
    return [Path(chosen)] if chosen else list((cache_folder() / "text").iterdir())


# -- where ----------------------------------------------------------------------------------


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAZYSTORE_CACHE_DIR", "/chosen")
    assert cache_folder() == Path("/chosen")
    monkeypatch.delenv("LAZYSTORE_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/lazystore")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_folder() == Path("/home/somebody/.cache/lazystore")


def test_a_sidecar_may_lie_beside_its_text_or_anywhere(folder: Path, tmp_path: Path, cache: Path) -> None:
    assert build(folder, index="beside") == folder / "a.jsonl.lzidx"
    assert build(folder, index=str(tmp_path / "mine.idx")) == tmp_path / "mine.idx"
    assert not list(cache.iterdir())
    assert values(indexed(JSONL, place_of(folder, ["a.jsonl"]), extra={"index": "beside"})) == ROWS


def test_several_files_share_a_folder_that_is_named(folder: Path, tmp_path: Path) -> None:
    write(folder, {"b.jsonl": b'{"id": -1}\n'})
    (tmp_path / "side").mkdir()
    extra = {"index": str(tmp_path / "side")}
    assert len(values(unindexed(JSONL, place_of(folder, ["a.jsonl", "b.jsonl"]), extra=extra).build())) == 301
    assert len(list((tmp_path / "side").iterdir())) == 2


def test_beside_is_for_local_files_only(folder: Path) -> None:
    source = LocalSource(str(folder))
    source.local = False  # type: ignore[misc]
    with pytest.raises(ConfigError, match="local files"):
        JSONL.open(place_of(source, ["a.jsonl"]), Options(extra={"index": "beside"}))


def test_rules_have_sidecars_of_their_own(folder: Path, cache: Path) -> None:
    write(folder, {"a.csv": b"a;b\n1;2\n"})
    for extra in ({}, {"delimiter": ";"}, {"header": ["x"]}, {"quotechar": ""}):
        unindexed(CsvFormat(), place_of(folder, ["a.csv"]), extra=extra).build()
    assert len(list((cache / "text").iterdir())) == 4


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_named_in_the_error(folder: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    with pytest.raises(ConfigError, match="LAZYSTORE_CACHE_DIR"):
        unindexed(JSONL, place_of(folder, ["a.jsonl"]), extra={"index": str(locked / "x")}).build()


def test_without_a_place_for_the_index_items_come_all_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "file").write_bytes(b"")
    monkeypatch.setenv("LAZYSTORE_CACHE_DIR", str(folder / "file"))
    first = unindexed(JSONL, place_of(folder, ["a.jsonl"]))
    with caplog.at_level(logging.WARNING, "lazystore"):
        assert [first.plan(item) for item in first.stream()] == ROWS
    assert "cannot be written" in caplog.text and "LAZYSTORE_CACHE_DIR" in caplog.text
    with pytest.raises(ConfigError, match="cannot be written"):
        first.build()


def test_a_full_disk_is_told_and_leaves_nothing(folder: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Full:
        def __init__(self, file: object) -> None:
            self.file = file

        def __getattr__(self, name: str) -> object:
            return getattr(self.file, name)

        def write(self, data: bytes) -> int:
            raise OSError(28, "No space left on device")

    begin = text_index.IndexWriter.__init__

    def begin_full(self: text_index.IndexWriter, *arguments: object) -> None:
        begin(self, *arguments)  # type: ignore[arg-type]
        self._file = Full(self._file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_index.IndexWriter, "__init__", begin_full)
        first = unindexed(JSONL, place_of(folder, ["a.jsonl"]))
        with pytest.raises(ConfigError, match="No space left"):
            first.build()
        assert [first.plan(item) for item in first.stream()] == ROWS
    assert "No space left" in caplog.text
    assert not list((cache / "text").iterdir())


# -- when -----------------------------------------------------------------------------------


def test_a_stream_that_is_left_early_leaves_no_sidecar(folder: Path, cache: Path) -> None:
    stream = unindexed(JSONL, place_of(folder, ["a.jsonl"])).stream()
    next(stream)
    assert len(list((cache / "text").iterdir())) == 1  # under another name
    stream.close()
    assert not list((cache / "text").iterdir())


def _in_child(act: Callable[[], bool]) -> int:
    """The exit code of a forked child: 0 where ``act`` is true."""
    pid = os.fork()
    if not pid:
        signal.alarm(20)  # a child that waits for a lock of its parent's would never end
        code = 1
        try:
            code = 0 if act() else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


LONG = [{"id": i, "text": "y" * 1000} for i in range(2000)]


def _half_done(folder: Path) -> tuple[Unindexed, Generator[bytes, None, None]]:
    """A pass that has written some offset tables, and more text to read."""
    write(folder, {"long.jsonl": b"".join(json.dumps(row).encode() + b"\n" for row in LONG)})
    first = unindexed(JSONL, place_of(folder, ["long.jsonl"], budget=1 << 20))
    stream = first.stream()
    next(stream)
    return first, stream


def test_closing_ends_what_is_in_the_making(folder: Path, cache: Path) -> None:
    first, stream = _half_done(folder)
    assert len(list((cache / "text").iterdir())) == 1
    first.close()
    assert not list((cache / "text").iterdir())
    with pytest.raises(ClosedError):
        list(stream)
    assert not list((cache / "text").iterdir())


@pytest.mark.parametrize("how", ["read on", "close the stream", "close", "drop"])
def test_a_forked_child_leaves_its_parents_index_alone(how: str, folder: Path, cache: Path) -> None:
    first, stream = _half_done(folder)
    (begun,) = (cache / "text").iterdir()
    before = begun.read_bytes()

    def act() -> bool:
        nonlocal first, stream
        if how == "read on":
            if sum(1 for _ in stream) != len(LONG) - 1:
                return False
        elif how == "close the stream":
            stream.close()
        elif how == "close":
            first.close()
        else:
            del first, stream
            gc.collect()
        return True

    assert _in_child(act) == 0
    assert list((cache / "text").iterdir()) == [begun] and begun.read_bytes() == before
    assert sum(1 for _ in stream) == len(LONG) - 1
    assert values(indexed(JSONL, place_of(folder, ["long.jsonl"]))) == LONG


def test_a_forked_child_does_not_wait_for_its_parents_locks(folder: Path) -> None:
    first, stream = _half_done(folder)
    source: Any = first._place.source  # type: ignore[attr-defined]
    with source._lock:
        assert _in_child(lambda: sum(1 for _ in stream) == len(LONG) - 1) == 0
    stream.close()


def test_what_dead_processes_left_is_swept_a_day_later(folder: Path) -> None:
    side = build(folder)
    old, new = side.with_name(f".{side.name}.1-1"), side.with_name(f".{side.name}.2-2")
    for path in (old, new):
        path.write_bytes(b"")
    os.utime(old, (0, 0))
    side.unlink()
    unindexed(JSONL, place_of(folder, ["a.jsonl"])).build()
    assert not old.exists() and new.exists()


def test_the_second_of_two_that_index_at_once_keeps_the_first_ones(folder: Path) -> None:
    first, second = (unindexed(JSONL, place_of(folder, ["a.jsonl"])) for _ in range(2))
    stream = second.stream()
    next(stream)
    opened = first.build()
    before = _sidecars(folder, {})
    assert sum(1 for _ in stream) == len(ROWS) - 1
    (side,) = (path for path in before if not path.name.startswith("."))
    assert values(opened) == ROWS and _sidecars(folder, {}) == [side]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_text_that_changed_is_indexed_anew(folder: Path, name: str) -> None:
    build(folder, name)
    write(folder, {name: DATA + b'{"id": 300}\n'})
    os.utime(folder / name, ns=(5, 5))
    opened = unindexed(JSONL, place_of(folder, [name])).build()
    assert values(opened) == [*ROWS, {"id": 300}]


def test_a_text_that_changes_while_it_is_read_is_noticed(folder: Path) -> None:
    build(folder)
    opened = indexed(JSONL, place_of(folder, ["a.jsonl"]))
    (folder / "a.jsonl").write_bytes(DATA[::-1])
    os.utime(folder / "a.jsonl", ns=(5, 5))
    with pytest.raises(SourceChangedError):
        stored(opened)


def test_an_identity_that_is_only_a_size_is_not_relied_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalSource, "identity", lambda self, name, timeout: f"{len(DATA)}-")
    build(folder)
    assert values(unindexed(JSONL, place_of(folder, ["a.jsonl"])).build()) == ROWS


def test_equal_texts_have_equal_versions_wherever_they_are(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write(other, {"copy.jsonl": DATA, "more.jsonl": DATA + b"1\n"})
    versions = [
        unindexed(JSONL, place_of(where, [name])).build().version
        for where, name in ((folder, "a.jsonl"), (other, "copy.jsonl"), (other, "more.jsonl"))
    ]
    assert versions[0] == versions[1] != versions[2]


# -- damage ---------------------------------------------------------------------------------


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(
    name=st.sampled_from(["a.jsonl", "a.jsonl.gz"]),
    how=st.sampled_from(["flip", "cut", "extend", "swap", "zero"]),
    at=st.integers(0, 1 << 30),
    by=st.integers(1, 255),
)
def test_a_damaged_sidecar_is_made_anew_or_an_error(
    name: str, how: str, at: int, by: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("damage")
    write(folder, {name: DATA})
    side = build(folder, name, index="beside")
    good = side.read_bytes()
    data = bytearray(good)
    at %= len(data)
    if how == "flip":
        data[at] ^= by
    elif how == "cut":
        del data[at:]
    elif how == "extend":
        data += bytes(by)
    elif how == "swap":
        data[at : at + 8], data[:8] = data[:8], data[at : at + 8]
    else:
        data[at : at + by] = bytes(len(data[at : at + by]))
    side.write_bytes(data)
    place = place_of(folder, [name])
    found = JSONL.open(place, Options(extra={"index": "beside"}))
    try:
        opened = found if isinstance(found, Opened) else found.build()
        assert values(opened) == ROWS
    except FormatError as error:
        assert "damaged and was removed" in str(error)
        opened = unindexed(JSONL, place, extra={"index": "beside"}).build()
        assert values(opened) == ROWS
    assert side.read_bytes() == good or data == good


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(
    column=st.sampled_from(text_index.COLUMNS),
    chunk=st.integers(0, 100),
    value=st.sampled_from([0, 1, 2, 3, 1 << 20, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 63, (1 << 64) - 1]),
)
def test_a_forged_sidecar_with_right_checksums_is_refused(
    column: str, chunk: int, value: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("forged")
    write(folder, {"a.jsonl": DATA})
    side = build(folder, index="beside")
    source = LocalSource(str(folder))
    identity = source.identity("a.jsonl", timeout=1)
    rules = JSONL.rules({})
    index = load_index(side, identity, rules.signature)
    assert index is not None
    tables = side.read_bytes()[text_index.HEADER.size : text_index.HEADER.size + sum(4 * (n + 2) for n in index.counts)]
    numbers = getattr(index, column)
    assume(numbers[chunk % len(numbers)] != value)
    numbers[chunk % len(numbers)] = value
    side.unlink()
    writer = text_index.IndexWriter(side, identity, rules.signature)
    writer._file.write(tables)
    writer._at += len(tables)
    writer.index = index
    writer.finish()
    found = JSONL.open(place_of(folder, ["a.jsonl"]), Options(extra={"index": "beside"}))
    if column == "sums":
        assert isinstance(found, Opened)
        with pytest.raises(FormatError, match="damaged and was removed"):
            stored(found)
    else:
        assert not isinstance(found, Opened)


def test_no_sidecar_at_all_is_none(tmp_path: Path) -> None:
    assert load_index(tmp_path / "nothing", "1-1", "") is None
    (tmp_path / "folder").mkdir()
    assert load_index(tmp_path / "folder", "1-1", "") is None


# -- memory ---------------------------------------------------------------------------------

PROGRAM = """
    import sys
    from lazystore.fetch.local import LocalSource
    from lazystore.formats.format import Options, Place
    from lazystore.formats.text import JsonlFormat
    import lazystore._core.decode, zlib, json

    def peak():
        with open("/proc/self/status") as file:  # ru_maxrss begins with the peak of whoever started this process
            return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM"))

    source = LocalSource(sys.argv[1])
    before = peak()
    opened = JsonlFormat().open(Place(source, "", {sys.argv[2]: -1}, b"", 30.0, 64 << 20), Options()).build()
    print(sum(opened.counts), peak() - before)
"""


@pytest.mark.parametrize("line", [3, 300, 3_000_000])
def test_indexing_takes_little_memory_whatever_the_size(line: int, tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("peak memory is measured on Linux")
    with open(tmp_path / "big.jsonl", "wb") as file:
        for _ in range(60):
            file.write((b"1" * (line - 1) + b"\n") * ((1 << 20) // line or 1))
    size = (tmp_path / "big.jsonl").stat().st_size
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path), "big.jsonl"],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    items, grown = map(int, run.stdout.split())
    assert items == size // line
    assert grown < 16 << 20
