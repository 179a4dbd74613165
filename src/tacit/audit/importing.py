"""Code of the caller's own, named as ``module:attribute``."""

from __future__ import annotations

import importlib
import sys
import sysconfig
import traceback
from operator import attrgetter
from pathlib import Path
from typing import Any

import tacit
from tacit.core.errors import ConfigError

_INSTALLED = (sysconfig.get_paths()["stdlib"], str(Path(tacit.__file__).parent))


def imported(name: str, form: str = "module:attribute") -> Any:
    """What ``module:attribute`` names; importing a module runs its code.

    The working directory is looked in first and stays on the path, so that the module finds its neighbours.

    Args:
        name: as in ``nets:build`` or ``package.nets:Build.small``.
        form: how an error says that the name should look.

    Raises:
        ConfigError: there is no such module or attribute, or its import failed.
    """
    where, _, which = name.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        return attrgetter(which)(importlib.import_module(where))
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"no model at {name!r}: {error}; expected {form}, importable from {here}"
        ) from error
    except Exception as error:
        raise ConfigError(f"the import of {where} failed with {described(error)}") from error


def described(error: Exception) -> str:
    """An error of the caller's code in one line: kind, text, and the last place in code that is not installed."""
    places = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(("<", *_INSTALLED))
        and "site-packages" not in frame.filename
    ]
    place = f" ({places[-1].filename}, line {places[-1].lineno})" if places else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{place}"
