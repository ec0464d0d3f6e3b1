"""PeersScenario: everything a learner can choose about one experiment with peers, and who holds which picture.

Lab 10. The knobs of the dashboard edit one; every peer, in this process or in its own, takes one. PDFed: arXiv
2409.18245; its own runs were on CIFAR-10, ours draw digits at a size that trains on one core.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from fedgen_lab.knobs import Knobs, knob
from fedgen_lab.partition import by_skew
from fedgen_lab.peers.attackers import ATTACKS
from fedgen_lab.pictures.domains import NUM_LABELS, Domain, load_domain

OBJECTIVES = ("fld-fid", "qn", "qn-dedup", "calibrated")
CHOICES = ("best", "soup", "fedasync")
VOTE_RULES = ("mean", "median", "worst", "trimmed")
HELD_BACK = 2  # every second picture of a peer is kept from training, to judge with
SIDE = 14
DEAL_KEY = 10_001  # this module's branch of the seed
# Of the domains' judge and of the sprite judge: FID needs as many pictures a side.
FEATURES, SPRITE_FEATURES = 64, 128
KID_PICTURES = 50
# Pictures to train on without which there is no score.
TRAINED_ON = {"fld-fid": 4, "qn": 2, "qn-dedup": 2, "calibrated": 2}
MOST = 100_000


def _halved(scenario):
    """The end of a range that counts a peer's pictures to train on."""
    return scenario.pictures_per_peer // HELD_BACK


def _all_but_one(scenario):
    """The end of a range that counts peers of whom one stays."""
    return scenario.num_peers - 1


