"""Messages arrive whole and in order whatever their size, without a file in memory too; and nobody waits for ever."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazystore.parallel.workers.packing import joined, load, pack
from lazystore.parallel.workers.transport import INLINE, Channel, Kind, Message, open_channel

DEADLINE = 60.0


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    """The caller's and the worker's channel, both here."""
    with both() as pair:
        yield pair


@contextlib.contextmanager
def both() -> Iterator[tuple[Channel, Channel]]:
    caller, fds = open_channel()
    worker = Channel.in_worker(fds)
    try:
        yield caller, worker
    finally:
        caller.close()
        worker.close()


@pytest.fixture(params=["file", "pipes"])
def kind_of_channel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "pipes":
        monkeypatch.delattr(os, "memfd_create", raising=False)
    return str(request.param)


@contextlib.contextmanager
def peer(life: Callable[[Channel], None]) -> Iterator[tuple[Channel, int]]:
    """A channel to a process that does something."""
    channel, fds = open_channel()
    pid = os.fork()
    if not pid:
        try:
            channel.close()
            signal.alarm(int(DEADLINE))
            life(Channel.in_worker(fds))
        finally:
            os._exit(0)
    for fd in fds:
        os.close(fd)
    try:
        yield channel, pid
    finally:
        channel.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def echo(channel: Channel) -> None:
    with contextlib.suppress(EOFError):
        while (message := channel.receive(DEADLINE)) is not None:
            value = message.unpack()
            message.drop()
            channel.send(Kind.REPORT, message.number, pack(value), message.meta)


def answer(channel: Channel) -> Message:
    message = channel.receive(DEADLINE)
    assert message is not None
    return message


@pytest.mark.parametrize("size", [0, 1, INLINE - 200, INLINE, 60_000, 1 << 20])
@pytest.mark.parametrize(
    "make", [bytes, bytearray, lambda size: numpy.ones(size, "u1")], ids=["bytes", "bytearray", "array"]
)
def test_any_size_goes_there_and_back(size: int, make: Callable[[int], Any], kind_of_channel: str) -> None:
    value = make(size)
    with peer(echo) as (channel, _):
        for number in range(7):
            channel.send(Kind.CHUNK, number, pack({"value": value}), b"some")
            message = answer(channel)
            assert (message.kind, message.number, message.meta) == (Kind.REPORT, number, b"some")
            back = message.unpack()["value"]
            assert type(back) is type(value)
            assert bytes(back) == bytes(value)
        assert channel.bulk == (kind_of_channel == "file")
        assert channel.through_pipe == (0 if kind_of_channel == "file" or size < INLINE else number + 1)


def test_many_megabytes_go_there_and_back(kind_of_channel: str) -> None:
    value = numpy.arange(20 << 20, dtype="u1")
    with peer(echo) as (channel, _):
        channel.send(Kind.CHUNK, 1, pack([value, value.tobytes()]))
        array, data = answer(channel).unpack()
        assert data == value.tobytes()
        assert numpy.array_equal(array, value)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 200_000), st.booleans(), st.integers(0, 3)), max_size=12))
def test_messages_that_wait_keep_order_and_content(plan: list[tuple[int, bool, int]]) -> None:
    """However many large ones are under way, taken in whatever order."""
    with both() as (caller, worker):
        sent: list[tuple[int, bytes]] = []
        waiting: list[Message] = []
        small = 0
        for number, (size, drop, take) in enumerate(plan):
            if size <= INLINE:
                small += size
                if small > 30_000:  # more does not fit into the pipe, and nobody reads
                    continue
            value = bytes([number]) * size
            caller.send(Kind.CHUNK, number, pack(value))
            sent.append((number, value))
            if drop:
                waiting += worker.messages()
                small = 0
            for _ in range(min(take, len(waiting))):
                message = waiting.pop(len(waiting) // 2)
                assert message.unpack() == dict(sent)[message.number]
                message.drop()
            worker.send(Kind.REPORT, number)
            caller.messages()
        waiting += worker.messages()
        assert [message.number for message in waiting] == sorted(message.number for message in waiting)
        for message in waiting:
            assert message.unpack() == dict(sent)[message.number]
        assert caller.through_pipe == 0


def test_a_slot_is_used_again_once_the_other_side_took_it(ends: tuple[Channel, Channel]) -> None:
    caller, worker = ends
    for number in range(20):
        caller.send(Kind.CHUNK, number, pack(bytes([number]) * 100_000))
        (message,) = worker.messages()
        assert message.unpack() == bytes([number]) * 100_000
        message.drop()
        worker.send(Kind.REPORT, number)
        caller.messages()
    assert os.fstat(caller._store).st_size < 2 << 40  # all lay in the first slot


def test_the_two_sides_do_not_write_over_each_other(ends: tuple[Channel, Channel]) -> None:
    for number in range(3):
        for mark, channel in zip(b"cw", ends, strict=True):
            channel.send(Kind.CHUNK, number, pack(bytes([mark, number]) * 50_000))
    for mark, channel in zip(b"wc", ends, strict=True):
        for number, message in enumerate(channel.messages()):
            assert message.unpack() == bytes([mark, number]) * 50_000


def test_a_message_nobody_holds_gives_its_slot_back(ends: tuple[Channel, Channel]) -> None:
    caller, worker = ends
    for number in range(20):
        caller.send(Kind.CHUNK, number, pack(bytes(100_000)))
        worker.messages()
        worker.send(Kind.REPORT, number)
        caller.messages()
    assert os.fstat(caller._store).st_size < 2 << 40


def test_a_value_may_be_taken_apart_again_until_it_is_dropped(ends: tuple[Channel, Channel]) -> None:
    caller, worker = ends
    for value in ("small", b"large" * 100_000):
        caller.send(Kind.CHUNK, 1, pack(value))
        (message,) = worker.messages()
        assert message.unpack() == message.unpack() == value
        message.drop()
        with pytest.raises(EOFError):
            message.unpack()


def test_parts_come_as_parts(ends: tuple[Channel, Channel]) -> None:
    caller, worker = ends
    values = [1, b"x" * 100_000, "three"]
    for some in (values, values[::2]):
        caller.send(Kind.CHUNK, 1, joined([pack(value) for value in some]))
        (message,) = worker.messages()
        assert [load(part) for part in message.parts()] == some


def test_two_messages_of_each_side_fit_into_the_pipes(ends: tuple[Channel, Channel]) -> None:
    caller, worker = ends
    most = pack(b"x" * (INLINE - 100))
    arm()
    for channel in ends:
        channel.send(Kind.CHUNK, 1, most)
        channel.send(Kind.CHUNK, 2, most)
    assert [message.number for message in worker.messages()] == [1, 2]
    assert [message.number for message in caller.messages()] == [1, 2]


@pytest.fixture(autouse=True)
def disarm() -> Iterator[None]:
    yield
    signal.alarm(0)


def arm() -> None:
    """What waits for ever ends the tests."""
    signal.alarm(int(DEADLINE))


def test_large_messages_both_ways_at_once_do_not_wait_for_each_other(kind_of_channel: str) -> None:
    def talk(channel: Channel) -> None:
        for number in range(3):
            channel.send(Kind.REPORT, number, pack(b"x" * (1 << 20)))
        echo(channel)

    arm()
    with peer(talk) as (channel, _):
        time.sleep(0.05)
        for number in range(3, 6):
            channel.send(Kind.CHUNK, number, pack(b"y" * (1 << 20)))
        got = [answer(channel) for _ in range(6)]
        assert [message.number for message in got] == list(range(6))
        assert [message.unpack()[:1] for message in got] == [b"x"] * 3 + [b"y"] * 3


@pytest.mark.parametrize("size", [10, 1 << 20])
def test_the_end_shows_after_what_was_said(size: int, kind_of_channel: str) -> None:
    def talk(channel: Channel) -> None:
        channel.send(Kind.REPORT, 1, pack(b"x" * size))
        channel.send(Kind.REPORT, 2)

    with peer(talk) as (channel, _):
        assert answer(channel).number == 1
        assert answer(channel).number == 2
        with pytest.raises(EOFError):
            channel.receive(DEADLINE)
        assert channel.ended


def test_nothing_is_heard_of_a_message_that_was_cut(ends: tuple[Channel, Channel]) -> None:
    caller, worker = ends
    worker.send(Kind.REPORT, 1, pack("whole"))
    data = os.read(caller.reading, 1 << 16)
    whole = len(data)
    worker.send(Kind.REPORT, 2, pack("cut"))
    data += os.read(caller.reading, 1 << 16)
    for end in range(len(data)):
        reading, writing = os.pipe()
        os.write(writing, data[:end])
        os.close(writing)
        channel = Channel(reading, os.dup(caller._writing))
        heard = channel.messages() + channel.messages()
        assert channel.ended
        assert [message.unpack() for message in heard] == (["whole"] if end >= whole else [])
        channel.close()


def test_a_worker_that_is_killed_in_the_middle_of_a_message_is_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)

    def talk(channel: Channel) -> None:
        channel.send(Kind.REPORT, 1, pack(b"x" * (8 << 20)))

    with peer(talk) as (channel, pid):
        select.select([channel.reading], [], [], DEADLINE)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(EOFError):
            channel.receive(DEADLINE)


def test_to_nobody_nothing_can_be_sent(ends: tuple[Channel, Channel]) -> None:
    caller, worker = ends
    worker.close()
    for value in ("small", b"large" * 100_000):
        with pytest.raises(BrokenPipeError):
            caller.send(Kind.CHUNK, 1, pack(value))


def test_something_else_in_the_pipe_is_an_end(ends: tuple[Channel, Channel]) -> None:
    caller, worker = ends
    worker.send(Kind.REPORT, 1)
    os.write(worker._writing, b"a function printed this, to a file that it took for its own\n")
    assert [message.number for message in caller.messages()] == [1]
    caller.messages()
    assert caller.ended


def test_a_message_of_which_the_file_lacks_bytes_cannot_be_unpacked(ends: tuple[Channel, Channel]) -> None:
    caller, worker = ends
    worker.send(Kind.REPORT, 1, pack(b"x" * 100_000))
    (message,) = caller.messages()
    os.ftruncate(caller._store, (1 << 40) + 50_000)
    with pytest.raises(EOFError):
        message.unpack()


def test_receive_waits_no_longer_than_asked(ends: tuple[Channel, Channel]) -> None:
    caller, worker = ends
    assert caller.receive(0) is None
    assert caller.receive(0.01) is None
    worker.send(Kind.HELLO)
    assert answer(caller).kind == Kind.HELLO
    threading.Timer(0.05, worker.send, (Kind.HELLO,)).start()
    assert answer(caller).kind == Kind.HELLO


def test_a_file_that_takes_no_more_is_replaced_by_the_pipe() -> None:
    """A limit on file sizes is the way to fill one up here."""

    def talk(channel: Channel) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        echo(channel)

    arm()
    with peer(talk) as (channel, _):
        for number in range(3):
            channel.send(Kind.CHUNK, number, pack(numpy.arange(100_000)))
            assert answer(channel).unpack()[-1] == 99_999
        assert channel.bulk  # this side has no such limit

    def fill(channel: Channel) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        channel.send(Kind.REPORT, channel.through_pipe, pack(b"x" * 100_000))
        channel.send(Kind.REPORT, channel.through_pipe, pack(b"x" * 100_000))
        assert not channel.bulk
        channel.send(Kind.REPORT, channel.through_pipe)

    with peer(fill) as (channel, _):
        assert [answer(channel).number for _ in range(3)] == [0, 1, 2]


def test_other_trouble_with_the_file_is_told(ends: tuple[Channel, Channel]) -> None:
    caller, _ = ends
    os.close(caller._store)
    store, caller._store = caller._store, os.open("/dev/null", os.O_RDONLY)
    assert store >= 0
    with pytest.raises(OSError, match=r"Illegal seek|Bad file descriptor"):
        caller.send(Kind.CHUNK, 1, pack(b"x" * 100_000))


def test_trimmed_it_holds_no_memory_and_goes_on(ends: tuple[Channel, Channel]) -> None:
    caller, worker = ends
    for _ in range(2):
        caller.send(Kind.CHUNK, 1, pack(b"x" * (1 << 20)))
        (message,) = worker.messages()
        assert len(message.unpack()) == 1 << 20
        message.drop()
        worker.send(Kind.REPORT, 1)
        caller.messages()
        assert os.fstat(caller._store).st_blocks * 512 >= 1 << 20
        caller.trim()
        assert os.fstat(caller._store).st_blocks * 512 == 4096  # notes


def test_progress_is_seen_at_once(kind_of_channel: str) -> None:
    with both() as (caller, worker):
        assert caller.progress() == (-1, 0.0)
        begin = time.monotonic()
        worker.note_progress(17)
        assert caller.messages() == []
        index, since = caller.progress()
        assert index == 17
        assert begin <= since <= time.monotonic()
        worker.note_progress(-1)
        assert caller.messages() == []
        assert caller.progress()[0] == -1


def test_large_messages_are_not_taken_for_progress(ends: tuple[Channel, Channel]) -> None:
    caller, worker = ends
    worker.send(Kind.REPORT, 1, pack(b"x" * 100_000))
    assert caller.progress() == (-1, 0.0)
    worker.note_progress(0)
    assert caller.progress()[0] == 0
    caller.trim()
    worker.send(Kind.REPORT, 1, pack(b"x" * 100_000))
    assert caller.progress() == (-1, 0.0)


def test_a_chunk_is_begun_or_withdrawn_and_never_both(ends: tuple[Channel, Channel]) -> None:
    caller, worker = ends
    assert caller.begun() == 0
    assert worker.begin(1)
    assert caller.begun() == 1
    assert not caller.withdraw(1)
    assert caller.withdraw(3)
    assert worker.begin(2)
    assert not worker.begin(3)
    assert worker.begin(4)
    assert not caller.withdraw(4)
    for number in range(5, 70):
        assert caller.withdraw(number)
    assert [worker.begin(number) for number in range(6, 71)] == [False] * 64 + [True]
    caller.trim()
    assert caller.begun() == 70


def test_begun_by_one_or_withdrawn_by_the_other_in_a_race(ends: tuple[Channel, Channel]) -> None:
    caller, worker = ends
    worker.note_progress(3)
    chance = random.Random(5)
    gate = threading.Barrier(2)
    begun, withdrawn = set(), set()

    def work() -> None:
        for number in range(1, 300):
            gate.wait(DEADLINE)
            for _ in range(chance.randrange(40)):
                pass
            if worker.begin(number):
                begun.add(number)

    thread = threading.Thread(target=work)
    thread.start()
    for number in range(1, 300):
        gate.wait(DEADLINE)
        for _ in range(chance.randrange(40)):
            pass
        if caller.withdraw(number):
            withdrawn.add(number)
    thread.join()
    assert not begun & withdrawn
    assert caller.progress()[0] == 3


def test_without_the_file_nothing_is_withdrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    with both() as (caller, worker):
        assert worker.begin(1)
        assert caller.begun() == -1
        assert not caller.withdraw(2)
        assert worker.begin(2)


def test_what_came_while_something_was_sent_is_pending(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)

    def talk(channel: Channel) -> None:
        channel.send(Kind.REPORT, 1, pack(b"x" * (1 << 20)))  # waits until it is read, and reads nothing before
        channel.receive(DEADLINE)
        time.sleep(DEADLINE)

    arm()
    with peer(talk) as (channel, _):
        assert not channel.pending
        channel.send(Kind.CHUNK, 1, pack(b"y" * (1 << 20)))
        assert channel.pending
        assert [message.number for message in channel.messages()] == [1]
        assert not channel.pending


def test_descriptors_are_all_closed_and_none_is_a_standard_one() -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = count()
    with both() as (caller, worker):
        assert count() == before + 6
        assert min(caller.reading, worker.reading) > 2
        for fd in (caller.reading, caller._writing, caller._store):
            assert not os.get_inheritable(fd)
        caller.close()
        caller.close()
        assert caller.messages() == []
    assert count() == before


def test_a_caller_without_standard_streams_has_none_of_their_numbers() -> None:
    pid = os.fork()
    if not pid:
        code = 1
        try:
            for fd in (0, 1, 2):
                os.close(fd)
            caller, fds = open_channel()
            worker = Channel.in_worker(fds)
            caller.send(Kind.JOB, 7)
            numbers = [caller.reading, caller._writing, caller._store, *fds]
            code = 0 if min(numbers) > 2 and worker.messages()[0].number == 7 else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_no_descriptor_is_lost_when_there_are_too_few() -> None:
    def listed() -> list[str]:
        return sorted(os.listdir("/proc/self/fd"))

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = listed()
    for room in range(6):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, before)) + 1 + room, hard))
        holes = []
        try:
            with contextlib.suppress(OSError):  # fill the gaps between numbers
                while (fd := os.open("/dev/null", os.O_RDONLY)) < max(map(int, before)):
                    holes.append(fd)
                os.close(fd)
            with pytest.raises(OSError, match="Too many open files"):
                open_channel()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in holes:
                os.close(fd)
        assert listed() == before


def test_without_the_right_to_such_files_there_are_the_pipes(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> int:
        raise PermissionError(1, "not permitted")

    monkeypatch.setattr(os, "memfd_create", forbidden)
    with both() as (caller, worker):
        assert not caller.bulk
        caller.send(Kind.CHUNK, 1, pack("x"))
        assert worker.messages()[0].unpack() == "x"
