import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tacit.core.coins import Coins
from tacit.core.errors import ConfigError, DecryptionFailed
from tacit.core.wire import Message, decode, encode
from tacit.crypto import keys
from tacit.crypto.keys import OVERHEAD, generate, key_pair_from, seal, unseal

PLAIN = b"a share of a secret"
CONTEXT = b"session 1/round 2/owner 0 to owner 1"


@pytest.fixture
def coins():
    return Coins.from_seed(b"keys")


@pytest.fixture
def sender(coins):
    return generate(coins.child("sender"))


@pytest.fixture
def recipient(coins):
    return generate(coins.child("recipient"))


@pytest.fixture
def sealed(sender, recipient, coins):
    return seal(
        PLAIN, sender=sender, recipient=recipient.public, context=CONTEXT, coins=coins.child("seal")
    )


def test_what_is_sealed_opens_at_its_recipient(sealed, sender, recipient):
    opened = unseal(sealed, sender=sender.public, recipient=recipient, context=CONTEXT)
    assert opened == PLAIN
    assert len(sealed) == len(PLAIN) + OVERHEAD
    assert PLAIN not in sealed


@pytest.mark.parametrize("plain", [b"", b"x", bytes(100_000)], ids=len)
def test_any_length_and_an_empty_context_can_be_sealed(plain, sender, recipient, coins):
    sealed = seal(plain, sender=sender, recipient=recipient.public, context=b"", coins=coins)
    assert len(sealed) == len(plain) + OVERHEAD
    assert unseal(sealed, sender=sender.public, recipient=recipient, context=b"") == plain


def test_a_member_can_seal_to_itself(sender, coins):
    sealed = seal(PLAIN, sender=sender, recipient=sender.public, context=CONTEXT, coins=coins)
    assert unseal(sealed, sender=sender.public, recipient=sender, context=CONTEXT) == PLAIN


def test_two_seals_of_one_text_have_nothing_in_common(sender, recipient, coins):
    one, other = (
        seal(PLAIN, sender=sender, recipient=recipient.public, context=CONTEXT, coins=coins)
        for _ in range(2)
    )
    assert one[:32] != other[:32] and one[32:] != other[32:]


def test_a_seal_does_not_open_with_another_sender_recipient_or_context(
    sealed, sender, recipient, coins
):
    other = generate(coins.child("other"))
    right = {"sender": sender.public, "recipient": recipient, "context": CONTEXT}
    wrongs = [
        {"sender": other.public},
        {"sender": recipient.public},
        {"recipient": other},
        {"recipient": sender},
        {"context": b""},
        {"context": CONTEXT + b"\x00"},
        {"sender": recipient.public, "recipient": sender},  # reflected to where it came from
    ]
    for wrong in wrongs:
        with pytest.raises(DecryptionFailed):
            unseal(sealed, **{**right, **wrong})
    assert unseal(sealed, **right) == PLAIN


def test_nobody_but_its_sender_can_seal_in_a_members_name(sender, recipient, coins):
    """The coordinator knows all public keys and seals with its own secret, under the sender's name."""
    coordinator = generate(coins.child("coordinator"))
    forged = keys.KeyPair(coordinator.secret, sender.public)
    sealed = seal(PLAIN, sender=forged, recipient=recipient.public, context=CONTEXT, coins=coins)
    with pytest.raises(DecryptionFailed):
        unseal(sealed, sender=sender.public, recipient=recipient, context=CONTEXT)


def test_a_flip_of_any_bit_is_refused(sealed, sender, recipient):
    """Every byte of the ephemeral key (its unused top bit too), of the text and of the tag."""
    for at in range(len(sealed)):
        for bit in (0, 7):
            damaged = bytearray(sealed)
            damaged[at] ^= 1 << bit
            with pytest.raises(DecryptionFailed):
                unseal(bytes(damaged), sender=sender.public, recipient=recipient, context=CONTEXT)


def test_a_seal_that_is_cut_or_grown_is_refused(sealed, sender, recipient):
    lengths = [*range(OVERHEAD + 1), len(sealed) - 1]
    for damaged in [*(sealed[:length] for length in lengths), sealed + b"\x00", b"\x00" + sealed]:
        with pytest.raises(DecryptionFailed):
            unseal(damaged, sender=sender.public, recipient=recipient, context=CONTEXT)


