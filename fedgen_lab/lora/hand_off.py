"""Split denoising: an edge server draws the first steps once for devices with similar prompts; each finishes its own.

Early steps decide the layout, late ones the details, so people who ask for similar pictures can share the early ones.
What is handed over is a latent, and what the sampler remembers of its last step. The idea: Du et al., arXiv 2304.03446;
as the third phase of arXiv 2307.07146. As a Flower app (`hand_off_apps`) a prompt goes up and a latent comes down;
pictures are never sent. Lab 05.
"""

from dataclasses import dataclass

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedgen_lab.federation.arrays import tensors_of
from fedgen_lab.federation.clients import Clients
from fedgen_lab.federation.run import run_app
from fedgen_lab.lora.pipeline import GUIDANCE, prompt_states, text_states, with_own_sampler

# Samplers whose step needs the latent alone, and those that need their last guesses besides.
WITHOUT_MEMORY = ("DDIMScheduler", "EulerDiscreteScheduler")
MULTISTEP = (
    "DPMSolverMultistepScheduler",
    "EDMDPMSolverMultistepScheduler",
    "DEISMultistepScheduler",
)
SIMILARITY = 0.5  # for the tiny model about "the same object on the same background"
TIMEOUT_SECONDS = 300.0  # that an exchange waits for a device
FINISHED_AT_ONCE = 16  # pictures in one pass of `finish`


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
        return sum(tensor.nbytes for tensor in (self.latents, *self.memory))

    def take(self, rows, dtype=None):
        """Only these rows, also one several times; in another dtype if wanted (float16 halves the bytes)."""
        latents, *memory = (
            tensor[list(rows)].to(dtype or tensor.dtype) for tensor in (self.latents, *self.memory)
        )
        return HandOff(self.step, self.steps, latents, tuple(memory))


def begin(pipeline, seeds, steps):
    """Pure noise, one seed a picture: the hand-off before the first step. The same noise that `pipeline.draw` takes."""
    pipeline = with_own_sampler(pipeline)
    pipeline.scheduler.set_timesteps(steps, device=pipeline.device)
    unet, noises = pipeline.unet, [torch.Generator().manual_seed(int(seed)) for seed in seeds]
    side = unet.config.sample_size * pipeline.vae_scale_factor
    latents = pipeline.prepare_latents(
        len(noises), unet.config.in_channels, side, side, unet.dtype, pipeline.device, noises
    )
    return HandOff(0, steps, latents)


@torch.no_grad()
def denoise(pipeline, prompts, start, until):
    """Take `start` (a `HandOff` of N pictures) on to step `until`, with N prompts.

    The loop of `StableDiffusionPipeline` in the open: the same bits. Raises ValueError for a step that is not ahead, or
    a sampler whose memory is not known here.
    """
    if not start.step <= until <= start.steps:
        raise ValueError(f"until must lie in [{start.step}, {start.steps}]; got {until}.")
    pipeline = with_own_sampler(pipeline)
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(start.steps, device=pipeline.device)
    _remember(scheduler, start)

    # Every latent is looked at twice, without its prompt and with it.
    text = torch.cat(prompt_states(pipeline, prompts, GUIDANCE)[::-1])  # (2 N, L, D)
    latents = start.latents.to(pipeline.device, pipeline.unet.dtype)
    for t in scheduler.timesteps[start.step : until]:
        twice = scheduler.scale_model_input(torch.cat([latents, latents]), t)
        guess = pipeline.unet(twice, t, encoder_hidden_states=text, return_dict=False)[0]
        without, with_prompt = guess.chunk(2)
        guess = without + GUIDANCE * (with_prompt - without)
        latents = scheduler.step(guess, t, latents, return_dict=False)[0]
    return HandOff(until, start.steps, latents, _memory(scheduler))


@torch.no_grad()
def finish(pipeline, prompts, start):
    """Draw `start` to its end with these prompts: (N, 3, H, W) in [-1, 1] on the CPU, as `pipeline.draw` gives them."""
    pictures = []
    for first in range(0, len(prompts), FINISHED_AT_ONCE):
        rows = range(len(prompts))[first : first + FINISHED_AT_ONCE]
        end = denoise(pipeline, [prompts[i] for i in rows], start.take(rows), start.steps)
        latents = end.latents / pipeline.vae.config.scaling_factor
        image = pipeline.vae.decode(latents, return_dict=False)[0]
        image = pipeline.image_processor.postprocess(image, output_type="pt")
        pictures.append(image.float().cpu() * 2 - 1)
    return torch.cat(pictures)


def group_prompts(pipeline, prompts, similarity=SIMILARITY):
    """Prompts that can share steps: a list of groups, each a list of places in `prompts`, its most typical one first.

    Similar means: in a group any two prompts' text states have a cosine of at least `similarity` (complete linkage).
    Other text encoders have other scales.
    """
    from scipy.cluster.hierarchy import fclusterdata

    if len(prompts) < 2:
        return [[i] for i in range(len(prompts))]
    states = text_states(pipeline, prompts).flatten(1).cpu().double()

    # Merge the closest groups, as long as their two least similar prompts are similar enough.
    furthest = 1 - similarity + 1e-9
    labels = fclusterdata(states, furthest, "distance", "cosine", method="complete")
    groups = [(labels == label).nonzero()[0].tolist() for label in dict.fromkeys(labels)]

    # The most typical prompt of a group is the one most similar to all of it; of two alike, the first (the two of a
    # pair always are, but for the last bits).
    states = torch.nn.functional.normalize(states)
    cosines = states @ states.T  # (N, N)
    return [
        sorted(group, key=lambda i: -round(cosines[i, group].sum().item(), 6)) for group in groups
    ]


