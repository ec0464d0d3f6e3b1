"""Local-only: every client trains a GAN on its own pictures, and nobody learns from anybody.

The floor that every federation must beat. Lab 07. The only messages are the word to train a round and the answer that
it was done; a generator never leaves its device. In one process the server's `keep` is the clients', so that their
generators can be looked at; on real nodes nobody can look.
"""

from functools import partial

from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from fedgen_lab.split.rivals import core
from fedgen_lab.split.scenario import GanRound, GanScenario

WHAT = {
    "train.alone": "down: the word to train for one round; up: that it was done. No model, no data"
}


def client_app(dealt=None, on_step=None, keep=None):
    """The device's half; keep: see `core.recall`."""
    app = core.new_client_app()

    @app.train("alone")
    def alone(message: Message, context: Context) -> Message:
        scenario, client, _ = core.addressee(message, context)
        return train_alone(message, context, *core.own_data(scenario, client, dealt), on_step, keep)

    return app


def train_alone(message, context, pictures, labels, on_step=None, keep=None):
    """One client's round on these pictures, from its own GAN to its own GAN; returns the answer."""
    scenario, client, server_round = core.addressee(message, context)
    gan = core.recall(context, scenario, keep)
    core.local_steps(scenario, gan, pictures, labels, client, server_round, on_step)
    core.remember(context, gan, keep=keep)
    flops = scenario.iterations * core.step_flops(scenario, len(labels))
    return core.answer(message, client, len(labels), flops)


def server_app(on_round=None, on_step=None, refused=None, keep=None, after=None):
    """The server's half: it gives the word. after(scenario, clients, round) is called when all have trained a round."""
    app = ServerApp()

    @app.main()
    def give_the_word(grid: Grid, context: Context) -> None:
        scenario = GanScenario.from_run_config(context.run_config)
        clients = core.Clients(grid, scenario.num_clients, [] if refused is None else refused)
        tell(on_round, 0, scenario, clients, keep, grid)
        for server_round in range(1, scenario.rounds + 1):
            clients.ask("alone", server_round)
            if after is not None:
                after(scenario, clients, server_round)
            tell(on_round, server_round, scenario, clients, keep, grid)

    return app


def tell(on_round, server_round, scenario, clients, keep, grid):
    """Call `on_round` with the generators that can be seen: each client's own, in one process."""
    if on_round is None:
        return
    start, generators = core.start_gan(scenario), [None] * scenario.num_clients
    for client in clients.nodes if keep is not None else ():
        own = keep.get(client, start).generator.state_dict()
        generators[client] = {name: tensor.clone() for name, tensor in own.items()}
    on_round(
        GanRound(server_round, scenario.rounds, generators, trace=getattr(grid, "trace", None))
    )


def run(scenario, should_stop=None, on_event=None, dealt=None):
    """Train every client alone on a `LabGrid`; see `core.play`."""
    keep = {}
    apps = partial(server_app, keep=keep), partial(client_app, keep=keep)
    return core.play(scenario, *apps, WHAT, should_stop, on_event, dealt)
