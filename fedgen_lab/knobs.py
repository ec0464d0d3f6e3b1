"""Knobs: a frozen dataclass whose fields know their range, their options and what they mean, in words.

Every scenario is one, and so is the radio cell. Its checks, its journey through Flower's run config, its defaults for
each machine and the seeds spawned from its seed come from here. Used by every lab.
"""

import math
import os
from dataclasses import asdict, dataclass, field, fields
from numbers import Integral, Real

import numpy as np

PROFILES = ("binder", "laptop", "gpu", "test")


def knob(default, low=-math.inf, high=math.inf, above=None, options=(), words=""):
    """A field of a `Knobs`. The type of its default is the type that its values must have.

    low, high: the range, ends included; high may be a function of the whole `Knobs`, for a limit that hangs on another
        knob. above: in place of low, where the end itself is left out.
    options: the only values there are.
    words: what it means, as a sentence: for a dashboard, and for who set it to nonsense.
    """
    is_open = above is not None
    limits = {"low": above if is_open else low, "high": high, "is_open": is_open}
    return field(default=default, metadata={**limits, "options": options, "words": words})


@dataclass(frozen=True)
class Knobs:
    """The base of every scenario: fields made by `knob`, one of them called seed.

    BY_PROFILE: what each profile changes in the defaults.

    Raises ValueError, naming the knob, its value and what it may be, when a value makes no sense.
    """

    BY_PROFILE = {}

    def __post_init__(self):
        for limits in fields(self):
            value = getattr(self, limits.name)
            is_allowed, allowed = self._allowed(value, limits.default, **limits.metadata)
            if not is_allowed:
                refusal = f"{limits.name} must {allowed}; got {value!r}. {limits.metadata['words']}"
                raise ValueError(refusal.strip())

    def _allowed(self, value, default, low, high, is_open, options, words):
        """Whether a field may have this value, and in words what it may have."""
        # Options, truths and texts have no range.
        if options:
            listed = ", ".join(str(option) for option in options if option != "")
            empty = ", or empty for none" if "" in options else ""
            return value in options, f"be one of {listed}{empty}"
        if isinstance(default, bool):
            return isinstance(value, bool | np.bool_), "be True or False"
        if isinstance(default, str):
            return isinstance(value, str), "be text"
        # A number, whole if the default is.
        if callable(high):
            high = high(self)
        kind = Integral if isinstance(default, int) else Real
        if kind is Integral:
            allowed = f"be a whole number of at least {low}"
            if high < math.inf:
                allowed = f"be a whole number from {low} to {high}"
        elif high < math.inf:
            allowed = f"lie in {'(' if is_open else '['}{low:g}, {high:g}]"
        elif low > -math.inf:
            allowed = f"be a finite number {'above' if is_open else 'of at least'} {low:g}"
        else:
            allowed = "be a finite number"
        if isinstance(value, bool) or not isinstance(value, kind):
            return False, allowed
        is_inside = low <= value <= high and math.isfinite(value)  # no NaN is
        return is_inside and not (is_open and value == low), allowed

    @classmethod
    def for_profile(cls, **changes):
        """The lesson's defaults for the present profile (see `profile`), with `changes` on top."""
        return cls(**{**cls.BY_PROFILE[profile()], **changes})

    def to_run_config(self):
        """These knobs as a Flower run config: a flat dict of strings and numbers with dashes in the names."""
        return {name.replace("_", "-"): value for name, value in asdict(self).items()}

    @classmethod
    def from_run_config(cls, run_config):
        """The knobs that `to_run_config` wrote: missing ones keep their defaults, other keys are left alone."""
        values = {}
        for limits in fields(cls):
            key = limits.name.replace("_", "-")
            if key in run_config:
                values[limits.name] = type(limits.default)(run_config[key])
        return cls(**values)

    def seed_of(self, *key):
        """A seed spawned from `seed` for one purpose, such as (client, round)."""
        return int(np.random.SeedSequence(self.seed, spawn_key=key).generate_state(1)[0])


def check_whole(name, value, lowest=1):
    """Raises ValueError unless `value` is a whole number of at least `lowest`: for arguments that are no knobs."""
    is_whole = not isinstance(value, bool) and isinstance(value, Real) and value % 1 == 0
    if not is_whole or value < lowest:
        raise ValueError(f"{name} must be a whole number of at least {lowest}; got {value!r}.")


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
