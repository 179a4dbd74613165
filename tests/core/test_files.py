"""Files that are whole or not there: full disks, wrong places, rights, processes that are killed in the middle."""

import errno
import os
import resource
import stat
from pathlib import Path

import pytest

from tacit.core import files
from tacit.core.errors import OutputError
from tacit.core.files import make_folder, write_file

OLD, NEW = b"the old one " * 50, b"the new one, and longer " * 400


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask():
    """Sets the umask, and puts it back."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.fixture
def kept(tmp_path):
    """A file with the old content, alone in its folder."""
    path = tmp_path / "place" / "kept.bin"
    path.parent.mkdir()
    path.write_bytes(OLD)
    return path


def alone(path):
    return os.listdir(path.parent) == [path.name]


def killed_at(name, path, content, *, private=False, as_parent=True):
    """A process that is killed when it calls ``os.<name>``, in the middle of a write."""
    parent = os.getpid()
    child = os.fork()
    if not child:
        try:
            if as_parent:  # containers give the same number again and again
                os.getpid = lambda: parent
            setattr(files.os, name, lambda *rest, **more: os._exit(7))
            write_file(path, content, private=private)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


# --- what is written


@pytest.mark.parametrize("content", [b"", b"\x00\xff", NEW, "", "Grüße\n"])
def test_what_was_written_is_there_alone_and_can_be_replaced(tmp_path, content):
    path = tmp_path / "a file"
    write_file(path, content)
    whole = content if isinstance(content, bytes) else content.encode()
    assert path.read_bytes() == whole and alone(path)
    write_file(path, b"other")
    assert path.read_bytes() == b"other" and alone(path)


def test_a_private_file_is_its_users_alone_at_every_moment(tmp_path, umask, monkeypatch):
    path, seen = tmp_path / "secret", []
    sync = os.fsync

    def watched(handle):
        seen.append(stat.S_IMODE(os.fstat(handle).st_mode))
        sync(handle)

    monkeypatch.setattr(files.os, "fsync", watched)
    umask(0)
    write_file(path, b"first", private=True)
    assert seen[0] == 0o600 == mode(path)
    path.chmod(0o666)  # and one that was open to all is not any more
    write_file(path, b"second", private=True)
    assert mode(path) == 0o600


def test_a_public_file_has_the_rights_that_the_umask_leaves(tmp_path, umask):
    for mask in (0, 0o022, 0o077):
        umask(mask)
        write_file(tmp_path / f"{mask}", b"x")
        assert mode(tmp_path / f"{mask}") == 0o666 & ~mask


def test_a_file_is_durable_before_it_takes_its_place_and_its_place_is_before_the_return(
    kept, monkeypatch
):
    """Else a power cut brings back the old file after something was said that depends on the new one."""
    done = []
    sync, replace = os.fsync, os.replace

    def synced(handle):
        folder = stat.S_ISDIR(os.fstat(handle).st_mode)
        done.append("folder" if folder else ("file", os.fstat(handle).st_size))
        sync(handle)

    def moved(source, target):
        done.append("moved")
        replace(source, target)

    monkeypatch.setattr(files.os, "fsync", synced)
    monkeypatch.setattr(files.os, "replace", moved)
    write_file(kept, NEW)
    assert done == [("file", len(NEW)), "moved", "folder"]


def test_a_link_is_replaced_and_what_it_pointed_at_stays(kept):
    link = kept.with_name("link")
    link.symlink_to(kept)
    write_file(link, NEW)
    assert kept.read_bytes() == OLD and link.read_bytes() == NEW and not link.is_symlink()


# --- where it fails


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("name", ["open", "fsync", "replace", "fdopen"])
def test_a_full_disk_leaves_the_old_file_and_no_draft(kept, monkeypatch, name, private):
    def full(*rest, **more):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, name, full)
    for path in (kept, kept.with_name("never written")):
        with pytest.raises(OutputError, match=f"{path.name} cannot be written .No space left"):
            write_file(path, NEW, private=private)
    monkeypatch.undo()
    assert kept.read_bytes() == OLD and alone(kept)
    write_file(kept, NEW, private=private)
    assert kept.read_bytes() == NEW and alone(kept)


def test_a_file_that_grows_past_the_limit_leaves_the_old_one(kept):
    """The kernel itself stops the write in the middle."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(OLD) + 100, before[1]))
    try:
        with pytest.raises(OutputError, match="File too large"):
            write_file(kept, NEW)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert kept.read_bytes() == OLD and alone(kept)


def test_a_folder_that_cannot_be_made_durable_is_said_and_the_file_is_whole(kept, monkeypatch):
    sync = os.fsync

    def failing(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EIO, "Input/output error")
        sync(handle)

    monkeypatch.setattr(files.os, "fsync", failing)
    with pytest.raises(OutputError, match="Input/output error"):
        write_file(kept, NEW)
    assert kept.read_bytes() in (OLD, NEW) and alone(kept)


