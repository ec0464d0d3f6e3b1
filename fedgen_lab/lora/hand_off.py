"""Split denoising: an edge server draws the first steps once for devices with similar prompts; each finishes its own.

Early steps decide the layout, late ones the details, so people who ask for similar pictures can share the early ones.
What is handed over is a latent, and what the sampler remembers of its last step. The idea: Du et al., arXiv 2304.03446;
as the third phase of arXiv 2307.07146. As a Flower app (`hand_off_apps`) a prompt goes up and a latent comes down;
pictures are never sent. Lab 05.
"""

import logging
from copy import copy, deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedgen_lab.federation.grid import run_app
from fedgen_lab.lora.pipeline import prompt_states, text_states

_log = logging.getLogger("flwr")
WITHOUT_MEMORY = (
    "DDIMScheduler",
    "EulerDiscreteScheduler",
)  # samplers whose step needs the latent alone


@dataclass(frozen=True)
class HandOff:
    """Pictures half-way: `step` of `steps` denoising steps are done."""

    step: int
    steps: int
    latents: torch.Tensor  # (N, 4, h, w)
    memory: tuple = ()  # earlier guesses that a multistep sampler still needs, oldest first; each (N, 4, h, w)

    @property
    def bytes(self):
        """What it takes to send, without headers."""
        return sum(
            tensor.numel() * tensor.element_size() for tensor in (self.latents, *self.memory)
        )

    def take(self, rows, dtype=None):
        """Only these rows, also one several times; in another dtype if wanted (float16 halves the bytes)."""
        some = [
            tensor[list(rows)].to(dtype or tensor.dtype) for tensor in (self.latents, *self.memory)
        ]
        return HandOff(self.step, self.steps, some[0], tuple(some[1:]))


def begin(pipeline, seeds, steps=20):
    """Pure noise, one seed a picture: the hand-off before the first step. The same noise that `pipeline.draw` takes."""
    own, side = (
        _own_sampler(pipeline, steps),
        pipeline.unet.config.sample_size * pipeline.vae_scale_factor,
    )
    noises = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
    channels, dtype = pipeline.unet.config.in_channels, pipeline.unet.dtype
    latents = own.prepare_latents(len(noises), channels, side, side, dtype, pipeline.device, noises)
    return HandOff(0, steps, latents)


@torch.no_grad()
def denoise(pipeline, prompts, start, until=None, guidance=3.0):
    """Take `start` (a `HandOff` of N pictures) on to step `until`, the last one by default, with N prompts.

    The loop of `StableDiffusionPipeline` in the open: the same bits. Raises ValueError for a step that is not ahead, or
    a sampler whose memory is not known here.
    """
    until = start.steps if until is None else until
    if not start.step <= until <= start.steps:
        raise ValueError(f"until must lie in [{start.step}, {start.steps}]; got {until}.")
    own = _own_sampler(pipeline, start.steps)
    scheduler, device = own.scheduler, pipeline.device
    _remember(scheduler, start)
    text, empty = prompt_states(own, prompts, guidance)
    text = (
        torch.cat([empty, text]) if guidance > 1 else text
    )  # (2 N, L, D): without and with the prompt
    latents = start.latents.to(device, pipeline.unet.dtype)
    for t in scheduler.timesteps[start.step : until]:
        both = scheduler.scale_model_input(torch.cat([latents] * 2) if guidance > 1 else latents, t)
        guess = pipeline.unet(both, t, encoder_hidden_states=text, return_dict=False)[0]
        if guidance > 1:
            without, with_prompt = guess.chunk(2)
            guess = without + guidance * (with_prompt - without)
        latents = scheduler.step(guess, t, latents, return_dict=False)[0]
    return HandOff(until, start.steps, latents, _memory(scheduler))


