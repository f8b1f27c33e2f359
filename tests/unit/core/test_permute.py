"""Keyed permutations: every element once, no trace of the order they came in, the same for ever."""

from __future__ import annotations

import itertools
import math
import pickle
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import permute as model

from lazystore._core.permute import Permutation, derive_key, shuffled
from lazystore.errors import ConfigError, ItemIndexError

U64 = 2**64 - 1
keys = st.integers(0, U64)
AROUND_POWERS = sorted({2**k + d for k in range(11, 17) for d in (-1, 0, 1)})


def elements(n: int, key: int) -> list[int]:
    return list(Permutation(n, key).fill(0, n))


def z_score(counts: Sequence[int], cells: int) -> float:
    """Pearson's statistic of equally likely cells, in standard deviations from what chance gives."""
    mean = sum(counts) / cells
    statistic = sum((count - mean) ** 2 for count in counts) / mean + (cells - len(counts)) * mean
    return (statistic - (cells - 1)) / math.sqrt(2 * (cells - 1))


# -- for ever -------------------------------------------------------------------------------


GOLDEN_PERMUTATIONS = {
    (1, 7): [0],
    (2, 7): [1, 0],
    (5, 42): [3, 1, 0, 2, 4],
    (10, 0): [9, 2, 4, 8, 1, 5, 7, 6, 0, 3],
    (16, U64): [6, 8, 3, 0, 15, 13, 14, 10, 1, 12],
    (300, 42): [156, 64, 299, 113, 203, 120, 28, 27, 69, 173],
    (70000, 42): [6058, 37740, 66149, 3847, 64063, 53294, 16387, 22167, 11179, 69535],
    (2**20 + 1, 42): [564457, 979476, 191868, 225134, 164365, 996377, 351083, 1017575, 755486, 739411],
    (10**12, 42): [
        261788068853,
        610357332558,
        352086899518,
        779681916941,
        437627961630,
        625525774506,
        620918705686,
        31754139971,
        423866666739,
        848522266909,
    ],
    (2**62, 42): [
        3879154159925295741,
        1352974605171455523,
        2229953648107112535,
        267924116274109146,
        2265539049299864429,
        2594260858312431949,
        1228708955930027108,
        4101980611969537185,
        4097820361988812448,
        2119232209621107759,
    ],
}


@pytest.mark.parametrize(("n", "key"), GOLDEN_PERMUTATIONS)
def test_permutations_are_those_they_always_were(n: int, key: int) -> None:
    assert list(Permutation(n, key).fill(0, min(n, 16)))[:10] == GOLDEN_PERMUTATIONS[n, key]


def test_shuffles_are_those_they_always_were() -> None:
    assert list(shuffled(0, 10, 42)) == [8, 3, 6, 5, 4, 0, 9, 2, 1, 7]
    assert list(shuffled(100, 12, 0)) == [105, 111, 106, 107, 103, 101, 102, 109, 108, 100, 104, 110]
    assert list(shuffled(2**32 - 5, 5, U64)) == [4294967292, 4294967293, 4294967291, 4294967294, 4294967295]


def test_keys_are_those_they_always_were() -> None:
    assert [derive_key(0), derive_key(42), derive_key(42, 1), derive_key(42, 1, 2), derive_key(U64, U64)] == [
        16294208416658607535,
        13679457532755275413,
        4299003450801849594,
        7358153425039214811,
        7501348107252723618,
    ]


# -- permutations ---------------------------------------------------------------------------


def test_every_element_comes_once_for_every_small_size() -> None:
    for n in range(1, 2001):
        assert sorted(elements(n, n)) == list(range(n)), n


@pytest.mark.parametrize("n", AROUND_POWERS)
def test_every_element_comes_once_around_powers_of_two(n: int) -> None:
    assert sorted(elements(n, 5)) == list(range(n))


@given(st.integers(1, 3000), keys)
def test_elements_are_the_models(n: int, key: int) -> None:
    assert elements(n, key) == model.PermutationModel(n, key).all()


@given(st.integers(1, 2**62), keys, st.data())
def test_large_ones_are_the_models_and_turn_back(n: int, key: int, data: st.DataObject) -> None:
    permutation = Permutation(n, key)
    position = data.draw(st.integers(0, n - 1))
    element = permutation.forward(position)
    assert element == model.PermutationModel(n, key).forward(position)
    assert 0 <= element < n
    assert permutation.inverse(element) == position


@given(st.integers(1, 10**6), keys, st.data())
def test_a_run_is_the_single_elements(n: int, key: int, data: st.DataObject) -> None:
    permutation = Permutation(n, key)
    first = data.draw(st.integers(0, n))
    count = data.draw(st.integers(0, min(100, n - first)))
    assert list(permutation.fill(first, count)) == [permutation.forward(first + k) for k in range(count)]


def test_permutations_pickle_and_know_their_size() -> None:
    permutation = pickle.loads(pickle.dumps(Permutation(1000, U64)))
    assert len(permutation) == 1000
    assert list(permutation.fill(0, 1000)) == elements(1000, U64)


