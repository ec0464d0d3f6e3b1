"""Was this picture trained on? Three questions to a diffusion model's noise guess, each a number a picture.

Lab 09: a model from which not one copy comes can still tell who was in its training set. All three are lower for
members; `membership` turns them into AUC, true positives at 1 % false positives and a ROC curve. They need the model's
weights (PDFed's peers publish theirs) and know nothing of pictures it has never been shown near. With a reference
model they get stronger: `privacy.membership.judge_fit`, lab 08.
"""

import numpy as np
import torch

from fedgen_lab.memorization.denoiser import denoiser_of
from fedgen_lab.privacy.membership import judge_scores

T_LOSS, T_PIA, T_SIMA = (100, 300, 500, 700), 400, 200  # of 1,000 timesteps


def noise_loss(
    pipeline, pictures, conditions=None, timesteps=T_LOSS, draws=2, seed=0, batch_size=32
):
    """The mean of |eps(x_t, t) - noise|^2 over `draws` noises at each of `timesteps`: (N,), small for members.

    Yeom et al., arXiv 1709.01604; for diffusion models Matsumoto et al., arXiv 2302.03262. Costs draws * timesteps
    passes. Every picture meets the same noises. Misses: easy pictures, which every model denoises well, look like
    members.
    """
    if draws < 1 or not len(timesteps):
        raise ValueError(
            f"The loss needs at least one draw at one timestep; got draws={draws}, timesteps={timesteps}."
        )
    model, x, told = _ready(pipeline, pictures, conditions)
    generator, scores = torch.Generator().manual_seed(seed), np.zeros(len(x))
    for t in _timesteps(model, timesteps):
        left = model.alphas[t]
        for _ in range(draws):
            noise = torch.randn(x.shape[1:], generator=generator).to(x.device).expand_as(x)
            guess = _eps(model, left.sqrt() * x + (1 - left).sqrt() * noise, t, told, batch_size)
            scores += (guess - noise).square().flatten(1).mean(1).double().cpu().numpy()
    return scores / (draws * len(timesteps))


def pia(pipeline, pictures, conditions=None, timestep=T_PIA, p=4, batch_size=32):
    """Proximal initialisation: |eps(x_t, t) - e|_p, e = eps(x, 0), x_t noised by e itself: (N,), small for members.

    Kong et al., arXiv 2305.18355, p = 4 as in their code (there the sum of p-th powers, the same order). Two passes, no
    randomness. Misses: models whose guess at t = 0 is hardly trained, such as velocity models; SimA finds more there.
    """
    model, x, told = _ready(pipeline, pictures, conditions)
    (t,) = _timesteps(model, (timestep,))
    first, left = _eps(model, x, 0, told, batch_size), model.alphas[t]
    guess = _eps(model, left.sqrt() * x + (1 - left).sqrt() * first, t, told, batch_size)
    return _norm(guess - first, p)


def sima(pipeline, pictures, conditions=None, timestep=T_SIMA, p=2, batch_size=32):
    """|eps(x, t)|_p of the picture as it is, without noise: (N,), small for members. One pass.

    Rao et al., arXiv 2509.25003: the guess points away from a mean of the training pictures near x, so it is short at a
    training picture. Misses: weaker on latents than on pixels, as its authors found.
    """
    model, x, told = _ready(pipeline, pictures, conditions)
    (t,) = _timesteps(model, (timestep,))
    return _norm(_eps(model, x, t, told, batch_size), p)


ATTACKS = {"loss": noise_loss, "PIA": pia, "SimA": sima}


def membership(pipeline, members, others, attack="PIA", conditions=(None, None), **settings):
    """One attack as a `privacy.membership.Membership`: .auc, .tpr at 1 % false positives, .curve() for the ROC.

    members, others: pictures (`Pictures`, or (N, C, H, W)) that were trained on and that were not, of the same kind and
    without repeats. conditions: captions or labels of each side; `Pictures` bring their captions. Leave labels out
    (None) where a label of its own would give a member away. settings go to the attack.
    Raises ValueError for an unknown attack, or pictures that are not the model's.
    """
    if attack not in ATTACKS:
        raise ValueError(f"attack must be one of {', '.join(ATTACKS)}; got {attack!r}.")
    scores = []
    for name, pictures, told in zip(
        ("members", "others"), (members, others), conditions, strict=True
    ):
        try:
            scores.append(-ATTACKS[attack](pipeline, pictures, told, **settings))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return judge_scores(*scores)


# -- underneath ------------------------------------------------------------------------------------------------------


def _ready(pipeline, pictures, conditions):
    """(Denoiser, what it sees of the pictures, what it is told)."""
    model = denoiser_of(pipeline)
    x = model.inputs(pictures)
    if conditions is None:
        conditions = (
            pictures.captions
            if model.kind == "text" and hasattr(pictures, "captions")
            else [None] * len(x)
        )
    if len(conditions) != len(x):
        raise ValueError(
            f"One caption or label belongs to each picture; got {len(x)} pictures and {len(conditions)}."
        )
    return model, x, model.condition(conditions)


def _timesteps(model, timesteps):
    last = len(model.alphas) - 1
    if odd := [t for t in timesteps if not 0 <= int(t) <= last]:
        raise ValueError(f"A timestep must lie in 0..{last}; got {odd[0]!r}.")
    return [int(t) for t in timesteps]


def _eps(model, x, timestep, told, batch_size):
    parts = []
    for start in range(0, len(x), batch_size):
        part = slice(start, start + batch_size)
        parts.append(model.eps(x[part], timestep, None if told is None else told[part]))
    return torch.cat(parts)


def _norm(guess, p):
    return torch.linalg.vector_norm(guess.double().flatten(1), ord=p, dim=1).cpu().numpy()  # (N,)
