"""``lazystore convert``: a dataset of any format into LitData's, or into JSON lines. Order is kept."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lazystore.commands.options import add_command, add_dataset_options, pair, positive
from lazystore.errors import ConfigError, FormatError, UnsupportedError
from lazystore.progress import Progress

if TYPE_CHECKING:
    from lazystore import StreamingDataset
    from lazystore.commands.options import Subparsers

__all__ = ["add", "run"]

#: Items between two updates of the progress.
STEP = 64
#: Characters written at once.
PIECE = 1 << 20


def add(commands: Subparsers) -> argparse.ArgumentParser:
    """What the command takes."""
    command = add_command(
        commands,
        "convert",
        "write a dataset in another format",
        "Reads a dataset of any format and writes it in LitData's classic one, or as JSON lines. Order is kept.\n"
        "LitData's format gives all items one structure, and has no numbers of numpy's: those become Python's.\n"
        "DST appears when it is complete, or not at all.",
        "lazystore convert rows.jsonl.gz data --chunk-bytes 64MB --compression zstd",
        "lazystore convert s3://bucket/mds data --chunk-size 10000",
        "lazystore convert rows.jsonl data --json-column tags --json-column meta",
        "lazystore convert data rows.jsonl --json-bytes base64",
    )
    command.add_argument("src", help="folder, file or URL of the dataset to read")
    command.add_argument("dst", help="folder to write, or a .jsonl file")
    command.add_argument("--to", choices=["litdata", "jsonl"], help="what to write (default: jsonl if DST ends so)")
    command.add_argument("--overwrite", action="store_true", help="replace what is there")
    litdata = command.add_argument_group("LitData")
    litdata.add_argument("--chunk-bytes", metavar="SIZE", help="bytes of a chunk (default: 64MB)")
    litdata.add_argument("--chunk-size", metavar="N", type=positive, help="items of a chunk, instead")
    litdata.add_argument("--compression", metavar="zstd[:LEVEL]", help="compress chunks")
    litdata.add_argument(
        "--json-column", metavar="NAME", action="append", default=[],
        help="write what rows have under this key as JSON text: values that differ in kind or length (repeatable)",
    )  # fmt: skip
    litdata.add_argument(
        "--dst-storage-option", metavar="KEY=VALUE", action="append", default=[], type=pair,
        help="credentials and client settings for DST, if it is a URL (repeatable)",
    )  # fmt: skip
    lines = command.add_argument_group("JSON lines")
    lines.add_argument(
        "--json-bytes", choices=["base64"], help='write bytes as {"base64": "..."}; without it they are refused'
    )
    add_dataset_options(command, decodes=True)
    command.set_defaults(run=run)
    return command


def run(arguments: argparse.Namespace) -> int:
    """Convert."""
    from lazystore.commands.jpegs import KEEPING_JPEGS, holds_jpegs
    from lazystore.commands.options import open_dataset

    to = arguments.to or ("jsonl" if arguments.dst.endswith(".jsonl") else "litdata")
    _check(arguments, to)
    dataset = open_dataset(arguments, arguments.src)
    if to == "litdata" and dataset.indexed and holds_jpegs(dataset):
        dataset.close()
        dataset = open_dataset(arguments, arguments.src, serializers=KEEPING_JPEGS)
    with dataset:
        items = _to_jsonl(dataset, arguments) if to == "jsonl" else _to_litdata(dataset, arguments)
    print(f"{items:,} items written to {arguments.dst}")
    return 0


def _check(arguments: argparse.Namespace, to: str) -> None:
    """Options of the other format would be ignored: say so instead."""
    foreign = (
        ("json_bytes",)
        if to == "litdata"
        else ("chunk_bytes", "chunk_size", "compression", "json_column", "dst_storage_option")
    )
    for name in foreign:
        if getattr(arguments, name):
            raise ConfigError(f"--{name.replace('_', '-')} means nothing where {to} is written; leave it out")


def _items(dataset: StreamingDataset, label: str) -> Iterator[Any]:
    """All items in order, with progress."""
    with Progress(dataset.total if dataset.indexed else None, label) as progress:
        count = 0
        for item in dataset:
            yield item
            count += 1
            if not count % STEP:
                progress.update(STEP)
        progress.update(count % STEP)


def _to_litdata(dataset: StreamingDataset, arguments: argparse.Namespace) -> int:
    from lazystore import DatasetWriter

    settings = {name: getattr(arguments, name) for name in ("chunk_bytes", "chunk_size", "compression")}
    if arguments.dst_storage_option:
        settings["storage_options"] = dict(arguments.dst_storage_option)
    columns = arguments.json_column
    with DatasetWriter(arguments.dst, mode="overwrite" if arguments.overwrite else None, **settings) as writer:
        for item in _items(dataset, "converting"):
            try:
                writer.write(_writable(item, columns))
            except FormatError as error:
                raise FormatError(f"{error}; --json-column NAME writes a key's values as JSON text") from None
    return writer.num_items


def _writable(item: Any, columns: Sequence[str]) -> Any:
    """The item as LitData's format can hold it: numpy's numbers as Python's, some columns as JSON text."""
    from lazystore.commands.values import json_line

    if not isinstance(item, dict):
        return _number(item)
    row = {key: _number(value) for key, value in item.items()}
    for name in columns:
        if name in row:
            row[name] = json_line(item[name])
    return row


def _number(value: Any) -> Any:
    """A number of Python's for one of numpy's; everything else as it is."""
    if (
        type(value).__module__ == "numpy"
        and getattr(value, "shape", None) == ()
        and not hasattr(value, "__array_finalize__")
    ):
        return value.item()
    return value


def _to_jsonl(dataset: StreamingDataset, arguments: argparse.Namespace) -> int:
    from lazystore.fetch.options import is_local, local_path
    from lazystore.formats.chunk_files import LocalFolder

    if not is_local(arguments.dst):
        raise UnsupportedError(
            f"{arguments.dst}: JSON lines are written to local files only; upload the file afterwards"
        )
    path = local_path(arguments.dst)
    if os.path.exists(path) and not arguments.overwrite:
        raise ConfigError(f"{path} exists already; give another name, or --overwrite")
    folder, name = LocalFolder(os.path.dirname(path) or "."), os.path.basename(path)
    count = [0]
    folder.write(name, _lines(dataset, count, binary=arguments.json_bytes is not None))
    folder.settle([name])
    return count[0]


def _lines(dataset: StreamingDataset, count: list[int], *, binary: bool) -> Iterator[bytes]:
    """The items as lines, some at a time; counts them."""
    from lazystore.commands.values import json_line

    lines: list[str] = []
    size = 0
    for item in _items(dataset, "converting"):
        try:
            lines.append(json_line(item, binary=binary))
        except UnsupportedError as error:
            raise UnsupportedError(f"item {count[0]}: {error}") from None
        count[0] += 1
        size += len(lines[-1])
        if size >= PIECE:
            yield "\n".join([*lines, ""]).encode()
            lines.clear()
            size = 0
    yield "\n".join([*lines, ""]).encode() if lines else b""
