"""The exam that a new format must pass: everything :mod:`lazystore.formats.format` asks of one, put to real data.

    def test_my_format(tmp_path):
        path = write_some_dataset(tmp_path)
        examine_format(MyFormat(), [FormatCase(path, items=expected)])

What each question asks is said in its docstring. Reading without the machinery is ``format_driver``'s, damage
``format_damage``'s business.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import tempfile
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from lazystore.errors import BudgetTooSmallError, DatasetNotFoundError, ItemIndexError, LazyStoreError
from lazystore.fetch import open_source
from lazystore.formats.format import Format, Opened, Options, Unindexed
from lazystore.formats.registry import find_format
from lazystore.streaming.dataset import StreamingDataset
from lazystore.streaming.division import smallest_budget
from lazystore.streaming.locating import find_place, root_of
from lazystore.testing.format_damage import Damage, copied, damages, in_child
from lazystore.testing.format_driver import chunk_bytes, interleaved, made_blocks, split_items

__all__ = ["FormatCase", "examine_format", "same_value"]

BUDGET = 64 << 20
SMALL_BUDGETS = (1_000_000, 16_000_000)
#: Steps of a run after which closing it is tried, blocks that are begun with, random accesses.
MOST_STEPS, MOST_STARTS, MOST_ACCESSES = 24, 16, 64
#: Items among which those of a shuffle are looked for.
MOST_SHUFFLED = 400


@dataclass(frozen=True, slots=True)
class FormatCase:
    """A dataset for the exam.

    Attributes:
        path: a local directory or file.
        items: what is in it, in stored order.
        arguments: of :class:`~lazystore.StreamingDataset`, e.g. ``format_options`` or ``allow_pickle``.
        equal: tells whether a found item is the expected one; without it types, values, and of arrays, tensors and
            images everything must be the same.
        checked: with these arguments every change of the files is noticed (checksums): damage may then not go
            unnoticed. Without: what damaged payload decodes to is not judged.
    """

    path: str | os.PathLike[str]
    items: Sequence[Any]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    equal: Callable[[Any, Any], bool] | None = None
    checked: bool = False


def examine_format(
    format: Format, datasets: Iterable[FormatCase], *, damage: int = 100, seed: int = 0, patience: float = 60.0
) -> None:
    """Put a format through its exam.

    Parameters:
        format: an instance; its class should be importable, for datasets are pickled.
        datasets: at least one; several that differ (empty chunks, one item, large items, options) ask more.
        damage: damaged copies of each dataset that are read.
        seed: draws the damage and the accesses.
        patience: seconds without progress that are a hang.

    Raises:
        AssertionError: it failed; lists the questions, and what was wrong.

    Cost: some seconds a dataset. Reads damaged copies in forked processes; writes only below a temporary folder, which
    is the cache folder (``XDG_CACHE_HOME``) meanwhile.
    """
    _check_named(format)
    failures: list[str] = []
    count = 0
    with _scratch_folder() as folder:
        for number, case in enumerate(datasets):
            exam = _Exam(format, case, folder / str(number), damage=damage, seed=seed, patience=patience)
            for question in _QUESTIONS:
                count += 1
                try:
                    question(exam)
                except AssertionError as error:
                    failures.append(f"{case.path}: {_asked(question)}: {error}")
                except Exception as error:  # noqa: BLE001 - a format under test may raise whatever it likes
                    failures.append(f"{case.path}: {_asked(question)}: {type(error).__name__}: {error}")
                if failures and question is _opens:
                    break  # everything else would fail for the same reason
            exam.close()
    assert count, "no dataset was given to examine the format with"
    assert not failures, f"format {format.name!r} fails {len(failures)} of {count} questions:\n" + "\n".join(failures)


def _check_named(format: Format) -> None:
    assert isinstance(format, Format), f"{format!r} is not a Format"
    assert isinstance(getattr(format, "name", None), str) and format.name, f"{format!r} has no name"
    for suffix in format.suffixes:
        assert suffix == suffix.lower() and suffix.startswith("."), f"the suffix {suffix!r} is no lower-case .end"


def _asked(question: Callable[[_Exam], None]) -> str:
    return (question.__doc__ or question.__name__).split("\n")[0].rstrip(".")


@contextmanager
def _scratch_folder() -> Iterator[Path]:
    before = os.environ.get("XDG_CACHE_HOME")
    with tempfile.TemporaryDirectory(prefix="format-exam-") as name:
        os.environ["XDG_CACHE_HOME"] = str(Path(name, "cache"))
        try:
            yield Path(name)
        finally:
            if before is None:
                del os.environ["XDG_CACHE_HOME"]
            else:
                os.environ["XDG_CACHE_HOME"] = before


class _Exam:
    """One dataset under examination."""

    def __init__(
        self, format: Format, case: FormatCase, folder: Path, *, damage: int, seed: int, patience: float
    ) -> None:
        self.format, self.case, self.folder = format, case, folder
        self.damage, self.seed, self.patience = damage, seed, patience
        self.path = os.fspath(case.path)
        self.draw = random.Random(seed)
        self._opened: Opened | None = None

    @property
    def opened(self) -> Opened:
        """The dataset as the format opens it; text after its pass."""
        if self._opened is None:
            found = self.found()
            self._opened = found.build() if isinstance(found, Unindexed) else found
        return self._opened

    def found(self) -> Opened | Unindexed:
        """What the format says when it is asked to open the dataset."""
        root = root_of(self.path, self.format)
        source = open_source(root.url)
        place = find_place(
            source, root, url=self.path, format=self.format, storage_options={}, timeout=30.0, budget=BUDGET
        )[1]
        arguments = dict(self.case.arguments)
        extra = arguments.pop("format_options", {})
        return self.format.open(place, Options(extra=extra, **arguments))

    def dataset(self, path: str | os.PathLike[str] | None = None, **more: Any) -> StreamingDataset:
        """The dataset as users read it."""
        arguments = {"memory": BUDGET, "rank": 0, "world_size": 1, **self.case.arguments, **more}
        return StreamingDataset(self.path if path is None else path, format=self.format, **arguments)

    def compare(self, found: Iterable[Any], wanted: Sequence[Any], what: str = "item") -> None:
        """All of them, in order."""
        count = 0
        equal = self.case.equal or same_value
        for value in found:
            assert count < len(wanted), f"more than {len(wanted)} items came"
            assert equal(value, wanted[count]), f"{what} {count} is {_brief(value)} instead of {_brief(wanted[count])}"
            count += 1
        assert count == len(wanted), f"{count} items came instead of {len(wanted)}"

    def close(self) -> None:
        """Let the source go."""
        if self._opened is not None:
            self._opened.source.close()


def same_value(one: Any, other: Any) -> bool:
    """Equal in type and value; arrays, tensors and images in everything."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Mapping):
        return list(one) == list(other) and all(same_value(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same_value, one, other))
    if isinstance(one, float):
        return one == other or (one != one and other != other)
    if hasattr(one, "dtype") and hasattr(one, "shape"):
        alike = one.dtype == other.dtype and one.shape == other.shape
        return bool(alike and pickle.dumps(one.tolist()) == pickle.dumps(other.tolist()))
    if hasattr(one, "tobytes") and hasattr(one, "mode"):
        return bool(one.mode == other.mode and one.size == other.size and one.tobytes() == other.tobytes())
    return bool(one == other)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:120]}..."


