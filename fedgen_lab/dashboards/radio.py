"""The dashboard of lab 05: one cell, one round, and the knobs of its radio.

A map of the clients, one round on the clock, and how long rounds last as a knob sweeps from end to end. Nothing trains:
the sizes are those of Stable Diffusion 1.5 (`fedgen_lab.wireless.payload`), and a knob only replays a trace.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
from IPython.display import display
from ipywidgets import VBox

from fedgen_lab.dashboards import charts, controls
from fedgen_lab.dashboards.job import runs_inline
from fedgen_lab.wireless.channel import (
    ALLOCATIONS,
    Network,
    fading_gains,
    phase_seconds,
    place_clients,
    signal_to_noise,
)
from fedgen_lab.wireless.payload import adapter, trace_of, whole_unet
from fedgen_lab.wireless.replay import meet_deadline, replay

ROUNDS, PICTURES = 5, 20  # a round: twenty pictures trained on, as with 20 local steps of batch 1
FLOPS_PER_SECOND = (
    1.5e12  # the median device: a good phone or a small laptop GPU, as a model like this needs
)
NO_DEADLINE = 100_000.0
SWEEPS = {
    "bandwidth": "uplink bandwidth in MHz",
    "rank": "rank of the adapter; at the right end the whole UNet",
}
BANDS_MHZ, RANKS = np.logspace(-1, 2, 13), (1, 2, 4, 8, 16, 32, 64, 128)


def radio_dashboard(**changes):
    """Show the dashboard in the running cell and return it. `changes` are first values of the `Network`'s knobs."""
    network = Network(
        **{
            "num_clients": 10,
            "flops_per_second": FLOPS_PER_SECOND,
            "downlink": "broadcast",
            **changes,
        }
    )
    return RadioDashboard(network).show()


class RadioDashboard:
    """Knobs for what travels and for the cell; a map, one round, and the round's length against one knob."""

    def __init__(self, network):
        n = self.first = network
        self.clients = controls.knob(
            "Clients", n.num_clients, 2, 50, help="devices in one cell, all at work"
        )
        self.bandwidth = controls.log_knob(
            "Bandwidth (MHz)",
            n.bandwidth_hz / 1e6,
            0.1,
            100,
            help="the uplink band that they share",
        )
        self.radius = controls.knob(
            "Cell radius (m)", int(n.cell_radius_m), 20, 2000, 10, help="how far they stand"
        )
        self.rank = controls.knob("Rank", 4, 1, 128, help="of the adapter, if an adapter travels")
        self.deadline = controls.log_knob(
            "Deadline (s)",
            NO_DEADLINE,
            1,
            NO_DEADLINE,
            help="later uploads are dropped; at the right end none is",
        )
        self.round = controls.knob(
            "Round", 1, 1, ROUNDS, help="the one on the map and on the clock"
        )
        self.seed = controls.knob(
            "Seed", n.seed, 0, 99, help="decides places, walls, fading and speeds"
        )
        self.knobs = (
            self.clients,
            self.bandwidth,
            self.radius,
            self.rank,
            self.deadline,
            self.round,
            self.seed,
        )
        self.payload = controls.choice(
            "What travels", [("an adapter", "lora"), ("the whole UNet", "full")]
        )
        self.upload = controls.choice("Uploads as", ["float32", "int8", "top-k"])
        self.allocation = controls.choice("Shares of the band", list(ALLOCATIONS), n.allocation)
        self.law = controls.choice(
            "Rate", [("Shannon", "shannon"), ("CQI table", "cqi")], n.rate_law
        )
        self.sweep = controls.choice("Seconds a round against", list(SWEEPS))
        self.choices = (self.payload, self.upload, self.allocation, self.law)
        self.gantt, self.map, self.curve = map(charts.LiveChart, ("round", "map", "sweep"))

        for knob in self.knobs:
            knob.observe(lambda _: self.draw())
        for menu in self.choices:
            menu.observe(lambda _: self.draw(), names="value")
        self.sweep.observe(lambda _: self.draw_curve(), names="value")

    def show(self):
        """Put everything into the output of the running cell; the charts alone in HTML copies."""
        live = not runs_inline()
        if live:
            knobs = controls.grid([knob.box for knob in self.knobs])
            menus = controls.row(self.choices)
            display(VBox([controls.style(), knobs, menus], layout={"width": "100%"}))
        self.gantt.show()
        if live:
            display(controls.row([self.sweep]))
        self.curve.show()
        self.map.show()
        self.draw()
        return self

    # ---- what the knobs say

    def network(self):
        """The `Network` that the knobs describe."""
        return replace(
            self.first,
            num_clients=self.clients.value,
            bandwidth_hz=self.bandwidth.value * 1e6,
            cell_radius_m=float(self.radius.value),
            allocation=self.allocation.value,
            rate_law=self.law.value,
            seed=self.seed.value,
        )

    def what(self):
        """The `Payload` that travels."""
        return whole_unet() if self.payload.value == "full" else adapter(self.rank.value)

    def deadline_seconds(self):
        """The deadline, or None where the knob stands at its right end."""
        return self.deadline.value if self.deadline.value < NO_DEADLINE else None

    # ---- what is drawn

    def draw(self):
        """Replay the trace once and draw all three charts."""
        trace = trace_of(self.what(), self.clients.value, ROUNDS, PICTURES, self.upload.value)
        timeline = replay(trace, self.network())
        self.gantt.update(*round_chart(timeline, self.round.value, self.deadline_seconds()))
        self.map.update(*cell_map(timeline, self.network(), self.round.value))
        self.draw_curve()

    def draw_curve(self):
        """Draw seconds a round against the chosen knob, for three ways to share the band."""
        present = self.bandwidth.value if self.sweep.value == "bandwidth" else self.rank.value
        if self.sweep.value == "rank" and self.payload.value == "full":
            present = None
        found = sweep(self.sweep.value, self.network(), self.what(), self.upload.value)
        self.curve.update(*sweep_chart(found, self.sweep.value, present))


