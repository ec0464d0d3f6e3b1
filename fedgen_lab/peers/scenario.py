"""PeersScenario: everything a learner can choose about one experiment with peers, and who holds which picture.

Lab 10. The knobs of the dashboard edit one; every peer, in this process or in its own, takes one. PDFed: arXiv
2409.18245; its own runs were on CIFAR-10, ours draw digits at a size that trains on one core.
"""

from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral, Real

import numpy as np
import pandas as pd

from fedgen_lab.partition import by_skew
from fedgen_lab.peers.attackers import ATTACKS
from fedgen_lab.pictures.domains import NUM_LABELS, Domain, load_domain
from fedgen_lab.scenario import profile

OBJECTIVES = ("fld-fid", "qn", "qn-dedup", "calibrated")
CHOICES = ("best", "soup", "fedasync")
VOTE_RULES = ("mean", "median", "worst", "trimmed")
HELD_BACK = 2  # every second picture of a peer is kept from training, to judge with
SIDE = 14
DEAL_KEY = 10_001  # this module's branch of the seed
FEATURES, SPRITE_FEATURES = (
    64,
    128,
)  # of the domains' judge and of the sprite judge: FID needs as many pictures a side
KID_PICTURES = 50
TRAINED_ON = {
    "fld-fid": 4,
    "qn": 2,
    "qn-dedup": 2,
    "calibrated": 2,
}  # pictures without which there is no score

_BY_PROFILE = {
    "binder": {},
    "laptop": {"seconds": 240.0},
    "gpu": {"seconds": 1200.0, "width": 32, "samples": 500, "num_peers": 8},
    "test": {"num_peers": 2, "seconds": 25.0, "steps": 3, "samples": 64, "pictures_per_peer": 128},
}


@dataclass(frozen=True)
class PeersScenario:
    """The knobs of one experiment with peers. Raises ValueError, naming the knob, its value and its range.

    The three knobs of the course are `num_peers`, `bandwidth_hz` and `skew`; seconds are simulated, not a learner's.
    """

    num_peers: int = 4  # who train, submit and vote
    validators: int = 0  # who have pictures and only vote
    skew: float = 0.0  # 0: every peer holds all classes; 1: one class each
    bandwidth_hz: float = 5e6  # uplink band that all peers share; models are fetched through it
    seconds: float = 120.0  # simulated time until the experiment ends
    pictures: str = "digits"  # any domain of ten classes, see pictures/domains.py
    side: int = SIDE
    pictures_per_peer: int = 160  # half of them are never trained on; FID needs 64 to compare with
    train_pictures: int = (
        0  # so many are trained on instead of half, the rest is for judging; few make models copy
    )
    width: int = 16  # of the UNet; 16 makes 0.17 million weights
    steps: int = 40  # training steps before a peer submits
    batch_size: int = 32
    learning_rate: float = 2e-3
    samples: int = 100  # pictures drawn from a model to judge it
    objective: str = (
        "calibrated"  # what a peer's score is; "fld-fid", "qn" and "qn-dedup" are the paper's three
    )
    novelty_weight: float = (
        0.5  # of the score: 0 is quality alone, 1 novelty alone; the paper's eq. 6 has one half
    )
    choice: str = "best"  # the paper's: go on from the best model; "soup" of several; "fedasync"
    own_weight: float = 0.5  # of a peer's own score against the others' votes
    vote_rule: str = "mean"  # how the others' votes become one number
    soup_of: int = 3  # models in a soup, at most 4
    staleness: float = (
        0.7  # a model's weight in a soup, or in fedasync, for each model that came after it
    )
    vote_epsilon: float = (
        0.0  # Laplace noise on votes, differential privacy at this epsilon; 0: exact votes
    )
    open_votes: bool = (
        False  # True: who commits a vote also posts it for all to read; see `Peer.promise`
    )
    late: int = 0  # so many peers, the last ones, join at half time
    leavers: int = 0  # so many peers, the first ones, leave at half time
    attack: str = ""  # what attackers do, see peers/attackers.py
    attackers: int = 0  # so many peers, the last ones
    commit_blocks: int = 0  # how long a model takes votes, in blocks; 0: ten for each voter
    reward_wei: int = 100
    seed: int = 0

    def __post_init__(self):
        for name, low, high in (
            ("num_peers", 1, 8),
            ("validators", 0, 8),
            ("side", 8, 64),
            ("pictures_per_peer", 30, 100_000),
            ("width", 8, 256),
            ("steps", 1, 100_000),
            ("batch_size", 1, 4096),
            ("samples", 20, 100_000),
            ("soup_of", 1, 4),
            ("commit_blocks", 0, 100_000),
            ("reward_wei", 0, 10**15),
            ("seed", 0, 2**32 - 1),
        ):
            self._check_whole(name, low, high)
        self._check_whole("train_pictures", 0, self.pictures_per_peer // HELD_BACK)
        for name in ("late", "leavers", "attackers"):
            self._check_whole(name, 0, self.num_peers - 1)
        for name, low, high in (
            ("skew", 0, 1),
            ("bandwidth_hz", 1e3, 1e12),
            ("seconds", 1, 1e6),
            ("learning_rate", 1e-8, 1),
            ("novelty_weight", 0, 1),
            ("own_weight", 0, 1),
            ("staleness", 0, 1),
            ("vote_epsilon", 0, 1e6),
        ):
            value = getattr(self, name)
            if not isinstance(value, Real) or not low <= value <= high:  # also for NaN
                raise ValueError(f"{name} must lie in [{low:g}, {high:g}]; got {value!r}.")
        for name, known in (
            ("objective", OBJECTIVES),
            ("choice", CHOICES),
            ("vote_rule", VOTE_RULES),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}; got {getattr(self, name)!r}."
                )
        if self.attack not in ("", *ATTACKS):
            raise ValueError(
                f"attack must be one of {', '.join(ATTACKS)}, or empty for none; got {self.attack!r}."
            )
        if self.vote_epsilon and self.objective == "fld-fid":
            raise ValueError(
                f"vote_epsilon must be 0 with objective 'fld-fid', which nothing bounds; got {self.vote_epsilon!r}."
            )
        self._check_enough_to_judge()

    def _check_whole(self, name, low, high):
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, Integral) or not low <= value <= high:
            raise ValueError(f"{name} must be a whole number from {low} to {high}; got {value!r}.")

    def _check_enough_to_judge(self):
        """Whether there are as many pictures as the objective needs, drawn, held back and trained on."""
        to_judge, least = KID_PICTURES, TRAINED_ON[self.objective]
        if self.objective != "calibrated":
            to_judge = SPRITE_FEATURES if str(self.pictures).startswith("sprites:") else FEATURES
        of = f"with objective {self.objective!r}"
        if self.samples < to_judge:
            raise ValueError(
                f"samples must be a whole number from {to_judge} to 100000 {of}; got {self.samples!r}."
            )
        if 0 < self.train_pictures < least:
            raise ValueError(
                f"train_pictures must be 0, for half of them, or at least {least} {of}; got {self.train_pictures!r}."
            )
        trained_on = self.train_pictures or self.pictures_per_peer // HELD_BACK
        if self.pictures_per_peer - trained_on < to_judge:
            needed = (
                to_judge + self.train_pictures if self.train_pictures else HELD_BACK * to_judge - 1
            )
            raise ValueError(
                f"pictures_per_peer must be a whole number from {needed} to 100000 {of}, so that {to_judge} are left "
                f"to judge with; got {self.pictures_per_peer!r}."
            )

    @classmethod
    def for_profile(cls, **changes):
        """The lesson's defaults for the present profile (`fedgen_lab.scenario.profile`), with `changes` on top."""
        return cls(**{**_BY_PROFILE[profile()], **changes})

    @property
    def voters(self):
        """How many accounts vote: trainers and validators."""
        return self.num_peers + self.validators

    def seed_of(self, *key):
        """A seed spawned from the scenario's for one purpose, such as (peer, turn)."""
        return int(np.random.SeedSequence(self.seed, spawn_key=key).generate_state(1)[0])


