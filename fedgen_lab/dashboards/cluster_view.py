"""Who was put together with whom, what each client weighs, and whether it can draw labels that it never held.

Lab 07: the clusters and KLD weights of HuSCF-GAN (arXiv 2507.12979). All of it is computed by `fedgen_lab.split`; a
finished run is enough, because the weights for any alpha follow from the taps that the server kept.
"""

import html
import textwrap

import ipywidgets as widgets
import numpy as np
import pandas as pd
import torch
from IPython.display import HTML, display

from fedgen_lab.dashboards import charts, controls
from fedgen_lab.dashboards.job import runs_inline
from fedgen_lab.split.clusters import kld_scores, scale_free, weights
from fedgen_lab.split.deal import deal
from fedgen_lab.split.nets import SIZES
from fedgen_lab.split.scoring import label_grid

# Okabe and Ito's colours for clusters; the number of its cluster stands beside every client too.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
SHAPES = (
    "circle",
    "square",
    "triangle-up",
    "x",
    "star",
    "cross",
    "hexagon",
    "bowtie",
)  # the truth: one per domain
ALPHAS = np.geomspace(0.1, 10_000, 101)


def cluster_view(outcome, dealt=None):
    """Show clusters, weights and samples of a finished run of HuSCF-GAN (`GanOutcome`), and return the `ClusterView`.

    dealt: the clients' pictures, else `deal(outcome.scenario)`. Raises ValueError when the run has no taps, as that of
    another method or one that stopped before its first round.
    """
    view = ClusterView(outcome.scenario, dealt or deal(outcome.scenario))
    for gan_round in outcome.history:
        view.add(gan_round)
    if not view.rounds:
        raise ValueError(
            f"This run of {outcome.scenario.method!r} has no taps to show. Run the method 'huscf' for a round or more."
        )
    view.draw_samples(outcome.generators)
    return view.show()


class ClusterView:
    """Two knobs (round, alpha), three charts and the samples. `add` takes rounds while a run is going on.

    `rounds`: those that have taps; `round`: the knob's; `alpha`: turning it shows other weights, and trains nothing.
    """

    def __init__(self, scenario, dealt):
        self.scenario, self.dealt, self.rounds = scenario, dealt, []
        self.counts = dealt.counts.to_numpy().sum(axis=1)
        self.round = controls.knob("Round of the clusters", 1, 1, max(scenario.rounds, 2))
        self.alpha = controls.log_knob(
            "Alpha",
            float(np.clip(scenario.kld_alpha, ALPHAS[0], ALPHAS[-1])),
            ALPHAS[0],
            ALPHAS[-1],
            help="how strongly a client that differs from its cluster is weighed down; nothing is trained anew",
        )
        self.map, self.bars, self.lines = (
            charts.LiveChart(name) for name in ("taps", "weights", "alpha")
        )
        self.samples = widgets.HTML(layout={"width": "100%"})
        self.round.observe(lambda _: self.draw())
        self.alpha.observe(lambda _: self.draw())

    def add(self, gan_round):
        """A `GanRound` came; it is drawn when the knob stands at the newest round. One without taps is left out."""
        if gan_round.taps is None or gan_round.groups is None:
            return
        following = not self.rounds or self.round.value == self.rounds[-1].round
        self.rounds.append(gan_round)
        if following:
            self.round.set(gan_round.round)
        self.draw()

    def draw(self):
        """Draw the three charts at the knobs' round and alpha."""
        if not self.rounds:
            return
        chosen = min(self.rounds, key=lambda one: abs(one.round - self.round.value))
        dealt = self.dealt
        self.map.update(*tap_map(chosen, dealt, self.scenario.warm_up))
        scores = scores_of(chosen, self.scenario)
        self.bars.update(*weight_bars(self.counts, scores, chosen.groups, self.alpha.value))
        self.lines.update(*alpha_lines(self.counts, scores, chosen.groups, self.alpha.value))

    def draw_samples(self, generators, seed=0):
        """Draw one picture of each label from each client's generator (state dicts, None where a client is gone)."""
        self.samples.value = samples_html(generators, self.dealt, SIZES[self.scenario.size], seed)

    def show(self):
        """Put everything into the output of the running cell."""
        live = not runs_inline()
        if live:
            display(widgets.VBox([controls.style(), self.round.box], layout={"width": "100%"}))
        self.map.show()
        if live:
            display(self.alpha.box)
        self.bars.show()
        self.lines.show()
        self.draw()
        display(self.samples if live else HTML(controls.STYLE + self.samples.value))
        return self

    def _ipython_display_(self):
        """Shown already by `show`."""