# -- questions ------------------------------------------------------------------------------


def _opens(exam: _Exam) -> None:
    """Does it open?"""
    found = exam.found()
    assert isinstance(found, (Opened, Unindexed)), f"open() returned {found!r}: neither Opened nor Unindexed"
    if isinstance(found, Unindexed):
        exam.compare((found.plan(data) for data in found.stream()), exam.case.items, "before it is indexed, item")
    assert isinstance(exam.opened, Opened), f"build() returned {exam.opened!r}, no Opened"


def _describes_itself(exam: _Exam) -> None:
    """Do names, counts, hints and the rest fit together?"""
    opened = exam.opened
    assert opened.format == exam.format.name, (
        f"Opened.format is {opened.format!r}, the format's name {exam.format.name!r}"
    )
    for name, values in (("counts", opened.counts), ("hints", opened.hints)):
        assert isinstance(values, array) and values.typecode == "Q", f"{name} is no array('Q')"
        assert len(values) == len(opened.names), f"{len(values)} {name} for {len(opened.names)} names"
    items = len(exam.case.items)
    assert sum(opened.counts) == items, f"counts add up to {sum(opened.counts)}, there are {items} items"
    assert isinstance(opened.version, str) and opened.version, "it has no version: resuming could not tell a change"
    json.dumps(opened.about)
    assert not (opened.codec is not None and opened.images is not None), "chunks are either encoded or made"
    if opened.files is not None:
        assert opened.images is not None, "files is for made chunks only"
        _check_files(opened)
    again = exam.found()
    if isinstance(again, Opened):
        same = (again.version, again.counts, list(again.names)) == (opened.version, opened.counts, list(opened.names))
        again.source.close()
        assert same, "opened a second time, it has another version, other counts or names"


