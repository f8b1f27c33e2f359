"""``python -m lazystore``: the command line."""

from __future__ import annotations

import sys

from lazystore.cli import main

if __name__ == "__main__":
    sys.exit(main())
