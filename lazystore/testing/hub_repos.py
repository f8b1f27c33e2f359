"""Dataset repositories of a local hub: files, commits, refs, who may read, and how the API lists them.

Plain values; knows neither HTTP nor where the bytes lie.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import posixpath
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lazystore.errors import ConfigError

__all__ = ["Commit", "HubFile", "Repo", "commit_of", "store_file"]

MAIN = "main"
POINTER_SIZE = 135
COPIED_AT_ONCE = 1 << 20
DATE = "2024-01-01T00:00:00.000Z"


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a commit.

    Attributes:
        path: inside the repository.
        size: bytes.
        oid: what git calls the content: SHA-1 over a header and the bytes.
        sha256: of the bytes; the name under which they are kept.
        lfs: kept beside git, so that asking for it leads to another server.
    """

    path: str
    size: int
    oid: str
    sha256: str
    lfs: bool

    def sibling(self, *, blobs: bool) -> dict[str, Any]:
        """The entry in a repository's description, with sizes if ``blobs``."""
        found: dict[str, Any] = {"rfilename": self.path}
        if blobs:
            found |= {"blobId": self.oid, "size": self.size}
            if self.lfs:
                found["lfs"] = {"sha256": self.sha256, "size": self.size, "pointerSize": POINTER_SIZE}
        return found

    def entry(self, *, expand: bool) -> dict[str, Any]:
        """The entry in a listing."""
        found: dict[str, Any] = {"type": "file", "oid": self.oid, "size": self.size, "path": self.path}
        if self.lfs:
            found["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": POINTER_SIZE}
        if expand:
            found["lastCommit"] = {"id": self.oid, "title": "Add files", "date": DATE}
        return found


def folder_entry(path: str) -> dict[str, Any]:
    """The entry of a folder in a listing."""
    return {"type": "directory", "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0, "path": path}


@dataclass(frozen=True, slots=True)
class Commit:
    """A state of a repository: its id, its files by path in order of their names, its card's metadata."""

    sha: str
    files: Mapping[str, HubFile]
    card: Mapping[str, Any] | None

    def tree(self, folder: str, *, recursive: bool, expand: bool) -> list[dict[str, Any]] | None:
        """What lies in ``folder`` ("": the root); a file is itself. None where there is nothing."""
        if folder in self.files:
            return [self.files[folder].entry(expand=expand)]
        prefix = f"{folder}/" if folder else ""
        found: dict[str, dict[str, Any]] = {}
        for path, file in self.files.items():
            if not path.startswith(prefix):
                continue
            for parent in parents_of(path):
                if parent.startswith(prefix) and (recursive or "/" not in parent[len(prefix) :]):
                    found.setdefault(parent, folder_entry(parent))
            if recursive or "/" not in path[len(prefix) :]:
                found[path] = file.entry(expand=expand)
        if not found and folder:
            return None
        return [found[path] for path in sorted(found)]

    def paths(self, wanted: Sequence[str], *, expand: bool) -> list[dict[str, Any]]:
        """Entries of these paths; those that are not there are left out."""
        found = []
        for path in wanted:
            if path in self.files:
                found.append(self.files[path].entry(expand=expand))
            elif any(name.startswith(f"{path}/") for name in self.files):
                found.append(folder_entry(path))
        return found


def parents_of(path: str) -> Iterator[str]:
    """The folders on the way to ``path``."""
    while path := posixpath.dirname(path):
        yield path


@dataclass(slots=True)
class Repo:
    """A dataset repository.

    Attributes:
        id: "org/name", or a name alone.
        gated: False, or how access is granted: described and listed to all, read with a token.
        private: not there for those without a token.
        disabled: refused to everybody.
        tokens: those that may read.
        refs: commit by branch, tag or other ref.
        commits: by id; none is forgotten.
    """

    id: str
    gated: bool | str = False
    private: bool = False
    disabled: bool = False
    tokens: frozenset[str] = frozenset()
    refs: dict[str, Commit] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    def add(self, manifest: Mapping[str, Any]) -> None:
        """Take a commit in, and what is said of the whole repository."""
        files = {entry["path"]: HubFile(**entry) for entry in manifest["files"]}
        commit = Commit(manifest["commit"], files, manifest["card"])
        self.gated, self.private, self.disabled = manifest["gated"], manifest["private"], manifest["disabled"]
        self.tokens = frozenset(manifest["tokens"])
        self.refs[manifest["revision"]] = self.commits[commit.sha] = commit

    def find(self, revision: str) -> Commit | None:
        """The commit that a ref or an id means."""
        return self.refs.get(revision) or self.commits.get(revision)

    def describe(self, commit: Commit, *, blobs: bool) -> dict[str, Any]:
        """What the API says of the repository at a commit."""
        return {
            "_id": hashlib.sha1(self.id.encode()).hexdigest()[:24],
            "id": self.id,
            "author": self.id.rpartition("/")[0] or None,
            "sha": commit.sha,
            "createdAt": DATE,
            "lastModified": DATE,
            "private": self.private,
            "gated": "auto" if self.gated is True else self.gated,
            "disabled": self.disabled,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "cardData": commit.card,
            "siblings": [file.sibling(blobs=blobs) for file in commit.files.values()],
        }

    def describe_refs(self) -> dict[str, Any]:
        """All refs by their kinds."""
        found: dict[str, Any] = {"branches": [], "converts": [], "tags": []}
        for name, commit in self.refs.items():
            converted = name.startswith("refs/convert/")
            entry = {
                "name": name.removeprefix("refs/convert/"),
                "ref": name if converted else f"refs/heads/{name}",
                "targetCommit": commit.sha,
            }
            found["converts" if converted else "branches"].append(entry)
        return found


# -- the other side: files on their way into a commit


def store_file(path: str, content: bytes | str | os.PathLike[str], folder: Path, *, lfs: bool) -> HubFile:
    """Copy a file's content to ``folder``, under its SHA-256.

    Raises:
        ConfigError: a path that no repository could hold.
        OSError: ``content`` names a file that cannot be read.
    """
    if posixpath.normpath(path) != path or path.startswith(("/", "../")) or path in (".", ".."):
        raise ConfigError(f"{path!r} is not a path inside a repository; take one such as 'data/train.parquet'")
    size = len(content) if isinstance(content, bytes) else os.path.getsize(content)
    sha256, oid = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with (
        io.BytesIO(content) if isinstance(content, bytes) else open(content, "rb") as source,
        tempfile.NamedTemporaryFile(dir=folder, delete=False) as copy,
    ):
        while piece := source.read(COPIED_AT_ONCE):
            sha256.update(piece)
            oid.update(piece)
            copy.write(piece)
    os.replace(copy.name, folder / sha256.hexdigest())
    return HubFile(path, size, oid.hexdigest(), sha256.hexdigest(), lfs)


def commit_of(repo: str, files: Sequence[HubFile]) -> str:
    """An id for these files in this repository: the same content has the same one in every run."""
    listed = json.dumps([repo, *([file.path, file.oid, file.lfs] for file in files)])
    return hashlib.sha1(listed.encode(), usedforsecurity=False).hexdigest()
