"""Train the judge: the classifier that reads object, colour, background and style off a sprite.

    python data/train_judge.py                 # about 8 minutes of one core; writes data/judge/

It learns from drawn sprites only, all 24 objects and 11 styles, blurred or noisy at times so that small faults of a
generated picture do not distract it. One seed decides everything.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from fedgen_lab.pictures.sprites import (
    HELD_OUT_OBJECTS,
    HELD_OUT_STYLES,
    OBJECTS,
    STYLES,
    Pictures,
    draw_sprites,
)
from fedgen_lab.scores import WORDS, Judge

HERE = Path(__file__).parent
ALL = {"objects": OBJECTS + HELD_OUT_OBJECTS, "styles": STYLES + HELD_OUT_STYLES}


def answers(pictures: Pictures) -> torch.Tensor:
    """(N, 4) indices into WORDS, one column per head."""
    return torch.tensor(
        [[words.index(w) for w in pictures.attributes[name]] for name, words in WORDS.items()]
    ).T


def disturbed(images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Training pictures as a generator might spoil them: a third blurred, a third noisy, all shifted in brightness."""
    n = len(images)
    kind = torch.rand(n, 1, 1, 1, generator=rng)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    share = torch.rand(n, 1, 1, 1, generator=rng) * 0.7
    images = torch.where(kind < 0.33, images + share * (blurred - images), images)
    noise = torch.randn(images.shape, generator=rng) * torch.rand(n, 1, 1, 1, generator=rng) * 0.2
    images = torch.where(kind > 0.66, images + noise, images)
    return images + 0.05 * torch.randn(n, 3, 1, 1, generator=rng)


@torch.no_grad()
def shares_right(judge: Judge, pictures: Pictures) -> dict[str, float]:
    judge.eval()
    logits = [judge(batch) for batch in pictures.as_tensor().split(500)]
    right = torch.stack(
        [
            torch.cat([out[name] for out in logits]).argmax(1) == answers(pictures)[:, k]
            for k, name in enumerate(WORDS)
        ],
        1,
    )  # (N, 4)
    judge.train()
    return dict(zip(WORDS, right.float().mean(0).tolist(), strict=True)) | {
        "all": float(right.all(1).float().mean())
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--sprites", type=int, default=40_000)
    parser.add_argument("--steps", type=int, default=3_500)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--out", type=Path, default=HERE / "judge")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    draw_seed, test_seed, batch_seed = (
        int(s.generate_state(1)[0]) for s in np.random.SeedSequence(args.seed).spawn(3)
    )
    train, unseen = (
        draw_sprites(args.sprites, draw_seed, **ALL),
        draw_sprites(4_000, test_seed, **ALL),
    )
    labels, rng = answers(train), torch.Generator().manual_seed(batch_seed)
    judge = Judge()
    optimiser = torch.optim.AdamW(judge.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 3e-3, total_steps=args.steps, pct_start=0.1
    )
    wall, cpu = time.time(), time.process_time()
    log = []
    for step in range(1, args.steps + 1):
        chosen = torch.randint(len(train), (args.batch,), generator=rng)
        images = disturbed(train.images[chosen].float() / 127.5 - 1, rng)  # (B, 3, 32, 32)
        logits = judge(images)
        loss = sum(F.cross_entropy(logits[name], labels[chosen, k]) for k, name in enumerate(WORDS))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 500 == 0 or step == args.steps:
            right = shares_right(judge, unseen)
            log.append(
                {
                    "step": step,
                    "seconds": round(time.time() - wall),
                    "cpu_seconds": round(time.process_time() - cpu),
                    "loss": round(loss.item(), 4),
                }
                | right
            )
            print(json.dumps(log[-1]), flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    save_file(judge.half().state_dict(), args.out / "judge.safetensors")
    notes = {
        "command": "python data/train_judge.py",
        "seed": args.seed,
        "sprites": args.sprites,
        "steps": args.steps,
        "batch": args.batch,
        "width": judge.width,
        "torch": torch.__version__,
        "unseen_sprites": len(unseen),
        "log": log,
    }
    (args.out / "judge.json").write_text(json.dumps(notes, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
