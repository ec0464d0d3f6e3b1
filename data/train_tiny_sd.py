"""Train the tiny Stable Diffusion in data/tiny-sd from scratch on drawn sprites.

    python data/train_tiny_sd.py                                            # everything, one process
    torchrun --nproc-per-node 2 data/train_tiny_sd.py --stage unet          # the long stage on two cores, same steps

Three stages, each may be run alone with --stage: `vae` (pictures to latents and back), `unet` (the denoiser and the
text encoder, trained together), `assemble` (a diffusers pipeline folder). The parts are made in tiny_sd_parts.py. A
stage that was interrupted goes on from its last checkpoint in data/.training. Every step draws its batch from its own
seed, so a resumed run is the same run.
Latent diffusion: Rombach et al. 2022, arXiv:2112.10752; v-prediction: Salimans and Ho 2022, arXiv:2202.00512.
"""

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_sd_parts import (
    make_pipeline,
    make_scheduler,
    make_text_encoder,
    make_tokenizer,
    make_unet,
    make_vae,
)
from variety import draw_variety

from fedgen_lab.lora.pipeline import draw, load_pipeline
from fedgen_lab.pictures import sprites
from fedgen_lab.scores import load_judge, prompt_fidelity

HERE = Path(__file__).parent
SCRATCH, OUT = HERE / ".training", HERE / "tiny-sd"
RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


# -- training helpers ------------------------------------------------------------------------------------------------
def step_generator(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def cosine(step: int, steps: int, peak: float, warm_up: int) -> float:
    """The learning rate: a straight rise, then half a cosine down to 1 % of the peak."""
    if step < warm_up:
        return peak * step / warm_up
    return peak * (
        0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * (step - warm_up) / max(1, steps - warm_up)))
    )


def log(stage: str, **values) -> None:
    if RANK == 0:
        text = " ".join(
            f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items()
        )
        with open(OUT / "training_log.txt", "a", encoding="utf-8") as file:
            print(f"{stage} {text}", file=file)
        print(stage, text, flush=True)


def save_state(
    path: Path, modules: dict, averages: dict, optimiser: torch.optim.Optimizer, **numbers
) -> None:
    """Weights, their averages and the optimiser's moments as one safetensors file; replaced in one go."""
    state = {
        f"{name}/{k}": v for name, module in modules.items() for k, v in module.state_dict().items()
    }
    state |= {f"average/{name}/{k}": v for name, avg in averages.items() for k, v in avg.items()}
    state |= {
        f"moment/{i}/{k}": v
        for i, s in optimiser.state_dict()["state"].items()
        for k, v in s.items()
    }
    state = {k: v.contiguous().clone() for k, v in state.items()}
    save_file(state, f"{path}.new", {k: str(v) for k, v in numbers.items()})
    os.replace(f"{path}.new", path)


def load_state(
    path: Path, modules: dict, averages: dict, optimiser: torch.optim.Optimizer
) -> dict[str, float]:
    if not path.exists():
        return {}
    state = load_file(path)
    for name, module in modules.items():
        module.load_state_dict(
            {k.removeprefix(f"{name}/"): v for k, v in state.items() if k.startswith(f"{name}/")}
        )
        prefix = f"average/{name}/"
        averages[name] = {
            k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)
        }
    blank = optimiser.state_dict()
    moments: dict[int, dict] = {}
    for key, value in state.items():
        if key.startswith("moment/"):
            _, i, k = key.split("/")
            moments.setdefault(int(i), {})[k] = value
    optimiser.load_state_dict({"state": moments, "param_groups": blank["param_groups"]})
    with safe_open(path, "pt") as file:
        return {k: float(v) for k, v in file.metadata().items()}


@torch.no_grad()
def update_average(averages: dict, modules: dict, decay: float) -> None:
    for name, module in modules.items():
        for key, value in module.state_dict().items():
            if value.is_floating_point():
                averages[name][key].lerp_(value, 1 - decay)


