"""``lazystore info``: what a dataset holds, how it is stored, what a budget would become."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lazystore.commands.options import add_command, add_dataset_options
from lazystore.errors import FormatError, MissingExtraError, UnsupportedError

if TYPE_CHECKING:
    from lazystore import StreamingDataset
    from lazystore.commands.options import Subparsers

__all__ = ["add", "describe", "run"]

#: What a format says of a dataset that has a line of its own here.
KNOWN = frozenset({"compression", "encryption", "checksums", "hashes", "schema", "columns", "stored_bytes"})


def add(commands: Subparsers) -> argparse.ArgumentParser:
    """What the command takes."""
    command = add_command(
        commands,
        "info",
        "describe a dataset",
        "Says what a dataset holds, how it is stored, and how a memory budget would be used.",
        "lazystore info data",
        "lazystore info s3://bucket/data --json --storage-option anon=true",
    )
    command.add_argument("url", help="folder, file or URL of the dataset")
    command.add_argument("--json", action="store_true", help="one JSON object")
    add_dataset_options(command, decodes=True)
    command.set_defaults(run=run)
    return command


def run(arguments: argparse.Namespace) -> int:
    """Describe it."""
    from lazystore.commands.options import open_dataset

    with open_dataset(arguments, arguments.url) as dataset:
        found = describe(dataset)
    if arguments.json:
        print(json.dumps(found))
        return 0
    for name, value in found.items():
        print(f"{name.replace('_', ' '):<18} {_text(name, value)}")
    return 0


def describe(dataset: StreamingDataset) -> dict[str, Any]:
    """Plain JSON. Sizes in bytes; None: there is none, or it is not known without reading much.

    A compression is "unknown" where the format does not tell (Parquet's is each column chunk's own).
    """
    from lazystore.commands.layout import largest_item, layout_of
    from lazystore.streaming.division import divide

    layout = layout_of(dataset)
    opened = layout.opened
    about = {name: value for name, value in opened.about.items() if name not in KNOWN}
    whole = layout.stored and layout.items and not opened.opaque
    return {
        "url": opened.source.url,
        "format": opened.format,
        "items": layout.items,
        "chunks": layout.chunks,
        "stored_bytes": layout.stored or None,
        "chunk_bytes": layout.stored // layout.chunks if layout.chunks and layout.stored else None,
        "mean_item": (sum(opened.hints) - layout.tables) // layout.items if whole else None,
        "largest_item": largest_item(layout),
        "compression": opened.about.get("compression", "unknown") or None,
        "encryption": opened.about.get("encryption") or None,
        "checksums": layout.checksums or None,
        "schema": layout.schema,
        "first_item": _first_item(dataset) if layout.items else None,
        "memory": asdict(divide(opened, layout.budget)),
        **about,
    }


def _first_item(dataset: StreamingDataset) -> str:
    """What it is made of; a dataset that cannot be decoded here can be described nevertheless."""
    from lazystore.commands.values import kind_of

    try:
        return kind_of(dataset[0])
    except (FormatError, MissingExtraError, UnsupportedError) as error:
        return f"cannot be read: {error}"


def _text(name: str, value: Any) -> str:
    from lazystore.commands.values import size_text

    if value is None:
        return "none" if name in KNOWN else "unknown"
    if name == "memory":
        return ", ".join(f"{part.replace('_', ' ')} {size_text(size)}" for part, size in value.items() if size)
    if name == "schema":
        return ", ".join(key if kind is None else f"{key}: {kind}" for key, kind in value.items())
    if name == "compression" and isinstance(value, list):
        return ", ".join(map(str, value))
    if name.endswith(("_bytes", "_item")) and isinstance(value, int):
        return size_text(value)
    if isinstance(value, int):
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value)
