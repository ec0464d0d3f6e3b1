"""How long the distance scores of 2,000 generated against 10,000 training pictures of 32x32 take, and in what memory.

python tests/benchmarks/bench_copies.py

The pictures are drawn sprites, in colour. The robust nearest distance is compared with a plain loop over the generated
pictures: each one's 50 views meet every training picture in one matrix product, nothing is left out. Both take the
threads torch takes, and count CPU seconds. The loop is timed on the first 100 generated pictures and scaled up; that
both find the same is checked on these.
"""

import argparse
import resource
import time

import numpy as np
import torch

from fedgen_lab.memorization.distance import (
    CONTRAST,
    SHIFT,
    SHIFTS,
    as_unit,
    nearest,
    nearest_within,
)
from fedgen_lab.pictures.sprites import draw_sprites


def windows(images):
    """Of pictures in the window of each shift: (rows, columns, mean, deviation), the two of shape (N,)."""
    height, width = images.shape[-2:]
    for dy, dx in SHIFTS:
        y, x = slice(max(0, -dy), height - max(0, dy)), slice(max(0, -dx), width - max(0, dx))
        part = images[..., y, x]
        yield y, x, part.mean((1, 2, 3)), part.std((1, 2, 3), correction=0)


def plain_loop(generated, training):
    """The robust distance of each generated picture to its nearest training picture, and its row."""
    generated, training = (as_unit(images) for images in (generated, training))
    generated, training = (
        images - images.mean((1, 2, 3), keepdim=True) for images in (generated, training)
    )
    flat, theirs = training.flatten(1), list(windows(training))
    found = []
    for picture in generated:
        views, ours = [], []
        for view in (picture[None], picture[None].flip(-1)):
            moments = list(windows(view))
            for (y, x, *_), (dy, dx), (_, _, *moment) in zip(
                theirs, SHIFTS, reversed(moments), strict=True
            ):
                moved = torch.zeros_like(view)
                moved[..., y, x] = view[..., y.start + dy : y.stop + dy, x.start + dx : x.stop + dx]
                views.append(moved.flatten())
                ours.append(moment)
        products = torch.stack(views) @ flat.T  # (50, M)
        best = torch.full((len(flat),), torch.inf)
        for i, (y, x, mean, deviation) in enumerate(theirs * 2):
            size = picture[:, y, x].numel()
            our_mean, our_deviation = ours[i]
            factor = (deviation / our_deviation.clamp_min(1e-12)).clamp(1 / CONTRAST, CONTRAST)
            covariance = products[i] / size - our_mean * mean
            squared = factor * our_deviation**2 + deviation**2 / factor - 2 * covariance
            torch.minimum(best, squared, out=best)
        found.append(best.clamp_min(0).sqrt().min(0))
    return np.array([float(of.values) for of in found]), np.array([int(of.indices) for of in found])


def seconds(work):
    """(result, CPU seconds, seconds on the clock)."""
    clock, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.process_time() - cpu, time.perf_counter() - clock


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generated", type=int, default=2000)
    parser.add_argument("--training", type=int, default=10_000)
    parser.add_argument(
        "--loop", type=int, default=100, help="generated pictures the loop is timed on"
    )
    arguments = parser.parse_args()
    assert SHIFT == 2
    training = draw_sprites(arguments.training, seed=1).images
    generated = draw_sprites(arguments.generated, seed=2).images
    generated[::10] = training[: len(generated[::10])].flip(-1)  # a tenth are mirrored copies
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{len(generated):,} generated, {len(training):,} training pictures {tuple(training.shape[1:])}, ",
        end="",
    )
    print(f"{torch.get_num_threads()} threads; memory so far {before:.0f} MB", flush=True)

    total = np.zeros(2)
    for match in ("plain", "tiled", "robust"):
        (found, rows), *took = seconds(lambda match=match: nearest(generated, training, 2, match))
        total += took
        print("{:8s} {:6.2f} CPU s, {:6.2f} s on the clock".format(match, *took), flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        "all three {:6.2f} CPU s, {:6.2f} s; at most {:.0f} MB more than before".format(
            *total, peak - before
        )
    )
    _, *within = seconds(lambda: nearest_within(training, 50))
    print(
        "50 nearest training pictures of each other, once a training set: {:.2f} CPU s, {:.2f} s".format(
            *within
        )
    )

    (_, _), ours, _ = seconds(lambda: nearest(generated, training, 1, "robust"))
    part = generated[: arguments.loop]
    (expected, at), loop, _ = seconds(lambda: plain_loop(part, training))
    loop *= len(generated) / len(part)
    apart = np.abs(
        expected**2 - found[: len(part), 0] ** 2
    ).max()  # near 0 a root makes much of the last digits
    assert apart < 1e-5, f"the two find squared distances that are {apart:.1e} apart"
    print(
        f"same rows in {np.mean(at == rows[: len(part), 0]):.1%}, squared distances at most {apart:.1e} apart"
    )
    print(f"plain loop {loop:.0f} CPU s (from {len(part)} pictures), ours {ours:.2f} CPU s")
    print(f"RESULT copies_speedup {loop / ours:.2f}")