def sweep(knob, network, payload, upload="float32"):
    """Median seconds a round along one knob, as a data frame: x, allocation, seconds, computing.

    knob: "bandwidth" (x in MHz) or "rank" (x a rank, the whole UNet at the end). computing: seconds that the slowest
    device computes, which no radio can shorten.
    """
    if knob == "bandwidth":
        points = [(x, payload, x * 1e6) for x in BANDS_MHZ]
    else:
        whole = [(whole_unet().numbers / adapter(1).numbers, whole_unet(), network.bandwidth_hz)]
        points = [(rank, adapter(rank), network.bandwidth_hz) for rank in RANKS] + whole
    places, rounds = place_clients(network), np.arange(1, ROUNDS + 1)
    everyone, rows = np.ones((ROUNDS, network.num_clients)), []
    for x, what, band in points:
        bytes_down, bytes_up = 4 * what.numbers * everyone, what.upload_bytes(upload) * everyone
        for allocation in ("equal", "min-max"):
            radio = replace(network, bandwidth_hz=band, allocation=allocation)
            flops = PICTURES * what.step_flops * everyone
            seconds = phase_seconds(
                radio, places, rounds, bytes_down, flops, bytes_up
            )  # (3, rounds, K)
            rows.append(
                {
                    "x": x,
                    "allocation": allocation,
                    "seconds": float(np.median(seconds.sum(0).max(1))),
                    "computing": float(seconds[1].max()),
                }
            )
    return pd.DataFrame(rows)


def sweep_chart(found, knob, present=None):
    """Seconds a round along a knob, over the seconds of computing alone. Returns (figure, sentence, table)."""
    chart = charts.figure(SWEEPS[knob], "median seconds a round", height=340)
    for allocation, role in (("equal", "client"), ("min-max", "adapter")):
        line = found[found["allocation"] == allocation]
        charts.add_line(chart, line["x"], line["seconds"], f"{allocation} shares", role)
    floor = found[found["allocation"] == "equal"]
    charts.add_line(chart, floor["x"], floor["computing"], "computing alone", "base", faint=True)
    chart.update_xaxes(type="log", dtick=1)
    chart.update_yaxes(type="log", dtick=1)
    if present is not None:
        chart.add_vline(
            x=float(present), line={"color": "#808080", "dash": "dot"}, annotation_text="now"
        )
    ends = floor.iloc[[0, -1]]
    share = [
        1 - alone / all_told
        for alone, all_told in zip(ends["computing"], ends["seconds"], strict=True)
    ]
    low, high = map(controls.in_words, ends["seconds"])
    sentence = (
        f"With equal shares, {share[0]:.0%} of a round is spent on the link at the left end, and {share[1]:.0%} at the "
        f"right end: {low} s and {high} s a round. Where the lines meet the grey one, no radio helps any more."
    )
    return chart, sentence, found.rename(columns={"x": SWEEPS[knob].split(";")[0]})


