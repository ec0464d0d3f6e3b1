"""Golden outcomes of everything that makes one state out of many: rules, defences, wrappers, selection, time.

The uploads are made up, so nothing here trains: most of it is computed in float64.
"""

import numpy as np
import wing
import world
from golden import DOUBLE, SINGLE, Outcome, fingerprint, fingerprint_of

WEIGHTS = [0.5, 0.3, 0.2]
RANKS = {"flora": "1,2,4", "flexlora": "1,2,4", "hetlora": "1,2,4"}
CELL = {"bandwidth_hz": 2e5, "flops_per_second": 1e9, "seed": 4}


# -- rules ----------------------------------------------------------------------------------------------------------


def merged(rule, ranks=(3, 3, 3)):
    """One merge of three made-up adapters by a rule: the change that all go on from, and the one in W0 for good."""
    clients = [world.adapter(7, client, rank=rank) for client, rank in enumerate(ranks)]
    if rule == "fed-sb":
        cores = [
            {f"{layer}.R": world.random(8, client).normal(size=(3, 3)) for layer in world.LAYERS}
            for client in range(3)
        ]
        return {
            "core": fingerprint_of(wing.merge(rule, list(map(world.tensors, cores)), WEIGHTS)[0])
        }
    sent = {"ffa": "B", "fedsa": "A", "rolora": "B"}.get(rule, "AB")
    uploads = [wing.rules.part(world.tensors(client), sent) for client in clients]
    adapter, into_base = wing.merge(rule, uploads, WEIGHTS)
    if sent != "AB":
        return {"factors": fingerprint_of(adapter)}
    parts = {"adapter": adapter, "into the base": into_base}
    return {
        what: fingerprint_of(world.change_of(state)) if state else "nothing"
        for what, state in parts.items()
    }


def served(rule, **knobs):
    """Three rounds of a rule's own protocol, from the wire's point of view, with devices that train nothing."""
    knobs = {"num_clients": 3, "rounds": 3, "rank": 3, "rule": rule, "seed": 5} | knobs
    ranks = wing.Scenario(**knobs).client_ranks
    initial = world.adapter(9, rank=max(ranks), dtype=np.float32, b=0.0)
    left = wing.serve(knobs, world.device_under(rule, ranks, initial), initial)
    up = left.trace["receiver"] == wing.SERVER
    shared = {name: factor for name, factor in left.state.items() if ".lora_A." in name}
    change = shared if rule == "fedsa" else world.change_of(left.state)
    found = {
        "model": fingerprint_of(change),
        "bytes up": int(left.trace.loc[up, "bytes"].sum()),
        "bytes down": int(left.trace.loc[~up, "bytes"].sum()),
        "messages": len(left.trace),
        "refused": left.refused,
    }
    if rule == "fedsa":
        found["losses of the devices' own models"] = sorted(
            left.strategy.protocol.personal_losses.items()
        )
    return found


def diagnosed():
    """What lab 04's charts show of three adapters, and how mixed ranks are cut and pruned."""
    clients = [world.tensors(world.adapter(7, client)) for client in range(3)]
    rules = wing.rules
    return {
        "bias by layer": rules.bias_by_layer(clients, WEIGHTS),
        "rank energy": rules.rank_energy(clients[0]).tolist(),
        "cut to rank 2": fingerprint_of(rules.resized(clients[0], 2)),
        "padded to rank 5": fingerprint_of(rules.resized(clients[0], 5)),
        "stack of a stack": fingerprint_of(
            world.change_of(rules.compact(rules.stacked([rules.stacked(clients)] * 3)))
        ),
        "folded by alpha 6": fingerprint_of(rules.fold(clients[1], 6.0)),
        "pruned ranks": [
            rules.pruned(client, share) for client in clients for share in (0.3, 0.6, 0.9)
        ],
    }


def table_of_rules():
    """Lab 05's table of rules and links, as the lab shows it."""
    errors = wing.compatibility(seed=0)
    return {"verdicts": errors.map(wing.verdict).to_dict("index")}


# -- wrappers and defences around a mean, on a whole model in float64 -----------------------------------------------


def averaged(answer=None, **knobs):
    """Two rounds of a full model of two arrays on five devices, under some knobs; who holds more, weighs more."""
    knobs = {
        "num_clients": 5,
        "rounds": 2,
        "method": "full",
        "seed": 6,
        "pictures_per_client": 8,
    } | knobs
    dtype = np.float32 if knobs.get("upload", "float32") != "float32" else np.float64
    initial = {
        "weight": world.random(10).normal(size=(6, 8)).astype(dtype),
        "bias": np.ones(5, dtype),
    }
    network = wing.Network(num_clients=knobs["num_clients"], **CELL)
    left = wing.serve(knobs, answer or honest, initial, network, work_flops=2e9)
    up = left.trace["receiver"] == wing.SERVER
    found = {
        "state": fingerprint_of(left.state),
        "refused": left.refused,
        "messages": len(left.trace),
        "bytes up": int(left.trace.loc[up, "bytes"].sum()),
        "bytes down": int(left.trace.loc[~up, "bytes"].sum()),
    }
    if left.timeline is not None:
        rounds, events = left.timeline.rounds, left.timeline.events
        found["stragglers"], found["seconds of rounds"] = (
            rounds["straggler"].tolist(),
            rounds["seconds"].tolist(),
        )
        found["who uploaded"] = (
            events.loc[events["phase"] == "upload", ["round", "client"]].to_numpy().tolist()
        )
    if hasattr(left.strategy, "merged"):
        found["merged (round, client, staleness)"] = left.strategy.merged
    return found


