"""A Flower app without any learning in it: clients add a number, the server averages with CheckedFedAvg or FedBuff.

Client p adds (p + 1) * n, where n is how many messages it remembers; so the result shows who took part and that state
lasts.
"""

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedgen_lab.federation import CheckedFedAvg
from fedgen_lab.wireless.channel import Network
from fedgen_lab.wireless.fedbuff import FedBuff

client_app = ClientApp()
server_app = ServerApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Add to every number; note the beginning; the slow client waits for its file."""
    client, config = int(context.node_config["partition-id"]), context.run_config
    server_round = int(message.content["config"]["server-round"])
    if config["notes"]:
        Path(config["notes"], f"client-{client}-round-{server_round}").touch()
    while client == int(config["slow"]) and not Path(config["until"]).exists():
        time.sleep(0.1)
    times = context.state["memory"]["times"] + 1 if "memory" in context.state else 1
    context.state["memory"] = MetricRecord({"times": times})
    arrays = {
        name: Array(array.numpy() + (client + 1) * times)
        for name, array in message.content["arrays"].items()
    }
    metrics = MetricRecord({"num-examples": client + 1, "partition-id": client, "loss": 0.0})
    return Message(
        RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message
    )


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Average for some rounds; save the first number, the rounds that were completed, and who was refused."""
    config, completed = context.run_config, []

    def on_round(server_round, arrays, metrics):
        completed.append((server_round, float(arrays["a"].numpy()[0]), time.time()))

    start = ArrayRecord({"a": Array(np.zeros(int(config["size"]), np.float32))})
    number = int(config["num-clients"])
    strategy = CheckedFedAvg(min_available_nodes=number, on_round=on_round)
    if config["buffer"]:
        strategy = FedBuff(
            Network(number),
            buffer=int(config["buffer"]),
            min_available_nodes=number,
            on_round=on_round,
        )
    strategy.start(grid, start, num_rounds=int(config["rounds"]))
    context.state["result"] = MetricRecord({"value": completed[-1][1]})
    if config["save-to"]:
        Path(config["save-to"]).write_text(
            json.dumps(
                {
                    "completed": completed,
                    "refused": strategy.refused,
                    "merged": getattr(strategy, "merged", []),
                }
            ),
            encoding="utf-8",
        )
