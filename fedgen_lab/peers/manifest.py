"""Signed manifests: who made a model, from which models, how; and the checks before anybody uses it.

Lab 10; PDFed, arXiv 2409.18245, section 4.2. The paper signs manifests of the C2PA standard; ours is JSON with the
names that C2PA gives its fields, signed with Ed25519 (RFC 8032) over canonical JSON (sorted keys, no spaces). It proves
that one key holder said all this; it does not prove that it is true. Each ingredient is a parent, by content id: from
manifest to manifest one walks up the whole lineage.
"""

import json

from fedgen_lab.peers.store import Unusable, cid_of

MOST_BYTES, MOST_BRACKETS = 100_000, 1_000
TRAINING, DATA_HASH, WALLETS = (
    "c2pa.trainedAlgorithmicData",
    "c2pa.hash.data",
    "client.crypto.addresses",
)
PRIME, ORDER_8 = (
    2**255 - 19,
    0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7,
)  # of Curve25519
NO_SECRET = {
    0,
    1,
    PRIME - 1,
    ORDER_8,
    PRIME - ORDER_8,
}  # y of the eight points for which anybody can sign


def new_key(seed):
    """A signing key from a seed (an integer). The same seed gives the same key: fit for a simulation, nothing else."""
    import numpy as np
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(np.random.default_rng([seed, 0x5EED]).bytes(32))


def canonical(claim):
    """A claim as bytes, one way only. Raises ValueError for numbers that JSON does not have (NaN, infinity)."""
    return json.dumps(
        claim, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def claim_of(wallet, content, parents, training, title):
    """What a manifest claims, a dict: there is one way to say it."""
    return {
        "alg": "ed25519",
        "claim_generator": "fedgen_lab",
        "title": title,
        "ingredients": [
            {"relationship": "inputTo", "instance_id": cid_of(parent)} for parent in parents
        ],
        "assertions": [
            {"label": DATA_HASH, "data": {"alg": "sha256", "hash": content.hex()}},
            {"label": TRAINING, "data": training},
            {"label": WALLETS, "data": {"ethereum": [wallet]}},
        ],
    }


def write_manifest(
    key, wallet, content, parents, training, title="Class-conditional diffusion model"
):
    """A signed manifest, as bytes.

    key: the author's Ed25519 key; wallet: the address that submits the model and earns its rewards; content: digest of
    the weights; parents: digests of the models it was trained from; training: facts such as {"steps": 200}.
    """
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    claim = claim_of(wallet, content, parents, training, title)
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    signature = {"public_key": public.hex(), "signature": key.sign(canonical(claim)).hex()}
    return canonical({"claim": claim, "signature": signature})


def read_manifest(data, submission):
    """The claim in a manifest, a dict, after every check that can be made against the chain's `Submission`.

    Checked are: the form, the signature, the digest of the weights, the parents, that the wallet is the sender's, and
    that nothing else is said. Raises `Unusable`, naming the model and the check that failed.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    model = cid_of(submission.content)
    if len(data) > MOST_BYTES or data.count(b"[") + data.count(b"{") > MOST_BRACKETS:
        # where a library has lifted Python's recursion limit, deeply nested JSON would end the process that reads it
        raise Unusable(
            f"The manifest of {model} is damaged: {len(data):,} bytes, or nested too deeply. Use another."
        )
    try:
        manifest = json.loads(data)
        claim, signature = manifest["claim"], manifest["signature"]
        facts = {assertion["label"]: assertion["data"] for assertion in claim["assertions"]}
        parents = [ingredient["instance_id"] for ingredient in claim["ingredients"]]
        said_hash, wallets, training = (
            facts[DATA_HASH]["hash"],
            facts[WALLETS]["ethereum"],
            facts[TRAINING],
        )
        public, signed = (
            bytes.fromhex(signature["public_key"]),
            bytes.fromhex(signature["signature"]),
        )
        Ed25519PublicKey.from_public_bytes(public).verify(signed, canonical(claim))
    except InvalidSignature:
        raise Unusable(
            f"The manifest of {model} is not signed by the key that it names. Use another model."
        ) from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Unusable(
            f"The manifest of {model} is damaged ({type(error).__name__}: {error}). Use another."
        ) from None
    if int.from_bytes(public, "little") % 2**255 % PRIME in NO_SECRET:
        raise Unusable(
            f"The manifest of {model} is signed by a key that is no secret. Use another model."
        )
    if data != canonical(
        {"claim": claim, "signature": {"public_key": public.hex(), "signature": signed.hex()}}
    ):
        raise Unusable(
            f"The manifest of {model} is not in canonical form: other bytes could say the same."
        )
    if said_hash != submission.content.hex():
        raise Unusable(f"The manifest of {model} is about other weights. Use another model.")
    if parents != [cid_of(parent) for parent in submission.parents]:
        raise Unusable(
            f"The manifest of {model} names other parents than the chain does. Use another model."
        )
    if wallets != [submission.author]:
        paid = str(wallets)[:99]
        raise Unusable(
            f"The manifest of {model} pays {paid}, but {submission.author} sent it. Use another model."
        )
    title = claim.get("title")
    if not isinstance(training, dict) or not isinstance(title, str):
        raise Unusable(
            f"The manifest of {model} does not say what it is and how it was trained. Use another model."
        )
    expected = claim_of(submission.author, submission.content, submission.parents, training, title)
    if canonical(claim) != canonical(
        expected
    ):  # an assertion made twice is read in one way here, in another there
        raise Unusable(
            f"The manifest of {model} says more, or in another form, than ours do. Use another model."
        )
    return claim


def training_facts(claim):
    """What a claim says of the training: the dict given to `write_manifest`."""
    return next(one["data"] for one in claim["assertions"] if one["label"] == TRAINING)
