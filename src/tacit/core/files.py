"""Files that are whole: a reader sees the old one or the new one, never half of either."""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tacit.core.errors import ConfigError, OutputError


def make_folder(folder: Path, *, private: bool = False) -> None:
    """Make a folder if it is not there; durable, like those above it that are made with it.

    Args:
        folder: where.
        private: a new one is its user's alone.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        new = [one for one in (folder, *folder.parents) if not one.exists()]
        folder.mkdir(mode=0o700 if private else 0o777, parents=True, exist_ok=True)
        for one in new:
            sync_folder(one.parent)
    except OSError as error:
        raise OutputError(
            f"a folder to write in expected, {folder} cannot be one "
            f"({error.strerror or error}): give another"
        ) from error


def write_file(path: Path, content: str | bytes, *, private: bool = False) -> None:
    """Write beside the place and move there; durable when this returns. The old file stays where anything fails.

    Where the move itself cannot be made durable, the new file may be there, whole.

    Args:
        path: the file; replaced if it exists.
        content: text is written as UTF-8.
        private: nobody but the user may read it, at no moment.

    Raises:
        OutputError: it cannot be written.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    # The name is this thread's own: what a killed process left behind under it is removed, not written into, since it may
    # have other rights.
    draft = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        draft.unlink(missing_ok=True)
        try:
            with os.fdopen(os.open(draft, flags, 0o600 if private else 0o666), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({error.strerror or error}): free space, change its rights, "
            "or choose another folder"
        ) from error


@contextmanager
def alone(path: Path, *, wait: bool = True) -> Iterator[None]:
    """One process at a time: for what must not be done twice from one state.

    Args:
        path: of a file for the lock, which the system ends with the process.
        wait: until another process has ended it.

    Raises:
        ConfigError: another process holds it, and it shall not be waited for.
        OutputError: there is no such place.
    """
    make_folder(path.parent, private=True)
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror or error})") from error
    try:
        while not _lock(handle, wait=wait):
            if not wait:
                raise ConfigError(
                    f"another process is at work here and holds {path}: one at a time; end it, or give another folder"
                )
        yield
    finally:
        os.close(handle)  # which ends the lock


def _lock(handle: int, *, wait: bool) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt  # noqa: PLC0415

            msvcrt.locking(handle, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        else:
            import fcntl  # noqa: PLC0415

            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held; or, there, waited for ten seconds
        return False
    return True


def sync_folder(folder: Path) -> None:
    """Make what was made in a folder, or moved there, durable.

    Raises:
        OSError: it cannot be.
    """
    if sys.platform == "win32":  # folders have nothing to sync there
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that has nothing to do for a folder
            raise
    finally:
        os.close(handle)