def round_chart(timeline, number, deadline_seconds=None):
    """One round on the clock, and whether link or computing bounds it. Returns (figure, sentence, table)."""
    chart, sentence, table = charts.gantt(timeline, number)
    seconds = float(timeline.rounds.set_index("round").loc[number, "seconds"])
    computing = table[table["phase"] == "compute"]
    floor = float((computing["end_seconds"] - computing["start_seconds"]).max())
    bound = "compute-bound" if floor > seconds / 2 else "link-bound"
    sentence += f" The slowest device computes for {controls.in_words(floor)} s, "
    sentence += f"{floor / seconds:.0%} of the round: it is {bound}."
    if deadline_seconds is not None:
        cut = meet_deadline(timeline, deadline_seconds).set_index("round").loc[number]
        late = ", ".join(map(str, cut["late"])) or "nobody"
        sentence += f" With a deadline of {controls.in_words(deadline_seconds)} s it ends after "
        sentence += f"{controls.in_words(cut['seconds'])} s, and too late "
        sentence += f"{'is' if len(cut['late']) < 2 else 'are'}: {late}."
        if deadline_seconds <= seconds:  # beyond the round it would only squeeze the bars
            line = {"color": "#D55E00", "width": 2}
            chart.add_vline(x=deadline_seconds, line=line, annotation_text="deadline")
    return chart, sentence, table


def cell_map(timeline, network, number):
    """Where the clients stand and how well they are heard in a round. Returns (figure, sentence, table)."""
    places = timeline.clients
    fade = fading_gains(network, number + 1)[:, number, 0]  # (K,)
    gain = 10 ** (-places["path_loss_db"] / 10) * fade
    ratio = signal_to_noise(
        network.bandwidth_hz, network.device_power_dbm, gain, network.station_noise_figure_db
    )
    heard = places.assign(snr_db=10 * np.log10(ratio))
    chart = charts.figure("metres east of the station", "metres north", height=440)
    edge = np.linspace(0, 2 * np.pi, 90)
    chart.add_scatter(
        x=(network.cell_radius_m * np.cos(edge)).tolist(),
        y=(network.cell_radius_m * np.sin(edge)).tolist(),
        mode="lines",
        name="edge of the cell",
        line={"color": "#808080", "dash": "dot"},
        hoverinfo="skip",
    )
    chart.add_scatter(
        x=[0],
        y=[0],
        mode="markers",
        name="station",
        marker={"symbol": "triangle-up", "size": 16, "color": charts.PALETTE["server"]},
    )
    scale = {
        "colorscale": "Viridis",
        "cmin": float(heard["snr_db"].min()),
        "cmax": float(heard["snr_db"].max()),
    }
    for seen, symbol, words in (
        (True, "circle", "sees the station"),
        (False, "square", "behind a wall"),
    ):
        part = heard[heard["line_of_sight"] == seen]
        bar = (
            {"colorbar": {"title": {"text": "dB"}, "thickness": 12, "len": 0.8}}
            if seen == part.empty
            else {}
        )
        chart.add_scatter(
            x=part["x_m"].tolist(),
            y=part["y_m"].tolist(),
            mode="markers+text",
            name=words,
            text=[f"{row.client}: {row.snr_db:.0f} dB" for row in part.itertuples()],
            textposition="top center",
            marker={
                "symbol": symbol,
                "size": 12,
                "color": part["snr_db"].tolist(),
                **scale,
                **bar,
                "line": {"color": "#808080", "width": 1},
            },
        )
    chart.update_yaxes(scaleanchor="x", scaleratio=1)
    straggler = int(timeline.rounds.set_index("round").loc[number, "straggler"])
    worst, best = heard.loc[heard["snr_db"].idxmin()], heard.loc[heard["snr_db"].idxmax()]
    sentence = (
        f"Round {number}: client {int(best['client'])} is heard best, {best['snr_db']:.0f} dB over the noise of the "
        f"whole band, client {int(worst['client'])} worst, {worst['snr_db']:.0f} dB at {worst['distance_m']:.0f} m. "
        f"Everyone waits for client {straggler}."
    )
    columns = [
        "client",
        "distance_m",
        "line_of_sight",
        "path_loss_db",
        "snr_db",
        "flops_per_second",
    ]
    return chart, sentence, heard[columns]
