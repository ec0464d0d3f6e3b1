"""How good are generated pictures? The lab's own classifier answers, in place of people and of Inception.

`Judge` says which object, colour, background and style a 32x32 picture shows. Its share of right answers over prompts
is the prompt fidelity, and its last hidden layer is the feature space in which torchmetrics computes KID (Binkowski et
al. 2018, arXiv:1801.01401) and FID (Heusel et al. 2017, arXiv:1706.08500). So KID and FID values here compare with each
other, not with published ones, which use Inception features. Precision and recall: Kynkaanniemi et al. 2019,
arXiv:1904.06991. Any net that reads pictures and has features can take the judge's place: the judges of
`fedgen_lab.split.judges` do. Taught in lab 02, used from lab 03 on.
"""

import warnings

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from fedgen_lab.lean import import_torchmetrics
from fedgen_lab.pictures.sprites import WORDS
from fedgen_lab.shipped import shipped

FEATURES = 128  # width of the feature space for KID and FID
NEIGHBOURS = 5  # how near counts as among, for precision and recall
DECODED = 2.0  # the largest value of a picture that a decoder made: it exceeds 1 a little
NOISY = 10.0  # and of a noisy one
BATCH = 32  # pictures at a time: no slower than 256, and 80 MB less at the peak


class Judge(nn.Module):
    """A small convolutional network with four heads, one for each kind of `WORDS`: object, colour, background, style.

    forward: images (N, 3, 32, 32) float in [-1, 1] -> dict of logits, (N, 24), (N, 8), (N, 8), (N, 11).
    features: the same images -> (N, 128), the layer the heads read.
    read: pictures as they come, (N, 3, H, W) uint8 or float -> what forward and features take.
    """

    num_features = FEATURES

    def __init__(self):
        super().__init__()

        def block(channels_in, channels_out):
            convolution = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
            return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), nn.ReLU())

        self.body = nn.Sequential(
            block(3, 24),
            block(24, 24),
            nn.MaxPool2d(2),  # (N, 24, 16, 16)
            block(24, 48),
            block(48, 48),
            nn.MaxPool2d(2),  # (N, 48, 8, 8)
            block(48, 96),
            nn.MaxPool2d(2),
            nn.Flatten(),  # (N, 96 * 4 * 4)
            nn.Linear(96 * 4 * 4, FEATURES),
            nn.ReLU(),  # (N, 128)
        )
        self.heads = nn.ModuleDict(
            {name: nn.Linear(FEATURES, len(words)) for name, words in WORDS.items()}
        )

    def read(self, images):
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

    def features(self, images):
        return self.body(images)

    def forward(self, images):
        hidden = self.body(images)
        return {name: head(hidden) for name, head in self.heads.items()}


def load_judge():
    """The shipped judge (data/judge), ready to use. Raises FileNotFoundError when its weights are not there."""
    from safetensors.torch import load_file

    path = shipped("judge") / "judge.safetensors"
    if not path.exists():
        raise FileNotFoundError(f"no judge at {path}. Train it with: python data/train_judge.py")
    judge = Judge()
    judge.load_state_dict(load_file(path))  # half precision on disk, float32 in memory
    return judge.eval().requires_grad_(False)


@torch.no_grad()
def judged(images, judge=None):
    """What the judge sees in (N, 3, 32, 32) pictures (uint8, or float in [-1, 1]): a table of N rows."""
    judge = judge or load_judge()
    logits = [judge(batch) for batch in judge.read(images).split(BATCH)]
    table = {}
    for name, words in WORDS.items():
        best = torch.cat([batch[name] for batch in logits]).argmax(1)  # (N,)
        table[name] = [words[number] for number in best.tolist()]
    return pd.DataFrame(table)


def prompt_fidelity(images, attributes, judge=None):
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
    right = judged(images, judge).eq(attributes[list(WORDS)].to_numpy())  # (N, 4)
    return right.mean().to_dict() | {"all": float(right.all(axis=1).mean())}


class FeatureSpace(nn.Module):
    """The judge's features as torchmetrics wants them: a module that takes pictures and knows its own width.

    forward: (N, C, H, W), uint8 or float in [-1, 1], as the judge reads them -> (N, num_features) of mean square 1.
    judge: None for the shipped one, or another module with its `read`, `features` and `num_features`.
    """

    def __init__(self, judge):
        super().__init__()
        self.judge = judge or load_judge()
        self.num_features = self.judge.num_features

    @torch.no_grad()
    def forward(self, images):
        batches = self.judge.read(images).split(BATCH)
        features = torch.cat([self.judge.features(batch) for batch in batches])  # (N, num_features)
        # Of mean square 1, so that KID's cubic kernel stays readable.
        return F.normalize(features) * self.num_features**0.5


def kid(real, generated, judge=None, subset_size=50, seed=0):
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

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        # It warns that features are kept in memory, 512 bytes a picture here, and draws from torch's global seed.
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        space = FeatureSpace(judge)
        metric = KernelInceptionDistance(feature=space, subsets=100, subset_size=subset_size)
        return float(_computed(metric, real, generated)[0])


def fid(real, generated, judge=None):
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

    return float(_computed(FrechetInceptionDistance(feature=space), real, generated))


def _computed(metric, real, generated):
    metric.update(real, real=True)
    metric.update(generated, real=False)
    return metric.compute()


def precision_recall(real, generated, judge=None):
    """How many generated pictures lie among the real ones (precision), and real ones among the generated (recall).

    "Among" means: in the judge's feature space nearer to one of them than its fifth neighbour is.
    real, generated: as for `kid`. Raises ValueError for fewer than 7 pictures on a side.
    """
    real, generated = _both(real, generated, NEIGHBOURS + 2, "Give more pictures.")
    space = FeatureSpace(judge)
    real, generated = space(real).double(), space(generated).double()
    distances = torch.cdist(real, generated)  # (N, M)
    among_real = distances < _reach(real)[:, None]
    among_generated = distances < _reach(generated)
    precision = among_real.any(dim=0).double().mean()
    recall = among_generated.any(dim=1).double().mean()
    return float(precision), float(recall)


def _reach(points):
    """How far each point's last neighbour is, (N,). The nearest of all is the point itself, hence + 1."""
    return torch.cdist(points, points).kthvalue(NEIGHBOURS + 1).values


def check_pictures(images, name="pictures", largest=DECODED):
    """`images` as a tensor (N, C, H, W), once its values are known to be those of pictures.

    Raises ValueError, naming the input, unless they are uint8, or floats that are finite and from -largest to
    largest: a decoder may exceed 1 a little, and 0..255 as floats would be taken for something else.
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
    if images.numel() and images.abs().max() > largest:
        raise ValueError(
            f"{name} given as floats must lie in [-1, 1]; got values up to {images.abs().max():.3g}. "
            "Give uint8, or scale them."
        )
    return images


def _both(real, generated, needed, remedy):
    """Both sets as tensors, if there are enough of each and they hold pictures."""
    if min(len(real), len(generated)) < needed:
        raise ValueError(
            f"at least {needed} pictures are needed on each side; got {len(real)} real and "
            f"{len(generated)} generated ones. {remedy}"
        )
    real = check_pictures(real, "real pictures", NOISY)
    return real, check_pictures(generated, "generated pictures", NOISY)
