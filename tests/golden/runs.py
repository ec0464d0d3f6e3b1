"""Golden outcomes of whole runs on the random pipeline: what devices do with what comes down, and what comes of it.

These train, in float32 but for the local steps, so their tolerance is wide; `averages` holds the servers' halves.
"""

from contextlib import contextmanager

import numpy as np
import torch
import wing
import world
from diffusers import DDPMScheduler
from golden import COARSE, SINGLE, TRAINED, Outcome, fingerprint, fingerprint_of

PROMPTS = ["a red star on blue", "a red star on white", "a green moon on black"]


def ran(**knobs):
    """A run of the real app: losses, the model, and what crossed the wire."""
    left = wing.run(world.run_knobs(**knobs))
    up = left.trace["receiver"] == wing.SERVER
    found = {
        "losses": left.losses,
        "model": _model(left.state),
        "refused": left.refused,
        "messages": len(left.trace),
        "bytes up": int(left.trace.loc[up, "bytes"].sum()),
        "bytes down": int(left.trace.loc[~up, "bytes"].sum()),
        "operations": float(left.trace["flops"].sum()),
    }
    return found


def _model(state):
    if not any(
        ".lora_" in name for name in state
    ):  # a full model: how far it went from where it started
        start = dict(wing.load_pipeline(world.pipeline_folder()).unet.named_parameters())
        return fingerprint_of(
            {name: (tensor - start[name]).detach() for name, tensor in state.items()}
        )
    change = world.change_of(state)
    has_b = any(np.abs(layer).max() > 0 for layer in change.values())
    return fingerprint_of(change if has_b else state)


def ran_whole():
    """`run_federated` as dashboards call it, with events, pictures on the way and an attacker among three devices."""
    events = []
    knobs = world.run_knobs(attackers=1, rounds=1, lora_alpha=4.0)
    outcome = wing.run_whole("federated", knobs, on_event=events.append)
    pictures = [event.pictures for event in events if hasattr(event, "pictures")]
    return {
        "losses": outcome.rounds["loss"].tolist(),
        "model": _model(outcome.state),
        "devices": {
            str(client): _model(state) for client, state in sorted(outcome.client_states.items())
        },
        "steps heard": [
            [event.round, event.client, event.step] for event in events if hasattr(event, "step")
        ],
        "pictures": fingerprint(torch.stack(pictures)),
    }


def ran_cut(cut, **knobs):
    """A split run of two devices; with every copy of the edge's half averaged it equals the run that is not cut."""
    outcome = wing.run_cut(world.run_knobs(num_clients=2, rounds=1, **knobs), cut)
    frame = outcome.trace.frame()
    up = frame["receiver"] == wing.SERVER
    return {
        "losses": outcome.rounds["loss"].tolist(),
        "model": _model(outcome.state),
        "messages": len(frame),
        "bytes up": int(frame.loc[up, "bytes"].sum()),
        "bytes down": int(frame.loc[~up, "bytes"].sum()),
        "operations": float(frame["flops"].sum()),
        "exchanges": frame["kind"].drop_duplicates().tolist(),
    }


def ran_on_air():
    """Lab 05's run on the clock, asynchronous: two devices, three merges of one upload each."""
    knobs = world.run_knobs(num_clients=2, buffer=1, rounds=3, local_steps=1)
    network = wing.Network(num_clients=2, bandwidth_hz=1e6, flops_per_second=1e8, seed=2)
    outcome = wing.run_whole("on air", knobs, network)
    progress = outcome.progress
    return {
        "losses": progress["loss"].tolist(),
        "model": _model(outcome.state),
        "seconds of rounds": progress["seconds"].tolist(),
        "staleness": progress["staleness"].tolist(),
        "left out": progress["left_out"].tolist(),
        "phases": outcome.timeline.events["phase"].tolist(),
    }


def alone(kind):
    """What federated LoRA is measured against."""
    outcome = wing.run_whole(kind, world.run_knobs(num_clients=2, rounds=1))
    return {
        "losses": outcome.rounds["loss"].tolist(),
        "devices": {
            str(client): _model(state) for client, state in sorted(outcome.client_states.items())
        },
    }


# -- one device, in float64 -----------------------------------------------------------------------------------------


