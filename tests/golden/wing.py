"""The one place where the golden outcomes touch the package: who moves or renames something mends this file alone.

Beside the imports stand a few adapters that take and give plain data, so that nothing else here knows of strategies,
schedules or records. The numbers in outcomes.json are no business of this file.
"""

# ruff: noqa: F401
from copy import copy, deepcopy
from functools import cache
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedgen_lab import painter, partition
from fedgen_lab.federation import accountant as accountant_room
from fedgen_lab.federation import run_app
from fedgen_lab.federation.averages import combine, private_mean
from fedgen_lab.federation.grid import LabGrid
from fedgen_lab.federation.masks import from_ring, mask_of, ring_bits, to_ring
from fedgen_lab.federation.secure_device import secured
from fedgen_lab.federation.trace import SERVER, Trace
from fedgen_lab.lora import rules
from fedgen_lab.lora.adapter import (
    adapter_bytes,
    add_adapter,
    load_trainable,
    remove_adapter,
    trainable_state,
)
from fedgen_lab.lora.backdoor import TRIGGER, poison
from fedgen_lab.lora.baselines import run_centralised, run_local_only
from fedgen_lab.lora.data import deal
from fedgen_lab.lora.export import read_provenance, save_adapter
from fedgen_lab.lora.federated import draw_strip, lora_client_app, lora_server_app, run_federated
from fedgen_lab.lora.hand_off import begin, denoise, run_hand_off, split_draw
from fedgen_lab.lora.local import denoising_loss, noise_schedule, train
from fedgen_lab.lora.matrix import compatibility, verdict
from fedgen_lab.lora.mixture import add_adapters, mix
from fedgen_lab.lora.on_air import run_on_air, ways
from fedgen_lab.lora.pipeline import Encoded, decode, draw, encode, load_pipeline
from fedgen_lab.lora.private import train_privately
from fedgen_lab.lora.real_size import base_bytes, make_light, new_unet, write_random_pipeline
from fedgen_lab.lora.split_server import run_split
from fedgen_lab.lora.split_unet import traffic
from fedgen_lab.lora.strategies import strategy_of
from fedgen_lab.lora.upload import pack, unpack
from fedgen_lab.painter import error, picture_book
from fedgen_lab.pictures.domains import load_domain
from fedgen_lab.pictures.folders import read_folder
from fedgen_lab.pictures.sprites import HELD_OUT_OBJECTS, draw_sprites, prompts
from fedgen_lab.pictures.squares import square
from fedgen_lab.privacy import inversion, membership
from fedgen_lab.privacy.inversion import protect, shared_gradient
from fedgen_lab.privacy.smashed import attack as attack_smashed_data
from fedgen_lab.privacy.uploads import (
    first_adapter,
    measure,
    run_uploads,
    summed_securely,
)
from fedgen_lab.scenario import RULES, Scenario
from fedgen_lab.scores import fid, judged, kid, load_judge, precision_recall, prompt_fidelity
from fedgen_lab.split.deal import deal_to
from fedgen_lab.split.nets import SIZES, new_discriminator, new_generator
from fedgen_lab.split.scenario import GanScenario
from fedgen_lab.wireless import allocate
from fedgen_lab.wireless.channel import (
    Network,
    fading_gains,
    path_loss_db,
    place_clients,
    rate_bps,
    reach_hz,
    signal_to_noise,
)
from fedgen_lab.wireless.payload import adapter, trace_of, whole_unet
from fedgen_lab.wireless.replay import meet_deadline, replay

AGGREGATOR = "fedgen_lab.lora.rules.mean"  # where FedIT's mean is looked up: the test of the tests changes it


def merge(rule, uploads, weights):
    """What a rule makes of adapters (name -> tensor): the adapter to go on from, and what goes into W0."""
    merged = rules.RULES[rule](uploads, weights)
    return dict(merged.adapter), dict(merged.into_base)


def privacy_spent(noise_multiplier, releases, sample_rate=1.0, delta=1e-5, accountant=None):
    """What noisy sums cost, by the accountant that is named or the one that the package takes."""
    with patch.object(accountant_room, "DELTA", delta):
        if accountant is None:
            return accountant_room.privacy_spent(noise_multiplier, releases, sample_rate)
    epsilon = accountant_room.sampled_epsilon(
        accountant, noise_multiplier, releases, sample_rate, delta
    )
    return accountant_room.Spent(epsilon, delta, accountant)


def invert(*arguments, seed, **more):
    """Gradient inversion whose first guess of an unknown noise is drawn by `seed`."""
    with patch.object(inversion, "GUESS_SEED", seed):
        return inversion.invert(*arguments, **more)


def guess_members(unet, schedule, members, outsiders, against_the_base):
    """Membership inference by the losses of the model in `unet`, alone or beside the base model's; one noise each."""

    def errors():
        pair = (denoising_loss(unet, schedule, each, draws=1) for each in (members, outsiders))
        return tuple(losses.double().numpy() for losses in pair)

    after = errors()
    if not against_the_base:
        return membership.judge_scores(*(-losses for losses in after))
    unet.disable_adapters()
    before = errors()
    unet.enable_adapters()
    return membership.judge_fit(before, after)


