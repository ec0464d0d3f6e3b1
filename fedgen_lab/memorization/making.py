"""Making a model copy on purpose: a few private pictures, some of them many times over, and too many steps.

Lab 09. What makes a diffusion model copy is few pictures, duplicates (Carlini et al., arXiv 2301.13188; Somepalli et
al., arXiv 2212.03860), captions that fit one picture only (Somepalli et al., arXiv 2305.20086), room to remember and
time (Gu et al., arXiv 2310.02664). Each is a knob of `Copying`; so is DP noise, the one cure with a proof.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from fedgen_lab.knobs import Knobs, knob
from fedgen_lab.pictures.collection import Pictures
from fedgen_lab.pictures.sprites import BACKGROUNDS, COLOURS, OBJECTS, SIZE, draw_sprite

MODELS = ("lora", "full", "ddpm")
HELD_OUT = 256  # fresh pictures of the same kind: what false alarms and non-members are counted on
BATCH = 16
LEARNING_RATES = {"lora": 3e-3, "full": 4e-4, "ddpm": 2e-3}
ONE_CAPTION = "a picture"
PRIVATE_KEY = 90_001  # this module's branch of the seed
DIFFERENT = len(OBJECTS) * len(COLOURS) * (len(BACKGROUNDS) - 1) - HELD_OUT  # private pictures


def _pictures(copying):
    """The end of a range that counts private pictures."""
    return copying.pictures


@dataclass(frozen=True)
class Copying(Knobs):
    """The knobs of one model that may copy. The defaults copy: about a minute on one core.

    Raises ValueError, naming the knob, its value and its range, when a value makes no sense.
    """

    pictures: int = knob(  # from 512 on this model copies none of them
        32, 1, DIFFERENT, words="Different private pictures, without canaries."
    )
    duplicated: int = knob(
        4, 0, _pictures, words="Of them, the first so many are there `times` times."
    )
    times: int = knob(16, 1, 1000)
    steps: int = knob(350, 1, 100_000)
    rank: int = knob(16, 1, 96)  # of "lora"; at rank 4 half as many drawings are copies
    unique_captions: bool = knob(True, words="False: the same caption for all but the canaries.")
    canaries: int = knob(
        0, 0, 100, words="Pictures that nobody would draw, planted `times` times each."
    )
    clip: float = knob(
        0.0, 0, words="DP-SGD's largest norm of one picture's gradient; 0: no DP-SGD."
    )
    noise_multiplier: float = knob(0.0, 0, words="DP-SGD's noise in units of `clip`.")
    model: str = knob(  # "full": every weight of the UNet
        "lora", options=MODELS, words="ddpm: a small pixel model from nothing, at 16 x 16."
    )
    seed: int = knob(0, 0, 2**32 - 1)

    def __post_init__(self):
        super().__post_init__()
        if self.noise_multiplier and not self.clip:
            raise ValueError(
                f"noise_multiplier={self.noise_multiplier:g} needs a clip above 0, what noise is measured in."
            )
        if self.clip and self.model == "ddpm":
            raise ValueError(
                "DP-SGD (clip above 0) is there for model='lora' and model='full'; choose one of them."
            )


@dataclass(frozen=True)
class Private:
    """What a model is trained on, and what it is judged by.

    `pictures` are all different; their attribute `kind` is "duplicated", "single" or "canary". `held_out` are of the
    same kind as the single ones, with other captions; no model sees them.
    """

    pictures: Pictures  # N different pictures
    counts: np.ndarray  # (N,) how often each is trained on
    held_out: Pictures

    @property
    def rows(self):
        """The rows of `pictures` in training order, each as often as it counts: (sum of counts,)."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def of(self, kind):
        """The rows of `pictures` whose kind is "duplicated", "single" or "canary"."""
        return np.flatnonzero(self.pictures.attributes["kind"] == kind)


