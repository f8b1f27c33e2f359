"""How a failure in a worker comes back: with its type, its traceback and the input it belongs to.

No retrying here: what is tried again is decided where workers are watched.
"""

from __future__ import annotations

import pickle
import reprlib
import traceback

from lazystore.errors import WorkerError

__all__ = ["Failed", "RemoteTraceback"]


class RemoteTraceback(Exception):
    """The traceback of an error in another process, as text; the ``__cause__`` of that error here."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n{self.text}"


class Failed:
    """The error that ended a task.

    Inside one process it is the error itself. Pickled, it becomes a copy with the traceback as its cause; an
    error that does not survive pickling becomes a :class:`WorkerError` that quotes it.

    Parameters:
        error: what was raised; gets a note that names the input.
        number: the input's number.
        value: the input.
        sample: number of the sample among those of the input.
    """

    def __init__(self, error: BaseException, number: int, value: object, sample: int = 0) -> None:
        self.error = error
        self.number = number
        which = f", its sample {sample}" if sample else ""
        error.add_note(f"write_dataset: input {number} ({_brief(value)}){which}")

    def __reduce__(self) -> tuple[object, ...]:
        text = "".join(traceback.format_exception(self.error))
        return _restore, (_pickled(self.error), f"{type(self.error).__name__}: {self.error}", text, self.number)


def _brief(value: object) -> str:
    try:
        return reprlib.repr(value)
    except Exception as error:  # noqa: BLE001 (a message about an input must not fail because of the input)
        return f"a {type(value).__name__} whose repr raises {type(error).__name__}"


def _pickled(error: BaseException) -> bytes | None:
    """The error's pickle, when it comes back from it; many exception classes do not."""
    try:
        data = pickle.dumps(error)
        pickle.loads(data)
    except Exception:  # noqa: BLE001 (a user's class may raise anything here; the text is sent instead)
        return None
    return data


def _restore(data: bytes | None, summary: str, text: str, number: int) -> Failed:
    failed = Failed.__new__(Failed)
    failed.number = number
    failed.error = WorkerError(f"input {number}: {summary}") if data is None else pickle.loads(data)
    failed.error.__cause__ = RemoteTraceback(text)
    return failed