@contextmanager
def in_double():
    """New tensors and random draws are float64 inside."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def bench(number=5, adapter=True):
    """A random UNet with an adapter, a schedule and random pictures as it sees them; all in float64."""
    unet = wing.new_unet(world.PIPELINE["unet"], seed=1, dtype=torch.float64)
    if adapter:
        wing.add_adapter(unet, rank=2, seed=2)
        state = wing.trainable_state(unet)
        wing.load_trainable(
            unet, world.tensors(world.moved({n: t.numpy() for n, t in state.items()}, 20))
        )
    rng = world.random(21)
    latents, text = (
        torch.from_numpy(rng.normal(size=(number, *shape))) for shape in ((4, 4, 4), (3, 8))
    )
    return unet, DDPMScheduler(num_train_timesteps=100), wing.Encoded(latents, text)


def trained_locally(schedule_of=lambda schedule: schedule):
    """Three steps on one device's pictures, and the loss of each picture before and after."""
    with in_double():
        unet, schedule, encoded = bench()
        schedule = schedule_of(schedule)
        before = wing.denoising_loss(unet, schedule, encoded, seed=1, draws=2)
        losses = wing.train(unet, schedule, encoded, 3, 2, 0.01, seed=3)
        after = wing.denoising_loss(unet, schedule, encoded, seed=1, draws=2)
        change = world.change_of(
            {name: tensor.numpy() for name, tensor in wing.trainable_state(unet).items()}
        )
    return {
        "losses": losses,
        "before": fingerprint(before),
        "after": fingerprint(after),
        "model": fingerprint_of(change),
    }


def trained_privately():
    """The same by DP-SGD."""
    with in_double():
        unet, schedule, encoded = bench()
        losses = wing.train_privately(
            unet, schedule, encoded, 2, 3, 0.01, seed=3, clip=0.1, noise_multiplier=0.5
        )
        change = world.change_of(
            {name: tensor.numpy() for name, tensor in wing.trainable_state(unet).items()}
        )
    return {"losses": losses, "model": fingerprint_of(change)}


def velocity(schedule):
    """The same schedule, for models that guess the velocity."""
    return DDPMScheduler.from_config(schedule.config, prediction_type="v_prediction")


# -- one pipeline ---------------------------------------------------------------------------------------------------


def drawn_and_encoded():
    """Pictures to latents and back, prompts to text states and to pictures."""
    pipeline = wing.load_pipeline(world.pipeline_folder())
    encoded = wing.encode(pipeline, wing.read_folder(world.pictures_folder()).take(range(4)))
    return {
        "latents": fingerprint(encoded.latents),
        "text": fingerprint(encoded.text),
        "decoded": fingerprint(wing.decode(pipeline, encoded.latents)),
        "drawn": fingerprint(wing.draw(pipeline, PROMPTS[:2], [1, 2], steps=3, guidance=2.0)),
    }


def handed_over():
    """Split denoising, as lab 05's knob calls it and as an app."""
    pipeline = wing.load_pipeline(world.pipeline_folder())
    pictures, groups, edge_steps = wing.split_draw(
        pipeline, PROMPTS, [1, 2, 3], 2, steps=4, similarity=0.85
    )
    half = wing.denoise(pipeline, PROMPTS, wing.begin(pipeline, [1, 2, 3], 4), 2)
    _, trace = wing.run_hand_off(pipeline, PROMPTS[:2], [1, 2], 1, 2, torch.float32)
    frame = trace.frame()
    return {
        "pictures": fingerprint(pictures),
        "groups": groups,
        "edge steps": edge_steps,
        "latents": fingerprint(half.latents),
        "size of a latent": half.bytes,
        "bytes down": int(frame.loc[frame["sender"] == wing.SERVER, "bytes"].sum()),
        "messages": len(frame),
    }


def mixed():
    """Personal adapters that take turns on one base, and their mixtures."""
    unet, schedule, encoded = bench(adapter=False)
    unet = unet.float()
    encoded = wing.Encoded(encoded.latents.float(), encoded.text.float())
    wing.add_adapter(unet, rank=2, seed=2)
    like = {name: tensor.numpy() for name, tensor in wing.trainable_state(unet).items()}
    wing.remove_adapter(unet)
    people = {
        name: world.tensors(world.moved(like, 22, i, size=0.3))
        for i, name in enumerate(("ada", "ben"))
    }
    wing.add_adapters(unet, people)
    mixtures = {
        "base": {},
        "ada": {"ada": 1.0},
        "ben": {"ben": 1.0},
        "both": {"ada": 0.3, "ben": 0.7},
    }
    losses = {}
    for name, weights in mixtures.items():
        wing.mix(unet, weights)
        losses[name] = fingerprint(wing.denoising_loss(unet, schedule, encoded, draws=1))
    return {"losses": losses}


