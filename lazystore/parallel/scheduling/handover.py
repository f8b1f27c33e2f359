"""Results on their way from `Arrivals` to the consumer: whose turn it is, and what stands for those that failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lazystore.parallel.failures import Failed
from lazystore.parallel.scheduling.arrivals import Arrivals, Part
from lazystore.parallel.scheduling.policy import Policy

__all__ = ["Handover"]


class Handover:
    """Takes results out of the arrivals, each once, and applies the policy to failures when their turn comes.

    Parameters:
        arrivals: where results wait.
        policy: what becomes of failures.
        settled: told how many items are done with.
    """

    def __init__(self, arrivals: Arrivals, policy: Policy, settled: Callable[[int], None]) -> None:
        self._arrivals = arrivals
        self._policy = policy
        self._settled = settled

    def take(self, most: int) -> list[Any]:
        """Up to ``most`` results whose turn it is; none when none are there.

        Raises:
            BaseException: the error of the item whose turn it is; the next call goes on behind it.
        """
        results: list[Any] = []
        while not results and self._arrivals.ready:
            part = self._arrivals.peek()
            count = min(most, len(part.results) - part.at)
            if not part.failures and count == len(part.results):
                results = part.results
            else:
                results, count = self._judged(part, count)
            self._arrivals.used(count)
            self._settled(count)
        return results

    def _judged(self, part: Part, most: int) -> tuple[list[Any], int]:
        """Of ``most`` results of a part what the consumer gets, and how many items that settles."""
        begin, end = part.at, part.at + most
        held = part.results[begin:end]
        part.results[begin:end] = [None] * most  # the consumer's alone from now on
        if not part.failures:
            return held, most
        results: list[Any] = []
        for k, result in enumerate(held):
            if not isinstance(result, Failed):
                results.append(result)
                continue
            if results and (self._policy.may_raise or result.fatal):
                # what came before is delivered first
                part.results[begin + k : end] = held[k:]
                return results, k
            try:
                results.extend(self._policy.apply(result, part.items[begin + k]))
            except BaseException:
                part.results[begin + k + 1 : end] = held[k + 1 :]
                self._arrivals.used(k + 1)
                self._settled(k + 1)
                raise
        return results, most