P = 2**255 - 19
LOW_ORDER = [
    0,
    1,
    P - 1,
    P,
    P + 1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
]


@pytest.mark.parametrize("point", LOW_ORDER, ids=lambda point: hex(point)[:8])
def test_a_public_key_of_low_order_is_refused(point, sealed, sender, recipient, coins):
    low = point.to_bytes(32, "little")
    with pytest.raises(DecryptionFailed, match="low order"):
        seal(PLAIN, sender=sender, recipient=low, context=CONTEXT, coins=coins)
    with pytest.raises(DecryptionFailed, match="low order"):
        unseal(sealed, sender=low, recipient=recipient, context=CONTEXT)
    with pytest.raises(DecryptionFailed, match="low order"):
        unseal(low + sealed[32:], sender=sender.public, recipient=recipient, context=CONTEXT)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_public_key_of_another_length_is_refused(length, sealed, sender, recipient, coins):
    with pytest.raises(DecryptionFailed, match="32 bytes"):
        seal(PLAIN, sender=sender, recipient=bytes(length), context=CONTEXT, coins=coins)
    with pytest.raises(DecryptionFailed, match="32 bytes"):
        unseal(sealed, sender=bytes(length), recipient=recipient, context=CONTEXT)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_secret_of_another_length_is_refused(length):
    with pytest.raises(ConfigError, match=f"got {length}"):
        key_pair_from(bytes(length))


def test_keys_and_agreement_are_those_of_rfc_7748_section_6_1():
    alice = key_pair_from(
        bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    )
    bob = key_pair_from(
        bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    )
    shared = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert alice.public.hex() == (
        "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    )
    assert bob.public.hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    assert keys.agree(alice, bob.public).hex() == keys.agree(bob, alice.public).hex() == shared


def test_a_seal_is_what_its_description_says(sealed, sender, recipient, coins):
    """Built again from the primitives that the module's docstring names, with HKDF written out (RFC 5869)."""
    ephemeral = generate(coins.child("seal"))

    def mac(key, data):
        return hmac.new(key, data, hashlib.sha256).digest()

    shared = b"".join(
        key.secret.exchange(X25519PublicKey.from_public_bytes(recipient.public))
        for key in (ephemeral, sender)
    )
    info = b"tacit/seal/1" + ephemeral.public + sender.public + recipient.public + CONTEXT
    key = mac(mac(bytes(32), shared), info + b"\x01")
    assert sealed == ephemeral.public + AESGCM(key).encrypt(bytes(12), PLAIN, None)


def test_key_pairs_follow_their_coins():
    one, same, other = (generate(Coins.from_seed(seed)) for seed in (b"a", b"a", b"b"))
    assert one.public == same.public != other.public
    assert generate(Coins()).public != generate(Coins()).public


def test_repr_shows_no_part_of_the_secret():
    secret = bytes(range(1, 33))
    pair = key_pair_from(secret)
    assert repr(pair) == f"KeyPair(public={pair.public.hex()[:8]}...)"
    assert str(secret) not in str(pair) and secret.hex() not in repr(pair)


def test_errors_show_no_part_of_a_secret_or_text(sealed, sender, recipient, coins):
    with pytest.raises(DecryptionFailed) as caught:
        unseal(sealed, sender=sender.public, recipient=recipient, context=b"other")
    shown = str(caught.value) + repr(caught.value.__cause__)
    assert PLAIN.decode() not in shown and recipient.secret.private_bytes_raw().hex() not in shown


def test_the_coordinator_that_passes_a_seal_on_cannot_read_it(sender, recipient, coins):
    """It holds the whole traffic: both public keys and the frame, and keys of its own."""
    coordinator = generate(coins.child("coordinator"))
    text = b"the canary " * 10
    sealed = seal(text, sender=sender, recipient=recipient.public, context=CONTEXT, coins=coins)
    frame = encode(Message("share", sealed=sealed, sender=sender.public, to=recipient.public))
    assert text[:8] not in frame
    assert text[:8] in encode(Message("share", clear=text))  # the control
    passed = decode(frame).blob("sealed")
    for key in (coordinator, keys.KeyPair(coordinator.secret, recipient.public)):
        with pytest.raises(DecryptionFailed):
            unseal(passed, sender=sender.public, recipient=key, context=CONTEXT)
    assert unseal(passed, sender=sender.public, recipient=recipient, context=CONTEXT) == text
