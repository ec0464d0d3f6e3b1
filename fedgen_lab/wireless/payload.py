"""Payload: what one round of fine-tuning asks of the link and of the device, before any radio is chosen.

The tiny model of the lab runs live; the real one is counted. Here are the sizes of Stable Diffusion 1.5's UNet, read
off its architecture, so that a round of it can be put on the clock without a GPU. Taught in lab 05.
"""

from typing import NamedTuple

from fedgen_lab.federation.trace import SERVER, Trace

# Stable Diffusion 1.5's UNet at 512 x 512 pixels, counted by torch on its architecture (tests count again).
KEEP = 0.1  # the share of numbers that "top-k" sends
UNET_NUMBERS = 859_520_964
UNET_ROWS = 318_808  # a row: an output channel of a weight, or a whole bias
LAYERS = 128  # the attention layers that LoRA adapts
INPUTS, OUTPUTS = 99_456, 99_840  # their sides summed up
# Forward and backward for one picture, latents cached.
UNET_STEP_FLOPS = 2.407e12
LORA_STEP_FLOPS = 1.714e12


class Payload(NamedTuple):
    """What trains: how many `numbers`, in how many `rows`, and how many operations a step costs for one picture."""

    numbers: int
    rows: int
    step_flops: float

    def upload_bytes(self, upload="float32"):
        """The bytes of one upload as `lora.upload` packs it: "float32", "int8" (and a float16 a row), or "top-k".

        Raises ValueError for another form.
        """
        if upload == "float32":
            return 4 * self.numbers
        if upload == "int8":
            return self.numbers + 2 * self.rows
        if upload != "top-k":
            raise ValueError(f"upload must be one of float32, int8, top-k; got {upload!r}.")
        # Values, and their places or a bit for every place, whichever is less.
        values = 4 * max(1, round(self.numbers * KEEP))
        return values + min(values, -(-self.numbers // 8))


def whole_unet():
    """Fine-tuning all of Stable Diffusion 1.5's UNet."""
    return Payload(UNET_NUMBERS, UNET_ROWS, UNET_STEP_FLOPS)


def adapter(rank):
    """Fine-tuning a LoRA adapter of this rank on its attention layers: A is (rank, inputs), B is (outputs, rank).

    Raises ValueError for a rank below 1.
    """
    if rank < 1:
        raise ValueError(f"rank must be a whole number of at least 1; got {rank!r}.")
    return Payload(rank * (INPUTS + OUTPUTS), LAYERS * rank + OUTPUTS, LORA_STEP_FLOPS)


def trace_of(payload, num_clients, rounds=5, pictures=20, upload="float32"):
    """The `Trace` of synchronous rounds in which all clients train `payload` on so many `pictures` (steps x batch).

    Everyone gets the numbers as float32 and answers in the form of `upload`.
    """
    trace, bytes_up = Trace(), payload.upload_bytes(upload)
    for server_round in range(1, rounds + 1):
        for client in range(num_clients):
            trace.add(server_round, 0, SERVER, client, "train", 4 * payload.numbers)
            trace.add(
                server_round, 0, client, SERVER, "train", bytes_up, pictures * payload.step_flops
            )
    return trace
