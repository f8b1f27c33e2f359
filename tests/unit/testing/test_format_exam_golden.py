"""lazystore's own formats take the exam on golden datasets. More damage: ``LAZYSTORE_EXAM_DAMAGE=500``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from support.golden import GOLDEN, difference

from lazystore.formats.registry import find_format
from lazystore.testing import FormatCase, examine_format

DAMAGE = int(os.environ.get("LAZYSTORE_EXAM_DAMAGE", "25"))
#: One dataset of each way that bytes go; and the package it needs.
CASES = {
    "litdata-classic-text": "",
    "litdata-classic-tokens-numpy": "",
    "litdata-leaves": "torch",
    "litdata-classic-zstd": "zstandard",
    "litdata-framed-zstd": "zstandard",
    "litdata-sample-zstd": "zstandard",
    "litdata-rows-zstd": "pyarrow",
    "litdata-nested-rows": "pyarrow",
    "litdata-fernet-chunk": "cryptography",
    "litdata-fernet-sample": "cryptography",
    "mds-plain": "",
    "mds-gz": "",
    "mds-hashes": "",
    "mds-merged": "",
    "mosaic-json": "",
    "mosaic-xsv": "",
    "plain-text/jsonl": "",
    "plain-text/csv": "",
}
FORMATS = {"litdata": "litdata", "mds": "mds", "mosaic": "mds"}


@pytest.mark.parametrize("name", CASES)
def test_own_format_passes(name: str) -> None:
    if CASES[name]:
        pytest.importorskip(CASES[name])
    folder = GOLDEN / name
    text = name.startswith("plain-text")
    (path,) = (folder / "data").iterdir() if text else (folder / "data",)
    format = find_format(name.rpartition("/")[2] if text else FORMATS[name.partition("-")[0]])
    items = [json.loads(line) for line in (folder / "expected.jsonl").read_text(encoding="utf-8").splitlines()]
    case = FormatCase(path, items, arguments(folder), equal=lambda value, want: not difference(value, want))
    examine_format(format, [case], damage=DAMAGE)


def arguments(folder: Path) -> dict[str, Any]:
    if (folder / "key").exists():
        from lazystore.formats.encryption import FernetEncryption

        password = (folder / "key" / "password.txt").read_text(encoding="utf-8")
        return {"encryption": FernetEncryption.load(str(folder / "key" / "key.json"), password)}
    return {"verify": True} if folder.name == "mds-hashes" else {}