def scores_of(gan_round, scenario):
    """The KLD scores within clusters behind a `GanRound`'s weights, (clients,); NaN for a client alone or gone."""
    channels = SIZES[scenario.size].discriminator[2]
    taps = gan_round.taps.reshape(len(gan_round.taps), channels, -1)  # (N, C, P)
    scores = kld_scores(taps, gan_round.groups, scenario.reference)
    return scale_free(scores) if scenario.scale_free else scores


def tap_map(gan_round, dealt, warm_up=0):
    """The taps of one round in two dimensions (PCA): shape is the client's true domain, colour and number its cluster.

    Returns (figure, sentence, table).
    """
    here = np.flatnonzero(np.isfinite(gan_round.taps).all(axis=1))
    groups, domain_of = np.asarray(gan_round.groups)[here], np.asarray(dealt.domain_of)[here]
    places, share = _two_dimensions(gan_round.taps[here])
    chart = charts.figure("first principal component", "second", height=360)
    for group in np.unique(groups):
        for domain in np.unique(domain_of[groups == group]):
            mine = np.flatnonzero((groups == group) & (domain_of == domain))
            chart.add_scatter(
                x=places[mine, 0].tolist(),
                y=places[mine, 1].tolist(),
                mode="markers",
                showlegend=False,
                name=f"{dealt.domains[domain]} in cluster {group}",
                text=[f"{here[i]} ({group})" for i in mine],
                cliponaxis=False,
                marker={
                    "symbol": SHAPES[domain % len(SHAPES)],
                    "color": COLOURS[group % len(COLOURS)],
                    "size": 13,
                    "line": {"color": "#808080", "width": 1},
                },
                hovertemplate="client %{text}<extra></extra>",
            )
    for domain in np.unique(
        domain_of
    ):  # the legend tells shapes only: with clusters it would be longer than the map
        grey = {"symbol": SHAPES[domain % len(SHAPES)], "color": "#808080", "size": 11}
        chart.add_scatter(
            x=[None], y=[None], mode="markers", name=dealt.domains[domain], marker=grey
        )
    for (x, y), words in _labels(places, here, groups):
        chart.add_annotation(x=x, y=y, text=words, showarrow=False, yanchor="bottom", yshift=8)
    table = pd.DataFrame(
        {
            "client": here,
            "domain": [dealt.domains[domain] for domain in domain_of],
            "cluster": groups,
            "first": places[:, 0],
            "second": places[:, 1],
        }
    )
    sentence = (
        f"Round {gan_round.round}: {_who_is_with_whom(gan_round, groups, domain_of, here, warm_up)} The number in "
        f"brackets is the cluster; the picture shows {share:.0%} of how the taps differ."
    )
    return chart, sentence, table


