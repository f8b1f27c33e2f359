"""Arguments of datasets: each reaches :class:`StreamingDataset` under its name."""

from __future__ import annotations

from typing import Any

import pytest

from lazystore import cli
from lazystore.commands.options import dataset_arguments
from lazystore.errors import ConfigError


def given_by(*words: str) -> dict[str, Any]:
    return dataset_arguments(cli.grammar(["head", "somewhere", *words]))


def test_nothing_that_was_not_given_is_passed_on() -> None:
    assert given_by() == {}


def test_every_option_has_its_argument() -> None:
    assert given_by("--memory", "4MB", "--format", "mds", "--allow-pickle", "--format-option", "delimiter=;") == {
        "memory": "4MB", "format": "mds", "allow_pickle": True, "format_options": {"delimiter": ";"}
    }  # fmt: skip


def test_values_that_are_json_are_taken_as_such_and_single_options_win() -> None:
    line = ["--storage-options", '{"anon": false, "retries": 2}', "--storage-option", "anon=true"]
    line += ["--storage-option", "key=a=b", "--storage-option", 'client_kwargs={"region_name": "eu"}']
    assert given_by(*line) == {
        "storage_options": {"anon": True, "retries": 2, "key": "a=b", "client_kwargs": {"region_name": "eu"}}
    }


def test_password_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    class Encryption:
        @staticmethod
        def load(path: str, password: str) -> tuple[str, str]:
            return path, password

    monkeypatch.setattr("lazystore.formats.encryption.FernetEncryption", Encryption)
    monkeypatch.setenv("SECRET", "opensesame")
    assert given_by("--encryption-key", "k", "--password-env", "SECRET") == {"encryption": ("k", "opensesame")}
    with pytest.raises(ConfigError, match="no such environment variable"):
        given_by("--encryption-key", "k", "--password-env", "NOT_SET_ANYWHERE")
    with pytest.raises(ConfigError, match="--password-env NAME"):
        given_by("--encryption-key", "k")
    with pytest.raises(ConfigError, match="needs --encryption-key"):
        given_by("--password-env", "SECRET")