def draw_shared(pipeline, prompts, seeds, hand_off, steps, similarity=SIMILARITY):
    """The edge's steps, one picture a group: the groups, and the `HandOff` for `prompts`.

    The first `hand_off` steps of a group are drawn with its most typical prompt and that one's seed.
    """
    groups = [[i] for i in range(len(prompts))]
    if hand_off:
        groups = group_prompts(pipeline, prompts, similarity)
    typical = [group[0] for group in groups]
    start = begin(pipeline, [seeds[i] for i in typical], steps)
    shared = denoise(pipeline, [prompts[i] for i in typical], start, hand_off)
    row_of = {i: row for row, group in enumerate(groups) for i in group}
    return groups, shared.take([row_of[i] for i in range(len(prompts))])


def split_draw(pipeline, prompts, seeds, hand_off, steps=20, similarity=SIMILARITY):
    """Pictures for `prompts` as split denoising draws them: (N, 3, H, W), the groups, and the steps the edge computed.

    After the edge's steps (`draw_shared`) everyone goes on with a prompt of one's own. `hand_off` 0 is `pipeline.draw`,
    bit for bit.
    """
    groups, handed_over = draw_shared(pipeline, prompts, seeds, hand_off, steps, similarity)
    return finish(pipeline, prompts, handed_over), groups, hand_off * len(groups)


def hand_off_apps(pipeline, prompts, seeds, hand_off, steps, dtype, on_picture):
    """The edge's `ServerApp` and the devices' `ClientApp`; device i wants `prompts[i]`. Two exchanges of queries:

    "query.prompt"  up: the prompt and its seed. "query.finish"  down: step, latent and memory; up: nothing but "done".
    `on_picture(device, picture)` hears of a finished picture, on its device.
    dtype: of the latents on the wire. A device that errs or asks for nonsense is named in the log and left out.
    """
    server_app, client_app = ServerApp(), ClientApp()

    @client_app.query("prompt")
    def ask(message: Message, context: Context) -> Message:
        device = context.node_config["partition-id"]
        wish = ConfigRecord({"prompt": prompts[device], "seed": int(seeds[device])})
        metrics = MetricRecord({"partition-id": device})
        return Message(RecordDict({"wish": wish, "metrics": metrics}), reply_to=message)

    @client_app.query("finish")
    def draw_the_rest(message: Message, context: Context) -> Message:
        device = context.node_config["partition-id"]
        step = message.content["config"]["step"]
        tensors = tensors_of(message.content["latents"]).values()
        latents, *memory = (tensor.float() for tensor in tensors)
        start = HandOff(step, steps, latents, tuple(memory))
        on_picture(device, finish(pipeline, [prompts[device]], start)[0])
        return Message(RecordDict({"metrics": MetricRecord({"done": 1})}), reply_to=message)

    @server_app.main()
    def draw_what_is_shared(grid: Grid, context: Context) -> None:
        # What everyone wants to see.
        clients = Clients()
        nodes = clients.connected(grid, 1)
        questions = {node: Message(RecordDict(), node, "query.prompt") for node in nodes}

        def check(node, content):
            return str(content["wish"]["prompt"]), int(content["wish"]["seed"])

        wishes = clients.exchange(grid, 1, questions, TIMEOUT_SECONDS, check, "prompt")
        if not wishes:
            return

        # The steps that they can share; to each the latent of its group to go on from.
        wording, noises = zip(*(wish for *_, wish in wishes), strict=True)
        _, half_way = draw_shared(pipeline, wording, noises, hand_off, steps)
        messages = []
        for row, (_, node, _) in enumerate(wishes):
            sent = half_way.take([row], dtype)
            memory = {f"memory.{i}": guess for i, guess in enumerate(sent.memory)}
            content = {
                "latents": ArrayRecord({"latents": sent.latents, **memory}),
                "config": ConfigRecord({"step": sent.step}),
            }
            messages.append(Message(RecordDict(content), node, "query.finish"))
        grid.send_and_receive(messages)

    return server_app, client_app


def run_hand_off(pipeline, prompts, seeds, hand_off, steps, dtype):
    """Split denoising in this process, on a `LabGrid`: {device: picture}, and the `Trace`; see `hand_off_apps`."""
    pictures = {}
    apps = hand_off_apps(pipeline, prompts, seeds, hand_off, steps, dtype, pictures.__setitem__)
    return pictures, run_app(*apps, len(prompts)).trace


def _memory(scheduler):
    """What the sampler needs of earlier steps besides the latent."""
    name = type(scheduler).__name__
    if name in WITHOUT_MEMORY:
        return ()
    if name not in MULTISTEP:
        raise ValueError(
            f"What {name} remembers between steps is not known here, so it can't be handed over; set "
            "pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)."
        )
    return tuple(guess for guess in scheduler.model_outputs[1:] if guess is not None)


def _remember(scheduler, start):
    """Put a fresh sampler where `start` left off."""
    _memory(scheduler)
    if start.step and hasattr(scheduler, "set_begin_index"):  # others go by the timestep alone
        scheduler.set_begin_index(start.step)
    if start.memory:
        place = scheduler.timesteps.device
        guesses = [guess.to(place) for guess in start.memory]
        scheduler.model_outputs[-len(guesses) :] = guesses
        scheduler.lower_order_nums = min(start.step, scheduler.config.solver_order)
