"""PDFed's verifier: are these two pictures copies of each other? A net that compares them window by window.

Lab 09. The second stage of the Q-N score (arXiv 2409.18245, section 3, eq. 4). Every picture becomes 55 windows of its
feature map, from the whole map down to a quarter of its side, as in R-MAC (Tolias et al. 2016, arXiv 1511.05879), each
pooled to a unit vector by a generalised mean (GeM; Radenovic et al. 2018, arXiv 1711.02512). How alike each window of
one picture is to each of the other is a 55 x 55 matrix, and a small net reads a score from that. Trained by
`data/train_fingerprinter.py` on altered copies against the nearest other pictures, the fingerprinter frozen.
"""

import torch
import torch.nn.functional as F
from torch import nn

from fedgen_lab.memorization.fingerprint import Fingerprinter
from fedgen_lab.shipped import shipped

LEVELS = 5  # 1 + 4 + 9 + 16 + 25 = the paper's 55 windows
POWER = 3.0  # of the generalised mean: 1 is the mean, infinity the maximum
CONFIRMED = 0.8  # the paper's, "empirically"


def windows(side, levels=LEVELS):
    """The R-MAC windows of a square map, as the averages they take: (W, side * side), rows that sum to 1.

    On level l there are l x l windows, 2 side / (l + 1) wide, evenly spread. Raises ValueError for a map too small.
    """
    if side < 2 or levels < 1 or 2 * side // (levels + 1) < 1:
        raise ValueError(
            f"a map of {side} x {side} has no {levels} levels of windows; give a larger map."
        )
    rows = []
    for level in range(1, levels + 1):
        width = 2 * side // (level + 1)
        starts = torch.linspace(0, side - width, level).round().long().tolist()
        for top in starts:
            for left in starts:
                window = torch.zeros(side, side)
                window[top : top + width, left : left + width] = 1 / width**2
                rows.append(window.flatten())
    return torch.stack(rows)  # (W, side * side)


class Verifier(nn.Module):
    """Feature maps to window vectors, and the window vectors of two pictures to a score.

    regions: maps (N, D, side, side) -> unit vectors (N, W, D / 4).
    forward: regions of P pictures and of their P partners -> scores (P,) in [0, 1], the same both ways.
    """

    def __init__(self, channels=Fingerprinter.channels, side=8):
        super().__init__()
        averages = windows(side)
        self.register_buffer("averages", averages, persistent=False)
        self.reduce = nn.Conv2d(channels, channels // 4, 1)
        self.read = nn.Sequential(
            nn.Linear(len(averages) ** 2, 128),
            nn.ReLU(),
            nn.Linear(128, 32),
            nn.ReLU(),
            nn.Linear(32, 1),
        )

    def regions(self, maps):
        reduced = (
            self.reduce(maps).flatten(2).clamp(min=1e-3)
        )  # (N, D / 4, side * side), positive for the power
        pooled = (reduced**POWER @ self.averages.T) ** (1 / POWER)  # (N, D / 4, W)
        return F.normalize(pooled.transpose(1, 2), dim=2)  # (N, W, D / 4)

    def logits(self, regions, others):
        correlation = regions @ others.transpose(
            1, 2
        )  # (P, W, W); the other way round it is the transpose
        return (
            self.read(correlation.flatten(1)) + self.read(correlation.transpose(1, 2).flatten(1))
        ).squeeze(1)

    def forward(self, regions, others):
        return torch.sigmoid(self.logits(regions, others))  # eq. 4


def load_verifier():
    """The shipped verifier (data/fingerprinter), ready to use. Half precision on disk, float32 in memory."""
    from safetensors.torch import load_file

    net = Verifier()
    net.load_state_dict(load_file(shipped("fingerprinter") / "verifier.safetensors"))
    return net.eval().requires_grad_(False)


@torch.no_grad()
def described(images, fingerprinter, verifier, name="pictures"):
    """Fingerprints (N, 64) and window vectors (N, 55, 24) of pictures (N, 1 or 3, H, W): 5.5 kB a picture."""
    fingerprints, regions = [], []
    for part in images.split(64):
        maps = fingerprinter.maps(fingerprinter.read(part, name))
        fingerprints.append(fingerprinter.features_of_maps(maps))
        regions.append(verifier.regions(maps))
    return torch.cat(fingerprints), torch.cat(regions)
