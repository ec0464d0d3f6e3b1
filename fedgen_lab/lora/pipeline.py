"""Loading a Stable Diffusion, drawing with it, and turning pictures into what its UNet trains on.

Labs 02 and 03. The tiny model that ships with the lab is the default, not a special case: every function takes any
Stable Diffusion 1.x/2.x pipeline of diffusers. Latent diffusion: Rombach et al., arXiv 2112.10752.
"""

from copy import copy, deepcopy
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock

import torch
import torch.nn.functional as F

from fedgen_lab.lean import leave_out_scipy
from fedgen_lab.shipped import shipped

# One thread at a time reads words: two at once end in "Already borrowed" before transformers 5.17.
TOKENIZING = Lock()
GUIDANCE = 3.0  # how much more a prompt counts than no prompt, where nothing else is said
DRAWN_AT_ONCE = 8  # pictures in one pass of `draw`: the batch is what memory grows with
# Pixels in one pass of `encode`: 32 pictures of the tiny model, one of 512 x 512.
ENCODED_AT_ONCE = 32 * 32**2


def load_pipeline(source=None, device=None, dtype=torch.float32):
    """A frozen `StableDiffusionPipeline`, ready to draw with and to add adapters to.

    `source`: None for the tiny model that ships with the lab, else a pipeline folder or a Hub id ("owner/name"). Only
    safetensors weights are read. `device`: None takes a GPU where there is one. `dtype`: of all weights but the
    VAE's, which stay float32 and are not trained through.
    Raises FileNotFoundError for a folder without a pipeline, OSError for a Hub id that can't be fetched.
    """
    from transformers.utils import logging as transformers_logging

    # Before diffusers is imported, which would warn that torchvision is missing; nothing here needs it.
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    leave_out_scipy()
    from diffusers import StableDiffusionPipeline, __version__
    from diffusers.utils import logging
    from packaging.version import Version

    logging.disable_progress_bar()
    # Each of the two names is wrong for the other versions.
    name_of_dtype = "dtype" if Version(__version__) >= Version("0.40") else "torch_dtype"
    dtypes = {name_of_dtype: {"default": dtype, "vae": torch.float32}}
    pipeline = StableDiffusionPipeline.from_pretrained(
        _folder_or_id(source), use_safetensors=True, safety_checker=None, **dtypes
    )
    pipeline.set_progress_bar_config(disable=True)
    for model in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
        model.requires_grad_(False).eval()
    return pipeline.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _folder_or_id(source):
    """A pipeline's folder, or its id on the Hub. Raises FileNotFoundError for a folder without a pipeline."""
    source = str(source or shipped("tiny-sd"))
    folder = Path(source).expanduser()
    is_hub_id = source.count("/") == 1 and source[0] not in "./~" and not folder.is_dir()
    if not is_hub_id and not (folder / "model_index.json").is_file():
        raise FileNotFoundError(
            f"No Stable Diffusion in {source!r}: a pipeline folder has a model_index.json. "
            "Give such a folder, a Hub id like 'owner/name', or nothing for the tiny model."
        )
    return folder.as_posix()


@lru_cache(maxsize=8)
def base_side(source=None):
    """The side in pixels of the pictures that a base model draws, from its configs alone; `source` as `load_pipeline`
    takes it."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    source = _folder_or_id(source)
    unet = UNet2DConditionModel.load_config(source, subfolder="unet")
    vae = AutoencoderKL.load_config(source, subfolder="vae")
    return unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1)


@lru_cache(maxsize=2)
def base_tokenizer(source=None):
    """What cuts captions into tokens for a base model; `source` as `load_pipeline` takes it."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(_folder_or_id(source), subfolder="tokenizer")


def cut_captions(captions, source=None):
    """How many captions are longer than a base model reads, so that `text_states` cuts them, and how many tokens it
    reads, its marks for start and end among them."""
    tokenizer = base_tokenizer(source)
    with TOKENIZING:
        tokens = tokenizer(list(captions), verbose=False).input_ids
    limit = tokenizer.model_max_length
    return sum(len(caption) > limit for caption in tokens), limit


