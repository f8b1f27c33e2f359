"""Which datasets `MultimodalDataset` knows, as data: one row each, and which of them a name or a task means.

To add one is to add a row, here or with :func:`register_dataset`. What is made of a dataset's samples is in
``samples``; nothing here reads anything.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from lazystore.errors import ConfigError
from lazystore.hub.near import near

__all__ = [
    "MODALITIES",
    "DatasetSpec",
    "choose",
    "find_dataset",
    "register_dataset",
    "registered_datasets",
    "unregister_dataset",
]

MODALITIES = ("text", "image", "audio")
#: Words that ``dataset_name`` keeps for itself.
_RESERVED = ("auto", "all")
#: Of which task ``"auto"`` takes a dataset when none is named.
DEFAULT_TASK = "text"


@dataclass(frozen=True)
class DatasetSpec:
    """One dataset: where it is, and what its columns mean. A value: it compares, pickles and is never changed.

    Attributes:
        name: what users call it.
        path: hub id (``"org/name"``), or any other source that :class:`StreamingDatasetWrapper` reads: an iterable,
            a function that makes one, a ``StreamingDataset``...; or a mapping of splits to these. A single source has
            no splits: it is read whatever split is asked for.
        config: the hub's name of the part, if it has several.
        splits: split as asked for -> split as the source calls it; one that is not in it is asked for as it is.
        columns: what a column is for (its role: ``"text"``, ``"question"``, ``"label"``; each processor has its own)
            -> the column, or several of which the first one that a sample has is taken.
        modalities: of its samples, out of ``"text"``, ``"image"`` and ``"audio"``.
        task: what it is for; ``task_type=`` finds it by this.
        processor: what makes the sample of the columns: a processor's name (see :mod:`lazystore.hub.samples`), or a
            function ``(spec, row, index, encode, config) -> dict``.
        revision: branch, tag or commit on the hub.
        labels: names of the classes, by number.

    Raises:
        ConfigError: a field that cannot be; the message names it.
    """

    name: str
    path: Any
    config: str | None = None
    splits: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    modalities: tuple[str, ...] = ("text",)
    task: str = DEFAULT_TASK
    processor: str | Callable[..., dict[str, Any]] = "multimodal"
    revision: str | None = None
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _text("name", self.name)
        if self.name in _RESERVED:
            raise ConfigError(f"name={self.name!r} has a meaning of its own in dataset_name=; choose another name")
        _text("task", self.task)
        if isinstance(self.path, str):
            _text("path", self.path)
        elif self.path is None:
            raise ConfigError(f"dataset {self.name!r}: path=None; give a hub id such as 'org/name', or a source")
        if not callable(self.processor):
            _text("processor", self.processor)
        for name in ("config", "revision"):
            if getattr(self, name) is not None:
                _text(name, getattr(self, name))
        modalities = _names("modalities", self.modalities)
        if not modalities or not set(modalities) <= set(MODALITIES):
            raise ConfigError(f"modalities={modalities!r} of {self.name!r} must be some of {', '.join(MODALITIES)}")
        splits = {asked: _text("splits", there) for asked, there in _mapping("splits", self.splits)}
        columns = {
            role: column if isinstance(column, str) and column else _names("columns", column, least=1)
            for role, column in _mapping("columns", self.columns)
        }
        # copies: a value does not change with what it was made of
        for name, value in (
            ("modalities", modalities),
            ("splits", splits),
            ("columns", columns),
            ("labels", _names("labels", self.labels)),
        ):
            object.__setattr__(self, name, value)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{name}={value!r} must be a string that is not empty")
    return value


def _mapping(name: str, value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name}={value!r} must be a mapping of strings")
    return [(_text(name, key), found) for key, found in value.items()]


def _names(name: str, values: Any, least: int = 0) -> tuple[str, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ConfigError(f"{name}={values!r} must be a tuple of strings")
    found = tuple(values)
    if len(found) < least or not all(isinstance(value, str) and value for value in found):
        raise ConfigError(f"{name}={values!r} must be a tuple of strings that are not empty")
    return found


#: The datasets that lazystore brings along: a task's first one is what ``"auto"`` takes.
ROWS = (
    DatasetSpec(
        name="luma",
        path="bezirganyan/LUMA",
        columns={"audio": "audio", "text": ("text", "transcript", "transcription"), "label": ("label", "labels")},
        modalities=("audio", "text"),  # its images are to be compiled with a tool of its own
        task="audio",
        processor="audio_text",
    ),
    DatasetSpec(
        name="open_platypus",
        path="garage-bAInd/Open-Platypus",
        columns={"instruction": "instruction", "input": "input", "output": "output"},
        task="text",
        processor="instruction",
    ),
    DatasetSpec(
        name="humaneval",
        path="code-rag-bench/humaneval",
        splits={"test": "train"},  # it has one split
        columns={"prompt": "prompt", "solution": "canonical_solution"},
        task="code",
        processor="code",
    ),
    DatasetSpec(
        name="clotho_aqa",
        path="lmms-lab/ClothoAQA",
        config="clotho_aqa",
        splits={
            "train": "clotho_aqa_val_filtered",  # there is none for training
            "validation": "clotho_aqa_val_filtered",
            "test": "clotho_aqa_test_filtered",
        },
        columns={"audio": "audio", "question": ("question", "QuestionText"), "answer": "answer"},
        modalities=("audio", "text"),
        task="audio",
        processor="audio_qa",
    ),
    DatasetSpec(
        name="beans",
        path="AI-Lab-Makerere/beans",
        columns={"image": "image", "label": "labels"},
        modalities=("image",),
        task="vision",
        processor="image_classification",
        labels=("angular_leaf_spot", "bean_rust", "healthy"),
    ),
    DatasetSpec(
        name="prosocial_dialog",
        path="allenai/prosocial-dialog",
        columns={"context": "context", "response": "response", "label": "safety_label"},
        task="text",
        processor="dialog",
        labels=(
            "__casual__",
            "__possibly_needs_caution__",
            "__probably_needs_caution__",
            "__needs_caution__",
            "__needs_intervention__",
        ),
    ),
    DatasetSpec(
        name="logicqa",
        path="lucasmccabe/logiqa",
        columns={"context": "context", "question": "query", "options": "options", "answer": "correct_option"},
        task="text",
        processor="qa",
        revision="refs/convert/parquet",  # the main branch is a script, which nobody runs any more
    ),
    DatasetSpec(
        name="financial_phrasebank",
        path="takala/financial_phrasebank",
        config="sentences_allagree",
        columns={"text": "sentence", "label": "label"},
        task="financial",
        processor="classification",
        revision="refs/convert/parquet",
        labels=("negative", "neutral", "positive"),
    ),
    DatasetSpec(
        name="ds1000",
        path="xlangai/DS-1000",
        splits={"train": "test"},  # it has one split
        columns={"prompt": "prompt", "solution": "reference_code"},
        task="code",
        processor="code",
    ),
)
_known: dict[str, DatasetSpec] = {row.name: row for row in ROWS}


def register_dataset(spec: DatasetSpec | str, path: Any = None, *, replace: bool = False, **fields: Any) -> DatasetSpec:
    """Make a dataset known in this process, under its name; processes that are spawned have to do so again.

    Parameters:
        spec: the dataset, or its name; then the other fields of :class:`DatasetSpec` follow.
        replace: take the place of a dataset of that name.

    Returns:
        What was registered.

    Raises:
        ConfigError: a field cannot be, or there is a dataset of that name. A MultimodalDataset that exists already
            keeps the datasets it was made with.

    Any thread.
    """
    if isinstance(spec, DatasetSpec):
        if path is not None or fields:
            given = ", ".join([*(["path"] if path is not None else []), *fields])
            raise ConfigError(f"a DatasetSpec says it all: leave out {given}, or use dataclasses.replace")
    else:
        known = [one.name for one in dataclasses.fields(DatasetSpec)]
        for name in fields:
            if name not in known:
                raise ConfigError(f"a dataset has no {name!r}{near(name, known)}; its fields are {', '.join(known)}")
        spec = DatasetSpec(name=spec, path=path, **fields)
    if replace:
        _known[spec.name] = spec
    elif _known.setdefault(spec.name, spec) is not spec:
        raise ConfigError(f"there is a dataset {spec.name!r}; choose another name, or replace=True")
    return spec


def unregister_dataset(name: str) -> DatasetSpec:
    """Forget a dataset; one of lazystore's own that was replaced comes back. Returns what was registered.

    Raises:
        ConfigError: no dataset has this name.
    """
    spec = find_dataset(name)
    own = next((row for row in ROWS if row.name == name), None)
    if own is not None and own is not spec:
        _known[name] = own
    else:
        _known.pop(name, None)
    return spec


def registered_datasets(task: str | None = None) -> dict[str, DatasetSpec]:
    """The datasets that are known, by name, in the order they came; of one task, or of all."""
    return {name: spec for name, spec in list(_known.items()) if task is None or spec.task == task}


def find_dataset(name: str) -> DatasetSpec:
    """The dataset of this name.

    Raises:
        ConfigError: there is none; names like it are named.
    """
    spec = _known.get(name) if isinstance(name, str) else None
    if spec is None:
        raise ConfigError(
            f"no dataset is called {name!r}{near(name, _known)}; known are {', '.join(_known)};"
            " register_dataset() adds yours"
        )
    return spec


def choose(dataset_name: str | Sequence[str] = "auto", task_type: str | None = None) -> tuple[DatasetSpec, ...]:
    """The datasets that ``MultimodalDataset``'s arguments of these names mean, in order.

    Parameters:
        dataset_name: ``"auto"``: the first one of the task; ``"all"``: all of the task, of every task without one; a
            name; or names. With names the task has no say.
        task_type: a task of the registered datasets; None for ``"auto"`` is ``"text"``.

    Raises:
        ConfigError: a name or task that is not known (names like it are named), none, or one that is given twice.
    """
    if task_type is not None:
        _check_task(task_type)
    if dataset_name == "auto":
        return (next(iter(_of_task(task_type or DEFAULT_TASK))),)
    if dataset_name == "all":
        return _of_task(task_type)
    if isinstance(dataset_name, str):
        return (find_dataset(dataset_name),)
    if not isinstance(dataset_name, Iterable) or isinstance(dataset_name, (Set, Mapping)):
        raise ConfigError(f"dataset_name={dataset_name!r} must be 'auto', 'all', a name, or a list of names")
    names = list(dataset_name)
    if not names:
        raise ConfigError("dataset_name=[] names no dataset; give at least one, or 'auto'")
    found = tuple(map(find_dataset, names))
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"dataset_name has {twice!r} twice; to have more of it, give it a larger share with weights=")
    return found


def _of_task(task: str | None) -> tuple[DatasetSpec, ...]:
    if task is not None:
        _check_task(task)
    found = tuple(registered_datasets(task).values())
    if not found:
        raise ConfigError("no dataset is registered; register_dataset() adds one")
    return found


def _check_task(task: Any) -> None:
    tasks = list(dict.fromkeys(spec.task for spec in list(_known.values())))
    if task not in tasks:
        raise ConfigError(
            f"task_type={task!r} is no task of a registered dataset{near(task, tasks)}; tasks are {', '.join(tasks)}"
        )
