"""Reads that continue each other travel together, and every byte lands where its own read says."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazystore.fetch.jobs import Batch, PartJob, Pins, parts_of
from lazystore.fetch.retry import Deadline, WireError
from lazystore.fetch.source import FetchCounters, Read
from lazystore.fetch.wire import Identity

DATA = bytes((7 * i + i // 256) % 256 for i in range(2000))


def jobs_of(
    reads: list[Read], part_bytes: int, *, size: int = -1, stat: tuple[str, ...] = ()
) -> tuple[Batch, list[PartJob]]:
    pins = Pins()
    if size >= 0:
        pins.pin("a", Identity(size, "tag"))
    batch = Batch(Deadline(60), stat)
    return batch, parts_of(batch, reads, pins, FetchCounters(), part_bytes)


def read_of(name: str, begin: int, length: int) -> Read:
    return Read(name, begin, memoryview(bytearray(length)))


def ranges(jobs: list[PartJob]) -> list[tuple[str, int, int]]:
    return [(job.name, job.begin, job.end) for job in jobs]


def pour(job: PartJob, step: int, *, upto: int | None = None) -> None:
    """What an attempt does: the object's bytes in pieces of ``step``."""
    end = min(job.end, len(DATA) if upto is None else upto)
    for at in range(job.begin + job.landed, end, step):
        job.write(DATA[at : min(at + step, end)])


def test_only_neighbours_in_both_senses_travel_together() -> None:
    reads = [
        *(read_of("a", 0, 10), read_of("a", 10, 5), read_of("a", 15, 5)),
        read_of("b", 20, 5),  # another object
        *(read_of("a", 20, 5), read_of("a", 30, 5)),  # a gap
        *(read_of("a", 25, 5), read_of("a", 25, 5)),  # out of order, and twice the same
    ]
    assert ranges(jobs_of(reads, 1000)[1]) == [
        *(("a", 0, 20), ("b", 20, 25), ("a", 20, 25), ("a", 30, 35), ("a", 25, 30), ("a", 25, 30)),
    ]


def test_a_long_stretch_is_cut_into_even_parts_wherever_its_reads_end() -> None:
    reads = [read_of("a", 0, 30), read_of("a", 30, 0), read_of("a", 30, 50), read_of("a", 80, 40)]
    _, jobs = jobs_of(reads, 50)
    assert ranges(jobs) == [("a", 0, 40), ("a", 40, 80), ("a", 80, 120)]
    for job in jobs:
        pour(job, 7)
        job.deliver()
    assert [read.got for read in reads] == [30, 0, 50, 40]
    assert b"".join(bytes(read.view) for read in reads) == DATA[:120]


@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=12),
    gaps=st.lists(st.sampled_from([0, 0, 0, 3]), min_size=12, max_size=12),
    part_bytes=st.integers(1, 90),
    step=st.integers(1, 100),
    size=st.none() | st.integers(0, 800),
)
def test_every_byte_lands_in_its_read(
    lengths: list[int], gaps: list[int], part_bytes: int, step: int, size: int | None
) -> None:
    reads, at = [], 0
    for length, gap in zip(lengths, gaps, strict=False):
        reads.append(read_of("a", at, length))
        at += length + gap
    data = DATA if size is None else DATA[:size]
    _, jobs = jobs_of(reads, part_bytes, size=len(data), stat=("a",))
    for job in jobs:
        assert job.end - job.begin <= part_bytes
        if job.wanted():
            pour(job, step, upto=len(data))
        assert not job.wanted()
        job.deliver()
    for read in reads:
        expected = data[read.begin : read.end]
        assert (read.got, bytes(read.view[: read.got])) == (len(expected), expected)
        assert not any(read.view[read.got :])


def test_what_was_cut_goes_on_in_the_right_buffer() -> None:
    class Told:
        tells = True

    told: Any = Told()
    reads = [read_of("a", 0, 10), read_of("a", 10, 10), read_of("a", 20, 10)]
    _, [job] = jobs_of(reads, 1000, size=len(DATA))
    job.write(DATA[:13])
    job.rewind(told)
    assert job.landed == 13
    pour(job, 100)
    assert b"".join(bytes(read.view) for read in reads) == DATA[:30]


def test_nothing_lands_beyond_the_last_buffer_or_after_giving_up() -> None:
    reads = [read_of("a", 0, 10), read_of("a", 10, 10)]
    batch, [job] = jobs_of(reads, 1000)
    with pytest.raises(WireError, match="ignores Range"):
        job.write(DATA[:21])
    batch.abandon()
    with pytest.raises(WireError, match="given up"):
        job.write(DATA[:5])
    assert not any(bytes(read.view) != bytes(10) for read in reads)