def honest(client, config, arrays):
    """A device's answer: a change of its own, larger for later devices."""
    job = int(config.get("job", config["server-round"]))
    return world.moved(arrays, job, client, size=0.1 * (1 + client)), (3, 8, 5, 2, 6)[client]


def with_attacker(client, config, arrays):
    """The same, but the last of five devices shouts."""
    up, examples = honest(client, config, arrays)
    return ({name: 8 * up[name] for name in up} if client == 4 else up), examples


def faulty(client, config, arrays):
    """Device 1 sends NaN, device 2 another shape, device 3 fails, and in the second round device 4 a giant."""
    up, examples = honest(client, config, arrays)
    if client == 1:
        up["bias"] = up["bias"] * np.nan
    if client == 2:
        up["bias"] = up["bias"][:-1]
    if client == 3:
        raise RuntimeError("out of memory")
    if client == 4 and int(config["server-round"]) == 2:
        up = {name: 1e6 * array for name, array in up.items()}
    return up, examples


def combined(defence, clip=0.0):
    """What lab 08's `combine` makes of seven uploads, the last two of them an attacker's, and what it took of each."""
    received = {"weight": world.random(11).normal(size=(6, 8)), "bias": np.ones(5)}
    states = [world.moved(received, 12, client, size=0.1 * (1 + client % 3)) for client in range(7)]
    states[5:] = [{name: received[name] + 1.0 + 0.01 * n for name in received} for n in range(2)]
    state, shares = wing.combine(
        received, states, [1, 2, 3, 4, 5, 6, 7], defence, attackers=2, clip=clip
    )
    return {"state": fingerprint_of(state), "shares": shares}


def private():
    """DP-FedAvg's rule by hand: clipped changes, noise by the seed, divided by all who were asked."""
    sent = {"weight": world.random(13).normal(size=(4, 3))}
    uploads = [world.moved(sent, 14, client) for client in range(3)]
    rule = wing.private_mean(0.2, 0.7, 4, secret=1)
    return {f"round {r}": fingerprint_of(rule(r, sent, uploads, [1, 1, 1])) for r in (1, 2)}


def packed(upload):
    """One upload as it crosses the wire and what the server reads; top-k remembers what it kept back."""
    received = {name: array.astype(np.float32) for name, array in world.adapter(15).items()}
    scenario, memory, found = wing.Scenario(upload=upload, keep=0.2), wing.RecordDict(), {}
    for turn in (1, 2):
        trained = world.tensors(world.moved(received, 16, turn))
        record = wing.pack(trained, world.tensors(received), scenario, memory, seed=turn)
        read = wing.unpack(record, world.tensors(received), scenario)
        found[f"read, upload {turn}"] = fingerprint_of(read)
        found[f"arrays, upload {turn}"] = {
            name: [str(a.dtype), *a.shape]
            for name, array in record.items()
            for a in [array.numpy()]
        }
    return found


def on_the_ring():
    """Numbers as secure aggregation adds them up, masked by a fixed seed."""
    update, bits = {"a": world.random(17).normal(size=9)}, wing.ring_bits(5, 8.0)
    ring, mask = wing.to_ring(update, 0.25, bits, 8.0), wing.mask_of(bytes(range(32)), 10)
    numbers, weight = wing.from_ring(ring + mask - mask, bits)
    return {
        "bits": bits,
        "first places": ring[:4].tolist(),
        "mask": mask[:4].tolist(),
        "weight": weight,
        "numbers": fingerprint(numbers),
    }


KNOBS = (  # settings that are tried in pairs: which of them exclude each other
    *({"rule": rule} for rule in wing.RULES[1:]),
    {"method": "full"},
    {"ranks": "2,4"},
    {"lora_alpha": 4.0},
    {"upload": "int8"},
    {"upload": "top-k"},
    {"select": "random", "fraction": 0.5},
    {"select": "fastest"},
    {"select": "deadline"},
    {"deadline_seconds": 2.0},
    {"buffer": 2},
    {"clip": 1.0},
    {"noise_multiplier": 1.0},
    {"defence": "clip"},
    {"defence": "median"},
    {"defence": "trimmed"},
    {"defence": "krum"},
    {"attackers": 2},
    {"secure": 1},
)


