"""Files of a folder appear whole or not at all, on disks, object stores and other filesystems."""

from __future__ import annotations

import hashlib
import os
import pickle
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from models import classic

from lazystore import StreamingDataset
from lazystore.errors import ConfigError, DatasetNotFoundError, WriteError
from lazystore.formats import chunk_files
from lazystore.formats.chunk_files import Folder, open_folder
from lazystore.formats.writer import DatasetWriter


class OpenDisk(MemoryFileSystem):  # type: ignore[misc]
    """A filesystem that shows files while they are written, like most that are no object stores."""

    protocol = "opendisk"
    store: dict[str, Any] = {}  # noqa: RUF012 - fsspec's own way
    pseudo_dirs: list[str] = [""]  # noqa: RUF012
    #: operations that fail, and what was seen under each name
    broken: set[str] = set()  # noqa: RUF012
    seen: list[tuple[str, str]] = []  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path.replace("opendisk://", "memory://"))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        type(self).seen.append(("pipe", path))
        super().pipe_file(path, value[: len(value) // 2])
        if "pipe" in self.broken:
            raise TimeoutError("gone away")
        super().pipe_file(path, value)

    def mv(self, path1: str, path2: str, **kwargs: Any) -> None:
        type(self).seen.append(("mv", path2))
        if "mv" in self.broken:
            raise PermissionError(13, "no")
        super().mv(path1, path2, **kwargs)

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        if "ls" in self.broken:
            raise NotImplementedError
        return super().ls(path, detail, **kwargs)


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    fsspec.register_implementation("opendisk", OpenDisk, clobber=True)
    yield
    for kind in (MemoryFileSystem, OpenDisk):
        kind.store.clear()
        kind.pseudo_dirs[:] = [""]
    OpenDisk.broken.clear()
    OpenDisk.seen.clear()


@pytest.fixture(params=["local", "memory", "opendisk"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    return open_folder(tmp_path / "folder" if request.param == "local" else f"{request.param}://bucket/folder")


def test_a_folder_that_is_not_there_is_empty(folder: Folder) -> None:
    assert folder.names() == []
    folder.delete("nothing")
    folder.sweep()
    with pytest.raises(DatasetNotFoundError):
        folder.read("nothing")


def test_what_is_written_is_there_with_its_digest(folder: Folder) -> None:
    folder.prepare()
    written = folder.write("b", [b"one", b"", b"two"], digest=True)
    assert (written.nbytes, written.digest) == (6, hashlib.blake2b(b"onetwo", digest_size=16).hexdigest())
    assert folder.write("a", []).digest == ""
    folder.write("keys/k", [b"key"])
    assert folder.names() == ["a", "b"]
    assert folder.names("keys") == ["k"]
    assert folder.read("b") == b"onetwo"
    folder.write("b", [b"three"])
    assert folder.read("b") == b"three"
    folder.settle(["a", "b", "keys/k"])
    folder.delete("b")
    assert folder.names() == ["a"]


def test_what_fails_to_be_made_leaves_the_old_file_and_no_other(folder: Folder) -> None:
    folder.prepare()
    folder.write("a", [b"old"])

    def pieces() -> Iterator[bytes]:
        yield b"new"
        raise ZeroDivisionError("half way")

    with pytest.raises(ZeroDivisionError, match="half way"):
        folder.write("a", pieces())
    with pytest.raises(ZeroDivisionError, match="half way"):
        folder.write("b", pieces())
    assert folder.names() == ["a"]
    assert folder.read("a") == b"old"


def test_only_our_own_temporary_files_are_swept(folder: Folder) -> None:
    folder.prepare()
    mine = [".chunk-0-0.bin.7.tmp", ".index.json.12.tmp", ".0.index.json.9.tmp"]
    others = [".bashrc.1.tmp", "chunk-0-0.bin", ".chunk-0-0.bin.tmp"]
    for name in (*mine, *others, "keys/.shard-00000.parquet.3.tmp"):
        folder.write(name, [b"x"])
    folder.sweep()
    assert folder.names() == sorted(others)
    assert folder.names("keys") == []


def test_folders_travel_to_other_processes(folder: Folder) -> None:
    folder.prepare()
    folder.write("a", [b"data"])
    assert pickle.loads(pickle.dumps(folder)).read("a") == b"data"


def test_whole_datasets_go_to_urls(folder: Folder) -> None:
    url = folder.url
    with DatasetWriter(url, chunk_size=4) as writer:
        for i in range(10):
            writer.write({"id": i})
    assert folder.names() == ["chunk-0-0.bin", "chunk-0-1.bin", "chunk-0-2.bin", "index.json"]
    with DatasetWriter(url, mode="append") as writer:
        writer.write({"id": 10})
    with StreamingDataset(url, memory="4MB") as dataset:
        assert [sample["id"] for sample in dataset] == list(range(11))
    with DatasetWriter(url, mode="overwrite") as writer:
        writer.write({"id": 5})
    assert folder.names() == ["chunk-0-0-v1.bin", "index.json"]
    with pytest.raises(ConfigError, match="holds a dataset"):
        DatasetWriter(url)


def test_where_files_are_seen_early_they_are_moved_into_place() -> None:
    folder = open_folder("opendisk://bucket/folder")
    folder.write("a", [b"data"])
    assert [op for op, _ in OpenDisk.seen] == ["pipe", "mv"]
    assert OpenDisk.seen[0][1].endswith(f"/.a.{os.getpid()}.tmp")
    open_folder("memory://bucket/folder").write("a", [b"data"])
    assert folder.names() == ["a"]


@pytest.mark.parametrize("broken", ["pipe", "mv"])
def test_a_storage_that_refuses_is_a_typed_error_and_leaves_no_half_file(broken: str) -> None:
    folder = open_folder("opendisk://bucket/folder")
    folder.write("a", [b"old"])
    OpenDisk.broken.add(broken)
    with pytest.raises(WriteError, match="could not be written") as caught:
        folder.write("a", [b"new!"])
    assert isinstance(caught.value, OSError)
    assert caught.value.errno == (13 if broken == "mv" else 5)
    assert caught.value.filename == "opendisk://bucket/folder/a"
    assert folder.names() == ["a"]
    assert folder.read("a") == b"old"
    OpenDisk.broken.clear()
    folder.write("a", [b"new!"])
    assert folder.read("a") == b"new!"


def test_a_writer_goes_on_after_a_chunk_that_could_not_be_sent() -> None:
    with DatasetWriter("opendisk://bucket/d", chunk_size=2) as writer:
        for i in range(2):
            writer.write({"id": i})
        OpenDisk.broken.add("pipe")
        with pytest.raises(WriteError):
            writer.write({"id": 2})
        OpenDisk.broken.clear()
        for i in range(2, 5):
            writer.write({"id": i})
    with StreamingDataset("opendisk://bucket/d", memory="4MB") as dataset:
        assert [sample["id"] for sample in dataset] == list(range(5))


def test_storages_that_only_read_say_so() -> None:
    OpenDisk.broken.add("ls")
    with pytest.raises(ConfigError, match="only reads"):
        DatasetWriter("opendisk://bucket/d")


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("nosuch://bucket/d", None, "nosuch"),
        ("memory://d", {"no_such_option": object}, None),
        ("local:{}", {"key": "x"}, "local path"),
    ],
)
def test_urls_that_cannot_work_are_refused(url: str, options: Any, message: str | None, tmp_path: Path) -> None:
    if message is None:
        open_folder(url, options)  # fsspec takes any option here
        return
    with pytest.raises(ConfigError, match=message):
        open_folder(url.format(tmp_path), options)


def test_passwords_in_urls_stay_out_of_messages() -> None:
    assert "secret" not in open_folder("http://me:secret@localhost:1/d").url


# --- disks ------------------------------------------------------------------------------------------


def test_full_disk_is_a_typed_error_with_errno_and_path_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = 5000
    write = os.write

    def small(descriptor: int, data: Any) -> int:
        nonlocal left
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            if left == 0:
                raise OSError(28, "No space left on device")
            data = memoryview(data)[:left]
            left -= len(data)
        return write(descriptor, data)

    with DatasetWriter(tmp_path, chunk_bytes=2000) as writer:
        writer.write(b"fits")
    before = sorted(os.listdir(tmp_path))
    monkeypatch.setattr(chunk_files.os, "write", small)
    with pytest.raises(WriteError, match="No space left") as caught:
        with DatasetWriter(tmp_path, chunk_bytes=2000, mode="append") as writer:
            for _ in range(100):
                writer.write(b"x" * 500)
    assert caught.value.errno == 28
    assert str(caught.value.filename).startswith(str(tmp_path / "chunk-0-"))
    assert sorted(os.listdir(tmp_path)) == before
    assert list(classic.samples(tmp_path)) == [b"fits"]


def test_short_writes_are_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(chunk_files.os, "write", lambda descriptor, data: write(descriptor, memoryview(data)[:7]))
    with DatasetWriter(tmp_path) as writer:
        writer.write("text that is longer than seven bytes")
    assert list(classic.samples(tmp_path)) == ["text that is longer than seven bytes"]


def test_settling_a_file_that_is_gone_is_an_error(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    with pytest.raises(WriteError) as caught:
        folder.settle(["gone"])
    assert caught.value.errno == 2
