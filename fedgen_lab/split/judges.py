"""A judge for every domain: a small classifier that says which of its ten labels a picture shows.

Labs 06 and 07. Its answers give the image score, its last hidden layer the space of KID, FID, precision and recall. The
judges of the four offline domains ship with the lab (`data/domain-judges`, made by `data/train_domain_judges.py`); any
other domain's is trained when first asked for, on its training part, and kept in memory. HuSCF-GAN's published code has
judges of its own for the MNIST family (arXiv 2507.12979): image scores of the two are not comparable.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import nn

from fedgen_lab.pictures.domains import load_domain
from fedgen_lab.scores import WORDS, load_judge
from fedgen_lab.shipped import shipped

SIDES = (14, 28, 32)
SHIPPED = ("digits", "letters", "garments", "runes")  # grey, at 14x14 and 28x28
TRAINING_PICTURES = 10_000  # of a larger domain these are drawn
STEPS = 600  # twenty to thirty seconds of one core; on MNIST 98 % right


class DomainJudge(nn.Module):
    """Names the label of a picture. forward: (N, C, side, side) float in [-1, 1] -> logits (N, 10).

    features: the same -> (N, 64), the layer before; read: pictures as they come, uint8 or of another size.
    """

    num_features = 64

    def __init__(self, channels=1, side=28, num_labels=10):
        super().__init__()

        def block(before, after):
            return (
                nn.Conv2d(before, after, 3, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            )

        self.channels, self.side = channels, side
        halvings = 2 if side == 14 else 3
        self.body = nn.Sequential(
            *block(channels, 16),
            *[nn.MaxPool2d(2)] * (halvings - 2),  # (N, 16, 14, 14), or 16x16 of 32x32
            *block(16, 32),
            nn.MaxPool2d(2),  # (N, 32, 7, 7)
            *block(32, 48),
            nn.MaxPool2d(2),
            nn.Flatten(),  # (N, 48 * 3 * 3)
            nn.Linear(48 * (side >> halvings) ** 2, self.num_features),
            nn.ReLU(),  # (N, 64)
        )
        self.head = nn.Linear(self.num_features, num_labels)

    def read(self, images):
        if images.ndim != 4 or images.shape[1] != self.channels:
            wanted = f"(N, {self.channels}, H, W)"
            raise ValueError(
                f"this judge reads pictures of the shape {wanted}; got {tuple(images.shape)}."
            )
        images = images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images.float()
        if images.shape[-1] != self.side:
            images = F.interpolate(
                images, (self.side,) * 2, mode="bilinear", antialias=True, align_corners=False
            )
        return images.clamp(-1, 1)

    def features(self, images):
        return self.body(images)

    def forward(self, images):
        return self.head(self.body(images))


class SpriteJudge(nn.Module):
    """The lab's shipped sprite judge, asked for some objects only: logits (N, len(objects)) of 32x32 RGB pictures."""

    def __init__(self, objects):
        super().__init__()
        self.judge, self.rows = load_judge(), [WORDS["object"].index(name) for name in objects]
        self.num_features, self.read, self.features = (
            self.judge.num_features,
            self.judge.read,
            self.judge.features,
        )

    def forward(self, images):
        return self.judge(images)["object"][:, self.rows]


def judge_for(domain):
    """The judge of a `Domain` (its name, labels and picture size count, not its pictures), ready to use.

    Shipped, or the sprite judge, or else trained now with a progress bar on the training part of the domain of that
    name; the same judge comes back the next time.
    """
    return _judge_for(domain.name, tuple(domain.label_names), *domain.images.shape[1:3])


@lru_cache(maxsize=16)
def _judge_for(name, label_names, channels, side):
    if channels == 3 and set(label_names) <= set(WORDS["object"]):
        return SpriteJudge(label_names).eval()
    if name in SHIPPED and channels == 1 and side in (14, 28):
        return load_domain_judge(name, side)
    if side not in SIDES:
        raise ValueError(
            f"a judge reads pictures of {', '.join(map(str, SIDES))} pixels a side; got {side}."
        )
    return train_judge(load_domain(name, side=side))


def load_domain_judge(name, side):
    """The shipped judge of an offline domain at 14 or 28 pixels. Raises FileNotFoundError when it is not there."""
    from safetensors.torch import load_file

    path = shipped("domain-judges") / f"{name}-{side}.safetensors"
    if not path.exists():
        raise FileNotFoundError(
            f"no judge at {path}. Train it with: python data/train_domain_judges.py"
        )
    judge = DomainJudge(1, side)
    judge.load_state_dict(load_file(path))  # half precision on disk, float32 in memory
    return judge.eval().requires_grad_(False)


def train_judge(domain, seed=0, steps=STEPS, batch_size=64):
    """A judge trained on a `Domain`, in steps with a progress bar; one seed decides everything.

    Pictures are shifted by a pixel and made a little noisy, so that small faults of a generated one don't distract it.
    """
    from tqdm.auto import tqdm

    rng = torch.Generator().manual_seed(seed)
    domain = domain.take(torch.randperm(len(domain), generator=rng)[:TRAINING_PICTURES])
    pictures, labels = domain.as_tensor(), domain.labels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = DomainJudge(*pictures.shape[1:3], num_labels=len(domain.label_names))
    adam = torch.optim.AdamW(judge.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, 3e-3, total_steps=steps, pct_start=0.1)
    for _ in tqdm(range(steps), desc=f"judge of {domain.name}", unit="step"):
        rows = torch.randint(len(labels), (batch_size,), generator=rng)
        top, left = torch.randint(3, (2,), generator=rng).tolist()
        side = pictures.shape[-1]
        images = F.pad(pictures[rows], (1, 1, 1, 1), mode="replicate")[
            ..., top : top + side, left : left + side
        ]
        images = images + 0.1 * torch.randn(images.shape, generator=rng)
        loss = F.cross_entropy(judge(images), labels[rows])
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
    return judge.eval().requires_grad_(False)


@torch.no_grad()
def probabilities(pictures, judge):
    """What the judge believes about pictures (N, C, H, W), uint8 or float in [-1, 1]: (N, 10), rows of sum 1."""
    return torch.cat(
        [judge(judge.read(batch)).double().softmax(dim=1) for batch in pictures.split(256)]
    )
