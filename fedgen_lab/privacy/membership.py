"""Was this picture in the training data? Membership inference against a diffusion model's adapter.

Lab 08. A model fits what it was trained on a little better than what it wasn't. An attacker who holds the adapter and
a candidate picture with its caption asks how well the model denoises it, and by how much better than the base model,
which never saw it; that takes nothing but passes through the model. Loss threshold: Yeom et al., arXiv 1709.01604;
compared with a reference model: Watson et al., arXiv 2111.08440. t-error: Duan et al., SecMI, arXiv 2302.01316. Report
the true-positive rate at few false positives: Carlini et al., arXiv 2112.03570.
"""

from dataclasses import dataclass

import numpy as np
import torch

from fedgen_lab.lora.local import denoising_loss


@dataclass(frozen=True)
class Membership:
    """What one attack found. Scores are higher where the attacker believes "member"."""

    auc: float  # chance that a member scores above a non-member: 0.5 is guessing
    tpr: float  # share of members named when at most 1 % of the non-members are named too
    members: np.ndarray  # (M,) scores
    others: np.ndarray  # (N,) scores

    def curve(self):
        """The ROC curve: false-positive rates and true-positive rates, two arrays that rise from 0 to 1."""
        from sklearn.metrics import roc_curve

        false_positives, true_positives, _ = roc_curve(*_labelled(self.members, self.others))
        return false_positives, true_positives


def judge_scores(members, others, false_positive_rate=0.01):
    """A `Membership` from scores of members (M,) and of non-members (N,).

    With fewer than 1 / `false_positive_rate` non-members, not a single false positive is allowed.
    Raises ValueError when a side has no scores, or scores that are not finite.
    """
    from sklearn.metrics import roc_auc_score

    members, others = (np.asarray(scores, dtype=float) for scores in (members, others))
    if (
        not len(members)
        or not len(others)
        or not np.isfinite(np.concatenate([members, others])).all()
    ):
        raise ValueError(
            f"Both sides need finite scores; got {len(members)} members and {len(others)} non-members. "
            "Give pictures of both kinds, and a model whose loss is finite."
        )
    allowed = int(false_positive_rate * len(others))
    threshold = (
        np.sort(others)[::-1][allowed] if allowed < len(others) else -np.inf
    )  # at most `allowed` lie above it
    auc = roc_auc_score(*_labelled(members, others))
    return Membership(float(auc), float((members > threshold).mean()), members, others)


def losses(unet, schedule, encoded, draws=4, seed=0):
    """The denoising loss of each picture (N,), for the loss-threshold attack. Costs `draws` passes a picture."""
    return denoising_loss(unet, schedule, encoded, seed, draws).double().numpy()


@torch.no_grad()
def t_errors(unet, schedule, encoded, timestep=150, stride=30, batch_size=32):
    """The t-error of each picture (N,): how far one deterministic step there and back misses (SecMI).

    The picture is noised to `timestep` by the model itself, in DDIM steps of `stride`; then one step further and back.
    A model that knows the picture comes back closer. Costs timestep / stride + 2 passes a picture. Raises ValueError
    unless stride divides timestep and timestep + stride lies within the schedule.
    """
    last = schedule.config.num_train_timesteps
    if timestep % stride or not 0 < timestep + stride < last:
        raise ValueError(
            f"stride must divide timestep, and their sum must lie below {last}; got timestep {timestep} and "
            f"stride {stride}."
        )
    errors = []
    for start in range(0, len(encoded), batch_size):
        latents, text = (of[start : start + batch_size] for of in (encoded.latents, encoded.text))
        for t in range(0, timestep, stride):
            latents = _ddim(unet, schedule, latents, text, t, t + stride)
        there = _ddim(unet, schedule, latents, text, timestep, timestep + stride)
        back = _ddim(unet, schedule, there, text, timestep + stride, timestep)
        errors.append((back - latents).square().mean(dim=(1, 2, 3)))  # (B,)
    return torch.cat(errors).double().cpu().numpy()


def attack(unet, schedule, members, others, error=losses, before=None, **settings):
    """Membership inference against the model in `unet`; returns a `Membership`.

    members, others: `Encoded` pictures that were trained on and that were not, of the same kinds. error: `losses` or
    `t_errors`; settings go to it. before: the errors of members and others under the base model, as `errors_of` gives
    them. Then a picture's score is the logarithm of before / after, by which factor it fits better than it did, and an
    easy picture is not taken for a member. Without `before`, the score is minus the error.
    """
    after = errors_of(unet, schedule, members, others, error, **settings)
    if before is None:
        return judge_scores(*(-errors for errors in after))
    return judge_scores(
        *(np.log(first / errors) for first, errors in zip(before, after, strict=True))
    )


def errors_of(unet, schedule, members, others, error=losses, **settings):
    """The errors of members (M,) and of others (N,), two arrays. Inside `without_adapter`: those of the base model."""
    return tuple(error(unet, schedule, pictures, **settings) for pictures in (members, others))


class without_adapter:  # noqa: N801 (reads as a sentence: `with without_adapter(unet):`)
    """A context in which `unet` computes what the base model does, although an adapter is on it."""

    def __init__(self, unet):
        self.unet = unet

    def __enter__(self):
        self.unet.disable_adapters()

    def __exit__(self, *error):
        self.unet.enable_adapters()


def _ddim(unet, schedule, latents, text, now, then):
    """One deterministic DDIM step (Song et al., arXiv 2010.02502, eq. 13) from timestep `now` to `then`, either way."""
    guess = unet(
        latents, torch.full((len(latents),), now, device=latents.device), encoder_hidden_states=text
    ).sample
    a_now, a_then = schedule.alphas_cumprod[now], schedule.alphas_cumprod[then]
    if schedule.config.prediction_type == "v_prediction":
        clean = a_now.sqrt() * latents - (1 - a_now).sqrt() * guess
        noise = a_now.sqrt() * guess + (1 - a_now).sqrt() * latents
    else:
        clean = (latents - (1 - a_now).sqrt() * guess) / a_now.sqrt()
        noise = guess
    return a_then.sqrt() * clean + (1 - a_then).sqrt() * noise


def _labelled(members, others):
    """(truth, scores) as scikit-learn wants them."""
    return np.r_[np.ones(len(members)), np.zeros(len(others))], np.concatenate([members, others])
