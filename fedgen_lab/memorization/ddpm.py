"""A small diffusion model on pixels, told what to draw by a class label: the model of PDFed, at lab scale.

Labs 09 and 10. DDPM: Ho et al., arXiv 2006.11239; velocity as the target: Salimans & Ho, arXiv 2202.00512; the cosine
schedule: Nichol & Dhariwal, arXiv 2102.09672; labels that are sometimes left out, so that one net is both the model of
a class and of all: Ho & Salimans, arXiv 2207.12598. PDFed (arXiv 2409.18245) leaves its widths and steps open.

A model is a diffusers `DDPMPipeline`: `save_pretrained(folder)` writes safetensors, `DDPMPipeline.from_pretrained`
reads them. What travels between peers is `weights(model)`, a dict of tensors; `load_weights(model, ...)` takes it.
"""

from copy import deepcopy
from math import isfinite

import torch
import torch.nn.functional as F

from fedgen_lab.lean import leave_out_scipy
from fedgen_lab.lora.adapter import load_trainable, trainable_state
from fedgen_lab.memorization.denoiser import denoiser_of


def weights(model):
    """All weights by name, copied to the CPU: what a peer sends."""
    return trainable_state(model.unet)


def load_weights(model, state):
    """Write `weights` back. Raises ValueError when names or shapes are not this model's."""
    load_trainable(model.unet, state)


def new_ddpm(channels=1, side=14, num_classes=10, width=16, seed=0):
    """An untrained `DDPMPipeline` for pictures (N, channels, side, side) of `num_classes` classes.

    Its UNet halves the picture twice (once below 16 pixels) and knows one class more, the last, which means "any".
    Width 16 makes 0.16 to 0.3 million weights; 24 twice as many, at twice the time.
    Raises ValueError for a side that can't be halved so often.
    """
    leave_out_scipy()
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    widths = (width, 2 * width) if side < 16 else (width, 2 * width, 2 * width)
    if side % 2 ** (len(widths) - 1) or side < 4 or width % 8:
        raise ValueError(
            f"side must be even, and from 16 on a multiple of 4; width a multiple of 8; got {side} and {width}."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DModel(
            sample_size=side,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=widths,
            layers_per_block=1,
            norm_num_groups=8,
            attention_head_dim=16,
            num_class_embeds=num_classes + 1,
            down_block_types=("DownBlock2D",) * len(widths),
            up_block_types=("UpBlock2D",) * len(widths),
        )  # the middle block has attention
    schedule = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    return DDPMPipeline(unet.eval(), schedule)


def train_ddpm(
    model, images, labels, steps, batch_size=64, learning_rate=2e-3, drop=0.1, seed=0, on_step=None
):
    """Train `model` on `images` (N, C, side, side), uint8 or float in [-1, 1], and labels (N,); returns the losses.

    The learning rate warms up over 20 steps and falls to zero along a cosine. drop: how often a label is left out.
    `seed` decides batches, noise and timesteps. `on_step(step, steps, loss)` may raise to stop.
    Raises ValueError for pictures or labels that are not the model's, or a loss that is not finite.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1; got {steps}.")
    images, labels = (
        denoiser_of(model).inputs(images).cpu(),
        denoiser_of(model).condition(labels).cpu(),
    )
    if len(images) != len(labels):
        raise ValueError(
            f"One label belongs to each picture; got {len(images)} pictures and {len(labels)} labels."
        )
    generator, schedule, device = (
        torch.Generator().manual_seed(seed),
        model.scheduler,
        model.unet.device,
    )
    optimizer = torch.optim.AdamW(model.unet.parameters(), lr=learning_rate, fused=True)
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        learning_rate,
        total_steps=steps + 1,
        pct_start=min(20 / steps, 0.3),
        cycle_momentum=False,
    )
    losses = []
    for step in range(1, steps + 1):
        pick = torch.randint(len(images), (batch_size,), generator=generator)
        clean, label = images[pick], labels[pick].clone()  # (B, C, side, side), (B,)
        label[torch.rand(batch_size, generator=generator) < drop] = any_class(model)
        noise = torch.randn(clean.shape, generator=generator)
        t = torch.randint(schedule.config.num_train_timesteps, (batch_size,), generator=generator)
        noisy, target = schedule.add_noise(clean, noise, t), schedule.get_velocity(clean, noise, t)
        guess = model.unet(noisy.to(device), t.to(device), class_labels=label.to(device)).sample
        loss = F.mse_loss(guess, target.to(device))
        losses.append(loss.item())
        if not torch.isfinite(loss):
            raise ValueError(
                f"The loss became {losses[-1]} at step {step}; lower the learning rate ({learning_rate})."
            )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.unet.parameters(), 1.0)
        optimizer.step()
        rate.step()
        if on_step is not None:
            on_step(step, steps, losses[-1])
    return losses


@torch.no_grad()
def draw_ddpm(model, labels, seeds, steps=20, guidance=1.0, batch_size=64, on_step=None):
    """Pictures of the classes `labels` (N,; None is any), one seed each: (N, C, side, side) in [-1, 1] on the CPU.

    DDIM (Song et al., arXiv 2010.02502) without noise of its own, so a picture follows from its label and seed alone.
    guidance above 1 exaggerates what sets the class apart from "any". `on_step()` may raise to stop.
    Raises ValueError when labels and seeds differ in number, or a label is not the model's.
    """
    from diffusers import DDIMScheduler

    if steps < 1 or not isfinite(guidance):
        raise ValueError(
            f"steps must be at least 1, and guidance a finite number; got {steps} and {guidance}."
        )
    labels, seeds = denoiser_of(model).condition(labels), [int(seed) for seed in seeds]
    if len(labels) != len(seeds) or not seeds:
        raise ValueError(
            f"Every label needs its own seed; got {len(labels)} labels and {len(seeds)} seeds."
        )
    sampler = DDIMScheduler.from_config(
        deepcopy(model.scheduler.config), timestep_spacing="trailing"
    )
    sampler.set_timesteps(steps)
    config, device, pictures = model.unet.config, model.unet.device, []
    shape = (config.in_channels, config.sample_size, config.sample_size)
    for start in range(0, len(seeds), batch_size):
        label = labels[start : start + batch_size]
        noise = [
            torch.randn(shape, generator=torch.Generator().manual_seed(s))
            for s in seeds[start : start + batch_size]
        ]
        x = torch.stack(noise).to(device)
        for t in sampler.timesteps:
            if on_step is not None:
                on_step()
            if guidance == 1:
                guess = model.unet(x, t, class_labels=label).sample
            else:  # both in one batch, without first, as in diffusers
                both = torch.cat([torch.full_like(label, any_class(model)), label])
                without, told = model.unet(torch.cat([x, x]), t, class_labels=both).sample.chunk(2)
                guess = without + guidance * (told - without)
            x = sampler.step(guess, t, x).prev_sample
        pictures.append(x.clamp(-1, 1).cpu())
    return torch.cat(pictures)


def any_class(model):
    """The label that means "any class": the one after the last."""
    return model.unet.config.num_class_embeds - 1
