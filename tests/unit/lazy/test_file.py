"""A file over pages behaves as a file: against BytesIO, and under what reads files."""

from __future__ import annotations

import csv
import gzip
import io
import os
import pickle
import random
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.paging import VersionedSource, origin_of

from lazystore.cache.page_waves import board_of
from lazystore.cache.paged import PagedObject
from lazystore.cache.tiers import Tiers
from lazystore.errors import ConfigError, UnsupportedError
from lazystore.lazy.file import BufferedLazyFile, LazyFile, check_mode, open_paged

PAGE = 4096
DATA = b"".join(b"%d,%s\n" % (n, b"x" * (n % 60)) for n in range(2000))


@pytest.fixture
def far() -> VersionedSource:
    return VersionedSource({"a": DATA, "empty": b""})


@pytest.fixture
def tiers() -> Iterator[Tiers]:
    with_room = Tiers(memory=8 << 20)
    yield with_room
    with_room.close()


def file(far: VersionedSource, tiers: Tiers, name: str = "a") -> LazyFile:
    return LazyFile(PagedObject(origin_of(far, name), tiers, page=PAGE))


steps = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.one_of(st.none(), st.integers(-1, 3 * PAGE))),
        st.tuples(st.just("readinto"), st.integers(0, 3 * PAGE)),
        st.tuples(st.just("seek"), st.integers(0, len(DATA) + 50)),
        st.tuples(st.just("back"), st.integers(0, len(DATA))),
        st.tuples(st.just("on"), st.integers(0, PAGE)),
        st.tuples(st.just("readline"), st.integers(-1, 100)),
    ),
    max_size=20,
)


@settings(max_examples=60)
@given(steps=steps, buffered=st.booleans(), name=st.sampled_from(["a", "empty"]))
def test_it_does_what_a_file_in_memory_does(steps: list[tuple[str, int]], buffered: bool, name: str) -> None:
    far, tiers = VersionedSource({"a": DATA, "empty": b""}), Tiers(memory=256 << 10)
    expected, given = io.BytesIO(far.objects[name]), open_paged(file(far, tiers, name), "rb", -1 if buffered else 0)
    for verb, number in steps:
        if verb == "readinto":
            one, two = bytearray(number), bytearray(number)
            assert expected.readinto(one) == given.readinto(two)
            assert one == two
        elif verb == "seek":
            assert expected.seek(number) == given.seek(number)
        elif verb == "back":
            assert expected.seek(-min(number, len(far.objects[name])), os.SEEK_END) == given.seek(
                -min(number, len(far.objects[name])), os.SEEK_END
            )
        elif verb == "on":
            assert expected.seek(number, os.SEEK_CUR) == given.seek(number, os.SEEK_CUR)
        else:
            assert getattr(expected, verb)(number) == getattr(given, verb)(number)
        assert expected.tell() == given.tell()
    given.close()
    assert (tiers.ledger.reserved, len(board_of(tiers))) == (0, 0)
    assert tiers.ledger.peak <= 256 << 10
    tiers.close()


def test_lines_come_from_a_buffer_and_are_read_ahead(far: VersionedSource, tiers: Tiers) -> None:
    with open_paged(file(far, tiers)) as lines:
        assert list(lines) == DATA.splitlines(keepends=True)
    assert set(far.asked().values()) == {1}


def test_text_is_decoded(far: VersionedSource, tiers: Tiers) -> None:
    far.objects["a"] = "Zeile äöü\nzweite\r\n".encode("latin-1")
    with open_paged(file(far, tiers), "r", encoding="latin-1", newline="") as text:
        assert text.readline() == "Zeile äöü\n"
        assert text.readline() == "zweite\r\n"


def test_it_says_what_it_is(far: VersionedSource, tiers: Tiers) -> None:
    raw = file(far, tiers)
    assert (raw.readable(), raw.seekable(), raw.writable(), raw.mode, raw.size) == (True, True, False, "rb", len(DATA))
    assert raw.name == "diary://objects/a"
    buffered = open_paged(raw)
    assert isinstance(buffered, BufferedLazyFile)
    assert (buffered.size, buffered.name, buffered.identity) == (len(DATA), raw.name, raw.identity)
    buffered.close()
    assert raw.closed
    for call in (raw.read, raw.tell, raw.readable, partial(raw.seek, 0), partial(raw.read_at, 0), buffered.read):
        with pytest.raises(ValueError, match="closed"):
            call()
    raw.close()


def test_closing_leaves_pages_in_the_cache(far: VersionedSource, tiers: Tiers) -> None:
    for _ in range(2):
        with file(far, tiers) as raw:
            assert raw.readall() == DATA
    assert set(far.asked().values()) == {1}


