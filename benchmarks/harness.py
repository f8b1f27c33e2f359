"""The parent side: runs contenders side by side, each in its own process, and reports.

Rounds go A B C A B C ..., so that drift of the machine hits all alike. What a contender does is in
readers.py and the bench files; how a child measures itself is in worker.py.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import machine

__all__ = [
    "Contender",
    "ContenderFailed",
    "NotInstalled",
    "Report",
    "Row",
    "Rows",
    "add_data_argument",
    "compare",
    "data_folder",
    "floor_targets",
    "parser",
    "run_child",
]

#: Names of the two floors, as rows and for :func:`floor_targets`.
PLAIN = "plain preadv into a ring"
PLAIN_HUGE = "plain preadv into a ring of huge pages"
HERE = Path(__file__).resolve().parent
DATA_VARIABLE = "LAZYSTORE_BENCH_DATA"
SIDES_VARIABLE = "LAZYSTORE_BENCH_SIDES"
#: RSS a run may take beyond its imports and its budget, bytes.
RSS_ALLOWANCE = 16 << 20
#: Kept off the network, quiet, and from asking for accounts.
CHILD_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "LITDATA_DISABLE_VERSION_CHECK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONHASHSEED": "0",
}


class NotInstalled(Exception):
    """What a contender needs is not installed."""


class ContenderFailed(Exception):
    """A contender raised, crashed, or did not end in time."""


@dataclass(frozen=True)
class Contender:
    """One row of a comparison.

    Attributes:
        name: how the row is called.
        call: "module:function" in this folder; the function takes a worker.Run.
        spec: arguments of the function, JSON-able.
        side: a package in a folder of its own that must come first on the path.
        limit_s: seconds after which a run is killed and reported as such.
        environment: further environment variables.
    """

    name: str
    call: str
    spec: dict[str, Any]
    side: str = ""
    limit_s: float = 120.0
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Row:
    """What the runs of one contender gave; ``problem`` says why there are fewer than wanted."""

    contender: Contender
    runs: list[dict[str, Any]] = field(default_factory=list)
    problem: str = ""

    def values(self, measure: Callable[[dict[str, Any]], float]) -> list[float]:
        """One number a run."""
        return [measure(run) for run in self.runs]

    def median(self, measure: Callable[[dict[str, Any]], float]) -> float | None:
        """The median over the runs; None when there is none."""
        return statistics.median(self.values(measure)) if self.runs else None


def run_child(contender: Contender) -> dict[str, Any]:
    """Run a contender once.

    Raises:
        NotInstalled: a package is missing.
        ContenderFailed: anything else that kept it from a result.
    """
    path = [str(HERE)]
    if contender.side:
        folder = Path(os.environ.get(SIDES_VARIABLE, "")) / contender.side
        if not os.environ.get(SIDES_VARIABLE) or not folder.is_dir():
            raise NotInstalled(f"{contender.side} is not installed (no such folder in ${SIDES_VARIABLE})")
        path.insert(0, str(folder))
    path += filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    environment = {**os.environ, **CHILD_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(path)}
    environment.update(contender.environment)
    with tempfile.TemporaryDirectory() as scratch:
        result_file = Path(scratch, "result.json")
        command = [sys.executable, str(HERE / "worker.py"), contender.call, json.dumps(contender.spec)]
        with open(Path(scratch, "output"), "w+b") as output:
            process = subprocess.Popen(
                [*command, str(result_file)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=scratch,
                env=environment,
                start_new_session=True,
            )
            _await(process, contender.limit_s, result_file)
            output.seek(0)
            said = output.read().decode(errors="replace")
        if not result_file.exists():
            lines = [line for line in said.splitlines() if any(map(str.isalnum, line))] or ["no output"]
            raise ContenderFailed(f"exit {process.returncode}: {lines[-1][:300]}\n{said[-4000:]}")
        result: dict[str, Any] = json.loads(result_file.read_text())
    if "missing" in result:
        raise NotInstalled(f"not installed: {result['missing']}")
    return result


def _await(process: subprocess.Popen[bytes], limit_s: float, result_file: Path) -> None:
    """Wait for the child; kill its whole session if it is late, or left something running."""
    try:
        process.wait(limit_s)
    except subprocess.TimeoutExpired:
        if not result_file.exists():
            raise ContenderFailed(f"no result within {limit_s:g} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError):  # raised when everything has ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Rows(list[Row]):
    """The rows of one comparison, in the order of the table."""

    def named(self, name: str) -> Row:
        """The row of that contender; an empty one when it did not take part."""
        return next((row for row in self if row.contender.name == name), Row(Contender(name, "", {})))


def compare(
    contenders: Sequence[Contender], options: argparse.Namespace, struck: Mapping[str, str] | None = None
) -> Rows:
    """Run all contenders in turn, --rounds times; a failing one drops out with its reason.

    ``struck`` gives the reasons of those that need not start, by name.
    """
    wanted = [c for c in contenders if not options.only or options.only in c.name]
    warm(c.spec["path"] for c in wanted if os.path.isdir(c.spec.get("path", "")))
    rows = Rows(Row(contender, problem=(struck or {}).get(contender.name, "")) for contender in wanted)
    total = rounds(options)
    for turn in range(total):
        for row in rows:
            if row.problem:
                continue
            print(f"  round {turn + 1}/{total}: {row.contender.name}", file=sys.stderr, flush=True)
            try:
                row.runs.append(run_child(row.contender))
            except NotInstalled as absent:
                row.problem = str(absent)
            except ContenderFailed as failure:
                row.problem = str(failure).splitlines()[0]
                print(f"    {failure}", file=sys.stderr, flush=True)
    _check_same(rows)
    return rows


def _check_same(rows: Iterable[Row]) -> None:
    """Every contender must have yielded the same samples: else its speed means nothing."""
    first: tuple[str, str] | None = None
    for row in rows:
        for digest in sorted({run["digest"] for run in row.runs if run.get("digest")}):
            first = first or (digest, row.contender.name)
            if digest != first[0]:
                row.problem = f"yields other samples than {first[1]}"


def warm(paths: Iterable[str]) -> None:
    """Read every file once, so that all contenders start from a warm page cache."""
    buffer = bytearray(1 << 20)
    for path in dict.fromkeys(paths):
        for file in sorted(Path(path).rglob("*")):
            if file.is_file():
                with open(file, "rb", buffering=0) as stream:
                    while stream.readinto(buffer):
                        pass


@dataclass
class Target:
    """A promise and what was measured; ``at_least`` tells the direction."""

    promise: str
    measured: float | None
    bound: float
    at_least: bool = True

    @property
    def verdict(self) -> str:
        """Met, MISSED, or not measured."""
        if self.measured is None:
            return "not measured"
        met = self.measured >= self.bound if self.at_least else self.measured <= self.bound
        return "met" if met else "MISSED"


class Report:
    """Tables on stdout as they come, and everything in one JSON file at the end.

    Args:
        question: what the bench asks; the JSON's title.
        json_path: where :meth:`finish` writes; None: nowhere.
    """

    def __init__(self, question: str, json_path: str | None) -> None:
        self.question = question
        self.json_path = json_path
        self.tables: list[dict[str, Any]] = []
        self.targets: list[Target] = []
        print(f"# {question}\n\n{machine.summary()}\n", flush=True)
        if machine.is_busy():
            print("**Other processes keep this machine busy: times are too long.**\n", flush=True)

    def table(
        self,
        title: str,
        rows: Sequence[Row],
        columns: dict[str, Callable[[Row], str]],
    ) -> None:
        """Print one comparison: a line a contender, a cell a column; keep its raw runs for the JSON."""
        print(f"## {title}\n\n| contender | {' | '.join(columns)} |")
        print("|---" * (len(columns) + 1) + "|")
        for row in rows:
            if row.runs and not row.problem:
                cells = [column(row) for column in columns.values()]
            else:
                cells = [row.problem] + [""] * (len(columns) - 1)
            print(f"| {row.contender.name} | {' | '.join(cells)} |")
        print(flush=True)
        self.tables.append(
            {
                "title": title,
                "rows": [{"contender": row.contender.name, "problem": row.problem, "runs": row.runs} for row in rows],
            }
        )

    def target(self, promise: str, measured: float | None, bound: float, *, at_least: bool = True) -> None:
        """Hold a measured value against what was promised."""
        self.targets.append(Target(promise, measured, bound, at_least))

    def finish(self) -> int:
        """Print the promises, write the JSON, return the exit status (0: measuring is no verdict)."""
        if self.targets:
            print("## Promises\n\n| promise | bound | measured | |\n|---|---|---|---|")
            for target in self.targets:
                sign = ">=" if target.at_least else "<="
                measured = "" if target.measured is None else number(target.measured)
                print(f"| {target.promise} | {sign} {number(target.bound)} | {measured} | {target.verdict} |")
            print(flush=True)
        if self.json_path:
            content = {
                "question": self.question,
                "machine": machine.describe(),
                "tables": self.tables,
                "targets": [vars(target) | {"verdict": target.verdict} for target in self.targets],
            }
            Path(self.json_path).write_text(json.dumps(content, indent=1))
        return 0


def number(value: float) -> str:
    """Three significant digits with k or M: 4.52 M, 229 k, 0.83."""
    for bound, unit in ((1e6, " M"), (1e3, " k")):
        if abs(value) >= bound:
            return f"{value / bound:.3g}{unit}"
    return f"{value:.3g}"


def spread(values: Sequence[float], form: Callable[[float], str] = number) -> str:
    """ "median (min-max)" of some runs."""
    return f"{form(statistics.median(values))} ({form(min(values))}-{form(max(values))})"


def first_rate(run: dict[str, Any]) -> float:
    """Items per second of the first pass."""
    return float(run["items"] / run["seconds"][0])


def first_cpu_rate(run: dict[str, Any]) -> float:
    """Items per second of CPU time (all threads, kernel included) in the first pass.

    What is left of the first pass when other processes take the cores; the two agree on an idle machine
    for a reader with one thread that does not wait.
    """
    return float(run["items"] / run["cpu_seconds"][0])


def later_rate(run: dict[str, Any]) -> float:
    """Items per second of the passes after the first, their median."""
    return float(run["items"] / statistics.median(run["seconds"][1:]))


def ratio(reference: Row, measure: Callable[[dict[str, Any]], float]) -> Callable[[Row], str]:
    """A column: how many times the reference is faster, round by round, with its spread."""

    def cell(row: Row) -> str:
        if not reference.runs:
            return "-"
        pairs = list(zip(reference.values(measure), row.values(measure), strict=False))
        return spread([ours / theirs for ours, theirs in pairs], lambda value: f"{number(value)}x")

    return cell


def part(reference: Row, measure: Callable[[dict[str, Any]], float]) -> Callable[[Row], str]:
    """A column: what share of the reference's speed is reached, round by round, with its spread."""

    def cell(row: Row) -> str:
        pairs = list(zip(row.values(measure), reference.values(measure), strict=False))
        return spread([mine / other for mine, other in pairs]) if pairs else "-"

    return cell


