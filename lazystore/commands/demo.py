"""``lazystore demo``: its options. What it does is in ``lazystore.demo``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lazystore.commands.options import add_command

if TYPE_CHECKING:
    from lazystore.commands.options import Subparsers

__all__ = ["add", "run"]


def add(commands: Subparsers) -> argparse.ArgumentParser:
    """What the command takes."""
    command = add_command(
        commands,
        "demo",
        "stream this machine's Python sources from a slow object store",
        "Writes the Python sources of the standard library and site-packages as a dataset,\n"
        "serves it from a local object store, streams it in a small budget and verifies every item.",
        "lazystore demo",
        "lazystore demo --memory 16MB --latency-ms 50",
    )
    command.add_argument("--dir", metavar="DIR", help="write the dataset here and keep it")
    command.add_argument("--memory", metavar="SIZE", help="byte budget, e.g. 16MB (default: a fifth of the dataset)")
    command.add_argument(
        "--latency-ms", metavar="MS", type=float, default=20.0, help="latency per request (default: 20)"
    )
    command.add_argument(
        "--bandwidth", metavar="SIZE", default="200MB", help="bytes per second of the store (default: 200MB)"
    )
    command.add_argument("--limit", metavar="N", type=int, help="use at most N files")
    command.set_defaults(run=run)
    return command


def run(arguments: argparse.Namespace) -> int:
    """Run it; 1 if something did not verify."""
    from lazystore import demo

    options = demo.options_from(
        memory=arguments.memory,
        latency_ms=arguments.latency_ms,
        bandwidth=arguments.bandwidth,
        folder=arguments.dir,
        limit=arguments.limit,
    )
    return 0 if demo.run(options).ok else 1