def counted():
    """What sending costs in every way to train, by lab 05's table; and what a base of half the bytes weighs."""
    unet = wing.new_unet(world.PIPELINE["unet"], dtype=torch.float32)
    table = wing.traffic(unet, 100, 77, pictures=10, rounds=2, steps=3, batch=4, rank=2)
    wing.add_adapter(unet, rank=2)
    sizes = [wing.base_bytes(unet), wing.adapter_bytes(wing.trainable_state(unet))]
    wing.make_light(unet)
    return {
        "table": table.astype(str).to_dict("list"),
        "base, adapter, light base": [*sizes, wing.base_bytes(unet)],
    }


def exported(kind):
    """A trained adapter as a file for other programs."""

    def compute():
        from safetensors.torch import load_file

        state = world.tensors(world.adapter(23, dtype=np.float32))
        path = wing.save_adapter(state, world.folder() / kind, kind, {"rule": "fedit"}, alpha=6.0)
        tensors = load_file(path)
        return {
            "names": sorted(tensors),
            "numbers": fingerprint_of(tensors),
            "header": wing.read_provenance(path),
        }

    return compute


def shipped_model():
    """The tiny Stable Diffusion that comes with the lab: what it makes of two sprites and one prompt."""
    pipeline = wing.load_pipeline()
    encoded = wing.encode(pipeline, wing.draw_sprites(2, 3))
    schedule = wing.noise_schedule(pipeline)
    first = wing.first_adapter()
    return {
        "loss": fingerprint(wing.denoising_loss(pipeline.unet, schedule, encoded, draws=1)),
        "drawn": fingerprint(wing.draw(pipeline, ["a red heart on white"], [4], steps=2)),
        "first adapter": _model(first),
    }


def _outcomes():
    for rule, knobs in {
        "fedit": {"num_clients": 2},
        "ffa": {"upload": "int8"},
        "fedsa": {},
        "rolora": {"rounds": 3, "local_steps": 1},
        "flora": {"ranks": "1,2,3"},
        "flexlora": {"ranks": "1,2", "num_clients": 2, "lora_alpha": 4.0},
        "fedex": {"num_clients": 2},
        "fed-sb": {"num_clients": 2, "lora_alpha": 4.0},
    }.items():
        name = "".join(f", {knob} {value}" for knob, value in knobs.items())
        yield (
            f"run: rule {rule}{name}",
            Outcome(lambda rule=rule, knobs=knobs: ran(rule=rule, **knobs), TRAINED),
        )
    full = {"method": "full", "learning_rate": 1e-3, "num_clients": 2, "rounds": 1}
    yield (
        "run: the full model, uploads by top-k",
        Outcome(lambda: ran(**full, upload="top-k"), TRAINED),
    )
    yield (
        "run: a base in bfloat16",
        Outcome(
            lambda: {"losses": ran(num_clients=1, rounds=1, precision="bfloat16")["losses"]}, COARSE
        ),
    )
    yield "run: events, pictures and an attacker", Outcome(ran_whole, TRAINED)
    yield (
        "run: cut after down_blocks.0, adapters",
        Outcome(lambda: ran_cut("down_blocks.0"), TRAINED),
    )
    yield (
        "run: cut after conv_in, the full model",
        Outcome(
            lambda: ran_cut("conv_in", method="full", learning_rate=1e-3, local_steps=1), TRAINED
        ),
    )
    yield "run: on the air, FedBuff", Outcome(ran_on_air, TRAINED)
    for kind in ("local only", "centralised"):
        yield f"run: {kind}", Outcome(lambda kind=kind: alone(kind), TRAINED)
    yield "local steps: noise", Outcome(trained_locally, SINGLE)
    yield "local steps: velocity", Outcome(lambda: trained_locally(velocity), SINGLE)
    yield "local steps: DP-SGD", Outcome(trained_privately, SINGLE)
    yield "pipeline: encode, decode, draw", Outcome(drawn_and_encoded, TRAINED)
    yield "pipeline: hand-off between edge and devices", Outcome(handed_over, TRAINED)
    yield "pipeline: personal adapters and their mixtures", Outcome(mixed, SINGLE)
    yield "pipeline: the shipped model", Outcome(shipped_model, TRAINED)
    yield "payload: every way to train, and a light base", Outcome(counted)
    for kind in ("diffusers", "diffusers-old", "kohya"):
        yield f"export: {kind}", Outcome(exported(kind), SINGLE)


OUTCOMES = dict(_outcomes())
