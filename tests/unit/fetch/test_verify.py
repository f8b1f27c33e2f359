"""Nothing of an object is handed out before all of it has the checksum it should have."""

from __future__ import annotations

import gc
import hashlib
import os
import pickle
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.sources import DiarySource

from lazystore.errors import (
    ChecksumError,
    ClosedError,
    DatasetNotFoundError,
    FetchError,
    FetchTimeoutError,
    FormatError,
    MissingExtraError,
    SourceChangedError,
    UnsupportedError,
)
from lazystore.fetch import verify
from lazystore.fetch.local import LocalSource
from lazystore.fetch.source import Read
from lazystore.fetch.verify import VerifyingSource, hasher

GOOD = {"a": random.Random(1).randbytes(200_000), "b": b"short", "empty": b"", "other": b"unchecked"}


def digests(objects: dict[str, bytes] = GOOD) -> dict[str, tuple[str, str]]:
    return {name: ("sha256", hashlib.sha256(data).hexdigest()) for name, data in objects.items() if name != "other"}


def verifying(objects: dict[str, bytes] | None = None, *, local: bool = False) -> tuple[DiarySource, VerifyingSource]:
    inner = DiarySource(GOOD | (objects or {}), local=local)
    return inner, VerifyingSource(inner, digests(), timeout=10.0, memory=0)


def read(name: str, begin: int, nbytes: int) -> Read:
    return Read(name, begin, memoryview(bytearray(nbytes)))


@pytest.fixture(autouse=True)
def no_thread_is_left_over() -> Any:
    yield
    for _ in range(100):
        if not any(thread.name == "lazystore-verify" for thread in threading.enumerate()):
            return
        time.sleep(0.02)
    raise AssertionError("a thread of a source still runs")


def test_reads_get_their_bytes_and_an_object_is_hashed_once() -> None:
    inner, source = verifying()
    for begin in (5, 150_000, 5):
        wanted = read("a", begin, 1000)
        assert source.run([wanted], stat=["b"], timeout=5.0) == {"b": 5}
        assert wanted.view == GOOD["a"][begin : begin + 1000] and wanted.got == 1000
    assert source.counters.extra["verified"] == 1
    asked = inner.asked()
    assert all(
        asked["a", at] == (3 if 5 <= at < 1005 else 2 if 150_000 <= at < 151_000 else 1) for at in range(200_000)
    )


def test_started_reads_are_verified_too_and_tell_when_they_are_done() -> None:
    _, source = verifying()
    done: Counter[str] = Counter()
    for round in (1, 2):
        wanted = [read("a", 7, 9), read("b", 0, 5)]
        flight = source.start(wanted, stat=("a",), timeout=5.0, on_done=lambda: done.update(["x"]))
        assert flight.wait(5.0)
        assert flight.result() == {"a": 200_000}
        assert [bytes(one.view) for one in wanted] == [GOOD["a"][7:16], b"short"]
        assert done["x"] == round
    assert source.counters.extra["verified"] == 2


def test_empty_objects_and_those_without_a_checksum_are_read() -> None:
    inner, source = verifying()
    beyond = read("empty", 0, 10)
    assert source.run([beyond, read("other", 0, 9)], stat=["empty"], timeout=5.0) == {"empty": 0}
    assert beyond.got == 0
    inner.waves.clear()
    source.run([read("other", 0, 9)], timeout=5.0)
    assert inner.waves == [[("other", 0, 9)]]


@pytest.mark.parametrize("how", ["run", "start", "read_all"])
def test_another_checksum_is_raised_after_a_second_try_and_hands_out_nothing(how: str) -> None:
    inner, source = verifying({"a": GOOD["a"][:-1] + b"!"})
    wanted = read("a", 0, 100)
    with pytest.raises(ChecksumError) as caught:
        if how == "run":
            source.run([wanted], timeout=5.0)
        elif how == "start":
            flight = source.start([wanted], timeout=5.0)
            assert flight.wait(5.0)
            flight.result()
        else:
            source.read_all("a", limit=1 << 20, timeout=5.0)
    for part in ("diary://objects/a", "sha256", hashlib.sha256(GOOD["a"]).hexdigest(), "fetched once more"):
        assert part in str(caught.value)
    assert hashlib.sha256(inner.objects["a"]).hexdigest() in str(caught.value)
    assert bytes(wanted.view) == bytes(100)
    assert source.counters.extra["checksum_mismatches"] == 2
    if how != "read_all":
        assert inner.asked()["a", 0] == 2