@dataclass(frozen=True)
class Holding:
    """One peer's pictures, which never leave it."""

    train: Domain
    held_out: Domain  # of the same classes; for judging only


def deal(scenario):
    """The `Holding`s of all peers and then validators: a list of `scenario.voters`. The same seed deals the same."""
    what = (scenario.pictures, scenario.side, scenario.pictures_per_peer, scenario.train_pictures)
    return list(_dealt(*what, scenario.skew, scenario.voters, scenario.seed))


@lru_cache(maxsize=4)
def _dealt(pictures, side, per_peer, trained_on, skew, voters, seed):
    number = None if pictures == "digits" else per_peer * voters * 2
    pool = load_domain(pictures, number, side=side, seed=seed)
    table = pd.DataFrame({"label": pool.labels.numpy()})
    dealing = int(np.random.SeedSequence(seed, spawn_key=(DEAL_KEY,)).generate_state(1)[0])
    holdings = []
    for voter, rows in enumerate(by_skew(table, "label", voters, skew, per_peer, dealing)):
        rows = rows[
            np.sort(np.unique(rows, return_index=True)[1])
        ]  # a class that ran out was dealt again: not twice
        back = np.arange(len(rows)) % HELD_BACK == 0
        if trained_on:  # any classes, and others for every peer
            back[
                np.random.default_rng((dealing, voter)).permutation(np.flatnonzero(~back))[
                    trained_on:
                ]
            ] = True
        holdings.append(Holding(pool.take(rows[~back]), pool.take(rows[back])))
    return tuple(holdings)


def outsiders(scenario):
    """Pictures that no peer ever held, to compare models by: a `Domain`."""
    number = None if scenario.pictures == "digits" else 400
    return load_domain(
        scenario.pictures, number, side=scenario.side, seed=scenario.seed, held_out=True
    )


def sample_labels(scenario):
    """The classes drawn from a model to judge it, as many of each: (samples,) integers."""
    return np.arange(scenario.samples) % NUM_LABELS
