"""What the peers' dashboard draws: who built on whom, who voted what on which model, who earned how much.

Lab 10. Every function takes a `fedgen_lab.peers.run.PeersOutcome`, of a finished run or of one that is going on, and
returns (figure, sentence, table) for `charts.LiveChart`.
"""

import numpy as np
import pandas as pd

from fedgen_lab.dashboards import charts

COLOURS, SYMBOLS = tuple(charts.PALETTE.values()), tuple(charts.MARKERS.values())


def provenance_chart(outcome, chosen=None):
    """Models as points, by simulated seconds and author, with a line to each parent. chosen: a model's row, ringed."""
    models = outcome.models()
    if models.empty:
        sentence = "No model has been submitted yet."
        return charts.empty_figure(sentence), sentence, None
    authors = sorted(models["author"].unique())
    chart = charts.figure("simulated seconds", "", height=150 + 40 * len(authors))
    lines = {"x": [], "y": []}
    for row, parents in enumerate(models["parents"]):
        for parent in parents:
            lines["x"] += [float(models["seconds"][parent]), float(models["seconds"][row]), None]
            lines["y"] += [int(models["author"][parent]), int(models["author"][row]), None]
    chart.add_scatter(
        **lines,
        mode="lines",
        name="went on from",
        line={"color": charts.PALETTE["base"], "width": 1.5},
        hoverinfo="skip",
    )
    for author in authors:
        own = models[models["author"] == author]
        chart.add_scatter(
            x=own["seconds"].tolist(),
            y=own["author"].tolist(),
            mode="markers+text",
            name=f"peer {author}",
            text=[str(row) for row in own.index],
            textposition="top center",
            marker={"color": COLOURS[author % 6], "symbol": SYMBOLS[author % 6], "size": 12},
            hovertemplate="model %{text} at %{x:.0f} s<extra>peer " + str(author) + "</extra>",
        )
    if chosen is not None and chosen < len(models):
        chart.add_scatter(
            x=[float(models["seconds"][chosen])],
            y=[int(models["author"][chosen])],
            mode="markers",
            name="chosen",
            marker={"color": "rgba(0,0,0,0)", "size": 22, "line": {"color": "#808080", "width": 2}},
            hoverinfo="skip",
        )
    ticks = [int(author) for author in authors]
    chart.update_yaxes(
        tickvals=ticks,
        ticktext=[f"peer {author}" for author in ticks],
        range=[max(ticks) + 0.6, min(ticks) - 0.6],
    )
    alone = int((models["parents"].map(len) == 0).sum())
    sentence = (
        f"{len(models)} models by {len(authors)} peers: {models['crossed'].sum()} went on from another peer's model, "
        f"{alone} began anew."
    )
    table = models.assign(parents=[", ".join(map(str, one)) or "none" for one in models["parents"]])
    return (
        chart,
        sentence,
        table[["seconds", "author", "parents", "cid"]].rename_axis("model").reset_index(),
    )


def votes_chart(outcome):
    """Revealed votes as a heat map, models by voters; an empty cell is no vote, as for one's own model."""
    votes = outcome.votes()
    given = int(votes.notna().to_numpy().sum())
    if not given:
        sentence = "No vote has been revealed yet; votes are shown when nobody may vote any more."
        return charts.empty_figure(sentence), sentence, None
    numbers = votes.to_numpy(dtype=float)
    chart = charts.figure("voter", "", height=130 + 24 * len(votes))
    shown = [[None if np.isnan(number) else float(number) for number in row] for row in numbers]
    chart.add_heatmap(
        z=shown,
        x=[f"peer {voter}" for voter in votes.columns],
        y=[f"model {row}" for row in votes.index],
        colorscale=[[0, "#F7FBFF"], [1, charts.PALETTE["server"]]],
        showscale=False,
        xgap=1,
        ygap=1,
        text=[["" if number is None else f"{number:.3g}" for number in row] for row in shown],
        texttemplate="%{text}",
        hovertemplate="%{x} gives %{y} %{z:.3g}<extra></extra>",
    )
    chart.update_yaxes(autorange="reversed", type="category")
    chart.update_xaxes(type="category")
    row, column = np.unravel_index(np.nanargmax(numbers), numbers.shape)
    sentence = (
        f"{given} votes on {len(votes)} models; lower is better. The highest is peer {votes.columns[column]}'s on "
        f"model {row}, {numbers[row, column]:.3g}."
    )
    return (
        chart,
        sentence,
        votes.rename(columns=lambda voter: f"peer {voter}").rename_axis("model").reset_index(),
    )


def rewards_chart(outcome, rewards):
    """What each peer has earned, in wei, as bars. rewards: {peer: wei}, or None where there is no money."""
    if rewards is None:
        sentence = "There is no money in the ledger. Choose the Ethereum machine to see rewards."
        return charts.empty_figure(sentence), sentence, None
    submitted = outcome.models()["author"].value_counts()
    rows = [(peer, int(submitted.get(peer, 0)), wei) for peer, wei in rewards.items()]
    table = pd.DataFrame(rows, columns=["peer", "models", "wei"])
    chart = charts.figure("", "wei", height=260)
    chart.add_bar(
        x=[f"peer {peer}" for peer in table["peer"]],
        y=table["wei"].tolist(),
        name="reward",
        showlegend=False,
        marker={"color": [COLOURS[peer % 6] for peer in table["peer"]]},
        text=table["wei"].tolist(),
    )
    best = table.loc[table["wei"].idxmax()]
    if not best["wei"]:
        return chart, "Nobody has earned anything: no vote was revealed.", table
    return (
        chart,
        f"Peer {best['peer']} has earned the most: {best['wei']:,} of {table['wei'].sum():,} wei.",
        table,
    )


def pay(chain, account):
    """Settle all models, newest first, so that earnings run up the lineage. Returns {account: wei} of who kept some."""
    from fedgen_lab.peers.chain import Refused

    since, kept = chain.block() + 1, {}
    for content in reversed(chain.models()):
        try:
            chain.settle(account, content)
        except Refused:  # it has earned nothing
            continue
    for event in chain.events(since)[0]:
        if event.kind == "Settled":
            kept[event.account] = kept.get(event.account, 0) + event.values["kept"]
    return kept
