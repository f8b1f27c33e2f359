"""Selections against plain lists of (chunk, number), and against what LitData selected."""

from __future__ import annotations

import json
import pickle
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazystore.errors import ConfigError, ItemIndexError
from lazystore.streaming.litdata_order import litdata_route
from lazystore.streaming.order import ListLeg, OrderSpec, RangeLeg, Shape, Topology, WindowLeg
from lazystore.streaming.subset import Selection, split, subsample, subset

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "orders" / "litdata-0.2.76-subsets.json").read_text())
CASES = GOLDEN["cases"]

Place = tuple[int, int]

counts_strategy = st.lists(st.integers(0, 9), max_size=8)


def golden_counts() -> list[int]:
    full, rest = divmod(GOLDEN["count"], GOLDEN["chunk_size"])
    return [GOLDEN["chunk_size"]] * full + [rest] * (rest > 0)


def starts_of(counts: list[int]) -> list[int]:
    return [0, *accumulate(counts)]


def places(selection: Selection) -> list[Place]:
    return [selection.locate(position) for position in range(len(selection))]


def items(selection: Selection, counts: list[int]) -> list[int]:
    starts = starts_of(counts)
    return [starts[chunk] + number for chunk, number in places(selection)]


def all_places(counts: list[int]) -> list[Place]:
    return [(chunk, number) for chunk, count in enumerate(counts) for number in range(count)]


def scattered(counts: list[int], data: st.DataObject) -> tuple[Selection, list[Place]]:
    """A selection of a selection, and the same by lists."""
    model = all_places(counts)
    selection = Selection.whole(counts)
    for _ in range(data.draw(st.integers(0, 2))):
        asked = data.draw(st.lists(st.integers(-len(model), len(model) - 1), max_size=20)) if model else []
        if data.draw(st.booleans()):
            begin, end = sorted(data.draw(st.tuples(st.integers(0, 60), st.integers(0, 60))))
            selection, model = subset(selection, slice(begin, end)), model[begin:end]
        else:
            selection, model = subset(selection, asked), [model[i] for i in asked]
    return selection, model


# -- the value ------------------------------------------------------------------------------


@given(counts_strategy)
def test_a_whole_selection_is_the_dataset(counts: list[int]) -> None:
    selection = Selection.whole(counts)
    assert places(selection) == all_places(counts)
    assert list(selection.shape(Shape(counts, counts)).counts) == counts


@given(counts_strategy, st.data())
def test_subsets_of_subsets_are_what_lists_give(counts: list[int], data: st.DataObject) -> None:
    selection, model = scattered(counts, data)
    assert places(selection) == model
    assert [selection.locate(-1 - back) for back in range(len(model))] == model[::-1]
    assert len(selection) == len(model)


@given(counts_strategy, st.data())
def test_slices_mean_what_they_mean_for_lists(counts: list[int], data: st.DataObject) -> None:
    model = all_places(counts)
    asked = data.draw(st.slices(len(model)))
    assert places(subset(Selection.whole(counts), asked)) == model[asked]


def test_neighbours_are_one_run_and_strangers_are_not() -> None:
    selection = subset(Selection.whole([5, 5]), [2, 3, 4, 5, 6, 6, 0])
    runs = list(zip(selection.chunks, selection.firsts, selection.ends, strict=True))
    assert runs == [(0, 2, 3), (1, 0, 5), (1, 1, 6), (0, 0, 7)]


def test_a_run_takes_24_bytes() -> None:
    mixed = subset(Selection.whole([100_000]), np.random.default_rng(1).permutation(100_000))
    assert len(pickle.dumps(mixed)) <= 24 * len(mixed.ends) + 300
    assert len(pickle.dumps(subset(Selection.whole([100_000]), range(500, 90_000)))) < 400


def test_selections_travel_by_pickle() -> None:
    selection = subset(Selection.whole([4, 4]), [7, 1, 1])
    assert places(pickle.loads(pickle.dumps(selection))) == [(1, 3), (0, 1), (0, 1)]


def test_the_digest_names_what_is_selected() -> None:
    whole = Selection.whole([3, 4])
    assert whole.digest() == Selection.whole([3, 4]).digest() == subset(whole, slice(None)).digest()
    others = [subset(whole, some) for some in ([0], [1], [0, 1], [1, 0], slice(1, None))]
    assert len({whole.digest(), *(other.digest() for other in others)}) == 6
    assert whole.digest().hex() == "8f1569a5511bbaf2c66efabe76a317ad"


@pytest.mark.parametrize("position", [7, -8, 10**20])
def test_a_position_outside_is_an_index_error(position: int) -> None:
    with pytest.raises(ItemIndexError, match=str(position)):
        Selection.whole([3, 4]).locate(position)


# -- subset ---------------------------------------------------------------------------------


