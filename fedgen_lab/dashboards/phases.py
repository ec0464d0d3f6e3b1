"""What goes over the air in each phase: lab 05's charts of pre-training and fine-tuning, and its knob for inference.

Pre-training can cut the UNet in two, fine-tuning sends an adapter, and inference can hand over a half-drawn latent.
Counted by `lora.split_unet.traffic`, drawn by `lora.hand_off.split_draw`. arXiv 2307.07146.
"""

import numpy as np
import pandas as pd

from fedgen_lab.dashboards import charts, controls
from fedgen_lab.dashboards.redrawn import Redrawn
from fedgen_lab.lora.hand_off import begin, denoise, split_draw
from fedgen_lab.lora.pipeline import draw
from fedgen_lab.lora.split_unet import traffic
from fedgen_lab.pictures.sprites import BACKGROUNDS, OBJECTS, prompts
from fedgen_lab.scores import load_judge, prompt_fidelity

PICTURES = (1, 10, 100, 1_000, 10_000)  # a client trains on so many in a round: steps x batch
STEPS = 20  # of denoising
ROLES = {"pictures to the centre": "real", "LoRA": "adapter", "whole model": "base"}


def traffic_lines(unet, picture_bytes, text_length, rounds=5, **how):
    """Megabytes of one client in a whole run, up and down, for every way to train: a table with a row for each way and
    number of pictures a round (`PICTURES`). `unet` and the rest as `lora.split_unet.traffic` takes them.
    """
    table, rows = (
        traffic(unet, picture_bytes, text_length, rounds=rounds, steps=1, batch=1, **how),
        [],
    )
    for way, up, down, own in table[
        ["way", "up_bytes", "down_bytes", "device_parameters"]
    ].itertuples(index=False):
        once = 2 * rounds * own * 4  # weights down and up; the rest grows with pictures
        each = up + down - once if way.startswith("split") else 0
        rows += [
            {
                "way": way,
                "pictures a round": n,
                "megabytes": float(up + down + (n - 1) * each) / 1e6,
            }
            for n in PICTURES
        ]
    return pd.DataFrame(rows)


def traffic_chart(lines, cuts=("conv_in", "mid_block")):
    """Megabytes against pictures a round, with the splits after `cuts`: (figure, sentence, table).

    lines: see `traffic_lines`. The sentence says up to how many pictures the first of these splits sends less.
    """
    chart = charts.figure(
        "pictures that a client trains on in a round", "megabytes in the whole run", height=380
    )
    shown = [*ROLES, *(f"split after {cut}" for cut in cuts)]
    for way in shown:
        line = lines[lines["way"] == way]
        role = ROLES.get(way, "server" if way == shown[3] else "client")
        charts.add_line(chart, line["pictures a round"], line["megabytes"], way, role)
    chart.update_xaxes(type="log", dtick=1)
    chart.update_yaxes(type="log", dtick=1)
    ends = lines.set_index(["way", "pictures a round"])["megabytes"]
    first, each = (
        ends[shown[3], 1],
        (ends[shown[3], PICTURES[-1]] - ends[shown[3], 1]) / (PICTURES[-1] - 1),
    )
    words = []
    for way in ("LoRA", "whole model"):
        most = int((ends[way, 1] - first) // each) + 1
        up_to = f"sends less than {way} up to {most:,} pictures a round"
        words.append(up_to if most > 0 else f"never sends less than {way}")
    sentence = f"The {shown[3]} {' and '.join(words)}."
    return chart, sentence, lines[lines["way"].isin(shown)]


def like_minded(groups, each=2, seed=0):
    """Prompts that could share steps: in a group they ask for one object on one background, each in a colour and style
    of its own. Returns the prompts and the table of what they ask for, as `pictures.sprites.prompts` does.
    """
    dice = np.random.default_rng(seed)
    asked = zip(
        dice.permutation(OBJECTS)[:groups], dice.choice(list(BACKGROUNDS), groups), strict=True
    )
    parts = [
        prompts(each, int(dice.integers(2**31)), [what], backgrounds=[behind])
        for what, behind in asked
    ]
    captions = [caption for some, _ in parts for caption in some]
    return captions, pd.concat([table for _, table in parts], ignore_index=True)


def hand_off_table(pipeline, captions, wanted, seeds, hand_offs=(0, 10, 15, 20), similarity=0.5):
    """What handing over after so many of 20 steps costs and saves: one row each.

    captions and wanted: as `like_minded` gives them. Columns: hand_off, edge_steps (all groups
    together), device_steps (each), steps (of everybody together), layout and details: the shares of pictures that show
    the object and background, and the colour and style, that were asked for.
    """
    judge, rows = load_judge(), []
    for step in hand_offs:
        pictures, _, edge = split_draw(
            pipeline, captions, seeds, step, STEPS, similarity=similarity
        )
        rows.append(_row(step, edge, len(captions), prompt_fidelity(pictures, wanted, judge)))
    return pd.DataFrame(rows)


def _row(step, edge, number, shares):
    layout, details = (
        (shares["object"] + shares["background"]) / 2,
        (shares["colour"] + shares["style"]) / 2,
    )
    return {
        "hand_off": step,
        "edge_steps": edge,
        "device_steps": STEPS - step,
        "steps": edge + number * (STEPS - step),
        "layout": layout,
        "details": details,
    }


def hand_off_knob(pipeline, captions, wanted, seeds):
    """Show two knobs, when the edge hands over and how alike prompts must be, above everybody's pictures."""
    judge, alone = load_judge(), draw(pipeline, captions, seeds, STEPS)
    latent = denoise(pipeline, captions[:1], begin(pipeline, seeds[:1], STEPS), 1).bytes
    knobs = {
        "step": controls.knob(
            "Hand-off after step",
            2 * STEPS // 5,
            0,
            STEPS,
            help="the edge draws so many, the devices the others",
        ),
        "similarity": controls.knob(
            "Similarity",
            0.5,
            0.0,
            1.0,
            0.05,
            help="prompts at least so alike share the edge's steps",
        ),
    }

    def paint(step, similarity):
        pictures, groups, edge = split_draw(
            pipeline, captions, seeds, int(step), STEPS, similarity=similarity
        )
        now, before = (
            _row(step, edge, len(captions), prompt_fidelity(p, wanted, judge))
            for p in (pictures, alone)
        )
        sentence = (
            f"{len(captions)} prompts in {len(groups)} groups: {now['steps']:g} denoising steps instead of "
            f"{len(captions) * STEPS}. Object and background are right in {now['layout']:.0%} (alone "
            f"{before['layout']:.0%}), colour and style in {now['details']:.0%} ({before['details']:.0%}). "
        )
        sentence += f"Each device gets {latent:,} bytes." if step else "Nothing is handed over."
        return charts.strip_html(
            [("each alone", alone), ("handed over", pictures)], captions
        ), sentence

    return Redrawn(knobs, paint).show()
