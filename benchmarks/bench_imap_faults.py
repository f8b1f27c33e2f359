"""What is lost, doubled or left behind when workers are killed, and when the whole is stopped with Ctrl-C?

    python benchmarks/bench_imap_faults.py [--kills 1000] [--interrupts 200] [--seed 1]

Kills: SIGKILL to a random worker at random moments while the results of an endless source are counted, half of them
with small results in order, half with results of 300 kB as they come. Interrupts: SIGINT to the process group
of a running script, as a terminal does it, at a random moment; 2 s later nothing may be left (files in /dev/shm that
another process leaves behind meanwhile count as ours).
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness
from harness import Contender
from imap.footprint import children_of, session_pids
from imap.work import Work, packed, sign

if TYPE_CHECKING:
    from worker import Run

#: Turns of an item's loop, about 1 ms.
UNITS = 15_000
#: Most results between two kills (their number is random), and most seconds after those.
BETWEEN = 40
DELAY_S = 0.005
#: Seconds after Ctrl-C by which all must be gone.
GRACE_S = 2.0
#: Latest moment of a Ctrl-C after the script is ready, seconds.
LATEST_S = 0.8
FOLDER = Path(__file__).resolve().parent
SHARED = Path("/dev/shm")


class Killer(threading.Thread):
    """Kills random workers of this process until it has killed enough.

    It waits for results between two kills, not only for some time: on a busy machine workers would else be killed
    faster than they start.

    Parameters:
        kills: how many.
        dice: when and whom.

    Attributes:
        taken: results so far; the consumer's to count.
    """

    def __init__(self, kills: int, dice: random.Random) -> None:
        super().__init__(daemon=True)
        self.done = threading.Event()
        self.killed = self.taken = 0
        self._wanted = kills
        self._dice = dice

    def run(self) -> None:
        while self.killed < self._wanted:
            due = self.taken + self._dice.randint(0, BETWEEN)
            while self.taken < due:
                time.sleep(0.0005)
            time.sleep(self._dice.uniform(0, DELAY_S))
            workers = self._workers()
            if workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._dice.choice(workers), signal.SIGKILL)
                    self.killed += 1
        self.done.set()

    @staticmethod
    def _workers() -> list[int]:
        """Children of this process's children: of the fork server, that is."""
        pids = session_pids(os.getsid(0))
        return [pid for child in children_of(os.getpid(), pids) for pid in children_of(child, pids)]


def kills(run: Run) -> None:
    """Count the results of a source that ends when enough workers were killed."""
    from lazystore import imap

    spec = run.spec
    func = Work("python", "array" if spec["size"] > 8 else "number", spec["size"])
    killer = Killer(spec["kills"], random.Random(spec["seed"]))
    sent = 0

    def source() -> Iterator[int]:
        nonlocal sent
        while not killer.done.is_set():
            sent += 1
            yield packed(sent - 1, UNITS)

    seen: dict[int, int] = {}
    given_up: list[str] = []
    out_of_order, last = 0, -1
    killer.start()
    begin = time.monotonic()
    settings = {"backend": "process", "n_jobs": 2, "on_error": "yield", "ordered": spec["ordered"]}
    for result in imap(func, source(), **settings):
        killer.taken += 1
        if hasattr(result, "error"):
            given_up.append(f"{result} (after {killer.killed} kills)")
            continue
        seed = result ^ 0x5555 if isinstance(result, int) else sign(result)[1]
        seen[seed] = seen.get(seed, 0) + 1
        out_of_order += seed < last
        last = seed
    run.result = {
        "kills": killer.killed,
        "items": sent,
        "given_up": len(given_up),
        "why": given_up,
        "lost": sum(seed not in seen for seed in range(sent)) - len(given_up),
        "doubled": sum(count > 1 for count in seen.values()),
        "strange": sum(seed >= sent for seed in seen),
        "out_of_order": out_of_order if spec["ordered"] else 0,
        "seconds": [time.monotonic() - begin],
    }


def interrupts(count: int, seed: int) -> dict[str, Any]:
    """Stop ``count`` scripts; what was left of them after :data:`GRACE_S`."""
    dice = random.Random(seed)
    # where this was started in the background SIGINT is ignored, and so it would be in the scripts
    signal.signal(signal.SIGINT, signal.default_int_handler)
    before = set(os.listdir(SHARED))
    found: dict[str, Any] = {"hung": 0, "orphans": 0, "odd_exits": {}, "noise": [], "gone_s": []}
    for turn in range(count):
        if turn % 20 == 0:
            print(f"  interrupt {turn}/{count}", file=sys.stderr, flush=True)
        _interrupt(dice, found)
    found["files"] = sorted(abandoned(set(os.listdir(SHARED)) - before))
    return found


def abandoned(names: set[str]) -> set[str]:
    """Files in /dev/shm that no process has mapped or open: the others belong to somebody who is still at work."""
    held: set[str] = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            maps = Path(f"/proc/{pid}/maps").read_text()
            held |= {line.rpartition("/")[2] for line in maps.splitlines() if f" {SHARED}/" in line}
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                    held.add(os.path.basename(os.readlink(link)))
    return {name for name in names if name not in held and (SHARED / name).exists()}


