"""Local steps of many clients on Stable Diffusion 1.5's UNet: against one bare training loop, and how memory grows.

    python tests/benchmarks/bench_real_size.py                       # a GPU with 8 GB; random weights
    python tests/benchmarks/bench_real_size.py --source FOLDER_OR_ID # real ones
    python tests/benchmarks/bench_real_size.py --small               # does it run? on any machine

Everything in one process and in the same numbers (base bfloat16, adapters float32): the bare loop of diffusers and peft
on one adapter, then 1, 8 and 32 clients whose adapters take turns in the same base, as many steps in all. Rounds of
both alternate; the result is the median of the ratios of their steps per second. Peak memory is torch's own on a GPU.
"""

import argparse
import time

import numpy as np
import torch
from bench_lora import bare
from diffusers import DDPMScheduler

from fedgen_lab.lora.adapter import adapter_bytes, add_adapter, load_trainable, trainable_state
from fedgen_lab.lora.pipeline import Encoded
from fedgen_lab.lora.real_size import (
    base_bytes,
    load_unet,
    make_light,
    new_unet,
    train_in_turn,
)

SMALL = {"sample_size": 16, "block_out_channels": (32, 64, 64, 64), "cross_attention_dim": 32}


def seconds_of(work, device):
    """Wall seconds of `work()`, all of a GPU's own work included."""
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--source", help="a pipeline folder or a Hub id; random weights where there is none"
    )
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2, help="local steps of each client")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-checkpointing", action="store_true")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = SMALL if arguments.small else None
    unet = (
        load_unet(arguments.source, device) if arguments.source else new_unet(config, device=device)
    )
    add_adapter(unet, rank=4)
    make_light(unet)
    if arguments.no_checkpointing:
        unet.disable_gradient_checkpointing()
    start = trainable_state(unet)
    schedule = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    side, draw = unet.config.sample_size, torch.Generator().manual_seed(0)
    latents = torch.randn(16, 4, side, side, generator=draw).to(device)
    text = torch.randn(16, 77, unet.config.cross_attention_dim, generator=draw).to(device)
    encoded, knobs = Encoded(latents, text), (arguments.batch_size, 1e-4)
    print(
        f"{device}; base {base_bytes(unet) / 1e6:,.0f} MB, an adapter {adapter_bytes(start) / 1e6:.2f} MB"
    )

    for number in arguments.clients:
        steps = number * arguments.steps
        states = [{name: tensor.clone() for name, tensor in start.items()} for _ in range(number)]

        def clients(states=states, number=number):
            ours = [encoded] * number
            done = train_in_turn(
                unet, schedule, ours, states, arguments.steps, *knobs, range(number)
            )
            states[:] = [state for state, _ in done]

        def loop(steps=steps):
            load_trainable(unet, start)
            bare(unet, schedule, encoded, steps, *knobs, 0)

        peaks, seconds = [], []
        for work in (clients, loop):  # and a first run of each, unmeasured
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            work()
            peaks.append(
                torch.cuda.max_memory_allocated() / 1e6 if device == "cuda" else float("nan")
            )
        for _ in range(arguments.repeats):
            seconds.append([seconds_of(work, device) for work in (clients, loop)])
        ours, theirs = steps / np.median(seconds, axis=0)
        speed = np.median([bare_seconds / our_seconds for our_seconds, bare_seconds in seconds])
        print(
            f"{number} clients: {ours:.2f} steps/s, bare {theirs:.2f}; peak {peaks[0]:,.0f} MB, bare {peaks[1]:,.0f}"
        )
        print(f"RESULT real_size_speed_{number} {speed:.3f}", flush=True)
