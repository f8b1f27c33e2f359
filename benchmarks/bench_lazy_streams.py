"""Cutting and streaming: how fast chunks are cut, what content-defined cuts save, what a slow consumer costs in memory.

Four tables: cutting bytes (against plain Python and numpy), how much of shifted data is found again, memory of a
stream with a slow consumer (each in its own process), and what a piece costs by way of reading.

    python benchmarks/bench_lazy_streams.py [--size 1GiB] [--rounds 5]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from lazystore._core.gear import GearCutter
from lazystore.cache.bridge import Bridge
from lazystore.cache.workers import Workers
from lazystore.config import parse_bytes
from lazystore.lazy.chunker import DataChunker
from lazystore.lazy.source import Source
from lazystore.lazy.stream import Stream

MIB = 1 << 20
KIB = 1 << 10


def noise(size: int, seed: int = 1) -> bytes:
    """Bytes without any pattern."""
    made = random.Random(seed)
    return b"".join(made.randbytes(min(MIB, size - at)) for at in range(0, size, MIB))


def seconds(work: Callable[[], Any], rounds: int) -> float:
    """The median of some runs."""
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def drain(pieces: Iterator[Any]) -> int:
    """Ask for everything; how many there were."""
    return sum(1 for _ in pieces)


# -- cutting ----------------------------------------------------------------------------


def splitmix(count: int) -> list[int]:
    """Words of SplitMix64 from seed 0: the gear table, made anew."""
    mask, state, words = 2**64 - 1, 0, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        word = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & mask
        word = (word ^ (word >> 27)) * 0x94D049BB133111EB & mask
        words.append(word ^ (word >> 31))
    return words


def python_cuts(data: bytes, average: int) -> list[int]:
    """The same rule in plain Python."""
    gear, mask = splitmix(256), 2**64 - 1
    least, most = average // 4, average * 4
    strict, loose = 2**64 // (4 * average), 2**64 // average * 4
    found, start = [], 0
    while start < len(data):
        value, stop = 0, min(len(data), start + most)
        for at in range(start + least - 64, stop):
            value = ((value << 1) + gear[data[at]]) & mask
            size = at + 1 - start
            if size >= least and (value < (strict if size < average else loose) or size == most):
                found.append(at + 1)
                start = at + 1
                break
        else:
            return found
    return found


def numpy_cuts(data: bytes, average: int) -> list[int]:
    """The same rule in numpy: the hash of every position by doubling the window six times, then a walk."""
    import numpy as np

    table = np.array(splitmix(256), dtype=np.uint64)
    found: list[int] = []
    least, most, block = average // 4, average * 4, 4 * MIB
    strict, loose = 2**64 // (4 * average), 2**64 // average * 4
    start = 0
    for begin in range(0, len(data), block):
        head = max(0, begin - 63)
        part = np.frombuffer(data, np.uint8, min(len(data), begin + block) - head, head)
        value = table[part]
        for power in range(6):  # 1, 2, 4 ... 32 bytes back
            step = 1 << power
            longer = value.copy()
            longer[step:] += value[:-step] << np.uint64(step)
            value = longer
        ends = np.flatnonzero(value < np.uint64(loose))
        low = value[ends] < np.uint64(strict)
        for end, is_strict in zip((ends + head + 1).tolist(), low.tolist(), strict=True):
            if end <= begin:
                continue
            while end - start > most:
                start += most
                found.append(start)
            size = end - start
            if size >= least and (is_strict or size >= average or size == most):
                found.append(end)
                start = end
    while len(data) - start >= most:
        start += most
        found.append(start)
    return found


def gear_cuts(data: bytes, average: int) -> list[int]:
    """The library's."""
    cutter, found = GearCutter(average), [0]
    while (end := cutter.cut(data, found[-1])) >= 0:
        found.append(end)
    return found[1:]


def cutting(size: int, rounds: int) -> None:
    """Table 1."""
    data = noise(size)
    few = data[: 4 * MIB]
    print(f"## Cutting {size / MIB:.0f} MiB of bytes in memory, median of {rounds}\n")
    print("| how | chunk | GB/s | us a chunk | chunks |")
    print("|---|---|---|---|---|")
    ways: list[tuple[str, int, Callable[[], int]]] = []
    for average in (8 * KIB, 64 * KIB, MIB):
        ways.append(("gear, cuts only", average, lambda a=average: len(gear_cuts(data, a))))  # type: ignore[misc]
        cutter = DataChunker(average, strategy="content_based")
        ways.append(("DataChunker CONTENT_BASED", average, lambda c=cutter: drain(c.pieces(data))))  # type: ignore[misc]
    fixed = DataChunker(MIB)
    ways.append(("DataChunker FIXED_SIZE (views)", MIB, lambda: drain(fixed.pieces(data))))
    records = DataChunker(MIB, delimiter="\n")
    ways.append(("DataChunker FIXED_SIZE, delimiter", MIB, lambda: drain(records.pieces(data))))
    blocks = [data[at : at + 100_000] for at in range(0, min(size, 256 * MIB), 100_000)]
    for name, average, work in ways:
        taken = seconds(work, rounds)
        count, looks = work(), "FIXED" not in name  # fixed sizes do not read the bytes: a rate would say nothing
        rate = f"{size / taken / 1e9:.2f}" if looks else "-"
        print(f"| {name} | {average // KIB} KiB | {rate} | {taken / count * 1e6:.2f} | {count} |")
    taken = seconds(lambda: drain(fixed.pieces(blocks)), rounds)
    print(
        f"| DataChunker FIXED_SIZE, blocks of 100 kB joined | 1024 KiB | {100_000 * len(blocks) / taken / 1e9:.2f} | |"
    )
    assert gear_cuts(few, 8 * KIB) == python_cuts(few, 8 * KIB) == numpy_cuts(few, 8 * KIB)
    taken = seconds(lambda: numpy_cuts(few, 8 * KIB), rounds)
    print(f"| the same rule in numpy (4 MiB) | 8 KiB | {len(few) / taken / 1e9:.3f} | | |")
    taken = seconds(lambda: python_cuts(few, 8 * KIB), 1)
    print(f"| the same rule in plain Python (4 MiB) | 8 KiB | {len(few) / taken / 1e9:.4f} | | |\n")


