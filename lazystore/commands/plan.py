"""``lazystore plan``: what reading a dataset will take, before it is read."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from lazystore.commands.options import add_command, add_dataset_options, positive

if TYPE_CHECKING:
    from lazystore import StreamingDataset
    from lazystore.commands.options import Subparsers

__all__ = ["add", "foresee", "run"]

#: What a request waits and a link carries if nobody says: an object store in the same region.
LATENCY_MS, BANDWIDTH = 20.0, "200MB"
SHUFFLES: dict[str, bool | str] = {"none": False, "window": True, "chunk": "chunk", "global": "global"}


def add(commands: Subparsers) -> argparse.ArgumentParser:
    """What the command takes."""
    command = add_command(
        commands,
        "plan",
        "predict memory, requests, bytes and shuffle quality",
        "Predicts what an epoch takes: memory, requests, bytes, round trips to the first item, shuffle quality.\n"
        "Reads the index only. A local dataset is taken as if it lay on such a storage.",
        "lazystore plan s3://bucket/data --memory 1GB --workers 4 --batch 32 --shuffle",
        "lazystore plan data --memory 64MB --shuffle global --latency-ms 50 --bandwidth 1GB --json",
    )
    command.add_argument("url", help="folder, file or URL of the dataset")
    command.add_argument("--workers", type=positive, default=1, metavar="N", help="processes that share the budget")
    command.add_argument("--batch", type=positive, default=1, metavar="N", help="items a batch (default: 1)")
    command.add_argument(
        "--shuffle", nargs="?", const="window", default="none", choices=SHUFFLES, help="the order (alone: window)"
    )
    command.add_argument("--seed", type=int, default=42, help="of the shuffle (default: 42)")
    command.add_argument(
        "--latency-ms", type=float, default=LATENCY_MS, metavar="MS", help=f"of a request (default: {LATENCY_MS:g})"
    )
    command.add_argument(
        "--bandwidth", default=BANDWIDTH, metavar="SIZE", help=f"bytes per second of the link (default: {BANDWIDTH})"
    )
    command.add_argument("--json", action="store_true", help="one JSON object")
    add_dataset_options(command, decodes=False)
    command.set_defaults(run=run)
    return command


def run(arguments: argparse.Namespace) -> int:
    """Predict."""
    from lazystore.commands.options import open_dataset
    from lazystore.config import parse_bytes

    bandwidth = parse_bytes(arguments.bandwidth, name="--bandwidth")
    with open_dataset(arguments, arguments.url) as dataset:
        found = foresee(
            dataset,
            workers=arguments.workers, batch=arguments.batch, shuffle=SHUFFLES[arguments.shuffle], seed=arguments.seed,
            latency=arguments.latency_ms / 1e3, bandwidth=bandwidth,
        )  # fmt: skip
    if arguments.json:
        print(json.dumps(found))
        return 0
    for name, value in found.items():
        print(f"{name.replace('_', ' '):<22} {_text(name, value)}")
    return 0


def foresee(
    dataset: StreamingDataset, *, workers: int, batch: int, shuffle: bool | str, seed: int, latency: float,
    bandwidth: int,
) -> dict[str, Any]:  # fmt: skip
    """Plain JSON; bytes, seconds, shares 0..1. None: not foreseen.

    Parameters:
        latency: seconds a request waits for its first byte.
        bandwidth: bytes per second of the link.
    """
    from lazystore.commands.forecast import forecast
    from lazystore.commands.layout import layout_of
    from lazystore.streaming.division import divide
    from lazystore.streaming.order import Shape
    from lazystore.streaming.session import OWN_KINDS, order_kind

    layout = layout_of(dataset)
    opened = layout.opened
    kind = order_kind(shuffle, None)
    far: Any = SimpleNamespace(local=False, memory=opened.source.memory, url=opened.source.url)
    division = divide(replace(opened, source=far), layout.budget // workers)
    chunks = opened if kind in OWN_KINDS or opened.files is None else opened.files
    shape = Shape(chunks.counts, chunks.hints)
    epoch = forecast(
        shape, kind, division, workers=workers, batch=batch, seed=seed, stride=opened.stride, plain=not opened.opaque
    )
    first = epoch.round_trips * latency
    handed_out = 2 * workers * batch * shape.item_bytes if workers > 1 else batch * shape.item_bytes
    return {
        "items": epoch.items,
        "memory": layout.budget,
        "memory_per_worker": asdict(division),
        "batches_handed_out": handed_out,
        "requests": epoch.requests,
        "bytes": epoch.nbytes,
        "round_trips_to_first": epoch.round_trips,
        "seconds_to_first": round(first, 4),
        "seconds_at_least": None if epoch.nbytes is None else round(first + epoch.nbytes / bandwidth, 3),
        "shuffle_window": round(epoch.window_share, 4),
        "shuffle_distance": round(epoch.neighbour_distance, 4),
        "walked": round(epoch.walked, 4),
    }


def _text(name: str, value: Any) -> str:
    from lazystore.commands.values import size_text

    if value is None:
        return "not foreseen: the chunks are compressed, or made from other files"
    if name == "memory_per_worker":
        return ", ".join(f"{part.replace('_', ' ')} {size_text(size)}" for part, size in value.items() if size)
    if name in ("memory", "bytes", "batches_handed_out"):
        return size_text(value)
    if name.startswith("seconds"):
        return f"{value:g} s"
    if name == "shuffle_window":
        return f"{value:.1%} of a worker's part"
    if name == "shuffle_distance":
        return f"{value:.1%} of a uniform shuffle's, between items that follow each other"
    if name == "walked":
        return f"{value:.1%} of the epoch; the rest is taken to be like it"
    return f"{value:,}"
