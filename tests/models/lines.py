"""The rules of ``LineScanner`` in plain Python, over the whole text at once."""

from __future__ import annotations

import struct

BOM = b"\xef\xbb\xbf"


def starts(text: bytes, kind: str, delimiter: bytes = b",", quote: bytes = b'"') -> list[int]:
    """Where items begin."""
    at = len(BOM) if text.startswith(BOM) else 0
    found = []
    while at < len(text):
        end = _record_end(text, at, delimiter, quote) if kind == "fields" else _line_end(text, at)
        if not _blank(text[at:end], kind):
            found.append(at)
        at = end
    return found


def chunks(
    text: bytes, kind: str, *, target: int, limit: int, skip: int = 0, delimiter: bytes = b",", quote: bytes = b'"'
) -> list[tuple[bytes, int, int, int]]:
    """What ``take`` gives, one after another."""
    groups: list[list[int]] = []
    for start in starts(text, kind, delimiter, quote)[skip:]:
        if not groups or start - groups[-1][0] >= target or len(groups[-1]) == limit:
            groups.append([])
        groups[-1].append(start)
    out = []
    ends = [*(group[0] for group in groups[1:]), len(text)]
    for group, end in zip(groups, ends, strict=False):
        n, head, begin = len(group), 4 * (len(group) + 2), group[0]
        table = struct.pack(f"<{n + 2}I", n, *(head + start - begin for start in [*group, end]))
        out.append((table, begin, end - begin, n))
    return out


def open_quote(text: bytes, delimiter: bytes, quote: bytes) -> bool:
    """Whether the text ends within quotes."""
    at = len(BOM) if text.startswith(BOM) else 0
    inside = False
    while at < len(text):
        end, inside = _record(text, at, delimiter, quote)
        at = end
    return inside


def _line_end(text: bytes, at: int) -> int:
    return text.find(b"\n", at) + 1 or len(text)


def _record_end(text: bytes, at: int, delimiter: bytes, quote: bytes) -> int:
    return _record(text, at, delimiter, quote)[0]


def _record(text: bytes, at: int, delimiter: bytes, quote: bytes) -> tuple[int, bool]:
    """(end of the record, whether it ends within quotes)."""
    quoted, fresh = False, True
    while at < len(text):
        c = text[at : at + 1]
        at += 1
        if quoted:
            if c == quote:
                if quote and text[at : at + 1] == quote:
                    at += 1
                else:
                    quoted = False
        elif c == b"\n":
            return at, False
        elif fresh and quote and c == quote:
            quoted = True
        fresh = not quoted and c == delimiter
    return at, quoted


def _blank(line: bytes, kind: str) -> bool:
    if kind == "lines":
        return False
    if kind == "jsonl":
        return not line.strip(b" \t\r\n")
    return line in (b"", b"\n", b"\r\n", b"\r")
