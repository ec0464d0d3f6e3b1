"""One peer: reads the chain, fetches and judges models on its own pictures, votes, goes on from one, submits.

Lab 10; PDFed, arXiv 2409.18245, section 4.1. There are no rounds and no server. What a peer does is written as a
generator that yields how long each thing takes: in one process an event queue (`fedgen_lab.peers.run`) plays many
peers on one clock; in a process of its own (`fedgen_lab.peers.process`) the same peer just goes on. A peer that
crashed starts anew and reads from the chain what it had done; seeds come from the scenario, so it does nothing twice.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fedgen_lab.files import patiently
from fedgen_lab.memorization.ddpm import draw_ddpm, load_weights, new_ddpm, train_ddpm, weights
from fedgen_lab.memorization.qn import keep_after
from fedgen_lab.peers.chain import MOST_SCORE, Refused, Submission
from fedgen_lab.peers.manifest import new_key, write_manifest
from fedgen_lab.peers.objectives import judge_samples, sensitivity_of
from fedgen_lab.peers.reader import Reader
from fedgen_lab.peers.scenario import deal, sample_labels
from fedgen_lab.peers.store import Unusable, cid_of, digest_of, pack_weights
from fedgen_lab.peers.votes import combined, merge_async, noisy_vote, soup
from fedgen_lab.pictures.domains import NUM_LABELS

DRAW_STEPS = 10  # denoising steps of a picture that is drawn to be judged


@dataclass(frozen=True)
class Pace:
    """How long things take one peer."""

    download: float  # seconds a byte
    upload: float  # seconds a byte
    step: float  # seconds a training step
    draw: float  # seconds a picture


def start_model(scenario):
    """The untrained model that everybody can make: a `DDPMPipeline` from the scenario's seed."""
    channels = deal(scenario)[0].train.images.shape[1]
    return new_ddpm(channels, scenario.side, NUM_LABELS, scenario.width, scenario.seed_of(0))


def draw_samples(scenario, model, content):
    """The pictures everybody judges this model by, (samples, C, side, side): their seeds follow from its digest."""
    seeds = np.random.SeedSequence(int.from_bytes(content[:8], "big")).generate_state(
        scenario.samples
    )
    return draw_ddpm(model, sample_labels(scenario), seeds, steps=DRAW_STEPS)


