"""Fetching, from a server on this machine that behaves as badly as the test says."""

import gzip
import hashlib
import http.server
import io
import re
import struct
import tarfile
import threading
import time

import numpy as np
import pytest

from tacit.core.errors import ConfigError, DataError, OutputError, UnknownName
from tacit.nn import homes
from tacit.nn.data import load
from tacit.nn.fetch import Patience, fetch
from tacit.nn.homes import HOMES, gunzip, parse_idx, parse_pgm, read_tar_member

HASTY = Patience(stall_s=0.3, file_s=20, tries=1, pause_s=0)
SECOND_TRY = Patience(stall_s=0.3, file_s=20, tries=2, pause_s=0)


class Server:
    """Answers each path as told: with bytes, a status, or a function of the request's handler."""

    def __init__(self):
        self.answers, self.asked = {}, []

    def __enter__(self):
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                server.asked.append(self.path)
                answer = server.answers.get(self.path, 404)
                if isinstance(answer, list):
                    answer = answer.pop(0)
                if callable(answer):
                    answer(self)
                elif isinstance(answer, int):
                    self.send_error(answer)
                else:
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False
        self._server.handle_error = lambda *_: None  # clients that hang up are the point
        self.base = f"http://127.0.0.1:{self._server.server_port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with Server() as running:
        yield running


@pytest.fixture
def iris(data_folder):
    """What iris's home serves: no header, no last newline."""
    return gzip.decompress((data_folder / "iris.csv.gz").read_bytes()).split(b"\n", 1)[1].rstrip()


def fetch_from(server, name, folder, **changes):
    return fetch(name, folder, base=server.base, **{"patience": HASTY, **changes})


def files_in(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- what arrives


def test_a_table_is_fetched_checked_and_not_fetched_again(server, iris, data_folder, tmp_path):
    server.answers["/iris.csv"], told = iris, []
    folder = tmp_path / "new" / "folder"
    fetched = fetch_from(server, "iris", folder, watch=lambda *said: told.append(said))
    assert fetched.fresh
    assert fetched.files == (folder / "iris.csv.gz",)
    assert [path.name for path in folder.iterdir()] == ["iris.csv.gz"]  # nothing else is left
    assert load("iris", folder).inputs_test.equal(load("iris", data_folder).inputs_test)
    assert told[-1] == (len(iris), HOMES["iris"].size)
    assert not fetch_from(server, "iris", folder).fresh
    assert server.asked == ["/iris.csv"]
    assert fetch_from(server, "iris", folder, overwrite=True).fresh
    assert server.asked == ["/iris.csv"] * 2


def test_the_folder_is_the_one_in_the_environment(server, iris, tmp_path, monkeypatch):
    server.answers["/iris.csv"] = iris
    monkeypatch.setenv("TACIT_DATA", str(tmp_path))
    fetch_from(server, "iris", None)
    assert (tmp_path / "iris.csv.gz").is_file()
    monkeypatch.delenv("TACIT_DATA")
    with pytest.raises(DataError, match="no folder to fetch into: name one, or set TACIT_DATA"):
        fetch_from(server, "iris", None)


def test_adults_two_files_come_out_as_published(server, data_folder, tmp_path):
    for part, stop in (("train", b"\n\n"), ("test", b".\n\n")):
        text = gzip.decompress((data_folder / f"adult_{part}.csv.gz").read_bytes())
        rows = text.split(b"\n", 1)[1].rstrip().replace(b",", b", ")
        server.answers[f"/adult-{part}.csv"] = rows.replace(b"\n", stop[:-1]) + stop
    (tmp_path / "adult_train.csv.gz").write_bytes((data_folder / "adult_train.csv.gz").read_bytes())
    before = files_in(tmp_path)
    assert fetch_from(server, "adult", tmp_path).fresh
    after = files_in(tmp_path)
    assert after["adult_train.csv.gz"] == before["adult_train.csv.gz"]  # was there, and is good
    assert gzip.decompress(after["adult_test.csv.gz"]) == gzip.decompress(
        (data_folder / "adult_test.csv.gz").read_bytes()
    )


def tgz(*members, mode="w:gz"):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


@pytest.fixture(scope="module")
def bangkok(data_folder):
    """What Location-30's home serves: classes count from 1 and stand in quotes."""
    with np.load(data_folder / "location30.npz", allow_pickle=False) as archive:
        rows = np.hstack([archive["y"][:, None] + 1, archive["X"]]).tolist()
    return "".join(f'"{row[0]}",{",".join(map(str, row[1:]))}\n' for row in rows).encode()


def test_location30_is_read_out_of_its_archive(server, bangkok, data_folder, tmp_path):
    server.answers["/dataset_location.tgz"] = tgz((tarfile.TarInfo("bangkok"), bangkok))
    fetch_from(server, "location30", tmp_path)
    ours, theirs = load("location30", tmp_path), load("location30", data_folder)
    assert ours.inputs_train.equal(theirs.inputs_train)
    assert ours.labels_test.equal(theirs.labels_test)


def test_four_hundred_faces_go_on_where_they_stopped(server, data_folder, tmp_path):
    with np.load(data_folder / "att_faces.npz", allow_pickle=False) as archive:
        faces = archive["X"]
    paths = [f"/{path}" for path in HOMES["att-faces"].paths]
    for path, face in zip(paths, faces, strict=True):
        server.answers[path] = b"P5\n92 112\n255\n" + face.tobytes()
    lost, server.answers[paths[300]] = server.answers[paths[300]], 404
    with pytest.raises(DataError, match=f"{paths[300]}: the server answers 404 Not Found"):
        fetch_from(server, "att-faces", tmp_path)
    assert server.asked == paths[:301]
    assert not (tmp_path / "att_faces.npz").exists()
    server.answers[paths[300]], server.asked = lost, []
    fetch_from(server, "att-faces", tmp_path)
    assert server.asked == paths[300:]
    assert load("att-faces", tmp_path).inputs_test.equal(load("att-faces", data_folder).inputs_test)
    assert list(files_in(tmp_path)) == ["att_faces.npz"]


def test_a_redirection_on_this_machine_is_followed(server, iris, tmp_path):
    server.answers["/iris.csv"] = redirect(server.base + "moved")
    server.answers["/moved"] = iris
    assert fetch_from(server, "iris", tmp_path).fresh


# --- what does not


def redirect(to):
    def answer(handler):
        handler.send_response(302)
        handler.send_header("Location", to)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def cut(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "4000")
    handler.end_headers()
    handler.wfile.write(b"x" * 1000)


def cut_in_chunks(handler):
    handler.protocol_version = "HTTP/1.1"
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.wfile.write(b"ff\r\nonly this")


def silent(handler):
    time.sleep(0.6)


def silent_after_a_start(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "4000")
    handler.end_headers()
    handler.wfile.write(b"x")
    time.sleep(0.6)


def dripping(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "4000")
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b"x")
        time.sleep(0.05)


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b"x" * 65536)


