"""The facade exports what it lists; every module introduces itself and stays short."""

from __future__ import annotations

import ast
import importlib
import tomllib
from pathlib import Path

import pytest

import lazystore

PACKAGE = Path(__file__).parents[2] / "lazystore"
MAX_LINES = 600

MODULES = sorted(p for p in PACKAGE.rglob("*") if p.suffix in {".py", ".pyx"})
NEED_TORCH = {"StreamingDataLoader"}
STARTS_WORK = {"lazystore.__main__"}  # importing it runs the command


def _id(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def _name(path: Path) -> str:
    parts = ["lazystore", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("name", lazystore.__all__)
def test_exported_name_is_there(name: str) -> None:
    if name in NEED_TORCH:
        pytest.importorskip("torch")
    assert getattr(lazystore, name) is not None
    assert name in dir(lazystore)


def test_all_is_sorted_and_without_repeats() -> None:
    names = list(lazystore.__all__)
    assert names == sorted(set(names))


def test_version_is_the_one_that_is_packaged() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert lazystore.__version__ == project["version"]


def test_unknown_name_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        lazystore.no_such_name  # noqa: B018


@pytest.mark.parametrize("path", MODULES, ids=_id)
def test_module_opens_with_a_docstring(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        doc = ast.get_docstring(ast.parse(text))
        assert doc, "say what lives here and what does not"
        return
    # Cython: directive comments may come first, then the docstring
    lines = [line.strip() for line in text.splitlines()]
    first = next(line for line in lines if line and not line.startswith("#"))
    assert first.lstrip("rR").startswith('"""')


@pytest.mark.parametrize("path", MODULES, ids=_id)
def test_module_is_short_enough_to_read(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_LINES, f"{lines} lines: split it by noun"


@pytest.mark.parametrize("name", sorted({_name(p) for p in MODULES} - STARTS_WORK))
def test_module_imports_without_optional_packages_in_use(name: str) -> None:
    if name.startswith("lazystore.adapters.torch"):
        pytest.importorskip("torch")
    assert importlib.import_module(name).__name__ == name


def test_cython_modules_have_stubs() -> None:
    modules = [path for path in MODULES if path.suffix == ".pyx"]
    assert modules
    for path in modules:
        assert path.with_suffix(".pyi").exists(), f"{path.name} has no .pyi"
