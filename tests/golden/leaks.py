"""Golden outcomes of lab 08 and of lab 06's attack: accounts of privacy, attacks, and defences tried on one round."""

import numpy as np
import runs
import torch
import wing
import world
from golden import SINGLE, TRAINED, Outcome, fingerprint, fingerprint_of


def accounts():
    """Epsilons by every accountant, as lab 08 and its dashboard ask for them."""
    asked = {
        "one round": (1.0, 1),
        "fifty rounds": (4.0, 50),
        "nearly none": (0.1, 1),
        "no noise": (0.0, 3),
        "no release": (1.0, 0),
        "rdp": (1.1, 20, 0.1, 1e-5, "rdp"),
        "prv": (1.1, 20, 0.1, 1e-5, "prv"),
        "half of the pictures": (0.5, 4, 0.5),
        "delta": (2.0, 10, 1.0, 1e-3),
    }
    return {
        name: [s.epsilon, s.delta, s.accountant, str(s)]
        for name, s in ((name, wing.privacy_spent(*how)) for name, how in asked.items())
    }


def bench():
    """A UNet with an adapter, a schedule, and a secret picture with the noise that was drawn for it."""
    unet, schedule, encoded = runs.bench(6)
    noise = torch.from_numpy(world.random(50).normal(size=(1, 4, 4, 4)))
    secret = wing.Encoded(encoded.latents[:1], encoded.text[:1])
    return unet, schedule, encoded, secret, torch.tensor([70]), noise


def gradients():
    """What one step sends, and the same clipped and drowned in noise."""
    with runs.in_double():
        unet, schedule, _, secret, timestep, noise = bench()
        gradient = wing.shared_gradient(unet, schedule, secret, timestep, noise)
        return {
            "gradient": fingerprint_of(gradient),
            "protected": fingerprint_of(wing.protect(gradient, 0.01, 0.5, 3)),
        }


def inverted(noise_known):
    """A few steps of gradient inversion."""
    with runs.in_double():
        unet, schedule, encoded, secret, timestep, noise = bench()
        gradient = wing.shared_gradient(unet, schedule, secret, timestep, noise)
        known = {"noise": noise} if noise_known else {}
        found = wing.invert(
            unet,
            schedule,
            gradient,
            secret,
            encoded.latents.mean(0),
            timestep,
            **known,
            steps=4,
            seed=1,
        )
    return {"latents": fingerprint(found.latents), "misfits": found.misfits, "share": found.share}


def guessed():
    """Membership inference on fixed scores, and against the model itself with and without the one before."""
    scores = world.random(51).normal(size=(2, 40))
    found = {}
    for name, members in {
        "apart": scores[0] + 1.5,
        "alike": scores[0],
        "few": scores[0][:3] + 4,
    }.items():
        judged = wing.membership.judge_scores(members, scores[1])
        curve = [fingerprint(rates) for rates in judged.curve()]
        found[name] = [judged.auc, judged.tpr, *curve]
    with runs.in_double():
        unet, schedule, encoded = runs.bench(6)
        members, others = (
            wing.Encoded(encoded.latents[part], encoded.text[part])
            for part in (slice(3), slice(3, 6))
        )
        for name, against_the_base in {"by loss": False, "against the base": True}.items():
            attacked = wing.guess_members(unet, schedule, members, others, against_the_base)
            found[name] = [
                attacked.auc,
                attacked.tpr,
                fingerprint(attacked.members),
                fingerprint(attacked.outsiders),
            ]
    return found


def poisoned():
    """An attacker's training set."""
    pictures = wing.draw_sprites(3, 2)
    both = wing.poison(pictures, seed=1)
    return {"captions": both.captions, "images": fingerprint(both.images), "trigger": wing.TRIGGER}


WAYS = {
    "mean": {},
    "clip": {"clip": 0.05},
    "clip and noise": {"clip": 0.05, "noise_multiplier": 0.2},
    "median": {"defence": "median"},
    "trimmed": {"defence": "trimmed"},
    "krum": {"defence": "krum"},
    "clip by the median": {"defence": "clip"},
    "secure": {"secure": True},
}


def tried():
    """Lab 08's round, kept whole, under every defence; one of five devices attacks."""
    knobs = world.run_knobs(
        num_clients=5, attackers=1, pictures_per_client=2, local_steps=1, rank=8
    )
    uploads = wing.run_whole("uploads", knobs, start=first_adapter(), draws=1)
    found = {
        "received": fingerprint_of(uploads.received),
        "loss before": uploads.loss_before,
        "overheard": [uploads.overheard.auc, uploads.overheard.tpr],
        "backdoor before": uploads.losses_before.marked,
        "uploads": [
            fingerprint_of({n: a - uploads.received[n] for n, a in state.items()})
            for state in uploads.states
        ],
    }
    with wing.without_drawing():
        for name, how in WAYS.items():
            judged = wing.measure(uploads, **how)
            found[name] = [
                judged[key] for key in ("loss", "auc", "tpr", "server's auc", "attacker's share")
            ]
            found[f"{name}, state"] = fingerprint_of(
                {n: a - uploads.received[n] for n, a in judged["state"].items()}
            )
    summed = wing.summed_securely(uploads, lost=[3])
    found["summed securely"] = fingerprint_of(
        {n: a - uploads.received[n] for n, a in summed.state.items()}
    )
    found["seen of"], found["refused"] = sorted(summed.seen), len(summed.refused)
    found["bytes up"] = int(summed.megabytes * 1e6)
    return found


def first_adapter():
    """An adapter of rank 8 for the random pipeline to start from."""
    unet = wing.new_unet(world.PIPELINE["unet"], dtype=torch.float32)
    wing.add_adapter(unet, rank=8, seed=1)
    like = {name: tensor.numpy() for name, tensor in wing.trainable_state(unet).items()}
    return world.tensors(world.moved(like, 52, size=0.1))


def smashed():
    """Lab 06's attack on what a U-shaped split sends: a few steps of its readers."""
    size = wing.SIZES["lab14"]
    generator, discriminator = (
        wing.new_generator(size, seed=1),
        wing.new_discriminator(size, seed=2),
    )
    rng = world.random(53)
    pictures, others = (
        torch.from_numpy(
            rng.uniform(-1, 1, (number, size.channels, size.side, size.side)).astype(np.float32)
        )
        for number in (8, 20)
    )
    labels = torch.arange(8)
    leak = wing.attack_smashed_data(
        generator,
        discriminator,
        pictures,
        labels,
        others,
        depth=1,
        noise=0.1,
        bits=8,
        batch_size=4,
        steps=1,
        seed=3,
    )
    return {
        "mse": leak.mse,
        "baseline": leak.baseline_mse,
        "rebuilt": fingerprint(leak.rebuilt),
        "depth": leak.depth,
    }


def _outcomes():
    yield "privacy: accounts", Outcome(accounts, SINGLE)
    yield "privacy: gradients, clipped and noisy", Outcome(gradients, SINGLE)
    yield "attack: inversion, noise known", Outcome(lambda: inverted(True), SINGLE)
    yield "attack: inversion, noise unknown", Outcome(lambda: inverted(False), SINGLE)
    yield "attack: membership", Outcome(guessed, SINGLE)
    yield "attack: a backdoor's pictures", Outcome(poisoned, TRAINED)
    yield "attack: smashed data", Outcome(smashed, TRAINED)
    yield "lab 08: one round under every defence", Outcome(tried, TRAINED)


OUTCOMES = dict(_outcomes())