def _interrupt(dice: random.Random, found: dict[str, Any]) -> None:
    backend = dice.choice(("process", "process", "process", "auto", "thread"))
    arguments = [backend, dice.choice(("ordered", "unordered"))]
    arguments += [dice.choice(("8", "1000000")), dice.choice(("0", "0.01"))]
    path = os.pathsep.join([str(FOLDER), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))])
    script = subprocess.Popen(
        [sys.executable, "-m", "imap.interrupted", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
    )
    assert script.stdout is not None
    try:
        readable, _, _ = select.select([script.stdout], [], [], 30)
        if not readable or script.stdout.read(5) != b"ready":
            raise harness.ContenderFailed(f"the script did not start: {script.communicate(timeout=5)}")
        time.sleep(dice.uniform(0, LATEST_S))
        os.killpg(script.pid, signal.SIGINT)
        begin = time.monotonic()
        while session_pids(script.pid) and time.monotonic() - begin < GRACE_S:
            time.sleep(0.01)
        found["gone_s"].append(time.monotonic() - begin)
        left = session_pids(script.pid)
        found["hung"] += script.pid in left
        found["orphans"] += len(set(left) - {script.pid})
    finally:
        with contextlib.suppress(ProcessLookupError):  # raised when everything has ended
            os.killpg(script.pid, signal.SIGKILL)
        said = script.communicate()[1].decode(errors="replace")
    if script.returncode not in (1, 130, -signal.SIGINT):
        odd = found["odd_exits"]
        odd[script.returncode] = odd.get(script.returncode, 0) + 1
    if "Exception ignored" in said or "KeyboardInterrupt" not in said or said.count("Traceback") > 1:
        found["noise"].append(" ".join(arguments) + "\n" + said[-3000:])


def main() -> int:
    """Measure what the arguments ask for."""
    parser = harness.parser("Kills and Ctrl-C.")
    parser.add_argument("--kills", type=int, default=None, help="workers to kill (default 1,000; quick 20; 0: none)")
    parser.add_argument("--interrupts", type=int, default=None, help="scripts to stop (default 200; quick 5; 0: none)")
    parser.add_argument("--seed", type=int, default=1, help="of the random moments")
    options = parser.parse_args()
    many = options.kills if options.kills is not None else (20 if options.quick else 1_000)
    stops = options.interrupts if options.interrupts is not None else (5 if options.quick else 200)
    options.rounds = 1
    out = harness.Report(f"imap: {many} kills, {stops} interrupts", options.json)
    if many:
        _kills(out, options, many)
    if stops:
        _interrupts(out, stops, options.seed)
    return out.finish()


def _kills(out: harness.Report, options: Any, many: int) -> None:
    base = {"kills": many // 2, "seed": options.seed}
    limit_s = 60 + many * 1.0
    rows = harness.compare(
        [
            Contender("8 B, ordered", "bench_imap_faults:kills", {**base, "size": 8, "ordered": True}, limit_s=limit_s),
            Contender(
                "300 kB, unordered",
                "bench_imap_faults:kills",
                {**base, "size": 300_000, "ordered": False},
                limit_s=limit_s,
            ),
        ],
        options,
    )
    columns = ("kills", "items", "lost", "doubled", "given_up", "strange", "out_of_order")
    out.table(
        "workers killed",
        rows,
        {name.replace("_", " "): lambda row, name=name: str(row.runs[-1][name]) for name in columns}
        | {"seconds": lambda row: f"{row.runs[-1]['seconds'][0]:.0f}"},
    )
    runs = [row.runs[-1] for row in rows if row.runs and not row.problem]
    for text in (text for run in runs for text in run["why"]):
        print(f"given up: {text}\n")
    whole = len(runs) == len(rows)
    for name in ("lost", "doubled", "given_up"):
        measured = float(sum(run[name] for run in runs)) if whole else None
        out.target(f"{many} kills: results {name.replace('_', ' ')}", measured, 0.0, at_least=False)


def _interrupts(out: harness.Report, stops: int, seed: int) -> None:
    found = interrupts(stops, seed)
    gone = sorted(found["gone_s"])
    print(f"## {stops} interrupts\n")
    print(f"Gone after {gone[len(gone) // 2]:.2f} s (median), {gone[-1]:.2f} s (worst).")
    print(f"Odd exit codes: {found['odd_exits'] or 'none'}; files in /dev/shm: {found['files'] or 'none'}; ", end="")
    print(f"scripts that said more than one KeyboardInterrupt: {len(found['noise'])}\n")
    for text in found["noise"][:3]:
        print(text, file=sys.stderr)
    out.tables.append({"title": "interrupts", **found})
    left = float(found["hung"] + found["orphans"])
    out.target(f"{stops} interrupts: processes after {GRACE_S:g} s", left, 0.0, at_least=False)
    out.target(f"{stops} interrupts: files in /dev/shm", float(len(found["files"])), 0.0, at_least=False)


if __name__ == "__main__":
    sys.exit(main())
