"""The disk tier: what it promises about one folder, one process at a time. More processes: ``tests/stress``."""

from __future__ import annotations

import copy
import errno
import gc
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from models import segment as model_segment

from lazystore._core.record_log import RecordLog
from lazystore._core.segment_file import RECORD_OVERHEAD, SEGMENT_OVERHEAD, SegmentFile
from lazystore.cache import disk
from lazystore.cache.disk import DiskTier
from lazystore.errors import ClosedError, ConfigError, FormatError

CAP = 256 << 10


@pytest.fixture
def tier(tmp_path: Path) -> Iterator[DiskTier]:
    with DiskTier(tmp_path / "tier", CAP) as tier:
        yield tier


def again(tier: DiskTier) -> DiskTier:
    tier.close()
    return DiskTier(tier.path, tier.max_bytes)


def files(tier: DiskTier) -> list[Path]:
    return sorted(Path(tier.path).glob("*.seg"))


def total(tier: DiskTier) -> int:
    return sum(file.stat().st_size for file in Path(tier.path).iterdir())


def put(tier: DiskTier, key: bytes, payload: bytes, expires: float = 0.0) -> bool:
    return tier.put(key, 1, [payload], created=1.0, expires=expires)


# --- one value ---


@pytest.mark.parametrize("key", [b"", b"k", b"\0", b"k" * 465, b"k" * 5000])
@pytest.mark.parametrize("payload", [b"", b"v", bytes(range(256)) * 40])
def test_what_was_put_is_got(tier: DiskTier, key: bytes, payload: bytes) -> None:
    half = len(payload) // 2
    assert tier.put(key, 77, [payload[:half], memoryview(payload)[half:], b""], created=12.5, expires=5e9)
    for _ in range(2):
        found = tier.get(key)
        assert (found.kind, found.payload, found.created, found.expires) == (77, payload, 12.5, 5e9)
        assert key in tier
        assert len(tier) == 1
        tier = again(tier)
    tier.close()


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="no way to empty the page cache")
def test_values_that_the_page_cache_has_lost_are_read_from_the_disk(tier: DiskTier) -> None:
    for number in range(2):
        put(tier, b"%d" % number, bytes([number]) * 9_000)
    (file,) = files(tier)
    with open(file, "rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert [tier.get(b"%d" % number).payload for number in range(2)] == [bytes([number]) * 9_000 for number in range(2)]
    assert tier.counters()["read_errors"] == 0


def test_a_miss_is_the_default(tier: DiskTier) -> None:
    assert tier.get(b"k") is None
    assert tier.get(b"k", default=3) == 3
    assert b"k" not in tier
    assert not tier.delete(b"k")
    counters = tier.counters()
    assert (counters["hits"], counters["misses"]) == (0, 2)


def test_the_newest_value_counts_after_reopening_too(tier: DiskTier) -> None:
    for turn in range(50):
        put(tier, b"k", b"%d" % turn * 1000)
    assert tier.get(b"k").payload == b"49" * 1000
    with again(tier) as opened:
        assert opened.get(b"k").payload == b"49" * 1000
        assert len(opened) == 1


def test_a_clock_that_goes_back_does_not_bring_old_values_back(tier: DiskTier, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tier, b"k", b"old" * 1000)
    with monkeypatch.context() as patch:
        patch.setattr(time, "time_ns", lambda: 5)
        put(tier, b"k", b"new" * 1000)
    with again(tier) as opened:
        assert opened.get(b"k").payload == b"new" * 1000


def test_expired_values_are_misses(tier: DiskTier) -> None:
    put(tier, b"k", b"v", expires=100.0)
    put(tier, b"later", b"v", expires=time.time() + 3600)
    assert tier.get(b"k", now=99.0) is not None
    assert b"k" not in tier
    assert tier.get(b"k") is None
    assert tier.get(b"k", now=99.0) is None  # it is gone
    assert tier.counters()["expired"] == 1
    assert tier.get(b"later") is not None


def test_deleted_values_stay_deleted(tier: DiskTier) -> None:
    put(tier, b"k", b"old")
    put(tier, b"k", b"new")
    put(tier, b"other", b"v")
    assert tier.delete(b"k")
    assert not tier.delete(b"k")
    with again(tier) as opened:
        assert opened.get(b"k") is None
        assert opened.get(b"other") is not None
        put(opened, b"k", b"newer")
        assert opened.get(b"k").payload == b"newer"


def test_clearing_takes_what_has_the_prefix(tier: DiskTier) -> None:
    for number in range(100):
        put(tier, b"ab"[number % 2 : number % 2 + 1] + b"%d" % number, bytes(2000))
    held = len(tier)
    assert tier.clear(b"a") == held // 2
    with again(tier) as opened:
        assert len(opened) == held - held // 2
        assert b"a98" not in opened
        assert b"b99" in opened
        assert opened.clear() == held - held // 2
        assert len(opened) == 0
        assert total(opened) == 0
        assert put(opened, b"a98", b"v")
        assert opened.get(b"a98") is not None


def test_values_pack_and_unpack_by_the_tiers_settings(tmp_path: Path) -> None:
    with DiskTier(tmp_path / "tier", codec="zlib") as tier:
        value = {"text": ["the same again"] * 500, "pair": (1, 2.0)}
        kind, buffers = tier.pack(value)
        tier.put(b"k", kind, buffers, created=1.0)
        assert tier.unpack(tier.get(b"k")) == value
        counters = tier.counters()
        assert counters["compression_savings"] > 5000
        plain = DiskTier(tmp_path / "plain", codec="none")
        plain.put(b"k", *plain.pack(value), created=1.0)
        assert abs(counters["nbytes"] - plain.nbytes + counters["compression_savings"]) < 8  # padding
        plain.close()


def test_a_pickle_on_disk_is_a_miss_unless_allowed(tmp_path: Path) -> None:
    with DiskTier(tmp_path / "tier", allow_pickle=True) as tier:
        tier.put(b"k", *tier.pack({1, 2}), created=1.0)
        assert tier.unpack(tier.get(b"k")) == {1, 2}
    with DiskTier(tmp_path / "tier") as tier:
        assert tier.get(b"k") is None
        counters = tier.counters()
        assert (counters["hits"], counters["misses"], counters["pickles_refused"]) == (0, 1, 1)


# --- the cap ---


def test_the_folder_never_has_more_than_max_bytes(tier: DiskTier) -> None:
    for number in range(500):
        assert put(tier, b"%d" % number, bytes(number * 17 % 9000))
        assert total(tier) <= CAP
    assert total(tier) > CAP // 2
    assert tier.nbytes == total(tier)
    assert tier.get(b"499") is not None
    assert tier.get(b"0") is None
    counters = tier.counters()
    assert counters["evictions"] + counters["records"] == 500
    with again(tier) as opened:
        assert len(opened) == counters["records"]


def test_a_smaller_cap_holds_from_the_opening_on(tier: DiskTier) -> None:
    for number in range(100):
        put(tier, b"%d" % number, bytes(2000))
    tier.close()
    with DiskTier(tier.path, CAP // 2) as smaller:
        assert total(smaller) <= CAP // 2
        assert smaller.get(b"99") is not None


def test_what_is_larger_than_an_eighth_is_declined(tier: DiskTier) -> None:
    most = CAP // 8 - SEGMENT_OVERHEAD - RECORD_OVERHEAD - 16
    assert put(tier, b"k", bytes(most))
    assert tier.get(b"k").payload == bytes(most)
    assert not put(tier, b"k", bytes(CAP // 8))
    assert not put(tier, b"k" * 65536, b"")
    assert tier.counters()["declined_size"] == 2
    assert tier.health().ok


def test_segments_without_live_records_go_first(tier: DiskTier) -> None:
    put(tier, b"old but wanted", bytes(20_000))
    for _ in range(100):
        put(tier, b"k", bytes(20_000))
    assert tier.get(b"old but wanted") is not None
    assert tier.counters()["evictions"] == 0


def test_what_is_read_stays_longer_than_what_is_not(tier: DiskTier) -> None:
    for number in range(400):
        put(tier, b"%d" % number, bytes(2000))
        assert tier.get(b"0") is not None
    assert tier.get(b"1") is None
    assert tier.counters()["rescues"] > 0


def test_short_lives_leave_few_files(tier: DiskTier) -> None:
    for turn in range(60):
        put(tier, b"%d" % turn, b"v")
        tier = again(tier)
    assert len(tier) == 60
    assert len(files(tier)) == 1
    tier.close()


def test_an_unused_tier_leaves_no_segment(tier: DiskTier) -> None:
    tier.close()
    assert files(tier) == []


# --- two tiers on one folder ---


def test_two_tiers_see_each_others_values(tier: DiskTier) -> None:
    with DiskTier(tier.path, CAP) as other:
        put(tier, b"a", b"1")
        put(other, b"b", b"2")
        other._next_look = tier._next_look = 0.0
        assert other.get(b"a").payload == b"1"
        assert tier.get(b"b").payload == b"2"
        put(other, b"a", b"newer")
        tier._next_look = 0.0
        assert tier.get(b"a").payload == b"newer"
        assert other.delete(b"b")
        assert tier.get(b"b") is None  # at once: the record itself is marked
        assert tier.counters()["corrupt"] == 0
        assert other.clear() == 1
        tier._next_look = 0.0
        assert tier.get(b"a") is None


def test_what_another_tier_stored_is_seen_soon(tier: DiskTier) -> None:
    with DiskTier(tier.path, CAP) as other:
        put(other, b"k", b"v")
        deadline = time.monotonic() + 30
        while tier.get(b"k") is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_what_another_tier_evicted_is_a_miss(tier: DiskTier) -> None:
    for number in range(20):
        put(tier, b"%d" % number, bytes(5000))
    held = [b"%d" % number for number in range(20)]
    tier._seal()
    with DiskTier(tier.path, CAP) as other:
        for number in range(200):
            put(other, b"other %d" % number, bytes(5000))
        tier._next_look = time.monotonic() + 1000  # it does not know yet
        assert all(tier.get(key) is None for key in held)
        assert tier.counters()["corrupt"] == 0


def test_others_that_reserve_everything_leave_no_room(tmp_path: Path) -> None:
    tiers = [DiskTier(tmp_path / "tier", 64 << 10) for _ in range(12)]
    stored = [put(tier, b"%d" % number, bytes(3000)) for number, tier in enumerate(tiers)]
    assert stored.count(True) >= 8
    assert sum(tier.counters()["declined_room"] for tier in tiers) == stored.count(False)
    assert total(tiers[0]) <= 64 << 10
    for tier in tiers:
        assert tier.health().ok
        tier.close()


# --- damage ---


def one_segment(tmp_path: Path) -> tuple[Path, bytes, dict[bytes, bytes]]:
    values = {b"a": b"first", b"b" * 20: bytes(range(100)), b"": b"", b"c": b"last"}
    with DiskTier(tmp_path / "tier", CAP) as tier:
        for key, payload in values.items():
            put(tier, key, payload)
    (file,) = files(tier)
    return file, file.read_bytes(), values


def test_a_flipped_bit_costs_values_but_never_gives_wrong_ones(tmp_path: Path) -> None:
    file, whole, values = one_segment(tmp_path)
    met = 0
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        file.write_bytes(damaged)
        with DiskTier(tmp_path / "tier", CAP) as tier:
            for key, payload in values.items():
                found = tier.get(key)
                assert found is None or found.payload == payload
            lost = len(values) - tier.counters()["hits"]
            met += tier.counters()["corrupt"]
            assert put(tier, b"new", b"value")
            assert tier.get(b"new").payload == b"value"
        for extra in set(files(tier)) - {file}:
            extra.unlink()
        if at < SEGMENT_OVERHEAD:
            assert lost == len(values)
        file.touch()
    assert met >= sum(map(len, values.values()))


def test_a_bit_flipped_under_an_open_tier_is_counted_once(tier: DiskTier) -> None:
    put(tier, b"k", b"v" * 100)
    (file,) = files(tier)
    whole = file.read_bytes()
    for at in range(SEGMENT_OVERHEAD, SEGMENT_OVERHEAD + RECORD_OVERHEAD + 101):
        with open(file, "r+b") as opened:
            opened.seek(at)
            opened.write(bytes([whole[at] ^ 0x10]))
        before = tier.counters()["corrupt"]
        assert tier.get(b"k") is None
        assert tier.get(b"k") is None
        assert tier.counters()["corrupt"] == before + 1
        file.write_bytes(whole)
        tier.close()
        tier = DiskTier(tier.path, CAP)
        assert tier.get(b"k").payload == b"v" * 100
    tier.close()


def test_a_file_cut_anywhere_keeps_the_whole_records(tmp_path: Path) -> None:
    file, whole, values = one_segment(tmp_path)
    ends, at = [], SEGMENT_OVERHEAD
    for key, payload in values.items():
        at += RECORD_OVERHEAD + len(key) + len(payload)
        at += -at % 8
        ends.append(at)
    assert ends[-1] == len(whole)
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with DiskTier(tmp_path / "tier", CAP) as tier:
            assert len(tier) == sum(end <= length for end in ends)
            assert tier.counters()["corrupt"] == 0
            for key in list(values)[: len(tier)]:
                assert tier.get(key).payload == values[key]


def test_a_record_without_its_segments_salt_is_none(tmp_path: Path) -> None:
    """Blocks of an older file that a crash left behind another one's records."""
    file, whole, values = one_segment(tmp_path)
    file.unlink()
    with DiskTier(tmp_path / "tier", CAP) as tier:
        put(tier, b"mine", b"v")
    (file,) = files(tier)
    file.write_bytes(file.read_bytes() + whole[SEGMENT_OVERHEAD:])
    with DiskTier(tmp_path / "tier", CAP) as tier:
        assert len(tier) == 1
        assert all(tier.get(key) is None for key in values)


def test_a_value_that_looks_like_a_record_is_a_value(tmp_path: Path) -> None:
    _, whole, values = one_segment(tmp_path)
    with DiskTier(tmp_path / "tier", CAP) as tier:
        put(tier, b"nested", whole)
    with DiskTier(tmp_path / "tier", CAP) as tier:
        assert tier.get(b"nested").payload == whole
        assert len(tier) == len(values) + 1


def test_deleting_the_files_costs_the_values_only(tier: DiskTier) -> None:
    put(tier, b"k", b"v")
    for file in files(tier):
        file.unlink()
    tier._next_look = 0.0
    assert tier.get(b"k") is None
    assert put(tier, b"k", b"v")
    assert tier.get(b"k") is not None


SPARE = """
import os, sys
from lazystore.cache.disk import DiskTier
tier = DiskTier(sys.argv[1], "32MB")
for number in range(70):
    assert tier.put(b"%d" % number, 1, [bytes(10_000)], created=1.0)
if sys.argv[2] == "close":
    tier.close()
(file,) = (entry.stat() for entry in os.scandir(sys.argv[1]) if entry.name.endswith(".seg"))
print(file.st_blocks * 512 - file.st_size)
sys.stdout.flush()
os._exit(0)
"""


def test_blocks_reserved_ahead_are_bounded_and_given_back(tmp_path: Path) -> None:
    """By who closes the tier, else by the next one that may write: a process that is killed keeps none."""

    def spare_of(end: str) -> int:
        command = [sys.executable, "-c", SPARE, str(tmp_path / end), end]
        return int(subprocess.run(command, check=True, timeout=120, stdout=subprocess.PIPE).stdout)

    spare = spare_of("kill")
    if spare < 100_000:
        pytest.skip("the file system reserves no blocks")
    assert spare <= (1 << 20) + 8192
    with DiskTier(tmp_path / "kill", "32MB") as tier:
        (file,) = files(tier)
        assert file.stat().st_blocks * 512 - file.stat().st_size < 8192
        assert all(tier.get(b"%d" % number).payload == bytes(10_000) for number in range(70))
    assert spare_of("close") < 8192


# --- a disk that refuses ---


class Refusing:
    """A log whose writes fail."""

    def __init__(self, log: RecordLog, code: int) -> None:
        self.log, self.code = log, code

    def put(self, *_: Any) -> bool:
        raise OSError(self.code, os.strerror(self.code))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.log, name)

    def __len__(self) -> int:
        return len(self.log)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT])
def test_a_disk_that_refuses_turns_writing_off_and_on_again(
    tier: DiskTier, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    put(tier, b"before", b"v")
    log = tier._log
    tier._log = Refusing(tier._log, code)  # type: ignore[assignment,arg-type]
    assert not put(tier, b"k", b"v")
    tier._log = log
    health = tier.health()
    assert not health.ok
    assert errno.errorcode[code] in health.reason
    assert tier.path in health.reason
    assert 0 < health.retry_s <= 60
    assert not put(tier, b"k", b"v")
    assert tier.get(b"before").payload == b"v"
    assert tier.counters()["write_errors"] == 1
    assert tier.counters()["declined_off"] == 1
    tier._off_until = time.monotonic() - 1  # as if the minute had passed
    assert put(tier, b"k", b"v")
    assert tier.health() == (True, "", 0.0)


LIMITED = """
import resource, sys
from lazystore.cache.disk import DiskTier
tier = DiskTier(sys.argv[1], 256 << 10)
assert tier.put(b"before", 1, [bytes(100)], created=1.0)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
assert tier.put(b"fits", 1, [bytes(2000)], created=1.0)
assert not tier.put(b"torn", 1, [bytes(9000)], created=1.0)
assert "EFBIG" in tier.health().reason, tier.health()
assert tier.get(b"before").payload == bytes(100)
assert tier.get(b"torn") is None
tier._off_until = 1e-9
assert tier.put(b"small", 1, [bytes(100)], created=1.0)
assert tier.get(b"small").payload == bytes(100)
"""


def test_a_write_that_the_system_cuts_leaves_the_segment_whole(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", LIMITED, tmp_path / "tier"], check=True, timeout=120)
    with DiskTier(tmp_path / "tier", 256 << 10) as tier:
        assert len(tier) == 3
        assert tier.get(b"small") is not None


def test_a_folder_that_is_deleted_turns_the_tier_off_until_it_can_be_made_again(tier: DiskTier) -> None:
    put(tier, b"k", b"v")
    for file in Path(tier.path).iterdir():
        file.unlink()
    os.rmdir(tier.path)
    tier._next_look = 0.0
    assert tier.get(b"k") is None
    assert not put(tier, b"k", b"v")
    assert not tier.health().ok
    tier._off_until = time.monotonic() - 1
    assert put(tier, b"k", b"v")
    assert tier.get(b"k") is not None
    assert tier.health().ok
    assert tier.counters()["stores"] == 2


def test_a_folder_lock_that_nobody_lets_go_of_turns_writing_off(
    tier: DiskTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "LOCK_S", 0.01)
    with DiskTier(tier.path, CAP) as other, other._folder.locked(1.0):
        assert not put(tier, b"k", b"v")
        assert "lock" in tier.health().reason
        assert tier.get(b"k") is None
        with DiskTier(tier.path, CAP) as reader:  # reading needs no lock
            assert reader.get(b"k") is None
    tier._off_until = time.monotonic() - 1
    assert put(tier, b"k", b"v")
    assert tier.health().ok


# --- threads, forks, ends ---


def test_threads_put_get_and_delete_at_once(tier: DiskTier) -> None:
    wrong: list[object] = []

    def work(number: int) -> None:
        for turn in range(300):
            key = b"%d" % (turn * 7 % 40)
            if turn % 3 == number % 3:
                put(tier, key, key * 700)
            elif turn % 29 == 0:
                tier.delete(key)
            else:
                found = tier.get(key)
                if found is not None and found.payload != key * 700:
                    wrong.append(found)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    counters = tier.counters()
    assert counters["corrupt"] == counters["write_errors"] == 0
    assert total(tier) <= CAP


def in_child(function: Any) -> int:
    pid = os.fork()
    if not pid:
        code = 1
        try:
            function()
            code = 0
        finally:
            os._exit(code)
    return pid


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_forked_child_writes_segments_of_its_own(tier: DiskTier) -> None:
    put(tier, b"parent", b"before")
    (ours,) = files(tier)

    def child() -> None:
        assert tier.get(b"parent").payload == b"before"
        for number in range(10):
            assert put(tier, b"child %d" % number, b"c" * 1000)
        assert ours not in [Path(tier.path, tier._current.name) for _ in [0] if tier._current]

    size = ours.stat().st_size
    pid = in_child(child)
    assert ended(pid) == 0
    assert ours.stat().st_size == size
    for number in range(10):
        assert put(tier, b"parent %d" % number, b"p" * 1000)
    tier._next_look = 0.0
    assert all(tier.get(b"child %d" % number).payload == b"c" * 1000 for number in range(10))
    assert all(tier.get(b"parent %d" % number).payload == b"p" * 1000 for number in range(10))


def test_a_fork_while_another_thread_writes_does_not_hang_the_child(tier: DiskTier) -> None:
    done = threading.Event()

    def write() -> None:
        number = 0
        while not done.is_set():
            number += 1
            put(tier, b"%d" % (number % 50), bytes(3000))

    writer = threading.Thread(target=write)
    writer.start()

    def child() -> None:
        signal.alarm(60)
        for number in range(20):
            put(tier, b"child %d" % number, b"c")
            tier.get(b"%d" % number)

    try:
        codes = [ended(in_child(child)) for _ in range(5)]
    finally:
        done.set()
        writer.join()
    assert codes == [0] * 5
    assert total(tier) <= CAP


def test_a_child_whose_folder_is_gone_has_misses_only(tier: DiskTier) -> None:
    put(tier, b"k", b"v")
    moved = tier.path + ".moved"

    def child() -> None:
        os.rename(tier.path, moved)
        Path(tier.path).write_bytes(b"no folder")
        assert tier.get(b"k") is None
        assert not put(tier, b"k", b"v")
        assert not tier.health().ok

    assert ended(in_child(child)) == 0


def test_a_closed_tier_says_so(tier: DiskTier) -> None:
    put(tier, b"k", b"v")
    tier.close()
    tier.close()
    for use in (lambda: tier.get(b"k"), lambda: put(tier, b"k", b"v"), lambda: len(tier), lambda: tier.clear()):
        with pytest.raises(ClosedError, match="closed"):
            use()
    assert not tier.health().ok
    assert tier.counters()["stores"] == 1
    assert "closed" in repr(tier)


def test_a_tier_pickles_as_its_arguments(tmp_path: Path) -> None:
    with DiskTier(tmp_path / "tier", "10MB", mode="through", codec="zlib", allow_pickle=True, fsync=True) as tier:
        put(tier, b"k", b"v")
        for twin in (pickle.loads(pickle.dumps(tier)), copy.copy(tier)):
            names = ("path", "max_bytes", "mode", "allow_pickle", "fsync")
            assert [getattr(twin, name) for name in names] == [getattr(tier, name) for name in names]
            assert twin.codec.name == "zlib"
            assert twin.get(b"k").payload == b"v"
            twin.close()


def test_a_forgotten_tier_closes_its_files(tmp_path: Path) -> None:
    def opened() -> int:
        return len(os.listdir("/dev/fd"))

    gc.collect()
    before = opened()
    tier = DiskTier(tmp_path / "tier", CAP)
    put(tier, b"k", b"v")
    assert opened() > before
    del tier
    gc.collect()
    assert opened() == before


@pytest.mark.parametrize(
    "options",
    [
        {"max_bytes": 1000},
        {"max_bytes": 0},
        {"max_bytes": "many"},
        {"mode": "both"},
        {"codec": "gzip"},
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        DiskTier(tmp_path / "tier", **options)
    assert not (tmp_path / "tier").exists()


def test_the_index_is_small(tier: DiskTier, tmp_path: Path) -> None:
    with DiskTier(tmp_path / "large", "100MB") as large:
        for number in range(20_000):
            put(large, b"key-%d" % number, b"v")
        assert large.counters()["index_bytes"] <= 48 * 20_000
        with again(large) as opened:
            assert len(opened) == 20_000


def listed(tmp_path: Path) -> dict[bytes, bytes]:
    """A folder with full segments that end in lists; what is in it."""
    values = {b"key-%d" % number: bytes([number % 256]) * (5000 + number) for number in range(1200)}
    with DiskTier(tmp_path / "tier", "32MB") as tier:
        for key, payload in values.items():
            put(tier, key, payload)
        for key in (b"key-0", b"key-700"):
            assert tier.delete(key)
            del values[key]
        put(tier, b"key-1", b"newer")
        values[b"key-1"] = b"newer"
        assert len(files(tier)) > 5
    return values


def all_there(tmp_path: Path, values: dict[bytes, bytes], missing: int = 0) -> None:
    with DiskTier(tmp_path / "tier", "32MB") as tier:
        found = {key: tier.get(key) for key in values}
        assert sum(one is None for one in found.values()) == missing
        assert all(one is None or one.payload == values[key] for key, one in found.items())
        assert tier.get(b"key-0") is None
        assert tier.get(b"key-700") is None
        assert tier.counters()["corrupt"] == 0


def test_full_segments_end_in_a_list_that_is_read_instead(tmp_path: Path) -> None:
    values = listed(tmp_path)
    full = [file for file in sorted((tmp_path / "tier").glob("*.seg")) if b"LZLIST" in file.read_bytes()[-16:]]
    assert len(full) >= 5
    all_there(tmp_path, values)
    for file in full:
        assert all(model_segment.read(file.read_bytes()))  # asserts that list and records agree
    (file, *_) = full
    whole = file.read_bytes()
    (begin,) = struct.unpack("=Q", whole[-16:-8])
    file.write_bytes(whole[:32] + bytes(begin - 32) + whole[begin:])  # the list is all that is read
    with DiskTier(tmp_path / "tier", "32MB") as tier:
        assert len(tier) >= len(values)
        assert all(tier.get(key).payload == value for key, value in list(values.items())[-300:])
        assert tier.get(b"key-2") is None
        assert tier.counters()["corrupt"] == 1


def test_a_damaged_list_costs_time_only(tmp_path: Path) -> None:
    values = listed(tmp_path)
    for number, file in enumerate(sorted((tmp_path / "tier").glob("*.seg"))):
        whole = bytearray(file.read_bytes())
        if whole[-8:] == b"LZLIST\r\n":
            (begin,) = struct.unpack("=Q", whole[-16:-8])
            at = [len(whole) - 16, len(whole) - 1, begin, begin + 4, begin + 8, begin + 60][number % 6]
            whole[at] ^= 0x40
            file.write_bytes(whole)
    all_there(tmp_path, values)
    all_there(tmp_path, values)


def test_a_torn_list_costs_time_only(tmp_path: Path) -> None:
    values = listed(tmp_path)
    for number, file in enumerate(sorted((tmp_path / "tier").glob("*.seg"))):
        os.truncate(file, file.stat().st_size - 8 * number)
    all_there(tmp_path, values, missing=1 if files_without_list(tmp_path) else 0)


def files_without_list(tmp_path: Path) -> bool:
    """Whether cutting the newest segment cut a record: it has no list."""
    return b"LZRi" not in sorted((tmp_path / "tier").glob("*.seg"))[-1].read_bytes()


def test_a_file_that_is_no_segment_is_refused_and_closed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"something else, long enough to have a head")
    before = len(os.listdir("/dev/fd"))
    with pytest.raises(FormatError, match="no segment"):
        SegmentFile(os.open(tmp_path / "file", os.O_RDWR), "file")
    assert len(os.listdir("/dev/fd")) == before


def test_impossible_records_are_refused(tier: DiskTier) -> None:
    put(tier, b"k", b"v")
    for kind in (-1, 65536):
        with pytest.raises(OverflowError):
            tier.put(b"k", kind, [b"v"], created=1.0)
    with pytest.raises(TypeError):
        tier.put(b"k", 1, ["text"], created=1.0)  # type: ignore[list-item]
    with pytest.raises(TypeError):
        tier.get("text")  # type: ignore[arg-type]
    assert tier.get(b"k").payload == b"v"


def test_what_a_segment_was_begun_for_fits_beside_what_moves_on(tmp_path: Path) -> None:
    """In a full folder whose every record was read: each new value is stored, whatever its size."""
    with DiskTier(tmp_path / "tier", 64 * 1024) as tier:
        sizes = [0, 300, 3000, 7000]
        for number in range(400):
            size = sizes[number * 7 % 4]
            assert tier.put(b"%d" % number, 0, [bytes(size)], created=0.0), tier.counters()
            for known in range(max(0, number - 12), number):
                tier.get(b"%d" % known)
