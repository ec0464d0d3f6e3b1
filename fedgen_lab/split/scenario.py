"""GanScenario: everything a learner can choose about one experiment with GANs, and what a run reports and leaves.

The knobs of lab 07 edit one; every method of `fedgen_lab.split` takes one; it travels to the devices inside Flower's
run config. HuSCF-GAN: arXiv 2507.12979.
"""

from dataclasses import dataclass, field
from itertools import product
from numbers import Integral, Real

import numpy as np

from fedgen_lab.federation.trace import Trace
from fedgen_lab.scenario import from_run_config, profile, run_config_of
from fedgen_lab.split.nets import SIZES

METHODS = ("huscf", "local", "centralised", "fedgan", "mdgan", "fslgan", "pflgan", "hflgan")
SHARES = ("skew", "iid", "non-iid", "highly-non-iid")
CUTS = tuple(
    "".join(bits) for bits in product("01", repeat=4)
)  # which of blocks G1, G3, D1, D3 the client holds

_BY_PROFILE = {
    "binder": {"rounds": 6},  # a minute of one core; digits are easy to recognise by then
    "laptop": {"rounds": 12},
    "gpu": {
        "rounds": 50,
        "size": "reference",
        "batch_size": 64,
        "learning_rate": 2e-4,
        "num_clients": 16,
    },
    "test": {
        "rounds": 3,
        "iterations": 3,
        "batch_size": 8,
        "pictures_per_client": 40,
        "num_clients": 4,
    },
}


