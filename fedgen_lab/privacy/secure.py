"""Secure aggregation: the server learns the sum of the clients' updates and nothing else about any of them.

Lab 08. Bonawitz et al., "Practical secure aggregation", CCS 2017 (eprint 2017/281), for a curious server that keeps to
the protocol. Every pair of clients agrees on a mask (X25519); one adds it, the other subtracts it, so that all masks
vanish in the sum. Each client adds one more mask of its own. Four exchanges a round, all as Flower messages:

    keys     up: two public keys, for masks and for sealed letters
    shares   down: everybody's public keys    up: Shamir shares of both secrets, one sealed letter for each other client
    upload   down: arrays, the letters        up: the update on a ring of 32-bit integers, masked
    reveal   down: who uploaded               up: shares of the own masks of those who did, of the keys of the others

With `threshold` answers in the last step the server takes away the own masks and what the lost clients' pairs left
behind. A client reveals one or the other about each of them, never both: with both the server could read an upload.
Fewer answers: the round is skipped. Sums on the ring are exact, so masks leave no trace in the result, however they are
drawn; they come from the system's randomness, not from the experiment's seed, which the server knows.
"""

import hashlib
import math
import os

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp

from fedgen_lab.federation.exchange import ask
from fedgen_lab.federation.fedavg import CheckedFedAvg
from fedgen_lab.privacy.dp import check_noise, clipped, noise_like
from fedgen_lab.privacy.masks import (
    SHARE_BYTES,
    from_ring,
    mask_of,
    new_key_pair,
    pair_masks,
    public_of,
    recover_secret,
    ring_bits,
    shared_seed,
    split_secret,
    to_ring,
)

MASKED = "masked"  # the one array of an upload
ALL = -1  # stands where a client's number would


