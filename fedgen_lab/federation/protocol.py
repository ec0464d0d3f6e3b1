"""A protocol of two sides as two generator functions: `yield` is the wire.

A side sends a message with `yield` and goes on with what comes back, so a step of split learning reads from top to
bottom. A message is a dictionary of tensors and of numbers by name. `crossings` runs both sides in one process. A node
of Flower may be another process for every message: `next_message` begins its side again and hands it all that came.
Labs 05 and 06; split learning: Vepakomma et al., arXiv 1812.00564.
"""

from itertools import count

import torch

from fedgen_lab.federation.arrays import record_of, tensors_of


def advance(side, message=None):
    """Hand a message to a side (None to begin): what it sends next, or None at its end."""
    try:
        return side.send(message)
    except StopIteration:
        return None


def crossings(device, server):
    """Both sides in one process: an iterator over the messages that cross, as ("up" or "down", message).

    The device speaks first; the server waits for it in its first `yield`. Numbers cross, and not their history.
    """
    advance(server)
    up = advance(device)
    while up is not None:
        yield "up", up
        down = advance(server, _copied(up))
        if down is None:
            return
        yield "down", down
        up = advance(device, _copied(down))


def next_message(side, state, content=None):
    """What a side sends next, in a process that may not have seen its beginning; None at its end.

    side: as it was at its beginning, made from the same weights and the same batch. content: the records that came now,
    "config" and "tensors"; None where the side begins. state: a Flower `Context.state`, which keeps what came before.
    """
    if content is None:
        for name in [name for name in state if name.startswith(_RECEIVED)]:
            del state[name]
    else:
        # Write down what came, for the processes that answer the next messages.
        number = sum(name.startswith(_RECEIVED) for name in state) // 2
        state[f"{_RECEIVED}{number}.config"] = content["config"]
        state[f"{_RECEIVED}{number}.tensors"] = content["tensors"]

    # From the beginning, through everything that came.
    message = advance(side)
    for number in count():
        if f"{_RECEIVED}{number}.config" not in state:
            return message
        numbers, tensors = (state[f"{_RECEIVED}{number}.{kind}"] for kind in ("config", "tensors"))
        message = advance(side, {**numbers, **tensors_of(tensors)})


def packed(message):
    """A message for Flower: its tensors as an `ArrayRecord`, and its numbers by name."""
    tensors = {name: value for name, value in message.items() if isinstance(value, torch.Tensor)}
    numbers = {name: value for name, value in message.items() if name not in tensors}
    arrays = record_of({name: value.detach().cpu().numpy() for name, value in tensors.items()})
    return arrays, numbers


_RECEIVED = "received."  # in a `Context.state`: "received.0.config", "received.0.tensors", ...


def _copied(message):
    return {
        name: value.detach().clone() if isinstance(value, torch.Tensor) else value
        for name, value in message.items()
    }
