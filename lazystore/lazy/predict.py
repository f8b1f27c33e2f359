"""Guesses of which keys come next, from those that came: next numbers, strides, successors; and when to stop guessing.

A predictor is any ``predictor(history) -> [(key, score)]``: ``history`` are the last keys, oldest first, and a score is
near the probability that the key is asked for soon. Nothing here loads, or knows of caches; ``background.py`` does.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

from lazystore.config import whole
from lazystore.errors import ConfigError

__all__ = ["Gate", "Guess", "Learner", "Markov", "NextN", "Predictor", "Stride", "behaviour", "majority"]

Guess: TypeAlias = tuple[Hashable, float]
Predictor: TypeAlias = Callable[[Sequence[Hashable]], Iterable[Guess]]


@runtime_checkable
class Learner(Protocol):
    """A predictor that wants to be shown every key, in order."""

    def learn(self, key: Hashable) -> None: ...


class NextN:
    """The ``count`` whole numbers after the last one. For use that is known to be sequential."""

    def __init__(self, count: int = 2) -> None:
        self.count = whole("count", count)

    def __call__(self, history: Sequence[Hashable]) -> list[Guess]:
        if not history or type(history[-1]) is not int:
            return []
        return [(history[-1] + step, 1.0 / step) for step in range(1, self.count + 1)]


def majority(values: Sequence[int]) -> int | None:
    """What more than half of ``values`` are, or None. O(n), no memory (Boyer and Moore's vote, then a count)."""
    candidate, votes = None, 0
    for value in values:
        if votes == 0:
            candidate = value
        votes += 1 if value == candidate else -1
    if candidate is None or 2 * sum(value == candidate for value in values) <= len(values):
        return None
    return candidate


class Stride:
    """Whole numbers at an even distance, also backwards, and also with others between them.

    The distance is the majority among the last steps (Al Maruf and Chowdhury, "Effectively Prefetching Remote Memory
    with Leap", 2020): first of a few, then of more, so that a new pattern is found soon and noise does not hide an old
    one. Only a key that continues the pattern leads to guesses: two at first, more the longer it lasts.

    Parameters:
        count: guesses at most.
        windows: how many steps to look at, few first. Pure and stateless: safe in threads.
    """

    def __init__(self, count: int = 8, windows: Sequence[int] = (4, 8, 16, 32)) -> None:
        self.count = whole("count", count)
        self.windows = tuple(windows)

    def __call__(self, history: Sequence[Hashable]) -> list[Guess]:
        last = history[-1] if history else None
        if type(last) is not int:
            return []
        recent = [key for key in list(history)[-self.windows[-1] - 1 :] if type(key) is int]
        steps = [after - before for before, after in itertools.pairwise(recent) if after != before]
        for window in self.windows:
            stride = majority(steps[-window:]) if len(steps) >= 2 else None
            if stride:
                break
            if window >= len(steps):
                return []
        else:
            return []
        if last - stride not in recent[:-1]:
            return []  # a stranger between the keys of the pattern
        matching = sum(step == stride for step in steps)
        share = matching / len(steps)
        count = max(2, min(self.count, matching // 2))
        return [(last + stride * ahead, share) for ahead in range(1, count + 1)]


class Markov:
    """The keys that most often came after the last one.

    A first-order chain: counts of what followed what, of the ``states`` keys seen last, eight followers each. Counts
    are halved when they grow large, so that what was true long ago fades. A key is guessed when it followed at least
    twice, and more often than ``least`` of the times; then what follows that one, as long as the whole path is
    as likely.

    Threads: calls must not overlap. Memory: about a kilobyte a state at most.

    Parameters:
        states: keys to know the followers of.
        least: probability from which on to guess.
        count: guesses at most.
    """

    FOLLOWERS = 8
    FADE_AT = 32

    def __init__(self, states: int = 4096, least: float = 0.5, count: int = 4) -> None:
        self.states = whole("states", states)
        self.count = whole("count", count)
        if not 0 < least <= 1:
            raise ConfigError(f"least={least!r} is no probability above 0")
        self.least = least
        self._after: OrderedDict[Hashable, dict[Hashable, int]] = OrderedDict()
        self._last: Hashable | None = None
        self._begun = False

    def learn(self, key: Hashable) -> None:
        """Count that ``key`` came after the one learnt before it. Cost: about a microsecond."""
        if self._begun:
            self._count(self._last, key)
        self._last, self._begun = key, True

    def _count(self, key: Hashable, follower: Hashable) -> None:
        followers = self._after.get(key)
        if followers is None:
            followers = self._after[key] = {}
            if len(self._after) > self.states:
                self._after.popitem(last=False)
        else:
            self._after.move_to_end(key)
        count = followers[follower] = followers.get(follower, 0) + 1
        if len(followers) > self.FOLLOWERS:
            del followers[min((name for name in followers if name != follower), key=followers.__getitem__)]
        if count >= self.FADE_AT:
            for name, seen in list(followers.items()):
                if seen > 1:
                    followers[name] = seen // 2
                else:
                    del followers[name]

    def __call__(self, history: Sequence[Hashable]) -> list[Guess]:
        if not history:
            return []
        key, path = history[-1], 1.0
        found: dict[Hashable, float] = {}
        while len(found) < self.count and (followers := self._after.get(key)):
            best = max(followers, key=followers.__getitem__)
            path *= followers[best] / sum(followers.values())
            if path < self.least or followers[best] < 2 or best in found or best == history[-1]:
                break
            found[best] = path
            key = best
        return list(found.items())


class Gate:
    """Lets a predictor guess as long as its guesses come true.

    After every ``window`` guesses it looks how many of them were asked for. Fewer than ``least`` of them, and it stays
    shut for the next ``rest`` keys that are asked for; then the predictor is tried again, on as many guesses. A
    predictor that fails again rests twice as long, up to 16 times; one that passes is forgiven.

    Threads: calls must not overlap. Memory: ``window`` keys.

    Parameters:
        predictor: any.
        window: guesses between two looks.
        least: share of them that must be asked for.
        rest: keys to let pass while shut.
    """

    MOST_RESTS = 16

    def __init__(self, predictor: Predictor, *, window: int = 64, least: float = 0.3, rest: int = 512) -> None:
        if not callable(predictor):
            raise ConfigError(f"{predictor!r} is no predictor: it takes the last keys and gives (key, score) pairs")
        self.predictor = predictor
        self._window = whole("window", window)
        self._least = least
        self._rest = whole("rest", rest)
        self._rests = 1
        self._shut_for = 0
        self._issued = self._used = 0
        self._open_guesses: OrderedDict[Hashable, None] = OrderedDict()
        #: Guesses made, and those of them that were asked for, in all.
        self.issued = 0
        self.used = 0
        #: How often it was shut.
        self.shut = 0

    @property
    def is_open(self) -> bool:
        return self._shut_for <= 0

    def asked(self, key: Hashable) -> bool:
        """A key was asked for. Returns: whether it had been guessed."""
        if self._shut_for > 0:
            self._shut_for -= 1
        if isinstance(self.predictor, Learner):
            self.predictor.learn(key)
        if key not in self._open_guesses:
            return False
        del self._open_guesses[key]
        self._used += 1
        self.used += 1
        return True

    def guess(self, history: Sequence[Hashable]) -> list[Guess]:
        """What the predictor says, unless it is shut. What is to be prefetched of it is told by :meth:`issue`."""
        return list(self.predictor(history)) if self.is_open else []

    def issue(self, key: Hashable) -> bool:
        """A guess is to be acted upon, and counts. False: it need not (it is waited for already), or must not."""
        if key in self._open_guesses:
            return False
        if self._issued >= self._window:
            self._look()
            if not self.is_open:
                return False
        self._open_guesses[key] = None
        if len(self._open_guesses) > self._window:
            self._open_guesses.popitem(last=False)
        self._issued += 1
        self.issued += 1
        return True

    def _look(self) -> None:
        failed = self._used < self._least * self._issued
        self._issued = self._used = 0
        if failed:
            self._shut_for = self._rest * self._rests
            self._rests = min(2 * self._rests, self.MOST_RESTS)
            self.shut += 1
            self._open_guesses.clear()
        else:
            self._rests = 1

    def stats(self) -> dict[str, Any]:
        """``issued``, ``used``, ``accuracy`` (None before the first guess), ``open``, ``shut`` (times)."""
        accuracy = self.used / self.issued if self.issued else None
        return {
            "issued": self.issued, "used": self.used, "accuracy": accuracy, "open": self.is_open, "shut": self.shut,
        }  # fmt: skip


def behaviour(given: Mapping[Any, Any] | Iterable[Hashable]) -> tuple[list[Hashable], list[Guess], Iterable[Hashable]]:
    """What a record of a user's behaviour says: ``(history, scores, hint)``.

    Parameters:
        given: keys in the order in which they were asked for, oldest first; or a mapping with any of ``"history"``
            (such keys), ``"scores"`` (key to score) and ``"hint"`` (keys in the order in which they will be asked
            for); or a mapping of keys to scores itself.

    Raises:
        ConfigError: none of these.
    """
    if not isinstance(given, Mapping):
        if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
            raise ConfigError(f"user_behavior={given!r} is no list of keys and no mapping")
        return list(given), [], ()
    if given and given.keys() <= {"history", "scores", "hint"}:
        history, scores, hint = given.get("history", ()), given.get("scores", {}), given.get("hint", ())
    else:
        history, scores, hint = (), given, ()
    for key, score in scores.items():
        if isinstance(score, bool) or not isinstance(score, (int, float)):
            raise ConfigError(
                f"user_behavior[{key!r}]={score!r} is no score: give a list of keys, a mapping of keys to numbers, or "
                "a mapping with 'history', 'scores' and 'hint'"
            )
    return list(history), sorted(scores.items(), key=lambda guess: -guess[1]), hint


#: How many of the last keys a predictor is given.
HISTORY = 64


def remember() -> deque[Hashable]:
    """An empty history, of bounded length."""
    return deque(maxlen=HISTORY)
