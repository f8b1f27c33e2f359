"""What do a get and a set of the disk tier cost, next to diskcache and to the floors that Python itself sets?

Values of 10 kB, keys at random, page cache warm, no fsync anywhere. Contenders take turns, in one process; each round
sets all values anew (after the first, so, over those that were there) and gets each once. Then: the cap while four
processes write, a hundred writers killed, opening again, and what moving on what was read does to the miss ratio.

    python benchmarks/bench_disk.py [--rounds 7] [--cpu] [--quick]
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import machine
from bench_policies import TRACES

from lazystore.cache import disk
from lazystore.cache.disk import DiskTier

SIZE = 10_000
CAP = 1 << 30
GET_PROMISE, SET_PROMISE = 2.5, 6.0


class Tier:
    """A DiskTier, packing and unpacking included."""

    def __init__(self, folder: str, codec: str) -> None:
        self.tier = DiskTier(folder, CAP, codec=codec)
        self.codec = codec

    def set(self, key: str, value: Any) -> None:
        kind, buffers = self.tier.pack(value)
        self.tier.put(key.encode(), kind, buffers, created=1.0)

    def get(self, key: str) -> Any:
        return self.tier.unpack(self.tier.get(key.encode()))

    def close(self) -> None:
        self.tier.close()


class Bare:
    """A DiskTier's own verbs: payload in, payload out."""

    def __init__(self, folder: str) -> None:
        self.tier = DiskTier(folder, CAP, codec="none")

    def set(self, key: str, value: bytes) -> None:
        self.tier.put(key.encode(), 1, (value,), created=1.0)

    def get(self, key: str) -> bytes:
        payload: bytes = self.tier.get(key.encode()).payload
        return payload

    def close(self) -> None:
        self.tier.close()


class DiskCache:
    """diskcache 5.6: SQLite and pickle, no checksums."""

    def __init__(self, folder: str) -> None:
        import diskcache

        self.cache = diskcache.Cache(folder, size_limit=CAP)
        self.set, self.get, self.close = self.cache.set, self.cache.get, self.cache.close


