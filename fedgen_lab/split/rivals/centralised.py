"""Centralised: every client sends its pictures to the server, once, and one GAN is trained there.

What federation avoids, and what it is measured against. Lab 07. An iteration's batch is all clients' batches of that
iteration put together, so this is HuSCF-GAN with nothing left on the devices: as many pictures seen, as many generator
steps.
"""

import torch
from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from fedgen_lab.federation.arrays import tensors_of
from fedgen_lab.split.batch import draw_batch
from fedgen_lab.split.local import gan_step
from fedgen_lab.split.rivals import core
from fedgen_lab.split.run import GanStep
from fedgen_lab.split.scenario import GanRound, GanScenario

WHAT = {"train.pictures": "down: the word to send; up, once: every picture and its label"}


def client_app(dealt=None, on_step=None):
    """The device's half: it sends all it has, and is done."""
    app = core.new_client_app()

    @app.train("pictures")
    def send_all(message: Message, context: Context) -> Message:
        scenario, client, _ = core.addressee(message, context)
        pictures, labels = core.own_data(scenario, client, dealt)
        return core.answer(
            message,
            client,
            len(labels),
            data={"pictures": core.to_bytes(pictures), "labels": labels},
        )

    return app


def server_app(on_round=None, on_step=None, refused=None):
    """The server's half: collect everything, then train."""
    app = ServerApp()

    @app.main()
    def train(grid: Grid, context: Context) -> None:
        scenario = GanScenario.from_run_config(context.run_config)
        clients = core.Clients(grid, scenario.num_clients, [] if refused is None else refused)
        gan = core.start_gan(scenario)

        def show(server_round):
            if on_round is not None:
                state = {
                    name: tensor.clone() for name, tensor in gan.generator.state_dict().items()
                }
                generators = clients.each(scenario, state)
                on_round(
                    GanRound(
                        server_round,
                        scenario.rounds,
                        generators,
                        trace=getattr(grid, "trace", None),
                    )
                )

        show(0)
        sent = clients.ask("pictures", 1)
        data = {client: tensors_of(content["data"]) for client, content in sent.items()}
        data = {
            client: (core.to_pictures(of["pictures"]), of["labels"]) for client, of in data.items()
        }
        for server_round in range(1, scenario.rounds + 1):
            for iteration in range(scenario.iterations):
                batches = [
                    draw_batch(scenario, *of, client, server_round, iteration)
                    for client, of in data.items()
                ]
                gan_step(*gan, *(torch.cat(parts) for parts in zip(*batches, strict=True)))
                if on_step is not None:
                    on_step(GanStep(server_round, iteration + 1, scenario.iterations))
            show(server_round)

    return app


def run(scenario, should_stop=None, on_event=None, dealt=None):
    """Train on everybody's pictures on a `LabGrid`; see `core.play`."""
    return core.play(scenario, server_app, client_app, WHAT, should_stop, on_event, dealt)
