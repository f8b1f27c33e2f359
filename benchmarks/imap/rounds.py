"""Who runs when: every setting once to find the best ones, then rounds A B C A B C ... of those that stay.

Contenders share a child process a round, so that hundreds of interpreters need not start; those whose cold start is
the question have one of their own. A child that does not answer in time is killed with its whole session, and the
rest goes on in a new one.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from harness import CHILD_ENVIRONMENT

from imap import contenders as sides
from imap.cells import Cell
from imap.contenders import Contender
from imap.footprint import session_pids

__all__ = ["Field", "Measured", "Outcome", "measure"]

FOLDER = Path(__file__).resolve().parents[1]
#: A run may take so many times the plain loop's time, and never less than this, seconds.
LIMIT_TIMES = 20.0
LEAST_LIMIT_S = 8.0
#: Contenders so many times slower than the plain loop are run once, not every round.
HOPELESS = 6.0
#: Seconds that the processes of a child have to end after it.
DISPERSE_S = 2.0
#: How many of the settings tried stay for the rounds.
STAY = {sides.POOL_BEST: 2, sides.EXECUTOR_BEST: 1, sides.ORACLE_WARM: 2}


@dataclass
class Outcome:
    """What the runs of one contender on one cell gave."""

    contender: Contender
    runs: list[dict[str, Any]] = field(default_factory=list)
    problem: str = ""

    def median(self, what: str = "seconds") -> float:
        """The median of the runs; infinite when there is none."""
        return statistics.median(run[what] for run in self.runs) if self.runs and not self.problem else float("inf")


@dataclass
class Measured:
    """All there is about a cell."""

    cell: Cell
    outcomes: list[Outcome] = field(default_factory=list)

    def best(self, family: str) -> Outcome | None:
        """Of that family the one with the lowest median; one that only has a problem where none has runs."""
        members = [outcome for outcome in self.outcomes if family in outcome.contender.families]
        return min(members, key=lambda outcome: (outcome.median(), not outcome.runs), default=None)

    def families(self) -> list[str]:
        """In the order of their first contenders."""
        return list(dict.fromkeys(family for outcome in self.outcomes for family in outcome.contender.families))


@dataclass(frozen=True)
class Field:
    """What all cells share.

    Parameters:
        calibration: units of work a microsecond, by kind.
        rounds: timed runs of each contender that stays.
        peers: joblib, mpire, executors, threads as well.
        only: part of the names of the families that take part; the plain loop always does.
    """

    calibration: dict[str, float]
    rounds: int
    peers: bool
    only: str | None

    def wants(self, contender: Contender) -> bool:
        """Whether it takes part."""
        return contender is sides.PLAIN or not self.only or any(self.only in family for family in contender.families)


def measure(cell: Cell, field_: Field) -> Measured:
    """Run everyone on a cell."""
    tried = [c for c in [*sides.pools(cell), *sides.oracles(cell)] if field_.wants(c)]
    if not field_.peers:
        tried = [c for c in tried if c.maker != "executor"]
    tried = [sides.PLAIN, *tried]
    found = {outcome.contender.name: outcome for outcome in _sweep(cell, tried, field_)}
    stay = [outcome.contender for outcome in _chosen(list(found.values()))]
    stay += [c for c in _unordered(stay) if field_.wants(c)]
    stay += [c for c in sides.OURS if field_.wants(c)]
    stay += [c for c in _cold(stay) if field_.wants(c)]
    if field_.peers:
        stay += [c for c in sides.peers() if field_.wants(c)]
    measured = Measured(cell, [Outcome(contender) for contender in stay])
    for turn in range(field_.rounds):
        _round(cell, measured.outcomes, field_, turn)
    return measured


def _sweep(cell: Cell, tried: Sequence[Contender], field_: Field) -> list[Outcome]:
    outcomes = [Outcome(contender) for contender in tried]
    _run(cell, outcomes, field_)
    return outcomes


def _chosen(outcomes: Sequence[Outcome]) -> Iterable[Outcome]:
    """All of the families that are no choice, the quickest of those that are; a failed one where all failed."""
    chosen: dict[str, Outcome] = {}
    for family in dict.fromkeys(family for outcome in outcomes for family in outcome.contender.families):
        members = sorted((o for o in outcomes if family in o.contender.families), key=lambda o: o.median())
        chosen |= {o.contender.name: o for o in members[: STAY.get(family, len(members))]}
    return chosen.values()


def _unordered(stay: Sequence[Contender]) -> list[Contender]:
    """Pool.imap_unordered with the chunk that was the best in order."""
    best = next((c for c in stay if c.families == (sides.POOL_BEST,)), None)
    if best is None:
        return []
    options = {**best.options, "ordered": False}
    name = f"{best.name}, unordered"
    return [replace(best, name=name, options=options, ordered=False, families=(sides.POOL_UNORDERED,))]


def _cold(stay: Sequence[Contender]) -> list[Contender]:
    """The oracles that stay, from a cold start."""
    return [
        replace(
            c,
            name=f"{c.name}, cold",
            warm=False,
            fresh=c.options["backend"] == "process",
            families=(sides.ORACLE_COLD,),
        )
        for c in stay
        if sides.ORACLE_WARM in c.families
    ]


def _round(cell: Cell, outcomes: Sequence[Outcome], field_: Field, turn: int) -> None:
    """One run of each, beginning with another one each time."""
    plain = outcomes[0].median()
    due = [o for o in outcomes if not o.problem and not (turn and o.median() > HOPELESS * plain)]
    shift = turn * len(due) // max(1, field_.rounds)
    due = due[shift:] + due[:shift]
    for outcome in due:
        if outcome.contender.fresh:
            _run(cell, [outcome], field_)
    _run(cell, [outcome for outcome in due if not outcome.contender.fresh], field_)


def _run(cell: Cell, outcomes: Sequence[Outcome], field_: Field) -> None:
    """One run of each, in as few children as it takes."""
    left = list(outcomes)
    while left:
        done = _host(cell, left, field_)
        left = left[done:]


def _host(cell: Cell, outcomes: Sequence[Outcome], field_: Field) -> int:
    """Give them to one child; how many of them have had their run or their problem when it ended."""
    receive, send = os.pipe()
    spec = {
        "cell": cell.to_json(),
        "calibration": field_.calibration,
        "contenders": [asdict(outcome.contender) for outcome in outcomes],
        "report": send,
    }
    path = os.pathsep.join([str(FOLDER), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))])
    limit_s = max(LEAST_LIMIT_S, LIMIT_TIMES * cell.serial_s)
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(
            [sys.executable, "-m", "imap.host", json.dumps(spec)],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            env={**os.environ, **CHILD_ENVIRONMENT, "PYTHONPATH": path},
            pass_fds=(send,),
            start_new_session=True,
        )
        os.close(send)
        done = 0
        try:
            for event in _events(receive, child, limit_s):
                if "begin" in event:
                    continue
                outcome = outcomes[done]
                done += 1
                if "problem" in event:
                    outcome.problem = event["problem"]
                else:
                    outcome.runs.append(event)
        except TimeoutError:
            outcomes[done].problem = f"over {limit_s:.3g} s"
            done += 1
        else:
            _disperse(child)
        finally:
            os.close(receive)
            with contextlib.suppress(ProcessLookupError):  # raised when everything has ended
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        if done < len(outcomes) and child.returncode not in (0, -signal.SIGKILL):
            said.seek(0)
            print(said.read().decode(errors="replace")[-4000:], file=sys.stderr)
        if done == 0:  # or the loop above would go on for ever
            outcomes[0].problem = f"exit {child.returncode}"
            done = 1
        return done


def _disperse(child: subprocess.Popen[bytes]) -> None:
    """Give what a child leaves behind (trackers of semaphores, for one) the time to tidy up and end by itself."""
    until = time.monotonic() + DISPERSE_S
    while session_pids(child.pid) and time.monotonic() < until:
        time.sleep(0.02)


def _events(descriptor: int, child: subprocess.Popen[bytes], limit_s: float) -> Iterable[dict[str, Any]]:
    """Lines of the child as they come, until it ends.

    Raises:
        TimeoutError: none came for ``limit_s``.
    """
    ended = os.pidfd_open(child.pid)
    rest = b""
    try:
        while True:
            readable, _, _ = select.select([descriptor, ended], [], [], limit_s)
            if not readable:
                raise TimeoutError
            if descriptor not in readable:
                return
            block = os.read(descriptor, 1 << 16)
            if not block:
                return
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                yield json.loads(line)
    finally:
        os.close(ended)