def private_pictures(copying):
    """The `Private` pictures of a `Copying`; the same seed draws the same first pictures, however many there are.

    They have 32 x 32 pixels, for model "ddpm" 16 x 16: the means of 2 x 2, so that it can learn them in a minute.
    A picture is a field of random colours with an object at a random place: nobody could guess it from its caption.
    Captions name object and colour; the background they name is only there to tell captions apart.
    """
    canary_seed, *seeds = np.random.SeedSequence(copying.seed, spawn_key=(PRIVATE_KEY,)).spawn(4)
    words, drawn, held = (np.random.default_rng(seed) for seed in seeds)
    table = [(o, c, b) for o in OBJECTS for c in COLOURS for b in BACKGROUNDS if b != c]
    table = [table[i] for i in words.permutation(len(table))]  # none twice: captions are unique
    own, others = table[: copying.pictures], table[-HELD_OUT:]
    kinds = ["duplicated"] * copying.duplicated + ["single"] * (
        copying.pictures - copying.duplicated
    )
    private = _draw(own, kinds, drawn, copying.unique_captions)
    canaries = _canaries(copying.canaries, np.random.default_rng(canary_seed))
    pictures = Pictures(
        torch.cat([private.images, canaries.images]),
        private.captions + canaries.captions,
        pd.concat([private.attributes, canaries.attributes], ignore_index=True),
    )
    counts = np.where(pictures.attributes["kind"] == "single", 1, copying.times)
    held_out = _draw(others, ["held out"] * HELD_OUT, held, copying.unique_captions)
    if copying.model == "ddpm":
        pictures, held_out = (
            replace(of, images=F.avg_pool2d(of.images.float(), 2).round().byte())
            for of in (pictures, held_out)
        )
    return Private(pictures, counts, held_out)


@dataclass(frozen=True)
class Trained:
    """A model that may copy, with what it was trained on."""

    copying: Copying
    private: Private
    model: object  # a `StableDiffusionPipeline`, or a `ddpm.DDPM`
    losses: list = field(repr=False)  # one a step; fewer than `copying.steps` after a stop


def train_copying(copying, on_step=None, should_stop=None, private=None):
    """Train a model on `private` pictures, by default `private_pictures(copying)`; returns a `Trained`.

    "lora" and "full" start from the tiny Stable Diffusion (`lora.local.train`, with DP-SGD `lora.private.
    train_privately`, whose epsilon holds for one copy of a picture: duplicates multiply it); "ddpm" from random
    weights. on_step(step, steps, loss) is called after every step; when should_stop() turns true, training ends there
    and what has been learned is kept. The same `Copying` gives the same bits on the same number of threads.
    """
    private = private or private_pictures(copying)
    losses = []

    def after_step(step, steps, loss):
        losses.append(loss)
        if on_step is not None:
            on_step(step, steps, loss)
        if should_stop is not None and should_stop():
            raise _Stopped

    if copying.model == "ddpm":
        from fedgen_lab.memorization.ddpm import new_ddpm, train_ddpm

        side = private.pictures.images.shape[-1]
        model = new_ddpm(channels=3, side=side, num_classes=len(private.counts), seed=copying.seed)
        images, labels = (
            private.pictures.images[private.rows],
            _labels(copying, private)[private.rows],
        )
        work = lambda: train_ddpm(  # noqa: E731
            model,
            images,
            labels,
            copying.steps,
            BATCH,
            LEARNING_RATES["ddpm"],
            seed=copying.seed,
            on_step=after_step,
        )
    else:
        model, work = _pipeline_and_work(copying, private, after_step)
    try:
        work()
    except _Stopped:
        pass
    if copying.model != "ddpm":
        model.unet.requires_grad_(False)
    return Trained(copying, private, model, losses)


