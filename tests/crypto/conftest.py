from __future__ import annotations

import os

import pytest

from tacit.crypto import kernels


@pytest.fixture(scope="session")
def built() -> kernels.Native:
    """The C kernels. Where they were not built the test is skipped, or fails if TACIT_NATIVE_REQUIRED is set."""
    found = kernels._load()
    if found is None:
        required = os.environ.get("TACIT_NATIVE_REQUIRED")
        (pytest.fail if required else pytest.skip)("the C kernels were not built")
    return found