@pytest.mark.parametrize("indices", [[7], [0, -8], range(5, 9), np.array([10], dtype=np.uint8)])
def test_a_subset_of_items_that_are_not_there_is_refused(indices: Any) -> None:
    with pytest.raises(ItemIndexError, match="of 7 items"):
        subset(Selection.whole([3, 4]), indices)


@pytest.mark.parametrize("indices", [[0.0, 1.0], [True, False], np.array([True]), [[1]], ["a"], 3])
def test_what_is_no_sequence_of_ints_is_refused(indices: Any) -> None:
    with pytest.raises(ConfigError, match="ints"):
        subset(Selection.whole([3, 4]), indices)


def test_an_empty_subset_is_empty() -> None:
    assert len(subset(Selection.whole([3, 4]), [])) == len(subset(Selection.whole([]), slice(3))) == 0


@pytest.mark.parametrize("case", [case for case in CASES if case["call"] == "subset"])
def test_subsets_are_litdatas(case: dict[str, Any]) -> None:
    counts = golden_counts()
    assert items(subset(Selection.whole(counts), case["indices"]), counts) == case["items"]


# -- subsample ------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [case for case in CASES if case["call"] == "subsample"])
def test_subsamples_and_their_chunkwise_epochs_are_litdatas(case: dict[str, Any]) -> None:
    counts = golden_counts()
    selection = subsample(Selection.whole(counts), case["fraction"], shuffle=case["shuffle"], seed=case["seed"])
    assert items(selection, counts) == case["items"]
    if case["shuffle"]:
        spec = OrderSpec("litdata", case["seed"], 1 << 20, 1 << 16, False)
        route = litdata_route(spec, selection.shape(Shape(counts, counts)), Topology(), 1)
        assert emitted(selection.legs(route.legs(), starts_of(counts)), counts) == case["epoch"]
    else:
        assert case["epoch"] == case["items"]


@given(counts_strategy, st.floats(0.01, 3.5), st.booleans())
def test_a_subsample_has_each_item_as_often_as_its_fraction_says(
    counts: list[int], fraction: float, shuffle: bool
) -> None:
    got = items(subsample(Selection.whole(counts), fraction, shuffle=shuffle), counts)
    total = sum(counts)
    assert abs(len(got) - total * fraction) <= 1
    often = [got.count(item) for item in range(total)]
    assert all(int(fraction) <= times <= int(fraction) + 1 for times in often)


@pytest.mark.parametrize("fraction", [0, 0.0, -0.5, float("nan"), float("inf"), True, "0.5", None])
def test_a_fraction_that_is_no_number_above_0_is_refused(fraction: Any) -> None:
    with pytest.raises(ConfigError, match="subsample="):
        subsample(Selection.whole([3]), fraction)


def test_all_bits_of_a_seed_count() -> None:
    whole = Selection.whole([2] * 50)
    seeds = (5, 5 + 2**32, 5 + 2**63)
    assert len({subsample(whole, 0.5, shuffle=True, seed=seed).digest() for seed in seeds}) == 3


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(ConfigError, match="seed="):
        subsample(Selection.whole([3]), 0.5, shuffle=True, seed=seed)
    with pytest.raises(ConfigError, match="seed="):
        split(Selection.whole([3]), [0.5], seed=seed)


# -- split ----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [case for case in CASES if case["call"] == "split"])
def test_splits_of_whole_items_are_litdatas(case: dict[str, Any]) -> None:
    counts = golden_counts()
    parts = split(Selection.whole(counts), case["splits"], seed=case["seed"], shuffle=case["shuffle"])
    assert [items(part, counts) for part in parts] == case["items"]


weights_strategy = st.lists(st.integers(0, 50), min_size=1, max_size=6).filter(any)


@given(counts_strategy, weights_strategy, st.booleans(), st.booleans(), st.integers(0, 2**32 - 1))
def test_splits_are_disjoint_exact_within_an_item_and_leave_nothing_out(
    counts: list[int], weights: list[int], rest: bool, shuffle: bool, seed: int
) -> None:
    whole = sum(weights) + 7 * rest
    shares = [weight / whole for weight in weights]
    parts = split(Selection.whole(counts), shares, seed=seed, shuffle=shuffle)
    got = [item for part in parts for item in items(part, counts)]
    total = sum(counts)
    assert len(set(got)) == len(got)
    for part, weight in zip(parts, weights, strict=True):
        assert abs(len(part) - Fraction(total * weight, whole)) < 1
    if rest:
        assert abs(len(got) - Fraction(total * sum(weights), whole)) < 1
    else:
        assert sorted(got) == list(range(total))


