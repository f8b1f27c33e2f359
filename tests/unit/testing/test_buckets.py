from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazystore.errors import ConfigError, DatasetNotFoundError
from lazystore.testing import buckets as module
from lazystore.testing.buckets import Buckets, StoreError


@pytest.fixture
def root(tmp_path):
    served = tmp_path / "served"
    (served / "one" / "sub").mkdir(parents=True)
    (served / "two").mkdir()
    (served / "one" / "a.txt").write_bytes(b"a")
    (served / "one" / "sub" / "b.txt").write_bytes(b"bb")
    (tmp_path / "secret.txt").write_bytes(b"secret")
    return served


def read(buckets, bucket, key):
    stored = buckets.open(bucket, key)
    try:
        return os.pread(stored.fd, stored.size, 0)
    finally:
        stored.release()


def test_folders_below_the_root_and_named_folders_are_buckets(root, tmp_path):
    buckets = Buckets(str(root), {"named": str(root / "one")})
    assert buckets.names() == ["named", "one", "two"]
    assert read(buckets, "one", "a.txt") == read(buckets, "named", "a.txt") == b"a"
    assert read(buckets, "one", "sub/b.txt") == b"bb"


@pytest.mark.parametrize(
    "key",
    [
        "../../secret.txt", "..", ".", "sub/../a.txt", "sub//b.txt", "/a.txt", "a.txt/", "sub", "none",
        "a.txt\0", "sub/./b.txt",
    ],
)  # fmt: skip
def test_no_other_spelling_opens_a_file(root, key):
    with pytest.raises(StoreError) as caught:
        Buckets(str(root), {}).open("one", key)
    assert caught.value.status == 404


@pytest.mark.parametrize("bucket", ["..", ".", "", "-", "three", "one/sub", "a.txt"])
def test_no_other_name_is_a_bucket(root, bucket):
    with pytest.raises(StoreError) as caught:
        Buckets(str(root), {}).open(bucket, "a.txt")
    assert caught.value.code == "NoSuchBucket"


def test_links_are_followed_inside_the_bucket_only(root, tmp_path):
    one = root / "one"
    (one / "out.txt").symlink_to(tmp_path / "secret.txt")
    (one / "outdir").symlink_to(tmp_path)
    (one / "in.txt").symlink_to(one / "sub" / "b.txt")
    (one / "loop").symlink_to(one)
    (root / "escape").symlink_to(tmp_path)
    buckets = Buckets(str(root), {})
    assert read(buckets, "one", "in.txt") == b"bb"
    for bucket, key in (("one", "out.txt"), ("one", "outdir/secret.txt"), ("escape", "secret.txt")):
        with pytest.raises(StoreError):
            buckets.open(bucket, key)
    assert [entry.key for entry in buckets.keys("one")] == ["a.txt", "in.txt", "sub/b.txt"]
    assert buckets.names() == ["one", "two"]


def test_a_file_swapped_for_a_link_that_leads_out_is_refused(root, tmp_path):
    buckets = Buckets(str(root), {})
    assert read(buckets, "one", "a.txt") == b"a"
    (root / "one" / "a.txt").unlink()
    (root / "one" / "a.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(StoreError):
        buckets.open("one", "a.txt")


def test_a_replaced_file_has_another_etag_and_readers_keep_the_old_bytes(root):
    buckets = Buckets(str(root), {})
    before = buckets.open("one", "a.txt")
    new = root / "one" / "new"
    new.write_bytes(b"z")
    os.replace(new, root / "one" / "a.txt")
    after = buckets.open("one", "a.txt")
    assert before.etag != after.etag
    assert os.pread(before.fd, 1, 0) == b"a"
    assert os.pread(after.fd, 1, 0) == b"z"
    before.release()
    assert before.fd == -1
    after.release()
    assert after.fd >= 0


def test_open_files_are_bounded_and_never_closed_under_a_reader(root, monkeypatch):
    monkeypatch.setattr(module, "MAX_OPEN", 3)
    for i in range(10):
        (root / "two" / str(i)).write_bytes(b"%d" % i)
    buckets = Buckets(str(root), {})
    held = buckets.open("two", "0")
    stored = []
    for i in range(10):
        stored.append(buckets.open("two", str(i)))
        stored[-1].release()
    assert sum(each.fd >= 0 for each in {id(s): s for s in [held, *stored]}.values()) == 4
    assert os.pread(held.fd, 1, 0) == b"0"
    held.release()
    assert held.fd == -1


def test_what_is_not_a_file_is_not_an_object(root):
    os.mkfifo(root / "one" / "pipe")
    buckets = Buckets(str(root), {})
    with pytest.raises(StoreError):
        buckets.open("one", "pipe")
    assert "pipe" not in [entry.key for entry in buckets.keys("one")]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_denied(root):
    (root / "one" / "a.txt").chmod(0)
    with pytest.raises(StoreError) as caught:
        Buckets(str(root), {}).open("one", "a.txt")
    assert caught.value.status == 403


def test_bad_roots_are_refused(tmp_path):
    with pytest.raises(ConfigError):
        Buckets(None, {})
    with pytest.raises(DatasetNotFoundError):
        Buckets(str(tmp_path / "none"), {})
    for name in ("", "a/b", "..", "-"):
        with pytest.raises(ConfigError):
            Buckets(None, {name: str(tmp_path)})


KEYS = [
    "a.txt", "a-b/x", "a/b.c/d", "a/b/c", "a/b/d", "a0", "b/\u00e9", "b/\U0001f600", "b/z/z/z",
    "c d/e+f", "zz",
]  # fmt: skip


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("tree")
    for key in KEYS:
        path = root / "bucket" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(key.encode())
    (root / "bucket" / "empty" / "folder").mkdir(parents=True)
    return Buckets(str(root), {})


beginnings = sorted({key[:n] for key in KEYS for n in range(len(key) + 1)})
points = st.sampled_from(beginnings) | st.text("abz/.", max_size=4)


@settings(max_examples=300)
@given(prefix=points, after=points)
def test_keys_come_in_utf8_order_within_prefix_and_after(tree, prefix, after):
    expected = sorted((k for k in KEYS if k.startswith(prefix) and k > after), key=str.encode)
    entries = list(tree.keys("bucket", prefix=prefix, after=after))
    assert [entry.key for entry in entries] == expected
    assert [entry.size for entry in entries] == [len(key.encode()) for key in expected]


@given(prefix=points)
def test_a_shallow_walk_rolls_folders_up(tree, prefix):
    expected = set()
    for key in KEYS:
        if key.startswith(prefix):
            rest = key[len(prefix) :]
            expected.add(prefix + rest[: rest.find("/") + 1] if "/" in rest else key)
    assert [e.key for e in tree.keys("bucket", prefix=prefix, shallow=True)] == sorted(expected)
