"""FedAvg on the very task of the peers: what PDFed (arXiv 2409.18245) did not compare itself with.

Lab 10. A Flower app: a server sends one model, every client trains it on its own pictures for as many steps as a peer
does in a turn, and the server averages (McMahan et al., arXiv 1602.05629). A round waits for the slowest client, so in
the same simulated time it gets fewer turns out of fast ones.
"""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedgen_lab.federation.arrays import tensors_of
from fedgen_lab.federation.fedavg import CheckedFedAvg
from fedgen_lab.federation.run import run_app
from fedgen_lab.memorization.ddpm import load_weights, train_ddpm, weights
from fedgen_lab.peers.peer import start_model
from fedgen_lab.peers.run import paces
from fedgen_lab.peers.scenario import PeersScenario, deal


def rounds_in(scenario):
    """How many rounds fit into the scenario's seconds: each takes as long as its slowest client."""
    like = weights(start_model(scenario))
    size = sum(tensor.numel() * tensor.element_size() for tensor in like.values())
    slowest = max(
        size * (pace.download + pace.upload) + scenario.steps * pace.step
        for pace in paces(scenario)[: scenario.num_peers]
    )
    return max(1, int(scenario.seconds / slowest))


def client_app(on_step=None):
    """The device's half: train what was sent on its own pictures."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        scenario = PeersScenario.from_run_config(context.run_config)
        client, turn = (
            int(context.node_config["partition-id"]),
            int(message.content["config"]["server-round"]) - 1,
        )
        model, own = start_model(scenario), deal(scenario)[client].train
        load_weights(model, tensors_of(message.content["arrays"]))
        losses = train_ddpm(
            model,
            own.as_tensor(),
            own.labels,
            scenario.steps,
            scenario.batch_size,
            scenario.learning_rate,
            seed=scenario.seed_of(2, client, turn),
            on_step=on_step,
        )
        metrics = MetricRecord(
            {"num-examples": len(own), "partition-id": client, "loss": losses[-1]}
        )
        answer = RecordDict({"arrays": ArrayRecord(weights(model)), "metrics": metrics})
        return Message(answer, reply_to=message)

    return app


def server_app(on_round=None):
    """The server's half: as many rounds as fit into the time. on_round(round, rounds, state) after each."""
    app = ServerApp()

    @app.main()
    def average(grid: Grid, context: Context) -> None:
        scenario = PeersScenario.from_run_config(context.run_config)
        rounds = rounds_in(scenario)

        def show(server_round, arrays, metrics):
            if on_round is not None:
                on_round(server_round, rounds, tensors_of(arrays))

        strategy = CheckedFedAvg(
            min_available_nodes=scenario.num_peers, seed=scenario.seed, on_round=show
        )
        strategy.start(grid, ArrayRecord(weights(start_model(scenario))), num_rounds=rounds)

    return app


def run_fedavg(scenario, should_stop=None, on_round=None):
    """Train on a `LabGrid`; returns the averaged weights of every round, a list, as far as it came before a stop."""
    states = []

    def keep(server_round, rounds, state):
        states.append(state)
        if on_round is not None:
            on_round(server_round, rounds, state)

    app = client_app()
    run_app(
        server_app(keep), app, scenario.num_peers, scenario.to_run_config(), should_stop=should_stop
    )
    return states
