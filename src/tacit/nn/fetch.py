"""Fetching data sets from their public homes, whole or not at all.

What is downloaded is kept file by file in ``.fetch`` in the folder until the set is whole, so that a
fetch that failed goes on where it stopped. It is converted there, read back by `tacit.nn.data.load`
with every check that a load makes, and only then moved into place.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from tacit.core.errors import ConfigError, DataError, OutputError, UnknownName
from tacit.nn.data import SOURCES, load
from tacit.nn.files import folder_of
from tacit.nn.homes import HOMES, NO_HOME, Home

Watch = Callable[[int, int], None]

_CHUNK = 1 << 16
_WORTH_ANOTHER_TRY = {408, 425, 429, 500, 502, 503, 504}
_THIS_MACHINE = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to wait for a server.

    Attributes:
        stall_s: seconds in which something must come.
        file_s: seconds in which a file must be whole; looked at from its first bytes on, not while a
            server takes its time over the lines before them.
        tries: how often to ask for a file.
        pause_s: seconds before the second try; twice that before the third, and so on.

    Raises:
        ConfigError: one is not positive (the pause: negative).
    """

    stall_s: float = 30.0
    file_s: float = 600.0
    tries: int = 3
    pause_s: float = 1.0

    def __post_init__(self) -> None:
        if not (self.stall_s > 0 and self.file_s > 0 and self.tries >= 1 and self.pause_s >= 0):
            raise ConfigError(f"times and tries must be positive, not {self}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """What a fetch left behind.

    Attributes:
        name: the data set.
        files: where its files are.
        fresh: whether any was put there; if not, all were there before, and good.
    """

    name: str
    files: tuple[Path, ...]
    fresh: bool


def fetch(
    name: str,
    folder: Path | str | None = None,
    *,
    base: str | None = None,
    overwrite: bool = False,
    patience: Patience | None = None,
    watch: Watch | None = None,
) -> Fetched:
    """Download a data set, check it and put it where `tacit.nn.data.load` finds it.

    Files that are there already are left alone, and if all are there and good nothing is downloaded.

    Args:
        name: the data set.
        folder: where to; by default what the environment variable ``TACIT_DATA`` says. Made if absent.
        base: another place that serves what the public home does: ``https://``, or ``http://`` on this
            machine, up to where the paths of `tacit.nn.homes.Home` begin.
        overwrite: replace files that are there.
        patience: how long to wait; by default half a minute for anything, ten for a file.
        watch: told the bytes that have come and those that are expected in all.

    Raises:
        UnknownName: there is no such data set.
        DataError: it has no public home; nothing, not all, too much or something else came, or too
            slowly; or a file is there already that is not good. The folder's files are as before.
        OutputError: the folder cannot be written.
    """
    source, home = SOURCES.get(name), HOMES.get(name)
    if source is None:
        raise UnknownName("data set", name, SOURCES)
    if home is None:
        raise DataError(f"data set {name!r} cannot be fetched: {NO_HOME[name]}")
    if not folder_of(folder):
        raise DataError("there is no folder to fetch into: name one, or set TACIT_DATA to it")
    root = Path(folder_of(folder))
    paths = tuple(root / file for file in source.files)
    kept = () if overwrite else tuple(path for path in paths if path.exists())
    if kept == paths:
        _check_kept(name, root)
        return Fetched(name=name, files=paths, fresh=False)
    stash = root / ".fetch" / name
    try:
        stash.mkdir(parents=True, exist_ok=True)
        _check_address(base or home.base)
        contents = _download_all(
            home, base or home.base, stash, patience or Patience(), watch or (lambda _, __: None)
        )
        with tempfile.TemporaryDirectory(dir=stash) as ready:
            files = _converted(name, home, contents, Path(ready), stash)
            if kept:
                _check_kept(name, root, files, Path(ready))
            for path in paths:
                if path not in kept:
                    files[path.name].replace(path)
        shutil.rmtree(stash)
    except OSError as error:
        raise OutputError(f"cannot write data set {name!r} into {root}: {error}") from error
    finally:
        _remove_if_empty(stash)
    return Fetched(name=name, files=paths, fresh=True)


def _check_kept(
    name: str, root: Path, new: Mapping[str, Path] | None = None, ready: Path | None = None
) -> None:
    """Check what is there already, beside what is new in ``ready``, before anything is moved."""
    try:
        if new is None or ready is None:
            load(name, root)
            return
        with tempfile.TemporaryDirectory(dir=ready) as together:
            for file, path in new.items():
                there = root / file
                shutil.copyfile(there if there.exists() else path, Path(together) / file)
            load(name, together)
    except DataError as error:
        raise DataError(
            f"what is there already is not good, and was left alone: {error}. Move it away, or ask for "
            "it to be overwritten"
        ) from error


def _converted(
    name: str, home: Home, contents: list[bytes], ready: Path, stash: Path
) -> Mapping[str, Path]:
    """The set's files, written to ``ready`` and checked. If they are not good what came is dropped."""
    try:
        files = home.convert(contents)
        for file, content in files.items():
            with (ready / file).open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
        load(name, ready)
    except DataError as error:
        for path in stash.iterdir():
            if path.is_file():
                path.unlink()
        raise DataError(
            f"what came is not {name}, and was dropped; nothing else was changed: {error}"
        ) from error
    return {file: ready / file for file in files}


def _download_all(
    home: Home, base: str, stash: Path, patience: Patience, watch: Watch
) -> list[bytes]:
    contents: list[bytes] = []
    for path in home.paths:
        here, before = stash / path.replace("/", "_"), sum(map(len, contents))
        if not here.is_file():

            def tell(came: int, before: int = before) -> None:
                watch(before + came, home.size)

            content = _download(base + path, 2 * home.size - before, patience, tell)
            part = here.with_name(f"{here.name}.part")
            part.write_bytes(content)
            part.replace(here)
        contents.append(here.read_bytes())
        watch(before + len(contents[-1]), home.size)
    return contents


class _TryAgain(Exception):
    """The server, or the way to it, failed as it may not a moment later."""


def _download(url: str, limit: int, patience: Patience, tell: Callable[[int], None]) -> bytes:
    said = ""
    for attempt in range(patience.tries):
        if attempt:
            time.sleep(patience.pause_s * 2 ** (attempt - 1))
        try:
            return _get(url, limit, patience, tell)
        except _TryAgain as failure:
            said = str(failure)
    raise DataError(
        f"{url}: {said} (tried {patience.tries} times). Try again later: it goes on where it stopped"
    )


def _get(url: str, limit: int, patience: Patience, tell: Callable[[int], None]) -> bytes:
    deadline = time.monotonic() + patience.file_s
    headers = {"User-Agent": "tacit", "Accept-Encoding": "identity"}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - the scheme was checked
    try:
        with _OPENER.open(request, timeout=patience.stall_s) as response:
            return _body(response, url, limit, deadline, tell)
    except urllib.error.HTTPError as error:
        error.close()
        said = f"the server answers {error.code} {error.reason}"
        if error.code in _WORTH_ANOTHER_TRY:
            raise _TryAgain(said) from error
        raise DataError(
            f"{url}: {said}. It may have moved: name another place, or put the files there by hand"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "reason", error)
        if isinstance(why, TimeoutError):
            raise _TryAgain(f"nothing came for {patience.stall_s:g} s") from error
        raise _TryAgain(f"the connection failed: {type(why).__name__}: {why}") from error


def _body(
    response: http.client.HTTPResponse,
    url: str,
    limit: int,
    deadline: float,
    tell: Callable[[int], None],
) -> bytes:
    announced = response.headers.get("Content-Length", "")
    length = int(announced) if announced.isdecimal() else None
    too_large = f"{url} is larger than the {limit:,} bytes that it may have: it is something else"
    if length is not None and length > limit:
        raise DataError(too_large)
    content = bytearray()
    while chunk := response.read1(_CHUNK):  # what is there, so that the clock is looked at
        content += chunk
        if len(content) > limit:
            raise DataError(too_large)
        if time.monotonic() > deadline:
            raise DataError(
                f"{url}: only {len(content):,} bytes came in the time allowed: "
                "allow more, or try again later"
            )
        tell(len(content))
    if length is not None and len(content) < length:
        raise _TryAgain(f"cut short: {len(content):,} of {length:,} bytes came")
    return bytes(content)


def _is_secure(url: str) -> bool:
    return urlsplit(url).scheme == "https"


def _is_here(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "http" and parts.hostname in _THIS_MACHINE


def _check_address(url: str) -> None:
    if not (_is_secure(url) or _is_here(url)):
        raise DataError(f"{url} must begin with https:// (http:// on this machine only)")


class _SecureRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirection from https to anything else, nor from this machine to http elsewhere."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if not (_is_secure(newurl) or (_is_here(newurl) and _is_here(req.full_url))):
            fp.close()
            raise DataError(
                f"{req.full_url} leads to {newurl}, which is not https://: not followed"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_SecureRedirects)


def _remove_if_empty(stash: Path) -> None:
    """Folders that were made for downloads and hold none."""
    for folder in (stash, stash.parent):
        with contextlib.suppress(OSError):
            folder.rmdir()
