"""The local step of federated LoRA against the bare loop of diffusers and peft.

    python tests/benchmarks/bench_lora.py           # about a minute

`lora_step_overhead`: `local.train` over the training loop of diffusers' `train_text_to_image_lora.py`, cut down to what
trains (same draws, same result), one client. First both must make the same adapter, in float64: in float32 AdamW makes
whole steps of the rounding of gradients that are almost zero, which differs by processor. One thread, CPU seconds;
every repeat times one after the other, in alternating order, and the result is the median of the repeats' ratios.
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

NUM_CLIENTS, BATCH_SIZE, LEARNING_RATE = 8, 8, 1e-3


def pictures_of(unet, tokens, client):
    """64 encoded pictures that nobody drew, in the UNet's numbers: (64, 4, h, w) and (64, L, D). What they show costs
    nothing."""
    draw, side = torch.Generator().manual_seed(client), unet.config.sample_size
    latents = torch.randn(64, 4, side, side, generator=draw)
    text = torch.randn(64, tokens, unet.config.cross_attention_dim, generator=draw)
    return Encoded(latents.to(unet.dtype), text.to(unet.dtype))


def bare(unet, schedule, encoded, steps, batch_size, learning_rate, seed):
    """The loop that a page of diffusers' documentation teaches."""
    generator, device = torch.Generator().manual_seed(seed), encoded.latents.device
    lora_layers = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(lora_layers, lr=learning_rate, weight_decay=1e-2)
    for _ in range(steps):
        pick = torch.randint(len(encoded), (batch_size,), generator=generator)
        latents, text = encoded.latents[pick], encoded.text[pick]
        noise = torch.randn(latents.shape, generator=generator).to(device)
        timesteps = torch.randint(
            schedule.config.num_train_timesteps, (batch_size,), generator=generator
        ).to(device)
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


def assert_alike(ours, theirs):
    """Both ways make the same adapters."""
    apart = distance(ours(), theirs())
    assert apart < 1e-9, f"the adapters differ by {apart:.1e} of their length"
    print(f"the adapters differ by {apart:.1e} of their length")


def paired(ours, theirs, repeats):
    """(repeats, 2) CPU seconds of both, in alternating order."""
    seconds = np.empty((repeats, 2))
    for way in (ours, theirs):  # a first run of each, unmeasured
        way()
    for repeat in range(repeats):
        for which in (0, 1) if repeat % 2 else (1, 0):
            seconds[repeat, which] = cpu_seconds((ours, theirs)[which])
        print("ours {:.3f} s, theirs {:.3f} s".format(*seconds[repeat]), flush=True)
    return seconds


class Ways:
    """The ways to train, on eight clients' pictures in numbers of one `dtype`. Each returns adapters, one a client."""

    def __init__(self, dtype):
        pipeline = load_pipeline(device="cpu")
        self.unet, self.schedule = pipeline.unet, noise_schedule(pipeline)
        add_adapter(self.unet, rank=8)
        self.unet.to(dtype)
        self.start, tokens = trainable_state(self.unet), pipeline.tokenizer.model_max_length
        self.clients = [pictures_of(self.unet, tokens, client) for client in range(NUM_CLIENTS)]

    def alone(self, loop, client, steps):
        """One client's adapter after `loop`, which is `train` or `bare`."""
        load_trainable(self.unet, self.start)
        loop(
            self.unet,
            self.schedule,
            self.clients[client],
            steps,
            BATCH_SIZE,
            LEARNING_RATE,
            seed=client,
        )
        return [trainable_state(self.unet)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    exact, ways, steps = Ways(torch.float64), Ways(torch.float32), arguments.steps

    assert_alike(lambda: exact.alone(train, 0, 2), lambda: exact.alone(bare, 0, 2))
    seconds = paired(
        lambda: ways.alone(train, 0, 2 * steps),
        lambda: ways.alone(bare, 0, 2 * steps),
        arguments.repeats,
    )
    ratios = np.sort(seconds[:, 0] / seconds[:, 1])
    print("a step: ours {:.3f} s, bare {:.3f} s".format(*np.median(seconds, axis=0) / (2 * steps)))
    print(
        "ratios",
        ratios.round(2),
        f"\nRESULT lora_step_overhead {np.median(ratios):.3f}",
        flush=True,
    )
