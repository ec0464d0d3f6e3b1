"""MD-GAN: one generator on the server, a discriminator on every client, and the discriminators move about.

Lab 07. Hardy, Le Merrer and Sericola 2018, arXiv 1811.03850. In an iteration the server makes k = floor(ln N) batches
of fakes (at least one) and sends each client two of them: one for its discriminator to learn from, one to judge. After
a round every discriminator goes to another client, so that none learns one client's pictures by heart. We read the
abstract and a summary only. Ours are: labels for the fakes, drawn evenly; the non-saturating loss; that the
discriminators move on a random ring and by way of the server; and that Adam's moments stay where they are.
"""

import math
from functools import partial

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedgen_lab.split.rivals import core
from fedgen_lab.split.rivals.feedback import WHAT, client_app, serve
from fedgen_lab.split.scenario import GanScenario


def server_app(on_round=None, on_step=None, refused=None):
    """The server's half: it makes the fakes, learns from the feedback, and sends the discriminators round."""
    app = ServerApp()

    @app.main()
    def train(grid: Grid, context: Context) -> None:
        scenario = GanScenario.from_run_config(context.run_config)
        batches = max(1, math.floor(math.log(scenario.num_clients)))
        serve(grid, scenario, batches, 1, around_a_ring, on_round, on_step, refused)

    return app


def around_a_ring(scenario, server_round, given):
    """Everybody's discriminator goes to the next on a random ring: {client: discriminator}."""
    ring = np.random.default_rng(scenario.seed_of(server_round, 0)).permutation(list(given))
    return {int(to): given[int(giver)] for giver, to in zip(ring, np.roll(ring, -1), strict=True)}


def run(scenario, should_stop=None, on_event=None, dealt=None):
    """Train MD-GAN on a `LabGrid`; see `core.play`."""
    return core.play(
        scenario, server_app, partial(client_app, keep={}), WHAT, should_stop, on_event, dealt
    )
