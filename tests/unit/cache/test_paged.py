"""Ranges of an object through pages: the right bytes, each fetched once, inside the budget."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.paging import VersionedSource, origin_of
from support.sources import Postman

from lazystore.cache.disk import DiskTier
from lazystore.cache.page_waves import board_of
from lazystore.cache.paged import PagedObject
from lazystore.cache.tiers import Tiers
from lazystore.errors import ClosedError, ConfigError, DatasetNotFoundError, FetchError, SourceChangedError
from lazystore.lazy.file import LazyFile

PAGE = 4096
SIZE = 40 * PAGE + 77
DATA = random.Random(3).randbytes(SIZE)
ROOMY = 64 << 20


@pytest.fixture
def far() -> VersionedSource:
    return VersionedSource({"a": DATA, "b": DATA[::-1], "empty": b"", "small": b"hello"})


@pytest.fixture
def tiers() -> Iterator[Tiers]:
    with_room = Tiers(memory=ROOMY)
    yield with_room
    with_room.close()


def paged(far: VersionedSource, tiers: Tiers, name: str = "a", **options: object) -> PagedObject:
    return PagedObject(origin_of(far, name), tiers, **{"page": PAGE, **options})  # type: ignore[arg-type]


positions = st.integers(0, SIZE + 10)
lengths = st.one_of(st.integers(-1, 3 * PAGE), st.integers(0, SIZE))
calls = st.lists(st.tuples(st.sampled_from(["read", "readinto", "view", "ranges"]), positions, lengths), max_size=12)


@settings(max_examples=60)
@given(calls=calls, memory=st.sampled_from([128 << 10, 1 << 20, ROOMY, 0]), page=st.sampled_from([4096, 5000, 16384]))
def test_any_reads_give_the_bytes_of_the_object_inside_the_budget(
    calls: list[tuple[str, int, int]], memory: int, page: int
) -> None:
    far, tiers = VersionedSource({"a": DATA}), Tiers(memory=memory)
    with_pages = paged(far, tiers, page=page)
    for verb, at, length in calls:
        expected = DATA[at:] if length < 0 else DATA[at : at + length]
        if verb == "readinto":
            buffer = bytearray(max(0, length))
            got = with_pages.readinto(at, buffer)
            assert bytes(buffer[:got]) == DATA[at : at + max(0, length)]
        elif verb == "ranges":
            spans = [(at, at + max(0, length)), (at // 2, at // 2 + 50), (7, 7)]
            assert with_pages.read_ranges(spans) == [DATA[begin:end] for begin, end in spans]
        else:
            found = with_pages.read(at, length) if verb == "read" else with_pages.read_view(at, length)
            assert found == expected
    assert tiers.ledger.reserved == 0
    assert len(board_of(tiers)) == 0
    assert tiers.ledger.peak <= memory
    tiers.close()


def test_missing_pages_next_to_each_other_travel_in_one_wave(far: VersionedSource, tiers: Tiers) -> None:
    with_pages = paged(far, tiers)
    with_pages.read(5 * PAGE, 10)
    far.waves.clear()
    assert with_pages.read(3 * PAGE + 1, 4 * PAGE) == DATA[3 * PAGE + 1 : 7 * PAGE + 1]
    assert [[begin // PAGE for _, begin, _ in wave] for wave in far.waves] == [[3, 4, 6, 7]]


def test_ranges_travel_together(far: VersionedSource, tiers: Tiers) -> None:
    with_pages = paged(far, tiers)
    far.waves.clear()
    with_pages.read_ranges([(at * PAGE, at * PAGE + 10) for at in (30, 1, 20)])
    assert [[begin // PAGE for _, begin, _ in wave] for wave in far.waves] == [[30, 1, 20]]


def test_what_is_cached_is_not_fetched_again_by_another_file(far: VersionedSource, tiers: Tiers) -> None:
    paged(far, tiers).read()
    far.waves.clear()
    again = paged(far, tiers)
    assert again.read() == DATA
    assert not any(far.waves)


def test_many_threads_and_files_fetch_each_page_once(far: VersionedSource, tiers: Tiers) -> None:
    gate = threading.Event()
    files = [paged(far, tiers) for _ in range(8)]
    far.before = lambda reads: gate.wait(10)
    found: list[bool] = []

    def read(number: int) -> None:
        chance = random.Random(number)
        for _ in range(20):
            at, length = chance.randrange(SIZE), chance.randrange(3 * PAGE)
            found.append(files[number].read(at, length) == DATA[at : at + length])

    threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join()
    assert found == [True] * 160
    assert set(far.asked().values()) == {1}


def test_readers_that_wait_for_room_do_not_wait_for_each_other() -> None:
    far, tiers = VersionedSource({"a": DATA * 4}), Tiers(memory=256 << 10, concurrency=2)
    failures: list[Exception] = []

    def read(seed: int) -> None:
        chance = random.Random(seed)
        file = LazyFile(paged(far, tiers, timeout=20.0))
        try:
            for _ in range(6):
                at = file.seek(chance.randrange(4 * SIZE))
                for length in (100, 7 * PAGE, 30 * PAGE):
                    data = file.read(length)
                    assert data == far.objects["a"][at : at + length]
                    at += len(data)
        except Exception as error:  # noqa: BLE001 - told by the test
            failures.append(error)
        finally:
            file.close()

    with Postman(far, 5, patience=0.0005):
        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures
    assert (tiers.ledger.reserved, len(board_of(tiers))) == (0, 0)
    assert tiers.ledger.peak <= 256 << 10
    tiers.close()


def test_a_view_of_one_page_is_not_a_copy(far: VersionedSource, tiers: Tiers) -> None:
    with_pages = paged(far, tiers)
    one, two = with_pages.read_view(10, 20), with_pages.read_view(10, 20)
    assert one.readonly
    assert one.obj is two.obj


def test_an_object_that_changes_is_not_read_on_and_its_pages_go(far: VersionedSource, tiers: Tiers) -> None:
    old = paged(far, tiers)
    old.read(0, 2 * PAGE)
    held = tiers.counters()["entries"]
    far.replace("a", DATA[::-1])
    with pytest.raises(SourceChangedError):
        old.read(10 * PAGE, 10)
    assert tiers.counters()["entries"] == held - 2
    assert paged(far, tiers).read() == DATA[::-1]
    with pytest.raises(SourceChangedError, match="open it again"):  # it is of the other version by now, and says so
        old.read(20 * PAGE, 10)


def test_without_an_identity_pages_are_for_one_opening(far: VersionedSource, tiers: Tiers) -> None:
    far.told = False
    first = paged(far, tiers)
    assert first.read() == first.read() == DATA
    assert far.nbytes() == SIZE
    assert paged(far, tiers).read() == DATA
    assert far.nbytes() == 2 * SIZE


def test_an_error_reaches_the_reader_and_the_next_read_asks_again(far: VersionedSource, tiers: Tiers) -> None:
    with_pages = paged(far, tiers)

    def fail(reads: object) -> None:
        raise FetchError("the cable is out")

    far.before = fail
    for length in (10, 5 * PAGE):
        with pytest.raises(FetchError, match="cable"):
            with_pages.read(0, length)
    assert (tiers.ledger.reserved, len(board_of(tiers))) == (0, 0)
    far.before = lambda reads: None
    assert with_pages.read() == DATA


def test_an_interrupted_read_leaves_nothing_behind(far: VersionedSource, tiers: Tiers) -> None:
    with_pages = paged(far, tiers)

    def interrupt(reads: object) -> None:
        raise KeyboardInterrupt

    far.before = interrupt
    with pytest.raises(KeyboardInterrupt):
        with_pages.read(0, 5 * PAGE)
    assert (tiers.ledger.reserved, len(board_of(tiers))) == (0, 0)


def test_a_page_that_another_gave_up_is_fetched_by_who_waits(far: VersionedSource, tiers: Tiers) -> None:
    with_pages = paged(far, tiers)
    with Postman(far, patience=0.05):
        wave = with_pages.bring([1, 2])
        assert wave is not None
        found: list[bytes] = []
        reader = threading.Thread(target=lambda: found.append(with_pages.read(PAGE, 10)))
        reader.start()
        wave.give_up()
        reader.join(10)
    assert found == [DATA[PAGE : PAGE + 10]]


def test_a_small_budget_gets_small_pages_and_a_large_read_still_fits() -> None:
    far, tiers = VersionedSource({"a": DATA}), Tiers(memory=128 << 10)
    with_pages = PagedObject(origin_of(far), tiers, page="1MiB")
    assert with_pages.page_bytes == 8 << 10
    assert with_pages.read() == DATA
    assert tiers.ledger.peak <= 128 << 10
    tiers.close()


@pytest.mark.parametrize("ahead", [True, False])
def test_landed_pages_that_nobody_takes_give_way_to_those_that_are_waited_for(ahead: bool) -> None:
    far, tiers = VersionedSource({"a": DATA}), Tiers(memory=128 << 10)
    idle, busy = paged(far, tiers), paged(far, tiers, timeout=1.0)
    waves = [idle.bring(range(at, at + 4), ahead=ahead) for at in range(0, 16, 4)]
    assert tiers.ledger.reserved == tiers.ledger.reservable
    assert idle.bring([30], ahead=True) is None  # half of the budget is the most that can be on its way
    assert busy.read(39 * PAGE, 500) == DATA[39 * PAGE : 39 * PAGE + 500]
    for wave in waves:
        assert wave is not None
        wave.give_up()
    tiers.close()


@pytest.mark.parametrize("name", ["a", "small", "empty"])
def test_the_first_page_can_come_with_the_size(far: VersionedSource, tiers: Tiers, name: str) -> None:
    with_pages = paged(far, tiers, name, first_page=True)
    assert len(far.waves) == 1
    assert with_pages.read(0, PAGE) == far.objects[name][:PAGE]
    assert len(far.waves) == 1


def test_many_are_opened_at_once_and_errors_stand_for_those_that_are_not_there(
    far: VersionedSource, tiers: Tiers
) -> None:
    found = PagedObject.open_many([origin_of(far, name) for name in ("a", "none", "b")], tiers, page=PAGE)
    assert [type(one) for one in found] == [PagedObject, DatasetNotFoundError, PagedObject]
    assert isinstance(found[2], PagedObject)
    assert found[2].read(0, 5) == DATA[::-1][:5]


def test_pages_on_disk_outlive_the_process(far: VersionedSource, tmp_path: Path) -> None:
    for _ in range(2):
        tiers = Tiers(memory=ROOMY, disk=DiskTier(tmp_path / "tier", "16MB", mode="through", codec="none"))
        assert paged(far, tiers).read() == DATA
        tiers.close()
    assert far.nbytes() == SIZE


def test_a_local_file_is_read_directly(tmp_path: Path, tiers: Tiers) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(DATA)
    with_pages = PagedObject(path, tiers)
    assert with_pages.read(5, 100) == DATA[5:105]
    assert with_pages.read_ranges([(0, 3), (SIZE - 2, SIZE + 5)]) == [DATA[:3], DATA[-2:]]
    assert b"".join(with_pages.blocks()) == DATA
    assert tiers.counters()["entries"] == 0
    path.write_bytes(DATA[:-1])
    with pytest.raises(SourceChangedError):
        with_pages.read(5, 100)
    with_pages.close()


def test_blocks_are_the_object_in_order(far: VersionedSource, tiers: Tiers) -> None:
    blocks = [bytes(block) for block in paged(far, tiers).blocks()]
    assert b"".join(blocks) == DATA
    assert set(far.asked().values()) == {1}
    assert (tiers.ledger.reserved, len(board_of(tiers))) == (0, 0)


def test_what_cannot_be_asked_is_refused(far: VersionedSource, tiers: Tiers) -> None:
    with_pages = paged(far, tiers)
    with pytest.raises(ConfigError, match="before the beginning"):
        with_pages.read(-1, 5)
    with pytest.raises(DatasetNotFoundError):
        paged(far, tiers, "none")
    with pytest.raises(ConfigError, match="storage_options"):
        paged(far, tiers, storage_options={"anon": True})
    with_pages.close()
    with pytest.raises(ClosedError):
        with_pages.read(0, 1)


def test_a_forked_child_fetches_what_its_parent_had_on_its_way(far: VersionedSource, tiers: Tiers) -> None:
    with_pages = paged(far, tiers)
    with Postman(far, patience=10.0):
        wave = with_pages.bring([0, 1])
        child = os.fork()
        if not child:
            far.postman = None
            os._exit(0 if with_pages.read(0, 10) == DATA[:10] else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert wave is not None
    wave.give_up()
