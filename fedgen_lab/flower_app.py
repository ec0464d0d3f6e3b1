"""What `flwr run .` starts: federated LoRA (labs 03 to 05), split training of its UNet, or a GAN method (06 and 07).

Run config `experiment` says which: "lora", with a `cut` split training; or "gan", whose knobs stand under "gan." there.
The same objects run in Flower's simulation and on a SuperLink with SuperNodes; pyproject.toml names them. A notebook
calls `run_federated`, `lora.split_server.run_split` or `split.run.run_gan` instead.
"""

from dataclasses import replace
from functools import lru_cache
from importlib import import_module

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

# What a server may ask for, written out, to do without torch here: a step of the UNet in two, the hops of the GAN's U,
# then the words of its rivals.
SPLIT_HOPS = ("start", "loss", "learn")
U_HOPS = ("start", "fakes", "judge", "learn_d", "fool", "back_to_g", "learn_g", "finish")
RIVALS_WORDS = ("alone", "pictures", "feedback", "give", "take", "share", "receive")

server_app = ServerApp()
client_app = ClientApp()


@server_app.main()
def lead(grid: Grid, context: Context) -> None:
    """The server's whole run."""
    experiment, context = _experiment(context)
    if experiment == "lora":
        from fedgen_lab.lora.federated import lora_server_app

        lora_server_app()(grid, context)
    elif experiment == "split":
        from fedgen_lab.lora.split_server import split_server_app

        split_server_app()(grid, context)
    elif experiment == "huscf":
        from fedgen_lab.split.u_server import u_server_app

        u_server_app()(grid, context)
    else:
        _lead_rival(import_module(f"fedgen_lab.split.rivals.{experiment}"), grid, context)


@client_app.train()
def train_on_own_pictures(message: Message, context: Context) -> Message:
    """A client's answer. Flower's simulation sends this function's name to its workers, not the models behind it."""
    experiment, context = _experiment(context)
    return _client_app(experiment)(message, context)


client_app.evaluate()(train_on_own_pictures)
client_app.query()(train_on_own_pictures)
client_app.query("hello")(train_on_own_pictures)
for _action in dict.fromkeys(SPLIT_HOPS + U_HOPS + RIVALS_WORDS):
    client_app.train(_action)(train_on_own_pictures)


def _experiment(context):
    """Which experiment this is ("lora", "split" or a GAN method), and the context with its knobs and its own state.

    Raises ValueError for another name.
    """
    experiment = str(context.run_config.get("experiment", "lora"))
    if experiment == "lora":
        return "split" if context.run_config.get("cut") else "lora", context
    if experiment != "gan":
        raise ValueError(f'experiment must be "lora" or "gan"; got {experiment!r}.')
    from fedgen_lab.split.scenario import GanScenario

    knobs = {
        key.removeprefix("gan."): value
        for key, value in context.run_config.items()
        if key.startswith("gan.")
    }
    method = GanScenario.from_run_config(knobs).method  # an unknown one is named here
    return method, replace(
        context, run_config={**knobs, "save-to": context.run_config.get("save-to", "")}
    )


@lru_cache(maxsize=1)
def _client_app(experiment):
    if experiment == "lora":
        from fedgen_lab.lora.federated import lora_client_app

        return lora_client_app()
    if experiment == "split":
        from fedgen_lab.lora.split_client import split_client_app

        return split_client_app()
    if experiment == "huscf":
        from fedgen_lab.split.u_client import u_client_app

        return u_client_app()
    return import_module(f"fedgen_lab.split.rivals.{experiment}").client_app()


def _lead_rival(rival, grid, context):
    """A rival's server, and at its end or at its stop a file with the last generators, as the U's server writes one."""
    from fedgen_lab.split.scenario import GanRound
    from fedgen_lab.split.u_server import save_generators

    generators = []

    def keep(event):
        if isinstance(event, GanRound):
            generators[:] = event.generators

    try:
        rival.server_app(on_round=keep)(grid, context)
    finally:
        if context.run_config["save-to"]:
            save_generators(generators, str(context.run_config["save-to"]))
