"""Names of files that an index gives: inside the dataset's directory, whatever the index says."""

from __future__ import annotations

from typing import TypeGuard

__all__ = ["is_inside"]


def is_inside(name: object, *, below: bool = False) -> TypeGuard[str]:
    """Whether this is the name of a file in a directory.

    Parameters:
        below: or of one in a directory below it ("part/file").
    """
    if not isinstance(name, str) or "\\" in name or "\0" in name or "://" in name:
        return False
    parts = name.split("/")
    return (below or len(parts) == 1) and not any(part in ("", ".", "..") for part in parts)