@pytest.mark.parametrize("n", [0, -1, 2**62 + 1])
def test_sizes_out_of_range_are_refused(n: int) -> None:
    with pytest.raises(ConfigError, match="2\\*\\*62"):
        Permutation(n, 0)


@pytest.mark.parametrize(("first", "count"), [(0, 11), (10, 1), (-1, 1), (5, -1), (11, 0), (2**63 - 1, 2)])
def test_positions_out_of_range_are_refused(first: int, count: int) -> None:
    with pytest.raises(ItemIndexError, match=r"0 \.\. 9"):
        Permutation(10, 0).fill(first, count)


@pytest.mark.parametrize("number", [-1, 10, 2**62])
def test_elements_out_of_range_are_refused(number: int) -> None:
    with pytest.raises(ItemIndexError):
        Permutation(10, 0).forward(number)
    with pytest.raises(ItemIndexError):
        Permutation(10, 0).inverse(number)


# -- chance ---------------------------------------------------------------------------------


def by_permutation(n: int, key: int) -> tuple[int, ...]:
    return tuple(elements(n, key))


def by_shuffle(n: int, key: int) -> tuple[int, ...]:
    return tuple(shuffled(0, n, key))


@pytest.mark.parametrize("draw", [by_permutation, by_shuffle])
@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_every_order_of_a_few_is_equally_likely(draw: Callable[[int, int], tuple[int, ...]], n: int) -> None:
    orders = math.factorial(n)
    drawn = Counter(draw(n, derive_key(3, k)) for k in range(100 * orders))
    assert len(drawn) == orders
    assert abs(z_score(list(drawn.values()), orders)) < 4


@pytest.mark.parametrize("draw", [by_permutation, by_shuffle])
@pytest.mark.parametrize("n", [7, 17, 33, 60])
def test_every_element_is_equally_likely_everywhere(draw: Callable[[int, int], tuple[int, ...]], n: int) -> None:
    met: Counter[tuple[int, int]] = Counter()
    for k in range(4000):
        met.update(enumerate(draw(n, derive_key(9, n, k))))
    # a permutation has (n - 1) ** 2 degrees of freedom among its n ** 2 cells
    mean = 4000 / n
    statistic = sum((met[cell] - mean) ** 2 / mean for cell in itertools.product(range(n), range(n)))
    freedom = (n - 1) ** 2
    assert abs(statistic * (n - 1) / n - freedom) < 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("n", [1000, 2**14, 2**14 + 1, 100_003, 2**17])
def test_neighbours_know_nothing_of_each_other(n: int) -> None:
    middle, variance = (n - 1) / 2, (n * n - 1) / 12
    for key in range(3):
        row = [element - middle for element in elements(n, derive_key(1, key))]
        for lag in (1, 2, 3, 4, 8, 64, 256):
            products = sum(a * b for a, b in zip(row, row[lag:], strict=False))
            assert abs(products / variance / (n - lag)) < 5 / math.sqrt(n)


@pytest.mark.parametrize("n", [10**6, 2**40 + 1, 2**62])
def test_the_first_elements_are_spread_evenly(n: int) -> None:
    for key in range(3):
        drawn = Counter(element * 64 // n for element in Permutation(n, derive_key(2, key)).fill(0, 20_000))
        assert abs(z_score(list(drawn.values()), 64)) < 5


@pytest.mark.parametrize("n", [100, 5000, 200_000])
def test_keys_that_differ_in_one_bit_give_unrelated_orders(n: int) -> None:
    orders = [elements(n, key) for key in (0, 1, 2, 1 << 31, 1 << 63, U64)]
    for one, other in itertools.combinations(orders, 2):
        same = sum(a == b for a, b in zip(one, other, strict=True))
        assert same < 12  # one on average


# -- shuffles and keys ----------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.integers(0, 300), keys)
def test_shuffles_are_the_models(first: int, count: int, key: int) -> None:
    first = min(first, 2**32 - count)
    assert list(shuffled(first, count, key)) == model.shuffled(first, count, key)


def test_numbers_past_32_bits_are_refused() -> None:
    with pytest.raises(ConfigError, match="32 bits"):
        shuffled(2**32 - 1, 2, 0)


@given(keys, st.lists(keys, max_size=4))
def test_keys_are_the_models(seed: int, numbers: list[int]) -> None:
    assert derive_key(seed, *numbers) == model.derive_key(seed, *numbers)


def test_keys_of_small_numbers_are_all_different() -> None:
    made = {derive_key(*numbers) for n in range(1, 5) for numbers in itertools.product(range(10), repeat=n)}
    assert len(made) == 10 + 100 + 1000 + 10_000


@pytest.mark.parametrize("number", [-1, 2**64])
def test_numbers_past_64_bits_are_refused(number: int) -> None:
    with pytest.raises(OverflowError):
        derive_key(0, number)
