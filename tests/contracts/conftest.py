"""A federation's certificates, made once."""

from pathlib import Path

import pytest

from tacit.core.coins import Coins
from tacit.parties.credentials import issue_all
from tacit.parties.roles import SERVER, owners


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    issue_all(folder, "contract", (SERVER, *owners(8)), coins=Coins())
    return folder
