"""The shipped base model in figures: prompt fidelity by guidance, VAE quality, speed.

    python tests/benchmarks/bench_base_model.py              # about 3 minutes on two free cores

256 prompts (20 objects, 8 colours, 8 backgrounds, 8 styles), 20 steps, the i-th picture from seed i.
"""

import argparse
import json
import time
import warnings
from pathlib import Path

import torch

from fedgen_lab.lora.pipeline import draw, load_pipeline
from fedgen_lab.pictures import sprites
from fedgen_lab.scores import judged, load_judge, prompt_fidelity


def psnr(vae, images: torch.Tensor) -> float:
    with torch.no_grad():
        back = torch.cat([vae(part).sample.clamp(-1, 1) for part in images.split(256)])
    return float((10 * torch.log10(4 / (back - images).square().mean((1, 2, 3)))).mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", type=Path, default=None, help="another pipeline folder than the shipped one"
    )
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--prompt-seed", type=int, default=1)
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.5, 2.0, 3.0, 4.0, 6.0])
    beside = Path(__file__).resolve().parents[3] / "shared" / "data" / "openmoji"
    parser.add_argument("--openmoji", type=Path, default=beside)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")

    pipe = load_pipeline(args.model)
    judge = load_judge()

    captions, wanted = sprites.prompts(args.prompts, args.prompt_seed)
    print(
        f"{'guidance':>8} {'object':>7} {'colour':>7} {'backgr.':>7} {'style':>7} {'all four':>8}"
    )
    all_four = {}
    for guidance in args.guidance:
        images = draw(pipe, captions, range(args.prompts), guidance=guidance)
        shares = prompt_fidelity(images, wanted, judge)
        all_four[guidance] = shares["all"]
        print(
            f"{guidance:8.1f} " + " ".join(f"{100 * v:6.1f}%" for v in shares.values()), flush=True
        )
        if guidance == 3:
            seen = judged(images, judge)
            wrong = seen["style"] != wanted["style"]
            worst = wanted["style"][wrong].value_counts().to_dict()
            print(
                "         wrong by style:",
                json.dumps(worst),
                "by object:",
                json.dumps(
                    wanted["object"][seen["object"] != wanted["object"]].value_counts().to_dict()
                ),
            )

    held_out = sprites.draw_sprites(
        500, 78, objects=sprites.HELD_OUT_OBJECTS, styles=sprites.HELD_OUT_STYLES
    )
    print(
        f"VAE PSNR, dB: sprites {psnr(pipe.vae, sprites.draw_sprites(500, 77).as_tensor()):.1f}, "
        f"held-out sprites {psnr(pipe.vae, held_out.as_tensor()):.1f}",
        end="",
    )
    if (emoji := args.openmoji / "openmoji-72-plain.zip").exists():
        from fedgen_lab.pictures.folders import read_folder

        pictures = read_folder(
            emoji, caption_file="captions.csv", file_column="file", text_column="caption"
        )
        print(f", OpenMoji ({len(pictures)}) {psnr(pipe.vae, pictures.as_tensor()):.1f}")
    else:
        print(f" (no OpenMoji at {args.openmoji})")

    draw(pipe, captions[:16], range(16))  # warm-up
    start = time.perf_counter()
    draw(pipe, captions[:16], range(16))
    sample16 = time.perf_counter() - start
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    start = time.process_time()
    sprites.draw_sprites(2000, 0)
    rate = 2000 / (time.process_time() - start)
    print(
        f"16 pictures, 20 steps with guidance: {sample16:.2f} s on {threads} threads; "
        f"{rate:.0f} sprites a second of one core"
    )
    print(f"RESULT fidelity_g3 {all_four.get(3.0, float('nan')):.4f}")
    print(f"RESULT fidelity_best {max(all_four.values()):.4f}")
    print(f"RESULT sample16_seconds {sample16:.3f}")
    print(f"RESULT sprites_per_second {rate:.0f}")


if __name__ == "__main__":
    main()
