"""Kernels that are forks of one process with libraries in memory, for the JupyterLab of the browser tests.

    python warm_kernels.py SOCKET                what JupyterLab is given as a kernel's command is the second form:
    python warm_kernels.py SOCKET -f CONNECTION  it asks the first for a kernel and lives as long as that kernel does

A kernel imports the lab from disk, as any does, and what it finds in memory is what looks at no notebook when it is
imported. This saves eight seconds of computing a kernel.
"""

import json
import os
import signal
import socket
import sys
import threading
from importlib import import_module

LIBRARIES = (
    "torch",
    "pandas",
    "flwr.app",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "diffusers.schedulers.scheduling_ddpm",
    "peft.tuners.lora",
)
LOOK_AT_NOTEBOOKS = (
    "tqdm.auto",
    "tqdm.autonotebook",
)  # they choose their bar by where they are imported


def serve(path):
    """Import the libraries, then fork a kernel for every connection. When one of the two ends, so does the other."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    from fedgen_lab.lean import leave_out_scipy

    leave_out_scipy()
    for library in LIBRARIES:
        import_module(library)
    for name in LOOK_AT_NOTEBOOKS:
        sys.modules.pop(name, None)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a kernel that has ended
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()
            arguments, folder, environment = json.loads(
                connection.makefile(encoding="utf-8").readline()
            )
            os.environ.update(environment)
            os.chdir(folder)
            threading.Thread(target=end_with, args=(connection,), daemon=True).start()
            from ipykernel.kernelapp import launch_new_instance

            launch_new_instance(argv=arguments)
            os._exit(0)
        connection.close()


def end_with(connection):
    """End this process when the one that asked for it has ended."""
    connection.recv(1)
    os._exit(1)


def ask(path, arguments):
    """Have a kernel made, and wait until it has ended. JupyterLab interrupts what it shuts down: that ends nothing."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    environment = {name: value for name, value in os.environ.items() if name != "JPY_PARENT_PID"}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        connection.sendall(json.dumps([arguments, os.getcwd(), environment]).encode() + b"\n")
        while connection.recv(1):
            pass


if __name__ == "__main__":
    ask(sys.argv[1], sys.argv[2:]) if len(sys.argv) > 2 else serve(sys.argv[1])