def draw(pipeline, prompts, seeds, steps=20, guidance=GUIDANCE, on_step=None):
    """Pictures for `prompts`, one seed each: (N, 3, H, W) in [-1, 1] on the CPU.

    A picture depends on its own prompt and seed alone, not on what is drawn beside it. `on_step()` is called before
    every denoising step and may raise to stop. Raises ValueError when prompts and seeds differ in number.
    """
    prompts, seeds = list(prompts), [int(seed) for seed in seeds]
    if len(prompts) != len(seeds) or not prompts:
        raise ValueError(
            f"Every prompt needs its own seed; got {len(prompts)} prompts and {len(seeds)} seeds."
        )
    pipeline = with_own_sampler(pipeline)

    def before_step(pipe, step, timestep, tensors):
        if on_step is not None:
            on_step()
        return tensors

    pictures = []
    for start in range(0, len(prompts), DRAWN_AT_ONCE):
        rows = slice(start, start + DRAWN_AT_ONCE)
        words, silence = prompt_states(pipeline, prompts[rows], guidance)
        output = pipeline(
            prompt_embeds=words,
            negative_prompt_embeds=silence,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds[rows]],
            callback_on_step_end=before_step,
            output_type="pt",
        )
        pictures.append(output.images.float().cpu() * 2 - 1)
    return torch.cat(pictures)


def with_own_sampler(pipeline):
    """The pipeline with the same weights and a sampler of its own: another thread may be drawing too."""
    pipeline = copy(pipeline)
    pipeline.scheduler = deepcopy(pipeline.scheduler)
    return pipeline


@dataclass(frozen=True)
class Encoded:
    """Pictures as the UNet sees them, encoded once: VAE and text encoder stay frozen, so nothing would change."""

    latents: torch.Tensor  # (N, 4, h, w), already scaled by the VAE's scaling_factor
    text: torch.Tensor  # (N, L, D), the text encoder's last hidden states

    def __len__(self):
        return len(self.latents)


@torch.no_grad()
def encode(pipeline, pictures):
    """Latents and text states of `pictures` (a `Pictures`), resized to the size the pipeline was trained at; float32
    whatever the pipeline's own weights are.

    Raises ValueError when there are no pictures.
    """
    if not len(pictures):
        raise ValueError("There are no pictures to encode; give at least one.")
    side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    latents, text, at_once = [], [], max(1, ENCODED_AT_ONCE // side**2)
    for start in range(0, len(pictures), at_once):
        batch = pictures.take(range(start, min(start + at_once, len(pictures))))
        images = batch.as_tensor()  # (B, 3, H, W)
        if images.shape[-2:] != (side, side):
            images = F.interpolate(images, size=(side, side), mode="bicubic", antialias=True).clamp(
                -1, 1
            )
        posterior = pipeline.vae.encode(images.to(pipeline.device)).latent_dist
        # The mean has less noise than a sample.
        latents.append(posterior.mean * pipeline.vae.config.scaling_factor)
        text.append(text_states(pipeline, batch.captions).float())
    return Encoded(torch.cat(latents), torch.cat(text))


@torch.no_grad()
def decode(pipeline, latents):
    """The pictures of scaled latents (N, 4, h, w), as `encode` makes them: (N, 3, H, W) in [-1, 1] on the CPU."""
    pictures = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    return pictures.clamp(-1, 1).cpu()


@torch.no_grad()
def prompt_states(pipeline, prompts, guidance):
    """What `pipeline` itself draws from: the states of `prompts`, and of as many empty ones where guidance is above 1,
    else None.
    """
    with TOKENIZING:
        return pipeline.encode_prompt(list(prompts), pipeline.device, 1, guidance > 1)


@torch.no_grad()
def text_states(pipeline, captions):
    """The text encoder's hidden states for `captions`: (N, L, D), padded and cut to the tokenizer's length."""
    with TOKENIZING:
        tokens = pipeline.tokenizer(
            list(captions),
            padding="max_length",
            truncation=True,
            max_length=pipeline.tokenizer.model_max_length,
            return_tensors="pt",
        )
    return pipeline.text_encoder(tokens.input_ids.to(pipeline.device))[0]