class FileEach:
    """A file a value, replaced in one step, with a CRC of zlib: bytes only."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        os.makedirs(folder)

    def set(self, key: str, value: bytes) -> None:
        path = f"{self.folder}/{key}"
        fd = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.writev(fd, (zlib.crc32(value).to_bytes(4, "little"), value))
        os.close(fd)
        os.replace(path + ".new", path)

    def get(self, key: str) -> bytes:
        fd = os.open(f"{self.folder}/{key}", os.O_RDONLY)
        whole = os.read(fd, 1 << 20)
        os.close(fd)
        value = whole[4:]
        assert zlib.crc32(value).to_bytes(4, "little") == whole[:4]
        return value

    def close(self) -> None:
        pass


class PlainLog:
    """One file, os.pwrite behind the last value, os.pread, a dict: bytes only, no checksum. The floor in Python."""

    def __init__(self, folder: str) -> None:
        os.makedirs(folder)
        self.fd = os.open(f"{folder}/log", os.O_RDWR | os.O_CREAT, 0o600)
        self.end = 0
        self.places: dict[str, tuple[int, int]] = {}

    def set(self, key: str, value: bytes) -> None:
        os.pwrite(self.fd, value, self.end)
        self.places[key] = (len(value), self.end)
        self.end += len(value)

    def get(self, key: str) -> bytes:
        return os.pread(self.fd, *self.places[key])

    def close(self) -> None:
        os.close(self.fd)


def noise(number: int) -> bytes:
    """10 kB that nothing compresses."""
    return random.Random(number).randbytes(SIZE)


def record(number: int) -> dict[str, Any]:
    """About 10 kB of what a web API gives."""
    rng = random.Random(number)
    rows = [
        {"id": rng.randrange(10**9), "name": f"user {rng.randrange(10**6)}", "score": rng.random(), "tags": ["a", "b"]}
        for _ in range(130)
    ]
    return {"page": number, "rows": rows, "next": None}


def contenders(kind: str) -> dict[str, Callable[[str], Any]]:
    """Who takes part, by the kind of value."""
    chosen: dict[str, Callable[[str], Any]] = {
        "lazystore, codec none": lambda folder: Tier(folder, "none"),
        "lazystore, codec auto": lambda folder: Tier(folder, "auto"),
    }
    try:
        import diskcache  # noqa: F401
    except ImportError:
        print("diskcache is not installed: left out\n", file=sys.stderr)
    else:
        chosen["diskcache"] = DiskCache
    if kind == "bytes":
        chosen["lazystore, not packed"] = Bare
        chosen["a file a value, CRC-32"] = FileEach
        chosen["pwrite, pread and a dict"] = PlainLog
    return chosen


def costs(
    kind: str, count: int, rounds: int, clock: Callable[[], float]
) -> dict[str, tuple[list[float], list[float], list[float]]]:
    """Microseconds of first sets, later sets and gets: one of each a round (first sets: one in all)."""
    make = noise if kind == "bytes" else record
    values = {f"key-{number}": make(number) for number in range(count)}
    order = list(values)
    with tempfile.TemporaryDirectory() as folder:
        made = {name: build(f"{folder}/{n}") for n, (name, build) in enumerate(contenders(kind).items())}
        found: dict[str, tuple[list[float], list[float], list[float]]] = {name: ([], [], []) for name in made}
        for turn in range(rounds + 1):
            for name, one in made.items():
                began = clock()
                for key in order:
                    one.set(key, values[key])
                took = clock() - began
                found[name][0 if turn == 0 else 1].append(1e6 * took / count)
            random.Random(turn).shuffle(order)
            for name, one in made.items():
                began = clock()
                for key in order:
                    one.get(key)
                took = clock() - began
                found[name][2].append(1e6 * took / count)
        for name, one in made.items():
            assert all(one.get(key) == value for key, value in values.items()), name
            one.close()
    return found


def report_costs(kind: str, count: int, rounds: int, clock: Callable[[], float]) -> None:
    """A table, and how it stands to diskcache."""
    found = costs(kind, count, rounds, clock)
    what = "random bytes" if kind == "bytes" else "a tree of dicts"
    print(f"## {count} values of 10 kB ({what}), microseconds a call: median (min-max) of {rounds}\n")
    print("| contender | get | first set | set over |\n|---|---|---|---|")
    for name, (first, later, gets) in found.items():
        cells = [spread(gets), f"{statistics.median(first):.1f}", spread(later)]
        print(f"| {name} | {' | '.join(cells)} |")
    print(flush=True)
    if "diskcache" in found:
        print("| times as fast as diskcache, median (best rounds) | get | set over |\n|---|---|---|")
        for name, (_, later, gets) in found.items():
            print(f"| {name} | {times(found['diskcache'][2], gets)} | {times(found['diskcache'][1], later)} |")
        print(f"\nPromised for bytes: get >= {GET_PROMISE}x, set >= {SET_PROMISE}x.\n", flush=True)


def times(theirs: list[float], ours: list[float]) -> str:
    median = statistics.median(a / b for a, b in zip(theirs, ours, strict=True))
    return f"{median:.2f} ({min(theirs) / min(ours):.2f})"


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f})"


WRITER = """
import os, random, sys, time
from lazystore.cache.disk import DiskTier
folder, cap, seed, seconds = sys.argv[1:]
tier, rng, end = DiskTier(folder, int(cap)), random.Random(int(seed)), time.monotonic() + float(seconds)
print("ready", flush=True)
while time.monotonic() < end:
    key = b"%d" % rng.randrange(2000)
    tier.put(key, 1, [key + b":" + os.urandom(rng.choice((100, 1000, 10_000, 60_000)))], created=1.0)
