"""A device's half of secure aggregation: its keys, the shares of its secrets, its masked upload, what it reveals.

Lab 08. The protocol and the server's half are in `federation.secure`, the arithmetic in `federation.masks`.
"""

import hashlib
import os

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedgen_lab.federation.arrays import values_of
from fedgen_lab.federation.averages import clipped, noise_like
from fedgen_lab.federation.masks import (
    SHARE_BYTES,
    mask_of,
    new_key_pair,
    pair_masks,
    public_of,
    shared_seed,
    split_secret,
    to_ring,
)
from fedgen_lab.federation.secret import secret_of

MASKED = "masked"  # the one array of an upload


def secured(app):
    """A Flower `ClientApp` around `app` that takes part in secure aggregation.

    Messages without a "secure" record go to `app` as they are, except that a device whose run config says secure=1
    refuses to train in the clear. What a device remembers from step to step is in `Context.state`. Of the metrics only
    "flops" leaves it; the number of examples is part of the masked vector.
    """
    outer = ClientApp()

    @outer.query()
    def agree(message, context):
        if "secure" not in message.content:
            return app(message, context)
        request = message.content["secure"]
        step = {"keys": _keys, "shares": _shares, "reveal": _reveal}[request["step"]]
        answer = ConfigRecord(step(request, context))
        return Message(
            RecordDict({"secure": answer, "metrics": _metrics(context)}), reply_to=message
        )

    @outer.train()
    def train_and_mask(message, context):
        if "secure" in message.content:
            return _upload(message, context, app)
        if context.run_config.get("secure"):
            raise ValueError(
                "this device takes part in secure aggregation only; it was asked to upload in the clear"
            )
        return app(message, context)

    @outer.evaluate()
    def evaluate(message, context):
        return app(message, context)

    return outer


def _metrics(context, **numbers):
    client = int(context.node_config["partition-id"])
    return MetricRecord({"partition-id": client, "num-examples": 1, **numbers})


def _memory(context, request, step):
    """What this device remembers of the round. Raises ValueError if the request does not follow `step`."""
    memory = context.state.get("secure", {})
    if memory.get("step") != step or memory.get("server-round") != request["server-round"]:
        raise ValueError(f"the step {request['step']!r} of secure aggregation is out of turn")
    memory["step"] = request["step"]
    return memory


def _keys(request, context):
    """Two fresh key pairs; the public keys go up."""
    (mask_secret, mask_key), (box_secret, box_key) = new_key_pair(), new_key_pair()
    context.state["secure"] = ConfigRecord(
        {
            "step": "keys",
            "server-round": request["server-round"],
            "mask-secret": mask_secret,
            "box-secret": box_secret,
        }
    )
    return {"mask-key": mask_key, "box-key": box_key}


