"""`near`: what somebody may have meant who wrote a name that there is not."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

__all__ = ["near"]


def near(name: Any, known: Iterable[str]) -> str:
    """`` (did you mean 'a' or 'b'?)`` with the at most three known names most like it, else ""; for messages."""
    if not isinstance(name, str):
        return ""
    lowered = {other.lower(): other for other in known}
    found = difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(repr(lowered[other]) for other in found)}?)" if found else ""
