"""How a failure in a worker comes back: with its type, its traceback and the input it belongs to.

No retrying here: what is tried again is decided where workers are watched, or where items are run.
"""

from __future__ import annotations

import pickle
import reprlib
import traceback
from dataclasses import dataclass

from lazystore.errors import WorkerError

__all__ = ["Failed", "Failure", "RemoteTraceback"]


class RemoteTraceback(Exception):
    """The traceback of an error in another process, as text; the ``__cause__`` of that error here."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n{self.text}"


class Failed:
    """The error that ended a task or an item.

    Inside one process it is the error itself. Pickled, it becomes a copy with the traceback as its cause; an
    error that does not survive pickling becomes a :class:`WorkerError` that quotes it.

    Parameters:
        error: what was raised; gets a note that names the input.
        number: the input's number.
        value: the input.
        what: whose input it is and what it is called there, for messages.
        sample: number of the sample among those of the input.

    Attributes:
        fatal: the error is not an ``Exception`` (``SystemExit``, ``KeyboardInterrupt`` raised by a function): it is
            always raised again, whatever was asked to become of errors.
    """

    __slots__ = ("error", "fatal", "note", "number", "what")

    def __init__(
        self, error: BaseException, number: int, value: object, what: str = "imap: item", sample: int = 0
    ) -> None:
        self.error = error
        self.number = number
        self.what = what
        self.fatal = not isinstance(error, Exception)
        which = f", its sample {sample}" if sample else ""
        self.note = f"{what} {number} ({_brief(value)}){which}"
        error.add_note(self.note)

    def __reduce__(self) -> tuple[object, ...]:
        return _failed, (*_parts(self.error), self.number, self.what, self.note, self.fatal)

    def __repr__(self) -> str:
        return f"Failed({self.error!r}, {self.number})"


@dataclass(frozen=True, slots=True)
class Failure:
    """What stands for an item that failed, under ``on_error="yield"``.

    Pickles: the error becomes a copy with its traceback as text, as from a worker; one that does not survive that
    becomes a :class:`WorkerError` that quotes it. The item must pickle by itself.

    Parameters:
        index: number of the item in the data.
        item: what the function was called with; a dataset's item is its key.
        error: what it raised.
    """

    index: int
    item: object
    error: BaseException

    def __reduce__(self) -> tuple[object, ...]:
        return _failure, (*_parts(self.error), self.index, self.item)

    def __repr__(self) -> str:
        return f"Failure(index={self.index}, item={_brief(self.item)}, error={_brief(self.error)})"


def _brief(value: object) -> str:
    try:
        return reprlib.repr(value)
    except Exception as error:  # noqa: BLE001 (a message about an input must not fail because of the input)
        return f"a {type(value).__name__} whose repr raises {type(error).__name__}"


def _parts(error: BaseException) -> tuple[bytes | None, str, str]:
    """The error's pickle if it has one, its message, and its traceback as text."""
    return _pickled(error), _summary(error), _trace(error)


def _summary(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception as broken:  # noqa: BLE001 (as above)
        return f"{type(error).__name__}, whose str raises {type(broken).__name__}"


def _trace(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except Exception as broken:  # noqa: BLE001 (as above)
        return f"(no traceback: showing it raises {type(broken).__name__})\n"


def _pickled(error: BaseException) -> bytes | None:
    """The error's pickle, when it comes back from it; many exception classes do not."""
    try:
        data = pickle.dumps(error, 5)
        return data if isinstance(pickle.loads(data), BaseException) else None
    except Exception:  # noqa: BLE001 (a user's class may raise anything here; the text is sent instead)
        return None


def _copy(data: bytes | None, instead: str, text: str) -> BaseException:
    error: BaseException = WorkerError(instead)
    if data is not None:
        try:
            error = pickle.loads(data)
        except Exception as broken:  # noqa: BLE001 (it came back where it was raised but not here; the text tells)
            error.add_note(f"the error itself cannot be unpickled here: {_summary(broken)}")
    error.__cause__ = RemoteTraceback(text)
    return error


def _failed(data: bytes | None, summary: str, text: str, number: int, what: str, note: str, fatal: bool) -> Failed:
    failed = Failed.__new__(Failed)
    failed.number, failed.what, failed.note, failed.fatal = number, what, note, fatal
    failed.error = _copy(data, f"{what} {number}: {summary}", text)
    if note not in getattr(failed.error, "__notes__", ()):  # the class pickles itself without its notes
        failed.error.add_note(note)
    return failed


def _failure(data: bytes | None, summary: str, text: str, index: int, item: object) -> Failure:
    return Failure(index, item, _copy(data, f"imap: item {index}: {summary}", text))
