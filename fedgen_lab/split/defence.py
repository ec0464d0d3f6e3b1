"""What a client can do to its smashed data before it leaves: noise, 8 bits a number, and a head taught to tell less.

Smashed data are the activations at a cut. Lab 06 shows what each defence does to the attacks of
`fedgen_lab.privacy.smashed`; none of them is a proof. Distance correlation: Székely, Rizzo and Bakirov, Annals of
Statistics 35(6), 2007; as a penalty on smashed data ("NoPeek"): Vepakomma et al., arXiv 2008.09161.
"""

import torch
import torch.nn.functional as F


def protect(activation, noise=0.0, bits=32, generator=None):
    """One client's activation (B, ...) as the server will receive it: noise first, then rounding to `bits`.

    noise: standard deviation of what is added, in units of the activation's own; bits: 32 (as it is) or 8. The noise
    is drawn from the torch `generator`, on the CPU. Nothing here has a gradient: the client takes the server's gradient
    at what it received as the gradient at its activation (a straight-through estimate). Raises ValueError for other
    `bits`, a negative `noise`, noise without a generator, and for 8 bits of what isn't finite.
    """
    if bits not in (8, 32):
        raise ValueError(f"bits must be 8 or 32; got {bits!r}.")
    if not 0 <= noise < float("inf"):
        raise ValueError(f"noise must be a number of at least 0; got {noise!r}.")
    sent = activation.detach()
    if noise:
        if generator is None:
            raise ValueError(
                "noise needs a torch.Generator, so that the same seed sends the same numbers."
            )
        drawn = torch.randn(sent.shape, generator=generator, dtype=sent.dtype).to(sent.device)
        sent = sent + noise * sent.std(correction=0) * drawn
    return from_bytes(*to_bytes(sent), dtype=sent.dtype) if bits == 8 else sent


def to_bytes(activation):
    """The wire form in 8 bits: codes (uint8, same shape), and the two floats `low` and `step` to read them with.

    256 levels from the smallest to the largest number of this tensor. Raises ValueError when a number isn't finite.
    """
    low, high = (float(end) for end in activation.detach().aminmax())
    step = (high - low) / 255
    if not abs(step) < float("inf"):
        raise ValueError(
            f"An activation from {low} to {high} can't be sent in 8 bits; lower the learning rate."
        )
    codes = ((activation.detach() - low) / (step or 1.0)).round().clamp(0, 255)
    return codes.to(torch.uint8), low, step


def from_bytes(codes, low, step, dtype=torch.float32):
    """What the receiver makes of `to_bytes`: off by at most half a step."""
    return codes.to(dtype) * step + low


def distance_correlation(x, a):
    """How much `a` tells about `x`, from 0 to 1; x (..., B, F), a (..., B, G) -> (...). It has a gradient.

    Every pair in the batch has a distance in x and one in a; this is the correlation of the two, after the means of
    rows and columns are taken off. In a whole population 0 means independent. In a small batch of long vectors it is
    far above 0 even then, so compare values, and trust the attacks. A constant x or a gives 0.
    """
    x, a = _centred_distances(x.to(a.dtype)), _centred_distances(a)  # (..., B, B)
    covariance = (x * a).mean((-2, -1))
    spread = (x * x).mean((-2, -1)) * (a * a).mean((-2, -1))
    tiny = torch.finfo(a.dtype).tiny ** 0.5  # keeps 0/0, and the root's slope at 0, finite
    return (covariance.clamp_min(tiny) / spread.clamp_min(tiny).sqrt()).sqrt() * (spread > tiny)


def leakage_penalty(activation, labels, pictures=None, num_labels=10):
    """What a client adds to its loss, times the scenario's `decorrelation`, wherever it sends a head's activation.

    activation (..., B, C, h, w), labels (..., B), pictures (..., B, C, H, W) or None -> (...): the distance correlation
    of what is sent with the labels, plus that with the pictures where there are any (the discriminator's side).
    """
    sent = activation.flatten(-3)  # (..., B, F)
    penalty = distance_correlation(F.one_hot(labels, num_labels), sent)
    return (
        penalty if pictures is None else penalty + distance_correlation(pictures.flatten(-3), sent)
    )


def _centred_distances(vectors):
    """Distances between all pairs of rows (..., B, F), less the means of row and column, plus the mean of all."""
    exact = "donot_use_mm_for_euclid_dist"  # the fast way loses half the digits, and its gradient at 0 is none
    distances = torch.cdist(vectors, vectors, compute_mode=exact)  # (..., B, B)
    rows, columns = distances.mean(-1, keepdim=True), distances.mean(-2, keepdim=True)
    return distances - rows - columns + distances.mean((-2, -1), keepdim=True)
