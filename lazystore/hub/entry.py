"""`Entry`: where the next pass begins, and a wrapper's state as plain JSON. Nothing is opened or read here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from lazystore.errors import FormatError, UnsupportedError
from lazystore.hub.feed import Mark

__all__ = ["BEGINNING", "Entry", "parse", "to_json_dict"]

VERSION = 1


class Entry(NamedTuple):
    """A position in the pass of reader ``part[0]`` of ``part[1]``, and the nearest place before it to enter at."""

    position: int
    part: tuple[int, int]
    mark: Mark | None


BEGINNING = Entry(0, (0, 1), None)


def to_json_dict(identity: str, epoch: int, entry: Entry) -> dict[str, Any]:
    """The state of a pass over what has this identity; :func:`parse` reads it."""
    mark = entry.mark
    state: dict[str, Any] = {
        "version": VERSION,
        "identity": identity,
        "epoch": epoch,
        "position": entry.position,
        "mark": None if mark is None else {"position": mark.position, "state": mark.state},
    }
    if entry.part[1] > 1:
        state["part"] = list(entry.part)
    return state


def parse(state: object) -> tuple[str, int, Entry]:
    """Identity, epoch and entry of a state, wherever it has been since it was taken.

    Raises:
        FormatError: it is none; names the key. UnsupportedError: of a later version.
    """
    if not isinstance(state, Mapping):
        raise FormatError(f"a state is a dict, not {type(state).__name__}")
    version = _whole(state, "version")
    if version != VERSION:
        raise UnsupportedError(f"state['version'] is {version}; this lazystore reads version {VERSION}")
    identity = state.get("identity")
    if not isinstance(identity, str):
        raise FormatError(f"state['identity'] cannot be {identity!r}: this is not a wrapper's state")
    position = _whole(state, "position")
    part = state.get("part", [0, 1])
    if not (
        isinstance(part, (list, tuple)) and len(part) == 2 and all(type(each) is int for each in part)
        and 0 <= part[0] < part[1]
    ):  # fmt: skip
        raise FormatError(f"state['part'] cannot be {part!r}: a reader's number, and how many there are")
    mark = state.get("mark")
    if mark is not None:
        if not isinstance(mark, Mapping) or "state" not in mark or _whole(mark, "position") > position:
            raise FormatError("state['mark'] is not a place at or before state['position']")
        mark = Mark(mark["position"], mark["state"])
    return identity, _whole(state, "epoch"), Entry(position, (part[0], part[1]), mark)


def _whole(mapping: Mapping[Any, Any], key: str) -> int:
    value = mapping.get(key)
    if type(value) is not int or value < 0:
        raise FormatError(f"state[{key!r}] cannot be {value!r}: this is not a wrapper's state")
    return value
