"""A scenario: everything a learner can choose about one federated experiment, in one frozen object.

Knobs edit a `Scenario`, experiments take one, and it travels to every device inside Flower's run config. Used by every
lab.
"""

import os
from dataclasses import asdict, dataclass, fields

PROFILES = ("binder", "laptop", "gpu", "test")
METHODS = ("lora", "full")
RULES = (
    "fedit",
    "ffa",
    "fedsa",
    "rolora",
    "flora",
    "flexlora",
    "hetlora",
    "fedex",
    "lora-fair",
    "fed-sb",
)
MIXED_RANKS = ("flora", "flexlora", "hetlora")  # the rules that let clients differ in rank
UPLOADS = ("float32", "int8", "top-k")
SELECTIONS = ("all", "random", "fastest", "deadline")
DEFENCES = ("mean", "clip", "median", "trimmed", "krum")
PRECISIONS = ("float32", "bfloat16")

# What each profile changes in the defaults; `binder` is the lesson itself, about a minute on one core.
_BY_PROFILE = {
    "binder": {"rounds": 3},  # about a minute on a slow core; by then the pictures have changed
    "laptop": {"rounds": 10},
    "gpu": {"rounds": 10, "num_clients": 16},
    "test": {
        "rounds": 2,
        "local_steps": 2,
        "batch_size": 4,
        "pictures_per_client": 8,
        "num_prompts": 8,
    },
}


