"""PDFed's detector experiment at lab size: a pool of fresh pictures, more and more replaced by training pictures.

    python tests/benchmarks/bench_detector.py              # about a minute of one core

Accuracy is the mean over six shares of copies, 0 to 1; the paper reports 0.9894 on 100,000 pictures of CIFAR-10. The
columns say at half copies what is found of exact copies and of altered ones, and which share of fresh pictures is
called a copy. MNIST and Fashion-MNIST, which no net here was trained on, where ../shared/data has them.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from fedgen_lab.memorization.qn import confirmed, replaced_pool
from fedgen_lab.pictures.domains import OFFLINE, load_domain
from fedgen_lab.pictures.sprites import OBJECTS, draw_sprites

PUBLISHED = 0.9894
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def noised(images):
    noise = 0.2 * torch.randn(
        images.shape, generator=torch.Generator().manual_seed(1)
    )  # sigma 0.1 of the pixel range
    return (images + noise).clamp(-1, 1)


CHANGES = {
    "exact": None,
    "noise": noised,
    "contrast": lambda images: 0.8 * images,
    "shift": lambda images: images.roll((1, -1), (2, 3)),
    "mirror": lambda images: images.flip(-1),
}


def sets(number, fresh):
    """Name, training pictures, their labels, fresh pictures."""
    training, unseen = draw_sprites(number, 1), draw_sprites(fresh, 2)
    labels = np.array([OBJECTS.index(name) for name in training.attributes["object"]])
    yield "sprites", training.as_tensor(), labels, unseen.as_tensor()
    there = [
        f"{kind}:{DATA / folder}"
        for kind, folder in (("mnist", "mnist"), ("fashion", "fashion-mnist"))
        if (DATA / folder).is_dir()
    ]
    for name in (*OFFLINE, *there):
        training, unseen = (
            load_domain(name, number, seed=1),
            load_domain(name, fresh, seed=1, held_out=True),
        )
        yield (
            name.partition(":")[0],
            training.as_tensor(),
            training.labels.numpy(),
            unseen.as_tensor(),
        )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--training", type=int, default=1_000)
    parser.add_argument("--fresh", type=int, default=300)
    args = parser.parse_args()

    accuracies = []
    print(
        f"{'':9}{'accuracy':>10}{'threshold':>11}{'verified':>10}"
        + "".join(f"{name:>10}" for name in CHANGES)
    )
    for name, training, labels, fresh in sets(args.training, args.fresh):
        alone = confirmed(fresh, training, labels)
        found = []
        for change in CHANGES.values():
            fractions = (0, 0.1, 0.25, 0.5, 0.75, 1) if change is None else (0.5,)
            table = replaced_pool(fresh, training, labels, fractions, change).set_index("fraction")
            found.append(table["found"][0.5])
            if change is None:
                accuracies.append(table["accuracy"].mean())
        print(
            f"{name:9}{accuracies[-1]:10.3f}{alone.under_threshold.mean():11.3f}{alone.r_c:10.3f}"
            + "".join(f"{share:10.3f}" for share in found),
            flush=True,
        )
    print(f"published {PUBLISHED}\nRESULT detector_accuracy {np.mean(accuracies):.4f}")


if __name__ == "__main__":
    main()
