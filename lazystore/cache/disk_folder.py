"""The folder of a disk tier: whether it may be used, its lock, and its segment files by name.

What is in the files is for ``_core/record_log``; which of them are written, kept and dropped is for ``disk.py``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import time
from collections.abc import Iterator

from lazystore._core.segment_file import SegmentFile
from lazystore.errors import DiskTierError, FormatError

__all__ = ["DiskFolder"]

LOCK_NAME = "lock"
#: Number in the order of eviction, process that made it, random part; no name comes from a user.
SEGMENT_NAME = re.compile(r"([0-9a-f]{16})-[0-9]{1,10}-[0-9a-f]{8}\.seg")
OPEN_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW
#: What opening says of files that are not ours to open.
NO_SEGMENT = (errno.ENOENT, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENXIO)
#: Seconds between two tries to get the lock.
POLL_S = 0.001


class DiskFolder:
    """An open folder that is ours alone to write to; everything in it is reached through its descriptor.

    Parameters:
        path: the folder; made with mode 0700 if it is not there, parents too.

    Raises:
        DiskTierError: it cannot be used; the message says why, and what to do.

    Files are 0600. Fork: the child must :meth:`close` it, and opens its own.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
            real = os.path.realpath(path, strict=True)
            link = os.lstat(path)
            self.fd = os.open(real, os.O_RDONLY | os.O_DIRECTORY | OPEN_FLAGS)
        except (NotADirectoryError, FileExistsError):
            raise DiskTierError(f"{path} is not a folder; give a disk tier a folder of its own") from None
        except OSError as error:
            raise DiskTierError(f"the folder {path} of a disk tier cannot be opened: {error.strerror}") from error
        try:
            self._check(link)
        except BaseException:
            self.close()
            raise

    def _check(self, link: os.stat_result) -> None:
        found, me = os.fstat(self.fd), os.geteuid()
        if stat.S_ISLNK(link.st_mode) and link.st_uid not in (me, 0):
            raise DiskTierError(f"{self.path} is another user's symlink; give the disk tier the folder itself")
        if found.st_uid != me:
            raise DiskTierError(
                f"the folder {self.path} belongs to user {found.st_uid}, this process to {me}; "
                "give the disk tier a folder of this user"
            )
        if found.st_mode & 0o022:
            raise DiskTierError(
                f"others may write to {self.path} (mode {stat.S_IMODE(found.st_mode):04o}), so what is read from it "
                "cannot be trusted; chmod 700 it"
            )
        read_only = os.fstatvfs(self.fd).f_flag & os.ST_RDONLY
        if read_only or found.st_mode & 0o300 != 0o300 or not os.access(self.path, os.W_OK | os.X_OK):
            raise DiskTierError(
                f"the folder {self.path} cannot be written to (mode {stat.S_IMODE(found.st_mode):04o}"
                f"{', on a read-only file system' if read_only else ''}); give the disk tier one that can"
            )

    def close(self) -> None:
        """Let go of the folder. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __del__(self) -> None:
        if getattr(self, "fd", -1) >= 0:
            self.close()

    def removed(self) -> bool:
        """Whether somebody deleted the folder, or it is closed."""
        if self.fd < 0:
            return True
        try:
            there, ours = os.stat(self.path), os.fstat(self.fd)
        except FileNotFoundError:
            return True
        return (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)

    @contextlib.contextmanager
    def locked(self, wait_s: float) -> Iterator[bool]:
        """Hold the folder's lock against all other tiers, of any process; False if it could not be had in time.

        It is taken to open and to drop segments only, and never waited for without end: its holder may be stopped.
        """
        lock = os.open(LOCK_NAME, os.O_RDWR | os.O_CREAT | OPEN_FLAGS, 0o600, dir_fd=self.fd)
        try:
            deadline = time.monotonic() + wait_s
            while not (held := hold(lock)) and time.monotonic() < deadline:
                time.sleep(POLL_S)
            try:
                yield held
            finally:
                if held:
                    fcntl.flock(lock, fcntl.LOCK_UN)  # closing alone would leave it to a child forked meanwhile
        finally:
            os.close(lock)

    def names(self) -> list[str]:
        """Names of the segment files, the oldest first."""
        return sorted(filter(SEGMENT_NAME.fullmatch, os.listdir(self.fd)))

    def open(self, name: str) -> SegmentFile | None:
        """A segment file; None when it is not there (any more), or is none: a link, another user's, unfinished."""
        try:
            fd = os.open(name, os.O_RDWR | os.O_NONBLOCK | OPEN_FLAGS, dir_fd=self.fd)
        except OSError as error:
            if error.errno in NO_SEGMENT:
                return None
            raise
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            os.close(fd)
            return None
        try:
            return SegmentFile(fd, name)
        except FormatError:
            return None

    def create(self, capacity: int, after: list[str]) -> SegmentFile:
        """A new segment file, held by this tier, numbered after all those named. Under the lock only.

        Raises:
            OSError: it cannot be made; nothing of it stays.
        """
        number = 1 + max((int(name[:16], 16) for name in after), default=0)
        name = f"{number:016x}-{os.getpid()}-{os.urandom(4).hex()}.seg"
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | OPEN_FLAGS, 0o600, dir_fd=self.fd)
        try:
            hold(fd)
            return SegmentFile(fd, name, capacity, number)
        except OSError:
            os.unlink(name, dir_fd=self.fd)
            raise

    def remove(self, segment: SegmentFile) -> None:
        """Delete a segment file, and give its blocks back at once: other processes may have it open for long."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(segment.name, dir_fd=self.fd)
        os.ftruncate(segment.fd, 0)

    def sweep(self, name: str) -> None:
        """Delete a file with a segment's name that is none: what a process left that died making it. Under the lock."""
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            os.unlink(name, dir_fd=self.fd)


def hold(fd: int) -> bool:
    """Lock an open file for this description of it; False when another one has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def release(fd: int) -> None:
    """Undo :func:`hold`."""
    fcntl.flock(fd, fcntl.LOCK_UN)
