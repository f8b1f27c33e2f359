"""A worker finds the world that its caller has."""

from __future__ import annotations

import os
import pickle
import sys
import types
from pathlib import Path

import pytest

from lazystore.parallel.workers.inner_threads import OURS
from lazystore.parallel.workers.surroundings import Surroundings


def main_module(monkeypatch: pytest.MonkeyPatch, **attributes: object) -> tuple[str, str]:
    module = types.ModuleType("__main__")
    for name, value in attributes.items():
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, "__main__", module)
    return Surroundings.capture().main


def test_programs_are_imported_the_way_they_were_started(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = types.SimpleNamespace(name="package.tool")
    assert main_module(monkeypatch, __spec__=spec) == ("name", "package.tool")
    assert main_module(monkeypatch, __file__=__file__) == ("path", __file__)


@pytest.mark.parametrize("file", ["<stdin>", "/lazystore/nowhere.py", None])
def test_sessions_cannot_be_imported(monkeypatch: pytest.MonkeyPatch, file: str | None) -> None:
    assert main_module(monkeypatch, **({} if file is None else {"__file__": file})) == ("", "")


def test_nor_can_a_package_that_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("__main__", "package.__main__"):
        assert main_module(monkeypatch, __spec__=types.SimpleNamespace(name=name)) == ("", "")


def test_what_is_applied_is_what_was_captured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, "", "/lazystore/test"])
    monkeypatch.setattr(sys, "argv", ["program", "1"])
    monkeypatch.setenv("LAZYSTORE_TEST", "there")
    monkeypatch.chdir(tmp_path)
    there: Surroundings = pickle.loads(pickle.dumps(Surroundings.capture()))
    assert there.path[-2:] == [str(tmp_path), "/lazystore/test"]

    monkeypatch.chdir("/")
    monkeypatch.setattr(sys, "path", ["/lazystore/other"])
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.delenv("LAZYSTORE_TEST")
    monkeypatch.setenv("LAZYSTORE_OTHER", "only here")
    there.apply()
    assert os.getcwd() == str(tmp_path)
    assert sys.path == there.path
    assert sys.argv == ["program", "1"]
    assert os.environ["LAZYSTORE_TEST"] == "there"
    assert "LAZYSTORE_OTHER" not in os.environ


def test_limits_that_lazystore_put_into_a_worker_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    caller = Surroundings.capture()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MKL_NUM_THREADS", "1")
    monkeypatch.setenv(OURS, "OMP_NUM_THREADS,MKL_NUM_THREADS")
    caller.apply()
    assert os.environ["OMP_NUM_THREADS"] == "1"
    assert os.environ["MKL_NUM_THREADS"] == "3"  # the user's wins
    assert os.environ[OURS] == "OMP_NUM_THREADS"
