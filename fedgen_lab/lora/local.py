"""What one client does with its own pictures: some steps of denoising training, and a denoising loss to judge them by.

Labs 02 and 03. The loss is the mean squared error between the noise (or velocity) that was added to a latent and the
UNet's guess of it: Ho et al., arXiv 2006.11239, eq. 14; velocity target: Salimans & Ho, arXiv 2202.00512, section 4.
"""

import torch
import torch.nn.functional as F

from fedgen_lab.flops import flop_counter

MAX_NORM = 1.0  # gradients are clipped to it
JUDGED_AT_ONCE = 16  # pictures in one pass of `denoising_loss`


def noise_schedule(pipeline):
    """The forward (noising) process the pipeline was trained with, as a diffusers `DDPMScheduler`."""
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_config(pipeline.scheduler.config)


def target_of(schedule, latents, noise, timesteps):
    """What the UNet must guess for noised `latents`: the noise itself, or the velocity. Shape of `latents`."""
    if schedule.config.prediction_type == "v_prediction":
        return schedule.get_velocity(latents, noise, timesteps)
    return noise


def noised_batch(schedule, encoded, batch_size, generator):
    """What one training step sees, drawn by `generator`: noised latents (B, 4, h, w), timesteps (B,), text states
    (B, L, D), and the target (B, 4, h, w) that the UNet must guess.
    """
    pick = torch.randint(len(encoded), (batch_size,), generator=generator)
    return noised(schedule, encoded, pick, generator)


def noised(schedule, encoded, pick, generator):
    """`noised_batch` of the pictures whose rows are `pick` (B,)."""
    device = encoded.latents.device
    latents, text = encoded.latents[pick], encoded.text[pick]
    noise = torch.randn(latents.shape, generator=generator).to(device)
    timesteps = torch.randint(
        schedule.config.num_train_timesteps, pick.shape, generator=generator
    ).to(device)
    noisy = schedule.add_noise(latents, noise, timesteps)
    return noisy, timesteps, text, target_of(schedule, latents, noise, timesteps)


def new_adam(parameters, learning_rate):
    """The optimiser of every local step, with torch's own weight decay of 0.01."""
    return torch.optim.AdamW(parameters, learning_rate)


def train(unet, schedule, encoded, steps, batch_size, learning_rate, seed, on_step=None):
    """Train what is trainable in `unet` on `encoded` pictures for `steps` steps of AdamW; returns the losses, one a
    step.

    `seed` decides batches, noise and timesteps. `on_step(step, steps, loss)` is called after every step and may raise
    to stop. The optimiser starts fresh: its moments never travel. Raises ValueError when a loss is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = [p for p in unet.parameters() if p.requires_grad]
    optimizer = new_adam(parameters, learning_rate)
    losses = []
    for step in range(1, steps + 1):
        noisy, timesteps, text, target = noised_batch(schedule, encoded, batch_size, generator)
        guess = unet(noisy, timesteps, encoder_hidden_states=text).sample  # (B, 4, h, w)
        loss = F.mse_loss(guess, target)
        losses.append(loss.item())
        if not torch.isfinite(loss):
            raise ValueError(
                f"The loss became {losses[-1]} at step {step}; lower the learning rate ({learning_rate})."
            )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)
        optimizer.step()
        if on_step is not None:
            on_step(step, steps, losses[-1])
    return losses


@torch.no_grad()
def denoising_loss(unet, schedule, encoded, seed=0, draws=4):
    """The mean denoising loss of every picture: (N,), each over `draws` noises at timesteps all over the schedule.

    The same `seed` gives every model the same noises and timesteps, so differences are the models' own.
    """
    generator = torch.Generator().manual_seed(seed)
    latents, number = encoded.latents, len(encoded)
    total = torch.zeros(number, device=latents.device)
    for draw in range(draws):
        noise = torch.randn(latents.shape, generator=generator).to(latents.device)
        # One timestep in each quarter of the schedule, where there are four draws.
        place = (torch.rand(number, generator=generator) + draw) / draws
        timesteps = (place * schedule.config.num_train_timesteps).long().to(latents.device)
        noisy = schedule.add_noise(latents, noise, timesteps)
        target = target_of(schedule, latents, noise, timesteps)
        # Few pictures at a time: the batch is what memory grows with.
        for rows in torch.arange(number).split(JUDGED_AT_ONCE):
            text = encoded.text[rows]
            guess = unet(noisy[rows], timesteps[rows], encoder_hidden_states=text).sample
            total[rows] += ((guess - target[rows]) ** 2).mean(dim=(1, 2, 3)) / draws
    return total.cpu()


def step_flops(unet, encoded, batch_size):
    """Floating-point operations of one training step (forward and backward) on a batch, counted by torch.

    Counted on a single picture, which takes less memory than a step: every layer's count grows with the batch.
    """
    with flop_counter() as counter:
        guess = unet(encoded.latents[:1], 0, encoder_hidden_states=encoded.text[:1]).sample
        guess.mean().backward()
    unet.zero_grad(set_to_none=True)
    return batch_size * counter.get_total_flops()
