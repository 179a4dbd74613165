"""The one source of secret randomness: shares, masks, keys, noise and Poisson sampling all draw from `Coins`.

A `Coins` is an AES-256-CTR key stream under a key from the operating system. ``child("masks/owner 3")`` gives a stream
that is independent of its parent and of every other label, so that one party's draws never depend on how many another
part of the program made. After a fork the two processes draw from different streams.

``Coins.from_seed(b"...")`` repeats its draws and exists for tests and reproductions. It marks what it touches: ``seeded`` is
true on it and on all its children, and results carry that mark (`tacit.parties.runs.Run.seeded`), which voids their claims.

Initial weights and the shuffles of an experiment are not secrets: they take an explicit ``torch.Generator``. The two
types do not convert into each other.

Source: NIST SP 800-38A (CTR mode); HMAC-SHA-256 as the key derivation of ``child`` (NIST SP 800-108, one block).
"""

from __future__ import annotations

import hashlib
import hmac
import os
from typing import NoReturn

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from tacit.core.errors import ConfigError

Shape = int | tuple[int, ...]

_CHUNK = 1 << 20  # AES-CTR is fastest with buffers of 64 kB to 4 MB
_ZEROS = bytes(_CHUNK)


def _derive(key: bytes, label: str) -> bytes:
    return hmac.new(key, b"tacit/coins/1\x00" + label.encode(), hashlib.sha256).digest()


class Coins:
    """A stream of secret coins.

    Args:
        label: names the stream in ``repr``; it does not influence the draws of unseeded coins.

    **Guarantee**: the draws are indistinguishable from uniform bytes to who does not hold the key, as long as AES-256 is a
    pseudorandom permutation; streams of different labels and of forked processes are independent.
    """

    __slots__ = ("_cipher", "_expands", "_key", "_pid", "label", "seeded")

    def __init__(self, label: str = "root") -> None:
        self._expands = False
        self._start(os.urandom(32), label, seeded=False)

    def _start(self, key: bytes, label: str, *, seeded: bool) -> None:
        self._key = key
        self.label = label
        self.seeded = seeded
        self._pid = os.getpid()
        self._cipher: CipherContext = Cipher(
            algorithms.AES(_derive(key, "stream")), modes.CTR(bytes(16))
        ).encryptor()

    @classmethod
    def _of(cls, key: bytes, label: str, *, seeded: bool) -> Coins:
        made = cls.__new__(cls)
        made._expands = False
        made._start(key, label, seeded=seeded)
        return made

    @classmethod
    def from_seed(cls, seed: bytes) -> Coins:
        """Coins that repeat their draws, for tests and reproductions only; `seeded` is true on them."""
        return cls._of(hashlib.sha256(b"tacit/seed\x00" + seed).digest(), "seeded", seeded=True)

    @classmethod
    def expanding(cls, key: bytes, *, seeded: bool = False) -> Coins:
        """The stream of a key that other coins drew, for those who were given it: all of them draw the same.

        Args:
            key: 32 bytes.
            seeded: whether the coins that drew it are.

        Raises:
            ConfigError: the key has another length; or, in a draw, the process is a fork of the one that made the stream.
        """
        if len(key) != 32:
            raise ConfigError(f"a key of 32 bytes expected, got {len(key)}")
        made = cls._of(key, "expanded", seeded=seeded)
        made._expands = True
        return made

    def child(self, label: str) -> Coins:
        """The stream of that label. The same label gives the same stream: use each label once."""
        self._reseed_after_fork()
        made = self._of(
            _derive(self._key, "child/" + label), f"{self.label}/{label}", seeded=self.seeded
        )
        made._expands = self._expands
        return made

    def _reseed_after_fork(self) -> None:
        if self._pid != os.getpid():
            if self._expands:
                raise ConfigError(
                    "a stream expanded from a key belongs to the process that made it: expand it again after the fork"
                )
            fresh = f"fork/{os.getpid()}" if self.seeded else os.urandom(32).hex()
            self._start(_derive(self._key, fresh), self.label, seeded=self.seeded)

    def fill(self, buffer: npt.NDArray[np.uint8]) -> None:
        """Overwrite a contiguous uint8 array with uniform bytes."""
        self._reseed_after_fork()
        if not buffer.size:  # memoryview casts no empty shapes
            return
        view = buffer.data.cast("B")
        for start in range(0, len(view), _CHUNK):
            part = view[start : start + _CHUNK]
            self._cipher.update_into(_ZEROS[: len(part)] if len(part) < _CHUNK else _ZEROS, part)

    def bytes(self, count: int) -> bytes:
        """``count`` uniform bytes.

        Raises:
            ConfigError: ``count`` is negative.
        """
        if count < 0:
            raise ConfigError(f"a count of bytes must not be negative, got {count}")
        self._reseed_after_fork()
        if count <= _CHUNK:
            return self._cipher.update(_ZEROS[:count])
        buffer = np.empty(count, np.uint8)
        self.fill(buffer)
        return buffer.tobytes()

    def uint64(self, shape: Shape) -> npt.NDArray[np.uint64]:
        """Uniform 64-bit integers of that shape."""
        out = np.empty(shape, np.uint64)
        self.fill(out.reshape(-1).view(np.uint8))
        return out

    def below(self, bound: int, shape: Shape) -> npt.NDArray[np.int64]:
        """Integers uniform in [0, bound), without modulo bias (draws past the last multiple are redrawn).

        Raises:
            ConfigError: ``bound`` is not in 1..2^63.
        """
        if not 1 <= bound <= 1 << 63:
            raise ConfigError(f"bound must be in 1..2^63, got {bound}")
        if bound & (bound - 1) == 0:
            return (self.uint64(shape) & np.uint64(bound - 1)).astype(np.int64)
        flat = self.uint64(shape).reshape(-1)
        limit = np.uint64((1 << 64) // bound * bound - 1)
        while (bad := np.flatnonzero(flat > limit)).size:
            flat[bad] = self.uint64(bad.size)
        out: npt.NDArray[np.int64] = (flat % np.uint64(bound)).astype(np.int64).reshape(shape)
        return out

    def unit(self, shape: Shape) -> npt.NDArray[np.float64]:
        """Floats uniform on the 2^52 midpoints (k + 1/2) / 2^52: strictly inside (0, 1)."""
        out: npt.NDArray[np.float64] = (self.uint64(shape) >> np.uint64(12)).astype(np.float64)
        out += 0.5
        out *= 2.0**-52
        return out

    def permutation(self, count: int) -> npt.NDArray[np.int64]:
        """A uniform permutation of 0..count-1 (random 64-bit keys, redrawn on a collision, then sorted)."""
        while True:
            keys = self.uint64(count)
            if np.unique(keys).size == count:
                return np.argsort(keys).astype(np.int64)

    def __repr__(self) -> str:
        return f"Coins({self.label!r}{', seeded' if self.seeded else ''})"

    def _refuse(self) -> NoReturn:
        raise TypeError(
            "Coins cannot be copied or serialised: a copy would repeat secrets; use child()"
        )

    def __copy__(self) -> NoReturn:
        self._refuse()

    def __deepcopy__(self, memo: object) -> NoReturn:
        self._refuse()

    def __reduce__(self) -> NoReturn:
        self._refuse()
