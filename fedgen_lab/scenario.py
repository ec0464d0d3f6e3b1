"""A scenario: everything a learner can choose about one federated experiment, in one frozen object.

Knobs edit a `Scenario`, experiments take one, and it travels to every device inside Flower's run config. Used by every
lab.
"""

import os
from dataclasses import asdict, dataclass, fields

PROFILES = ("binder", "laptop", "gpu", "test")
METHODS = ("lora", "full")

# What each profile changes in the defaults; `binder` is the lesson itself, about a minute on one core.
_BY_PROFILE = {
    "binder": {},
    "laptop": {"rounds": 10},
    "gpu": {"rounds": 10, "num_clients": 16},
    "test": {"rounds": 2, "local_steps": 2, "batch_size": 4, "pictures_per_client": 8, "num_prompts": 8},
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
    rounds: int = 5  # five rounds are enough to see the direction, in about a minute
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

    def __post_init__(self):
        whole = ("num_clients", "rounds", "local_steps", "batch_size", "rank", "pictures_per_client", "num_prompts")
        for name in whole:
            value = getattr(self, name)
            if isinstance(value, bool) or not float(value).is_integer() or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1; got {value!r}.")
        if not 0 <= self.skew <= 1:
            raise ValueError(f"skew must lie in [0, 1]; got {self.skew!r}.")
        if not self.bandwidth_hz > 0 or self.bandwidth_hz == float("inf"):
            raise ValueError(f"bandwidth_hz must be a positive number of hertz; got {self.bandwidth_hz!r}.")
        if not 0 < self.learning_rate <= 1:
            raise ValueError(f"learning_rate must lie in (0, 1]; got {self.learning_rate!r}.")
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}; got {self.method!r}.")
        if self.seed < 0 or not float(self.seed).is_integer():
            raise ValueError(f"seed must be a whole number of at least 0; got {self.seed!r}.")

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
        raise ValueError(f"FEDGEN_PROFILE must be one of {', '.join(PROFILES)}; got {name!r}. Unset it to use binder.")
    return name
