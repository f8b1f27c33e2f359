"""What is made of the figures of the grid: the table, who is ahead where, the regret, and the promises."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from harness import Report, number

from imap import contenders as sides
from imap.rounds import Measured, Outcome

__all__ = ["COLUMNS", "as_json", "geometric_mean", "reference_s", "regrets", "report"]

COLUMNS = (
    "plain loop",
    sides.POOL_ONE,
    sides.POOL_BEST,
    sides.POOL_UNORDERED,
    sides.EXECUTOR_ONE,
    sides.EXECUTOR_BEST,
    "threads 2",
    "threads 32",
    "joblib, cold",
    "joblib, warm",
    "mpire",
    "lazystore, cold",
    "lazystore, warm",
    "lazystore, unordered",
)
COLD, WARM, UNORDERED = (side.name for side in sides.OURS)
PEERS = [name for name in COLUMNS if not name.startswith("lazystore")]
PROCESS_ENGINES = [name for name in PEERS if name not in ("plain loop", "threads 2", "threads 32")]
#: Who started with workers at hand is held against who did, too.
WARM_PEERS = {"joblib, warm"}
#: Seconds that a cold start of workers may add to the first result.
START_S = 0.06
#: Bytes of a result from which a cell counts as one of large results.
LARGE = 100_000


def geometric_mean(values: Iterable[float]) -> float:
    """exp of the mean logarithm; not a number when there are none."""
    logs = [math.log(value) for value in values]
    return math.exp(statistics.fmean(logs)) if logs else math.nan


def seconds(measured: Measured, family: str) -> float | None:
    """The median of the best of a family; None when there is none."""
    best = measured.best(family)
    return best.median() if best is not None and best.runs and not best.problem else None


def reference_s(measured: Measured) -> float:
    """What 1.00 means: the better one of the plain loop and Pool with its best chunk, seconds."""
    known = (seconds(measured, family) for family in ("plain loop", sides.POOL_BEST))
    return min(value for value in known if value is not None)


def relative(measured: Measured, family: str) -> float | None:
    """Time as a multiple of the reference's."""
    value = seconds(measured, family)
    return None if value is None else value / reference_s(measured)


def peer_times(measured: Measured, *, warm: bool) -> dict[str, float]:
    """Seconds of each peer; those with warm workers only where they compete with warm ones."""
    times = {name: seconds(measured, name) for name in PEERS if warm or name not in WARM_PEERS}
    return {name: value for name, value in times.items() if value is not None}


def regrets(cells: Sequence[Measured], ours: str, oracle: str) -> dict[str, float]:
    """How much longer than with the best hand-made setting of the same engine, as a share, by cell."""
    found = {}
    for measured in cells:
        mine, best = seconds(measured, ours), seconds(measured, oracle)
        if mine is not None and best is not None:
            found[measured.cell.name] = mine / best - 1
    return found


def report(cells: Sequence[Measured], out: Report) -> None:
    """Print all tables and hold the promises against them."""
    _times(cells, out)
    _summary(cells, out)
    if any(seconds(measured, COLD) is not None for measured in cells):
        _details(cells, out)
        _promises(cells, out)


