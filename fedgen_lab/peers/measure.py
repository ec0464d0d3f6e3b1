"""What a model is worth and what it gives away, measured by what no peer's objective saw.

Lab 10. In PDFed (arXiv 2409.18245, section 5) the score that selects models is also the one that reports them. Here
quality is compared with pictures that no peer ever held, copies are counted by the one-third rule (Yoon et al. 2023),
and leaks by PIA (Kong et al., arXiv 2305.18355), over the training pictures of all peers together.
"""

import torch

from fedgen_lab.memorization.ddpm import load_weights
from fedgen_lab.memorization.membership import membership
from fedgen_lab.memorization.ratio import third_ratio
from fedgen_lab.peers.peer import draw_samples, start_model
from fedgen_lab.peers.scenario import deal, outsiders
from fedgen_lab.scores import fid, kid
from fedgen_lab.split.judges import judge_for

COPY_BELOW = 1 / 3
MEASURED_BY = b"measured"  # seeds of the pictures drawn here, other than those that peers judge by
ASKED_ABOUT = 200  # pictures a side, at most, that membership is guessed of


def measure_model(scenario, state, drawn=None):
    """{"kid", "fid", "copied", "auc", "tpr"} of a model's weights.

    drawn: (N, C, side, side) in [-1, 1], pictures of this model; by default `scenario.samples` are drawn.

    kid, fid: to pictures of nobody, in the judge's features; lower is better. copied: share of the drawn pictures whose
    nearest training picture, of any peer, is three times as near as the next. auc, tpr (at 1 % false positives): PIA
    with labels, training pictures of all peers against pictures of nobody.
    """
    holdings = deal(scenario)[: scenario.num_peers]
    train = torch.cat([holding.train.images for holding in holdings])
    labels = torch.cat([holding.train.labels for holding in holdings])
    others = outsiders(scenario)
    others = others.take(range(min(ASKED_ABOUT, len(others))))
    model, judge = start_model(scenario), judge_for(others)
    load_weights(model, state)
    drawn = draw_samples(scenario, model, MEASURED_BY) if drawn is None else drawn
    some = torch.linspace(0, len(train) - 1, min(ASKED_ABOUT, len(train))).long()  # of every peer
    leak = membership(model, train[some], others.images, "PIA", (labels[some], others.labels))
    return {
        "kid": float(kid(others.as_tensor(), drawn, judge)),
        "fid": float(fid(others.as_tensor(), drawn, judge)),
        "copied": float((third_ratio(drawn, train) < COPY_BELOW).mean()),
        "auc": leak.auc,
        "tpr": leak.tpr,
    }