def copy_of(modules: dict) -> dict:
    return {
        name: {k: v.clone() for k, v in module.state_dict().items()}
        for name, module in modules.items()
    }


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB, averaged over pictures, of two (N, 3, H, W) tensors in [-1, 1]."""
    return float((10 * torch.log10(4 / (a - b).square().mean((1, 2, 3)).clamp_min(1e-10))).mean())


# -- stage 1: the VAE ------------------------------------------------------------------------------------------------
def train_vae(args) -> None:
    torch.manual_seed(args.seed)
    images = torch.cat(
        [
            sprites.draw_sprites(args.vae_sprites, args.seed + 1).images,
            draw_variety(args.vae_variety, args.seed + 2),
        ]
    )  # (N, 3, 32, 32) uint8
    tests = {
        "sprites": sprites.draw_sprites(500, args.seed + 3).as_tensor(),
        "held_out": sprites.draw_sprites(
            500, args.seed + 4, objects=sprites.HELD_OUT_OBJECTS, styles=sprites.HELD_OUT_STYLES
        ).as_tensor(),
        "variety": draw_variety(500, args.seed + 5).float() / 127.5 - 1,
    }
    vae, tested = make_vae(), make_vae()
    optimiser = torch.optim.AdamW(vae.parameters(), lr=3e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    modules = {"vae": vae}
    averages = copy_of(modules)
    state = load_state(SCRATCH / "vae.safetensors", modules, averages, optimiser)
    first = int(state.get("step", 0)) + 1
    wall, cpu = time.time() - state.get("seconds", 0), time.process_time() - state.get("cpu", 0)
    for step in range(first, args.vae_steps + 1):
        for group in optimiser.param_groups:
            group["lr"] = cosine(step, args.vae_steps, 3e-3, 100)
        rng = step_generator(args.seed + 1, step)
        batch = (
            images[torch.randint(len(images), (16,), generator=rng)].float() / 127.5 - 1
        )  # (16, 3, 32, 32)
        with torch.autocast("cpu", torch.bfloat16):
            latent = vae.encode(batch).latent_dist
            noise = torch.randn(latent.mean.shape, generator=rng)
            out = vae.decode(latent.mean + latent.std * noise).sample
        out, mean, logvar = out.float(), latent.mean.float(), latent.logvar.float()
        edges = sum((out.diff(dim=d) - batch.diff(dim=d)).abs().mean() for d in (2, 3))
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        loss = F.l1_loss(out, batch) + 2 * F.mse_loss(out, batch) + 0.3 * edges + 2e-4 * kl
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        update_average(averages, modules, min(0.998, step / (step + 20)))
        if step % 1000 == 0 or step == args.vae_steps:
            tested.load_state_dict(averages["vae"])
            with torch.no_grad():
                psnrs = {
                    f"psnr_{k}": round(psnr(tested(v).sample.clamp(-1, 1), v), 2)
                    for k, v in tests.items()
                }
            took = {
                "seconds": round(time.time() - wall),
                "cpu_seconds": round(time.process_time() - cpu),
            }
            log("vae", step=step, **took, loss=loss.item(), **psnrs)
            save_state(
                SCRATCH / "vae.safetensors",
                modules,
                averages,
                optimiser,
                step=step,
                seconds=took["seconds"],
                cpu=took["cpu_seconds"],
            )


def trained_vae() -> AutoencoderKL:
    """The averaged weights of stage 1."""
    vae = make_vae()
    state = load_file(SCRATCH / "vae.safetensors")
    vae.load_state_dict(
        {
            k.removeprefix("average/vae/"): v
            for k, v in state.items()
            if k.startswith("average/vae/")
        }
    )
    return vae.eval().requires_grad_(False)


# -- stage 2: the denoiser and the text encoder ----------------------------------------------------------------------
@torch.no_grad()
def latents_of(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """(N, 3, 32, 32) uint8 -> (N, 4, 16, 16), the means of the encoder's distribution, not yet scaled."""
    return torch.cat(
        [vae.encode(batch.float() / 127.5 - 1).latent_dist.mean for batch in images.split(500)]
    )


