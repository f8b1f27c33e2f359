"""``python benchmarks/compare``: makes the modules of benchmarks/ importable, then runs ``commands.py``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])
sys.exit(importlib.import_module("compare.commands").main())
