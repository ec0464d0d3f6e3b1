"""Make `first-adapter/`: what the server of lab 08 sends out, trained on pictures of the server's own.

    python data/train_first_adapter.py

Lab 08 asks what one round tells, hides and costs. A fresh adapter draws nothing new after one round, so that a spoilt
picture and an unfinished one would look alike. Hence this start: LoRA on 256 sprites of the same four objects, of a
seed of their own, so that none of the clients' pictures is among them.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file

from fedgen_lab.lora.adapter import add_adapter, trainable_state
from fedgen_lab.lora.local import noise_schedule, train
from fedgen_lab.lora.pipeline import encode, load_pipeline
from fedgen_lab.pictures.sprites import HELD_OUT_OBJECTS, draw_sprites

SEED, PICTURES, STEPS, BATCH_SIZE, LEARNING_RATE = (
    108,
    256,
    160,
    16,
    2e-3,
)  # rank 8 and this rate are lab 03's


def main():
    torch.set_num_threads(1)
    folder = Path(__file__).parent / "first-adapter"
    folder.mkdir(exist_ok=True)
    pipeline = load_pipeline(device="cpu")
    add_adapter(pipeline.unet, rank=8, seed=SEED)
    encoded = encode(pipeline, draw_sprites(PICTURES, SEED, objects=sorted(HELD_OUT_OBJECTS)))
    losses = train(
        pipeline.unet, noise_schedule(pipeline), encoded, STEPS, BATCH_SIZE, LEARNING_RATE, SEED
    )
    half = {
        name: tensor.half().contiguous() for name, tensor in trainable_state(pipeline.unet).items()
    }
    save_file(
        half,
        folder / "adapter.safetensors",
        {"made by": "data/train_first_adapter.py", "seed": str(SEED)},
    )
    lines = [
        f"step {at}: loss {sum(losses[at - 20 : at]) / 20:.4f}" for at in range(20, STEPS + 1, 20)
    ]
    (folder / "log.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