@dataclass(frozen=True)
class GanScenario:
    """The knobs of one experiment with GANs.

    `domains` are names for `fedgen_lab.pictures.domains.load_domain`, with commas between; client i holds pictures of
    domain i mod D. `share` says how labels are dealt inside a domain: by the knob `skew`, or by the schemes of the
    published code. `cuts` is "optimum" (each device's best cut), one cut for all such as "0110", or one for each client
    with commas. Reference mode is `reference=True`: the published code's own choices where ours differ.

    Raises ValueError, naming the knob, its value and its range, when a value makes no sense.
    """

    num_clients: int = 8
    domains: str = "digits,letters"
    share: str = "skew"
    skew: float = 0.0  # 0: every client holds all labels of its domain; 1: one label each
    bandwidth_hz: float = 20e6  # uplink band that all clients share; smashed data is heavy
    pictures_per_client: int = 150
    unequal: bool = False  # the last client holds about ten times as many pictures as the first
    size: str = "lab14"
    rounds: int = 8
    iterations: int = 40  # of every client in a round; the published code does five epochs
    batch_size: int = 16
    learning_rate: float = 1e-3  # the published 2e-4 is for far longer runs
    method: str = "huscf"
    cuts: str = "optimum"
    kld_alpha: float = (
        1.0  # how strongly a client that differs from its cluster is weighed down; 0 is FedAvg
    )
    num_clusters: int = (
        0  # 0: chosen by silhouette, which needs two clients of a domain; else give the number
    )
    warm_up: int = 2  # rounds of plain FedAvg before clustering begins
    tap: str = "epoch"  # average the tap over the round, or take its "last-batch"
    scale_free: bool = False  # divide KLD scores by their median, so that kld_alpha has no scale
    batch_norm: str = "cluster"  # running statistics of client blocks: averaged per "cluster", over all, or "local"
    noise: float = 0.0  # standard deviation of noise on smashed data, relative to the data's own
    bits: int = 32  # 8: smashed data is sent in 8 bits a number
    decorrelation: float = 0.0  # weight of the distance-correlation penalty
    reference: bool = False
    seed: int = 0

    def __post_init__(self):
        for name in ("num_clients", "rounds", "iterations", "batch_size", "pictures_per_client"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1; got {value!r}.")
        for name in ("seed", "num_clusters", "warm_up"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
                raise ValueError(f"{name} must be a whole number of at least 0; got {value!r}.")
        for name in (
            "kld_alpha",
            "noise",
            "decorrelation",
            "skew",
            "bandwidth_hz",
            "learning_rate",
        ):
            if not isinstance(getattr(self, name), Real):
                raise ValueError(f"{name} must be a number; got {getattr(self, name)!r}.")
        for name in ("domains", "cuts"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(
                    f"{name} must be text, with commas between several; got {getattr(self, name)!r}."
                )
        for name in ("kld_alpha", "noise", "decorrelation"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(
                    f"{name} must be a number of at least 0; got {getattr(self, name)!r}."
                )
        if not 0 <= self.skew <= 1:
            raise ValueError(f"skew must lie in [0, 1]; got {self.skew!r}.")
        if not 0 < self.bandwidth_hz < float("inf"):
            raise ValueError(
                f"bandwidth_hz must be a positive number of hertz; got {self.bandwidth_hz!r}."
            )
        if not 0 < self.learning_rate <= 1:
            raise ValueError(f"learning_rate must lie in (0, 1]; got {self.learning_rate!r}.")
        if self.batch_size < 2:
            raise ValueError(
                "batch_size must be at least 2: BatchNorm can't take the spread of one picture."
            )
        if self.bits not in (8, 32):
            raise ValueError(f"bits must be 8 or 32; got {self.bits!r}.")
        choices = {
            "method": METHODS,
            "share": SHARES,
            "size": tuple(SIZES),
            "tap": ("epoch", "last-batch"),
            "batch_norm": ("averaged", "local", "cluster"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}; got {getattr(self, name)!r}."
                )
        cuts = [] if self.cuts == "optimum" else [cut.strip() for cut in self.cuts.split(",")]
        if any(cut not in CUTS for cut in cuts) or len(cuts) not in (0, 1, self.num_clients):
            raise ValueError(
                f'cuts must be "optimum", or four bits such as "0110" for all or for each of the {self.num_clients} '
                f"clients with commas between; got {self.cuts!r}."
            )

    @classmethod
    def for_profile(cls, **changes):
        """The lesson's defaults for the present profile (`fedgen_lab.scenario.profile`), with `changes` on top."""
        return cls(**{**_BY_PROFILE[profile()], **changes})

    @property
    def domain_names(self):
        """The names of the domains, as a list."""
        return [name.strip() for name in self.domains.split(",") if name.strip()]

    def to_run_config(self):
        """This scenario as a Flower run config."""
        return run_config_of(self)

    @classmethod
    def from_run_config(cls, run_config):
        """The scenario that `to_run_config` wrote."""
        return from_run_config(cls, run_config)

    def seed_of(self, *key):
        """A seed spawned from the scenario's for one purpose, such as (client, round, iteration)."""
        return int(np.random.SeedSequence(self.seed, spawn_key=key).generate_state(1)[0])


@dataclass(frozen=True)
class GanRound:
    """A round ended. Round 0 is before anything was sent."""

    round: int
    rounds: int
    generators: list  # one whole generator's state dict per client, None for a client that is gone; [] in a history
    groups: np.ndarray | None = None  # (clients,) cluster numbers, once there are clusters
    weights: np.ndarray | None = None  # (clients,) aggregation weights within the cluster
    taps: np.ndarray | None = None  # (clients, features) what the clusters were made from
    trace: Trace | None = None  # None on engines that keep no ledger


@dataclass(frozen=True)
class GanOutcome:
    """What a finished or stopped run leaves behind."""

    scenario: GanScenario
    generators: list  # the last whole generator of each client, as state dicts; None for a client that is gone
    history: list  # every `GanRound`, without its generators
    trace: Trace
    stopped: bool = False
    refused: tuple = ()  # `Refusal`s: (round, client, reason)
    what: dict = field(
        default_factory=dict
    )  # kind of message -> what was in it, in words: the ledger of exchanges
