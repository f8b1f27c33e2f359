"""Goes away: the home of ``keyset`` is ``keysets``, so that the package's function and a module do not share a name."""

from __future__ import annotations

from lazystore.lazy.keysets import Clause, Column, Keyset, Seek, keyset

__all__ = ["Clause", "Column", "Keyset", "Seek", "keyset"]
