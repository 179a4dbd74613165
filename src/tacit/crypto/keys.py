"""Keys of parties, messages that one member seals to another through the coordinator, and signatures.

Sealing is authenticated public-key encryption: an ephemeral X25519 key and the sender's own are both agreed with the
recipient's; HKDF-SHA-256 over both secrets, all three public keys and the context gives a one-time AES-256-GCM key. Only the
recipient opens it, and only what this sender sealed for this context opens.

Source: RFC 7748 (X25519), RFC 5869 (HKDF), NIST SP 800-38D (GCM), RFC 8032 (Ed25519); the shape of sealing is that of
RFC 9180's Auth mode, with coins from `Coins`.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tacit.core.coins import Coins
from tacit.core.errors import CheatingDetected, ConfigError, DecryptionFailed

OVERHEAD = 32 + 16
"""Bytes that sealing adds: the ephemeral public key and the tag."""

_ONE_USE = bytes(12)  # each key encrypts one message, so a constant nonce is right


@dataclass(frozen=True, slots=True)
class KeyPair:
    """An X25519 key pair. Its ``repr`` shows no part of the secret.

    Args:
        secret: the private key.
        public: 32 bytes to give away.
    """

    secret: X25519PrivateKey
    public: bytes

    def __repr__(self) -> str:
        return f"KeyPair(public={self.public.hex()[:8]}...)"


def generate(coins: Coins) -> KeyPair:
    """A fresh key pair."""
    return key_pair_from(coins.bytes(32))


def key_pair_from(secret: bytes) -> KeyPair:
    """The key pair of a 32-byte secret, for instance one that a member exported.

    Raises:
        ConfigError: the secret has another length.
    """
    if len(secret) != 32:
        raise ConfigError(f"a secret of 32 bytes expected, got {len(secret)}")
    private = X25519PrivateKey.from_private_bytes(secret)
    return KeyPair(private, private.public_key().public_bytes_raw())


def agree(key: KeyPair, public: bytes) -> bytes:
    """The secret that the holders of both private keys share, 32 bytes: derive keys from it, use it for nothing else.

    Raises:
        DecryptionFailed: ``public`` is not a usable public key.

    Source: RFC 7748, section 6.1.
    """
    try:
        return key.secret.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise DecryptionFailed(
            "a public key of 32 bytes that is not of low order is needed; ask the peer for its key again"
        ) from None


def _message_key(
    shared: bytes, ephemeral: bytes, sender: bytes, recipient: bytes, context: bytes
) -> AESGCM:
    info = b"tacit/seal/1" + ephemeral + sender + recipient + context
    return AESGCM(HKDF(SHA256(), 32, None, info).derive(shared))


def seal(plain: bytes, *, sender: KeyPair, recipient: bytes, context: bytes, coins: Coins) -> bytes:
    """Seal ``plain`` from ``sender`` to the holder of the public key ``recipient``.

    Args:
        plain: what to send.
        sender: the sender's key pair.
        recipient: the recipient's public key, 32 bytes.
        context: what the message is for (session, round, roles); must be equal at both ends.
        coins: for the ephemeral key.

    Raises:
        DecryptionFailed: ``recipient`` is not a usable public key.

    **Leaks**: the length of ``plain``. **Cost**: `OVERHEAD` bytes.
    """
    ephemeral = generate(coins)
    shared = agree(ephemeral, recipient) + agree(sender, recipient)
    key = _message_key(shared, ephemeral.public, sender.public, recipient, context)
    return ephemeral.public + key.encrypt(_ONE_USE, plain, None)


def unseal(sealed: bytes, *, sender: bytes, recipient: KeyPair, context: bytes) -> bytes:
    """Open what the holder of the public key ``sender`` sealed to ``recipient`` for this context.

    Raises:
        DecryptionFailed: it is damaged, or from another sender, to another recipient or for another context.
    """
    ephemeral, body = sealed[:32], sealed[32:]
    shared = agree(recipient, ephemeral) + agree(recipient, sender)
    key = _message_key(shared, ephemeral, sender, recipient.public, context)
    try:
        return key.decrypt(_ONE_USE, body, None)
    except InvalidTag:
        raise DecryptionFailed(
            "a sealed message does not open: it was changed on its way, or sealed by another sender, to another "
            "recipient or for another context"
        ) from None


@dataclass(frozen=True, slots=True)
class SigningKey:
    """An Ed25519 key pair: who a party is. Its ``repr`` shows no part of the secret.

    Args:
        secret: the private key.
        public: 32 bytes, for a registry that everybody trusts.
    """

    secret: Ed25519PrivateKey
    public: bytes

    def __repr__(self) -> str:
        return f"SigningKey(public={self.public.hex()[:8]}...)"

    def sign(self, message: bytes) -> bytes:
        """A signature, 64 bytes."""
        return self.secret.sign(message)


def signing_key(coins: Coins) -> SigningKey:
    """A fresh signing key."""
    secret = Ed25519PrivateKey.from_private_bytes(coins.bytes(32))
    return SigningKey(secret, secret.public_key().public_bytes_raw())


def verify(signature: bytes, message: bytes, *, signer: bytes, what: str) -> None:
    """Raise unless the holder of the public key ``signer`` signed the message.

    Raises:
        CheatingDetected: it did not; says ``what`` was not signed.
    """
    try:
        Ed25519PublicKey.from_public_bytes(signer).verify(signature, message)
    except (InvalidSignature, ValueError):
        raise CheatingDetected(f"the signature on {what} is not its sender's") from None
