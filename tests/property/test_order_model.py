"""Any order, any readers: the model's items in the model's order, each once, from any position to any other."""

from __future__ import annotations

import pickle
from itertools import zip_longest

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import orders as model
from models.permute import PermutationModel
from support.routes import Item, Player

from lazystore._core.blocks import cut_blocks
from lazystore._core.permute import Permutation
from lazystore.streaming.order import OrderSpec, Shape, Topology, make_route, shard_length, share
from lazystore.streaming.windows import WindowRoute

KINDS = ["sequential", "window", "global"]
chunks = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 12), st.integers(0, 90)),
        st.one_of(st.just(0), st.integers(1, 3000)),
    ),
    max_size=14,
)
shapes = chunks.map(lambda rows: Shape([count for count, _ in rows], [size for _, size in rows]))
specs = st.builds(
    OrderSpec,
    kind=st.sampled_from([*KINDS, "window", "window"]),
    seed=st.one_of(st.integers(0, 5), st.integers(0, 2**64 - 1)),
    window_bytes=st.one_of(st.integers(1, 3000), st.integers(1, 100_000)),
    block_bytes=st.integers(1, 1000),
    drop_last=st.booleans(),
)
epochs = st.integers(1, 4)
worlds = st.integers(1, 4)
crews = st.integers(1, 3)
sizes = st.integers(1, 9)


@st.composite
def readers(draw: st.DrawFn) -> Topology:
    world, workers = draw(worlds), draw(crews)
    rank, worker = draw(st.integers(0, world - 1)), draw(st.integers(0, workers - 1))
    return Topology(rank, world, worker, workers, draw(sizes))


@given(specs, shapes, readers(), epochs)
def test_a_route_visits_what_the_model_does(spec: OrderSpec, shape: Shape, reader: Topology, epoch: int) -> None:
    route = make_route(spec, shape, reader, epoch)
    player = Player(shape.counts)
    items = player.play(route)
    assert items == model.reader_items(spec, shape.counts, shape.nbytes, reader, epoch)
    assert len(items) == route.length == shard_length(spec, shape, reader, epoch)
    if isinstance(route, WindowRoute):
        assert player.most_resident <= (route.window + 1) * route.together


@given(specs, shapes, readers(), epochs, st.data())
def test_legs_from_anywhere_to_anywhere_are_the_same_items(
    spec: OrderSpec, shape: Shape, reader: Topology, epoch: int, data: st.DataObject
) -> None:
    route = make_route(spec, shape, reader, epoch)
    whole = Player(shape.counts).play(route)
    cuts = sorted(data.draw(st.lists(st.integers(0, route.length), max_size=5)))
    again = pickle.loads(pickle.dumps(route))
    pieces = [
        Player(shape.counts).play(again, start, stop) for start, stop in zip_longest([0, *cuts], cuts, fillvalue=None)
    ]
    assert [item for piece in pieces for item in piece] == whole
    assert [len(piece) for piece in pieces[:-1]] == [b - a for a, b in zip([0, *cuts], cuts, strict=False)]


@given(specs, shapes, worlds, crews, sizes, epochs)
def test_all_readers_together_visit_every_item_once(
    spec: OrderSpec, shape: Shape, world: int, workers: int, batch_size: int, epoch: int
) -> None:
    ranks: list[list[Item]] = []
    for rank in range(world):
        rows = []
        for worker in range(workers):
            reader = Topology(rank, world, worker, workers, batch_size)
            rows.append(Player(shape.counts).play(make_route(spec, shape, reader, epoch)))
        ranks.append(_in_turn(rows, batch_size))
    visited = [item for rank in ranks for item in rank]
    everything = {(chunk, k) for chunk, count in enumerate(shape.counts) for k in range(count)}
    assert len(set(visited)) == len(visited)
    if spec.drop_last:
        assert {len(rank) for rank in ranks} == {len(everything) // world}
        assert everything.issuperset(visited)
    else:
        assert set(visited) == everything
        assert max(map(len, ranks)) - min(map(len, ranks)) <= 1


def _in_turn(rows: list[list[Item]], batch_size: int) -> list[Item]:
    """Batches of the workers as a DataLoader takes them; only the last of all may be short."""
    batches = [[row[at : at + batch_size] for at in range(0, len(row), batch_size)] for row in rows]
    taken: list[list[Item]] = []
    for turn in zip_longest(*batches):
        assert None not in turn[: turn.index(None)] if None in turn else True
        assert not any(turn[turn.index(None) :]) if None in turn else True
        taken += [batch for batch in turn if batch is not None]
    assert all(len(batch) == batch_size for batch in taken[:-1])
    return [item for batch in taken for item in batch]


@given(st.integers(0, 500), readers(), st.booleans())
def test_shares_are_the_models(total: int, reader: Topology, drop_last: bool) -> None:
    first, last = share(total, reader, drop_last)
    assert list(range(first, last)) == model.share(total, reader, drop_last)


@given(shapes, st.integers(1, 1000), st.integers(1, 40), st.integers(0, 2**64 - 1), st.booleans(), st.data())
def test_blocks_cut_a_part_without_rest(
    shape: Shape, block_bytes: int, block_items: int, key: int, is_permuted: bool, data: st.DataObject
) -> None:
    n = len(shape.counts)
    order = Permutation(n, key) if n and is_permuted else None
    numbers = PermutationModel(n, key).all() if order is not None else list(range(n))
    first = data.draw(st.integers(0, shape.total))
    last = data.draw(st.integers(first, shape.total))
    blocks = cut_blocks(
        shape.counts, shape.nbytes, order, first, last, block_bytes=block_bytes, block_items=block_items
    )
    spans = [blocks.span(block) for block in range(len(blocks))]
    items = [(chunk, k) for chunk, begin, end in spans for k in range(begin, end)]
    assert items == [(chunk, k) for chunk in numbers for k in range(shape.counts[chunk])][first:last]
    lengths = [end - begin for _, begin, end in spans]
    assert all(1 <= length <= block_items for length in lengths)
    assert blocks.items == last - first
    assert blocks.largest == max(lengths, default=0)
    if not blocks.items:
        return
    turns = Permutation(len(blocks), key)
    laid = [lengths[block] for block in turns.fill(0, len(blocks))]
    position, before = blocks.find(turns, item := data.draw(st.integers(0, blocks.items - 1)))
    assert before == sum(laid[:position]) <= item < before + laid[position]
    assert blocks.count(turns, position, len(blocks)) == blocks.items - before


@pytest.mark.parametrize("kind", ["window", "global"])
def test_seeds_epochs_and_readers_draw_orders_of_their_own(kind: str) -> None:
    shape = Shape([30] * 40, [3000] * 40)
    drawn = set()
    for window_bytes in (10_000, 10**6):
        for seed in (0, 1, 2, 2**63):
            for epoch in (0, 1, 2, 3):
                spec = OrderSpec(kind, seed, window_bytes, 500, False)
                drawn.add(tuple(Player(shape.counts).play(make_route(spec, shape, Topology(), epoch))))
    assert len(drawn) == (32 if kind == "window" else 16)
