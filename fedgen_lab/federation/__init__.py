"""The engine room: one Flower app, three engines, and a record of what crossed the wire.

`LabGrid` runs an app in this process (every lab), `flwr run .` runs the same app in Flower's simulation, and a
SuperLink with SuperNodes runs it on real machines.
"""

from fedgen_lab.federation.clients import Refusal
from fedgen_lab.federation.fedavg import CheckedFedAvg
from fedgen_lab.federation.grid import LabGrid
from fedgen_lab.federation.run import Run, Stopped, run_app
from fedgen_lab.federation.trace import SERVER, Sent, Trace

__all__ = [
    "SERVER",
    "CheckedFedAvg",
    "LabGrid",
    "Refusal",
    "Run",
    "Sent",
    "Stopped",
    "Trace",
    "run_app",
]