def draw_copies(trained, number=48, seed=0, rows=None, guidance=1.25, steps=20, on_step=None):
    """Pictures drawn from the captions that the model was trained on: (M, 3, side, side) in [-1, 1], and rows
    (M,).

    rows: whose captions, as rows of `trained.private.pictures`; by default `number` of them in turn, half of duplicated
    pictures and canaries where there are some, half of single ones. Picture i has the seed `seed` + i.
    Raises ValueError when nothing is asked for.
    """
    if rows is None:
        often, single = np.flatnonzero(trained.private.counts > 1), trained.private.of("single")
        turns = [part for part in (often, single) if len(part)]
        rows = np.array(
            [
                turns[i % len(turns)][i // len(turns) % len(turns[i % len(turns)])]
                for i in range(number)
            ]
        )
    rows = np.asarray(rows, dtype=int)
    if not len(rows):
        raise ValueError(
            "There is nothing to draw: number is 0, or rows is empty. Ask for at least one picture."
        )
    seeds = [seed + i for i in range(len(rows))]
    if trained.copying.model == "ddpm":
        from fedgen_lab.memorization.ddpm import draw_ddpm

        labels = _labels(trained.copying, trained.private)[rows]
        return draw_ddpm(
            trained.model, labels, seeds, steps=steps, guidance=guidance, on_step=on_step
        ), rows
    from fedgen_lab.lora.pipeline import draw

    captions = [trained.private.pictures.captions[row] for row in rows]
    return draw(
        trained.model, captions, seeds, steps=steps, guidance=guidance, on_step=on_step
    ), rows


# -- underneath ------------------------------------------------------------------------------------------------------


class _Stopped(Exception):
    pass


def _pipeline_and_work(copying, private, after_step):
    """The tiny Stable Diffusion with what is to be trained, and the training itself, still to be called."""
    from fedgen_lab.lora.adapter import add_adapter
    from fedgen_lab.lora.local import noise_schedule, train
    from fedgen_lab.lora.pipeline import Encoded, encode, load_pipeline
    from fedgen_lab.lora.private import train_privately

    pipeline = load_pipeline()
    if copying.model == "lora":
        add_adapter(pipeline.unet, copying.rank, seed=copying.seed)
    else:
        pipeline.unet.requires_grad_(True)
    encoded, rows = encode(pipeline, private.pictures), torch.as_tensor(private.rows)
    encoded = Encoded(encoded.latents[rows], encoded.text[rows])
    work = (
        pipeline.unet,
        noise_schedule(pipeline),
        encoded,
        copying.steps,
        BATCH,
        LEARNING_RATES[copying.model],
        copying.seed,
        after_step,
    )
    if not copying.clip:
        return pipeline, lambda: train(*work)
    noise = copying.noise_multiplier
    return pipeline, lambda: train_privately(*work, clip=copying.clip, noise_multiplier=noise)


def _labels(copying, private):
    """The class of each picture for a DDPM: its own, or without unique captions one for all but the canaries."""
    number = len(private.counts)
    labels = torch.arange(number)
    if not copying.unique_captions:
        labels[: copying.pictures] = 0
    return labels


def _draw(words, kinds, rng, unique_captions):
    """A `Pictures` of random fields with the objects that `words` (object, colour, background) say."""
    images, captions = np.empty((len(words), SIZE, SIZE, 3), np.uint8), []
    for i, (name, colour, background) in enumerate(words):
        corners = rng.integers(0, 256, (4, 4, 3))
        shift, scale, degrees = rng.uniform(-6, 6, 2), rng.uniform(0.55, 0.8), rng.uniform(-20, 20)
        shape = draw_sprite(
            name, "white", "black", "solid", scale=scale, degrees=degrees, shift=tuple(shift)
        )
        low, high = COLOURS["black"][0], COLOURS["white"][0]
        cover = ((shape.astype(float) - low) / (high - low)).clip(
            0, 1
        )  # (32, 32, 3): 1 on the object
        images[i] = _field(corners) * (1 - cover) + np.array(COLOURS[colour]) * cover
        article = "an" if colour[0] in "aeiou" else "a"
        on = "an" if background[0] in "aeiou" else "a"
        captions.append(
            f"{article} {colour} {name} on {on} {background} background"
            if unique_captions
            else ONE_CAPTION
        )
    table = pd.DataFrame(words, columns=["object", "colour", "background"]).assign(kind=kinds)
    return Pictures(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), captions, table)


def _field(corners):
    """4 x 4 colours smoothed to (32, 32, 3), in 0..255."""
    small = torch.as_tensor(corners, dtype=torch.float32).permute(2, 0, 1)[None]
    large = F.interpolate(small, (SIZE, SIZE), mode="bicubic", align_corners=True)
    return large[0].permute(1, 2, 0).clamp(0, 255).numpy()


def _canaries(number, rng):
    """Pictures that nobody would draw, 8 x 8 random blocks, with captions that nobody would write."""
    blocks = rng.choice([16, 128, 240], (number, 3, 8, 8)).astype(np.uint8)
    images = torch.from_numpy(blocks.repeat(4, axis=2).repeat(4, axis=3))  # (n, 3, 32, 32)
    captions = [
        f"canary {code}" for code in rng.choice(np.arange(1000, 10_000), number, replace=False)
    ]
    table = pd.DataFrame(
        {"object": "", "colour": "", "background": "", "kind": ["canary"] * number}
    )
    return Pictures(images, captions, table)
