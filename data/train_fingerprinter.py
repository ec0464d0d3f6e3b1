"""Train PDFed's fingerprinter and verifier at lab size, on drawn sprites, digits, letters, garments and runes.

    python data/train_fingerprinter.py         # about ten minutes of one core; writes data/fingerprinter/

First the fingerprinter learns, by eq. 1 of the paper (arXiv 2409.18245), to know altered copies of a picture from other
pictures. Then it is frozen, and the verifier learns to tell a picture's altered copies (a "yes") from altered copies of
the pictures whose fingerprints are nearest to it (a hard "no") and of any other (an easy "no"). One seed decides
everything. The log says what both do on pictures that they never saw.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from fedgen_lab.memorization.fingerprint import Fingerprinter, altered, contrastive_loss
from fedgen_lab.memorization.verifier import CONFIRMED, Verifier, described
from fedgen_lab.pictures.domains import OFFLINE, load_domain
from fedgen_lab.pictures.sprites import (
    HELD_OUT_OBJECTS,
    HELD_OUT_STYLES,
    OBJECTS,
    STYLES,
    draw_sprites,
)

HERE = Path(__file__).parent
SIDES = (8, 14, 28)  # pixels at which grey pictures may come, before they are resized to 32
NEAREST = 8  # a hard negative is one of so many nearest other pictures of its kind
HALF = 48  # pictures of a batch that are sprites; as many are of one kind of grey pictures


def collections(seed, sprites, grey, read, held_out=False):
    """Pictures to learn from by kind, each (N, 3, 32, 32) uint8: sprites and the four offline domains."""
    everything = {"objects": OBJECTS + HELD_OUT_OBJECTS, "styles": STYLES + HELD_OUT_STYLES}
    pictures = {
        "sprites": draw_sprites(sprites, int(seed.generate_state(1)[0]), **everything).images
    }
    for kind in OFFLINE:
        sizes, number = [], None if kind == "digits" else grey
        domain = load_domain(kind, number, 28, int(seed.generate_state(2)[1]), held_out)
        for k, side in enumerate(SIDES):  # every third picture comes at each size
            small = domain.take(range(k, len(domain), len(SIDES))).resized(side)
            sizes.append(((read(small.images) + 1) * 127.5).round().to(torch.uint8))
        pictures[kind] = torch.cat(sizes)
    return pictures


def as_float(images):
    return images.float() / 127.5 - 1


def train_fingerprinter(kinds, steps, seed, report):
    """Batches of sprites and of one grey kind, so that the others of a batch are hard to tell from a picture."""
    rng = torch.Generator().manual_seed(seed)
    net = Fingerprinter()
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 3e-3, total_steps=steps, pct_start=0.1
    )
    names = [name for name in kinds if name != "sprites"]
    for step in range(1, steps + 1):
        name = names[int(torch.randint(len(names), (1,), generator=rng))]
        chosen = [
            kinds[kind][torch.randint(len(kinds[kind]), (HALF,), generator=rng)]
            for kind in ("sprites", name)
        ]
        images = as_float(torch.cat(chosen))  # (2 * HALF, 3, 32, 32)
        prints = net.features(torch.cat([images, altered(images, rng)]))
        loss = contrastive_loss(*prints.split(2 * HALF))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 100 == 0 or step == steps:
            report("fingerprinter", step, loss.item())
    return net.eval().requires_grad_(False)


@torch.no_grad()
def nearest_others(net, images):
    """Rows of the NEAREST other pictures by fingerprint: (N, NEAREST)."""
    prints = torch.cat([net.features(as_float(batch)) for batch in images.split(256)])
    alike = prints @ prints.T
    return alike.fill_diagonal_(-2).topk(NEAREST).indices


def train_verifier(net, kinds, steps, seed, report):
    """Each step: pictures and, of each, one hard negative; both altered; three pairs for every picture."""
    rng = torch.Generator().manual_seed(seed)
    verifier = Verifier()
    optimiser = torch.optim.AdamW(verifier.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 2e-3, total_steps=steps, pct_start=0.1
    )
    near = {kind: nearest_others(net, images) for kind, images in kinds.items()}
    grey = [name for name in kinds if name != "sprites"]
    for step in range(1, steps + 1):
        kind = "sprites" if step % 2 else grey[step // 2 % len(grey)]
        rows = torch.randint(len(kinds[kind]), (HALF,), generator=rng)
        hard = near[kind][rows, torch.randint(NEAREST, (HALF,), generator=rng)]
        images = as_float(kinds[kind][torch.cat([rows, hard])])  # (2 * HALF, 3, 32, 32)
        with torch.no_grad():
            maps = net.maps(torch.cat([images, altered(images, rng)]))
        originals, copies = verifier.regions(maps).split(2 * HALF)
        swapped, any_other = torch.arange(2 * HALF).roll(HALF), torch.arange(2 * HALF).roll(7)
        logits = torch.cat(
            [
                verifier.logits(originals, copies[order])
                for order in (torch.arange(2 * HALF), swapped, any_other)
            ]
        )
        answer = torch.zeros(len(logits))
        answer[: 2 * HALF] = 1
        loss = F.binary_cross_entropy_with_logits(logits, answer)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 100 == 0 or step == steps:
            report("verifier", step, loss.item())
    return verifier.eval().requires_grad_(False)


@torch.no_grad()
def examined(net, verifier, kinds, unseen, seed):
    """On unseen pictures of each kind: is a copy nearest to its original, and which copies and others are confirmed?"""
    rng, shares = torch.Generator().manual_seed(seed), {}
    for kind, images in unseen.items():
        prints, regions = described(images, net, verifier)
        copy_prints, copy_regions = described(altered(as_float(images), rng), net, verifier)
        others_prints, others_regions = described(kinds[kind][:2_000], net, verifier)
        nearest = (prints @ others_prints.T).argmax(
            1
        )  # of a fresh picture among the training pictures
        shares[kind] = {
            "copy_found_first": float(
                ((copy_prints @ prints.T).argmax(1) == torch.arange(len(images))).float().mean()
            ),
            "copies_confirmed": float((verifier(regions, copy_regions) > CONFIRMED).float().mean()),
            "exact_copies_confirmed": float(
                (verifier(regions, regions) > CONFIRMED).float().mean()
            ),
            "nearest_others_confirmed": float(
                (verifier(regions, others_regions[nearest]) > CONFIRMED).float().mean()
            ),
        }
    return {
        kind: {name: round(value, 4) for name, value in row.items()} for kind, row in shares.items()
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--sprites", type=int, default=8_000)
    parser.add_argument(
        "--grey", type=int, default=2_400, help="letters, garments, runes each; digits: 1,438"
    )
    parser.add_argument("--fingerprinter-steps", type=int, default=500)
    parser.add_argument("--verifier-steps", type=int, default=2_000)
    parser.add_argument("--out", type=Path, default=HERE / "fingerprinter")
    args = parser.parse_args()

    began, log = time.process_time(), []

    def report(net, step, loss):
        seconds = round(time.process_time() - began)
        log.append({"net": net, "step": step, "loss": round(loss, 4), "cpu_seconds": seconds})
        print(json.dumps(log[-1]), flush=True)

    torch.manual_seed(args.seed)
    drawing, unseen_drawing, first, second, last = np.random.SeedSequence(args.seed).spawn(5)
    read = Fingerprinter().read
    kinds = collections(drawing, args.sprites, args.grey, read)
    net = (
        train_fingerprinter(
            kinds, args.fingerprinter_steps, int(first.generate_state(1)[0]), report
        )
        .half()
        .float()
    )
    verifier = (
        train_verifier(net, kinds, args.verifier_steps, int(second.generate_state(1)[0]), report)
        .half()
        .float()
    )
    args.out.mkdir(parents=True, exist_ok=True)
    for name, trained in (("fingerprinter", net), ("verifier", verifier)):
        save_file(
            {key: value.half() for key, value in trained.state_dict().items()},
            args.out / f"{name}.safetensors",
        )
    unseen = collections(unseen_drawing, 500, 500, read, held_out=True)
    notes = {
        "command": "python data/train_fingerprinter.py",
        "torch": torch.__version__,
        "cpu_seconds": None,
        **{name: value for name, value in vars(args).items() if name != "out"},
        "unseen": examined(net, verifier, kinds, unseen, int(last.generate_state(1)[0])),
        "log": log,
    }
    notes["cpu_seconds"] = round(time.process_time() - began)
    print(json.dumps(notes["unseen"], indent=1), flush=True)
    (args.out / "fingerprinter.json").write_text(
        json.dumps(notes, indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
