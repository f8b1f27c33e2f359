"""``LineScanner``: what an item is, and what is refused."""

from __future__ import annotations

import pickle
import struct
import sys
import threading
import time
from typing import Any

import pytest

from lazystore._core.lines import LineScanner
from lazystore.errors import ConfigError, FormatError


def items(text: bytes, kind: str, **options: Any) -> list[bytes]:
    """The items of a text that fits one chunk."""
    scanner = LineScanner(kind, target=1 << 30, limit=1 << 20, **options)
    assert scanner.scan(text) == len(text)
    scanner.finish()
    if not scanner.ready:
        return []
    table, begin, nbytes, n = scanner.take()
    count, *offsets = struct.unpack(f"<{n + 2}I", table)
    assert count == n and offsets[0] == len(table) and offsets[-1] == len(table) + nbytes
    base = begin - len(table)
    return [text[base + offsets[i] : base + offsets[i + 1]] for i in range(n)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"", []),
        (b"\n", [b"\n"]),
        (b"a", [b"a"]),
        (b"a\nb", [b"a\n", b"b"]),
        (b"a\r\n\n b \n", [b"a\r\n", b"\n", b" b \n"]),
        (b"\xef\xbb\xbfa\nb", [b"a\n", b"b"]),
        (b"\xef\xbb\xbf", []),
        (b"\xef\xbb", [b"\xef\xbb"]),
        (b"\xef\xbba\n", [b"\xef\xbba\n"]),
        ("x\u2028y\u0085z\x0b\n".encode(), ["x\u2028y\u0085z\x0b\n".encode()]),
    ],
)
def test_every_line_is_an_item(text: bytes, found: list[bytes]) -> None:
    assert items(text, "lines") == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b" \t\r\n\n", []),
        (b"\n\n1\n\n \r\n2", [b"1\n\n \r\n", b"2"]),
        (b"  1 \n\t", [b"  1 \n\t"]),
        (b"\xef\xbb\xbf \n[]\n", [b"[]\n"]),
    ],
)
def test_blank_lines_are_no_json_items(text: bytes, found: list[bytes]) -> None:
    assert items(text, "jsonl") == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b'a,"b\nc"\nd,e', [b'a,"b\nc"\n', b"d,e"]),
        (b'a,"b""\n""c"\nd', [b'a,"b""\n""c"\n', b"d"]),
        (b'5" pipe,x\n6",y\n', [b'5" pipe,x\n', b'6",y\n']),
        (b'"a"b"\nc\n', [b'"a"b"\n', b"c\n"]),
        (b"a\r\n\r\n\nb\n", [b"a\r\n\r\n\n", b"b\n"]),
        (b" \na\n", [b" \n", b"a\n"]),
        (b'""\n"\n"\n', [b'""\n', b'"\n"\n']),
    ],
)
def test_records_end_outside_quotes(text: bytes, found: list[bytes]) -> None:
    assert items(text, "fields") == found


def test_a_header_is_no_item() -> None:
    scanner = LineScanner("fields", target=100, limit=100, skip=1)
    scanner.scan(b'\n"a\nb",c\n\n1,2\n')
    assert scanner.lead == 10
    scanner.finish()
    assert scanner.take()[1:] == (10, 4, 1)


def test_a_quote_that_is_never_closed_is_an_error_that_names_its_record() -> None:
    with pytest.raises(FormatError, match="begins at byte 4"):
        items(b'a,b\nc,"d\ne\n', "fields")


def test_an_item_that_no_chunk_can_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    scanner = LineScanner("lines", target=1 << 20, limit=1 << 20)
    piece = bytes(64 << 20)
    scanner.scan(b"first\n")
    with pytest.raises(FormatError, match="begins at byte 6 is longer"):
        for _ in range(64):
            scanner.scan(piece)


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "words"}, {"target": 0}, {"target": 1 << 31}, {"limit": 0}, {"limit": 1 << 29}, {"delimiter": b""},
        {"delimiter": b"::"}, {"delimiter": b'"'}, {"quote": b"''"}, {"delimiter": b"\n"},
    ],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        LineScanner(**{"kind": "fields", "target": 1, "limit": 1, **options})


def test_steps_out_of_order_are_refused() -> None:
    scanner = LineScanner("lines", target=1, limit=1)
    with pytest.raises(ConfigError, match="no chunk is complete"):
        scanner.take()
    assert scanner.scan(b"a\nb\n") == 2
    for step in (lambda: scanner.scan(b"x"), scanner.finish):
        with pytest.raises(ConfigError, match="take it"):
            step()
    with pytest.raises(TypeError):
        pickle.dumps(scanner)


def test_other_threads_run_while_a_buffer_is_scanned() -> None:
    data = b"x" * 99 + b"\n"
    data *= 500_000
    scanner = LineScanner("lines", target=1 << 30, limit=1 << 28)
    ticks = 0
    done = threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not done.is_set():
            ticks += 1
            time.sleep(0)  # lets go of the GIL

    interval = sys.getswitchinterval()
    sys.setswitchinterval(10)  # nobody takes the GIL away: it must be let go of
    other = threading.Thread(target=tick)
    try:
        other.start()
        before = ticks
        deadline = time.monotonic() + 8  # a busy machine may not run the other thread within one scan
        while ticks == before and time.monotonic() < deadline:
            scanner.scan(data)
        during = ticks - before
    finally:
        done.set()
        sys.setswitchinterval(interval)
        other.join()
    assert during > 0