@torch.no_grad()
def finish(pipeline, prompts, start, guidance=3.0, batch_size=16):
    """Draw `start` to its end with these prompts: (N, 3, H, W) in [-1, 1] on the CPU, as `pipeline.draw` gives them."""
    pictures = []
    for first in range(0, len(prompts), batch_size):
        part = range(first, min(first + batch_size, len(prompts)))
        done = denoise(
            pipeline, [prompts[i] for i in part], start.take(part), guidance=guidance
        ).latents
        image = pipeline.vae.decode(done / pipeline.vae.config.scaling_factor, return_dict=False)[0]
        image = pipeline.image_processor.postprocess(
            image, output_type="pt", do_denormalize=[True] * len(part)
        )
        pictures.append(image.float().cpu() * 2 - 1)
    return torch.cat(pictures)


def group_prompts(pipeline, prompts, similarity=0.5):
    """Prompts that can share steps: a list of groups, each a list of places in `prompts`, its most typical one first.

    Similar means: in a group any two prompts' text states have a cosine of at least `similarity` (complete linkage).
    For the tiny model 0.5 means about "the same object on the same background"; other text encoders have other scales.
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    if len(prompts) < 2:
        return [[i] for i in range(len(prompts))]
    states = text_states(pipeline, prompts).flatten(1).cpu().double()
    alike = (
        torch.nn.functional.normalize(states) @ torch.nn.functional.normalize(states).T
    )  # (N, N)
    above = np.triu_indices(len(prompts), 1)
    tree = linkage(np.clip(1 - alike.numpy()[above], 0, None), "complete")
    labels = fcluster(tree, 1 - similarity + 1e-9, "distance")
    groups = [np.flatnonzero(labels == label) for label in dict.fromkeys(labels)]
    return [
        sorted(group.tolist(), key=lambda i: (-alike[i, group].sum().item(), i)) for group in groups
    ]


def split_draw(pipeline, prompts, seeds, hand_off, steps=20, guidance=3.0, similarity=0.5):
    """Pictures for `prompts` as split denoising draws them: (N, 3, H, W), the groups, and the steps the edge computed.

    The first `hand_off` steps of a group are drawn with its most typical prompt and that one's seed, the rest with
    everybody's own. `hand_off` 0 is `pipeline.draw`, bit for bit.
    """
    groups = (
        group_prompts(pipeline, prompts, similarity)
        if hand_off
        else [[i] for i in range(len(prompts))]
    )
    typical = [group[0] for group in groups]
    start = begin(pipeline, [seeds[i] for i in typical], steps)
    shared = denoise(pipeline, [prompts[i] for i in typical], start, hand_off, guidance)
    place = {i: row for row, group in enumerate(groups) for i in group}
    own = shared.take([place[i] for i in range(len(prompts))])
    return finish(pipeline, prompts, own, guidance), groups, hand_off * len(groups)


def hand_off_apps(
    pipeline,
    prompts,
    seeds,
    hand_off,
    steps=20,
    guidance=3.0,
    similarity=0.5,
    dtype=torch.float32,
    on_picture=None,
):
    """The edge's `ServerApp` and the devices' `ClientApp`; device i wants `prompts[i]`. Two exchanges of queries:

    "query.prompt"  up: the prompt and its seed. "query.finish"  down: step, latent and memory; up: nothing but "done".
    A finished picture stays in the device's `Context.state["picture"]`; `on_picture(device, picture)` hears of it.
    dtype: of the latents on the wire. A device that errs or asks for nonsense is named in the log and left out.
    """
    server_app, client_app = ServerApp(), ClientApp()

    @client_app.query("prompt")
    def ask(message: Message, context: Context) -> Message:
        device = int(context.node_config["partition-id"])
        wish = ConfigRecord(
            {"prompt": prompts[device], "seed": int(seeds[device]), "partition-id": device}
        )
        return Message(RecordDict({"wish": wish}), reply_to=message)

    @client_app.query("finish")
    def draw_the_rest(message: Message, context: Context) -> Message:
        device, got = (
            int(context.node_config["partition-id"]),
            message.content["latents"].to_torch_state_dict(),
        )
        memory = tuple(got[f"memory.{i}"].float() for i in range(len(got) - 1))
        start = HandOff(
            int(message.content["config"]["step"]), steps, got["latents"].float(), memory
        )
        picture = finish(pipeline, [prompts[device]], start, guidance)[0]
        context.state["picture"] = ArrayRecord({"picture": picture})
        if on_picture is not None:
            on_picture(device, picture)
        return Message(RecordDict({"metrics": MetricRecord({"done": 1})}), reply_to=message)

    @server_app.main()
    def draw_what_is_shared(grid: Grid, context: Context) -> None:
        asked = [Message(RecordDict(), node, "query.prompt") for node in grid.get_node_ids()]
        wishes = {}  # node -> (partition id, prompt, seed)
        for reply in grid.send_and_receive(asked):
            node = reply.metadata.src_node_id
            try:
                wish = reply.content["wish"]
                wishes[node] = int(wish["partition-id"]), str(wish["prompt"]), int(wish["seed"])
            except Exception as why:  # from outside: anything can be wrong with it
                _log.warning("Node %d is left out: it sent no prompt with a seed (%s).", node, why)
        nodes = sorted(wishes, key=wishes.get)
        wanted, noise = [wishes[node][1] for node in nodes], [wishes[node][2] for node in nodes]
        groups = (
            group_prompts(pipeline, wanted, similarity)
            if hand_off
            else [[i] for i in range(len(nodes))]
        )
        messages = []
        for group in groups:
            start = begin(pipeline, [noise[group[0]]], steps)
            one = denoise(pipeline, [wanted[group[0]]], start, hand_off, guidance).take([0], dtype)
            arrays = {
                "latents": one.latents,
                **{f"memory.{i}": tensor for i, tensor in enumerate(one.memory)},
            }
            content = {"latents": ArrayRecord(arrays), "config": ConfigRecord({"step": one.step})}
            messages += [Message(RecordDict(content), nodes[i], "query.finish") for i in group]
        grid.send_and_receive(messages)

    return server_app, client_app


def run_hand_off(pipeline, prompts, seeds, hand_off, **how):
    """Split denoising in this process, on a `LabGrid`: {device: picture}, and the `Trace`; `how` as `hand_off_apps`."""
    pictures = {}
    apps = hand_off_apps(pipeline, prompts, seeds, hand_off, on_picture=pictures.__setitem__, **how)
    run = run_app(*apps, len(prompts))
    return pictures, run.trace


def _own_sampler(pipeline, steps):
    """The pipeline with a sampler of its own, set to `steps`: another thread may be drawing with the same weights."""
    own = copy(pipeline)
    own.scheduler = deepcopy(pipeline.scheduler)
    own.scheduler.set_timesteps(steps, device=pipeline.device)
    return own


def _memory(scheduler):
    """What the sampler needs of earlier steps besides the latent."""
    if hasattr(scheduler, "model_outputs") and hasattr(
        scheduler, "lower_order_nums"
    ):  # the DPM-Solver family
        return tuple(guess for guess in scheduler.model_outputs[1:] if guess is not None)
    if type(scheduler).__name__ not in WITHOUT_MEMORY:
        raise ValueError(
            f"What {type(scheduler).__name__} remembers between steps is not known here, so it can't be handed over; "
            "set pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)."
        )
    return ()


def _remember(scheduler, start):
    """Put a fresh sampler where `start` left off."""
    _memory(scheduler)
    if start.step and hasattr(scheduler, "set_begin_index"):  # others go by the timestep alone
        scheduler.set_begin_index(start.step)
    if start.memory:
        place = scheduler.timesteps.device
        outputs = [guess.to(place) for guess in start.memory]
        scheduler.model_outputs = [None] * (scheduler.config.solver_order - len(outputs)) + outputs
        scheduler.lower_order_nums = min(start.step, scheduler.config.solver_order)
