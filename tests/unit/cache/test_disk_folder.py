"""The folder of a disk tier: which ones are refused, and that nothing but our own files is touched."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from lazystore.cache.disk import DiskTier
from lazystore.cache.disk_folder import DiskFolder, hold, release
from lazystore.errors import DiskTierError

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


def test_a_folder_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    with DiskTier(tmp_path / "parents" / "tier") as tier:
        tier.put(b"k", 1, [b"v"], created=1.0)
        assert stat.S_IMODE(os.stat(tier.path).st_mode) == 0o700
        for file in Path(tier.path).iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o777, 0o720, 0o702, 0o1777])
def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(DiskTierError, match="chmod 700"):
        DiskTier(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o500, 0o555, 0o600])
def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "tier"
    folder.mkdir()
    folder.chmod(mode)
    try:
        with pytest.raises(DiskTierError, match=r"cannot be (written to|opened)"):
            DiskTier(folder)
    finally:
        folder.chmod(0o700)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"mine")
    for path in (file, file / "below"):
        with pytest.raises(DiskTierError, match="not a folder"):
            DiskTier(path)
    assert file.read_bytes() == b"mine"


@root_only
def test_another_users_folder_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, -1)
    with pytest.raises(DiskTierError, match="belongs to user 12345"):
        DiskTier(tmp_path)


def test_ones_own_symlink_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("real")
    with DiskTier(tmp_path / "link") as tier:
        assert tier.put(b"k", 1, [b"v"], created=1.0)
    assert list((tmp_path / "real").glob("*.seg"))


def test_a_symlink_into_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(DiskTierError, match="cannot be opened"):
        DiskTier(tmp_path / "link")


@root_only
def test_another_users_symlink_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("real")
    os.lchown(tmp_path / "link", 12345, -1)
    with pytest.raises(DiskTierError, match="another user's symlink"):
        DiskTier(tmp_path / "link")


@root_only
def test_a_symlink_to_another_users_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    os.chown(tmp_path / "real", 12345, -1)
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(DiskTierError, match="belongs to user"):
        DiskTier(tmp_path / "link")


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "0000000000000001-1-00000000.seg.bak").write_text("mine too")
    with DiskTier(tmp_path, "64KiB") as tier:
        for number in range(200):
            tier.put(b"%d" % number, 1, [bytes(3000)], created=1.0)
        tier.clear()
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "0000000000000001-1-00000000.seg.bak").read_text() == "mine too"


def test_a_planted_symlink_is_never_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    folder = tmp_path / "tier"
    with DiskTier(folder) as tier:
        (folder / "00000000000000ff-1-00000000.seg").symlink_to(victim)
        for number in range(20):
            tier.put(b"%d" % number, 1, [b"v"], created=1.0)
            tier._next_look = 0.0
            assert tier.get(b"%d" % number) is not None
    assert victim.read_bytes() == b"precious"
    (folder / "lock").unlink()
    (folder / "lock").symlink_to(victim)
    with pytest.raises(DiskTierError):
        DiskTier(folder)
    assert victim.read_bytes() == b"precious"


def test_a_segment_that_its_maker_did_not_finish_is_swept_away(tmp_path: Path) -> None:
    for number, content in enumerate([b"", b"LZSEG", bytes(32)]):
        (tmp_path / f"{number:016x}-1-00000000.seg").write_bytes(content)
    tmp_path.chmod(0o700)
    with DiskTier(tmp_path) as tier:
        assert list(tmp_path.glob("*.seg")) == []
        assert tier.put(b"k", 1, [b"v"], created=1.0)


def test_the_lock_is_waited_for_only_so_long(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    folder, other = DiskFolder(str(tmp_path)), DiskFolder(str(tmp_path))
    with folder.locked(1.0) as held:
        assert held
        with other.locked(0.01) as second:
            assert not second
    with other.locked(0.0) as again:
        assert again
    folder.close()
    folder.close()
    other.close()


def test_holding_a_file_is_exclusive_and_ends(tmp_path: Path) -> None:
    first, second = (os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR) for _ in range(2))
    assert hold(first)
    assert not hold(second)
    release(first)
    assert hold(second)
    os.close(first)
    os.close(second)
