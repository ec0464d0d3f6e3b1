"""PDFed's fingerprinter: a net that gives a picture and its altered copies one vector, and other pictures other ones.

Lab 09. The first stage of the Q-N score of PDFed (Balan et al. 2024, arXiv 2409.18245, section 3), which finds the
training pictures that a generated one might be a copy of; the verifier (`memorization.verifier`) then decides. Theirs
is a ResNet-50 with 256 numbers a picture (Black et al. 2021, Deep Image Comparator); ours is of lab size, 64 numbers
and 0.3 M weights, trained with the same loss (eq. 1) by `data/train_fingerprinter.py` on drawn sprites, digits,
letters, garments and runes.
"""

import torch
import torch.nn.functional as F
from torch import nn

from fedgen_lab.memorization.distance import as_unit
from fedgen_lab.shipped import shipped

SIDE = 32  # pixels of what the net reads; other sizes are resized
TEMPERATURE = 0.1  # lambda of eq. 1, which the paper doesn't give


class Fingerprinter(nn.Module):
    """Pictures to fingerprints. It has a judge's `read`, `features` and `num_features`, so scores can use it as one.

    read: pictures (N, 1 or 3, H, W), uint8 or float in [-1, 1] -> (N, 3, 32, 32) float in [-1, 1], grey repeated.
    maps: the same -> (N, 96, 8, 8), which the verifier compares; features: unit vectors (N, 64).
    """

    num_features, channels = 64, 96

    def __init__(self):
        super().__init__()

        def block(before, after, kernel=3, stride=1):
            conv = nn.Conv2d(before, after, kernel, stride, padding=1, bias=False)
            return conv, nn.BatchNorm2d(after), nn.ReLU()

        self.body = nn.Sequential(
            *block(3, 32, 4, 2),
            *block(32, 48),  # (N, 48, 16, 16)
            *block(48, 96, 4, 2),
            *block(96, self.channels),  # (N, 96, 8, 8)
        )
        self.head = nn.Linear(self.channels * 16, self.num_features)

    def read(self, images, name="pictures"):
        images = as_unit(images, name) * 2 - 1
        if images.shape[-2:] != (SIDE, SIDE):
            images = F.interpolate(
                images, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False
            )
        return images.expand(-1, 3, -1, -1)  # (N, 3, 32, 32)

    def maps(self, images):
        return self.body(images)

    def features_of_maps(self, maps):
        return F.normalize(
            self.head(F.avg_pool2d(maps, 2).flatten(1))
        )  # (N, 96, 8, 8) -> (N, 96 * 4 * 4) -> (N, 64)

    def features(self, images):
        return self.features_of_maps(self.maps(images))


def load_fingerprinter():
    """The shipped fingerprinter (data/fingerprinter), ready to use. Half precision on disk, float32 in memory."""
    from safetensors.torch import load_file

    net = Fingerprinter()
    net.load_state_dict(load_file(shipped("fingerprinter") / "fingerprinter.safetensors"))
    return net.eval().requires_grad_(False)


def contrastive_loss(fingerprints, of_copies, temperature=TEMPERATURE):
    """Eq. 1 of the paper: every picture shall be nearer to its own altered copy than to the other pictures.

    fingerprints, of_copies: (N, D), of N pictures and of one altered copy of each; d(a, b) = exp(cos(a, b) / lambda).
    Returns the mean of -log( d(i, copy of i) / (d(i, copy of i) + sum of d(i, j) over j != i) ), a scalar.
    The paper's sum over i is a mean here, so that a batch's size doesn't change the step.
    Raises ValueError for fewer than two pictures, or shapes that differ.
    """
    if fingerprints.shape != of_copies.shape or fingerprints.ndim != 2 or len(fingerprints) < 2:
        raise ValueError(
            "the contrastive loss takes two matrices of the same shape with at least two rows; got "
            f"{tuple(fingerprints.shape)} and {tuple(of_copies.shape)}. Give one altered copy of each picture."
        )
    fingerprints, of_copies = F.normalize(fingerprints), F.normalize(of_copies)
    others = fingerprints @ fingerprints.T / temperature  # (N, N)
    own = (fingerprints * of_copies).sum(1) / temperature  # (N,)
    logits = others.where(
        ~torch.eye(len(own), dtype=torch.bool), own[:, None]
    )  # own copy on the diagonal
    return F.cross_entropy(logits, torch.arange(len(own)))


def altered(images, rng, strength=1.0):
    """Copies as the fingerprinter shall forgive them: noise, blur, contrast, brightness, a small shift and scaling.

    images: (N, C, H, W) float in [-1, 1]; rng: a torch Generator; strength 0 leaves the pictures as they are. Every
    picture draws its own strength below that, so weak changes are seen too. Black et al. 2021 name noise,
    recompression, padding, warping and changes of size as changes that a copy may have. A mirror image is none of them:
    that is how Q-N can be beaten (lab 09).
    """
    number, shape = len(images), (len(images), 1, 1, 1)
    share = strength * torch.rand(shape, generator=rng)

    def draw(low, high):
        return low + (high - low) * torch.rand(shape, generator=rng)

    scale = 1 + share * draw(-0.04, 0.04)
    shift = (share * torch.cat([draw(-0.08, 0.08), draw(-0.08, 0.08)], 1)).flatten(
        1
    )  # 0.08: 1.3 of 32 pixels
    moves = (torch.rand(number, generator=rng) < 0.5).float()  # every other copy keeps its place
    theta = torch.zeros(number, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 + moves * (scale.flatten() - 1)
    theta[:, :, 2] = moves[:, None] * shift
    grid = F.affine_grid(theta, images.shape, align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    images = images + share * draw(-0.5, 0.7).clamp(min=0) * (blurred - images)
    middle = images.mean((1, 2, 3), keepdim=True)
    images = middle + (images - middle) * (1 + share * draw(-0.3, 0.3)) + share * draw(-0.2, 0.2)
    noise = torch.randn(images.shape, generator=rng) * draw(-0.2, 0.25).clamp(
        min=0
    )  # sigma in units of [-1, 1]
    return (images + share * noise).clamp(-1, 1)
