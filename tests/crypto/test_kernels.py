"""Which implementation is in use, and how it is turned off."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tacit.crypto import kernels

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def unbuilt(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if the extension had not been built."""

    def refuse(name: str) -> None:
        raise ImportError(name)

    monkeypatch.delenv("TACIT_NATIVE", raising=False)
    monkeypatch.setattr(importlib, "import_module", refuse)
    kernels._load.cache_clear()
    yield
    kernels._load.cache_clear()


def test_the_kernels_are_used_where_they_are_built(
    built: kernels.Native, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TACIT_NATIVE", raising=False)
    assert kernels.native() == built
    assert re.fullmatch(
        r"C kernels, (VAES-512|VAES-256|AES-NI|masks by numpy: no AES instructions)",
        kernels.kernel_names(),
    )


def test_the_environment_turns_them_off_and_on_again_in_a_running_process(
    built: kernels.Native, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TACIT_NATIVE", "0")
    assert kernels.native() is None
    assert kernels.kernel_names() == "numpy only (TACIT_NATIVE=0)"
    for value in ("1", ""):
        monkeypatch.setenv("TACIT_NATIVE", value)
        assert kernels.native() == built


def test_without_the_extension_numpy_is_used_and_said(unbuilt: None) -> None:
    assert kernels.native() is None
    assert kernels.kernel_names() == "numpy only (the C kernels were not built)"


@pytest.mark.parametrize(
    ("level", "name"),
    [(0, "masks by numpy: no AES instructions"), (1, "AES-NI"), (2, "VAES-256"), (3, "VAES-512")],
)
def test_each_level_has_its_name(level: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Lib:
        @staticmethod
        def tacit_masks_level() -> int:
            return level

    monkeypatch.delenv("TACIT_NATIVE", raising=False)
    monkeypatch.setattr(kernels, "_load", lambda: kernels.Native(Lib, None))
    assert kernels.kernel_names() == f"C kernels, {name}"


def test_what_is_declared_is_what_was_built(built: kernels.Native) -> None:
    """An extension that is older than its sources lacks a function, or has one that is gone."""
    header = (ROOT / "native" / "kernels.h").read_text()
    declared = set(re.findall(r"\b(tacit_\w+)\(", header))
    assert len(declared) >= 8
    assert declared == {name for name in dir(built.lib) if name.startswith("tacit_")}


def test_importing_loads_no_extension() -> None:
    code = (
        "import sys, tacit.crypto.masks, tacit.crypto.packing, tacit.crypto.quantisation;"
        "print('tacit.crypto._native' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert shown.stdout.strip() == "False"