def _check_files(opened: Opened) -> None:
    files = opened.files
    assert files is not None
    assert len(files.names) == len(files.counts) == len(files.hints) == len(files.blocks) - 1, "files differ in length"
    assert list(files.blocks) == sorted(files.blocks) and files.blocks[-1] == len(opened.names), (
        "files.blocks do not fit"
    )
    for number, count in enumerate(files.counts):
        first, last = files.blocks[number], files.blocks[number + 1]
        assert sum(opened.counts[first:last]) == count, f"file {number} has {count} items, its blocks have others"


def _reads_directly(exam: _Exam) -> None:
    """Are the chunks in the classic layout, and do their bytes decode to the items?"""
    opened = exam.opened
    if opened.images is not None:
        exam.compare(_made_items(exam), exam.case.items)
    elif not opened.stride:  # blocks of tokens are cut where no offset is
        exam.compare(_stored_items(opened), exam.case.items)


def _stored_items(opened: Opened) -> Iterator[Any]:
    for chunk, count in enumerate(opened.counts):
        if not count:
            continue
        data = chunk_bytes(opened, chunk)
        hint = opened.hints[chunk]
        assert not opened.exact or len(data) == hint, f"chunk {chunk} has {len(data)} bytes, its exact hint is {hint}"
        try:
            stored = split_items(data, count)
        except AssertionError as error:
            raise AssertionError(f"chunk {chunk} ({opened.names[chunk]}): {error}") from None
        yield from map(opened.plan, stored)


def _made_items(exam: _Exam) -> Iterator[Any]:
    opened = exam.opened
    assert opened.images is not None
    runs = list(opened.images.runs)
    assert runs and runs[0] == 0 and runs[-1] == len(opened.names), f"runs go from {runs[:1]} to {runs[-1:]}"
    assert all(a < b for a, b in pairwise(runs)), "runs do not ascend"
    for run, first in enumerate(runs[:-1]):
        scratch = opened.images.scratch(run)
        assert isinstance(scratch, int) and scratch > 0, f"scratch({run}) is {scratch!r}"
        for image in made_blocks(opened, first):
            hint = opened.hints[image.block]
            assert not opened.exact or len(image.data) == hint, f"block {image.block} is not as long as its exact hint"
            try:
                stored = split_items(image.data, opened.counts[image.block])
            except AssertionError as error:
                raise AssertionError(f"block {image.block}: {error}") from None
            yield from map(opened.plan, stored)


