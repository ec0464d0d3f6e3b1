"""Run a Flower app in this process, hear what happens in it, and stop it."""

from dataclasses import dataclass

from flwr.app import Context, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID

from fedgen_lab.federation.grid import RUN_ID, LabGrid, Stopped
from fedgen_lab.federation.secret import SERVER_PARTY, secret_for
from fedgen_lab.federation.trace import Trace


@dataclass(frozen=True)
class Run:
    """What is left of a run: the server's Flower `Context`, the `Trace`, and whether it was stopped half-way."""

    context: Context
    trace: Trace
    stopped: bool


def run_app(
    server_app,
    client_app,
    num_clients,
    run_config=None,
    should_stop=None,
    on_message=None,
    stacked=None,
):
    """Run a Flower app on a `LabGrid`, as `flwr run` would in its simulation, and return a `Run`.

    `run_config` takes the place of `[tool.flwr.app.config]`. When `should_stop()` becomes true the run ends at the
    next message and the `Run` says `stopped`; what was aggregated until then stays with the app. Errors of the
    `ServerApp` are raised.
    """
    secret = {"secret": secret_for(SERVER_PARTY)}
    context = Context(RUN_ID, SUPERLINK_NODE_ID, secret, RecordDict(), dict(run_config or {}))
    grid = LabGrid(
        client_app,
        num_clients,
        run_config,
        should_stop=should_stop,
        on_message=on_message,
        stacked=stacked,
    )
    try:
        with grid:
            server_app(grid, context)
    except Stopped:
        return Run(context, grid.trace, stopped=True)
    return Run(context, grid.trace, stopped=False)


def listener(*functions, should_stop=None):
    """A function of an event: passes it to all that are not None, and raises `Stopped` when it is time to."""

    def on_event(event):
        for function in functions:
            if function is not None:
                function(event)
        if should_stop is not None and should_stop():
            raise Stopped("The run was stopped.")

    return on_event