def _print(out: Report, title: str, head: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> None:
    print(f"## {title}\n")
    if note:
        print(f"{note}\n")
    print(f"| {' | '.join(head)} |\n{'|---' * len(head)}|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print(flush=True)
    out.tables.append({"title": title, "head": list(head), "rows": [list(row) for row in rows]})


def _times(cells: Sequence[Measured], out: Report) -> None:
    columns = [name for name in COLUMNS if any(measured.best(name) for measured in cells)]
    rows = []
    for measured in cells:
        row = [measured.cell.name, number(reference_s(measured) * 1e3), f"{_others(measured):.1f}"]
        rows.append(row + [_cell(measured, name) for name in columns])
    note = (
        "Times as multiples of the better one of the plain loop and Pool(2).imap with its best chunk. Bold: a peer "
        "that is faster than lazystore (cold; joblib's warm workers: warm). (n): the chunk. *: so slow it ran once. "
        '"others": cores that other processes took during the plain loop.'
    )
    _print(out, "Time", ["cell", "1.00 is, ms", "others", *columns], rows, note)


def _cell(measured: Measured, name: str) -> str:
    best = measured.best(name)
    if best is None:
        return ""
    if best.problem or not best.runs:
        return best.problem or "-"
    value = best.median() / reference_s(measured)
    text = f"{value:.2f}"
    ours = seconds(measured, WARM if name in WARM_PEERS else COLD)
    if name in PEERS and ours is not None and best.median() < ours:
        text = f"**{text}**"
    rounds = len(measured.outcomes[0].runs)
    chunk = f" ({best.contender.options['chunk']})" if "best" in name else ""
    return text + chunk + ("*" if len(best.runs) < rounds else "")


def _others(measured: Measured) -> float:
    """Cores that other processes used while the plain loop ran; their median."""
    runs = measured.outcomes[0].runs
    return statistics.median(max(0.0, run["busy_s"] - run["own_cpu_s"]) / run["seconds"] for run in runs)


def _summary(cells: Sequence[Measured], out: Report) -> None:
    rows = []
    for name in COLUMNS:
        values = {m.cell.name: value for m in cells if (value := relative(m, name)) is not None}
        if not values:
            continue
        worst = max(values, key=lambda cell: values[cell])
        ours = WARM if name in WARM_PEERS else COLD
        pairs = [(seconds(m, name), seconds(m, ours)) for m in cells]
        ahead = sum(theirs < mine / 1.03 for theirs, mine in pairs if theirs is not None and mine is not None)
        rows.append(
            [
                name,
                f"{geometric_mean(values.values()):.2f}",
                f"{values[worst]:.2f} ({worst})",
                str(ahead) if name in PEERS else "",
                str(len(values)),
            ]
        )
    head = ["contender", "geometric mean", "worst", "cells more than 3 % ahead of lazystore", "cells"]
    _print(out, "All cells", head, rows)


def _details(cells: Sequence[Measured], out: Report) -> None:
    cold, warm = regrets(cells, COLD, sides.ORACLE_COLD), regrets(cells, WARM, sides.ORACLE_WARM)
    rows = []
    for measured in cells:
        name = measured.cell.name
        best = measured.best(sides.ORACLE_WARM)
        auto = measured.best(WARM)
        rows.append(
            [
                name,
                best.contender.name if best else "",
                " ".join(dict.fromkeys(run.get("chose", "") for run in auto.runs)) if auto else "",
                f"{cold[name]:+.0%}" if name in cold else "",
                f"{warm[name]:+.0%}" if name in warm else "",
                _first_ms(measured, "plain loop"),
                _first_ms(measured, COLD),
                _first_ms(measured, WARM),
                _spread(measured.best(COLD)),
                _spread(auto),
            ]
        )
    head = ["cell", "best setting", "chosen, warm", "regret, cold", "regret, warm"]
    head += [f"first result, ms: {name}" for name in ("plain loop", "cold", "warm")]
    head += ["cold, ms (min-max)", "warm, ms (min-max)"]
    _print(out, "lazystore against its own best setting (the oracle)", head, rows)


def _first_ms(measured: Measured, name: str) -> str:
    best = measured.best(name)
    return number(best.median("first_s") * 1e3) if best is not None and best.runs and not best.problem else ""


def _spread(outcome: Outcome | None) -> str:
    if outcome is None or outcome.problem or not outcome.runs:
        return outcome.problem if outcome else ""
    spans = [run["seconds"] * 1e3 for run in outcome.runs]
    return f"{statistics.median(spans):.3g} ({min(spans):.3g}-{max(spans):.3g})"


def _promises(cells: Sequence[Measured], out: Report) -> None:
    for ours, oracle in ((COLD, sides.ORACLE_COLD), (WARM, sides.ORACLE_WARM)):
        found = sorted(regrets(cells, ours, oracle).values())
        if found:
            out.target(
                f"{ours}: regret, geometric mean", geometric_mean(1 + r for r in found) - 1, 0.10, at_least=False
            )
            out.target(
                f"{ours}: regret, 95th percentile", found[math.ceil(0.95 * len(found)) - 1], 0.25, at_least=False
            )
            out.target(f"{ours}: regret, worst", found[-1], 0.50, at_least=False)
    for ours, bound in ((COLD, 1.10), (WARM, 1.05)):
        values = [value for m in cells if (value := relative(m, ours)) is not None]
        out.target(f"{ours}: time, geometric mean", geometric_mean(values), bound, at_least=False)
        out.target(f"{ours}: time, worst", max(values, default=None), 1.35, at_least=False)
    _against_peers(cells, out)
    _special(cells, out)


def _least(values: Iterable[float]) -> float | None:
    return min(values, default=None)


def _against_peers(cells: Sequence[Measured], out: Report) -> None:
    for ours in (COLD, WARM):
        warm = ours == WARM
        shares = [
            min(times.values()) / mine
            for m in cells
            if (mine := seconds(m, ours)) is not None and (times := peer_times(m, warm=warm))
        ]
        out.target(f"{ours}: share of the best peer's speed, worst cell", _least(shares), 0.87)
        for name in PEERS:
            pairs = [
                (theirs, mine)
                for m in cells
                if (theirs := seconds(m, name)) is not None and (mine := seconds(m, ours)) is not None
            ]
            if pairs and (warm or name not in WARM_PEERS):
                out.target(
                    f"{ours}: times {name}'s speed, geometric mean", geometric_mean(a / b for a, b in pairs), 1.0
                )


def _special(cells: Sequence[Measured], out: Report) -> None:
    """Cells of one sort with a promise of their own."""
    large = [
        m for m in cells if m.cell.result_size >= LARGE and m.cell.consumer == "instant" and m.cell.kind != "sleep"
    ]
    asleep = [m for m in cells if m.cell.kind == "sleep"]
    for ours in (COLD, WARM):
        out.target(f"{ours}: large results, times the best process engine, worst", _least(_gains(large, ours)), 1.3)
        slower = [a / b for m in asleep if (a := seconds(m, ours)) and (b := seconds(m, "threads 32"))]
        out.target(f"{ours}: sleeping, times 32 threads' time, worst", max(slower, default=None), 1.3, at_least=False)
        serial = [m for m in cells if _serial_is_best(m, warm=ours == WARM) and seconds(m, ours) is not None]
        over = [seconds(m, ours) - 1.03 * seconds(m, "plain loop") for m in serial]  # type: ignore[operator]
        promise = f"{ours}: ms beyond 1.03x the plain loop where that is best ({len(serial)} cells), worst"
        out.target(promise, max(over, default=0.0) * 1e3, 1.0, at_least=False)
        late = [_first_s(m, ours) - 2 * _first_s(m, "plain loop") for m in cells if seconds(m, ours) is not None]
        bound = START_S if ours == COLD else 0.001
        promise = f"{ours}: first result beyond two item times, ms, worst"
        out.target(promise, max(late) * 1e3 if late else None, bound * 1e3, at_least=False)


def _gains(cells: Sequence[Measured], ours: str) -> list[float]:
    gains = []
    for measured in cells:
        engines = [t for name in PROCESS_ENGINES if (t := seconds(measured, name)) is not None]
        mine = seconds(measured, ours)
        if engines and mine is not None:
            gains.append(min(engines) / mine)
    return gains


def _first_s(measured: Measured, name: str) -> float:
    best = measured.best(name)
    return best.median("first_s") if best else math.inf


def _serial_is_best(measured: Measured, *, warm: bool) -> bool:
    """Whether nobody, our own engine set by hand included, beats the plain loop by more than 3 %."""
    others = [time for name, time in peer_times(measured, warm=warm).items() if name != "plain loop"]
    oracle = seconds(measured, sides.ORACLE_WARM if warm else sides.ORACLE_COLD)
    plain = seconds(measured, "plain loop")
    return plain is not None and plain <= 1.03 * min(
        [*others, *([oracle] if oracle is not None else [])], default=math.inf
    )


def as_json(measured: Measured) -> dict[str, Any]:
    """Every run of a cell."""
    return {
        "cell": measured.cell.to_json(),
        "outcomes": [
            {"contender": asdict(outcome.contender), "problem": outcome.problem, "runs": outcome.runs}
            for outcome in measured.outcomes
        ],
    }