def weight_bars(counts, scores, groups, alpha):
    """Each client's weight within its cluster, beside what FedAvg would give it. Returns (figure, sentence, table)."""
    here = np.flatnonzero(np.asarray(groups) >= 0)
    counts, scores, groups = (
        np.asarray(counts)[here],
        np.asarray(scores)[here],
        np.asarray(groups)[here],
    )
    fedavg, weighed = (weights(counts, scores, groups, a) for a in (0, alpha))
    chart = charts.figure("client (cluster)", "weight within its cluster", height=300)
    names = [f"{client} ({group})" for client, group in zip(here, groups, strict=True)]
    chart.add_bar(
        x=names,
        y=fedavg.tolist(),
        name="FedAvg (alpha = 0)",
        marker={
            "color": charts.PALETTE["base"],
            "pattern": {"shape": "/", "fgcolor": "white", "size": 6, "fillmode": "overlay"},
        },
    )
    chart.add_bar(
        x=names,
        y=weighed.tolist(),
        name=f"alpha = {alpha:g}",
        marker={"color": charts.PALETTE["server"]},
    )
    chart.update_layout(barmode="group")
    chart.update_xaxes(type="category")
    chart.update_yaxes(range=[0, 1])
    most = int(np.abs(weighed - fedavg).argmax())
    if np.abs(weighed / fedavg - 1).max() < 0.005:
        said = "no weight is even half a percent away from FedAvg's"
    else:
        said = f"the weight of client {here[most]} changes most: {fedavg[most]:.3g} by FedAvg, {weighed[most]:.3g} now"
    table = pd.DataFrame(
        {
            "client": here,
            "cluster": groups,
            "pictures": counts,
            "KLD score": scores,
            "FedAvg": fedavg,
            "weight": weighed,
        }
    )
    return chart, f"At alpha = {alpha:g} {said}.", table


def alpha_lines(counts, scores, groups, alpha):
    """The weights against alpha, from FedAvg on the left to one client a cluster. Returns (figure, sentence, table)."""
    here = np.flatnonzero(np.asarray(groups) >= 0)
    counts, scores, groups = (
        np.asarray(counts)[here],
        np.asarray(scores)[here],
        np.asarray(groups)[here],
    )
    swept = np.array([weights(counts, scores, groups, a) for a in ALPHAS])  # (alphas, clients)
    chart = charts.figure("alpha", "weight within its cluster", height=320)
    dashes, shapes = list(charts.DASHES.values()), list(charts.MARKERS.values())
    for i, (client, group) in enumerate(zip(here, groups, strict=True)):
        chart.add_scatter(
            x=ALPHAS.tolist(),
            y=swept[:, i].tolist(),
            name=f"client {client} ({group})",
            mode="lines+markers",
            line={"color": COLOURS[group % len(COLOURS)], "dash": dashes[i % len(dashes)]},
            marker={"symbol": shapes[i % len(shapes)], "size": 8, "maxdisplayed": 6},
        )
    chart.add_vline(
        x=alpha, line={"color": "#808080", "dash": "dash"}
    )  # in data units also on the logarithmic axis
    chart.update_xaxes(type="log")
    chart.update_yaxes(range=[0, 1])
    at_one = np.abs(
        weights(counts, scores, groups, 1.0) / weights(counts, scores, groups, 0.0) - 1
    ).max()
    spans = [
        np.ptp(scores[(groups == group) & np.isfinite(scores)])
        for group in np.unique(groups)
        if np.isfinite(scores[groups == group]).any()
    ]
    widest = max(spans, default=0.0)
    if widest > 0:
        sentence = (
            f"At alpha = 1 weights are within {100 * at_one:.2g} % of FedAvg's. Scores in a cluster lie at most "
            f"{widest:.3g} apart, so it takes alpha = {np.log(2) / widest:.3g} to count one client twice as much as "
            "another with as many pictures."
        )
    else:
        sentence = (
            "All clients of a cluster have the same score, so every alpha gives FedAvg's weights."
        )
    table = pd.DataFrame(swept[::10], columns=[f"client {client}" for client in here])
    table.insert(0, "alpha", ALPHAS[::10])
    return chart, sentence, table


