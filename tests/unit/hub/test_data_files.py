"""Which files make a split: the same that `datasets` would take, or a word on why not."""

from __future__ import annotations

import contextlib
import uuid
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazystore.errors import ConfigError
from lazystore.hub.data_files import Choice, NotDirect, choose, converted_card, matches

PARTS = st.sampled_from(
    ["train", "test", "validation", "dev", "data", "training-1", "my_train", "x-test-y", "eval.2", "traintest", "__pp",
     ".hid", "a train", "val", "valid_0"]
)  # fmt: skip
NAMES = st.sampled_from(
    ["train.parquet", "test.parquet", "0.parquet", "train-0.parquet", "dev_a.parquet", "all-train-0.snappy.parquet",
     "train-00000-of-00002.parquet", "test-00000-of-00001-abc.parquet", "valid.parquet", "training.parquet",
     ".train.parquet", "__x.parquet", "LICENSE", "README.md", "test", "my set-00000-of-00001.parquet"]
)  # fmt: skip
TREES = st.lists(
    st.builds(lambda folders, name: "/".join([*folders, name]), st.lists(PARTS, max_size=3), NAMES), max_size=8
)


def as_datasets(paths: list[str], patterns: dict[str, list[str]] | None = None) -> dict[str, list[str]] | None:
    """The splits that `datasets` finds in a folder with these files; None: no data."""
    import fsspec
    from datasets.data_files import DataFilesDict, EmptyDatasetError, get_data_patterns

    fs = fsspec.filesystem("memory")
    root = f"memory://hub-{uuid.uuid4().hex}"
    try:
        for path in paths:
            fs.pipe(f"{root}/{path}", b"")
        with contextlib.suppress(EmptyDatasetError, FileNotFoundError):
            found = DataFilesDict.from_patterns(patterns or get_data_patterns(root), root, [".parquet"])
            return {split: [file.partition(root[9:] + "/")[2] for file in files] for split, files in found.items()}
        return None
    finally:
        if paths:
            fs.rm(root, recursive=True)


def test_the_yardstick_measures() -> None:
    files = ["data/test-00000-of-00001.parquet", "data/train-00000-of-00001-a.parquet", "other.parquet"]
    assert as_datasets(files) == {"train": files[1:2], "test": files[:1]}
    assert as_datasets(["a/b.parquet", "README.md"]) == {"train": ["a/b.parquet"]}


@given(TREES)
@settings(max_examples=40, deadline=None)
def test_default_splits_are_those_of_datasets(tree: list[str]) -> None:
    paths = sorted(set(tree) - {path for path in tree if any(other.startswith(path + "/") for other in tree)})
    try:
        expected = as_datasets(paths)
    except ValueError as error:  # names a split as none can be called
        assert "Split name" in str(error)
        with pytest.raises(NotDirect, match="no name of one"):
            choose("o/n", {}, paths, None, "train")
        return
    if not expected or not all(expected.values()):  # of splits without data it would not know the kind
        with pytest.raises((NotDirect, ConfigError)):
            choose("o/n", {}, paths, None, "train")
        return
    for split, files in expected.items():
        if len(set(files)) < len(files):
            with pytest.raises(NotDirect, match="more than once"):
                choose("o/n", {}, paths, None, split)
        else:
            assert choose("o/n", {}, paths, None, split).files == tuple(files)
    with pytest.raises((ConfigError, NotDirect)):
        choose("o/n", {}, paths, None, "absent")


GLOBS = st.sampled_from(["*", "**", "train*", "*-[0-9]*", "data", "?al*", "[!t]*", "__pp", ".hid", "*.parquet"])


@given(TREES, st.lists(GLOBS, min_size=1, max_size=3))
@settings(max_examples=80, deadline=None)
def test_patterns_take_what_they_take_in_datasets(tree: list[str], parts: list[str]) -> None:
    paths = sorted(set(tree) - {path for path in tree if any(other.startswith(path + "/") for other in tree)})
    pattern = "/".join(parts)
    expected = as_datasets(paths, {"train": [pattern]}) or {}
    card = {"configs": [{"config_name": "default", "data_files": pattern}]}
    try:
        found = choose("o/n", card, paths, None, "train").files
    except NotDirect:
        assert not expected.get("train") or any("." not in path.rpartition("/")[2] or not path.endswith(".parquet")
                                                for path in matches(pattern, paths))  # fmt: skip
    else:
        assert list(found) == expected["train"]


# -- cards -------------------------------------------------------------------------------------

