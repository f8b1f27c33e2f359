"""What the package registers with others is there, and is found where it is installed."""

from __future__ import annotations

import importlib
import importlib.metadata
import tomllib
from pathlib import Path

import pytest

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
GROUPS = {"console_scripts": PROJECT["scripts"], **PROJECT["entry-points"]}
ENTRIES = [(group, name, value) for group, entries in GROUPS.items() for name, value in entries.items()]


@pytest.mark.parametrize(("group", "name", "value"), ENTRIES)
def test_an_entry_point_names_something(group: str, name: str, value: str) -> None:
    module, _, attribute = value.partition(":")
    assert callable(getattr(importlib.import_module(module), attribute))


def test_fsspec_finds_the_protocol_where_the_package_is_installed() -> None:
    try:
        importlib.metadata.distribution("lazystore")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("imported from a checkout")
    found = importlib.metadata.entry_points(group="fsspec.specs", name="lazystore")
    assert [entry.load().protocol for entry in found] == ["lazystore"]
