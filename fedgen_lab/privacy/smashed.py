"""What the server of a U-shaped split learns from smashed data: the labels, and the pictures themselves.

Lab 06: "no labels shared" is not "no labels learned". No picture and no label is ever sent. But the server deals out
the first weights of every client's head and averages the heads each round, so it can run such a head itself, on inputs
whose answers it knows, and train a reader on what comes out (a shadow attack). What it knows beforehand:

- the weights of the client's blocks, exactly as at the start of a round (later in it they drift a little);
- how smashed data are protected, so it protects its own in the same way;
- for the discriminator's side, pictures of another domain (`auxiliary`), without their labels: it makes labels up.

It knows no picture, no label and no z of the client under attack. The fakes need no attack: where block 3 is the
server's, it holds all but the tail, whose weights it knows too. Related: SDAR, arXiv 2310.10483; UnSplit, arXiv
2108.09033. Defences: `fedgen_lab.split.defence`.
"""

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from fedgen_lab.split.defence import protect
from fedgen_lab.split.nets import run_blocks

SHADOWS = 64  # examples in a batch of the attacker
READER_RATE = 5e-3  # Adam's learning rate for the attacker's nets, falling to 0 along half a cosine


class Leak(NamedTuple):
    """What one attack learned. N secret pictures; `pictures` and `rebuilt` are in [-1, 1]."""

    depth: int  # blocks of each net on the client before the cut: 1 or 2 in HuSCF-GAN
    label_accuracy: dict  # "generator", "discriminator": share of labels read rightly; chance 0.1
    mse: float  # of the rebuilt pictures
    baseline_mse: float  # of the secret pictures' own mean, the best answer without smashed data
    pictures: torch.Tensor  # (N, C, H, W) the secret ones
    rebuilt: torch.Tensor  # (N, C, H, W) from the discriminator's side
    labels: torch.Tensor  # (N,) the secret ones
    guessed: torch.Tensor  # (N,) from the discriminator's side


def smash(blocks, inputs, labels, draws, noise=0.0, bits=32, batch_size=16):
    """What the server receives of `inputs` (N, ...) and `labels` (N,) through a client's first blocks: (N, C, h, w).

    The client sends batches of `batch_size`; each is normalised by its own statistics, as in training, and protected as
    one message. `draws`: a torch.Generator for the noise. BatchNorm notes what it sees, so hand over copied blocks.
    """
    batches = zip(inputs.split(batch_size), labels.split(batch_size), strict=True)
    with torch.no_grad():
        return torch.cat(
            [protect(run_blocks(blocks, x, y), noise, bits, draws) for x, y in batches]
        )


def infer_labels(received, shadow_batch, num_labels, steps, seed, on_step):
    """Guess the labels (N,) behind `received` smashed data (N, C, h, w), having seen none of them.

    shadow_batch() -> (smashed data, labels, ...) that the attacker made itself. A small classifier learns from `steps`
    such batches. on_step(step): called after each; False ends the training early. Deterministic for a seed.
    """
    features = received[0].numel()
    with torch.random.fork_rng(devices=[]):  # torch's own draws stay as they were
        torch.manual_seed(seed)
        classifier = nn.Sequential(
            nn.Flatten(),
            nn.BatchNorm1d(features),
            nn.Linear(features, 64),
            nn.ReLU(),
            nn.Linear(64, num_labels),
        )
    scores = _read_off(received, classifier, shadow_batch, 1, F.cross_entropy, steps, on_step)
    return scores.argmax(1)


def reconstruct(received, shadow_batch, picture_shape, steps, seed, on_step):
    """Rebuild the pictures (N, C, H, W) behind `received` smashed data (N, C', h, w), having seen none of them.

    shadow_batch() -> (smashed data, ..., pictures of another domain). A small decoder learns from `steps` such batches
    to turn one into the other. on_step and seed: as in `infer_labels`.

    How well that goes depends on the other domain, so a large error with one proves nothing. MNIST behind one block of
    the reference nets, 250 steps: squared error 0.0095 with runes, 0.083 with Fashion-MNIST and 0.256 with notMNIST; of
    the mean picture 0.263.
    """
    channels, side = picture_shape[0], picture_shape[-1]
    small = received.shape[-1]
    stride = side // small
    # One step up to the picture's side, whatever the cut's is.
    kernel = side - (small - 1) * stride + 2
    # No BatchNorm in here: it would hold the statistics of the other domain against the client's.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = nn.Sequential(
            nn.ConvTranspose2d(received.shape[1], 32, kernel, stride, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(32, channels, 3, padding=1),
        )
    rebuilt = _read_off(received, decoder, shadow_batch, -1, F.mse_loss, steps, on_step)
    return rebuilt.clamp(-1, 1)


