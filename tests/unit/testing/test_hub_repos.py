from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazystore.errors import ConfigError
from lazystore.testing.hub_repos import Commit, HubFile, Repo, commit_of, store_file

NAMES = st.text("ab", min_size=1, max_size=2)
PATHS = st.sets(st.lists(NAMES, min_size=1, max_size=4).map("/".join), max_size=12)


def commit_with(paths):
    """Those paths that are not folders of others."""
    files = [p for p in sorted(paths) if not any(other.startswith(f"{p}/") for other in paths)]
    return Commit("0" * 40, {path: HubFile(path, len(path), "oid", "sha256", False) for path in files}, None)


def walk(commit, folder=""):
    """All entries below a folder, one listing after the other."""
    for entry in commit.tree(folder, recursive=False, expand=False):
        yield entry
        if entry["type"] == "directory":
            yield from walk(commit, entry["path"])


@given(PATHS)
def test_a_recursive_listing_is_what_walking_the_folders_finds(paths):
    commit = commit_with(paths)
    listed = commit.tree("", recursive=True, expand=False)
    assert sorted(walk(commit), key=lambda entry: entry["path"]) == listed
    assert [entry["path"] for entry in listed if entry["type"] == "file"] == list(commit.files)
    for entry in listed:
        assert commit.paths([entry["path"]], expand=False) == [entry]


@given(PATHS, st.lists(NAMES, min_size=1, max_size=3).map("/".join))
def test_a_listing_is_absent_exactly_where_no_file_lies_below(paths, folder):
    commit = commit_with(paths)
    there = any(path == folder or path.startswith(f"{folder}/") for path in commit.files)
    assert (commit.tree(folder, recursive=True, expand=False) is not None) is there
    assert (commit.paths([folder], expand=False) != []) is there


def test_the_root_of_an_empty_commit_is_an_empty_listing():
    assert commit_with([]).tree("", recursive=True, expand=False) == []


def test_only_expanded_entries_have_a_commit():
    commit = commit_with(["a/b"])
    assert "lastCommit" not in commit.tree("a", recursive=False, expand=False)[0]
    assert commit.tree("a", recursive=False, expand=True)[0]["lastCommit"]["id"]


def test_a_stored_file_is_named_as_git_and_sha256_name_its_content(tmp_path):
    (tmp_path / "source").write_bytes(b"hello\n")
    kept = tmp_path / "kept"
    kept.mkdir()
    stored = store_file("a/b.txt", b"hello\n", kept, lfs=True)
    assert stored == store_file("a/b.txt", tmp_path / "source", kept, lfs=True)
    # git hash-object of this content
    assert (stored.oid, stored.size) == ("ce013625030ba8dba906f756967f9e9ca394464a", 6)
    assert stored.sha256 == hashlib.sha256(b"hello\n").hexdigest()
    assert [path.name for path in kept.iterdir()] == [stored.sha256]
    assert (kept / stored.sha256).read_bytes() == b"hello\n"


@pytest.mark.parametrize("path", ["", ".", "..", "/a", "../a", "a/../b", "a//b", "a/", "./a"])
def test_paths_that_no_repository_holds_are_refused(tmp_path, path):
    with pytest.raises(ConfigError, match="path inside a repository"):
        store_file(path, b"", tmp_path, lfs=False)


def manifest(commit, revision="main", **options):
    said = {"commit": commit, "revision": revision, "card": None, "files": [], "tokens": []}
    return said | {"gated": False, "private": False, "disabled": False} | options


def test_every_commit_is_found_by_its_id_and_the_latest_by_its_branch():
    repo = Repo("org/name")
    repo.add(manifest("1" * 40))
    repo.add(manifest("2" * 40))
    repo.add(manifest("3" * 40, "refs/convert/parquet"))
    assert repo.find("main") is repo.find("2" * 40)
    assert repo.find("1" * 40).sha == "1" * 40
    assert repo.find("refs/convert/parquet").sha == "3" * 40
    assert repo.find("other") is None
    refs = repo.describe_refs()
    assert [ref["name"] for ref in refs["branches"] + refs["converts"]] == ["main", "parquet"]


def test_the_same_files_make_the_same_commit_and_others_another():
    one, other = HubFile("a", 1, "x", "y", False), HubFile("a", 1, "z", "y", False)
    assert commit_of("org/name", [one]) == commit_of("org/name", [one])
    assert len({commit_of("org/name", [one]), commit_of("org/name", [other]), commit_of("org/other", [one])}) == 3
