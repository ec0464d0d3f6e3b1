"""The arithmetic of secure aggregation: shares of a secret, masks that cancel in pairs, numbers on a ring.

Lab 08. Plain functions on bytes and NumPy arrays; `federation.secure` sends their results to and fro. A client uploads
its numbers on the ring of 32-bit integers, plus a private mask, plus one mask for each pair that it is in; both of a
pair know the pair's seed (X25519), one adds the mask and the other subtracts it. Bonawitz et al., CCS 2017 (eprint
2017/281); Shamir, "How to share a secret", 1979.
"""

import math
import secrets

import numpy as np

PRIME = 2**521 - 1  # Shamir's field; a secret of 32 bytes fits with room to spare
SHARE_BYTES = 66


# -- Shamir's shares: a polynomial through the secret; `threshold` points of it give it back, fewer say nothing ------


def split_secret(secret, threshold, holders):
    """Shares of `secret` (at most 64 bytes) for positions `holders`: {position: bytes}; any `threshold` recover it."""
    curve = [int.from_bytes(secret), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    heights = {
        x: sum(c * pow(x + 1, power, PRIME) for power, c in enumerate(curve)) % PRIME
        for x in holders
    }
    return {x: height.to_bytes(SHARE_BYTES) for x, height in heights.items()}


def recover_secret(shares):
    """The secret of 32 bytes behind {position: share}: Lagrange's value at 0. Raises ValueError if they do not fit."""
    total = 0
    for x, share in shares.items():
        abscissas = [position for position in shares if position != x]
        above = math.prod(position + 1 for position in abscissas)
        below = math.prod(position - x for position in abscissas)
        total += int.from_bytes(share) * above * pow(below, -1, PRIME)
    if total % PRIME >= 256**32:
        raise ValueError(f"These {len(shares)} shares do not belong to one secret, or are too few.")
    return (total % PRIME).to_bytes(32)


# -- masks ------------------------------------------------------------------------------------------------------------


def new_key_pair():
    """A fresh X25519 key pair: (secret, public), 32 bytes each."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    key = X25519PrivateKey.generate()
    return key.private_bytes_raw(), key.public_key().public_bytes_raw()


def public_of(secret):
    """The public key that belongs to `secret`."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def shared_seed(secret, public, purpose):
    """The 32 bytes that two clients have in common: each needs its own secret and the other's public key."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    agreed = X25519PrivateKey.from_private_bytes(secret).exchange(
        X25519PublicKey.from_public_bytes(public)
    )
    return HKDF(SHA256(), length=32, salt=None, info=purpose).derive(agreed)


def mask_of(seed, length):
    """A mask: `length` numbers of the ring (uint32) out of a 32-byte seed, by the cipher ChaCha20."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

    stream = Cipher(algorithms.ChaCha20(seed, bytes(16)), mode=None).encryptor()
    return np.frombuffer(stream.update(bytes(4 * length)), dtype="<u4").astype(np.uint32)


def pair_masks(me, secret, publics, length):
    """What client `me` adds for its pairs: (length,) uint32. `publics`: {position: public key} of the others."""
    total = np.zeros(length, dtype=np.uint32)
    for peer, public in publics.items():
        mask = mask_of(shared_seed(secret, public, b"mask"), length)
        # the peer does the opposite; both wrap around
        total = total + mask if me < peer else total - mask
    return total


# -- numbers on the ring ----------------------------------------------------------------------------------------------


def ring_bits(num_clients, limit):
    """Binary places such that the sum of `num_clients` numbers of at most `limit` stays within 32 bits with a sign."""
    return math.floor(math.log2((2**31 - 1) / (num_clients * limit)))


def to_ring(numbers, weight, bits, limit):
    """The weighted numbers (a dict of arrays), then the weight, as fixed-point numbers of the ring: (d + 1,) uint32.

    Rounded towards zero, so that a clipped update stays clipped. The server can't check what it can't see, so the
    device does: raises ValueError for NaN, numbers beyond `limit`, or a weight outside (0, 1].
    """
    flat = np.concatenate(
        [np.asarray(value, dtype=np.float64).ravel() for value in numbers.values()]
    )
    largest = float(np.abs(flat).max()) if np.isfinite(flat).all() else math.nan
    if not largest <= limit:
        raise ValueError(
            f"the numbers to send reach {largest:.3g}, beyond the {limit:g} that the ring of secure aggregation holds; "
            "lower the learning rate or clip"
        )
    if not 0 < weight <= 1:
        raise ValueError(f"the weight must lie in (0, 1]; got {weight:.3g}. Raise most_examples")
    return np.trunc(np.append(flat * weight, weight) * 2.0**bits).astype(np.int64).astype(np.uint32)


def from_ring(total, bits):
    """A sum on the ring as (d,) float64 numbers and the sum of the weights."""
    values = total.view(np.int32) / 2.0**bits
    return values[:-1], float(values[-1])