def test_positions_of_its_own_do_not_disturb_readers_elsewhere(far: VersionedSource, tiers: Tiers) -> None:
    raw = file(far, tiers)
    raw.seek(100)
    found: list[bool] = []

    def read(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(50):
            at = chance.randrange(len(DATA))
            found.append(raw.read_at(at, 500) == DATA[at : at + 500])

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 200
    assert raw.tell() == 100
    assert raw.read_ranges([(0, 3), (PAGE, PAGE + 3)]) == [DATA[:3], DATA[PAGE : PAGE + 3]]
    raw.close()


def test_a_forgotten_file_gives_back_what_it_read_ahead(far: VersionedSource, tiers: Tiers) -> None:
    raw = file(far, tiers)
    for _ in range(3):
        raw.read(PAGE)
    assert tiers.ledger.reserved > 0
    del raw
    assert (tiers.ledger.reserved, len(board_of(tiers))) == (0, 0)


def test_seeking_nowhere_is_refused(far: VersionedSource, tiers: Tiers) -> None:
    with file(far, tiers) as raw:
        with pytest.raises(ValueError, match="before the beginning"):
            raw.seek(-1)
        with pytest.raises(ValueError, match="whence"):
            raw.seek(0, 7)
        assert raw.tell() == 0


@pytest.mark.parametrize("mode", ["w", "wb", "a", "r+", "rb+", "xb"])
def test_writing_is_refused_with_the_remedy(mode: str) -> None:
    with pytest.raises(UnsupportedError, match="only reads"):
        check_mode(mode, -1, None, None, None)


@pytest.mark.parametrize("arguments", [("q",), ("",), ("rbt",), ("rb", -1, "utf-8"), ("r", 0)])
def test_modes_that_make_no_sense_are_refused(
    far: VersionedSource, tiers: Tiers, arguments: tuple[object, ...]
) -> None:
    with file(far, tiers) as raw, pytest.raises(ConfigError):
        open_paged(raw, *arguments)  # type: ignore[arg-type]


def _again(path: str, position: int = 0) -> LazyFile:
    return LazyFile(PagedObject(path, Tiers(memory=1 << 20)), reopen=partial(_again, path))


def test_it_pickles_by_how_it_was_opened(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(DATA)
    raw = _again(str(tmp_path / "a"))
    raw.seek(1000)
    with pickle.loads(pickle.dumps(raw)) as copy:
        assert (copy.tell(), copy.read(10)) == (1000, DATA[1000:1010])
    with open_paged(raw) as buffered:
        buffered.readline()
        at = buffered.tell()
        with pickle.loads(pickle.dumps(buffered)) as copy:
            assert (type(copy), copy.tell(), copy.readline()) == (BufferedLazyFile, at, buffered.readline())


def test_it_does_not_pickle_if_nobody_can_open_it_again(far: VersionedSource, tiers: Tiers) -> None:
    with file(far, tiers) as raw, pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(raw)


# -- what reads files -------------------------------------------------------------------


def test_archives(far: VersionedSource, tiers: Tiers) -> None:
    zipped, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("x/one", DATA)
        archive.writestr("two", b"2" * 10_000)
    with tarfile.open(fileobj=tarred, mode="w:gz") as archive:
        entry = tarfile.TarInfo("one")
        entry.size = len(DATA)
        archive.addfile(entry, io.BytesIO(DATA))
    far.objects.update(zip=zipped.getvalue(), tar=tarred.getvalue(), gz=gzip.compress(DATA))
    with zipfile.ZipFile(file(far, tiers, "zip")) as archive:
        assert archive.read("x/one") == DATA
    with tarfile.open(fileobj=open_paged(file(far, tiers, "tar"))) as archive:
        member = archive.extractfile("one")
        assert member is not None
        assert member.read() == DATA
    with gzip.open(file(far, tiers, "gz")) as inflated:
        assert inflated.read() == DATA


def test_a_zip_directory_costs_its_pages_only(far: VersionedSource, tiers: Tiers) -> None:
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_STORED) as archive:
        for number in range(50):
            archive.writestr(f"{number}", os.urandom(10_000))
    far.objects["zip"] = zipped.getvalue()
    with zipfile.ZipFile(file(far, tiers, "zip")) as archive:
        assert len(archive.namelist()) == 50
    assert far.nbytes() <= 4 * PAGE


def test_csv_and_numpy(far: VersionedSource, tiers: Tiers) -> None:
    import numpy as np

    assert len(list(csv.reader(open_paged(file(far, tiers), "r")))) == 2000
    stored = io.BytesIO()
    np.save(stored, np.arange(5000).reshape(50, 100))
    far.objects["npy"] = stored.getvalue()
    loaded = np.load(open_paged(file(far, tiers, "npy")))
    assert (loaded == np.arange(5000).reshape(50, 100)).all()


def test_parquet_and_images(far: VersionedSource, tiers: Tiers) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pa.table({"a": list(range(10_000)), "b": [str(n) for n in range(10_000)]})
    stored = io.BytesIO()
    parquet.write_table(table, stored, row_group_size=1000)
    far.objects["pq"] = stored.getvalue()
    for one in (file(far, tiers, "pq"), open_paged(file(far, tiers, "pq"))):
        assert parquet.read_table(one, columns=["b"]).equals(table.select(["b"]))
        one.close()
    image = pytest.importorskip("PIL.Image")
    drawn = io.BytesIO()
    image.new("RGB", (300, 200), (1, 2, 3)).save(drawn, "PNG")
    far.objects["png"] = drawn.getvalue()
    with image.open(open_paged(file(far, tiers, "png"))) as picture:
        assert picture.convert("RGB").getpixel((5, 5)) == (1, 2, 3)
