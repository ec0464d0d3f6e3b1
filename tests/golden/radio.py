"""Golden outcomes of the wireless room: where devices stand, how fast they are, and what a recorded run takes."""

import numpy as np
import pandas as pd
import wing
import world
from golden import Outcome, fingerprint

CELLS = {
    "Shannon, equal shares": {},
    "no fading, shadowing, a small cell": {
        "fading": False,
        "shadowing": True,
        "cell_radius_m": 60.0,
    },
    "CQI, proportional shares": {"rate_law": "cqi", "allocation": "proportional"},
    "Shannon, min-max": {"allocation": "min-max"},
    "CQI, min-max": {"rate_law": "cqi", "allocation": "min-max"},
    "broadcast and kappa": {"downlink": "broadcast", "kappa": 1e-28},
}


def cell(**knobs):
    """A cell of five devices."""
    return wing.Network(
        **({"num_clients": 5, "bandwidth_hz": 2e6, "flops_per_second": 1e12, "seed": 3} | knobs)
    )


def trace():
    """A recorded run of three rounds in which not everyone takes part, one of them with two exchanges."""
    rng, sent = world.random(30), wing.Trace()
    for server_round, clients, exchanges in (
        (1, (0, 1, 2, 3, 4), 1),
        (2, (0, 2, 4), 1),
        (3, (1, 2, 3), 2),
    ):
        for step in range(exchanges):
            for client in clients:
                down, up = (int(size) for size in rng.integers(10_000, 900_000, 2))
                sent.add(server_round, step, wing.SERVER, client, "train", down)
                sent.add(server_round, step, client, wing.SERVER, "train", up, 1e11 * (1 + client))
    return sent


def replayed(**knobs):
    """The run above on the clock of a cell."""
    timeline = wing.replay(trace(), cell(**knobs))
    events, rounds, clients = timeline.events, timeline.rounds, timeline.clients
    return {
        "starts": fingerprint(events["start_seconds"]),
        "ends": fingerprint(events["end_seconds"]),
        "joules": fingerprint(events["joules"]),
        "phases": events["phase"].tolist(),
        "rounds": rounds["seconds"].tolist(),
        "stragglers": rounds["straggler"].tolist(),
        "sizes up and down": rounds[["bytes_up", "bytes_down"]].to_numpy().tolist(),
        "clients' joules": clients["joules"].tolist(),
        "clients as stragglers": clients["rounds_as_straggler"].tolist(),
    }


def places(**knobs):
    """Where the devices of a cell stand, and their fading."""
    network = cell(**knobs)
    table = wing.place_clients(network)
    return {
        "table": {column: fingerprint(table[column]) for column in table},
        "columns": list(table.columns),
        "fading": fingerprint(wing.fading_gains(network, 4)),
    }


def links():
    """Path loss, rates and reach over distances and bands."""
    distances, bands = np.array([10.0, 50.0, 200.0, 1000.0]), np.array([1e5, 1e6, 2e7, 1e9])
    gain = 10 ** (-wing.path_loss_db(distances, 3.5e9, np.array([True, False, True, False])) / 10)
    return {
        "path loss in sight": wing.path_loss_db(distances, 3.5e9, True).tolist(),
        "path loss out of sight": wing.path_loss_db(distances, 28e9, False).tolist(),
        "Shannon": [wing.rate_bps(band, 23.0, gain, 5.0).tolist() for band in bands],
        "CQI": [wing.rate_bps(band, 23.0, gain, 5.0, "cqi").tolist() for band in bands],
        "reach": wing.reach_hz(23.0, gain, 5.0).tolist(),
        "signal to noise": wing.signal_to_noise(1e6, 23.0, gain, 5.0).tolist(),
    }


def shared(rate_law):
    """Who gets how much of the band, by each way to allocate it."""
    bits, ready = np.array([1e6, 4e6, 0.0, 2e6]), np.array([0.1, 0.0, 0.0, 0.7])
    reach, way = np.array([3e7, 5e6, 1e6, 8e5]), wing.allocate
    return {
        "equal": way.equal(bits, 1e6).tolist(),
        "proportional": way.proportional(bits, 1e6).tolist(),
        "min-max": way.min_max(bits, ready, reach, 1e6, rate_law).tolist(),
        "band for two seconds": np.asarray(way.band_for(bits / 4, 2.0, reach, rate_law)).tolist(),
        "limits": np.asarray(way.limit_bps(reach, rate_law)).tolist(),
    }


def deadlines():
    """Lab 05's real-size rounds, and what a deadline cuts off."""
    payloads = {"whole": wing.whole_unet(), "adapter": wing.adapter(4)}
    sizes = {
        f"{name} as {upload}": payload.upload_bytes(upload)
        for name, payload in payloads.items()
        for upload in ("float32", "int8", "top-k")
    }
    sent = wing.trace_of(payloads["adapter"], 5, rounds=4, pictures=20, upload="int8")
    timeline = wing.replay(sent, cell(flops_per_second=2e13))
    met = wing.meet_deadline(timeline, float(timeline.rounds["seconds"].median()))
    return {
        "sizes": sizes,
        "rounds": timeline.rounds["seconds"].tolist(),
        "met": met["seconds"].tolist(),
        "arrived": met["arrived"].tolist(),
        "late": met["late"].tolist(),
    }