# -- the device -------------------------------------------------------------------------------------------------------


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
        told = message.content["secure"]
        answer = {"keys": _keys, "shares": _shares, "reveal": _reveal}[told["step"]](told, context)
        return Message(
            RecordDict({"secure": ConfigRecord(answer), "metrics": _metrics(context)}),
            reply_to=message,
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


def _metrics(context, **more):
    return MetricRecord(
        {"partition-id": int(context.node_config["partition-id"]), "num-examples": 1, **more}
    )


def _state(context, told, before):
    """What this device remembers of the round. Raises ValueError if the step does not follow `before`."""
    state = context.state.get("secure", {})
    if state.get("step") != before or state.get("server-round") != told["server-round"]:
        raise ValueError(f"the step {told['step']!r} of secure aggregation is out of turn")
    state["step"] = told["step"]
    return state


def _keys(told, context):
    (mask_secret, mask_key), (box_secret, box_key) = new_key_pair(), new_key_pair()
    context.state["secure"] = ConfigRecord(
        {
            "step": "keys",
            "server-round": told["server-round"],
            "mask-secret": mask_secret,
            "box-secret": box_secret,
        }
    )
    return {"mask-key": mask_key, "box-key": box_key}


def _shares(told, context):
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    state, me, threshold = _state(context, told, "keys"), told["me"], told["threshold"]
    mask_keys = dict(zip(told["positions"], told["mask-keys"], strict=True))
    box_keys = dict(zip(told["positions"], told["box-keys"], strict=True))
    if mask_keys.get(me) != public_of(state["mask-secret"]) or len(set(told["mask-keys"])) < len(
        mask_keys
    ):
        raise ValueError("the list of public keys is not the clients' own")
    if not max(2, len(mask_keys) // 2 + 1) <= threshold <= len(mask_keys):
        raise ValueError(
            f"a threshold of {threshold} among {len(mask_keys)} clients hides nobody; take a majority"
        )
    own_seed = os.urandom(32)
    pairs = [
        split_secret(secret, threshold, mask_keys) for secret in (state["mask-secret"], own_seed)
    ]
    sealed = []
    for other in mask_keys:
        letter = pairs[0][other] + pairs[1][other]
        nonce = os.urandom(12)
        box = ChaCha20Poly1305(shared_seed(state["box-secret"], box_keys[other], b"letter"))
        sealed.append(nonce + box.encrypt(nonce, letter, _address(told["server-round"], me, other)))
    state["own-seed"], state["threshold"], state["me"] = own_seed, threshold, me
    state["everyone"], state["mask-keys"], state["box-keys"] = (
        list(mask_keys),
        told["mask-keys"],
        told["box-keys"],
    )
    return {"sealed": sealed, "seed-hash": hashlib.sha256(own_seed).digest()}


def _upload(message, context, app):
    told = message.content["secure"]
    state = _state(context, told, "shares")
    positions, me = told["positions"], state["me"]
    if (
        me not in positions
        or len(positions) < state["threshold"]
        or not set(positions) <= set(state["everyone"])
    ):
        raise ValueError(
            f"{len(positions)} clients are too few to hide among, or not those whose keys this device has"
        )
    reply = app(message, context)
    (trained,), (metrics,) = (
        reply.content.array_records.values(),
        reply.content.metric_records.values(),
    )
    numbers, weight = {name: np.float64(trained[name].numpy()) for name in sorted(trained)}, 1.0
    if told["clip"] > 0:
        start = message.content["arrays"]
        if not set(trained) <= set(start):
            raise ValueError(
                "a device can clip its update only where the server sent what it starts from"
            )
        numbers = clipped(
            {name: numbers[name] - start[name].numpy() for name in numbers}, told["clip"]
        )
    else:
        weight = metrics["num-examples"] / told["most-examples"]
    vector = to_ring(numbers, weight, told["bits"], told["limit"])
    publics = dict(zip(state["everyone"], state["mask-keys"], strict=True))
    others = {p: publics[p] for p in positions if p != me}
    vector = (
        vector
        + mask_of(state["own-seed"], len(vector))
        + pair_masks(me, state["mask-secret"], others, len(vector))
    )
    state["positions"], state["sealed"] = positions, told["sealed"]
    arrays, more = ArrayRecord({MASKED: Array(vector)}), {"flops": float(metrics.get("flops", 0.0))}
    return Message(
        RecordDict({"arrays": arrays, "metrics": _metrics(context, **more)}), reply_to=message
    )


def _reveal(told, context):
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    state, survivors = _state(context, told, "upload"), set(told["survivors"])
    if (
        state["me"] not in survivors
        or len(survivors) < state["threshold"]
        or not survivors <= set(state["positions"])
    ):
        raise ValueError(
            f"{len(survivors)} uploads are too few to unmask, or not those of this round"
        )
    box_keys, shares = dict(zip(state["everyone"], state["box-keys"], strict=True)), []
    for other, sealed in zip(state["positions"], state["sealed"], strict=True):
        box = ChaCha20Poly1305(shared_seed(state["box-secret"], box_keys[other], b"letter"))
        letter = box.decrypt(
            sealed[:12], sealed[12:], _address(told["server-round"], other, state["me"])
        )
        shares.append(
            letter[SHARE_BYTES:] if other in survivors else letter[:SHARE_BYTES]
        )  # one, never both
    del context.state["secure"]  # whoever asks again gets nothing
    return {"shares": shares}


def _address(server_round, sender, receiver):
    return f"round {server_round}: {sender} to {receiver}".encode()


# -- the server -------------------------------------------------------------------------------------------------------


class SecureFedAvg(CheckedFedAvg):
    """`CheckedFedAvg` that sees only the sum of the updates: the server's half of the protocol above.

    Clients weigh as many examples as they have, up to `most_examples`. With `clip` above 0 every device clips its
    update to that norm and all weigh the same; with `noise_multiplier` z as well, the server adds N(0, (z clip)^2) to
    the sum: user-level differential privacy (see `privacy.dp`) by a server that never sees an update. `limit` is the
    largest number that a device may send. A round needs `threshold` clients to the end, at least a majority of those
    asked (the default); with fewer it is skipped and says so in `refused`.

    The checks of single uploads can't be made by anyone but the device: a dishonest one may send any numbers. `seen`,
    partition id -> (d + 1,) uint32, is all that the server saw of the last round's updates. The mean reaches `combine`
    as if one client had uploaded it. A strategy that changes what is sent or how the mean is used goes behind this one:
    `class SecureRule(SecureFedAvg, RuleStrategy)`. Only rules whose result depends on the mean alone make sense.
    """

    def __init__(
        self, *, most_examples, clip=0.0, noise_multiplier=0.0, threshold=None, limit=8.0, **checked
    ):
        super().__init__(**checked)
        check_noise(clip, noise_multiplier)
        self.most_examples, self.clip, self.noise_multiplier = most_examples, clip, noise_multiplier
        self.threshold, self.limit, self.seen = threshold, limit, {}
        self._members, self._masked = (
            {},
            None,
        )  # node id -> (position, public key, hash of its own seed)

    def configure_train(self, server_round, arrays, config, grid):
        """Exchange keys and shares with the clients of this round, then ask those who answered to train."""
        self._grid, self._members, self.seen = grid, {}, {}
        plain = {
            m.metadata.dst_node_id: m
            for m in super().configure_train(server_round, arrays, config, grid)
        }
        position = {node: i for i, node in enumerate(plain)}
        self._needed = max(self.threshold or 0, len(plain) // 2 + 1, 2)
        self._number, self._bits = len(plain), ring_bits(max(len(plain), 1), self.limit)
        keys = self._exchange(
            server_round,
            {node: {"step": "keys"} for node in plain},
            {"mask-key": 32, "box-key": 32},
        )
        if self._too_few(server_round, keys, "agreed on keys"):
            return []
        told = {
            "step": "shares",
            "threshold": self._needed,
            "positions": [position[node] for node in keys],
        }
        told |= {
            f"{kind}s": [answer[kind] for answer in keys.values()]
            for kind in ("mask-key", "box-key")
        }
        told = {node: {**told, "me": position[node]} for node in keys}
        letters = self._exchange(server_round, told, {"sealed": len(keys), "seed-hash": 32})
        if self._too_few(server_round, letters, "shared their secrets"):
            return []
        self._members = {
            node: (position[node], keys[node]["mask-key"], answer["seed-hash"])
            for node, answer in letters.items()
        }
        told = {
            "step": "upload",
            "server-round": server_round,
            "bits": self._bits,
            "limit": float(self.limit),
            "most-examples": int(self.most_examples),
            "clip": float(self.clip),
            "positions": [position[node] for node in letters],
        }
        self._asked = []
        for node in letters:
            place = list(keys).index(node)
            sealed = [answer["sealed"][place] for answer in letters.values()]
            content = RecordDict(
                {**plain[node].content, "secure": ConfigRecord({**told, "sealed": sealed})}
            )
            self._asked.append(Message(content, node, MessageType.TRAIN))
        return self._asked

    def aggregate_train(self, server_round, replies):
        """As `CheckedFedAvg`, with one upload: the mean of all. Returns (arrays, metrics)."""
        done = super().aggregate_train(server_round, replies)
        self.client_arrays = {}  # no client's in particular
        return done

    def _accepted(self, server_round, replies, expected):
        """One answer that stands for all who uploaded, as far as the masks come off; else none."""
        if expected is None:
            return super()._accepted(server_round, replies, expected)
        if not self._members:
            return []
        start = super()._start_of(next(iter(self._members)), expected)
        length = 1 + sum(math.prod(array.shape) for array in start.values())
        self._masked = ArrayRecord({MASKED: Array(np.zeros(length, dtype=np.uint32))})
        accepted = super()._accepted(server_round, replies, expected)
        self._masked = None
        self.seen = {
            partition: content[self.arrayrecord_key][MASKED].numpy()
            for partition, _, content in accepted
        }
        total = self._unmasked(
            server_round, {node: self.seen[partition] for partition, node, _ in accepted}
        )
        return [] if total is None else [(ALL, ALL, self._mean(server_round, total, start))]

    def _start_of(self, node_id, expected):
        return super()._start_of(node_id, expected) if self._masked is None else self._masked

    def _unmasked(self, server_round, uploads):
        """The sum of the uploads, {node: (d + 1,) uint32}, without any mask; None if too few clients help."""
        if self._too_few(server_round, uploads, "uploaded"):
            return None
        survivors = [self._members[node][0] for node in uploads]
        told = {"step": "reveal", "survivors": survivors}
        answers = self._exchange(
            server_round, {node: told for node in uploads}, {"shares": len(self._members)}
        )
        if self._too_few(server_round, answers, "revealed their shares"):
            return None
        total = sum(uploads.values())  # wraps around, as it should
        for place, (position, mask_key, seed_hash) in enumerate(self._members.values()):
            shares = {
                self._members[node][0]: answer["shares"][place] for node, answer in answers.items()
            }
            try:
                secret = recover_secret(dict(list(shares.items())[: self._needed]))
                if position in survivors:
                    fits = hashlib.sha256(secret).digest() == seed_hash
                    total = total - mask_of(secret, len(total))
                else:  # what the survivors added for their pairs with a lost client is the opposite of its own part
                    fits = public_of(secret) == mask_key
                    publics = {p: key for p, key, _ in self._members.values() if p in survivors}
                    total = total + pair_masks(position, secret, publics, len(total))
            except (ValueError, TypeError):  # bytes from outside
                fits = False
            if not fits:
                self._skip(
                    server_round, "the shares that were revealed do not belong to one secret"
                )
                return None
        return total

    def _mean(self, server_round, total, start):
        """The sum on the ring as one upload, the mean of all; where devices clipped, with the noise asked for."""
        flat, weight = from_ring(total, self._bits)
        start = {name: start[name].numpy() for name in sorted(start)}
        parts = np.split(flat, np.cumsum([array.size for array in start.values()])[:-1])
        sums = {
            name: part.reshape(start[name].shape) for name, part in zip(start, parts, strict=True)
        }
        examples = weight * self.most_examples
        if self.clip > 0:  # all weigh the same; over those who were asked, as in `dp.private_mean`
            noise = noise_like(start, self.noise_multiplier * self.clip, self.seed, server_round)
            means = {
                name: start[name] + (part + noise[name]) / self._number
                for name, part in sums.items()
            }
        else:
            means = {name: part / weight for name, part in sums.items()}
        new = ArrayRecord(
            {name: Array(mean.astype(start[name].dtype)) for name, mean in means.items()}
        )
        return RecordDict(
            {self.arrayrecord_key: new, "metrics": MetricRecord({self.weighted_by_key: examples})}
        )

    def _exchange(self, server_round, told, wanted):
        """Send each node its record of {node: fields}; {node: answer} of those that gave what is `wanted`, so long."""
        messages = {
            node: Message(
                RecordDict({"secure": ConfigRecord({**fields, "server-round": server_round})}),
                node,
                MessageType.QUERY,
            )
            for node, fields in told.items()
        }
        replies, answers = ask(self._grid, messages, self.timeout), {}
        for node in messages:
            step, reply = told[node]["step"], replies.get(node)
            if reply is None:
                self._silent.add(node)
                why = f"did not answer in the step {step!r} in time and is not asked again"
            elif reply.has_error():
                why = f"sent an error in the step {step!r}: {reply.error.reason}"
            elif any(len(_sized(reply, field)) != length for field, length in wanted.items()):
                why = f"sent something else than {' and '.join(wanted)} in the step {step!r}"
            else:
                answers[node] = reply.content["secure"]
                self._partitions.setdefault(node, int(reply.content["metrics"]["partition-id"]))
                continue
            client = (
                f"client {self._partitions[node]}" if node in self._partitions else f"node {node}"
            )
            self._refuse(
                server_round, client, f"{client.capitalize()} {why}; the round went on without it."
            )
        return answers

    def _too_few(self, server_round, those, did):
        """Whether fewer than the threshold did it; then the round is skipped and says so."""
        if len(those) < self._needed:
            self._skip(
                server_round,
                f"{len(those)} of {self._number} clients {did} where {self._needed} are needed",
            )
            return True
        return False

    def _skip(self, server_round, why):
        self._members = {}
        self._refuse(server_round, "everyone", f"Secure aggregation: {why}; nothing can be read.")


def _sized(reply, field):
    """The bytes or list in an answer's "secure" record under that name; empty if there is none."""
    value = reply.content.get("secure", {}).get(field, b"")
    return value if isinstance(value, bytes | list) else b""
