from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazystore.errors import ConfigError
from lazystore.lazy.predict import Gate, Markov, NextN, Stride, behaviour, majority


def keys(guesses: list[tuple[object, float]]) -> list[object]:
    return [key for key, _ in guesses]


def test_next_n_follows_whole_numbers_only() -> None:
    assert keys(NextN(3)([7, 2])) == [3, 4, 5]
    assert NextN()([]) == NextN()(["a"]) == NextN()([1.5]) == NextN()([True]) == []


@given(st.lists(st.integers(0, 3)))
def test_the_majority_is_what_more_than_half_are(values: list[int]) -> None:
    counts = Counter(values)
    assert majority(values) == next((value for value, count in counts.items() if 2 * count > len(values)), None)


@given(st.integers(-50, 50).filter(bool), st.integers(-1000, 1000), st.integers(3, 60))
def test_a_stride_is_found_in_either_direction(stride: int, start: int, length: int) -> None:
    history = [start + stride * number for number in range(length)]
    guesses = keys(Stride(count=8)(history))
    assert guesses == [history[-1] + stride * ahead for ahead in range(1, len(guesses) + 1)]
    assert 2 <= len(guesses) <= 8
    assert len(guesses) == 8 or length < 17, "a pattern that lasts is read further ahead"


@given(st.integers(1, 20), st.integers(0, 2**32))
def test_a_stride_is_found_among_strangers(stride: int, seed: int) -> None:
    """One key in four is none of the pattern's; strangers lead to no guesses, the pattern's own keys to right ones."""
    source = random.Random(seed)
    history: list[int] = []
    mine = right = 0
    for number in range(60):
        if number % 4 == 3:
            history.append(source.randrange(10**6, 10**9))
            assert Stride()(history) == []
        history.append(number * stride)
        guesses = keys(Stride()(history))
        if number > 20:
            mine += 1
            right += guesses[:2] == [(number + 1) * stride, (number + 2) * stride]
    assert right == mine


def test_no_stride_in_other_keys_in_noise_and_in_one_key_again_and_again() -> None:
    assert Stride()(["a", "b", "c"]) == Stride()([]) == Stride()([1, 2]) == []
    assert Stride()([5] * 30) == []
    source = random.Random(1)
    assert Stride()([source.randrange(10**9) for _ in range(40)]) == []


def taught(sequence: list[object], **settings: object) -> Markov:
    markov = Markov(**settings)  # type: ignore[arg-type]
    for key in sequence:
        markov.learn(key)
    return markov


def test_markov_guesses_the_path_that_was_taken_before() -> None:
    markov = taught(["home", "list", "item", "cart"] * 5)
    assert keys(markov(["home"])) == ["list", "item", "cart"]
    assert markov(["unknown"]) == markov([]) == []


def test_markov_says_nothing_of_what_was_seen_once_or_is_less_likely_than_not() -> None:
    assert taught(["a", "b"])(["a"]) == []
    assert taught(["a", "b", "a", "c", "a", "d"] * 4)(["a"]) == []
    likely = taught(["a", "b", "a", "b", "a", "b", "a", "c"] * 4, count=1)
    assert likely(["a"]) == [("b", 0.75)]


def test_markov_forgets_what_was_true_long_ago() -> None:
    markov = taught(["a", "old"] * 1000 + ["a", "new"] * 60, count=1)
    assert keys(markov(["a"])) == ["new"]


@given(st.lists(st.integers(0, 40), max_size=600))
def test_markov_is_bounded_and_gives_probabilities(sequence: list[int]) -> None:
    markov = taught(list(sequence), states=8)
    assert len(markov._after) <= 8
    assert all(len(followers) <= Markov.FOLLOWERS for followers in markov._after.values())
    for key in range(41):
        guesses = markov([key])
        assert len(guesses) <= 4 and all(0.5 <= score <= 1 for _, score in guesses)
        assert key not in keys(guesses) and len(set(keys(guesses))) == len(guesses)


def run(gate: Gate, sequence: list[int]) -> None:
    history: list[int] = []
    for key in sequence:
        gate.asked(key)
        history.append(key)
        for guess, _ in gate.guess(history):
            gate.issue(guess)


def test_a_gate_stays_open_for_what_comes_true() -> None:
    gate = Gate(NextN(2))
    run(gate, list(range(1000)))
    assert gate.is_open and gate.shut == 0 and gate.issued > 900
    assert gate.stats()["accuracy"] > 0.95


def test_a_gate_shuts_below_a_third_rests_and_tries_again() -> None:
    gate = Gate(NextN(1), window=64, rest=100)
    source = random.Random(3)
    wild = [source.randrange(10**9) for _ in range(5000)]
    run(gate, wild[:66])
    assert not gate.is_open and gate.issued == 64 and gate.guess([1, 2]) == []
    run(gate, wild[66:164])
    assert not gate.is_open
    run(gate, wild[164:167])
    assert gate.is_open, "tried again after its rest"
    run(gate, wild[167:300])
    assert gate.shut == 2 and not gate.is_open
    run(gate, wild[300:420])
    assert not gate.is_open, "failing again, it rests twice as long"
    run(gate, wild[420:])
    assert gate.issued < 0.2 * 5000


def test_a_gate_that_passes_again_is_forgiven() -> None:
    gate = Gate(NextN(1), window=16, rest=10)
    source = random.Random(3)
    run(gate, [source.randrange(10**9) for _ in range(400)])
    assert gate._rests > 1
    run(gate, list(range(2000)))
    assert gate.is_open and gate._rests == 1


def test_a_gate_teaches_its_predictor_also_while_it_is_shut() -> None:
    gate = Gate(Markov(), window=4, rest=1000)
    run(gate, [1, 2] * 3)
    gate._shut_for = 1000
    run(gate, [7, 8, 9] * 4)
    assert keys(gate.predictor([7])) == [8, 9]  # type: ignore[arg-type]


def test_a_record_of_behaviour_is_keys_scores_or_both() -> None:
    assert behaviour(["a", "b"]) == (["a", "b"], [], ())
    assert behaviour(iter("ab")) == (["a", "b"], [], ())
    assert behaviour({"a": 0.2, "b": 3}) == ([], [("b", 3), ("a", 0.2)], ())
    assert behaviour({"history": ["a"], "scores": {"x": 1.0}, "hint": [1]}) == (["a"], [("x", 1.0)], [1])
    assert behaviour({}) == ([], [], ())


@pytest.mark.parametrize("wrong", ["abc", b"abc", 7, {"a": "likely"}, {"a": True}, {"scores": {"a": None}}])
def test_anything_else_is_refused(wrong: object) -> None:
    with pytest.raises(ConfigError, match="user_behavior"):
        behaviour(wrong)  # type: ignore[arg-type]


def test_settings_out_of_range_are_refused() -> None:
    for make in (lambda: NextN(0), lambda: Stride(count=-1), lambda: Markov(states=0), lambda: Markov(least=0)):
        with pytest.raises(ConfigError):
            make()
    with pytest.raises(ConfigError, match="no predictor"):
        Gate("next")  # type: ignore[arg-type]
