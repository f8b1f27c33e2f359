"""The command line: arguments, the object store, and the order of the works; what they are is in ``tables.py``.

python benchmarks/compare --data DIR --peers [--work epoch] [--kind text] [--link far] [--json FILE]
"""

from __future__ import annotations

import contextlib
import tempfile

import harness
from data import Data
from samples import KINDS

from compare.contenders import BUCKET, Field
from compare.tables import REMOTE_WORKS, WORKS

__all__ = ["main"]

#: Latency in ms and bytes per second of the object store.
LINKS = {"near": (20.0, "200MB"), "far": (100.0, "1GB")}
ROUNDS = 3


def main() -> int:
    """Measure what the arguments ask for."""
    from lazystore.testing import ObjectStore

    parser = harness.parser("lazystore beside other libraries.")
    parser.add_argument("--work", choices=WORKS, action="append", help="only this work (repeatable)")
    parser.add_argument("--kind", choices=KINDS, action="append", help="only this dataset (repeatable)")
    parser.add_argument("--link", choices=LINKS, default="near", help="20 ms, 200 MB/s; or 100 ms, 1 GB/s")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds after which a run is given up")
    parser.add_argument("--memory", type=int, default=64_000_000, help="lazystore's budget at the object store, bytes")
    options = parser.parse_args()
    options.rounds = options.rounds or (None if options.quick else ROUNDS)
    data = Data.of(options)
    works = options.work or list(WORKS)
    latency_ms, bandwidth = LINKS[options.link]
    with contextlib.ExitStack() as stack:
        data.root.mkdir(parents=True, exist_ok=True)
        scratch = stack.enter_context(tempfile.TemporaryDirectory(dir=data.root))
        store = None
        if REMOTE_WORKS & set(works):
            store = ObjectStore({BUCKET: data.root}, latency_ms=latency_ms, bandwidth=bandwidth)
            stack.enter_context(store)
        title = f"lazystore beside others; object store: {latency_ms:g} ms, {bandwidth}/s"
        out = harness.Report(title, options.json)
        field = Field(data, options, scratch, store)
        for work in works:
            for kind in options.kind or KINDS:
                WORKS[work](field, out, kind)
        return out.finish()
