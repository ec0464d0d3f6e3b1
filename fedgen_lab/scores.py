"""How good are generated pictures? The lab's own classifier answers, in place of people and of Inception.

`Judge` says which object, colour, background and style a 32x32 picture shows. Its share of right answers over prompts
is the prompt fidelity, and its last hidden layer is the feature space in which torchmetrics computes KID (Binkowski et
al. 2018, arXiv:1801.01401) and FID (Heusel et al. 2017, arXiv:1706.08500). So KID and FID values here compare with each
other, not with published ones, which use Inception features. Precision and recall: Kynkaanniemi et al. 2019,
arXiv:1904.06991. Any net that reads pictures and has features can take the judge's place: the judges of
`fedgen_lab.split.judges` do. Taught in lab 02, used from lab 03 on.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from fedgen_lab.lean import import_torchmetrics
from fedgen_lab.pictures.sprites import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT_OBJECTS,
    HELD_OUT_STYLES,
    OBJECTS,
    STYLES,
)
from fedgen_lab.shipped import shipped

WORDS = {  # what each head of the judge chooses between: 24, 8, 8 and 11 words
    "object": OBJECTS + HELD_OUT_OBJECTS,
    "colour": tuple(COLOURS),
    "background": tuple(BACKGROUNDS),
    "style": STYLES + HELD_OUT_STYLES,
}
FEATURES = 128  # width of the feature space for KID and FID
BATCH = 32  # pictures at a time: no slower than 256, and 80 MB less at the peak


class Judge(nn.Module):
    """A small convolutional network with four heads: object, colour, background, style.

    forward: images (N, 3, 32, 32) float in [-1, 1] -> dict of logits, (N, 24), (N, 8), (N, 8), (N, 11).
    features: the same images -> (N, 128), the layer the heads read.
    read: pictures as they come, (N, 3, H, W) uint8 or float -> what forward and features take.
    """

    num_features = FEATURES

    def __init__(self, width: int = 24) -> None:
        super().__init__()

        def block(before: int, after: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()
            )

        self.width = width
        self.body = nn.Sequential(
            block(3, width),
            block(width, width),
            nn.MaxPool2d(2),  # (N, 24, 16, 16)
            block(width, 2 * width),
            block(2 * width, 2 * width),
            nn.MaxPool2d(2),  # (N, 48, 8, 8)
            block(2 * width, 4 * width),
            nn.MaxPool2d(2),
            nn.Flatten(),  # (N, 96 * 4 * 4)
            nn.Linear(4 * width * 16, FEATURES),
            nn.ReLU(),  # (N, 128)
        )
        self.heads = nn.ModuleDict(
            {name: nn.Linear(FEATURES, len(words)) for name, words in WORDS.items()}
        )

    def read(self, images: torch.Tensor) -> torch.Tensor:
        return _as_float(images)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.body(images)
        return {name: head(hidden) for name, head in self.heads.items()}


def load_judge(folder: str | Path | None = None) -> Judge:
    """The shipped judge (data/judge), ready to use. Raises FileNotFoundError when its weights are not there."""
    from safetensors.torch import load_file

    path = (Path(folder) if folder else shipped("judge")) / "judge.safetensors"
    if not path.exists():
        raise FileNotFoundError(f"no judge at {path}. Train it with: python data/train_judge.py")
    judge = Judge()
    judge.load_state_dict(load_file(path))  # half precision on disk, float32 in memory
    return judge.eval().requires_grad_(False)


@torch.no_grad()
def judged(images: torch.Tensor, judge: Judge | None = None) -> pd.DataFrame:
    """What the judge sees in (N, 3, 32, 32) pictures (uint8, or float in [-1, 1]): a table of N rows."""
    judge = judge or load_judge()
    logits = [judge(batch) for batch in _as_float(images).split(BATCH)]
    return pd.DataFrame(
        {
            name: [words[i] for i in torch.cat([out[name] for out in logits]).argmax(1).tolist()]
            for name, words in WORDS.items()
        }
    )


def prompt_fidelity(
    images: torch.Tensor, attributes: pd.DataFrame, judge: Judge | None = None
) -> dict[str, float]:
    """Share of pictures that show what was asked for: keys object, colour, background, style and all (four at once).

    images: (N, 3, 32, 32), uint8 or float in [-1, 1]; attributes: N rows with those four columns, as `prompts` returns.
    Raises ValueError when lengths differ, there is no picture, or a column is missing.
    """
    missing = [name for name in WORDS if name not in attributes.columns]
    if missing:
        raise ValueError(
            f"prompt fidelity needs the attributes {', '.join(WORDS)}; missing: {', '.join(missing)}. "
            "It judges sprites only; use kid() for other pictures."
        )
    if len(images) != len(attributes) or len(images) == 0:
        raise ValueError(
            f"one row of attributes belongs to each picture, and at least one picture is needed; "
            f"got {len(images)} pictures and {len(attributes)} rows."
        )
    seen = judged(images, judge)
    right = pd.DataFrame(
        {name: seen[name].to_numpy() == attributes[name].to_numpy() for name in WORDS}
    )
    return {name: float(right[name].mean()) for name in WORDS} | {
        "all": float(right.all(axis=1).mean())
    }


class FeatureSpace(nn.Module):
    """The judge's features as torchmetrics wants them: a module that takes pictures and knows its own width.

    forward: (N, C, H, W), uint8 or float in [-1, 1], as the judge reads them -> (N, num_features) of mean square 1.
    judge: None for the shipped one, or another module with its `read`, `features` and `num_features`.
    """

    def __init__(self, judge: nn.Module | None) -> None:
        super().__init__()
        self.judge = judge or load_judge()
        self.num_features = self.judge.num_features

    @torch.no_grad()
    def forward(
        self, images: torch.Tensor
    ) -> torch.Tensor:  # (N, C, H, W) -> (N, 128), or the width of the judge
        features = torch.cat(
            [self.judge.features(batch) for batch in self.judge.read(images).split(BATCH)]
        )
        return (
            F.normalize(features) * self.num_features**0.5
        )  # mean square 1: KID's cubic kernel stays readable


def kid(
    real: torch.Tensor,
    generated: torch.Tensor,
    judge: nn.Module | None = None,
    subset_size: int = 50,
    seed: int = 0,
) -> float:
    """Kernel Inception Distance in the judge's feature space: 0 for the same distribution, larger is worse.

    Unbiased, so it may come out a little below 0, and fit for few pictures: the mean over 100 random subsets.
    real, generated: (N, 3, H, W) and (M, 3, H, W), uint8 or float in [-1, 1].
    judge: the shipped one by default, or another module with its `read`, `features` and `num_features`.
    subset_size: pictures in a subset; seed: of the subsets.
    Raises ValueError when either set has fewer pictures than a subset, or for what `check_pictures` refuses. Binkowski
    et al. 2018, section 4.
    """
    if subset_size < 2:
        raise ValueError(f"subset_size must be at least 2; got {subset_size}.")
    real, generated = _both(
        real, generated, subset_size, "Give more pictures or a smaller subset_size."
    )
    import_torchmetrics()
    from torchmetrics.image.kid import KernelInceptionDistance

    with (
        warnings.catch_warnings(),
        torch.random.fork_rng(devices=[]),
    ):  # torchmetrics draws from torch's global seed
        warnings.simplefilter(
            "ignore"
        )  # it warns that features are kept in memory: 512 bytes a picture here
        torch.manual_seed(seed)
        metric = KernelInceptionDistance(
            feature=FeatureSpace(judge), subsets=100, subset_size=subset_size
        )
        metric.update(real, real=True)
        metric.update(generated, real=False)
        return float(metric.compute()[0])


def fid(real: torch.Tensor, generated: torch.Tensor, judge: nn.Module | None = None) -> float:
    """Frechet Inception Distance in the judge's feature space: 0 for the same pictures, larger is worse.

    Biased upwards for few pictures, so compare only sets of equal size, and prefer `kid` below some thousand pictures.
    real, generated: (N, 3, H, W) and (M, 3, H, W), uint8 or float in [-1, 1]; judge: as for `kid`.
    Raises ValueError for fewer pictures on a side than there are features, 128: their covariance would not have full
    rank; or for what `check_pictures` refuses. Heusel et al. 2017.
    """
    space = FeatureSpace(judge)
    remedy = "Give more pictures, or use kid(), which does with fewer."
    real, generated = _both(real, generated, space.num_features, remedy)
    import_torchmetrics()
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=space)
    metric.update(real, real=True)
    metric.update(generated, real=False)
    return float(metric.compute())


def precision_recall(
    real: torch.Tensor, generated: torch.Tensor, judge: nn.Module | None = None, neighbours: int = 5
) -> tuple[float, float]:
    """How many generated pictures lie among the real ones (precision), and real ones among the generated (recall).

    "Among" means: in the judge's feature space nearer to one of them than its `neighbours`-th own neighbour is.
    real, generated: as for `kid`. Raises ValueError for fewer than neighbours + 2 pictures on a side.
    """
    real, generated = _both(
        real, generated, neighbours + 2, "Give more pictures or fewer neighbours."
    )
    space = FeatureSpace(judge)
    real, generated = space(real).double(), space(generated).double()
    apart = torch.cdist(real, generated)  # (N, M)
    # The distance from each point to its last neighbour; + 1: the nearest of all is the picture itself.
    reach = [
        torch.cdist(points, points).kthvalue(neighbours + 1).values for points in (real, generated)
    ]
    among_real = apart < reach[0][:, None]
    among_generated = apart < reach[1][None, :]
    return float(among_real.any(dim=0).double().mean()), float(
        among_generated.any(dim=1).double().mean()
    )


def check_pictures(images: torch.Tensor, name: str = "pictures", most: float = 2.0) -> torch.Tensor:
    """`images` as a tensor (N, C, H, W), once its values are known to be those of pictures.

    Raises ValueError, naming the input, unless they are uint8, or floats that are finite and from -most to most: a
    decoder may exceed 1 a little, and 0..255 as floats would be taken for something else.
    """
    images = torch.as_tensor(images)
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise ValueError(
            f"{name} must be uint8 or float in [-1, 1]; got {images.dtype}. Convert them."
        )
    broken = int((~images.isfinite()).flatten(1).any(1).sum()) if images.numel() else 0
    if broken:
        raise ValueError(
            f"{broken} of the {len(images)} {name} hold NaN or infinity. Leave them out, or sample anew."
        )
    if images.numel() and images.abs().max() > most:
        raise ValueError(
            f"{name} given as floats must lie in [-1, 1]; got values up to {images.abs().max():.3g}. "
            "Give uint8, or scale them."
        )
    return images


def _both(
    real: torch.Tensor, generated: torch.Tensor, needed: int, remedy: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both sets as tensors, if there are enough of each and they hold pictures."""
    if min(len(real), len(generated)) < needed:
        raise ValueError(
            f"at least {needed} pictures are needed on each side; got {len(real)} real and "
            f"{len(generated)} generated ones. {remedy}"
        )
    most = 10.0  # noise may be on them
    return check_pictures(real, "real pictures", most), check_pictures(
        generated, "generated pictures", most
    )


def _as_float(images: torch.Tensor) -> torch.Tensor:
    """(N, 3, 32, 32), uint8 or float -> float in [-1, 1]. Other sizes are resized, since the judge reads 32x32."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"the lab's judge reads colour pictures (N, 3, H, W); got {tuple(images.shape)}. Give grey "
            "ones a judge of theirs: load_domain_judge('digits', 28) of fedgen_lab.split.judges, say."
        )
    images = images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images.float()
    if images.shape[-2:] != (32, 32):
        images = F.interpolate(
            images, (32, 32), mode="bilinear", antialias=True, align_corners=False
        )
    return images.clamp(-1, 1)
