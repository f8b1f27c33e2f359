"""``LineScanner`` against its model, with every way to cut the text into buffers; and against Python's csv module."""

from __future__ import annotations

import csv
import io
import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from models import lines as model

from lazystore._core.lines import LineScanner
from lazystore.errors import FormatError

PIECES = [
    b"\n",
    b"\n",
    b"\r\n",
    b"\r",
    b" ",
    b"\t",
    b",",
    b'"',
    b'""',
    b'","',
    b"a",
    b"{}",
    b"\xef\xbb\xbf",
    b"\xef",
    b"x" * 70,
]
texts = st.lists(st.sampled_from(PIECES), max_size=24).map(b"".join)
kinds = st.sampled_from(["lines", "jsonl", "fields"])


def scanned(text: bytes, cuts: list[int], kind: str, **options: object) -> list[tuple[bytes, int, int, int]]:
    scanner = LineScanner(kind, **options)  # type: ignore[arg-type]
    found = []
    borders = [0, *sorted(cuts), len(text)]
    for begin, end in itertools.pairwise(borders):
        view = memoryview(text)[begin:end]
        while len(view):
            view = view[scanner.scan(view) :]
            if scanner.ready:
                found.append(scanner.take())
    scanner.finish()
    if scanner.ready:
        found.append(scanner.take())
    return found


@given(
    text=texts, kind=kinds, target=st.integers(1, 200), limit=st.integers(1, 5), skip=st.integers(0, 2), data=st.data()
)
@example(text=b'\r\n\r"a\n"', kind="fields", target=1, limit=1, skip=0, data=None)
def test_chunks_are_the_models_whatever_the_buffers(
    text: bytes, kind: str, target: int, limit: int, skip: int, data: st.DataObject | None
) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=6)) if data else []
    every = list(range(len(text)))
    if kind == "fields" and model.open_quote(text, b",", b'"'):
        with pytest.raises(FormatError, match="never closed"):
            scanned(text, cuts, kind, target=target, limit=limit, skip=skip)
        return
    wanted = model.chunks(text, kind, target=target, limit=limit, skip=skip)
    for split in (cuts, [], every):
        assert scanned(text, split, kind, target=target, limit=limit, skip=skip) == wanted


@given(text=texts, cut=st.integers(0, 300))
def test_texts_without_quoting_are_lines(text: bytes, cut: int) -> None:
    cuts = [min(cut, len(text))]
    found = scanned(text, cuts, "fields", target=50, limit=9, delimiter=b"\t", quote=b"")
    assert found == model.chunks(text, "fields", target=50, limit=9, delimiter=b"\t", quote=b"")


@given(
    st.lists(st.lists(st.text(st.sampled_from('ab",\n\r é'), max_size=6), min_size=1, max_size=4), max_size=8),
    st.booleans(),
)
def test_records_are_those_that_the_csv_module_wrote(rows: list[list[str]], crlf: bool) -> None:
    out = io.StringIO(newline="")
    # With LF alone the module leaves carriage returns bare, even one that is a whole record.
    quoting = csv.QUOTE_MINIMAL if crlf else csv.QUOTE_ALL
    csv.writer(out, lineterminator="\r\n" if crlf else "\n", quoting=quoting).writerows(rows)
    text = out.getvalue().encode()
    found = scanned(text, [], "fields", target=1 << 20, limit=1 << 20)
    assert sum(n for *_, n in found) == len(rows)


@given(text=texts, kind=kinds)
def test_the_lead_is_what_no_item_has(text: bytes, kind: str) -> None:
    if kind == "fields" and model.open_quote(text, b",", b'"'):
        return
    for skip in (0, 1):
        scanner = LineScanner(kind, target=1 << 20, limit=1 << 20, skip=skip)
        assert scanner.lead == -1
        assert scanner.scan(text) == len(text)
        scanner.finish()
        starts = model.starts(text, kind)[skip:]
        assert scanner.lead == (starts[0] if starts else len(text))