def test_an_interrupt_leaves_the_old_file_and_no_draft(kept, monkeypatch):
    def interrupted(handle):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_file(kept, NEW)
    assert kept.read_bytes() == OLD and alone(kept)


@pytest.mark.parametrize(
    "wrong", ["kept.bin/below a file", "not there/file", "x" * 250, "x" * 300, "folder"]
)
def test_a_place_that_cannot_be_written_is_said(kept, wrong):
    (kept.parent / "folder" / "full").mkdir(parents=True)
    before = sorted(kept.parent.rglob("*"))
    with pytest.raises(OutputError, match="cannot be written"):
        write_file(kept.parent / wrong, NEW)
    assert sorted(kept.parent.rglob("*")) == before and kept.read_bytes() == OLD


def test_a_folder_without_rights_is_said(kept):
    kept.parent.chmod(0o500)
    try:
        if os.access(kept.parent, os.W_OK):
            pytest.skip("this user may write anywhere")
        with pytest.raises(OutputError, match="change its rights"):
            write_file(kept, NEW)
        with pytest.raises(OutputError):
            make_folder(kept.parent / "more")
    finally:
        kept.parent.chmod(0o700)
    assert kept.read_bytes() == OLD and alone(kept)


# --- what a killed process leaves


@pytest.mark.parametrize("name", ["open", "fsync", "replace"])
@pytest.mark.parametrize("as_parent", [True, False])
def test_a_killed_process_leaves_the_old_file_and_a_draft_that_harms_nobody(kept, name, as_parent):
    killed_at(name, kept, NEW * 3, as_parent=as_parent)
    assert kept.read_bytes() == OLD
    write_file(kept, NEW)
    assert kept.read_bytes() == NEW
    if as_parent:  # a draft of the same name does not pile up
        assert alone(kept)
    write_file(kept.with_name("another"), OLD)
    assert kept.read_bytes() == NEW and kept.with_name("another").read_bytes() == OLD


def test_a_draft_that_was_open_to_all_does_not_make_a_private_file_so(kept, umask):
    umask(0)
    killed_at("replace", kept, OLD)
    (draft,) = (path for path in kept.parent.iterdir() if path != kept)
    assert mode(draft) == 0o666
    with open(draft, "rb") as reader:  # who has it open must not read on either
        write_file(kept, NEW, private=True)
        reader.seek(0)
        assert NEW[:10] not in reader.read()
    assert mode(kept) == 0o600 and kept.read_bytes() == NEW


def test_a_link_in_the_place_of_a_draft_is_not_followed(kept, tmp_path):
    killed_at("replace", kept, OLD)
    (draft,) = (path for path in kept.parent.iterdir() if path != kept)
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    draft.unlink()
    draft.symlink_to(victim)
    write_file(kept, NEW)
    assert victim.read_bytes() == b"precious"
    assert kept.read_bytes() == NEW and not kept.is_symlink() and alone(kept)


def test_a_draft_is_beside_its_file_and_hidden(kept):
    killed_at("replace", kept, NEW)
    (draft,) = (path for path in kept.parent.iterdir() if path != kept)
    assert draft.name.startswith(".kept.bin.")


# --- folders


def test_a_folder_is_made_with_those_above_it_and_may_be_there(tmp_path, umask):
    umask(0)
    deep = tmp_path / "a" / "b" / "c"
    make_folder(deep, private=True)
    assert mode(deep) == 0o700
    deep.chmod(0o755)
    make_folder(deep, private=True)  # one that is there is left as it is
    assert mode(deep) == 0o755
    make_folder(tmp_path / "open")
    assert mode(tmp_path / "open") == 0o777


def test_a_new_folder_is_durable_in_the_one_above_it(tmp_path, monkeypatch):
    """Else a power cut takes the folder away with the files in it, however durable these are."""
    synced, sync = [], os.fsync

    def watched(handle):
        synced.append(os.fstat(handle).st_ino)
        sync(handle)

    monkeypatch.setattr(files.os, "fsync", watched)
    make_folder(tmp_path / "a" / "b")
    assert {tmp_path.stat().st_ino, (tmp_path / "a").stat().st_ino} <= set(synced)
    synced.clear()
    make_folder(tmp_path / "a" / "b")
    assert synced == []


@pytest.mark.parametrize("wrong", ["kept.bin", "kept.bin/below", "x" * 300])
def test_a_folder_that_cannot_be_made_is_said(kept, wrong):
    with pytest.raises(OutputError, match="a folder to write in expected"):
        make_folder(kept.parent / wrong)
    assert kept.read_bytes() == OLD and alone(kept)


def test_a_full_disk_makes_no_folder(tmp_path, monkeypatch):
    def full(self, *rest, **more):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(OutputError, match="No space left"):
        make_folder(tmp_path / "new")
    assert not (tmp_path / "new").exists()
