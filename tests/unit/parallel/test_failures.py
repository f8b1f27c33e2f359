"""A failure in a worker comes back with its type, its traceback and the number of its input."""

from __future__ import annotations

import copyreg
import pickle

import pytest
from support.jobs import AwkwardError

from lazystore.errors import WorkerError
from lazystore.parallel.failures import Failed, Failure, RemoteTraceback


def raised(error: Exception) -> Exception:
    try:
        raise error
    except type(error) as caught:
        return caught


def there_and_back(failed: Failed) -> Failed:
    back = pickle.loads(pickle.dumps(failed))
    assert isinstance(back, Failed)
    return back


def test_inside_one_process_it_is_the_error_itself() -> None:
    error = raised(LookupError("gone"))
    failed = Failed(error, 12, "some input")
    assert failed.error is error
    assert error.__notes__ == ["imap: item 12 ('some input')"]


def test_who_asked_is_named() -> None:
    error = raised(LookupError("gone"))
    Failed(error, 12, "x", "write_dataset: input")
    assert error.__notes__ == ["write_dataset: input 12 ('x')"]


def test_the_sample_is_named_where_an_input_gives_several() -> None:
    error = raised(LookupError("gone"))
    Failed(error, 12, "x", "write_dataset: input", 3)
    assert error.__notes__ == ["write_dataset: input 12 ('x'), its sample 3"]


def test_pickled_it_keeps_type_note_and_traceback() -> None:
    failed = there_and_back(Failed(raised(LookupError("gone")), 12, "some input"))
    assert type(failed.error) is LookupError
    assert failed.error.args == ("gone",)
    assert failed.error.__notes__ == ["imap: item 12 ('some input')"]
    assert failed.number == 12
    assert isinstance(failed.error.__cause__, RemoteTraceback)
    assert "raise error" in str(failed.error.__cause__)


def test_it_may_be_pickled_again_on_its_way() -> None:
    failed = there_and_back(there_and_back(Failed(raised(LookupError("gone")), 12, "some input")))
    assert type(failed.error) is LookupError
    assert failed.error.__notes__ == ["imap: item 12 ('some input')"]
    assert "raise error" in str(failed.error.__cause__)


@pytest.fixture
def awkward(monkeypatch: pytest.MonkeyPatch) -> Exception:
    # some packages (Dask's) teach pickle all exception classes that there are when they are loaded
    monkeypatch.delitem(copyreg.dispatch_table, AwkwardError, raising=False)
    return raised(AwkwardError("this", "that"))


def test_an_error_that_does_not_survive_pickling_is_quoted(awkward: Exception) -> None:
    failed = there_and_back(Failed(awkward, 4, None))
    assert type(failed.error) is WorkerError
    assert str(failed.error) == "imap: item 4: AwkwardError: this and that"
    assert failed.error.__notes__ == ["imap: item 4 (None)"]
    assert "AwkwardError" in str(failed.error.__cause__)


class HereOnlyError(Exception):
    """Comes back in one place and not in another."""

    comes_back = True

    def __reduce__(self) -> tuple[object, ...]:
        return _here_only, (str(self),)


def _here_only(text: str) -> HereOnlyError:
    if not HereOnlyError.comes_back:
        raise LookupError("no such class")
    return HereOnlyError(text)


def test_an_error_that_comes_back_only_where_it_was_raised_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    data = pickle.dumps(Failed(raised(HereOnlyError("gone")), 4, None))
    monkeypatch.setattr(HereOnlyError, "comes_back", False)
    error = pickle.loads(data).error
    assert type(error) is WorkerError
    assert "HereOnlyError: gone" in str(error)
    assert any("LookupError: no such class" in note for note in error.__notes__)


def test_a_class_that_pickles_itself_without_notes_keeps_them() -> None:
    error = there_and_back(Failed(raised(HereOnlyError("gone")), 4, None)).error
    assert type(error) is HereOnlyError
    assert error.__notes__ == ["imap: item 4 (None)"]


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_what_is_no_exception_is_marked_on_every_way(error: BaseException) -> None:
    failed = Failed(error, 1, None)
    assert failed.fatal
    assert there_and_back(failed).fatal
    assert type(there_and_back(failed).error) is type(error)
    assert not Failed(raised(LookupError("gone")), 1, None).fatal


def test_an_error_whose_str_fails_does_no_harm() -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    error = there_and_back(Failed(raised(MuteError()), 3, None)).error
    assert "MuteError" in str(error)


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


def test_a_failure_says_what_happened_to_what() -> None:
    failure = Failure(17, "x" * 1000, LookupError("gone"))
    assert repr(failure).startswith("Failure(index=17, item='xxx")
    assert repr(failure).endswith("error=LookupError('gone'))")
    assert len(repr(failure)) < 200


def test_a_failure_pickles_even_if_its_error_does_not(awkward: Exception) -> None:
    whole = pickle.loads(pickle.dumps(Failure(17, "item", raised(LookupError("gone")))))
    assert (whole.index, whole.item, type(whole.error)) == (17, "item", LookupError)
    assert "raise error" in str(whole.error.__cause__)
    quoted = pickle.loads(pickle.dumps(Failure(17, "item", awkward)))
    assert str(quoted.error) == "imap: item 17: AwkwardError: this and that"


def test_a_failure_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Failure(17, "item", LookupError("gone")).index = 18  # type: ignore[misc]
