"""Noise that nobody takes off again: it comes from a secret of the party that adds it.

Lab 08. Whoever knows the seed of some noise subtracts it. The experiment's seed stands in the run config, which every
node has, so noise for privacy never follows from it. On real nodes it comes from the system's randomness. In a notebook
and in Flower's simulation a run should be repeatable: there it follows from a second seed, the environment variable
FEDGEN_SECRET_SEED, out of which every party gets a secret of its own in its node config, and no message carries it.
"""

import os
import secrets

import numpy as np

VARIABLE = "FEDGEN_SECRET_SEED"
SERVER_PARTY = 2**31  # among the parties; clients are their partition ids
_NOISE_KEY = 70_001  # the noise's branch of a secret


def secret_for(party):
    """The secret of one party of a simulated run, out of the variable's seed, which is 0 unless it is set."""
    seed = int(os.environ.get(VARIABLE, 0))
    drawn = np.random.SeedSequence(seed, spawn_key=(party,)).generate_state(1, np.uint64)
    return int(drawn[0] >> np.uint64(1))


def secret_of(context):
    """The secret of whoever has this Flower `Context`; None on real nodes, for the system's randomness."""
    secret = context.node_config.get("secret")
    # Flower's simulation hands on the environment alone.
    if secret is None and VARIABLE in os.environ:
        return secret_for(int(context.node_config.get("partition-id", SERVER_PARTY)))
    return secret


def noise_source(secret, server_round):
    """A NumPy generator: one for each round out of a secret, or an unrepeatable one where that is None."""
    if secret is None:
        return np.random.default_rng(secrets.randbits(256))
    return np.random.default_rng(
        np.random.SeedSequence(secret, spawn_key=(_NOISE_KEY, server_round))
    )