def larger_than_it_may_be(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", str(10**12))
    handler.end_headers()


def garbled(handler):
    handler.wfile.write(b"this is no HTTP\r\n\r\n")


def hang_up(handler):
    handler.close_connection = True


BAD_ANSWERS = {
    "missing": (404, "the server answers 404 Not Found. It may have moved: name another place"),
    "forbidden": (403, "answers 403"),
    "down": (503, r"answers 503 .*tried 1 times\). Try again later"),
    "cut": (cut, "cut short: 1,000 of 4,000 bytes came"),
    "cut in chunks": (cut_in_chunks, "the connection failed: IncompleteRead"),
    "silent": (silent, r"nothing came for 0\.3 s"),
    "silent after a start": (silent_after_a_start, r"nothing came for 0\.3 s"),
    "endless": (endless, "larger than the 9,098 bytes that it may have"),
    "announced too large": (larger_than_it_may_be, "larger than the 9,098 bytes"),
    "garbled": (garbled, "the connection failed"),
    "hung up": (hang_up, "the connection failed"),
    "to http elsewhere": (redirect("http://example.org/iris.csv"), "leads to http://example.org"),
    "to ftp": (redirect("ftp://127.0.0.1/iris.csv"), "leads to ftp://"),
    "to a file": (redirect("file:///etc/hostname"), "answers 302|leads to file:"),
    "page": (b"<html>Sign in</html>", "what came is not iris, and was dropped.*expected 5 cells"),
    "nothing": (b"", "what came is not iris.*must hold 150 rows"),
    "no text": (b"\xff\xfe\xfd", "what came is not iris.*not text"),
}


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize(("answer", "said"), BAD_ANSWERS.values(), ids=BAD_ANSWERS.keys())
def test_a_bad_answer_is_said_and_changes_nothing(answer, said, kept, server, tmp_path):
    server.answers["/iris.csv"] = answer
    (tmp_path / "notes.txt").write_bytes(b"mine")
    if kept:
        (tmp_path / "iris.csv.gz").write_bytes(b"was here before")
    before = files_in(tmp_path)
    with pytest.raises(DataError, match=said):
        fetch_from(server, "iris", tmp_path, overwrite=kept)
    assert files_in(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(before)


def test_a_slow_server_is_given_up_on(server, tmp_path):
    server.answers["/iris.csv"] = dripping
    start = time.monotonic()
    slow = Patience(stall_s=5, file_s=0.3, tries=3)
    with pytest.raises(DataError, match=r"only \d bytes came in the time allowed: allow more"):
        fetch_from(server, "iris", tmp_path, patience=slow)
    assert time.monotonic() - start < 3
    assert server.asked == ["/iris.csv"]  # it had its time


def test_one_wrong_value_is_found_and_what_came_is_asked_for_anew(server, iris, tmp_path):
    server.answers["/iris.csv"] = iris.replace(b"5.1,3.5", b"5.1,3.6", 1)
    with pytest.raises(DataError, match=r"not iris, and was dropped.*some value was changed"):
        fetch_from(server, "iris", tmp_path)
    assert not list(tmp_path.iterdir())
    server.answers["/iris.csv"] = iris
    assert fetch_from(server, "iris", tmp_path).fresh


@pytest.mark.parametrize("bad", [cut, cut_in_chunks, silent, garbled, hang_up, 500, 429])
def test_what_may_be_better_the_second_time_is_tried_again(bad, server, iris, tmp_path):
    server.answers["/iris.csv"] = [bad, iris]
    assert fetch_from(server, "iris", tmp_path, patience=SECOND_TRY).fresh
    assert len(server.asked) == 2


@pytest.mark.parametrize("bad", [404, 403, larger_than_it_may_be, redirect("ftp://x/")])
def test_what_will_not_be_better_is_not_tried_again(bad, server, iris, tmp_path):
    server.answers["/iris.csv"] = [bad, iris]
    with pytest.raises(DataError):
        fetch_from(server, "iris", tmp_path, patience=SECOND_TRY)
    assert len(server.asked) == 1


def test_a_file_that_is_not_good_is_left_alone_unless_it_may_go(server, iris, tmp_path):
    server.answers["/iris.csv"] = iris
    (tmp_path / "iris.csv.gz").write_bytes(b"something of mine")
    with pytest.raises(
        DataError, match=r"there already is not good, and was left alone.*overwritten"
    ):
        fetch_from(server, "iris", tmp_path)
    assert files_in(tmp_path) == {"iris.csv.gz": b"something of mine"}
    assert server.asked == []
    fetch_from(server, "iris", tmp_path, overwrite=True)
    assert len(load("iris", tmp_path).labels_test) == 30


@pytest.mark.parametrize(
    "base", ["http://example.org/", "ftp://127.0.0.1/", "file:///tmp/", "127.0.0.1/", "http://127.0.0.1.example.org/"]
)  # fmt: skip
def test_only_https_or_this_machine_is_asked(base, tmp_path):
    with pytest.raises(DataError, match=r"must begin with https://"):
        fetch("iris", tmp_path, base=base, patience=HASTY)
    assert not list(tmp_path.iterdir())


def test_nobody_there_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with Server() as server:
        base = server.base
    with pytest.raises(DataError, match="the connection failed: ConnectionRefusedError"):
        fetch("iris", tmp_path, base=base, patience=HASTY)


def test_what_has_no_home_and_what_is_unknown_is_said(tmp_path):
    with pytest.raises(
        DataError, match=r"'cifar10' cannot be fetched: .*put cifar10_24k\.npz into"
    ):
        fetch("cifar10", tmp_path)
    with pytest.raises(DataError, match="'digits' cannot be fetched: it comes with scikit-learn"):
        fetch("digits", tmp_path)
    with pytest.raises(UnknownName, match="did you mean iris"):
        fetch("iriss", tmp_path)


def test_a_folder_that_cannot_be_written_is_said(server, iris, tmp_path):
    server.answers["/iris.csv"] = iris
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match=r"cannot write data set 'iris' into .*file"):
        fetch_from(server, "iris", tmp_path / "file")


def test_patience_has_bounds():
    for changes in ({"stall_s": 0}, {"file_s": -1}, {"tries": 0}, {"pause_s": -1}):
        with pytest.raises(ConfigError, match="times and tries must be positive"):
            Patience(**changes)


def test_every_home_is_https_and_pinned_and_every_set_has_one_or_a_reason():
    from tacit.nn.data import SOURCES

    assert set(HOMES) | set(homes.NO_HOME) == set(SOURCES)
    assert not set(HOMES) & set(homes.NO_HOME)
    for home in HOMES.values():
        assert home.base.startswith("https://")
        if "github" in home.base:
            assert re.search(r"/[0-9a-f]{40}/$", home.base)


# --- the formats


def test_pgm_pictures():
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    good = b"P5\n4 3\n255\n" + pixels.tobytes()
    assert np.array_equal(parse_pgm(good, 3, 4), pixels)
    for bad in (
        good[:-1], good + b"x", b"P2" + good[2:], good.replace(b"4 3", b"3 4"), good.replace(b"255", b"65535"),
        b"", b"P5\n99999 99999\n255\n",
    ):  # fmt: skip
        with pytest.raises(DataError, match="binary PGM picture of 4 x 3 pixels"):
            parse_pgm(bad, 3, 4)


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def test_idx_arrays():
    for array in (np.arange(24, dtype=np.uint8).reshape(2, 3, 4), np.arange(5, dtype=np.uint8)):
        assert np.array_equal(parse_idx(idx(array)), array)
    good = idx(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
    for bad in (
        b"", good[:3], good[:9], good[:-1], good + b"x", b"\0\0\x0d" + good[3:], b"\1" + good[1:],
        b"\0\0\x08\x03" + b"\xff" * 12, b"\0\0\x08\x00",
    ):  # fmt: skip
        with pytest.raises(DataError, match="expected an IDX file"):
            parse_idx(bad)


def test_mnist_is_taken_from_its_official_files(data_folder):
    small = [
        np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3),
        np.arange(2, dtype=np.uint8),
    ] * 2
    files = HOMES["mnist"].convert([gzip.compress(idx(array)) for array in small])
    with np.load(io.BytesIO(files["mnist.npz"]), allow_pickle=False) as archive:
        assert archive.files == ["X_train", "y_train", "X_test", "y_test"]
        assert np.array_equal(archive["X_test"], small[2])
    with np.load(data_folder / "mnist.npz", allow_pickle=False) as archive:
        # The MD5 of the official files, unpacked: what comes from there is what is read here.
        for name, official in (
            ("X_train", "6bbc9ace898e44ae57da46a324031adb"),
            ("X_test", "2646ac647ad5339dbf082846283269ea"),
            ("y_train", "a25bea736e30d166cdddb491f175f624"),
            ("y_test", "27ae3e4e09519cfbb04c329615203637"),
        ):
            assert hashlib.md5(idx(archive[name])).hexdigest() == official


def test_gzip_is_unpacked_up_to_a_limit():
    assert gunzip(gzip.compress(b"x" * 100), 100) == b"x" * 100
    with pytest.raises(DataError, match="unpacks to more than 100 bytes"):
        gunzip(gzip.compress(b"x" * 101), 100)
    with pytest.raises(DataError, match="unpacks to more than 100 bytes"):
        gunzip(gzip.compress(b"\0" * 50_000_000, 1), 100)
    with pytest.raises(DataError, match="cut short"):
        gunzip(gzip.compress(b"x" * 100)[:-3], 100)
    with pytest.raises(DataError, match="not gzip data"):
        gunzip(b"plain", 100)


def test_a_bomb_instead_of_location30_is_refused(server, tmp_path):
    server.answers["/dataset_location.tgz"] = gzip.compress(b"\0" * 60_000_000)
    with pytest.raises(DataError, match=r"not location30.*unpacks to more than 8,388,608 bytes"):
        fetch_from(server, "location30", tmp_path)


def special(name, kind, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def test_one_plain_file_comes_out_of_an_archive_and_nothing_else(tmp_path):
    content, plain = b"1,0,1\n" * 50, tarfile.TarInfo("bangkok")
    assert read_tar_member(tgz((plain, content)), "bangkok", 1 << 20) == content
    for packed in (
        tgz((tarfile.TarInfo("paris"), content)),
        tgz((special("bangkok", tarfile.SYMTYPE, "/etc/passwd"), b"")),
        tgz((special("bangkok", tarfile.LNKTYPE, "/etc/passwd"), b"")),
        tgz((special("bangkok", tarfile.DIRTYPE), b"")),
        tgz((special("bangkok", tarfile.FIFOTYPE), b"")),
        tgz((tarfile.TarInfo("../bangkok"), content)),
        gzip.compress(b"no archive at all" * 100),
        gzip.compress(b""),
        gzip.compress(tgz((plain, content), mode="w")[:700]),
    ):
        with pytest.raises(DataError, match="archive"):
            read_tar_member(packed, "bangkok", 1 << 20)


@pytest.mark.parametrize(
    "content", [b"1,0\n2\n", b"1,x\n", b"300,1\n", b"-1,0\n", b"", b"\n", b"1," + b"9" * 9000]
)
def test_an_archive_of_something_else_is_not_location30(content):
    packed = tgz((tarfile.TarInfo("bangkok"), content))
    with pytest.raises(DataError, match="bangkok must hold rows of small whole numbers"):
        HOMES["location30"].convert([packed])