def contradictions():
    """Which two knobs are refused together, for every pair of settings of the labs' knobs."""
    names = [" ".join(f"{knob}={value}" for knob, value in knobs.items()) for knobs in KNOBS]
    refused = {}
    for one, knobs in enumerate(KNOBS):
        others = [
            other
            for other in range(one, len(KNOBS))
            if not knobs.keys() & KNOBS[other].keys() or other == one
        ]
        kept = [names[o] for o in others if wing.refuses({"num_clients": 5, **knobs, **KNOBS[o]})]
        refused[names[one]] = kept
    return {"refused together with": refused}


def defaults(profile):
    """The knobs' defaults on one profile."""

    def compute():
        with wing.patch.dict("os.environ", FEDGEN_PROFILE=profile):
            return {"knobs": wing.Scenario.for_profile().to_run_config()}

    return compute


def _outcomes():
    yield "rules: what lab 04's charts show", Outcome(diagnosed, SINGLE)
    yield "rules: lab 05's table of rules and links", Outcome(table_of_rules, DOUBLE)
    for rule in wing.RULES:
        yield f"rule {rule}: one merge", Outcome(lambda rule=rule: merged(rule), SINGLE)
        yield (
            f"rule {rule}: three rounds on the wire",
            Outcome(lambda rule=rule: served(rule), SINGLE),
        )
    for rule, ranks in RANKS.items():
        yield (
            f"rule {rule}: one merge of mixed ranks",
            Outcome(lambda rule=rule: merged(rule, (1, 2, 4)), SINGLE),
        )
        yield (
            f"rule {rule}: three rounds of mixed ranks on the wire",
            Outcome(lambda rule=rule, ranks=ranks: served(rule, ranks=ranks), SINGLE),
        )
    for rule in ("fedit", "flora", "fed-sb"):
        yield (
            f"rule {rule}: alpha of 6",
            Outcome(lambda rule=rule: served(rule, lora_alpha=6.0), SINGLE),
        )
    for rule, knobs in {
        "fedit": {"secure": 1},
        "ffa": {"clip": 0.3, "noise_multiplier": 0.5},
        "rolora": {"defence": "median"},
        "fedsa": {"upload": "int8"},
        "lora-fair": {"select": "random", "fraction": 0.7},
        "fedex": {"upload": "top-k"},
        "flora": {"deadline_seconds": 0.03},
    }.items():
        name = " and ".join(f"{knob} {value}" for knob, value in knobs.items())
        yield (
            f"rule {rule}: under {name}",
            Outcome(lambda rule=rule, knobs=knobs: served(rule, **knobs), SINGLE),
        )
    for name, knobs in {
        "plain": {},
        "clip": {"clip": 1.0},
        "clip and noise": {"clip": 1.0, "noise_multiplier": 0.5},
        "secure aggregation": {"secure": 1},
        "secure aggregation and clip": {"secure": 1, "clip": 1.0},
        "secure aggregation, clip and noise": {"secure": 1, "clip": 1.0, "noise_multiplier": 0.5},
        "random half": {"select": "random", "fraction": 0.5},
        "fastest": {"select": "fastest", "fraction": 0.6},
        "deadline": {"deadline_seconds": 6.0},
        "only who makes the deadline": {"select": "deadline", "deadline_seconds": 6.0},
        "FedBuff": {"buffer": 2, "rounds": 5},
        "FedBuff and clip": {"buffer": 3, "rounds": 3, "clip": 1.0},
    }.items():
        yield f"average: {name}", Outcome(lambda knobs=knobs: averaged(**knobs), DOUBLE)
    for upload in ("int8", "top-k"):
        yield (
            f"average: uploads as {upload}",
            Outcome(lambda upload=upload: averaged(upload=upload), SINGLE),
        )
        yield f"upload as {upload}", Outcome(lambda upload=upload: packed(upload), SINGLE)
    for defence in ("mean", "clip", "median", "trimmed", "krum"):
        knobs = {"defence": defence, "attackers": 1}
        yield (
            f"average: defence {defence} against one attacker",
            Outcome(lambda knobs=knobs: averaged(with_attacker, **knobs), DOUBLE),
        )
        yield (
            f"lab 08: combine by {defence}",
            Outcome(lambda defence=defence: combined(defence), DOUBLE),
        )
    yield "lab 08: combine by clip to 0.3", Outcome(lambda: combined("clip", 0.3), DOUBLE)
    yield "average: faulty devices are refused by name", Outcome(lambda: averaged(faulty), DOUBLE)
    yield (
        "average: secure aggregation when a device fails",
        Outcome(
            lambda: averaged(lambda c, config, a: faulty(3 if c == 3 else 0, config, a), secure=1),
            DOUBLE,
        ),
    )
    yield "average: DP-FedAvg's mean", Outcome(private, DOUBLE)
    yield "secure aggregation: numbers on the ring", Outcome(on_the_ring, DOUBLE)
    yield "knobs: which exclude each other", Outcome(contradictions)
    for profile in ("binder", "laptop", "gpu", "test"):
        yield f"knobs: defaults on {profile}", Outcome(defaults(profile))


OUTCOMES = dict(_outcomes())
