"""A conditional GAN in five blocks, so that it can be cut: generator and discriminator at four sizes.

Block 0 (head) and block 4 (tail) stay with the client, block 2 with the server; blocks 1 and 3 go to either side. Labs
06 and 07. The reference size is the one of HuSCF-GAN's published code (arXiv 2507.12979), which has 2,221,925 and
816,737 parameters; the smaller ones keep its shape. Conditional DCGAN: Radford et al., arXiv 1511.06434.
"""

from dataclasses import dataclass

import torch
from torch import nn

NUM_BLOCKS = 5


@dataclass(frozen=True)
class Size:
    """How large the nets and the pictures are.

    generator: channels after its blocks 0 to 3; discriminator: the same. The tails end in `channels` and in one number.
    """

    name: str
    side: int  # pixels: 14, 28 or 32
    channels: int  # 1 grey, 3 colour
    generator: tuple
    discriminator: tuple
    num_labels: int = 10
    z_dim: int = 100

    @property
    def start(self):
        """The side of the generator's first feature map: a quarter of the picture, or half of a small one."""
        return {14: 7, 28: 7, 32: 8}[self.side]

    @property
    def picture(self):
        """The shape of one picture: (channels, side, side)."""
        return (self.channels, self.side, self.side)


SIZES = {
    size.name: size
    for size in (
        Size(
            "lab14", 14, 1, (64, 32, 32, 16), (16, 32, 32, 64)
        ),  # a sixtieth of the reference's work
        Size("lab28", 28, 1, (64, 32, 32, 16), (16, 32, 32, 64)),  # a quarter of its widths
        Size("reference", 28, 1, (256, 128, 128, 64), (64, 128, 128, 256)),
        Size("colour", 32, 3, (128, 64, 64, 32), (32, 64, 64, 128)),
    )
}


class GeneratorHead(nn.Module):
    """Block 0: noise and label to a first feature map. z (B, 100), labels (B,) -> (B, C, s, s)."""

    def __init__(self, size):
        super().__init__()
        width = size.generator[0] * size.start**2
        self.embedding = nn.Embedding(size.num_labels, size.num_labels)
        self.body = nn.Sequential(
            nn.Linear(size.z_dim + size.num_labels, width),
            nn.BatchNorm1d(width),
            nn.ReLU(inplace=True),
            nn.Unflatten(1, (size.generator[0], size.start, size.start)),
        )

    def forward(self, z, labels):
        return self.body(torch.cat([z, self.embedding(labels)], dim=1))


class DiscriminatorHead(nn.Module):
    """Block 0: a picture, and its label drawn as one more channel. x (B, C, H, W), labels (B,) -> (B, C', h, w)."""

    def __init__(self, size):
        super().__init__()
        self.embedding = nn.Embedding(size.num_labels, size.side**2)
        stride = 1 if size.side == 14 else 2
        self.body = nn.Sequential(*_down(size.channels + 1, size.discriminator[0], stride))

    def forward(self, pictures, labels):
        drawn = self.embedding(labels).view(-1, 1, *pictures.shape[-2:])  # (B, 1, H, W)
        return self.body(torch.cat([pictures, drawn], dim=1))


def new_generator(size, seed):
    """The generator's five blocks as an `nn.ModuleList`; the seed decides the weights (PyTorch's default draws)."""
    a, b, c, d = size.generator
    last = 1 if size.side == 14 else 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.ModuleList(
            [
                GeneratorHead(size),
                nn.Sequential(*_up(a, b, 2)),
                nn.Sequential(*_up(b, c, 1)),
                nn.Sequential(*_up(c, d, last)),
                nn.Sequential(nn.ConvTranspose2d(d, size.channels, 3, 1, 1), nn.Tanh()),
            ]
        )


def new_discriminator(size, seed):
    """The discriminator's five blocks. The last gives a logit (B,), whose sigmoid is the chance of being real."""
    a, b, c, d = size.discriminator
    last = (
        size.side if size.side == 14 else size.side // 2
    ) // 4  # what two more halvings leave: 3, 3 or 4
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.ModuleList(
            [
                DiscriminatorHead(size),
                nn.Sequential(*_down(a, b, 2)),
                nn.Sequential(*_down(b, c, 1)),
                nn.Sequential(*_down(c, d, 2)),
                nn.Sequential(nn.Flatten(), nn.Linear(d * last**2, 1), nn.Flatten(0)),
            ]
        )


def run_blocks(blocks, *inputs):
    """Send `inputs` through blocks, one after the other; only a head takes two."""
    out = blocks[0](*inputs)
    for block in blocks[1:]:
        out = block(out)
    return out


@torch.no_grad()
def generate(generator, labels, seed, batch_size=256):
    """Pictures of these labels from a whole generator: (N, C, H, W) in [-1, 1].

    The noise of picture i depends on the seed and its place only, so two models can be compared picture by picture.
    BatchNorm uses its running statistics (evaluation mode), as after training.
    """
    was_training, device = generator.training, next(generator.parameters()).device
    generator.eval()
    labels = torch.as_tensor(labels).long()
    linear = generator[0].body[0]
    z_dim = linear.in_features - generator[0].embedding.embedding_dim
    z = torch.randn(len(labels), z_dim, generator=torch.Generator().manual_seed(seed)).to(
        linear.weight.dtype
    )
    batches = zip(z.split(batch_size), labels.split(batch_size), strict=True)
    pictures = [run_blocks(generator, a.to(device), b.to(device)).cpu() for a, b in batches]
    generator.train(was_training)
    return torch.cat(pictures)


def _up(before, after, stride):
    kernel = 4 if stride == 2 else 3
    return (
        nn.ConvTranspose2d(before, after, kernel, stride, 1),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    )


def _down(before, after, stride):
    kernel = 4 if stride == 2 else 3
    return (
        nn.Conv2d(before, after, kernel, stride, 1),
        nn.BatchNorm2d(after),
        nn.LeakyReLU(0.2, inplace=True),
    )
