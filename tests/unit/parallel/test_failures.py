"""A failure in a worker comes back with its type, its traceback and the number of its input."""

from __future__ import annotations

import pickle

from support.jobs import AwkwardError

from lazystore.errors import WorkerError
from lazystore.parallel.failures import Failed, RemoteTraceback


def raised(error: Exception) -> Exception:
    try:
        raise error
    except type(error) as caught:
        return caught


def test_inside_one_process_it_is_the_error_itself() -> None:
    error = raised(LookupError("gone"))
    failed = Failed(error, 12, "some input")
    assert failed.error is error
    assert error.__notes__ == ["write_dataset: input 12 ('some input')"]


def test_the_sample_is_named_where_an_input_gives_several() -> None:
    error = raised(LookupError("gone"))
    Failed(error, 12, "x", 3)
    assert error.__notes__ == ["write_dataset: input 12 ('x'), its sample 3"]


def test_pickled_it_keeps_type_note_and_traceback() -> None:
    failed = pickle.loads(pickle.dumps(Failed(raised(LookupError("gone")), 12, "some input")))
    assert type(failed.error) is LookupError
    assert failed.error.args == ("gone",)
    assert failed.error.__notes__ == ["write_dataset: input 12 ('some input')"]
    assert failed.number == 12
    assert isinstance(failed.error.__cause__, RemoteTraceback)
    assert "raise error" in str(failed.error.__cause__)


def test_an_error_that_does_not_survive_pickling_is_quoted() -> None:
    failed = pickle.loads(pickle.dumps(Failed(raised(AwkwardError("this", "that")), 4, None)))
    assert type(failed.error) is WorkerError
    assert str(failed.error) == "input 4: AwkwardError: this and that"
    assert "AwkwardError" in str(failed.error.__cause__)


def test_an_input_whose_repr_fails_does_no_harm() -> None:
    class Mute:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    error = raised(LookupError("gone"))
    Failed(error, 0, Mute())
    assert "Mute" in error.__notes__[0]


def test_long_inputs_are_shortened() -> None:
    error = raised(LookupError("gone"))
    Failed(error, 0, "x" * 10_000)
    assert len(error.__notes__[0]) < 200
