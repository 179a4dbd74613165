"""Headline figures of the papers, measured again on their data.

``quick`` runs the same code under the same names on less, and says so; ``full`` adds what takes long.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tacit.audit.figures import Effort
from tacit.audit.reproduce_dp import reproduce_dp
from tacit.audit.reproduce_extraction import reproduce_extraction
from tacit.audit.reproduce_gan import reproduce_gan
from tacit.audit.reproduce_inversion import reproduce_inversion
from tacit.audit.reproduce_leakage import reproduce_leakage
from tacit.audit.reproduce_membership import reproduce_membership
from tacit.audit.reproduce_secure import reproduce_secure
from tacit.audit.reproduce_selective import reproduce_selective
from tacit.audit.reproduce_two_server import reproduce_two_server
from tacit.core.errors import ConfigError, UnknownName

#: What can be reproduced: a paper's number, or a name.
REPRODUCTIONS: Mapping[str, Callable[[Effort], dict[str, object]]] = {
    "1": reproduce_inversion,
    "2": reproduce_gan,
    "3": reproduce_selective,
    "4": reproduce_dp,
    "5": reproduce_two_server,
    "6": reproduce_secure,
    "14": reproduce_membership,
    "15": reproduce_extraction,
    "leakage": reproduce_leakage,
}


def reproduce(name: str, effort: Effort) -> dict[str, object]:
    """Rerun the headline figures called ``name``.

    Args:
        name: a key of `REPRODUCTIONS`.
        effort: how much, from which seed, and where finished parts are kept.

    Raises:
        UnknownName: there is no reproduction of that name.
        ConfigError: both less and more than the default is asked for.
        DataError: its data set is not there.
    """
    if name not in REPRODUCTIONS:
        raise UnknownName("reproduction", name, REPRODUCTIONS)
    if effort.quick and effort.full:
        raise ConfigError("--quick does less than the default and --full more: give one of them")
    return REPRODUCTIONS[name](effort)
