"""How good are a GAN's pictures, domain by domain? Scores by a judge that knows the domain, and by their usefulness.

Labs 06 and 07. Image score: the inception score of Salimans et al. (arXiv 1606.03498) with a judge of the domain in
place of Inception, as in HuSCF-GAN (arXiv 2507.12979). It says whether pictures are clear and varied, not whether they
look like the real ones, and it saturates; so KID, FID, precision and recall stand beside it (`fedgen_lab.scores`), and
utility: how well a classifier that saw only generated pictures names real ones.
"""

from functools import lru_cache
from numbers import Integral

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from fedgen_lab import scores
from fedgen_lab.pictures.domains import load_domain
from fedgen_lab.split.deal import FEWEST_HELD_OUT
from fedgen_lab.split.judges import judge_for, probabilities
from fedgen_lab.split.nets import SIZES, generate, new_generator

EPOCHS = 15  # of the classifier behind `utility`, as in the published code
_DRAW, _CLASSIFY = 1001, 1002  # purposes of seeds spawned from the scenario's


def image_score(pictures, judge):
    """exp of the mean KL(p(label | picture) || p(label)): 1 to 10, high if pictures are clear and all labels occur.

    pictures (N, C, H, W), uint8 or float in [-1, 1]; judge: of `judge_for`. Real pictures may score below generated
    ones, which can be clearer than life: draw their score as a line, not as a bound.
    """
    p = probabilities(pictures, judge)
    divergence = torch.special.xlogy(p, p / p.mean(dim=0).clamp(min=1e-300)).sum(
        dim=1
    )  # (N,), 0 log 0 = 0
    return float(divergence.mean().exp())


def right_label(pictures, labels, judge):
    """Share of pictures in which the judge sees the label that was asked for."""
    return float((probabilities(pictures, judge).argmax(dim=1) == labels).double().mean())


def utility(pictures, labels, held_out, seed=0, epochs=EPOCHS):
    """What a classifier that learned from these pictures knows about real ones: five shares in [0, 1].

    pictures (N, C, H, W) float in [-1, 1] and labels (N,) to learn from; held_out: a `Domain` of real ones. Keys:
    accuracy; macro_precision, macro_recall, macro_f1 and false_positive_rate, each the mean over labels. Classifier and
    training are those of HuSCF-GAN's published code, so accuracies compare: two convolutions, 15 epochs of Adam.
    """
    return _examined(_classify(pictures, labels, len(held_out.label_names), seed, epochs), held_out)


def score(generators, dealt, scenario, number=500, utility=False):
    """The scores of a finished run: a DataFrame with one row per domain, each the mean over the domain's clients.

    generators: one whole generator's state dict per client, None where a client is gone; dealt: what `deal(scenario)`
    returned; number: pictures from each client, at least `FEWEST_HELD_OUT`, all ten labels in turn, also those that it
    never owned.

    Columns: domain; clients, how many could be scored (a generator that draws NaN cannot); image_score and its ceiling,
    the score of the held-out real pictures; kid, fid, precision, recall against these, fid only where both sides have
    as many pictures as features; right_label. With `utility` also what `utility()` returns, for the pictures of all the
    domain's clients together, and accuracy_ceiling: after as many real pictures, or all there are.

    Raises ValueError for a smaller number, or one that is not whole.
    """
    if isinstance(number, bool) or not isinstance(number, Integral) or number < FEWEST_HELD_OUT:
        raise ValueError(
            f"number must be a whole number of pictures, at least {FEWEST_HELD_OUT}, as precision and recall need; got "
            f"{number!r}."
        )
    labels = torch.arange(number) % SIZES[scenario.size].num_labels
    clients, drawn = [], {domain: [] for domain in dealt.domains}
    for client, state in enumerate(generators):
        domain = int(dealt.domain_of[client])
        pictures = None if state is None else _draw(state, scenario, labels)
        if pictures is not None and pictures.isfinite().all():
            clients.append(
                {
                    "domain": dealt.domains[domain],
                    **_compare(pictures, labels, dealt.held_out[domain]),
                }
            )
            if (
                utility
            ):  # from noise of its own, so that clients with one generator add new pictures
                drawn[dealt.domains[domain]].append(_draw(state, scenario, labels, client))
    rows = []
    columns = ["image_score", "kid", "fid", "precision", "recall", "right_label"]
    table = pd.DataFrame(clients, columns=["domain", *columns])
    for name, held_out in zip(dealt.domains, dealt.held_out, strict=True):
        mine = table[table["domain"] == name]
        row = {"domain": name, "clients": len(mine), **mine[columns].astype(float).mean()}
        row["ceiling"] = image_score(held_out.images, judge_for(held_out))
        if utility and len(mine):
            row |= _pooled_utility(
                torch.cat(drawn[name]), labels.repeat(len(mine)), held_out, scenario
            )
        rows.append(row)
    return pd.DataFrame(rows)


