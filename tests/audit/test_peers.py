"""A peer's process, played by scripts of this test's own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tacit.audit import peers
from tacit.audit.peers import PEERS, Peer, Script
from tacit.core.errors import TacitError, UnknownName

ECHO = """
import json, os, sys
print(json.dumps({"peer": "echo 1", "protocol": sys.argv[1] + os.environ["EXTRA"]}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if "end" in asked:
        break
    print(json.dumps({"refused": "no"} if "refuse" in asked else asked), flush=True)
"""


@pytest.fixture
def echo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    python = tmp_path / ".peers" / "here" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    script = tmp_path / "benchmarks" / "peers" / "echo.py"
    script.parent.mkdir(parents=True)
    script.write_text(ECHO)
    monkeypatch.setattr(peers, "_ROOT", tmp_path)
    made = Script("here", "echo.py", ("twice ",), {"EXTRA": "over"})
    monkeypatch.setattr(peers, "PEERS", {"echo": made, "away": Script("away", "echo.py")})
    return "echo"


def test_a_peer_answers_line_by_line_until_it_is_closed(echo: str) -> None:
    peer = Peer(echo)
    assert peer.name == "echo 1 twice over"
    assert [peer.measure({"n": n}) for n in (1, 2)] == [{"n": 1}, {"n": 2}]
    with pytest.raises(TacitError, match="refused: no"):
        peer.measure({"refuse": 1})
    assert peer.measure({"n": 3}) == {"n": 3}
    peer.close()
    assert peer._process.returncode == 0


def test_a_peer_that_ends_or_is_not_there_says_so(echo: str) -> None:
    peer = Peer(echo)
    for _ in range(2):
        with pytest.raises(TacitError, match="ended"):
            peer.measure({"end": 1})
    peer.close()
    with pytest.raises(TacitError, match="run make peers"):
        Peer("away")
    with pytest.raises(UnknownName, match="peer"):
        Peer("ecco")


def test_every_peer_has_its_script() -> None:
    for script in PEERS.values():
        assert Path(script.command()[1]).is_file()
        assert script.command("more")[2:] == [*script.arguments, "more"]