def scenarios():
    """What lab 05 compares, by name: the knobs that differ."""
    plain = wing.Scenario(num_clients=6, rounds=4)
    before = plain.to_run_config()
    return {
        name: {
            knob: value for knob, value in scenario.to_run_config().items() if value != before[knob]
        }
        for name, scenario in wing.ways(plain, 3.0).items()
    }


# -- who holds which picture ----------------------------------------------------------------------------------------

TABLE = pd.DataFrame(
    {"kind": [("ant", "bee", "cat", "")[int(n)] for n in world.random(31).integers(0, 4, 60)]}
)


def dealt(split, *arguments):
    """Who holds which picture, and how far that is from everyone holding the same."""
    parts = getattr(wing.partition, split)(TABLE, *arguments)
    counts = wing.partition.concept_counts(TABLE, "kind", parts)
    return {
        "rows": [part.tolist() for part in parts],
        "counts": counts.to_numpy().tolist(),
        "names": list(counts.columns),
        "distance": wing.partition.mean_js_distance(counts),
    }


def dealt_sprites(**knobs):
    """The pictures, captions and prompts of a scenario of sprites."""
    dealt = wing.deal(
        wing.Scenario(num_clients=3, pictures_per_client=4, num_prompts=3, seed=2, **knobs)
    )
    return {
        "clients": [fingerprint(part.images) for part in dealt.clients],
        "held out": fingerprint(dealt.held_out.images),
        "captions": [part.captions for part in dealt.clients],
        "prompts": list(dealt.prompts),
        "old prompts": list(dealt.old_prompts),
        "strip": list(dealt.strip),
        "concepts": list(dealt.concepts),
    }


def dealt_own():
    """The same of a folder of one's own pictures."""
    knobs = {
        name: world.run_knobs()[name]
        for name in ("pictures", "concept", "num_clients", "skew", "seed")
    }
    dealt = wing.deal(wing.Scenario(pictures_per_client=5, **knobs))
    return {
        "files": [
            part.attributes["file_name"].tolist() for part in (*dealt.clients, dealt.held_out)
        ],
        "concepts": list(dealt.concepts),
        "strip": list(dealt.strip),
    }


def dealt_domains(**knobs):
    """Labels of a deal of drawn domains, as labs 06 and 07 have them."""
    plain = {"num_clients": 4, "domains": "runes,letters", "pictures_per_client": 12, "seed": 1}
    parts = wing.labels_dealt(plain | knobs)
    return {"labels": [np.bincount(labels, minlength=10).tolist() for labels in parts]}


def _outcomes():
    for name, knobs in CELLS.items():
        yield (
            f"replay: {name}",
            Outcome(lambda knobs=knobs: replayed(**knobs), 1e-7),
        )  # a bisection behind min-max
        if not {"rate_law", "allocation"} & knobs.keys():
            yield f"places and fading: {name}", Outcome(lambda knobs=knobs: places(**knobs))
    yield "links: path loss, rate, reach", Outcome(links)
    for rate_law in ("shannon", "cqi"):
        yield (
            f"allocation: {rate_law}",
            Outcome(lambda rate_law=rate_law: shared(rate_law), 1e-7),
        )  # a bisection
    yield "lab 05: payloads and deadlines", Outcome(deadlines)
    yield "lab 05: the ways that are compared", Outcome(scenarios)
    for skew in (0.0, 0.4, 1.0):
        yield (
            f"partition: skew {skew}",
            Outcome(lambda skew=skew: dealt("by_skew", "kind", 5, skew, 7, 3)),
        )
    yield "partition: iid", Outcome(lambda: dealt("iid", 7, 3))
    yield "partition: unequal", Outcome(lambda: dealt("unequal", 6, 3, 8.0))
    for alpha in (0.2, 10.0):
        yield (
            f"partition: Dirichlet {alpha}",
            Outcome(lambda alpha=alpha: dealt("dirichlet", "kind", 5, alpha, 3)),
        )
    yield (
        "partition: pathological, two kinds each",
        Outcome(lambda: dealt("pathological", "kind", 5, 2, 3)),
    )
    yield "deal: sprites", Outcome(lambda: dealt_sprites(skew=0.5), 1e-3)
    yield "deal: own pictures", Outcome(dealt_own)
    for name, knobs in {
        "skew": {"skew": 0.6},
        "unequal": {"unequal": True},
        "non-iid": {"share": "non-iid"},
    }.items():
        yield f"deal: domains by {name}", Outcome(lambda knobs=knobs: dealt_domains(**knobs))


OUTCOMES = dict(_outcomes())
