import os
from pathlib import Path

import pytest
import torch


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(20)


@pytest.fixture(scope="session")
def data_folder():
    """The folder with the real data. Where they are required, their absence fails instead of skipping."""
    folder = os.environ.get("TACIT_DATA", "")
    if not folder:
        missing = pytest.fail if os.environ.get("TACIT_DATA_REQUIRED") == "1" else pytest.skip
        missing("TACIT_DATA is not set")
    return Path(folder)
