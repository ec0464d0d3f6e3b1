"""What `flwr run .` starts: the federated LoRA app of lab 03, or the U of labs 06 and 07, where Flower's engines look.

Run config `experiment` says which: "lora", or "gan", whose knobs stand under "gan." there. The same objects run in
Flower's simulation and on a SuperLink with SuperNodes; pyproject.toml names them. A notebook calls
`fedgen_lab.lora.federated.run_federated` or `fedgen_lab.split.run.run_gan` instead.
"""

from dataclasses import replace
from functools import lru_cache

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

U_HOPS = ("start", "fakes", "judge", "learn_d", "fool", "back_to_g", "learn_g", "finish")  # `half.HOPS`, without torch

server_app = ServerApp()
client_app = ClientApp()


@server_app.main()
def lead(grid: Grid, context: Context) -> None:
    """The server's whole run."""
    experiment, context = _experiment(context)
    _server_app(experiment)(grid, context)


@client_app.train()
def train_on_own_pictures(message: Message, context: Context) -> Message:
    """A client's answer. Flower's simulation sends this function's name to its workers, not the models behind it."""
    experiment, context = _experiment(context)
    return _client_app(experiment)(message, context)


client_app.query("hello")(train_on_own_pictures)
for _hop in U_HOPS:
    client_app.train(_hop)(train_on_own_pictures)


def _experiment(context):
    """Which experiment this is, and the context with that experiment's knobs; its state is the same object."""
    experiment = str(context.run_config.get("experiment", "lora"))
    if experiment not in ("lora", "gan"):
        raise ValueError(f'experiment must be "lora" or "gan"; got {experiment!r}.')
    if experiment == "lora":
        return experiment, context
    knobs = {key.removeprefix("gan."): value for key, value in context.run_config.items() if key.startswith("gan.")}
    if knobs.get("method", "huscf") != "huscf":
        raise ValueError(f'On Flower\'s engines gan.method must be "huscf"; run {knobs["method"]!r} by run_gan().')
    return experiment, replace(context, run_config={**knobs, "save-to": context.run_config.get("save-to", "")})


@lru_cache(maxsize=1)
def _client_app(experiment):
    if experiment == "lora":
        from fedgen_lab.lora.federated import lora_client_app

        return lora_client_app()
    from fedgen_lab.split.u_client import u_client_app

    return u_client_app()


def _server_app(experiment):
    if experiment == "lora":
        from fedgen_lab.lora.federated import lora_server_app

        return lora_server_app()
    from fedgen_lab.split.u_server import u_server_app

    return u_server_app()
