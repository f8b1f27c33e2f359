"""Which datasets there are, and which of them a name or a task means."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Iterator
from typing import Any

import pytest

from lazystore.errors import ConfigError
from lazystore.hub import registry
from lazystore.hub.registry import (
    ROWS,
    DatasetSpec,
    choose,
    find_dataset,
    register_dataset,
    registered_datasets,
    unregister_dataset,
)


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    known = dict(registry._known)
    yield
    registry._known.clear()
    registry._known.update(known)


def names(specs: tuple[DatasetSpec, ...]) -> list[str]:
    return [spec.name for spec in specs]


@pytest.mark.parametrize(
    ("task", "name", "path"),
    [
        ("code", "humaneval", "code-rag-bench/humaneval"),
        ("vision", "beans", "AI-Lab-Makerere/beans"),
        ("audio", "luma", "bezirganyan/LUMA"),
        ("text", "open_platypus", "garage-bAInd/Open-Platypus"),
        ("financial", "financial_phrasebank", "takala/financial_phrasebank"),
    ],
)
def test_auto_takes_the_first_dataset_of_the_task(task: str, name: str, path: str) -> None:
    (spec,) = choose("auto", task)
    assert (spec.name, spec.path) == (name, path)


def test_auto_without_a_task_is_text() -> None:
    assert names(choose()) == names(choose("auto", None)) == ["open_platypus"]


def test_all_takes_every_dataset_of_the_task_or_of_all() -> None:
    assert names(choose("all", "code")) == ["humaneval", "ds1000"]
    assert names(choose("all", "audio")) == ["luma", "clotho_aqa"]
    assert choose("all") == ROWS


def test_names_mean_themselves_in_their_order() -> None:
    assert names(choose("beans")) == ["beans"]
    assert names(choose(["humaneval", "open_platypus"])) == ["humaneval", "open_platypus"]
    assert names(choose(("ds1000", "luma"), "text")) == ["ds1000", "luma"]


@pytest.mark.parametrize(
    ("dataset_name", "task", "told"),
    [
        ("open_platipus", None, "did you mean 'open_platypus'"),
        ("HumanEval", None, "did you mean 'humaneval'"),
        ("zzz", None, "known are luma, open_platypus"),
        (["beans", "bean"], None, "did you mean 'beans'"),
        ([], None, "at least one"),
        (["beans", "luma", "beans"], None, "'beans' twice"),
        (7, None, "must be 'auto', 'all'"),
        ([7], None, "no dataset is called 7"),
        (None, None, "must be 'auto', 'all'"),
        ("auto", "visoin", "did you mean 'vision'"),
        ("all", "nothing", "tasks are audio, text"),
        ("beans", "visoin", "did you mean 'vision'"),
        ("auto", 3, "task_type=3"),
    ],
)
def test_what_is_not_known_is_refused_with_names_like_it(dataset_name: Any, task: Any, told: str) -> None:
    with pytest.raises(ConfigError) as raised:
        choose(dataset_name, task)
    assert told in str(raised.value)


def test_a_dataset_of_ones_own_is_found_by_name_and_task() -> None:
    spec = register_dataset("mine", "me/mine", columns={"text": "body"}, task="poetry")
    assert find_dataset("mine") is spec
    assert names(choose("auto", "poetry")) == ["mine"]
    assert "mine" in registered_datasets("poetry")
    assert unregister_dataset("mine") is spec
    with pytest.raises(ConfigError, match="no dataset is called 'mine'"):
        find_dataset("mine")
    with pytest.raises(ConfigError, match="task_type='poetry'"):
        choose("auto", "poetry")


def test_a_name_that_is_taken_is_refused_unless_it_is_to_be_replaced() -> None:
    with pytest.raises(ConfigError, match="replace=True"):
        register_dataset("beans", "me/beans")
    mine = register_dataset(DatasetSpec("beans", "me/beans", task="vision"), replace=True)
    assert choose("auto", "vision") == (mine,)
    unregister_dataset("beans")
    assert find_dataset("beans").path == "AI-Lab-Makerere/beans"


def test_a_field_that_does_not_exist_is_refused_with_one_like_it() -> None:
    with pytest.raises(ConfigError, match="did you mean 'columns'"):
        register_dataset("mine", "me/mine", colums={"text": "body"})
    with pytest.raises(ConfigError, match="leave out path, task"):
        register_dataset(ROWS[0], "elsewhere", task="text")


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""},
        {"name": "auto"},
        {"name": "all"},
        {"path": ""},
        {"path": None},
        {"task": ""},
        {"processor": ""},
        {"processor": 3},
        {"modalities": ()},
        {"modalities": "text"},
        {"modalities": ("smell",)},
        {"labels": "abc"},
        {"labels": ("a", 3)},
        {"columns": {"text": ""}},
        {"columns": {"text": ()}},
        {"columns": {"text": 3}},
        {"columns": {3: "text"}},
        {"columns": ["text"]},
        {"splits": {"train": ""}},
        {"splits": "train"},
        {"config": 3},
        {"revision": ""},
    ],
)
def test_fields_that_cannot_be_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        DatasetSpec(**{"name": "mine", "path": "me/mine", **fields})


def test_a_spec_is_a_value() -> None:
    columns = {"text": ["body", "content"]}
    spec = DatasetSpec("mine", "me/mine", columns=columns, labels=["a", "b"])  # type: ignore[arg-type]
    columns["text"].append("later")
    assert spec.columns == {"text": ("body", "content")}
    assert pickle.loads(pickle.dumps(spec)) == spec
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.name = "other"  # type: ignore[misc]


def test_each_row_says_where_its_data_is_and_what_the_columns_are() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS) == 9
    for row in ROWS:
        organisation, _, repository = row.path.partition("/")
        assert organisation and repository and "/" not in repository
        assert row.columns and row.modalities and isinstance(row.processor, str)