FILES = ["README.md", "a/train.parquet", "a/test.parquet", "b/1.parquet", "b/2.parquet", "c/x.csv"]
TWO: dict[str, Any] = {
    "configs": [
        {
            "config_name": "a",
            "data_files": [{"split": "train", "path": "a/train*"}, {"split": "test", "path": ["a/te*"]}],
        },
        {"config_name": "b", "data_files": ["b/2.parquet", "b/1.parquet"], "default": True},
    ],
    "dataset_info": [
        {"config_name": "a", "splits": []},
        {"config_name": "b", "features": [{"name": "x", "dtype": "int8"}]},
    ],
}


def test_card_says_config_and_split() -> None:
    assert choose("o/n", TWO, FILES, "a", "test") == Choice("a", "test", ("a/test.parquet",), TWO["dataset_info"][0])
    assert choose("o/n", TWO, FILES, None, "train") == Choice(
        "b", "train", ("b/2.parquet", "b/1.parquet"), TWO["dataset_info"][1]
    )


def test_one_config_is_the_default_one() -> None:
    card = {"configs": [{"config_name": "only", "data_dir": "a"}], "dataset_info": {"config_name": "only"}}
    assert choose("o/n", card, FILES, None, "test") == Choice(
        "only", "test", ("a/test.parquet",), {"config_name": "only"}
    )


def test_info_of_a_card_without_configs() -> None:
    card = {"dataset_info": {"features": [{"name": "x", "dtype": "int8"}]}}
    assert choose("o/n", card, ["train.parquet"], None, "train").info == card["dataset_info"]
    assert choose("o/n", {}, ["train.parquet"], None, "train").info == {}


@pytest.mark.parametrize(
    ("card", "config", "split", "words"),
    [
        (TWO, "c", "train", r"no config 'c', it has 'a', 'b'"),
        (TWO, "a", "validation", r"config 'a' of o/n has no split 'validation', it has 'train', 'test'"),
        ({"configs": [TWO["configs"][0], {"config_name": "z"}]}, None, "train", "several configs.*'a', 'z'"),
        ({}, "other", "train", "no config 'other', it has only one"),
        ({}, None, "train[:5]", "must be one of"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_named(card: dict[str, Any], config: str | None, split: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        choose("o/n", card, FILES[:5], config, split)


@pytest.mark.parametrize(
    ("card", "files", "reason"),
    [
        ({"configs": [{"config_name": "a", "data_files": "c/*"}]}, FILES, "not all Parquet"),
        ({"configs": [{"config_name": "c", "data_files": "c/*"},
                      {"config_name": "a", "default": True, "data_files": "a/*"}]}, FILES, "not all Parquet"),
        ({"configs": [{"config_name": "a", "data_files": "a/*", "columns": ["x"]}]}, FILES, "says.*columns"),
        ({"configs": [{"config_name": "a", "data_files": "https://there/x.parquet"}]}, FILES, "elsewhere"),
        ({"configs": [{"config_name": "a", "data_files": "../x.parquet"}]}, FILES, "elsewhere"),
        ({"configs": [{"config_name": "a", "data_files": "a/*"}, {"config_name": "default", "data_files": "b/*"},
                      {"config_name": "z", "data_files": "b/*", "default": True}]}, FILES, "several default"),
        ({"configs": [{"config_name": "a", "data_files": ["a/train*", "a/*"]}]}, FILES, "more than once"),
        ({"configs": [{"config_name": "a", "data_files": "z/*"}]}, FILES, "no data files"),
        ({"configs": [{"config_name": "a", "data_files": "a/**.parquet"}]}, FILES, r"'\*\*' is only a part"),
        ({"configs": {"a": 1}}, FILES, "no list"),
        ({}, ["n.py", "train.parquet"], "script"),
        ({}, [".huggingface.yaml", "train.parquet"], "huggingface.yaml"),
        ({}, ["train.parquet", "train.zip"], "not all Parquet"),
        ({}, ["train.csv", "train-2.csv", "train.parquet"], "not all Parquet"),
        ({}, ["train.parquet.crc", "train.parquet"], "not all Parquet"),
        ({}, ["run.eval"], "other kinds"),
    ],
)  # fmt: skip
def test_what_is_not_plain_says_why(card: dict[str, Any], files: list[str], reason: str) -> None:
    with pytest.raises(NotDirect, match=reason):
        choose("o/n", card, files, None, "train")


def test_configs_of_a_converted_branch_are_its_folders() -> None:
    files = [
        ".gitattributes",
        "one/train/0000.parquet",
        "one/train/0001.parquet",
        "one/test/0000.parquet",
        "two/train/0000.parquet",
    ]
    card = converted_card(files)
    assert choose("o/n", card, files, "one", "train").files == ("one/train/0000.parquet", "one/train/0001.parquet")
    assert choose("o/n", card, files, "two", "train").files == ("two/train/0000.parquet",)
    assert converted_card([".gitattributes"]) == {"configs": []}
