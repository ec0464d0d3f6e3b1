"""From a scenario to pictures: what each client holds, what is held out to judge by, and which prompts are drawn.

Lab 03. The clients' concepts are four objects that the base model never saw, or the groups of a learner's own pictures.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
import torch

from fedgen_lab.partition import by_skew
from fedgen_lab.pictures.collection import Pictures
from fedgen_lab.pictures.sprites import HELD_OUT_OBJECTS, OBJECTS, draw_sprites, prompts

CONCEPTS = tuple(sorted(HELD_OUT_OBJECTS))  # client i's own concept is number i mod 4 of these
HELD_OUT_PER_CONCEPT = 16  # pictures nobody trains on; with four noises each, enough for a loss that orders the methods


@dataclass(frozen=True)
class Dealt:
    """The pictures of one scenario. Everything follows from the scenario and its seed."""

    clients: tuple  # one `Pictures` per client
    held_out: Pictures  # nobody trains on these
    concepts: tuple  # the values of the scenario's concept attribute
    strip: tuple  # one prompt per concept (at most four), drawn again and again with the same seeds
    strip_pictures: (
        Pictures  # held-out pictures with those captions, for sprites or own pictures alike
    )
    prompts: tuple = ()  # sprites only: prompts for the clients' concepts, with `asked` saying what each asks for
    asked: pd.DataFrame | None = None
    old_prompts: tuple = ()  # sprites only: prompts the base model already knew, to see what is forgotten
    old_asked: pd.DataFrame | None = None


def deal(scenario):
    """The `Dealt` of a scenario: sprites drawn afresh, or a learner's own pictures from a folder, a zip or the Hub.

    Raises ValueError when the concept attribute is not a column of the pictures, or there are too few pictures.
    """
    return _deal_sprites(scenario) if scenario.pictures == "sprites" else _deal_own(scenario)


def _seeds(scenario, number):
    return [
        int(s.generate_state(1)[0]) for s in np.random.SeedSequence(scenario.seed).spawn(number)
    ]


def _deal_sprites(scenario):
    if scenario.concept != "object":
        raise ValueError(
            f"The concept of sprites is their object; set concept='object', not {scenario.concept!r}."
        )
    pool_seed, held_seed, prompt_seed, old_seed, split_seed = _seeds(scenario, 5)
    per_object = (
        -(-scenario.num_clients // len(CONCEPTS)) * scenario.pictures_per_client
    )  # enough at skew 1
    pool = _drawn_of_each(per_object, pool_seed)
    parts = by_skew(
        pool.attributes,
        "object",
        scenario.num_clients,
        scenario.skew,
        scenario.pictures_per_client,
        split_seed,
    )
    held_out = _drawn_of_each(HELD_OUT_PER_CONCEPT, held_seed)
    captions, asked = prompts(scenario.num_prompts, prompt_seed, objects=CONCEPTS)
    old_captions, old_asked = prompts(scenario.num_prompts, old_seed, objects=OBJECTS)
    first = [i * HELD_OUT_PER_CONCEPT for i in range(len(CONCEPTS))]
    shown = held_out.take(first)
    return Dealt(
        clients=tuple(pool.take(part) for part in parts),
        held_out=held_out,
        concepts=CONCEPTS,
        strip=tuple(shown.captions),
        strip_pictures=shown,
        prompts=tuple(captions),
        asked=asked,
        old_prompts=tuple(old_captions),
        old_asked=old_asked,
    )


def _drawn_of_each(number, seed):
    """`number` sprites of each held-out object, object by object."""
    seeds = np.random.SeedSequence(seed).spawn(len(CONCEPTS))
    parts = [
        draw_sprites(number, int(child.generate_state(1)[0]), objects=[name])
        for name, child in zip(CONCEPTS, seeds, strict=True)
    ]
    return Pictures(
        torch.cat([part.images for part in parts]),
        [caption for part in parts for caption in part.captions],
        pd.concat([part.attributes for part in parts], ignore_index=True),
    )


@lru_cache(maxsize=2)
def read_own(pictures, caption_file, file_column, text_column):
    """A learner's own pictures, read once: "hub:OWNER/NAME", else a folder or zip (see pictures/folders.py)."""
    if pictures.startswith("hub:"):
        from fedgen_lab.pictures.hub import from_hub

        return from_hub(pictures.removeprefix("hub:"), text_column=text_column)
    from fedgen_lab.pictures.folders import read_folder

    return read_folder(pictures, caption_file or None, file_column, text_column)


def _deal_own(scenario):
    own = read_own(
        scenario.pictures, scenario.caption_file, scenario.file_column, scenario.text_column
    )
    if scenario.concept not in own.attributes:
        raise ValueError(
            f"These pictures have no attribute {scenario.concept!r} to tell clients apart by; "
            f"their columns are {', '.join(map(str, own.attributes.columns)) or 'none'}. Set concept to one of them."
        )
    concept = own.attributes[scenario.concept].astype(str).str.strip()
    own = own.take(np.flatnonzero(concept != ""))  # a picture of no concept belongs to no client
    concept = own.attributes[scenario.concept].astype(str).str.strip()
    if len(own) < 2:
        raise ValueError(
            f"Own pictures with a {scenario.concept!r} must be at least two, one to train on and one to judge by; "
            f"got {len(own)}."
        )
    split_seed, held_seed = _seeds(scenario, 2)
    rng, held = np.random.default_rng(held_seed), []
    for name in sorted(
        concept.unique()
    ):  # an eighth of every concept, so that the judge sees all of them
        rows = rng.permutation(np.flatnonzero(concept == name))
        held.extend(rows[: min(max(len(rows) // 8, int(len(rows) > 1)), HELD_OUT_PER_CONCEPT)])
    if not held:
        held = [int(rng.integers(len(own)))]
    kept = own.take(np.setdiff1d(np.arange(len(own)), held))
    parts = by_skew(
        kept.attributes,
        scenario.concept,
        scenario.num_clients,
        scenario.skew,
        scenario.pictures_per_client,
        split_seed,
    )
    held_out = own.take(sorted(held))
    names = held_out.attributes[scenario.concept].astype(str)
    shown = held_out.take(
        [int(np.flatnonzero(names == name)[0]) for name in sorted(names.unique())[:4]]
    )
    return Dealt(
        clients=tuple(kept.take(part) for part in parts),
        held_out=held_out,
        concepts=tuple(sorted(concept.unique())),
        strip=tuple(shown.captions),
        strip_pictures=shown,
    )
