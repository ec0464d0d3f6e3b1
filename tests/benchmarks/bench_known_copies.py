"""The fixed benchmark of copies: false alarms and copies found, by calibrated novelty and by PDFed's Q-N score.

    python tests/benchmarks/bench_known_copies.py          # two minutes of one core

Training pictures changed in seven ways, beside fresh ones (`fedgen_lab.memorization.known_copies`). Calibrated novelty
flags at 1 %; Q-N's columns are its threshold alone, and what its verifier confirms. MNIST, which no net here was
trained on, where ../shared/data has it.
"""

import argparse
from pathlib import Path

from fedgen_lab.memorization.known_copies import EDITS, detected
from fedgen_lab.memorization.making import Copying, private_pictures
from fedgen_lab.pictures.domains import load_domain

MNIST = Path(__file__).resolve().parents[3] / "shared" / "data" / "mnist"
COLUMNS = ("calibrated", "qn_threshold", "qn_confirmed")


def sets(number):
    """Name and pictures: a third for training, a third held out, a third fresh."""
    yield "private", private_pictures(Copying(pictures=number)).pictures.images
    yield "digits", load_domain("digits").images[:number]
    if MNIST.is_dir():
        yield "MNIST", load_domain(f"mnist:{MNIST}", number, seed=1).images


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=840)
    number = parser.parse_args().pictures

    print(
        "| pictures | detector | fresh | "
        + " | ".join(EDITS)
        + " |\n"
        + "| --- " * (3 + len(EDITS))
        + "|"
    )
    for name, images in sets(number):
        third = len(images) // 3
        table = detected(images[:third], images[third : 2 * third], images[2 * third :]).set_index(
            "pictures"
        )
        for column in COLUMNS:
            shares = " | ".join(f"{share:.3f}" for share in table[column])
            print(f"| {name} | {column} | {shares} |", flush=True)
        if name != "digits":  # 8 x 8 pixels: too little to remember for the last two changes
            print(f"RESULT {name}_copies_found {table['calibrated'].drop('fresh').min():.4f}")


if __name__ == "__main__":
    main()
