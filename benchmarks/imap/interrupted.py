"""A script somebody stops with Ctrl-C: prints "ready", then maps over an endless source until it is interrupted.

python -m imap.interrupted BACKEND ORDERED RESULT_BYTES CONSUMER_S
"""

from __future__ import annotations

import itertools
import sys
import time

from imap.work import Work, packed

__all__ = ["main"]

#: Turns of an item's loop, about 1 ms.
UNITS = 15_000


def main() -> None:
    """Run until interrupted."""
    backend, ordered, size, consumer_s = sys.argv[1], sys.argv[2] == "ordered", int(sys.argv[3]), float(sys.argv[4])
    from lazystore import imap

    func = Work("python", "bytes", size)
    print("ready", flush=True)
    settings = {} if backend == "auto" else {"backend": backend, "n_jobs": 2}
    for _ in imap(func, (packed(seed, UNITS) for seed in itertools.count()), ordered=ordered, **settings):
        time.sleep(consumer_s)


if __name__ == "__main__":
    main()
