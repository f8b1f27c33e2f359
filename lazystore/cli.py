"""The ``lazystore`` command: arguments, exit codes and errors in one line each.

What the commands do is elsewhere (``demo``, the dataset itself). Exit codes: 0 fine, 1 the command
failed or something did not verify, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import lazystore
from lazystore.errors import LazyStoreError

__all__ = ["main", "parser"]


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(
        prog="lazystore", description="Read datasets larger than memory inside a hard byte budget."
    )
    top.add_argument("--version", action="version", version=f"lazystore {lazystore.__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="stream this machine's Python sources from a slow object store",
        description="Writes the Python sources of the standard library and site-packages as a dataset, "
        "serves it from a local object store, streams it in a small budget and verifies every item.",
    )
    demo.add_argument("--dir", metavar="DIR", help="write the dataset here and keep it")
    demo.add_argument("--memory", metavar="SIZE", help="byte budget, e.g. 16MB (default: a fifth of the dataset)")
    demo.add_argument("--latency-ms", metavar="MS", type=float, default=20.0, help="latency per request (default: 20)")
    demo.add_argument(
        "--bandwidth", metavar="SIZE", default="200MB", help="bytes per second of the store (default: 200MB)"
    )
    demo.add_argument("--limit", metavar="N", type=int, help="use at most N files")
    demo.set_defaults(run=_demo)

    info = commands.add_parser("info", help="describe a dataset", description="Says what a dataset holds.")
    info.add_argument("url", help="folder or URL of the dataset")
    info.add_argument("--memory", metavar="SIZE", help="byte budget (default: the library's)")
    info.add_argument("--storage-options", metavar="JSON", type=_json_object, help="e.g. '{\"anon\": true}'")
    info.set_defaults(run=_info)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except LazyStoreError as error:
        print(f"lazystore: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("lazystore: interrupted", file=sys.stderr)
        return 130


def _demo(arguments: argparse.Namespace) -> int:
    from lazystore import demo

    options = demo.options_from(
        memory=arguments.memory,
        latency_ms=arguments.latency_ms,
        bandwidth=arguments.bandwidth,
        folder=arguments.dir,
        limit=arguments.limit,
    )
    return 0 if demo.run(options).ok else 1


def _info(arguments: argparse.Namespace) -> int:
    options: dict[str, Any] = {}
    if arguments.memory is not None:
        options["memory"] = arguments.memory
    with lazystore.StreamingDataset(arguments.url, storage_options=arguments.storage_options, **options) as dataset:
        stats = dataset.stats()
        print(repr(dataset))
        print(f"items   {stats['items']:,}")
        print(f"chunks  {stats['n_chunks']:,}")
        if len(dataset):
            print(f"item 0  {_shape(dataset[0])}, {len(dataset.get_bytes(0)):,} bytes stored")
    return 0


def _shape(value: object) -> str:
    """What an item is made of, without its contents."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_shape(child)}" for key, child in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        inner = ", ".join(map(_shape, value))
        return f"[{inner}]" if isinstance(value, list) else f"({inner})"
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{type(value).__name__}({value.dtype}, {tuple(value.shape)})"
    return type(value).__name__


def _json_object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return value


if __name__ == "__main__":
    sys.exit(main())