def new_painter(seed):
    """An untrained painter of this seed; the lab's own has always the same."""
    with patch.object(painter, "SEED", seed):
        return painter.new_painter()


def knobs_by_name(**changes):
    """All knobs of a scenario by name, with `changes` to their defaults."""
    return Scenario(**changes).to_run_config()


def serve(knobs, answer, initial, network=None, work_flops=0.0, **checked):
    """Run the server that the knobs ask for with devices that train nothing: `answer(client, config, arrays)`.

    `arrays` and the answer are {name: NumPy array}; an answer comes with its number of examples. An exception becomes
    a device's error. Returns state, trace (a data frame), refused [(round, client)], strategy.
    """
    scenario, app = Scenario(**knobs), ClientApp()

    @app.train()
    def reply(message, context):
        client, config = int(context.node_config["partition-id"]), message.content["config"]
        came = {name: array.numpy() for name, array in message.content["arrays"].items()}
        arrays, examples = answer(client, config, came)
        if scenario.upload != "float32":
            tensors = [
                {name: torch.from_numpy(array) for name, array in state.items()}
                for state in (arrays, came)
            ]
            arrays = pack(
                *tensors, scenario, context.state, seed=10 * client + int(config["server-round"])
            )
        else:
            arrays = ArrayRecord(
                {name: Array(np.ascontiguousarray(array)) for name, array in arrays.items()}
            )
        metrics = {
            "num-examples": examples,
            "partition-id": client,
            "loss": 0.5,
            "flops": 1e9 * (client + 1),
        }
        return Message(
            RecordDict({"arrays": arrays, "metrics": MetricRecord(metrics)}), reply_to=message
        )

    @app.evaluate()
    def try_out(message, context):
        client = int(context.node_config["partition-id"])
        metrics = {"num-examples": 1 + client, "partition-id": client, "loss": 0.25 * (1 + client)}
        return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)

    strategy = strategy_of(scenario, network, work_flops, secret=7, **checked)
    first = ArrayRecord({name: Array(array) for name, array in initial.items()})
    with LabGrid(secured(app), scenario.num_clients, scenario.to_run_config()) as grid:
        strategy.start(grid, first, num_rounds=scenario.rounds)
    state = {name: array.numpy() for name, array in strategy.latest.items()}
    return _left_behind(state, grid.trace, strategy)


def run(knobs, network=None):
    """Run the real app of labs 03 to 08 without drawing pictures: losses, state, trace, refused, strategy."""
    scenario, strategies = Scenario(**knobs), []
    with _quick_loading():
        ran = run_app(
            lora_server_app(keep=strategies.append, network=network),
            lora_client_app(),
            scenario.num_clients,
            scenario.to_run_config(),
        )
    left = _left_behind(strategies[0].latest.to_torch_state_dict(), ran.trace, strategies[0])
    left.losses = list(ran.context.state["rounds"]["loss"])
    return left


def run_whole(kind, knobs, *arguments, **more):
    """One of the package's own runners, as labs and dashboards call it: "federated", "on air", "local only", ...

    Drawings on the way, which cost most of the time, are made in `steps` steps.
    """
    runners = {
        "federated": run_federated,
        "on air": run_on_air,
        "local only": run_local_only,
        "centralised": run_centralised,
        "uploads": run_uploads,
    }
    with _quick_loading(), patch("fedgen_lab.lora.federated.STRIP_STEPS", 2):
        return runners[kind](Scenario(**knobs), *arguments, **more)


def run_cut(knobs, cut):
    """A split run: an outcome as `run_federated` gives it."""
    with _quick_loading():
        return run_split(Scenario(**knobs), cut)


def labels_dealt(knobs):
    """The labels (n,) that each device of labs 06 and 07 holds."""
    scenario = GanScenario(**knobs)
    return [deal_to(scenario, client)[1].numpy() for client in range(scenario.num_clients)]


def refuses(knobs):
    """Whether these knobs can't be turned together, by the scenario itself or by the server that it asks for."""
    try:
        strategy_of(Scenario(**knobs))
    except ValueError:
        return True
    return False


def _left_behind(state, trace, strategy):
    timeline = strategy.clock.timeline() if hasattr(strategy, "clock") else None
    return SimpleNamespace(
        state=state,
        trace=trace.frame(),
        refused=[(r.round, r.client) for r in strategy.refused],
        timeline=timeline,
        strategy=strategy,
    )


def without_drawing():
    """A context in which lab 08 judges uploads without drawing with them, which takes most of its time."""
    return patch(
        "fedgen_lab.privacy.uploads.draw", lambda pipeline, words, *rest: torch.zeros(len(words))
    )


@cache
def _loaded(source, dtype):
    return load_pipeline(source, dtype=dtype)


def _quick_loading():
    """Pipelines are read from disk once; a UNet is copied, for it gets an adapter, and the frozen rest is shared."""

    def load(source=None, device=None, dtype=torch.float32):
        pipeline = copy(_loaded(source, dtype))
        pipeline.unet = deepcopy(pipeline.unet)
        return pipeline

    return patch("fedgen_lab.lora.device.load_pipeline", load)
