"""A scenario: everything a learner can choose about one federated experiment, in one frozen object.

Knobs edit a `Scenario`, experiments take one, and it travels to every device inside Flower's run config. Used by every
lab.
"""

from dataclasses import dataclass

from fedgen_lab.knobs import Knobs, knob, profile  # noqa: F401 (labs take `profile` from here)

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
SELECTIONS = ("all", "random", "fastest", "deadline")
DEFENCES = ("mean", "clip", "median", "trimmed", "krum")
RATES = {"lora": (2e-3, 1e-4), "full": (3e-4, 1e-5)}  # of the tiny base, of a real one


def _clients(scenario):
    """The end of a range that counts clients."""
    return scenario.num_clients


@dataclass(frozen=True)
class Scenario(Knobs):
    """The knobs of one experiment.

    The three knobs of the lab are `num_clients`, `bandwidth_hz` and `skew`. `pictures` is "sprites", the path of a
    folder or zip of captioned images, or "hub:OWNER/NAME"; `concept` names the attribute that makes clients differ.
    The knobs from `rule` on belong to labs 04, 05 and 08: with their defaults it is the plain run of lab 03. Which of
    them go together is for `lora` to say.

    Raises ValueError, naming the knob, its value and its range, when a value makes no sense.
    """

    num_clients: int = knob(4, 1)
    skew: float = knob(
        0.0, 0, 1, words="0: everyone holds everything; 1: each client holds one concept."
    )
    bandwidth_hz: float = knob(
        5e6, 1, 1e12, words="The uplink band that all clients share, in hertz."
    )
    rounds: int = knob(5, 1)
    local_steps: int = knob(20, 1)
    batch_size: int = knob(16, 1)
    rank: int = knob(8, 1)  # rank 4 on attention alone was too weak to survive averaging
    learning_rate: float = knob(
        0.0, 0, 1, words="0: what suits the base and the method; `rate` says how much that is."
    )
    method: str = knob(
        "lora", options=("lora", "full"), words="full: federated averaging of the whole UNet."
    )
    pictures: str = knob("sprites", words='"sprites", a folder or zip, or "hub:OWNER/NAME".')
    pictures_per_client: int = knob(64, 1)
    concept: str = knob("object", words="The attribute that makes clients differ.")
    caption_file: str = knob("", words="Empty: metadata.csv or metadata.jsonl, whichever is there.")
    file_column: str = knob("file_name")
    text_column: str = knob("text")
    num_prompts: int = knob(48, 1)  # drawn to measure fidelity; each costs about 0.12 s on one core
    base_model: str = knob("", words="Empty: the tiny Stable Diffusion that ships with the lab.")
    seed: int = knob(0, 0, 2**32 - 1)
    rule: str = knob("fedit", options=RULES)  # how the server aggregates adapters; lora/rules.py
    ranks: str = knob("", words='Empty: everyone has `rank`; "2,4,8" is dealt to the clients.')
    lora_alpha: float = knob(0.0, 0, words="LoRA's alpha; 0: alpha = rank, a scale of one.")
    upload: str = knob("float32", options=("float32", "int8", "top-k"))  # lora/upload.py
    keep: float = knob(0.1, above=0, high=1, words='The share of numbers that "top-k" sends.')
    select: str = knob("all", options=SELECTIONS)  # who trains in a round; wireless/reacting.py
    fraction: float = knob(1.0, above=0, high=1, words="The share of clients that are asked.")
    deadline_seconds: float = knob(
        0.0, 0, words="Uploads that arrive later in simulated time are dropped; 0: none is."
    )
    buffer: int = knob(
        0, 0, _clients, words="Merge whenever so many uploads have arrived; 0: synchronous rounds."
    )
    clip: float = knob(0.0, 0, words="The largest norm of a client's update; 0: not clipped.")
    noise_multiplier: float = knob(
        0.0,
        0,
        words="User-level differential privacy: noise on the sum, in units of clip; 0: none.",
    )
    sample_clip: float = knob(
        0.0,
        0,
        words="DP-SGD on the devices: the largest norm of one picture's gradient; 0: not clipped.",
    )
    sample_noise: float = knob(
        0.0, 0, words="DP-SGD's noise at every local step, in units of sample_clip; 0: plain steps."
    )
    epsilon_budget: float = knob(
        0.0,
        0,
        words="A device trains no more once its pictures' epsilon would pass this; 0: no limit.",
    )
    defence: str = knob("mean", options=DEFENCES)  # against `attackers`
    attackers: int = knob(0, 0, _clients, words="How many clients plant a backdoor.")
    secure: int = knob(0, options=(0, 1), words="1: secure aggregation, the server sees sums only.")
    dealing: str = knob(
        "skew",
        options=("skew", "unequal", "dirichlet"),
        words="How pictures are dealt: by skew; unequal: numbers that differ; dirichlet: by concept.",
    )
    ratio: float = knob(
        4.0,
        1,
        words="With unequal dealing: how many times the first client's pictures the last has.",
    )
    dirichlet_alpha: float = knob(
        0.5, above=0, words="With dirichlet dealing: the concentration; 100 is nearly even."
    )
    targets: str = knob(
        "attention+feed-forward",
        options=("attention+feed-forward", "attention"),
        words="The layers that carry an adapter.",
    )
    cut: str = knob(
        "",
        words='Empty: the UNet stays whole; "down_blocks.0": devices train it so far, an edge the rest.',
    )
    precision: str = knob(  # of a frozen large base; real_size.py
        "float32", options=("float32", "bfloat16")
    )

    # `binder` is the lesson itself, about a minute on a slow core; by then the pictures have changed
    BY_PROFILE = {
        "binder": {"rounds": 3},
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

    def __post_init__(self):
        super().__post_init__()
        _ = self.client_ranks  # names what is wrong with `ranks`

    @property
    def rate(self):
        """The learning rate: the knob's, or what suits the base (the tiny one, a real one) and what trains of it."""
        tiny, real = RATES[self.method]
        return self.learning_rate or (real if self.base_model else tiny)

    @property
    def client_ranks(self):
        """Every client's rank as a tuple: all `rank`, or `ranks` dealt in turn. Raises ValueError for nonsense."""
        if not self.ranks:
            return (self.rank,) * self.num_clients
        words = self.ranks.split(",")
        if not all(word.strip().isdecimal() and int(word) >= 1 for word in words):
            raise ValueError(
                f'ranks must be whole numbers of at least 1, like "2,4,8"; got {self.ranks!r}.'
            )
        dealt = tuple(int(words[client % len(words)]) for client in range(self.num_clients))
        if len(set(dealt)) > 1 and self.rule not in MIXED_RANKS:
            raise ValueError(
                f"rule {self.rule!r} needs one rank for all; got ranks {self.ranks!r}. "
                f"Use one rank, or one of the rules {', '.join(MIXED_RANKS)}."
            )
        return dealt
