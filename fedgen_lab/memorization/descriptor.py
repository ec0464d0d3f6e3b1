"""Copies found by a copy detector: how similar are two pictures' descriptors?

Lab 09. A descriptor is a unit vector that a net was taught to keep while a picture is cropped, blurred or recoloured,
so it finds copies that no pixel distance finds. Somepalli et al. 2023 (arXiv 2212.03860 and 2305.20086) compare every
generated picture with the training set through SSCD (Pizzi et al. 2022, arXiv 2202.10261), a ResNet-50 of 100 MB. The
lab's encoder is the fingerprinter of `memorization.fingerprint`, which ships with the lab; theirs fits in its place.
"""

import numpy as np
import torch

from fedgen_lab.memorization.sets import embedded

SIMILAR = 0.5  # above it a copy: Somepalli's threshold, for SSCD; calibrate it for another encoder


def descriptors(pictures, encoder=None, name="pictures"):
    """Unit vectors (N, d), a float64 tensor, of pictures (N, C, H, W), uint8 or float in [-1, 1].

    encoder: None for the shipped fingerprinter; or as `features` of `sets.embedded`: a net with `read` and `features`,
        or any function from pictures to (N, d), such as SSCD's `torch.jit.load(file)` behind its own resizing.
    Raises ValueError for bad pictures, or if the encoder returns nothing but zeros for one.
    """
    if encoder is None:
        from fedgen_lab.memorization.fingerprint import load_fingerprinter

        encoder = load_fingerprinter()
    points = torch.from_numpy(embedded(pictures, encoder, name))
    length = points.norm(dim=1, keepdim=True)
    if not length.all():
        raise ValueError(
            f"the encoder returns zeros for {int((length == 0).sum())} of {len(points)} {name}. Leave them out."
        )
    return points / length


def descriptor_similarity(generated, training, encoder=None):
    """The greatest dot product of each generated picture's descriptor with a training picture's (N,), at most 1.

    Above `SIMILAR` = 0.5 means "copy" to Somepalli et al., who report the share of pictures above it; with SSCD. It is
    a property of the encoder: nearly all fresh sprites lie above it with the lab's own, so use `threshold_at`.
    Misses: what the encoder was not taught to overlook. It also finds style and composition, which nobody copied.
    Raises ValueError as `descriptors` does, or if the two sides' descriptors differ in length.
    """
    ours, theirs = (
        descriptors(generated, encoder, "generated"),
        descriptors(training, encoder, "training"),
    )
    if ours.shape[1] != theirs.shape[1]:
        raise ValueError(
            f"descriptors differ in length: {ours.shape[1]} and {theirs.shape[1]}. Use one encoder."
        )
    return torch.cat([(part @ theirs.T).amax(dim=1) for part in ours.split(512)]).numpy()


def threshold_at(held_out, training, encoder=None, level=0.01):
    """The similarity that at most a share `level` of held-out real pictures exceeds: a threshold for this encoder.

    Misses: copies no nearer than the nearest of fresh pictures. Raises ValueError for a level outside ]0, 1[, or fewer
    than 1 / level held-out pictures.
    """
    if not 0 < level < 1 or len(held_out) * level < 1:
        raise ValueError(
            f"level must lie between 0 and 1, with 1 / level held-out pictures or more; got {level} and "
            f"{len(held_out)}. Hold out more, or bear more false alarms."
        )
    return float(
        np.quantile(descriptor_similarity(held_out, training, encoder), 1 - level, method="higher")
    )


def share_above(similarity, threshold=SIMILAR):
    """Share of the pictures (N,) whose similarity exceeds the threshold: `sim_gt_05pc` in Somepalli's code, at 0.5."""
    similarity = np.asarray(similarity)
    if not similarity.size or np.isnan(similarity).any():
        raise ValueError("a share needs the similarities of at least one picture, without NaN.")
    return float((similarity > threshold).mean())
