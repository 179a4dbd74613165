"""Files that are whole: a reader sees the old one or the new one, never half of either."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from tacit.core.errors import OutputError


def make_folder(folder: Path, *, private: bool = False) -> None:
    """Make a folder if it is not there.

    Args:
        folder: where.
        private: a new one is its user's alone.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        folder.mkdir(mode=0o700 if private else 0o777, parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"a folder to write in expected, {folder} cannot be one "
            f"({error.strerror or error}): give another"
        ) from error


def write_file(path: Path, content: str | bytes, *, private: bool = False) -> None:
    """Write beside the place and move there; the old file stays where anything fails.

    Args:
        path: the file; replaced if it exists.
        content: text is written as UTF-8.
        private: nobody but the user may read it, at no moment.

    Raises:
        OutputError: it cannot be written.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    # The name is this thread's own: what a killed process left behind under it is overwritten.
    draft = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        try:
            with os.fdopen(os.open(draft, flags, 0o600 if private else 0o666), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({error.strerror or error}): free space, change its rights, "
            "or choose another folder"
        ) from error
