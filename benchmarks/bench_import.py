"""What does the import alone cost, in time and in memory?

Each run imports one package in a fresh interpreter, byte code already compiled. RSS is the process's,
interpreter included; "nothing" is the interpreter alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import harness
from harness import Contender

if TYPE_CHECKING:
    from worker import Run

#: Runs in an interpreter that has imported nothing else: what a package shares with the harness counts too.
PROBE = """
import sys, time
begin = time.perf_counter()
import {package}
imported = time.perf_counter()
def rss():
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith("VmRSS"):
                return int(line.split()[1]) * 1024
rss_imported, modules = rss(), len(sys.modules)
{package}.{name}
named = time.perf_counter()
print("PROBE", imported - begin, rss_imported, modules, named - begin, rss())
"""

PACKAGES = {
    "lazystore": ("lazystore", "", "StreamingDataset"),
    "nothing": ("sys", "", "path"),
    "LitData 0.2.76": ("litdata", "", "StreamingDataset"),
    "LitData 0.2.61": ("litdata", "litdata-0.2.61", "StreamingDataset"),
    "MosaicML 0.13": ("streaming", "", "StreamingDataset"),
    "HF datasets": ("datasets", "", "load_dataset"),
    "Lance": ("lance", "", "dataset"),
}


def imported(run: Run) -> None:
    """The child side: the second of two fresh interpreters is reported, the first compiles byte code."""
    command = [sys.executable, "-c", PROBE.format(**run.spec)]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            if "ModuleNotFoundError" in done.stderr:
                raise ModuleNotFoundError(done.stderr.strip().splitlines()[-1])
            raise RuntimeError(done.stderr[-2000:])
    line = next(line for line in done.stdout.splitlines() if line.startswith("PROBE"))
    keys = ("import_s", "import_rss", "modules", "named_s", "named_rss")
    run.result.update(zip(keys, map(json.loads, line.split()[1:]), strict=True))


def main() -> int:
    """Measure what the arguments ask for."""
    options = harness.parser("Import time and memory.").parse_args()
    chosen = [
        Contender(name, "bench_import:imported", {"package": package, "name": attribute}, side=side)
        for name, (package, side, attribute) in PACKAGES.items()
        if options.peers or name in ("lazystore", "nothing")
    ]
    rows = harness.compare(chosen, options)
    ours = rows.named("lazystore")
    out = harness.Report("Import", options.json)
    out.table(
        "import, and import with the main name taken from the package",
        rows,
        {
            "import, s": lambda row: harness.spread(row.values(lambda run: run["import_s"])),
            "RSS, MB": harness.megabytes("import_rss"),
            "modules": lambda row: str(row.runs[-1]["modules"]),
            "with main name, s": lambda row: harness.spread(row.values(lambda run: run["named_s"])),
            "with main name, RSS, MB": harness.megabytes("named_rss"),
        },
    )
    for key, bound, unit in (("import_s", 0.060, "seconds"), ("import_rss", 30e6, "RSS, bytes")):
        measured = ours.median(lambda run, key=key: run[key])  # type: ignore[misc]
        out.target(f"import lazystore, {unit}", measured, bound, at_least=False)
    return out.finish()


if __name__ == "__main__":
    sys.exit(main())
