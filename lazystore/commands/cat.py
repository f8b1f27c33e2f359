"""``lazystore cat``: items by their numbers."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lazystore.commands.options import add_command, add_dataset_options
from lazystore.errors import ItemIndexError

if TYPE_CHECKING:
    from lazystore import StreamingDataset
    from lazystore.commands.options import Subparsers

__all__ = ["add", "run", "wanted"]

#: Items asked for together.
STEP = 64

_NUMBERS = re.compile(r"(?P<one>-?\d+)|(?P<first>-?\d+)?\.\.(?P<last>-?\d+)?")


def add(commands: Subparsers) -> argparse.ArgumentParser:
    """What the command takes."""
    from lazystore.commands.show import add_forms

    command = add_command(
        commands,
        "cat",
        "show items by their numbers",
        "Shows items: number 7 as 7, numbers 7, 8 and 9 as 7..10 (as in Python, the second is not included),\n"
        "from the end as -1 and -3.. , everything as .. .",
        "lazystore cat data 7",
        "lazystore cat data 100..110 --json",
        "lazystore cat data -3..",
        "lazystore cat data 0 --raw > item",
    )
    command.add_argument("url", help="folder, file or URL of the dataset")
    command.add_argument("items", nargs="+", type=_checked, metavar="I|I..J", help="numbers, or ranges of them")
    add_forms(command)
    add_dataset_options(command, decodes=True)
    command.set_defaults(run=run)
    return command


def run(arguments: argparse.Namespace) -> int:
    """Show them."""
    from lazystore.commands.options import open_dataset
    from lazystore.commands.show import write_items, write_raw

    with open_dataset(arguments, arguments.url) as dataset:
        for text in arguments.items:
            numbers = wanted(text, dataset.total)
            if arguments.raw:
                write_raw(map(dataset.get_bytes, numbers))
            else:
                write_items(_items(dataset, numbers), numbers.start, as_json=arguments.json)
    return 0


def wanted(text: str, total: int) -> range:
    """The numbers that ``7``, ``7..10``, ``-3..`` or ``..`` means among ``total``.

    Raises:
        ItemIndexError: a single number that is not there. Ranges end where the items do.
    """
    match = _NUMBERS.fullmatch(text)
    assert match is not None, "the grammar lets nothing else through"
    if match["one"] is not None:
        number = int(match["one"])
        if not -total <= number < total:
            raise ItemIndexError(f"there is no item {number}: the dataset has {total:,}")
        return range(number % total, number % total + 1)
    first, last = (None if match[name] is None else int(match[name]) for name in ("first", "last"))
    return range(*slice(first, last).indices(total))


def _items(dataset: StreamingDataset, numbers: range) -> Iterator[Any]:
    for at in range(0, len(numbers), STEP):
        yield from dataset.get_many(numbers[at : at + STEP])


def _checked(text: str) -> str:
    text = text.strip()
    if not _NUMBERS.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor a range such as 7..10 or -3..")
    return text