print(int(tier.counters()["stores"]))
"""


def writer(folder: str, cap: int, seed: int, seconds: float) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", WRITER, folder, str(cap), str(seed), str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def folder_bytes(folder: str) -> int:
    total = 0
    for entry in os.scandir(folder):
        try:
            total += entry.stat().st_size
        except FileNotFoundError:
            continue
    return total


def report_cap(seconds: float, cap: int = 20_000_000) -> None:
    """Four writers, and a thread that sums up the folder all the while."""
    with tempfile.TemporaryDirectory() as parent:
        folder = f"{parent}/tier"
        DiskTier(folder, cap).close()
        processes = [writer(folder, cap, seed, seconds) for seed in range(4)]
        peak, looks, ended = 0, 0, threading.Event()

        def watch() -> None:
            nonlocal peak, looks
            while not ended.is_set():
                peak, looks = max(peak, folder_bytes(folder)), looks + 1

        watcher = threading.Thread(target=watch)
        watcher.start()
        stores = sum(int(process.communicate()[0]) for process in processes)
        ended.set()
        watcher.join()
    print("## The cap while four processes write\n")
    print("| stored values | looks at the folder | cap, bytes | most bytes seen |\n|---|---|---|---|")
    print(f"| {stores} | {looks} | {cap} | {peak} |\n", flush=True)


def report_kills(times: int, cap: int = 20_000_000) -> None:
    """Writers that are killed at random moments; every value that is there afterwards must be whole."""
    whole = over = 0
    with tempfile.TemporaryDirectory() as parent:
        for turn in range(times):
            process = writer(f"{parent}/tier", cap, turn, 600)
            time.sleep(random.Random(turn).random() / 20)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            over += folder_bytes(f"{parent}/tier") > cap
            with DiskTier(f"{parent}/tier", cap) as tier:
                for key in (b"%d" % number for number in range(2000)):
                    found = tier.get(key)
                    whole += found is not None and found.payload.startswith(key + b":")
                counters = tier.counters()
                assert counters["corrupt"] == 0, counters
            last = counters
    print(f"## {times} writers killed (SIGKILL)\n")
    print("| values read whole | damaged | folder over its cap | files at the end |\n|---|---|---|---|")
    print(f"| {whole} | 0 | {over} times | {int(last['segments'])} |\n", flush=True)


def report_opening(quick: bool) -> None:
    """Reading the heads again, from the page cache."""
    print("## Opening again, page cache warm\n")
    print("| values | bytes each | seconds | index, bytes a value |\n|---|---|---|---|")
    shapes = [(10_000, 100), (1000, 10_000)] if quick else [(1_000_000, 100), (90_000, 10_000), (900, 1_000_000)]
    for count, size in shapes:
        with tempfile.TemporaryDirectory() as parent:
            with DiskTier(f"{parent}/tier", CAP) as tier:
                for number in range(count):
                    tier.put(b"some/key/%08d" % number, 1, [bytes(size)], created=1.0)
            with DiskTier(f"{parent}/tier", CAP) as tier:
                counters = tier.counters()
                index = counters["index_bytes"] / counters["records"]
                print(f"| {int(counters['records'])} | {size} | {counters['open_s']:.3f} | {index:.0f} |", flush=True)
    print()


def miss_ratio(trace: Iterator[int], rescued: float) -> tuple[float, float]:
    """Misses an access, and microseconds an access."""
    value = bytes(4000)
    misses = accesses = 0
    disk.RESCUED, before = rescued, disk.RESCUED  # type: ignore[assignment]
    try:
        with tempfile.TemporaryDirectory() as parent, DiskTier(f"{parent}/tier", 16_000_000) as tier:
            began = time.perf_counter()
            for number in trace:
                key = b"%d" % number
                accesses += 1
                if tier.get(key) is None:
                    misses += 1
                    tier.put(key, 1, [value], created=1.0)
            took = time.perf_counter() - began
    finally:
        disk.RESCUED = before
    return misses / accesses, 1e6 * took / accesses


def report_policy(accesses: int) -> None:
    """Segments dropped whole, with and without moving on what was read."""
    print("## Miss ratio (us an access): 20,000 keys, room for 3,900\n")
    print("| trace | oldest first | what was read moves on |\n|---|---|---|")
    for name, trace in TRACES.items():
        cells = []
        for rescued in (float("inf"), disk.RESCUED):
            numbers = itertools.islice(trace(random.Random(1), 20_000, accesses), accesses)
            cells.append("{:.3f} ({:.1f})".format(*miss_ratio(numbers, rescued)))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print()


def main() -> int:
    """Measure, and print Markdown."""
    parser = argparse.ArgumentParser(description="The disk tier.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cpu", action="store_true", help="CPU time of the calls instead: on a busy machine")
    parser.add_argument("--quick", action="store_true", help="little data; a smoke test")
    options = parser.parse_args()
    rounds = 2 if options.quick else options.rounds
    print(f"# The disk tier\n\n{machine.summary()}\n", flush=True)
    if machine.is_busy():
        print("**Other processes keep this machine busy: times are too long.**\n", flush=True)
    for kind in ("bytes", "trees"):
        clock = time.thread_time if options.cpu else time.perf_counter
        report_costs(kind, 200 if options.quick else 3000, rounds, clock)
    report_cap(1.0 if options.quick else 10.0)
    report_kills(3 if options.quick else 100)
    report_opening(options.quick)
    report_policy(5000 if options.quick else 60_000)
    return 0


if __name__ == "__main__":
    sys.exit(main())
