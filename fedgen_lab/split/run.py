"""Run an experiment with GANs inside the notebook: HuSCF-GAN, or one of its rivals, as a Flower app on a `LabGrid`.

Labs 06 and 07; HuSCF-GAN, arXiv 2507.12979.
"""

from dataclasses import dataclass, replace
from importlib import import_module

from fedgen_lab.federation.run import listener, run_app
from fedgen_lab.split.deal import deal
from fedgen_lab.split.half import HOPS
from fedgen_lab.split.scenario import GanOutcome, GanRound
from fedgen_lab.split.u_client import stacked_clients, u_client_app
from fedgen_lab.split.u_server import u_server_app


@dataclass(frozen=True)
class GanStep:
    """All clients did one iteration. Rounds and iterations count from 1."""

    round: int
    iteration: int
    iterations: int


def run_gan(scenario, should_stop=None, on_event=None, stacked=True, dealt=None):
    """Run the scenario in this process and return its `GanOutcome`.

    `on_event` hears a `GanStep` after every iteration and a `GanRound` after every round, and one before the first.
    `should_stop()` is asked after every event and before every exchange; when it is true the run ends, and what was
    averaged so far is in the outcome. stacked: compute clients that share a cut in one pass, which is faster and gives
    the same result. dealt: whose pictures the clients hold, else `deal(scenario)`, whose errors are raised here.
    """
    if scenario.method != "huscf":
        rival = import_module(f"fedgen_lab.split.rivals.{scenario.method}")
        return rival.run(scenario, should_stop, on_event, dealt)
    history, servers = [], []
    dealt = deal(scenario) if dealt is None else dealt

    def keep_round(event):
        if isinstance(event, GanRound):
            history.append(replace(event, generators=[]))

    hear = listener(keep_round, on_event, should_stop=should_stop)

    def step(server_round, iteration):
        hear(GanStep(server_round, iteration, scenario.iterations))

    client_app = u_client_app(dealt, keep=True)
    run = run_app(
        u_server_app(on_round=hear, on_step=step, keep=servers.append),
        client_app,
        scenario.num_clients,
        scenario.to_run_config(),
        should_stop,
        stacked=stacked_clients(dealt) if stacked else None,
    )
    server = servers[0] if servers else None
    return GanOutcome(
        scenario=scenario,
        generators=server.generators if server else [],
        history=history,
        trace=run.trace,
        stopped=run.stopped,
        refused=tuple(server.refused) if server else (),
        what=WHAT,
    )


WHAT = {
    "query.hello": "up: which client it is, and how many pictures it holds",
    **{f"train.{action}": hop.words for action, hop in HOPS.items()},
}