def attack(
    generator,
    discriminator,
    pictures,
    labels,
    auxiliary,
    depth=1,
    batch_size=16,
    steps=250,
    seed=0,
    on_step=None,
    **protection,
):
    """All three attacks on one client, with its blocks as the server knows them. Returns a `Leak`.

    generator, discriminator: five blocks each; the first `depth` (1 to 4) are the client's. pictures (N, C, H, W) and
    labels (N,): the client's secrets, which only make the smashed data and grade the attacks. auxiliary (M, C, H, W):
    pictures of another domain, without labels. batch_size and protection (noise, bits): see `smash`. on_step(sentence)
    is called as the attack goes on; where it returns False, what was learned so far is used. Raises ValueError for
    another `depth`, or pictures of unequal shapes.
    """
    if depth not in (1, 2, 3, 4):
        raise ValueError(
            f"depth must be 1 to 4 blocks on the client; got {depth!r}. HuSCF-GAN allows 1 and 2."
        )
    if len(pictures) < 2 or pictures.shape[1:] != auxiliary.shape[1:]:
        raise ValueError(
            f"The attack needs two secret pictures or more, and others of the same shape; got {tuple(pictures.shape)} "
            f"and {tuple(auxiliary.shape)}. Resize one of the domains."
        )

    # What the server knows: the client's first blocks, and what goes into them.
    g_head, d_head = (copy.deepcopy(net[:depth]).train() for net in (generator, discriminator))
    embedding = generator[0].embedding
    num_labels = embedding.num_embeddings
    z_dim = generator[0].body[0].in_features - embedding.embedding_dim
    wire = {"batch_size": batch_size, **protection}

    # What the client sends. Its last batch may be a single picture, which BatchNorm can't take: leave it out.
    number = len(pictures) - (len(pictures) % batch_size == 1)
    pictures, labels = pictures[:number], labels[:number]
    secret = torch.Generator().manual_seed(seed + 1)  # the client's z and noise
    g_sent = smash(g_head, torch.randn(number, z_dim, generator=secret), labels, secret, **wire)
    d_sent = smash(d_head, pictures, labels, secret, **wire)

    # Smashed data that the server makes itself, with labels and pictures that it knows.
    draws = torch.Generator().manual_seed(seed)

    def made_up_labels():
        return torch.randint(num_labels, (SHADOWS,), generator=draws)

    def g_shadows():
        made_up = made_up_labels()
        z = torch.randn(SHADOWS, z_dim, generator=draws)
        return smash(g_head, z, made_up, draws, **wire), made_up

    def d_shadows():
        shadows = auxiliary[torch.randint(len(auxiliary), (SHADOWS,), generator=draws)]
        made_up = made_up_labels()
        return smash(d_head, shadows, made_up, draws, **wire), made_up, shadows

    # Three readers learn from these, and read what the client sent.
    def progress(title):
        return lambda step: on_step is None or on_step(f"{title}, step {step} of {steps}.")

    from_g = infer_labels(
        g_sent, g_shadows, num_labels, steps, seed, progress("Labels, generator's side")
    )
    from_d = infer_labels(
        d_sent, d_shadows, num_labels, steps, seed, progress("Labels, discriminator's side")
    )
    rebuilt = reconstruct(
        d_sent, d_shadows, pictures.shape[1:], steps, seed, progress("Rebuilding the pictures")
    )
    return Leak(
        depth=depth,
        label_accuracy={
            "generator": float((from_g == labels).float().mean()),
            "discriminator": float((from_d == labels).float().mean()),
        },
        mse=float(F.mse_loss(rebuilt, pictures)),
        baseline_mse=float((pictures - pictures.mean(0)).square().mean()),
        pictures=pictures,
        rebuilt=rebuilt,
        labels=labels,
        guessed=from_d,
    )


def _read_off(received, reader, shadow_batch, place, loss, steps, on_step):
    """What a net makes of `received`, taught to turn smashed data into what stands at `place` of a shadow batch."""
    adam = torch.optim.Adam(reader.parameters(), lr=READER_RATE)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for step in range(1, steps + 1):
        batch = shadow_batch()
        adam.zero_grad()
        loss(reader(batch[0]), batch[place]).backward()
        adam.step()
        falling.step()
        if on_step(step) is False:
            break
    reader.eval()
    with torch.no_grad():
        return torch.cat([reader(batch) for batch in received.split(256)])