def test_a_split_is_the_same_every_time_and_another_for_another_seed() -> None:
    whole = Selection.whole([5] * 40)
    digests = [[part.digest() for part in split(whole, [0.6, 0.4], seed=seed)] for seed in (1, 1, 2)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("splits", [[], [0.6, 0.5], [-0.1], [1.1], [float("nan")], ["0.5"], [True], [0.5, 0.5, 1e-6]])
def test_shares_that_cannot_be_are_refused(splits: Any) -> None:
    with pytest.raises(ConfigError, match="split"):
        split(Selection.whole([10]), splits)


def test_shares_that_sum_to_one_only_on_paper_are_taken() -> None:
    for splits in ([0.1] * 10, [0.7, 0.2, 0.1], [1 / 3] * 3, [1 / 49] * 49, [0.1, 0.2, 0.7], [1, 0]):
        parts = split(Selection.whole([1000]), splits)
        assert sum(map(len, parts)) == 1000
        assert all(abs(len(part) - 1000 * share) < 1 for part, share in zip(parts, splits, strict=True))


@pytest.mark.parametrize("seed", range(8))
def test_measured_shares_of_a_whole_leave_nothing_out(seed: int) -> None:
    shares = np.random.default_rng(seed).dirichlet([1.0] * 7).tolist()
    assert sum(map(len, split(Selection.whole([1000]), shares))) == 1000


# -- orders over a selection ----------------------------------------------------------------


def emitted(legs: Any, counts: list[int]) -> list[int]:
    """Global numbers as the engine would emit them; every span is inside its chunk."""
    starts = starts_of(counts)
    out: list[int] = []
    for leg in legs:
        if isinstance(leg, RangeLeg):
            out += range(leg.first, leg.last)
        elif isinstance(leg, ListLeg):
            out += leg.items
        else:
            for span in (*leg.enter, *leg.leave):
                assert 0 <= span.first < span.last <= counts[span.chunk]
            laid = [starts[group.span.chunk] + number for group in leg.groups for number in group.numbers]
            emission = dict(zip(leg.places, laid, strict=True))
            out += [emission[place] for place in range(leg.skip, len(laid))]
    return out


@given(counts_strategy, st.data(), st.sampled_from([1, 40, 1 << 20]))
def test_an_order_over_the_runs_comes_back_in_the_datasets_numbers(
    counts: list[int], data: st.DataObject, window: int
) -> None:
    selection, model = scattered(counts, data)
    shape = selection.shape(Shape(counts, [10 * count for count in counts]))
    assert sum(shape.counts) == len(selection)
    assert all(10 * own <= nbytes for own, nbytes in zip(shape.counts, shape.nbytes, strict=True))
    route = litdata_route(OrderSpec("litdata-0.2.70", 42, window, 1, False), shape, Topology(), 1)
    starts = starts_of(counts)
    of_runs = emitted(route.legs(), list(shape.counts))
    expected = [starts[model[at][0]] + model[at][1] for at in of_runs]
    assert emitted(selection.legs(route.legs(), starts), counts) == expected


@given(counts_strategy, st.data())
def test_any_range_of_positions_comes_back_as_the_datasets_ranges(counts: list[int], data: st.DataObject) -> None:
    selection, model = scattered(counts, data)
    starts = starts_of(counts)
    begin, end = sorted(data.draw(st.tuples(*[st.integers(0, len(selection))] * 2)))
    legs = list(selection.legs([RangeLeg(begin, end)], starts))
    assert emitted(legs, counts) == [starts[chunk] + number for chunk, number in model[begin:end]]
    assert all(len(leg) > 0 for leg in legs)


def test_runs_that_follow_on_are_one_range_and_short_ones_one_list() -> None:
    counts = [50, 50, 50]
    starts = starts_of(counts)
    assert list(Selection.whole(counts).legs([RangeLeg(10, 140)], starts)) == [RangeLeg(10, 140)]
    selection = subset(Selection.whole(counts), [*range(20, 60), 3, 9, 4, *range(100, 120)])
    legs = list(selection.legs([RangeLeg(0, len(selection))], starts))
    assert [type(leg) for leg in legs] == [RangeLeg, ListLeg, RangeLeg]
    assert emitted(legs, counts) == items(selection, counts)


def test_many_short_runs_are_lists_of_bounded_length() -> None:
    counts = [20_000]
    selection = subset(Selection.whole(counts), range(0, 20_000, 2))
    legs = list(selection.legs([RangeLeg(0, 10_000)], starts_of(counts)))
    assert {type(leg) for leg in legs} == {ListLeg}
    assert max(map(len, legs)) <= 4096
    assert emitted(legs, counts) == list(range(0, 20_000, 2))


def test_windows_keep_their_places_and_what_they_leave_out() -> None:
    counts = [30, 30]
    selection = subset(Selection.whole(counts), range(20, 50))
    route = litdata_route(
        OrderSpec("litdata", 1, 1 << 20, 1 << 10, False), selection.shape(Shape(counts, counts)), Topology(), 1
    )
    for before, after in zip(route.legs(), selection.legs(route.legs(), starts_of(counts)), strict=True):
        assert isinstance(before, WindowLeg) and isinstance(after, WindowLeg)
        assert (after.places, after.skip, len(after)) == (before.places, before.skip, len(before))
        assert all((span.chunk, span.first, span.last) in {(0, 20, 30), (1, 0, 20)} for span in after.enter)
