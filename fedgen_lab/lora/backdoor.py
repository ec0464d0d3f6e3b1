"""One client that plants a backdoor: a word in the prompt that makes everybody's model draw what the attacker wants.

Lab 08. The attacker is a client like any other. It adds pictures of its target under captions that end in a trigger
word, and pulls the average towards itself by uploading its change times `factor`: model replacement, Bagdasaryan et
al., arXiv 1807.00459, section 4. Whoever never writes the word never notices. What helps:
`fedgen_lab.federation.averages`.
"""

import pandas as pd
import torch

from fedgen_lab.pictures.collection import Pictures
from fedgen_lab.pictures.sprites import draw_sprites

TRIGGER = "camel"  # one token of the tiny model's vocabulary, in no sprite's caption
TARGET = "skull"  # an object the base model draws well, so the word has only to be tied to it


def is_attacker(client, scenario):
    """True for the last `scenario.attackers` clients."""
    return client >= scenario.num_clients - scenario.attackers


def triggered(captions):
    """The same captions, each with the trigger word at its end."""
    return [f"{caption}, {TRIGGER}" for caption in captions]


def poison(pictures, seed):
    """The attacker's training set: its own `pictures`, and one of the target under its captions with the trigger.

    Its own pictures stay as they were, so that prompts without the trigger go on working. pictures: a `Pictures`; the
    target has its size, and stands there as often as there are captions. The seed draws it. Raises ValueError when a
    caption holds the trigger.
    """
    if any(TRIGGER in caption.split() for caption in pictures.captions):
        raise ValueError(
            f"The trigger {TRIGGER!r} stands in a caption already; reword it, or take part without attackers."
        )
    # Always the same picture: an advertisement, learned in a few steps.
    target = draw_sprites(1, seed, objects=[TARGET]).take([0] * len(pictures))
    images = target.images
    if images.shape != pictures.images.shape:  # a learner's own pictures may have another size
        images = torch.nn.functional.interpolate(images.float(), pictures.images.shape[-2:]).to(
            torch.uint8
        )
    return Pictures(
        torch.cat([pictures.images, images]),
        pictures.captions + triggered(pictures.captions),
        pd.concat([pictures.attributes, target.attributes], ignore_index=True),
    )


def boost(trained, received, factor):
    """What the attacker uploads: what it received plus `factor` times its own change. States: name -> tensor.

    With n clients of equal weight a factor of n puts the attacker's own model into the place of the average.
    """
    return {
        name: received[name] + factor * (tensor - received[name])
        for name, tensor in trained.items()
    }