def _shares(request, context):
    """Shares of both secrets, sealed for each client."""
    memory, me, threshold = _memory(context, request, "keys"), request["me"], request["threshold"]
    positions, mask_keys = request["positions"], request["mask-keys"]
    is_here = me in positions and mask_keys[positions.index(me)] == public_of(memory["mask-secret"])
    if not is_here or len(set(mask_keys)) < len(positions):
        raise ValueError("the list of public keys is not the clients' own")
    if not max(2, len(positions) // 2 + 1) <= threshold <= len(positions):
        raise ValueError(
            f"a threshold of {threshold} among {len(positions)} clients hides nobody; take a majority"
        )
    # the private mask's seed, and the shares that give either secret back
    private_seed = os.urandom(32)
    key_shares = split_secret(memory["mask-secret"], threshold, positions)
    seed_shares = split_secret(private_seed, threshold, positions)
    # one letter to each client; the server carries it and can't read it
    letters = []
    for peer, box_key in zip(positions, request["box-keys"], strict=True):
        nonce = os.urandom(12)
        address = _address(request["server-round"], me, peer)
        letter = key_shares[peer] + seed_shares[peer]
        letters.append(nonce + _box(memory, box_key).encrypt(nonce, letter, address))
    memory["private-seed"], memory["threshold"], memory["me"] = private_seed, threshold, me
    for field in ("positions", "mask-keys", "box-keys"):
        memory[field] = request[field]
    return {"sealed": letters, "seed-hash": hashlib.sha256(private_seed).digest()}


def _upload(message, context, app):
    """The update on the ring, with the private mask and the masks of all pairs."""
    request = message.content["secure"]
    memory = _memory(context, request, "shares")
    positions, me = request["positions"], memory["me"]
    if (
        not {me} <= set(positions) <= set(memory["positions"])
        or len(positions) < memory["threshold"]
    ):
        raise ValueError(
            f"{len(positions)} clients are too few to hide among, or not those whose keys this device has"
        )
    # a server that asks for less noise than the run's config says, or for no clip to measure it by, gets nothing
    multiplier = request["noise-multiplier"] if request["clip"] > 0 else 0.0
    if multiplier < context.run_config.get("noise-multiplier", 0.0):
        raise ValueError(
            f"the server asks for noise of {multiplier:g} clips, less than this run's config says"
        )
    # train, and clip where the server asks for it
    content = app(message, context).content
    (trained,), (metrics,) = content.array_records.values(), content.metric_records.values()
    update, weight = values_of(trained), 1.0
    if request["clip"] > 0:
        start = values_of(message.content["arrays"])
        if not set(update) <= set(start):
            raise ValueError(
                "a device can clip its update only where the server sent what it starts from"
            )
        change = {name: np.float64(value) - start[name] for name, value in update.items()}
        update = clipped(change, request["clip"])
        # a share of the noise, before anyone else sees a number
        scale = multiplier * request["clip"] / memory["threshold"] ** 0.5
        noise = noise_like(update, scale, secret_of(context), request["server-round"])
        update = {name: value + noise[name] for name, value in update.items()}
    else:
        weight = metrics["num-examples"] / request["most-examples"]
    # put it on the ring and add the masks
    update = {name: update[name] for name in sorted(update)}
    vector = to_ring(update, weight, request["bits"], request["limit"])
    keys = dict(zip(memory["positions"], memory["mask-keys"], strict=True))
    peers = {peer: keys[peer] for peer in positions if peer != me}
    vector = vector + mask_of(memory["private-seed"], len(vector))
    vector = vector + pair_masks(me, memory["mask-secret"], peers, len(vector))
    memory["uploading"], memory["sealed"] = positions, request["sealed"]
    reply = {
        "arrays": ArrayRecord({MASKED: Array(vector)}),
        "metrics": _metrics(context, flops=float(metrics.get("flops", 0.0))),
    }
    return Message(RecordDict(reply), reply_to=message)


def _reveal(request, context):
    """One share of each client: of its private seed if it uploaded, of its key if it did not."""
    memory, survivors = _memory(context, request, "upload"), set(request["survivors"])
    is_too_few = len(survivors) < memory["threshold"]
    if is_too_few or not {memory["me"]} <= survivors <= set(memory["uploading"]):
        raise ValueError(
            f"{len(survivors)} uploads are too few to unmask, or not those of this round"
        )
    box_keys = dict(zip(memory["positions"], memory["box-keys"], strict=True))
    shares = []
    for peer, sealed in zip(memory["uploading"], memory["sealed"], strict=True):
        address = _address(request["server-round"], peer, memory["me"])
        letter = _box(memory, box_keys[peer]).decrypt(sealed[:12], sealed[12:], address)
        # one of the two, never both
        shares.append(letter[SHARE_BYTES:] if peer in survivors else letter[:SHARE_BYTES])
    del context.state["secure"]  # whoever asks again gets nothing
    return {"shares": shares}


def _box(memory, box_key):
    """What seals and opens the letters between this device and the owner of `box_key`."""
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    return ChaCha20Poly1305(shared_seed(memory["box-secret"], box_key, b"letter"))


def _address(server_round, sender, receiver):
    return f"round {server_round}: {sender} to {receiver}".encode()
