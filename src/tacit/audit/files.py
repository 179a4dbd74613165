"""Results as files: a reader sees the old one or the new one, never half of either."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from tacit.core.errors import OutputError


def make_folder(folder: Path) -> None:
    """Make a folder if it is not there.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"a folder to write in expected, {folder} cannot be one "
            f"({error.strerror or error}): give another"
        ) from error


def write_file(path: Path, content: str | bytes) -> None:
    """Write beside the place and move there.

    Raises:
        OutputError: it cannot be written.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    draft = path.with_name(f".{uuid.uuid4().hex}")
    try:
        try:
            with draft.open("xb") as file:
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