def _begins_anywhere(exam: _Exam) -> None:
    """Do runs of made blocks begin at any block, go on side by side, and let themselves be closed at every step?"""
    opened = exam.opened
    if opened.images is None:
        return
    runs = list(opened.images.runs)
    blocks = runs[-1]
    for first in sorted(exam.draw.sample(range(blocks), min(MOST_STARTS, blocks))):
        run_first = runs[bisect_right(runs, first) - 1]
        whole = next(image for image in made_blocks(opened, run_first) if image.block == first)
        wanted = bytes(whole.data)
        alone = next(made_blocks(opened, first))
        assert bytes(alone.data) == wanted, f"block {first} differs when its run begins with it"
    some = runs[:-1][:3]
    together = {image.block: bytes(image.data) for image in interleaved(opened, some)}
    for first in some:
        for image in made_blocks(opened, first):
            assert together.get(image.block) == bytes(image.data), f"block {image.block} differs when runs are mixed"
    for steps in range(MOST_STEPS):
        for _ in made_blocks(opened, 0, steps=steps):
            pass
    assert next(made_blocks(opened, 0)).block == 0, "after runs were closed early, block 0 cannot be made"


def _iterates(exam: _Exam) -> None:
    """Does a pass give the items in order, and a second one again?"""
    with exam.dataset() as dataset:
        exam.compare(dataset, exam.case.items)
        exam.compare(dataset, exam.case.items, "in the second pass, item")
        assert len(dataset) == dataset.total == len(exam.case.items), f"len() is {len(dataset)}"


def _is_recognised(exam: _Exam) -> None:
    """Is the dataset recognised without format=, and is nothing else?"""
    try:
        known = type(find_format(exam.format.name)) is type(exam.format)
    except LazyStoreError:
        known = False  # not installed: nobody could recognise it
    if known and (exam.format.suffixes or Path(exam.path, "index.json").is_file()):
        with StreamingDataset(exam.path, **exam.case.arguments) as dataset:
            name = dataset._opened.format
            assert name == exam.format.name, f"it is taken for {name!r}"
    strangers: list[dict[str, Any]] = [{}, {"version": None}, {"files": []}, {"lazystore-exam": [1]}]
    for index in strangers:
        answer = exam.format.recognises(index)
        assert answer is False, f"recognises({index!r}) is {answer!r}: indexes of others would be read as this format"


def _has_random_access(exam: _Exam) -> None:
    """Is any item had by its number, from the end, in lists and slices, and is none beyond?"""
    items = exam.case.items
    count = len(items)
    numbers = exam.draw.sample(range(count), min(MOST_ACCESSES, count))
    with exam.dataset() as dataset:
        exam.compare((dataset[number] for number in numbers), [items[number] for number in numbers], "access")
    with exam.dataset(memory=SMALL_BUDGETS[1]) as dataset:
        exam.compare(dataset.get_many(numbers), [items[number] for number in numbers], "in get_many, access")
        exam.compare(
            (dataset[number - count] for number in numbers),
            [items[number] for number in numbers],
            "from the end, access",
        )
        exam.compare(dataset[1:-1:2], items[1:-1:2], "in a slice, access")
        for beyond in (count, -count - 1):
            try:
                dataset[beyond]
            except ItemIndexError:
                continue
            raise AssertionError(f"there is an item {beyond} of {count}")


def _batches_and_shuffles(exam: _Exam) -> None:
    """Do batches and shuffles give every item once?"""
    items = exam.case.items
    with exam.dataset() as dataset:
        exam.compare(
            (item for batch in dataset.batches(3, collate="list") for item in batch), items, "in batches, item"
        )
    left = list(items[:MOST_SHUFFLED])
    with exam.dataset(shuffle=True) as dataset:
        found = list(dataset)
    assert len(found) == len(items), f"{len(found)} items come out of a shuffle of {len(items)}"
    if len(items) > len(left):
        return
    equal = exam.case.equal or same_value
    for item in found:
        at = next((k for k, wanted in enumerate(left) if equal(item, wanted)), None)
        assert at is not None, f"a shuffle gives {_brief(item)}, which was not to come, or not twice"
        del left[at]


