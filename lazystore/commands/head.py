"""``lazystore head``: the first items of a dataset."""

from __future__ import annotations

import argparse
from itertools import islice
from typing import TYPE_CHECKING

from lazystore.commands.options import add_command, add_dataset_options, positive

if TYPE_CHECKING:
    from lazystore.commands.options import Subparsers

__all__ = ["add", "run"]


def add(commands: Subparsers) -> argparse.ArgumentParser:
    """What the command takes."""
    from lazystore.commands.show import add_forms

    command = add_command(
        commands,
        "head",
        "show the first items",
        "Shows the first items of a dataset; reads little more than those.",
        "lazystore head data",
        "lazystore head s3://bucket/data -n 2 --json --storage-option anon=true",
    )
    command.add_argument("url", help="folder, file or URL of the dataset")
    command.add_argument("-n", type=positive, default=5, metavar="N", help="so many items (default: 5)")
    add_forms(command)
    add_dataset_options(command, decodes=True)
    command.set_defaults(run=run)
    return command


def run(arguments: argparse.Namespace) -> int:
    """Show them."""
    from lazystore.commands.options import open_dataset
    from lazystore.commands.show import write_items, write_raw

    with open_dataset(arguments, arguments.url) as dataset:
        if arguments.raw:
            numbers = range(min(arguments.n, dataset.total))
            write_raw(map(dataset.get_bytes, numbers))
        else:
            write_items(islice(iter(dataset), arguments.n), 0, as_json=arguments.json)
    return 0