@dataclass(frozen=True)
class PeersScenario(Knobs):
    """The knobs of one experiment with peers. Raises ValueError, naming the knob, its value and its range.

    The three knobs of the course are `num_peers`, `bandwidth_hz` and `skew`; seconds are simulated, not a learner's.
    """

    num_peers: int = knob(4, 1, 8, words="Who train, submit and vote.")
    validators: int = knob(0, 0, 8, words="Who have pictures and only vote.")
    skew: float = knob(0.0, 0, 1, words="0: every peer holds all classes; 1: one class each.")
    bandwidth_hz: float = knob(
        5e6, 1e3, 1e12, words="The uplink band that all peers share, in hertz."
    )
    seconds: float = knob(120.0, 1, 1e6, words="Simulated time until the experiment ends.")
    pictures: str = knob("digits")  # any domain of ten classes, see pictures/domains.py
    side: int = knob(SIDE, 8, 64)
    pictures_per_peer: int = knob(160, 30, MOST)  # half of them are never trained on
    train_pictures: int = knob(
        0,
        0,
        _halved,
        words="So many are trained on, the rest is for judging; few make models copy. 0: half of them.",
    )
    width: int = knob(16, 8, 256)  # of the UNet; 16 makes 0.17 million weights
    steps: int = knob(40, 1, MOST, words="Training steps before a peer submits.")
    batch_size: int = knob(32, 1, 4096)
    learning_rate: float = knob(2e-3, 1e-8, 1)
    samples: int = knob(100, 20, MOST, words="Pictures drawn from a model to judge it.")
    objective: str = knob(  # "fld-fid", "qn" and "qn-dedup" are the paper's three
        "calibrated", options=OBJECTIVES, words="What a peer's score is."
    )
    novelty_weight: float = knob(  # the paper's eq. 6 has one half
        0.5, 0, 1, words="Of the score: 0 is quality alone, 1 novelty alone."
    )
    choice: str = knob(
        "best", options=CHOICES, words="best: a peer goes on from the best model, as in the paper."
    )
    own_weight: float = knob(
        0.5, 0, 1, words="The weight of a peer's own score against the others' votes."
    )
    vote_rule: str = knob(
        "mean", options=VOTE_RULES, words="How the others' votes become one number."
    )
    soup_of: int = knob(3, 1, 4, words="Models in a soup.")
    staleness: float = knob(
        0.7,
        0,
        1,
        words="A model's weight in a soup, or in fedasync, for each model that came after it.",
    )
    vote_epsilon: float = knob(
        0.0,
        0,
        1e6,
        words="Laplace noise on votes, differential privacy at this epsilon; 0: exact votes.",
    )
    open_votes: bool = knob(  # see `Peer.promise`
        False, words="Who commits a vote also posts it for all to read."
    )
    late: int = knob(0, 0, _all_but_one, words="The last so many peers join at half time.")
    leavers: int = knob(0, 0, _all_but_one, words="The first so many peers leave at half time.")
    attack: str = knob("", options=("", *ATTACKS), words="What attackers do.")
    attackers: int = knob(0, 0, _all_but_one, words="The last so many peers.")
    commit_blocks: int = knob(
        0, 0, MOST, words="How long a model takes votes, in blocks; 0: ten for each voter."
    )
    reward_wei: int = knob(100, 0, 10**15)
    seed: int = knob(0, 0, 2**32 - 1)

    BY_PROFILE = {
        "binder": {},
        "laptop": {"seconds": 240.0},
        "gpu": {"seconds": 1200.0, "width": 32, "samples": 500, "num_peers": 8},
        "test": {
            "num_peers": 2,
            "seconds": 25.0,
            "steps": 3,
            "samples": 64,
            "pictures_per_peer": 128,
        },
    }

    def __post_init__(self):
        super().__post_init__()
        if self.vote_epsilon and self.objective == "fld-fid":
            raise ValueError(
                f"vote_epsilon must be 0 with objective 'fld-fid', which nothing bounds; got {self.vote_epsilon!r}."
            )
        self._check_enough_to_judge()

    def _check_enough_to_judge(self):
        """Whether there are as many pictures as the objective needs, drawn, held back and trained on."""
        objective = f"with objective {self.objective!r}"
        # Pictures that the score compares, a side: KID does with fewer than FID.
        to_judge = KID_PICTURES
        if self.objective != "calibrated":
            to_judge = SPRITE_FEATURES if self.pictures.startswith("sprites:") else FEATURES
        if self.samples < to_judge:
            raise ValueError(
                f"samples must be a whole number from {to_judge} to {MOST} {objective}; got {self.samples!r}."
            )
        fewest = TRAINED_ON[self.objective]
        if 0 < self.train_pictures < fewest:
            raise ValueError(
                f"train_pictures must be 0, for half of them, or at least {fewest} {objective}; "
                f"got {self.train_pictures!r}."
            )
        trained_on = self.train_pictures or _halved(self)
        if self.pictures_per_peer - trained_on < to_judge:
            needed = HELD_BACK * to_judge - 1
            if self.train_pictures:
                needed = to_judge + self.train_pictures
            raise ValueError(
                f"pictures_per_peer must be a whole number from {needed} to {MOST} {objective}, so that {to_judge} "
                f"are left to judge with; got {self.pictures_per_peer!r}."
            )

    @property
    def voters(self):
        """How many accounts vote: trainers and validators."""
        return self.num_peers + self.validators


@dataclass(frozen=True)
class Holding:
    """One peer's pictures, which never leave it."""

    train: Domain
    held_out: Domain  # of the same classes; for judging only


def deal(scenario):
    """The `Holding`s of all peers and then validators: a list of `scenario.voters`. The same seed deals the same."""
    pictures = (scenario.pictures, scenario.side, scenario.pictures_per_peer)
    sharing = (scenario.train_pictures, scenario.skew, scenario.voters, scenario.seed_of(DEAL_KEY))
    return list(_dealt(*pictures, scenario.seed, *sharing))


@lru_cache(maxsize=4)
def _dealt(pictures, side, per_peer, seed, trained_on, skew, voters, dealing):
    number = None if pictures == "digits" else per_peer * voters * 2
    pool = load_domain(pictures, number, side=side, seed=seed)
    table = pd.DataFrame({"label": pool.labels.numpy()})
    holdings = []
    for voter, rows in enumerate(by_skew(table, "label", voters, skew, per_peer, dealing)):
        # A class that ran out was dealt again: nobody has a picture twice.
        rows = rows[np.sort(np.unique(rows, return_index=True)[1])]
        # Every second picture is held back, or all but a few, of any classes and other ones for every peer.
        held_back = np.arange(len(rows)) % HELD_BACK == 0
        if trained_on:
            rng = np.random.default_rng((dealing, voter))
            held_back[rng.permutation(np.flatnonzero(~held_back))[trained_on:]] = True
        holdings.append(Holding(pool.take(rows[~held_back]), pool.take(rows[held_back])))
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