def _needs_little_memory(exam: _Exam) -> None:
    """Does it work in small budgets, or say that they are too small?"""
    for budget in (smallest_budget(exam.opened), *SMALL_BUDGETS):
        try:
            with exam.dataset(memory=budget) as dataset:
                exam.compare(dataset, exam.case.items, f"in {budget} bytes, item")
        except BudgetTooSmallError:
            assert budget < SMALL_BUDGETS[-1], f"{budget} bytes are too small for it"


def _travels(exam: _Exam) -> None:
    """Do pickled copies and forked processes read the same?"""
    with exam.dataset() as dataset:
        with pickle.loads(pickle.dumps(dataset)) as copy:
            exam.compare(copy, exam.case.items, "in a pickled copy, item")
        for item in dataset:
            _brief(item)
            break  # something is resident, and under way, when it forks

        def read(doing: Callable[[str], None]) -> str:
            doing("a forked process reads")
            exam.compare(dataset, exam.case.items, "in a forked process, item")
            return ""

        wrong = in_child(read, exam.patience)
    assert not wrong, wrong


def _says_what_is_missing(exam: _Exam) -> None:
    """Is a dataset that is not there a DatasetNotFoundError?"""
    missing = f"{exam.path}-nowhere"
    path = Path(exam.path)
    if path.is_file():
        missing = str(path.with_name(f"nowhere-{path.name}"))
    try:
        with exam.dataset(missing) as dataset:
            for _ in dataset:
                break
    except DatasetNotFoundError:
        return
    except Exception as error:
        raise AssertionError(f"a dataset that does not exist raises {type(error).__name__}: {error}") from error
    raise AssertionError("a dataset that does not exist is opened without an error")


def _survives_damage(exam: _Exam) -> None:
    """Does damage give a LazyStoreError or items, never another error, a crash, a hang or a flood of memory?"""
    place = copied(Path(exam.path), exam.folder)
    root = place if place.is_dir() else place.parent

    def read(doing: Callable[[str], None]) -> str:
        wrong: list[str] = []
        for damage in damages(place, exam.damage, exam.seed):
            doing(str(damage))
            file = root / damage.file
            before = file.read_bytes()
            _apply(file, damage)
            try:
                found = _read_damaged(exam, place)
            finally:
                file.write_bytes(before)
            if found:
                wrong.append(f"{damage}: {found}")
            if len(wrong) == 5:
                break
        return "; ".join(wrong)

    wrong = in_child(read, exam.patience)
    assert not wrong, wrong


def _apply(file: Path, damage: Damage) -> None:
    if damage.data is None:
        file.unlink()
    else:
        file.write_bytes(damage.data)


def _read_damaged(exam: _Exam, place: Path) -> str:
    """What is wrong with how damage is met; "" for nothing."""
    items = exam.case.items
    equal = exam.case.equal or same_value
    try:
        with exam.dataset(place, memory=SMALL_BUDGETS[1]) as dataset:
            count = 0
            for item in dataset:
                if exam.case.checked and not (count < len(items) and equal(item, items[count])):
                    return f"item {count} is {_brief(item)}, and no checksum noticed"
                count += 1
            if exam.case.checked and count != len(items):
                return f"{count} items came instead of {len(items)}, and nothing was noticed"
            for number in (0, count // 2, count - 1):
                if count:
                    dataset[number]
    except LazyStoreError:
        return ""
    except Exception as error:  # noqa: BLE001 - any other error is the finding
        return f"{type(error).__name__}: {error}"
    return ""


_QUESTIONS: tuple[Callable[[_Exam], None], ...] = (
    _opens,
    _describes_itself,
    _reads_directly,
    _begins_anywhere,
    _iterates,
    _is_recognised,
    _has_random_access,
    _batches_and_shuffles,
    _needs_little_memory,
    _travels,
    _says_what_is_missing,
    _survives_damage,
)