def label_grid(generator, size, seed=0):
    """One picture of each label, (10, C, H, W) in [-1, 1], from a whole generator's state dict. size: a `Size`.

    The same seed gives every generator the same noise, so grids compare picture by picture.
    """
    return generate(_loaded(generator, size), torch.arange(size.num_labels), seed)


def _compare(pictures, labels, held_out):
    """One client's pictures against the real ones of its domain."""
    judge, real = judge_for(held_out), held_out.images
    space = judge_for(held_out) if held_out.images.shape[1] == 1 else scores.load_judge()
    few = min(len(real), len(pictures))
    precision, recall = scores.precision_recall(real[:few], pictures[:few], space)
    return {
        "image_score": image_score(pictures, judge),
        "kid": scores.kid(real, pictures, space, subset_size=min(50, few)),
        "fid": scores.fid(real[:few], pictures[:few], space)
        if few >= space.num_features
        else np.nan,
        "precision": precision,
        "recall": recall,
        "right_label": right_label(pictures, labels, judge),
    }


def _pooled_utility(pictures, labels, held_out, scenario):
    seed = scenario.seed_of(_CLASSIFY)
    taught_by_real = _classifier_of_real(
        held_out.name, held_out.images.shape[-1], len(labels), seed
    )
    ceiling = _examined(taught_by_real, held_out)["accuracy"]
    return {**utility(pictures, labels, held_out, seed), "accuracy_ceiling": ceiling}


@lru_cache(maxsize=64)
def _classifier_of_real(name, side, number, seed):
    """The classifier after `number` real pictures of the training part, or all there are."""
    training = load_domain(name, side=side, seed=seed)
    training = training.take(range(min(number, len(training))))
    return _classify(training.as_tensor(), training.labels, len(training.label_names), seed)


def _examined(net, held_out):
    from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

    device = next(net.parameters()).device
    with torch.no_grad():
        seen = torch.cat(
            [net(batch.to(device)).argmax(dim=1).cpu() for batch in held_out.as_tensor().split(512)]
        )
    truth, names = held_out.labels, np.arange(len(held_out.label_names))
    means = precision_recall_fscore_support(
        truth, seen, labels=names, average="macro", zero_division=0
    )
    counts = confusion_matrix(truth, seen, labels=names)
    false_alarms = counts.sum(axis=0) - counts.diagonal()
    others = counts.sum() - counts.sum(axis=1)
    return {
        "accuracy": float(accuracy_score(truth, seen)),
        "macro_precision": float(means[0]),
        "macro_recall": float(means[1]),
        "macro_f1": float(means[2]),
        "false_positive_rate": float((false_alarms / np.maximum(others, 1)).mean()),
    }


def _draw(state, scenario, labels, *client):
    return generate(_loaded(state, SIZES[scenario.size]), labels, scenario.seed_of(_DRAW, *client))


def _loaded(state, size):
    generator = new_generator(size, 0)
    generator.load_state_dict(state)
    return generator


def _classify(pictures, labels, num_labels, seed, epochs=EPOCHS, batch_size=64):
    """The published classifier, trained on these pictures where they lie; in evaluation mode."""
    channels, side = pictures.shape[1], pictures.shape[-1]
    rng = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * (side // 4) ** 2, 128),
            nn.ReLU(),
            nn.Linear(128, num_labels),
        ).to(pictures.device)
    adam = torch.optim.Adam(net.parameters(), lr=1e-3)
    labels = labels.to(pictures.device)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels), generator=rng).split(batch_size):
            rows = rows.to(pictures.device)
            loss = F.cross_entropy(net(pictures[rows]), labels[rows])
            adam.zero_grad()
            loss.backward()
            adam.step()
    return net.eval()
