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
from typing import NamedTuple

import numpy as np
from flwr.app import ConfigRecord, Message, MessageType, MetricRecord, RecordDict

from fedgen_lab.federation.arrays import record_of, values_of
from fedgen_lab.federation.averages import check_noise, shaped
from fedgen_lab.federation.fedavg import CheckedFedAvg
from fedgen_lab.federation.masks import (
    from_ring,
    mask_of,
    pair_masks,
    public_of,
    recover_secret,
    ring_bits,
)
from fedgen_lab.federation.secure_device import MASKED

ALL = -1  # stands where a client's number would


class SecureFedAvg(CheckedFedAvg):
    """`CheckedFedAvg` that sees only the sum of the updates: the server's half of the protocol above.

    Clients weigh as many examples as they have, up to `most_examples`. With `clip` above 0 every device clips its
    update to that norm and all weigh the same; with `noise_multiplier` z as well, every device adds a share of noise
    before it masks, N(0, (z clip)^2 / threshold), so that the sum has N(0, (z clip)^2) at least, also when as many are
    lost as masks allow: user-level differential privacy (see `accountant`) towards the server, too. (Devices that
    collude know their own shares; those don't count then.) `limit` is the
    largest number that a device may send. A round needs `threshold` clients to the end, at least a majority of those
    asked (the default); with fewer it is skipped and says so in `refused`.

    The checks of single uploads can't be made by anyone but the device: a dishonest one may send any numbers. `seen`,
    partition id -> (d + 1,) uint32, is all that the server saw of the last round's updates. The mean reaches `combine`
    as if one client had uploaded it. Of protocols, only those make sense whose result depends on the mean alone.
    """

    def __init__(
        self, *, most_examples, clip=0.0, noise_multiplier=0.0, threshold=0, limit=8.0, **checked
    ):
        super().__init__(**checked)
        check_noise(clip, noise_multiplier)
        self.most_examples, self.clip, self.noise_multiplier = most_examples, clip, noise_multiplier
        self.threshold, self.limit, self.seen = threshold, limit, {}
        self._members = {}  # node id -> `_Member` of this round

    def configure_train(self, server_round, arrays, config, grid):
        """Exchange keys and shares with the clients of this round, then ask those who answered to train."""
        self._grid, self._members, self.seen = grid, {}, {}
        messages = super().configure_train(server_round, arrays, config, grid)
        plain = {message.metadata.dst_node_id: message.content for message in messages}
        position = {node: number for number, node in enumerate(plain)}
        self._number, self._needed = len(plain), max(self.threshold, len(plain) // 2 + 1, 2)
        self._bits = ring_bits(max(len(plain), 1), self.limit)
        # public keys
        request = {node: {"step": "keys"} for node in plain}
        keys = self._exchange(server_round, request, {"mask-key": 32, "box-key": 32})
        if self._is_too_few(server_round, keys, "agreed on keys"):
            return []
        # shares of secrets, sealed
        everyone = {
            "step": "shares",
            "threshold": self._needed,
            "positions": [position[node] for node in keys],
            "mask-keys": [answer["mask-key"] for answer in keys.values()],
            "box-keys": [answer["box-key"] for answer in keys.values()],
        }
        request = {node: {**everyone, "me": position[node]} for node in keys}
        letters = self._exchange(server_round, request, {"sealed": len(keys), "seed-hash": 32})
        if self._is_too_few(server_round, letters, "shared their secrets"):
            return []
        self._members = {
            node: _Member(position[node], keys[node]["mask-key"], answer["seed-hash"])
            for node, answer in letters.items()
        }
        # the letters go out with what is to be trained
        everyone = {
            "step": "upload",
            "server-round": server_round,
            "bits": self._bits,
            "limit": float(self.limit),
            "most-examples": int(self.most_examples),
            "clip": float(self.clip),
            "noise-multiplier": float(self.noise_multiplier),
            "positions": [member.position for member in self._members.values()],
        }
        self._asked = []
        for place, node in enumerate(keys):
            if node in letters:
                sealed = [answer["sealed"][place] for answer in letters.values()]
                secure = ConfigRecord({**everyone, "sealed": sealed})
                content = RecordDict({**plain[node], "secure": secure})
                self._asked.append(Message(content, node, MessageType.TRAIN))
        return self._asked

    def aggregate_train(self, server_round, replies):
        """As `CheckedFedAvg`, with one upload: the mean of all. Returns (arrays, metrics)."""
        done = super().aggregate_train(server_round, replies)
        self.client_arrays = {}  # no client's in particular
        return done

    def _uploads(self, server_round, replies, start_of):
        """One upload that stands for all, as far as the masks come off; else none."""
        if not self._members:
            return []
        start = start_of(next(iter(self._members)))
        length = 1 + sum(math.prod(array.shape) for array in start.values())
        masked = record_of({MASKED: np.zeros(length, dtype=np.uint32)})
        accepted = self._accepted(server_round, replies, lambda node_id: masked)
        uploads = {node: values_of(c[self.arrayrecord_key])[MASKED] for _, node, c in accepted}
        self.seen = {partition: uploads[node] for partition, node, _ in accepted}
        total = self._unmasked(server_round, uploads)
        return [] if total is None else [(ALL, ALL, self._mean(server_round, total, start))]

    def _unmasked(self, server_round, uploads):
        """The sum of the uploads, {node: (d + 1,) uint32}, without any mask; None if too few clients help."""
        if self._is_too_few(server_round, uploads, "uploaded"):
            return None
        survivors = [self._members[node].position for node in uploads]
        request = {"step": "reveal", "survivors": survivors}
        answers = self._exchange(
            server_round, dict.fromkeys(uploads, request), {"shares": len(self._members)}
        )
        if self._is_too_few(server_round, answers, "revealed their shares"):
            return None
        keys = {m.position: m.key for m in self._members.values() if m.position in survivors}
        total = sum(uploads.values())  # wraps around, as it should
        for place, member in enumerate(self._members.values()):
            shares = {
                self._members[node].position: answer["shares"][place]
                for node, answer in list(answers.items())[: self._needed]
            }
            try:
                secret = recover_secret(shares)
                if member.position in survivors:  # take its private mask away
                    fits = hashlib.sha256(secret).digest() == member.seed_hash
                    total = total - mask_of(secret, len(total))
                else:  # add its half of the pairs, the opposite of what the survivors added
                    fits = public_of(secret) == member.key
                    total = total + pair_masks(member.position, secret, keys, len(total))
            except (ValueError, TypeError):  # bytes from outside
                fits = False
            if not fits:
                self._skip(
                    server_round, "the shares that were revealed do not belong to one secret"
                )
                return None
        return total

    def _mean(self, server_round, total, start):
        """The sum on the ring as one upload, the mean of all."""
        numbers, weight = from_ring(total, self._bits)
        start = {name: values for name, values in sorted(values_of(start).items())}
        sums = shaped(numbers, {name: np.float64(values) for name, values in start.items()})
        if self.clip > 0:  # all weigh the same; over those who were asked, as in `private_mean`
            means = {name: values + sums[name] / self._number for name, values in start.items()}
        else:
            means = {name: values / weight for name, values in sums.items()}
        mean = record_of({name: means[name].astype(start[name].dtype) for name in start})
        metrics = MetricRecord({self.weighted_by_key: weight * self.most_examples})
        return RecordDict({self.arrayrecord_key: mean, "metrics": metrics})

    def _exchange(self, server_round, requests, sizes):
        """Send {node: fields}; {node: answer} of the nodes that gave each field of `sizes`, as long as it says."""
        messages, step = {}, ""
        for node, fields in requests.items():
            step = fields["step"]
            secure = ConfigRecord({**fields, "server-round": server_round})
            messages[node] = Message(RecordDict({"secure": secure}), node, MessageType.QUERY)

        def check(node_id, content):
            answer = content.get("secure", {})
            for field, size in sizes.items():
                value = answer.get(field)
                if not isinstance(value, bytes | list) or len(value) != size:
                    raise ValueError(f"sent something else than {' and '.join(sizes)}")
            return answer

        passed = self.clients.exchange(
            self._grid, server_round, messages, self.timeout, check, step
        )
        return {node: answer for _, node, answer in passed}

    def _is_too_few(self, server_round, nodes, deed):
        """Whether fewer than the threshold did it; then the round is skipped and says so."""
        if len(nodes) >= self._needed:
            return False
        self._skip(
            server_round,
            f"{len(nodes)} of {self._number} clients {deed} where {self._needed} are needed",
        )
        return True

    def _skip(self, server_round, reason):
        self._members = {}
        sentence = f"Secure aggregation: {reason}; nothing can be read."
        self.clients.refuse(server_round, "everyone", sentence)


class _Member(NamedTuple):
    position: int  # among the clients of this round
    key: bytes  # public, of its masks
    seed_hash: bytes  # of its private mask's seed
