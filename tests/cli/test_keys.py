"""``tacit keys`` as a user meets it."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from tacit.cli.main import run
from tacit.parties.credentials import load, read_certificate
from tacit.parties.roles import SERVER, Role


@pytest.fixture
def tacit(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        code = 0
        try:
            run(["keys", *map(str, arguments)])
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_new_makes_a_folder_for_each_party(tacit) -> None:
    code, out, err = tacit(
        "new", "--federation", "hospitals", "--owners", 2, "--role", "client 0", "--role", "client 1", "--days", 9,
    )  # fmt: skip
    assert code == 0 and not out
    assert "owner 1: keys/owner-1" in err and "authority: keys/authority" in err
    names = ["authority", "client-0", "client-1", "owner-0", "owner-1", "server-0"]
    assert sorted(path.name for path in Path("keys").iterdir()) == names
    held = load(Path("keys/client-1"))
    everybody = {SERVER, *(Role(kind, index) for kind in ("owner", "client") for index in (0, 1))}
    assert held.federation == "hospitals" and set(held.registry) == everybody
    own = read_certificate(Path("keys/owner-0/certificate.pem"))
    # From a day before; the authority's certificate, which it does not outlive, may be a second older.
    assert (
        timedelta(days=9) < own.not_valid_after_utc - own.not_valid_before_utc <= timedelta(days=10)
    )
    assert stat.S_IMODE(Path("keys/owner-0/key.pem").stat().st_mode) == 0o600


def test_new_takes_another_folder_and_a_role_that_is_there_anyway(tacit) -> None:
    code, _, _ = tacit(
        "new", "--federation", "f", "--owners", 0, "--role", "server-0", "--role", "dealer 0", "--out", "a/b",
    )  # fmt: skip
    assert code == 0 and set(load(Path("a/b/server-0")).registry) == {SERVER, Role("dealer")}


def test_no_key_is_overwritten(tacit) -> None:
    assert tacit("new", "--federation", "f", "--owners", 1)[0] == 0
    before = {path: path.read_bytes() for path in Path("keys").rglob("*.*")}
    for again in (
        ("new", "--federation", "f", "--owners", 1),
        ("authority", "--federation", "f"),
        ("request", "--federation", "f", "--role", "owner 0"),
    ):
        code, _, err = tacit(*again)
        assert code == 2 and "ConfigError" in err and "never overwritten" in err
    assert before == {path: path.read_bytes() for path in Path("keys").rglob("*.*")}


@pytest.mark.parametrize(
    "role", ["owner", "3", "Owner 3", "owner three", "owner 3 4", "", "../x 1"]
)
def test_a_role_is_a_word_and_a_number(tacit, role: str) -> None:
    code, _, err = tacit("request", "--federation", "f", "--role", role)
    assert code == 2 and "as in 'owner 3'" in err and not Path("keys").exists()


def test_a_federation_has_a_plain_name(tacit) -> None:
    code, _, err = tacit("new", "--federation", "My Hospitals", "--owners", 1)
    assert code == 2 and "a-z, 0-9 and -" in err and not Path("keys").exists()


def test_several_owners_enrol_each_on_its_own(tacit) -> None:
    code, out, err = tacit(
        "authority", "--federation", "clinics", "--out", "at-authority", "--days", 30
    )
    assert code == 0 and not out and "ca.key to nobody" in err
    authority = Path("at-authority/authority")
    (told,) = re.findall("fingerprint of ca.pem: ([0-9a-f]{64})", err)
    keys = {}
    for role in ("server 0", "owner 0"):
        code, out, err = tacit(
            "request", "--federation", "clinics", "--role", role, "--out", role[:5]
        )
        assert code == 0 and not out and "send" in err
        (keys[role],) = re.findall("key ([0-9a-f]{64})", err)
    asked = [Path("serve/server-0/request.pem"), Path("owner/owner-0/request.pem")]
    code, out, err = tacit("sign", authority, *asked)
    assert code == 0 and not out
    for role, key in keys.items():
        assert f"{role}: {authority}/issued/{role.replace(' ', '-')}.pem; key {key}" in err
    files = ["--ca", authority / "ca.pem", "--registry", authority / "registry.pem"]
    shown = []
    for folder in (Path("serve/server-0"), Path("owner/owner-0")):
        certificate = authority / "issued" / f"{folder.name}.pem"
        code, out, err = tacit("accept", folder, "--certificate", certificate, *files)
        assert code == 0 and not out and f"fingerprint of ca.pem: {told}" in err
        shown += re.findall("fingerprint of the registry: ([0-9a-f]{64})", err)
    assert len(shown) == 2 and len(set(shown)) == 1
    assert load(Path("owner/owner-0")).registry == load(Path("serve/server-0")).registry

    code, _, err = tacit("sign", authority, asked[1])
    assert code == 2 and "--renew" in err
    assert tacit("sign", authority, asked[1], "--renew", "--days", 3)[0] == 0
    # One that joins later: the others need the new registry, and nothing else.
    tacit("request", "--federation", "clinics", "--role", "owner 1", "--out", "later")
    tacit("sign", authority, "later/owner-1/request.pem")
    code, _, err = tacit("accept", "owner/owner-0", "--registry", authority / "registry.pem")
    assert code == 0 and "owner 0 of clinics, one of 3" in err


def test_a_wrong_answer_is_not_accepted(tacit) -> None:
    tacit("new", "--federation", "f", "--owners", 2)
    before = Path("keys/owner-0/certificate.pem").read_bytes()
    code, _, err = tacit("accept", "keys/owner-0", "--certificate", "keys/owner-1/certificate.pem")
    assert code == 2 and "AuthenticationFailed" in err and "not the key" in err
    assert Path("keys/owner-0/certificate.pem").read_bytes() == before
    tacit("request", "--federation", "f", "--role", "owner 7")
    code, _, err = tacit("accept", "keys/owner-7")
    assert code == 2 and "ca.pem cannot be read" in err and "get it from the authority" in err


def test_show_says_who_until_when_and_whom(tacit) -> None:
    tacit("new", "--federation", "hospitals", "--owners", 2)
    held = load(Path("keys/owner-1"))
    code, out, err = tacit("show", "keys/owner-1", "--json")
    result = json.loads(out)
    assert code == 0 and not err
    assert result["command"] == "keys show" and result["version"] and not result["seeded"]
    assert result["settings"] == {"folder": "keys/owner-1"}
    assert result["federation"] == "hospitals" and result["role"] == "owner 1"
    assert result["fingerprint"] == held.fingerprint
    own = read_certificate(Path("keys/owner-1/certificate.pem"))
    assert result["expires"] == own.not_valid_after_utc.isoformat()
    assert result["parties"] == {str(role): key.hex() for role, key in held.registry.items()}
    other = json.loads(tacit("show", "keys/server-0", "--json")[1])
    assert other["authority"] == result["authority"] and other["registry"] == result["registry"]
    assert other["fingerprint"] != result["fingerprint"]
    code, shown, _ = tacit("show", "keys/owner-1")
    assert code == 0
    for value in (
        "hospitals",
        "owner 1",
        *(result[name] for name in ("fingerprint", "authority", "registry")),
    ):
        assert value in shown
    secret = held.key.secret.private_bytes_raw().hex()
    assert secret not in out + shown and "PRIVATE" not in out + shown


def test_show_refuses_a_key_that_others_may_read(tacit) -> None:
    tacit("new", "--federation", "f", "--owners", 1)
    Path("keys/owner-0/key.pem").chmod(0o644)
    code, out, err = tacit("show", "keys/owner-0")
    assert code == 2 and not out and "chmod 600 keys/owner-0/key.pem" in err


@pytest.mark.parametrize("command", ["new", "authority", "request", "sign", "accept", "show"])
def test_each_command_explains_itself(tacit, command: str) -> None:
    code, out, _ = tacit(command, "--help")
    assert code == 0 and len(re.findall(r"\.\s", out)) >= 3


def test_help_loads_neither_torch_nor_keys() -> None:
    code = "import sys, tacit.cli.main; sys.exit(bool({'torch', 'cryptography.x509'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
