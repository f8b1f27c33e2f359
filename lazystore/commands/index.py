"""``lazystore index``: counts the items of text files once, so that later any of them can be had at once."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lazystore.commands.options import add_command, add_dataset_options

if TYPE_CHECKING:
    from lazystore.commands.options import Subparsers

__all__ = ["add", "run"]


def add(commands: Subparsers) -> argparse.ArgumentParser:
    """What the command takes."""
    command = add_command(
        commands,
        "index",
        "index text files",
        "Reads text files (JSON lines, CSV, TSV, plain lines; also gzip and zstd) once, keeps where their items lie.\n"
        "A file that has an up-to-date index is not read again.",
        "lazystore index rows.jsonl table.csv.gz",
        "lazystore index rows.jsonl --format-option index=beside",
        "lazystore index s3://bucket/rows.jsonl --storage-option anon=true",
    )
    command.add_argument("files", nargs="+", metavar="FILE", help="file or URL")
    add_dataset_options(command, decodes=False)
    command.set_defaults(run=run)
    return command


def run(arguments: argparse.Namespace) -> int:
    """Index them, one after the other."""
    from lazystore.commands.layout import layout_of
    from lazystore.commands.options import open_dataset
    from lazystore.commands.values import size_text

    for file in arguments.files:
        with open_dataset(arguments, file) as dataset:
            layout = layout_of(dataset)
            where = layout.opened.about.get("index") or "its own"
            if isinstance(where, list):
                where = ", ".join(where)
            size = f", {size_text(layout.stored)}" if layout.stored else ""
            print(f"{file}: {layout.items:,} items{size}; index: {where}", flush=True)
    return 0
