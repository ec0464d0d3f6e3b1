"""GanScenario: everything a learner can choose about one experiment with GANs, and what a run reports and leaves.

The knobs of lab 07 edit one; every method of `fedgen_lab.split` takes one; it travels to the devices inside Flower's
run config. HuSCF-GAN: arXiv 2507.12979.
"""

from dataclasses import dataclass, field
from itertools import product

import numpy as np

from fedgen_lab.federation.trace import Trace
from fedgen_lab.knobs import Knobs, knob
from fedgen_lab.split.nets import SIZES

METHODS = ("huscf", "local", "centralised", "fedgan", "mdgan", "fslgan", "pflgan", "hflgan")
SHARES = ("skew", "iid", "non-iid", "highly-non-iid")
# Which of blocks G1, G3, D1, D3 the client holds.
CUTS = tuple("".join(bits) for bits in product("01", repeat=4))


@dataclass(frozen=True)
class GanScenario(Knobs):
    """The knobs of one experiment with GANs.

    `domains` are names for `fedgen_lab.pictures.domains.load_domain`, with commas between; client i holds pictures of
    domain i mod D. `share` says how labels are dealt inside a domain: by the knob `skew`, or by the schemes of the
    published code. `cuts` is "optimum" (each device's best cut), one cut for all such as "0110", or one for each client
    with commas. Reference mode is `reference=True`: the published code's own choices where ours differ.

    Raises ValueError, naming the knob, its value and its range, when a value makes no sense.
    """

    num_clients: int = knob(8, 1)
    domains: str = knob("digits,letters", words="Commas stand between several.")
    share: str = knob("skew", options=SHARES)
    skew: float = knob(
        0.0, 0, 1, words="0: every client holds all labels of its domain; 1: one label each."
    )
    bandwidth_hz: float = knob(  # smashed data is heavy
        20e6, 1, 1e12, words="The uplink band that all clients share, in hertz."
    )
    pictures_per_client: int = knob(150, 1)
    unequal: bool = knob(
        False, words="The last client holds about ten times as many pictures as the first."
    )
    size: str = knob("lab14", options=tuple(SIZES))
    rounds: int = knob(8, 1)
    iterations: int = knob(40, 1)  # of every client in a round; the published code does five epochs
    batch_size: int = knob(
        16, 2, words="BatchNorm can't take the spread of one picture, so two are the least."
    )
    learning_rate: float = knob(1e-3, above=0, high=1)  # the published 2e-4 is for far longer runs
    method: str = knob("huscf", options=METHODS)
    cuts: str = knob(
        "optimum", words='"optimum", or four bits such as "0110", with commas between.'
    )
    kld_alpha: float = knob(
        1.0, 0, words="How much less a client weighs that differs from its cluster; 0: FedAvg."
    )
    num_clusters: int = knob(
        0, 0, words="0: chosen by silhouette, which needs two clients of a domain."
    )
    warm_up: int = knob(2, 0, words="Rounds of plain FedAvg before clustering begins.")
    tap: str = knob("epoch", options=("epoch", "last-batch"), words="epoch: its average.")
    scale_free: bool = knob(
        False, words="Divide KLD scores by their median, so that kld_alpha has no scale."
    )
    batch_norm: str = knob(
        "cluster",
        options=("averaged", "local", "cluster"),
        words="Over whom running statistics of client blocks are averaged.",
    )
    noise: float = knob(
        0.0, 0, words="Standard deviation of noise on smashed data, relative to the data's own."
    )
    bits: int = knob(32, options=(8, 32), words="8: smashed data is sent in 8 bits a number.")
    decorrelation: float = knob(0.0, 0, words="Weight of the distance-correlation penalty.")
    reference: bool = knob(False)
    seed: int = knob(0, 0, 2**32 - 1)

    # `binder` takes a minute of one core; digits are easy to recognise by then
    BY_PROFILE = {
        "binder": {"rounds": 6},
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

    def __post_init__(self):
        super().__post_init__()
        cuts = [] if self.cuts == "optimum" else [cut.strip() for cut in self.cuts.split(",")]
        if any(cut not in CUTS for cut in cuts) or len(cuts) not in (0, 1, self.num_clients):
            raise ValueError(
                f'cuts must be "optimum", or four bits such as "0110" for all or for each of the {self.num_clients} '
                f"clients with commas between; got {self.cuts!r}."
            )

    @property
    def domain_names(self):
        """The names of the domains, as a list."""
        return [name.strip() for name in self.domains.split(",") if name.strip()]


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