def test_what_was_damaged_on_its_way_is_fetched_once_more() -> None:
    inner, source = verifying({"a": b"!" + GOOD["a"][1:]})
    starts = Counter[str]()

    def heal(reads: Sequence[Read]) -> None:
        for one in reads:
            starts.update([one.name] * (one.begin == 0 and len(one.view) > 100))
        if starts["a"] == 2:
            inner.objects["a"] = GOOD["a"]

    inner.before = heal
    wanted = read("a", 0, 50)
    source.run([wanted], timeout=5.0)
    assert wanted.view == GOOD["a"][:50]
    assert source.counters.extra == {"checksum_mismatches": 1, "verified": 1}


def test_after_an_error_the_next_read_tries_anew() -> None:
    inner, source = verifying({"b": b"wrong"})
    for _ in range(2):
        with pytest.raises(ChecksumError):
            source.run([read("b", 0, 5)], timeout=5.0)
    inner.objects["b"] = b"short"
    source.run([read("b", 0, 5)], timeout=5.0)
    assert source.counters.extra == {"checksum_mismatches": 4, "verified": 1}


def test_one_damaged_object_does_not_spoil_reads_of_others() -> None:
    _, source = verifying({"b": b"wrong"})
    with pytest.raises(ChecksumError, match="/b "):
        source.run([read("a", 0, 5), read("b", 0, 5)], timeout=5.0)
    source.run([read("a", 0, 5)], timeout=5.0)


def test_a_missing_object_is_what_it_is() -> None:
    inner, source = verifying()
    del inner.objects["a"]
    with pytest.raises(DatasetNotFoundError):
        source.run([read("a", 0, 5)], timeout=5.0)
    with pytest.raises(DatasetNotFoundError):
        source.start([read("a", 0, 5)], timeout=5.0).result()


def test_many_threads_have_an_object_hashed_once() -> None:
    inner, source = verifying()
    inner.before = lambda reads: time.sleep(0.001)
    results: list[Any] = []

    def ask(k: int) -> None:
        wanted = read("a", 1000 * k, 1000)
        source.run([wanted, read("b", 0, 5)], timeout=20.0)
        results.append(bytes(wanted.view) == GOOD["a"][1000 * k : 1000 * k + 1000])

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 12
    assert source.counters.extra["verified"] == 2
    assert inner.asked()["a", 199_999] == 1


def test_memory_of_hashing_is_what_was_allowed(tmp_path: Path) -> None:
    data = bytes(9_000_000)
    for local in (True, False):
        inner = DiarySource({"x": data}, local=local)
        pieces: list[int] = []
        inner.before = lambda reads, pieces=pieces: pieces.extend(len(one.view) for one in reads)  # type: ignore[misc]
        for memory in (0, 1 << 20, 1 << 40):
            source = VerifyingSource(inner, digests({"x": data}), timeout=9.0, memory=memory)
            source.run([read("x", 0, 1)], timeout=9.0)
            threads = 1 if local else 2
            assert max(pieces) * 2 * threads == source.memory == min(max(memory, 256 << 10), 4 << 20)
            pieces.clear()


class Gate:
    """Lets nothing pass until it is opened."""

    def __init__(self, inner: DiarySource) -> None:
        self.open = threading.Event()
        self.met = threading.Event()
        inner.before = self.wait

    def wait(self, reads: Sequence[Read]) -> None:
        self.met.set()
        assert self.open.wait(10.0)


def test_start_does_not_wait_for_the_hash_and_cancelling_leaves_the_buffers_alone() -> None:
    inner, source = verifying()
    gate = Gate(inner)
    wanted = read("a", 0, 100)
    flight = source.start([wanted], timeout=10.0)
    assert gate.met.wait(10.0)
    assert not flight.done()
    flight.cancel()
    with pytest.raises(FetchError, match="cancelled"):
        flight.result()
    gate.open.set()
    again = read("a", 0, 100)
    source.run([again], timeout=10.0)
    assert again.view == GOOD["a"][:100]
    assert bytes(wanted.view) == bytes(100)
    assert source.counters.extra["verified"] == 1


def test_a_forgotten_flight_is_cancelled_and_holds_no_buffer() -> None:
    inner, source = verifying()
    gate = Gate(inner)
    data = bytearray(100)
    flight = source.start([Read("a", 0, memoryview(data))], timeout=10.0)
    assert gate.met.wait(10.0)
    del flight
    gc.collect()
    data.append(1)  # a bytearray that somebody views cannot grow
    gate.open.set()
    source.run([read("a", 0, 5)], timeout=10.0)
    assert data == bytes(100) + b"\1"


def test_a_read_gives_up_at_its_deadline_and_hashing_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lazystore.fetch.flight.STUCK_S", 0.0)
    inner, source = verifying()
    gate = Gate(inner)
    with pytest.raises(FetchTimeoutError, match=r"whole objects.*larger timeout"):
        source.run([read("a", 0, 5)], timeout=0.05)
    gate.open.set()
    source.run([read("a", 0, 5)], timeout=10.0)
    assert source.counters.extra["verified"] == 1


