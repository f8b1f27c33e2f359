"""A source over a filesystem object: its own bytes, whatever kind it is, and never an old listing."""

from __future__ import annotations

import pickle

import fsspec
import pytest

from lazystore.errors import DatasetNotFoundError
from lazystore.fetch.mounted import MountedSource
from lazystore.fetch.source import Read
from lazystore.testing import FaultyFileSystem


@pytest.fixture(params=["memory", "faulty"])
def source(request: pytest.FixtureRequest):
    if request.param == "memory":
        fs = fsspec.filesystem("memory")
        fs.pipe_file("/mounted/a", b"0123456789")
    else:
        fs = FaultyFileSystem(files={"/mounted/a": b"0123456789"})
    mounted = MountedSource(fs)
    yield mounted
    mounted.close()


def test_names_are_the_filesystems_paths(source: MountedSource) -> None:
    buffer = bytearray(4)
    assert source.run([Read("/mounted/a", 3, memoryview(buffer))], stat=["/mounted/a"], timeout=10) == {
        "/mounted/a": 10
    }
    assert buffer == b"3456"
    with pytest.raises(DatasetNotFoundError, match="mounted/none"):
        source.run([Read("/mounted/none", 0, memoryview(buffer))], timeout=10)


def test_it_pickles_with_its_filesystem() -> None:
    fsspec.filesystem("memory").pipe_file("/mounted/b", b"hello")
    copy = pickle.loads(pickle.dumps(MountedSource(fsspec.filesystem("memory"))))
    assert copy.read_all("/mounted/b", limit=10, timeout=10) == b"hello"
    copy.close()