@dataclass(frozen=True)
class Scenario:
    """The knobs of one experiment.

    The three knobs of the lab are `num_clients`, `bandwidth_hz` and `skew`. `pictures` is "sprites", the path of a
    folder or zip of captioned images, or "hub:OWNER/NAME"; `concept` names the attribute that makes clients differ.

    Raises ValueError, naming the knob, its value and its range, when a value makes no sense.
    """

    num_clients: int = 4
    skew: float = 0.0  # 0: everyone holds everything; 1: each client holds one concept
    bandwidth_hz: float = 5e6  # uplink band that all clients share
    rounds: int = 5
    local_steps: int = 20
    batch_size: int = 16
    rank: int = 8  # rank 4 on attention alone was too weak to survive averaging
    learning_rate: float = 2e-3
    method: str = "lora"  # or "full": federated averaging of the whole UNet
    pictures: str = "sprites"
    pictures_per_client: int = 64
    concept: str = "object"
    caption_file: str = ""  # "": metadata.csv or metadata.jsonl, whichever is there
    file_column: str = "file_name"
    text_column: str = "text"
    num_prompts: int = 48  # prompts drawn to measure fidelity; each costs about 0.12 s on one core
    base_model: str = ""  # "": the tiny Stable Diffusion that ships with the lab
    seed: int = 0
    # Labs 04, 05 and 08; with every default it is the plain run of lab 03.
    rule: str = "fedit"  # how the server aggregates adapters; lora/rules.py
    ranks: str = ""  # "": everyone has `rank`; "2,4,8" is dealt to the clients in turn
    lora_alpha: float = 0.0  # LoRA's alpha; 0: alpha = rank, a scale of one
    upload: str = (
        "float32"  # or "int8" with stochastic rounding, "top-k" with error feedback; lora/upload.py
    )
    keep: float = 0.1  # the share of numbers that "top-k" sends
    select: str = (
        "all"  # who trains in a round: "all", "random", "fastest", "deadline"; wireless/reacting.py
    )
    fraction: float = 1.0  # the share of clients that are asked when `select` chooses
    deadline_seconds: float = (
        0.0  # uploads that arrive later in simulated time are dropped; 0: none is
    )
    buffer: int = 0  # FedBuff: merge whenever so many uploads have arrived; 0: synchronous rounds
    clip: float = 0.0  # the largest norm of a client's update; 0: not clipped
    noise_multiplier: float = (
        0.0  # user-level differential privacy: noise on the sum, in units of clip; 0: none
    )
    defence: str = (
        "mean"  # or "clip", "median", "trimmed", "krum", against `attackers`; privacy/robust.py
    )
    attackers: int = 0  # how many clients plant a backdoor
    secure: int = 0  # 1: secure aggregation, the server sees sums only; privacy/secure.py
    cut: str = ""  # "": the UNet stays whole; "down_blocks.0": devices train it so far, an edge the rest; split_unet.py
    precision: str = "float32"  # or "bfloat16": the frozen base of a large model in half the bytes; lora/real_size.py

    def __post_init__(self):
        whole = (
            "num_clients",
            "rounds",
            "local_steps",
            "batch_size",
            "rank",
            "pictures_per_client",
            "num_prompts",
        )
        for name in whole:
            value = getattr(self, name)
            if isinstance(value, bool) or not float(value).is_integer() or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1; got {value!r}.")
        if not 0 <= self.skew <= 1:
            raise ValueError(f"skew must lie in [0, 1]; got {self.skew!r}.")
        if not self.bandwidth_hz > 0 or self.bandwidth_hz == float("inf"):
            raise ValueError(
                f"bandwidth_hz must be a positive number of hertz; got {self.bandwidth_hz!r}."
            )
        if not 0 < self.learning_rate <= 1:
            raise ValueError(f"learning_rate must lie in (0, 1]; got {self.learning_rate!r}.")
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}; got {self.method!r}.")
        if self.seed < 0 or not float(self.seed).is_integer():
            raise ValueError(f"seed must be a whole number of at least 0; got {self.seed!r}.")
        self._check_aggregation()

    def _check_aggregation(self):
        """The knobs of labs 04, 05 and 08; which of them go together is `lora.strategies.strategy_of`'s to say."""
        choices = {
            "rule": RULES,
            "upload": UPLOADS,
            "select": SELECTIONS,
            "defence": DEFENCES,
            "secure": (0, 1),
            "precision": PRECISIONS,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(map(str, allowed))}; got {getattr(self, name)!r}."
                )
        for name in ("lora_alpha", "deadline_seconds", "clip", "noise_multiplier"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(
                    f"{name} must be a number of at least 0; got {getattr(self, name)!r}."
                )
        for name in ("keep", "fraction"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in (0, 1]; got {getattr(self, name)!r}.")
        for name in ("buffer", "attackers"):
            value = getattr(self, name)
            if (
                isinstance(value, bool)
                or not float(value).is_integer()
                or not 0 <= value <= self.num_clients
            ):
                raise ValueError(
                    f"{name} must be a whole number from 0 to {self.num_clients} clients; got {value!r}."
                )
        _ = self.client_ranks  # names what is wrong with `ranks`

    @property
    def client_ranks(self):
        """Every client's rank as a tuple: all `rank`, or `ranks` dealt in turn. Raises ValueError for nonsense."""
        if not self.ranks:
            return (int(self.rank),) * int(self.num_clients)
        words = str(self.ranks).split(",")
        if not all(word.strip().isdecimal() and int(word) >= 1 for word in words):
            raise ValueError(
                f'ranks must be whole numbers of at least 1, like "2,4,8"; got {self.ranks!r}.'
            )
        dealt = tuple(int(words[client % len(words)]) for client in range(int(self.num_clients)))
        if len(set(dealt)) > 1 and self.rule not in MIXED_RANKS:
            raise ValueError(
                f"rule {self.rule!r} needs one rank for all; got ranks {self.ranks!r}. "
                f"Use one rank, or one of the rules {', '.join(MIXED_RANKS)}."
            )
        return dealt

    @classmethod
    def for_profile(cls, **changes):
        """The lesson's defaults for the present profile (see `profile`), with `changes` on top."""
        return cls(**{**_BY_PROFILE[profile()], **changes})

    def to_run_config(self):
        """This scenario as a Flower run config: a flat dict of strings and numbers with dashes in the names."""
        return run_config_of(self)

    @classmethod
    def from_run_config(cls, run_config):
        """The scenario that `to_run_config` wrote; keys it does not know are left to others."""
        return from_run_config(cls, run_config)


def run_config_of(scenario):
    """A frozen dataclass of plain values as a Flower run config: {"num-clients": 4, ...}."""
    return {name.replace("_", "-"): value for name, value in asdict(scenario).items()}


def from_run_config(kind, run_config):
    """The dataclass `kind` from what `run_config_of` wrote; missing keys keep their defaults, others are left alone."""
    known = {}
    for field in fields(kind):
        key = field.name.replace("_", "-")
        if key in run_config:
            known[field.name] = type(field.default)(run_config[key])
    return kind(**known)


def profile():
    """The machine this lab runs on, from FEDGEN_PROFILE: "binder" (the default), "laptop", "gpu" or "test".

    Raises ValueError for any other name.
    """
    name = os.environ.get("FEDGEN_PROFILE", "binder")
    if name not in PROFILES:
        raise ValueError(
            f"FEDGEN_PROFILE must be one of {', '.join(PROFILES)}; got {name!r}. Unset it to use binder."
        )
    return name