def finding_again(size: int) -> None:
    """Table 2."""
    data = noise(size, 2)
    rng = random.Random(3)
    places = sorted(rng.randrange(size) for _ in range(10))
    edited = b"".join(data[a:b] + b"+" for a, b in itertools.pairwise([0, *places])) + data[places[-1] :]
    print(f"## Bytes of {size / MIB:.0f} MiB found again by chunk id after an edit\n")
    print("| edit | fixed 64 KiB | content 8 KiB | content 64 KiB |")
    print("|---|---|---|---|")
    ways = [DataChunker("64KiB"), *(DataChunker(chunk, strategy="content_based") for chunk in ("8KiB", "64KiB"))]
    edits = {
        "one byte in front": b"+" + data,
        "ten bytes at ten places": edited,
        "the first 1 % gone": data[size // 100 :],
    }
    for name, changed in edits.items():
        cells = []
        for way in ways:
            known = {chunk.id for chunk in way.chunk(data)}
            again = sum(chunk.size for chunk in way.chunk(changed) if chunk.id in known)
            cells.append(f"{again / len(changed):.1%}")
        print(f"| {name} | {' | '.join(cells)} |")
    print()


# -- streams ----------------------------------------------------------------------------


def blocks_of(total: int) -> Iterator[bytes]:
    for n in range(total // (128 * KIB)):
        yield bytes([n % 251]) * (128 * KIB)


async def ablocks_of(total: int) -> AsyncIterator[bytes]:
    for block in blocks_of(total):
        yield block


def rss() -> int:
    """Peak of this process. On Linux not ru_maxrss: that begins with the peak of whoever started the process."""
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * KIB for line in file if line.startswith("VmHWM"))


def slow_consumer(spec: dict[str, Any]) -> dict[str, Any]:
    """In a process of its own: read everything, slower than it is made."""
    workers = Workers(2, "bench")
    bridge = Bridge(workers)
    total = spec["total"]
    make = ablocks_of if spec["source"] == "async" else blocks_of
    list(Stream([b"warm"], bridge=bridge, chunker=DataChunker("1MiB")))
    source = Source.from_stream(lambda: make(total))
    before, read = rss(), 0
    stream = Stream(source, bridge=bridge, window=spec["window"], ahead=spec["ahead"], chunker=DataChunker("1MiB"))
    with stream:
        for piece in stream:
            read += len(piece)
            time.sleep(spec["pause"])
    assert read == total
    bridge.close()
    workers.close()
    return {"grown": rss() - before}


def memory(total: int) -> None:
    """Table 3."""
    print(f"## RSS of a stream of {total / MIB:.0f} MiB with a slow consumer (2 ms a chunk of 1 MiB)\n")
    print("| window | source | reading ahead | RSS grew by | allowed |")
    print("|---|---|---|---|---|")
    ways = list(itertools.product((8 * MIB, 64 * MIB), ("sync", "async"), (False, True)))
    ways.append((2 * total, "sync", False))  # holds everything: what the measure must show
    for window, source, ahead in ways:
        spec = {"total": total, "window": window, "source": source, "ahead": ahead, "pause": 0.002}
        command = [sys.executable, __file__, "--child", json.dumps(spec)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
        grown = json.loads(done.stdout)["grown"]
        print(
            f"| {window // MIB} MiB | {source} | {'yes' if ahead else 'no'} | {grown / MIB:.1f} MiB "
            f"| {f'{window // MIB + 32} MiB' if window < total else 'control: holds all'} |"
        )
    print()


def by_piece(rounds: int) -> None:
    """Table 4."""
    count = 20_000
    workers = Workers(2, "bench")
    bridge = Bridge(workers)

    def numbers() -> Iterator[int]:
        yield from range(count)

    async def anumbers() -> AsyncIterator[int]:
        for n in range(count):
            yield n

    async def adrain(stream: Stream) -> None:
        async with stream:
            async for _ in stream:
                pass

    print(f"## What a small piece costs, by way of reading, median of {rounds}\n")
    print("| source | reader | ahead | us a piece |")
    print("|---|---|---|---|")
    for make, reader, ahead in itertools.product((numbers, anumbers), ("for", "async for"), (False, True)):
        source = Source.from_stream(make)

        def once(source: Source = source, ahead: bool = ahead, reader: str = reader) -> None:
            stream = Stream(source, bridge=bridge, ahead=ahead, weigh=lambda piece: 32)
            if reader == "for":
                with stream:
                    drain(stream)
            else:
                asyncio.run(adrain(stream))

        kind = "sync" if make is numbers else "async"
        print(f"| {kind} | {reader} | {'yes' if ahead else 'no'} | {seconds(once, rounds) / count * 1e6:.1f} |")
    bridge.close()
    workers.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1GiB", help="of the data")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(slow_consumer(json.loads(arguments.child))))
        return
    size = parse_bytes(arguments.size, name="--size")
    cutting(size, arguments.rounds)
    finding_again(min(size, 64 * MIB))
    memory(size)
    by_piece(arguments.rounds)


if __name__ == "__main__":
    main()
