"""FedGAN: every client trains a whole GAN, and both nets are averaged after each round.

Lab 07. Rasouli, Sun and Rajagopal 2020, arXiv 2006.07228: an intermediary averages generators and discriminators every
K steps, weighted by the number of pictures; K is `iterations` here. We read its abstract, not its body: that Adam's
moments stay on the device and outlive the averaging is our detail. It stands on `CheckedFedAvg`.
"""

from flwr.app import ArrayRecord, Context, Message
from flwr.serverapp import Grid, ServerApp

from fedgen_lab.federation.arrays import tensors_of
from fedgen_lab.federation.fedavg import CheckedFedAvg
from fedgen_lab.split.rivals import core
from fedgen_lab.split.scenario import GanRound, GanScenario

WHAT = {
    "train": "down: both nets, averaged; up: both nets after a round on the client's own pictures"
}


def client_app(dealt=None, on_step=None):
    """The device's half: take the nets that were sent, train them for a round, send them back."""
    app = core.new_client_app()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        scenario, client, server_round = core.addressee(message, context)
        gan = core.recall(context, scenario)
        gan.load(tensors_of(message.content["arrays"]))
        pictures, labels = core.own_data(scenario, client, dealt)
        core.local_steps(scenario, gan, pictures, labels, client, server_round, on_step)
        core.remember(context, gan)
        flops = scenario.iterations * core.step_flops(scenario, len(labels))
        return core.answer(message, client, len(labels), flops, arrays=gan.state())

    return app


def server_app(on_round=None, on_step=None, refused=None):
    """The server's half: federated averaging of both nets. Uploads that spoil the average are named in `refused`."""
    app = ServerApp()

    @app.main()
    def average(grid: Grid, context: Context) -> None:
        scenario = GanScenario.from_run_config(context.run_config)

        def show(server_round, arrays):
            generator = generator_of(tensors_of(arrays))
            if on_round is not None:
                trace = getattr(grid, "trace", None)
                on_round(
                    GanRound(
                        server_round,
                        scenario.rounds,
                        [generator] * scenario.num_clients,
                        trace=trace,
                    )
                )

        strategy = CheckedFedAvg(min_available_nodes=scenario.num_clients, seed=scenario.seed)
        strategy.clients.refused = [] if refused is None else refused
        start = ArrayRecord(core.start_gan(scenario).state())
        strategy.start(grid, start, num_rounds=scenario.rounds, evaluate_fn=show)

    return app


def generator_of(state):
    """The generator's state dict out of the tensors of both nets."""
    return {
        name.removeprefix("g."): tensor for name, tensor in state.items() if name.startswith("g.")
    }


def run(scenario, should_stop=None, on_event=None, dealt=None):
    """Train FedGAN on a `LabGrid`; see `core.play`."""
    return core.play(scenario, server_app, client_app, WHAT, should_stop, on_event, dealt)
