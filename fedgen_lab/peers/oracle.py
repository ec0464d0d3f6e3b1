"""A score that is published answers a question nobody should ask: is this picture in your training set?

Lab 10. PDFed (arXiv 2409.18245) lets peers report how much a model copies from their private pictures. So an attacker
submits "models" which draw a picture of its choice, and reads in the victim's vote whether that picture counts as a
copy. We know of no earlier mention. The defences are those of the vote: say less (round it, tell only which model is
better), or add noise (Laplace: Dwork et al., TCC 2006).
"""

import numpy as np
import pandas as pd
import torch

from fedgen_lab.memorization.calibrated import calibrated_score
from fedgen_lab.memorization.fingerprint import load_fingerprinter
from fedgen_lab.memorization.qn import NEAREST, _matched, quality_novelty
from fedgen_lab.memorization.verifier import CONFIRMED, described, load_verifier
from fedgen_lab.peers.objectives import LEVEL, RC_UNIT, _merged, judge_samples, sensitivity_of
from fedgen_lab.peers.scenario import deal, outsiders
from fedgen_lab.peers.votes import noisy_vote
from fedgen_lab.privacy.membership import judge_scores
from fedgen_lab.scores import fid
from fedgen_lab.split.judges import judge_for

STEPS = (1.0, 10.0, 50.0)  # what votes are rounded to
EPSILONS = (8.0, 2.0, 0.5)
DRAWS = 50  # of the noise, over which AUC and TPR are means
ORACLE_KEY = 4  # of the scenario's seed: fillers and noise


def ask_oracle(scenario, victim, candidates, times=1):
    """The victim's exact scores (N,) of N models, each of which draws one candidate among fillers.

    victim: number of a peer; candidates: (N, C, side, side), float in [-1, 1]. A model draws `scenario.samples`
    pictures: `times` times the candidate, and for the rest the same pictures of noise, which copy nothing. The score is
    the peers' own (`objectives.judge_samples`), for "calibrated" without the membership advantage: that hangs on the
    weights, which stay the same. In Q-N a training picture counts once, and times=1 is enough; the calibrated score
    takes 5 % false alarms off, so that fewer copies than that don't show.
    Raises ValueError for an unknown victim, or `times` outside 1..samples.
    """
    if not 0 <= victim < scenario.voters:
        raise ValueError(
            f"victim must be the number of a voter, 0 to {scenario.voters - 1}; got {victim!r}."
        )
    if not 1 <= times <= scenario.samples:
        raise ValueError(
            f"times must lie in 1..{scenario.samples}, the pictures a model draws; got {times!r}."
        )
    holding, fillers = deal(scenario)[victim], noise_pictures(scenario)[times:]
    models = [torch.cat([one.expand(times, -1, -1, -1), fillers]) for one in candidates]
    if scenario.objective in ("qn", "qn-dedup"):
        return _qn_scores(scenario, holding, candidates, fillers, models)
    if scenario.objective == "fld-fid":
        return np.array([judge_samples(scenario, None, drawn, holding)[0] for drawn in models])
    train, held_out, weight = (
        holding.train.as_tensor(),
        holding.held_out.as_tensor(),
        scenario.novelty_weight,
    )
    judge = judge_for(holding.train)
    scores = [calibrated_score(drawn, train, held_out, LEVEL, None, judge) for drawn in models]
    return np.array(
        [(1 - weight) * max(0.0, one.quality) + weight * one.copied.estimate for one in scores]
    )


def _qn_scores(scenario, holding, candidates, fillers, models):
    """Q-N as `judge_samples` computes it, with the two nets run once over what is the same for all models."""
    nets, judge, held_out = (
        (load_fingerprinter(), load_verifier()),
        judge_for(holding.train),
        holding.held_out,
    )
    private, asked, noise = (
        described(part, *nets) for part in (holding.train.as_tensor(), candidates, fillers)
    )
    labels, scores = _merged(holding.train.labels.numpy()), []
    for row, drawn in enumerate(models):
        times = len(drawn) - len(fillers)
        pool = [
            torch.cat([of[row : row + 1].expand(times, *of.shape[1:]), rest])
            for of, rest in zip(asked, noise, strict=True)
        ]
        matches = _matched(pool, private, labels, NEAREST, CONFIRMED, nets[1])
        quality = fid(held_out.as_tensor(), drawn, judge)
        scores.append(max(0.0, quality_novelty(quality, matches, RC_UNIT, scenario.novelty_weight)))
    return np.array(scores)


def noise_pictures(scenario):
    """The fillers: (samples, C, side, side) of uniform noise in [-1, 1], by the scenario's seed."""
    generator = torch.Generator().manual_seed(scenario.seed_of(ORACLE_KEY))
    shape = scenario.samples, *deal(scenario)[0].train.as_tensor().shape[1:]
    return torch.rand(shape, generator=generator) * 2 - 1


def oracle_table(scenario, victim=0, number=50, times=1, steps=STEPS, epsilons=EPSILONS):
    """How well the victim's votes tell its training pictures from others': a data frame (defence, AUC, TPR).

    number: candidates of each kind, `number` training pictures and as many of nobody's. AUC 0.5 is guessing; TPR at
    1 % false positives. Each candidate is asked for once: with Laplace noise that costs the victim epsilon, and n
    questions n times epsilon.
    """
    members = deal(scenario)[victim].train.as_tensor()[:number]
    others = outsiders(scenario).as_tensor()[:number]
    told = [ask_oracle(scenario, victim, candidates, times) for candidates in (members, others)]
    reference = ask_oracle(scenario, victim, noise_pictures(scenario)[-1:], times)[0]
    return defended(*told, reference, sensitivity_of(scenario), scenario.seed, steps, epsilons)


def defended(members, others, reference, sensitivity, seed=0, steps=STEPS, epsilons=EPSILONS):
    """The table of `oracle_table` from exact scores of members (M,) and others (N,).

    reference: the score of a model of fillers alone; a best-of vote tells only whether the candidate's is better.
    sensitivity: as of `objectives.sensitivity_of`, which sets the noise.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(ORACLE_KEY,)))

    def noisy(epsilon):
        return lambda scores: np.array(
            [noisy_vote(score, epsilon, sensitivity, rng) for score in scores]
        )

    defences = {"exact vote": [lambda scores: scores]}
    defences |= {
        f"rounded to {step:g}": [lambda scores, step=step: np.round(scores / step) * step]
        for step in steps
    }
    defences |= {
        f"Laplace noise, epsilon {epsilon:g}": [noisy(epsilon)] * DRAWS for epsilon in epsilons
    }
    defences["only which is better"] = [lambda scores: (scores > reference).astype(float)]
    rows = []
    for name, votes in defences.items():
        found = [judge_scores(vote(members), vote(others)) for vote in votes]
        rows.append(
            (name, np.mean([one.auc for one in found]), np.mean([one.tpr for one in found]))
        )
    return pd.DataFrame(rows, columns=["defence", "AUC", "TPR"])
