"""From a scenario to pictures: what each client holds, what is held out to judge by, and which prompts are drawn.

Lab 03. The clients' concepts are four objects that the base model never saw, or the groups of a learner's own pictures.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
import torch

from fedgen_lab.lora.pipeline import base_side
from fedgen_lab.partition import by_skew, dirichlet, unequal
from fedgen_lab.pictures.collection import Pictures
from fedgen_lab.pictures.folders import read_folder
from fedgen_lab.pictures.hub import from_hub
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
    strip_pictures: Pictures  # held-out pictures with those captions
    prompts: tuple = ()  # sprites only: prompts for the clients' concepts, with `requests` saying what each asks for
    requests: pd.DataFrame | None = None
    old_prompts: tuple = ()  # sprites only: prompts the base model already knew, to see what is forgotten
    old_requests: pd.DataFrame | None = None


def deal(scenario):
    """The `Dealt` of a scenario: sprites drawn afresh, or a learner's own pictures from a folder, a zip or the Hub.

    Raises ValueError when the concept attribute is not a column of the pictures, or there are too few pictures.
    """
    return _deal_sprites(scenario) if scenario.pictures == "sprites" else _deal_own(scenario)


def _deal_sprites(scenario):
    if scenario.concept != "object":
        raise ValueError(
            f"The concept of sprites is their object; set concept='object', not {scenario.concept!r}."
        )
    pool_seed, held_seed, prompt_seed, old_seed, split_seed = map(scenario.seed_of, range(5))
    number = scenario.num_clients * scenario.pictures_per_client / len(CONCEPTS)
    if scenario.dealing == "skew":
        # Enough at skew 1, where clients with the same concept share its pictures.
        clients_per_object = math.ceil(scenario.num_clients / len(CONCEPTS))
        number = clients_per_object * scenario.pictures_per_client
    pool = _drawn_of_each(math.ceil(number), pool_seed)
    shares = _shares(scenario, pool.attributes, split_seed)

    # Pictures and prompts to judge by.
    held_out = _drawn_of_each(HELD_OUT_PER_CONCEPT, held_seed)
    captions, requests = prompts(scenario.num_prompts, prompt_seed, objects=CONCEPTS)
    old_captions, old_requests = prompts(scenario.num_prompts, old_seed, objects=OBJECTS)
    first = [i * HELD_OUT_PER_CONCEPT for i in range(len(CONCEPTS))]
    shown = held_out.take(first)
    return Dealt(
        clients=tuple(pool.take(rows) for rows in shares),
        held_out=held_out,
        concepts=CONCEPTS,
        strip=tuple(shown.captions),
        strip_pictures=shown,
        prompts=tuple(captions),
        requests=requests,
        old_prompts=tuple(old_captions),
        old_requests=old_requests,
    )


def _drawn_of_each(number, seed):
    """`number` sprites of each held-out object, object by object."""
    seeds = np.random.SeedSequence(seed).spawn(len(CONCEPTS))
    sprites = [
        draw_sprites(number, int(child.generate_state(1)[0]), objects=[name])
        for name, child in zip(CONCEPTS, seeds, strict=True)
    ]
    return Pictures(
        torch.cat([pictures.images for pictures in sprites]),
        [caption for pictures in sprites for caption in pictures.captions],
        pd.concat([pictures.attributes for pictures in sprites], ignore_index=True),
    )


def _shares(scenario, attributes, seed):
    """Row numbers for each client, dealt as the scenario says."""
    if scenario.dealing == "unequal":
        return unequal(attributes, scenario.num_clients, seed, scenario.ratio)
    if scenario.dealing == "dirichlet":
        return dirichlet(
            attributes, scenario.concept, scenario.num_clients, scenario.dirichlet_alpha, seed
        )
    return by_skew(
        attributes,
        scenario.concept,
        scenario.num_clients,
        scenario.skew,
        scenario.pictures_per_client,
        seed,
    )


@lru_cache(maxsize=2)
def read_own(pictures, caption_file, file_column, text_column, side):
    """A learner's own pictures as squares of `side` pixels, read once: "hub:OWNER/NAME", else a folder or zip (see
    pictures/folders.py)."""
    if pictures.startswith("hub:"):
        return from_hub(pictures.removeprefix("hub:"), text_column=text_column, size=side)
    return read_folder(pictures, caption_file or None, file_column, text_column, side)


def own_pictures(scenario, pictures=""):
    """The pictures that the scenario names, or those at another place, at the size of its base model."""
    return read_own(
        pictures or scenario.pictures,
        scenario.caption_file,
        scenario.file_column,
        scenario.text_column,
        base_side(scenario.base_model),
    )


def _deal_own(scenario):
    pictures = own_pictures(scenario)
    if scenario.concept not in pictures.attributes:
        columns = ", ".join(map(str, pictures.attributes.columns)) or "none"
        raise ValueError(
            f"These pictures have no attribute {scenario.concept!r} to tell clients apart by; "
            f"their columns are {columns}. Set concept to one of them."
        )
    # A picture of no concept belongs to no client.
    concept = pictures.attributes[scenario.concept].astype(str).str.strip()
    pictures, concept = pictures.take(np.flatnonzero(concept != "")), concept[concept != ""]
    concept = concept.reset_index(drop=True)
    # Rows with the same pixels are one picture: several captions of it, or exact copies.
    picture = pd.factorize(
        np.array([image.numpy().tobytes() for image in pictures.images], object)
    )[0]
    if len(set(picture)) < 2:
        raise ValueError(
            f"Own pictures with a {scenario.concept!r} must be at least two different ones, one to train on and one to "
            f"judge by; got {len(set(picture))}."
        )
    split_seed, held_seed = map(scenario.seed_of, range(2))

    # To judge by: an eighth of every concept's pictures, so that the judge sees all of them.
    rng, held = np.random.default_rng(held_seed), set()
    for name in sorted(concept.unique()):
        numbers = rng.permutation(np.unique(picture[concept == name]))
        number = min(max(len(numbers) // 8, int(len(numbers) > 1)), HELD_OUT_PER_CONCEPT)
        held.update(numbers[:number])
    if not held:
        held = {int(rng.integers(max(picture) + 1))}
    if len(held) > max(picture):  # concepts that share their pictures: one must be left to train on
        held.remove(max(held))
    is_held = np.isin(picture, list(held))
    held_out = pictures.take(np.flatnonzero(is_held))

    # To train on: all others.
    pool = pictures.take(np.flatnonzero(~is_held))
    shares = _shares(scenario, pool.attributes, split_seed)
    names = held_out.attributes[scenario.concept].astype(str)
    shown = held_out.take(
        [int(np.flatnonzero(names == name)[0]) for name in sorted(names.unique())[:4]]
    )
    return Dealt(
        clients=tuple(pool.take(rows) for rows in shares),
        held_out=held_out,
        concepts=tuple(sorted(concept.unique())),
        strip=tuple(shown.captions),
        strip_pictures=shown,
    )
