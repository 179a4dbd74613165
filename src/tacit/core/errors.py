"""Every error that tacit raises on purpose.

::

    TacitError
    ├── ConfigError            a setting, name, file or folder that the caller gave is wrong
    │   ├── UnknownName        no data set, protection, attack ... of that name
    │   ├── DataError          a data file is missing, corrupt, or not what it should be
    │   ├── OutputError        a result cannot be written where it was asked for
    │   └── StoreError         a store of correlations is used up, damaged, or another computation's
    ├── UnsupportedLayer       a model has a layer that the scheme cannot carry
    ├── RangeError             a value does not fit the range that a protocol works in
    ├── Diverged               training met a loss or update that is not finite
    ├── ProtocolError          a party met something that the protocol does not allow
    │   ├── WireError          bytes that are not a well-formed frame
    │   ├── PeerDropped        a party is gone
    │   ├── PeerRefused        a party answered that it will not go on
    │   ├── TooFewParties      a wave ended with fewer replies than the protocol needs
    │   ├── DeadlineExceeded   nothing came in time
    │   ├── Deadlock           every party waits and nothing is under way
    │   ├── CheatingDetected   a check that an honest party passes was failed
    │   └── AuthenticationFailed   a peer's or own certificate is not what it must be
    ├── EndpointError          a prediction endpoint does not do what it should
    │   ├── EndpointUnreachable    nobody answers, or not in time, after all retries
    │   ├── EndpointRefused    it will not answer this: an unknown key, a wrong shape, more than is allowed
    │   └── EndpointJunk       it answers with something that is no answer
    ├── DecryptionFailed       a ciphertext is damaged, or meant for another key or context
    ├── BudgetExhausted        no queries or no privacy budget left
    └── NotEnoughEvidence      a figure was asked for that the sample cannot support

What only deserves a word is a `TacitWarning`.

A message says what was expected, what came, from which role and round, and what to do. It never holds a secret.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Any


class TacitError(Exception):
    """Root of the tree: catch this to catch every deliberate error."""


class ConfigError(TacitError):
    """A setting, name, file or folder that the caller gave is wrong."""


class UnknownName(ConfigError):
    """A name that nothing answers to; the message lists the close ones.

    Args:
        kind: what was asked for, for instance ``"data set"``.
        name: the name that was given.
        known: the names that exist.
    """

    def __init__(self, kind: str, name: str, known: Collection[str]) -> None:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        super().__init__(
            f"no {kind} is called {name!r}: {hint}known are {', '.join(sorted(known))}"
        )


class DataError(ConfigError):
    """A data file is missing, corrupt, or not what it should be."""


class OutputError(ConfigError):
    """A result cannot be written where it was asked for."""


class StoreError(ConfigError):
    """A store of correlations is used up, damaged, or another computation's."""


class UnsupportedLayer(TacitError):
    """A model has a layer that cannot be carried; the message names the layer and what to do."""


class RangeError(TacitError):
    """A value does not fit the range that a protocol works in."""


class Diverged(TacitError):
    """Training met a loss, gradient or weight that is not finite."""


class ProtocolError(TacitError):
    """A party met something that the protocol does not allow."""


class WireError(ProtocolError):
    """Bytes that are not a well-formed frame, or a message that lacks what its tag promises."""


class PeerDropped(ProtocolError):
    """A party is gone."""


class PeerRefused(ProtocolError):
    """A party answered that it will not go on."""


class TooFewParties(ProtocolError):
    """A wave ended with fewer replies than the protocol needs.

    Attributes:
        replied: the roles whose replies came in time.
        missing: the roles that did not answer, each with what is known of why.
    """

    def __init__(
        self, needed: int, replied: Iterable[object], missing: Mapping[Any, str], *, wave: object
    ) -> None:
        self.replied = tuple(replied)
        self.missing = dict(missing)
        gone = "; ".join(f"{role}: {why}" for role, why in list(self.missing.items())[:8])
        if len(self.missing) > 8:
            gone += f"; and {len(self.missing) - 8} more"
        super().__init__(
            f"wave {wave}: {len(self.replied)} replies where at least {needed} are needed ({gone}). "
            "Nothing was changed; allow more time or lower the number needed."
        )


class DeadlineExceeded(ProtocolError):
    """Nothing came in time."""


class Deadlock(ProtocolError):
    """Every party waits and nothing is under way."""


class CheatingDetected(ProtocolError):
    """A check that an honest party passes was failed."""


class AuthenticationFailed(ProtocolError):
    """A peer's or own certificate is not what it must be."""


class EndpointError(TacitError):
    """A prediction endpoint does not do what it should."""


class EndpointUnreachable(EndpointError):
    """Nobody answers, or not in time, after all retries."""


class EndpointRefused(EndpointError):
    """The endpoint will not answer this: an unknown key, a wrong shape, more than is allowed.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, message: str, *, status: int) -> None:
        self.status = status
        super().__init__(message)


class EndpointJunk(EndpointError):
    """The endpoint answers with something that is no answer."""


class DecryptionFailed(TacitError):
    """A ciphertext is damaged, or was meant for another key or context."""


class BudgetExhausted(TacitError):
    """No queries or no privacy budget left."""


class NotEnoughEvidence(TacitError):
    """A figure was asked for that the sample cannot support."""


def by_name(name: str) -> type[TacitError]:
    """The class of the tree that carries ``name``; ``PeerRefused`` for any that is not a peer's to report.

    Links use it to carry a member's error to the coordinator as a name and a text.
    """
    found = globals().get(name)
    if not isinstance(found, type) or not issubclass(found, TacitError):
        return PeerRefused
    # A peer's word must not pass for a mistake of this side's caller.
    return (
        PeerRefused if issubclass(found, (ConfigError, EndpointRefused, TooFewParties)) else found
    )


class TacitWarning(UserWarning):
    """Settings that do what they say and hardly what was meant: training goes on, the text says what to change."""