def share(reference: Row, row: Row, measure: Callable[[dict[str, Any]], float]) -> float | None:
    """Median over the rounds of ``row`` divided by ``reference``."""
    pairs = list(zip(row.values(measure), reference.values(measure), strict=False))
    return statistics.median(mine / other for mine, other in pairs) if pairs else None


def floor_targets(out: Report, what: str, row: Row, rows: Rows, bound: float) -> None:
    """Hold a row against plain preadv: the first pass with either page size, and the later passes."""
    for title, floor, measure in (
        ("first pass", PLAIN, first_rate),
        ("first pass, huge pages", PLAIN_HUGE, first_rate),
        ("later passes", PLAIN, later_rate),
    ):
        out.target(f"{what}, share of preadv, {title}", share(rows.named(floor), row, measure), bound)


def megabytes(field_name: str) -> Callable[[Row], str]:
    """A column: a memory field of the runs in MB (10^6 bytes), the largest of the rounds."""
    return lambda row: f"{max(run[field_name] for run in row.runs) / 1e6:.0f}"


def excess(row: Row, budget: int) -> float | None:
    """Bytes of peak RSS beyond imports and budget, the worst round."""
    if not row.runs:
        return None
    return float(max(run["rss_peak"] - run["rss_after_import"] - budget for run in row.runs))


