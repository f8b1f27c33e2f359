"""Writing items to stdout: what ``head`` and ``cat`` share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import Any

from lazystore.commands.values import json_line, short

__all__ = ["add_forms", "write_items", "write_raw"]


def add_forms(command: argparse.ArgumentParser) -> None:
    """The choice of a form."""
    forms = command.add_mutually_exclusive_group()
    forms.add_argument("--raw", action="store_true", help="the stored bytes, nothing between them")
    forms.add_argument(
        "--json",
        action="store_true",
        help='a line of JSON an item: arrays as nested lists, bytes as {"base64": "..."}, '
        'floats that are not finite as "NaN", "Infinity" and "-Infinity"',
    )


def write_items(items: Iterable[Any], first: int, *, as_json: bool) -> None:
    """A line each; numbered from ``first`` on unless as JSON."""
    for number, item in enumerate(items, first):
        line = json_line(item, ascii_only=True) if as_json else f"{number}: {short(item)}"
        sys.stdout.write(line + "\n")


def write_raw(items: Iterable[bytes]) -> None:
    """Their bytes; those of text have their lines' ends."""
    sys.stdout.flush()
    for data in items:
        sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