def samples_html(generators, dealt, size, seed=0, scale=3):
    """One picture of each label from each client's generator; labels that the client never held are marked. HTML.

    All clients get the same noise. A mark is a dashed frame and the words "never held" below the picture.
    """
    names = [domain.label_names for domain in dealt.held_out]
    heads = [" / ".join(dict.fromkeys(map(str, same))) for same in zip(*names, strict=True)]
    head = "".join(f'<th scope="col">{html.escape(words)}</th>' for words in heads)
    rows = []
    for client, state in enumerate(generators):
        domain = int(dealt.domain_of[client])
        cells = '<td colspan="10">is gone</td>'
        if state is not None:
            grid = torch.nan_to_num(label_grid(state, size, seed)).expand(-1, 3, -1, -1).numpy()
            held = dealt.counts.iloc[client].to_numpy() > 0
            cells = "".join(
                _cell(picture, f"client {client}, {dealt.domains[domain]}: {name}", is_held, scale)
                for picture, name, is_held in zip(grid, names[domain], held, strict=True)
            )
        rows.append(
            f'<tr><th scope="row">client {client}, {html.escape(dealt.domains[domain])}</th>{cells}</tr>'
        )
    table = f"<table><thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="fedgen-strip">{table}</div>'


def _cell(picture, words, is_held, scale):
    mark = "" if is_held else ", a label it never held"
    side = picture.shape[-1] * max(1, scale * 14 // picture.shape[-1])
    look = "image-rendering: pixelated; padding: 2px; border: 2px " + (
        "solid transparent" if is_held else "dashed #D55E00"
    )
    image = (
        f'<img alt="{html.escape(words + mark, quote=True)}" width="{side}" height="{side}" style="{look}" '
        f'src="{charts.picture_png(picture)}">'
    )
    note = "" if is_held else '<small style="display: block; line-height: 1.1">never held</small>'
    return f'<td style="vertical-align: top">{image}{note}</td>'


def _two_dimensions(taps):
    """Principal components: (N, 2), and the share of the variance that they hold. Signs are fixed, so nothing flips."""
    centred = taps - taps.mean(axis=0)
    left, spread, _ = np.linalg.svd(centred, full_matrices=False)  # (N, r), (r,)
    places = np.zeros((len(taps), 2))
    for axis in range(min(2, len(spread))):
        column = left[:, axis] * spread[axis]
        places[:, axis] = column * (np.sign(column[np.abs(column).argmax()]) or 1)
    total = (spread**2).sum()
    return places, float((spread[:2] ** 2).sum() / total) if total > 0 else 1.0


def _labels(places, clients, groups):
    """What stands in the map beside clients: ((x, y), words). Those of one cluster that lie close share a label."""
    near = np.ptp(places, axis=0) * (0.1, 0.15)  # about a label's width and height
    knots = []
    for i, (place, group) in enumerate(zip(places, groups, strict=True)):
        close = (
            k
            for k in knots
            if groups[k[0]] == group and (np.abs(places[k[0]] - place) <= near).all()
        )
        knot = next(close, None)
        knots.append([i]) if knot is None else knot.append(i)
    for knot in knots:
        words = textwrap.wrap(f"{', '.join(map(str, clients[knot]))} ({groups[knot[0]]})", 18)
        yield (float(places[knot, 0].mean()), float(places[knot, 1].max())), "<br>".join(words)


def _who_is_with_whom(gan_round, groups, domain_of, here, warm_up):
    if gan_round.round <= warm_up:
        return "warm-up, plain FedAvg over all clients; nobody is in a cluster yet."
    number = len(np.unique(groups))
    words = "one cluster" if number == 1 else f"{number} clusters"
    mixed = [group for group in np.unique(groups) if len(np.unique(domain_of[groups == group])) > 1]
    if not mixed:
        split = number > len(np.unique(domain_of))
        return f"{words}, each with clients of one domain only" + (
            ", some domains in several." if split else "."
        )
    strangers = []
    for group in mixed:
        members = groups == group
        values, counts = np.unique(domain_of[members], return_counts=True)
        strangers += here[members & (domain_of != values[counts.argmax()])].tolist()
    listed = ", ".join(map(str, strangers))
    subject = f"client {listed} stands" if len(strangers) == 1 else f"clients {listed} stand"
    return f"{words}; {subject} among clients of another domain."