def train_unet(args) -> None:
    if WORLD > 1:
        dist.init_process_group("gloo")
    torch.manual_seed(args.seed)
    vae, tokenizer = trained_vae(), make_tokenizer()
    pictures = sprites.draw_sprites(args.sprites, args.seed + 6)
    latents = latents_of(vae, pictures.images)  # (N, 4, 16, 16)
    scaling = 1 / float(latents.std())
    vae.register_to_config(scaling_factor=scaling)
    latents *= scaling
    padded = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    words = tokenizer(pictures.captions, **padded).input_ids  # (N, 16)
    silence = tokenizer("", **padded).input_ids  # (1, 16)
    unet, text = make_unet(), make_text_encoder(tokenizer)
    averaged_unet, averaged_text, judge = make_unet(), make_text_encoder(tokenizer), load_judge()
    modules = {"unet": unet, "text": text}
    weights = [p for module in modules.values() for p in module.parameters()]
    optimiser = torch.optim.AdamW(
        weights, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    averages = copy_of(modules)
    checkpoint = SCRATCH / "unet.safetensors"
    state = load_state(checkpoint, modules, averages, optimiser)
    kept = [
        avg[k] for name, avg in averages.items() for k in dict(modules[name].named_parameters())
    ]
    first = int(state.get("step", 0)) + 1
    wall, cpu = time.time() - state.get("seconds", 0), time.process_time() - state.get("cpu", 0)
    signal = (
        make_scheduler().alphas_cumprod.sqrt()
    )  # (1000,): share of the picture left at each of 1000 noise levels
    noise_share = (1 - signal**2).sqrt()
    smooth = None
    for step in range(first, args.steps + 1):
        for group in optimiser.param_groups:
            group["lr"] = cosine(step, args.steps, args.rate, 150)
        # every process draws the whole batch and keeps its part, so that the number of processes changes nothing
        rng, rows = step_generator(args.seed, step), slice(RANK, None, WORLD)
        chosen = torch.randint(len(latents), (args.batch,), generator=rng)
        order, place = (
            torch.randperm(args.batch, generator=rng),
            torch.rand(args.batch, generator=rng),
        )
        levels = (
            order + place
        ) / args.batch  # stratified: one noise level from each 32nd of the range
        t = (levels * 1000).long().clamp(max=999)[rows]  # (B,)
        noise = torch.randn((args.batch, 4, 16, 16), generator=rng)[rows]
        dropped = (torch.rand(args.batch, generator=rng) < 0.1)[
            rows
        ]  # no caption: what guidance compares with
        clean, a, s = (
            latents[chosen[rows]],
            signal[t].view(-1, 1, 1, 1),
            noise_share[t].view(-1, 1, 1, 1),
        )
        ids = torch.where(dropped[:, None], silence, words[chosen[rows]])  # (B, 16)
        states = text(ids).last_hidden_state  # (B, 16, 96)
        guess = unet(
            a * clean + s * noise, t, encoder_hidden_states=states
        ).sample  # (B, 4, 16, 16)
        loss = F.mse_loss(guess, a * noise - s * clean)  # the velocity
        optimiser.zero_grad(set_to_none=False)
        loss.backward()
        if WORLD > 1:
            flat = torch.cat(
                [p.grad.flatten() for p in weights]
            )  # one message of 12 MB instead of 300 small ones
            dist.all_reduce(flat)
            for p, gradient in zip(
                weights, flat.div_(WORLD).split([p.numel() for p in weights]), strict=True
            ):
                p.grad.copy_(gradient.view_as(p))
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        torch._foreach_lerp_(
            kept, [p.detach() for p in weights], 1 - min(0.999, step / (step + 20))
        )
        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        took = {
            "seconds": round(time.time() - wall),
            "cpu_seconds": round(time.process_time() - cpu),
        }
        if RANK == 0 and (step % 250 == 0 or step == args.steps):
            scores = {}
            if step % args.evaluate == 0 or step == args.steps:
                averaged_unet.load_state_dict(averages["unet"])
                averaged_text.load_state_dict(averages["text"])
                captions, attributes = sprites.prompts(64, args.seed + 7)
                pipe = make_pipeline(vae, averaged_text.eval(), tokenizer, averaged_unet.eval())
                scores = prompt_fidelity(draw(pipe, captions, range(64)), attributes, judge)
            log(
                "unet",
                step=step,
                **took,
                loss=round(smooth, 4),
                **{k: round(v, 3) for k, v in scores.items()},
            )
            save_state(
                checkpoint,
                modules,
                averages,
                optimiser,
                step=step,
                seconds=took["seconds"],
                cpu=took["cpu_seconds"],
                scaling=scaling,
            )
    if WORLD > 1:
        dist.barrier()
        dist.destroy_process_group()


# -- stage 3: the pipeline folder ------------------------------------------------------------------------------------
def assemble(args) -> None:
    """The averaged weights in half precision as a StableDiffusionPipeline folder."""
    vae, tokenizer = trained_vae(), make_tokenizer()
    unet, text = make_unet(), make_text_encoder(tokenizer)
    state, averages = SCRATCH / "unet.safetensors", {}
    modules = {"unet": unet, "text": text}
    optimiser = torch.optim.AdamW([p for module in modules.values() for p in module.parameters()])
    numbers = load_state(state, modules, averages, optimiser)
    unet.load_state_dict(averages["unet"])
    text.load_state_dict(averages["text"])
    vae.register_to_config(scaling_factor=numbers["scaling"])
    make_pipeline(vae, text, tokenizer, unet).to(torch.float16).save_pretrained(OUT)
    # transformers 4 knows the text encoder's weights by the names with "text_model." alone, transformers 5 by both
    weights = load_file(OUT / "text_encoder" / "model.safetensors")
    weights = {
        f"text_model.{name.removeprefix('text_model.')}": weight for name, weight in weights.items()
    }
    save_file(weights, OUT / "text_encoder" / "model.safetensors", {"format": "pt"})
    # transformers 4 reads vocab.json and merges.txt, and has a slow tokenizer that splits some texts in another way
    tokenizer.backend_tokenizer.model.save(str(OUT / "tokenizer"))
    index = (OUT / "model_index.json").read_text(encoding="utf-8")
    (OUT / "model_index.json").write_text(
        index.replace('"CLIPTokenizer"', '"CLIPTokenizerFast"'), encoding="utf-8"
    )
    draw_sheet(OUT, OUT / "sheet.png")
    log("assemble", unet_steps=int(numbers["step"]))


def draw_sheet(folder: Path, path: Path) -> None:
    """24 pictures of the finished model under their prompts, for its card. Seeds 0-23."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    captions = sprites.prompts(24, 3)[0]
    images = draw(load_pipeline(folder), captions, range(24))  # (24, 3, 32, 32) in [-1, 1]
    figure, axes = plt.subplots(3, 8, figsize=(12, 5.6), dpi=80)
    for axis, image, caption in zip(axes.flat, images, captions, strict=True):
        axis.imshow(((image + 1) / 2).permute(1, 2, 0).clamp(0, 1), interpolation="nearest")
        axis.set_title(caption.replace(" on ", "\non "), fontsize=6.5)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stage", choices=("all", "vae", "unet", "assemble"), default="all")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--vae-sprites", type=int, default=17_000)
    parser.add_argument("--vae-variety", type=int, default=9_000)
    parser.add_argument("--vae-steps", type=int, default=8_000)
    parser.add_argument("--sprites", type=int, default=26_000)
    parser.add_argument("--steps", type=int, default=7_500, help="of the unet stage")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument(
        "--rate", type=float, default=1.5e-3, help="peak learning rate of the unet stage"
    )
    parser.add_argument(
        "--evaluate",
        type=int,
        default=1_500,
        help="steps between two measurements of prompt fidelity",
    )
    args = parser.parse_args()
    SCRATCH.mkdir(exist_ok=True)
    OUT.mkdir(exist_ok=True)
    if args.stage in ("all", "vae"):
        train_vae(args)
    if args.stage in ("all", "unet"):
        train_unet(args)
    if args.stage in ("all", "assemble"):
        assemble(args)


if __name__ == "__main__":
    main()
