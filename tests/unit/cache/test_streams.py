"""Forward streams: every byte once and in order, several pieces on their way, never more than there is room for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazystore.cache.flight import Deadline
from lazystore.cache.streams import ForwardStreams, ObjectStream
from lazystore.errors import (
    ClosedError,
    DatasetNotFoundError,
    FetchError,
    FetchTimeoutError,
    LazyStoreError,
    SourceChangedError,
)
from lazystore.fetch.source import FetchCounters, Read

PIECE = 100
Range = tuple[str, int, int]


class Post:
    """A source whose flights land when the test says so, or when they are waited for."""

    url = "post://objects"
    local = False

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.counters = FetchCounters()
        self.objects = objects
        self.flights: list[Letter] = []
        self.ran: list[Range] = []
        self.broken: dict[str, LazyStoreError] = {}
        self.stuck = False

    def start(
        self,
        reads: Sequence[Read],
        *,
        stat: Iterable[str] = (),
        timeout: float,
        urgent: bool = False,
        on_done: Callable[[], None] | None = None,
    ) -> Letter:
        assert timeout > 0 and on_done is None
        (read,) = reads
        self.flights.append(Letter(self, read, tuple(stat), urgent))
        return self.flights[-1]

    def run(self, reads: Sequence[Read], *, stat: Iterable[str] = (), timeout: float) -> dict[str, int]:
        (read,) = reads
        self.ran.append((read.name, read.begin, read.end))
        return self.fill(read, tuple(stat))

    def fill(self, read: Read, stat: tuple[str, ...]) -> dict[str, int]:
        if read.name in self.broken:
            raise self.broken[read.name]
        if read.name not in self.objects:
            raise DatasetNotFoundError(f"{self.url}/{read.name} does not exist")
        data = self.objects[read.name][read.begin : read.end]
        if len(data) < len(read.view) and read.name not in stat:
            raise FetchError(f"{read.name} ends before byte {read.end}")
        read.view[: len(data)] = data
        read.got = len(data)
        return {name: len(self.objects[name]) for name in stat}

    def read_all(self, name: str, *, limit: int, timeout: float) -> bytes:
        return self.objects[name]

    def close(self) -> None:
        pass

    def asked(self, name: str = "") -> list[Range]:
        return [f.range for f in self.flights if name in ("", f.range[0])]


class Letter:
    """One flight of a Post."""

    def __init__(self, post: Post, read: Read, stat: tuple[str, ...], urgent: bool) -> None:
        self.range = (read.name, read.begin, read.end)
        self.urgent = urgent
        self.cancelled = False
        self._post, self._read, self._stat = post, read, stat
        self._sizes: dict[str, int] = {}
        self._error: LazyStoreError | None = None
        self._done = False

    def land(self) -> None:
        if not self._done:
            self._done = True
            try:
                self._sizes = self._post.fill(self._read, self._stat)
            except LazyStoreError as error:
                self._error = error

    def done(self) -> bool:
        return self._done

    def wait(self, timeout: float) -> bool:
        if not self._post.stuck:
            self.land()
        return self._done

    def result(self) -> dict[str, int]:
        assert self._done
        if self._error is not None:
            raise self._error
        return self._sizes

    def cancel(self) -> None:
        if not self._done:
            self._done = self.cancelled = True
            self._error = FetchError("cancelled")


def content(length: int, seed: int = 0) -> bytes:
    return bytes((seed + 7 * k + k // 251) % 256 for k in range(length))


def streams(lengths: Sequence[int], hints: Sequence[int] = (), piece: int = PIECE) -> tuple[Post, ForwardStreams]:
    names = [f"c{k}" for k in range(len(lengths))]
    post = Post({name: content(length, k) for k, (name, length) in enumerate(zip(names, lengths, strict=True))})
    return post, ForwardStreams(post, names, hints or [0] * len(names), piece=piece)


def drain(stream: ObjectStream, n: int = 37) -> bytes:
    data = b""
    while got := stream.read(n):
        data += got
    return data


sizes = st.one_of(st.integers(0, 5), st.integers(0, 1000), st.sampled_from([99, 100, 101, 200, 300]))


@given(
    st.lists(st.tuples(sizes, st.integers(0, 3000)), min_size=1, max_size=5),
    st.integers(1, 250), st.integers(0, 1500), st.integers(1, 300), st.data(),
)  # fmt: skip
def test_streams_are_the_objects_within_the_room(
    objects: list[tuple[int, int]], piece: int, room: int, step: int, data: st.DataObject
) -> None:
    """Whatever is expected of the sizes, and whenever pieces arrive."""
    lengths, hints = [length for length, _ in objects], [hint for _, hint in objects]
    post, forward = streams(lengths, hints, piece)
    forward.room = room
    for chunk, length in enumerate(lengths):
        stream = forward.open(chunk, Deadline(5))
        forward.following = range(chunk + 1, len(lengths))
        found = b""
        while True:
            for flight in post.flights:
                if not flight.done() and data.draw(st.integers(0, 3)) == 3:
                    flight.land()
            held = stream.held + sum(begun.held for begun in forward._begun.values())
            assert held <= max(room, piece)
            assert stream.peek(9) == content(length, chunk)[len(found) :][: len(stream.peek(9))]
            got = stream.read(step)
            if not got:
                break
            found += got
        assert found == content(length, chunk)
    assert not post.ran
    for k, length in enumerate(lengths):
        asked = sorted((begin, end) for _, begin, end in post.asked(f"c{k}"))
        edges = [begin for begin, _ in asked]
        assert edges == [0, *(end for _, end in asked)][: len(edges)], "a byte was asked for twice, or left out"
        assert asked[-1][1] >= length
    for flight in post.flights:
        name, begin, _ = flight.range
        assert not flight.cancelled or begin >= len(post.objects[name])


def test_what_somebody_waits_for_is_urgent_and_the_rest_is_not() -> None:
    post, forward = streams([950])
    forward.room = 300
    stream = forward.open(0, Deadline(5))
    assert [flight.urgent for flight in post.flights] == [True]
    assert drain(stream) == content(950)
    assert [flight.urgent for flight in post.flights[1:]] == [False] * 9


def test_an_objects_size_comes_with_its_first_piece() -> None:
    post, forward = streams([PIECE + 20])
    assert drain(forward.open(0, Deadline(5))) == content(PIECE + 20)
    assert post.asked() == [("c0", 0, PIECE), ("c0", PIECE, PIECE + 20)]


def test_the_next_objects_are_begun_in_order_before_the_present_one_ends() -> None:
    post, forward = streams([500, 500, 500], [1000, 1000, 1000])
    forward.room = 700
    stream = forward.open(0, Deadline(5))
    stream.read(1)
    forward.following = [1, 2]
    forward.top_up()
    assert [name for name, _, _ in post.asked()] == ["c0"] * 6 + ["c1"] * 2
    assert drain(stream) == content(500)[1:]
    assert [name for name, _, _ in post.asked()][6:] == ["c1"] * 6 + ["c2"]
    assert drain(forward.open(1, Deadline(5))) == content(500, 1)


def test_later_objects_are_expected_to_be_as_large_as_those_before() -> None:
    """A share of the hint, and a little more: then one wave brings all of an object."""
    post, forward = streams([400, 400], [1000, 1000])
    forward.room = 10_000
    stream = forward.open(0, Deadline(5))
    drain(stream)
    forward.following = [1]
    post.stuck = True
    forward.top_up()
    assert post.asked("c1")[-1][2] == 408


def test_room_that_is_gone_comes_back_with_what_is_taken() -> None:
    post, forward = streams([1000])
    forward.room = 200
    stream = forward.open(0, Deadline(5))
    for k in range(10):
        stream.read(PIECE)
        assert len(post.flights) == min(10, k + 2)


def test_going_elsewhere_cancels_what_was_begun() -> None:
    post, forward = streams([1000] * 5, [1000] * 5)
    forward.room = 2000
    forward.open(0, Deadline(5)).read(1)
    post.stuck = True
    forward.following = [1, 2]
    forward.top_up()
    under_way = [flight for flight in post.flights if not flight.done()]
    assert {flight.range[0] for flight in under_way} >= {"c0", "c1"}
    forward.following = []
    post.stuck = False
    assert drain(forward.open(4, Deadline(5))) == content(1000, 4)
    assert all(flight.cancelled for flight in under_way)
    assert {flight.range[0] for flight in post.flights if not flight.cancelled} == {"c0", "c4"}


def test_an_object_passed_over_is_cancelled_and_those_after_it_are_kept() -> None:
    post, forward = streams([300] * 4, [300] * 4)
    forward.room = 2000
    forward.open(0, Deadline(5)).read(1)
    forward.following = [1, 2, 3]
    forward.top_up()
    asked = post.asked("c2"), post.asked("c3")
    post.stuck = True
    stream = forward.open(2, Deadline(5))
    assert forward.following == [3]
    assert all(flight.cancelled for flight in post.flights if flight.range[0] == "c1")
    assert (post.asked("c2"), post.asked("c3")) == asked != ([], [])
    post.stuck = False
    assert drain(stream) == content(300, 2)


def test_close_cancels_everything_and_a_new_stream_begins_anew() -> None:
    post, forward = streams([1000, 1000], [1000, 1000])
    forward.room = 2000
    forward.open(0, Deadline(5)).read(1)
    post.stuck = True
    forward.following = [1]
    forward.top_up()
    forward.close()
    assert all(flight.done() for flight in post.flights)
    post.stuck = False
    assert drain(forward.open(0, Deadline(5))) == content(1000)


# -- trouble --------------------------------------------------------------------------------


def begun_with(error: LazyStoreError) -> tuple[Post, ForwardStreams]:
    """Object 1 was begun ahead, and failed, while object 0 is read."""
    post, forward = streams([300, 300], [300, 300])
    forward.room = 1000
    post.broken["c1"] = error
    stream = forward.open(0, Deadline(5))
    stream.read(1)
    forward.following = [1]
    forward.top_up()
    for flight in post.flights:
        flight.land()
    assert drain(stream) == content(300)[1:], "trouble ahead is no trouble yet"
    return post, forward


def test_what_failed_ahead_is_tried_again_when_it_is_needed() -> None:
    post, forward = begun_with(FetchError("a bad moment"))
    del post.broken["c1"]
    assert drain(forward.open(1, Deadline(5))) == content(300, 1)
    assert len(post.ran) >= 1


@pytest.mark.parametrize("error", [FetchError("gone"), DatasetNotFoundError("missing"), SourceChangedError("other")])
def test_what_fails_when_it_is_needed_is_raised(error: LazyStoreError) -> None:
    post, forward = begun_with(error)
    stream = forward.open(1, Deadline(5))
    with pytest.raises(type(error), match=str(error)):
        stream.read(1)
    assert len(post.ran) == isinstance(error, FetchError) - isinstance(error, SourceChangedError)


def test_what_was_sent_for_because_it_is_needed_is_not_tried_twice() -> None:
    post, forward = streams([300])
    post.broken["c0"] = FetchError("gone")
    stream = forward.open(0, Deadline(5))
    with pytest.raises(FetchError, match="gone"):
        stream.read(1)
    assert post.ran == []


def test_bytes_that_do_not_come_end_the_wait_at_the_deadline() -> None:
    post, forward = streams([300])
    post.stuck = True
    stream = forward.open(0, Deadline(0.05))
    with pytest.raises(FetchTimeoutError, match=r"post://objects/c0, bytes 0\.\.100 .* 0\.05 s"):
        stream.read(1)
    assert post.flights[0].cancelled


def test_a_closed_source_is_told() -> None:
    post, forward = streams([300])

    def refuse(*_: object, **__: object) -> Letter:
        raise ClosedError("closed")

    post.start = refuse  # type: ignore[method-assign]
    with pytest.raises(ClosedError):
        forward.open(0, Deadline(5))
