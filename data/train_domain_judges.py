"""Train the judges of the four offline domains: digits, letters, garments and runes, at 14x14 and 28x28 pixels.

    python data/train_domain_judges.py         # about three minutes of one core; writes data/domain-judges/

Each learns from the training part of its domain and is examined on the held-out part, which it never saw. One seed
decides everything.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from fedgen_lab.pictures.domains import load_domain
from fedgen_lab.split.judges import SHIPPED, train_judge
from fedgen_lab.split.scoring import image_score, right_label

OUT = Path(__file__).parent / "domain-judges"
SIDES = (14, 28)
DRAWN = 6_000  # training pictures of a drawn domain; of the real digits there are fewer, and all are taken


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=SHIPPED, help="only these domains")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--steps", type=int, default=600)
    args = parser.parse_args()

    OUT.mkdir(exist_ok=True)
    log = OUT / "judges.json"
    judges = json.loads(log.read_text(encoding="utf-8"))["judges"] if log.exists() else {}
    for name in args.names:
        for side in SIDES:
            began = time.process_time()
            training = load_domain(name, None if name == "digits" else DRAWN, side, args.seed)
            judge = (
                train_judge(training, args.seed, args.steps).half().float()
            )  # as it will be read from the disk
            unseen = load_domain(name, None, side, args.seed, held_out=True)
            save_file(judge.half().state_dict(), OUT / f"{name}-{side}.safetensors")
            judge = judge.float()
            judges[f"{name}-{side}"] = {
                "training_pictures": len(training),
                "unseen_pictures": len(unseen),
                "right": round(right_label(unseen.images, unseen.labels, judge), 4),
                "image_score_of_unseen": round(image_score(unseen.images, judge), 3),
                "cpu_seconds": round(time.process_time() - began),
            }
            print(f"{name}-{side}: {json.dumps(judges[f'{name}-{side}'])}", flush=True)
    made = {"command": "python data/train_domain_judges.py", "seed": args.seed, "steps": args.steps}
    log.write_text(
        json.dumps({**made, "torch": torch.__version__, "judges": judges}, indent=1) + "\n", "utf-8"
    )


if __name__ == "__main__":
    main()
