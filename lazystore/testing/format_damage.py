"""Damaged copies of a dataset's files, and a process of its own to read them in.

What damage there is, and how a child that crashed, hung or grew is told from one that answered. What a reader must make
of the damage is ``format_exam``'s business. Needs a POSIX system.
"""

from __future__ import annotations

import json
import os
import random
import resource
import select
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Damage", "copied", "damages", "in_child"]

#: Bytes a child may map beyond what it has when it begins.
GROWTH = 1 << 30
MOST_FILES = 256


@dataclass(frozen=True, slots=True)
class Damage:
    """One change of one file.

    Attributes:
        file: its path below the copy's root.
        what: the change, for messages.
        data: what the file holds then; None: it is gone.
    """

    file: str
    what: str
    data: bytes | None

    def __str__(self) -> str:
        return f"{self.file} {self.what}"


def copied(path: Path, target: Path) -> Path:
    """A copy of a dataset (a directory, or a file) below ``target``."""
    place = target / path.name
    if path.is_dir():
        shutil.copytree(path, place)
    else:
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    return place


def damages(path: Path, count: int, seed: int) -> Iterator[Damage]:
    """``count`` kinds of damage to the files of a dataset; the first ones: each file gone, and emptied."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    files = files[:MOST_FILES]
    root = path if path.is_dir() else path.parent
    made = 0
    for file in files:
        for what, data in (("gone", None), ("emptied", b"")):
            if made == count:
                return
            made += 1
            yield Damage(str(file.relative_to(root)), what, data)
    draw = random.Random(seed)
    while made < count and files:
        file = draw.choice(files)
        what, data = _changed(file.read_bytes(), draw)
        made += 1
        yield Damage(str(file.relative_to(root)), what, data)


def _changed(data: bytes, draw: random.Random) -> tuple[str, bytes]:
    size = len(data)
    # The beginning and the end are where formats keep what they go by.
    at = draw.choice(
        [draw.randrange(size + 1), draw.randrange(min(size, 64) + 1), size - draw.randrange(min(size, 64) + 1)]
    )
    kind = draw.choice(["flip", "number", "cut", "longer", "zeros", "swap"])
    if kind == "flip" and at < size:
        bit = draw.randrange(8)
        return f"bit {bit} of byte {at} flipped", data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
    if kind == "number":
        number = draw.choice([b"\xff" * 4, b"\xff" * 8, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"99999999999"])
        return f"{number!r} written at byte {at}", data[:at] + number + data[at + len(number) :]
    if kind == "longer":
        return f"{at + 1} bytes longer", data + draw.randbytes(at + 1)
    if kind == "zeros":
        count = draw.randrange(1, 64)
        return f"{count} zeros at byte {at}", data[:at] + bytes(min(count, size - at)) + data[at + count :]
    if kind == "swap" and size > 1:
        other = draw.randrange(size)
        low, high = sorted((at, other))
        middle = (low + high) // 2
        return f"{low}..{middle} and {middle}..{high} swapped", data[:low] + data[middle:high] + data[
            low:middle
        ] + data[high:]
    return f"cut to {at} of {size} bytes", data[:at]


def in_child(work: Callable[[Callable[[str], None]], str], timeout: float) -> str:
    """Run ``work(doing)`` in a forked process; returns what is wrong, "" for nothing.

    Parameters:
        work: returns what is wrong; ``doing(what)`` tells what it does from now on, so that it can be named if the
            process does not live to say.
        timeout: seconds between two of these.
    """
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads: the child uses none of them
        child = os.fork()
    if not child:
        _child(work, reading, writing)
    os.close(writing)
    try:
        return _watched(child, reading, timeout)
    finally:
        os.close(reading)


def _child(work: Callable[[Callable[[str], None]], str], reading: int, writing: int) -> None:
    code = 1
    try:
        os.close(reading)
        if "LAZYSTORE_SANITIZED" not in os.environ:  # sanitizers map terabytes
            used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            resource.setrlimit(resource.RLIMIT_AS, (used + GROWTH, resource.getrlimit(resource.RLIMIT_AS)[1]))
        wrong = work(lambda what: _tell(writing, {"doing": what}))
        _tell(writing, {"wrong": wrong})
        code = 0
    except BaseException as error:  # noqa: BLE001 - whatever it is, the parent is told and nothing of it goes on here
        _tell(writing, {"wrong": f"{type(error).__name__}: {error}"})
    finally:
        os._exit(code)


def _tell(writing: int, message: dict[str, str]) -> None:
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(writing, data) :]


def _watched(child: int, reading: int, timeout: float) -> str:
    """What the child says, or what became of it."""
    heard = b""
    doing = "beginning"
    while True:
        ready = select.select([reading], [], [], timeout)[0]
        if not ready:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return f"{doing}: it hung for {timeout:g} s"
        piece = os.read(reading, 65536)
        heard += piece
        *lines, heard = heard.split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "wrong" in message:
                os.waitpid(child, 0)
                return str(message["wrong"])
            doing = message["doing"]
        if not piece:
            status = os.waitpid(child, 0)[1]
            if os.WIFSIGNALED(status):
                return f"{doing}: the process crashed, signal {os.WTERMSIG(status)}"
            return f"{doing}: the process ended with {os.waitstatus_to_exitcode(status)}"
