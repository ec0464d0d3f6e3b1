"""What `flwr run .` starts: the federated LoRA app of lab 03, where Flower's engines look for it.

The same two objects run in Flower's simulation and on a SuperLink with SuperNodes; pyproject.toml names them, with
their run config. A notebook calls `fedgen_lab.lora.federated.run_federated` instead.
"""

from functools import lru_cache

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedgen_lab.lora.federated import lora_client_app, lora_server_app

server_app = lora_server_app()
client_app = ClientApp()


@client_app.train()
def train_on_own_pictures(message: Message, context: Context) -> Message:
    """A client's round. Flower's simulation sends this function's name to its workers, not the models behind it."""
    return _app_of_this_process()(message, context)


@lru_cache(maxsize=1)
def _app_of_this_process():
    return lora_client_app()
