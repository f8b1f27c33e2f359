"""Resume against whole epochs played out: stop anywhere, any number of times, on any ranks and workers.

The model plays the routes of all readers and takes batches from workers in turn, as torch does; a resumed run has to
yield what the uninterrupted one would have, or, on other ranks and workers, every remaining item exactly once.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazystore.errors import LazyStoreError
from lazystore.streaming.order import ListLeg, OrderSpec, RangeLeg, Route, Shape, Span, Topology, make_route, share
from lazystore.streaming.resume import MAX_RUNS, Position, check, consumed, parse, remaining_route

FINGERPRINT = "0123456789abcdef"
OWN = ["sequential", "window", "global"]
KINDS = [*OWN, "litdata", "litdata-0.2.70"]
MOSAIC = ["mosaic-py1e", "mosaic-py1s", "mosaic-py1br"]  # these repeat items, to give every rank as many


def play(route: Route, shape: Shape, start: int = 0, stop: int | None = None) -> list[int]:
    """The global numbers a route emits, while checking that every leg keeps to the spans it has entered."""
    firsts = [0]
    for count in shape.counts:
        firsts.append(firsts[-1] + count)
    emitted: list[int] = []
    resident: Counter[Span] = Counter()
    for leg in route.legs(start, stop):
        if isinstance(leg, RangeLeg):
            out = list(range(leg.first, leg.last))
        elif isinstance(leg, ListLeg):
            out = list(leg.items)
        else:
            resident.update(leg.enter)
            places: dict[int, int] = {}
            at = iter(leg.places)
            for span, numbers in leg.groups:
                assert not numbers or resident[span], f"{span} is used but not entered"
                for number in numbers:
                    assert span.first <= number < span.last
                    places[next(at)] = firsts[span.chunk] + number
            assert sorted(places) == list(range(len(leg.places)))
            out = [places[place] for place in range(leg.skip, len(places))]
            resident.subtract(leg.leave)
            assert min(resident.values(), default=0) >= 0, "a span is left that was not entered"
        assert len(out) == len(leg) > 0
        emitted += out
    assert not +resident, "spans are never left"
    return emitted


def in_turn(parts: list[list[int]], batch_size: int) -> list[int]:
    """One batch from each worker in turn, those with no more passed over."""
    left = [list(part) for part in parts]
    out: list[int] = []
    while any(left):
        for part in left:
            out += part[:batch_size]
            del part[:batch_size]
    return out


def topologies(world: int, workers: int, batch_size: int) -> Iterator[list[Topology]]:
    for rank in range(world):
        yield [Topology(rank, world, worker, workers, batch_size) for worker in range(workers)]


def ranks_left(position: Position, shape: Shape, setting: tuple[int, int, int]) -> list[list[int]]:
    """What each rank yields from the position on, its loader beginning with worker 0 as every loader does."""
    position = check(parse(json.loads(json.dumps(position.to_json_dict()))), position)
    return [loaded(position, shape, readers) for readers in topologies(*setting)]


def loaded(position: Position, shape: Shape, readers: list[Topology]) -> list[int]:
    routes = [remaining_route(position, shape, reader) for reader in readers]
    parts = [play(route, shape) for route in routes]
    assert [len(part) for part in parts] == [route.length for route in routes]
    return in_turn(parts, readers[0].batch_size)


counts = st.lists(st.one_of(st.just(0), st.integers(0, 24)), min_size=1, max_size=7)
settings = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5))


paths = st.lists(st.one_of(settings, st.just((2, 2, 3))), min_size=2, max_size=5)


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    chunks = draw(counts)
    known = draw(st.booleans())
    return Shape(chunks, [draw(st.integers(1, 40)) * count if known else 0 for count in chunks])


@st.composite
def specs(draw: st.DrawFn, kinds: Sequence[str] = KINDS) -> OrderSpec:
    kind = draw(st.sampled_from(kinds))
    return OrderSpec(
        kind=kind,
        seed=draw(st.integers(0, 5)),
        window_bytes=draw(st.sampled_from([1, 100, 400, 10**6])),
        block_bytes=draw(st.sampled_from([1, 50, 200])),
        drop_last=draw(st.booleans()),
        **({"num_canonical_nodes": 1, "shuffle_block_size": draw(st.sampled_from([0, 4]))} if kind in MOSAIC else {}),
    )


@given(st.integers(0, 200), st.lists(st.integers(0, 40), min_size=1, max_size=5), st.integers(1, 7))
def test_consumed_is_what_taking_turns_consumes(yielded: int, lengths: list[int], batch_size: int) -> None:
    turns = in_turn([[worker] * length for worker, length in enumerate(lengths)], batch_size)[:yielded]
    assert consumed(yielded, lengths, batch_size) == [turns.count(worker) for worker in range(len(lengths))]


@given(st.integers(0, 300), settings, st.booleans())
def test_shares_cover_everything_once_in_order(total: int, setting: tuple[int, int, int], drop_last: bool) -> None:
    world, _, batch_size = setting
    ranks = [[share(total, reader, drop_last) for reader in readers] for readers in topologies(*setting)]
    ends = [end for rank in ranks for part in rank for end in part]
    covered = total // world * world if drop_last else total
    assert ends[0] == 0 and ends[-1] == covered and ends[1:-1:2] == ends[2::2]
    for rank in ranks:
        length = rank[-1][1] - rank[0][0]
        assert length in {total // world, total // world + (not drop_last)}
        batches = sum(-(-(b - a) // batch_size) for a, b in rank)
        assert batches == -(-length // batch_size), "workers make no more batches than there would be without"
        assert sum((b - a) % batch_size > 0 for a, b in rank) <= 1


@given(shapes(), specs([*KINDS, *MOSAIC]), st.integers(1, 3), settings, st.data())
def test_stopped_anywhere_and_resumed_is_the_uninterrupted_order(
    shape: Shape, spec: OrderSpec, epoch: int, setting: tuple[int, int, int], data: st.DataObject
) -> None:
    fresh = Position(FINGERPRINT, spec, epoch)
    whole = ranks_left(fresh, shape, setting)
    direct = [
        in_turn([play(make_route(spec, shape, reader, epoch), shape) for reader in readers], setting[2])
        for readers in topologies(*setting)
    ]
    assert whole == direct
    longest = max(map(len, whole))
    unit = setting[2] if setting[1] > 1 else 1  # loaders with workers stop where a batch ends
    first = data.draw(st.integers(0, -(-longest // unit))) * unit
    second = data.draw(st.integers(0, -(-max(0, longest - first) // unit))) * unit
    reader = Topology(0, *setting[:1], 0, *setting[1:])
    once = fresh.advanced(reader, first)
    assert ranks_left(once, shape, setting) == [rank[first:] for rank in whole]
    twice = once.advanced(reader, second)
    assert ranks_left(twice, shape, setting) == [rank[first + second :] for rank in whole]
    assert len(twice.history) <= 1


@given(shapes(), specs([*KINDS, *MOSAIC]), settings, st.integers(0, 60))
def test_stopped_inside_a_batch_nothing_repeats_and_nothing_is_missed(
    shape: Shape, spec: OrderSpec, setting: tuple[int, int, int], step: int
) -> None:
    fresh = Position(FINGERPRINT, spec, 1)
    rest = fresh.advanced(Topology(0, *setting[:1], 0, *setting[1:]), step)
    expected = Counter(item for rank in ranks_left(fresh, shape, setting) for item in rank[step:])
    left = ranks_left(rest, shape, setting)
    missed = expected - Counter(item for rank in left for item in rank)
    assert missed.total() == expected.total() - sum(map(len, left)), "an item came twice"
    assert missed.total() < setting[0] if spec.drop_last else not missed


@given(shapes(), specs(), paths, st.data())
def test_on_other_ranks_and_workers_every_remaining_item_comes_once(
    shape: Shape, spec: OrderSpec, path: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    position = Position(FINGERPRINT, spec, 2)
    total = sum(shape.counts)
    seen: list[int] = []
    for setting in path[:-1]:
        ranks = ranks_left(position, shape, setting)
        step = data.draw(st.integers(0, max(map(len, ranks))))
        for rank in ranks:
            seen += rank[:step]
        reader = Topology(setting[0] - 1, setting[0], setting[1] - 1, setting[1], setting[2])
        position = position.advanced(reader, step)
    ranks = ranks_left(position, shape, path[-1])
    for rank in ranks:
        seen += rank
    assert len(set(seen)) == len(seen), "an item came twice"
    if spec.drop_last:
        assert len({len(rank) for rank in ranks}) == 1
        lost = sum(world * (1 if spec.kind in OWN else batch_size) - 1 for world, _, batch_size in path)
        assert len(seen) >= total - lost
    else:
        assert sorted(seen) == list(range(total))


@given(shapes(), specs([*KINDS, *MOSAIC]), settings, st.lists(settings, max_size=2), st.data())
def test_a_worker_resumes_at_its_own_position(
    shape: Shape,
    spec: OrderSpec,
    setting: tuple[int, int, int],
    before: list[tuple[int, int, int]],
    data: st.DataObject,
) -> None:
    position = Position(FINGERPRINT, spec, 1)
    for world, workers, batch_size in before:
        position = position.advanced(Topology(0, world, 0, workers, batch_size), data.draw(st.integers(0, 10)))
    world, workers, batch_size = setting
    reader = Topology(
        data.draw(st.integers(0, world - 1)), world, data.draw(st.integers(0, workers - 1)), workers, batch_size
    )
    route = remaining_route(position, shape, reader)
    whole = play(route, shape)
    for _ in range(2):  # saved and loaded twice in a row
        step = data.draw(st.integers(0, route.length))
        state = json.dumps(position.in_worker(reader, route.taken + step).to_json_dict())
        assert len(state) <= 1024
        position = check(parse(json.loads(state)), position)
        route = remaining_route(position, shape, reader)
        whole = whole[step:]
        assert play(route, shape) == whole


@given(shapes(), specs(), settings, st.data())
def test_legs_between_any_two_positions(
    shape: Shape, spec: OrderSpec, setting: tuple[int, int, int], data: st.DataObject
) -> None:
    position = Position(FINGERPRINT, spec, 1).advanced(Topology(0, 2, 0, 2, 2), data.draw(st.integers(0, 20)))
    world, workers, batch_size = setting
    route = remaining_route(position, shape, Topology(0, world, workers - 1, workers, batch_size))
    whole = play(route, shape)
    start = data.draw(st.integers(0, route.length))
    stop = data.draw(st.integers(start, route.length))
    assert play(route, shape, start, stop) == whole[start:stop]


@given(specs([*KINDS, *MOSAIC]), st.lists(st.tuples(settings, st.integers(1, 3)), max_size=MAX_RUNS))
def test_states_survive_json_and_stay_small(spec: OrderSpec, steps: list[tuple[tuple[int, int, int], int]]) -> None:
    position = Position(FINGERPRINT, spec, 7)
    for (world, workers, batch_size), items in steps:
        position = position.advanced(Topology(0, world, 0, workers, batch_size), items)
    text = json.dumps(position.to_json_dict())
    assert len(text) <= 1024
    assert parse(json.loads(text)) == position


_json = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20)),
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(st.text(max_size=10), inner, max_size=5)),
    max_leaves=8,
)


@given(_json, st.data())
def test_damaged_states_are_refused_by_a_typed_error(junk: object, data: st.DataObject) -> None:
    good = Position(FINGERPRINT, OrderSpec("window", 1, 2, 3, True), 1).advanced(Topology(0, 2, 0, 2, 2), 5)
    state = good.in_worker(Topology(0, 2, 1, 2, 2), 3).to_json_dict()
    place = data.draw(st.sampled_from(sorted({*state, *(f"order.{name}" for name in state["order"])})))
    outer, _, inner = place.partition(".")
    if inner:
        state[outer][inner] = junk
    else:
        state[outer] = junk
    try:
        again = parse(state)
    except LazyStoreError as error:
        assert outer in str(error)
    else:
        assert parse(json.loads(json.dumps(again.to_json_dict()))) == again
    with pytest.raises(LazyStoreError):
        parse(junk)