def parser(description: str) -> argparse.ArgumentParser:
    """The arguments all bench files share."""
    made = argparse.ArgumentParser(description=description)
    add_data_argument(made)
    made.add_argument("--rounds", type=int, default=None, help="runs of each contender (default 5; quick 2)")
    made.add_argument("--quick", action="store_true", help="small data written by lazystore itself; a smoke test")
    made.add_argument("--peers", action="store_true", help="other libraries as well, on their own formats")
    made.add_argument("--only", metavar="PART", help="only contenders whose name contains PART")
    made.add_argument("--json", metavar="PATH", help="write all measurements there")
    return made


def add_data_argument(made: argparse.ArgumentParser) -> None:
    """--data, with its environment variable."""
    made.add_argument(
        "--data",
        metavar="DIR",
        default=os.environ.get(DATA_VARIABLE),
        help=f"folder for the datasets, outside the repository (default ${DATA_VARIABLE})",
    )


def data_folder(options: argparse.Namespace) -> str:
    """--data, or a folder in the system's temporary one when only the small data is wanted.

    Raises:
        SystemExit: the full data needs a folder with room, so it must be named.
    """
    if options.data:
        return str(options.data)
    if options.quick:
        return os.path.join(tempfile.gettempdir(), "lazystore-bench")
    raise SystemExit(f"give --data DIR or ${DATA_VARIABLE}: a folder with 16 GB of room, outside the repository")


def rounds(options: argparse.Namespace) -> int:
    """--rounds, or 5, or 2 when quick."""
    return int(options.rounds or (2 if options.quick else 5))
