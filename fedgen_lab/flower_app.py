"""What `flwr run .` starts: federated LoRA (labs 03 to 05), split training of its UNet, or a GAN method (06 and 07).

Run config `experiment` says which: "lora", with a `cut` split training; or "gan", whose knobs stand under "gan." there.
The same objects run in Flower's simulation and on a SuperLink with SuperNodes; pyproject.toml names them. A notebook
calls `run_federated`, `lora.split_server.run_split` or `split.run.run_gan` instead.
"""

from dataclasses import replace
from functools import lru_cache
from pkgutil import resolve_name

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedgen_lab.federation.saving import keep_result, tried_path

# Which function of fedgen_lab makes which half of an experiment. A node loads the modules of its own experiment only.
HALVES = {
    "lora": {
        "server": "lora.federated:lora_server_app",
        "client": "lora.federated:lora_client_app",
    },
    "split": {
        "server": "lora.split_server:split_server_app",
        "client": "lora.split_client:split_client_app",
    },
    "huscf": {"server": "split.u_server:u_server_app", "client": "split.u_client:u_client_app"},
}
# What a server may ask for, written out, to do without torch here.
ACTIONS = (
    # a step of the UNet in two
    "start",
    "loss",
    "learn",
    # the other hops of the GAN's U
    "fakes",
    "judge",
    "learn_d",
    "fool",
    "back_to_g",
    "learn_g",
    "finish",
    # the words of its rivals
    "alone",
    "pictures",
    "feedback",
    "give",
    "take",
    "share",
    "receive",
)

server_app = ServerApp()
client_app = ClientApp()


@server_app.main()
def lead(grid: Grid, context: Context) -> None:
    """The server's whole run."""
    experiment, context = _experiment(context)
    if experiment in HALVES:
        _app_maker(experiment, "server")()(grid, context)
    else:
        _lead_rival(experiment, grid, context)


@client_app.train()
def train_on_own_pictures(message: Message, context: Context) -> Message:
    """A client's answer. Flower's simulation sends this function's name to its workers, not the models behind it."""
    experiment, context = _experiment(context)
    return _client_app(experiment)(message, context)


client_app.evaluate()(train_on_own_pictures)
client_app.query()(train_on_own_pictures)
client_app.query("hello")(train_on_own_pictures)
for _action in ACTIONS:
    client_app.train(_action)(train_on_own_pictures)


def _experiment(context):
    """Which experiment this is ("lora", "split" or a GAN method), and the context with its knobs and its own state.

    Raises ValueError for another name.
    """
    run_config = context.run_config
    experiment = str(run_config.get("experiment", "lora"))
    if experiment == "lora":
        return "split" if run_config.get("cut") else "lora", context
    if experiment != "gan":
        raise ValueError(f'experiment must be "lora" or "gan"; got {experiment!r}.')
    from fedgen_lab.split.scenario import GanScenario

    knobs = {
        key.removeprefix("gan."): value
        for key, value in run_config.items()
        if key.startswith("gan.")
    }
    method = GanScenario.from_run_config(knobs).method  # an unknown one is named here
    knobs["save-to"] = run_config.get("save-to", "")
    return method, replace(context, run_config=knobs)


def _app_maker(experiment, half):
    """The function that makes this half, "server" or "client", of the experiment's app; rivals are named alike."""
    rival = f"split.rivals.{experiment}:{half}_app"
    return resolve_name("fedgen_lab." + HALVES.get(experiment, {}).get(half, rival))


@lru_cache(maxsize=1)
def _client_app(experiment):
    return _app_maker(experiment, "client")()


def _lead_rival(experiment, grid, context):
    """A rival's server, and at its end or at its stop a file with the last generators, as the U's server writes one."""
    from fedgen_lab.split.u_server import save_generators

    path, generators = tried_path(context.run_config), []

    def keep(event):
        generators[:] = event.generators

    try:
        _app_maker(experiment, "server")(on_round=keep)(grid, context)
    finally:
        keep_result(lambda file: save_generators(generators, file), path)
