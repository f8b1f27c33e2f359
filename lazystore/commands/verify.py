"""``lazystore verify``: every item read and decoded, every checksum compared; goes on after damage."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from lazystore.commands.options import add_command, add_dataset_options
from lazystore.errors import (
    BudgetTooSmallError,
    ChecksumError,
    ConfigError,
    DatasetNotFoundError,
    FetchError,
    FormatError,
    LazyStoreError,
    UnsafeDataError,
    without_trace,
)
from lazystore.progress import Progress

if TYPE_CHECKING:
    from lazystore import StreamingDataset
    from lazystore.commands.layout import Layout
    from lazystore.commands.options import Subparsers

__all__ = ["Damage", "Findings", "add", "examine", "run"]

#: Damaged items one after the other, after which the rest of their chunk is given up.
GIVE_UP = 8
#: Items between two updates of the progress.
STEP = 256


class Damage(NamedTuple):
    """Items ``first .. last - 1`` that cannot be had, and why."""

    first: int
    last: int
    reason: str


@dataclass(slots=True)
class Findings:
    """What an examination found.

    Attributes:
        items: read and decoded.
        bad: items that could not be, those of chunks given up included.
        places: the first of them.
    """

    items: int = 0
    bad: int = 0
    places: list[Damage] = field(default_factory=list)


def add(commands: Subparsers) -> argparse.ArgumentParser:
    """What the command takes."""
    command = add_command(
        commands,
        "verify",
        "read and check everything",
        "Reads and decodes every item of every chunk, and compares the checksums where the dataset has them.\n"
        "Damaged places are listed, and the rest is examined nevertheless. Exit status: 0 all is well, 1 it is not.",
        "lazystore verify data",
        "lazystore verify s3://bucket/data --validate-hash sha1 --max-listed 100",
    )
    command.add_argument("url", help="folder, file or URL of the dataset")
    command.add_argument("--max-listed", type=int, default=20, metavar="N", help="places to list (default: 20)")
    command.add_argument("--validate-hash", metavar="ALGO", help="compare this hash of an MDS dataset, e.g. sha1")
    command.add_argument("--no-checksums", action="store_true", help="decode only")
    add_dataset_options(command, decodes=True)
    command.set_defaults(run=run)
    return command


def run(arguments: argparse.Namespace) -> int:
    """Examine everything; 1 if something is damaged."""
    from lazystore.commands.layout import layout_of

    dataset, checked = _opened(arguments)
    with dataset:
        layout = layout_of(dataset)
        with Progress(layout.items, "verifying") as progress:
            found = examine(dataset, layout, progress, most=arguments.max_listed)
    for first, last, reason in found.places:
        where = f"item {first}" if last == first + 1 else f"items {first} to {last - 1}"
        print(f"damaged: {where}: {reason}")
    text = f"{found.items:,} items in {layout.chunks:,} chunks read and decoded; {checked}"
    print(f"{text}; {found.bad:,} items are damaged" if found.bad else f"ok: {text}")
    return 1 if found.bad else 0


def _opened(arguments: argparse.Namespace) -> tuple[StreamingDataset, str]:
    """The dataset, and what becomes of its checksums."""
    from lazystore.commands.layout import layout_of
    from lazystore.commands.options import open_dataset

    url, algorithm = arguments.url, arguments.validate_hash
    if algorithm is not None:
        return open_dataset(arguments, url, validate_hash=algorithm), f"checksums compared ({algorithm})"
    if arguments.no_checksums:
        return open_dataset(arguments, url), "checksums not compared"
    try:
        dataset = open_dataset(arguments, url, verify=True)
    except BudgetTooSmallError:
        raise
    except ConfigError:  # of another argument: it is raised again
        return open_dataset(arguments, url), "there are no checksums to compare"
    sums = layout_of(dataset).checksums
    return dataset, f"checksums compared ({sums})" if sums else "there are no checksums to compare"


def examine(dataset: StreamingDataset, layout: Layout, progress: Progress, *, most: int) -> Findings:
    """Read everything in stored order.

    Parameters:
        most: places to remember.

    A chunk whose storage fails or whose checksum differs, or of which several items in a row are damaged, is given
    up: its other items are counted as damaged unread. Errors that are not the data's (a package, a permission) are
    raised.
    """
    found = Findings()
    starts = layout.starts()
    total, at, row = layout.items, 0, 0
    while at < total:
        count, error = _read(dataset.iter_from(at), progress)
        found.items += count
        at += count
        if error is None:
            if at < total:
                _note(found, Damage(at, total, "the iteration ended before the last item"), most)
            break
        row = 1 if count else row + 1
        last = at + 1
        if row == GIVE_UP or isinstance(error, (ChecksumError, FetchError, DatasetNotFoundError)):
            last, row = starts[layout.locate(at, starts) + 1], 0
        _note(found, Damage(at, last, " ".join(str(error).split())), most)
        progress.update(last - at)
        at = last
    return found


def _read(items: Iterator[object], progress: Progress) -> tuple[int, LazyStoreError | None]:
    """How many items came, and the damage that ended them."""
    count, damage = 0, None
    try:
        for _ in items:
            count += 1
            if not count % STEP:
                progress.update(STEP)
    except UnsafeDataError:
        raise
    except (FormatError, FetchError, DatasetNotFoundError) as error:
        damage = without_trace(error)  # a traceback would keep what the iteration holds
    progress.update(count % STEP)
    return count, damage


def _note(found: Findings, damage: Damage, most: int) -> None:
    found.bad += damage.last - damage.first
    if len(found.places) < most:
        found.places.append(damage)
