"""The parts of the tiny Stable Diffusion, untrained: tokenizer, VAE, text encoder, UNet, scheduler, pipeline.

All are diffusers' and transformers' own classes, only small. Lab 02 takes the trained ones apart.
"""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fedgen_lab.pictures import sprites

HERE = Path(__file__).parent
CAPTION_WORDS = (
    "a an the on of in with and picture drawing photo icon emoji my background style pattern texture "
    "sks"
).split()


def make_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-level BPE with one token for each word of the lab; other words fall back to pieces and letters."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    merges: list[tuple[str, str]] = []
    rank: dict[tuple[str, str], int] = {}

    def encode(word: str) -> list[str]:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while pairs := [
            (rank[p], i) for i, p in enumerate(zip(pieces, pieces[1:], strict=False)) if p in rank
        ]:
            _, i = min(pairs)
            pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
        return pieces

    lab = [
        *sprites.OBJECTS,
        *sprites.HELD_OUT_OBJECTS,
        *sprites.COLOURS,
        *sprites.STYLES,
        *sprites.HELD_OUT_STYLES,
    ]
    for word in lab + CAPTION_WORDS + (HERE / "words.txt").read_text(encoding="utf-8").split():
        while (
            len(pieces := encode(word)) > 1
        ):  # add merges from the left until the word is one token
            rank[tuple(pieces[:2])] = len(merges)
            merges.append(tuple(pieces[:2]))
    letters = list(bytes_to_unicode().values())
    tokens = letters + [letter + "</w>" for letter in letters] + [a + b for a, b in merges]
    tokens = list(dict.fromkeys(tokens)) + ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)}, merges=merges, model_max_length=16
    )


def make_vae() -> AutoencoderKL:
    """32x32 pictures to 4x16x16 latents. Without attention: 160 k weights."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        block_out_channels=(16, 32),
        layers_per_block=1,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        sample_size=32,
        mid_block_add_attention=False,
    )


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=16,
            hidden_act="gelu",
            projection_dim=96,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    # words that pre-training never sees still need vectors that differ
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.25)
    return model


def make_unet() -> UNet2DConditionModel:
    """2.8 M weights; attends to the text at 8x8 and 4x4; the pooled text also joins the time embedding, as in SDXL."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        norm_num_groups=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=96,
        attention_head_dim=4,  # in this class the argument is the number of heads
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )


def make_scheduler() -> DPMSolverMultistepScheduler:
    return DPMSolverMultistepScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        steps_offset=1,
    )


def make_pipeline(vae, text_encoder, tokenizer, unet) -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
