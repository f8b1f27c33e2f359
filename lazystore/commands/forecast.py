"""What an epoch will cost, as arithmetic: requests, bytes, round trips, quality of the shuffle.

Pure: no I/O, no clock. The order is the real one (``streaming.order``), and what its legs make the machinery fetch is
counted in ``footsteps``. Of long epochs a part is walked, and the rest taken to be like it. Chunks that are made
or inflated are fetched as their bytes tell: their requests are not foreseen.
"""

from __future__ import annotations

from dataclasses import dataclass

from lazystore.commands.footsteps import Footsteps, Tally
from lazystore.streaming.division import Division
from lazystore.streaming.order import OrderSpec, Shape, Topology, make_route
from lazystore.streaming.prefetch import window_bytes

__all__ = ["Epoch", "forecast"]

#: Items that are walked, over all readers.
MOST_ITEMS = 2_000_000


@dataclass(slots=True)
class Epoch:
    """What an epoch costs over all readers.

    Attributes:
        items: of all of it.
        requests, nbytes: for data, and their bytes; None: not foreseen for these chunks.
        round_trips: one after the other until the first item is there, the index included.
        window_share: share of a reader's part that waits in its shuffling window, 0..1.
        neighbour_distance: of items that follow each other, as a share of a uniform shuffle's.
        walked: share of the epoch that was walked.
    """

    items: int = 0
    requests: int | None = 0
    nbytes: int | None = 0
    round_trips: int = 1
    window_share: float = 0.0
    neighbour_distance: float = 0.0
    walked: float = 1.0


def forecast(
    shape: Shape, kind: str, division: Division, *, workers: int, batch: int, seed: int = 42, stride: int = 0,
    plain: bool = True,
) -> Epoch:  # fmt: skip
    """The first epoch of ``workers`` readers (at least 1) on remote storage.

    Parameters:
        shape: of the dataset.
        kind: the order's name.
        division: of each reader's budget.
        batch: items a batch.
        stride: bytes an item where no offsets are stored, else 0.
        plain: chunks are stored as they are read.
    """
    window, block = window_bytes(division.budget, opaque=not plain)
    spec = OrderSpec(kind, seed, window, block, False)
    epoch = Epoch(items=shape.total)
    fetched = Tally()
    walked = steps = 0
    distance = 0.0
    for worker in range(workers):
        route = make_route(spec, shape, Topology(0, 1, worker, workers, batch), 1)
        if not route.length:
            continue
        walk = Footsteps(division, shape, stride)
        walk.follow(route.legs(), max(1, MOST_ITEMS // workers))
        share = route.length / max(1, shape.total)
        fetched.add(walk.tally, route.length / walk.entered)
        fetched.add(walk.once, max(1.0, share * len(shape.counts) / max(1, walk.opened)))
        distance += walk.distance
        steps += walk.steps
        walked += walk.items
        epoch.round_trips = 1 + walk.first_trips
    epoch.requests = fetched.requests if plain else None
    epoch.nbytes = fetched.nbytes if plain else None
    epoch.walked = walked / max(1, shape.total)
    epoch.neighbour_distance = distance / steps / ((shape.total + 1) / 3) if steps else 0.0
    if kind != "sequential":
        part = sum(shape.nbytes) / workers
        epoch.window_share = 1.0 if kind == "global" else min(1.0, window / max(1.0, part))
    return epoch
