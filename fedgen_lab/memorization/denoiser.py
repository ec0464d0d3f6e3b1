"""Any diffusion model as one function, eps(x, t, condition): the noise it believes to be in x at timestep t.

Lab 09. Attacks on diffusion models are written in terms of the guessed noise. Here a Stable Diffusion with captions, a
small pixel model with labels and an unconditional one all look alike, whatever they were trained to guess: noise,
velocity (Salimans & Ho, arXiv 2202.00512) or the picture itself.
"""

from dataclasses import dataclass

import torch

from fedgen_lab.lora.local import noise_schedule
from fedgen_lab.lora.pipeline import text_states
from fedgen_lab.scores import check_pictures

TARGETS = ("epsilon", "v_prediction", "sample")  # what a model may be trained to guess


@dataclass(frozen=True)
class Denoiser:
    """A view of a diffusers pipeline that has a `unet`. Nothing is copied: train the pipeline, and this changes too."""

    pipeline: object

    @property
    def kind(self):
        """What the model is told besides x and t: "text", "label" or "nothing"."""
        config = self.pipeline.unet.config
        if getattr(self.pipeline, "text_encoder", None) is not None:
            return "text"
        return "label" if config.get("num_class_embeds") else "nothing"

    @property
    def alphas(self):
        """How much of the picture is left at each timestep (alpha bar): (T,), falling."""
        return noise_schedule(self.pipeline).alphas_cumprod

    @torch.no_grad()
    def eps(self, x, timestep, condition=None):
        """The guessed noise, shape of x (B, C, h, w). timestep: one for all; condition: as `condition` makes it."""
        condition = self.condition([None] * len(x)) if condition is None else condition
        told = {
            "text": {"encoder_hidden_states": condition},
            "label": {"class_labels": condition},
            "nothing": {},
        }
        t = torch.full((len(x),), int(timestep), device=x.device)
        guess = self.pipeline.unet(x, t, **told[self.kind]).sample[
            :, : x.shape[1]
        ]  # beyond: a learned variance
        left, target = (
            self.alphas[int(timestep)].to(x.device),
            self.pipeline.scheduler.config.prediction_type,
        )
        if target == "v_prediction":
            return left.sqrt() * guess + (1 - left).sqrt() * x
        if target == "sample":
            return (x - left.sqrt() * guess) / (1 - left).sqrt()
        return guess

    @torch.no_grad()
    def inputs(self, pictures, batch_size=32):
        """What the model sees of pictures (N, C, H, W), uint8 or float in [-1, 1]: its latents, or the pictures.

        Raises ValueError where there are none, they have another shape than the model's, or for what
        `scores.check_pictures` refuses.
        """
        pictures = pictures.images if hasattr(pictures, "captions") else pictures
        config, vae = self.pipeline.unet.config, getattr(self.pipeline, "vae", None)
        side, larger = config.sample_size, 1 if vae is None else self.pipeline.vae_scale_factor
        height, width = (side, side) if isinstance(side, int) else side
        shape = (
            config.in_channels if vae is None else vae.config.in_channels,
            height * larger,
            width * larger,
        )
        pictures = torch.as_tensor(pictures)
        if pictures.ndim != 4 or not len(pictures) or tuple(pictures.shape[1:]) != shape:
            raise ValueError(
                f"This model's pictures are (N, {', '.join(map(str, shape))}); got {tuple(pictures.shape)}."
            )
        pictures = check_pictures(pictures)
        pictures = (
            pictures.float() / 127.5 - 1 if pictures.dtype == torch.uint8 else pictures.float()
        )
        pictures = pictures.to(self.pipeline.unet.device)
        if vae is None:
            return pictures
        parts = [
            vae.encode(part).latent_dist.mean for part in pictures.split(batch_size)
        ]  # (B, 4, h, w)
        return torch.cat(parts) * vae.config.scaling_factor

    def condition(self, conditions):
        """Captions or labels as the model takes them: (N, L, D), (N,) or None. None among them means "anything".

        For that a model with labels has one class more, the last (`memorization.ddpm.new_ddpm`). One that was made
        without it must be told every label: its last class is as good as any other.
        Raises ValueError for a label that the model doesn't have, or a text where it wants labels.
        """
        if self.kind == "text":
            return text_states(
                self.pipeline, ["" if text is None else str(text) for text in conditions]
            )
        if self.kind == "nothing":
            return None
        null = self.pipeline.unet.config.num_class_embeds - 1  # as in memorization.ddpm
        labels = [null if label is None else label for label in conditions]
        if odd := [label for label in labels if isinstance(label, str) or not 0 <= label <= null]:
            raise ValueError(
                f"This model wants labels from 0 to {null - 1}, or None for any; got {odd[0]}."
            )
        return torch.tensor([int(label) for label in labels], device=self.pipeline.unet.device)


def denoiser_of(pipeline):
    """A `Denoiser`. Raises ValueError for a pipeline whose model this room can't ask for its noise."""
    unet = getattr(pipeline, "unet", None)
    if unet is None or getattr(unet.config, "addition_embed_type", None) == "text_time":
        raise ValueError(
            f"{type(pipeline).__name__} has no UNet that takes (x, t) and one text or label; use a Stable Diffusion "
            "1.x or 2.x, a DDPM or a DDIM pipeline. Of any other, `extraction.text_noise` can still watch the drawing."
        )
    schedule = pipeline.scheduler.config
    if "beta_schedule" not in schedule or schedule.get("prediction_type") not in TARGETS:
        raise ValueError(
            f"{type(pipeline.scheduler).__name__} doesn't add noise in numbered steps and have it guessed as one of "
            f"{', '.join(TARGETS)}; use a pipeline with a DDPM, DDIM, Euler or DPM-Solver scheduler."
        )
    return Denoiser(pipeline)
