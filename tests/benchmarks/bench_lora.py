"""The local step of federated LoRA: against the bare loop of diffusers and peft, and all clients stacked.

    python tests/benchmarks/bench_lora.py           # about three minutes

`lora_step_overhead`: `local.train` over the training loop of diffusers' `train_text_to_image_lora.py`, cut down to what
trains (same draws, same result), one client. `stacked_speedup`: eight clients of eight pictures a batch, one after
another with `local.train`, over `stacked.train_stacked`; the adapters must end alike. One thread, CPU seconds; every
repeat times one after the other, in alternating order, and the result is the median of the repeats' ratios.
"""

import argparse
import os
import time

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from fedgen_lab.lora.adapter import add_adapter, load_trainable, trainable_state  # noqa: E402
from fedgen_lab.lora.local import noise_schedule, train  # noqa: E402
from fedgen_lab.lora.pipeline import Encoded, load_pipeline  # noqa: E402
from fedgen_lab.lora.stacked import Turn, train_stacked  # noqa: E402

NUM_CLIENTS, BATCH_SIZE, LEARNING_RATE = 8, 8, 1e-3


def pictures_of(unet, tokens, client):
    """64 encoded pictures that nobody drew: (64, 4, h, w) and (64, L, D). What they show costs nothing."""
    draw, side = torch.Generator().manual_seed(client), unet.config.sample_size
    latents = torch.randn(64, 4, side, side, generator=draw)
    return Encoded(latents, torch.randn(64, tokens, unet.config.cross_attention_dim, generator=draw))


def bare(unet, schedule, encoded, steps, batch_size, learning_rate, seed):
    """The loop that a page of diffusers' documentation teaches."""
    generator, device = torch.Generator().manual_seed(seed), encoded.latents.device
    lora_layers = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(lora_layers, lr=learning_rate, weight_decay=1e-2)
    for _ in range(steps):
        pick = torch.randint(len(encoded), (batch_size,), generator=generator)
        latents, text = encoded.latents[pick], encoded.text[pick]
        noise = torch.randn(latents.shape, generator=generator).to(device)
        timesteps = torch.randint(schedule.config.num_train_timesteps, (batch_size,), generator=generator).to(device)
        noisy = schedule.add_noise(latents, noise, timesteps)
        v = schedule.config.prediction_type == "v_prediction"
        target = schedule.get_velocity(latents, noise, timesteps) if v else noise
        loss = F.mse_loss(unet(noisy, timesteps, text, return_dict=False)[0], target)
        loss.detach().item()  # the page gathers it for its progress bar
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lora_layers, 1.0)
        optimizer.step()


def cpu_seconds(work):
    """The CPU seconds that `work()` takes in this process."""
    start = time.process_time()
    work()
    return time.process_time() - start


def distance(ours, theirs):
    """How far the adapters of any client are apart, as a share of their length."""
    pairs = [
        [torch.cat([tensor.flatten() for tensor in state.values()]) for state in two]
        for two in zip(ours, theirs, strict=True)
    ]
    return max(float((mine - other).norm() / other.norm()) for mine, other in pairs)


def paired(ours, theirs, tolerance, repeats):
    """(repeats, 2) CPU seconds of both, in alternating order. First both must make the same adapters."""
    apart = distance(ours(), theirs())
    assert apart <= tolerance, f"the adapters differ by {apart:.1e} of their length"
    print(f"the adapters differ by {apart:.1e} of their length")
    seconds = np.empty((repeats, 2))
    for repeat in range(repeats):
        for which in (0, 1) if repeat % 2 else (1, 0):
            seconds[repeat, which] = cpu_seconds((ours, theirs)[which])
        print("ours {:.3f} s, theirs {:.3f} s".format(*seconds[repeat]), flush=True)
    return seconds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pipeline = load_pipeline(device="cpu")
    unet, schedule, steps = pipeline.unet, noise_schedule(pipeline), arguments.steps
    add_adapter(unet, rank=8)
    start = trainable_state(unet)
    clients = [pictures_of(unet, pipeline.tokenizer.model_max_length, client) for client in range(NUM_CLIENTS)]

    def one_client(loop):
        load_trainable(unet, start)
        loop()
        return trainable_state(unet)

    def plain(client, number):
        return one_client(
            lambda: train(unet, schedule, clients[client], number, BATCH_SIZE, LEARNING_RATE, seed=client)
        )

    knobs = 2 * steps, BATCH_SIZE, LEARNING_RATE, 0
    seconds = paired(
        lambda: [plain(0, 2 * steps)], lambda: [one_client(lambda: bare(unet, schedule, clients[0], *knobs))],
        0, arguments.repeats,
    )  # fmt: skip
    ratios = np.sort(seconds[:, 0] / seconds[:, 1])
    print("a step: ours {:.3f} s, bare {:.3f} s".format(*np.median(seconds, axis=0) / (2 * steps)))
    print("ratios", ratios.round(2), f"\nRESULT lora_step_overhead {np.median(ratios):.3f}", flush=True)

    turns = [
        Turn(None, None, unet, schedule, encoded, start, steps, BATCH_SIZE, LEARNING_RATE, seed)
        for seed, encoded in enumerate(clients)
    ]
    seconds = paired(
        lambda: [state for state, _ in train_stacked(turns)], lambda: [plain(c, steps) for c in range(NUM_CLIENTS)],
        1e-5, arguments.repeats,
    )  # fmt: skip
    ratios = np.sort(seconds[:, 1] / seconds[:, 0])
    print("a step of all: stacked {:.3f} s, one by one {:.3f} s".format(*np.median(seconds, axis=0) / steps))
    print("ratios", ratios.round(2))
    print(f"RESULT stacked_speedup {np.median(ratios):.2f}", flush=True)