def test_closing_ends_reads_that_wait() -> None:
    inner, source = verifying()
    gate = Gate(inner)
    flights = [source.start([read(name, 0, 5)], timeout=10.0) for name in ("a", "b", "a", "b")]
    assert gate.met.wait(10.0)
    gate.open.set()
    source.close()
    for flight in flights:
        assert flight.wait(10.0)
    with pytest.raises(ClosedError):
        source.run([read("b", 0, 5)], timeout=1.0)
    assert inner.closed


def test_a_file_that_changes_after_it_was_verified_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "b"
    path.write_bytes(b"short")
    source = VerifyingSource(LocalSource(str(tmp_path)), digests(), timeout=5.0)
    source.run([read("b", 0, 5)], timeout=5.0)
    path.unlink()
    path.write_bytes(b"wrong")
    os.utime(path, (1, 1))
    source.inner._files.clear()  # as if 64 others had been opened since
    with pytest.raises(SourceChangedError):
        source.run([read("b", 0, 5)], timeout=5.0)
    source.close()


def test_verified_objects_that_are_forgotten_are_hashed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "MAX_VERIFIED", 1)
    _, source = verifying()
    for name in ("b", "b", "empty", "b"):
        source.run([read(name, 0, 0)], stat=[name], timeout=5.0)
    assert source.counters.extra["verified"] == 3


def test_a_pickled_source_verifies_in_the_other_process(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"short")
    source = VerifyingSource(LocalSource(str(tmp_path)), digests(), timeout=5.0, memory=1 << 20)
    twin = pickle.loads(pickle.dumps(source))
    assert (twin.url, twin.memory, twin.digests) == (source.url, 1 << 20, source.digests)
    wanted = read("b", 1, 3)
    twin.run([wanted], timeout=5.0)
    assert wanted.view == b"hor"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_verifies_for_itself() -> None:
    inner, source = verifying()
    gate = Gate(inner)
    flight = source.start([read("a", 0, 5)], timeout=10.0)
    assert gate.met.wait(10.0)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            source.reset_after_fork()
            gate.open = threading.Event()
            gate.open.set()
            wanted = read("a", 3, 5)
            source.run([wanted], timeout=10.0)
            status = 0 if wanted.view == GOOD["a"][3:8] else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    gate.open.set()
    assert flight.wait(10.0)
    assert flight.result() == {}


# -- algorithms ----------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha224", "sha512", "sha3_256", "blake2b", "blake2s"])
def test_the_standard_librarys_algorithms_are_known(algorithm: str) -> None:
    digest = hashlib.new(algorithm, b"abc").hexdigest()
    found = hasher(algorithm, digest)()
    found.update(b"abc")
    assert found.hexdigest() == digest


def test_a_blake2_digest_may_be_shorter() -> None:
    digest = hashlib.blake2b(b"abc", digest_size=16).hexdigest()
    found = hasher("blake2b", digest)()
    found.update(b"abc")
    assert found.hexdigest() == digest
    for length in (0, 65):
        with pytest.raises(FormatError):
            hasher("blake2b", "00" * length)


@pytest.mark.parametrize("algorithm", ["xxh32", "xxh64", "xxh128", "xxh3_64", "xxh3_128"])
def test_the_algorithms_of_xxhash_are_known(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    xxhash = pytest.importorskip("xxhash")
    found = hasher(algorithm, "00")()
    found.update(b"abc")
    assert found.hexdigest() == getattr(xxhash, algorithm)(b"abc").hexdigest()
    with pytest.raises(UnsupportedError):
        hasher("xxh_nonsense", "00")
    monkeypatch.setitem(sys.modules, "xxhash", None)
    with pytest.raises(MissingExtraError, match=r"lazystore\[mds\]"):
        hasher(algorithm, "00")


@pytest.mark.parametrize("algorithm", ["shake_128", "shake_256", "crc32", "", "__name__"])
def test_other_algorithms_are_unsupported(algorithm: str) -> None:
    with pytest.raises(UnsupportedError, match=repr(algorithm)):
        hasher(algorithm, "00")


def test_upper_case_digests_are_the_same_and_others_no_digests() -> None:
    inner, _ = verifying()
    digest = hashlib.sha256(b"short").hexdigest().upper()
    VerifyingSource(inner, {"b": ("sha256", digest)}, timeout=5.0).run([read("b", 0, 5)], timeout=5.0)
    with pytest.raises(FormatError, match="no hex digest"):
        hasher("md5", "not hex")