class Peer:
    """Peer `number` of a scenario. Trainers have the numbers 0 to num_peers - 1, validators the numbers after.

    chain, store: where all meet. pace: a `Pace`. attack: what it does instead (see `fedgen_lab.peers.attackers`).
    account: its address on the chain; the chain's account number + 1 unless given, as account 0 deployed the contract.
    folder: where it keeps its judgements over a crash; without one it judges again. samples: a dict, shared by the
    peers of one process, of what was drawn from which model, since all draw the same. board: a dict, shared likewise,
    where votes are posted that a scenario leaves open: content -> {account: vote}. known: a dict, shared with runs that
    differ in rules, times and attackers alone: what peers trained and judged there need not be computed again.
    """

    def __init__(
        self,
        number,
        scenario,
        chain,
        store,
        pace,
        attack=None,
        folder=None,
        samples=None,
        board=None,
        account=None,
        known=None,
    ):
        self.model = start_model(scenario)  # weights are loaded into it and read from it
        self.reader = Reader(chain, store, weights(self.model))
        self.models, self.refused, self.start = (
            self.reader.models,
            self.reader.refused,
            self.reader.start,
        )
        self.number, self.scenario, self.chain, self.store, self.pace = (
            number,
            scenario,
            chain,
            store,
            pace,
        )
        self.account = account or chain.accounts[number + 1]
        self.key = new_key(scenario.seed_of(1, number))
        self.holding = deal(scenario)[number]
        self.attack, self.samples = attack, {} if samples is None else samples
        self.board, self.known = {} if board is None else board, {} if known is None else known
        self.cursor = 0
        self.votes = {}  # content -> {voter: revealed score}
        self.promised, self.revealed = set(), set()  # contents this peer voted on
        self.judged = {}  # content -> {"score", "hits"}: this peer's own opinion
        self.merged = (), self.start  # FedAsync's global model: (contents that are in it, weights)
        self.log = []  # what the chain refused to this peer, or would refuse, in words
        self.given_up = 0  # models of its own that the chain did not take
        self.lost = set()  # contents of votes that were promised and can't be revealed
        self.may_spend = True  # until the privacy budget is spent
        self.cache = None
        if folder:
            whose = hashlib.sha256(f"{number} {scenario}".encode()).hexdigest()[
                :8
            ]  # other knobs judge otherwise
            self.cache = Path(folder) / f"judged-{whose}.json"
            self.judged = self._remembered()

    @property
    def validator(self):
        return self.number >= self.scenario.num_peers

    def life(self, until=float("inf"), on_step=None):
        """All that a peer does, until it is dropped or has submitted `until` models: yields (what, seconds).

        on_step(step, steps, loss) is called while it trains and may raise to stop.
        """
        if not self.chain.participant(self.account)["registered"]:
            self._send("register", self.validator)
        while True:
            yield from self.look()
            done = sum(one.author == self.account for one in self.models.values())
            if self.validator or done >= until:
                yield "wait", self.scenario.steps * self.pace.step
                continue
            turn = done + self.given_up
            parents, trained = self._trained(turn, on_step)
            yield "train", self.scenario.steps * self.pace.step
            if self.attack and self.attack.hides_parents:
                parents = ()
            data = pack_weights(trained)
            yield "upload", len(data) * self.pace.upload
            self.submit(data, parents, turn)

    def look(self):
        """Read what is new on the chain; reveal votes that are due; fetch, judge and vote on new models."""
        events, self.cursor = self.chain.events(self.cursor)
        for event in events:
            content = event.values.get("content")
            if event.kind == "Submitted":
                self.models[content] = Submission(
                    content,
                    event.account,
                    event.values["manifest"],
                    event.block,
                    tuple(event.values["parents"]),
                )
            elif event.kind == "Committed" and event.account == self.account:
                self.promised.add(content)
            elif event.kind == "Revealed":
                self.votes.setdefault(content, {})[event.account] = event.values["score"]
                if event.account == self.account:
                    self.revealed.add(content)
        self.reveal()
        looked = set()  # a model that is refused makes room for an older one
        while fresh := [content for content in self.reader.recent() if content not in looked]:
            for content in fresh:
                looked.add(content)
                if content not in self.judged and (
                    content not in self.refused or self.reader.is_open(content)
                ):
                    if (found := self.reader.fetch_or_refuse(content)) is None:
                        continue
                    yield "fetch", found[1] * self.pace.download
                    self.judge(content, found[0])
                    yield "judge", self.scenario.samples * self.pace.draw
                if self._may_vote(content):
                    self.promise(content)

    def judge(self, content, state):
        """This peer's own score of a model, from pictures drawn with it and the peer's own pictures."""
        load_weights(self.model, state)
        if content not in self.samples:
            if content not in self.known:
                self.known[content] = draw_samples(self.scenario, self.model, content)
            self.samples[content] = self.known[content]
        drawn = self.samples[content]
        if not torch.isfinite(drawn).all():
            self.refused[content] = (
                f"{cid_of(content)} draws pictures that are not finite. Use another."
            )
            return
        known = self.scenario.seed, self.number, content
        if known not in self.known:
            self.known[known] = judge_samples(self.scenario, self.model, drawn, self.holding)
        score, copied = self.known[known]
        score = (
            min(score, MOST_SCORE) if score == score else MOST_SCORE
        )  # worse than that, or NaN, nobody can be
        self.judged[content] = {"score": score, "hits": [int(row) for row in copied]}
        if self.cache:
            half = self.cache.with_suffix(".part")
            kept = json.dumps({name.hex(): one for name, one in self.judged.items()})
            half.write_text(kept, "utf-8")
            patiently(lambda: half.replace(self.cache))

    def choose(self):
        """What to go on from: (contents of the parents, weights)."""
        order = list(self.models)
        if self.scenario.choice == "fedasync" and order:
            return self._all_merged(order)
        usable = [
            content
            for content in self.judged
            if content in self.models and self.reader.may_fetch(content)
        ]
        opinions = {content: self.opinion(content) for content in usable}
        best = sorted(opinions, key=lambda content: (opinions[content], -order.index(content)))
        states = {}
        while best and len(states) < (
            self.scenario.soup_of if self.scenario.choice == "soup" else 1
        ):
            content = best.pop(0)
            if found := self.reader.fetch_or_refuse(content):  # it was there when it was judged
                states[content] = found[0]
        if not states:
            return (), self.start
        ages = [len(order) - 1 - order.index(content) for content in states]
        return tuple(states), soup(list(states.values()), ages, self.scenario.staleness)[0]

    def opinion(self, content):
        """The score a peer goes by: its own, and the others' revealed votes."""
        others = [
            score for voter, score in self.votes.get(content, {}).items() if voter != self.account
        ]
        own = self.judged[content]["score"]
        return combined(own, others, self.scenario.own_weight, self.scenario.vote_rule)

    def train(self, base, turn, on_step=None):
        """The weights after some steps on this peer's own pictures, from the weights `base`."""
        model, train = self.model, self.holding.train
        load_weights(model, base)
        images, labels = train.as_tensor(), train.labels
        if self.scenario.objective == "qn-dedup":
            counts = np.zeros(len(train), int)
            for one in self.judged.values():
                np.add.at(counts, one["hits"], 1)
            kept = torch.from_numpy(keep_after(counts))
            images, labels = images[kept], labels[kept]
        seen = pack_weights(base) + images.numpy().tobytes() + labels.numpy().tobytes()
        known = self.scenario.seed, self.number, turn, digest_of(seen)
        if known in self.known:
            return self.known[known]
        with torch.enable_grad():
            train_ddpm(
                model,
                images,
                labels,
                self.scenario.steps,
                self.scenario.batch_size,
                self.scenario.learning_rate,
                seed=self.scenario.seed_of(2, self.number, turn),
                on_step=on_step,
            )
        self.known[known] = weights(model)
        return self.known[known]

    def submit(self, data, parents, turn):
        """Store the weights and a signed manifest, and submit both digests."""
        facts = {
            "steps": self.scenario.steps,
            "learning_rate": self.scenario.learning_rate,
            "batch_size": self.scenario.batch_size,
            "pictures": len(self.holding.train),
            "turn": turn,
        }
        manifest = write_manifest(self.key, self.account, digest_of(data), parents, facts)
        if not (self.attack and self.attack.withholds):
            self.store.put(data)
        self.store.put(manifest)
        if not self._send("submit", digest_of(data), digest_of(manifest), parents):
            self.given_up += (
                1  # the same turn would make the same bytes, and be refused, again and again
            )
            self.log[-1] += f". Gave up {cid_of(digest_of(data))}; trains another."

    def promise(self, content):
        """Commit a vote. The salt and the noise follow from the peer's key, so a crash forgets nothing.

        Where votes are open it is posted at once as well, beside the contract, so that commit and reveal hide nothing.
        """
        epsilon = (
            self.scenario.vote_epsilon or 1.0
        )  # an exact vote is booked as one unit of the budget
        left = self.chain.participant(self.account)["budget"]
        if left < round(epsilon, 6):  # the chain counts in millionths
            self.may_spend = False
            self.log.append(
                f"commit: the privacy budget is spent: {left:g} is left and a vote takes {epsilon:g}."
            )
            return
        vote = self.vote_on(content)
        if self._send("commit", content, vote, self._secret(b"salt", content), epsilon=epsilon):
            self.promised.add(content)
            if self.scenario.open_votes:
                self.board.setdefault(content, {})[self.account] = vote

    def reveal(self):
        """Reveal the votes whose time has come."""
        for content in sorted(self.promised - self.revealed - self.lost):
            if self.chain.block() >= self.models[content].block + self.chain.terms.commit_blocks:
                if content not in self.judged:  # after a crash: judge again, with the same result
                    try:
                        self.judge(content, self.reader.fetch(content)[0])
                    except Unusable as reason:
                        if str(reason) not in self.log:
                            self.log.append(str(reason))
                if content in self.judged:
                    told = self._send(
                        "reveal", content, self.vote_on(content), self._secret(b"salt", content)
                    )
                    (self.revealed if told else self.lost).add(content)

    def vote_on(self, content):
        """The number this peer gives a model: its score, with the noise that privacy asks for."""
        score = self.judged[content]["score"]
        if self.attack and self.attack.vote:
            return self.attack.vote(self, content, score)
        if not self.scenario.vote_epsilon:
            return score
        rng = np.random.default_rng(int.from_bytes(self._secret(b"noise", content), "big"))
        return min(
            MOST_SCORE,
            noisy_vote(score, self.scenario.vote_epsilon, sensitivity_of(self.scenario), rng),
        )

    def _may_vote(self, content):
        waits = (
            self.scenario.open_votes
            and self.attack
            and self.attack.waits
            and content not in self.board
        )
        return (
            self.may_spend
            and content in self.judged
            and self.reader.is_open(content)
            and self.models[content].author != self.account
            and content not in self.promised
            and not waits
        )

    def _remembered(self):
        """What was judged before a crash; nothing if the file is not there, or damaged: then it is judged again."""
        try:
            return {
                bytes.fromhex(name): one
                for name, one in json.loads(self.cache.read_text("utf-8")).items()
            }
        except (OSError, ValueError, AttributeError):
            return {}

    def _secret(self, purpose, content):
        """32 bytes that follow from this peer's key. The salt gets public; from it nobody has the seed of the noise."""
        told = self.key.private_bytes_raw() + purpose + self.chain.address.encode() + content
        return hashlib.sha256(told).digest()

    def _trained(self, turn, on_step):
        """What this peer submits next: (contents of the parents, weights). What can't be trained on is refused.

        Raises ValueError if training fails from the peer's own start.
        """
        while True:
            parents, base = self.choose()
            try:
                trained = (
                    self.attack.train(self, base, turn)
                    if self.attack and self.attack.train
                    else None
                )
                trained = trained or self.train(base, turn, on_step)
                if all(tensor.isfinite().all() for tensor in trained.values()):
                    return parents, trained
                raise ValueError("Trained weights are not finite; lower the learning rate.")
            except ValueError as reason:
                if not parents:
                    raise
                mixed = self.merged[0] if self.scenario.choice == "fedasync" else parents
                worst = max(
                    mixed, key=self.reader.largest.get
                )  # one at a time: honest models may be mixed with it
                self.refused[worst] = f"{cid_of(worst)} can't be trained on ({reason}) Use another."

    def _all_merged(self, order):
        """FedAsync: the global model that follows from all updates in the chain's order but those that are refused."""
        usable = [content for content in order if self.reader.may_fetch(content)]
        merged, state = self.merged
        if (
            tuple(usable[: len(merged)]) != merged
        ):  # one of them was refused since, or an earlier one is there now
            merged, state = (), self.start
        place = {content: number for number, content in enumerate(order)}
        for content in usable[len(merged) :]:
            if found := self.reader.fetch_or_refuse(content):
                seen = max(
                    (place[parent] + 1 for parent in self.models[content].parents), default=0
                )
                state = merge_async(state, found[0], place[content] - seen, self.scenario.staleness)
                merged += (content,)
        self.merged = merged, state
        return merged[-1:], state

    def _send(self, method, *arguments, **more):
        """One transaction; False, and a line in the log, if the chain refused it."""
        try:
            getattr(self.chain, method)(self.account, *arguments, **more)
        except Refused as reason:
            self.log.append(f"{method}: {reason}")
            return False
        return True
